"""The network of latent flow matching: how latents move, given time and a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.layers import (
    BatchStatistics,
    Linear,
    SizedLayer,
)
from cellgan.layers.covariate_embedding import CovariateEmbedding
from cellgan.layers.stacks import (
    Normalization,
    all_unbiased,
    drop_units,
    normalizations,
    normalize,
    update_norms,
)
from cellgan.layers.time_embedding import LARGEST_ANGLE, sinusoidal_features
from cellgan.sampling.guidance import weighted_sum
from cellgan.seeds import derive_seed


class VelocityNet(SizedLayer):
    """Residual blocks, each shifted by a projection of time and condition.

    Time is 0 at the noise and 1 at the data. What does not change along the way is
    computed once, by `condition`; time is embedded once for all cells that share it.

    Parameters
    ----------
    n_latent
        Width of the latents.
    n_categories
        Number of categories of each covariate, without its null code.
    log_library_sizes
        Smallest and largest log library size of each modality whose library size is
        embedded; empty for none. Sizes outside are allowed.
    width
        Of the blocks.
    n_embedding
        Width of the condition embedding, even and at least 4.
    n_blocks
        Residual blocks of two layers each.
    normalization
        Before every activation of the blocks and of the output.
    dropout
        Rate within each block, in training only.
    largest_angle
        Of `cellgan.layers.time_embedding.sinusoidal_features`.
    seed
        Of the initial weights.
    dtype
        Keras dtype policy.

    Raises
    ------
    ValueError
        If `n_embedding` does not suit, or a range of library sizes is empty.

    Notes
    -----
    At first the second layer of every block is zero: then neither time nor condition
    changes the velocity.

    References
    ----------
    Palma et al. (2025), Multi-Modal and Multi-Attribute Generation of Single Cells with
    CFGen, appendix. https://arxiv.org/abs/2407.11734
    """

    def __init__(  # noqa: PLR0913  (what a checkpoint's parameters say, one by one)
        self,
        n_latent: int,
        n_categories: Mapping[str, int],
        log_library_sizes: Mapping[str, tuple[float, float]],
        *,
        width: int = 64,
        n_embedding: int = 100,
        n_blocks: int = 3,
        normalization: Normalization = "none",
        dropout: float = 0.0,
        largest_angle: float = LARGEST_ANGLE,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name="velocity_net", dtype=dtype)
        self.n_latent = n_latent
        self.null_codes = dict(n_categories)
        self._log_library_sizes = _checked_ranges(log_library_sizes)
        self._width = width
        self._n_blocks = n_blocks
        self._dropout = dropout
        self._n_embedding = n_embedding
        self._largest_angle = largest_angle
        self._seed = seed

        self.embeddings = [
            CovariateEmbedding(
                n_of_covariate,
                n_embedding,
                derive_seed(seed, "velocity_net", "covariate", name),
                name=f"covariate_{index}",
                dtype=dtype,
            )
            for index, (name, n_of_covariate) in enumerate(n_categories.items())
        ]
        self.time_layers = [
            self._linear(f"time_{index}", n_embedding, n_embedding) for index in (1, 2)
        ]
        self.library_size_layers = [
            self._linear(f"library_size_{index}", n_embedding, n_embedding)
            for index in (1, 2)
            if log_library_sizes
        ]
        self.input_layer = self._linear("input", n_latent, width)
        # The projections of all blocks side by side: one product instead of many.
        self.projection = self._linear("projection", n_embedding, n_blocks * width)
        self.first_layers = [
            self._linear(f"block_{index}_first", width, width)
            for index in range(1, n_blocks + 1)
        ]
        self.second_layers = [
            Linear(
                width,
                width,
                keras.initializers.Zeros(),
                name=f"block_{index}_second",
                dtype=dtype,
            )
            for index in range(1, n_blocks + 1)
        ]
        self.norms = normalizations(
            normalization, [width] * (2 * n_blocks + 1), dtype=dtype
        )
        self.output_layer = self._linear("output", width, n_latent)
        self.build()

    @property
    def uses_library_size(self) -> bool:
        """Whether a library size is part of the condition."""
        return bool(self._log_library_sizes)

    def _linear(self, name: str, n_inputs: int, n_outputs: int) -> Linear:
        initializer = keras.initializers.LecunNormal(
            derive_seed(self._seed, "velocity_net", name)
        )
        dtype = self.dtype_policy.name
        return Linear(n_inputs, n_outputs, initializer, name=name, dtype=dtype)

    def _make_weights(self) -> None:
        # Refuses a width that does not suit, before the first batch.
        sinusoidal_features(tf.zeros((1,)), self._n_embedding)
        for layer in (
            *self.embeddings,
            *self.time_layers,
            *self.library_size_layers,
            self.input_layer,
            self.projection,
            *self.first_layers,
            *self.second_layers,
            *self.norms,
            self.output_layer,
        ):
            layer.build()

    def embed_as_nothing(self, covariate: str, codes: npt.NDArray[np.integer]) -> None:
        """Let categories be like the null code: those that no training cell has."""
        index = list(self.null_codes).index(covariate)
        table = self.embeddings[index].table
        values = table.numpy()
        values[codes] = 0
        table.assign(values)

    def condition(
        self,
        covariate_codes: Mapping[str, tf.Tensor],
        log_library_size: Mapping[str, tf.Tensor],
    ) -> tf.Tensor:
        """Embed what cells are conditioned on; it is the same at all times.

        Parameters
        ----------
        covariate_codes
            Codes of each covariate, ``(n_cells,)``; null codes add nothing.
        log_library_size
            Of each modality whose library size is embedded, ``(n_cells,)``; others are
            not looked at.

        Returns
        -------
        ``(n_cells, n_embedding)``; a single row of zeros if the network knows neither
        covariates nor library sizes.
        """
        embedded = [
            embedding(covariate_codes[name])
            for name, embedding in zip(self.null_codes, self.embeddings, strict=True)
        ]
        embedded += [
            self._embed(
                (log_library_size[modality] - smallest) / (largest - smallest),
                self.library_size_layers,
            )
            for modality, (smallest, largest) in self._log_library_sizes.items()
        ]
        if not embedded:
            return tf.zeros((1, self._n_embedding), self.variable_dtype)
        return tf.add_n(embedded)

    def call(
        self,
        latent: tf.Tensor,
        time: tf.Tensor,
        condition: tf.Tensor,
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Return the velocity ``(n_cells, n_latent)``.

        Parameters
        ----------
        latent
            ``(n_cells, n_latent)``.
        time
            ``(n_cells,)``, or a scalar that all cells share.
        condition
            Of `condition`, ``(n_cells, n_embedding)`` or a row that all cells share.
        training
            Drop units, and normalise by the statistics of this batch.
        seed
            Stateless seed of dropout, ``(2,)`` int32; needed in training with dropout.
        """
        return self.with_statistics(
            latent, time, condition, training=training, seed=seed
        )[0]

    def with_statistics(
        self,
        latent: tf.Tensor,
        time: tf.Tensor,
        condition: tf.Tensor,
        *,
        training: bool = True,
        seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tuple[BatchStatistics, ...]]:
        """Return the velocity, and the statistics that batch normalisation has used."""
        shifts = self._shifts(time, condition[None])
        hidden, statistics = self._hidden(latent, shifts, training=training, seed=seed)
        return self.output_layer(hidden[0]), statistics

    def weighted(
        self,
        latent: tf.Tensor,
        time: tf.Tensor,
        conditions: tf.Tensor,
        weights: Sequence[float],
        rows: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Return the weighted sum of the velocities under several conditions.

        What comes before the first condition is computed once, and so is the output
        layer, of the sum.

        Parameters
        ----------
        latent
            ``(n_cells, n_latent)``.
        time
            A scalar, or ``(n_cells,)``.
        conditions
            Of `condition`, ``(n_branches, n_cells, n_embedding)``. With `rows` and a
            scalar time, distinct ones only, ``(n_rows, n_embedding)``.
        weights
            Of the branches; they add up to 1.
        rows
            Row of `conditions` that each cell has in each branch,
            ``(n_branches, n_cells)``. A condition that many cells share is then
            combined with time once for all of them.
        """
        shifts = self._shifts(time, conditions)
        if rows is not None:
            shifts = tf.gather(shifts, rows)
        hidden, _ = self._hidden(latent, shifts)
        return self.output_layer(weighted_sum(tf.unstack(hidden), weights))

    def update_running_statistics(self, statistics: Sequence[BatchStatistics]) -> None:
        """Let the running statistics take one step towards those of a batch."""
        update_norms(self.norms, statistics)

    def _hidden(
        self,
        latent: tf.Tensor,
        shifts: tf.Tensor,
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tuple[BatchStatistics, ...]]:
        """Return what the output layer reads, ``(n_branches, n_cells, width)``."""
        statistics: list[BatchStatistics] = []

        def activate(index: int, units: tf.Tensor) -> tf.Tensor:
            """Normalise and activate units of any rank, as rows of one matrix."""
            rows = tf.reshape(units, (-1, self._width))
            rows, used = normalize(self.norms, index, rows, training=training)
            statistics.extend(all_unbiased(used, rows) if training else used)
            return tf.nn.silu(rows)

        def by_branch(rows: tf.Tensor, n_branches: int) -> tf.Tensor:
            return tf.reshape(rows, (n_branches, -1, self._width))

        if training and self._dropout and seed is None:
            msg = "VelocityNet: training with dropout needs a seed."
            raise ValueError(msg)
        n_branches = shifts.shape[0]
        of_block = tf.split(shifts, self._n_blocks, axis=2)
        hidden = self.input_layer(latent)[None]
        for index in range(self._n_blocks):
            rows = self.first_layers[index](activate(2 * index, hidden))
            # One branch before the first shift, all of them after it.
            shifted = by_branch(rows, hidden.shape[0]) + of_block[index]
            rows = activate(2 * index + 1, shifted)
            if training and self._dropout:
                rows = drop_units(rows, self._dropout, seed, index)
            hidden += by_branch(self.second_layers[index](rows), n_branches)
        rows = activate(2 * self._n_blocks, hidden)
        return by_branch(rows, hidden.shape[0]), tuple(statistics)

    def _shifts(self, time: tf.Tensor, conditions: tf.Tensor) -> tf.Tensor:
        """Return the shifts of all blocks side by side, in shape of `conditions`."""
        time = tf.convert_to_tensor(time, self.variable_dtype)
        embedded = self._embed(tf.reshape(time, (-1,)), self.time_layers)
        active = tf.nn.silu(embedded + conditions)
        projected = self.projection(tf.reshape(active, (-1, self._n_embedding)))
        shape = (*active.shape[:-2], -1, self._n_blocks * self._width)
        return tf.reshape(projected, shape)

    def _embed(self, positions: tf.Tensor, layers: Sequence[Linear]) -> tf.Tensor:
        first, second = layers
        features = sinusoidal_features(
            positions, self._n_embedding, self._largest_angle
        )
        return second(tf.nn.silu(first(features)))


def _checked_ranges(
    ranges: Mapping[str, tuple[float, float]],
) -> dict[str, tuple[float, float]]:
    for modality, (smallest, largest) in ranges.items():
        if not smallest < largest:
            message = (
                f"log library sizes of {modality}: from {smallest} to {largest}; "
                f"they must differ to be embedded."
            )
            raise ValueError(message)
    return dict(ranges)
