"""What studies share: cells in, changed and given back, and the writing of them."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd

from cellgan.data.manifest import RNA
from cellgan.errors import DataError
from cellgan.files import replacing
from cellgan.generation.files import OR_INPUT, read_processed

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

DENSE_OPTIONS = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


def cells_to_study(
    experiment: Experiment, cells: anndata.AnnData | None, origin: str
) -> tuple[dict[str, anndata.AnnData], str]:
    """Return cells by modality and where they are from: of a file, or the processed.

    Raises
    ------
    DataError
        If there are none of either.
    """
    if cells is not None:
        return {RNA: cells}, origin
    frames = read_processed(experiment, otherwise=OR_INPUT)
    return frames, str(experiment.processed_file)


def set_aside(obs: pd.DataFrame, columns: Iterable[str]) -> None:
    """Rename what was counted of cells before they changed to ``original_...``."""
    for column in columns:
        if column in obs:
            obs[f"original_{column}"] = obs.pop(column)


def change_category(
    obs: pd.DataFrame, column: pd.Series, category: str, categories: Sequence[str]
) -> None:
    """Give all cells a category of a column, which is kept as ``original_...``."""
    obs[f"original_{column.name}"] = column
    obs[column.name] = pd.Categorical([category] * len(obs), categories=categories)


def write_whole(path: Path, frames: Mapping[str, anndata.AnnData]) -> None:
    """Write cells that are in memory as AnnData, of several modalities as MuData."""
    with replacing(path) as temporary:
        if len(frames) == 1:
            frames[RNA].write_h5ad(temporary)
            return
        import mudata  # noqa: PLC0415  (slow, and seldom needed)

        with mudata.set_options(pull_on_update=False):
            mudata.write_h5mu(temporary, mudata.MuData(dict(frames)))


def dense_rows(file: h5py.File, name: str, shape: tuple[int, int]) -> h5py.Dataset:
    """Make room for a dense float32 matrix of an AnnData file, to fill row by row."""
    chunks = (min(shape[0], 256), min(shape[1], 1024))
    matrix = file.create_dataset(
        name, shape, np.float32, chunks=chunks, **DENSE_OPTIONS
    )
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return matrix


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary name as `replacing` does; tell when it cannot be written.

    Raises
    ------
    DataError
        Naming `path`.
    """
    try:
        with replacing(path) as temporary:
            yield temporary
    except OSError as error:
        msg = f"{path}: cannot be written: {error.strerror or error}."
        raise DataError(msg) from error


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys as comma-separated values."""
    with (
        replacing(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
