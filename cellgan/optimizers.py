"""Optimisers, learning-rate schedules, and the moving average of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

if TYPE_CHECKING:
    from cellgan.config.training import TrainingParameters


ADAM_EPSILON = 1e-8


class GeometricDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that changes by the same factor at every step.

    After ``k`` steps it is ``initial * (final / initial)**(k / max_steps)``; it is
    constant when both are equal.

    Parameters
    ----------
    initial, final
        Learning rates at steps 0 and `max_steps`.
    max_steps
        Length of the run, in steps.
    updates_per_step
        Updates of the optimizer in every step but the first, which has one.
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
        completed_steps = (step + (self.updates_per_step - 1)) // self.updates_per_step
        progress = tf.cast(completed_steps, tf.float32) / self.max_steps
        return self.initial * (self.final / self.initial) ** progress

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            "initial": self.initial,
            "final": self.final,
            "max_steps": self.max_steps,
            "updates_per_step": self.updates_per_step,
        }


class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate that falls by the same amount at every step, to 0.

    Parameters
    ----------
    initial
        Learning rate of the first two updates.
    max_steps
        Length of the run, in steps.

    Notes
    -----
    As in scDiffusion and cfDiffusion, whose rate follows the update: the one after `k`
    updates is ``initial * (1 - (k - 1) / max_steps)``.
    """

    def __init__(self, initial: float, max_steps: int) -> None:
        self.initial = initial
        self.max_steps = max_steps

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Return the rate of the update that follows `step` updates."""
        completed = tf.cast(tf.maximum(tf.convert_to_tensor(step) - 1, 0), tf.float32)
        return self.initial * tf.maximum(1 - completed / self.max_steps, 0)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {"initial": self.initial, "max_steps": self.max_steps}


Schedule = float | GeometricDecay | LinearDecay


class Adam(keras.optimizers.Adam):
    """Keras' Adam and AMSGrad, the update of each weight in one fused operation.

    With `amsgrad`, steps are divided by the largest second moment so far. It is the
    uncorrected one: the bias correction is applied to the rate.

    Notes
    -----
    Equal to Keras' own update to rounding, and 2 to 3 times faster on a CPU, where
    Keras' passes over the weights and moments take longer than the arithmetic. XLA does
    not know the operation: apply gradients outside functions compiled with it.

    References
    ----------
    Kingma and Ba (2015), Adam. https://arxiv.org/abs/1412.6980
    Reddi et al. (2018), On the Convergence of Adam and Beyond.
    https://openreview.net/forum?id=ryQu7f-RZ
    """

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Update one weight and its moments in place."""
        index = self._get_variable_index(variable)
        dtype = variable.dtype
        beta1, beta2 = (tf.constant(beta, dtype) for beta in (self.beta_1, self.beta_2))
        updates = tf.cast(self.iterations + 1, dtype)
        arguments = {
            "var": variable.handle,
            "m": self._momentums[index].value.handle,
            "v": self._velocities[index].value.handle,
            "beta1_power": beta1**updates,
            "beta2_power": beta2**updates,
            "lr": tf.cast(learning_rate, dtype),
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": self._epsilon(beta2**updates),
            "grad": tf.convert_to_tensor(gradient),
        }
        if self.amsgrad:
            tf.raw_ops.ResourceApplyAdamWithAmsgrad(
                vhat=self._velocity_hats[index].value.handle, **arguments
            )
        else:
            tf.raw_ops.ResourceApplyAdam(**arguments)

    def _epsilon(self, beta2_power: tf.Tensor) -> tf.Tensor:
        """Return what is added to the root of the uncorrected second moment."""
        return tf.constant(self.epsilon, beta2_power.dtype)


class AdamW(Adam):
    """Adam with decoupled weight decay of every weight, as PyTorch computes it.

    Notes
    -----
    Epsilon is added to the root of the bias-corrected second moment, not, as in Keras
    and in `Adam`, of the uncorrected one. Weights decay in one pass over them, before
    their update.

    References
    ----------
    Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization.
    https://arxiv.org/abs/1711.05101
    """

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Let one weight decay, and update it and its moments in place."""
        if self.weight_decay:
            decay = tf.cast(self.weight_decay * learning_rate, variable.dtype)
            variable.assign(variable * (1 - decay))
        super().update_step(gradient, variable, learning_rate)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Do nothing: Keras' way takes three passes."""
        del variables

    def _epsilon(self, beta2_power: tf.Tensor) -> tf.Tensor:
        return self.epsilon * tf.sqrt(1 - beta2_power)


class AdamL2(AdamW):
    """Adam as PyTorch computes it, with weight decay as a part of the gradients.

    Notes
    -----
    A gradient becomes ``g + weight_decay * w`` before the moments see it: unlike
    AdamW's, this decay is divided by the root of the second moment. Weights without a
    gradient are not in the optimizer's hands, and do not decay.
    """

    def update_step(
        self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor
    ) -> None:
        """Update one weight and its moments in place."""
        if self.weight_decay:
            gradient = gradient + self.weight_decay * variable
        Adam.update_step(self, gradient, variable, learning_rate)


def adam(
    learning_rate: Schedule,
    moments: tuple[float, float],
    *,
    amsgrad: bool,
    epsilon: float = ADAM_EPSILON,
) -> Adam:
    """Return Adam, or AMSGrad with `amsgrad`.

    Parameters
    ----------
    learning_rate
        Rate or schedule. A rate becomes a variable of the optimizer, which checkpoints
        hold; a schedule does not.
    moments
        Decay of the first and second moments.
    amsgrad
        Whether it is AMSGrad.
    epsilon
        Added to the root of the uncorrected second moment.
    """
    return Adam(learning_rate, *moments, epsilon=epsilon, amsgrad=amsgrad)


def adamw(
    learning_rate: Schedule,
    moments: tuple[float, float],
    *,
    weight_decay: float,
    epsilon: float = ADAM_EPSILON,
) -> AdamW:
    """Return AdamW.

    Parameters
    ----------
    learning_rate
        Rate or schedule.
    moments
        Decay of the first and second moments.
    weight_decay
        Share of every weight, times the rate, that an update takes away.
    epsilon
        Added to the root of the bias-corrected second moment.
    """
    return AdamW(learning_rate, *moments, epsilon=epsilon, weight_decay=weight_decay)


def adam_l2(
    learning_rate: Schedule,
    moments: tuple[float, float],
    *,
    weight_decay: float,
    epsilon: float = ADAM_EPSILON,
) -> AdamL2:
    """Return Adam with an L2 penalty of ``weight_decay / 2`` on the weights.

    Parameters are those of `adamw`.
    """
    return AdamL2(learning_rate, *moments, epsilon=epsilon, weight_decay=weight_decay)


def make_schedule(
    training: TrainingParameters, updates_per_step: int = 1
) -> GeometricDecay | LinearDecay:
    """Return the learning-rate schedule that parameters say: of `make_optimizer`."""
    rate = training.learning_rate
    if rate.decay == "linear":
        return LinearDecay(rate.alpha_0, training.max_steps * updates_per_step)
    final = rate.alpha_final if rate.decay else rate.alpha_0
    # A schedule also when the rate is constant: a checkpoint must not bring its own
    return GeometricDecay(rate.alpha_0, final, training.max_steps, updates_per_step)


def make_optimizer(
    training: TrainingParameters, updates_per_step: int = 1
) -> keras.Optimizer:
    """Return the optimizer that parameters say, with its learning-rate schedule.

    Parameters
    ----------
    training
        Of one stage.
    updates_per_step
        Updates that it makes in every training step but the first.
    """
    schedule, settings = make_schedule(training, updates_per_step), training.optimizer
    moments, epsilon = (settings.beta1, settings.beta2), settings.epsilon
    decaying = {"AdamW": adamw, "AdamL2": adam_l2}
    if settings.algorithm in decaying:
        make, decay = decaying[settings.algorithm], settings.weight_decay
        return make(schedule, moments, weight_decay=decay, epsilon=epsilon)
    is_amsgrad = settings.algorithm == "AMSGrad"
    return adam(schedule, moments, amsgrad=is_amsgrad, epsilon=epsilon)


def update_weights(
    optimizer: keras.Optimizer,
    weights: Sequence[keras.Variable],
    gradients: Sequence[tf.Tensor],
    *,
    clip_norm: float | None = None,
) -> dict[str, tf.Tensor]:
    """Apply this replica's gradients of a mean loss; call on every replica.

    Parameters
    ----------
    gradients
        Of this replica's mean loss: the optimizer sums them over replicas, so each is
        divided by their number.
    clip_norm
        Largest norm of all gradients together, of the mean over replicas.

    Returns
    -------
    By TensorBoard tag: ``learning_rate``, of this update, and with `clip_norm`
    ``gradient_norm``, that norm before clipping. Otherwise it is left out: it takes a
    pass over all gradients.
    """
    metrics = {"learning_rate": tf.convert_to_tensor(optimizer.learning_rate)}
    replicas = tf.distribute.get_replica_context()
    n_replicas = replicas.num_replicas_in_sync
    if clip_norm is not None:
        if n_replicas > 1:
            mean = tf.distribute.ReduceOp.MEAN
            gradients = [replicas.all_reduce(mean, gradient) for gradient in gradients]
        norm = metrics["gradient_norm"] = tf.linalg.global_norm(gradients)
        gradients, _ = tf.clip_by_global_norm(gradients, clip_norm, use_norm=norm)
    if n_replicas > 1:
        gradients = [gradient / n_replicas for gradient in gradients]
    optimizer.apply(gradients, weights)
    return metrics


class WeightAverage:
    """Exponential moving average of weights, as variables beside them.

    Parameters
    ----------
    weights
        Built. Their average starts from their values.
    rate
        Share of the old average that an update keeps, from 0 to 1.
    has_warm_up
        Keep a share of ``(1 + k) / (10 + k)`` in update `k`, while it is smaller: a
        short run is then not an average with the initial weights.
    jit
        Make one pass over memory in place of three, with XLA; not where there are
        replicas, which update no variable inside a function of its own.
    """

    def __init__(
        self,
        weights: Sequence[keras.Variable],
        rate: float,
        *,
        has_warm_up: bool,
        jit: bool,
    ) -> None:
        self._weights = list(weights)
        self._rate = rate
        self._has_warm_up = has_warm_up
        self.variables = [
            keras.Variable(
                weight,
                trainable=False,
                # All replicas hold the same weights, and so the same average.
                aggregation="only_first_replica",
                name=f"average_{index}",
            )
            for index, weight in enumerate(weights)
        ]
        self._compiled: Callable[[tf.Tensor], None] = (
            tf.function(self._approach, jit_compile=True, autograph=False)
            if jit
            else self._approach
        )

    def update(self, step: tf.Tensor) -> None:
        """Let the averages take one step towards the weights.

        Parameters
        ----------
        step
            Updates of the average before this one.
        """
        rate = tf.constant(self._rate, tf.float32)
        if self._has_warm_up:
            step = tf.cast(step, tf.float32)
            rate = tf.minimum(rate, (1 + step) / (10 + step))
        if tf.distribute.has_strategy():
            self._approach(rate)
        else:
            self._compiled(rate)

    def _approach(self, rate: tf.Tensor) -> None:
        for average, weight in zip(self.variables, self._weights, strict=True):
            average.assign_add((1 - rate) * (weight - average))
