"""The steps of processing, from any source of cells to the folder of an experiment.

Counts are read by blocks, as often as need be: a file that is in memory is one block,
chunks are one block each. Only clustering gathers them, after the filters.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from natsort import natsorted

from cellgan.config.input import InputParameters
from cellgan.data.manifest import SPLITS
from cellgan.errors import DataError
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
from preprocessing.raw_counts import OUR_COLUMNS, read_atac, read_cells, with_values
from preprocessing.readers.cell_source import CellSource, Mask
from preprocessing.sparse_blocks import row_sums, rows_per_column, values_per_row
from preprocessing.splits import assign_splits

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

ATAC_COLUMNS = ("n_peaks", "n_counts")
LEAST_CELLS = 10
LEAST_GENES = 2

Numbers = npt.NDArray[np.int64]

log = logging.getLogger(__name__)


class FilteredCells(NamedTuple):
    """The cells that are kept, the same in both modalities."""

    rna: CellSource
    """Counts, with ``obs["n_genes"]`` (genes expressed, before genes are filtered),
    ``obs["n_counts"]`` (library size over the genes kept) and ``var["n_cells"]``."""
    atac: CellSource | None
    """The same of peaks, with ``obs["n_peaks"]``; None without ATAC counts."""
    n_values: Sequence[int]
    """Of each modality, counts that are not zero."""


class PreparedCells(NamedTuple):
    """Cells that have only to be written, but for their labels and splits."""

    cells: FilteredCells
    fields: Mapping[str, Any]
    """What `field_specifications` says of all cells."""
    place: str
    """Where the counts were."""
    shape_before: tuple[int, int]
    n_peaks_before: int


def process_cells(experiment: Experiment) -> ProcessingSummary:
    """Make the folder of an experiment, replacing one that is there.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.process`.
    """
    parameters = experiment.parameters.input_ds
    seconds: dict[str, float] = {}
    prepared = prepare_cells(experiment, seconds)
    cells, atac, n_values = prepared.cells
    with timed(seconds, "label"):
        add_labels(cells, parameters)
        add_covariates(cells, parameters)
    with timed(seconds, "split"):
        add_splits(cells, parameters)
    sizes = write_experiment(experiment, cells, seconds, atac, fields=prepared.fields)
    label = cells.obs[parameters.clustering.label]
    others = {
        name: cells.obs[name].value_counts(sort=False).to_dict()
        for name in parameters.other_covariates
    }
    peaks = None
    if atac is not None:
        peaks = AtacSummary(prepared.n_peaks_before, len(atac.var), n_values[1])
    summary = ProcessingSummary(
        source=prepared.place,
        shape_before=prepared.shape_before,
        shape_after=cells.shape,
        n_values=n_values[0],
        label=parameters.clustering.label,
        cells_per_label=label.value_counts(sort=False).to_dict(),
        cells_per_covariate=others,
        split_sizes=split_sizes(cells),
        bytes_on_disk=sizes,
        seconds=seconds,
        atac=peaks,
    )
    log.info("%s: processed\n%s", experiment.name, describe(summary))
    return summary


def prepare_cells(experiment: Experiment, seconds: dict[str, float]) -> PreparedCells:
    """Read and filter the cells of an experiment, without writing anything.

    Parameters
    ----------
    seconds
        Gets the time of each phase.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.process`.
    """
    parameters = experiment.parameters.input_ds
    with timed(seconds, "read"):
        rna = read_cells(parameters)
        atac = read_atac(parameters, rna)
    log.info(
        "%s: %d cells x %d genes in %s of %s",
        experiment.name,
        *rna.shape,
        rna.place,
        parameters.raw_input,
    )
    shape, place = rna.shape, rna.place
    n_peaks = len(atac.var) if atac else 0
    fields = field_specifications(rna.obs, parameters)
    has_values = with_values(rna.obs, parameters)
    if not has_values.all():
        rna = rna.select(has_values)
        atac = atac and atac.select(has_values)
    with timed(seconds, "filter"):
        cells = filter_counts(rna, atac, parameters)
    return PreparedCells(cells, fields, place, shape, n_peaks)


def filter_counts(
    rna: CellSource, atac: CellSource | None, parameters: InputParameters
) -> FilteredCells:
    """Keep cells with enough genes, then genes and peaks in enough of these cells.

    Cells, genes and peaks without any count go in any case, and a cell that goes from
    one modality goes from both. Counts in memory are overwritten.

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
    min_genes = max(filtering.min_genes, 1)
    n_genes, n_cells = _detected(rna, min_genes)
    enough = n_genes >= min_genes
    modalities = [
        _Modality(
            rna.select(enough), max(filtering.min_cells, 1), n_genes[enough], n_cells
        )
    ]
    if atac is not None and parameters.atac is not None:
        least, atac = max(parameters.atac.min_cells, 1), atac.select(enough)
        modalities.append(_Modality(atac, least, *_detected(atac)))
    expressed = list(map(_expression, modalities))
    while not (is_left := _in_all(expressed)).all():
        modalities = [modality.take(is_left) for modality in modalities]
        expressed = list(map(_expression, modalities))
    kept = [modality.is_kept for modality in modalities]
    enough_left(len(is_left), n_genes, parameters, *kept)
    for modality in modalities[1:]:
        n_closed = int((modality.n_cells == 0).sum())
        log.info(
            "ATAC: left out %d cells without counts in both modalities, %d peaks open "
            "in no cell, and %d more that are open in fewer than %d cells",
            enough.sum() - len(is_left),
            n_closed,
            (~modality.is_kept).sum() - n_closed,
            modality.least,
        )
    totals = [sums for _, sums in expressed]
    return FilteredCells(
        _described(modalities[0], OUR_COLUMNS, totals[0]),
        _described(modalities[1], ATAC_COLUMNS, totals[1]) if atac else None,
        [int(n_values.sum()) for n_values, _ in expressed],
    )


class _Modality(NamedTuple):
    """Cells of a modality while they are filtered."""

    cells: CellSource
    least: int
    """In how many cells a feature must be to be kept."""
    n_features: Numbers
    """Of each cell, before features are left out."""
    n_cells: Numbers
    """Of each feature."""

    @property
    def is_kept(self) -> Mask:
        return self.n_cells >= self.least

    def take(self, chosen: Mask) -> _Modality:
        cells = self.cells.select(chosen)
        n_features, n_cells = self.n_features[chosen], _detected(cells)[1]
        return _Modality(cells, self.least, n_features, n_cells)


def _detected(cells: CellSource, least: int = 0) -> tuple[Numbers, Numbers]:
    """Count the features of each cell, and the cells of each feature.

    Parameters
    ----------
    least
        Cells with fewer features are not among those of a feature.
    """
    n_features = np.zeros(len(cells.obs), np.int64)
    n_cells = np.zeros(len(cells.var), np.int64)
    look = functools.partial(_detected_in_block, least=least)
    for rows, (of_cells, of_features) in cells.rows.map_blocks(look):
        n_features[rows] = of_cells
        n_cells += of_features
    return n_features, n_cells


def _detected_in_block(block: sp.csr_matrix, least: int) -> tuple[Any, Any]:
    n_features = np.diff(block.indptr)
    return n_features, rows_per_column(block, n_features >= least)


def _expression(modality: _Modality) -> tuple[Numbers, npt.NDArray[np.float64]]:
    """Return how many of the features kept each cell has, and their total."""
    n_cells = len(modality.cells.obs)
    n_values, totals = np.zeros(n_cells, np.int64), np.zeros(n_cells)
    look = functools.partial(_expression_in_block, features=modality.is_kept)
    for rows, (numbers, sums) in modality.cells.rows.map_blocks(look):
        n_values[rows], totals[rows] = numbers, sums
    return n_values, totals


def _expression_in_block(block: sp.csr_matrix, features: Mask) -> tuple[Any, Any]:
    return values_per_row(block, features), row_sums(block, features)


def _in_all(expressed: Sequence[tuple[Numbers, Any]]) -> Mask:
    """Tell which cells have a count in every modality."""
    is_left: Mask = np.all([n_values > 0 for n_values, _ in expressed], axis=0)
    return is_left


def enough_left(
    n_left: int,
    n_genes: Numbers,
    parameters: InputParameters,
    genes: Mask,
    peaks: Mask | None = None,
) -> None:
    """Refuse filters that leave too few cells, genes or peaks.

    Parameters
    ----------
    n_left
        Cells that are kept.
    n_genes
        Genes that each cell expresses, before filters.
    genes, peaks
        Which are kept.

    Raises
    ------
    DataError
        With what is left, and what to lower.
    """
    kept = [genes] if peaks is None else [genes, peaks]
    if n_left >= LEAST_CELLS and all(each.sum() >= LEAST_GENES for each in kept):
        return
    filtering, atac = parameters.filtering, parameters.atac
    of_peaks = ""
    if atac is not None and peaks is not None:
        of_peaks = (
            f" (input_ds.atac.min_cells {atac.min_cells}: {peaks.sum()} of "
            f"{len(peaks)} peaks)"
        )
    msg = (
        f"input_ds.filtering: min_genes {filtering.min_genes} and min_cells "
        f"{filtering.min_cells} leave {n_left} of {len(n_genes)} cells and "
        f"{genes.sum()} of {len(genes)} genes{of_peaks}; at least {LEAST_CELLS} cells "
        f"and {LEAST_GENES} genes are needed.\n    A cell expresses "
        f"{np.median(n_genes):g} genes (median). Lower min_genes or min_cells, and "
        f"check that the file holds cells x genes, not the reverse."
    )
    raise DataError(msg)


def _described(
    modality: _Modality, columns: tuple[str, ...], totals: npt.NDArray[np.float64]
) -> CellSource:
    """Return the features kept, with the numbers that `columns` names, and totals."""
    is_kept = modality.is_kept
    cells = modality.cells.select(np.ones(len(totals), bool), is_kept)
    obs = _clean(cells.obs, "obs", columns)
    obs[columns[0]] = modality.n_features
    obs["n_counts"] = totals
    var = _clean(cells.var, "var", ("n_cells",))
    var["n_cells"] = modality.n_cells[is_kept]
    return cells._replace(obs=obs, var=var)


def add_labels(cells: CellSource, parameters: InputParameters) -> None:
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
            log.info('obs column "%s" of the raw file is replaced', name)
        labels = cluster_cells(
            cells.rows.gather(), clustering.res, clustering.method, seed=0
        )
        categories = tuple(natsorted(set(labels)))
    cells.obs[name] = pd.Categorical(labels, categories=categories)


def add_covariates(cells: CellSource, parameters: InputParameters) -> None:
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
            log.warning(
                'all cells have "%s" in obs["%s"]: no model learns anything of a '
                "covariate with one category. Leave it out of input_ds.covariates.",
                categories[0],
                name,
            )


def add_splits(cells: CellSource, parameters: InputParameters) -> None:
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
        log.info("%s columns left out, not writable: %s", name, ", ".join(dropped))
    if replaced:
        log.info("%s columns replaced: %s", name, ", ".join(replaced))
    return cleaned
