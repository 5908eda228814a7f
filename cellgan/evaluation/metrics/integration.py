"""How well batches mix in an embedding, and whether cell types stay apart.

Both are asked of the same points: an embedding that mixes everything is no correction.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

from cellgan.evaluation.metrics.mixing import neighbour_weights
from cellgan.seeds import derive_seed

PERPLEXITY = 30.0
N_NEIGHBOURS = 89
"""With the cell itself, three times the perplexity."""
MOST_COMPARED = 5000
"""Cells that are scored, at most: a silhouette needs the distances of all of them."""


class Integration(NamedTuple):
    """Scores of one embedding, each from 0 to 1, 1 the best."""

    batch_mixing: float
    """iLISI, scaled: 0 when neighbours are of one batch, 1 when of all alike."""
    label_separation: float
    """cLISI, scaled: 1 when neighbours are of one label."""
    label_silhouette: float
    """Mean silhouette of labels, from -1..1 to 0..1."""


def compared_cells(n_cells: int, seed: int) -> npt.NDArray[np.intp]:
    """Return the rows of the cells to score, drawn if there are too many."""
    rng = np.random.default_rng(derive_seed(seed, "integration"))
    return np.sort(rng.permutation(n_cells)[:MOST_COMPARED])


def integration(
    points: npt.NDArray[np.floating],
    batches: npt.NDArray[np.str_],
    labels: npt.NDArray[np.str_],
) -> Integration:
    """Score an embedding of not too many cells (`compared_cells`).

    Parameters
    ----------
    points
        ``(n_cells, n_dimensions)``.
    batches, labels
        Of every cell, ``(n_cells,)``.

    Returns
    -------
    Scores; nan with a single batch, or a single label.

    References
    ----------
    Korsunsky et al. (2019), Fast, sensitive and accurate integration of single-cell
    data with Harmony. https://doi.org/10.1038/s41592-019-0619-0
    Luecken et al. (2022), Benchmarking atlas-level data integration in single-cell
    genomics, whose scaling this is. https://doi.org/10.1038/s41592-021-01336-8
    """
    mixing, apart = lisi(points, batches), lisi(points, labels)
    n_batches, n_labels = len(np.unique(batches)), len(np.unique(labels))
    return Integration(
        (mixing - 1) / (n_batches - 1) if n_batches > 1 else float("nan"),
        (n_labels - apart) / (n_labels - 1) if n_labels > 1 else float("nan"),
        _silhouette(points, labels),
    )


def lisi(points: npt.NDArray[np.floating], groups: npt.NDArray[np.str_]) -> float:
    """Return the median local inverse Simpson's index of groups among neighbours.

    It is 1 where all neighbours are of one group, and the number of groups where all
    are there alike. Neighbours count the less the further away they are.
    """
    n_neighbours = min(N_NEIGHBOURS, len(points) - 1)
    finder = NearestNeighbors(n_neighbors=n_neighbours, n_jobs=-1).fit(points)
    distances, neighbours = finder.kneighbors()
    perplexity = PERPLEXITY * (n_neighbours + 1) / (N_NEIGHBOURS + 1)  # of few cells
    weights = neighbour_weights(distances.astype(np.float64), perplexity)
    names, codes = np.unique(groups, return_inverse=True)
    of_neighbours = codes[neighbours]
    simpson = np.zeros(len(points))
    for code in range(len(names)):
        simpson += (weights * (of_neighbours == code)).sum(axis=1) ** 2
    return float(np.median(1 / simpson))


def _silhouette(
    points: npt.NDArray[np.floating], labels: npt.NDArray[np.str_]
) -> float:
    if not 1 < len(np.unique(labels)) < len(points):
        return float("nan")
    return float((silhouette_score(points, labels) + 1) / 2)
