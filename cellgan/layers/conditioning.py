"""How a covariate enters a network: conditional normalisation and read-outs.

Codes become one-hot rows once per network (`one_hot`), and a layer takes the row of a
cell's category by a product with them: unlike a gather, its gradient is dense and is
summed in a fixed order.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import keras
import tensorflow as tf

NORMALIZATION_EPSILON = 1e-5
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


class BatchNormalization(keras.layers.Layer):
    """Batch normalisation whose scale and offset may depend on each cell's category.

    Statistics are pooled over the whole batch, of whatever categories. A call updates
    nothing: it returns the statistics, and the owner decides which of them enter the
    running ones (`update`).

    Parameters
    ----------
    n_units
        Width of the input.
    n_categories
        Rows of scale and offset; None for one scale and offset for all cells.
    decay
        Share of the old running statistics that an update keeps.
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
        decay: float = 0.999,
        name: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False)
        self._n_units = n_units
        self._n_categories = n_categories
        self._decay = decay

    def build(self, input_shape: object = None) -> None:
        """Make the weights; the shape of the input is known already."""
        del input_shape
        self.scale, self.offset = _affine_weights(
            self, self._n_units, self._n_categories
        )
        self.moving_mean = self._moving("moving_mean", "zeros")
        self.moving_variance = self._moving("moving_variance", "ones")

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
        normalized = _standardize(inputs, *statistics)
        return _affine(normalized, self.scale, self.offset, categories), statistics

    def update(self, statistics: BatchStatistics) -> None:
        """Let the running statistics take one step towards those of a batch.

        Replicas of a distributed run hold the mean of what each would hold.
        """
        for moving, value in (
            (self.moving_mean, statistics.mean),
            (self.moving_variance, statistics.variance),
        ):
            moving.assign(self._decay * moving + (1 - self._decay) * value)

    def _moving(self, name: str, initializer: str) -> keras.Variable:
        return self.add_weight(
            shape=(self._n_units,),
            initializer=initializer,
            trainable=False,
            aggregation="mean",
            autocast=False,
            name=name,
        )


class LayerNormalization(keras.layers.Layer):
    """Normalisation over the units of each cell, with scale and offset by category.

    Parameters
    ----------
    n_units
        Width of the input.
    n_categories
        Rows of scale and offset; None for one scale and offset for all cells.
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
        name: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype, autocast=False)
        self._n_units = n_units
        self._n_categories = n_categories

    def build(self, input_shape: object = None) -> None:
        """Make the weights; the shape of the input is known already."""
        del input_shape
        self.scale, self.offset = _affine_weights(
            self, self._n_units, self._n_categories
        )

    def call(self, inputs: tf.Tensor, categories: tf.Tensor | None = None) -> tf.Tensor:
        """Normalise ``(n_cells, n_units)`` given one-hot rows or None."""
        mean, variance = tf.nn.moments(inputs, axes=[1], keepdims=True)
        normalized = _standardize(inputs, mean, variance)
        return _affine(normalized, self.scale, self.offset, categories)


class ReadOut(keras.layers.Layer):
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
        super().__init__(name=name, dtype=dtype, autocast=False)
        self._n_units = n_units
        self._n_categories = n_categories
        self._kind = kind
        self._initializer = initializer

    def build(self, input_shape: object = None) -> None:
        """Make the weights; the shape of the input is known already."""
        del input_shape
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

    def _weight(
        self,
        name: str,
        shape: tuple[int | None, ...],
        initializer: keras.Initializer | str,
    ) -> keras.Variable:
        return self.add_weight(
            shape=shape, initializer=initializer, autocast=False, name=name
        )


def _affine_weights(
    layer: keras.layers.Layer, n_units: int, n_categories: int | None
) -> tuple[keras.Variable, keras.Variable]:
    shape = (n_units,) if n_categories is None else (n_categories, n_units)
    return tuple(
        layer.add_weight(
            shape=shape, initializer=initializer, autocast=False, name=name
        )
        for name, initializer in (("scale", "ones"), ("offset", "zeros"))
    )


def _standardize(inputs: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    return (inputs - mean) * tf.math.rsqrt(variance + NORMALIZATION_EPSILON)


def _affine(
    normalized: tf.Tensor,
    scale: keras.Variable,
    offset: keras.Variable,
    categories: tf.Tensor | None,
) -> tf.Tensor:
    if categories is None:
        return normalized * scale + offset
    return normalized * tf.matmul(categories, scale) + tf.matmul(categories, offset)
