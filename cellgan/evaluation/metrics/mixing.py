"""How well sides mix among each cell's nearest neighbours."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from cellgan.evaluation.comparison.space import Floats, Rows

PERPLEXITY = 30
MOST_MIXED = 3 * PERPLEXITY - 1
"""Neighbours whose mixing is looked at: with the cell, three times the perplexity."""
FEWEST_MIXED = 15
N_BISECTIONS = 40

Distances: TypeAlias = npt.NDArray[np.float32]


class Nearest(NamedTuple):
    """The nearest cells of one side to each of some cells, in no order.

    Each array is ``(n_cells, n_neighbours)``, with fewer columns where fewer cells are.
    """

    distances: Distances
    rows: Rows


class Neighbours(NamedTuple):
    """The nearest cells of both sides to the cells of one side."""

    own: Nearest
    across: Nearest


class Mixing(NamedTuple):
    """How many sides there are around each cell of one side, and which cells matter."""

    n_sides: Floats
    """Local inverse Simpson's index, from 1 (one side) to 2 (both alike),
    ``(n_cells,)``."""
    pull_own: Floats
    """By how much the sum of `n_sides` would grow, to first order, if a cell of this
    side were there once more as a neighbour, ``(n_cells,)``."""
    pull_across: Floats
    """The same for cells of the other side."""


def nearest_is_own(cells: Neighbours) -> Floats:
    """Return 1 where the nearest cell is on a cell's own side, 1/2 for a tie, else 0.

    References
    ----------
    Xu et al. (2018), An empirical study on evaluation metrics of generative
    adversarial networks. https://arxiv.org/abs/1806.07755
    """
    own, across = (side.distances.min(axis=1) for side in cells)
    share: Floats = (own < across) + 0.5 * (own == across)
    return share


def local_mixing(cells: Neighbours, n_neighbours: int) -> Mixing:
    """Return the local inverse Simpson's index (LISI) of sides.

    The shares of both sides among a cell's neighbours, which count the less the further
    away they are, give ``1 / (share**2 + (1 - share)**2)``. Random neighbours of equal
    sides have less than 2: at perplexity 30, about 1.9.

    Parameters
    ----------
    cells
        On either side at least the `n_neighbours` nearest, or all there are; equally
        many cells on both sides.
    n_neighbours
        Neighbours of both sides together that count.

    Notes
    -----
    The paper weights neighbours by a Gaussian of their distance; its released code, and
    what follows it, by an exponential of the distance itself, and so does this. scib
    reports the median cell; the mean, which is reported here, also moves when a small
    part of the cells is not mixed.

    References
    ----------
    Korsunsky et al. (2019), Fast, sensitive and accurate integration of single-cell
    data with Harmony, and the packages lisi and harmonypy.
    https://doi.org/10.1038/s41592-019-0619-0
    Luecken et al. (2022), Benchmarking atlas-level data integration in single-cell
    genomics (scib). https://doi.org/10.1038/s41592-021-01336-8
    """
    n_cells = len(cells.own.rows)
    found = np.hstack([side.distances for side in cells]).astype(np.float64)
    rows = np.hstack([cells.own.rows, n_cells + cells.across.rows])
    order = np.argsort(found, axis=1, kind="stable")[:, :n_neighbours]
    rows = np.take_along_axis(rows, order, axis=1)
    is_own = rows < n_cells
    weights = neighbour_weights(
        np.take_along_axis(found, order, axis=1),
        PERPLEXITY * (n_neighbours + 1) / (MOST_MIXED + 1),
    )
    share = (weights * is_own).sum(axis=1)
    n_sides = 1 / (share**2 + (1 - share) ** 2)
    slope = (2 - 4 * share) * n_sides**2
    pulls = slope[:, None] * weights * (is_own - share[:, None])
    pull = np.zeros(2 * n_cells)
    np.add.at(pull, rows.ravel(), pulls.ravel())
    return Mixing(n_sides, pull[:n_cells], pull[n_cells:])


def neighbour_weights(near: Floats, perplexity: float) -> Floats:
    """Return weights ``exp(-rate * distance)`` that sum to 1 and have one perplexity.

    The rate of each cell is found by bisection; where neighbours are all equally far,
    their weights are equal whatever the rate.

    Parameters
    ----------
    near
        Ascending distances ``(n_cells, n_neighbours)``.
    perplexity
        Exponential of the weights' entropy, below the number of neighbours.
    """
    beyond = near - near[:, :1]
    scale = beyond.mean(axis=1, keepdims=True)
    beyond /= np.where(scale > 0, scale, 1.0)
    lowest, highest = np.zeros_like(scale), np.full_like(scale, np.inf)
    rate = np.ones_like(scale)
    for _ in range(N_BISECTIONS):
        weights = np.exp(-rate * beyond)
        total = weights.sum(axis=1, keepdims=True)
        weights /= total
        entropy = np.log(total) + rate * (weights * beyond).sum(axis=1, keepdims=True)
        is_flat = entropy > np.log(perplexity)
        lowest, highest = (
            np.where(is_flat, rate, lowest),
            np.where(is_flat, highest, rate),
        )
        rate = np.where(np.isinf(highest), 2 * rate, (lowest + highest) / 2)
    return weights
