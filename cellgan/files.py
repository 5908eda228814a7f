"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` on success.

    On an error the temporary file is deleted and whatever was at `path` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove(temporary)  # of a killed process that had the same number
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
        _remove(temporary)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes were writing to `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        _remove(leftover)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file by temporary name and rename."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(document, indent=4, sort_keys=True) + "\n", encoding="utf-8"
        )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
