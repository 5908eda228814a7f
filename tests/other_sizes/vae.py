"""The linearly decoded VAE of one batch and one layer, and a reconstruction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from cellgan.evaluation.metrics import reconstruction
from cellgan.optimizers import adam_l2
from tests.models.ldvae import vae_reference as room
from tests.other_sizes.arrays import Arrays, drawn, normal, prefixed, save

N_CELLS = 17
CONFIG = {
    "cells": N_CELLS,
    "genes": 21,
    "n_batch": 1,
    "n_hidden": 12,
    "n_latent": 3,
    "n_encoder_layers": 1,
    "dropout_rate": 0.0,
    "bn_momentum_torch": 0.01,
    "adam": {
        "lr": 0.003,
        "eps": 0.02,
        "weight_decay": 1e-5,
        "betas": [0.8, 0.99],
        "kl_weight": 0.4,
    },
    "no_gradient_nb": [
        f"decoder/dropout/{name}" for name in ("W", "bn_gamma", "bn_beta")
    ],
}
PARTS = {"zinb": "zero_inflated", "poisson": "poisson", "nb": "negative_binomial"}


def weights() -> Arrays:
    whole = room.new_network(CONFIG, likelihood="zero_inflated")
    shapes = {
        name: weight.shape[::-1] if is_transposed else weight.shape
        for name, (weight, is_transposed) in room.variables(whole).items()
    }
    n_batches = CONFIG["n_batch"]
    shapes["log_theta_gene_batch"] = (CONFIG["genes"], n_batches)
    return drawn(shapes) | {
        "library_log_means": 4 + normal(4, 1, n_batches),
        "library_log_vars": np.abs(normal(5, 1, n_batches)),
    }


def write_vae(folder: Path) -> None:
    rng = np.random.default_rng(6)
    n_latent = CONFIG["n_latent"]
    entries = {
        "counts": np.float32(rng.poisson(2.0, (N_CELLS, CONFIG["genes"]))),
        "batch_ids": np.arange(N_CELLS) % CONFIG["n_batch"],
        "eps_z": normal(7, N_CELLS, n_latent),
        "eps_library": normal(8, N_CELLS, 1),
        "z_fixed": normal(9, N_CELLS, n_latent),
        "log_library_fixed": 4 + 0.2 * normal(10, N_CELLS, 1),
    }
    golden = prefixed("weights/", weights()) | prefixed("in/", entries)
    save(folder / "ldvae.npz", golden, CONFIG)
    golden = room.read(folder / "ldvae.npz")
    results = outputs_in_use(golden) | fixed_outputs(golden) | loss_outputs(golden)
    golden |= prefixed("out/", results) | prefixed("eval/", reconstruction_arrays())
    golden.pop("config")
    save(folder / "ldvae.npz", golden, CONFIG)


def outputs_in_use(golden: Arrays) -> Arrays:
    network, cells = room.make_network(golden), room.make_cells(golden)
    noise, counts = room.stored_noise(golden), cells.features["rna"]
    inputs = tf.math.log1p(counts)
    hidden, _ = network.encoder.hidden(inputs, training=False, seed=None)
    encoded = network.encode(counts)
    latent = encoded.latent.draw(noise.latent)
    log_library = encoded.log_library.draw(noise.log_library)
    decoded = network.decode(latent, cells.covariates[room.BATCH])
    distribution = network.distribution(decoded, log_library, None)
    library = encoded.log_library
    values = {
        "encoder_hidden": hidden,
        "z_mean": encoded.latent.mean,
        "z_var": encoded.latent.variance,
        "log_library_mean": library.mean,
        "log_library_var": library.variance,
        "latent_library_size_mean": tf.exp(library.mean + library.variance / 2),
        "z_sample": latent,
        "log_library_sample": log_library,
        "normalized_expression_3e5": 3e5 * tf.nn.softmax(decoded.logits),
        "rate": distribution.mean,
    }
    return prefixed("eval/", values) | {"loadings": network.decoder.loadings().numpy()}


def fixed_outputs(golden: Arrays) -> Arrays:
    cells = room.make_cells(golden)
    codes, latent = cells.covariates[room.BATCH], tf.constant(golden["in/z_fixed"])
    log_library = tf.constant(golden["in/log_library_fixed"])
    results: dict[str, tf.Tensor] = {}

    def decode(likelihood: str, n_dispersions: int = 0):
        network = room.make_network(
            golden, likelihood=likelihood, n_dispersions=n_dispersions
        )
        decoded = network.decode(latent, codes)
        rows = codes if n_dispersions else None
        return decoded, network.distribution(decoded, log_library, rows)

    counts = cells.features["rna"]
    for kind, likelihood in PARTS.items():
        _, distribution = decode(likelihood)
        results[f"log_prob/{kind}"] = distribution.log_prob(counts)
    _, distribution = decode("negative_binomial", CONFIG["n_batch"])
    results["log_prob/nb_gene_batch"] = distribution.log_prob(counts)
    decoded, distribution = decode("zero_inflated")
    results |= {
        "scale_logits": decoded.logits,
        "dropout_logits": decoded.zero_logits,
        "scale": tf.nn.softmax(decoded.logits),
        "rate": distribution.expected,
        "zinb_mean": distribution.mean,
    }
    return prefixed("fixed/", results)


def loss_outputs(golden: Arrays) -> Arrays:
    cells, noise = room.make_cells(golden), room.stored_noise(golden)
    kl_weight, results = CONFIG["adam"]["kl_weight"], {}
    for mode in ("eval", "train"):
        for kind, likelihood in room.LIKELIHOODS.items():
            network = room.make_network(
                golden,
                likelihood=likelihood,
                observes_library=kind == "nb_observed_library",
            )
            named = {
                name: pair
                for name, pair in room.variables(network).items()
                if pair[0].trainable
            }
            loss = room.make_loss(golden, network)
            with tf.GradientTape() as tape:
                terms = loss.terms(cells, noise, training=mode == "train")
                totals = {
                    each: terms.reconstruction
                    + tf.reduce_mean(each * terms.kl_latent + terms.kl_library)
                    for each in (1, kl_weight)
                }
            sources = [weight.value for weight, _ in named.values()]
            gradients = tape.gradient(totals[kl_weight], sources)
            elbo = {
                "reconstruction_loss": tf.fill((N_CELLS,), terms.reconstruction),
                "kl_z": terms.kl_latent,
                "kl_library": terms.kl_library,
                **{f"loss_kl_weight_{each}": total for each, total in totals.items()},
            }
            results |= prefixed(f"{mode}/elbo/{kind}/", elbo)
            stored = {
                name: tf.transpose(gradient) if is_transposed else gradient
                for (name, (_, is_transposed)), gradient in zip(
                    named.items(), gradients, strict=True
                )
            }
            results |= prefixed(f"{mode}/grad_kl_{kl_weight}/{kind}/", stored)
            if mode == "eval":
                results[f"eval/elbo/{kind}/reconstruction_loss"] = cell_losses(
                    golden, network
                )
            elif kind == "nb":
                results |= prefixed("train/", step_outputs(network, terms, gradients))
    return results


def cell_losses(golden: Arrays, network) -> np.ndarray:
    """Return the reconstruction loss of each cell."""
    cells, noise = room.make_cells(golden), room.stored_noise(golden)
    counts = cells.features["rna"]
    encoded = network.encode(counts)
    log_library = (
        tf.math.log(tf.reduce_sum(counts, axis=1, keepdims=True))
        if encoded.log_library is None
        else encoded.log_library.draw(noise.log_library)
    )
    latent = encoded.latent.draw(noise.latent)
    decoded = network.decode(latent, cells.covariates[room.BATCH])
    distribution = network.distribution(decoded, log_library, None)
    return -np.sum(distribution.log_prob(counts), axis=1)


def step_outputs(network, terms, gradients) -> Arrays:
    """Return running statistics after the batch, and weights after a step."""
    network.update_running_statistics(terms.statistics, tf.constant(N_CELLS))
    adam = CONFIG["adam"]
    optimizer = adam_l2(
        adam["lr"],
        tuple(adam["betas"]),
        weight_decay=adam["weight_decay"],
        epsilon=adam["eps"],
    )
    named = room.variables(network)
    weights = [weight for weight, _ in named.values() if weight.trainable]
    optimizer.apply(gradients, weights)
    values = {
        name: weight.numpy().T if is_transposed else weight.numpy()
        for name, (weight, is_transposed) in named.items()
    }
    return {
        f"after_adam_step/{name}" if weight.trainable else f"bn_after/{name}": values[
            name
        ]
        for name, (weight, _) in named.items()
    }


def reconstruction_arrays(
    n_cells: int = 33, n_genes: int = 30, n_chosen: int = 12
) -> Arrays:
    rng = np.random.default_rng(11)
    rates = rng.gamma(0.7, 2.0, n_genes) + 0.1
    means = rates * rng.gamma(4.0, 0.25, (n_cells, n_genes))
    counts = rng.poisson(means).astype(np.float32)
    shares = np.float32(means / means.sum(axis=1, keepdims=True))
    observed = reconstruction.log_normalized(counts)
    chosen = reconstruction.accuracy_of_counts(counts, shares, n_chosen)
    sums = reconstruction.ResidualSums()
    sums.add(counts, shares)
    table = sums.table(np.arange(n_genes))
    results = {
        "correlation_all_genes": reconstruction.accuracy_of_counts(
            counts, shares, None
        ).correlation,
        f"correlation_hvg{n_chosen}": chosen.correlation,
        f"r2_median_hvg{n_chosen}": reconstruction.accuracy_summary(chosen).median_r2,
        f"hvg{n_chosen}_mask": reconstruction.most_dispersed_genes(observed, n_chosen),
        "hvg_normalized_dispersion": reconstruction.normalized_dispersions(observed),
        "residual_mean": table["residual_mean"],
        "residual_variance": table["residual_variance"],
        "proportional_residual_mean": table["proportional_residual_mean"],
        "explained_variance": table["variance_ratio"],
    }
    entries = {"counts": counts, "reconstruction_2e3": np.float32(2e3) * shares}
    return prefixed("in/", entries) | prefixed("out/", results)
