"""Floors: cells that keep only part of the truth, made from real training cells.

A metric that a floor passes as well as real cells do does not see what the floor lacks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp

from cellgan.evaluation.comparison.space import Floats, Labels
from cellgan.evaluation.metrics.catalogue import Floor
from cellgan.seeds import derive_seed

POISSON = 1e6
"""Inverse dispersion of genes whose variance does not exceed their mean."""


def floor_cells(
    floor: Floor,
    training: sp.csr_array,
    training_labels: Labels,
    control: sp.csr_array,
    control_labels: Labels,
    *,
    seed: int,
) -> sp.csr_array:
    """Make the cells of a floor, one for each control cell and of its label.

    Parameters
    ----------
    floor
        See `cellgan.evaluation.metrics.catalogue.Floor`.
    training, training_labels
        Real cells that means and dispersions are fitted to, ``(n, n_genes)``.
    control, control_labels
        Real cells that `"permuted"` shuffles; their labels are those of the result.
    seed
        The same seed gives the same cells.
    """
    rng = np.random.default_rng(derive_seed(seed, "floor", floor))
    if floor == "permuted":
        return _permuted(control, rng)
    pieces = list(_per_label(floor, training, training_labels, control_labels, rng))
    rows = np.concatenate([rows for rows, _ in pieces])
    cells = sp.vstack([values for _, values in pieces], format="csr")
    return sp.csr_array(cells[np.argsort(rows)])


def _per_label(
    floor: Floor,
    training: sp.csr_array,
    training_labels: Labels,
    labels: Labels,
    rng: np.random.Generator,
) -> Iterator[tuple[np.ndarray, sp.csr_array]]:
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        mean, variance = _moments(training[training_labels == label])
        if floor == "label_means":
            one = sp.csr_array(mean[None, :].astype(np.float32))
            yield rows, sp.vstack([one] * len(rows), format="csr")
        else:
            yield rows, _negative_binomial(mean, variance, len(rows), rng)


def _moments(values: sp.csr_array) -> tuple[Floats, Floats]:
    """Return mean and variance of every gene ``(n_genes,)``."""
    n = max(1, values.shape[0])
    mean = np.asarray(values.sum(axis=0, dtype=np.float64)).ravel() / n
    squares = values.copy()
    squares.data = squares.data.astype(np.float64) ** 2
    second = np.asarray(squares.sum(axis=0, dtype=np.float64)).ravel() / n
    return mean, (second - mean**2) * n / max(1, n - 1)


def _negative_binomial(
    mean: Floats, variance: Floats, n_cells: int, rng: np.random.Generator
) -> sp.csr_array:
    """Draw independent genes with these moments: variance = mean + mean^2 / theta.

    A negative binomial is the sum of a Poisson number of logarithmic variables, so
    nothing is drawn for the zeros: as fast as there are counts, however many genes.
    """
    excess = variance - mean
    with np.errstate(divide="ignore", invalid="ignore"):
        theta = np.where(excess > mean**2 / POISSON, mean**2 / excess, POISSON)
    rates = theta * np.log1p(mean / theta)
    n_events = rng.poisson(n_cells * rates)
    genes = np.repeat(np.arange(len(mean)), n_events)
    cells = rng.integers(n_cells, size=len(genes))
    sizes = rng.logseries((mean / (mean + theta))[genes])
    drawn = sp.coo_array((sizes, (cells, genes)), shape=(n_cells, len(mean)))
    return sp.csr_array(drawn, dtype=np.float32)


def _permuted(values: sp.csr_array, rng: np.random.Generator) -> sp.csr_array:
    """Permute every gene's values across cells, independently of other genes."""
    columns = sp.csc_array(values)
    n_cells = values.shape[0]
    rows = np.empty(columns.nnz, dtype=np.int32)
    for start, end in zip(columns.indptr[:-1], columns.indptr[1:], strict=True):
        rows[start:end] = rng.choice(n_cells, end - start, replace=False)
    shuffled = sp.csc_array((columns.data, rows, columns.indptr), shape=values.shape)
    shuffled.sort_indices()
    return sp.csr_array(shuffled)
