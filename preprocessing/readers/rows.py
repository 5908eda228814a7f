"""Rows of a stored matrix, a block at a time: in this process, or by Dask's workers.

A function is applied to every block, and its results come in the order of the blocks.
Nothing larger than a block is in memory, however many cells a file has.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.errors import ConfigError
from preprocessing.sparse_blocks import join, keep

if TYPE_CHECKING:
    from cellgan.config.sources import DaskReader

CELLS_AT_ONCE = 2**11
"""Cells of a block read in this process: some 30 MB of a deep data set."""
TASKS_AHEAD = 2
"""Tasks per worker that are on their way; the results of more would pile up here."""

Result = TypeVar("Result")
Mask = npt.NDArray[np.bool_]


class StoredRows(abc.ABC):
    """A matrix, cells x features, of which rows can be read as often as need be."""

    in_memory = False
    """Whether it takes no reading: then it is one block, unless told otherwise."""

    def __init__(
        self, n_cells: int, n_features: int, cells_at_once: int = CELLS_AT_ONCE
    ) -> None:
        self.n_cells = n_cells
        self.n_features = n_features
        self.cells_at_once = cells_at_once

    @abc.abstractmethod
    def read(self, rows: slice) -> sp.csr_matrix:
        """Return rows, float32; to be overwritten unless they are `in_memory`."""

    def ranges(self, wanted: Mask | None = None) -> Iterator[slice]:
        """Yield the blocks to read: of those with wanted cells, first to last."""
        return _ranges(self.n_cells, self.cells_at_once, wanted)

    def map_blocks(
        self,
        function: Callable[[sp.csr_matrix], Result],
        wanted: Mask | None = None,
    ) -> Iterator[tuple[slice, Result]]:
        """Yield what a function makes of consecutive cells, block by block.

        Parameters
        ----------
        function
            Of CSR rows, float32. Where Dask reads, it runs on a worker.
        wanted
            Mask of cells; blocks without one are not read, and of others the function
            is given the wanted cells alone. None for all.

        Yields
        ------
        The cells of the block, wanted or not, and the result.
        """
        for rows in self.ranges(wanted):
            yield rows, function(_chosen(self.read(rows), rows, wanted))

    def select(self, cells: Mask, features: Mask) -> StoredRows:
        """Return some cells and features; these rows are of no use afterwards."""
        change = functools.partial(_with_features, features=features)
        return SelectedRows(
            self, cells, int(features.sum()), None if features.all() else change
        )

    def gather(self) -> sp.csr_matrix:
        """Return the whole matrix in memory."""
        return join(block for _, block in self.map_blocks(same_block))


class RowsInMemory(StoredRows):
    """A matrix that is in memory.

    Parameters
    ----------
    matrix
        CSR, float32.
    cells_at_once
        Cells of a block, which is a copy; None for one block, the matrix itself.
    """

    in_memory = True

    def __init__(self, matrix: sp.csr_matrix, cells_at_once: int | None = None) -> None:
        n_cells, n_genes = matrix.shape
        super().__init__(n_cells, n_genes, cells_at_once or max(n_cells, 1))
        self._matrix = matrix

    def read(self, rows: slice) -> sp.csr_matrix:
        """Return rows: the matrix itself if they are all."""
        if rows.start == 0 and rows.stop == self.n_cells:
            return self._matrix
        return self._matrix[rows]

    def select(self, cells: Mask, features: Mask) -> RowsInMemory:
        """Return some cells and features in the place of the matrix."""
        if cells.all() and features.all():
            return self
        return RowsInMemory(keep(self._matrix, cells, features))

    def gather(self) -> sp.csr_matrix:
        """Return the matrix itself."""
        return self._matrix


class SelectedRows(StoredRows):
    """Some cells of a stored matrix, chosen and changed whenever it is read.

    Parameters
    ----------
    cells
        Mask of the cells of `rows`.
    n_features
        Columns of what `change` returns.
    change
        Of some of the cells, what becomes of their features; None to keep them.
    """

    def __init__(
        self,
        rows: StoredRows,
        cells: Mask,
        n_features: int,
        change: Callable[[sp.csr_matrix], sp.csr_matrix] | None = None,
    ) -> None:
        super().__init__(int(cells.sum()), n_features)
        self._rows = rows
        self._cells = cells
        self._places = np.flatnonzero(cells)
        self._change = change

    def read(self, rows: slice) -> sp.csr_matrix:
        """Return rows by their numbers among the selected ones."""
        places = self._places[rows]
        span = slice(int(places[0]), int(places[-1]) + 1)
        block = _chosen(self._rows.read(span), span, self._cells)
        return block if self._change is None else self._change(block)

    def map_blocks(
        self,
        function: Callable[[sp.csr_matrix], Result],
        wanted: Mask | None = None,
    ) -> Iterator[tuple[slice, Result]]:
        """Yield what a function makes of the blocks of the stored matrix."""
        mask = self._cells if wanted is None else self._stored_mask(wanted)
        if self._change is not None:
            function = functools.partial(
                _changed, change=self._change, function=function
            )
        for span, result in self._rows.map_blocks(function, mask):
            ends = np.searchsorted(self._places, (span.start, span.stop))
            yield slice(int(ends[0]), int(ends[1])), result

    def select(self, cells: Mask, features: Mask) -> StoredRows:
        """Return some of the selected cells and features."""
        if self._change is None:
            return self._rows.select(self._stored_mask(cells), features)
        return super().select(cells, features)

    def _stored_mask(self, cells: Mask) -> Mask:
        mask = np.zeros_like(self._cells)
        mask[self._places[cells]] = True
        return mask


class JoinedRows(StoredRows):
    """Cells of several matrices with the same features, one below the other."""

    def __init__(self, parts: Sequence[StoredRows]) -> None:
        super().__init__(sum(part.n_cells for part in parts), parts[0].n_features)
        self.parts = parts
        self._starts = np.cumsum([0, *(part.n_cells for part in parts[:-1])]).tolist()

    def read(self, rows: slice) -> sp.csr_matrix:
        """Return rows of one part or of several."""
        blocks = []
        for part, start in zip(self.parts, self._starts, strict=True):
            mine = slice(
                max(rows.start - start, 0), min(rows.stop - start, part.n_cells)
            )
            if mine.start < mine.stop:
                blocks.append(part.read(mine))
        return blocks[0] if len(blocks) == 1 else sp.vstack(blocks, format="csr")

    def map_blocks(
        self,
        function: Callable[[sp.csr_matrix], Result],
        wanted: Mask | None = None,
    ) -> Iterator[tuple[slice, Result]]:
        """Yield what a function makes of the blocks of every part."""
        for part, start in zip(self.parts, self._starts, strict=True):
            mine = None if wanted is None else wanted[start : start + part.n_cells]
            for rows, result in part.map_blocks(function, mine):
                yield slice(start + rows.start, start + rows.stop), result


class RowsOnDisk(StoredRows):
    """A dense or CSR matrix in an HDF5 or zarr group.

    Parameters
    ----------
    element
        The matrix as AnnData stores it.
    """

    def __init__(self, element: Any, cells_at_once: int = CELLS_AT_ONCE) -> None:
        super().__init__(*_shape(element), cells_at_once)
        self._element = element

    def read(self, rows: slice) -> sp.csr_matrix:
        """Return rows as they are stored, zeros and order included."""
        if not _is_compressed(self._element):
            return sp.csr_matrix(np.asarray(self._element[rows], dtype=np.float32))
        # Pointers are read a block at a time too: of 50 million cells they are 400 MB.
        pointers = self._element["indptr"][rows.start : rows.stop + 1]
        pointers = np.asarray(pointers, np.int64)
        span = slice(int(pointers[0]), int(pointers[-1]))
        return sp.csr_matrix(
            (
                np.asarray(self._element["data"][span], dtype=np.float32),
                np.asarray(self._element["indices"][span], dtype=np.int32),
                pointers - span.start,
            ),
            shape=(rows.stop - rows.start, self.n_features),
        )


class RowsByDask(RowsOnDisk):
    """The same matrix, opened lazily by AnnData and read by Dask's workers.

    Parameters
    ----------
    element
        The matrix as AnnData stores it, in a file that all workers can open.
    client
        Of the cluster.
    cells_at_once
        Cells of a task.
    """

    def __init__(self, element: Any, client: Any, cells_at_once: int) -> None:
        super().__init__(element, cells_at_once)
        self._client = client

    def map_blocks(
        self,
        function: Callable[[sp.csr_matrix], Result],
        wanted: Mask | None = None,
    ) -> Iterator[tuple[slice, Result]]:
        """Yield what a function makes of consecutive cells, in their order."""
        from anndata.experimental import read_elem_lazy  # noqa: PLC0415  (needs Dask)
        from dask import delayed  # noqa: PLC0415  (an extra)

        shape = (self.cells_at_once, self.n_features)
        lazy = read_elem_lazy(self._element, chunks=shape).to_delayed().ravel()
        ahead = TASKS_AHEAD * len(self._client.scheduler_info()["workers"])
        waiting: collections.deque[tuple[slice, Any]] = collections.deque()
        for rows in _ranges(self.n_cells, self.cells_at_once, wanted, whole=True):
            block = lazy[rows.start // self.cells_at_once]
            mine = None if wanted is None else wanted[rows]
            task = delayed(_apply)(function, block, mine)
            waiting.append((rows, self._client.compute(task)))
            if len(waiting) > ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


def same_block(block: sp.csr_matrix) -> sp.csr_matrix:
    """Return a block as it is: what `StoredRows.map_blocks` maps to read alone."""
    return block


def _changed(
    block: sp.csr_matrix,
    change: Callable[[sp.csr_matrix], sp.csr_matrix],
    function: Callable[[sp.csr_matrix], Result],
) -> Result:
    return function(change(block))


def _with_features(block: sp.csr_matrix, features: Mask) -> sp.csr_matrix:
    return keep(block, np.ones(block.shape[0], bool), features)


def _result(task: tuple[slice, Any]) -> tuple[slice, Any]:
    rows, future = task
    return rows, future.result()


def _apply(
    function: Callable[[sp.csr_matrix], Result], block: Any, mine: Mask | None
) -> Result:
    rows = sp.csr_matrix(block, dtype=np.float32)
    return function(rows if mine is None else rows[mine])


def _ranges(
    n_cells: int, step: int, wanted: Mask | None, *, whole: bool = False
) -> Iterator[slice]:
    """Yield the blocks to read: of those with wanted cells, from the first to the last.

    Parameters
    ----------
    whole
        Blocks that are read are read whole.
    """
    for start in range(0, n_cells, step):
        stop = min(start + step, n_cells)
        if wanted is None:
            yield slice(start, stop)
            continue
        mine = np.flatnonzero(wanted[start:stop])
        if len(mine):
            ends = (start + int(mine[0]), start + int(mine[-1]) + 1)
            yield slice(start, stop) if whole else slice(*ends)


def _chosen(block: sp.csr_matrix, rows: slice, wanted: Mask | None) -> sp.csr_matrix:
    return block if wanted is None or wanted[rows].all() else block[wanted[rows]]


def _is_compressed(element: Any) -> bool:
    return element.attrs.get("encoding-type", "array") == "csr_matrix"


def _shape(element: Any) -> tuple[int, int]:
    shape = element.attrs["shape"] if _is_compressed(element) else element.shape
    n_cells, n_features = (int(size) for size in shape)
    return n_cells, n_features


@contextlib.contextmanager
def dask_client(reader: DaskReader) -> Iterator[Any]:
    """Connect to a cluster, or start one on this machine, and close it at the end.

    Raises
    ------
    ConfigError
        If Dask is not installed, or the scheduler does not answer.
    """
    is_file = reader.scheduler != "local" and "://" not in reader.scheduler
    if is_file and not Path(reader.scheduler).expanduser().exists():
        msg = (
            f"dask.scheduler: no such file: {reader.scheduler}. Start a "
            "scheduler with --scheduler-file, or give its address."
        )
        raise ConfigError(msg)
    try:
        from distributed import Client, LocalCluster  # noqa: PLC0415  (an extra)
    except ImportError:
        msg = "dask: Dask is not installed: pip install 'cellgan[atlas]'."
        raise ConfigError(msg) from None
    with contextlib.ExitStack() as stack:
        connect: Callable[[], Any]
        if reader.scheduler == "local":
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=reader.workers,
                    threads_per_worker=1,
                    dashboard_address=":0",
                )
            )
            connect = functools.partial(Client, cluster)
        elif is_file:
            path = str(Path(reader.scheduler).expanduser())
            connect = functools.partial(Client, scheduler_file=path)
        else:
            connect = functools.partial(Client, reader.scheduler)
        try:
            client = stack.enter_context(connect())
        except (OSError, TimeoutError) as error:
            msg = f"dask.scheduler: {reader.scheduler}: {error}."
            raise ConfigError(msg) from None
        yield client


def open_rows(element: Any, client: Any, cells_at_once: int) -> StoredRows:
    """Return the rows of a stored matrix, read by a cluster if there is one."""
    is_file = isinstance(element, h5py.Group | h5py.Dataset) or hasattr(
        element, "store"
    )
    if client is None or not is_file:
        return RowsOnDisk(element)
    return RowsByDask(element, client, cells_at_once)
