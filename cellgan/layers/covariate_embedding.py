"""A covariate as a vector that networks add to what else they are conditioned on."""

from __future__ import annotations

import keras
import tensorflow as tf

from cellgan.layers.sized import SizedLayer


class CovariateEmbedding(SizedLayer):
    """One trained vector for each category; the null code's is exactly zero.

    Codes 0 to ``n_categories - 1`` are categories, ``n_categories`` is the null code:
    the condition of a cell that has it does not depend on the covariate.

    Parameters
    ----------
    n_categories
        Number of categories, without the null code.
    width
        Length of the vectors.
    seed
        Of the initial vectors, which are standard normal.
    name
        Name of the layer.
    dtype
        Keras dtype policy.
    """

    def __init__(
        self,
        n_categories: int,
        width: int,
        seed: int,
        *,
        name: str | None = None,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._shape = (n_categories, width)
        self._seed = seed

    def _make_weights(self) -> None:
        initializer = keras.initializers.RandomNormal(stddev=1.0, seed=self._seed)
        self.table = self._weight("table", self._shape, initializer)

    def call(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the vectors ``(n_cells, width)`` of codes ``(n_cells,)``."""
        # A product, not a gather: its gradient is dense, and the one-hot row of the
        # null code, one past the last column, is all zeros.
        rows = tf.one_hot(codes, self._shape[0], dtype=self.variable_dtype)
        return tf.matmul(rows, self.table)
