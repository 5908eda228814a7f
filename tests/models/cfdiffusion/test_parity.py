"""Whole runs of sampling as the original's."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf

from cellgan.models.cfdiffusion.networks import GuidedDenoiser
from cellgan.sampling.diffusion import Sampler
from cellgan.sampling.noise_schedules import (
    NoiseSchedule,
    even_full_steps,
    linear_betas,
    spaced_steps,
    uneven_full_steps,
)
from tests.models.cfdiffusion.diffusion_reference import (
    TOLERANCE,
    DiffusionReference,
    assert_close,
)
from tests.stored import stored_config, stored_name, stored_names

pytestmark = pytest.mark.slow

FILE = "cfdiffusion.npz"
CASES = ["single", "multi"]
WHOLE = NoiseSchedule.of(linear_betas(stored_config(FILE)["diffusion"]["T"]))
OF_LONG_CHAINS = 1e-3
"""Tolerance after hundreds of steps."""
RESPACED = stored_name(
    FILE, r"out/sample/single/intended_(respaced\d+)/no_cache/pred_x0"
)
VARIANTS = stored_names(FILE, rf"out/sample/single/intended_{RESPACED}/(.+)/pred_x0")
"""Without a cache, or with one of an interval and a branch."""
LONG = stored_name(FILE, r"in/sample/(T\d+)/init")
CACHES = stored_names(FILE, rf"out/sample/{LONG}/as_released/([^/]+)/final")
INTENDED = stored_name(FILE, rf"out/sample/{LONG}/(intended_w[^/]+)/no_cache/final")
MIDWAY = stored_name(FILE, rf"out/sample/{LONG}/as_released/no_cache/(x_at_.+)")
UNEVEN = stored_name(FILE, r"out/sample/exec_full_flags_T\d+_(nonuniform\d+)")
CHOICES = {"uniform": even_full_steps, "nonuniform": uneven_full_steps}


@pytest.fixture(scope="module")
def reference(reference_dir) -> DiffusionReference:
    assert (reference_dir / "cfdiffusion.npz").exists()
    return DiffusionReference(reference_dir)


class Chain:
    """One stored run: its start, noise, labels, and our network in it."""

    def __init__(self, reference: DiffusionReference, stored: str, case: str) -> None:
        self.network = reference.denoiser(case)
        self.start = tf.constant(reference[f"in/sample/{stored}/init"])
        noise = reference[f"in/sample/{stored}/noise_by_executed_step"]
        self.noise = tf.constant(noise[::-1].copy())
        codes = reference.codes(case, reference[f"in/sample/{stored}/y"])
        both = (codes, reference.null(case, len(self.start)))
        self.gates = [self.network.gates(shown) for shown in both]

    def guided(self, steps, branch: int, scale: float) -> GuidedDenoiser:
        """Return the network in a run; without guidance at a scale of 1."""
        gates, weights = self.gates, [scale, 1 - scale]
        if scale == 1:
            gates, weights = gates[:1], weights[:1]
        step_index = tf.constant(steps)
        return GuidedDenoiser(
            self.network, step_index, tf.stack(gates), tf.constant(weights), branch
        )

    def end(self, sampler: Sampler, steps, *, branch: int = 0, scale: float = 1.0):
        """Return the latents, of one compiled run."""

        @tf.function
        def run():
            network = self.guided(steps, branch, scale)
            return sampler.sample(network, self.start, lambda at: self.noise[at])

        return run()

    def trajectory(
        self, sampler: Sampler, steps, *, branch: int = 0, scale: float = 1.0
    ):
        """Return the latents, and those predicted without noise, after each step."""
        network = self.guided(steps, branch, scale)
        last = len(steps) - 1
        is_full = sampler.is_full(last)

        @tf.function
        def step(output, latent, position):
            noise = self.noise[position] if sampler.draws_noise else None
            made = sampler.step(output, latent, position, noise)
            return made.cleaner.mean, made.latent

        whole, part = tf.function(network.whole), tf.function(network.part)
        latent, feature, seen = self.start, None, []
        for at in range(last, -1, -1):
            position = tf.constant(at)
            if is_full[at]:
                output, feature = whole(latent, position)
            else:
                output = part(feature, latent, position)
            seen.append(step(output, latent, position))
            latent = seen[-1][0]
        return [tf.stack(of) for of in zip(*seen, strict=True)]


def respaced(reference: DiffusionReference) -> NoiseSchedule:
    return WHOLE.respaced(spaced_steps(len(WHOLE), (reference.config["n_steps"],)))


def short_sampler(reference: DiffusionReference, variant: str) -> tuple[Sampler, int]:
    """Return the sampler of a stored run, and the branch that it keeps."""
    schedule, numbers = respaced(reference), re.findall(r"\d+", variant)
    if not numbers:
        return Sampler(schedule), 0
    interval, branch = map(int, numbers)
    full = even_full_steps(len(schedule), interval)
    return Sampler(schedule, full_steps=full), branch


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_respaced_runs_are_those_of_the_original_as_intended(reference, case, variant):
    sampler, branch = short_sampler(reference, variant)
    chain, steps = Chain(reference, case, case), sampler.schedule.original_steps
    scale = 1 + reference.config["guidance_in_sampling"]
    options = {"branch": branch, "scale": scale}
    latents, clean = chain.trajectory(sampler, steps, **options)
    out = f"out/sample/{case}/intended_{RESPACED}/{variant}"
    assert_close(latents, reference[f"{out}/trajectory"])
    assert_close(clean, reference[f"{out}/pred_x0"])
    end = chain.end(sampler, steps, **options)
    assert_close(end, reference[f"{out}/trajectory"][-1])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_respaced_runs_are_those_of_the_original_as_released(reference, case, variant):
    sampler, branch = short_sampler(reference, variant)
    unmapped = np.arange(len(sampler.schedule))
    found = Chain(reference, case, case).end(sampler, unmapped, branch=branch)
    out = f"out/sample/{case}/as_released_{RESPACED}/{variant}"
    assert_close(found, reference[f"{out}/final"])


@pytest.mark.parametrize("case", CASES)
def test_ddim_runs_are_those_of_the_original(reference, case):
    chain, sampler = Chain(reference, case, case), Sampler(respaced(reference), "ddim")
    scale = 1 + reference.config["guidance_in_sampling"]
    steps = sampler.schedule.original_steps
    latents, _ = chain.trajectory(sampler, steps, scale=scale)
    out = f"out/sample/{case}/intended_{RESPACED}/ddim_eta0_no_cache"
    assert_close(latents, reference[f"{out}/trajectory"])


def long_sampler(cache: str) -> Sampler:
    if cache == "no_cache":
        return Sampler(WHOLE)
    kind, interval = re.fullmatch(r"(\D+)(\d+)", cache).groups()
    return Sampler(WHOLE, full_steps=CHOICES[kind](len(WHOLE), int(interval)))


@pytest.mark.parametrize("cache", CACHES)
def test_runs_of_all_steps_are_those_of_the_original_as_intended(reference, cache):
    chain, sampler = Chain(reference, LONG, "single"), long_sampler(cache)
    scale = 1 + float(INTENDED.removeprefix("intended_w"))
    found = chain.end(sampler, WHOLE.original_steps, scale=scale)
    out = f"out/sample/{LONG}/{INTENDED}/{cache}/final"
    assert_close(found, reference[out], OF_LONG_CHAINS)


@pytest.mark.parametrize("cache", CACHES)
def test_runs_of_all_steps_are_those_of_the_original_as_released(reference, cache):
    chain, sampler = Chain(reference, LONG, "single"), long_sampler(cache)
    out = f"out/sample/{LONG}/as_released/{cache}"
    found = chain.end(sampler, WHOLE.original_steps)
    assert_close(found, reference[f"{out}/final"], OF_LONG_CHAINS)


@pytest.mark.parametrize("cache", CACHES)
def test_runs_pass_where_the_original_does(reference, cache):
    chain, sampler = Chain(reference, LONG, "single"), long_sampler(cache)
    latents, _ = chain.trajectory(sampler, WHOLE.original_steps)
    found = tf.gather(latents, [int(n) - 1 for n in re.findall(r"\d+", MIDWAY)])
    expected = reference[f"out/sample/{LONG}/as_released/{cache}/{MIDWAY}"]
    assert_close(found, expected, OF_LONG_CHAINS)


def test_end_of_a_run_is_decoded_as_by_the_original(reference):
    out = f"out/sample/{LONG}/{INTENDED}/no_cache"
    latent = tf.constant(reference[f"{out}/final"])
    decoded = reference.autoencoder().decode(latent, {})["rna"]
    assert_close(tf.math.log1p(decoded.mean), reference[f"{out}/decoded_eval"])


def test_uneven_full_steps_are_taken_as_by_the_original(reference):
    found = long_sampler(UNEVEN).is_full(len(WHOLE) - 1)[::-1]
    expected = reference[f"out/sample/exec_full_flags_{LONG}_{UNEVEN}"]
    np.testing.assert_array_equal(found, expected)


def test_a_cache_of_interval_1_changes_nothing_bit_for_bit(reference):
    chain, schedule = Chain(reference, "single", "single"), respaced(reference)
    every = Sampler(schedule, full_steps=even_full_steps(len(schedule), 1))
    found, expected = (
        chain.end(sampler, schedule.original_steps, scale=1.5)
        for sampler in (every, Sampler(schedule))
    )
    np.testing.assert_array_equal(found, expected)


def test_embeddings_computed_once_give_the_latents_of_those_computed_always(reference):
    chain, schedule = Chain(reference, "single", "single"), respaced(reference)
    codes = reference.codes("single", reference["in/sample/single/y"])
    network, rows = chain.network, len(chain.start)

    class Naive:
        def whole(self, latent, position):
            step = tf.fill((rows,), schedule.original_steps[int(position)])
            both = [codes, reference.null("single", rows)]
            first, second = (
                network(latent, network.shifts(step), network.gates(of)) for of in both
            )
            return 1.5 * first - 0.5 * second, latent

    found = chain.end(Sampler(schedule), schedule.original_steps, scale=1.5)
    naive = Sampler(schedule).sample(Naive(), chain.start, lambda at: chain.noise[at])
    assert_close(found, naive.numpy(), 1e-5)
    assert TOLERANCE > 1e-5
