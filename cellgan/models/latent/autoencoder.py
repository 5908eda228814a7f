"""The first stage of latent families: learning to give counts back.

Nothing is drawn here: the latent is a function of the cell, and the loss the mean over
cells of the negative log-likelihood of its counts, summed over features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.data.manifest import DatasetManifest
from cellgan.models.base import TrainingStage, weight_histograms
from cellgan.models.cfgen.config import AutoencoderConfig
from cellgan.models.latent.networks import CountAutoencoder, Likelihood, Modality
from cellgan.optimizers import update_weights

INITIAL_INVERSE_DISPERSIONS = (0.1, 100.0)
"""Range of the inverse dispersions that training starts from."""


class AutoencoderStage(TrainingStage):
    """Trains a count autoencoder.

    Parameters
    ----------
    network
        Built.
    optimizer
        Built here.
    label
        Covariate whose category chooses a gene's dispersion, if the network has one for
        each.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    jit
        Compile losses and gradients with XLA.

    Notes
    -----
    Inverse dispersions start from moments of the training cells. The original draws
    their logarithms from a standard normal distribution; since a step of AdamW moves
    each by about the learning rate, short trainings never got away from that.
    """

    name = "autoencoder"

    def __init__(
        self,
        network: CountAutoencoder,
        optimizer: keras.Optimizer,
        *,
        label: str,
        clip_norm: float | None,
        jit: bool,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self._label = label
        self._clip_norm = clip_norm
        optimizer.build(network.trainable_variables)
        self._gradients = tf.function(self.gradients, jit_compile=jit, autograph=False)

    def initialize(self, cells: Callable[[], Iterable[CellBatch]]) -> None:
        """Take inverse dispersions from the moments of the cells."""
        for name, table in self.network.log_inverse_dispersion.items():
            moments = CountMoments()
            for batch in cells():
                moments.add(
                    np.asarray(batch.features[name]),
                    np.asarray(batch.library_size[name]),
                    np.asarray(batch.covariates[self._label]),
                )
            n_labels = table.shape[0] if len(table.shape) > 1 else None
            table.assign(np.log(moments.inverse_dispersions(n_labels)))

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights once."""
        (batch,) = batches
        losses, gradients, statistics = self._gradients(batch, seed)
        update = update_weights(
            self.optimizer,
            self.network.trainable_variables,
            gradients,
            clip_norm=self._clip_norm,
        )
        self.network.update_running_statistics(statistics)
        return {**losses, **update}

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
        codes = batch.covariates[self._label]
        parts = self.network.reconstruction_losses(
            batch.features, batch.library_size, logits, codes
        )
        kinds = {
            name: "squared_error"
            if each.likelihood == "squared_error"
            else "negative_log_likelihood"
            for name, each in self.network.modalities.items()
        }
        by_modality = {f"{kinds[name]}/{name}": of for name, of in parts.items()}
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


class CountMoments:
    """Sums over cells that tell how counts disperse around the means of labels."""

    def __init__(self) -> None:
        self._sums: dict[int, npt.NDArray[np.float64]] = {}

    def add(
        self,
        counts: npt.NDArray[Any],
        library_size: npt.NDArray[Any],
        codes: npt.NDArray[Any],
    ) -> None:
        """Add counts ``(n_cells, n_genes)``, with sizes and labels ``(n_cells,)``."""
        for code in np.unique(codes):
            x = counts[codes == code].astype(np.float64)
            size = library_size[codes == code].astype(np.float64)
            totals = [size.sum(), size @ size]
            added = np.stack(
                [
                    x.sum(axis=0),
                    (x * x).sum(axis=0),
                    size @ x,
                    *(np.full(x.shape[1], total) for total in totals),
                ]
            )
            self._sums[int(code)] = self._sums.get(int(code), 0) + added

    def inverse_dispersions(self, n_labels: int | None) -> npt.NDArray[np.float64]:
        """Return them by gene; with `n_labels`, ``(n_labels, n_genes)``.

        With means of a gene that are a share of the library size, the same for all
        cells of a label: squared residuals exceed those of a Poisson distribution by
        the squared means over the inverse dispersion. What few counts tell is drawn
        towards 1; labels without cells get what all cells tell.
        """
        parts = {}
        for code, (x, xx, sx, s, ss) in self._sums.items():
            share = x / s
            squared_means = share * share * ss
            excess = xx - 2 * share * sx + squared_means - x
            parts[code] = np.stack([excess, squared_means, x])
        of_all = np.sum(list(parts.values()), axis=0)
        rows = (
            of_all
            if n_labels is None
            else np.stack([parts.get(code, of_all) for code in range(n_labels)], axis=1)
        )
        excess, squared_means, x = rows
        noise = np.sqrt(x) + 1  # of the excess, where it is large beside the means
        dispersion = (excess + noise) / (squared_means + noise)
        low, high = INITIAL_INVERSE_DISPERSIONS
        found: npt.NDArray[np.float64] = 1 / np.clip(dispersion, 1 / high, 1 / low)
        return found


def build_autoencoder(
    config: AutoencoderConfig,
    manifest: DatasetManifest,
    *,
    seed: int,
    jit: bool,
    dtype: str,
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
        jit=jit,
        dtype=dtype,
    )
