from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
from scipy import stats

from cellgan.evaluation.comparison.pairs import Pair, Resamples, make_pair, make_side
from cellgan.evaluation.metrics.genes import (
    METRICS,
    detected_genes,
    genes_metrics,
    ks_statistics,
    pearson,
    resampled_moments,
    spearman,
)
from tests.evaluation.sides import draw_side, make_frame

NAMES = {metric.name for metric in METRICS}


def repeated(side, multiplicity):
    """Return a side with each cell as often as its multiplicity says."""
    return side.take(np.repeat(np.arange(len(side)), multiplicity.astype(int)))


def values_of(pair):
    return {name: draws[0] for name, draws in genes_metrics(pair).items()}


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.fixture(scope="module")
def pair(frame):
    return make_pair(draw_side(frame, 1), draw_side(frame, 2), frame, 3)


def pair_of(frame, real, other):
    """Pair two arrays of counts, ``(n_cells, 60)``."""
    sides = (
        make_side(sp.csr_array(x), np.full(len(x), "a"), frame.space)
        for x in (real, other)
    )
    return make_pair(*sides, frame, 0)


def test_moments_of_four_cells_are_those_computed_by_hand():
    values = sp.csr_array(np.array([[0.0, 2.0], [1.0, 2.0], [0.0, 2.0], [3.0, 2.0]]))

    moments = resampled_moments(values, np.ones((1, 4)))

    np.testing.assert_allclose(moments.mean, [[1.0, 2.0]])
    np.testing.assert_allclose(moments.variance, [[2.0, 0.0]], atol=1e-12)
    np.testing.assert_allclose(moments.zero_fraction, [[0.5, 0.0]])
    np.testing.assert_allclose(moments.dispersion, [[2.01 / 1.01, 0.01 / 2.01]])


@pytest.mark.parametrize("kind", ["counts", "expression"])
def test_moments_of_a_draw_are_those_of_repeated_cells(kind):
    rng = np.random.default_rng(0)
    values = rng.poisson(1.0, size=(40, 12)) * 1.0
    if kind == "expression":
        values *= rng.gamma(2.0, size=values.shape)
    multiplicity = rng.multinomial(40, np.full(40, 1 / 40), size=3)

    moments = resampled_moments(sp.csr_array(values), multiplicity.astype(float))

    for draw in range(3):
        cells = np.repeat(values, multiplicity[draw], axis=0)
        np.testing.assert_allclose(moments.mean[draw], cells.mean(axis=0))
        np.testing.assert_allclose(moments.variance[draw], cells.var(axis=0, ddof=1))
        np.testing.assert_allclose(
            moments.zero_fraction[draw], (cells == 0).mean(axis=0)
        )


def test_stored_zeros_count_as_zeros():
    stored = sp.csr_array((np.array([0.0, 3.0]), ([0, 1], [0, 0])), shape=(2, 1))

    assert resampled_moments(stored, np.ones((1, 2))).zero_fraction == 0.5


def test_dispersion_of_negative_binomial_counts_is_one_plus_mean_times_dispersion():
    mean, inverse_dispersion, n_cells = 4.0, 2.0, 20_000
    rng = np.random.default_rng(0)
    rates = rng.gamma(inverse_dispersion, mean / inverse_dispersion, size=(n_cells, 1))
    counts = sp.csr_array(rng.poisson(rates))

    dispersion = resampled_moments(counts, np.ones((1, n_cells))).dispersion[0, 0]

    # Variance 12, excess kurtosis 6 / 2 + 1 / 12: 5 standard errors of variance / mean.
    tolerance = 5 * 12 / 4 * np.sqrt((2 + 3 + 1 / 12) / n_cells)
    assert abs(dispersion - (1 + mean / inverse_dispersion)) < tolerance


def test_ks_of_a_shifted_sample_is_the_share_it_is_shifted_by():
    values = np.arange(100.0)

    statistic = ks_statistics(
        values, values + 30, Resamples(np.ones((1, 100)), np.ones((1, 100)))
    )

    np.testing.assert_allclose(statistic, 0.3)


def test_ks_of_a_draw_is_scipys_of_repeated_cells():
    rng = np.random.default_rng(0)
    real, other = rng.poisson(5.0, size=50), rng.poisson(6.0, size=70)
    draws = Resamples(
        rng.multinomial(50, np.full(50, 1 / 50), size=3).astype(float),
        rng.multinomial(70, np.full(70, 1 / 70), size=3).astype(float),
    )

    statistics = ks_statistics(real, other, draws)

    expected = [
        stats.ks_2samp(
            np.repeat(real, draws.real[draw].astype(int)),
            np.repeat(other, draws.other[draw].astype(int)),
        ).statistic
        for draw in range(3)
    ]
    np.testing.assert_allclose(statistics, expected)


def test_correlations_of_rows_are_scipys():
    rng = np.random.default_rng(0)
    first, second = rng.poisson(2.0, size=(2, 3, 30)).astype(float)

    np.testing.assert_allclose(
        pearson(first, second), stats.pearsonr(first, second, axis=1).statistic
    )
    np.testing.assert_allclose(
        spearman(first, second),
        [stats.spearmanr(*rows).statistic for rows in zip(first, second, strict=True)],
    )


def test_correlation_with_a_constant_row_is_undefined():
    assert np.isnan(pearson(np.full((1, 5), 0.1), np.arange(5.0)[None]))
    assert np.isnan(pearson(np.ones((1, 1)), np.ones((1, 1))))


@pytest.mark.parametrize(("n_cells", "n_needed"), [(100, 3), (500, 5)])
def test_a_gene_is_detected_in_three_cells_and_one_percent_of_them(n_cells, n_needed):
    values = np.zeros((n_cells, 2))
    values[: n_needed - 1, 0] = values[:n_needed, 1] = 1

    np.testing.assert_array_equal(detected_genes(sp.csr_array(values)), [1])


def test_two_copies_of_the_same_cells_agree_completely(frame):
    real = draw_side(frame, 1)

    values = values_of(make_pair(real, real, frame, 0))

    assert set(values) == NAMES
    for name, value in values.items():
        assert value == pytest.approx(1.0 if name.endswith("spearman") else 0.0), name


def test_log_ratios_and_differences_are_those_computed_by_hand(frame):
    real, other = np.zeros((4, 60)), np.zeros((4, 60))
    real[:3], other[:2] = 1, 3

    values = values_of(pair_of(frame, real, other))

    # Means 0.75 and 1.5, variances 0.25 and 3, zeros in 1 and 2 of 4 cells.
    assert values["mean_log_ratio"] == pytest.approx(np.log2(1.51 / 0.76))
    assert values["variance_log_ratio"] == pytest.approx(np.log2(3.01 / 0.26))
    assert values["dispersion_log_ratio"] == pytest.approx(
        np.log2((3.01 / 1.51) / (0.26 / 0.76))
    )
    assert values["zero_fraction_difference"] == pytest.approx(0.25)
    assert values["library_size_ks"] == pytest.approx(0.5)
    assert np.isnan(values["mean_spearman"])


def test_only_genes_of_the_real_side_count(frame):
    real = np.zeros((4, 60))
    real[:, :30] = 2
    other = real.copy()
    other[:, 30:] = 100

    values = values_of(pair_of(frame, real, other))

    assert values["mean_log_ratio"] == 0
    assert values["detected_genes_ks"] == 1


def test_a_gene_that_is_never_made_has_a_finite_ratio(frame):
    real = np.full((4, 60), 0.99)

    values = values_of(pair_of(frame, real, np.zeros((4, 60))))

    assert values["mean_log_ratio"] == pytest.approx(np.log2(100))


def test_a_draw_is_the_comparison_of_repeated_cells(pair):
    estimates = genes_metrics(pair)

    for draw in range(1, 4):
        cells = make_pair(
            repeated(pair.real, pair.draws.real[draw]),
            repeated(pair.other, pair.draws.other[draw]),
            pair.frame,
            0,
        )
        expected = values_of(cells)
        for name in NAMES:
            assert estimates[name][draw] == pytest.approx(expected[name]), name


def test_the_order_of_cells_is_of_no_account(pair):
    rng = np.random.default_rng(0)
    shuffled = Pair(
        pair.real.take(rng.permutation(len(pair.real))),
        pair.other.take(rng.permutation(len(pair.other))),
        pair.frame,
        Resamples(pair.draws.real[:1], pair.draws.other[:1]),
    )

    assert values_of(shuffled) == pytest.approx(values_of(pair))


def test_library_sizes_are_compared_only_where_there_are_counts(pair):
    expression = dataclasses.replace(
        pair, frame=dataclasses.replace(pair.frame, are_counts=False)
    )

    values = values_of(expression)

    assert {name for name in NAMES if np.isnan(values[name])} == {
        metric.name for metric in METRICS if metric.needs_counts
    }


def test_halved_counts_show_where_the_record_says_so(pair):
    halved = np.random.default_rng(0).binomial(
        pair.other.values.toarray().astype(int), 0.5
    )
    thin = dataclasses.replace(
        pair,
        other=dataclasses.replace(
            pair.other, values=sp.csr_array(halved.astype(np.float32))
        ),
    )

    before, after = values_of(pair), values_of(thin)

    assert after["mean_log_ratio"] == pytest.approx(1.0, abs=0.1)
    assert after["library_size_ks"] > before["library_size_ks"] + 0.3
    assert after["mean_spearman"] == pytest.approx(before["mean_spearman"], abs=0.02)


@pytest.mark.parametrize("n_cells", [0, 1])
def test_fewer_than_two_cells_have_no_moments(pair, n_cells):
    few = make_pair(pair.real, pair.other.take(np.arange(n_cells)), pair.frame, 2)

    estimates = genes_metrics(few)

    assert all(np.isnan(estimates[name]).all() for name in NAMES)
    assert all(len(estimates[name]) == 3 for name in NAMES)


def test_cells_without_any_detected_gene_have_no_moments(frame):
    values = values_of(pair_of(frame, np.zeros((4, 60)), np.ones((4, 60))))

    assert np.isnan(values["mean_log_ratio"])
    assert values["detected_genes_ks"] == 1
