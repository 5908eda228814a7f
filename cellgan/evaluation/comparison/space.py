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
FEWEST_COMPONENTS = 5
CELLS_PER_COMPONENT = 100
"""Training cells that every component takes, `FEWEST_COMPONENTS` and `N_COMPONENTS`
aside.

Components are fitted to the noise of training cells too, so in them a copy of a
training cell lies further out than an equally good new cell. Copies against new real
cells, in components of centred log expression: ratio of their squared distances to
held-out cells (Frechet), and difference of their precision:

========  ==========  ===========  ============  ============  ===========
data      cells       5            10            20            50
========  ==========  ===========  ============  ============  ===========
PBMC 3k   250         2.4, -0.08   5.5, -0.36    9.6, -0.62    9.8, -0.82
PBMC 3k   1,000       0.5, -0.01   0.9, -0.07    1.6, -0.27    2.3, -0.68
Kang      500         0.4, -0.06   1.7, -0.36    3.7, -0.75
Kang      1,000       0.5, -0.04   0.8, -0.13    1.4, -0.46    2.7, -0.78
========  ==========  ===========  ============  ============  ===========

So 100 cells a component are needed. Fewer components see as much: independent genes,
noise cells and thinned counts were as many standard errors from real cells in 5 as in
50 of 500 cells. With fewer than 500 cells, copies of real cells still look worse than
they are: 5 components of 170 cells are not enough, and fewer tell no labels apart.
"""
N_SPACE_GENES = 2000
LARGEST_CENTRED = 10.0
"""Centred values are clipped here: one value that no cell can have must not decide."""


@dataclasses.dataclass(frozen=True)
class Space:
    """Where cells are compared: variable genes, a scaler, principal components."""

    genes: Rows
    """Columns of the variable genes, the most variable first."""
    scaler: StandardScaler
    """Subtracts means. Genes are not brought to unit variance: one seen in three cells
    would own a component. Of 250 PBMC with it, 5 components put a quarter of copied
    cells out of reach of real ones, and labels were told apart with an F1 of 0.51 in
    place of 0.74 (350 cells)."""
    pca: PCA

    @property
    def n_components(self) -> int:
        """Return the number of principal components."""
        return int(self.pca.n_components_)

    def variable_genes(self, log_values: Matrix) -> npt.NDArray[np.float32]:
        """Return the variable genes' log expression, dense, not scaled."""
        return dense(log_values[:, self.genes])

    def components(self, log_values: Matrix) -> npt.NDArray[np.float32]:
        """Return the principal components ``(n_cells, n_components)``."""
        centred = self.scaler.transform(self.variable_genes(log_values))
        np.clip(centred, -LARGEST_CENTRED, LARGEST_CENTRED, out=centred)
        projected: npt.NDArray[np.float32] = self.pca.transform(centred)
        return projected


def fit_space(
    log_values: Matrix,
    *,
    seed: int,
    n_genes: int = N_SPACE_GENES,
    n_components: int | None = None,
    by_dispersion: bool = True,
) -> Space:
    """Learn the space of comparison from real training cells.

    Parameters
    ----------
    log_values
        Log expression of training cells, ``(n_cells, n_genes)``.
    seed
        Seed of the randomised decomposition.
    n_genes, n_components
        Upper limits; small data have fewer of both. By default one component for
        `CELLS_PER_COMPONENT` cells, from `FEWEST_COMPONENTS` to `N_COMPONENTS`.
    by_dispersion
        How genes are chosen, see `most_variable_genes`.
    """
    if n_components is None:
        affordable = log_values.shape[0] // CELLS_PER_COMPONENT
        n_components = min(max(affordable, FEWEST_COMPONENTS), N_COMPONENTS)
    genes = most_variable_genes(log_values, n_genes, by_dispersion=by_dispersion)
    values = dense(log_values[:, genes])
    scaler = StandardScaler(with_std=False).fit(values)
    centred = np.clip(scaler.transform(values), -LARGEST_CENTRED, LARGEST_CENTRED)
    pca = PCA(min(n_components, *centred.shape), random_state=seed)
    return Space(genes, scaler, pca.fit(centred))


def most_variable_genes(
    log_values: Matrix, n_genes: int, *, by_dispersion: bool = True
) -> Rows:
    """Return the columns of highly variable genes, most variable first.

    Scanpy's default flavour chooses them (dispersions within bins of mean expression);
    data with at most `n_genes` genes keep all.

    Parameters
    ----------
    by_dispersion
        False chooses by variance alone, as is right for peaks: almost all are open in
        few cells, and the highest dispersions are of peaks open in hardly any. Of
        52,761 peaks of 881 cells, 2,000 so chosen were open in 0.7 % of the cells, and
        nothing in them went with the cells' RNA.
    """
    _, variances = mean_variance_axis(sp.csr_matrix(log_values), axis=0)
    order: Rows = np.argsort(-variances, kind="stable")
    if log_values.shape[1] <= n_genes or not by_dispersion:
        return order[:n_genes]
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
