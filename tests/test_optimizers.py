from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from cellgan.optimizers import GeometricDecay, adam

MOMENTS = (0.5, 0.9)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_decay_reaches_both_ends_and_their_geometric_mean_halfway():
    schedule = GeometricDecay(1e-3, 1e-5, max_steps=100)
    rates = schedule(np.array([0, 50, 100]))
    np.testing.assert_allclose(rates, [1e-3, 1e-4, 1e-5], rtol=1e-5)


def test_decay_gives_all_updates_of_a_step_the_same_rate():
    # one update in step 0, then three in each of the steps 1 and 2
    schedule = GeometricDecay(1.0, 0.5, max_steps=1, updates_per_step=3)
    rates = [float(schedule(updates)) for updates in range(7)]
    assert rates == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_decay_between_equal_rates_is_that_rate_exactly():
    schedule = GeometricDecay(0.3, 0.3, max_steps=7, updates_per_step=2)
    assert set(np.asarray(schedule(np.arange(50)))) == {np.float32(0.3)}


def test_decay_is_rebuilt_from_its_configuration():
    schedule = GeometricDecay(1e-3, 1e-5, max_steps=7, updates_per_step=3)
    rebuilt = GeometricDecay.from_config(schedule.get_config())
    assert float(rebuilt(5)) == float(schedule(5))


@pytest.mark.parametrize("amsgrad", [True, False])
def test_adam_equals_the_one_of_keras(amsgrad):
    ours = adam(0.1, MOMENTS, amsgrad=amsgrad)
    theirs = keras.optimizers.Adam(0.1, *MOMENTS, epsilon=1e-8, amsgrad=amsgrad)
    weights = [keras.Variable(draw(3, 4)) for _ in range(2)]
    for optimizer, weight in zip((ours, theirs), weights, strict=True):
        for step in range(5):
            optimizer.apply([tf.constant(draw(3, 4, seed=step))], [weight])
    np.testing.assert_allclose(*map(np.asarray, weights), rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_amsgrad_steps_stay_small_after_a_large_gradient():
    steps = {}
    for amsgrad in (True, False):
        optimizer, weight = adam(0.1, MOMENTS, amsgrad=amsgrad), keras.Variable([0.0])
        for gradient in [100.0] + [0.1] * 30:
            before = float(weight[0])
            optimizer.apply([tf.constant([gradient])], [weight])
        steps[amsgrad] = abs(float(weight[0]) - before)
    # v-hat stays at 0.1 * 100**2; without it, v has forgotten all but 4 % of that
    np.testing.assert_allclose(steps[True], 0.1 * 0.1 / np.sqrt(1000), rtol=0.1)
    assert steps[False] > 3 * steps[True]


def test_adam_treats_sparse_gradients_as_dense_ones():
    rows = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([3, 2]))
    dense = tf.constant([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    moved = []
    for gradient in (rows, dense):
        optimizer, weight = adam(0.1, MOMENTS, amsgrad=True), keras.Variable(draw(3, 2))
        for _ in range(2):
            optimizer.apply([gradient], [weight])
        moved.append(weight.numpy())
    np.testing.assert_allclose(*moved, rtol=1e-6)
