from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from cellgan.sampling.diffusion import (
    Sampler,
    add_noise,
    ddim_step,
    ddpm_step,
    interpret,
    posterior,
)
from cellgan.sampling.noise_schedules import (
    NoiseSchedule,
    even_full_steps,
    linear_betas,
    spaced_steps,
)
from tests.models.cfdiffusion.diffusion_reference import (
    DiffusionReference,
    assert_close,
)
from tests.stored import stored_config, stored_names

pytestmark = pytest.mark.slow

FILE = "cfdiffusion.npz"
SCHEDULE = NoiseSchedule.of(linear_betas(1000))
THEIRS = NoiseSchedule.of(linear_betas(stored_config(FILE)["diffusion"]["T"]))
OUT = "out/diffusion"
FULL_STEPS = stored_names(FILE, r"out/sample/exec_full_flags_(T\d+_uniform\d+)")


@pytest.fixture(scope="module")
def reference(reference_dir) -> DiffusionReference:
    return DiffusionReference(reference_dir)


@pytest.fixture(scope="module")
def given(reference) -> dict[str, tf.Tensor]:
    return {
        name: tf.constant(of) for name, of in reference.below("in/diffusion/").items()
    }


@pytest.fixture(scope="module")
def noisy(reference) -> tf.Tensor:
    return tf.constant(reference[f"{OUT}/q_sample"])


# As the original


def test_noisy_latents_are_those_of_the_original(reference, given):
    found = add_noise(THEIRS, given["x0"], given["noise"], given["t"])
    assert_close(found, reference[f"{OUT}/q_sample"], 1e-6)


def test_posterior_is_that_of_the_original(reference, given, noisy):
    found = posterior(THEIRS, given["x0"], noisy, given["t"])
    assert_close(found.mean, reference[f"{OUT}/q_posterior/mean"], 1e-6)
    rows = tf.ones_like(noisy)
    expected = reference[f"{OUT}/q_posterior/variance"]
    assert_close(found.variance * rows, expected, 1e-6)
    expected = reference[f"{OUT}/q_posterior/log_variance_clipped"]
    assert_close(found.log_variance * rows, expected, 1e-6)


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned_range"])
def test_interpretations_are_those_of_the_original(reference, given, noisy, variance):
    learned = variance == "learned_range"
    output = given["model_output_learned" if learned else "model_output"]
    found = interpret(THEIRS, output, noisy, given["t"], variance=variance)
    prefix = f"{OUT}/p_mean_variance/eps/{variance}/noclip"
    rows = tf.ones_like(noisy)
    assert_close(found.latent, reference[f"{prefix}/pred_xstart"])
    assert_close(found.cleaner.mean, reference[f"{prefix}/mean"])
    assert_close(found.cleaner.variance * rows, reference[f"{prefix}/variance"])
    expected = reference[f"{prefix}/log_variance"]
    assert_close(found.cleaner.log_variance * rows, expected)


def test_ddpm_steps_are_those_of_the_original(reference, given, noisy):
    step = interpret(THEIRS, given["model_output"], noisy, given["t"])
    found = ddpm_step(step.cleaner, given["step_noise"], given["t"])
    assert_close(found, reference[f"{OUT}/ddpm_step/nw0.5/sample"])


@pytest.mark.parametrize(
    "eta", stored_names(FILE, f"{OUT}/ddim_step/eta([^/]+)/sample")
)
def test_ddim_steps_are_those_of_the_original(reference, given, noisy, eta):
    latent = interpret(THEIRS, given["model_output"], noisy, given["t"]).latent
    noise, number = given["step_noise"], float(eta)
    noise = noise if number else None
    found = ddim_step(THEIRS, latent, noisy, given["t"], eta=number, noise=noise)
    assert_close(found, reference[f"{OUT}/ddim_step/eta{eta}/sample"])


@pytest.mark.parametrize("name", FULL_STEPS)
def test_full_steps_are_taken_as_by_the_original(reference, name):
    n_steps, interval = map(int, re.findall(r"\d+", name))
    schedule = NoiseSchedule.of(linear_betas(n_steps))
    sampler = Sampler(schedule, full_steps=even_full_steps(n_steps, interval))
    found = sampler.is_full(n_steps - 1)[::-1]
    expected = reference[f"out/sample/exec_full_flags_{name}"]
    np.testing.assert_array_equal(found, expected)


# Where the steps must lead


class GaussianNetwork:
    """The exact noise, of latents that are normal with given mean and deviation."""

    def __init__(self, schedule: NoiseSchedule, mean, deviation) -> None:
        self.schedule = schedule
        self.mean, self.deviation = (
            tf.constant(v, tf.float32) for v in (mean, deviation)
        )

    def whole(self, latent, position):
        signal = tf.gather(tf.constant(self.schedule.signal_rate, tf.float32), position)
        rate = tf.gather(tf.constant(self.schedule.noise_rate, tf.float32), position)
        variance = (signal * self.deviation) ** 2 + rate**2
        noise = rate * (latent - signal * self.mean) / variance
        return noise, noise

    def part(self, feature, latent, position):
        del latent, position
        return feature


MEAN, DEVIATION = [1.0, -2.0, 0.5], [0.5, 1.0, 2.0]
N_CELLS = 4000


def normal(seed, shape=(N_CELLS, 3)) -> tf.Tensor:
    return tf.random.stateless_normal(shape, seed, alg="philox")


def run(sampler: Sampler, *, jit: bool = False, start=None, **options) -> np.ndarray:
    network = GaussianNetwork(sampler.schedule, MEAN, DEVIATION)

    @tf.function(jit_compile=jit)
    def sample(start):
        return sampler.sample(
            network, start, lambda position: normal(tf.stack((5, position))), **options
        )

    return sample(normal((1, 2)) if start is None else start).numpy()


def respaced(n_steps: int) -> NoiseSchedule:
    return SCHEDULE.respaced(spaced_steps(1000, (n_steps,)))


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(SCHEDULE),
        Sampler(SCHEDULE, variance="fixed_small"),
        Sampler(respaced(200), "ddim"),
        Sampler(respaced(200), "ddim", eta=1.0),
    ],
    ids=["ddpm", "ddpm_small", "ddim", "ddim_eta1"],
)
def test_samples_of_a_known_distribution_have_its_moments(sampler):
    found = run(sampler)
    error = np.array(DEVIATION) / np.sqrt(N_CELLS)
    assert np.all(np.abs(found.mean(axis=0) - MEAN) < 5 * error + 0.01)
    # 5 standard errors of a deviation, and what finite steps lose
    limit = 5 / np.sqrt(2 * N_CELLS) + 0.02
    np.testing.assert_allclose(found.std(axis=0) / DEVIATION, 1, atol=limit)


def test_ddim_converges_to_the_flow_with_the_number_of_steps():
    exact = np.array(MEAN) + np.array(DEVIATION) * normal((1, 2)).numpy()
    errors = [
        np.abs(run(Sampler(respaced(n_steps), "ddim")) - exact).mean()
        for n_steps in (25, 50, 100)
    ]
    assert errors[0] > 1.6 * errors[1] > 1.6**2 * errors[2]


def test_an_interval_of_1_is_no_cache_bit_for_bit():
    schedule = respaced(20)
    cached = Sampler(schedule, full_steps=even_full_steps(20, 1))
    np.testing.assert_array_equal(run(cached), run(Sampler(schedule)))


def test_compiled_by_xla_it_is_the_same():
    sampler = Sampler(respaced(20), "ddim", full_steps=even_full_steps(20, 3))
    np.testing.assert_allclose(run(sampler, jit=True), run(sampler), atol=1e-4)


def test_features_are_those_of_the_last_full_step():
    schedule, seen = respaced(7), []

    class Recorder(GaussianNetwork):
        def whole(self, latent, position):
            seen.append(int(position))
            return super().whole(latent, position)[0], tf.cast(position, tf.float32)

        def part(self, feature, latent, position):
            assert feature > tf.cast(position, tf.float32)
            assert feature == seen[-1]
            return super().whole(latent, position)[0]

    sampler = Sampler(schedule, "ddim", full_steps=np.array([0, 3]))
    network = Recorder(schedule, MEAN, DEVIATION)
    found = sampler.sample(network, normal((1, 2)), normal)
    assert seen == [6, 3, 0]
    np.testing.assert_allclose(found, run(Sampler(schedule, "ddim")), atol=1e-4)


def test_sampling_may_start_in_between():
    latent = tf.constant(MEAN) + tf.constant(DEVIATION) * normal((3, 4))
    sampler = Sampler(respaced(100))
    found = {}
    for first in (0, 30, 99):
        position = tf.constant(first)
        start = add_noise(sampler.schedule, latent, normal((8, 9)), position)
        ended = run(sampler, start=start, first=first)
        found[first] = np.corrcoef(ended.ravel(), latent.numpy().ravel())[0, 1]
        limit = 5 / np.sqrt(2 * N_CELLS) + 0.02
        np.testing.assert_allclose(ended.std(axis=0) / DEVIATION, 1, atol=limit)
    assert found[0] > 0.999
    assert found[0] > found[30] > found[99] + 0.02


@pytest.mark.parametrize(
    "sampler", [Sampler(SCHEDULE), Sampler(respaced(250), "ddim")], ids=["ddpm", "ddim"]
)
def test_slope_moves_samples_as_bayes_rule_says(sampler):
    # Each dimension is observed, at 3 with deviation 1: the posterior is known.
    schedule = sampler.schedule
    network = GaussianNetwork(schedule, MEAN, DEVIATION)
    signal, rate = (
        tf.constant(table, tf.float32)
        for table in (schedule.signal_rate, schedule.noise_rate)
    )

    def slope_of(noisy, position):
        s, r = signal[position], rate[position]
        total = (s * network.deviation) ** 2 + r**2
        gain = s * network.deviation**2 / total
        latent = network.mean + gain * (noisy - s * network.mean)
        left = network.deviation**2 * r**2 / total
        return gain * (3.0 - latent) / (left + 1.0)

    variance = 1 / (1 / np.square(DEVIATION) + 1)
    expected = variance * (np.array(MEAN) / np.square(DEVIATION) + 3)
    found = run(sampler, slope_of=slope_of)
    error = 5 * np.sqrt(variance / N_CELLS) + 0.02
    assert np.all(np.abs(found.mean(axis=0) - expected) < error)
    np.testing.assert_allclose(found.var(axis=0), variance, rtol=0.15)
