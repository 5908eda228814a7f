"""The records of the processed cells: shards of training cells, validation, test."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from tqdm import tqdm

from cellgan.data.records import (
    RECORD_FILES,
    TEST_FILE,
    TRAIN_FILES,
    VALID_FILE,
    AtacRecords,
    CellRecords,
    RecordSchema,
    write_shard,
)
from preprocessing.sparse_blocks import progress

BLOCK_CELLS = 512
"""Cells encoded at once, in each thread."""


def write_tfrecords(  # noqa: PLR0913 -- two modalities, and what of them
    adata: ad.AnnData,
    folder: Path,
    *,
    label: str,
    covariates: Sequence[str] = (),
    atac: ad.AnnData | None = None,
    record_values: str,
    target_library_size: int,
    seed: int,
) -> dict[str, int]:
    """Write all record files into a folder, which is made if need be.

    Parameters
    ----------
    adata
        Processed cells: X is canonical CSR float32 counts without empty rows; obs holds
        the categorical `label`, ``"split"`` and ``"n_genes"``; obs_names are barcodes.
        The code of a label is its position among the categories.
    covariates
        Other categoricals of obs that the records hold.
    atac
        ATAC counts of the same cells in the same order, of the form of `adata`'s.
    record_values
        ``"counts"``, or ``"normalized"`` for the values of the reference: scaled to
        `target_library_size`.
    seed
        Of the shards of the training cells, drawn cell by cell in row order.

    Returns
    -------
    Number of cells of each record file.

    Raises
    ------
    DataError
        If a file cannot be written.

    Notes
    -----
    Shards are drawn as by the reference, from Python's ``random``. Its ``count_no`` of
    scaled cells is the float32 sum of the dense row cut to an integer, so a cell may
    have one less than the target; it is so here too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scale = target_library_size if record_values == "normalized" else None
    n_categories = {
        name: len(adata.obs[name].cat.categories) for name in (label, *covariates)
    }
    n_peaks = 0 if atac is None else atac.n_vars
    schema = RecordSchema(adata.n_vars, label, n_categories, n_peaks)
    rows_of = assign_files(adata.obs["split"], seed)

    def write(file: str) -> None:
        starts = range(0, len(rows_of[file]), BLOCK_CELLS)
        cuts = (rows_of[file][start : start + BLOCK_CELLS] for start in starts)
        blocks = (cell_records(adata, rows, schema, scale, atac) for rows in cuts)
        write_shard(folder / file, _counted(blocks, bar), schema)

    with (
        progress(adata.n_obs, "writing records", "cells") as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        list(pool.map(write, RECORD_FILES))
    return {file: len(rows) for file, rows in rows_of.items()}


def assign_files(splits: Iterable[str], seed: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return the rows of each record file, ascending.

    Parameters
    ----------
    splits
        ``"train"``, ``"valid"`` or ``"test"`` for each cell.
    seed
        Of the shards: one draw for each training cell, none for the others.
    """
    shards = random.Random(seed)
    other = {"valid": VALID_FILE, "test": TEST_FILE}
    file_of = np.array(
        [
            RECORD_FILES.index(other[split])
            if split in other
            else shards.randint(0, len(TRAIN_FILES) - 1)
            for split in splits
        ],
        dtype=np.int8,
    )
    return {
        file: np.flatnonzero(file_of == number)
        for number, file in enumerate(RECORD_FILES)
    }


def cell_records(
    adata: ad.AnnData,
    rows: npt.NDArray[np.int64],
    schema: RecordSchema,
    scale: int | None,
    atac: ad.AnnData | None = None,
) -> CellRecords:
    """Return some cells as records hold them; `scale` is None for counts."""
    obs = adata.obs.iloc[rows]
    values = adata.X[rows]
    totals = values.sum(axis=1).A1
    if scale is not None:
        factors = np.float32(scale) / totals
        values.data *= np.repeat(factors, np.diff(values.indptr))
        totals = values.toarray().sum(axis=1)
    return CellRecords(
        values=values,
        barcodes=obs.index.tolist(),
        genes_no=obs["n_genes"].to_numpy(np.int64),
        count_no=totals.astype(np.int64),
        codes={
            name: obs[name].cat.codes.to_numpy(np.int32) for name in schema.n_categories
        },
        atac=None if atac is None else _open_peaks(atac.X[rows]),
    )


def _open_peaks(values: sp.csr_matrix) -> AtacRecords:
    return AtacRecords(values, values.sum(axis=1).A1.astype(np.int64))


def _counted(blocks: Iterable[CellRecords], bar: tqdm[Any]) -> Iterator[CellRecords]:
    for cells in blocks:
        yield cells
        with bar.get_lock():
            bar.update(len(cells))
