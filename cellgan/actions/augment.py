"""``--augment``: whether generated cells help to recognise a label with few cells."""

from __future__ import annotations

import argparse
import types
from typing import TYPE_CHECKING, NamedTuple

from cellgan.actions.base import Action, Option
from cellgan.errors import ConfigError

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

DEFAULT_REPEATS = 3


class Augmentation(NamedTuple):
    """Which label is down-sampled, to what shares, and how often."""

    label: str
    fractions: tuple[float, ...]
    n_seeds: int


class Augment(Action):
    """Down-sample a label, augment it with generated cells, and measure."""

    name = "augment"
    help = (
        "down-sample LABEL in training, augment it with generated cells, and report "
        "how well held-out cells of it are recognised"
    )
    takes = types.MappingProxyType({"metavar": "LABEL"})
    options = (
        Option(
            "fractions",
            {
                "nargs": "+",
                "type": float,
                "metavar": "F",
                "help": "needed: shares of LABEL's training cells to keep, e.g. 0.05 "
                "0.01",
            },
        ),
        Option(
            "seeds",
            {"type": int, "metavar": "N", "help": f"repeats ({DEFAULT_REPEATS})"},
        ),
    )

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse a label without fractions."""
        if not options.fractions:
            msg = "--augment LABEL and --fractions F [F ...] go together."
            raise ConfigError(msg)

    def prepare(
        self, experiment: Experiment, options: argparse.Namespace
    ) -> Augmentation:
        """Refuse a label, shares or a model that it cannot be done with."""
        from cellgan.studies.checks import check_augmentation

        experiment.manifest()  # not processed: said before anything is checked
        experiment.check_frozen("input_ds")
        n_seeds = DEFAULT_REPEATS if options.seeds is None else options.seeds
        plan = Augmentation(options.augment, tuple(options.fractions), n_seeds)
        check_augmentation(experiment, *plan)
        return plan

    def run(self, experiment: Experiment, plan: Augmentation) -> None:
        """Train, generate and recognise, once for every share and repeat."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        import keras

        from cellgan.actions.perform import perform
        from cellgan.generation.trained_model import TrainedModel
        from cellgan.studies import augmentation
        from preprocessing.experiment_folder import write_experiment
        from preprocessing.readers.cell_source import CellSource

        def train_alone(derived: Experiment) -> None:
            keras.utils.clear_session()  # the graphs of the run before
            perform("train", derived)

        augmentation.measure_augmentation(
            experiment,
            plan.label,
            plan.fractions,
            range(plan.n_seeds),
            write_dataset=lambda derived, cells: write_experiment(
                derived, CellSource.of_anndata(cells), {}
            ),
            train=train_alone,
            generate=lambda derived, numbers, seed: TrainedModel.load(
                derived.folder
            ).generate(numbers, seed=seed),
        )


ACTION = Augment()
