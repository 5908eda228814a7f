from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.layers import (
    BatchNormalization,
    BatchStatistics,
    LayerNormalization,
    ReadOut,
    one_hot,
)

CODES = tf.constant([2, 0, 0, 2, 0])
"""Of three categories, the second of which is not there."""


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def categories() -> tf.Tensor:
    return one_hot(CODES, 3, "float32")


def built(layer):
    """Build a layer and give it weights that are all different."""
    layer.build()
    for index, weight in enumerate(layer.trainable_variables):
        weight.assign(draw(*weight.shape, seed=index + 1))
    return layer


def test_batch_normalization_uses_biased_statistics_of_the_whole_batch():
    inputs, layer = draw(5, 4), built(BatchNormalization(4, 3))
    outputs, statistics = layer(inputs, categories(), training=True)
    mean, variance = inputs.mean(axis=0), inputs.var(axis=0)
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics.variance, variance, rtol=1e-5)
    scale, offset = (np.asarray(w)[CODES] for w in (layer.scale, layer.offset))
    expected = (inputs - mean) / np.sqrt(variance + 1e-5) * scale + offset
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_batch_normalization_has_one_scale_and_offset_without_categories():
    inputs, layer = draw(5, 4), built(BatchNormalization(4))
    outputs, _ = layer(inputs, training=True)
    normalized = (inputs - inputs.mean(axis=0)) / np.sqrt(inputs.var(axis=0) + 1e-5)
    expected = normalized * np.asarray(layer.scale) + np.asarray(layer.offset)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_batch_normalization_uses_running_statistics_when_not_training():
    inputs, layer = draw(5, 4), BatchNormalization(4)
    layer.build()
    layer.moving_mean.assign([1, 2, 3, 4])
    layer.moving_variance.assign([1, 4, 9, 16])
    outputs, _ = layer(inputs, training=False)
    expected = (inputs - [1, 2, 3, 4]) / np.sqrt(np.array([1, 4, 9, 16]) + 1e-5)
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_batch_normalization_call_updates_nothing():
    layer = BatchNormalization(4)
    layer(draw(5, 4), training=True)
    np.testing.assert_array_equal(layer.moving_mean, np.zeros(4))
    np.testing.assert_array_equal(layer.moving_variance, np.ones(4))


def test_batch_normalization_update_keeps_999_in_1000():
    layer = BatchNormalization(2)
    layer.build()
    layer.moving_mean.assign([0, 1000])
    layer.update(
        BatchStatistics(tf.constant([4e3, 8e3]), tf.constant([3e3, 1.0])), 0.999
    )
    np.testing.assert_allclose(layer.moving_mean, [4, 1007], rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, [3.999, 1], rtol=1e-4)


def test_layer_normalization_uses_the_units_of_each_cell():
    inputs, layer = draw(5, 4), built(LayerNormalization(4, 3))
    outputs = layer(inputs, categories())
    mean = inputs.mean(axis=1, keepdims=True)
    variance = inputs.var(axis=1, keepdims=True)
    scale, offset = (np.asarray(w)[CODES] for w in (layer.scale, layer.offset))
    expected = (inputs - mean) / np.sqrt(variance + 1e-5) * scale + offset
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_only_rows_of_categories_in_the_batch():
    layer = built(LayerNormalization(4, 3))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(tf.square(layer(draw(5, 4), categories())))
    for gradient in tape.gradient(total, layer.trainable_variables):
        assert np.all(np.any(gradient, axis=1) == [True, False, True])


def read_out_expected(layer: ReadOut, inputs: np.ndarray) -> np.ndarray:
    weights = {weight.name: np.asarray(weight) for weight in layer.weights}
    projection = weights.get("projection", np.zeros((3, 4, 1)))[CODES][:, :, 0]
    shared = weights.get("kernel", np.zeros((4, 1)))[:, 0]
    bias = weights.get("projection_bias", np.zeros((3, 1)))[CODES][:, 0]
    bias = bias + weights.get("bias", np.zeros(1))
    return (inputs * (projection + shared)).sum(axis=1) + bias


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("plain", ["kernel", "bias"]),
        ("per_category", ["projection", "projection_bias"]),
        ("projection", ["projection", "kernel", "bias"]),
    ],
)
def test_read_out_has_the_weights_of_its_kind_and_scores_with_them(kind, names):
    inputs, layer = draw(5, 4), built(ReadOut(4, 3, kind, "zeros"))
    assert [weight.name for weight in layer.weights] == names
    scores = layer(inputs, categories())
    np.testing.assert_allclose(scores, read_out_expected(layer, inputs), rtol=1e-5)


@pytest.mark.parametrize("kind", ["plain", "per_category", "projection"])
def test_read_out_slope_is_the_derivative_of_the_scores(kind):
    inputs, layer = tf.constant(draw(5, 4)), built(ReadOut(4, 3, kind, "zeros"))
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        scores = layer(inputs, categories())
    expected = tape.gradient(scores, inputs)
    slope = np.broadcast_to(layer.slope(categories()), (5, 4))
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_one_hot_is_none_without_categories():
    assert one_hot(CODES, None, "float32") is None
