from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import pearsonr
from sklearn.metrics.pairwise import rbf_kernel

from cellgan.evaluation import metrics
from tests.evaluation.folders import permuted_genes
from tests.synthetic import make_cells


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(metrics, "N_TREES", 30)


def test_mmd_squared_equals_closed_form_on_two_points_a_side():
    real, generated = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    between = (math.exp(-2) + math.exp(-8) + math.exp(-0.5) + math.exp(-4.5)) / 4
    expected = math.exp(-0.5) + math.exp(-2) - 2 * between
    value = metrics.mmd_squared(real, generated, bandwidths=(1.0,))
    assert value == pytest.approx(expected, rel=1e-12)


def test_mmd_squared_equals_kernel_matrices_of_second_source():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(1150, 3))  # more than one block of rows
    generated = rng.normal(0.3, 1.2, size=(1040, 3))
    bandwidths = (0.5, 1.0, 4.0)
    expected = 0.0
    for bandwidth in bandwidths:
        gamma = 1 / (2 * bandwidth**2)
        for side in (real, generated):
            kernel = rbf_kernel(side, gamma=gamma)
            expected += kernel[~np.eye(len(side), dtype=bool)].mean() / 3
        expected -= 2 * rbf_kernel(real, generated, gamma=gamma).mean() / 3
    value = metrics.mmd_squared(real, generated, bandwidths=bandwidths)
    assert value == pytest.approx(expected, rel=1e-9)


def test_mmd_squared_is_zero_on_average_for_one_distribution():
    rng = np.random.default_rng(1)
    values = [
        metrics.mmd_squared(*rng.normal(size=(2, 8, 2)), bandwidths=(1.0,))
        for _ in range(400)
    ]
    standard_error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 5 * standard_error


def test_median_bandwidths_multiply_the_median_distance():
    cells = np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]])  # distances 1, 2, 3
    assert metrics.median_bandwidths(cells) == (0.5, 1.0, 2.0, 4.0, 8.0)


def test_classifier_auc_is_one_half_for_two_halves_of_real_cells():
    n = 600  # 0.08 is then 5 standard errors: sqrt((2 * n + 1) / (12 * n**2)) = 0.017
    values = metrics.log_expression(make_cells(2 * n).counts, 1000)
    auc = metrics.classifier_auc(values[:n], values[n:], seed=0)
    assert auc == pytest.approx(0.5, abs=0.08)


def test_classifier_auc_is_high_for_permuted_genes():
    counts = make_cells(600).counts
    permuted = permuted_genes(counts[300:])
    assert metrics.classifier_auc(counts[:300], permuted, seed=0) > 0.9


def test_classifier_auc_is_the_same_for_the_same_seed():
    counts = make_cells(120).counts
    first, second = (
        metrics.classifier_auc(counts[:60], counts[60:], seed=3) for _ in range(2)
    )
    assert first == second


def test_label_agreement_counts_confirmed_cells_by_label():
    training = np.repeat([[0.0], [10.0]], 5, axis=0)
    classifier = metrics.label_classifier(training, np.repeat(["a", "b"], 5), seed=0)
    cells = np.array([[0.0], [0.0], [10.0], [10.0]])
    agreement = metrics.label_agreement(
        classifier, cells, np.array(["a", "b", "b", "b"])
    )
    assert agreement.overall == 0.75
    assert agreement.per_label == {"a": 1.0, "b": pytest.approx(2 / 3)}


def test_mean_expression_correlation_is_pearson_of_gene_means():
    rng = np.random.default_rng(2)
    real, generated = rng.gamma(1, size=(30, 7)), rng.gamma(1, size=(20, 7))
    expected = pearsonr(real.mean(axis=0), generated.mean(axis=0)).statistic
    value = metrics.mean_expression_correlation(real, sp.csr_array(generated))
    assert value == pytest.approx(expected, rel=1e-9)


def test_detection_rate_correlation_ignores_how_much_is_expressed():
    real = np.array([[5.0, 1.0, 0.0], [0.0, 2.0, 0.0]])  # rates 1/2, 1, 0
    generated = np.array([[9.0, 0.1, 0.0], [0.0, 0.1, 0.0]])
    value = metrics.detection_rate_correlation(real, generated)
    assert value == pytest.approx(1.0)


def test_correlation_is_nan_when_one_side_is_constant():
    constant = np.ones((4, 3))
    varied = np.arange(12.0).reshape(4, 3)
    assert math.isnan(metrics.mean_expression_correlation(constant, varied))


def test_gene_correlations_equal_numpy_and_are_zero_for_a_constant_gene():
    values = np.random.default_rng(3).normal(size=(50, 4))
    values[:, 2] = 7.0
    correlations = metrics.gene_correlations(values)
    others = [0, 1, 3]
    expected = np.corrcoef(values[:, others], rowvar=False)
    np.testing.assert_allclose(
        correlations[np.ix_(others, others)], expected, atol=1e-6
    )
    np.testing.assert_array_equal(correlations[2], [0, 0, 1, 0])


def test_correlation_of_correlations_compares_pairs_of_different_genes():
    real = np.array([[1, 0.8, 0.1], [0.8, 1, -0.5], [0.1, -0.5, 1]])
    flipped = np.where(np.eye(3, dtype=bool), 1.0, -real)
    assert metrics.correlation_of_correlations(real, real) == pytest.approx(1)
    assert metrics.correlation_of_correlations(real, flipped) == pytest.approx(-1)


def test_zero_fraction_counts_stored_zeros():
    values = sp.csr_array(np.array([[1.0, 2.0], [3.0, 0.0]]))
    values.data[0] = 0
    assert metrics.zero_fraction(values) == 0.5


@pytest.mark.parametrize(
    "form", [np.asarray, sp.csr_matrix, sp.csr_array, sp.csc_array]
)
def test_log_expression_scales_cells_and_leaves_empty_ones(form):
    counts = form(np.array([[1, 3], [0, 0], [0, 5]], dtype=np.float32))
    values = metrics.log_expression(counts, 8)
    expected = np.log1p([[2.0, 6.0], [0.0, 0.0], [0.0, 8.0]])
    np.testing.assert_allclose(values.toarray(), expected, rtol=1e-6)
    assert counts.sum() == 9


def test_most_variable_genes_are_ordered_by_variance():
    scales = np.array([1.0, 5.0, 0.0, 3.0])
    values = np.random.default_rng(4).normal(size=(200, 4)) * scales
    np.testing.assert_array_equal(metrics.most_variable_genes(values, 3), [1, 3, 0])


def test_space_components_keep_distances_when_none_are_dropped():
    values = np.random.default_rng(5).normal(size=(40, 6)).astype(np.float32)
    space = metrics.fit_space(values[:30], seed=0)
    components = space.components(values)
    np.testing.assert_allclose(
        np.linalg.norm(components[:10] - components[30:], axis=1),
        np.linalg.norm(values[:10] - values[30:], axis=1),
        rtol=1e-4,
    )


def test_space_components_of_the_training_mean_are_zero():
    values = np.random.default_rng(6).normal(size=(40, 6)).astype(np.float32)
    space = metrics.fit_space(values, seed=0, n_components=2)
    at_mean = space.components(values.mean(axis=0, keepdims=True))
    np.testing.assert_allclose(at_mean, np.zeros((1, 2)), atol=1e-5)


def test_held_out_f1_is_one_for_separable_labels():
    cells = make_cells(200)
    values = metrics.log_expression(cells.counts, 1000)
    f1 = metrics.held_out_f1(
        values[:120],
        cells.labels[:120],
        values[120:],
        cells.labels[120:],
        label="type A",
        seed=0,
    )
    assert f1 == 1.0


def test_held_out_f1_is_zero_when_no_training_cell_has_the_label():
    cells = make_cells(200)
    values = metrics.log_expression(cells.counts, 1000)
    others = np.flatnonzero(cells.labels[:120] != "type A")
    f1 = metrics.held_out_f1(
        values[others],
        cells.labels[others],
        values[120:],
        cells.labels[120:],
        label="type A",
        seed=0,
    )
    assert f1 == 0.0


labels = hnp.arrays(
    np.dtype("<U1"), st.integers(1, 40), elements=st.sampled_from("abcd")
)


@settings(deadline=None)
@given(first=labels, second=labels, seed=st.integers(0, 99))
def test_drawn_cells_have_the_smaller_number_of_every_label(first, second, seed):
    rows = metrics.draw_per_label((first, second), max_cells=1000, seed=seed)
    smaller = [min((first == label).sum(), (second == label).sum()) for label in "abcd"]
    drawn = [
        [int((side[of_side] == label).sum()) for label in "abcd"]
        for side, of_side in zip((first, second), rows, strict=True)
    ]
    assert drawn == [smaller, smaller]
    assert all(len(set(of_side)) == len(of_side) for of_side in rows)


def test_drawn_cells_keep_proportions_but_no_label_is_lost_when_limited():
    side = np.repeat(["a", "b", "c"], [600, 399, 1])
    (rows,) = metrics.draw_per_label((side,), max_cells=100, seed=0)
    names, numbers = np.unique(side[rows], return_counts=True)
    assert dict(zip(names, numbers, strict=True)) == {"a": 60, "b": 39, "c": 1}


def test_drawn_cells_follow_the_seed():
    side = np.full(50, "a")
    first, again, other = (
        metrics.draw_per_label((side,), max_cells=10, seed=seed)[0]
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert list(first) != list(other)
