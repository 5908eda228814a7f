"""An opened raw file: names of cells and genes, and matrices that are read later.

Every reader returns a `RawFile`. Matrices are cells x genes and come in blocks, so that
a file is never in memory twice, and one that turns out to hold no counts is left after
its first block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from preprocessing.sparse_blocks import BLOCK_VALUES, row_blocks, row_ranges

Blocks = Iterator[sp.csr_matrix]

MOST_STORED_TOGETHER = 2**24
"""Values of cells that are read together because the file stores them so, at most."""


class Matrix(NamedTuple):
    """One matrix of a raw file, not read yet."""

    var: pd.DataFrame
    """One row per gene."""
    blocks: Callable[[], Blocks]
    """Reads it: blocks of consecutive cells, or of consecutive genes (`by_gene`)."""
    by_gene: bool = False
    element: Any = None
    """What AnnData stores, if any of its rows can be read; else None."""


class RawFile(NamedTuple):
    """An open raw file."""

    obs: pd.DataFrame
    """One row per cell."""
    matrices: Mapping[str, Matrix]
    """``"X"``, ``"raw"`` and layers by name, in this order."""


def stored_matrix(element: Any, var: pd.DataFrame) -> Matrix | None:
    """Return a stored matrix, dense, CSR or CSC; None for an empty place."""
    encoding = element.attrs.get("encoding-type", "array")
    if encoding == "null":
        return None
    if encoding in ("csr_matrix", "csc_matrix"):
        shape = tuple(int(size) for size in element.attrs["shape"])
        by_gene = encoding == "csc_matrix"
        major, minor = reversed(shape) if by_gene else shape
        blocks = functools.partial(compressed_blocks, element, major, minor)
        return Matrix(var, blocks, by_gene, None if by_gene else element)
    n_cells, n_genes = element.shape
    stored_together = element.chunks[0] if element.chunks else 1

    def rows(start: int, stop: int) -> Any:
        return element[start:stop]

    blocks = functools.partial(dense_blocks, rows, n_cells, n_genes, stored_together)
    return Matrix(var, blocks, element=element)


def matrix_in_memory(matrix: Any, var: pd.DataFrame) -> Matrix:
    """Return a matrix that is in memory already, of any type."""

    def blocks() -> Blocks:
        for _, block in row_blocks(sp.csr_matrix(matrix, dtype=np.float32)):
            yield block.copy()

    return Matrix(var, blocks)


def compressed_blocks(group: Any, n_major: int, n_minor: int) -> Blocks:
    """Read stored (data, indices, indptr) a few rows, or columns, at a time."""
    indptr = np.asarray(group["indptr"][:], dtype=np.int64)
    sizes, n_values = np.diff(indptr), group["data"].shape[0]
    if len(sizes) != n_major or (sizes < 0).any() or indptr[-1] != n_values:
        msg = f"pointers do not fit {n_major} rows and {n_values} values"
        raise ValueError(msg)
    for start, stop in row_ranges(indptr):
        span = slice(int(indptr[start]), int(indptr[stop]))
        indices = _within(np.asarray(group["indices"][span]), n_minor)
        yield sp.csr_matrix(
            (
                as_float32(group["data"][span]),
                indices,
                indptr[start : stop + 1] - span.start,
            ),
            shape=(stop - start, n_minor),
        )


def dense_blocks(
    read: Callable[[int, int], Any], n_cells: int, n_genes: int, stored_together: int
) -> Blocks:
    """Read a dense matrix some cells at a time.

    Cells that are `stored_together`, in one chunk of the file, are read together unless
    they would fill the memory.
    """
    step = max(1, BLOCK_VALUES // max(n_genes, 1))
    if stored_together * n_genes <= MOST_STORED_TOGETHER:
        step = max(1, step // stored_together) * stored_together
    for start in range(0, n_cells, step):
        yield sp.csr_matrix(as_float32(read(start, min(start + step, n_cells))))


def as_float32(values: Any) -> npt.NDArray[np.float32]:
    """Return values as float32; those beyond its range become infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(np.float32, copy=False)


def _within(indices: npt.NDArray[Any], size: int) -> npt.NDArray[np.int32]:
    if len(indices) and not 0 <= indices.min() <= indices.max() < size:
        msg = f"a column index is outside 0 to {size - 1}"
        raise ValueError(msg)
    return indices.astype(np.int32)


def texts(dataset: h5py.Dataset) -> npt.NDArray[Any]:
    """Read stored text, of fixed or of any length, as str."""
    return np.asarray(
        [
            value.decode() if isinstance(value, bytes) else str(value)
            for value in dataset[:]
        ],
        dtype=object,
    )
