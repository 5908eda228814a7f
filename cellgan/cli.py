"""The command line: what is asked for, GPU choice, exit codes; no other logic.

``python main.py`` and the console command ``cellgan`` are the same. Nothing heavy is
imported before it is needed, so ``--help`` and every wrong parameter answer at once.
Exit codes: 0 done; 2 something the user can put right, said in one message; 3 training
cells were copied (with ``--fail-on-leak``); 1 a bug, with its traceback; 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellgan import queue
from cellgan.actions.base import Action, flag
from cellgan.actions.evaluate import evaluate_cells_of_files
from cellgan.actions.parsing import arguments_of_each, wanted_actions
from cellgan.actions.perform import run_actions
from cellgan.actions.verbs import parse
from cellgan.errors import CellganError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from cellgan.composition.study import Study
    from cellgan.config.parameters import Parameters
    from cellgan.experiment import Experiment


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _log_to_stdout()
    try:
        return _run(parse(sys.argv[1:] if arguments is None else arguments))
    except CellganError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on from the last checkpoint (one is "
            "kept every training.save_freq steps).",
            file=sys.stderr,
        )
        return 130


def choose_gpus(gpus: Sequence[int]) -> None:
    """Show TensorFlow these GPUs only; none means the CPU. Call before it loads."""
    os.environ[queue.VISIBLE_GPUS] = ",".join(queue.visible_gpus(gpus))


def _run(options: argparse.Namespace) -> int:
    wanted = wanted_actions(options)
    if options.real is not None:
        return evaluate_cells_of_files(options)

    # Parameters are read by Pydantic, which takes longer than all refusals so far
    from cellgan.config.reading import load_parameters  # noqa: PLC0415
    from cellgan.experiment import Experiment  # noqa: PLC0415

    if options.param is None:
        return run_actions(wanted, Experiment.open(options.model_path), options)
    parameters = load_parameters(options.param)
    experiments, studies = _selected(parameters, options.experiment)
    if options.print_config:
        return _print_config([*experiments, *studies])
    gpus = parameters.exp_param.GPU
    if options.model_path is not None:
        choose_gpus(gpus[:1])
        return run_actions(wanted, Experiment.open(options.model_path), options)
    if studies:
        _check_studies(studies, experiments, wanted)
        choose_gpus(gpus[:1])
        return _run_on_studies(studies, wanted, options, gpus)
    if len(experiments) > 1:
        arguments = arguments_of_each(options, wanted)
        code = queue.run_experiments(experiments, gpus, arguments)
        for action in wanted:
            action.end_queue(experiments)
        return code
    (experiment,) = experiments
    if queue.IN_QUEUE not in os.environ:  # the queue has chosen already
        uses_all = experiment.parameters.training.uses_all_gpus
        choose_gpus(gpus if uses_all else gpus[:1])
    return run_actions(wanted, experiment, options)


def _check_studies(
    studies: Sequence[Study],
    experiments: Sequence[Experiment],
    wanted: Sequence[Action],
) -> None:
    """Refuse what composition studies as a whole cannot be asked for."""
    if experiments:
        msg = (
            "the file has composition studies and experiments of one data set: choose "
            "with --experiment NAME."
        )
        raise ConfigError(msg)
    for action in wanted:
        if not action.is_for_studies:
            msg = (
                f"{flag(action.attribute)} is not for a composition study as a whole: "
                f"give one of its experiments, --param {studies[0].experiments_file} "
                "--experiment NAME."
            )
            raise ConfigError(msg)


def _run_on_studies(
    studies: Sequence[Study],
    wanted: Sequence[Action],
    options: argparse.Namespace,
    gpus: Sequence[int],
) -> int:
    """Run composition studies, one after the other; one that fails ends there."""
    codes = []
    for study in studies:
        for action in wanted:
            codes.append(action.run_on_study(study, options, gpus))
            if codes[-1]:
                break
    return next((code for code in codes if code), 0)


def _print_config(entries: Sequence[Experiment | Study]) -> int:
    from cellgan.config.reading import as_used  # noqa: PLC0415

    document = {entry.name: as_used(entry.parameters) for entry in entries}
    print(json.dumps(document, indent=4))
    return 0


def _selected(
    parameters: Parameters, names: Sequence[str] | None
) -> tuple[list[Experiment], list[Study]]:
    """Return the experiments and the composition studies that are named, or all."""
    from cellgan.composition.study import Study  # noqa: PLC0415
    from cellgan.experiment import Experiment  # noqa: PLC0415

    known = (*parameters.experiments, *parameters.studies)
    for name in names or ():
        if name not in known:
            msg = (
                f'--experiment: no experiment "{name}".{did_you_mean(name, known)}\n'
                f"    Experiments: {', '.join(known)}."
            )
            raise ConfigError(msg)
    folder = Path(parameters.exp_param.experiments_dir)

    def chosen(kind: Any, entries: Mapping[str, Any]) -> list[Any]:
        names_here = [name for name in names or entries if name in entries]
        return [kind(folder / name, entries[name]) for name in names_here]

    return (
        chosen(Experiment, parameters.experiments),
        chosen(Study, parameters.studies),
    )


def _log_to_stdout() -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("cellgan", "preprocessing"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


if __name__ == "__main__":
    raise SystemExit(main())
