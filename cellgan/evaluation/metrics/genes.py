"""Gene by gene on counts: mean, variance, zeros, dispersion, and totals of cells.

Convention: genes are those that enough held-out cells detect, whatever the other side
makes of them. Values are not transformed: what library size and depth do to a gene is
part of the truth here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.stats import rankdata

from cellgan.evaluation.comparison.pairs import Estimates, Pair, Resamples
from cellgan.evaluation.comparison.space import Floats, Rows
from cellgan.evaluation.metrics.catalogue import Metric

MIN_CELLS = 3
MIN_SHARE = 0.01
"""A gene counts when at least `MIN_CELLS` and this share of held-out cells have it."""
PSEUDO_VALUE = 0.01
"""Added to means and variances before ratios: what `MIN_SHARE` of cells with one count
amount to. A gene that was never generated then has a large but finite ratio."""

_GENES = (
    f"genes that at least {MIN_SHARE:.0%} and {MIN_CELLS} of the held-out cells have"
)
_RATIO = f"with {PSEUDO_VALUE} added to both"
_DISPERSION = f"dispersion, (variance + {PSEUDO_VALUE}) / (mean + {PSEUDO_VALUE})"

METRICS: tuple[Metric, ...] = (
    Metric(
        name="mean_spearman",
        title="Spearman of gene means (1 is best)",
        meaning=f"Spearman's correlation of the two sides' mean values over {_GENES}",
        space="counts",
        floor=None,
        sees=frozenset({"missing_label"}),
    ),
    Metric(
        name="mean_log_ratio",
        title="log ratio of gene means (0 is best)",
        meaning=f"mean over {_GENES} of the absolute log2 ratio of means, {_RATIO}",
        space="counts",
        floor=None,
        sees=frozenset({"missing_label", "library_size", "noise_cells"}),
    ),
    Metric(
        name="variance_spearman",
        title="Spearman of gene variances (1 is best)",
        meaning=f"Spearman's correlation of the two sides' variances over {_GENES}",
        space="counts",
        floor="label_means",
        sees=frozenset({"missing_label", "noise_cells"}),
    ),
    Metric(
        name="variance_log_ratio",
        title="log ratio of gene variances (0 is best)",
        meaning=f"mean over {_GENES} of the absolute log2 ratio of variances, {_RATIO}",
        space="counts",
        floor="label_means",
        sees=frozenset({"missing_label", "library_size", "noise_cells"}),
    ),
    Metric(
        name="zero_fraction_spearman",
        title="Spearman of genes' zero fractions (1 is best)",
        meaning=(
            "Spearman's correlation of the two sides' shares of cells without the "
            f"gene over {_GENES}"
        ),
        space="counts",
        floor=None,
        sees=frozenset({"missing_label"}),
    ),
    Metric(
        name="zero_fraction_difference",
        title="difference of genes' zero fractions (0 is best)",
        meaning=(
            "mean absolute difference of the two sides' shares of cells without the "
            f"gene over {_GENES}"
        ),
        space="counts",
        floor="label_means",
        sees=frozenset({"library_size"}),
    ),
    Metric(
        name="dispersion_spearman",
        title="Spearman of gene dispersions (1 is best)",
        meaning=f"Spearman's correlation of the two sides' {_DISPERSION} over {_GENES}",
        space="counts",
        floor="label_means",
        sees=frozenset({"missing_label", "noise_cells"}),
    ),
    Metric(
        name="dispersion_log_ratio",
        title="log ratio of gene dispersions (0 is best)",
        meaning=f"mean over {_GENES} of the absolute log2 ratio of {_DISPERSION}",
        space="counts",
        floor="label_means",
        sees=frozenset({"noise_cells"}),
    ),
    Metric(
        name="library_size_ks",
        title="Kolmogorov-Smirnov of library sizes (0 is best)",
        meaning=(
            "largest difference between the two sides' cumulative distributions of a "
            "cell's total count"
        ),
        space="library sizes",
        floor="label_means",
        sees=frozenset({"library_size", "dependence", "weak_effects"}),
        needs_counts=True,
    ),
    Metric(
        name="detected_genes_ks",
        title="Kolmogorov-Smirnov of detected genes (0 is best)",
        meaning=(
            "largest difference between the two sides' cumulative distributions of the "
            "number of genes a cell has above zero"
        ),
        space="counts",
        floor="label_means",
        sees=frozenset({"library_size", "dependence"}),
    ),
)


class ResampledMoments(NamedTuple):
    """What pictures and metrics look at, per draw and gene ``(n_draws, n_genes)``."""

    mean: Floats
    variance: Floats
    """Without bias: of the cells' total less one."""
    zero_fraction: Floats

    @property
    def dispersion(self) -> Floats:
        """Variance over mean, both plus `PSEUDO_VALUE`: 1 where counts are Poisson.

        The negative binomial's own, ``(variance - mean) / mean**2``, has a standard
        error of ``sqrt(2 / n_cells) / mean`` for Poisson counts: 2 for a gene that 1 %
        of 5,000 cells have. That of the ratio is ``sqrt(2 / n_cells)`` for every gene.
        """
        return (self.variance + PSEUDO_VALUE) / (self.mean + PSEUDO_VALUE)


def genes_metrics(pair: Pair) -> Estimates:
    """Compare genes' moments, and cells' totals, of both sides."""
    estimates = {metric.name: np.full(len(pair.draws), np.nan) for metric in METRICS}
    if min(len(pair.real), len(pair.other)) < 2:
        return estimates
    estimates["detected_genes_ks"] = _ks_of_cells(
        pair, lambda values: (values > 0).sum(axis=1)
    )
    if pair.frame.are_counts:
        estimates["library_size_ks"] = _ks_of_cells(
            pair, lambda values: values.sum(axis=1, dtype=np.float64)
        )
    genes = detected_genes(pair.real.values)
    if len(genes) > 0:
        real = resampled_moments(pair.real.values[:, genes], pair.draws.real)
        other = resampled_moments(pair.other.values[:, genes], pair.draws.other)
        estimates |= _agreement(real, other)
    return estimates


def detected_genes(values: sp.csr_array) -> Rows:
    """Return the columns that enough cells have above zero."""
    n_cells = np.asarray((values > 0).sum(axis=0)).ravel()
    enough = max(MIN_CELLS, MIN_SHARE * values.shape[0])
    columns: Rows = np.flatnonzero(n_cells >= enough)
    return columns


def resampled_moments(values: sp.csr_array, multiplicity: Floats) -> ResampledMoments:
    """Return the moments of every gene in every draw.

    Parameters
    ----------
    values
        Non-negative, ``(n_cells, n_genes)``.
    multiplicity
        How often each cell is there, ``(n_draws, n_cells)``, 2 or more in all; one
        row of ones for the cells as they are.
    """
    cells = np.ascontiguousarray(multiplicity.T)
    n_cells = multiplicity.sum(axis=1)[:, None]
    # Most values of a count matrix are 0 or 1. Cells that have a gene are counted in
    # float32, which is exact; only what goes beyond 1 is left for the slower sums.
    has_gene = sp.csc_array(values).T
    beyond = has_gene.astype(np.float64)
    has_gene.data = (has_gene.data > 0).astype(np.float32)
    beyond.data -= has_gene.data
    beyond.eliminate_zeros()
    n_detected = (has_gene @ cells.astype(np.float32)).T.astype(np.float64)
    sums_beyond = (beyond @ cells).T
    beyond.data **= 2
    sums = n_detected + sums_beyond
    squares = n_detected + 2 * sums_beyond + (beyond @ cells).T
    variance = np.maximum(squares - sums**2 / n_cells, 0) / (n_cells - 1)
    return ResampledMoments(sums / n_cells, variance, 1 - n_detected / n_cells)


def ks_statistics(
    real: npt.NDArray[np.floating],
    other: npt.NDArray[np.floating],
    draws: Resamples,
) -> Floats:
    """Return the Kolmogorov-Smirnov statistic of two samples in every draw.

    Parameters
    ----------
    real, other
        One value per cell, ``(n_real,)`` and ``(n_other,)``.
    draws
        Multiplicities of these cells.
    """
    points = np.unique(np.concatenate([real, other]))
    real_shares = _cumulative(real, draws.real, points)
    other_shares = _cumulative(other, draws.other, points)
    largest: Floats = np.abs(real_shares - other_shares).max(axis=1)
    return largest


def spearman(first: Floats, second: Floats) -> Floats:
    """Return Spearman's correlation of each row with its counterpart, as `pearson`."""
    return pearson(rankdata(first, axis=1), rankdata(second, axis=1))


def pearson(
    first: npt.NDArray[np.floating], second: npt.NDArray[np.floating]
) -> Floats:
    """Return Pearson's correlation of each row of one array with that of another.

    Parameters
    ----------
    first, second
        ``(n_draws, n_values)``.

    Returns
    -------
    ``(n_draws,)``; nan where either row is constant or shorter than 2.
    """
    if first.shape[1] < 2:
        return np.full(len(first), np.nan)
    varies = (np.ptp(first, axis=1) > 0) & (np.ptp(second, axis=1) > 0)
    first = first - first.mean(axis=1, keepdims=True, dtype=np.float64)
    second = second - second.mean(axis=1, keepdims=True, dtype=np.float64)
    products = np.einsum("ij,ij->i", first, second)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.divide(products, lengths, out=np.full(len(first), np.nan), where=varies)


def _ks_of_cells(
    pair: Pair, total: Callable[[sp.csr_array], npt.NDArray[np.floating]]
) -> Floats:
    real, other = (np.asarray(total(side.values)) for side in (pair.real, pair.other))
    return ks_statistics(real, other, pair.draws)


def _agreement(real: ResampledMoments, other: ResampledMoments) -> dict[str, Floats]:
    difference = np.abs(real.zero_fraction - other.zero_fraction)
    estimates: dict[str, Floats] = {
        "zero_fraction_spearman": spearman(real.zero_fraction, other.zero_fraction),
        "zero_fraction_difference": difference.mean(axis=1),
    }
    for name, first, second in (
        ("mean", real.mean + PSEUDO_VALUE, other.mean + PSEUDO_VALUE),
        ("variance", real.variance + PSEUDO_VALUE, other.variance + PSEUDO_VALUE),
        ("dispersion", real.dispersion, other.dispersion),
    ):
        estimates[f"{name}_spearman"] = spearman(first, second)
        estimates[f"{name}_log_ratio"] = np.abs(np.log2(second / first)).mean(axis=1)
    return estimates


def _cumulative(
    values: npt.NDArray[np.floating],
    multiplicity: Floats,
    points: npt.NDArray[np.floating],
) -> Floats:
    """Return the share of cells at or below each point, ``(n_draws, n_points)``."""
    order = np.argsort(values, kind="stable")
    n_below = np.pad(np.cumsum(multiplicity[:, order], axis=1), ((0, 0), (1, 0)))
    position = np.searchsorted(values[order], points, side="right")
    return n_below[:, position] / n_below[:, -1:]
