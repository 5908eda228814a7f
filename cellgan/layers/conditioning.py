"""How a covariate enters a network: conditional normalisation and read-outs.

Codes become one-hot rows once per network (`one_hot`), and a layer takes the row of a
cell's category by a product with them: unlike a gather, its gradient is dense and is
summed in a fixed order.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import keras
import tensorflow as tf

from cellgan.layers.sized import SizedLayer

NORMALIZATION_EPSILON = 1e-5
RUNNING_DECAY = 0.9
"""Share of the old running statistics that an update keeps: PyTorch's default."""
ReadOutKind = Literal["plain", "per_category", "projection"]


class BatchStatistics(NamedTuple):
    """Mean and biased variance of each unit over the cells of a batch."""

    mean: tf.Tensor
    """``(n_units,)``."""
    variance: tf.Tensor
    """``(n_units,)``."""


def one_hot(codes: tf.Tensor, n_categories: int | None, dtype: str) -> tf.Tensor | None:
    """Return codes ``(n_cells,)`` as one-hot rows; None without categories."""
    return (
        None if n_categories is None else tf.one_hot(codes, n_categories, dtype=dtype)
    )


class _Normalization(SizedLayer):
    """What follows a normalisation: scale and offset, one for all cells or by category.

    Parameters
    ----------
    n_units
        Width of the input.
    n_categories
        Rows of scale and offset; None for one scale and offset for all cells.
    epsilon
        Added to variances.
    name
        Name of the layer.
    dtype
        Keras dtype policy.
    """

    def __init__(
        self,
        n_units: int,
        n_categories: int | None = None,
        *,
        epsilon: float = NORMALIZATION_EPSILON,
        name: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.epsilon = epsilon
        self._n_units = n_units
        self._n_categories = n_categories

    def _make_weights(self) -> None:
        n_units, n_categories = self._n_units, self._n_categories
        shape = (n_units,) if n_categories is None else (n_categories, n_units)
        self.scale = self._weight("scale", shape, "ones")
        self.offset = self._weight("offset", shape, "zeros")

    @property
    def parameters(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Scale and offset, as they are."""
        return tf.convert_to_tensor(self.scale), tf.convert_to_tensor(self.offset)

    def _normalize(
        self,
        inputs: tf.Tensor,
        mean: tf.Tensor,
        variance: tf.Tensor,
        categories: tf.Tensor | None,
    ) -> tf.Tensor:
        """Standardise by the statistics given, then scale and shift."""
        scale, offset = self.parameters
        if categories is not None:
            scale, offset = (tf.matmul(categories, of) for of in (scale, offset))
        return normalized(inputs, mean, variance, scale, offset, self.epsilon)


def normalized(
    inputs: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    epsilon: float = NORMALIZATION_EPSILON,
) -> tf.Tensor:
    """Standardise by statistics, then scale and shift.

    Parameters
    ----------
    inputs
        ``(..., n_units)``.
    mean, variance, scale, offset
        Of units or of rows: of any shape that goes with that of `inputs`.
    epsilon
        Added to the variance.
    """
    return (inputs - mean) * tf.math.rsqrt(variance + epsilon) * scale + offset


def unbiased(statistics: BatchStatistics, n_cells: tf.Tensor) -> BatchStatistics:
    """Return the statistics of a batch with the unbiased variance, as PyTorch keeps."""
    n = tf.cast(n_cells, statistics.variance.dtype)
    return statistics._replace(
        variance=statistics.variance * (n / tf.maximum(n - 1, 1))
    )


class BatchNormalization(_Normalization):
    """Batch normalisation whose scale and offset may depend on each cell's category.

    Statistics are pooled over the whole batch, of whatever categories. A call updates
    nothing: it returns the statistics, and the owner decides which of them enter the
    running ones (`update`).
    """

    def _make_weights(self) -> None:
        super()._make_weights()
        running = {"trainable": False, "aggregation": "mean"}
        shape = (self._n_units,)
        self.moving_mean = self._weight("moving_mean", shape, "zeros", **running)
        self.moving_variance = self._weight("moving_variance", shape, "ones", **running)

    def call(
        self,
        inputs: tf.Tensor,
        categories: tf.Tensor | None = None,
        *,
        training: bool = False,
    ) -> tuple[tf.Tensor, BatchStatistics]:
        """Normalise ``(n_cells, n_units)``; return it and the statistics used.

        Parameters
        ----------
        inputs
            ``(n_cells, n_units)``.
        categories
            One-hot rows ``(n_cells, n_categories)``; None without categories.
        training
            Use the statistics of this batch; otherwise the running ones.
        """
        statistics = (
            BatchStatistics(*tf.nn.moments(inputs, axes=[0]))
            if training
            else BatchStatistics(
                tf.convert_to_tensor(self.moving_mean),
                tf.convert_to_tensor(self.moving_variance),
            )
        )
        return self._normalize(inputs, *statistics, categories), statistics

    def update(self, statistics: BatchStatistics, decay: float) -> None:
        """Let the running statistics take one step towards those of a batch.

        Replicas of a distributed run hold the mean of what each would hold.

        Parameters
        ----------
        statistics
            Of the batch.
        decay
            Share of the old statistics that is kept.
        """
        for moving, value in (
            (self.moving_mean, statistics.mean),
            (self.moving_variance, statistics.variance),
        ):
            moving.assign(decay * moving + (1 - decay) * value)


class LayerNormalization(_Normalization):
    """Normalisation over the units of each cell, with scale and offset by category."""

    def call(self, inputs: tf.Tensor, categories: tf.Tensor | None = None) -> tf.Tensor:
        """Normalise ``(n_cells, n_units)`` given one-hot rows or None."""
        mean, variance = tf.nn.moments(inputs, axes=[1], keepdims=True)
        return self._normalize(inputs, mean, variance, categories)


class ReadOut(SizedLayer):
    """One score per cell, linear in the units, which may depend on the category.

    Parameters
    ----------
    n_units
        Width of the input.
    n_categories
        Number of categories; None only with kind ``"plain"``.
    kind
        - ``"plain"``: ``h . w + b``, the same for all cells;
        - ``"per_category"``: ``h . P[c] + q[c]``, nothing shared;
        - ``"projection"``: ``h . (P[c] + w) + b``.
    initializer
        Of ``P`` (n_categories, n_units, 1) and ``w`` (n_units, 1); biases start at 0.
    name
        Name of the layer.
    dtype
        Keras dtype policy.

    References
    ----------
    Miyato and Koyama (2018), cGANs with Projection Discriminator, section 3.
    https://arxiv.org/abs/1802.05637
    """

    def __init__(
        self,
        n_units: int,
        n_categories: int | None,
        kind: ReadOutKind,
        initializer: keras.Initializer,
        *,
        name: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._n_units = n_units
        self._n_categories = n_categories
        self._kind = kind
        self._initializer = initializer

    def _make_weights(self) -> None:
        has_shared = self._kind in ("plain", "projection")
        self.projection = self.projection_bias = self.kernel = self.bias = None
        if self._kind != "plain":
            # The last axis makes Glorot's limit sqrt(6 / (C (n_units + 1))).
            self.projection = self._weight(
                "projection", (self._n_categories, self._n_units, 1), self._initializer
            )
        if not has_shared:
            self.projection_bias = self._weight(
                "projection_bias", (self._n_categories, 1), "zeros"
            )
        if has_shared:
            self.kernel = self._weight("kernel", (self._n_units, 1), self._initializer)
            self.bias = self._weight("bias", (1,), "zeros")

    def call(self, inputs: tf.Tensor, categories: tf.Tensor | None = None) -> tf.Tensor:
        """Return scores ``(n_cells,)`` of ``(n_cells, n_units)`` and one-hot rows."""
        scores = tf.reduce_sum(inputs * self.slope(categories), axis=1)
        if self.projection_bias is not None:
            return scores + tf.matmul(categories, self.projection_bias)[:, 0]
        return scores + self.bias

    def slope(self, categories: tf.Tensor | None = None) -> tf.Tensor:
        """Return the derivative of the scores, ``(n_cells, n_units)``.

        One row, ``(1, n_units)``, when it is the same for all cells.
        """
        slope = None if self.kernel is None else self.kernel[None, :, 0]
        if self.projection is None:
            return slope
        rows = tf.matmul(categories, self.projection[:, :, 0])
        return rows if slope is None else rows + slope
