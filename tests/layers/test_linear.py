from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from cellgan.layers import Linear, glorot_uniform, he_normal, scale_to_library_size


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_linear(
    kernel: np.ndarray, bias: np.ndarray | None = None, **options
) -> Linear:
    layer = Linear(*kernel.shape, "zeros", use_bias=bias is not None, **options)
    layer.build()
    layer.set_weights([kernel] if bias is None else [kernel, bias])
    return layer


def test_linear_multiplies_and_adds_its_bias():
    inputs, kernel, bias = draw(5, 3), draw(3, 4, seed=1), draw(4, seed=2)
    outputs = make_linear(kernel, bias)(inputs)
    np.testing.assert_allclose(outputs, inputs @ kernel + bias, rtol=1e-5, atol=1e-6)


def test_linear_transposed_multiplies_by_the_transposed_kernel_without_bias():
    inputs, kernel, bias = draw(5, 4), draw(3, 4, seed=1), draw(4, seed=2)
    outputs = make_linear(kernel, bias).transposed(inputs)
    np.testing.assert_allclose(outputs, inputs @ kernel.T, rtol=1e-5, atol=1e-6)


def test_linear_rounds_only_products_when_it_computes_in_bfloat16():
    # 1 + 2**-7 is a bfloat16, its square is not; 257 is a float32 only
    kernel, bias = np.float32([[1 + 2**-7]]), np.float32([257])
    layer = make_linear(kernel, bias, dtype="mixed_bfloat16")
    outputs = layer(np.float32([[1 + 2**-7]]))
    assert outputs.dtype == tf.float32
    assert layer.kernel.dtype == "float32"
    assert float(outputs[0, 0]) == 257 + 1 + 2**-6


def test_he_normal_is_truncated_at_two_deviations():
    n_inputs, n_outputs = 300, 500
    kernel = np.asarray(he_normal(n_inputs, n_outputs, seed=3)((n_inputs, n_outputs)))
    deviation = math.sqrt(2.6 / 400)
    largest = np.abs(kernel).max()
    assert 1.99 * deviation < largest <= 2 * deviation
    # the variance left by truncation is 0.7737 of that of the whole normal
    expected = 0.7737 * deviation**2
    standard_error = expected * math.sqrt(2 / kernel.size)
    assert abs(kernel.var() - expected) < 5 * standard_error


def test_glorot_uniform_fills_its_interval():
    kernel = np.asarray(glorot_uniform(seed=3)((300, 500)))
    limit = math.sqrt(6 / 800)
    assert 0.999 * limit < kernel.max() <= limit
    assert -limit <= kernel.min() < -0.999 * limit


def test_initialisers_repeat_when_the_seed_does():
    first, same, other = (he_normal(4, 5, seed)((4, 5)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, same)
    assert not np.any(np.isclose(first, other))


def test_scale_to_library_size_sets_the_sum_of_each_cell():
    scaled = scale_to_library_size(tf.constant(np.abs(draw(6, 40))), 20000.0)
    np.testing.assert_allclose(np.sum(scaled, axis=1), 20000, rtol=1e-6)


def test_scale_to_library_size_keeps_a_cell_of_zeros_with_finite_gradients():
    values = tf.constant([[0.0, 0.0], [1.0, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch(values)
        scaled = scale_to_library_size(tf.nn.relu(values), 100.0)
        first = scaled[:, 0]
    np.testing.assert_allclose(scaled, [[0, 0], [25, 75]])
    gradient = tape.gradient(first, values)
    # d (100 x / (x + y)) = 100 y / (x + y)**2 dx - 100 x / (x + y)**2 dy
    np.testing.assert_allclose(gradient, [[0, 0], [18.75, -6.25]], rtol=1e-6)


def test_scale_to_library_size_changes_nothing_without_one():
    values = tf.constant(draw(3, 4))
    np.testing.assert_array_equal(scale_to_library_size(values, None), values)
