"""Distributions of counts and their log-probabilities.

Cells are rows. Log-probabilities are functions of tensors that any compiled step may
use; counts are data, no gradient goes to them. XLA makes one pass over memory of them,
TensorFlow's graphs one for each operation: where speed matters, compile them.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from cellgan.layers.count_draws import (
    DrawnCounts,
    random_bits,
    sample_bernoulli,
    sample_negative_binomial,
    sample_poisson,
    to_uniform,
)
from cellgan.layers.log_probabilities import (
    bernoulli_log_prob,
    negative_binomial_log_prob,
    poisson_log_prob,
    zero_inflated_log_prob,
)


class NegativeBinomial(NamedTuple):
    """Negative binomial counts of variance ``mean + mean**2 / inverse_dispersion``."""

    mean: tf.Tensor
    """``(n_cells, n_features)``."""
    inverse_dispersion: tf.Tensor
    """``(n_features,)``, or one row per cell."""

    def log_prob(self, counts: tf.Tensor) -> tf.Tensor:
        """Return `negative_binomial_log_prob`."""
        return negative_binomial_log_prob(counts, self.mean, self.inverse_dispersion)

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> DrawnCounts:
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

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> DrawnCounts:
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

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> DrawnCounts:
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

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> DrawnCounts:
        """Return counts, drawn as those of a negative binomial, or 0."""
        of_counts, of_zeros = (
            tf.random.experimental.stateless_fold_in(seed, index, alg="philox")
            for index in range(2)
        )
        counts = sample_negative_binomial(
            self.expected, self.inverse_dispersion, of_counts, first_cell
        )
        tail = to_uniform(
            random_bits(self.zero_logits, of_zeros, first_cell), self.zero_logits.dtype
        )
        stays = tf.reshape(tail > tf.sigmoid(self.zero_logits), [-1])
        kept = tf.cast(tf.gather(stays, counts.entries), tf.float32)
        return counts._replace(values=counts.values * kept)


CountDistribution = (
    NegativeBinomial | Poisson | Bernoulli | ZeroInflatedNegativeBinomial
)
