from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.models.cfdiffusion.classifier import NoisyClassifier
from cellgan.models.cfdiffusion.networks import GuidedDenoiser
from cellgan.sampling import NoiseSchedule, Sampler, linear_betas, spaced_steps
from tests.models.cfdiffusion.diffusion_reference import (
    OF_LINEAR,
    OF_NORM,
    DiffusionReference,
    assert_close,
)
from tests.stored import stored_name, stored_names

pytestmark = pytest.mark.slow

FILE = "cfdiffusion.npz"
SCALE = stored_name(FILE, r"out/classifier/grad_scale(.+)")
SHARES = stored_name(FILE, r"out/classifier/grad_interpolation_weights_(.+)")
"""Of two labels, in tenths."""
RUNS = stored_names(FILE, "out/sample/classifier_guided/([^/]+)/trajectory")


@pytest.fixture(scope="module")
def reference(reference_dir) -> DiffusionReference:
    return DiffusionReference(reference_dir)


@pytest.fixture(scope="module")
def network(reference) -> NoisyClassifier:
    return classifier_of(reference)


def classifier_of(reference: DiffusionReference) -> NoisyClassifier:
    """Make the original's classifier as ours."""
    sizes = reference.config["classifier"]
    ours = NoisyClassifier(
        reference.config["latent"], sizes["classes"], widths=tuple(sizes["hidden"])
    )
    stored = reference.below("weights/classifier/")
    for weight in ours.weights:
        _, layer, name = weight.path.split("/")
        weight.assign(stored.pop(their_name(layer, name)).T)
    # Of a projection that nothing uses.
    last = f"emb_layers{len(sizes['hidden'])}.1"
    assert set(stored) == {f"{last}.weight", f"{last}.bias"}
    return ours


def their_name(layer: str, name: str) -> str:
    kind, _, number = layer.rpartition("_")
    if kind == "norm":
        return f"norm{number}.{OF_NORM[name]}"
    place = {
        "time": lambda: f"time_embed.{2 * (int(number) - 1)}",
        "time_projection": lambda: f"emb_layers{number}.1",
        "layer": lambda: f"fc{number}",
        "": lambda: "out",
    }[kind]()
    return f"{place}.{OF_LINEAR[name]}"


def given(reference: DiffusionReference, *names: str) -> list[tf.Tensor]:
    return [tf.constant(reference[f"in/classifier/{name}"]) for name in names]


@pytest.mark.parametrize(("mode", "training"), [("eval", False), ("batchstats", True)])
def test_logits_are_those_of_the_original(reference, network, mode, training):
    logits, _ = network(*given(reference, "x", "t"), training=training)
    assert_close(logits, reference[f"out/classifier/logits_{mode}"])


def test_slopes_are_those_of_the_original(reference, network):
    latent, steps, first, second = given(reference, "x", "t", "y", "y_second")
    n = reference.config["classifier"]["classes"]
    one, other = tf.one_hot(first, n), tf.one_hot(second, n)
    scale = float(SCALE)
    found = network.slope(latent, steps, scale * one)
    assert_close(found, reference[f"out/classifier/grad_scale{SCALE}"])
    shares = [scale * int(tenths) / 10 for tenths in SHARES.split("_")]
    found = network.slope(latent, steps, shares[0] * one + shares[1] * other)
    expected = reference[f"out/classifier/grad_interpolation_weights_{SHARES}"]
    assert_close(found, expected)


@pytest.mark.parametrize("stored_run", RUNS)
def test_guided_runs_are_those_of_the_original(reference, network, stored_run):
    stored = reference.below("in/sample/classifier_guided/")
    denoiser = reference.denoiser("scdiffusion_base")
    n_steps, kept = reference.config["diffusion"]["T"], reference.config["n_steps"]
    whole = NoiseSchedule.of(linear_betas(n_steps))
    schedule = whole.respaced(spaced_steps(n_steps, (kept,)))
    n_pulled = kept // 2 if stored_run.endswith("guide_below_half") else 0
    sampler, steps = Sampler(schedule), tf.constant(schedule.original_steps)
    guided = GuidedDenoiser(denoiser, steps, denoiser.gates({})[None], tf.ones((1,)))
    n_classes = reference.config["classifier"]["classes"]
    scales = float(SCALE) * tf.one_hot(stored["y"], n_classes)
    latent, found = tf.constant(stored["init"]), []
    for index, noise in enumerate(stored["noise_by_executed_step"]):
        position = tf.constant(len(schedule) - 1 - index)
        slope = None
        if position < n_pulled:
            slope = network.slope(latent, steps[position][None], scales)
        output, _ = guided.whole(latent, position)
        latent = sampler.step(output, latent, position, noise, slope).cleaner.mean
        found.append(latent)
    out = f"out/sample/classifier_guided/{stored_run}/trajectory"
    assert_close(tf.stack(found), reference[out])


def test_size_of_the_paper_has_the_parameters_of_the_original_that_are_used():
    network = NoisyClassifier(128, 12)
    sizes = [np.prod(weight.shape) for weight in network.trainable_variables]
    assert sum(sizes) == 1_647_628 - 131_328


def test_slope_raises_the_probability_of_its_label():
    network = NoisyClassifier(4, 3, widths=(8, 6), seed=2)
    latent = tf.random.stateless_normal((50, 4), (1, 2))
    steps = tf.constant([5])
    before = tf.nn.softmax(network(latent, steps)[0])[:, 1]
    moved = latent + 0.05 * network.slope(latent, steps, tf.constant([[0.0, 1.0, 0.0]]))
    after = tf.nn.softmax(network(moved, steps)[0])[:, 1]
    assert np.mean(after > before) == 1
