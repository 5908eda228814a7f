"""How two modalities of the same cells go together: RNA and ATAC.

Both pairs hold the same cells in the same order, so row ``i`` of one is the other half
of row ``i`` of the other. What links them is learned from real training cells.
"""

from __future__ import annotations

import numpy as np
from sklearn.cross_decomposition import PLSCanonical

from cellgan.evaluation.catalogue import Metric
from cellgan.evaluation.genes import pearson
from cellgan.evaluation.pairs import Estimates, Pair, Side, weighted_means
from cellgan.evaluation.space import Floats

N_FEATURES = 100
"""Most variable genes and peaks that are correlated with each other."""
N_SHARED = 10
"""Dimensions of the space that both modalities are brought into, at most."""
FEWEST_CELLS = 20
ROWS_AT_ONCE = 1000

METRICS = (
    Metric(
        name="cross_modal_correlation",
        title="correlations of genes with peaks (1 is best)",
        meaning="Pearson between generated and real cells' correlations of the "
        f"{N_FEATURES} most variable genes with the {N_FEATURES} most variable peaks "
        "(log values)",
        space="variable genes and peaks",
        floor="permuted",
        sees=frozenset({"dependence"}),
        per_label=False,
    ),
    Metric(
        name="cross_modal_matching",
        title="cells closer than the true match (0.5 is chance)",
        meaning="share of cells whose ATAC is closer to a cell's RNA than its own, "
        "mean over cells and both directions (FOSCTTM), in the space that partial "
        f"least squares of real training cells shares (at most {N_SHARED} dimensions, "
        "weighted by their correlation)",
        space="shared space of both modalities",
        floor="permuted",
        sees=frozenset({"dependence"}),
        per_label=False,
    ),
)


def cross_modal_metrics(first: Pair, second: Pair) -> Estimates:
    """Return how the two modalities of generated cells go together.

    Parameters
    ----------
    first, second
        Pairs of the same cells in the same order, with the same draws; the training
        cells of both frames are the same cells too.

    References
    ----------
    Liu et al. (2019), Jointly Embedding Multiple Single-Cell Omics Measurements,
    section 3.2 (fraction of samples closer than the true match).
    """
    return {
        "cross_modal_correlation": correlation_agreement(first, second),
        "cross_modal_matching": matching(first, second),
    }


def correlation_agreement(first: Pair, second: Pair) -> Floats:
    """Return the agreement of gene-peak correlations, one number per draw."""
    real, other = (
        cross_correlations(one, two, draws)
        for one, two, draws in (
            (first.real, second.real, first.draws.real),
            (first.other, second.other, first.draws.other),
        )
    )
    n_draws = len(first.draws)
    return pearson(real.reshape(n_draws, -1), other.reshape(n_draws, -1))


def cross_correlations(first: Side, second: Side, multiplicity: Floats) -> Floats:
    """Return correlations of genes with peaks ``(n_draws, n_genes, n_peaks)``.

    A feature without variance has correlation 0 with every other.
    """
    x, y = (
        np.asarray(side.genes[:, :N_FEATURES], np.float64) for side in (first, second)
    )
    found = np.empty((len(multiplicity), x.shape[1], y.shape[1]))
    for draw, weights in enumerate(multiplicity):
        shares = weights / weights.sum()
        centred = [values - shares @ values for values in (x, y)]
        spreads = [np.sqrt(shares @ values**2) for values in centred]
        scaled = [
            values / np.where(spread > 0, spread, np.inf)
            for values, spread in zip(centred, spreads, strict=True)
        ]
        found[draw] = (scaled[0] * shares[:, None]).T @ scaled[1]
    return found


def matching(first: Pair, second: Pair) -> Floats:
    """Return the share of cells closer than the true match, one number per draw."""
    training = first.frame.training.components, second.frame.training.components
    n_shared = min(N_SHARED, *(values.shape[1] for values in training))
    undefined = np.full(len(first.draws), np.nan)
    if min(len(first.other), len(training[0])) < FEWEST_CELLS:
        return undefined
    shared = PLSCanonical(n_shared).fit(*training)
    learned = np.array(shared.transform(*training))
    spreads = learned.std(axis=1, keepdims=True)
    # a dimension counts as much as the two modalities agree on it
    weights = np.maximum((learned[0] * learned[1]).mean(axis=0) / spreads.prod(0), 0)
    x, y = (
        values * weights / np.where(spread > 0, spread, np.inf)
        for values, spread in zip(
            shared.transform(first.other.components, second.other.components),
            spreads,
            strict=True,
        )
    )
    return weighted_means(first.draws.other, closer_than_match(x, y))


def closer_than_match(first: Floats, second: Floats) -> Floats:
    """Return for every cell the share of others closer than its match ``(n_cells,)``.

    The mean of both directions. Ties count one half, so that a constant modality is at
    chance.
    """
    return (_closer(first, second) + _closer(second, first)) / 2


def _closer(cells: Floats, others: Floats) -> Floats:
    shares = np.empty(len(cells))
    lengths = (others**2).sum(axis=1)
    for start in range(0, len(cells), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(cells)))
        # squared distances but for a term that is the same along a row
        distances = lengths - 2 * cells[rows] @ others.T
        match = distances[np.arange(len(rows)), rows][:, None]
        closer = (distances < match).sum(axis=1)
        ties = (distances == match).sum(axis=1) - 1
        shares[rows] = (closer + ties / 2) / (len(others) - 1)
    return shares
