"""Rows read a block at a time: by this process, and by Dask's workers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from cellgan.config.sources import DaskReader
from cellgan.errors import ConfigError
from preprocessing.readers.rows import (
    CELLS_AT_ONCE,
    JoinedRows,
    RowsByDask,
    RowsInMemory,
    RowsOnDisk,
    StoredRows,
    dask_client,
    same_block,
)
from tests.composition_studies import composition
from tests.preprocessing.composition.test_corpora import counts_of, process
from tests.preprocessing.raw_files import zarr_v3

N_CELLS = CELLS_AT_ONCE + 700


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.3, (N_CELLS, 12)).astype(np.float32)
    dense[5] = 0
    return sp.csr_matrix(dense)


@pytest.fixture(params=["memory", "csr", "dense", "zarr"])
def rows(
    request: pytest.FixtureRequest, counts: sp.csr_matrix, tmp_path: Path
) -> Iterator[StoredRows]:
    if request.param == "memory":
        yield RowsInMemory(counts.copy(), CELLS_AT_ONCE)
        return
    cells = ad.AnnData(counts if request.param != "dense" else counts.toarray())
    if request.param == "zarr":
        import zarr

        yield RowsOnDisk(zarr.open_group(zarr_v3(cells, tmp_path), mode="r")["X"])
        return
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r") as file:
        yield RowsOnDisk(file["X"])


def dense(block: sp.csr_matrix) -> np.ndarray:
    return block.toarray()


def test_blocks_are_all_cells_in_order(rows: StoredRows, counts: sp.csr_matrix) -> None:
    found = list(rows.map_blocks(dense))

    assert [(of.start, of.stop) for of, _ in found] == [
        (0, CELLS_AT_ONCE),
        (CELLS_AT_ONCE, N_CELLS),
    ]
    np.testing.assert_array_equal(
        np.concatenate([block for _, block in found]), counts.toarray()
    )


def test_wanted_cells_are_given_alone_and_other_blocks_not_read(
    rows: StoredRows, counts: sp.csr_matrix
) -> None:
    wanted = np.zeros(N_CELLS, bool)
    wanted[[4, 5, 90]] = True

    ((place, block),) = rows.map_blocks(dense, wanted)

    assert (place.start, place.stop) == (4, 91)
    np.testing.assert_array_equal(block, counts[wanted].toarray())


def test_rows_can_be_read_anywhere(rows: StoredRows, counts: sp.csr_matrix) -> None:
    np.testing.assert_array_equal(
        rows.read(slice(2040, 2061)).toarray(), counts[2040:2061].toarray()
    )


def test_a_matrix_in_memory_is_one_block_and_not_copied(counts: sp.csr_matrix) -> None:
    ((place, block),) = RowsInMemory(counts).map_blocks(same_block)

    assert (place.start, place.stop) == (0, N_CELLS)
    assert block is counts
    assert RowsInMemory(counts).gather() is counts


def every(step: int, n: int) -> np.ndarray:
    return np.arange(n) % step == 0


def test_selected_rows_are_those_of_the_matrix(
    rows: StoredRows, counts: sp.csr_matrix
) -> None:
    """Selected three times: cells, cells again, and features at last."""
    all_genes, some_genes = np.ones(12, bool), every(3, 12)
    cells = every(2, N_CELLS)
    expected = counts.toarray()[cells][every(3, cells.sum())][:, some_genes]

    selected = rows.select(cells, all_genes)
    selected = selected.select(every(3, cells.sum()), all_genes)
    selected = selected.select(np.ones(len(expected), bool), some_genes)

    assert (selected.n_cells, selected.n_features) == expected.shape
    np.testing.assert_array_equal(selected.gather().toarray(), expected)
    part = selected.read(slice(300, 401))
    np.testing.assert_array_equal(part.toarray(), expected[300:401])
    wanted = every(50, len(expected))
    blocks = [block for _, block in selected.map_blocks(dense, wanted)]
    np.testing.assert_array_equal(np.concatenate(blocks), expected[wanted])


def test_selected_rows_are_placed_among_those_selected(
    rows: StoredRows, counts: sp.csr_matrix
) -> None:
    cells = every(2, N_CELLS)
    kept = counts.toarray()[cells]

    blocks = list(rows.select(cells, np.ones(12, bool)).map_blocks(dense))

    for place, block in blocks:
        np.testing.assert_array_equal(kept[place], block)
    assert sum(len(block) for _, block in blocks) == cells.sum()


def test_joined_rows_are_one_below_the_other(counts: sp.csr_matrix) -> None:
    parts = [RowsInMemory(counts[:700], 300), RowsInMemory(counts[700:])]
    joined = JoinedRows(parts)

    assert [(place.start, place.stop) for place, _ in joined.map_blocks(dense)] == [
        *((0, 300), (300, 600), (600, 700)),
        (700, N_CELLS),
    ]
    np.testing.assert_array_equal(joined.gather().toarray(), counts.toarray())
    across = joined.read(slice(690, 720))
    np.testing.assert_array_equal(across.toarray(), counts[690:720].toarray())
    wanted = every(90, N_CELLS)
    blocks = [block for _, block in joined.map_blocks(dense, wanted)]
    np.testing.assert_array_equal(np.concatenate(blocks), counts[wanted].toarray())


def test_scheduler_that_is_not_there_is_refused(tmp_path: Path) -> None:
    reader = DaskReader(scheduler=str(tmp_path / "scheduler.json"))

    with pytest.raises(ConfigError, match="no such file"), dask_client(reader):
        pass


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Connect to a cluster of this machine with two workers."""
    with dask_client(DaskReader(workers=2)) as connected:
        yield connected


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["csr", "dense", "zarr"])
def test_workers_give_the_same_blocks(
    client: Any, counts: sp.csr_matrix, tmp_path: Path, kind: str
) -> None:
    assert len(client.scheduler_info()["workers"]) == 2
    cells = ad.AnnData(counts.toarray() if kind == "dense" else counts)
    wanted = np.zeros(N_CELLS, bool)
    wanted[700:900] = True
    with contextlib.ExitStack() as files:
        if kind == "zarr":
            import zarr

            element = zarr.open_group(zarr_v3(cells, tmp_path), mode="r")["X"]
        else:
            path = tmp_path / "cells.h5ad"
            cells.write_h5ad(path)
            element = files.enter_context(h5py.File(path, "r"))["X"]
        stored = RowsByDask(element, client, 512)
        found = list(stored.map_blocks(dense))
        some = list(stored.map_blocks(dense, wanted))
        selected = stored.select(wanted, every(3, 12)).gather()

    assert len(found) == -(-N_CELLS // 512)
    np.testing.assert_array_equal(
        np.concatenate([block for _, block in found]), counts.toarray()
    )
    np.testing.assert_array_equal(
        selected.toarray(), counts.toarray()[wanted][:, every(3, 12)]
    )
    assert [place.start for place, _ in some] == [512]
    np.testing.assert_array_equal(some[0][1], counts[wanted].toarray())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_study_read_by_a_running_cluster_is_the_same(
    client: Any, tmp_path: Path
) -> None:
    block = composition(tmp_path)
    here = process(tmp_path, block)
    expected = [f.read_bytes() for f in (here.manifest_file, here.cells_file)]
    records, _ = counts_of(here, "plus-seed0")
    here.folder.rename(tmp_path / "first")
    block["dask"] = {"scheduler": client.scheduler.address, "cells_at_once": 64}

    by_dask = process(tmp_path, block)

    assert [
        f.read_bytes() for f in (by_dask.manifest_file, by_dask.cells_file)
    ] == expected
    found, _ = counts_of(by_dask, "plus-seed0")
    assert found.keys() == records.keys()
    for name, counts in found.items():
        np.testing.assert_array_equal(counts, records[name])
