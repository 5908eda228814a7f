"""Flow paths from noise to data, the times they are learned at, and their pairing.

A path joins a draw of noise (time 0) to a latent (time 1). Its point at a time is what
a velocity network sees, its velocity there is what the network learns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment


class PathPoint(NamedTuple):
    """Where a path is at a time, and how it moves there."""

    latent: tf.Tensor
    """``(n_cells, n_latent)``."""
    velocity: tf.Tensor
    """Same shape: the target of the velocity network."""


def conditional_path(
    latents: tf.Tensor, noise: tf.Tensor, time: tf.Tensor, sigma: float
) -> PathPoint:
    """Follow the path that shrinks noise of deviation 1 to `sigma` around each latent.

    Parameters
    ----------
    latents
        Of real cells, ``(n_cells, n_latent)``.
    noise
        Standard normal, same shape.
    time
        From 0 to 1, ``(n_cells,)``.
    sigma
        Deviation that is left at time 1.

    Notes
    -----
    The reference divides by ``1 - (1 - sigma) t``; the velocity here is the same number
    without the digits that are lost near time 1.

    References
    ----------
    Lipman et al. (2023), Flow Matching for Generative Modeling, equations 22 and 23.
    https://arxiv.org/abs/2210.02747
    """
    shrinking = (1 - sigma) * noise
    point = noise + time[:, None] * (latents - shrinking)
    return PathPoint(point, latents - shrinking)


def straight_path(
    latents: tf.Tensor,
    start: tf.Tensor,
    time: tf.Tensor,
    sigma: float,
    jitter: tf.Tensor,
) -> PathPoint:
    """Follow the straight line from `start` to each latent, blurred by `sigma`.

    Parameters
    ----------
    latents
        Of real cells, ``(n_cells, n_latent)``.
    start
        Standard normal, same shape; of `pair_noise` for optimal transport.
    time
        From 0 to 1, ``(n_cells,)``.
    sigma
        Deviation around the line, at all times.
    jitter
        Standard normal, same shape as `latents`.

    References
    ----------
    Tong et al. (2024), Improving and generalizing flow-based generative models with
    minibatch optimal transport, section 3.2. https://arxiv.org/abs/2302.00482
    """
    velocity = latents - start
    return PathPoint(start + time[:, None] * velocity + sigma * jitter, velocity)


def draw_times(n_cells: tf.Tensor, seed: tf.Tensor, *, stratified: bool) -> tf.Tensor:
    """Draw times uniformly between 0 and 1, ``(n_cells,)``.

    Parameters
    ----------
    n_cells
        How many.
    seed
        Stateless seed, ``(2,)`` int32.
    stratified
        One in each of `n_cells` intervals of the same length, in ascending order, which
        makes the loss vary less; otherwise independent.
    """
    if stratified:
        offset = tf.random.stateless_uniform((), seed, alg="philox")
        return stratified_times(n_cells, offset)
    return tf.random.stateless_uniform((n_cells,), seed, alg="philox")


def stratified_times(n_cells: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Return ``(i + offset) / n_cells`` for each ``i`` below `n_cells`.

    Parameters
    ----------
    n_cells
        How many.
    offset
        From 0 to 1, where in their interval all times are.

    References
    ----------
    Kingma et al. (2021), Variational Diffusion Models, appendix I.1.
    https://arxiv.org/abs/2107.00630
    """
    offset = tf.convert_to_tensor(offset)
    index = tf.cast(tf.range(n_cells), offset.dtype)
    return (index + offset) / tf.cast(n_cells, offset.dtype)


def pair_noise(latents: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
    """Put the rows of noise in the order that pairs them best with the latents.

    Of all orders it is the one with the least sum of squared distances: exact optimal
    transport within the batch. The latents stay, and with them all that belongs to
    their cells: covariates and library sizes.

    Parameters
    ----------
    latents
        ``(n_cells, n_latent)``.
    noise
        Same shape.

    Returns
    -------
    The rows of `noise`, the i-th for the i-th latent.

    Notes
    -----
    Runs in NumPy, so outside functions compiled by XLA. The reference draws pairs with
    replacement and leaves the covariates behind; here every row is used once.

    References
    ----------
    Tong et al. (2024), Improving and generalizing flow-based generative models with
    minibatch optimal transport, Algorithm 3. https://arxiv.org/abs/2302.00482
    """
    order = tf.numpy_function(_cheapest_order, [latents, noise], tf.int64)
    return tf.ensure_shape(tf.gather(noise, order), latents.shape)


def _cheapest_order(latents: np.ndarray, noise: np.ndarray) -> np.ndarray:
    # |x - e|^2 = |x|^2 + |e|^2 - 2 x.e, and every order has the same squares.
    return linear_sum_assignment(latents @ noise.T, maximize=True)[1]
