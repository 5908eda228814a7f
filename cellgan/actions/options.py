"""Options that several actions share, and the words they are given in."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cellgan.actions.base import Option
from cellgan.errors import ConfigError

if TYPE_CHECKING:
    from cellgan.config.parameters import GenerationParameters
    from cellgan.experiment import Experiment

CELLS_NO = Option(
    "cells_no",
    {
        "nargs": "+",
        "metavar": "N",
        "help": "numbers of cells: one per label in order; one number without labels; "
        "LABEL=N pairs; or like-data, the numbers of the training cells (default); "
        "with --interpolate one number, of the cells of each weight (100)",
    },
    is_one_actions=True,
)
SEED = Option(
    "seed",
    {"type": int, "metavar": "N", "help": "seed of the generated cells (0)"},
)
CONDITION = Option(
    "condition",
    {
        "nargs": "+",
        "metavar": "COVARIATE=VALUE",
        "help": "category of all cells, in quotes where it has spaces; other "
        "covariates go with it as they do among the training cells. With --embed: "
        "decode all cells as if they were of it, such as of one batch",
    },
    is_one_actions=True,
)
GUIDANCE = Option(
    "guidance",
    {
        "nargs": "+",
        "metavar": "COVARIATE=SCALE",
        "help": "how strongly cells follow a covariate: 0 not, 1 as in the data "
        "(default), more exaggerates",
    },
)
SAVE_PATH = Option(
    "save_path",
    {
        "type": Path,
        "metavar": "FILE",
        "help": "where the cells go: .h5ad, .zarr or a 10x .mtx folder; by default "
        "into the experiment, replacing what is there",
    },
    is_one_actions=True,
)
INPUT = Option(
    "input",
    {
        "type": Path,
        "metavar": "FILE",
        "help": "raw counts of the cells, of any format; by default the processed "
        "cells",
    },
    is_one_actions=True,
)
SOLVER = (
    Option(
        "solver",
        {
            "metavar": "NAME",
            "help": "of a flow: euler, midpoint, heun, rk4 or dopri5; of a diffusion: "
            "ddpm or ddim",
        },
    ),
    Option("n_steps", {"type": int, "metavar": "N", "help": "steps of the solver"}),
    Option(
        "tolerance", {"type": float, "metavar": "T", "help": "with --solver dopri5"}
    ),
    Option(
        "eta",
        {
            "type": float,
            "metavar": "E",
            "help": "fresh noise with --solver ddim, 0 to 1",
        },
    ),
    Option(
        "cache_interval",
        {
            "type": int,
            "metavar": "N",
            "help": "compute all of a diffusion's denoiser in every Nth step only",
        },
    ),
    Option(
        "cache_branch",
        {
            "type": int,
            "metavar": "N",
            "help": "with --cache-interval: the layers computed in every step, from 0 "
            "for the outermost alone",
        },
    ),
    Option(
        "cache_spacing",
        {
            "metavar": "HOW",
            "help": "with --cache-interval: even, or uneven for most whole steps at "
            "the end",
        },
    ),
)


def solver_keys(options: argparse.Namespace) -> dict[str, Any]:
    """Return the seed and the keys of the solver that the command line gives."""
    names = (SEED.name, *(option.name for option in SOLVER))
    return {name: getattr(options, name) for name in names}


def read_pairs(words: Sequence[str] | None, option: str) -> dict[str, str] | None:
    """Read ``COVARIATE=VALUE`` words; a value may hold "=" itself.

    Raises
    ------
    ConfigError
        If a word is no pair, or a covariate is named twice.
    """
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


def read_scales(words: Sequence[str] | None) -> dict[str, float] | None:
    """Read the scales of ``--guidance``.

    Raises
    ------
    ConfigError
        As `read_pairs`, or if a scale is no number.
    """
    pairs = read_pairs(words, "--guidance")
    scales = {}
    for name, value in (pairs or {}).items():
        try:
            scales[name] = float(value)
        except ValueError:
            msg = f'--guidance: the scale of {name} is "{value}", no number.'
            raise ConfigError(msg) from None
    return None if pairs is None else scales


def generation_settings(
    experiment: Experiment, keys: Mapping[str, Any]
) -> GenerationParameters:
    """Return the ``generation`` block of an experiment, with some keys laid over it.

    Parameters
    ----------
    keys
        None leaves one as it is.

    Raises
    ------
    ConfigError
        If a key does not suit, or the experiment was processed or trained with others.
    """
    from cellgan.config.reading import with_generation

    experiment.check_frozen("input_ds", "model")
    known = {key: value for key, value in keys.items() if value is not None}
    return with_generation(experiment.parameters, known).generation
