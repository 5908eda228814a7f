"""Likelihoods of counts and seeded draws."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from cellgan.layers import count_draws
from cellgan.layers.count_draws import (
    DrawnCounts,
    sample_bernoulli,
    sample_negative_binomial,
    sample_poisson,
)
from cellgan.layers.likelihoods import Bernoulli, NegativeBinomial, Poisson
from cellgan.layers.log_probabilities import (
    bernoulli_log_prob,
    negative_binomial_log_prob,
    negative_binomial_softmax_loss,
    poisson_log_prob,
)

SEED = tf.constant([11, 7], tf.int32)
N_DRAWS = 40_000
SMALL_COUNTS = np.arange(12)
FLOAT32_EPSILON = 1.1920929e-07

draw_negative_binomial = tf.function(sample_negative_binomial)


def array(counts: DrawnCounts) -> np.ndarray:
    return counts.matrix().toarray()


def nbinom(mean: float, inverse_dispersion: float) -> stats.rv_discrete:
    return stats.nbinom(
        inverse_dispersion, inverse_dispersion / (mean + inverse_dispersion)
    )


def one_row(*values: object) -> list[tf.Tensor]:
    rows = [np.atleast_2d(np.float32(each)) for each in values]
    return [
        tf.constant(np.ascontiguousarray(row)) for row in np.broadcast_arrays(*rows)
    ]


def negative_binomial_row(counts, mean, inverse_dispersion) -> np.ndarray:
    shape = np.shape(counts)
    values = [np.broadcast_to(np.float32(v), (1, *shape)) for v in (counts, mean)]
    theta = tf.fill(shape, np.float32(inverse_dispersion))
    return negative_binomial_log_prob(*map(tf.constant, values), theta).numpy()[0]


def drawn(mean: float, inverse_dispersion: float) -> np.ndarray:
    shape = (N_DRAWS // 100, 100)
    values = draw_negative_binomial(
        tf.fill(shape, np.float32(mean)),
        tf.fill(shape[1:], np.float32(inverse_dispersion)),
        SEED,
    )
    return array(values).astype(np.float64).ravel()


@pytest.mark.parametrize("mean", [1e-4, 0.3, 4.0, 100.0])
@pytest.mark.parametrize("inverse_dispersion", [1e-3, 0.5, 1.0, 30.0, 1e6])
def test_negative_binomial_equals_scipy_at_small_counts(mean, inverse_dispersion):
    np.testing.assert_allclose(
        negative_binomial_row(SMALL_COUNTS, mean, inverse_dispersion),
        nbinom(mean + 1e-8, inverse_dispersion).logpmf(SMALL_COUNTS),
        rtol=1e-5,
        atol=2e-8,  # what the original adds to mean and inverse dispersion
    )


def test_negative_binomial_with_unit_dispersion_is_geometric():
    values = negative_binomial_row(SMALL_COUNTS, 3.0, 1.0)
    expected = SMALL_COUNTS * np.log(3 / 4) + np.log(1 / 4)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("mean", [1e-7, 1e-3, 10.0])
@pytest.mark.parametrize("inverse_dispersion", [0.1, 1e10])
def test_log_probability_of_zero_is_exact_for_tiny_means(mean, inverse_dispersion):
    expected = -inverse_dispersion * np.log1p(mean / inverse_dispersion)
    values = negative_binomial_row(np.zeros(1), mean, inverse_dispersion)
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_negative_binomial_of_a_huge_dispersion_is_poisson():
    values = negative_binomial_row(SMALL_COUNTS, 2.5, 1e12)
    np.testing.assert_allclose(
        values, stats.poisson(2.5).logpmf(SMALL_COUNTS), rtol=1e-5
    )


@pytest.mark.parametrize("counts", [1e4, 1e6, 1e7])
@pytest.mark.parametrize("inverse_dispersion", [0.1, 10.0, 1e4])
def test_large_counts_lose_no_more_than_rounding_of_the_count(
    counts, inverse_dispersion
):
    # A sum of logarithms in float64, in which nothing large cancels
    k = np.arange(int(counts), dtype=np.float64)
    factor = counts / (counts + inverse_dispersion)
    terms = np.log((inverse_dispersion + k) / (k + 1) * factor)
    expected = np.sum(terms) - inverse_dispersion * np.log1p(
        counts / inverse_dispersion
    )
    (value,) = negative_binomial_row(np.array([counts]), counts, inverse_dispersion)
    np.testing.assert_allclose(
        value, expected, rtol=1e-5, atol=2 * FLOAT32_EPSILON * counts
    )


@pytest.mark.parametrize("inverse_dispersion", [1e-2, 1.0, 50.0, 1e4])
def test_negative_binomial_gradients_equal_the_derivatives(inverse_dispersion):
    m, t, x = 2.0, inverse_dispersion, SMALL_COUNTS.astype(np.float64)
    mean = tf.fill((1, 12), np.float32(m))
    theta = tf.fill((12,), np.float32(t))
    with tf.GradientTape() as tape:
        tape.watch([mean, theta])
        total = tf.reduce_sum(
            negative_binomial_log_prob(tf.constant(np.float32(x[None])), mean, theta)
        )
    by_mean, by_theta = tape.gradient(total, [mean, theta])
    np.testing.assert_allclose(by_mean[0], x / m - (x + t) / (t + m), rtol=1e-4)
    expected = (
        special.digamma(x + t)
        - special.digamma(t)
        - np.log1p(m / t)
        + (m - x) / (t + m)
    )
    # It is a difference of terms as large as x / t.
    np.testing.assert_allclose(
        by_theta, expected, rtol=1e-5, atol=10 * FLOAT32_EPSILON * max(x) / t
    )


def test_gradient_of_a_genes_dispersion_is_the_sum_over_cells():
    counts, mean = one_row(SMALL_COUNTS, 2.0)
    counts, mean = tf.reshape(counts, (4, 3)), tf.reshape(mean, (4, 3))
    by_gene, by_entry = tf.constant([0.5, 1.0, 2.0]), tf.constant([[0.5, 1.0, 2.0]] * 4)
    with tf.GradientTape() as tape:
        tape.watch([by_gene, by_entry])
        totals = [
            tf.reduce_sum(negative_binomial_log_prob(counts, mean, theta))
            for theta in (by_gene, by_entry)
        ]
        total = totals[0] + totals[1]
    of_gene, of_entry = tape.gradient(total, [by_gene, by_entry])
    np.testing.assert_allclose(of_gene, np.sum(of_entry, axis=0), rtol=1e-5)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("rows", [pytest.param((), marks=pytest.mark.slow), (6,)])
def test_loss_of_softmax_means_is_that_of_the_log_probabilities(jit, rows):
    rng = np.random.default_rng(3)
    mean = rng.lognormal(0, 3, (6, 9))
    counts = tf.constant(np.float32(rng.poisson(mean)))
    logits = tf.constant(np.float32(rng.normal(0, 3, (6, 9))))
    sizes = tf.reduce_sum(counts, axis=1)
    theta = tf.constant(np.float32(rng.lognormal(0, 3, (*rows, 9))))

    def by_entry(counts, logits, sizes, theta):
        mean = tf.nn.softmax(logits) * sizes[:, None]
        log_prob = negative_binomial_log_prob(counts, mean, theta)
        return -tf.reduce_mean(tf.reduce_sum(log_prob, axis=1))

    def of(loss):
        with tf.GradientTape() as tape:
            tape.watch([logits, theta])
            value = 3 * tf.function(loss, jit_compile=jit)(counts, logits, sizes, theta)
        return [value, *tape.gradient(value, [logits, theta])]

    for found, expected in zip(
        of(negative_binomial_softmax_loss), of(by_entry), strict=True
    ):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("inverse_dispersion", [1e-20, 1e-3, 1.0, 1e6, 1e20])
@pytest.mark.parametrize("count", [1.0, 1e4, 1e9])
def test_likelihood_of_any_count_and_dispersion_is_finite(count, inverse_dispersion):
    counts, mean = one_row(count, [1e-8, 1.0, 1e9])
    theta = tf.fill((3,), np.float32(inverse_dispersion))
    with tf.GradientTape() as tape:
        tape.watch([mean, theta])
        value = negative_binomial_log_prob(counts, mean, theta)
    by_mean, by_theta = tape.gradient(value, [mean, theta])
    for found in (value, by_mean, theta * by_theta):
        assert np.isfinite(found).all()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**7),
    st.floats(0, 1e7, width=32),
    st.floats(0, float(np.float32(1e38)), width=32),
    st.floats(-100, 100, width=32),
)
def test_values_and_gradients_are_finite(counts, mean, theta, logit):
    row = [tf.fill((1, 1), np.float32(value)) for value in (counts, mean, logit)]
    theta = tf.fill((1,), np.float32(theta))
    with tf.GradientTape() as tape:
        tape.watch([*row[1:], theta])
        values = [
            negative_binomial_log_prob(row[0], row[1], theta),
            poisson_log_prob(row[0], tf.minimum(row[2], 17.0)),
            bernoulli_log_prob(tf.minimum(row[0], 1), row[2]),
        ]
        total = tf.add_n(values)
    gradients = tape.gradient(total, [*row[1:], theta])
    assert all(np.all(np.isfinite(value)) for value in values)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("rate", [1e-6, 0.5, 7.0, 1e3])
def test_poisson_equals_scipy(rate):
    counts, log_rate = one_row([0, 1, 2, 5, 40, 1000], np.log(rate))
    values = poisson_log_prob(counts, log_rate)
    expected = stats.poisson(rate).logpmf(counts.numpy().astype(int))
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=2e-4)


def test_poisson_of_rate_zero_is_certain_of_zero():
    log_rate = tf.constant([[-np.inf]], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(log_rate)
        value = poisson_log_prob(tf.zeros((1, 1)), log_rate)
    assert float(value[0, 0]) == 0
    assert float(tape.gradient(value, log_rate)[0, 0]) == 0


def test_bernoulli_equals_scipy():
    logits = np.array([-9.0, -1, 0, 2, 9])
    for counts in (0, 1):
        values = bernoulli_log_prob(*one_row(np.full(5, counts), logits))
        expected = stats.bernoulli(special.expit(logits)).logpmf(counts)
        np.testing.assert_allclose(values[0], expected, rtol=1e-5)


def test_bernoulli_clips_the_probability_at_epsilon_of_float32():
    counts, logits = one_row([0, 1, 0, 1], [50, 50, -50, -50])
    values = bernoulli_log_prob(counts, logits).numpy()[0]
    unlikely, likely = np.log(FLOAT32_EPSILON), np.log1p(-FLOAT32_EPSILON)
    np.testing.assert_allclose(
        values, [unlikely, likely, likely, unlikely], rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize(
    "distribution",
    [
        NegativeBinomial(tf.constant([[0.2, 3.0]]), tf.constant([0.4, 5.0])),
        Poisson(tf.constant([[-1.0, 2.0]])),
        Bernoulli(tf.constant([[-1.0, 2.0]])),
    ],
    ids=lambda each: type(each).__name__,
)
def test_log_prob_compiled_with_xla_equals_the_eager_one(distribution):
    counts = tf.constant([[0.0, 1.0]])
    compiled = tf.function(type(distribution).log_prob, jit_compile=True)
    np.testing.assert_allclose(
        compiled(distribution, counts), distribution.log_prob(counts), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mean", "inverse_dispersion"),
    [(0.01, 0.5), (0.3, 1e-2), (3.0, 2.0), (40.0, 0.5), (300.0, 1e5)],
)
def test_draws_have_the_moments_and_zeros_of_the_theory(mean, inverse_dispersion):
    values = drawn(mean, inverse_dispersion)
    variance = mean + mean**2 / inverse_dispersion
    kurtosis = float(nbinom(mean, inverse_dispersion).stats("k"))
    assert abs(values.mean() - mean) < 5 * np.sqrt(variance / N_DRAWS)
    error = variance * np.sqrt((kurtosis + 2) / N_DRAWS)
    assert abs(values.var() - variance) < 5 * error
    zero = float(nbinom(mean, inverse_dispersion).pmf(0))
    error = np.sqrt(zero * (1 - zero) / N_DRAWS)
    assert abs((values == 0).mean() - zero) <= 5 * error


@pytest.mark.parametrize(
    ("mean", "inverse_dispersion"),
    [pytest.param(0.5, 0.3, marks=pytest.mark.slow), (6.0, 2.0)],
)
def test_draws_pass_a_chi_square_test(mean, inverse_dispersion):
    distribution, values = (
        nbinom(mean, inverse_dispersion),
        drawn(mean, inverse_dispersion),
    )
    last = int(distribution.ppf(1 - 100 / N_DRAWS))
    observed = np.bincount(np.minimum(values, last).astype(int), minlength=last + 1)
    expected = distribution.pmf(np.arange(last + 1))
    expected[-1] = distribution.sf(last - 1)
    assert stats.chisquare(observed, N_DRAWS * expected).pvalue > 1e-4


@pytest.mark.parametrize(
    ("mean", "inverse_dispersion"), [(1e4, 1.0), (1e4, 1e6), (1e4, 1e-2)]
)
def test_draws_of_large_means_follow_the_distribution_function(
    mean, inverse_dispersion
):
    shape = (20, 100)
    values = draw_negative_binomial(
        tf.fill(shape, np.float32(mean)),
        tf.fill(shape[1:], np.float32(inverse_dispersion)),
        SEED,
    )
    values = np.sort(array(values).ravel())
    points = np.unique(values)
    share = np.searchsorted(values, points, side="right") / 2000
    distance = np.abs(share - nbinom(mean, inverse_dispersion).cdf(points)).max()
    # Kolmogorov: exceeded once in 10,000
    assert distance < stats.kstwobign.isf(1e-4) / np.sqrt(2000)


def test_counting_up_and_searching_find_the_same_counts(monkeypatch):
    by_counting = drawn(60.0, 3.0)
    monkeypatch.setattr(count_draws, "STEPS_FROM_ZERO", 20)
    searched = sample_negative_binomial(
        tf.fill((5, 100), 60.0), tf.fill((100,), 3.0), SEED
    )
    np.testing.assert_array_equal(array(searched).ravel(), by_counting[:500])


def test_counts_do_not_depend_on_how_many_are_tried_in_a_pass(monkeypatch):
    mean = tf.fill((5, 100), 60.0)
    together = array(sample_poisson(mean, SEED))
    monkeypatch.setattr(count_draws, "VALUES_PER_PASS", 1)
    np.testing.assert_array_equal(array(sample_poisson(mean, SEED)), together)


@pytest.mark.parametrize("per_pass", [16, 512])
def test_small_counts_compiled_by_xla_are_those_that_are_not(monkeypatch, per_pass):
    mean = tf.constant(np.float32(np.geomspace(1e-6, 1e3, 500)).reshape(5, 100))
    theta = tf.constant(np.float32(np.geomspace(1e-3, 1e6, 100)))
    plain = array(sample_negative_binomial(mean, theta, SEED))
    monkeypatch.setattr(count_draws, "COMPILED_FROM", 1)
    monkeypatch.setattr(count_draws, "ENTRIES_PER_PASS", per_pass)
    compiled = array(sample_negative_binomial(mean, theta, SEED))
    np.testing.assert_array_equal(compiled, plain)


@pytest.mark.parametrize("from_zero", [-1e-6, 1e-6])
def test_an_entry_is_drawn_just_below_the_probability_that_it_is_not_0(
    monkeypatch, from_zero
):
    mean = np.float32(np.geomspace(1e-3, 8, 400)).reshape(4, 100)
    tails = -np.expm1(-mean.astype(np.float64)) * (1 + from_zero)
    bits = tf.constant(np.uint32(tails * 2**32))
    monkeypatch.setattr(count_draws, "random_bits", lambda *_: bits)
    is_drawn = array(sample_poisson(tf.constant(mean), SEED)) > 0
    np.testing.assert_array_equal(is_drawn, from_zero < 0)


def test_poisson_draws_have_mean_variance_and_zeros():
    values = array(sample_poisson(tf.fill((N_DRAWS // 100, 100), 1.5), SEED))
    error = np.sqrt(1.5 / N_DRAWS)
    assert abs(values.mean() - 1.5) < 5 * error
    # Fourth cumulant 1.5
    assert abs(values.var() - 1.5) < 5 * np.sqrt((1.5 + 2 * 1.5**2) / N_DRAWS)
    zero = np.exp(-1.5)
    assert abs((values == 0).mean() - zero) < 5 * np.sqrt(zero * (1 - zero) / N_DRAWS)


def test_poisson_draws_of_large_rates_have_mean_and_variance():
    values = array(sample_poisson(tf.fill((20, 100), 1e4), SEED)).astype(np.float64)
    assert abs(values.mean() - 1e4) < 5 * np.sqrt(1e4 / 2000)
    assert abs(values.var() - 1e4) < 5 * 1e4 * np.sqrt(2 / 2000)


def test_bernoulli_draws_are_ones_with_their_probability():
    values = array(sample_bernoulli(tf.fill((N_DRAWS // 100, 100), 0.03), SEED))
    assert set(np.unique(values)) == {0, 1}
    assert abs(values.mean() - 0.03) < 5 * np.sqrt(0.03 * 0.97 / N_DRAWS)


def test_impossible_and_certain_entries_are_drawn_so():
    shape = (50, 100)
    zeros, ones = tf.zeros(shape), tf.ones(shape)
    assert not np.any(array(sample_negative_binomial(zeros, tf.ones(100), SEED)))
    assert not np.any(array(sample_poisson(zeros, SEED)))
    assert not np.any(array(sample_bernoulli(zeros, SEED)))
    assert np.all(array(sample_bernoulli(ones, SEED)) == 1)


@pytest.mark.parametrize(
    "distribution",
    [
        NegativeBinomial(tf.linspace([0.1] * 7, [400.0] * 7, 9), tf.fill((7,), 0.7)),
        Poisson(tf.linspace([-2.0] * 7, [6.0] * 7, 9)),
        Bernoulli(tf.linspace([-2.0] * 7, [2.0] * 7, 9)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_draws_of_a_cell_depend_on_seed_and_position_alone(distribution):
    together = array(distribution.sample(SEED))

    def rows(part: slice) -> type:
        values = [v[part] if v.shape.rank == 2 else v for v in distribution]
        return type(distribution)(*values)

    pieces = [array(rows(slice(k, k + 2)).sample(SEED, k)) for k in (0, 2, 4, 6, 8)]
    np.testing.assert_array_equal(np.concatenate(pieces), together)
    assert np.any(array(distribution.sample(SEED + 1)) != together)
    assert np.any(array(distribution.sample(SEED, 1)) != together)


def test_no_numbers_of_one_cell_are_those_of_another():
    values = array(
        sample_negative_binomial(tf.fill((40, 6), 1e6), tf.fill((6,), 1.0), SEED)
    )
    assert len(np.unique(values)) == values.size
