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
from typing import Any

from cellgan import __version__, queue
from cellgan.composition.study import Study
from cellgan.config.model_types import require_ability
from cellgan.config.parameters import Parameters
from cellgan.config.reading import load_parameters
from cellgan.errors import CellganError, ConfigError, did_you_mean
from cellgan.experiment import Experiment

SOLVER_KEYS = (
    *("solver", "n_steps", "tolerance", "eta"),
    *("cache_interval", "cache_branch", "cache_spacing"),
)
ACTIONS = ("process", "train", "generate", "evaluate")
STUDIES = (
    *("augment", "correct", "guidance_sweep", "interpolate", "translate"),
    *("counterfactual", "embed", "influence"),
)
NO_ENCODER = "has no encoder of cells"
EMBEDDED_LAYERS = ("normalized", "predictive")
DEFAULT_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
CELLS_PER_WEIGHT = 100
EPILOG = """\
examples:
  cellgan --param parameters.json --process --train --generate --evaluate
  cellgan --param parameters.json --estimate
  cellgan --generate --model_path experiments/pbmc --cells_no 1000 500 0 200
  cellgan --generate --model_path experiments/pbmc --cells_no "B cell=500" --counts
  cellgan --generate --model_path experiments/pbmc --cells_no 200 \\
      --condition "cell_type=B cell" donor=1488 --guidance cell_type=2
  cellgan --param parameters.json --correct batch=8k_5prime
  cellgan --param parameters.json --counterfactual sex=female --input cells.h5ad
  cellgan --param parameters.json --embed --input cells.h5ad
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
    studies = _selected_studies(parameters, options.experiment)
    if options.print_config:
        return _print_config(experiments, studies)
    if options.model_path is not None:
        choose_gpus(parameters.exp_param.GPU[:1])
        return _run_on_model_folder(options)

    if studies:
        return _run_compositions(studies, experiments, parameters, options)

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


def _run_compositions(
    studies: Sequence[Study],
    experiments: Sequence[Experiment],
    parameters: Parameters,
    options: argparse.Namespace,
) -> int:
    """Run composition studies, one after the other."""
    if experiments:
        msg = (
            "the file has composition studies and experiments of one data set: choose "
            "with --experiment NAME."
        )
        raise ConfigError(msg)
    given = [
        name
        for name in ("generate", "estimate", "import_weights", "model_path", *STUDIES)
        if getattr(options, name)
    ]
    if given:
        msg = (
            f"{_option(given[0])} is not for a composition study as a whole: give one "
            f"of its experiments, --param {studies[0].experiments_file} --experiment "
            "NAME."
        )
        raise ConfigError(msg)
    choose_gpus(parameters.exp_param.GPU[:1])

    from cellgan import commands  # noqa: PLC0415  (after the checks, which are fast)

    codes = []
    for study in studies:
        if options.process:
            commands.process_composition(study, overwrite=options.overwrite)
        if options.train:
            codes.append(commands.train_composition(study, parameters.exp_param.GPU))
        if options.evaluate and not any(codes):
            commands.evaluate_composition(study)
    return next((code for code in codes if code), 0)


def _run_actions(experiment: Experiment, options: argparse.Namespace) -> int:
    if options.embed:  # before hours of training
        require_ability(
            experiment.parameters.model, "has_encoder", "--embed", NO_ENCODER
        )

    from cellgan import commands  # noqa: PLC0415

    if options.estimate:
        commands.estimate(experiment)
        return 0
    if options.process:
        commands.process(experiment, overwrite=options.overwrite)
    if options.import_weights:
        family, *files = options.import_weights
        commands.import_weights(experiment, family, [Path(file) for file in files])
    if options.train:
        commands.train(experiment)
    if options.generate:
        commands.generate(
            experiment,
            cells_no=options.cells_no,
            counts=options.counts,
            save_path=options.save_path,
            requests=options.requests,
            **_generation_keys(options),
        )
    if options.guidance_sweep:
        commands.sweep_guidance(experiment, **_solver_keys(options))
    leaking = []
    if options.evaluate:
        leaking = commands.evaluate(experiment, generated=options.save_path)
    _run_studies(experiment, options)
    return commands.LEAK if leaking and options.fail_on_leak else 0


def _run_studies(experiment: Experiment, options: argparse.Namespace) -> None:
    from cellgan import commands  # noqa: PLC0415

    if options.correct:
        _correct(experiment, options)
    if options.interpolate:
        _interpolate(experiment, options)
    if options.counterfactual:
        commands.counterfactual(
            experiment,
            _pairs(options.counterfactual, "--counterfactual") or {},
            cells=options.input,
            save_path=options.save_path,
            seed=options.seed,
        )
    if options.embed:
        commands.embed(
            experiment,
            cells=options.input,
            layers=_layers(options.layers),
            n_samples=options.n_samples,
            condition=_pairs(options.condition, "--condition") or {},
            save_path=options.save_path,
            seed=options.seed,
        )
    if options.influence:
        commands.influence(experiment)
    if options.augment:
        commands.augment(
            experiment, options.augment, options.fractions, n_seeds=options.seeds
        )


def _correct(experiment: Experiment, options: argparse.Namespace) -> None:
    from cellgan import commands  # noqa: PLC0415

    commands.correct(
        experiment,
        _pairs(options.correct, "--correct") or {},
        save_path=options.save_path,
        guidance=_scales(options.guidance),
        **_solver_keys(options),
    )


def _interpolate(experiment: Experiment, options: argparse.Namespace) -> None:
    from cellgan import commands  # noqa: PLC0415

    first, second = options.interpolate
    commands.interpolate(
        experiment,
        (first, second),
        options.weights or DEFAULT_WEIGHTS,
        n_cells=_cells_per_weight(options.cells_no),
        noise_step=options.init_step,
        save_path=options.save_path,
        guidance=_scales(options.guidance),
        **_solver_keys(options),
    )


def _generation_keys(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of ``generation`` that the command line gives."""
    return {
        "condition": _pairs(options.condition, "--condition"),
        "guidance": _scales(options.guidance),
        "library_size": _library_size(options.library_size),
        "latents": options.latents,
        **_solver_keys(options),
    }


def _solver_keys(options: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(options, name) for name in ("seed", *SOLVER_KEYS)}


def _cells_per_weight(words: Sequence[str] | None) -> int:
    if words is None:
        return CELLS_PER_WEIGHT
    if len(words) != 1 or not words[0].isdecimal() or not int(words[0]):
        msg = (
            f"--cells_no: {' '.join(words)} found: with --interpolate, give one number "
            "from 1 on, of the cells of each weight."
        )
        raise ConfigError(msg)
    return int(words[0])


def _pairs(words: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """Read ``COVARIATE=VALUE`` words; a value may hold "=" itself."""
    if words is None:
        return None
    pairs: dict[str, str] = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not (name and separator and value):
            msg = (
                f'{option}: "{word}" is no pair. Give COVARIATE=VALUE pairs, in quotes '
                f'where a value has spaces: {option} "cell_type=B cell".'
            )
            raise ConfigError(msg)
        if name in pairs:
            msg = f'{option}: "{name}" is given twice. Name every covariate once.'
            raise ConfigError(msg)
        pairs[name] = value
    return pairs


def _scales(words: Sequence[str] | None) -> dict[str, float] | None:
    pairs = _pairs(words, "--guidance")
    scales = {}
    for name, value in (pairs or {}).items():
        try:
            scales[name] = float(value)
        except ValueError:
            msg = f'--guidance: the scale of {name} is "{value}", no number.'
            raise ConfigError(msg) from None
    return None if pairs is None else scales


def _layers(words: Sequence[str] | None) -> tuple[str, ...] | None:
    """Read the layers that ``--embed`` writes."""
    if words is None:
        return None
    if words == ["none"]:
        return ()
    for word in words:
        if word not in EMBEDDED_LAYERS:
            msg = (
                f'--layers: no layer "{word}".{did_you_mean(word, EMBEDDED_LAYERS)} '
                f"Layers: {', '.join(EMBEDDED_LAYERS)}; or none, alone."
            )
            raise ConfigError(msg)
    return tuple(words)


def _library_size(word: str | None) -> int | str | None:
    return int(word) if word is not None and word.isdecimal() else word


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
        must_know_training=options.fail_on_leak,
    )
    return commands.LEAK if leaking and options.fail_on_leak else 0


def _print_config(experiments: Sequence[Experiment], studies: Sequence[Study]) -> int:
    import json  # noqa: PLC0415

    from cellgan.config.reading import as_used  # noqa: PLC0415

    document = {of.name: as_used(of.parameters) for of in experiments}
    document |= {of.name: as_used(of.parameters) for of in studies}
    print(json.dumps(document, indent=4))
    return 0


def _selected(parameters: Parameters, names: Sequence[str] | None) -> list[Experiment]:
    known = (*parameters.experiments, *parameters.studies)
    for name in names or ():
        if name not in known:
            msg = (
                f'--experiment: no experiment "{name}".{did_you_mean(name, known)}\n'
                f"    Experiments: {', '.join(known)}."
            )
            raise ConfigError(msg)
    folder = Path(parameters.exp_param.experiments_dir)
    return [
        Experiment(folder / name, parameters.experiments[name])
        for name in names or parameters.experiments
        if name in parameters.experiments
    ]


def _selected_studies(
    parameters: Parameters, names: Sequence[str] | None
) -> list[Study]:
    folder = Path(parameters.exp_param.experiments_dir)
    return [
        Study(folder / name, parameters.studies[name])
        for name in names or parameters.studies
        if name in parameters.studies
    ]


def _check_options(options: argparse.Namespace) -> None:
    wanted = [action for action in (*ACTIONS, *STUDIES) if getattr(options, action)]
    _check_import(options, wanted)
    others = ("estimate", "print_config", "import_weights")
    if not wanted and not any(getattr(options, name) for name in others):
        msg = (
            "nothing to do: give one or more of --process --train --generate "
            "--evaluate, or --augment, --correct, --counterfactual, --embed, "
            "--guidance-sweep, --influence, --interpolate, --estimate, "
            "--import-weights, --print-config."
        )
        raise ConfigError(msg)
    _check_evaluation_options(options, wanted)
    if options.param is None and options.model_path is None and options.real is None:
        msg = "--param is missing: give the parameter file, --param parameters.json."
        raise ConfigError(msg)
    if options.estimate and wanted:
        msg = "--estimate only tells what would be needed: give it without an action."
        raise ConfigError(msg)
    if options.translate:
        msg = (
            "--translate: no model type can predict one modality from the other: "
            "CFGen's encoder needs RNA and ATAC of a cell, and its flow makes both "
            "anew. --generate makes pairs, --correct keeps a cell and changes a "
            "covariate."
        )
        raise ConfigError(msg)
    _check_generation_options(options, wanted)
    if bool(options.augment) != bool(options.fractions):
        msg = "--augment LABEL and --fractions F [F ...] go together."
        raise ConfigError(msg)
    if options.overwrite and not options.process:
        msg = "--overwrite goes with --process, which is not given."
        raise ConfigError(msg)


def _check_import(options: argparse.Namespace, wanted: Sequence[str]) -> None:
    if options.import_weights is None:
        return
    if len(options.import_weights) < 2:
        msg = "--import-weights takes a family and files: --import-weights cfgen A.ckpt"
        raise ConfigError(msg)
    if wanted or options.estimate or options.model_path is not None:
        msg = (
            "--import-weights goes with --param alone: process before, and do the rest "
            "after it."
        )
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
    alone = (["generate"], ["counterfactual"], ["embed"])
    others = wanted not in alone or options.experiment
    if options.model_path is not None and others:
        msg = (
            "--model_path goes with --generate, --counterfactual or --embed, one of "
            "them alone; use --param for the rest."
        )
        raise ConfigError(msg)
    everywhere = ("generate", "correct", "guidance_sweep", "interpolate")
    seeded = (*everywhere, "counterfactual", "embed")
    of_actions: dict[str, tuple[str, ...]] = {
        **dict.fromkeys(("counts", "requests"), ("generate",)),
        "cells_no": ("generate", "interpolate"),
        **dict.fromkeys(("weights", "init_step"), ("interpolate",)),
        **dict.fromkeys(("latents", "library_size"), ("generate",)),
        "condition": ("generate", "embed"),
        "guidance": ("generate", "correct", "interpolate"),
        "save_path": (
            *("generate", "correct", "interpolate", "counterfactual", "embed"),
        ),
        "input": ("counterfactual", "embed"),
        **dict.fromkeys(("layers", "n_samples"), ("embed",)),
        **dict.fromkeys(SOLVER_KEYS, everywhere),
        "seed": seeded if options.real is None else ("evaluate",),
    }
    for name, actions in of_actions.items():
        value = getattr(options, name)
        is_given = value is not None and value is not False  # 0 is given
        if is_given and not any(getattr(options, action) for action in actions):
            with_what = " or ".join(_option(action) for action in actions)
            msg = f"{_option(name)} goes with {with_what}, which is not given."
            raise ConfigError(msg)
    _generation_keys(options)  # whose words are read: a slip is told at once
    _pairs(options.correct, "--correct")
    _pairs(options.counterfactual, "--counterfactual")
    _layers(options.layers)
    if options.n_samples is not None and options.n_samples < 0:
        msg = (
            f"--n-samples: {options.n_samples} found. Give 0 (the mean) or more draws."
        )
        raise ConfigError(msg)
    if options.interpolate:
        _cells_per_weight(options.cells_no)
        if options.generate or options.correct:
            msg = (
                "--interpolate shares options with --generate and --correct: run them "
                "one after the other."
            )
            raise ConfigError(msg)
    if options.save_path is not None and options.generate and options.correct:
        msg = (
            "--save_path names one file, but --generate and --correct write one each: "
            "run them one after the other."
        )
        raise ConfigError(msg)
    _check_one_file(options)
    path = options.save_path
    if options.evaluate and path is not None and path.suffix != ".h5ad":
        msg = (
            f"--save_path: {path} cannot be evaluated, only .h5ad files can. Save to "
            f".h5ad, or leave --evaluate out."
        )
        raise ConfigError(msg)


def _check_one_file(options: argparse.Namespace) -> None:
    """Refuse one file, given or to be written, for several actions."""
    if options.counterfactual and (options.generate or options.correct):
        msg = (
            "--counterfactual shares options with --generate and --correct: run them "
            "one after the other."
        )
        raise ConfigError(msg)
    with_files = ("generate", "correct", "interpolate", "counterfactual")
    others = [_option(name) for name in with_files if getattr(options, name)]
    for name in ("save_path", "input", "condition"):
        if options.embed and others and getattr(options, name) is not None:
            msg = (
                f"{_option(name)} would be of --embed and of {others[0]}: run them one "
                "after the other."
            )
            raise ConfigError(msg)
    if options.n_samples is not None and options.n_samples < 0:
        msg = f"--n-samples: {options.n_samples} found. Give 0, the mean, or more."
        raise ConfigError(msg)


def _arguments_of_each(options: argparse.Namespace) -> list[str]:
    """Return the command line of one experiment of a queue, but for its name."""
    if options.import_weights is not None:
        msg = (
            "--import-weights fills one experiment, but there are several: choose one "
            "with --experiment NAME."
        )
        raise ConfigError(msg)
    if options.save_path is not None:
        msg = (
            "--save_path names one file, but there are several experiments: choose "
            "one with --experiment NAME, or leave --save_path out."
        )
        raise ConfigError(msg)
    arguments = ["--param", str(options.param)]
    flags = ("estimate", "overwrite", "counts", "fail_on_leak")
    studies = ("embed", "guidance_sweep", "influence")
    for name in (*ACTIONS, *flags, *studies):
        if getattr(options, name):
            arguments.append(_option(name))
    lists = ("cells_no", "condition", "guidance", "correct", "interpolate", "weights")
    for name in (*lists, "counterfactual", "layers"):
        if getattr(options, name):
            arguments += [_option(name), *map(str, getattr(options, name))]
    numbers = ("seed", "requests", "latents", "library_size", "init_step", "input")
    for name in (*numbers, "n_samples", *SOLVER_KEYS):
        if getattr(options, name) is not None:
            arguments += [_option(name), str(getattr(options, name))]
    if options.augment:
        arguments += ["--augment", options.augment, "--seeds", str(options.seeds)]
        arguments += ["--fractions", *map(str, options.fractions)]
    return arguments


def _option(name: str) -> str:
    """Return how an option is written; the original's have underscores."""
    underscored = ("cells_no", "save_path", "model_path")
    return f"--{name if name in underscored else name.replace('_', '-')}"


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
        "--import-weights",
        nargs="+",
        metavar=("FAMILY", "CKPT"),
        help="in place of --train: take weights that the original program has trained "
        "(cfgen or cfdiffusion)",
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
    add(
        "--correct",
        nargs="+",
        metavar="COVARIATE=VALUE",
        help="batch correction: move the processed cells to this category",
    )
    add(
        "--translate",
        nargs=2,
        metavar=("FROM", "TO"),
        help="predict one modality from the other: refused, no model type can",
    )
    add(
        "--interpolate",
        nargs=2,
        metavar=("FROM", "TO"),
        help="make cells between two labels",
    )
    add(
        "--weights",
        nargs="+",
        type=float,
        metavar="W",
        help="with --interpolate: 0 is FROM, 1 is TO (0 0.25 0.5 0.75 1)",
    )
    add(
        "--init-step",
        type=int,
        metavar="N",
        help="with --interpolate: start from training cells of FROM with the noise of "
        "this step; by default from noise alone",
    )
    add(
        "--counterfactual",
        nargs="+",
        metavar="FIELD=VALUE",
        help="of cycleAE: edit cells to these categories, with what each head adds",
    )
    add(
        "--embed",
        action="store_true",
        help="of LDVAE, CFGen and cfDiffusion: cells with their latents; of LDVAE also "
        "what it makes of them, how well, and the loadings of genes",
    )
    add(
        "--layers",
        nargs="+",
        metavar="LAYER",
        help="with --embed: normalized and predictive (default), or none",
    )
    add(
        "--n-samples",
        type=int,
        metavar="N",
        help="with --embed: draws that expression is the mean of (0: that of the mean "
        "latent)",
    )
    add(
        "--input",
        type=Path,
        metavar="FILE",
        help="with --counterfactual or --embed: raw counts of the cells, of any "
        "format; by default the processed cells",
    )
    add(
        "--influence",
        action="store_true",
        help="of cycleAE: what each covariate contributes: tables, loadings, a plot",
    )
    add(
        "--guidance-sweep",
        action="store_true",
        help="compare cells generated with several guidance scales",
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
        "--condition",
        nargs="+",
        metavar="COVARIATE=VALUE",
        help="category of all cells, in quotes where it has spaces; other covariates "
        "go with it as they do among the training cells. With --embed: decode all "
        "cells as if they were of it, such as of one batch",
    )
    add(
        "--requests",
        type=Path,
        metavar="FILE",
        help="table of requests (.csv, .tsv): a column per covariate, and n_cells; for "
        "every model that is conditioned on something",
    )
    add(
        "--guidance",
        nargs="+",
        metavar="COVARIATE=SCALE",
        help="how strongly cells follow a covariate: 0 not, 1 as in the data (default),"
        " more exaggerates",
    )
    add(
        "--library-size",
        metavar="N",
        help="of RNA: a number, or modelled (default) or copied from training cells "
        "with the same covariates",
    )
    add(
        "--latents",
        metavar="HOW",
        help="of LDVAE: posterior (default), of training cells with the covariates "
        "asked for, or prior",
    )
    add(
        "--solver",
        metavar="NAME",
        help="of CFGen: euler, midpoint, heun, rk4 or dopri5; of cfDiffusion: ddpm or "
        "ddim",
    )
    add("--n-steps", type=int, metavar="N", help="steps of the solver")
    add("--tolerance", type=float, metavar="T", help="with --solver dopri5")
    add("--eta", type=float, metavar="E", help="fresh noise with --solver ddim, 0 to 1")
    add(
        "--cache-interval",
        type=int,
        metavar="N",
        help="compute all of cfDiffusion's denoiser in every Nth step only",
    )
    add(
        "--cache-branch",
        type=int,
        metavar="N",
        help="with --cache-interval: the layers computed in every step, from 0 for the "
        "outermost alone",
    )
    add(
        "--cache-spacing",
        metavar="HOW",
        help="with --cache-interval: even, or uneven for most whole steps at the end",
    )
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
