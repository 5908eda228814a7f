from __future__ import annotations

import itertools

import numpy as np
import pytest
import tensorflow as tf

from cellgan.sampling.flow_paths import (
    conditional_path,
    draw_times,
    pair_noise,
    straight_path,
    stratified_times,
)
from tests.stored import stored_names

FILE = "cfgen.npz"
SEED = tf.constant([1, 2])


@pytest.fixture(scope="module")
def stored(reference_dir):
    with np.load(reference_dir / FILE) as arrays:
        return {k: v for k, v in arrays.items() if k.split("/")[:2][-1] == "fm"}


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensor(stored: dict[str, np.ndarray], name: str) -> tf.Tensor:
    return tf.constant(stored[f"in/fm/{name}"])


@pytest.mark.parametrize("sigma", stored_names(FILE, r"out/fm/noot_sigma([^/]+)/x_t"))
def test_conditional_path_equals_the_reference(stored, sigma):
    latents, noise, time = (tensor(stored, name) for name in ("x1", "eps", "t"))
    found = conditional_path(latents, noise, time, float(sigma))
    # The reference divides by the shrinking deviation, which costs it digits near 1.
    for name, value in {"x_t": found.latent, "u_t": found.velocity}.items():
        expected = stored[f"out/fm/noot_sigma{sigma}/{name}"]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("sigma", stored_names(FILE, r"out/fm/ot_sigma([^/]+)/x_t"))
def test_straight_path_of_paired_noise_equals_the_reference(stored, sigma):
    latents, noise, jitter, time = (
        tensor(stored, name) for name in ("x1", "x0", "eps", "t")
    )
    # The reference keeps the noise in place and brings the latents to it.
    order = stored["out/fm/ot_assignment_x0_to_x1"]
    of_cells = np.argsort(order)
    found = straight_path(
        latents,
        pair_noise(latents, noise),
        tf.gather(time, of_cells),
        float(sigma),
        tf.gather(jitter, of_cells),
    )
    for name, value in {"x_t": found.latent, "u_t": found.velocity}.items():
        expected = stored[f"out/fm/ot_sigma{sigma}/{name}"][of_cells]
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-4)


def test_pairing_is_the_transport_plan_of_the_reference(stored):
    latents, noise = tensor(stored, "x1"), tensor(stored, "x0")
    paired = pair_noise(latents, noise)
    cell, row = np.nonzero(
        np.all(paired.numpy()[:, None] == noise.numpy()[None], axis=2)
    )
    plan = np.zeros((len(noise), len(latents)))
    plan[row, cell] = 1 / len(noise)
    np.testing.assert_allclose(plan, stored["out/fm/ot_plan"], atol=1e-12)
    cost = tf.reduce_mean(tf.reduce_sum(tf.square(latents - paired), axis=1))
    expected = stored["out/fm/ot_cost_mean_squared_distance"]
    np.testing.assert_allclose(cost, expected, rtol=1e-6)


def test_pairing_is_the_cheapest_of_all_orders():
    latents, noise = draw(6, 2), 2 * draw(6, 2, seed=1) + 1
    found = np.square(latents - pair_noise(latents, noise)).sum()
    costs = [
        np.square(latents - noise[list(order)]).sum()
        for order in itertools.permutations(range(6))
    ]
    np.testing.assert_allclose(found, min(costs), rtol=1e-6)


def test_covariates_stay_with_their_latents_under_pairing():
    # Two far classes, and noise that pairs with them in another order than it comes.
    codes = np.array([0, 1, 1, 0, 1, 0])
    latents = draw(6, 2) + 100.0 * codes[:, None]
    noise = draw(6, 2, seed=1) + np.array([100, 100, 0, 0, 0, 100])[:, None]
    time = tf.constant([0.5] * 6)
    point = straight_path(
        latents, pair_noise(latents, noise.astype(np.float32)), time, 0.0, 0 * latents
    )
    np.testing.assert_array_equal(point.latent.numpy().mean(axis=1) > 50, codes == 1)


def test_pairing_works_in_a_graph_with_unknown_cell_number():
    spec = tf.TensorSpec((None, 2))
    paired = tf.function(pair_noise, input_signature=[spec, spec])
    latents = tf.constant([[0.0, 0.0], [5.0, 5.0]])
    found = paired(latents, tf.constant([[4.0, 4.0], [1.0, 1.0]]))
    np.testing.assert_array_equal(found, [[1, 1], [4, 4]])


@pytest.mark.parametrize("sigma", [0.0, 0.2])
def test_conditional_path_ends_around_the_latent_and_has_its_velocity(sigma):
    latents, noise = draw(5, 3), draw(5, 3, seed=1)
    ends = [
        conditional_path(latents, noise, tf.fill((5,), time), sigma).latent
        for time in (0.0, 0.5, 1.0)
    ]
    np.testing.assert_allclose(ends[0], noise, atol=1e-6)
    np.testing.assert_allclose(ends[2], latents + sigma * noise, atol=1e-6)
    velocity = conditional_path(latents, noise, tf.zeros((5,)), sigma).velocity
    np.testing.assert_allclose(velocity, 2 * (ends[1] - ends[0]), atol=1e-6)


@pytest.mark.parametrize("name", stored_names(FILE, "out/fm/stratified_times_(.+)"))
def test_stratified_times_equal_the_reference(stored, name):
    expected = stored[f"out/fm/stratified_times_{name}"]
    offset = float(name.rpartition("_")[2]) * len(expected)
    found = stratified_times(len(expected), tf.constant(offset, tf.float32))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("n_cells", [1, 7, 49, 256])
def test_stratified_times_have_one_in_each_interval(n_cells):
    # With 49 cells and offset 0 the reference makes 50 times.
    for offset in (0.0, 0.5):
        times = stratified_times(n_cells, tf.constant(offset)).numpy()
        np.testing.assert_allclose(
            times * n_cells, np.arange(n_cells) + offset, rtol=1e-6
        )


def test_drawn_times_are_uniform_and_stratified_on_request():
    independent = draw_times(10_000, SEED, stratified=False).numpy()
    counts = np.histogram(independent, bins=10, range=(0, 1))[0]
    # 5 standard errors of a binomial count
    assert np.all(np.abs(counts - 1000) < 5 * np.sqrt(900))
    stratified = draw_times(10_000, SEED, stratified=True).numpy()
    np.testing.assert_array_equal(np.floor(stratified * 10).sum(), 45_000)
    offset = stratified[0] * 10_000
    assert 0 < offset < 1
