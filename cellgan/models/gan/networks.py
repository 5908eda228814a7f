"""The two networks of scGAN and cscGAN.

All cells here are library-size-normalised expression.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from cellgan.layers import (
    BatchStatistics,
    Linear,
    ReadOut,
    ReadOutKind,
    SizedLayer,
    glorot_uniform,
    he_normal,
    one_hot,
    scale_to_library_size,
)
from cellgan.layers.stacks import (
    Normalization,
    dense_stack,
    normalizations,
    update_norms,
)
from cellgan.seeds import derive_seed

GENERATOR_DECAY = 0.999
"""Share of the old running statistics that an update keeps."""


class Generated(NamedTuple):
    """What a generator returns."""

    cells: tf.Tensor
    """``(n_cells, n_genes)``, non-negative, scaled to the library size."""
    unscaled: tf.Tensor
    """The same before scaling."""
    statistics: tuple[BatchStatistics, ...]
    """Of the units of each batch-normalised layer, those that were used."""


class Generator(SizedLayer):
    """Maps noise to cells: dense, normalised, rectified layers, then a rectified one.

    Parameters
    ----------
    widths
        Of the noise, of each hidden layer, and the number of genes.
    n_categories
        Categories that the normalisation depends on; None for none.
    normalization
        Of every hidden layer, the first included. With ``"none"`` the generator ignores
        the categories.
    library_size
        Sum of each generated cell; None leaves the output unscaled.
    seed
        Of the initial weights.
    dtype
        Keras dtype policy.
    """

    def __init__(
        self,
        widths: Sequence[int],
        n_categories: int | None = None,
        *,
        normalization: Normalization = "batchnorm",
        library_size: float | None = None,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name="generator", dtype=dtype)
        self._n_categories = n_categories
        self.n_latent = widths[0]
        self.uses_codes = n_categories is not None and normalization != "none"
        self._library_size = library_size
        self.linears = [
            Linear(
                n_inputs,
                n_outputs,
                glorot_uniform(derive_seed(seed, "generator", index)),
                use_bias=False,
                name=f"layer_{index}",
                dtype=dtype,
            )
            for index, n_inputs, n_outputs in _numbered_layers(widths[:-1])
        ]
        self.norms = normalizations(
            normalization, widths[1:-1], n_categories, dtype=dtype
        )
        n_last, n_genes = widths[-2:]
        self.last = Linear(
            n_last,
            n_genes,
            he_normal(n_last, n_genes, derive_seed(seed, "generator", "output")),
            name="output",
            dtype=dtype,
        )
        self.build()

    def _make_weights(self) -> None:
        for layer in (*self.linears, *self.norms, self.last):
            layer.build()

    def call(
        self, noise: tf.Tensor, codes: tf.Tensor, *, training: bool = False
    ) -> Generated:
        """Make cells.

        Parameters
        ----------
        noise
            Standard normal, ``(n_cells, n_latent)``.
        codes
            Category of each cell, ``(n_cells,)``.
        training
            Normalise by the statistics of this batch; otherwise by the running ones.
        """
        categories = one_hot(codes, self._n_categories, self.variable_dtype)
        hidden, statistics = dense_stack(
            noise,
            self.linears,
            self.norms,
            lambda units, _: tf.nn.relu(units),
            categories=categories,
            training=training,
        )
        unscaled = tf.nn.relu(self.last(hidden))
        cells = scale_to_library_size(unscaled, self._library_size)
        return Generated(cells, unscaled, tuple(statistics))

    def update_running_statistics(self, statistics: Sequence[BatchStatistics]) -> None:
        """Let the running statistics take one step towards those of a batch."""
        update_norms(self.norms, statistics, GENERATOR_DECAY)


class Critic(SizedLayer):
    """Scores cells: dense rectified layers, then a read-out of the category.

    Parameters
    ----------
    widths
        Number of genes, then of each hidden layer.
    n_categories
        Categories that the read-out depends on; None with a plain one.
    read_out
        Kind of `cellgan.layers.ReadOut`.
    seed
        Of the initial weights.
    dtype
        Keras dtype policy.
    """

    def __init__(
        self,
        widths: Sequence[int],
        n_categories: int | None = None,
        *,
        read_out: ReadOutKind = "plain",
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name="critic", dtype=dtype)
        self._n_categories = n_categories
        self.linears = [
            Linear(
                n_inputs,
                n_outputs,
                he_normal(n_inputs, n_outputs, derive_seed(seed, "critic", index)),
                name=f"layer_{index}",
                dtype=dtype,
            )
            for index, n_inputs, n_outputs in _numbered_layers(widths)
        ]
        self.read_out = ReadOut(
            widths[-1],
            n_categories,
            read_out,
            glorot_uniform(derive_seed(seed, "critic", "output")),
            name="output",
            dtype=dtype,
        )
        self.build()

    def _make_weights(self) -> None:
        for layer in (*self.linears, self.read_out):
            layer.build()

    def call(self, cells: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """Return the scores ``(n_cells,)`` of cells ``(n_cells, n_genes)``."""
        return self.read_out(self._activations(cells)[-1], self._categories(codes))

    def score_gradient(self, cells: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """Return the derivative of each score by its cell, ``(n_cells, n_genes)``.

        Notes
        -----
        The critic is linear between the kinks of its rectifiers, so the derivative is a
        product of kernels with the rows of inactive units left out. Written so, its own
        derivatives need no second pass through automatic differentiation, and none goes
        to `cells`: there it is zero almost everywhere.
        """
        gradient = self.read_out.slope(self._categories(codes))
        activations = self._activations(cells)
        for linear, hidden in zip(
            reversed(self.linears), reversed(activations), strict=True
        ):
            is_active = tf.cast(hidden > 0, gradient.dtype)
            gradient = linear.transposed(gradient * is_active)
        return gradient

    def _activations(self, cells: tf.Tensor) -> list[tf.Tensor]:
        activations = []
        for linear in self.linears:
            cells = tf.nn.relu(linear(cells))
            activations.append(cells)
        return activations

    def _categories(self, codes: tf.Tensor) -> tf.Tensor | None:
        return one_hot(codes, self._n_categories, self.variable_dtype)


def _numbered_layers(widths: Sequence[int]) -> list[tuple[int, int, int]]:
    pairs = itertools.pairwise(widths)
    return [(index, *pair) for index, pair in enumerate(pairs, start=1)]
