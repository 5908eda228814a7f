"""What it costs to move one side's cells onto the other's."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from cellgan.evaluation.comparison.pairs import (
    Pair,
    Resamples,
    weighted_means,
)
from cellgan.evaluation.comparison.space import Floats, Rows
from cellgan.seeds import derive_seed

N_DIRECTIONS = 100


MOST_EDGES = 100
"""Enough for 2,000 cells in 50 dimensions. On a plane or a line paths are longer, but
then what is left changes potentials by less than 1e-4 of the mean cost."""


def transport_costs(costs: Floats, draws: Resamples) -> Floats:
    """Return the mean cost of the cheapest assignment, one number per draw.

    Parameters
    ----------
    costs
        Of assigning each real cell to each of the others, ``(n_cells, n_cells)``.

    Notes
    -----
    Resamples keep the potentials of the cells as they are: the cost is, to first order,
    the sum of the potentials of the cells that are drawn.

    References
    ----------
    del Barrio and Loubes (2019), Central limit theorems for empirical transportation
    cost in general dimension. https://arxiv.org/abs/1705.01299
    """
    rows, partners = linear_sum_assignment(costs)
    if len(draws) == 1:
        return np.array([costs[rows, partners].mean()])
    real, other = potentials(costs, partners)
    return weighted_means(draws.real, real) + weighted_means(draws.other, other)


def potentials(costs: Floats, partners: Rows) -> tuple[Floats, Floats]:
    """Return the potentials of an optimal assignment.

    Their sum is at most the cost for every pair of cells, and is the cost for cells
    assigned to each other. Of all such potentials, the mean of the highest and the
    lowest is returned.

    Parameters
    ----------
    costs
        ``(n_cells, n_cells)``.
    partners
        Column assigned to each row, ``(n_cells,)``.

    Returns
    -------
    Potentials of rows and of columns, ``(n_cells,)`` each.
    """
    by_partner = costs.take(partners, axis=1)
    assigned = np.diagonal(by_partner)
    extra = by_partner - assigned[:, None]
    of_partners = (shortest_paths(extra) - shortest_paths(extra.T)) / 2
    of_columns = np.empty_like(of_partners)
    of_columns[partners] = of_partners
    return assigned - of_partners, of_columns


def shortest_paths(lengths: Floats) -> Floats:
    """Return the length of the shortest path that ends at each node (Bellman-Ford).

    Parameters
    ----------
    lengths
        Of the edge from each row's node to each column's, ``(n_nodes, n_nodes)``; may
        be negative, but the sum along a cycle is not.

    Returns
    -------
    ``(n_nodes,)``, at most 0: the path of one node alone has length 0. Paths of more
    than `MOST_EDGES` edges are not looked for.
    """
    # Rounding makes some cycles of length 0 slightly negative.
    rounding = 1e-12 * float(np.abs(lengths).max())
    lengths = np.ascontiguousarray(lengths)
    shortest = np.zeros(len(lengths))
    changed = np.arange(len(lengths))
    for _ in range(MOST_EDGES):
        through = (shortest[changed, None] + lengths[changed]).min(axis=0)
        changed = np.flatnonzero(through < shortest - rounding)
        if not len(changed):
            break
        shortest[changed] = through[changed]
    return shortest


def sliced_distances(pair: Pair) -> Floats:
    """Return the 1-Wasserstein distance on lines, one number per draw.

    The mean over random directions; all cells take part, however many there are on
    either side. As in `transport_costs`, resamples keep the potentials.

    References
    ----------
    Bonneel et al. (2015), Sliced and Radon Wasserstein Barycenters of Measures.
    """
    rng = np.random.default_rng(derive_seed(pair.frame.seed, "directions"))
    n_real, n_other = len(pair.real), len(pair.other)
    cells = np.vstack([pair.real.components, pair.other.components])
    directions = rng.normal(size=(cells.shape[1], N_DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    shares = np.repeat([1 / n_real, -1 / n_other], [n_real, n_other])
    mean = np.zeros(len(cells))
    for positions in (cells @ directions).T:
        mean += potentials_on_line(positions, shares) / N_DIRECTIONS
    real = weighted_means(pair.draws.real, mean[:n_real])
    return real - weighted_means(pair.draws.other, mean[n_real:])


def potentials_on_line(positions: Floats, shares: Floats) -> Floats:
    """Return each cell's potential for the 1-Wasserstein distance on a line.

    The distance is the integral of the absolute difference of two distribution
    functions; the potential of a cell is the integral of the difference's sign from
    the cell upwards.

    Parameters
    ----------
    positions
        Of the cells of both sides, ``(n_cells,)``.
    shares
        Of each cell in its side, positive on one side and negative on the other,
        ``(n_cells,)``; ``shares @ potentials`` is the distance.
    """
    order = np.argsort(positions, kind="stable")
    difference = np.cumsum(shares[order])[:-1]
    # Shares that cancel leave rounding errors, whose sign means nothing.
    steps = np.sign(difference.round(12)) * np.diff(positions[order])
    found = np.zeros(len(positions))
    found[order[:-1]] = np.cumsum(steps[::-1])[::-1]
    return found
