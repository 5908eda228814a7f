"""Raw files of every format we know, opened as cells x genes matrices.

`open_raw_file` opens a file and reads its names and columns; the matrices themselves
are read later, a block at a time, by `read_matrix`. Raw files are only ever opened for
reading.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import scipy.sparse as sp

from cellgan.config.input import BUILTIN_PREFIX, H5MU
from cellgan.data.manifest import RNA
from cellgan.errors import DataError
from preprocessing.readers.anndata_files import (
    read_builtin,
    read_h5ad,
    read_h5mu,
    read_zarr,
)
from preprocessing.readers.raw_file import RawFile
from preprocessing.readers.raw_formats import FORMATS, MTX, TEXT, raw_format
from preprocessing.readers.tables import read_loom, read_text
from preprocessing.readers.tenx import read_10x_h5, read_mtx
from preprocessing.sparse_blocks import UnsuitableValueError, assemble

READERS: dict[str, Callable[..., RawFile]] = {
    ".h5ad": read_h5ad,
    ".h5": read_10x_h5,
    ".loom": read_loom,
    ".zarr": read_zarr,
    MTX: read_mtx,
}
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zlib.error,
)
"""What the libraries raise for a file that is not what its name says."""


@contextlib.contextmanager
def open_raw_file(
    raw_input: str, obs_columns: Sequence[str] = (), modality: str = RNA
) -> Iterator[RawFile]:
    """Open a raw file.

    Parameters
    ----------
    raw_input
        Path of a file or folder, or ``builtin:<name>``.
    obs_columns
        Columns of a text file that describe cells; all others are genes.
    modality
        Which one of an .h5mu file; other files hold one alone.

    Raises
    ------
    DataError
        If there is no such file, its format is none of ours, or it is damaged.
    """
    kind = raw_format(raw_input)
    path = Path(raw_input).expanduser()
    with contextlib.ExitStack() as files:
        with _reading(raw_input):
            if kind == BUILTIN_PREFIX:
                raw = read_builtin()
            elif kind in TEXT:
                raw = read_text(path, obs_columns)
            elif kind == H5MU:
                raw = read_h5mu(path, files, modality)
            else:
                raw = READERS[kind](path, files)
        yield raw


def read_matrix(
    raw_input: str, raw: RawFile, name: str, *, counts: bool
) -> sp.csr_matrix:
    """Read one matrix of an open file as canonical CSR, float32.

    Raises
    ------
    UnsuitableValueError
        At the first value that is negative or not finite or, with `counts`, is no
        integer. Its row is a cell and its column a gene.
    DataError
        If the file is damaged.
    """
    var, blocks, by_gene, _ = raw.matrices[name]
    n_cells, n_genes = len(raw.obs), len(var)
    with _reading(raw_input):
        try:
            matrix = assemble(
                blocks(),
                n_genes if by_gene else n_cells,
                integers=counts,
                description=f"read {name}",
                unit="genes" if by_gene else "cells",
            )
        except UnsuitableValueError as error:
            if by_gene:
                error.row, error.column = error.column, error.row
            raise
        if by_gene:
            matrix = matrix.T.tocsr()
        if matrix.shape != (n_cells, n_genes):
            msg = f"{name} is {matrix.shape}, expected {(n_cells, n_genes)}"
            raise ValueError(msg)
    return matrix


@contextlib.contextmanager
def _reading(raw_input: str) -> Iterator[None]:
    """Turn whatever the libraries raise into one error that names the file."""
    try:
        yield
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        msg = (
            f"{raw_input}: cannot be read: {reason}\n"
            f"    It is damaged or not what its name says. Formats read: {FORMATS}."
        )
        raise DataError(msg) from error
