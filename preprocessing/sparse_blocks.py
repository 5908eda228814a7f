"""Sparse matrices handled a block of rows at a time.

Counts of a large data set fill a good part of the memory, so nothing here makes a
second copy of them: matrices are put together from blocks that are freed on the way,
filtered in place, and summed block by block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from tqdm import tqdm

BLOCK_VALUES = 2**18
"""About how many values are handled at once: a few MB, so that what a block needs for a
moment does not count even beside a small data set (measured, 2**21 did)."""
FIRST_VALUES = 2**23
"""Room for values before a matrix has to be enlarged. What is not written to takes no
memory, and arrays from here on (32 MB) are enlarged without being copied."""
LARGEST_COUNT = 2**24
"""float32 holds every integer up to here."""


class UnsuitableValueError(Exception):
    """A value that is no count, and its place."""

    def __init__(self, value: float, row: int, column: int) -> None:
        super().__init__(f"{value:g} in row {row}, column {column}")
        self.value = value
        self.row = row
        self.column = column


def progress(total: int | None, description: str, unit: str) -> tqdm[Any]:
    """Return a progress bar, for tasks longer than a second and only on a terminal."""
    return tqdm(
        total=total,
        desc=description,
        unit=f" {unit}",
        unit_scale=True,
        delay=1,
        leave=False,
        disable=None,
    )


def row_ranges(
    indptr: npt.NDArray[np.integer[Any]], n_values: int = BLOCK_VALUES
) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of consecutive rows holding at most `n_values` values.

    A longer row comes alone.
    """
    n_rows = len(indptr) - 1
    start = 0
    while start < n_rows:
        limit = int(indptr[start]) + n_values
        stop = int(np.searchsorted(indptr, limit, side="right")) - 1
        stop = min(max(stop, start + 1), n_rows)
        yield start, stop
        start = stop


def row_blocks(matrix: sp.csr_matrix) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Yield (first row, block) of consecutive rows; blocks share the values."""
    for start, stop in row_ranges(matrix.indptr):
        span = slice(matrix.indptr[start], matrix.indptr[stop])
        indptr = matrix.indptr[start : stop + 1] - matrix.indptr[start]
        yield (
            start,
            sp.csr_matrix(
                (matrix.data[span], matrix.indices[span], indptr),
                shape=(stop - start, matrix.shape[1]),
            ),
        )


def assemble(
    blocks: Iterable[sp.csr_matrix],
    n_rows: int,
    *,
    integers: bool,
    description: str,
    unit: str,
) -> sp.csr_matrix:
    """Check blocks of consecutive rows and join them into one matrix.

    Parameters
    ----------
    blocks
        Blocks of rows, float32.
    n_rows
        Rows in all.
    integers
        Whether every value must be an integer that float32 holds exactly.
    description, unit
        Title and unit of the progress bar.

    Returns
    -------
    Canonical CSR: float32, indices ascending, no stored zeros.

    Raises
    ------
    UnsuitableValueError
        At the first value that is negative, not finite or, with `integers`, no count.
    ValueError
        If the blocks are damaged or have another number of rows.
    """
    rows = _GrowingMatrix()
    done = 0
    with progress(n_rows, description, unit) as bar:
        for block in blocks:
            block.check_format(full_check=True)
            block.sum_duplicates()
            _require_values(block, done, integers=integers)
            block.eliminate_zeros()
            rows.append(block)
            done += block.shape[0]
            bar.update(block.shape[0])
    if done != n_rows:
        msg = f"{done} rows found, {n_rows} expected"
        raise ValueError(msg)
    return rows.finished()


def join(blocks: Iterable[sp.csr_matrix]) -> sp.csr_matrix:
    """Join blocks of consecutive rows, which are freed on the way, into one matrix."""
    rows = _GrowingMatrix()
    for block in blocks:
        rows.append(block)
    return rows.finished()


def keep(
    matrix: sp.csr_matrix, rows: npt.NDArray[np.bool_], columns: npt.NDArray[np.bool_]
) -> sp.csr_matrix:
    """Keep some rows and columns, overwriting the matrix.

    Values move forward within their own arrays, so no memory is needed; `matrix` itself
    is of no use afterwards.
    """
    new_column = (np.cumsum(columns) - 1).astype(matrix.indices.dtype)
    sizes = np.zeros(matrix.shape[0], dtype=np.int64)
    end = 0
    for start, stop in row_ranges(matrix.indptr):
        span = slice(matrix.indptr[start], matrix.indptr[stop])
        indices = matrix.indices[span]
        row = np.repeat(
            np.arange(start, stop), np.diff(matrix.indptr[start : stop + 1])
        )
        kept = columns[indices] & rows[row]
        sizes[start:stop] = np.bincount(row[kept] - start, minlength=stop - start)
        values, indices = matrix.data[span][kept], new_column[indices[kept]]
        matrix.data[end : end + len(values)] = values
        matrix.indices[end : end + len(values)] = indices
        end += len(values)
    indptr = np.concatenate([[0], np.cumsum(sizes[rows])]).astype(matrix.indptr.dtype)
    return sp.csr_matrix(
        (matrix.data[:end], matrix.indices[:end], indptr),
        shape=(int(rows.sum()), int(columns.sum())),
    )


def row_sums(
    matrix: sp.csr_matrix, columns: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.float64]:
    """Return the total of each row, of all or the chosen columns, in float64."""
    sums = np.zeros(matrix.shape[0])
    for start, block in row_blocks(matrix):
        stop = start + block.shape[0]
        row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        values = block.data
        if columns is not None:
            chosen = columns[block.indices]
            row, values = row[chosen], values[chosen]
        sums[start:stop] = np.bincount(row, values, minlength=stop - start)
    return sums


def values_per_row(
    matrix: sp.csr_matrix, columns: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Count, for each row, the values it has in the chosen columns."""
    counts = np.zeros(matrix.shape[0], dtype=np.int64)
    for start, block in row_blocks(matrix):
        row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        chosen = row[columns[block.indices]]
        stop = start + block.shape[0]
        counts[start:stop] = np.bincount(chosen, minlength=stop - start)
    return counts


def rows_per_column(
    matrix: sp.csr_matrix, rows: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Count, for each column, the chosen rows that have a value there."""
    counts = np.zeros(matrix.shape[1], dtype=np.int64)
    for start, block in row_blocks(matrix):
        chosen = np.repeat(rows[start : start + block.shape[0]], np.diff(block.indptr))
        counts += np.bincount(block.indices[chosen], minlength=matrix.shape[1])
    return counts


def _require_values(block: sp.csr_matrix, first_row: int, *, integers: bool) -> None:
    for start, stop in row_ranges(block.indptr):
        offset = int(block.indptr[start])
        values = block.data[offset : int(block.indptr[stop])]
        suitable = np.isfinite(values) & (values >= 0)
        if integers:
            suitable &= (values == np.rint(values)) & (values <= LARGEST_COUNT)
        if not suitable.all():
            position = offset + int(np.argmin(suitable))
            row = int(np.searchsorted(block.indptr, position, side="right")) - 1
            raise UnsuitableValueError(
                float(block.data[position]),
                first_row + row,
                int(block.indices[position]),
            )


class _GrowingMatrix:
    """A matrix to which blocks of rows are appended.

    Its arrays are enlarged in place, so that values are not in memory twice, as they
    are when blocks are joined at the end.
    """

    def __init__(self) -> None:
        self._data = np.empty(FIRST_VALUES, dtype=np.float32)
        self._indices = np.empty(FIRST_VALUES, dtype=np.int32)
        self._row_ends = [np.zeros(1, dtype=np.int64)]
        self._end = 0
        self._n_columns = 0

    def append(self, block: sp.csr_matrix) -> None:
        """Copy rows to the end."""
        start, self._end = self._end, self._end + block.nnz
        if self._end > len(self._data):
            self._resize(self._end + self._end // 8)
        self._data[start : self._end] = block.data[: block.nnz]
        self._indices[start : self._end] = block.indices[: block.nnz]
        self._row_ends.append(block.indptr[1:].astype(np.int64) + start)
        self._n_columns = block.shape[1]

    def finished(self) -> sp.csr_matrix:
        """Return the matrix; nothing can be appended any more."""
        self._resize(self._end)
        indptr = np.concatenate(self._row_ends)
        return sp.csr_matrix(
            (self._data, self._indices, indptr),
            shape=(len(indptr) - 1, self._n_columns),
        )

    def _resize(self, n_values: int) -> None:
        self._data.resize(n_values, refcheck=False)
        self._indices.resize(n_values, refcheck=False)
