"""The update of the heads: AdamW that knows absent categories, then no weight below 0.

A category's matrix that no cell of a batch was multiplied by stays as it is, with its
moments and its own number of updates: neither decay nor momentum moves it.
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from cellgan.config import TrainingParameters
from cellgan.layers.context_pool import NO_CATEGORY, SlotGradients
from cellgan.models.cycle_networks import CycleNetwork
from cellgan.optimizers import ADAM_EPSILON, make_optimizer


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
        Fuse the update of the matrices by category with XLA.

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
        self._network = network
        self._clip_norm = clip_norm
        of_base = dataclasses.replace(settings, weight_decay=base_weight_decay)
        self._base = make_optimizer(dataclasses.replace(training, optimizer=of_base))
        self._fields = make_optimizer(training)
        self._base.build([network.base])
        self._fields.build([network.encoders, network.decoders])
        self._moments = (settings.beta1, settings.beta2)
        self._weight_decay = settings.weight_decay
        contexts = network.contexts
        self._first, self._second = (
            _state(name, tf.zeros(contexts.shape)) for name in ("first", "second")
        )
        self._n_updates = _state("n_updates", tf.zeros((network.n_matrices,)))
        self._stepped = tf.function(
            self._step_of_slots, jit_compile=jit, autograph=False
        )

    @property
    def variables(self) -> list[keras.Variable]:
        """All that a resumed run needs."""
        own = [self._first, self._second, self._n_updates]
        return [*self._base.variables, *self._fields.variables, *own]

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
        network = self._network
        learning_rate = tf.convert_to_tensor(self._fields.learning_rate)
        replicas = tf.distribute.get_replica_context()
        n_replicas = replicas.num_replicas_in_sync
        if n_replicas > 1:
            mean = tf.distribute.ReduceOp.MEAN
            contexts = _by_category(contexts, network.n_matrices)
            *dense, values = (
                replicas.all_reduce(mean, of) for of in (*dense, contexts.values)
            )
            is_there = tf.cast(contexts.categories >= 0, tf.float32)
            is_there = replicas.all_reduce(tf.distribute.ReduceOp.SUM, is_there) > 0
            codes = tf.range(network.n_matrices)
            present = tf.where(is_there, codes, NO_CATEGORY)
            contexts = SlotGradients(values, present)
        gradients = [*dense, contexts.values]
        norm = tf.linalg.global_norm(gradients)
        if self._clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(
                gradients, self._clip_norm, use_norm=norm
            )
        *dense, values = gradients
        # Keras sums over replicas what is the same on all of them.
        shares = [gradient / n_replicas for gradient in dense]
        self._base.apply(shares[:1], [network.base])
        self._fields.apply(shares[1:], [network.encoders, network.decoders])
        for weight in (network.base, network.encoders, network.decoders):
            weight.assign(tf.nn.relu(weight))
        self._update_contexts(SlotGradients(values, contexts.categories), learning_rate)
        return {"learning_rate": learning_rate, "gradient_norm": norm}

    def _update_contexts(
        self, gradients: SlotGradients, learning_rate: tf.Tensor
    ) -> None:
        """Update the matrices that have a slot."""
        states = (self._network.contexts, self._first, self._second, self._n_updates)
        values, categories = gradients
        present = categories >= 0
        if categories.shape[0] == self._network.n_matrices:
            old = [tf.convert_to_tensor(state) for state in states]
            new = self._stepped(*old, values, present, learning_rate)
            for state, of in zip(states, new, strict=True):
                state.assign(of)
            return
        rows = tf.boolean_mask(categories, present)
        n_rows = tf.shape(rows)[0]
        old = [tf.gather(state.value, rows) for state in states]
        new = self._stepped(
            *old, values[:n_rows], tf.ones((n_rows,), tf.bool), learning_rate
        )
        for state, of in zip(states, new, strict=True):
            state.value.scatter_update(tf.IndexedSlices(of, rows))

    def _step_of_slots(
        self,
        weight: tf.Tensor,
        first: tf.Tensor,
        second: tf.Tensor,
        n_updates: tf.Tensor,
        gradient: tf.Tensor,
        present: tf.Tensor,
        learning_rate: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        """Return the new state of some matrices, those that are absent as they were."""
        beta1, beta2 = self._moments
        counted = n_updates + tf.cast(present, n_updates.dtype)
        # an absent matrix that was never updated must not divide by 0
        age = tf.maximum(counted, 1)[:, None, None]
        new_first = beta1 * first + (1 - beta1) * gradient
        new_second = beta2 * second + (1 - beta2) * tf.square(gradient)
        slope = new_first / (1 - tf.pow(tf.constant(beta1), age))
        root = tf.sqrt(new_second / (1 - tf.pow(tf.constant(beta2), age)))
        decayed = weight * (1 - learning_rate * self._weight_decay)
        new = tf.nn.relu(decayed - learning_rate * slope / (root + ADAM_EPSILON))
        is_there = present[:, None, None]
        return (
            tf.where(is_there, new, weight),
            tf.where(is_there, new_first, first),
            tf.where(is_there, new_second, second),
            counted,
        )


def _state(name: str, value: tf.Tensor) -> keras.Variable:
    return keras.Variable(
        value, trainable=False, aggregation="only_first_replica", name=name
    )


def _by_category(gradients: SlotGradients, n_categories: int) -> SlotGradients:
    """Give every category a slot of its own."""
    values, categories = gradients
    if categories.shape[0] == n_categories:
        return gradients
    return SlotGradients(
        tf.math.unsorted_segment_sum(values, categories, n_categories),
        tf.math.unsorted_segment_max(categories, categories, n_categories),
    )
