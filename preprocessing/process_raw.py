"""The steps of processing, from the raw file to the folder of an experiment."""

from __future__ import annotations

import logging
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from natsort import natsorted

from cellgan.config import FilteringParameters, InputParameters
from cellgan.errors import ConfigError, DataError, did_you_mean
from cellgan.experiment import Experiment
from cellgan.manifest import SPLITS
from preprocessing.annotations import (
    as_text,
    label_categories,
    require_column,
    with_unique_names,
    writable_columns,
)
from preprocessing.clustering import cluster_cells
from preprocessing.experiment_folder import (
    ProcessingSummary,
    describe,
    split_sizes,
    timed,
    write_experiment,
)
from preprocessing.raw_file import RawFile
from preprocessing.readers import open_raw_file, read_matrix
from preprocessing.sparse_blocks import (
    UnsuitableValueError,
    keep,
    row_sums,
    rows_per_column,
)
from preprocessing.splits import assign_splits

OUR_COLUMNS = ("n_genes", "n_counts", "split")
LEAST_CELLS = 10
LEAST_GENES = 2

logger = logging.getLogger(__name__)


class RawCells(NamedTuple):
    """Checked counts of a raw file and what describes them."""

    counts: sp.csr_matrix
    obs: pd.DataFrame
    var: pd.DataFrame
    source: str
    """Where in the file the counts were."""


def process_raw(experiment: Experiment) -> ProcessingSummary:
    """Make the folder of an experiment, replacing one that is there.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.process`.
    """
    parameters = experiment.parameters.input_ds
    seconds: dict[str, float] = {}
    with timed(seconds, "read"):
        raw = read_counts(parameters)
    logger.info(
        "%s: %d cells x %d genes in %s of %s",
        experiment.name,
        *raw.counts.shape,
        raw.source,
        parameters.raw_input,
    )
    shape_before, source = raw.counts.shape, raw.source
    with timed(seconds, "filter"):
        cells = filter_counts(raw, parameters.filtering)
        del raw
    with timed(seconds, "label"):
        add_labels(cells, parameters)
        add_covariates(cells, parameters)
    with timed(seconds, "split"):
        add_splits(cells, parameters)
    sizes = write_experiment(experiment, cells, seconds)
    label = cells.obs[parameters.clustering.label]
    others = {
        name: cells.obs[name].value_counts(sort=False).to_dict()
        for name in parameters.other_covariates
    }
    summary = ProcessingSummary(
        source=source,
        shape_before=shape_before,
        shape_after=cells.shape,
        n_values=cells.X.nnz,
        label=parameters.clustering.label,
        cells_per_label=label.value_counts(sort=False).to_dict(),
        cells_per_covariate=others,
        split_sizes=split_sizes(cells),
        bytes_on_disk=sizes,
        seconds=seconds,
    )
    logger.info("%s: processed\n%s", experiment.name, describe(summary))
    return summary


def read_counts(parameters: InputParameters) -> RawCells:
    """Read the counts of the raw file, after checking that its columns are there.

    Raises
    ------
    ConfigError
        If `parameters` name a layer the file does not have, or as label or covariate
        a column of ours.
    DataError
        If the file cannot be read, lacks a column, or holds no counts where they
        should be.
    """
    columns = _columns(parameters)
    with open_raw_file(parameters.raw_input, tuple(columns)) as raw:
        for column, where in columns.items():
            require_column(raw.obs, column, where)
        name, counts = _choose_counts(parameters, raw)
        var = raw.matrices[name].var
        return RawCells(
            counts, with_unique_names(raw.obs), with_unique_names(var), _place(name)
        )


def filter_counts(raw: RawCells, filtering: FilteringParameters) -> ad.AnnData:
    """Keep cells with enough genes, then genes in enough of these cells.

    Cells and genes without any count go in any case. `raw.counts` is overwritten.

    Returns
    -------
    Counts, with ``obs["n_genes"]`` (genes expressed, before genes are filtered),
    ``obs["n_counts"]`` (library size over the genes kept) and ``var["n_cells"]``.

    Raises
    ------
    DataError
        If too little is left.
    """
    n_genes = np.diff(raw.counts.indptr)
    cells = n_genes >= max(filtering.min_genes, 1)
    n_cells = rows_per_column(raw.counts, cells)
    genes = n_cells >= max(filtering.min_cells, 1)
    n_raw_cells, n_raw_genes = raw.counts.shape
    counts = keep(raw.counts, cells, genes)
    kept = np.flatnonzero(cells)
    expressed = np.diff(counts.indptr) > 0
    if not expressed.all():
        counts = keep(counts, expressed, np.ones(counts.shape[1], dtype=bool))
        kept = kept[expressed]
    if len(kept) < LEAST_CELLS or genes.sum() < LEAST_GENES:
        msg = (
            f"input_ds.filtering: min_genes {filtering.min_genes} and min_cells "
            f"{filtering.min_cells} leave {len(kept)} of {n_raw_cells} cells and "
            f"{genes.sum()} of {n_raw_genes} genes; at least {LEAST_CELLS} cells and "
            f"{LEAST_GENES} genes are needed.\n    A cell expresses "
            f"{np.median(n_genes):g} genes (median). Lower min_genes or min_cells, and "
            f"check that the file holds cells x genes, not the reverse."
        )
        raise DataError(msg)
    obs = _clean(raw.obs.iloc[kept], "obs", OUR_COLUMNS)
    obs["n_genes"] = n_genes[kept].astype(np.int64)
    obs["n_counts"] = row_sums(counts)
    var = _clean(raw.var[genes], "var", ("n_cells",))
    var["n_cells"] = n_cells[genes]
    return ad.AnnData(counts, obs, var)


def add_labels(cells: ad.AnnData, parameters: InputParameters) -> None:
    """Add the label as a categorical of text, in the order of its vocabulary.

    Raises
    ------
    DataError
        If labels come from a column and do not suit.
    """
    clustering = parameters.clustering
    name = clustering.label
    if clustering.res is None:
        labels = as_text(cells.obs[name])
        categories = label_categories(labels, name, "input_ds.clustering.key")
    else:
        if name in cells.obs.columns:
            logger.info('obs column "%s" of the raw file is replaced', name)
        labels = cluster_cells(cells.X, clustering.res, clustering.method, seed=0)
        categories = tuple(natsorted(set(labels)))
    cells.obs[name] = pd.Categorical(labels, categories=categories)


def add_covariates(cells: ad.AnnData, parameters: InputParameters) -> None:
    """Make the covariates besides the label categoricals of text, as labels are.

    Raises
    ------
    DataError
        If a column does not suit.
    """
    for name in parameters.other_covariates:
        values = as_text(cells.obs[name])
        categories = label_categories(values, name, "input_ds.covariates")
        cells.obs[name] = pd.Categorical(values, categories=categories)


def add_splits(cells: ad.AnnData, parameters: InputParameters) -> None:
    """Add ``obs["split"]``, a categorical of the three splits.

    Raises
    ------
    DataError
        As `assign_splits`.
    """
    split = parameters.split
    label = cells.obs[parameters.clustering.label].cat
    by = None if split.by is None else as_text(cells.obs[split.by])
    splits = assign_splits(label.codes.to_numpy(), tuple(label.categories), split, by)
    cells.obs["split"] = pd.Categorical(splits, categories=SPLITS)


def _columns(parameters: InputParameters) -> dict[str, str]:
    """Return the obs columns that must be there, and the parameter that names each."""
    clustering, split = parameters.clustering, parameters.split
    ours = dict.fromkeys(parameters.other_covariates, "covariates name")
    ours[clustering.label] = "clustering: key is"
    for column in OUR_COLUMNS:
        if column in ours:
            msg = (
                f'input_ds.{ours[column]} "{column}", a column that we write. Give it '
                f"another name in the raw file."
            )
            raise ConfigError(msg)
    columns = dict.fromkeys(parameters.other_covariates, "input_ds.covariates")
    if split.by is not None:
        columns[split.by] = "input_ds.split.by"
    if clustering.res is None:
        columns[clustering.label] = "input_ds.clustering.key"
    return columns


def _choose_counts(
    parameters: InputParameters, raw: RawFile
) -> tuple[str, sp.csr_matrix]:
    """Read the first matrix that suits; say what is wrong with each if none does."""
    layers = ", ".join(raw.matrices) or "none"
    if parameters.layer == "auto":
        names = [name for name in ("X", "raw", "counts") if name in raw.matrices]
    elif parameters.layer in raw.matrices:
        names = [parameters.layer]
    else:
        msg = (
            f'input_ds.layer: no "{parameters.layer}" in {parameters.raw_input}.'
            f"{did_you_mean(parameters.layer, raw.matrices)}\n    It has: {layers}."
        )
        raise ConfigError(msg)
    refusals = []
    for name in names:
        var = raw.matrices[name].var
        if not len(raw.obs) or not len(var):
            refusals.append(
                f"{_place(name)} is {len(raw.obs)} cells x {len(var)} genes"
            )
            continue
        try:
            return name, read_matrix(
                parameters.raw_input, raw, name, counts=parameters.counts
            )
        except UnsuitableValueError as error:
            cell, gene = raw.obs.index[error.row], var.index[error.column]
            refusals.append(
                f'{_place(name)} holds {error.value:g} (cell "{cell}", gene "{gene}")'
            )
    needed, advice = "finite and not negative", ""
    if parameters.counts:
        needed = "non-negative integers"
        advice = ", or set input_ds.counts to false for values that are no integers"
    msg = (
        f"{parameters.raw_input}: no counts: {'; '.join(refusals) or 'no X'}. "
        f"They must be {needed}.\n    Say where they are with input_ds.layer (here: "
        f"{layers}){advice}."
    )
    raise DataError(msg)


def _clean(table: pd.DataFrame, name: str, ours: tuple[str, ...]) -> pd.DataFrame:
    """Return the columns that can be written; those in `ours` are about to change."""
    cleaned, dropped = writable_columns(table)
    replaced = [column for column in ours if column in table.columns]
    if dropped:
        logger.info("%s columns left out, not writable: %s", name, ", ".join(dropped))
    if replaced:
        logger.info("%s columns replaced: %s", name, ", ".join(replaced))
    return cleaned


def _place(name: str) -> str:
    return name if name in ("X", "raw") else f'layer "{name}"'
