from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score

from cellgan.evaluation.comparison.pairs import Pair, Resamples, make_pair
from cellgan.evaluation.metrics.structure import (
    METRICS,
    RankedGenes,
    adjusted_rand_indices,
    structure_metrics,
)
from tests.evaluation.sides import TYPES, draw_side, make_frame

NAMES = {metric.name for metric in METRICS}
CORRELATIONS = {"gene_correlation_agreement", "gene_correlation_frobenius"}
MARKERS = {name for name in NAMES if name.startswith("marker_overlap")}
FOLD_CHANGES = {name for name in NAMES if name.startswith("log_fold_change")}


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.fixture(scope="module")
def pair(frame):
    return make_pair(draw_side(frame, 1), draw_side(frame, 2), frame, 2)


def with_genes(side, genes, labels=None):
    """Return a side of which variable genes and labels are looked at, no more."""
    labels = np.full(len(genes), "a") if labels is None else np.asarray(labels)
    return dataclasses.replace(
        side.take(np.zeros(len(genes), dtype=int)),
        genes=np.asarray(genes, np.float32),
        labels=labels,
    )


def values_of(pair):
    return {name: draws[0] for name, draws in structure_metrics(pair).items()}


def permuted_within_labels(side, seed):
    rng = np.random.default_rng(seed)
    genes = side.genes.copy()
    for label in np.unique(side.labels):
        rows = side.labels == label
        genes[rows] = rng.permuted(genes[rows], axis=0)
    return dataclasses.replace(side, genes=genes)


# --- correlations


def test_correlation_of_a_gaussian_copula_is_the_known_one(pair):
    correlation, n_cells = 0.6, 20_000
    normal = np.random.default_rng(0).multivariate_normal(
        np.zeros(2), [[1, correlation], [correlation, 1]], size=n_cells
    )
    side = with_genes(pair.real, np.column_stack([np.exp(normal[:, 0]), normal[:, 1]]))

    computed, _ = RankedGenes.of_side(side).correlations(np.ones(n_cells))

    # Pearson (1907): Spearman's correlation is 6 / pi asin(r / 2).
    expected = 6 / np.pi * np.arcsin(correlation / 2)
    assert abs(computed[0] - expected) < 5 / np.sqrt(n_cells)


def test_correlations_are_scipys_where_values_are_tied(pair):
    counts = np.random.default_rng(0).poisson(1.0, size=(80, 4))
    counts[:, 3] += counts[:, 0]

    pooled, _ = RankedGenes.of_side(with_genes(pair.real, counts)).correlations(
        np.ones(80)
    )

    expected = stats.spearmanr(counts).statistic[np.triu_indices(4, k=1)]
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_correlations_within_labels_are_those_of_residuals_of_ranks(pair):
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], [30, 50])
    genes = rng.normal(size=(80, 3)) + 4 * (labels == "a")[:, None]

    _, within = RankedGenes.of_side(with_genes(pair.real, genes, labels)).correlations(
        np.ones(80)
    )

    ranks = stats.rankdata(genes, axis=0)
    for label in ("a", "b"):
        ranks[labels == label] -= ranks[labels == label].mean(axis=0)
    expected = np.corrcoef(ranks.T)[np.triu_indices(3, k=1)]
    np.testing.assert_allclose(within, expected, atol=1e-6)


def test_correlations_of_a_draw_are_those_of_repeated_ranks(pair):
    ranked = RankedGenes.of_side(pair.real)
    multiplicity = pair.draws.real[1]
    cells = np.repeat(np.arange(len(multiplicity)), multiplicity.astype(int))
    repeated = RankedGenes(ranked.ranks[cells], ranked.members[cells])

    for computed, expected in zip(
        ranked.correlations(multiplicity),
        repeated.correlations(np.ones(len(cells))),
        strict=True,
    ):
        np.testing.assert_allclose(computed, expected, atol=1e-5)


def test_a_gene_constant_within_labels_correlates_with_none_there(pair):
    labels = np.repeat(["a", "b"], 50)
    genes = np.random.default_rng(0).normal(size=(100, 2))
    genes[:, 0] = labels == "a"
    genes[:, 1] += 9 * (labels == "a")

    pooled, within = RankedGenes.of_side(
        with_genes(pair.real, genes, labels)
    ).correlations(np.ones(100))

    assert pooled[0] > 0.8
    assert within[0] == 0


def test_independent_genes_are_as_far_from_dependent_ones_as_those_are_long(pair):
    alike = with_genes(pair.real, [[0, 0], [0, 0], [1, 1], [1, 1]])
    unrelated = with_genes(pair.real, [[0, 0], [0, 1], [1, 0], [1, 1]])

    values = values_of(make_pair(alike, unrelated, pair.frame, 0))

    assert values["gene_correlation_frobenius"] == pytest.approx(1.0)


def test_only_correlations_within_labels_miss_dependence_that_labels_hide(pair):
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 400)
    shared = rng.normal(size=(800, 4))
    genes = np.repeat(shared, 3, axis=1) + 0.5 * rng.normal(size=(800, 12))
    genes += 20 * (labels == "a")[:, None] * rng.choice([-1, 1], size=12)
    real = with_genes(pair.real, genes, labels)

    values = values_of(
        make_pair(real, permuted_within_labels(real, seed=1), pair.frame, 0)
    )

    assert values["gene_correlation_agreement"] > 0.95
    assert abs(values["gene_correlation_within_labels"]) < 0.5


def test_dependence_within_labels_is_found_between_two_samples(pair):
    lost = dataclasses.replace(pair, other=permuted_within_labels(pair.other, seed=0))

    assert values_of(pair)["gene_correlation_within_labels"] > 0.7
    assert abs(values_of(lost)["gene_correlation_within_labels"]) < 0.2


# --- labels against the rest


def constant_labels(frame, log_values):
    """Return training cells, and a side, where each label has 20 equal cells."""
    labels = np.repeat(np.arange(len(log_values)).astype(str), 20)
    side = with_genes(frame.training, np.repeat(log_values, 20, axis=0), labels)
    return dataclasses.replace(frame, training=side), side


def test_halved_fold_changes_have_a_slope_of_one_half(frame):
    log_values = np.random.default_rng(0).gamma(2.0, size=(2, 30))
    frame, real = constant_labels(frame, log_values)
    weak = (log_values + log_values.mean(axis=0)) / 2
    _, other = constant_labels(frame, weak)

    values = values_of(make_pair(real, other, frame, 0))

    assert values["log_fold_change_slope"] == pytest.approx(0.5, abs=1e-6)
    assert values["log_fold_change_spearman"] == pytest.approx(1.0)


def test_reversed_fold_changes_have_a_slope_of_minus_one(frame):
    log_values = np.random.default_rng(0).gamma(2.0, size=(2, 30))
    frame, real = constant_labels(frame, log_values)
    _, other = constant_labels(frame, log_values[::-1])

    values = values_of(make_pair(real, other, frame, 0))

    assert values["log_fold_change_slope"] == pytest.approx(-1.0)
    assert values["log_fold_change_spearman"] == pytest.approx(-1.0)
    assert values["marker_overlap_50"] == 0


def test_only_genes_significant_in_training_cells_have_a_slope(frame):
    log_values = np.random.default_rng(0).gamma(2.0, size=(2, 30))
    same = log_values.copy()
    same[:, 10:] = 1.0
    frame, _ = constant_labels(frame, same)
    _, real = constant_labels(frame, log_values)
    changed = log_values.copy()
    changed[:, 10:] = log_values[::-1, 10:]
    _, other = constant_labels(frame, changed)

    assert values_of(make_pair(real, other, frame, 0))[
        "log_fold_change_slope"
    ] == pytest.approx(1.0)


def test_marker_overlap_is_the_jaccard_index_of_the_lists(frame):
    # Of 50 genes, a fifth are markers of the first of two labels: 10 by size of effect.
    log_values = np.full((2, 50), 5.0)
    log_values[0, :20] += np.arange(20, 0, -1)
    log_values[1, 20:40] += np.arange(20, 0, -1)
    moved = log_values.copy()
    moved[0, 10:16] += 20
    frame, real = constant_labels(frame, log_values)
    _, other = constant_labels(frame, moved)

    values = values_of(make_pair(real, other, frame, 0))

    # The first label's lists share 4 of 16 genes, the second's are the same.
    assert {values[name] for name in MARKERS} == {(4 / 16 + 1) / 2}


def test_a_label_the_other_side_lacks_counts_zero(frame):
    log_values = np.zeros((3, 60))
    for label in range(3):
        log_values[label, 10 * label : 10 * (label + 1)] = 5.0
    frame, real = constant_labels(frame, log_values)
    without = real.take(np.flatnonzero(real.labels != "2"))

    values = values_of(make_pair(real, without, frame, 0))

    assert values["marker_overlap_50"] == pytest.approx(2 / 3)
    assert values["log_fold_change_spearman"] < 0.7
    assert values["log_fold_change_slope"] < 0.8


def test_rare_labels_are_not_compared(frame, pair):
    rare = np.flatnonzero(pair.real.labels == TYPES[0])[:9]
    real = pair.real.take(
        np.concatenate([rare, np.flatnonzero(pair.real.labels != TYPES[0])])
    )
    other = pair.other.take(np.flatnonzero(pair.other.labels != TYPES[0]))

    values = values_of(make_pair(real, other, frame, 0))

    assert values["log_fold_change_slope"] > 0.8


# --- clusters


def test_adjusted_rand_index_of_a_draw_is_scikit_learns_of_repeated_cells():
    rng = np.random.default_rng(0)
    labels, clusters = rng.choice(["a", "b", "c"], size=60), rng.integers(4, size=60)
    clusters[labels == "a"] = 7
    draws = rng.multinomial(60, np.full(60, 1 / 60), size=3).astype(float)

    computed = adjusted_rand_indices(labels, clusters, draws)

    expected = [
        adjusted_rand_score(np.repeat(labels, row), np.repeat(clusters, row))
        for row in draws.astype(int)
    ]
    np.testing.assert_allclose(computed, expected)


def test_adjusted_rand_index_of_a_single_part_is_undefined():
    assert np.isnan(adjusted_rand_indices(np.zeros(5), np.zeros(5), np.ones((1, 5))))


def test_labels_that_are_swapped_do_not_share_clusters(pair):
    swap = {TYPES[0]: TYPES[1], TYPES[1]: TYPES[0], TYPES[2]: TYPES[2]}
    swapped = dataclasses.replace(
        pair.other, labels=np.array([swap[label] for label in pair.other.labels])
    )

    right = values_of(pair)["joint_clustering_ari"]
    wrong = values_of(dataclasses.replace(pair, other=swapped))["joint_clustering_ari"]

    assert right > 0.95
    assert wrong < 0.8


# --- all of them


def test_two_copies_of_the_same_cells_agree_completely(frame, pair):
    values = values_of(make_pair(pair.real, pair.real, frame, 0))

    assert set(values) == NAMES
    best = dict.fromkeys(NAMES, 1.0) | {"gene_correlation_frobenius": 0.0}
    for name in NAMES - {"joint_clustering_ari"}:
        assert values[name] == pytest.approx(best[name]), name


def test_the_order_of_cells_is_of_no_account(pair):
    rng = np.random.default_rng(0)
    shuffled = Pair(
        pair.real.take(rng.permutation(len(pair.real))),
        pair.other.take(rng.permutation(len(pair.other))),
        pair.frame,
        Resamples(pair.draws.real[:1], pair.draws.other[:1]),
    )

    assert values_of(shuffled) == pytest.approx(values_of(pair), abs=1e-5)


def test_one_label_has_only_correlations(frame, pair):
    one = pair.of_label(TYPES[0], 2)

    estimates = structure_metrics(one)

    defined = {name for name in NAMES if np.isfinite(estimates[name]).all()}
    assert defined == CORRELATIONS
    assert defined == {metric.name for metric in METRICS if not metric.needs_labels}
    assert defined == {metric.name for metric in METRICS if metric.per_label}


@pytest.mark.parametrize("n_cells", [0, 1])
def test_fewer_than_two_cells_have_no_structure(pair, n_cells):
    few = make_pair(pair.real, pair.other.take(np.arange(n_cells)), pair.frame, 2)

    estimates = structure_metrics(few)

    assert all(np.isnan(estimates[name]).all() for name in NAMES)


def test_constant_cells_have_no_structure(frame, pair):
    flat = dataclasses.replace(
        pair.other,
        genes=np.zeros_like(pair.other.genes),
        components=np.zeros_like(pair.other.components),
    )

    values = values_of(make_pair(pair.real, flat, frame, 0))

    assert np.isnan(values["gene_correlation_agreement"])
    assert values["gene_correlation_frobenius"] == pytest.approx(1.0)
    assert values["log_fold_change_slope"] == 0
    assert all(values[name] == 0 for name in MARKERS)


def test_cells_that_are_all_the_same_are_compared_without_a_warning(frame, pair):
    flat = [
        dataclasses.replace(
            side,
            genes=np.zeros_like(side.genes),
            components=np.zeros_like(side.components),
        )
        for side in (pair.real, pair.other)
    ]

    values = values_of(make_pair(*flat, frame, 0))

    assert np.isnan(values["gene_correlation_frobenius"])
    assert all(np.isnan(values[name]) for name in FOLD_CHANGES)
    assert values["joint_clustering_ari"] == 0
