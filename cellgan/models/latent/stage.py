"""What latent families share: encoded cells, the stage of them, and blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA
from cellgan.layers import SizedLayer
from cellgan.layers.count_draws import DrawnCounts
from cellgan.models.base import (
    Block,
    GeneratedCells,
    Reconstruction,
    TrainingStage,
    sparse_rows,
)
from cellgan.models.latent.networks import CountAutoencoder, Expression
from cellgan.optimizers import update_weights

LATENT = "latent"
"""Key of latents among the features of a batch."""
MOST_CELLS_PER_BLOCK = 512
"""Cells are made in blocks, whatever is asked for, so that a cell's noise and the
shapes it is computed with depend on its index alone."""
MOST_VALUES_PER_BLOCK = 2**23
"""Features of a block's cells together, at most: 32 MB as float32."""


class LatentScale(SizedLayer):
    """Latents in units of their own: mean 0 and deviation 1 in every dimension.

    It is the identity until `fit` has seen latents.

    Parameters
    ----------
    n_latent
        Width of the latents.
    """

    def __init__(self, n_latent: int) -> None:
        super().__init__(name="latent_scale")
        self._n_latent = n_latent
        self.build()

    def _make_weights(self) -> None:
        shape = (self._n_latent,)
        self.mean = self._weight("mean", shape, "zeros", trainable=False)
        self.deviation = self._weight("deviation", shape, "ones", trainable=False)

    def fit(self, latents: npt.NDArray[np.float32]) -> None:
        """Take mean and deviation of some latents ``(n_cells, n_latent)``."""
        deviation = latents.std(axis=0, dtype=np.float64)
        self.mean.assign(latents.mean(axis=0, dtype=np.float64))
        self.deviation.assign(np.where(deviation > 0, deviation, 1.0))

    def call(self, latents: tf.Tensor) -> tf.Tensor:
        """Standardise latents."""
        return (latents - self.mean) / self.deviation

    def restore(self, standardized: tf.Tensor) -> tf.Tensor:
        """Return standardised latents to their own units."""
        return standardized * self.deviation + self.mean


class LatentStage(TrainingStage):
    """Trains a network on latents that are computed once.

    Parameters
    ----------
    encode
        ``features -> latents``, trained; compiled here.
    scale
        Of the latents; fitted when they are computed.
    network
        Built.
    optimizer
        Built here.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    """

    def __init__(
        self,
        encode: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
        scale: LatentScale,
        network: Any,
        optimizer: keras.Optimizer,
        *,
        clip_norm: float | None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self._scale = scale
        self._clip_norm = clip_norm
        optimizer.build(network.trainable_variables)
        self._encode = tf.function(encode, reduce_retracing=True, autograph=False)

    def fit_scale(self, latents: npt.NDArray[np.float32]) -> None:
        """Fit the scale to the latents of all training cells, or leave it as it is."""
        del latents

    def prepare(self, cells: Callable[[], Iterable[CellBatch]]) -> CellBatch:
        """Encode all cells, and fit the scale to their latents."""
        joined = encoded(self._encode, cells())
        latents = joined.features[LATENT]
        self.fit_scale(latents)
        scaled = self._scale(tf.constant(latents)).numpy()
        return joined._replace(features={LATENT: scaled})

    def trackables(self) -> Mapping[str, Any]:
        """Return the network, its optimizer, and the scale of latents."""
        return {
            "network": self.network,
            "optimizer": self.optimizer,
            "scale": self._scale,
        }

    def latents_of(self, batch: CellBatch) -> tf.Tensor:
        """Return the scaled latents of a batch, of cells or of latents."""
        if LATENT in batch.features:
            return batch.features[LATENT]
        return self._scale(self._encode(batch.features))

    def update_network(self, gradients: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
        """Apply gradients of the network's weights; return what to log of it."""
        return update_weights(
            self.optimizer,
            self.network.trainable_variables,
            gradients,
            clip_norm=self._clip_norm,
        )


def encoded(
    encode: Callable[[Mapping[str, tf.Tensor]], tf.Tensor], cells: Iterable[CellBatch]
) -> CellBatch:
    """Return all cells as one batch of arrays, with latents in place of features.

    Parameters
    ----------
    encode
        ``features -> latents (n_cells, n_latent)``.
    cells
        Batches, at least one.
    """
    batches = [
        CellBatch(
            {LATENT: encode(batch.features).numpy()},
            {name: of.numpy() for name, of in batch.library_size.items()},
            {name: of.numpy() for name, of in batch.covariates.items()},
        )
        for batch in cells
    ]
    first = batches[0]
    return CellBatch(
        *(
            {
                name: np.concatenate([getattr(batch, field)[name] for batch in batches])
                for name in getattr(first, field)
            }
            for field in CellBatch._fields
        )
    )


def cells_of_block(
    made: Mapping[str, tf.Tensor | DrawnCounts], block: Block
) -> dict[str, Any]:
    """Return what a request wants of a block, in memory: latents, and sparse features.

    Parameters
    ----------
    made
        Features by modality, and the latents as `LATENT`.
    """
    kept = {}
    for name, of in made.items():
        if isinstance(of, DrawnCounts):
            values = of.matrix()
        else:
            values = of.numpy() if name == LATENT else sparse_rows(of.numpy())
        kept[name] = values[block.in_block]
    return kept


def reconstruct_by(
    autoencoder: CountAutoencoder,
    cells: CellBatch,
    latent: npt.NDArray[np.float32],
    codes: tf.Tensor | None = None,
    *,
    batch_statistics: bool = False,
) -> Reconstruction:
    """Return the RNA that an autoencoder makes of latents, as shares of genes.

    Parameters
    ----------
    autoencoder
        Trained.
    cells
        The counts that latents are of.
    latent
        In the units of the autoencoder, ``(n_cells, n_latent)``.
    codes
        Category of each cell that inverse dispersions depend on, if they do.
    batch_statistics
        As of `CountAutoencoder.decode`.
    """
    decoded = autoencoder.decode(
        tf.constant(latent),
        cells.library_size,
        codes,
        batch_statistics=batch_statistics,
    )[RNA]
    mean = decoded.mean
    shares = tf.math.divide_no_nan(mean, tf.reduce_sum(mean, axis=1, keepdims=True))
    likelihood = None
    if not isinstance(decoded, Expression):
        log_probabilities = decoded.log_prob(cells.features[RNA])
        likelihood = -tf.reduce_sum(log_probabilities, axis=1).numpy()
    return Reconstruction(latent, shares.numpy(), likelihood)


def joined_cells(
    pieces: Sequence[Mapping[str, Any]], *, are_counts: bool
) -> GeneratedCells:
    """Return the cells of consecutive blocks, see `cells_of_block`."""
    features = {
        name: sp.vstack([piece[name] for piece in pieces], format="csr")
        for name in pieces[0]
        if name != LATENT
    }
    latents = np.concatenate([piece[LATENT] for piece in pieces])
    return GeneratedCells(features, are_counts=are_counts, latent=latents)


def block_size(n_features: int) -> int:
    """Return how many cells of so many features are made together."""
    size = MOST_CELLS_PER_BLOCK
    while size > 1 and size * n_features > MOST_VALUES_PER_BLOCK:
        size //= 2
    return size


def padded_tensors(
    arrays: Mapping[str, Any], block: Block, dtype: npt.DTypeLike | None = None
) -> dict[str, tf.Tensor]:
    """Return arrays of a request's cells for a block, see `Block.padded`."""
    return {
        name: tf.constant(block.padded(np.asarray(array, dtype)))
        for name, array in arrays.items()
    }


def fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    """Return the stateless seed ``(2,)`` of a part of what a seed is for."""
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")
