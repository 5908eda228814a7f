"""The stored linearly decoded VAE of the original, as a network of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.models.ldvae.networks import Encoder, LinearDecoder, VaeNetwork
from cellgan.models.ldvae.training import LibraryPrior, Noise, VaeLoss

BATCH = "batch"
NORM = {
    "bn_gamma": "scale",
    "bn_beta": "offset",
    "bn_mean": "moving_mean",
    "bn_var": "moving_variance",
}
LIKELIHOODS = {
    "nb": "negative_binomial",
    "zinb": "zero_inflated",
    "nb_observed_library": "negative_binomial",
}

Arrays = Mapping[str, np.ndarray]


def read(path: Any) -> dict[str, np.ndarray]:
    """Return the arrays of a reference file."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def config_of(golden: Arrays) -> dict[str, Any]:
    """Return sizes and constants."""
    return json.loads(str(golden["config"]))


def new_network(config: Mapping[str, Any], **options: Any) -> VaeNetwork:
    """Return a network of the stored sizes."""
    n_batches = config["n_batch"]
    return VaeNetwork(
        config["genes"],
        n_latent=config["n_latent"],
        n_hidden=config["n_hidden"],
        n_layers=config["n_encoder_layers"],
        n_batches=n_batches if n_batches > 1 else 0,
        dropout=config["dropout_rate"],
        **{"likelihood": "negative_binomial", **options},
    )


def make_network(golden: Arrays, **options: Any) -> VaeNetwork:
    """Return a network with the stored weights."""
    network = new_network(config_of(golden), **options)
    for name, (weight, is_transposed) in variables(network).items():
        value = golden[f"weights/{name}"]
        weight.assign(value.T if is_transposed else value)
    return network


def variables(network: VaeNetwork) -> dict[str, tuple[keras.Variable, bool]]:
    """Return the weights by the file's names, and whether they are transposed there."""
    found: dict[str, tuple[keras.Variable, bool]] = {}

    def add_encoder(encoder: Encoder, where: str) -> None:
        pairs = zip(encoder.linears, encoder.norms, strict=True)
        for index, (linear, norm) in enumerate(pairs):
            place = f"{where}/layer{index}"
            found[f"{place}/W"] = (linear.kernel, True)
            found[f"{place}/b"] = (linear.bias, False)
            for theirs, ours in NORM.items():
                found[f"{place}/{theirs}"] = (getattr(norm, ours), False)
        for theirs, head in (
            ("mean", encoder.mean),
            ("log_var", encoder.log_variance),
        ):
            found[f"{where}/{theirs}/W"] = (head.kernel, True)
            found[f"{where}/{theirs}/b"] = (head.bias, False)

    def add_decoder(decoder: LinearDecoder, where: str) -> None:
        found[f"{where}/W"] = (decoder.kernel, True)
        for theirs, ours in NORM.items():
            found[f"{where}/{theirs}"] = (getattr(decoder.norm, ours), False)

    add_encoder(network.encoder, "encoder_z")
    if network.library_encoder is not None:
        add_encoder(network.library_encoder, "encoder_library")
    add_decoder(network.decoder, "decoder/factor")
    if network.zero_decoder is not None:
        add_decoder(network.zero_decoder, "decoder/dropout")
    table = network.log_inverse_dispersion
    if table is not None:
        by_batch = len(table.shape) > 1
        name = "log_theta_gene_batch" if by_batch else "log_theta"
        found[name] = (table, by_batch)
    return found


def make_loss(golden: Arrays, network: VaeNetwork) -> VaeLoss:
    """Return the loss with the stored prior."""
    prior = LibraryPrior(
        golden["weights/library_log_means"][0], golden["weights/library_log_vars"][0]
    )
    return VaeLoss(network, prior, batch_key=BATCH, dispersion_key=None)


def make_cells(golden: Arrays) -> CellBatch:
    """Return the stored cells."""
    counts = golden["in/counts"]
    return CellBatch(
        {"rna": tf.constant(counts)},
        {"rna": tf.constant(counts.sum(axis=1))},
        {BATCH: tf.constant(golden["in/batch_ids"].astype(np.int32))},
    )


def stored_noise(golden: Arrays) -> Noise:
    """Return the stored draws."""
    return Noise(tf.constant(golden["in/eps_z"]), tf.constant(golden["in/eps_library"]))
