"""Rows of a stored matrix, a block at a time: in this process, or by Dask's workers.

A function is applied to every block, and its results come in the order of the blocks.
Nothing larger than a block is in memory, however many cells a file has.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.config.composition import DaskReader
from cellgan.errors import ConfigError

CELLS_AT_ONCE = 2**11
"""Cells of a block read in this process: some 30 MB of a deep data set."""
TASKS_AHEAD = 2
"""Tasks per worker that are on their way; the results of more would pile up here."""

Result = TypeVar("Result")
Mask = npt.NDArray[np.bool_]


class StoredRows(abc.ABC):
    """A matrix of counts, cells x genes, of which rows can be read."""

    def __init__(self, n_cells: int, n_genes: int) -> None:
        self.n_cells = n_cells
        self.n_genes = n_genes

    @abc.abstractmethod
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


class RowsReadHere(StoredRows):
    """Rows that this process reads."""

    def map_blocks(
        self,
        function: Callable[[sp.csr_matrix], Result],
        wanted: Mask | None = None,
    ) -> Iterator[tuple[slice, Result]]:
        """Yield what a function makes of consecutive cells."""
        for rows in _ranges(self.n_cells, CELLS_AT_ONCE, wanted):
            yield rows, function(_chosen(self._read(rows), rows, wanted))

    @abc.abstractmethod
    def _read(self, rows: slice) -> sp.csr_matrix:
        """Return rows, float32."""


class RowsInMemory(RowsReadHere):
    """A matrix that only a whole file could be read as."""

    def __init__(self, matrix: sp.csr_matrix) -> None:
        super().__init__(*matrix.shape)
        self._matrix = matrix

    def _read(self, rows: slice) -> sp.csr_matrix:
        return self._matrix[rows]


class RowsOnDisk(RowsReadHere):
    """A dense or CSR matrix in an HDF5 or zarr group.

    Parameters
    ----------
    element
        The matrix as AnnData stores it.
    """

    def __init__(self, element: Any) -> None:
        super().__init__(*_shape(element))
        self._element = element

    def _read(self, rows: slice) -> sp.csr_matrix:
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
            shape=(rows.stop - rows.start, self.n_genes),
        )


class RowsByDask(StoredRows):
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
        super().__init__(*_shape(element))
        self._element = element
        self._client = client
        self._cells_at_once = cells_at_once

    def map_blocks(
        self,
        function: Callable[[sp.csr_matrix], Result],
        wanted: Mask | None = None,
    ) -> Iterator[tuple[slice, Result]]:
        """Yield what a function makes of consecutive cells, in their order."""
        from anndata.experimental import read_elem_lazy  # noqa: PLC0415  (needs Dask)
        from dask import delayed  # noqa: PLC0415  (an extra)

        shape = (self._cells_at_once, self.n_genes)
        lazy = read_elem_lazy(self._element, chunks=shape).to_delayed().ravel()
        ahead = TASKS_AHEAD * len(self._client.scheduler_info()["workers"])
        waiting: collections.deque[tuple[slice, Any]] = collections.deque()
        for rows in _ranges(self.n_cells, self._cells_at_once, wanted, whole=True):
            block = lazy[rows.start // self._cells_at_once]
            mine = None if wanted is None else wanted[rows]
            task = delayed(_apply)(function, block, mine)
            waiting.append((rows, self._client.compute(task)))
            if len(waiting) > ahead:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())


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
    n_cells, n_genes = (int(size) for size in shape)
    return n_cells, n_genes


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
