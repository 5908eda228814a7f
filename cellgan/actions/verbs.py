"""Actions as verbs: ``cellgan correct my.json batch=v3``, told otherwise by flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cellgan.actions import NAMES, actions
from cellgan.actions.base import Action, flag
from cellgan.actions.parsing import (
    add_experiment,
    all_options,
    defaults,
    owners_of,
    parse_flags,
)
from cellgan.errors import ConfigError, did_you_mean


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line: flags, or a verb with what it is for.

    Raises
    ------
    ConfigError
        If there is no such verb, or what follows does not suit it.
    """
    if not arguments or arguments[0].startswith("-"):
        return parse_flags(arguments)
    for action in actions():
        if action.name == arguments[0]:
            return _parse_verb(action, arguments[1:])
    word = arguments[0]
    msg = (
        f'no action "{word}".{did_you_mean(word, NAMES)}\n'
        f"    Actions: {', '.join(NAMES)}."
    )
    raise ConfigError(msg)


def _parse_verb(action: Action, arguments: Sequence[str]) -> argparse.Namespace:
    parser = _parser(action)
    given, others = parser.parse_known_intermixed_args(arguments)
    if others:
        raise ConfigError(_unknown_option(action, others[0]))
    options = defaults(**vars(given))
    words = list(given.files)
    del options.files
    if action.name == "evaluate" and options.real is not None:
        _refuse_parameters(words)
        options.generated = [*(options.generated or []), *map(Path, words)] or None
        options.evaluate = True
        return options
    place = _place(action, words, has_experiment=options.experiment is not None)
    setattr(options, "model_path" if place.is_dir() else "param", place)
    setattr(options, action.attribute, _own_value(action, words[1:]))
    return options


def _parser(action: Action) -> argparse.ArgumentParser:
    name, taken = f"cellgan {action.name}", _taken(action)
    purpose = "a parameter file"
    if action.is_for_folders:
        purpose += ", or the folder of a trained experiment"
    usage = " ".join(filter(None, [name, "FILE", taken, "[options]"]))
    if action.name == "evaluate":
        usage += f"\n       {name} --real FILE FILE [FILE ...] [options]"
        purpose += "; with --real, the files of generated cells"
    parser = argparse.ArgumentParser(
        prog=name, usage=usage, description=_description(action), allow_abbrev=False
    )
    add = parser.add_argument
    help_text = purpose + (taken and f"; then {taken}")
    add("files", nargs="*", metavar="FILE", help=help_text)
    add_experiment(parser)
    for option in (*action.options, *action.verb_options):
        add(flag(option.name), **option.settings)
    return parser


def _description(action: Action) -> str:
    text = f"{action.help[0].upper()}{action.help[1:]}."
    if action.ability is None:
        return text
    from cellgan.config.model_types import types_with

    return f"{text} Model types for it: {', '.join(types_with(action.ability[0]))}."


def _taken(action: Action) -> str:
    metavar = action.takes.get("metavar", "")
    return metavar if isinstance(metavar, str) else " ".join(metavar)


def _unknown_option(action: Action, word: str) -> str:
    """Say whose option a word is, or what it was meant to be."""
    for option in all_options():
        if flag(option.name) == word:
            names = ", ".join(owner.name for owner in owners_of(option))
            return f"{action.name}: {word} is no option of it; it goes with {names}."
    known = [flag(option.name) for option in (*action.options, *action.verb_options)]
    return (
        f'{action.name}: no option "{word}".{did_you_mean(word, known)}'
        f" See cellgan {action.name} --help."
    )


def _refuse_parameters(words: Sequence[str]) -> None:
    for word in words:
        if word.endswith(".json"):
            msg = (
                f"evaluate: {word} is a parameter file, but with --real the files of "
                "generated cells are expected. Leave one of them out."
            )
            raise ConfigError(msg)


def _place(action: Action, words: Sequence[str], *, has_experiment: bool) -> Path:
    """Return the parameter file, or the folder, that a verb is for."""
    example = f"cellgan {action.name} my.json"
    if not words:
        msg = f"{action.name}: the parameter file is missing: {example}."
        raise ConfigError(msg)
    place = Path(words[0])
    if "=" in words[0] and not place.exists():
        msg = (
            f"{action.name}: {words[0]} found, expected the parameter file before it: "
            f"{example} {words[0]}."
        )
        raise ConfigError(msg)
    if place.is_dir() and not action.is_for_folders:
        able = ", ".join(each.name for each in actions() if each.is_for_folders)
        msg = (
            f"{action.name}: {place} is a folder. Give the parameter file; a folder "
            f"does for {able} alone."
        )
        raise ConfigError(msg)
    if place.is_dir() and has_experiment:
        msg = (
            f"{action.name}: --experiment chooses from a parameter file, but {place} "
            "is the folder of one experiment. Leave it out."
        )
        raise ConfigError(msg)
    return place


def _own_value(action: Action, words: Sequence[str]) -> Any:
    """Return what the action's flag would have, of the words behind the file."""
    number = action.takes.get("nargs", 0 if "action" in action.takes else 1)
    is_right = len(words) >= 1 if number == "+" else len(words) == number
    if not is_right:
        msg = (
            f"{action.name}: behind the parameter file, expected "
            f"{_taken(action) or 'nothing'}, found {' '.join(words) or 'nothing'}. See "
            f"cellgan {action.name} --help."
        )
        raise ConfigError(msg)
    if number == 0:
        return True
    return words[0] if number == 1 else list(words)
