"""Training of the linearly decoded variational autoencoder.

The loss of a cell is minus the log-likelihood of its counts at a draw of its posterior,
summed over genes, plus the divergences of the posteriors of latent and log library size
from their priors; that of the latent is weighed less at first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.layers import BatchStatistics
from cellgan.layers.log_probabilities import negative_binomial_softmax_loss
from cellgan.models.base import TrainingStage, weight_histograms
from cellgan.models.latent.autoencoder import CountMoments
from cellgan.models.ldvae.networks import (
    LARGEST_LOG_LIBRARY,
    Decoded,
    VaeNetwork,
)
from cellgan.optimizers import update_weights

SMALLEST_LIBRARY_VARIANCE = 1e-4
"""Of the prior: cells that all have the same total have none of their own."""
PSEUDO_COUNT = 0.5
"""Added to the counts of a gene before its level is taken."""


class LibraryPrior(NamedTuple):
    """Normal priors of the log library size, ``(n_batches,)``."""

    mean: npt.NDArray[np.float32]
    variance: npt.NDArray[np.float32]


def library_prior(manifest: DatasetManifest, batch_key: str | None) -> LibraryPrior:
    """Return mean and variance of the log totals of the training cells of each batch.

    Parameters
    ----------
    batch_key
        Covariate; None for one batch of all cells.

    Notes
    -----
    The variance is that of the cells themselves (divided by their number), at least
    `SMALLEST_LIBRARY_VARIANCE`. A batch without training cells gets mean 0 and variance
    1, as in the original, which takes its validation cells as well: here held-out cells
    have no part in training.
    """
    n_batches = 1 if batch_key is None else len(manifest.covariates[batch_key])
    found = LibraryPrior(
        np.zeros(n_batches, np.float32), np.ones(n_batches, np.float32)
    )
    for code in range(n_batches):
        own = [
            combination
            for combination in manifest.combinations
            if batch_key is None or combination.codes[batch_key] == code
        ]
        if not own:
            continue
        n = np.array([each.n_cells for each in own], np.float64)
        means = np.array([each.log_mean[RNA] for each in own])
        deviations = np.array([each.log_sd[RNA] or 0.0 for each in own])
        mean = (n * means).sum() / n.sum()
        squares = ((n - 1) * deviations**2 + n * (means - mean) ** 2).sum()
        found.mean[code] = mean
        found.variance[code] = max(squares / n.sum(), SMALLEST_LIBRARY_VARIANCE)
    return found


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """How the weight of the latent's divergence rises while training goes on.

    Parameters
    ----------
    unit, length
        - ``"epochs"``: it rises with every epoch, for so many;
        - ``"steps"``: with every step;
        - ``"share"``: with every step, for this share of all of them.

        It is constant with a length of 0.
    smallest, largest
        Weights before and after.
    n_cells, batch_size, max_steps
        Of the training.
    """

    unit: Literal["epochs", "steps", "share"]
    length: float
    smallest: float
    largest: float
    n_cells: int
    batch_size: int
    max_steps: int

    def weight(self, step: tf.Tensor) -> tf.Tensor:
        """Return the weight in a step, counted from 0."""
        if not self.length:
            return tf.constant(self.largest, tf.float32)
        if self.unit == "epochs":
            done = tf.cast(step, tf.int64) * self.batch_size // self.n_cells
            length = self.length
        else:
            done = tf.cast(step, tf.int64)
            length = self.length * (self.max_steps if self.unit == "share" else 1)
        progress = tf.minimum(tf.cast(done, tf.float32) / length, 1.0)
        return self.smallest + (self.largest - self.smallest) * progress


class Noise(NamedTuple):
    """Standard normal numbers that posteriors are drawn with."""

    latent: tf.Tensor
    """``(n_cells, n_latent)``."""
    log_library: tf.Tensor
    """``(n_cells, 1)``."""

    @classmethod
    def draw(cls, n_cells: tf.Tensor, n_latent: int, seed: tf.Tensor) -> Noise:
        """Draw for some cells."""
        both = tf.random.stateless_normal((n_cells, n_latent + 1), seed, alg="philox")
        return cls(both[:, :n_latent], both[:, n_latent:])


class Terms(NamedTuple):
    """What the loss of some cells is made of."""

    reconstruction: tf.Tensor
    """Mean over cells of minus the log-likelihood."""
    kl_latent: tf.Tensor
    """``(n_cells,)``."""
    kl_library: tf.Tensor
    """``(n_cells,)``; 0 where the library size is observed."""
    statistics: tuple[BatchStatistics, ...]


class VaeLoss:
    """The terms of the loss, for training and for what is told of trained models.

    Parameters
    ----------
    network
        Built.
    prior
        Of the log library size.
    batch_key, dispersion_key
        Covariates of batches and of dispersions; None without them.
    """

    def __init__(
        self,
        network: VaeNetwork,
        prior: LibraryPrior,
        *,
        batch_key: str | None,
        dispersion_key: str | None,
    ) -> None:
        self.network = network
        self.prior = prior
        self.batch_key, self.dispersion_key = batch_key, dispersion_key

    def batches(self, covariates: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
        """Return the batches of cells, ``(n_cells,)``; None without batches."""
        return None if self.batch_key is None else covariates[self.batch_key]

    def dispersions(self, covariates: Mapping[str, tf.Tensor]) -> tf.Tensor | None:
        """Return the categories that cells have dispersions by."""
        return None if self.dispersion_key is None else covariates[self.dispersion_key]

    def library_priors(
        self, covariates: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return mean and variance of the prior of each cell, ``(n_cells, 1)``.

        They are ``(1, 1)`` without batches.
        """
        mean, variance = (tf.constant(of)[:, tf.newaxis] for of in self.prior)
        batches = self.batches(covariates)
        if batches is None:
            return mean, variance
        rows = tf.one_hot(batches, len(self.prior.mean))
        return tf.matmul(rows, mean), tf.matmul(rows, variance)

    def terms(
        self,
        cells: CellBatch,
        noise: Noise,
        *,
        training: bool,
        seed: tf.Tensor | None = None,
    ) -> Terms:
        """Return the terms of some cells at one draw of their posteriors."""
        network, covariates = self.network, cells.covariates
        counts = cells.features[RNA]
        encoded = network.encode(counts, training=training, seed=seed)
        latent = encoded.latent.draw(noise.latent)
        decoded = network.decode(latent, self.batches(covariates), training=training)
        kl_latent = encoded.latent.divergence()
        if encoded.log_library is None:
            log_library = observed_log_library(cells)
            kl_library = tf.zeros_like(kl_latent)
        else:
            log_library = encoded.log_library.draw(noise.log_library)
            kl_library = encoded.log_library.divergence(
                *self.library_priors(covariates)
            )
        return Terms(
            self._reconstruction(cells, decoded, log_library),
            kl_latent,
            kl_library,
            (*encoded.statistics, *decoded.statistics),
        )

    def _reconstruction(
        self, cells: CellBatch, decoded: Decoded, log_library: tf.Tensor
    ) -> tf.Tensor:
        network, counts = self.network, cells.features[RNA]
        codes = self.dispersions(cells.covariates)
        if network.likelihood == "negative_binomial":
            limited = tf.minimum(log_library, LARGEST_LOG_LIBRARY)
            return negative_binomial_softmax_loss(
                counts,
                decoded.logits,
                tf.exp(limited)[:, 0],
                network.inverse_dispersion(codes),
            )
        distribution = network.distribution(decoded, log_library, codes)
        return -tf.reduce_mean(tf.reduce_sum(distribution.log_prob(counts), axis=1))


def observed_log_library(cells: CellBatch) -> tf.Tensor:
    """Return the logarithm of totals ``(n_cells, 1)``; 0 of a cell without counts."""
    return tf.math.log(tf.maximum(cells.library_size[RNA], 1.0))[:, tf.newaxis]


class VaeStage(TrainingStage):
    """Trains the linearly decoded variational autoencoder.

    Parameters
    ----------
    loss
        Of a built network.
    optimizer
        Built here.
    warm_up
        Of the weight of the latent's divergence.
    starts_from_cells
        Begin with the levels and dispersions that genes have in the training cells.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    jit
        Compile losses and gradients with XLA.

    Notes
    -----
    The reported ``negative_elbo`` weighs the latent's divergence by 1 at all times, and
    is what a shorter warm-up would lower; it is the mean over cells, in natural logs.
    The divergence of the library size is never weighed less.
    """

    name = "vae"

    def __init__(
        self,
        loss: VaeLoss,
        optimizer: keras.Optimizer,
        warm_up: WarmUp,
        *,
        starts_from_cells: bool = False,
        clip_norm: float | None,
        jit: bool,
    ) -> None:
        self.network = loss.network
        self._starts_from_cells = starts_from_cells
        self.loss = loss
        self.optimizer = optimizer
        self.warm_up = warm_up
        self._clip_norm = clip_norm
        optimizer.build(self.network.trainable_variables)
        self._gradients = tf.function(self.gradients, jit_compile=jit, autograph=False)

    def initialize(self, cells: Callable[[], Iterable[CellBatch]]) -> None:
        """Take levels and dispersions of genes from the cells, if they start there."""
        if not self._starts_from_cells:
            return
        moments, totals = CountMoments(), np.zeros(self.network.n_genes)
        for batch in cells():
            counts = np.asarray(batch.features[RNA])
            codes = self.loss.dispersions(batch.covariates)
            same = np.zeros(len(counts), np.int32)
            moments.add(
                counts,
                np.maximum(np.asarray(batch.library_size[RNA]), 1),
                same if codes is None else np.asarray(codes),
            )
            totals += counts.sum(axis=0, dtype=np.float64)
        levels = np.log(totals + PSEUDO_COUNT)
        self.network.decoder.start_from(levels - levels.mean())
        table = self.network.log_inverse_dispersion
        if table is not None:
            n_rows = table.shape[0] if len(table.shape) > 1 else None
            table.assign(np.log(moments.inverse_dispersions(n_rows)))

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights once."""
        (batch,) = batches
        weight = self.warm_up.weight(self.optimizer.iterations)
        losses, gradients, statistics = self._gradients(batch, weight, seed)
        update = update_weights(
            self.optimizer,
            self.network.trainable_variables,
            gradients,
            clip_norm=self._clip_norm,
        )
        self.network.update_running_statistics(
            statistics, tf.shape(batch.library_size[RNA])[0]
        )
        return {**losses, **update}

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the losses of one batch, normalised by the running statistics."""
        noise = self._noise(batch, seed)
        terms = self.loss.terms(batch, noise, training=False)
        return self._losses(terms, self.warm_up.weight(self.optimizer.iterations))

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return latents, weights and their gradients."""
        weight = self.warm_up.weight(self.optimizer.iterations)
        _, gradients, _ = self._gradients(batch, weight, seed)
        return {
            "latent": self.network.encode(batch.features[RNA]).latent.mean,
            **weight_histograms(self.network.trainable_variables, gradients),
        }

    def trackables(self) -> Mapping[str, Any]:
        """Return the network and its optimizer."""
        return {"network": self.network, "optimizer": self.optimizer}

    def gradients(
        self, batch: CellBatch, weight: tf.Tensor, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor], tuple[BatchStatistics, ...]]:
        """Return losses, gradients, and the statistics of the batch."""
        noise = self._noise(batch, seed)
        with tf.GradientTape() as tape:
            terms = self.loss.terms(batch, noise, training=True, seed=seed)
            losses = self._losses(terms, weight)
        weights = self.network.trainable_variables
        return losses, tape.gradient(losses["loss"], weights), terms.statistics

    def _noise(self, batch: CellBatch, seed: tf.Tensor) -> Noise:
        own = tf.random.experimental.stateless_fold_in(seed, 2, alg="philox")
        n_cells = tf.shape(batch.library_size[RNA])[0]
        return Noise.draw(n_cells, self.network.n_latent, own)

    @staticmethod
    def _losses(terms: Terms, weight: tf.Tensor) -> dict[str, tf.Tensor]:
        kl_latent = tf.reduce_mean(terms.kl_latent)
        kl_library = tf.reduce_mean(terms.kl_library)
        return {
            "loss": terms.reconstruction + weight * kl_latent + kl_library,
            "negative_elbo": terms.reconstruction + kl_latent + kl_library,
            "reconstruction_loss": terms.reconstruction,
            "kl_latent": kl_latent,
            "kl_library": kl_library,
            "kl_weight": weight,
        }
