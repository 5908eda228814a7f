"""Synthetic counts with known truth."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp


class SyntheticCells(NamedTuple):
    """Cells of separable clusters."""

    counts: sp.csr_matrix
    """``(n_cells, n_genes)``, float32 integers."""
    labels: npt.NDArray[np.str_]
    """Name of each cell's cluster."""


def make_cells(
    n_cells: int = 240, n_genes: int = 60, n_clusters: int = 3, seed: int = 0
) -> SyntheticCells:
    """Draw Poisson counts in clusters of falling size, each with its own marker genes.

    The last cluster is the largest, so that labels are not in order of size.
    """
    rng = np.random.default_rng(seed)
    shares = np.arange(1, n_clusters + 1) / np.arange(1, n_clusters + 1).sum()
    codes = np.sort(rng.choice(n_clusters, size=n_cells, p=shares))
    rng.shuffle(codes)
    rates = rng.gamma(1.0, 0.5, size=(1, n_genes)).repeat(n_clusters, axis=0)
    width = n_genes // (2 * n_clusters)
    for cluster in range(n_clusters):
        rates[cluster, cluster * width : (cluster + 1) * width] += 8.0
    depth = rng.lognormal(0.0, 0.3, size=(n_cells, 1))
    counts = rng.poisson(rates[codes] * depth).astype(np.float32)
    names = np.array([f"type {chr(ord('A') + code)}" for code in range(n_clusters)])
    return SyntheticCells(sp.csr_matrix(counts), names[codes])


def make_batches(
    n_cells: int = 240, n_genes: int = 40, seed: int = 0
) -> tuple[SyntheticCells, npt.NDArray[np.str_]]:
    """Draw cells of two clusters in two batches, one with more of a quarter of genes.

    Batches do not depend on clusters, and share no gene with their markers.

    Returns
    -------
    The cells, and ``"new"`` or ``"old"`` for each.
    """
    cells = make_cells(n_cells, n_genes, n_clusters=2, seed=seed)
    rng = np.random.default_rng(seed + 1)
    is_old = rng.random(n_cells) < 0.5
    counts = cells.counts.toarray()
    shifted = counts[:, -(n_genes // 4) :]
    shifted += rng.poisson(6.0, shifted.shape) * is_old[:, None]
    return (
        cells._replace(counts=sp.csr_matrix(counts)),
        np.where(is_old, "old", "new"),
    )
