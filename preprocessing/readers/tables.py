"""Readers of tables: .loom and comma- or tab-separated text."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from preprocessing.readers.raw_file import Matrix, RawFile, dense_blocks, texts
from preprocessing.sparse_blocks import BLOCK_VALUES, progress

INDEX_HEADERS = ("", "index", "cell", "cells", "cell_id", "barcode", "barcodes")
"""A first column with one of these headers holds cell names, whatever its values."""


def read_loom(path: Path, files: contextlib.ExitStack) -> RawFile:
    """Open a loom file, which stores genes x cells, dense."""
    file = files.enter_context(h5py.File(path, "r"))
    n_genes, n_cells = file["matrix"].shape
    var = _attributes(file["row_attrs"], n_genes, ("Gene", "var_names", "gene_names"))
    obs = _attributes(file["col_attrs"], n_cells, ("CellID", "obs_names", "cell_names"))
    matrices = {"X": _transposed(file["matrix"], var)}
    for name, layer in file.get("layers", {}).items():
        matrices.setdefault(name, _transposed(layer, var))
    return RawFile(obs, matrices)


def _transposed(stored: h5py.Dataset, var: pd.DataFrame) -> Matrix:
    n_genes, n_cells = stored.shape

    def columns(start: int, stop: int) -> Any:
        return stored[:, start:stop].T

    together = stored.chunks[1] if stored.chunks else 1
    blocks = functools.partial(dense_blocks, columns, n_cells, n_genes, together)
    return Matrix(var, blocks)


def _attributes(group: h5py.Group, size: int, names: Sequence[str]) -> pd.DataFrame:
    """Read one value per row or column; the first of `names` found is the index."""
    columns = {
        name: texts(values) if values.dtype.kind in "SO" else values[:]
        for name, values in group.items()
        if values.shape == (size,)
    }
    index = next((columns.pop(name) for name in names if name in columns), range(size))
    return pd.DataFrame(columns, index=pd.Index(index))


def read_text(path: Path, obs_columns: Sequence[str]) -> RawFile:
    """Read a table of cells x genes with a header line.

    The first column holds cell names if its header says so, if it has none, or if its
    first value is no number. Columns named in `obs_columns` describe cells.
    """
    with open_text(path) as file:
        first = file.readline()
        file.seek(0)
        lines = csv.reader(file, delimiter=max(",\t;", key=first.count))
        header = next(lines, [])
        values = next(lines, None)
        if values is None:
            msg = "no line of values after the header"
            raise ValueError(msg)
        if len(values) == len(header) + 1:  # R leaves the corner out
            header = ["", *header]
        has_names = header[0] not in obs_columns and (
            header[0].lower() in INDEX_HEADERS or not _is_number(values[0])
        )
        describing = [i for i, name in enumerate(header) if name in obs_columns]
        described = [0, *describing] if has_names else describing
        columns, parts = _parse_lines(
            itertools.chain([values], lines), len(header), described
        )
    n_cells = sum(part.shape[0] for part in parts)
    names = columns[0] if has_names else [str(i) for i in range(n_cells)]
    obs = pd.DataFrame({header[i]: columns[i] for i in describing}, index=names)
    var = pd.DataFrame(
        index=[name for i, name in enumerate(header) if i not in described]
    )
    return RawFile(obs, {"X": Matrix(var, lambda: iter(parts))})


def _parse_lines(
    lines: Iterator[list[str]], n_columns: int, described: Sequence[int]
) -> tuple[dict[int, list[str]], list[sp.csr_matrix]]:
    """Return the text columns `described`, by position, and blocks of the others."""
    columns: dict[int, list[str]] = {i: [] for i in described}
    rows, parts = [], []
    rows_at_once = max(1, BLOCK_VALUES // n_columns)
    with progress(None, "parse", "cells") as bar, np.errstate(over="ignore"):
        for number, line in enumerate(filter(None, lines), start=2):
            if len(line) != n_columns:
                msg = f"line {number}: {len(line)} columns, expected {n_columns}"
                raise ValueError(msg)
            for i in reversed(described):
                columns[i].append(line.pop(i))
            try:
                rows.append(np.array(line, dtype=np.float32))
            except ValueError as error:
                msg = f"line {number}: {error}"
                raise ValueError(msg) from None
            if len(rows) == rows_at_once:
                parts.append(sp.csr_matrix(np.stack(rows)))
                rows = []
            bar.update()
    if rows:
        parts.append(sp.csr_matrix(np.stack(rows)))
    return columns, parts


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def open_text(path: Path) -> TextIO:
    """Open a text file, plain or .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")
