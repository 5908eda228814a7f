"""Log-probabilities of counts, and losses of them, with their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from cellgan.layers.count_draws import (
    DISPERSION_RANGE,
)

MEAN_EPSILON = 1e-8
"""Added to means and inverse dispersions of negative binomials, as in CFGen."""


PROBABILITY_EPSILON = float(np.finfo(np.float32).eps)
"""Probabilities of Bernoulli variables are kept this far from 0 and 1."""


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


def _series(inverse: tf.Tensor) -> Any:
    """Return what Stirling's formula lacks of log gamma, to 4e-8 up to 1/4."""
    square = inverse * inverse
    return inverse * (1 / 12 - square * (1 / 360 - square / 1260))


def _digamma_series(inverse: tf.Tensor) -> Any:
    """Return ``log(z) - digamma(z)`` of ``1 / z``, to 6e-8 up to 1/4."""
    square = inverse * inverse
    return inverse * (0.5 + inverse * (1 / 12 - square * (1 / 120 - square / 252)))
