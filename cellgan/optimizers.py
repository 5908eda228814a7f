"""Optimisers and learning-rate schedules."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

ADAM_EPSILON = 1e-8


class GeometricDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that falls by the same factor at every step.

    After ``k`` steps it is ``initial * (final / initial)**(k / max_steps)``.

    Parameters
    ----------
    initial, final
        Learning rates at steps 0 and `max_steps`.
    max_steps
        Length of the run, in steps.
    updates_per_step
        Updates of the optimizer in one step. The first step may have a single update:
        it is the updates from the second on that are counted in groups of this size.
    """

    def __init__(
        self, initial: float, final: float, max_steps: int, updates_per_step: int = 1
    ) -> None:
        self.initial = initial
        self.final = final
        self.max_steps = max_steps
        self.updates_per_step = updates_per_step

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the rate of the update that follows `step` updates."""
        step = tf.convert_to_tensor(step)
        steps = (step + (self.updates_per_step - 1)) // self.updates_per_step
        progress = tf.cast(steps, tf.float32) / self.max_steps
        return self.initial * (self.final / self.initial) ** progress

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "initial": self.initial,
            "final": self.final,
            "max_steps": self.max_steps,
            "updates_per_step": self.updates_per_step,
        }


def adam(
    learning_rate: float | GeometricDecay,
    moments: tuple[float, float],
    *,
    amsgrad: bool,
) -> keras.Optimizer:
    """Return Adam, or AMSGrad with `amsgrad`.

    Parameters
    ----------
    learning_rate
        Rate or schedule.
    moments
        Decay of the first and second moments.
    amsgrad
        Divide by the largest second moment so far. It is the uncorrected one: the bias
        correction is applied to the rate.

    References
    ----------
    Kingma and Ba (2015), Adam. https://arxiv.org/abs/1412.6980
    Reddi et al. (2018), On the Convergence of Adam and Beyond.
    https://openreview.net/forum?id=ryQu7f-RZ
    """
    return keras.optimizers.Adam(
        learning_rate, *moments, epsilon=ADAM_EPSILON, amsgrad=amsgrad
    )
