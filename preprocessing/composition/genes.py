"""The genes of a composition study, and where each is in every file.

Files may call genes by symbols, Ensembl ids, ids with versions; a table translates. The
study's genes are in the order of their names, so that they are the same anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellgan.config.composition import Composition, VariableGenes
from cellgan.config.sources import Source
from cellgan.data.dispersion import dispersions_in_bins
from cellgan.errors import ConfigError, DataError, did_you_mean
from preprocessing.annotations import as_text

if TYPE_CHECKING:
    from preprocessing.composition.sources import SourceFile

PER_CELL = 1e4
DIGITS = 9
"""Dispersions are compared by so many digits: the last ones depend on the machine."""
FEWEST_SHARED = 0.8
"""Share of the study's genes below which a file of evaluation cells earns a warning."""


@dataclasses.dataclass(frozen=True)
class GeneNames:
    """What the genes of one file are called in the study."""

    names: npt.NDArray[Any]
    """Per gene of the file; ``""`` of genes that have no name."""
    n_unnamed: int
    n_repeated: int
    """Genes whose name another one before them has."""

    def columns_in(self, genes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the position of each of the file's genes among others; -1 of none."""
        columns: npt.NDArray[np.int64] = pd.Index(genes).get_indexer(self.names)
        return columns


def gene_names(file: SourceFile) -> GeneNames:
    """Return the names of a file's genes, translated and without repeats.

    Raises
    ------
    ConfigError, DataError
        If a column or the table is not there, or a name is there twice and that is not
        to be.
    """
    source = file.source
    if source.gene_column is None:
        names = np.array([str(name) for name in file.cells.var.index], dtype=object)
    else:
        if source.gene_column not in file.cells.var:
            known = [str(name) for name in file.cells.var.columns]
            msg = (
                f'{file.where}.gene_column: no var column "{source.gene_column}" in '
                f"{source.file}.{did_you_mean(source.gene_column, known)} "
                f"Columns: {', '.join(known) or 'none'}."
            )
            raise DataError(msg)
        names = as_text(file.cells.var[source.gene_column])
    if source.gene_table is not None:
        table = read_gene_table(source, file.where)
        names = np.array([table.get(name, "") for name in names], dtype=object)
    if source.strip_version:
        names = np.array([name.split(".")[0] for name in names], dtype=object)
    is_repeated = pd.Series(names).duplicated().to_numpy() & (names != "")
    if is_repeated.any() and source.duplicate_genes == "refuse":
        msg = (
            f'{file.where}: {source.file}: the gene "{names[is_repeated][0]}" is there '
            f"twice ({is_repeated.sum():,} are). Set duplicate_genes to sum, first or "
            "drop."
        )
        raise DataError(msg)
    n_unnamed = int((names == "").sum())
    if source.duplicate_genes == "first":
        names = np.where(is_repeated, "", names)
    elif source.duplicate_genes == "drop":
        names = np.where(np.isin(names, names[is_repeated]), "", names)
    return GeneNames(names, n_unnamed, int(is_repeated.sum()))


def read_gene_table(source: Source, where: str) -> dict[str, str]:
    """Read a table whose first column is looked up and whose second is taken.

    Raises
    ------
    DataError
        If it cannot be read, or gives a name two ids.
    """
    path = Path(str(source.gene_table)).expanduser()
    try:
        table = pd.read_csv(
            path,
            sep="\t" if ".tsv" in path.suffixes or ".txt" in path.suffixes else ",",
            dtype=str,
            keep_default_na=False,
        )
        first, second = table.columns[:2]
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        msg = f"{where}.gene_table: {source.gene_table}: cannot be read: {reason}."
        raise DataError(msg) from None
    pairs = table[[first, second]].drop_duplicates()
    twice = pairs[first][pairs[first].duplicated()]
    if len(twice):
        msg = (
            f'{where}.gene_table: {source.gene_table}: "{twice.iloc[0]}" has two ids. '
            "Keep one row of each name."
        )
        raise DataError(msg)
    return dict(zip(pairs[first], pairs[second], strict=True))


def shared_genes(
    composition: Composition, names: Mapping[str, GeneNames]
) -> npt.NDArray[Any]:
    """Return the study's genes by its rule, but for the choice of variable ones.

    Parameters
    ----------
    names
        Source -> names of its genes, of the sources that mixtures use.

    Raises
    ------
    ConfigError
        If there are none.
    """
    sets = [set(named.names.tolist()) - {""} for named in names.values()]
    rule = composition.genes
    if rule == "union":
        genes = set().union(*sets)
    elif isinstance(rule, tuple):
        genes = set(rule)
        known = set().union(*sets)
        if not genes & known:
            msg = (
                f"genes: no source has any of the {len(genes):,} genes of "
                f'the list ("{rule[0]}", ...). Give names as sources have them.'
            )
            raise ConfigError(msg)
    else:
        genes = set.intersection(*sets)
        if not genes:
            examples = ", ".join(
                f'{source} ("{next(filter(None, named.names), "")}", ...)'
                for source, named in names.items()
            )
            msg = (
                f"genes: the sources have no gene in common: {examples}. "
                "Bring them to one kind of name with gene_column or gene_table."
            )
            raise ConfigError(msg)
    return np.array(sorted(genes), dtype=object)


def dispersed_genes(
    rule: VariableGenes,
    file: SourceFile,
    passed: npt.NDArray[np.bool_],
    column_of: npt.NDArray[np.int64],
    genes: npt.NDArray[Any],
) -> npt.NDArray[Any]:
    """Return the most variable genes of a source, by their normalised dispersion.

    Dispersions of counts per 10,000 are compared with those of genes of like mean, in
    20 bins of equal width of ``log(1 + mean)``. Equal ones are taken by name.

    Parameters
    ----------
    passed
        Cells of the file to look at.
    column_of
        Column of each of the file's genes in `genes`; -1 of others.

    References
    ----------
    Satija et al. (2015), Spatial reconstruction of single-cell gene expression data.
    https://doi.org/10.1038/nbt.3192
    """
    n_genes = len(genes)
    sums, squares = np.zeros(n_genes), np.zeros(n_genes)
    moments = functools.partial(_moments, column_of=column_of, n_genes=n_genes)
    for _, (one, two) in file.cells.rows.map_blocks(moments, passed):
        sums += one
        squares += two
    n_cells = int(passed.sum())
    mean = sums / n_cells
    variance = np.maximum(squares - n_cells * mean**2, 0) / max(n_cells - 1, 1)
    normalised = dispersions_in_bins(mean, variance).round(DIGITS)
    normalised = np.where(np.isnan(normalised), -np.inf, normalised)
    chosen = np.lexsort((np.arange(n_genes), -normalised))[: rule.n]
    return genes[np.sort(chosen)]


def _moments(
    block: sp.csr_matrix, column_of: npt.NDArray[np.int64], n_genes: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rows = to_columns(block, column_of, n_genes).astype(np.float64)
    totals = np.asarray(rows.sum(axis=1)).ravel()
    rows.data *= np.repeat(PER_CELL / np.maximum(totals, 1), np.diff(rows.indptr))
    sums = np.bincount(rows.indices, rows.data, minlength=n_genes)
    return sums, np.bincount(rows.indices, rows.data**2, minlength=n_genes)


def to_columns(
    block: sp.csr_matrix, column_of: npt.NDArray[np.int64], n_genes: int
) -> sp.csr_matrix:
    """Return cells with the study's genes: others go, those of one name are added."""
    column = column_of[block.indices]
    row = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    kept = (column >= 0) & (block.data != 0)
    moved = sp.csr_matrix(
        (block.data[kept], (row[kept], column[kept])),
        shape=(block.shape[0], n_genes),
        dtype=np.float32,
    )
    moved.sort_indices()
    return moved
