"""Readers of tables: .loom and comma- or tab-separated text."""

from __future__ import annotations

import contextlib
import csv
import functools
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from preprocessing.raw_file import Matrix, RawFile, dense_blocks, texts
from preprocessing.sparse_blocks import BLOCK_VALUES

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
    """Read a table of cells x genes with a header line."""
    with open_text(path) as file:
        first = file.readline()
        delimiter = max(",\t;", key=first.count)
        header, values = csv.reader([first, file.readline()], delimiter=delimiter)
    n_named = len(values) == len(header) + 1  # R leaves the corner out
    header = ["", *header] if n_named else header
    has_index = header[0].lower() in INDEX_HEADERS or not _is_number(values[0])
    describing = [i for i, name in enumerate(header) if name in obs_columns]
    described = [0, *describing] if has_index else describing
    genes = [i for i in range(len(header)) if i not in described]
    types = {i: str if i in described else np.float32 for i in range(len(header))}
    frames, parts = [], []
    chunks = pd.read_csv(
        path,
        sep=delimiter,
        header=None,
        skiprows=1,
        names=list(range(len(header))),
        index_col=False,
        dtype=types,
        chunksize=max(1, BLOCK_VALUES // len(header)),
        low_memory=False,
    )
    for chunk in chunks:
        frames.append(chunk[described])
        parts.append(sp.csr_matrix(chunk[genes].to_numpy(np.float32)))
    table = pd.concat(frames)
    names = table[0].astype(str) if has_index else np.arange(len(table)).astype(str)
    obs = pd.DataFrame(
        {header[i]: table[i].to_numpy() for i in describing}, index=names
    )
    var = pd.DataFrame(index=[header[i] for i in genes])
    return RawFile(obs, {"X": Matrix(var, lambda: iter(parts))})


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def open_text(path: Path) -> TextIO:
    """Open a text file, plain or .gz."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")
