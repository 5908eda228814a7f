"""What latent families make of given cells: shares of genes, and their likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy.stats import nbinom, poisson

from cellgan.data.batches import CellBatch
from cellgan.models.latent.networks import CountAutoencoder, Modality
from cellgan.models.latent.stage import reconstruct_by

COUNTS = np.random.default_rng(0).poisson(3.0, (5, 7)).astype(np.float32)


def cells() -> CellBatch:
    counts = tf.constant(COUNTS)
    return CellBatch({"rna": counts}, {"rna": tf.reduce_sum(counts, axis=1)}, {})


def autoencoder(likelihood: str) -> CountAutoencoder:
    modality = Modality(7, (4, 3), likelihood, "log1p")
    network = CountAutoencoder({"rna": modality}, jit=False)
    for weight in network.log_inverse_dispersion.values():
        weight.assign(np.linspace(-1, 1, 7, dtype=np.float32))
    return network


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
def test_likelihood_is_that_of_the_counts_around_the_shares(likelihood: str) -> None:
    network = autoencoder(likelihood)
    latent = network.encode(cells().features).numpy()

    found = reconstruct_by(network, cells(), latent)

    np.testing.assert_allclose(found.expression.sum(axis=1), 1.0, rtol=1e-5)
    mean = found.expression * COUNTS.sum(axis=1, keepdims=True)
    theta = np.exp(np.linspace(-1, 1, 7))
    log_probability = {
        "negative_binomial": nbinom(theta, theta / (theta + mean)).logpmf,
        "poisson": poisson(mean).logpmf,
    }[likelihood](COUNTS)
    np.testing.assert_allclose(
        found.negative_log_likelihood, -log_probability.sum(axis=1), rtol=1e-4
    )
    assert found.elbo is None
    np.testing.assert_array_equal(found.latent, latent)


def test_expression_has_no_likelihood() -> None:
    network = autoencoder("squared_error")
    latent = network.encode(cells().features).numpy()

    found = reconstruct_by(network, cells(), latent)

    assert found.negative_log_likelihood is None
    assert set(found.expression.sum(axis=1).round(4).tolist()) <= {0.0, 1.0}
