"""The records of the processed cells: shards of training cells, validation, test."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellgan.data.records import AtacRecords, CellRecords, RecordSchema
from cellgan.data.shards import (
    RECORD_FILES,
    TEST_FILE,
    TRAIN_FILES,
    VALID_FILE,
    open_shards,
)
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.rows import same_block
from preprocessing.sparse_blocks import progress

BLOCK_CELLS = 512
"""Cells encoded at once, in each thread."""


def write_tfrecords(  # noqa: PLR0913 -- two modalities, and what of them
    cells: CellSource,
    folder: Path,
    *,
    label: str,
    covariates: Sequence[str] = (),
    atac: CellSource | None = None,
    record_values: str,
    target_library_size: int,
    seed: int,
    each_block: Callable[[Sequence[sp.csr_matrix]], None] | None = None,
) -> dict[str, int]:
    """Write all record files into a folder, which is made if need be.

    Parameters
    ----------
    cells
        Processed cells without empty rows; obs holds the categorical `label` and
        ``"split"``, its index barcodes. The code of a label is its position among the
        categories. Without ``obs["n_genes"]``, the genes of a cell are counted.
    covariates
        Other categoricals of obs that the records hold.
    atac
        ATAC counts of the same cells in the same order.
    record_values
        ``"counts"``, or ``"normalized"`` for the values of the reference: scaled to
        `target_library_size`.
    seed
        Of the shards of the training cells, drawn cell by cell in row order.
    each_block
        Is given the counts of each block that is read, of RNA and of ATAC.

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
    names = (label, *covariates)
    n_categories = {name: len(cells.obs[name].cat.categories) for name in names}
    n_peaks = 0 if atac is None else len(atac.var)
    schema = RecordSchema(len(cells.var), label, n_categories, n_peaks)
    rows_of_file = assign_files(cells.obs["split"], seed)
    file_of = np.zeros(len(cells.obs), np.int8)
    for number, file in enumerate(RECORD_FILES):
        file_of[rows_of_file[file]] = number
    obs = cells.obs[[name for name in (*names, "n_genes") if name in cells.obs]]
    with (
        progress(len(cells.obs), "writing records", "cells") as bar,
        open_shards(folder, RECORD_FILES, schema) as shards,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for rows, counts in cells.rows.map_blocks(same_block):
            peaks = None if atac is None else atac.rows.read(rows)
            if each_block is not None:
                each_block((counts,) if peaks is None else (counts, peaks))

            def write(
                number: int,
                rows: slice = rows,
                counts: sp.csr_matrix = counts,
                peaks: sp.csr_matrix | None = peaks,
            ) -> None:
                mine = np.flatnonzero(file_of[rows] == number)
                for start in range(0, len(mine), BLOCK_CELLS):
                    at = mine[start : start + BLOCK_CELLS]
                    some = None if peaks is None else peaks[at]
                    described = obs.iloc[rows.start + at]
                    shards[RECORD_FILES[number]](
                        cell_records(described, counts[at], schema, scale, some)
                    )
                    with bar.get_lock():
                        bar.update(len(at))

            list(pool.map(write, range(len(RECORD_FILES))))
    return {file: len(rows) for file, rows in rows_of_file.items()}


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
    obs: pd.DataFrame,
    values: sp.csr_matrix,
    schema: RecordSchema,
    scale: int | None,
    peaks: sp.csr_matrix | None = None,
) -> CellRecords:
    """Return cells as records hold them.

    Parameters
    ----------
    values
        Counts of these cells, which are overwritten if they are scaled.
    scale
        Total of each cell; None for counts.
    """
    totals = values.sum(axis=1).A1
    if scale is not None:
        factors = np.float32(scale) / totals
        values.data *= np.repeat(factors, np.diff(values.indptr))
        totals = values.toarray().sum(axis=1)
    return CellRecords(
        values=values,
        barcodes=obs.index.tolist(),
        genes_no=np.asarray(obs.get("n_genes", np.diff(values.indptr)), np.int64),
        count_no=totals.astype(np.int64),
        codes={
            name: obs[name].cat.codes.to_numpy(np.int32) for name in schema.n_categories
        },
        atac=None
        if peaks is None
        else AtacRecords(peaks, peaks.sum(axis=1).A1.astype(np.int64)),
    )
