"""The space cells are compared in, learned from real training cells alone.

Convention: ``log_values`` are log1p of values scaled to `LIBRARY_SIZE` per cell, for
real and generated cells alike. Both sides go through the same variable genes, the same
scaler and the same principal components.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.utils.sparsefuncs import mean_variance_axis

Matrix: TypeAlias = npt.NDArray[np.floating] | sp.spmatrix | sp.sparray
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.str_]
Rows = npt.NDArray[np.intp]

LIBRARY_SIZE = 10_000.0
"""Total that every cell is scaled to before the logarithm."""
N_COMPONENTS = 50
N_SPACE_GENES = 2000
LARGEST_SCALED = 10.0
"""Scaled values are clipped here, as scanpy's tutorials do: a gene seen in three cells
would otherwise own a component."""


@dataclasses.dataclass(frozen=True)
class Space:
    """Where cells are compared: variable genes, a scaler, principal components."""

    genes: Rows
    """Columns of the variable genes, the most variable first."""
    scaler: StandardScaler
    pca: PCA

    def variable_genes(self, log_values: Matrix) -> npt.NDArray[np.float32]:
        """Return the variable genes' log expression, dense, not scaled."""
        return dense(log_values[:, self.genes])

    def components(self, log_values: Matrix) -> npt.NDArray[np.float32]:
        """Return the principal components ``(n_cells, n_components)``."""
        scaled = self.scaler.transform(self.variable_genes(log_values))
        np.clip(scaled, -LARGEST_SCALED, LARGEST_SCALED, out=scaled)
        projected: npt.NDArray[np.float32] = self.pca.transform(scaled)
        return projected


def fit_space(
    log_values: Matrix,
    *,
    seed: int,
    n_genes: int = N_SPACE_GENES,
    n_components: int = N_COMPONENTS,
) -> Space:
    """Learn the space of comparison from real training cells.

    Parameters
    ----------
    log_values
        Log expression of training cells, ``(n_cells, n_genes)``.
    seed
        Seed of the randomised decomposition.
    n_genes, n_components
        Upper limits; small data have fewer of both.
    """
    genes = variable_genes(log_values, n_genes)
    values = dense(log_values[:, genes])
    scaler = StandardScaler().fit(values)
    scaled = np.clip(scaler.transform(values), -LARGEST_SCALED, LARGEST_SCALED)
    pca = PCA(min(n_components, *scaled.shape), random_state=seed)
    return Space(genes, scaler, pca.fit(scaled))


def variable_genes(log_values: Matrix, n_genes: int) -> Rows:
    """Return the columns of highly variable genes, most variable first.

    Scanpy's default flavour chooses them (dispersions within bins of mean expression);
    data with at most `n_genes` genes keep all.
    """
    _, variances = mean_variance_axis(sp.csr_matrix(log_values), axis=0)
    order: Rows = np.argsort(-variances, kind="stable")
    if log_values.shape[1] <= n_genes:
        return order
    import anndata  # noqa: PLC0415  (with scanpy, seconds: for large data only)
    import scanpy as sc  # noqa: PLC0415

    table = sc.pp.highly_variable_genes(
        anndata.AnnData(sp.csr_matrix(log_values)), n_top_genes=n_genes, inplace=False
    )
    chosen = np.asarray(table["highly_variable"], dtype=bool)
    return order[chosen[order]]


def log_expression(values: Matrix, library_size: float = LIBRARY_SIZE) -> sp.csr_array:
    """Scale every cell to one library size and take log1p.

    Parameters
    ----------
    values
        Counts or expression, non-negative, ``(n_cells, n_genes)``. A cell without
        any value stays zero.
    library_size
        Total of every cell before the logarithm.
    """
    scaled = scale_cells(values, library_size)
    scaled.data = np.log1p(scaled.data)
    return scaled


def scale_cells(values: Matrix, library_size: float) -> sp.csr_array:
    """Scale every cell to one total, float32; a cell without any value stays zero."""
    scaled = sp.csr_array(values, dtype=np.float32, copy=True)
    totals = np.asarray(scaled.sum(axis=1, dtype=np.float64)).ravel()
    factors = library_size / np.where(totals > 0, totals, 1.0)
    scaled.data *= factors.repeat(np.diff(scaled.indptr)).astype(np.float32)
    return scaled


def dense(matrix: Matrix) -> npt.NDArray[np.float32]:
    """Return a sparse or dense matrix as a dense float32 array."""
    array = sp.csr_array(matrix).toarray() if sp.issparse(matrix) else matrix
    return np.asarray(array, dtype=np.float32)
