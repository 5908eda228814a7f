"""The command line: arguments, GPU choice, exit codes; no other logic.

``python main.py`` and the console command ``cellgan`` are the same. Nothing heavy is
imported before it is needed, so ``--help`` and every wrong parameter answer at once.
Exit codes: 0 done; 2 something the user can put right, said in one message; 3 training
cells were copied (with ``--fail-on-leak``); 1 a bug, with its traceback; 130
interrupted.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cellgan import __version__, queue
from cellgan.config import Parameters, load_parameters
from cellgan.errors import CellganError, ConfigError, did_you_mean
from cellgan.experiment import Experiment

ACTIONS = ("process", "train", "generate", "evaluate")
EPILOG = """\
examples:
  cellgan --param parameters.json --process --train --generate --evaluate
  cellgan --param parameters.json --estimate
  cellgan --generate --model_path experiments/pbmc --cells_no 1000 500 0 200
  cellgan --generate --model_path experiments/pbmc --cells_no "B cell=500" --counts
  cellgan --evaluate --real held_out.h5ad --generated mine.h5ad theirs.h5ad
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    _log_to_stdout()
    try:
        return _run(_parser().parse_args(arguments))
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
    _check_options(options)
    if options.real is not None:
        return _evaluate_files(options)
    if options.param is None:
        return _run_on_model_folder(options)
    parameters = load_parameters(options.param)
    experiments = _selected(parameters, options.experiment)
    if options.print_config:
        return _print_config(experiments)
    if options.model_path is not None:
        choose_gpus(parameters.exp_param.GPU[:1])
        return _run_on_model_folder(options)

    from cellgan import commands  # noqa: PLC0415  (after the checks, which are fast)

    if len(experiments) > 1:
        return commands.run_queue(
            experiments, parameters.exp_param.GPU, _arguments_of_each(options)
        )
    (experiment,) = experiments
    uses_all = experiment.parameters.training.uses_all_gpus
    gpus = parameters.exp_param.GPU if uses_all else parameters.exp_param.GPU[:1]
    if queue.IN_QUEUE not in os.environ:  # the queue has chosen already
        choose_gpus(gpus)
    return _run_actions(experiment, options)


def _run_actions(experiment: Experiment, options: argparse.Namespace) -> int:
    from cellgan import commands  # noqa: PLC0415

    if options.estimate:
        commands.estimate(experiment)
        return 0
    if options.process:
        commands.process(experiment, overwrite=options.overwrite)
    if options.train:
        commands.train(experiment)
    if options.generate:
        commands.generate(
            experiment,
            cells_no=options.cells_no,
            seed=options.seed,
            counts=options.counts,
            save_path=options.save_path,
        )
    leaking = []
    if options.evaluate:
        leaking = commands.evaluate(experiment, generated=options.save_path)
    if options.augment:
        commands.augment(
            experiment, options.augment, options.fractions, n_seeds=options.seeds
        )
    return commands.LEAK if leaking and options.fail_on_leak else 0


def _run_on_model_folder(options: argparse.Namespace) -> int:
    return _run_actions(Experiment.open(options.model_path), options)


def _evaluate_files(options: argparse.Namespace) -> int:
    from cellgan import commands  # noqa: PLC0415

    leaking = commands.evaluate_files(
        options.real,
        options.generated,
        options.report or Path("evaluation"),
        label=options.label,
        seed=options.seed or 0,
    )
    return commands.LEAK if leaking and options.fail_on_leak else 0


def _print_config(experiments: Sequence[Experiment]) -> int:
    import json  # noqa: PLC0415

    from cellgan.config import as_json  # noqa: PLC0415

    document = {
        experiment.name: as_json(experiment.parameters) for experiment in experiments
    }
    print(json.dumps(document, indent=4))
    return 0


def _selected(parameters: Parameters, names: Sequence[str] | None) -> list[Experiment]:
    for name in names or ():
        if name not in parameters.experiments:
            msg = (
                f'--experiment: no experiment "{name}".'
                f"{did_you_mean(name, parameters.experiments)}\n"
                f"    Experiments: {', '.join(parameters.experiments)}."
            )
            raise ConfigError(msg)
    folder = Path(parameters.exp_param.experiments_dir)
    return [
        Experiment(folder / name, parameters.experiments[name])
        for name in names or parameters.experiments
    ]


def _check_options(options: argparse.Namespace) -> None:
    wanted = [action for action in ACTIONS if getattr(options, action)]
    if not (wanted or options.augment or options.estimate or options.print_config):
        msg = (
            "nothing to do: give one or more of --process --train --generate "
            "--evaluate, or --augment, --estimate, --print-config."
        )
        raise ConfigError(msg)
    _check_evaluation_options(options, wanted)
    if options.param is None and options.model_path is None and options.real is None:
        msg = "--param is missing: give the parameter file, --param parameters.json."
        raise ConfigError(msg)
    if options.estimate and (wanted or options.augment):
        msg = "--estimate only tells what would be needed: give it without an action."
        raise ConfigError(msg)
    _check_generation_options(options, wanted)
    if bool(options.augment) != bool(options.fractions):
        msg = "--augment LABEL and --fractions F [F ...] go together."
        raise ConfigError(msg)
    if options.overwrite and not options.process:
        msg = "--overwrite goes with --process, which is not given."
        raise ConfigError(msg)


def _check_evaluation_options(
    options: argparse.Namespace, wanted: Sequence[str]
) -> None:
    if (options.real is None) != (options.generated is None):
        msg = (
            "--evaluate of files takes both --real FILE, of real cells, and "
            "--generated FILE [FILE ...]; one of them is missing."
        )
        raise ConfigError(msg)
    if options.real is not None and (wanted != ["evaluate"] or options.param):
        msg = (
            "--real and --generated go with --evaluate alone, without --param: with "
            "a parameter file, an experiment's own cells are compared."
        )
        raise ConfigError(msg)
    for name in ("label", "report"):
        if getattr(options, name) is not None and options.real is None:
            msg = f"--{name} goes with --evaluate --real FILE --generated FILE."
            raise ConfigError(msg)
    if options.fail_on_leak and not options.evaluate:
        msg = "--fail-on-leak goes with --evaluate, which is not given."
        raise ConfigError(msg)


def _check_generation_options(
    options: argparse.Namespace, wanted: Sequence[str]
) -> None:
    others = wanted != ["generate"] or options.augment or options.experiment
    if options.model_path is not None and others:
        msg = "--model_path goes with --generate alone; use --param for the rest."
        raise ConfigError(msg)
    generation = {
        "--cells_no": options.cells_no,
        "--counts": options.counts or None,
        "--save_path": options.save_path,
        "--seed": options.seed if options.real is None else None,
    }
    for name, value in generation.items():
        if value is not None and not options.generate:
            msg = f"{name} goes with --generate, which is not given."
            raise ConfigError(msg)
    path = options.save_path
    if options.evaluate and path is not None and path.suffix != ".h5ad":
        msg = (
            f"--save_path: {path} cannot be evaluated, only .h5ad files can. Save to "
            f".h5ad, or leave --evaluate out."
        )
        raise ConfigError(msg)


def _arguments_of_each(options: argparse.Namespace) -> list[str]:
    """Return the command line of one experiment of a queue, but for its name."""
    if options.save_path is not None:
        msg = (
            "--save_path names one file, but there are several experiments: choose "
            "one with --experiment NAME, or leave --save_path out."
        )
        raise ConfigError(msg)
    arguments = ["--param", str(options.param)]
    for name in (*ACTIONS, "estimate", "overwrite", "counts", "fail_on_leak"):
        if getattr(options, name):
            arguments.append(f"--{name.replace('_on_', '-on-')}")
    if options.cells_no:
        arguments += ["--cells_no", *options.cells_no]
    if options.seed is not None:
        arguments += ["--seed", str(options.seed)]
    if options.augment:
        arguments += ["--augment", options.augment, "--seeds", str(options.seeds)]
        arguments += ["--fractions", *map(str, options.fractions)]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cellgan",
        description="Generative models of single-cell data: process, train, generate "
        "and evaluate, as the parameter file says.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"cellgan {__version__}")
    add("--param", type=Path, metavar="FILE", help="parameter file (JSON)")
    add(
        "--experiment",
        nargs="+",
        metavar="NAME",
        help="run only these experiments of the file",
    )
    add("--print-config", action="store_true", help="print all parameters and stop")
    add(
        "--estimate",
        action="store_true",
        help="tell memory, disk and hours that the stages need, and stop",
    )
    _add_action_arguments(parser)
    _add_generation_arguments(parser)
    _add_evaluation_arguments(parser)
    return parser


def _add_action_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what to do, in this order").add_argument
    add("--process", action="store_true", help="raw file -> filtered, split records")
    add("--train", action="store_true", help="train, or resume a run that was stopped")
    add("--generate", action="store_true", help="make cells with the trained model")
    add("--evaluate", action="store_true", help="compare them with held-out cells")
    add(
        "--overwrite",
        action="store_true",
        help="with --process: replace an experiment that exists, its training too",
    )
    add(
        "--augment",
        metavar="LABEL",
        help="down-sample LABEL in training, augment it with generated cells, and "
        "report how well held-out cells of it are recognised",
    )
    add(
        "--fractions",
        nargs="+",
        type=float,
        metavar="F",
        help="with --augment: shares of LABEL's training cells to keep, e.g. 0.05 0.01",
    )
    add("--seeds", type=int, default=3, metavar="N", help="with --augment: repeats (3)")


def _add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("generation").add_argument
    add(
        "--cells_no",
        nargs="+",
        metavar="N",
        help="numbers of cells: one per label in order; one number for scGAN; "
        "LABEL=N pairs; or like-data, the numbers of the training cells (default)",
    )
    add("--seed", type=int, metavar="N", help="seed of the generated cells (0)")
    add(
        "--counts",
        action="store_true",
        help="turn library-size-normalised cells into integer counts",
    )
    add("--model_path", type=Path, metavar="DIR", help="folder of a trained experiment")
    add(
        "--save_path",
        type=Path,
        metavar="FILE",
        help="where the cells go: .h5ad, .zarr or a 10x .mtx folder; by default "
        "generated/cells.h5ad of the experiment, replacing what is there",
    )


def _add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("evaluation").add_argument
    add(
        "--real",
        type=Path,
        metavar="FILE",
        help="compare files that any tool made: real cells, .h5ad or .h5mu; an obs "
        'column "split" (train, test) says what was trained on',
    )
    add("--generated", type=Path, nargs="+", metavar="FILE", help="generated cells")
    add("--label", metavar="COLUMN", help="with --real: obs column to compare by")
    add(
        "--report",
        type=Path,
        metavar="DIR",
        help="with --real: folder of the report (evaluation)",
    )
    add(
        "--fail-on-leak",
        action="store_true",
        help="exit with 3 when training cells were copied",
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
