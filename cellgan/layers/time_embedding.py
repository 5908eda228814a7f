"""Positions in time, and other scalars of about unit range, as features of a network.

A network sees a number through sines and cosines of many frequencies: the slow ones
order all positions, the fast ones tell neighbours apart.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

LARGEST_ANGLE = 1000.0
FREQUENCY_RANGE = 1e4
"""Of the fastest frequency to the slowest."""


def sinusoidal_features(
    positions: tf.Tensor, width: int, largest_angle: float = LARGEST_ANGLE
) -> tf.Tensor:
    """Return sines, then cosines of angles proportional to each position.

    Parameters
    ----------
    positions
        Numbers of about unit range, ``(n_positions,)``.
    width
        Number of features, even and at least 4.
    largest_angle
        Angle of the fastest feature at position 1, in radians; the slowest has a
        10,000th of it. A smaller one makes a smoother field, in which adaptive solvers
        take longer steps.

    Returns
    -------
    ``(n_positions, width)``.

    Raises
    ------
    ValueError
        If `width` is odd or less than 4.

    Notes
    -----
    Angles near 1000 are off by up to 6e-5 in float32.

    References
    ----------
    Vaswani et al. (2017), Attention Is All You Need, section 3.5.
    https://arxiv.org/abs/1706.03762
    """
    if width < 4 or width % 2:
        message = f"sinusoidal features: width {width}; it must be even, at least 4."
        raise ValueError(message)
    n_frequencies = width // 2
    frequencies = np.power(FREQUENCY_RANGE, -np.linspace(0, 1, n_frequencies))
    angles = tf.cast(largest_angle, positions.dtype) * positions[:, None]
    angles *= tf.constant(frequencies, positions.dtype)
    return tf.concat([tf.sin(angles), tf.cos(angles)], axis=1)
