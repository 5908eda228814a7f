"""Whether generated cells lie where real cells do, and the other way round.

Convention: neighbours are looked for among principal components, by Euclidean distance;
no cell is its own neighbour. How far the nearest cells are depends on how many there
are: both sides have equally many, and numbers are comparable for that number only.
Resamples re-weight the cells that are judged and keep their neighbours, for density and
iLISI also the cells that they are judged by: for the others, the spread of resamples is
0.6 to 1 times that of new cells (measured with 400 of each).
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import cdist

from cellgan.evaluation.comparison.pairs import (
    Estimates,
    Pair,
    Resamples,
    weighted_means,
)
from cellgan.evaluation.comparison.space import Floats
from cellgan.evaluation.metrics.catalogue import Defect, Metric
from cellgan.evaluation.metrics.distribution import equal_sides
from cellgan.evaluation.metrics.mixing import (
    FEWEST_MIXED,
    MOST_MIXED,
    PERPLEXITY,
    Distances,
    Nearest,
    Neighbours,
    local_mixing,
    nearest_is_own,
)

N_IN_BALL = 5
"""Neighbours that the balls of precision, recall, density and coverage reach to."""
ROWS_AT_ONCE = 1000

Cells: TypeAlias = npt.NDArray[np.floating]
DistanceName: TypeAlias = Literal["euclidean", "cityblock"]

METRICS: tuple[Metric, ...] = (
    Metric(
        name="precision",
        title="precision (1 is best)",
        meaning=(
            "share of generated cells in the ball of some real cell, which reaches to"
            f" its {N_IN_BALL}th nearest real cell"
        ),
        space="components",
        floor="permuted",
        sees=frozenset({"library_size", "dependence", "weak_effects", "noise_cells"}),
    ),
    Metric(
        name="recall",
        title="recall (1 is best)",
        meaning=(
            "share of real cells in the ball of some generated cell, which reaches to"
            f" its {N_IN_BALL}th nearest generated cell"
        ),
        space="components",
        floor="label_means",
        sees=frozenset({"missing_label", "dependence"}),
    ),
    Metric(
        name="density",
        title="density (1 is best)",
        meaning=(
            f"mean over generated cells of the number of real cells' balls, out to the"
            f" {N_IN_BALL}th nearest real cell, that they are in, divided by"
            f" {N_IN_BALL}, which may exceed 1"
        ),
        space="components",
        floor="permuted",
        sees=frozenset({"library_size", "dependence", "weak_effects", "noise_cells"}),
    ),
    Metric(
        name="coverage",
        title="coverage (1 is best)",
        meaning=(
            "share of real cells that have a generated cell in their ball, which"
            f" reaches to their {N_IN_BALL}th nearest real cell"
        ),
        space="components",
        floor="label_means",
        sees=frozenset(get_args(Defect)),
    ),
    Metric(
        name="ilisi",
        title="iLISI (1 is best)",
        meaning=(
            "effective number of sides among a cell's neighbours, less 1, mean over"
            f" cells of both sides, at perplexity {PERPLEXITY} or a third of the cells"
            " there are"
        ),
        space="components",
        floor="label_means",
        sees=frozenset(get_args(Defect)),
    ),
    Metric(
        name="nearest_neighbour_accuracy_real",
        title="1-NN accuracy of real cells (0.5 is best)",
        meaning=(
            "share of real cells whose nearest other cell is real, which is higher"
            " where no generated cell comes near, and lower where generated cells are"
            " copies of real ones"
        ),
        space="components",
        floor="permuted",
        sees=frozenset(get_args(Defect)),
    ),
    Metric(
        name="nearest_neighbour_accuracy_generated",
        title="1-NN accuracy of generated cells (0.5 is best)",
        meaning=(
            "share of generated cells whose nearest other cell is generated, which is"
            " higher where they are unlike real ones or like each other, and lower"
            " where they are copies of real ones"
        ),
        space="components",
        floor="label_means",
        sees=frozenset({"missing_label", "library_size", "dependence"}),
    ),
)


class Membership(NamedTuple):
    """Each cell's part in precision, recall, density and coverage.

    The ball of a cell reaches to its k-th nearest cell of its own side, not included.
    """

    precise: Floats
    """1 for generated cells in some real cell's ball, else 0, ``(n_generated,)``."""
    recalled: Floats
    """1 for real cells in some generated cell's ball, else 0, ``(n_real,)``."""
    density: Floats
    """Number of real balls that a generated cell is in, over k, ``(n_generated,)``."""
    reach: Floats
    """Number of generated cells in a real cell's ball, over k, ``(n_real,)``."""
    covered: Floats
    """1 for real cells with a generated cell in their ball, else 0, ``(n_real,)``."""


def support_metrics(pair: Pair) -> Estimates:
    """Return every metric of this room, one number per draw.

    A side that has more cells than the other is represented by a seeded subset. A
    metric that looks for more neighbours than there are is nan.
    """
    pair = equal_sides(pair, min(len(pair.real), len(pair.other)))
    estimates = {metric.name: np.full(len(pair.draws), np.nan) for metric in METRICS}
    if len(pair.real) < 2:
        return estimates
    cells = pair.real.components, pair.other.components
    between = distances(*cells)
    real, generated = (
        Neighbours(nearest_own(own, MOST_MIXED), nearest(across, MOST_MIXED))
        for own, across in zip(cells, (between, between.T), strict=True)
    )
    return {
        **estimates,
        **_balls(pair.draws, real, generated, between),
        **_mixing(pair.draws, real, generated),
        "nearest_neighbour_accuracy_real": weighted_means(
            pair.draws.real, nearest_is_own(real)
        ),
        "nearest_neighbour_accuracy_generated": weighted_means(
            pair.draws.other, nearest_is_own(generated)
        ),
    }


def _balls(
    draws: Resamples,
    real: Neighbours,
    generated: Neighbours,
    between: Distances,
) -> Estimates:
    """Return precision, recall, density and coverage, if cells are enough."""
    if len(between) <= N_IN_BALL:
        return {}
    found = membership(
        between, radii(real.own, N_IN_BALL), radii(generated.own, N_IN_BALL), N_IN_BALL
    )
    density = weighted_means(draws.other, found.density)
    reach = weighted_means(draws.real, found.reach)
    return {
        "precision": weighted_means(draws.other, found.precise),
        "recall": weighted_means(draws.real, found.recalled),
        # To first order, both the balls and the cells in them are resampled.
        "density": density + reach - found.density.mean(),
        "coverage": weighted_means(draws.real, found.covered),
    }


def _mixing(draws: Resamples, real: Neighbours, generated: Neighbours) -> Estimates:
    """Return the scaled LISI of sides, if cells are enough."""
    n_cells = len(real.own.rows)
    n_neighbours = min(MOST_MIXED, 2 * n_cells - 1)
    if n_neighbours < FEWEST_MIXED:
        return {}
    of_real = local_mixing(real, n_neighbours)
    of_generated = local_mixing(generated, n_neighbours)
    # To first order, both the cells and their neighbours are resampled.
    at_real = weighted_means(
        draws.real, of_real.n_sides + of_real.pull_own + of_generated.pull_across
    )
    at_generated = weighted_means(
        draws.other,
        of_generated.n_sides + of_generated.pull_own + of_real.pull_across,
    )
    return {"ilisi": (at_real + at_generated) / 2 - 1}


# Precision, recall, density, coverage


def prdc(
    real: Cells, generated: Cells, k: int, metric: DistanceName = "euclidean"
) -> Membership:
    """Return each cell's part in precision, recall, density and coverage.

    Parameters
    ----------
    real, generated
        ``(n_real, n_dimensions)`` and ``(n_generated, n_dimensions)``, more than `k` of
        each.
    k
        Which of a cell's neighbours on its own side its ball reaches to.
    metric
        ``"euclidean"`` or ``"cityblock"`` (sum of absolute differences).

    Returns
    -------
    Arrays whose means are the four metrics.

    Raises
    ------
    ValueError
        If a side has no k-th neighbours.

    References
    ----------
    Kynkaanniemi et al. (2019), Improved Precision and Recall Metric for Assessing
    Generative Models, equations 1 and 2. https://arxiv.org/abs/1904.06991
    Naeem et al. (2020), Reliable Fidelity and Diversity Metrics for Generative Models,
    section 3, and its package prdc. https://arxiv.org/abs/2002.09797
    """
    if min(len(real), len(generated)) <= k:
        message = (
            f"{len(real)} real and {len(generated)} generated cells: with k = {k}, more"
            f" than {k} of each are needed."
        )
        raise ValueError(message)
    real_radii, generated_radii = (
        radii(nearest_own(cells, k, metric), k) for cells in (real, generated)
    )
    between = distances(real, generated, metric)
    return membership(between, real_radii, generated_radii, k)


def membership(
    between: Distances, real_radii: Distances, generated_radii: Distances, k: int
) -> Membership:
    """Return who is in whose ball.

    Parameters
    ----------
    between
        Distances ``(n_real, n_generated)``.
    real_radii, generated_radii
        Distance of each cell to its k-th neighbour on its own side.
    """
    in_real_ball = between < real_radii[:, None]
    return Membership(
        precise=np.asarray(in_real_ball.any(axis=0), np.float64),
        recalled=np.asarray((between < generated_radii).any(axis=1), np.float64),
        density=in_real_ball.sum(axis=0) / k,
        reach=in_real_ball.sum(axis=1) / k,
        covered=np.asarray(in_real_ball.any(axis=1), np.float64),
    )


def radii(own: Nearest, k: int) -> Distances:
    """Return each cell's distance to its k-th nearest cell."""
    return np.partition(own.distances, k - 1)[:, k - 1]


# Mixing


# Distances


def distances(
    rows: Cells, columns: Cells, metric: DistanceName = "euclidean"
) -> Distances:
    """Return all distances ``(n_rows, n_columns)``, float32.

    The distance of two cells is the same number wherever it is computed, and that of
    equal cells is 0: ties are ties.
    """
    found = np.empty((len(rows), len(columns)), np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        found[block] = cdist(rows[block], columns, metric)
    return found


def nearest_own(
    cells: Cells, n_neighbours: int, metric: DistanceName = "euclidean"
) -> Nearest:
    """Return the nearest other cells of the same side, `n_neighbours` or all."""
    found = []
    for start in range(0, len(cells), ROWS_AT_ONCE):
        block = distances(cells[start : start + ROWS_AT_ONCE], cells, metric)
        np.fill_diagonal(block[:, start:], np.inf)
        found.append(nearest(block, min(n_neighbours, len(cells) - 1)))
    return Nearest(*map(np.vstack, zip(*found, strict=True)))


def nearest(values: Distances, n_neighbours: int) -> Nearest:
    """Return the smallest distances of each row, `n_neighbours` or all."""
    n_neighbours = min(n_neighbours, values.shape[1])
    near = np.empty((len(values), n_neighbours), np.float32)
    rows = np.empty((len(values), n_neighbours), np.intp)
    for start in range(0, len(values), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        # Contiguous: rows of a transposed matrix are slow to sort.
        part = np.ascontiguousarray(values[block])
        rows[block] = np.argpartition(part, n_neighbours - 1)[:, :n_neighbours]
        near[block] = np.take_along_axis(part, rows[block], axis=1)
    return Nearest(near, rows)
