"""The linearly decoded VAE computes what the original computes, number by number."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.models.ldvae.networks import Decoded
from cellgan.models.ldvae.training import observed_log_library
from cellgan.optimizers import adam_l2
from tests.models.ldvae.vae_reference import (
    BATCH,
    LIKELIHOODS,
    config_of,
    make_cells,
    make_loss,
    make_network,
    read,
    stored_noise,
    variables,
)
from tests.stored import stored_config, stored_name, stored_names

FILE = "ldvae.npz"
N_BATCHES = stored_config(FILE)["n_batch"]
KL_WEIGHT = stored_config(FILE)["adam"]["kl_weight"]
KL_WEIGHTS = stored_names(FILE, r"out/eval/elbo/nb/loss_kl_weight_(.+)")
TRANSFORMED = stored_names(FILE, r"out/fixed/(scale_transform_batch_\d+)") or ("scale",)
"""Stored shares of all cells as of one batch; those of the cells where it is one."""


@pytest.fixture(scope="module")
def golden(reference_dir):
    return read(reference_dir / FILE)


@pytest.fixture(scope="module")
def cells(golden):
    return make_cells(golden)


def close(found, expected, rtol=1e-5, atol=None):
    """Compare with a tolerance relative to the largest number, for those near 0."""
    expected = np.asarray(expected)
    atol = rtol * np.abs(expected).max() if atol is None else atol
    np.testing.assert_allclose(np.asarray(found), expected, rtol=rtol, atol=atol)


def network_of(golden, kind):
    return make_network(
        golden,
        likelihood=LIKELIHOODS[kind],
        observes_library=kind == "nb_observed_library",
    )


def test_encoders_give_the_stored_distributions(golden, cells) -> None:
    network = make_network(golden)
    counts = cells.features["rna"]

    hidden, _ = network.encoder.hidden(tf.math.log1p(counts), training=False, seed=None)
    encoded = network.encode(counts)

    close(hidden, golden["out/eval/encoder_hidden"])
    close(encoded.latent.mean, golden["out/eval/z_mean"])
    close(encoded.latent.variance, golden["out/eval/z_var"])
    close(encoded.log_library.mean, golden["out/eval/log_library_mean"])
    close(encoded.log_library.variance, golden["out/eval/log_library_var"])
    library = encoded.log_library
    close(
        tf.exp(library.mean + library.variance / 2),
        golden["out/eval/latent_library_size_mean"],
    )


def test_draws_and_what_is_decoded_of_them_are_the_stored_ones(golden, cells) -> None:
    network, noise = make_network(golden), stored_noise(golden)
    encoded = network.encode(cells.features["rna"])

    latent = encoded.latent.draw(noise.latent)
    log_library = encoded.log_library.draw(noise.log_library)
    decoded = network.decode(latent, cells.covariates[BATCH])
    distribution = network.distribution(decoded, log_library, None)

    close(latent, golden["out/eval/z_sample"])
    close(log_library, golden["out/eval/log_library_sample"])
    shares = tf.nn.softmax(decoded.logits)
    size = stored_name(FILE, r"out/eval/normalized_expression_(.+)")
    close(float(size) * shares, golden[f"out/eval/normalized_expression_{size}"])
    close(distribution.mean, golden["out/eval/rate"])


def decoded_at_fixed(golden, cells, **options) -> tuple:
    network = make_network(golden, **options)
    decoded = network.decode(tf.constant(golden["in/z_fixed"]), cells.covariates[BATCH])
    return network, decoded


def test_decoder_gives_the_stored_shares_and_rates(golden, cells) -> None:
    network, decoded = decoded_at_fixed(golden, cells, likelihood="zero_inflated")
    log_library = tf.constant(golden["in/log_library_fixed"])

    distribution = network.distribution(decoded, log_library, None)

    close(decoded.logits, golden["out/fixed/scale_logits"])
    close(decoded.zero_logits, golden["out/fixed/dropout_logits"])
    close(tf.nn.softmax(decoded.logits), golden["out/fixed/scale"])
    close(distribution.expected, golden["out/fixed/rate"])
    close(distribution.mean, golden["out/fixed/zinb_mean"])


@pytest.mark.parametrize("name", TRANSFORMED)
def test_cells_decode_as_those_of_another_batch(golden, cells, name) -> None:
    network = make_network(golden)
    batch = int(name.rpartition("_")[2]) if N_BATCHES > 1 else 0
    codes = tf.fill(cells.covariates[BATCH].shape, batch)

    decoded = network.decode(tf.constant(golden["in/z_fixed"]), codes)

    expected = golden[f"out/fixed/{name}"]
    close(tf.nn.softmax(decoded.logits), expected)
    difference = np.abs(expected - golden["out/fixed/scale"]).max()
    assert (difference > 1e-3) == (N_BATCHES > 1)


@pytest.mark.parametrize(
    ("kind", "likelihood", "by_batch"),
    [
        ("nb", "negative_binomial", False),
        ("zinb", "zero_inflated", False),
        ("poisson", "poisson", False),
        ("nb_gene_batch", "negative_binomial", True),
    ],
)
def test_log_likelihoods_are_the_stored_ones(
    golden, cells, kind, likelihood, by_batch
) -> None:
    n_dispersions = N_BATCHES if by_batch else 0
    network, decoded = decoded_at_fixed(
        golden, cells, likelihood=likelihood, n_dispersions=n_dispersions
    )
    codes = cells.covariates[BATCH] if by_batch else None
    log_library = tf.constant(golden["in/log_library_fixed"])

    distribution = network.distribution(decoded, log_library, codes)

    found = distribution.log_prob(cells.features["rna"])
    close(found, golden[f"out/fixed/log_prob/{kind}"])


def test_loadings_have_the_normalisation_folded_in(golden) -> None:
    loadings = make_network(golden).decoder.loadings()

    close(loadings, golden["out/loadings"])


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", list(LIKELIHOODS))
def test_terms_of_the_loss_are_the_stored_ones(golden, cells, mode, kind) -> None:
    loss = make_loss(golden, network_of(golden, kind))
    place = f"out/{mode}/elbo/{kind}"

    terms = loss.terms(cells, stored_noise(golden), training=mode == "train")

    rtol = 1e-5 if mode == "eval" else 1e-4
    reconstruction = golden[f"{place}/reconstruction_loss"]
    close(terms.reconstruction, reconstruction.mean(), rtol)
    close(terms.kl_latent, golden[f"{place}/kl_z"], rtol)
    close(terms.kl_library, golden[f"{place}/kl_library"], rtol)
    assert KL_WEIGHTS
    for weight in KL_WEIGHTS:
        total = terms.reconstruction + tf.reduce_mean(
            float(weight) * terms.kl_latent + terms.kl_library
        )
        close(total, golden[f"{place}/loss_kl_weight_{weight}"], rtol)


@pytest.mark.parametrize("kind", list(LIKELIHOODS))
def test_reconstruction_of_each_cell_is_the_stored_one(golden, cells, kind) -> None:
    network, noise = network_of(golden, kind), stored_noise(golden)
    encoded = network.encode(cells.features["rna"])
    log_library = (
        observed_log_library(cells)
        if encoded.log_library is None
        else encoded.log_library.draw(noise.log_library)
    )
    latent = encoded.latent.draw(noise.latent)
    decoded: Decoded = network.decode(latent, cells.covariates[BATCH])

    distribution = network.distribution(decoded, log_library, None)

    found = -tf.reduce_sum(distribution.log_prob(cells.features["rna"]), axis=1)
    close(found, golden[f"out/eval/elbo/{kind}/reconstruction_loss"])


def gradients_of(golden, cells, kind, mode):
    """Return the network, and gradients of its trainable weights by stored name."""
    network = network_of(golden, kind)
    loss = make_loss(golden, network)
    with tf.GradientTape() as tape:
        terms = loss.terms(cells, stored_noise(golden), training=mode == "train")
        total = terms.reconstruction + tf.reduce_mean(
            KL_WEIGHT * terms.kl_latent + terms.kl_library
        )
    named = {
        name: pair for name, pair in variables(network).items() if pair[0].trainable
    }
    found = tape.gradient(total, [weight.value for weight, _ in named.values()])
    return network, terms, dict(zip(named, found, strict=True)), named


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_gradients_are_the_stored_ones(golden, cells, mode, kind) -> None:
    _, _, gradients, named = gradients_of(golden, cells, kind, mode)
    place = f"out/{mode}/grad_kl_{KL_WEIGHT}/{kind}/"
    stored = {
        name.removeprefix(place): golden[name]
        for name in golden
        if name.startswith(place)
    }
    if kind == "nb":
        without = set(config_of(golden)["no_gradient_nb"])
        assert set(stored) - without == set(named)
    assert stored
    largest = max(np.abs(of).max() for of in stored.values())
    for name in set(stored) & set(named):
        found = gradients[name]
        found = tf.transpose(found) if named[name][1] else found
        # float32 sums of hundreds of terms: 1e-6 of the largest gradient there is
        close(found, stored[name], 1e-4, atol=1e-6 * largest)


def test_running_statistics_follow_the_unbiased_variance(golden, cells) -> None:
    network, terms, _, _ = gradients_of(golden, cells, "nb", "train")
    moved = {
        name: weight
        for name, (weight, _) in variables(network).items()
        if name.endswith(("bn_mean", "bn_var"))
    }

    network.update_running_statistics(
        terms.statistics, tf.constant(len(cells[1]["rna"]))
    )

    n_norms = 2 + config_of(golden)["n_encoder_layers"]  # of library sizes, of genes
    assert len(moved) == 2 * n_norms
    for name, weight in moved.items():
        close(weight, golden[f"out/train/bn_after/{name}"])


def test_biased_running_variance_is_another_one(golden, cells) -> None:
    network = make_network(golden, keeps_unbiased=False)
    loss = make_loss(golden, network)
    terms = loss.terms(cells, stored_noise(golden), training=True)
    before = golden["weights/decoder/factor/bn_var"]

    n_cells = len(cells.library_size["rna"])
    network.update_running_statistics(terms.statistics, tf.constant(n_cells))

    after = golden["out/train/bn_after/decoder/factor/bn_var"]
    factor = (n_cells - 1) / n_cells
    kept = (1 - config_of(golden)["bn_momentum_torch"]) * before
    expected = kept + factor * (after - kept)
    close(network.decoder.norm.moving_variance, expected)


def test_a_step_of_the_optimizer_is_the_stored_one(golden, cells) -> None:
    adam = config_of(golden)["adam"]
    _, _, gradients, named = gradients_of(golden, cells, "nb", "train")
    optimizer = adam_l2(
        adam["lr"],
        tuple(adam["betas"]),
        weight_decay=adam["weight_decay"],
        epsilon=adam["eps"],
    )

    weights = [weight for weight, _ in named.values()]
    optimizer.apply([gradients[name] for name in named], weights)

    # Normalisation takes hidden biases out again: their gradients are rounding errors
    # of 1e-6 of the largest gradient, and a step is theirs over epsilon
    largest = max(np.abs(np.asarray(of)).max() for of in gradients.values())
    rounding = 1e-6 * float(largest) * adam["lr"] / adam["eps"]
    for name, (weight, is_transposed) in named.items():
        found = np.asarray(weight)
        expected = golden[f"out/train/after_adam_step/{name}"]
        is_hidden_bias = "layer" in name and name.endswith("/b")
        atol = rounding if is_hidden_bias else None
        close(found.T if is_transposed else found, expected, atol=atol)
