"""Processing of cells in chunks: read one at a time, checked first and written last.

Filters need to know of all cells in how many a gene is expressed, so chunks are read
several times; nothing but names, columns and numbers of each cell stays in memory.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

from cellgan.config.parameters import InputParameters
from cellgan.data.records import RECORD_FILES, RecordSchema, open_shards
from cellgan.errors import ConfigError, DataError
from cellgan.experiment import Experiment, remove_leftovers, replacing
from cellgan.seeds import derive_seed
from preprocessing.annotations import writable_columns
from preprocessing.experiment_folder import (
    STORAGE,
    ProcessingSummary,
    describe,
    split_sizes,
    timed,
    write_descriptions,
)
from preprocessing.fields import field_specifications
from preprocessing.process_raw import (
    add_covariates,
    add_labels,
    add_splits,
    enough_left,
)
from preprocessing.raw_counts import OUR_COLUMNS, needed_columns, with_values
from preprocessing.readers.chunks import (
    ChunkPair,
    find_chunks,
    read_genes,
    read_tables,
    rows_of,
)
from preprocessing.sparse_blocks import keep, row_sums, rows_per_column, values_per_row
from preprocessing.write_tfrecords import assign_files, cell_records

logger = logging.getLogger(__name__)


def process_chunks(experiment: Experiment) -> ProcessingSummary:
    """Make the folder of an experiment from chunks.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.process`.
    """
    parameters = experiment.parameters.input_ds
    chunks = parameters.chunks
    if chunks is None or parameters.clustering.res is not None:
        msg = (
            "input_ds.clustering: cells in chunks are not clustered, which needs all "
            "of them in memory. Name the column of their labels in clustering.key."
        )
        raise ConfigError(msg)
    seconds: dict[str, float] = {}
    with timed(seconds, "check"):
        pairs = find_chunks(parameters, chunks)
        genes = read_genes(chunks, pairs[0].n_genes)
        obs = read_tables(pairs, needed_columns(parameters))
        fields = field_specifications(obs, parameters)
        has_values = with_values(obs, parameters)
    with timed(seconds, "filter"):
        cells, kept = _filtered(pairs, obs, has_values, genes, parameters)
        add_labels(cells, parameters)
        add_covariates(cells, parameters)
        add_splits(cells, parameters)
    place = np.full(len(obs), -1)
    place[obs.index.get_indexer(cells.obs_names)] = np.arange(cells.n_obs)
    try:
        remove_leftovers(experiment.folder)
        with timed(seconds, "write"), replacing(experiment.folder) as temporary:
            temporary.mkdir()
            staged = dataclasses.replace(experiment, folder=temporary)
            shards, n_values = _write(staged, cells, pairs, place, kept)
            write_descriptions(staged, cells, shards, fields=fields)
            sizes = {
                staged.processed_file.name: staged.processed_file.stat().st_size,
                staged.records_folder.name: sum(
                    file.stat().st_size for file in staged.records_folder.iterdir()
                ),
            }
    except OSError as error:
        msg = f"{experiment.folder}: cannot be written: {error}."
        raise DataError(msg) from error
    label = cells.obs[parameters.clustering.label]
    summary = ProcessingSummary(
        source=f"{len(pairs)} chunks",
        shape_before=(len(obs), len(genes)),
        shape_after=cells.shape,
        n_values=n_values,
        label=parameters.clustering.label,
        cells_per_label=label.value_counts(sort=False).to_dict(),
        cells_per_covariate={
            name: cells.obs[name].value_counts(sort=False).to_dict()
            for name in parameters.other_covariates
        },
        split_sizes=split_sizes(cells),
        bytes_on_disk=sizes,
        seconds=seconds,
    )
    logger.info("%s: processed\n%s", experiment.name, describe(summary))
    return summary


def _filtered(
    pairs: Sequence[ChunkPair],
    obs: pd.DataFrame,
    has_values: npt.NDArray[np.bool_],
    genes: Sequence[str],
    parameters: InputParameters,
) -> tuple[ad.AnnData, npt.NDArray[np.bool_]]:
    """Return the cells that are kept, without their values, and the genes kept.

    As `process_raw.filter_counts`: cells with enough genes, then genes in enough of
    these cells, until no cell is left without a count.
    """
    filtering = parameters.filtering
    n_genes = np.zeros(len(obs), np.int64)
    for pair, rows in rows_of(pairs):
        matrix = pair.read(counts=parameters.counts)
        n_genes[rows] = np.diff(matrix.indptr)
    cells = has_values & (n_genes >= max(filtering.min_genes, 1))
    while True:
        n_cells = np.zeros(len(genes), np.int64)
        for pair, rows in rows_of(pairs):
            matrix = pair.read(counts=parameters.counts)
            n_cells += rows_per_column(matrix, cells[rows])
        kept = n_cells >= max(filtering.min_cells, 1)
        expressed = cells.copy()
        totals = np.zeros(len(obs))
        for pair, rows in rows_of(pairs):
            matrix = pair.read(counts=parameters.counts)
            expressed[rows] &= values_per_row(matrix, kept) > 0
            totals[rows] = row_sums(keep(matrix, np.ones(pair.n_cells, bool), kept))
        if np.array_equal(expressed, cells):
            break
        cells = expressed
    enough_left(cells, kept, n_genes, parameters)
    table, dropped = writable_columns(obs[cells])
    if dropped:
        logger.info("columns left out, not writable: %s", ", ".join(dropped))
    table = table.drop(columns=[name for name in OUR_COLUMNS if name in table])
    table["n_genes"], table["n_counts"] = n_genes[cells], totals[cells]
    names = pd.Index(np.asarray(genes, dtype=object)[kept], dtype=object)
    var = pd.DataFrame({"n_cells": n_cells[kept]}, index=names)
    return ad.AnnData(obs=table, var=var), kept


def _write(
    staged: Experiment,
    cells: ad.AnnData,
    pairs: Sequence[ChunkPair],
    place: npt.NDArray[np.int64],
    kept: npt.NDArray[np.bool_],
) -> tuple[dict[str, int], int]:
    """Write the processed file and the records, chunk by chunk.

    Parameters
    ----------
    place
        Where each cell of the chunks is among the cells kept; -1 of others.
    kept
        Which genes are kept.
    """
    parameters = staged.parameters.input_ds
    label = parameters.clustering.label
    n_categories = {
        name: len(cells.obs[name].cat.categories)
        for name in (label, *parameters.other_covariates)
    }
    schema = RecordSchema(cells.n_vars, label, n_categories, 0)
    scale = (
        parameters.target_library_size
        if parameters.record_values == "normalized"
        else None
    )
    seed = derive_seed(parameters.split.seed, "shards")
    rows_of_file = assign_files(cells.obs["split"], seed)
    file_of = np.zeros(cells.n_obs, np.int8)
    for number, file in enumerate(RECORD_FILES):
        file_of[rows_of_file[file]] = number
    staged.records_folder.mkdir()
    n_values = 0
    with (
        h5py.File(staged.processed_file, "w") as processed,
        open_shards(staged.records_folder, RECORD_FILES, schema) as shards,
    ):
        write_elem(processed, "/", cells)
        if "X" in processed:
            del processed["X"]
        start = sp.csr_matrix((0, cells.n_vars), dtype=np.float32)
        start.indptr = start.indptr.astype(np.int64)
        options = {**STORAGE, "chunks": (2**16,)}
        write_elem(processed, "X", start, dataset_kwargs=options)
        stored = sparse_dataset(processed["X"])
        for pair, rows in rows_of(pairs):
            here = place[rows]
            if not (here >= 0).any():
                continue
            matrix = keep(pair.read(counts=parameters.counts), here >= 0, kept)
            mine = here[here >= 0]
            stored.append(matrix)
            n_values += matrix.nnz
            own = ad.AnnData(matrix, obs=cells.obs.iloc[mine], var=cells.var)
            for number, file in enumerate(RECORD_FILES):
                chosen = np.flatnonzero(file_of[mine] == number)
                if len(chosen):
                    shards[file](cell_records(own, chosen, schema, scale))
    return {file: len(rows) for file, rows in rows_of_file.items()}, n_values
