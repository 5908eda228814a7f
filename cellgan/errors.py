"""The errors a user can cause.

`cellgan.cli` prints them without a traceback and exits with 2; every other exception
is a bug and keeps its traceback. A message says where (file and key, or option), what
was found and what was expected, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LEAK = 3
"""Exit code of ``--fail-on-leak`` when training cells were copied."""


class CellganError(Exception):
    """Something that the user can put right."""


class ConfigError(CellganError):
    """A parameter file or a command-line option is wrong."""


class DataError(CellganError):
    """A data file is missing, unreadable or holds what we cannot use."""


class CheckpointError(CellganError):
    """A checkpoint is missing, damaged or of another model."""


class TrainingError(CellganError):
    """Training cannot go on, for example because a loss is no longer finite."""


class SamplingError(CellganError):
    """A model makes no cells, for example because its latents are not finite."""


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """Return ``Did you mean "x"?`` for the name nearest to `found`, or nothing."""
    by_lower = {name.lower(): name for name in known}
    nearest = difflib.get_close_matches(found.lower(), by_lower, n=1, cutoff=0.6)
    return f' Did you mean "{by_lower[nearest[0]]}"?' if nearest else ""
