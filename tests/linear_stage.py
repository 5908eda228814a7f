"""A small stage for tests of the loop: noisy regression on two batches a step."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.models.base import TrainingStage

N_GENES = 5
BATCH_SIZE = 8


class LinearStage(TrainingStage):
    """Predicts a noisy sum of the genes; dropout makes it need its seed state."""

    name = "linear"
    batches_per_step = 2

    def __init__(
        self,
        *,
        width: int = 4,
        noise: float = 0.1,
        dropout: float = 0.5,
        nan_at_iteration: int = -1,
    ):
        self.noise = noise
        self.nan_at_iteration = nan_at_iteration
        self.net = keras.Sequential(
            [
                keras.layers.Dense(width, kernel_initializer="ones"),
                keras.layers.Dropout(dropout, seed=3),
                keras.layers.Dense(1, kernel_initializer="ones"),
            ]
        )
        self.net.build((None, N_GENES))
        self.optimizer = keras.optimizers.Adam(1e-2)
        self.optimizer.build(self.net.trainable_variables)
        self.traces = {"first_step": 0, "train_step": 0, "diagnostics": 0}

    def _loss(self, batches, seed):
        cells = tf.concat([batch.features["rna"] for batch in batches], 0)
        noise = tf.random.stateless_normal((tf.shape(cells)[0],), seed, alg="philox")
        wanted = tf.reduce_sum(cells, 1) + self.noise * noise
        predicted = self.net(cells, training=True)[:, 0]
        return tf.reduce_sum((predicted - wanted) ** 2) / (2 * BATCH_SIZE)

    def _update(self, batches, seed):
        with tf.GradientTape() as tape:
            loss = self._loss(batches, seed)
        weights = self.net.trainable_variables
        iteration = tf.identity(self.optimizer.iterations)
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        n_replicas = tf.distribute.get_strategy().num_replicas_in_sync
        is_nan = tf.equal(iteration, self.nan_at_iteration)
        shown = tf.where(is_nan, np.nan, loss * n_replicas)
        return {
            "loss": shown,
            "iteration": tf.cast(iteration, tf.float32),
            "value": batches[0].features["rna"][0, 0],
        }

    def train_step(self, batches, seed):
        self.traces["train_step"] += 1
        return self._update(batches, seed)

    def first_step(self, batches, seed):
        self.traces["first_step"] += 1
        return self._update(batches[:1], seed)

    def diagnostics(self, batch, seed):
        self.traces["diagnostics"] += 1
        cells = batch.features["rna"]
        return {
            "cells/mean": tf.reduce_mean(cells),
            "cells/histogram": cells,
            "kernel/values": tf.convert_to_tensor(self.net.trainable_variables[0]),
        }

    def trackables(self):
        return {"net": self.net, "optimizer": self.optimizer}

    def weights(self) -> list[np.ndarray]:
        """Return every number that training changes."""
        variables = [*self.net.variables, *self.optimizer.variables]
        return [np.asarray(variable) for variable in variables]


def batches_from(position: int, shard_index: int, n_shards: int) -> tf.data.Dataset:
    """Return batches that are a function of their number."""
    size = BATCH_SIZE // n_shards

    def make(number):
        cells = tf.random.stateless_normal(
            (BATCH_SIZE, N_GENES), tf.stack((number, 5)), alg="philox"
        )
        share = cells[shard_index * size : (shard_index + 1) * size]
        share = tf.ensure_shape(share, (size, N_GENES))
        total = tf.reduce_sum(share, 1)
        codes = tf.zeros((size,), tf.int32)
        return CellBatch({"rna": share}, {"rna": total}, {"cluster": codes})

    return tf.data.Dataset.counter(position).map(make)
