from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest

from cellgan.sampling.noise_schedules import (
    NoiseSchedule,
    cosine_betas,
    even_full_steps,
    linear_betas,
    spaced_steps,
    uneven_full_steps,
)
from tests.models.cfdiffusion.diffusion_reference import strided_steps
from tests.stored import stored_arrays, stored_config, stored_names

TABLES = {
    "betas": "betas",
    "alphas_cumprod": "kept",
    "alphas_cumprod_prev": "kept_before",
    "sqrt_alphas_cumprod": "signal_rate",
    "sqrt_one_minus_alphas_cumprod": "noise_rate",
    "sqrt_recip_alphas_cumprod": "latent_from_noisy",
    "sqrt_recipm1_alphas_cumprod": "latent_from_noise",
    "posterior_variance": "posterior_variance",
    "posterior_log_variance_clipped": "log_posterior_variance",
    "posterior_mean_coef1": "posterior_from_latent",
    "posterior_mean_coef2": "posterior_from_noisy",
}
FILE = "cfdiffusion.npz"
SCHEDULES = stored_names(FILE, "out/diffusion/([^/]+)/timestep_map")
BETAS = stored_names(FILE, r"out/diffusion/((?:linear|cosine)\d+[^/]*)/betas")
WHOLE = NoiseSchedule.of(linear_betas(1000))


@pytest.fixture(scope="module")
def stored(reference_dir):
    return stored_arrays(reference_dir / FILE)


def schedule_of(name: str) -> NoiseSchedule:
    """Return all steps, or those that are left as the name says."""
    n_steps = stored_config(FILE)["diffusion"]["T"]
    whole = NoiseSchedule.of(linear_betas(n_steps))
    kind, _, kept = name.partition("_")
    if kind != "respaced":
        return whole
    if kept.startswith("ddim"):
        return whole.respaced(strided_steps(n_steps, int(kept.removeprefix("ddim"))))
    return whole.respaced(spaced_steps(n_steps, tuple(map(int, kept.split("-")))))


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_those_of_the_original(stored, name):
    schedule, prefix = schedule_of(name), f"out/diffusion/{name}/"
    theirs = {
        key.removeprefix(prefix): stored[key]
        for key in stored
        if key.startswith(prefix)
    }
    kept_steps = theirs.pop("timestep_map")
    theirs.pop("alphas_cumprod_next", None)  # of steps back to noise, which we lack
    np.testing.assert_array_equal(schedule.original_steps, kept_steps)
    log_noise = theirs.pop("log_one_minus_alphas_cumprod", np.log(1 - schedule.kept))
    np.testing.assert_allclose(2 * np.log(schedule.noise_rate), log_noise, atol=1e-12)
    assert {"betas", "alphas_cumprod"} <= theirs.keys()
    for key, expected in theirs.items():
        found = getattr(schedule, TABLES[key])
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", BETAS)
def test_betas_are_those_of_the_original(stored, name):
    kind, n_steps = re.match(r"(\w+?)(\d+)", name).groups()
    found = {
        "cosine": cosine_betas,
        "linear": partial(linear_betas, scaled="_scaled" in name),
    }[kind](int(n_steps))
    expected = stored[f"out/diffusion/{name}/betas"]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def cache_cases(kind: str, files: list[str]) -> dict[str, tuple[int, ...]]:
    """Return the numbers in the keys of a kind, by key."""
    return {
        key: tuple(map(int, re.findall(r"(?:T|interval|center)(\d+)", key)))
        for key in files
        if key.startswith(f"out/cache/{kind}/") and not key.endswith("pow_used")
    }


def test_even_full_steps_are_those_of_the_original(stored):
    cases = cache_cases("uniform", stored)
    assert cases
    for key, (n_steps, interval) in cases.items():
        np.testing.assert_array_equal(even_full_steps(n_steps, interval), stored[key])


def test_uneven_full_steps_are_those_of_the_original(stored):
    cases = cache_cases("nonuniform", stored)
    assert cases
    for key, (n_steps, interval, centre) in cases.items():
        found = uneven_full_steps(n_steps, interval, centre=centre)
        np.testing.assert_array_equal(found, stored[key])


def test_respacing_leaves_the_noise_of_a_step_as_it_was():
    steps = np.array([0, 7, 300, 999])
    respaced = WHOLE.respaced(steps)
    np.testing.assert_allclose(respaced.kept, WHOLE.kept[steps], rtol=1e-12)
    again = respaced.respaced(np.array([1, 3]))
    assert again.original_steps.tolist() == [7, 999]


def test_all_steps_are_the_schedule_itself():
    same = WHOLE.respaced(spaced_steps(1000, (1000,)))
    np.testing.assert_allclose(same.betas, WHOLE.betas, rtol=1e-10)


def test_posterior_is_that_of_two_steps_of_noise():
    # Of one dimension: x0 -> x1 -> x2 by Bayes' rule.
    betas = np.array([0.1, 0.4])
    schedule = NoiseSchedule.of(betas)
    precision = (1 - betas[1]) / betas[1] + 1 / betas[0]
    assert schedule.posterior_variance[1] == pytest.approx(1 / precision)
    assert schedule.posterior_from_latent[1] == pytest.approx(
        np.sqrt(1 - betas[0]) / betas[0] / precision
    )
    assert schedule.posterior_from_noisy[1] == pytest.approx(
        np.sqrt(1 - betas[1]) / betas[1] / precision
    )


def test_uneven_steps_are_found_for_few_steps_too():
    # No power gives the number here: the last one tried stands.
    steps = uneven_full_steps(20, 5)
    assert steps[0] == 0
    assert np.all(np.diff(steps) > 0)


def test_more_steps_than_there_are_are_refused():
    with pytest.raises(ValueError, match="11 steps cannot be taken of 10"):
        spaced_steps(10, (11,))
