"""The networks of the cycle autoencoder: additive heads, and a classifier of fields.

A cell's output is the sum of linear, non-negative heads: one base head, and one head
per field (a covariate) whose latents pass a matrix of the cell's source category and
then one of its target category. For fixed categories the whole is one matrix.

Letters of axes: n cells, g genes, f fields, k latent dimensions, c categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cellgan.layers import Linear, SizedLayer
from cellgan.layers.context_pool import (
    Tiles,
    UnitRows,
    matrices_of,
    product_by_category,
    product_tiles,
)
from cellgan.seeds import derive_seed

BASE = "base"
"""Name of the head that all cells share."""


class Role(NamedTuple):
    """Categories that cells have in one role, source or target."""

    codes: tf.Tensor
    """Places of their matrices, ``(n_cells * n_fields,)``, cell by cell."""
    tiles: Tiles
    """Of these rows."""
    matrices: tf.Tensor
    """Of each tile."""


class Cycle(NamedTuple):
    """What one pass through the heads gives."""

    output: tf.Tensor
    """``(n_cells, n_genes)``."""
    base: tf.Tensor
    """Latents of the base head, ``(n_cells, n_latent)``."""
    encoded: tf.Tensor
    """Latents of the fields, ``(n_cells * n_fields, n_latent)``."""
    hidden: tf.Tensor
    """The same after the source matrix."""
    translated: tf.Tensor
    """The same after the target matrix, times the scale of fields."""


class CycleNetwork(SizedLayer):
    """The heads: a tied base, and per field encoder, matrices by category and decoder.

    Parameters
    ----------
    n_genes, n_latent
        Widths; every head has `n_latent` dimensions.
    n_categories
        Number of categories of each field, in the order of the heads.
    field_scale
        Factor of the contribution of every field.
    seed
        Of the initial weights.

    Notes
    -----
    All matrices start as the original's: uniform, scaled so that an input's weights
    have norm 1. First outputs are therefore thousands of times too large; made smaller,
    latents stay nearly parallel and training ends with the mean profile.

    Matrices of all categories of all fields are one weight, and are stored transposed:
    ``latent @ matrix``.
    """

    def __init__(
        self,
        n_genes: int,
        n_latent: int,
        n_categories: Sequence[int],
        *,
        field_scale: float,
        seed: int,
    ) -> None:
        super().__init__(name="cycle")
        self.n_genes = n_genes
        self.n_latent = n_latent
        self.n_categories = tuple(n_categories)
        self.field_scale = field_scale
        self._seed = seed
        starts = np.cumsum([0, *n_categories])
        self.starts = starts[:-1].astype(np.int32)
        """Where the matrices of each field begin."""
        self.n_matrices = int(starts[-1])
        self.build()

    def _make_weights(self) -> None:
        shapes = {
            "base": (self.n_genes, self.n_latent),
            "encoders": (self.n_genes, len(self.n_categories), self.n_latent),
            "decoders": (len(self.n_categories), self.n_latent, self.n_genes),
            "contexts": (self.n_matrices, self.n_latent, self.n_latent),
        }
        for name, shape in shapes.items():
            initializer = UnitRows(derive_seed(self._seed, name))
            # Updates are computed on every replica, from the same gradients.
            weight = self._weight(
                name, shape, initializer, aggregation="only_first_replica"
            )
            setattr(self, name, weight)

    def role(self, codes: tf.Tensor, *, is_static: bool = False) -> Role:
        """Prepare the products with the matrices of some categories.

        Parameters
        ----------
        codes
            ``(n_cells, n_fields)`` int32.
        is_static
            For XLA: let no value decide about a shape.
        """
        rows = tf.reshape(codes + self.starts, (-1,))
        tiles = product_tiles(rows, self.n_matrices, is_static=is_static)
        # the variable itself: a gather from it copies nothing else
        return Role(rows, tiles, matrices_of(self.contexts.value, tiles))

    def translate(self, expression: tf.Tensor, source: Role, target: Role) -> Cycle:
        """Take cells ``(n_cells, n_genes)`` from source to target categories."""
        n_fields = len(self.n_categories)
        width = n_fields * self.n_latent
        base = tf.matmul(expression, self.base)
        encoded = tf.matmul(expression, tf.reshape(self.encoders, (-1, width)))
        rows = tf.reshape(encoded, (-1, self.n_latent))
        hidden = product_by_category(rows, source.matrices, source.tiles)
        translated = product_by_category(hidden, target.matrices, target.tiles)
        translated *= self.field_scale
        output = tf.matmul(base, self.base, transpose_b=True) + tf.matmul(
            tf.reshape(translated, (-1, width)),
            tf.reshape(self.decoders, (width, -1)),
        )
        return Cycle(output, base, rows, hidden, translated)

    def dense_gradients(
        self, expression: tf.Tensor, passes: Sequence[Cycle], slopes: Sequence[Cycle]
    ) -> list[tf.Tensor]:
        """Return the gradients of base, encoders and decoders.

        Parameters
        ----------
        expression
            The cells of all passes, one pass after the other, ``(n_rows, n_genes)``.
        passes
            What each pass gave.
        slopes
            Gradients of a loss with respect to that.
        """
        n_rows = tf.shape(expression)[0]
        width = len(self.n_categories) * self.n_latent
        rows = tf.concat([expression, *(of.output for of in slopes)], 0)
        of_rows = tf.concat([of.base for of in (*slopes, *passes)], 0)
        encoded = tf.concat([of.encoded for of in slopes], 0)
        translated = tf.concat([of.translated for of in passes], 0)
        gradients = [
            # both ends of the base head: it encodes and decodes
            tf.matmul(rows, of_rows, transpose_a=True),
            tf.matmul(
                rows[:n_rows], tf.reshape(encoded, (-1, width)), transpose_a=True
            ),
            tf.matmul(
                tf.reshape(translated, (-1, width)), rows[n_rows:], transpose_a=True
            ),
        ]
        weights = (self.base, self.encoders, self.decoders)
        return [
            tf.reshape(gradient, weight.shape)
            for gradient, weight in zip(gradients, weights, strict=True)
        ]

    def by_field(self, rows: tf.Tensor) -> tf.Tensor:
        """Return latents as ``(n_cells, n_fields, n_latent)``."""
        return tf.reshape(rows, (-1, len(self.n_categories), self.n_latent))

    def contributions(self, cycle: Cycle) -> tf.Tensor:
        """Return what each head adds, ``(n_fields + 1, n_cells, n_genes)``, base first.

        They sum to the output.
        """
        base = tf.matmul(cycle.base, self.base, transpose_b=True)
        translated = self.by_field(cycle.translated)
        fields = tf.einsum("nfk,fkg->fng", translated, self.decoders)
        return tf.concat([base[None], fields], axis=0)


class FieldClassifier(SizedLayer):
    """Recognises the category of every field: one hidden layer, a read-out per field.

    Parameters
    ----------
    n_genes, width
        Widths of the input and of the hidden layer.
    n_categories
        Number of categories of each field.
    seed
        Of the initial weights, uniform within ``1 / sqrt(inputs)`` of 0.
    """

    def __init__(
        self, n_genes: int, width: int, n_categories: Sequence[int], *, seed: int
    ) -> None:
        super().__init__(name="classifier")
        self._sizes = list(n_categories)
        self.shared = Linear.uniform(
            n_genes,
            width,
            derive_seed(seed, "shared"),
            name="shared",
            dtype="float32",
        )
        self.heads = Linear.uniform(
            width,
            sum(n_categories),
            derive_seed(seed, "heads"),
            name="heads",
            dtype="float32",
        )
        self.build()

    def _make_weights(self) -> None:
        self.shared.build()
        self.heads.build()

    def call(self, expression: tf.Tensor) -> list[tf.Tensor]:
        """Return the logits of each field, ``(n_cells, n_categories)``."""
        logits = self.heads(tf.nn.relu(self.shared(expression)))
        return list(tf.split(logits, self._sizes, axis=1))


def stacked(codes: Mapping[str, tf.Tensor], fields: Sequence[str]) -> tf.Tensor:
    """Return the codes of some fields as columns, ``(n_cells, n_fields)`` int32."""
    return tf.stack([tf.cast(codes[name], tf.int32) for name in fields], axis=1)


def variables_of(*layers: keras.layers.Layer) -> list[keras.Variable]:
    """Return the trainable variables of layers, in order."""
    return [weight for layer in layers for weight in layer.trainable_variables]
