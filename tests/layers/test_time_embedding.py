from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.layers.time_embedding import sinusoidal_features


def test_sinusoidal_features_equal_the_reference(reference_dir):
    with np.load(reference_dir / "cfgen.npz") as stored:
        time = stored["in/common/t"]
        expected = stored["out/common/sinusoidal_t"]
    found = sinusoidal_features(tf.constant(time), expected.shape[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_largest_angle_is_that_of_the_fastest_sine_at_position_1():
    features = sinusoidal_features(tf.constant([0.0, 1.0]), 4, largest_angle=1.5)
    slowest = 1.5e-4
    expected = [np.sin([1.5, slowest]), np.cos([1.5, slowest])]
    np.testing.assert_allclose(features[0], [0, 0, 1, 1])
    np.testing.assert_allclose(features[1], np.concatenate(expected), rtol=1e-6)


@pytest.mark.parametrize("width", [2, 7])
def test_width_that_does_not_suit_is_refused(width):
    with pytest.raises(ValueError, match=f"width {width}; it must be even, at least 4"):
        sinusoidal_features(tf.zeros((1,)), width)
