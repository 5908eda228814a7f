"""The steps of processing, from the raw file to the folder of an experiment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from natsort import natsorted

from cellgan.config.parameters import InputParameters
from cellgan.data.manifest import SPLITS
from cellgan.errors import DataError
from cellgan.experiment import Experiment
from preprocessing.annotations import as_text, label_categories, writable_columns
from preprocessing.clustering import cluster_cells
from preprocessing.experiment_folder import (
    AtacSummary,
    ProcessingSummary,
    describe,
    split_sizes,
    timed,
    write_experiment,
)
from preprocessing.fields import field_specifications
from preprocessing.raw_counts import (
    OUR_COLUMNS,
    RawCells,
    read_atac,
    read_counts,
    with_values,
)
from preprocessing.sparse_blocks import (
    keep,
    row_sums,
    rows_per_column,
    values_per_row,
)
from preprocessing.splits import assign_splits

ATAC_COLUMNS = ("n_peaks", "n_counts")
LEAST_CELLS = 10
LEAST_GENES = 2

logger = logging.getLogger(__name__)


class FilteredCells(NamedTuple):
    """The cells that are kept, the same in both modalities."""

    rna: ad.AnnData
    """Counts, with ``obs["n_genes"]`` (genes expressed, before genes are filtered),
    ``obs["n_counts"]`` (library size over the genes kept) and ``var["n_cells"]``."""
    atac: ad.AnnData | None
    """The same of peaks, with ``obs["n_peaks"]``; None without ATAC counts."""


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
        raw_atac = read_atac(parameters, raw.obs.index)
    logger.info(
        "%s: %d cells x %d genes in %s of %s",
        experiment.name,
        *raw.counts.shape,
        raw.source,
        parameters.raw_input,
    )
    shape_before, source = raw.counts.shape, raw.source
    fields = field_specifications(raw.obs, parameters)
    has_values = with_values(raw.obs, parameters)
    if not has_values.all():
        raw = _rows(raw, has_values)
        raw_atac = raw_atac and _rows(raw_atac, has_values)
    n_peaks = raw_atac.counts.shape[1] if raw_atac else 0
    with timed(seconds, "filter"):
        cells, atac = filter_counts(raw, raw_atac, parameters)
        del raw, raw_atac
    with timed(seconds, "label"):
        add_labels(cells, parameters)
        add_covariates(cells, parameters)
    with timed(seconds, "split"):
        add_splits(cells, parameters)
    sizes = write_experiment(experiment, cells, seconds, atac, fields=fields)
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
        atac=atac and AtacSummary(n_peaks, atac.n_vars, atac.X.nnz),
    )
    logger.info("%s: processed\n%s", experiment.name, describe(summary))
    return summary


def filter_counts(
    rna: RawCells, atac: RawCells | None, parameters: InputParameters
) -> FilteredCells:
    """Keep cells with enough genes, then genes and peaks in enough of these cells.

    Cells, genes and peaks without any count go in any case, and a cell that goes from
    one modality goes from both. The counts of both are overwritten.

    Parameters
    ----------
    rna, atac
        The same cells in the same order.

    Raises
    ------
    DataError
        If too little is left.
    """
    filtering = parameters.filtering
    n_genes = np.diff(rna.counts.indptr)
    enough = n_genes >= max(filtering.min_genes, 1)
    matrices = [(rna.counts, max(filtering.min_cells, 1))]
    if atac is not None and parameters.atac is not None:
        matrices.append((atac.counts, max(parameters.atac.min_cells, 1)))
    cells, n_cells = _settle(matrices, enough)
    kept = [
        number >= least for number, (_, least) in zip(n_cells, matrices, strict=True)
    ]
    enough_left(cells, kept[0], n_genes, parameters, kept[1] if len(kept) > 1 else None)
    filtered = _annotated(rna, cells, kept[0], n_cells[0], OUR_COLUMNS)
    if atac is None:
        return FilteredCells(filtered, None)
    n_closed = int((n_cells[1] == 0).sum())
    logger.info(
        "ATAC: left out %d cells without counts in both modalities, %d peaks open in "
        "no cell, and %d more that are open in fewer than %d cells",
        enough.sum() - cells.sum(),
        n_closed,
        (~kept[1]).sum() - n_closed,
        matrices[1][1],
    )
    return FilteredCells(
        filtered, _annotated(atac, cells, kept[1], n_cells[1], ATAC_COLUMNS)
    )


def _rows(raw: RawCells, rows: npt.NDArray[np.bool_]) -> RawCells:
    return raw._replace(counts=raw.counts[rows], obs=raw.obs[rows])


def _settle(
    matrices: Sequence[tuple[sp.csr_matrix, int]], cells: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], list[npt.NDArray[np.int64]]]:
    """Leave out cells that have no count in the columns kept, until none is left.

    Parameters
    ----------
    matrices
        Counts of the same cells, and in how many cells a column must be to be kept.
    cells
        Which cells are kept at first.

    Returns
    -------
    Which cells are kept, and for each matrix in how many of them each column is.
    """
    while True:
        n_cells = [rows_per_column(counts, cells) for counts, _ in matrices]
        expressed = cells.copy()
        for number, (counts, least) in zip(n_cells, matrices, strict=True):
            expressed &= values_per_row(counts, number >= least) > 0
        if np.array_equal(expressed, cells):
            return cells, n_cells
        cells = expressed


def enough_left(
    cells: npt.NDArray[np.bool_],
    genes: npt.NDArray[np.bool_],
    n_genes: npt.NDArray[np.int64],
    parameters: InputParameters,
    peaks_kept: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Refuse filters that leave too few cells, genes or peaks.

    Parameters
    ----------
    cells, genes, peaks_kept
        Which are kept.
    n_genes
        Genes that each cell expresses, before filters.

    Raises
    ------
    DataError
        With what is left, and what to lower.
    """
    kept = [genes] if peaks_kept is None else [genes, peaks_kept]
    if cells.sum() >= LEAST_CELLS and all(k.sum() >= LEAST_GENES for k in kept):
        return
    filtering, atac = parameters.filtering, parameters.atac
    peaks = ""
    if atac is not None and peaks_kept is not None:
        peaks = (
            f" (input_ds.atac.min_cells {atac.min_cells}: {peaks_kept.sum()} of "
            f"{len(peaks_kept)} peaks)"
        )
    msg = (
        f"input_ds.filtering: min_genes {filtering.min_genes} and min_cells "
        f"{filtering.min_cells} leave {cells.sum()} of {len(cells)} cells and "
        f"{genes.sum()} of {len(genes)} genes{peaks}; at least {LEAST_CELLS} cells "
        f"and {LEAST_GENES} genes are needed.\n    A cell expresses "
        f"{np.median(n_genes):g} genes (median). Lower min_genes or min_cells, and "
        f"check that the file holds cells x genes, not the reverse."
    )
    raise DataError(msg)


def _annotated(
    raw: RawCells,
    cells: npt.NDArray[np.bool_],
    features: npt.NDArray[np.bool_],
    n_cells: npt.NDArray[np.int64],
    columns: tuple[str, ...],
) -> ad.AnnData:
    """Return the cells and features kept, with the numbers that `columns` names.

    The first is the number of features of a cell, before any is left out.
    """
    n_features = np.diff(raw.counts.indptr)
    counts = keep(raw.counts, cells, features)
    obs = _clean(raw.obs[cells], "obs", columns)
    obs[columns[0]] = n_features[cells].astype(np.int64)
    obs["n_counts"] = row_sums(counts)
    var = _clean(raw.var[features], "var", ("n_cells",))
    var["n_cells"] = n_cells[features]
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
        if len(categories) == 1:
            logger.warning(
                'all cells have "%s" in obs["%s"]: no model learns anything of a '
                "covariate with one category. Leave it out of input_ds.covariates.",
                categories[0],
                name,
            )


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


def _clean(table: pd.DataFrame, name: str, ours: tuple[str, ...]) -> pd.DataFrame:
    """Return the columns that can be written; those in `ours` are about to change."""
    cleaned, dropped = writable_columns(table)
    replaced = [column for column in ours if column in table.columns]
    if dropped:
        logger.info("%s columns left out, not writable: %s", name, ", ".join(dropped))
    if replaced:
        logger.info("%s columns replaced: %s", name, ", ".join(replaced))
    return cleaned
