"""What all our layers are: their sizes are known when they are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


class SizedLayer(keras.layers.Layer):
    """A layer that needs no input to make its weights.

    A subclass writes `_make_weights`, for Keras to call under the layer's name. Dtype
    policies cast nothing by themselves: what is computed in another type says so.

    Parameters
    ----------
    name
        Name of the layer, a part of its weights' paths.
    dtype
        Keras dtype policy.
    """

    def __init__(self, *, name: str | None = None, dtype: str = "float32") -> None:
        super().__init__(name=name, dtype=dtype, autocast=False)

    def build(self, input_shape: object = None) -> None:
        """Make the weights; the shape of the input is known already."""
        del input_shape
        self._make_weights()

    def _make_weights(self) -> None:
        raise NotImplementedError

    def _weight(
        self,
        name: str,
        shape: Sequence[int | None],
        initializer: keras.Initializer | str,
        **options: Any,
    ) -> keras.Variable:
        """Make one weight; `options` are those of Keras' ``add_weight``."""
        return self.add_weight(
            shape=shape, initializer=initializer, autocast=False, name=name, **options
        )
