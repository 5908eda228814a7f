"""Seeded draws of counts.

A draw is a quantile: entry ``(i, j)`` has one uniform number, a function of the seed,
of ``first_cell + i`` and of ``j`` alone, so a cell's counts do not depend on what else
is drawn with it. They are the same on all devices up to rounding of the quantiles. The
number of operations depends on the values, so draws cannot be compiled with XLA; what
all of them take is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

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


class DrawnCounts(NamedTuple):
    """Counts of cells: most entries are 0, and those that are not listed are."""

    entries: tf.Tensor
    """Increasing int64, ``(n_listed,)``: ``row * n_features + column``."""
    values: tf.Tensor
    """Whole numbers, ``(n_listed,)`` float32; some may be 0."""
    shape: tf.Tensor
    """``(n_cells, n_features)``."""

    def matrix(self) -> sp.csr_matrix:
        """Return the counts ``(n_cells, n_features)``, in memory."""
        n_cells, n_features = map(int, self.shape)
        values = self.values.numpy()
        drawn = np.flatnonzero(values > 0)
        entries = self.entries.numpy().take(drawn)
        row_starts = np.arange(n_cells + 1) * n_features
        ends = np.searchsorted(entries, row_starts)
        columns = entries - np.repeat(row_starts[:-1], np.diff(ends))
        parts = (values.take(drawn), columns.astype(np.int32), ends.astype(np.int32))
        return sp.csr_matrix(parts, (n_cells, n_features))


def sample_negative_binomial(
    mean: tf.Tensor,
    inverse_dispersion: tf.Tensor,
    seed: tf.Tensor,
    first_cell: int | tf.Tensor = 0,
) -> DrawnCounts:
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
    Those that are not 0, and some zeros.

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
) -> DrawnCounts:
    """Draw Poisson counts.

    Parameters
    ----------
    rate
        ``(n_cells, n_features)``, non-negative.
    seed, first_cell
        As of `sample_negative_binomial`.

    Returns
    -------
    Those that are not 0, and some zeros.
    """

    def of_entries(entries: tf.Tensor) -> _Counting:
        r = _take_entries(rate, entries)
        return _Counting(-r, r, tf.zeros_like(r), (r,))

    def survival(k: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
        return tf.math.igamma(k, r)

    return _draw_counts(rate, of_entries, survival, seed, first_cell)


def sample_bernoulli(
    probability: tf.Tensor, seed: tf.Tensor, first_cell: int | tf.Tensor = 0
) -> DrawnCounts:
    """Draw zeros and ones.

    Parameters
    ----------
    probability
        Of 1, ``(n_cells, n_features)``.
    seed, first_cell
        As of `sample_negative_binomial`.

    Returns
    -------
    The ones.
    """
    tail = to_uniform(random_bits(probability, seed, first_cell), probability.dtype)
    ones = tf.where(tf.reshape(tail <= probability, [-1]))[:, 0]
    return DrawnCounts(
        ones, tf.ones_like(ones, tf.float32), tf.shape(probability, tf.int64)
    )


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
) -> DrawnCounts:
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
    bits = tf.reshape(random_bits(mean, seed, first_cell), [-1])
    is_compiled = (mean.shape.num_elements() or 0) >= COMPILED_FROM
    may_be_drawn = tf.function(_may_be_drawn, jit_compile=is_compiled, autograph=False)
    entries = tf.where(may_be_drawn(bits, tf.reshape(mean, [-1])))[:, 0]

    def tails_of(entries: tf.Tensor) -> tf.Tensor:
        return to_uniform(tf.gather(bits, entries), tf.float64)

    # XLA compiles for a fixed number of entries.
    small = tf.function(
        lambda entries: _small_counts(tails_of(entries), of_entries(entries)),
        jit_compile=is_compiled,
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
    return DrawnCounts(entries, tf.cast(counts, tf.float32), tf.shape(mean, tf.int64))


def _may_be_drawn(bits: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """Return which entries may be above 0, without a logarithm of any.

    ``P(X >= 1)`` is at most ``1 - exp(-mean)``, as of Poisson counts, and that at most
    ``mean / (1 + mean / 2)``. The factor is for the rounding of both sides.
    """
    bound = mean / (1 + 0.5 * mean) * (2.0**32 * (1 + 1e-6))
    return tf.cast(bits, mean.dtype) <= bound


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


def random_bits(
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


def to_uniform(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Return the middles of 2**32 intervals from 0 to 1, rounded to the type."""
    return (tf.cast(bits, dtype) + 0.5) * 2.0**-32


def _take_entries(values: tf.Tensor, entries: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.gather(tf.reshape(values, [-1]), entries), tf.float64)
