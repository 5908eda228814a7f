"""The autoencoder as cfDiffusion has it: squared error, PReLU, latents of length 1."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.models.latent.autoencoder import AutoencoderStage
from cellgan.models.latent.networks import CountAutoencoder, Mlp, Modality
from cellgan.optimizers import adamw
from tests.models.cfdiffusion.diffusion_reference import (
    RNA,
    DiffusionReference,
    assert_close,
)
from tests.stored import stored_config

OPTIMIZER = stored_config("cfdiffusion.npz")["ae"]["optimizer"]
RATE, DECAY = (float(number) for number in re.findall(r"(?:lr|wd) (\S+)", OPTIMIZER))


@pytest.fixture(scope="module")
def reference(reference_dir) -> DiffusionReference:
    return DiffusionReference(reference_dir)


def batch_of(expression: np.ndarray) -> CellBatch:
    values = tf.constant(expression)
    return CellBatch(
        {RNA: values},
        {RNA: tf.reduce_sum(values, axis=1)},
        {"cluster": tf.zeros((len(values),), tf.int32)},
    )


def make_stage(
    network: CountAutoencoder, rate: float = RATE, decay: float = DECAY
) -> AutoencoderStage:
    optimizer = adamw(rate, (0.9, 0.999), weight_decay=decay)
    return AutoencoderStage(
        network, optimizer, label="cluster", clip_norm=None, jit=False
    )


@pytest.mark.parametrize(
    ("mode", "batch_statistics"), [("eval", False), ("batchstats", True)]
)
def test_latents_and_reconstructions_are_those_of_the_original(
    reference, mode, batch_statistics
):
    network, x = reference.autoencoder(), tf.constant(reference["in/ae/x"])
    out = f"out/ae/{mode}"
    latent = network.encode({RNA: x}, batch_statistics=batch_statistics)
    assert_close(latent, reference[f"{out}/latent"])
    decoded = network.decode(latent, {}, batch_statistics=batch_statistics)[RNA]
    assert_close(decoded.log_expression, reference[f"{out}/recon_linear"])
    assert_close(tf.math.log1p(decoded.mean), reference[f"{out}/decoded_relu"])
    losses = network.reconstruction_losses({RNA: x}, {}, {RNA: decoded.log_expression})
    assert float(losses[RNA]) == pytest.approx(float(reference[f"{out}/mse"]), rel=1e-5)


def test_running_statistics_after_a_batch_are_those_of_the_original(reference):
    network = reference.autoencoder()
    made = network({RNA: tf.constant(reference["in/ae/x"])}, training=True)
    network.update_running_statistics(made.statistics)
    stored = reference.autoencoder_values("out/ae/batchstats/running_after/")
    assert len(stored) == 2 * 2 * len(reference.config["ae"]["hidden"])
    ours = {weight.path: weight for weight in network.weights}
    for path, expected in stored.items():
        assert_close(ours[path], expected)


def test_training_steps_are_those_of_the_original(reference):
    stage = make_stage(reference.autoencoder())
    losses = [
        stage.train_step((batch_of(x),), tf.constant((0, 0)))
        for x in reference["in/ae/train_batches"]
    ]
    assert_close([of["loss"] for of in losses], reference["out/ae/train/losses"])
    assert all(set(of) > {"loss", f"squared_error/{RNA}"} for of in losses)
    stored = reference.autoencoder_values("out/ae/train/after/")
    assert stored.keys() == {weight.path for weight in stage.network.weights}
    # Gradients of biases before a normalisation are zero up to rounding, which AdamW
    # makes steps of its rate of; running means follow these biases.
    last = f"layer_{len(reference.config['ae']['hidden']) + 1}"
    is_free = [
        weight.path.endswith("moving_mean")
        or (weight.path.endswith("bias") and last not in weight.path)
        for weight in stage.network.weights
    ]
    for weight, free in zip(stage.network.weights, is_free, strict=True):
        limit = 2 * len(losses) * RATE if free else 1e-5
        np.testing.assert_allclose(weight, stored[weight.path], rtol=0, atol=limit)
    assert sum(is_free) == 2 * 2 * len(reference.config["ae"]["hidden"])


def test_a_cell_alone_has_the_latent_and_expression_it_has_among_others(reference):
    network, x = reference.autoencoder(), tf.constant(reference["in/ae/x"])
    together = network.encode({RNA: x})
    alone = network.encode({RNA: x[3:4]})
    np.testing.assert_allclose(alone, together[3:4], atol=1e-6)
    decoded = [network.decode(of, {})[RNA].mean for of in (alone, together[3:4])]
    np.testing.assert_allclose(*decoded, atol=1e-5)


def test_expression_is_drawn_as_it_is_and_never_negative(reference):
    network, x = reference.autoencoder(), tf.constant(reference["in/ae/x"])
    decoded = network.decode(network.encode({RNA: x}), {})[RNA]
    np.testing.assert_array_equal(decoded.sample(tf.constant((1, 2)), 5), decoded.mean)
    assert np.min(decoded.log_expression) < 0
    assert np.min(decoded.mean) == 0


def test_latents_lie_on_the_sphere_and_a_latent_of_zero_has_a_gradient():
    point = tf.Variable(tf.constant([[3.0, 4.0], [0.0, 0.0]]))
    with tf.GradientTape() as tape:
        latent = CountAutoencoder.on_sphere(point)
    np.testing.assert_allclose(latent, [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert np.all(np.isfinite(tape.gradient(latent, point)))


def test_target_is_the_logarithm_of_counts_per_10000():
    network = CountAutoencoder(
        {RNA: Modality(2, (3,), "squared_error", "log1p_per_10000")}
    )
    counts = tf.constant([[1.0, 3.0], [0.0, 0.0]])
    logits = {RNA: tf.zeros((2, 2))}
    found = network.reconstruction_losses({RNA: counts}, {}, logits)[RNA]
    expected = (np.log1p(2500) ** 2 + np.log1p(7500) ** 2) / 4
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_residual_layers_but_the_first_add_their_input():
    mlp = Mlp((2, 3, 3, 3, 1), residual=True, activation="prelu", name="encoder")
    mlp.build()
    for linear in mlp.linears[1:3]:
        linear.kernel.assign(tf.zeros_like(linear.kernel))
        linear.bias.assign([-1.0, 0.0, 2.0])
    x = tf.constant([[0.3, -0.8]])
    norm = 1 / np.sqrt(1 + 1e-5)
    first = mlp.linears[0](x).numpy() * norm
    hidden = np.where(first > 0, first, 0.25 * first)
    hidden = hidden + 2 * norm * np.array([-0.25, 0.0, 2.0])
    found, _ = mlp(x)
    np.testing.assert_allclose(found, mlp.linears[3](hidden), rtol=1e-5, atol=1e-6)


def test_size_of_the_paper_has_the_number_of_parameters_of_the_original():
    widths = (1024, 1024, 1024, 128)
    modality = Modality(2000, widths, "squared_error", activation="prelu")
    network = CountAutoencoder({RNA: modality}, on_sphere=True)
    sizes = [np.prod(weight.shape) for weight in network.trainable_variables]
    assert sum(sizes) == 8_573_014
