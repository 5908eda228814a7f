"""Positions in time, steps, and other scalars, as features of a network.

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


def step_features(step_index: tf.Tensor, width: int) -> tf.Tensor:
    """Return cosines, then sines of angles proportional to a diffusion step.

    Parameters
    ----------
    step_index
        Of the schedule that was trained on, 0 the cleanest, ``(n_steps,)``.
    width
        Number of features, even.

    Returns
    -------
    ``(n_steps, width)`` float32. The fastest feature has an angle of one radian per
    step, the slowest nearly a 10,000th of it.

    Raises
    ------
    ValueError
        If `width` is odd.

    References
    ----------
    Ho et al. (2020), Denoising Diffusion Probabilistic Models, appendix B.
    https://arxiv.org/abs/2006.11239
    """
    if width % 2:
        message = f"step features: width {width}; it must be even."
        raise ValueError(message)
    n_frequencies = width // 2
    frequencies = np.power(FREQUENCY_RANGE, -np.arange(n_frequencies) / n_frequencies)
    angles = tf.cast(step_index, tf.float32)[:, None]
    angles *= tf.constant(frequencies, tf.float32)
    return tf.concat([tf.cos(angles), tf.sin(angles)], axis=1)
