"""``--evaluate``: generated cells beside held-out ones, and the report."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellgan.actions.base import Action, Option
from cellgan.actions.options import SEED
from cellgan.errors import LEAK, ConfigError

if TYPE_CHECKING:
    from cellgan.composition.study import Study
    from cellgan.experiment import Experiment

LEADERBOARD = "leaderboard"
"""Folder, beside the experiments, of the report on all of them."""

OF_FILES = (
    Option(
        "real",
        {
            "type": Path,
            "metavar": "FILE",
            "help": "compare files that any tool made: real cells, .h5ad or .h5mu; an "
            'obs column "split" (train, test) says what was trained on',
        },
    ),
    Option(
        "generated",
        {"type": Path, "nargs": "+", "metavar": "FILE", "help": "generated cells"},
    ),
    Option(
        "label",
        {"metavar": "COLUMN", "help": "with --real: obs column to compare by"},
    ),
    Option(
        "report",
        {
            "type": Path,
            "metavar": "DIR",
            "help": "with --real: folder of the report (evaluation)",
        },
    ),
)
FAIL_ON_LEAK = Option(
    "fail_on_leak",
    {"action": "store_true", "help": "exit with 3 when training cells were copied"},
)


class Judgement(NamedTuple):
    """What is compared with the held-out cells, and what a leak means."""

    generated: Path | None
    """None for where ``--generate`` puts cells."""
    fails_on_leak: bool


class Evaluate(Action):
    """Compare generated with held-out cells and write the report."""

    name = "evaluate"
    help = "compare generated cells with held-out ones"
    options = (FAIL_ON_LEAK, *OF_FILES)
    verb_options = (SEED,)
    is_for_studies = True

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse files that are half named, or cannot be compared."""
        if (options.real is None) != (options.generated is None):
            msg = (
                "--evaluate of files takes both --real FILE, of real cells, and "
                "--generated FILE [FILE ...]; one of them is missing."
            )
            raise ConfigError(msg)
        for name in ("label", "report"):
            if getattr(options, name) is not None and options.real is None:
                msg = f"--{name} goes with --evaluate --real FILE --generated FILE."
                raise ConfigError(msg)
        path = options.save_path
        if path is not None and path.suffix != ".h5ad":
            msg = (
                f"--save_path: {path} cannot be evaluated, only .h5ad files can. Save "
                "to .h5ad, or leave --evaluate out."
            )
            raise ConfigError(msg)

    def prepare(self, experiment: Experiment, options: argparse.Namespace) -> Judgement:
        """Refuse an experiment that was processed with other parameters."""
        experiment.manifest()  # not processed: said before anything is compared
        experiment.check_frozen("input_ds")
        return Judgement(options.save_path, options.fail_on_leak)

    def run(self, experiment: Experiment, plan: Judgement) -> int:
        """Compare, and return `LEAK` if training cells were copied and that fails."""
        from cellgan.evaluation import evaluate

        leaking = evaluate.leaking(evaluate.evaluate(experiment, plan.generated))
        return LEAK if leaking and plan.fails_on_leak else 0

    def run_on_study(
        self, study: Study, options: argparse.Namespace, gpus: Sequence[int]
    ) -> int:
        """Judge every model of a study on every evaluation set."""
        from cellgan.start import load_tensorflow

        del options, gpus
        study.manifest()
        load_tensorflow()
        from cellgan.composition import scores

        scores.evaluate_composition(study)
        return 0

    def end_queue(self, experiments: Sequence[Experiment]) -> None:
        """Put reports of experiments on the same data side by side."""
        from cellgan.evaluation import evaluate

        groups: dict[object, list[Experiment]] = {}
        for experiment in experiments:
            groups.setdefault(experiment.parameters.input_ds, []).append(experiment)
        for group in groups.values():
            folder = group[0].folder.parent / LEADERBOARD
            if len(groups) > 1:
                folder = folder / group[0].name
            evaluate.leaderboard(group, folder)


def evaluate_cells_of_files(options: argparse.Namespace) -> int:
    """Compare files of generated cells, whoever made them, with one of real cells."""
    from cellgan.evaluation import evaluate

    records = evaluate.evaluate_files(
        options.real,
        options.generated,
        options.report or Path("evaluation"),
        label=options.label,
        seed=options.seed or 0,
        must_know_training=options.fail_on_leak,
    )
    return LEAK if evaluate.leaking(records) and options.fail_on_leak else 0


ACTION = Evaluate()
