"""What the stored files of the references hold, asked while tests are collected."""

from __future__ import annotations

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np


def reference_folder() -> Path:
    """Return the folder of the stored outputs of the reference implementations."""
    default = Path(__file__).parent / "reference"
    return Path(os.environ.get("CELLGAN_REFERENCE_DIR", default))


def stored_arrays(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of a file, which is closed again."""
    with np.load(path) as stored:
        return dict(stored)


@functools.cache
def stored_config(file: str) -> dict[str, Any]:
    """Return the sizes that a file states."""
    with np.load(reference_folder() / file) as stored:
        return json.loads(str(stored["config"]))


@functools.cache
def stored_names(file: str, pattern: str) -> tuple[str, ...]:
    """Return what the one group of a pattern takes of the keys that fit, in order."""
    with np.load(reference_folder() / file) as stored:
        fits = [re.fullmatch(pattern, key) for key in stored.files]
    return tuple(dict.fromkeys(fit[1] for fit in fits if fit))


def stored_name(file: str, pattern: str) -> str:
    """Return the one name that the keys of a file have in a place."""
    (name,) = stored_names(file, pattern)
    return name
