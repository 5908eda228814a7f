"""The third stage of scDiffusion: learning the labels of noisy latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.models.base import weight_histograms
from cellgan.models.cfdiffusion.classifier import NoisyClassifiers
from cellgan.models.latent.stage import LATENT, LatentScale, LatentStage, fold_in
from cellgan.sampling import NoiseSchedule, add_noise


class ClassifierDraws(NamedTuple):
    """What is drawn for one update."""

    noise: tf.Tensor
    """Standard normal, ``(n_cells, n_latent)``."""
    step_index: tf.Tensor
    """Of the noise, ``(n_cells,)``."""
    dropout: tf.Tensor
    """Stateless seed, ``(2,)`` int32."""


class ClassifierStage(LatentStage):
    """Trains classifiers on latents that are computed once, and noise added to them.

    Parameters
    ----------
    encode
        ``features -> latents``, trained; compiled here.
    scale
        Of the latents, as the denoiser was trained with.
    network
        Built.
    optimizer
        Built here.
    schedule
        Of the noise, all steps.
    n_steps
        How many of them, from the cleanest on, are seen.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    jit
        Compile losses and gradients with XLA.

    Notes
    -----
    The loss is the mean cross-entropy, summed over the covariates. The original trains
    each classifier by itself, which is the same but for the norm that is clipped.

    References
    ----------
    Luo et al. (2024), scDiffusion: conditional generation of high-quality single-cell
    data using diffusion model, section 2.3. https://arxiv.org/abs/2401.03968
    """

    name = "classifier"

    def __init__(  # noqa: PLR0913  (what is trained, and how)
        self,
        encode: Callable[[Mapping[str, tf.Tensor]], tf.Tensor],
        scale: LatentScale,
        network: NoisyClassifiers,
        optimizer: keras.Optimizer,
        schedule: NoiseSchedule,
        n_steps: int,
        *,
        clip_norm: float | None,
        jit: bool,
    ) -> None:
        super().__init__(encode, scale, network, optimizer, clip_norm=clip_norm)
        self.schedule = schedule
        self.n_steps = n_steps
        self._gradients = tf.function(self.gradients, jit_compile=jit, autograph=False)

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights once, from a batch of latents."""
        (batch,) = batches
        latents = batch.features[LATENT]
        losses, gradients, statistics = self._gradients(
            latents, self._codes(batch), self.draw(latents, seed)
        )
        update = self.update_network(gradients)
        self.network.update_running_statistics(statistics)
        return {**losses, **update}

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the losses of one batch, normalised by the running statistics."""
        latents = self.latents_of(batch)
        draws = self.draw(latents, seed)
        logits, _ = self._logits(latents, draws, training=False)
        return self.losses(logits, self._codes(batch))

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return latents, weights and their gradients."""
        latents = self.latents_of(batch)
        draws = self.draw(latents, seed)
        _, gradients, _ = self._gradients(latents, self._codes(batch), draws)
        return {
            "latent": latents,
            **weight_histograms(self.network.trainable_variables, gradients),
        }

    def draw(self, latents: tf.Tensor, seed: tf.Tensor) -> ClassifierDraws:
        """Draw what one update needs."""
        shape = tf.shape(latents)
        seeds = [fold_in(seed, index) for index in range(3)]
        return ClassifierDraws(
            tf.random.stateless_normal(shape, seeds[0], alg="philox"),
            tf.random.stateless_uniform(
                shape[:1], seeds[1], 0, self.n_steps, tf.int32, alg="philox"
            ),
            seeds[2],
        )

    def losses(
        self, logits: Mapping[str, tf.Tensor], codes: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Return the cross-entropy, and the share of right labels by covariate."""
        losses, accuracies = [], {}
        for name, of in logits.items():
            crosses = tf.nn.sparse_softmax_cross_entropy_with_logits(codes[name], of)
            losses.append(tf.reduce_mean(crosses))
            is_right = tf.argmax(of, axis=1, output_type=codes[name].dtype)
            right = tf.cast(is_right == codes[name], of.dtype)
            accuracies[f"accuracy/{name}"] = tf.reduce_mean(right)
        return {"loss": tf.add_n(losses), **accuracies}

    def gradients(
        self,
        latents: tf.Tensor,
        codes: Mapping[str, tf.Tensor],
        draws: ClassifierDraws,
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor], Mapping[str, Any]]:
        """Return losses, gradients, and the statistics of the batch."""
        with tf.GradientTape() as tape:
            logits, statistics = self._logits(latents, draws, training=True)
            losses = self.losses(logits, codes)
        weights = self.network.trainable_variables
        return losses, tape.gradient(losses["loss"], weights), statistics

    def _logits(
        self, latents: tf.Tensor, draws: ClassifierDraws, *, training: bool
    ) -> tuple[dict[str, tf.Tensor], dict[str, Any]]:
        noisy = add_noise(self.schedule, latents, draws.noise, draws.step_index)
        found = self.network(
            noisy, draws.step_index, training=training, seed=draws.dropout
        )
        logits = {name: of for name, (of, _) in found.items()}
        return logits, {name: used for name, (_, used) in found.items()}

    def _codes(self, batch: CellBatch) -> dict[str, tf.Tensor]:
        return {name: batch.covariates[name] for name in self.network.n_categories}
