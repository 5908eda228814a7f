from __future__ import annotations

import numpy as np
import tensorflow as tf

from cellgan.models.gan import losses


def quadratic_gradient(cells: tf.Tensor) -> tf.Tensor:
    """Return the gradient of the critic ``|x|**2 / 2``."""
    return cells


def test_gradient_penalty_is_measured_between_real_and_generated_cells():
    # slopes 0, 1/2 and 1 of the way from 0 to (3, 4): norms 0, 2.5 and 5
    real, generated = tf.zeros((3, 2)), tf.constant([[3.0, 4.0]] * 3)
    between = losses.interpolate(real, generated, tf.constant([[0.0], [0.5], [1.0]]))
    slopes = losses.slopes(quadratic_gradient(between))
    np.testing.assert_allclose(slopes, [0, 2.5, 5], atol=1e-5)
    penalty = losses.gradient_penalty(slopes)
    np.testing.assert_allclose(penalty, (1 + 1.5**2 + 4**2) / 3, rtol=1e-5)


def test_interpolate_is_the_real_cell_at_0_and_the_generated_one_at_1():
    real, generated = tf.constant([[1.0, 2.0]] * 2), tf.constant([[5.0, 6.0]] * 2)
    between = losses.interpolate(real, generated, tf.constant([[0.0], [1.0]]))
    np.testing.assert_array_equal(between, [[1, 2], [5, 6]])


def test_slopes_have_a_finite_gradient_where_they_are_zero():
    score_gradients = tf.constant([[0.0, 0.0], [3.0, 4.0]])
    with tf.GradientTape() as tape:
        tape.watch(score_gradients)
        slopes = losses.slopes(score_gradients)
    gradient = tape.gradient(slopes, score_gradients)
    np.testing.assert_allclose(gradient, [[0, 0], [0.6, 0.8]], atol=1e-6)


def test_losses_have_the_signs_of_their_players():
    real, fake = tf.constant([1.0, 3.0]), tf.constant([10.0, 20.0])
    assert float(losses.wasserstein_distance(real, fake)) == 13
    assert float(losses.generator_loss(fake)) == -15
