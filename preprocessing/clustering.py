"""Clusters of cells: zheng17 recipe, PCA, nearest neighbours, Louvain or Leiden.

The recipe of the reference without its dense copies: everything but the 50 principal
components stays sparse. Nothing here is random except the order in which the community
search visits cells, and that is seeded.
"""

from __future__ import annotations

import logging
import random

import igraph
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from sklearn.neighbors import NearestNeighbors

from preprocessing.sparse_blocks import progress, row_blocks, row_sums

N_TOP_GENES = 1000
N_COMPONENTS = 50
N_NEIGHBORS = 15
"""A cell counts as its own first neighbour."""
ROWS_AT_ONCE = 2048

log = logging.getLogger(__name__)


def cluster_cells(
    counts: sp.csr_matrix, resolution: float, method: str, *, seed: int
) -> npt.NDArray[np.str_]:
    """Cluster cells on the graph of their nearest neighbours.

    Parameters
    ----------
    counts
        Counts ``(n_cells, n_genes)`` without empty cells or genes.
    resolution
        More and smaller clusters the higher it is.
    method
        ``"louvain"`` or ``"leiden"``.
    seed
        Seed of the community search.

    Returns
    -------
    ``(n_cells,)``: ``"0"`` for the largest cluster, ``"1"`` for the next, and so on.

    Notes
    -----
    As in the reference, edges have no weights. It clusters before cells are filtered,
    which leaves cells without a label; here no cell is lost. Its Louvain code is
    another one, so clusters agree in number and rough size, not cell by cell.
    """
    components = principal_components(log_scaled_genes(counts))
    edges = neighbor_edges(components)
    graph = igraph.Graph(n=counts.shape[0], edges=edges)
    igraph.set_random_number_generator(random.Random(seed))
    try:
        if method == "leiden":
            communities = graph.community_leiden(
                objective_function="modularity", resolution=resolution, n_iterations=-1
            )
        else:
            communities = graph.community_multilevel(resolution=resolution)
    finally:
        igraph.set_random_number_generator(random)
    labels = _by_size(np.asarray(communities.membership))
    log.info("%s at resolution %g: %d clusters", method, resolution, labels.max() + 1)
    return labels.astype(str)


def log_scaled_genes(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return log-normalised expression of the most variable genes, unit variance.

    The zheng17 recipe up to the centring, which would make it dense: cells scaled to
    the median total, the `N_TOP_GENES` genes of highest normalised dispersion, cells
    scaled to the median total of these, ``log(1 + x)``, genes divided by their standard
    deviation.
    """
    size_factors = _to_median(row_sums(counts))
    top = counts[:, zheng17_genes(counts, size_factors)]
    totals = row_sums(top)
    _scale_rows(top, size_factors * _to_median(totals * size_factors))
    np.log1p(top.data, out=top.data)
    _, variances = column_moments(top, np.ones(top.shape[0]))
    top.data /= np.sqrt(np.where(variances > 0, variances, 1))[top.indices]
    return top


def zheng17_genes(
    counts: sp.csr_matrix, size_factors: npt.NDArray[np.float64]
) -> npt.NDArray[np.intp]:
    """Return the positions of the genes that vary most for their mean, ascending.

    Dispersion is variance over mean of the scaled counts; it is compared with the
    median and the median absolute deviation of the genes in the same of 20 bins of
    the mean. All genes are returned when there are no more than `N_TOP_GENES`.
    """
    if counts.shape[1] <= N_TOP_GENES:
        return np.arange(counts.shape[1])
    means, variances = column_moments(counts, size_factors)
    dispersion = pd.Series(variances / means)
    edges = np.percentile(means, np.arange(10, 105, 5))
    bins = dispersion.groupby(np.searchsorted(edges, means))
    deviation = (dispersion - bins.transform("median")).abs()
    spread = deviation.groupby(bins.ngroup()).transform("median")
    # A bin without spread says nothing about its genes: they come last.
    normalized = (deviation / spread.where(spread > 0)).fillna(0).to_numpy()
    return np.sort(np.argsort(-normalized, kind="stable")[:N_TOP_GENES])


def column_moments(
    matrix: sp.csr_matrix, row_factors: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and unbiased variance of each column after scaling the rows."""
    n_rows, n_columns = matrix.shape
    sums, squares = np.zeros(n_columns), np.zeros(n_columns)
    for start, block in row_blocks(matrix):
        factors = row_factors[start : start + block.shape[0]]
        values = block.data * np.repeat(factors, np.diff(block.indptr))
        sums += np.bincount(block.indices, values, minlength=n_columns)
        squares += np.bincount(block.indices, values**2, minlength=n_columns)
    means = sums / n_rows
    return means, (squares - n_rows * means**2).clip(min=0) / max(n_rows - 1, 1)


def principal_components(expression: sp.csr_matrix) -> npt.NDArray[np.float32]:
    """Return the scores of the first principal components, ``(n_cells, <= 50)``.

    From the eigenvectors of the genes' covariance, so exact, and sparse until the end.
    """
    n_cells, n_genes = expression.shape
    products = np.zeros((n_genes, n_genes))
    for start in range(0, n_cells, ROWS_AT_ONCE):
        block = expression[start : start + ROWS_AT_ONCE].toarray().astype(np.float64)
        products += block.T @ block
    means, _ = column_moments(expression, np.ones(n_cells))
    covariance = products / n_cells - np.outer(means, means)
    n_components = min(N_COMPONENTS, n_genes, n_cells - 1)
    _, vectors = np.linalg.eigh(covariance)
    loadings = vectors[:, ::-1][:, :n_components].astype(np.float32)
    return expression @ loadings - (means @ loadings).astype(np.float32)


def neighbor_edges(components: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the pairs of cells of which one is a nearest neighbour of the other.

    Returns
    -------
    ``(n_edges, 2)``, each pair once, the lower position first.
    """
    n_cells = len(components)
    n_neighbors = min(N_NEIGHBORS, n_cells)
    search = NearestNeighbors(n_neighbors=n_neighbors, algorithm="brute").fit(
        components
    )
    neighbors = np.empty((n_cells, n_neighbors), dtype=np.int64)
    with progress(n_cells, "neighbours", "cells") as bar:
        for start in range(0, n_cells, ROWS_AT_ONCE):
            rows = components[start : start + ROWS_AT_ONCE]
            neighbors[start : start + len(rows)] = search.kneighbors(
                rows, return_distance=False
            )
            bar.update(len(rows))
    cell = np.repeat(np.arange(n_cells), n_neighbors)
    neighbor = neighbors.ravel()
    other = cell != neighbor
    low = np.minimum(cell, neighbor)[other]
    high = np.maximum(cell, neighbor)[other]
    pairs = np.unique(low * n_cells + high)
    return np.stack([pairs // n_cells, pairs % n_cells], axis=1)


def _to_median(totals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the factors that bring positive totals to their median, 0 for the rest."""
    positive = totals > 0
    factors = np.zeros(len(totals))
    factors[positive] = np.median(totals[positive]) / totals[positive]
    return factors


def _scale_rows(matrix: sp.csr_matrix, factors: npt.NDArray[np.float64]) -> None:
    repeated = np.repeat(factors.astype(np.float32), np.diff(matrix.indptr))
    matrix.data *= repeated


def _by_size(membership: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Renumber communities by falling size; equal ones keep their order."""
    order = np.argsort(-np.bincount(membership), kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[membership]
