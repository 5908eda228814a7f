"""How well cells come out of a model that encodes and decodes them.

Counts and reconstructions are compared on one scale, ``log(1 + 10,000 share)``, where
a share is that of a gene in the total of its cell. Cells are rows; all functions are of
arrays alone. A cell without counts, or without variation among the compared genes, has
no correlation: nan, and `accuracy_summary` counts it.

References
----------
Nadig et al. (2025), Consequences of training data composition for deep generative
models in single-cell biology. https://doi.org/10.1101/2025.02.19.639127
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellgan.data.dispersion import dispersions_in_bins

PER_10000 = 1e4
N_VARIABLE_GENES = 1000
"""Genes that cells are compared by, unless told otherwise."""

Floats = npt.NDArray[np.float64]
Cells: TypeAlias = npt.NDArray[Any] | sp.csr_matrix
"""Counts ``(n_cells, n_genes)``, dense or sparse."""


class CellAccuracy(NamedTuple):
    """How each cell comes out."""

    correlation: Floats
    """Pearson's, over genes, ``(n_cells,)``; nan without variation."""
    r2: Floats
    """Its square, ``(n_cells,)``. A negative correlation counts as much as a positive
    one: look at `correlation` too."""


class AccuracySummary(NamedTuple):
    """How the cells of one set come out."""

    n_cells: int
    n_undefined: int
    """Cells without a correlation, left out of all that follows."""
    median_correlation: float
    mean_correlation: float
    median_r2: float
    mean_r2: float
    r2_standard_error: float
    """Of the mean, over cells."""


def log_normalized(counts: Cells) -> Floats:
    """Return ``log(1 + 10,000 x / sum(x))``; a cell without counts stays zeros."""
    found: Floats = np.log1p(_per_10000(counts))
    return found


def log_shares(shares: npt.ArrayLike) -> Floats:
    """Return shares of genes, rows of sum 1, on the scale of `log_normalized`."""
    found: Floats = np.log1p(PER_10000 * np.asarray(shares, np.float64))
    return found


def normalized_dispersions(log_expression: npt.ArrayLike) -> Floats:
    """Return how much genes vary beyond genes of like expression.

    Parameters
    ----------
    log_expression
        ``(n_cells, n_genes)``, two cells at least, as `log_normalized` returns it.

    Returns
    -------
    As `cellgan.data.dispersion.dispersions_in_bins`.
    """
    values = np.asarray(log_expression, np.float64)
    expression = np.expm1(values)
    variance = expression.var(axis=0, ddof=1)
    varies = np.ptp(values, axis=0) > 0
    return dispersions_in_bins(expression.mean(axis=0), np.where(varies, variance, 0))


def most_dispersed_genes(
    log_expression: npt.ArrayLike, n_genes: int = N_VARIABLE_GENES
) -> npt.NDArray[np.bool_]:
    """Return which genes vary most, by `normalized_dispersions`.

    All genes as dispersed as the `n_genes`-th are kept, so there may be more; all that
    vary, if there are fewer.
    """
    return _most_dispersed(normalized_dispersions(log_expression), n_genes)


def _most_dispersed(dispersions: Floats, n_genes: int) -> npt.NDArray[np.bool_]:
    known = np.sort(dispersions[~np.isnan(dispersions)])[::-1]
    if not len(known):
        return np.zeros(len(dispersions), bool)
    least = known[min(n_genes, len(known)) - 1]
    with np.errstate(invalid="ignore"):
        chosen: npt.NDArray[np.bool_] = dispersions >= least
    return chosen


def most_dispersed_of_counts(
    counts: sp.csr_matrix, n_genes: int = N_VARIABLE_GENES
) -> npt.NDArray[np.bool_]:
    """Return what `most_dispersed_genes` does of sparse counts, which stay sparse.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``, two cells at least.
    """
    n_cells = counts.shape[0]
    totals = np.asarray(counts.sum(axis=1), np.float64).ravel()
    scale = np.divide(PER_10000, totals, out=np.zeros_like(totals), where=totals > 0)
    scaled = sp.csr_matrix(
        (
            counts.data * np.repeat(scale, np.diff(counts.indptr)),
            counts.indices,
            counts.indptr,
        ),
        counts.shape,
    )
    mean = np.asarray(scaled.mean(axis=0)).ravel()
    # Deviations, not squares: the values there are, and the zeros beside them
    away = scaled.data - mean[scaled.indices]
    squares = np.bincount(scaled.indices, away**2, minlength=len(mean))
    n_there = np.bincount(scaled.indices, minlength=len(mean))
    variance = (squares + (n_cells - n_there) * mean**2) / (n_cells - 1)
    varies = variance > np.finfo(np.float64).eps * mean**2 * n_cells
    dispersions = dispersions_in_bins(mean, np.where(varies, variance, 0))
    return _most_dispersed(dispersions, n_genes)


def cell_accuracy(
    observed: npt.ArrayLike,
    reconstructed: npt.ArrayLike,
    genes: npt.NDArray[np.bool_] | None = None,
) -> CellAccuracy:
    """Correlate each cell with its reconstruction.

    Parameters
    ----------
    observed, reconstructed
        ``(n_cells, n_genes)``, both on the scale of `log_normalized`.
    genes
        Those to compare by; None for all.
    """
    chosen = slice(None) if genes is None else genes
    one, other = (
        np.asarray(of, np.float64)[:, chosen] for of in (observed, reconstructed)
    )
    is_constant = (np.ptp(one, axis=1) == 0) | (np.ptp(other, axis=1) == 0)
    one = one - one.mean(axis=1, keepdims=True)
    other = other - other.mean(axis=1, keepdims=True)
    norm = np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = (one * other).sum(axis=1) / norm
    correlation = np.where(is_constant | (norm == 0), np.nan, correlation)
    return CellAccuracy(correlation, correlation**2)


def accuracy_of_counts(
    counts: Cells, shares: npt.ArrayLike, n_genes: int | None = N_VARIABLE_GENES
) -> CellAccuracy:
    """Correlate counts with the shares a model makes of them.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)``.
    shares
        The same shape, rows of sum 1.
    n_genes
        Compare by so many genes, those that vary most among these cells; None for all.
    """
    observed = log_normalized(counts)
    genes = None if n_genes is None else most_dispersed_genes(observed, n_genes)
    return cell_accuracy(observed, log_shares(shares), genes)


def accuracy_summary(accuracy: CellAccuracy) -> AccuracySummary:
    """Return medians and means over the cells that have a correlation."""
    known = ~np.isnan(accuracy.correlation)
    correlation, r2 = accuracy.correlation[known], accuracy.r2[known]
    n = len(r2)
    nan = float("nan")
    return AccuracySummary(
        len(known),
        len(known) - n,
        float(np.median(correlation)) if n else nan,
        float(correlation.mean()) if n else nan,
        float(np.median(r2)) if n else nan,
        float(r2.mean()) if n else nan,
        float(r2.std(ddof=1) / np.sqrt(n)) if n > 1 else nan,
    )


class ResidualSums:
    """What reconstructions leave over, gene by gene, summed a piece of cells at a time.

    Residuals are counts per 10,000 less ``10,000 share``, without a logarithm.
    """

    def __init__(self) -> None:
        self._n_cells = 0
        self._mean: dict[str, Floats] = {}
        self._squares: dict[str, Floats] = {}

    def add(self, counts: Cells, shares: npt.ArrayLike) -> None:
        """Add counts ``(n_cells, n_genes)``, and the shares a model makes of them."""
        observed = _per_10000(counts)
        made = PER_10000 * np.asarray(shares, np.float64)
        parts = {"observed": observed, "made": made, "residual": observed - made}
        n_new = len(observed)
        n_all = self._n_cells + n_new
        if not n_new:
            return
        for name, of in parts.items():
            mean = of.mean(axis=0)
            squares = ((of - mean) ** 2).sum(axis=0)
            old_mean = self._mean.get(name, np.zeros_like(mean))
            shift = mean - old_mean
            self._squares[name] = (
                self._squares.get(name, np.zeros_like(mean))
                + squares
                + shift**2 * (self._n_cells * n_new / n_all)
            )
            self._mean[name] = old_mean + shift * (n_new / n_all)
        self._n_cells = n_all

    def table(self, genes: npt.ArrayLike) -> pd.DataFrame:
        """Return a row per gene, of all cells added so far.

        ``proportional_residual_mean`` is over the mean, ``variance_ratio`` that of
        reconstructions over that of cells, which the original calls explained variance.
        Variances are divided by the number of cells; ratios to 0 are nan.

        Raises
        ------
        ValueError
            If none were added.
        """
        if not self._n_cells:
            msg = "no cells were added: there are no residuals"
            raise ValueError(msg)
        variance = {name: of / self._n_cells for name, of in self._squares.items()}
        with np.errstate(invalid="ignore", divide="ignore"):
            proportional = self._mean["residual"] / self._mean["observed"]
            ratio = variance["made"] / variance["observed"]
        columns = {
            "mean": self._mean["observed"],
            "reconstructed_mean": self._mean["made"],
            "residual_mean": self._mean["residual"],
            "residual_variance": variance["residual"],
            "proportional_residual_mean": np.where(
                self._mean["observed"] > 0, proportional, np.nan
            ),
            "variance": variance["observed"],
            "reconstructed_variance": variance["made"],
            "variance_ratio": np.where(variance["observed"] > 0, ratio, np.nan),
        }
        names = pd.Index(np.asarray(genes, object), name="gene")
        return pd.DataFrame(columns, index=names)


def _per_10000(counts: Cells) -> Floats:
    """Return counts of cells scaled to a total of 10,000; zeros stay zeros."""
    dense = counts.toarray() if isinstance(counts, sp.csr_matrix) else counts
    values = np.asarray(dense, np.float64)
    totals = values.sum(axis=1, keepdims=True)
    scale = np.divide(PER_10000, totals, out=np.zeros_like(totals), where=totals > 0)
    scaled: Floats = values * scale
    return scaled
