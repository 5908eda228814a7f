"""What holds cells together: correlations of genes, differences between labels.

Convention: genes are the variable genes of the frame, in log expression; training cells
alone chose them, and which of them tell a label from the rest.
"""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from cellgan.evaluation.comparison.pairs import Estimates, Pair, Side
from cellgan.evaluation.comparison.space import Floats, Labels
from cellgan.evaluation.metrics.catalogue import Metric
from cellgan.evaluation.metrics.effects import (
    FALSE_DISCOVERIES,
    PSEUDO_VALUE,
    label_effects,
    significant_genes,
)
from cellgan.evaluation.metrics.genes import pearson, spearman

N_CORRELATED = 200
"""Correlations are those of the most variable genes."""
LEAST_VARIANCE = 1e-4
"""Share of a gene's rank variance below which it is constant (within labels, say) and
uncorrelated with all others; well above the rounding of float32."""
MIN_LABEL_CELLS = 10
"""Held-out and training cells must have this many of a label, and of all others."""
N_MARKERS = (50, 100, 200)
LARGEST_MARKER_SHARE = 0.2
"""Of the variable genes: of 60 genes, 12 are markers and not 50."""
MIN_SIGNIFICANT = 5
"""A label with fewer significant genes has no slope."""

Triangle = npt.NDArray[np.float32]
"""Correlations above the diagonal, ``(n_genes * (n_genes - 1) / 2,)``."""

_TOP = f"the {N_CORRELATED} most variable genes"
_RANKS = "ranks of log expression"
_LABELS = (
    f"mean over labels that held-out and training cells have {MIN_LABEL_CELLS} of; 0 "
    "for a label the other side lacks"
)
_SIGNIFICANT = (
    "over the genes that differ between the label and the rest in training cells "
    f"(Welch's t, false discovery rate {FALSE_DISCOVERIES:.0%})"
)
_CHANGES = (
    "log fold changes of a label against the rest (log2 ratio of mean expression per "
    f"10,000, {PSEUDO_VALUE:g} added to both)"
)


def _marker_overlap(n_markers: int) -> Metric:
    return Metric(
        name=f"marker_overlap_{n_markers}",
        title=f"overlap of {n_markers} markers (1 is best)",
        meaning=(
            f"Jaccard index of the {n_markers} variable genes (at most "
            f"{LARGEST_MARKER_SHARE:.0%} of them) with the largest positive Welch's t "
            f"of a label against the rest on either side, {_LABELS}"
        ),
        space="variable genes",
        floor="permuted",
        sees=frozenset({"missing_label"}),
        needs_labels=True,
        per_label=False,
    )


METRICS: tuple[Metric, ...] = (
    Metric(
        name="gene_correlation_agreement",
        title="agreement of gene correlations (1 is best)",
        meaning=(
            "Pearson's correlation over pairs of genes of the two sides' Spearman "
            f"correlations of {_TOP}"
        ),
        space="variable genes",
        floor="permuted",
        sees=frozenset({"missing_label"}),
    ),
    Metric(
        name="gene_correlation_frobenius",
        title="distance of gene correlations (0 is best)",
        meaning=(
            "Frobenius norm of the difference of the two sides' Spearman correlations "
            f"of {_TOP} over that of the real ones, without the diagonal: about 1 for "
            "independent genes"
        ),
        space="variable genes",
        floor="permuted",
        sees=frozenset(
            {
                "missing_label",
                "library_size",
                "dependence",
                "weak_effects",
                "noise_cells",
            }
        ),
    ),
    Metric(
        name="gene_correlation_within_labels",
        title="agreement of gene correlations within labels (1 is best)",
        meaning=(
            "Pearson's correlation over pairs of genes of the two sides' correlations "
            f"of {_RANKS} of {_TOP}, less the mean of each cell's label"
        ),
        space="variable genes",
        floor="independent",
        sees=frozenset({"dependence", "noise_cells"}),
        needs_labels=True,
        per_label=False,
    ),
    *(_marker_overlap(n_markers) for n_markers in N_MARKERS),
    Metric(
        name="log_fold_change_slope",
        title="slope of log fold changes (1 is best)",
        meaning=(
            f"slope through the origin of the other side's {_CHANGES} on the real "
            f"ones, {_SIGNIFICANT}; {_LABELS}; noise of the real ones lowers it, in "
            "the ceiling too"
        ),
        space="variable genes",
        floor="permuted",
        sees=frozenset({"missing_label", "weak_effects", "noise_cells"}),
        needs_labels=True,
        per_label=False,
    ),
    Metric(
        name="log_fold_change_spearman",
        title="Spearman of log fold changes (1 is best)",
        meaning=(
            f"Spearman's correlation of the two sides' {_CHANGES}, {_SIGNIFICANT}; "
            f"{_LABELS}"
        ),
        space="variable genes",
        floor="permuted",
        sees=frozenset({"missing_label"}),
        needs_labels=True,
        per_label=False,
    ),
    Metric(
        name="joint_clustering_ari",
        title="adjusted Rand index of joint clusters and labels (1 is best)",
        meaning=(
            "adjusted Rand index of labels and clusters of both sides' cells together "
            "(k-means that starts from the means of the real labels)"
        ),
        space="components",
        floor="permuted",
        sees=frozenset({"noise_cells"}),
        needs_labels=True,
        per_label=False,
    ),
)


def structure_metrics(pair: Pair) -> Estimates:
    """Compare gene correlations, label effects and clusters of both sides."""
    estimates = {metric.name: np.full(len(pair.draws), np.nan) for metric in METRICS}
    if min(len(pair.real), len(pair.other)) < 2:
        return estimates
    estimates |= _agreement_of_correlations(pair)
    if len(np.unique(pair.real.labels)) < 2:
        estimates["gene_correlation_within_labels"][:] = np.nan
        return estimates
    estimates["joint_clustering_ari"] = joint_clustering(pair)
    labels = compared_labels(pair)
    if len(labels) > 0:
        estimates |= _agreement_of_effects(pair, labels)
    return estimates


# --- correlations


@dataclasses.dataclass(frozen=True)
class RankedGenes:
    """Cells as ranks, which correlations of any draw are computed from.

    A draw weights the cells and not their ranks, which stay those of the cells as
    they are.
    """

    ranks: npt.NDArray[np.float32]
    """``(n_cells, n_genes)``, of mean 0 and variance 1; 0 for a constant gene."""
    members: npt.NDArray[np.float32]
    """One column of 0 and 1 per label, ``(n_cells, n_labels)``."""

    @classmethod
    def of_side(cls, side: Side) -> RankedGenes:
        """Rank the most variable genes; equal values share their mean rank."""
        ranks = rankdata(side.genes[:, :N_CORRELATED], axis=0)
        ranks -= ranks.mean(axis=0)
        deviation = ranks.std(axis=0)
        ranks /= np.where(deviation > 0, deviation, 1.0)
        members = side.labels[:, None] == np.unique(side.labels)
        return cls(ranks.astype(np.float32), members.astype(np.float32))

    def correlations(self, multiplicity: Floats) -> tuple[Triangle, Triangle]:
        """Return the correlations of a draw, and those within labels.

        Parameters
        ----------
        multiplicity
            Of every cell, ``(n_cells,)``.
        """
        weights = multiplicity.astype(np.float32)[:, None]
        # One array times its own transpose costs half of a general product.
        weighted = self.ranks * np.sqrt(weights)
        products = weighted.T @ weighted
        sums = (self.members * weights).T @ self.ranks
        sizes = np.maximum(weights.T @ self.members, 1).T
        total = sums.sum(axis=0)
        pooled = products - np.outer(total, total) / weights.sum()
        within = products - sums.T @ (sums / sizes)
        least = LEAST_VARIANCE * float(weights.sum())
        return _correlations(pooled, least), _correlations(within, least)


def _correlations(covariances: npt.NDArray[np.float32], least: float) -> Triangle:
    variances = np.diag(covariances)
    scale = np.where(variances > least, 1 / np.sqrt(np.maximum(variances, least)), 0)
    correlations = covariances * np.outer(scale, scale)
    upper: Triangle = correlations[np.triu_indices(len(correlations), k=1)]
    return upper


def _agreement_of_correlations(pair: Pair) -> dict[str, Floats]:
    real, other = (RankedGenes.of_side(side) for side in (pair.real, pair.other))
    compared = [
        _compare_correlations(real.correlations(first), other.correlations(second))
        for first, second in zip(pair.draws.real, pair.draws.other, strict=True)
    ]
    pooled, frobenius, within = np.transpose(compared)
    return {
        "gene_correlation_agreement": pooled,
        "gene_correlation_frobenius": frobenius,
        "gene_correlation_within_labels": within,
    }


def _compare_correlations(
    real: tuple[Triangle, Triangle], other: tuple[Triangle, Triangle]
) -> tuple[float, float, float]:
    """Return agreement, relative distance, and agreement within labels."""
    pooled, within = (
        float(pearson(first[None], second[None])[0])
        for first, second in zip(real, other, strict=True)
    )
    length = np.linalg.norm(real[0])
    distance = np.linalg.norm(other[0] - real[0])
    return pooled, float(distance / length) if length > 0 else np.nan, within


# --- labels against the rest


def compared_labels(pair: Pair) -> list[str]:
    """Return the labels with enough real cells, of it and of the rest."""

    def has_enough(labels: Labels, label: str) -> bool:
        n_cells = int(np.count_nonzero(labels == label))
        return min(n_cells, len(labels) - n_cells) >= MIN_LABEL_CELLS

    return [
        str(label)
        for label in np.unique(pair.real.labels)
        if has_enough(pair.real.labels, label)
        and has_enough(pair.frame.training.labels, label)
    ]


def _agreement_of_effects(pair: Pair, labels: list[str]) -> dict[str, Floats]:
    real = label_effects(pair.real, labels, pair.draws.real)
    other = label_effects(pair.other, labels, pair.draws.other)
    significant = significant_genes(pair.frame.training, labels)
    slope, rank_correlation = _agreement_of_fold_changes(
        real.log_fold_changes, other.log_fold_changes, significant
    )
    return {
        **_overlap_of_markers(real.t, other.t),
        "log_fold_change_slope": slope,
        "log_fold_change_spearman": rank_correlation,
    }


def _overlap_of_markers(real: Floats, other: Floats) -> dict[str, Floats]:
    orders = [np.argsort(-t, axis=2, kind="stable") for t in (real, other)]
    largest = max(1, int(LARGEST_MARKER_SHARE * real.shape[2]))
    estimates = {}
    for n_markers in N_MARKERS:
        first, second = (
            _top_markers(t, order[:, :, : min(n_markers, largest)])
            for t, order in zip((real, other), orders, strict=True)
        )
        shared = np.count_nonzero(first & second, axis=2)
        either = np.count_nonzero(first | second, axis=2)
        overlap = shared / np.maximum(either, 1)
        estimates[f"marker_overlap_{n_markers}"] = overlap.mean(axis=0)
    return estimates


def _top_markers(t: Floats, order: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    is_marker = np.zeros(t.shape, dtype=bool)
    np.put_along_axis(is_marker, order, values=True, axis=2)
    return is_marker & (t > 0)


def _agreement_of_fold_changes(
    real: Floats, other: Floats, significant: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return slope and Spearman's correlation, means over labels."""
    slopes, correlations = [], []
    for first, second, genes in zip(real, other, significant, strict=True):
        if np.count_nonzero(genes) < MIN_SIGNIFICANT:
            continue
        # Of a label without cells, no effect was reproduced.
        lacks_label = np.isnan(second).any(axis=1)
        x, y = first[:, genes], np.nan_to_num(second[:, genes])
        length = (x**2).sum(axis=1)
        slopes.append((x * y).sum(axis=1) / np.where(length > 0, length, np.nan))
        correlations.append(np.where(lacks_label, 0.0, spearman(x, y)))
    if not slopes:
        return np.full(real.shape[1], np.nan), np.full(real.shape[1], np.nan)
    return np.mean(slopes, axis=0), np.mean(correlations, axis=0)


# --- clusters


def joint_clustering(pair: Pair) -> Floats:
    """Cluster both sides' cells together and compare clusters with labels.

    A label that looks the same on both sides is one cluster on both. k-means starts
    from the means of the real labels, so that clusters of different models do not
    differ by where it started.
    """
    names = np.unique(pair.real.labels)
    starts = [pair.real.components[pair.real.labels == x].mean(axis=0) for x in names]
    cells = np.concatenate([pair.real.components, pair.other.components])
    kmeans = KMeans(len(names), init=np.stack(starts), n_init=1)
    with warnings.catch_warnings():
        # Fewer distinct cells than labels: clusters stay empty, which is meant.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = kmeans.fit_predict(cells)
    labels = np.concatenate([pair.real.labels, pair.other.labels])
    draws = np.concatenate([pair.draws.real, pair.draws.other], axis=1)
    return adjusted_rand_indices(labels, clusters, draws)


def adjusted_rand_indices(
    labels: npt.NDArray[np.generic],
    clusters: npt.NDArray[np.generic],
    multiplicity: Floats,
) -> Floats:
    """Return the adjusted Rand index of two partitions in every draw.

    Parameters
    ----------
    labels, clusters
        Of every cell, ``(n_cells,)``.
    multiplicity
        ``(n_draws, n_cells)``.

    Returns
    -------
    1 for the same partition, 0 on average for unrelated ones; nan where either is a
    single part or all single cells.

    References
    ----------
    Hubert and Arabie (1985), Comparing Partitions, equation 5.
    https://doi.org/10.1007/BF01908075
    """
    _, label = np.unique(labels, return_inverse=True)
    _, cluster = np.unique(clusters, return_inverse=True)
    shape = (label.max() + 1, cluster.max() + 1)
    cell = np.ravel_multi_index((label, cluster), shape)
    tables = np.array(
        [np.bincount(cell, row, minlength=math.prod(shape)) for row in multiplicity],
        dtype=np.float64,
    ).reshape(-1, *shape)
    together = _n_pairs(tables).sum(axis=(1, 2))
    in_label = _n_pairs(tables.sum(axis=2)).sum(axis=1)
    in_cluster = _n_pairs(tables.sum(axis=1)).sum(axis=1)
    expected = in_label * in_cluster / _n_pairs(multiplicity.sum(axis=1))
    most = (in_label + in_cluster) / 2
    above, range_ = together - expected, most - expected
    out = np.full(len(multiplicity), np.nan)
    return np.divide(above, range_, out=out, where=range_ > 0)


def _n_pairs(n_cells: Floats) -> Floats:
    pairs: Floats = n_cells * (n_cells - 1) / 2
    return pairs
