"""The reference's count autoencoders, as ours with the stored weights."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cellgan.models.latent.networks import CountAutoencoder, DecodedCells, Modality

OF_NORM = {
    "scale": "weight",
    "offset": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
OF_LINEAR = {"kernel": "weight", "bias": "bias"}
TRANSFORMS = {
    "log_gexp": "log1p",
    "proportions": "proportions",
    "log_gexp_scaled": "log1p_proportions",
}


class CountReference:
    """The stored arrays of one case, and its autoencoder."""

    def __init__(self, folder: Path, case: str) -> None:
        with np.load(folder / "cfgen.npz") as stored:
            self.config = json.loads(str(stored["config"]))["cases"][case]
            self.arrays = {
                key.replace(f"/{case}/", "/"): stored[key]
                for key in stored.files
                if f"/{case}/" in key
            }
        self.modalities = list(self.config["in_dim"])
        self.features = {
            m: tf.constant(self.arrays[f"in/X_{m}"]) for m in self.modalities
        }
        self.library_size = {
            m: tf.reduce_sum(counts, axis=1) for m, counts in self.features.items()
        }
        codes = self.arrays.get("in/y")
        self.codes = None if codes is None else tf.constant(codes, tf.int32)

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays under a prefix, by the rest of their key."""
        return {
            key.removeprefix(prefix): value
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    def autoencoder(self) -> CountAutoencoder:
        """Build the case's autoencoder with its weights."""
        joint = self.config["encoder_multimodal_joint_layers"]
        by_category = self.config["covariate_specific_theta"]
        network = CountAutoencoder(
            {m: self._modality(m) for m in self.modalities},
            n_joint=None if joint is None else joint["dims"][-1],
            n_categories=self.config["n_cat"] if by_category else None,
        )
        stored = self.below("weights/")
        for weight in network.weights:
            weight.assign(oriented(stored[self.their_name(weight.path)], weight))
        return network

    def their_name(self, path: str) -> str:
        """Return the stored key of one of our weights."""
        _, network, *rest = path.split("/")
        if not rest:
            return "theta"
        layer, name = rest
        kind, number = layer.split("_")
        net = network if network == "encoder_joint" else network.replace("_", ".")
        prefix = f"{net}.net.{int(number) - 1}"
        if kind == "norm":
            return f"{prefix}.1.{OF_NORM[name]}"
        hidden = f"{prefix}.0.{OF_LINEAR[name]}"
        is_hidden = f"weights/{hidden}" in self.arrays
        return hidden if is_hidden else f"{prefix}.{OF_LINEAR[name]}"

    def _modality(self, m: str) -> Modality:
        is_binary = m == "atac" and self.config["is_binarized"]
        atac = "bernoulli" if is_binary else "poisson"
        transform = TRANSFORMS[self.config["normalization_type"]]
        return Modality(
            self.config["in_dim"][m],
            tuple(self.config["encoder_kwargs"][m]["dims"]),
            "negative_binomial" if m == "rna" else atac,
            "none" if is_binary else transform,
        )

    def loss(
        self, network: CountAutoencoder, *, training: bool
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor], DecodedCells]:
        """Return the loss, its terms, and the reconstruction."""
        cells = network(self.features, training=training)
        terms = network.reconstruction_losses(
            self.features, self.library_size, cells.logits, self.codes
        )
        return network.loss(terms), terms, cells


def outputs_in_use(reference: CountReference) -> dict[str, np.ndarray]:
    """Our value for every stored output of the networks in use."""
    network = reference.autoencoder()
    loss, terms, cells = reference.loss(network, training=False)
    latent = network.encode(reference.features)
    values = {"loss": loss}
    if network.joint is not None:
        values["z_joint"] = latent
    else:
        widths = [each.widths[-1] for each in network.modalities.values()]
        parts = tf.split(latent, widths, axis=1)
        values |= {
            f"z_{m}": z for m, z in zip(reference.modalities, parts, strict=True)
        }
    distributions = network.decode(latent, reference.library_size, reference.codes)
    for m, distribution in distributions.items():
        values[f"logits_{m}"] = cells.logits[m]
        values[f"mu_{m}"] = distribution.mean
        values[f"logprob_{m}"] = distribution.log_prob(reference.features[m])
        values[f"nll_{m}"] = terms[m]
    return {key: np.asarray(value) for key, value in values.items()}


def outputs_of_a_step(reference: CountReference) -> dict[str, np.ndarray]:
    """Our value for every stored output of one training step."""
    network = reference.autoencoder()
    weights = network.trainable_variables
    with tf.GradientTape() as tape:
        loss, _, cells = reference.loss(network, training=True)
    gradients = tape.gradient(loss, weights)
    norm = tf.linalg.global_norm(gradients)
    values = {"train_loss": loss, "train_grad_norm_before_clip": norm}
    for weight, gradient in zip(weights, gradients, strict=True):
        key = f"train_grad/{reference.their_name(weight.path)}"
        values[key] = oriented(np.asarray(gradient), weight)
    clipped, _ = tf.clip_by_global_norm(gradients, 1.0, use_norm=norm)
    # Keras adds epsilon to the root of the uncorrected second moment, the original to
    # that of the corrected one, which is 1 / sqrt(1 - 0.999) times larger now.
    epsilon = 1e-8 * np.sqrt(1 - 0.999)
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=1e-5, epsilon=epsilon)
    optimizer.apply(clipped, weights)
    network.update_running_statistics(cells.statistics)
    for weight in network.weights:
        key = f"after_one_adamw_step/{reference.their_name(weight.path)}"
        values[key] = oriented(np.asarray(weight), weight)
    return {key: np.asarray(value) for key, value in values.items()}


def oriented(array: np.ndarray, weight: keras.Variable) -> np.ndarray:
    """Transpose a kernel, ours to theirs or theirs to ours."""
    return array.T if weight.name == "kernel" else array
