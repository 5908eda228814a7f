"""Terms of the training objectives, as functions of what networks return."""

from __future__ import annotations

import tensorflow as tf

SLOPE_EPSILON = 1e-12
"""Under the root of a slope: its gradient stays finite where the slope is 0."""


def wasserstein_distance(real_scores: tf.Tensor, fake_scores: tf.Tensor) -> tf.Tensor:
    """Return mean fake minus mean real score, ``(n_cells,)`` each.

    A critic lowers it. Its negative estimates the Wasserstein distance while the
    critic's slope is 1.
    """
    return tf.reduce_mean(fake_scores) - tf.reduce_mean(real_scores)


def generator_loss(fake_scores: tf.Tensor) -> tf.Tensor:
    """Return minus the mean score of generated cells, ``(n_cells,)``."""
    return -tf.reduce_mean(fake_scores)


def interpolate(real: tf.Tensor, generated: tf.Tensor, mixing: tf.Tensor) -> tf.Tensor:
    """Return points on the segments that join real cells to generated partners.

    Parameters
    ----------
    real, generated
        ``(n_cells, n_genes)``.
    mixing
        Where on the segment, ``(n_cells, 1)``: 0 is the real cell, 1 the generated
        one. Uniform draws make the points of the gradient penalty.
    """
    return real + mixing * (generated - real)


def slopes(score_gradients: tf.Tensor) -> tf.Tensor:
    """Return the norm ``(n_cells,)`` of each cell's gradient ``(n_cells, n_genes)``."""
    return tf.sqrt(tf.reduce_sum(tf.square(score_gradients), axis=1) + SLOPE_EPSILON)


def gradient_penalty(slopes: tf.Tensor) -> tf.Tensor:
    """Penalise slopes that differ from 1, on both sides.

    Parameters
    ----------
    slopes
        Norms of the critic's gradients, ``(n_cells,)``, at points drawn by
        `interpolate`.

    Returns
    -------
    Scalar: mean over cells of ``(slope - 1)**2``. Multiply by its weight outside.

    References
    ----------
    Gulrajani et al. (2017), Improved Training of Wasserstein GANs, Algorithm 1,
    lines 4-7. https://arxiv.org/abs/1704.00028
    """
    return tf.reduce_mean(tf.square(slopes - 1))
