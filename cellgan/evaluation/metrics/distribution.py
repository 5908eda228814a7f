"""Distances between the distributions of real and of generated cells.

Convention: all of them compare principal components, are 0 for equal distributions and
grow with the difference. Exact optimal transport is computed between equally many cells
of both sides, and on at most `MOST_TRANSPORTED` of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import euclidean_distances

from cellgan.evaluation.comparison.pairs import (
    Estimates,
    Pair,
    make_pair,
)
from cellgan.evaluation.comparison.space import Floats, Labels, Rows
from cellgan.evaluation.metrics.catalogue import Defect, Metric
from cellgan.evaluation.metrics.transport import (
    N_DIRECTIONS,
    sliced_distances,
    transport_costs,
)
from cellgan.seeds import derive_seed

MOST_TRANSPORTED = 2000
"""Of 5,000 cells an assignment takes about six times as long as of 2,000."""
N_PERMUTATIONS = 199
ROWS_AT_ONCE = 1000

Block: TypeAlias = npt.NDArray[np.float32]

_distance = functools.partial(
    Metric, space="components", floor="permuted", sees=frozenset(get_args(Defect))
)
METRICS: tuple[Metric, ...] = (
    _distance(
        name="mmd_squared",
        title="MMD squared (0 is best)",
        meaning=(
            "squared maximum mean discrepancy for the mean of Gaussian kernels whose"
            " bandwidths are multiples of the median distance of real cells, estimated"
            " without bias, so that it may be slightly negative"
        ),
    ),
    _distance(
        name="energy_distance",
        title="energy distance (0 is best)",
        meaning=(
            "twice the mean Euclidean distance between cells of different sides less"
            " those within each side, estimated without bias, so that it may be"
            " slightly negative"
        ),
    ),
    _distance(
        name="wasserstein_1",
        title="1-Wasserstein distance (0 is best)",
        meaning=(
            "mean Euclidean distance of real and generated cells that are paired one to"
            f" one to make it smallest, on at most {MOST_TRANSPORTED:,} cells of each"
            " side; falls as cells are added"
        ),
    ),
    _distance(
        name="wasserstein_2",
        title="2-Wasserstein distance (0 is best)",
        meaning=(
            "root of the mean squared Euclidean distance of real and generated cells"
            " that are paired one to one to make it smallest, on at most"
            f" {MOST_TRANSPORTED:,} cells of each side; falls as cells are added"
        ),
    ),
    _distance(
        name="sliced_wasserstein",
        title="sliced 1-Wasserstein distance (0 is best)",
        meaning=(
            "1-Wasserstein distance of all cells projected on a line, mean over"
            f" {N_DIRECTIONS} random directions; falls as cells are added"
        ),
    ),
    _distance(
        name="frechet_distance",
        title="Fréchet distance (0 is best)",
        meaning=(
            "squared 2-Wasserstein distance of the Gaussians that have the means and"
            " covariances of both sides; falls as cells are added"
        ),
    ),
)


def distribution_metrics(pair: Pair) -> Estimates:
    """Return every metric of this room, one number per draw.

    A side of fewer than 2 cells gives nan.
    """
    if min(len(pair.real), len(pair.other)) < 2:
        return {metric.name: np.full(len(pair.draws), np.nan) for metric in METRICS}
    similarity, distance = discrepancies(
        pair, (mean_kernel(pair.frame.bandwidths), np.sqrt)
    )
    same_size = equal_sides(pair, n_transported(pair))
    costs = cdist(same_size.real.components, same_size.other.components)
    return {
        "mmd_squared": similarity,
        "energy_distance": -distance,
        "wasserstein_1": transport_costs(costs, same_size.draws),
        "wasserstein_2": np.sqrt(
            transport_costs(costs**2, same_size.draws).clip(min=0)
        ),
        "sliced_wasserstein": sliced_distances(pair),
        "frechet_distance": frechet_distances(pair),
    }


def n_transported(pair: Pair) -> int:
    """Return how many cells of each side exact transport is computed on."""
    return min(len(pair.real), len(pair.other), MOST_TRANSPORTED)


# Equally many cells of both sides


def equal_sides(pair: Pair, n_cells: int) -> Pair:
    """Return the pair with `n_cells` cells on both sides.

    A side that has more is represented by a seeded subset with the same shares of
    labels: of the same cells, always the same ones.
    """
    if n_cells == len(pair.real) == len(pair.other):
        return pair
    real, other = (
        side.take(
            rows_of_all_labels(
                side.labels, n_cells, derive_seed(pair.frame.seed, "subset", name)
            )
        )
        for name, side in (("real", pair.real), ("other", pair.other))
    )
    return make_pair(real, other, pair.frame, len(pair.draws) - 1)


def rows_of_all_labels(labels: Labels, n_rows: int, seed: int) -> Rows:
    """Return `n_rows` rows, ascending, every label in its share of all rows.

    Rows are drawn in equal steps through the shuffled rows of one label after the
    other, so that a label's number is its exact share, rounded up or down.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    steps = np.arange(n_rows) * len(labels) // max(n_rows, 1)
    rows: Rows = np.sort(by_label[steps])
    return rows


# Means over pairs of cells: maximum mean discrepancy and energy distance


def discrepancies(
    pair: Pair, functions: tuple[Callable[[Block], Block], ...]
) -> Floats:
    """Return mean within real + mean within other - 2 * mean between the sides.

    Parameters
    ----------
    functions
        Functions of squared Euclidean distances whose mean over pairs of cells is
        taken. A pair of one cell with itself is left out, and so is one of a cell with
        its resampled copy: this makes the estimate unbiased.

    Returns
    -------
    ``(n_functions, n_draws)``; nan where all cells of a resample are one.

    References
    ----------
    Gretton et al. (2012), A Kernel Two-Sample Test, equation 3.
    https://jmlr.org/papers/v13/gretton12a.html
    Szekely and Rizzo (2013), Energy statistics: a class of statistics based on
    distances.
    """
    real, other = pair.real.components, pair.other.components
    weights = pair.draws
    total = np.zeros((len(functions), len(weights)))
    for cells, weight in ((real, weights.real), (other, weights.other)):
        sums = pairwise_sums(weight, cells, cells, functions, same_cells=True)
        n_pairs = weight.sum(axis=1) ** 2 - (weight**2).sum(axis=1)
        n_pairs[n_pairs == 0] = np.nan
        total += (sums * weight).sum(axis=2) / n_pairs
    sums = pairwise_sums(weights.real, real, other, functions)
    n_pairs = weights.real.sum(axis=1) * weights.other.sum(axis=1)
    return total - 2 * (sums * weights.other).sum(axis=2) / n_pairs


def pairwise_sums(
    weights: Floats,
    rows: Block,
    columns: Block,
    functions: tuple[Callable[[Block], Block], ...],
    *,
    same_cells: bool = False,
) -> Floats:
    """Return ``weights @ function(squared distances)`` for every function.

    Parameters
    ----------
    weights
        ``(n_weights, n_rows)``.
    rows, columns
        Cells, ``(n_rows, n_components)`` and ``(n_columns, n_components)``.
    same_cells
        Whether rows and columns are the same cells; pairs of a cell with itself then
        count as 0.

    Returns
    -------
    ``(n_functions, n_weights, n_columns)``. No more than `ROWS_AT_ONCE` rows of the
    matrix of distances exist at a time.
    """
    rows, columns = np.asarray(rows, np.float64), np.asarray(columns, np.float64)
    single = weights.astype(np.float32)
    sums = np.zeros((len(functions), len(weights), len(columns)))
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        # Squares of single precision would cancel between cells that are close.
        exact = euclidean_distances(rows[block], columns, squared=True)
        squared = exact.astype(np.float32)
        for total, function in zip(sums, functions, strict=True):
            values = function(squared)
            if same_cells:
                np.fill_diagonal(values[:, start:], 0.0)
            total += single[:, block] @ values
    return sums


def mean_kernel(bandwidths: tuple[float, ...]) -> Callable[[Block], Block]:
    """Return the mean over bandwidths s of ``exp(-squared / (2 * s**2))``.

    A bandwidth of 0, of real cells that are all alike, gives nan.
    """
    rates = [0.5 / bandwidth**2 if bandwidth else np.nan for bandwidth in bandwidths]

    def kernel(squared: Block) -> Block:
        total = np.zeros_like(squared)
        for rate in rates:
            total += np.exp(squared * np.float32(-rate))
        total /= len(rates)
        return total

    return kernel


def mmd_permutation_p(pair: Pair) -> float:
    """Return the p-value of the hypothesis that both sides are one distribution.

    The share of assignments of cells to sides for which the squared MMD is at least as
    large as it is, among the true one and `N_PERMUTATIONS` random ones. All cells are
    permuted, whatever their label. Where the discrepancy is undefined, nan.

    References
    ----------
    Gretton et al. (2012), A Kernel Two-Sample Test.
    https://jmlr.org/papers/v13/gretton12a.html
    """
    n_real, n_other = len(pair.real), len(pair.other)
    if min(n_real, n_other) < 2 or 0 in pair.frame.bandwidths:
        return float("nan")
    rng = np.random.default_rng(derive_seed(pair.frame.seed, "permutations"))
    cells = np.vstack([pair.real.components, pair.other.components])
    on_first_side = np.tile(np.arange(len(cells)) < n_real, (1 + N_PERMUTATIONS, 1))
    on_first_side[1:] = rng.permuted(on_first_side[1:], axis=1)
    weights = np.vstack([on_first_side, np.ones(len(cells))])
    kernel = mean_kernel(pair.frame.bandwidths)
    (sums,) = pairwise_sums(weights, cells, cells, (kernel,), same_cells=True)
    first = (sums[:-1] * on_first_side).sum(axis=1)
    between = sums[:-1].sum(axis=1) - first
    second = sums[-1].sum() - first - 2 * between
    values = (
        first / (n_real * (n_real - 1))
        + second / (n_other * (n_other - 1))
        - 2 * between / (n_real * n_other)
    )
    return float(np.mean(values >= values[0]))


# Optimal transport


# Gaussian fits


def frechet_distances(pair: Pair) -> Floats:
    """Return the Frechet distance of Gaussian fits, one number per draw.

    ``|mean_1 - mean_2|**2 + trace(C_1 + C_2 - 2 * (C_1 C_2)**(1/2))``. Resamples have
    means and covariances of their own.

    References
    ----------
    Dowson and Landau (1982), The Frechet distance between multivariate normal
    distributions. Heusel et al. (2017), GANs Trained by a Two Time-Scale Update Rule.
    https://arxiv.org/abs/1706.08500
    """
    sides = (
        (pair.real.components, pair.draws.real),
        (pair.other.components, pair.draws.other),
    )
    real, other = (np.asarray(cells, np.float64) for cells, _ in sides)
    distances = [
        gaussian_distance(*gaussian_fit(real, ours), *gaussian_fit(other, theirs))
        for ours, theirs in zip(pair.draws.real, pair.draws.other, strict=True)
    ]
    return np.array(distances)


def gaussian_fit(cells: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Return mean and unbiased covariance of cells that are there several times."""
    mean = np.average(cells, axis=0, weights=weights)
    centred = cells - mean
    scatter = (centred * weights[:, None]).T @ centred
    return mean, scatter / (weights.sum() - 1)


def gaussian_distance(
    mean_1: Floats, covariance_1: Floats, mean_2: Floats, covariance_2: Floats
) -> float:
    """Return the squared 2-Wasserstein distance of two Gaussians.

    The trace of ``(C_1 C_2)**(1/2)`` is that of the symmetric
    ``(C_1**(1/2) C_2 C_1**(1/2))**(1/2)``, which is real even where rounding makes an
    eigenvalue negative.
    """
    variances, axes = np.linalg.eigh(covariance_1)
    root = (axes * np.sqrt(variances.clip(min=0))) @ axes.T
    shared = np.linalg.eigvalsh(root @ covariance_2 @ root).clip(min=0)
    apart = np.sum((mean_1 - mean_2) ** 2)
    traces = np.trace(covariance_1) + np.trace(covariance_2)
    return float(apart + traces - 2 * np.sqrt(shared).sum())
