"""The second stage of latent diffusion: learning the noise in latents.

Every cell of a batch is at a step of its own; the loss is the mean squared error of the
noise that the network finds in its latent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.models.base import weight_histograms
from cellgan.models.cfdiffusion.networks import Denoiser
from cellgan.models.latent.stage import LATENT, LatentScale, LatentStage, fold_in
from cellgan.optimizers import WeightAverage
from cellgan.sampling import NoiseSchedule, add_noise, drop_each_covariate


class DiffusionDraws(NamedTuple):
    """What is random in one update of the denoiser."""

    noise: tf.Tensor
    """Standard normal, ``(n_cells, n_latent)``."""
    step_index: tf.Tensor
    """Uniform among the steps, ``(n_cells,)`` int32."""
    codes: Mapping[str, tf.Tensor]
    """Covariates, those that are dropped with their null code."""


@dataclasses.dataclass(frozen=True)
class DiffusionRecipe:
    """How the denoiser is learned."""

    unconditional_share: float
    dropping: Literal["independent", "joint"]
    latent_scale: Literal["none", "sqrt_width", "standardized"]


class DiffusionStage(LatentStage):
    """Trains a denoiser on latents that are computed once.

    Parameters
    ----------
    encode
        ``features -> latents``, trained; compiled here.
    scale
        Of the latents; fitted when they are computed.
    network
        Built.
    average
        Of its weights.
    optimizer
        Built here.
    schedule
        Of the noise, all steps.
    recipe
        The dropping of covariates, and the units of latents.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    jit
        Compile losses and gradients with XLA.

    Notes
    -----
    The original zeroes elements of the one-hot code, of which only the cell's own
    category makes a difference, so that it drops the same covariates as
    ``"independent"``. It encodes all cells in one call that normalises by their
    statistics.

    References
    ----------
    Zhang et al. (2025), cfDiffusion: diffusion-based efficient generation of high
    quality scRNA-seq data with classifier-free guidance.
    https://doi.org/10.1093/bib/bbaf071
    """

    name = "diffusion"

    def __init__(  # noqa: PLR0913  (what is trained, and how)
        self,
        encode: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
        scale: LatentScale,
        network: Denoiser,
        average: WeightAverage,
        optimizer: keras.Optimizer,
        schedule: NoiseSchedule,
        recipe: DiffusionRecipe,
        *,
        clip_norm: float | None,
        jit: bool,
    ) -> None:
        super().__init__(encode, scale, network, optimizer, clip_norm=clip_norm)
        self.average = average
        self.schedule = schedule
        self.recipe = recipe
        self._gradients = tf.function(self.gradients, jit_compile=jit, autograph=False)

    def fit_scale(self, latents: npt.NDArray[np.float32]) -> None:
        """Give latents the units of the recipe."""
        if self.recipe.latent_scale == "standardized":
            self._scale.fit(latents)
        elif self.recipe.latent_scale == "sqrt_width":
            deviation = self._scale.deviation
            deviation.assign(tf.fill(deviation.shape, 1 / math.sqrt(latents.shape[1])))

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights and their average once, from a batch of latents."""
        (batch,) = batches
        latents = batch.features[LATENT]
        return self.update(latents, self.draw(batch, latents, seed))

    def update(
        self, latents: tf.Tensor, draws: DiffusionDraws
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights and their average once, with given draws."""
        step = tf.convert_to_tensor(self.optimizer.iterations)
        loss, gradients = self._gradients(latents, draws)
        update = self.update_network(gradients)
        self.average.update(step)
        return {"loss": loss, **update}

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the loss of one batch of cells, with the weights as they are."""
        latents = self.latents_of(batch)
        draws = self.draw(batch, latents, seed)
        return {"loss": tf.reduce_mean(self.losses(latents, draws))}

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return latents, weights and their gradients."""
        latents = self.latents_of(batch)
        _, gradients = self._gradients(latents, self.draw(batch, latents, seed))
        return {
            "latent": latents,
            **weight_histograms(self.network.trainable_variables, gradients),
        }

    def trackables(self) -> Mapping[str, Any]:
        """Return the network, its average and optimizer, and the scale of latents."""
        return {**super().trackables(), "average": self.average}

    def draw(
        self, batch: CellBatch, latents: tf.Tensor, seed: tf.Tensor
    ) -> DiffusionDraws:
        """Draw what one update needs."""
        seeds = [fold_in(seed, index) for index in range(3)]
        shape = tf.shape(latents)
        noise = tf.random.stateless_normal(shape, seeds[0], alg="philox")
        step_index = tf.random.stateless_uniform(
            shape[:1], seeds[1], 0, len(self.schedule), tf.int32, alg="philox"
        )
        codes = {name: batch.covariates[name] for name in self.network.null_codes}
        if codes:
            codes = drop_each_covariate(
                codes,
                self.network.null_codes,
                seeds[2],
                self.recipe.unconditional_share,
                self.recipe.dropping,
            )
        return DiffusionDraws(noise, step_index, codes)

    def losses(self, latents: tf.Tensor, draws: DiffusionDraws) -> tf.Tensor:
        """Return the mean squared error of the noise of each cell, ``(n_cells,)``."""
        noisy = add_noise(self.schedule, latents, draws.noise, draws.step_index)
        found = self.network(
            noisy,
            self.network.shifts(draws.step_index),
            self.network.gates_of_cells(draws.codes),
        )
        return tf.reduce_mean((found - draws.noise) ** 2, axis=1)

    def gradients(
        self, latents: tf.Tensor, draws: DiffusionDraws
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return the loss and its gradients."""
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.losses(latents, draws))
        return loss, tape.gradient(loss, self.network.trainable_variables)
