"""The update of the heads: AdamW that knows absent categories, then no weight below 0.

A category's matrix that no cell of a batch was multiplied by stays as it is, with its
moments and its own number of updates: neither decay nor momentum moves it.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

from cellgan.config.training import TrainingParameters
from cellgan.layers.context_pool import NO_CATEGORY, SlotGradients
from cellgan.models.cycle.networks import CycleNetwork
from cellgan.optimizers import make_schedule

VALUES_AT_ONCE = 2**18
"""Of matrices by category that are updated together: caches hold their states."""


class Moments(NamedTuple):
    """What Adam knows of a weight."""

    weight: keras.Variable
    first: keras.Variable
    second: keras.Variable
    n_updates: keras.Variable
    """Of the whole weight, or of every matrix: the first axes of `weight`."""
    decay: float


class CycleOptimizer:
    """Updates the heads of a `CycleNetwork`.

    Parameters
    ----------
    network
        Built.
    training
        Of the stage; ``optimizer.weight_decay`` is that of encoders, matrices and
        decoders of fields.
    base_weight_decay
        That of the base head.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    jit
        Make one pass over the numbers of each update, with XLA.

    Notes
    -----
    As in PyTorch, epsilon is added to the root of the bias-corrected second moment. The
    original adds 1e-6 to the norm that it clips by, which is left out here.
    """

    def __init__(
        self,
        network: CycleNetwork,
        training: TrainingParameters,
        *,
        base_weight_decay: float,
        clip_norm: float | None,
        jit: bool,
    ) -> None:
        settings = training.optimizer
        self._clip_norm = clip_norm
        self._schedule = make_schedule(training)
        self._betas = (settings.beta1, settings.beta2)
        self._epsilon = settings.epsilon
        self._n_steps = _state("n_steps", tf.zeros((), tf.int64))
        decay = settings.weight_decay
        self._dense = [
            _moments(network.base, (), base_weight_decay),
            _moments(network.encoders, (), decay),
            _moments(network.decoders, (), decay),
        ]
        self._contexts = _moments(network.contexts, (network.n_matrices,), decay)
        self._step = tf.function(self._one_pass, jit_compile=jit, autograph=False)

    @property
    def variables(self) -> list[keras.Variable]:
        """All that a resumed run needs."""
        states = [of[1:4] for of in (*self._dense, self._contexts)]
        return [self._n_steps, *(state for three in states for state in three)]

    def update(
        self, dense: list[tf.Tensor], contexts: SlotGradients
    ) -> dict[str, tf.Tensor]:
        """Apply this replica's gradients of a mean loss; call on every replica.

        Parameters
        ----------
        dense
            Of base, encoders and decoders.
        contexts
            Of the matrices by category.

        Returns
        -------
        By TensorBoard tag: ``learning_rate``, and ``gradient_norm`` before clipping.
        """
        replicas = tf.distribute.get_replica_context()
        if replicas.num_replicas_in_sync > 1:
            dense, contexts = self._over_replicas(dense, contexts)
        rate = tf.cast(self._schedule(self._n_steps.value), tf.float32)
        norm = tf.linalg.global_norm([*dense, contexts.values])
        scale = tf.constant(1.0)
        if self._clip_norm is not None:
            scale = self._clip_norm / tf.maximum(norm, self._clip_norm)
        for moments, gradient in zip(self._dense, dense, strict=True):
            for state, value in zip(
                moments[:4], self._stepped(moments, gradient, scale, rate), strict=True
            ):
                state.assign(value)
        if tf.distribute.has_strategy():
            self._update_all_matrices(contexts, scale, rate)
        else:
            self._update_matrices(contexts, scale, rate)
        self._n_steps.assign_add(1)
        return {"learning_rate": rate, "gradient_norm": norm}

    def _over_replicas(
        self, dense: list[tf.Tensor], contexts: SlotGradients
    ) -> tuple[list[tf.Tensor], SlotGradients]:
        """Return the means over replicas, every category in a slot of its own."""
        replicas = tf.distribute.get_replica_context()
        contexts = self._by_category(contexts)
        mean, total = tf.distribute.ReduceOp.MEAN, tf.distribute.ReduceOp.SUM
        *dense, values = (
            replicas.all_reduce(mean, of) for of in (*dense, contexts.values)
        )
        is_there = tf.cast(contexts.categories >= 0, tf.float32)
        is_there = replicas.all_reduce(total, is_there) > 0
        codes = tf.range(tf.shape(is_there)[0])
        return dense, SlotGradients(values, tf.where(is_there, codes, NO_CATEGORY))

    def _by_category(self, gradients: SlotGradients) -> SlotGradients:
        """Give every category a slot of its own."""
        values, categories = gradients
        n = self._contexts.weight.shape[0]
        return SlotGradients(
            tf.math.unsorted_segment_sum(values, categories, n),
            tf.maximum(
                tf.math.unsorted_segment_max(categories, categories, n), NO_CATEGORY
            ),
        )

    def _update_all_matrices(
        self, gradients: SlotGradients, scale: tf.Tensor, rate: tf.Tensor
    ) -> None:
        """Compute the update of all matrices; keep it where a category occurs.

        Replicas cannot update parts of a weight in a loop.
        """
        values, categories = self._by_category(gradients)
        moments = self._contexts
        new = self._stepped(moments, values, scale, rate)
        for state, value in zip(moments[:4], new, strict=True):
            ones = (1,) * (value.shape.rank - 1)
            is_there = tf.reshape(categories >= 0, (-1, *ones))
            state.assign(tf.where(is_there, value, state))

    def _update_matrices(
        self, gradients: SlotGradients, scale: tf.Tensor, rate: tf.Tensor
    ) -> None:
        """Update the matrices that occur, some at a time.

        All are of one number: the last are done again if need be, to the same result.
        """
        values, categories = gradients
        moments = self._contexts
        n_values = moments.weight.shape[1] * moments.weight.shape[2]
        at_once = max(1, min(moments.weight.shape[0], VALUES_AT_ONCE // n_values))
        slots = tf.cast(tf.where(categories >= 0)[:, 0], tf.int32)
        n_slots = tf.shape(slots)[0]
        n_more = -n_slots % at_once
        slots = tf.concat([slots, tf.repeat(slots[-1:], n_more)], 0)
        rows = tf.gather(categories, slots)
        ages = tf.gather(moments.n_updates.value, rows) + 1
        corrections = self._corrections(ages)
        states = [of.value for of in moments[:3]]

        def step(first: tf.Tensor) -> tuple[tf.Tensor]:
            place = slice(first, first + at_once)
            own = rows[place]
            new = self._step(
                *(tf.gather(state, own) for state in states),
                tf.gather(values, slots[place]),
                scale,
                1 - rate * moments.decay,
                rate * corrections[0][place, None, None],
                corrections[1][place, None, None],
            )
            updates = [
                state.scatter_update(tf.IndexedSlices(value, own))
                for state, value in zip(states, new, strict=True)
            ]
            with tf.control_dependencies([of.handle for of in updates]):
                return (first + at_once,)

        tf.while_loop(lambda first: first < n_slots, step, (tf.constant(0),))
        moments.n_updates.value.scatter_update(tf.IndexedSlices(ages, rows))

    def _stepped(
        self, moments: Moments, gradient: tf.Tensor, scale: tf.Tensor, rate: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Return the new state of a whole weight."""
        weight, first, second, n_updates = map(tf.convert_to_tensor, moments[:4])
        ages = n_updates + 1
        corrections = self._corrections(ages)
        if ages.shape.rank:
            corrections = [of[:, None, None] for of in corrections]
        new = self._step(
            weight,
            first,
            second,
            gradient,
            scale,
            1 - rate * moments.decay,
            rate * corrections[0],
            corrections[1],
        )
        return (*new, ages)

    def _corrections(self, ages: tf.Tensor) -> list[tf.Tensor]:
        """Return the factors that undo the bias of both moments.

        Not a part of the compiled pass, where XLA would compute them once a number.
        """
        return [1 / (1 - tf.pow(tf.constant(beta), ages)) for beta in self._betas]

    def _one_pass(  # noqa: PLR0913  (the state of Adam)
        self,
        weight: tf.Tensor,
        first: tf.Tensor,
        second: tf.Tensor,
        gradient: tf.Tensor,
        scale: tf.Tensor,
        kept: tf.Tensor,
        rate: tf.Tensor,
        correction: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        beta1, beta2 = self._betas
        gradient = gradient * scale
        first = first + (1 - beta1) * (gradient - first)
        second = second + (1 - beta2) * (tf.square(gradient) - second)
        root = tf.sqrt(second * correction) + self._epsilon
        return tf.nn.relu(weight * kept - rate * first / root), first, second


def _moments(weight: keras.Variable, axes: tuple[int, ...], decay: float) -> Moments:
    zeros = tf.zeros(weight.shape)
    return Moments(
        weight,
        _state("first", zeros),
        _state("second", zeros),
        _state("n_updates", tf.zeros(axes)),
        decay,
    )


def _state(name: str, value: tf.Tensor) -> keras.Variable:
    return keras.Variable(
        value,
        trainable=False,
        dtype=value.dtype.name,
        aggregation="only_first_replica",
        name=name,
    )
