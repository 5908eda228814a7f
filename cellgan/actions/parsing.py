"""The command line, made from the table of actions: parser, help, refusals."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellgan import __version__
from cellgan.actions import actions
from cellgan.actions.base import Action, Option, flag
from cellgan.errors import ConfigError

EPILOG = """\
Every action is a verb too, behind which its file and what it takes are given:
cellgan VERB FILE ...; of one alone: cellgan VERB --help

examples:
  cellgan --param parameters.json --process --train --generate --evaluate
  cellgan estimate parameters.json
  cellgan generate experiments/pbmc --cells_no 1000 500 0 200
  cellgan generate experiments/pbmc --cells_no "B cell=500" --counts
  cellgan generate experiments/pbmc --cells_no 200 \\
      --condition "cell_type=B cell" donor=1488 --guidance cell_type=2
  cellgan correct parameters.json batch=8k_5prime
  cellgan counterfactual parameters.json sex=female --input cells.h5ad
  cellgan embed parameters.json --input cells.h5ad
  cellgan evaluate --real held_out.h5ad mine.h5ad theirs.h5ad
"""


def parse_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line of flags."""
    return _parser().parse_args(arguments)


def defaults(**asked: Any) -> argparse.Namespace:
    """Return the options of an empty command line, but for those that are named."""
    options = _parser().parse_args([])
    vars(options).update(asked)
    return options


def wanted_actions(options: argparse.Namespace) -> tuple[Action, ...]:
    """Return the actions asked for, in the order in which they run.

    Raises
    ------
    ConfigError
        If there are none, or options do not go with them or with each other.
    """
    wanted = tuple(action for action in actions() if action.is_wanted(options))
    if not wanted and not options.print_config:
        names = [flag(action.attribute) for action in actions()]
        msg = f"nothing to do: give one or more of {', '.join(names)}, --print-config."
        raise ConfigError(msg)
    _check_owners(options, wanted)
    files = _files_of_others(options)
    if files and ([action.name for action in wanted] != ["evaluate"] or options.param):
        msg = (
            "--real and --generated go with --evaluate alone, without --param: with "
            "a parameter file, an experiment's own cells are compared."
        )
        raise ConfigError(msg)
    for action in wanted:
        if action.goes_alone and len(wanted) > 1:
            raise ConfigError(action.goes_alone)
        action.check_words(options)
    if options.param is None and options.model_path is None and not files:
        msg = "--param is missing: give the parameter file, --param parameters.json."
        raise ConfigError(msg)
    _check_folder(options, wanted)
    return wanted


def arguments_of_each(
    options: argparse.Namespace, wanted: Sequence[Action]
) -> list[str]:
    """Return the command line of one experiment of a queue, but for its name.

    Raises
    ------
    ConfigError
        If what is asked for is of one experiment alone.
    """
    for action in wanted:
        if action.is_for_one:
            raise ConfigError(action.is_for_one)
    if options.save_path is not None:
        msg = (
            "--save_path names one file, but there are several experiments: choose "
            "one with --experiment NAME, or leave --save_path out."
        )
        raise ConfigError(msg)
    arguments = ["--param", str(options.param)]
    asked = {action.attribute: getattr(options, action.attribute) for action in wanted}
    asked |= {
        option.name: getattr(options, option.name)
        for option in all_options()
        if option.is_given(options)
    }
    for name, value in asked.items():
        arguments.append(flag(name))
        if value is not True:
            values = value if isinstance(value, list | tuple) else [value]
            arguments += map(str, values)
    return arguments


def all_options() -> tuple[Option, ...]:
    """Return every option of an action, once."""
    options = (option for action in actions() for option in action.options)
    return tuple({option.name: option for option in options}.values())


def owners_of(option: Option) -> list[Action]:
    """Return the actions that an option goes with."""
    return [each for each in actions() if option.name in (o.name for o in each.options)]


def _files_of_others(options: argparse.Namespace) -> bool:
    return options.real is not None or options.generated is not None


def _check_owners(options: argparse.Namespace, wanted: Sequence[Action]) -> None:
    """Refuse an option without its action, and one that would be of several."""
    for option in all_options():
        if not option.is_given(options):
            continue
        owners = owners_of(option)
        present = [action for action in owners if action in wanted]
        if option.name == "seed" and _files_of_others(options):
            continue
        if not present:
            names = " or ".join(flag(action.attribute) for action in owners)
            msg = f"{flag(option.name)} goes with {names}, which is not given."
            raise ConfigError(msg)
        if option.is_one_actions and len(present) > 1:
            first, second = (flag(action.attribute) for action in present[:2])
            msg = (
                f"{flag(option.name)} would be of {first} and of {second}: run them "
                "one after the other."
            )
            raise ConfigError(msg)


def _check_folder(options: argparse.Namespace, wanted: Sequence[Action]) -> None:
    """Refuse the folder of an experiment for what needs a parameter file."""
    if options.model_path is None:
        return
    able = [flag(action.attribute) for action in actions() if action.is_for_folders]
    if len(wanted) != 1 or not wanted[0].is_for_folders or options.experiment:
        msg = (
            f"--model_path goes with {', '.join(able[:-1])} or {able[-1]}, one of them "
            "alone; use --param for the rest."
        )
        raise ConfigError(msg)


def add_experiment(parser: argparse.ArgumentParser) -> None:
    """Add the option that chooses from a parameter file."""
    parser.add_argument(
        "--experiment",
        nargs="+",
        metavar="NAME",
        help="run only these experiments of the file",
    )


def _parser() -> argparse.ArgumentParser:
    """Return the parser of flags, in groups: an action and what goes with it alone."""
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
    add_experiment(parser)
    add("--print-config", action="store_true", help="print all parameters and stop")
    add("--model_path", type=Path, metavar="DIR", help="folder of a trained experiment")
    shared = []
    for action in actions():
        group = parser.add_argument_group(action.name)
        group.add_argument(
            f"--{action.name}",
            **{"dest": action.attribute, "help": action.help, **action.takes},
        )
        for option in action.options:
            if len(owners_of(option)) == 1:
                group.add_argument(flag(option.name), **option.settings)
            elif option not in shared:
                shared.append(option)
    group = parser.add_argument_group("of several actions")
    for option in shared:
        owners = ", ".join(action.name for action in owners_of(option))
        settings = {**option.settings, "help": f"{option.settings['help']} [{owners}]"}
        group.add_argument(flag(option.name), **settings)
    return parser
