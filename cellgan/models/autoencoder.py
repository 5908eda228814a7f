"""The first stage of latent families: learning to give counts back.

Nothing is drawn here: the latent is a function of the cell, and the loss the mean over
cells of the negative log-likelihood of its counts, summed over features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from cellgan.batches import CellBatch
from cellgan.manifest import DatasetManifest
from cellgan.model_configs import AutoencoderConfig
from cellgan.models.base import TrainingStage, weight_histograms
from cellgan.models.count_networks import CountAutoencoder, Likelihood, Modality
from cellgan.optimizers import update_weights


class AutoencoderStage(TrainingStage):
    """Trains a count autoencoder.

    Parameters
    ----------
    network
        Built.
    optimizer
        Built here.
    label
        Covariate whose category chooses a gene's dispersion; None for one dispersion
        per gene.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    jit
        Compile losses and gradients with XLA.
    """

    name = "autoencoder"

    def __init__(
        self,
        network: CountAutoencoder,
        optimizer: keras.Optimizer,
        *,
        label: str | None,
        clip_norm: float | None,
        jit: bool,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self._label = label
        self._clip_norm = clip_norm
        optimizer.build(network.trainable_variables)
        self._gradients = tf.function(self.gradients, jit_compile=jit)

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights once."""
        (batch,) = batches
        learning_rate = self.optimizer.learning_rate
        losses, gradients, statistics = self._gradients(batch, seed)
        norm = update_weights(
            self.optimizer,
            self.network.trainable_variables,
            gradients,
            clip_norm=self._clip_norm,
        )
        self.network.update_running_statistics(statistics)
        return {
            **losses,
            "learning_rate": tf.convert_to_tensor(learning_rate),
            "gradient_norm": norm,
        }

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the losses of one batch, normalised by the running statistics."""
        del seed
        logits = self.network(batch.features).logits
        return self.losses(batch, logits)

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return latents, weights and their gradients."""
        _, gradients, _ = self._gradients(batch, seed)
        return {
            "latent": self.network.encode(batch.features),
            **weight_histograms(self.network.trainable_variables, gradients),
        }

    def trackables(self) -> Mapping[str, Any]:
        """Return the network and its optimizer."""
        return {"network": self.network, "optimizer": self.optimizer}

    def losses(
        self, batch: CellBatch, logits: Mapping[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Return the loss and what it is made of, by TensorBoard tag."""
        codes = None if self._label is None else batch.covariates[self._label]
        parts = self.network.negative_log_likelihoods(
            batch.features, batch.library_size, logits, codes
        )
        by_modality = {
            f"negative_log_likelihood/{name}": of for name, of in parts.items()
        }
        return {"loss": self.network.loss(parts), **by_modality}

    def gradients(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], list[tf.Tensor], tuple[Any, ...]]:
        """Return losses, gradients, and the statistics of the batch."""
        with tf.GradientTape() as tape:
            made = self.network(batch.features, training=True, seed=seed)
            losses = self.losses(batch, made.logits)
        weights = self.network.trainable_variables
        return losses, tape.gradient(losses["loss"], weights), made.statistics


def build_autoencoder(
    config: AutoencoderConfig, manifest: DatasetManifest, *, seed: int, dtype: str
) -> CountAutoencoder:
    """Build the autoencoder of the modalities that a manifest names."""
    hidden = {"rna": config.rna_layers, "atac": config.atac_layers}
    weights = {"rna": 1.0, "atac": config.atac_weight}
    modalities = {}
    for name, features in manifest.features.items():
        is_binary = name in manifest.binary
        counted: Likelihood = "negative_binomial" if name == "rna" else "poisson"
        modalities[name] = Modality(
            n_features=len(features),
            widths=(*hidden[name], config.n_latent),
            likelihood="bernoulli" if is_binary else counted,
            transform="none" if is_binary else config.input_transform,
            weight=weights[name],
        )
    is_joint = config.joint_latent and len(modalities) > 1
    by_label = config.inverse_dispersion == "gene-label"
    return CountAutoencoder(
        modalities,
        n_joint=config.n_latent if is_joint else None,
        n_categories=len(manifest.label_vocabulary) if by_label else None,
        dropout=config.dropout,
        seed=seed,
        dtype=dtype,
    )
