"""Likelihoods of counts: log-probabilities and seeded draws.

Cells are rows. Log-probabilities are functions of tensors that any compiled step may
use; counts are data, no gradient goes to them. XLA makes one pass over memory of them,
TensorFlow's graphs one for each operation: where speed matters, compile them.

A draw is a quantile: entry ``(i, j)`` has one uniform number, a function of the seed,
of ``first_cell + i`` and of ``j`` alone, so a cell's counts do not depend on what else
is drawn with it. They are the same on all devices up to rounding of the quantiles. The
number of operations depends on the values, so draws cannot be compiled with XLA; what
all of them take is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

MEAN_EPSILON = 1e-8
"""Added to means and inverse dispersions of negative binomials, as in CFGen."""
PROBABILITY_EPSILON = float(np.finfo(np.float32).eps)
"""Probabilities of Bernoulli variables are kept this far from 0 and 1."""
DISPERSION_RANGE = (1e-20, 1e20)
"""Inverse dispersions outside are moved to the next end; both ends are limits."""
LARGEST_DRAWN_DISPERSION = 1e12
"""Draws with a larger one are Poisson draws in all digits."""
STEPS_FROM_ZERO = 512
"""Counts up to this are found by adding up probabilities, larger ones by a search."""
SMALLEST_ZERO = 1e-290
"""Probabilities of 0 below it have too few digits to start from. They belong to means
of 660 and more, which have no counts below `SMALLEST_SEARCHED`."""
SMALLEST_SEARCHED = 256.0
STEPS_OF_ALL = 24
"""Counts up to this are tried for all entries; those above are counted again."""
ENTRIES_PER_PASS = 2**15
"""Entries of which small counts are found by one call of a function."""
COMPILED_FROM = 2**18
"""Values that a draw has at least for that function to be compiled by XLA, which takes
about a second."""
VALUES_PER_PASS = 2**18
"""Probabilities added up in one pass over the entries whose count is not found yet."""
PHILOX = 1
NUMBERS_PER_COUNTER = 4


class NegativeBinomial(NamedTuple):
    """Negative binomial counts of variance ``mean + mean**2 / inverse_dispersion``."""

    mean: tf.Tensor
    """``(n_cells, n_features)``."""
    inverse_dispersion: tf.Tensor
    """``(n_features,)``, or one row per cell."""

    def log_prob(self, counts: tf.Tensor) -> tf.Tensor:
        """Return `negative_binomial_log_prob`."""
        return negative_binomial_log_prob(counts, self.mean, self.inverse_dispersion)

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> tf.Tensor:
        """Return `sample_negative_binomial`."""
        return sample_negative_binomial(
            self.mean, self.inverse_dispersion, seed, first_cell
        )


class Poisson(NamedTuple):
    """Poisson counts."""

    log_rate: tf.Tensor
    """``(n_cells, n_features)``."""

    @property
    def mean(self) -> tf.Tensor:
        """The rate."""
        return tf.exp(self.log_rate)

    def log_prob(self, counts: tf.Tensor) -> tf.Tensor:
        """Return `poisson_log_prob`."""
        return poisson_log_prob(counts, self.log_rate)

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> tf.Tensor:
        """Return `sample_poisson`."""
        return sample_poisson(self.mean, seed, first_cell)


class Bernoulli(NamedTuple):
    """Zeros and ones."""

    logits: tf.Tensor
    """``(n_cells, n_features)``."""

    @property
    def mean(self) -> tf.Tensor:
        """The probability of 1."""
        return tf.sigmoid(self.logits)

    def log_prob(self, counts: tf.Tensor) -> tf.Tensor:
        """Return `bernoulli_log_prob`."""
        return bernoulli_log_prob(counts, self.logits)

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> tf.Tensor:
        """Return `sample_bernoulli`."""
        return sample_bernoulli(self.mean, seed, first_cell)


class ZeroInflatedNegativeBinomial(NamedTuple):
    """Negative binomial counts, of which some are zeros for another reason."""

    expected: tf.Tensor
    """Mean of the negative binomial, ``(n_cells, n_features)``."""
    inverse_dispersion: tf.Tensor
    """``(n_features,)``, or one row per cell."""
    zero_logits: tf.Tensor
    """Logits of the zeros, ``(n_cells, n_features)``."""

    @property
    def mean(self) -> tf.Tensor:
        """Mean of the counts, zeros and all."""
        return tf.sigmoid(-self.zero_logits) * self.expected

    def log_prob(self, counts: tf.Tensor) -> tf.Tensor:
        """Return `zero_inflated_log_prob`."""
        return zero_inflated_log_prob(
            counts, self.expected, self.inverse_dispersion, self.zero_logits
        )

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> tf.Tensor:
        """Return counts, drawn as those of a negative binomial, or 0."""
        of_counts, of_zeros = (
            tf.random.experimental.stateless_fold_in(seed, index, alg="philox")
            for index in range(2)
        )
        counts = sample_negative_binomial(
            self.expected, self.inverse_dispersion, of_counts, first_cell
        )
        zeros = sample_bernoulli(tf.sigmoid(self.zero_logits), of_zeros, first_cell)
        return counts * (1 - zeros)


CountDistribution = (
    NegativeBinomial | Poisson | Bernoulli | ZeroInflatedNegativeBinomial
)


def negative_binomial_log_prob(
    counts: tf.Tensor, mean: tf.Tensor, inverse_dispersion: tf.Tensor
) -> tf.Tensor:
    """Return log-probabilities of negative binomial counts.

    Parameters
    ----------
    counts
        Whole numbers, ``(n_cells, n_genes)`` float, below 1e9.
    mean
        ``(n_cells, n_genes)``, non-negative.
    inverse_dispersion
        ``(n_genes,)`` or ``(n_cells, n_genes)``, positive: the variance is ``mean +
        mean**2 / inverse_dispersion``.

    Returns
    -------
    ``(n_cells, n_genes)``. With ``m``, ``t``, ``x`` and ``e = 1e-8``: ``t log((t + e) /
    (t + m + e)) + x log((m + e) / (t + m + e)) + lgamma(x + t) - lgamma(t) -
    lgamma(x + 1)``.

    Notes
    -----
    The original evaluates the formula as it stands, where terms as large as the counts
    or the inverse dispersion cancel. Here Stirling's series stands for log gamma, which
    lets those terms be combined before they are rounded: gradients stay right for any
    counts and dispersion, values to 2e-7 times the count, and logarithms and
    arithmetic, of which processors do several at once, are all that is left.
    """
    theta = tf.clip_by_value(inverse_dispersion, *DISPERSION_RANGE)

    @tf.custom_gradient
    def log_prob(mean: tf.Tensor, theta: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        found = _negative_binomial(counts, mean, theta)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            by_theta = upstream * found.by_theta
            if theta.shape.rank == 1:
                by_theta = tf.reduce_sum(by_theta, axis=0)
            return upstream * found.by_mean, by_theta

        return found.log_prob, gradient

    return log_prob(mean, theta)


def negative_binomial_softmax_loss(
    counts: tf.Tensor,
    logits: tf.Tensor,
    library_size: tf.Tensor,
    inverse_dispersion: tf.Tensor,
) -> tf.Tensor:
    """Return the mean over cells of minus the log-likelihood, with softmax means.

    Equal to what `negative_binomial_log_prob` gives of ``library_size *
    softmax(logits)``, in value and gradients, and cheaper to train with: gradients are
    found along with the value, and reach the logits without those of the means.

    Parameters
    ----------
    counts, inverse_dispersion
        As of `negative_binomial_log_prob`.
    logits
        ``(n_cells, n_genes)``.
    library_size
        ``(n_cells,)``, positive.
    """
    theta = tf.clip_by_value(inverse_dispersion, *DISPERSION_RANGE)

    @tf.custom_gradient
    def loss(
        logits: tf.Tensor, library_size: tf.Tensor, theta: tf.Tensor
    ) -> tuple[tf.Tensor, Callable]:
        shares = tf.nn.softmax(logits)
        mean = shares * library_size[:, tf.newaxis]
        found = _negative_binomial(counts, mean, theta)
        each = -1 / tf.cast(tf.shape(counts)[0], counts.dtype)
        by_log_mean = mean * found.by_mean
        of_cells = tf.reduce_sum(by_log_mean, axis=1, keepdims=True)
        by_logits = each * (by_log_mean - shares * of_cells)
        by_theta = found.by_theta
        if theta.shape.rank == 1:
            by_theta = tf.reduce_sum(by_theta, axis=0)
        by_theta *= each
        by_size = each * of_cells[:, 0] / library_size

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return upstream * by_logits, upstream * by_size, upstream * by_theta

        # By genes first: XLA adds up columns, not rows, several at once.
        by_gene = tf.reduce_sum(found.log_prob, axis=0)
        return each * tf.reduce_sum(by_gene), gradient

    return loss(logits, library_size, theta)


class _NegativeBinomial(NamedTuple):
    """Log-probabilities of entries and their derivatives, ``(n_cells, n_genes)``."""

    log_prob: tf.Tensor
    by_mean: tf.Tensor
    by_theta: tf.Tensor


def _negative_binomial(
    counts: tf.Tensor, mean: tf.Tensor, theta: tf.Tensor
) -> _NegativeBinomial:
    """Return what both functions of negative binomials are made of.

    With ``y = t + 4``, ``lgamma(t) = S(y) - log(t (t + 1) (t + 2) (t + 3))`` where S is
    Stirling's series. Products of these factors are divided by powers of ``y`` and
    ``x + 5`` before they are multiplied, which keeps them in the range of floats.
    """
    x, m = counts, mean + MEAN_EPSILON
    shifted = theta + 4.0
    upper, factorial = x + shifted, x + 5.0
    by_upper, by_factorial = 1 / upper, 1 / factorial
    scale = 1 / (theta + m)
    zero = tf.math.log1p(mean * (1 / (theta + MEAN_EPSILON)))
    growth = tf.math.log1p(x * (1 / shifted))
    inverses = [1 / (theta + i) for i in range(4)]
    # (t + x + i) / (t + i), of which the first may be as large as 1e29
    first, *others = [1 + x * inverse for inverse in inverses]
    product = others[0] * others[1] * others[2]
    below = shifted * by_upper
    rising = (first * below) * (product * (below * below * below))
    factorials = (x + 1) * (x + 2) * (x + 3) * (x + 4)
    square = factorial * factorial
    rising *= tf.sqrt(factorial) * (square * square / factorials)
    gammas = (
        (theta - 0.5) * growth
        + x * tf.math.log(upper * by_factorial * (m * scale))
        - tf.math.log(rising)
        + (5.0 - 0.5 * math.log(2 * math.pi))
        + (_series(by_upper) - _series(1 / shifted) - _series(by_factorial))
    )
    # 1 / (t + i) - 1 / (t + x + i), the last three over their product
    differences = x * (
        inverses[1] ** 2 * others[1] * others[2]
        + inverses[2] ** 2 * others[0] * others[2]
        + inverses[3] ** 2 * others[0] * others[1]
    )
    digammas = (
        growth
        - (_digamma_series(by_upper) - _digamma_series(1 / shifted))
        + inverses[0] * (x / (theta + x))
        + differences / product
    )
    return _NegativeBinomial(
        # At 0 the sum is 0 up to rounding, which a tiny mean would not forgive.
        tf.where(x > 0, gammas, 0) - theta * zero,
        theta * scale * (x / m - 1),
        (digammas - zero) + (m - x) * scale - MEAN_EPSILON / (theta + MEAN_EPSILON),
    )


def zero_inflated_log_prob(
    counts: tf.Tensor,
    mean: tf.Tensor,
    inverse_dispersion: tf.Tensor,
    zero_logits: tf.Tensor,
) -> tf.Tensor:
    """Return log-probabilities of negative binomial counts with more zeros.

    Parameters
    ----------
    counts, mean, inverse_dispersion
        As of `negative_binomial_log_prob`.
    zero_logits
        Logits of the probability that a count is 0 whatever the negative binomial
        says, ``(n_cells, n_genes)``.
    """
    of_counts = negative_binomial_log_prob(counts, mean, inverse_dispersion)
    zero = tf.math.softplus(of_counts - zero_logits)
    other = of_counts - zero_logits
    return tf.where(counts > 0, other, zero) - tf.math.softplus(-zero_logits)


def poisson_log_prob(counts: tf.Tensor, log_rate: tf.Tensor) -> tf.Tensor:
    """Return ``x log_rate - exp(log_rate) - lgamma(x + 1)``.

    Parameters
    ----------
    counts
        Whole numbers, ``(n_cells, n_features)`` float.
    log_rate
        Same shape. Minus infinity is a rate of 0, under which only 0 is possible.

    Notes
    -----
    From the logarithm of the rate, so that its gradient ``x - rate`` is finite for a
    rate that is too small for a float.
    """
    rate, factorial = tf.exp(log_rate), counts + 5.0
    log_factorial = tf.math.log(factorial)
    positive = (
        tf.math.multiply_no_nan(log_rate - log_factorial, counts)
        - 4.5 * log_factorial
        + factorial
        - 0.5 * math.log(2 * math.pi)
        - _series(1 / factorial)
        + tf.math.log(tf.reduce_prod([counts + k for k in (1.0, 2.0)], axis=0))
        + tf.math.log(tf.reduce_prod([counts + k for k in (3.0, 4.0)], axis=0))
    )
    return tf.where(counts > 0, positive, 0) - rate


def bernoulli_log_prob(counts: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """Return log-probabilities of zeros and ones.

    Parameters
    ----------
    counts
        0 or 1, ``(n_cells, n_features)`` float.
    logits
        Same shape; clipped where the probability is within float32's epsilon of 0 or
        1, and without gradient there.

    Notes
    -----
    The original clips the probability and computes the logit from it again, which
    rounds logits above 10 or so. Here the logits themselves are clipped, at the same
    values.
    """
    limit = math.log1p(-PROBABILITY_EPSILON) - math.log(PROBABILITY_EPSILON)
    logits = tf.clip_by_value(logits, -limit, limit)
    return -tf.math.softplus((1 - 2 * counts) * logits)


def sample_negative_binomial(
    mean: tf.Tensor,
    inverse_dispersion: tf.Tensor,
    seed: tf.Tensor,
    first_cell: int | tf.Tensor = 0,
) -> tf.Tensor:
    """Draw negative binomial counts.

    Parameters
    ----------
    mean
        ``(n_cells, n_genes)``, non-negative.
    inverse_dispersion
        ``(n_genes,)`` or ``(n_cells, n_genes)``, positive.
    seed
        Stateless seed, ``(2,)`` int32.
    first_cell
        Position of the first row in the request that the cells belong to: rows drawn
        in several calls equal those drawn in one.

    Returns
    -------
    Whole numbers, ``(n_cells, n_genes)`` float32.

    Notes
    -----
    The uniform number of an entry has 32 bits: events of probability below 2e-10 are
    not seen. Zeros, most entries of single cells, take one comparison; other counts are
    searched in float64.
    """
    n_genes = tf.shape(mean, tf.int64)[1]

    def of_entries(entries: tf.Tensor) -> _Counting:
        of_theta = entries % n_genes if inverse_dispersion.shape.rank == 1 else entries
        t = tf.clip_by_value(
            _take_entries(inverse_dispersion, of_theta),
            DISPERSION_RANGE[0],
            LARGEST_DRAWN_DISPERSION,
        )
        m = _take_entries(mean, entries)
        share = m / (t + m)
        return _Counting(-t * tf.math.log1p(m / t), t * share, share, (share, t))

    def survival(k: tf.Tensor, share: tf.Tensor, t: tf.Tensor) -> tf.Tensor:
        return tf.math.betainc(k, t, share)

    return _draw_counts(mean, of_entries, survival, seed, first_cell)


def sample_poisson(
    rate: tf.Tensor, seed: tf.Tensor, first_cell: int | tf.Tensor = 0
) -> tf.Tensor:
    """Draw Poisson counts.

    Parameters
    ----------
    rate
        ``(n_cells, n_features)``, non-negative.
    seed, first_cell
        As of `sample_negative_binomial`.

    Returns
    -------
    Whole numbers, ``(n_cells, n_features)`` float32.
    """

    def of_entries(entries: tf.Tensor) -> _Counting:
        r = _take_entries(rate, entries)
        return _Counting(-r, r, tf.zeros_like(r), (r,))

    def survival(k: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
        return tf.math.igamma(k, r)

    return _draw_counts(rate, of_entries, survival, seed, first_cell)


def sample_bernoulli(
    probability: tf.Tensor, seed: tf.Tensor, first_cell: int | tf.Tensor = 0
) -> tf.Tensor:
    """Draw zeros and ones.

    Parameters
    ----------
    probability
        Of 1, ``(n_cells, n_features)``.
    seed, first_cell
        As of `sample_negative_binomial`.

    Returns
    -------
    0 or 1, ``(n_cells, n_features)`` float32.
    """
    tail = _to_uniform(_random_bits(probability, seed, first_cell), probability.dtype)
    return tf.cast(tail <= probability, tf.float32)


class _Counting(NamedTuple):
    """Distributions of counts with ``p(k + 1) = p(k) (offset + slope k) / (k + 1)``."""

    log_zero: tf.Tensor
    """Log-probability of 0."""
    offset: tf.Tensor
    slope: tf.Tensor
    parameters: tuple[tf.Tensor, ...]
    """Those of the survival function."""


def _draw_counts(
    mean: tf.Tensor,
    of_entries: Callable[[tf.Tensor], _Counting],
    survival: Callable[..., tf.Tensor],
    seed: tf.Tensor,
    first_cell: int | tf.Tensor,
) -> tf.Tensor:
    """Return the largest ``k`` of each entry for which ``tail < P(X >= k)``.

    Parameters
    ----------
    mean
        Means of the entries.
    of_entries
        Returns the distributions of some entries, in float64.
    survival
        Returns ``P(X >= k)`` of ``k`` and a distribution's parameters.
    """
    bits = tf.reshape(_random_bits(mean, seed, first_cell), [-1])
    # P(X >= 1) is at most the mean: most zeros are known without it. The factor is for
    # the rounding of both sides.
    bound = tf.reshape(mean, [-1]) * (2.0**32 * (1 + 1e-6))
    entries = tf.where(tf.cast(bits, mean.dtype) <= bound)[:, 0]

    def tails_of(entries: tf.Tensor) -> tf.Tensor:
        return _to_uniform(tf.gather(bits, entries), tf.float64)

    # XLA compiles for a fixed number of entries.
    small = tf.function(
        lambda entries: _small_counts(tails_of(entries), of_entries(entries)),
        jit_compile=(mean.shape.num_elements() or 0) >= COMPILED_FROM,
        autograph=False,
    )
    n_entries = tf.size(entries)
    padding = -n_entries % ENTRIES_PER_PASS
    counts, is_larger = tf.map_fn(
        small,
        tf.reshape(tf.pad(entries, [[0, padding]]), [-1, ENTRIES_PER_PASS]),
        fn_output_signature=(mean.dtype, tf.bool),
    )
    counts = tf.reshape(counts, [-1])[:n_entries]
    larger = tf.where(tf.reshape(is_larger, [-1])[:n_entries])[:, 0]
    of_larger = tf.gather(entries, larger)
    found = _large_counts(tails_of(of_larger), of_entries(of_larger), survival)
    counts = tf.tensor_scatter_nd_update(
        counts, larger[:, tf.newaxis], tf.cast(found, counts.dtype)
    )
    drawn = tf.raw_ops.SparseToDense(
        sparse_indices=entries,
        output_shape=tf.size(mean, tf.int64)[tf.newaxis],
        sparse_values=tf.cast(counts, tf.float32),
        default_value=0.0,
        validate_indices=False,
    )
    return tf.reshape(drawn, tf.shape(mean))


def _small_counts(tails: tf.Tensor, counting: _Counting) -> tuple[tf.Tensor, tf.Tensor]:
    """Return counts, and which of them may be above `STEPS_OF_ALL`."""
    probability = tf.exp(counting.log_zero)
    survival = -tf.math.expm1(counting.log_zero)
    is_tiny = probability < SMALLEST_ZERO
    counts = tf.zeros_like(tails)
    for k in range(1, STEPS_OF_ALL + 1):
        counts += tf.cast(tails < survival, tails.dtype)
        probability *= (counting.offset + counting.slope * (k - 1)) / k
        survival -= probability
    return tf.cast(counts, tf.float32), is_tiny | (tails < survival)


def _large_counts(
    tails: tf.Tensor, counting: _Counting, survival: Callable[..., tf.Tensor]
) -> tf.Tensor:
    """Return counts of any size."""
    counts, is_beyond = _count_from_zero(tails, counting)
    beyond = tf.where(is_beyond)[:, 0]
    parameters = tuple(tf.gather(values, beyond) for values in counting.parameters)
    found = _search(
        tf.gather(tails, beyond),
        tf.gather(counts, beyond),
        lambda k: survival(k, *parameters),
    )
    return tf.tensor_scatter_nd_update(counts, beyond[:, tf.newaxis], found)


def _count_from_zero(
    tails: tf.Tensor, counting: _Counting
) -> tuple[tf.Tensor, tf.Tensor]:
    """Count up while the tail is below the survival function; no count is 0.

    Returns
    -------
    Counts, and whether they may be larger.

    Notes
    -----
    A pass goes as many counts up as have been tried before. Products and sums are taken
    one after the other all the same, so that an entry's count does not depend on how
    many others there are.
    """
    probability = tf.exp(counting.log_zero)
    survival = -tf.math.expm1(counting.log_zero)
    is_tiny = probability < SMALLEST_ZERO
    probability *= counting.offset
    survival -= probability
    counts = tf.where(is_tiny, tf.constant(SMALLEST_SEARCHED, tails.dtype), 1.0)
    some = tf.TensorShape([None])

    def climb(
        k: tf.Tensor,
        entries: tf.Tensor,
        probability: tf.Tensor,
        survival: tf.Tensor,
        counts: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Go from ``P(X >= k)`` to some counts more, with the entries still open."""
        tail, offset, slope = (
            tf.gather(values, entries)
            for values in (tails, counting.offset, counting.slope)
        )
        n_open = tf.size(entries)
        n_left = STEPS_FROM_ZERO + 1 - tf.cast(k, tf.int32)
        at_once = tf.minimum(tf.cast(k, tf.int32), VALUES_PER_PASS // n_open)
        n_counts = tf.clip_by_value(at_once, 1, n_left)
        ks = k + tf.range(tf.cast(n_counts, k.dtype), dtype=k.dtype)[:, tf.newaxis]
        ratios = (offset + slope * (ks - 1)) / ks
        probabilities = tf.math.cumprod(tf.concat([[probability], ratios], axis=0))
        survivals = tf.math.cumsum(tf.concat([[survival], -probabilities[1:]], axis=0))
        n_passed = tf.math.count_nonzero(tail < survivals[:-1], axis=0, dtype=k.dtype)
        counts = tf.tensor_scatter_nd_update(
            counts, entries[:, tf.newaxis], k - 1 + n_passed
        )
        is_open = tf.where(tail < survivals[-1])[:, 0]
        return (
            k + tf.cast(n_counts, k.dtype),
            tf.gather(entries, is_open),
            tf.gather(probabilities[-1], is_open),
            tf.gather(survivals[-1], is_open),
            counts,
        )

    is_open = tf.where((tails < survival) & ~is_tiny)[:, 0]
    _, _, _, _, counts = tf.while_loop(
        lambda k, entries, *_: (k <= STEPS_FROM_ZERO) & (tf.size(entries) > 0),
        climb,
        (
            tf.constant(2.0, tails.dtype),
            is_open,
            tf.gather(probability, is_open),
            tf.gather(survival, is_open),
            counts,
        ),
        shape_invariants=(tf.TensorShape([]), some, some, some, some),
    )
    return counts, is_tiny | (counts >= STEPS_FROM_ZERO)


def _search(
    tails: tf.Tensor, low: tf.Tensor, survival: Callable[[tf.Tensor], tf.Tensor]
) -> tf.Tensor:
    """Return the largest ``k`` with ``tail < survival(k)``, which `low` are not above.

    Doubles a bound until the tail is above, then halves the interval.
    """

    def double(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        is_below = tails < survival(high)
        return tf.where(is_below, high, low), tf.where(is_below, 2 * high, high)

    def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle = tf.floor((low + high) / 2)
        is_below = tails < survival(middle)
        return tf.where(is_below, middle, low), tf.where(is_below, high, middle)

    low, high = tf.while_loop(
        lambda low, high: tf.reduce_any(tails < survival(high)), double, (low, 2 * low)
    )
    low, _ = tf.while_loop(
        lambda low, high: tf.reduce_any(high - low > 1), halve, (low, high)
    )
    return low


def _random_bits(
    like: tf.Tensor, seed: tf.Tensor, first_cell: int | tf.Tensor
) -> tf.Tensor:
    """Return 32 random bits for each entry; each row starts at its own counter."""
    n_cells, n_features = tf.unstack(tf.shape(like, tf.int64))
    n_counters = -(-n_features // NUMBERS_PER_COUNTER)
    key, counter = tf.raw_ops.StatelessRandomGetKeyCounter(seed=seed)
    skipped = tf.cast(tf.cast(first_cell, tf.int64) * n_counters, tf.uint64)
    bits = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=(n_cells, n_counters * NUMBERS_PER_COUNTER),
        key=key,
        counter=tf.stack([counter[0] + skipped, counter[1]]),
        alg=PHILOX,
        dtype=tf.uint32,
    )
    return bits[:, :n_features]


def _to_uniform(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Return the middles of 2**32 intervals from 0 to 1, rounded to the type."""
    return (tf.cast(bits, dtype) + 0.5) * 2.0**-32


def _take_entries(values: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.gather(tf.reshape(values, [-1]), entries), tf.float64)


def _series(inverse: tf.Tensor) -> Any:
    """Return what Stirling's formula lacks of log gamma, to 4e-8 up to 1/4."""
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))


def _digamma_series(inverse: tf.Tensor) -> Any:
    """Return ``log(z) - digamma(z)`` of ``1 / z``, to 6e-8 up to 1/4."""
    square = inverse * inverse
    return inverse * (0.5 + inverse * (1 / 12 - square * (1 / 120 - square / 252)))
