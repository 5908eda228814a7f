"""A small stage for tests of the loop: noisy linear regression on two batches a step.

Run as a program, it trains in an experiment folder, to be killed or distributed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cellgan.batches import CellBatch
from cellgan.checkpoints import StageCheckpoint
from cellgan.distribution import check_batch_size, is_chief, make_strategy
from cellgan.models.base import TrainingStage
from cellgan.summaries import RunLog
from cellgan.training import Schedule, train_stage

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
        return {"loss": shown, "iteration": tf.cast(iteration, tf.float32)}

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


def train(
    folder: Path,
    stage: TrainingStage,
    schedule: Schedule,
    *,
    strategy=None,
    on_validation=lambda _: None,
    start_from=None,
) -> int:
    """Train `stage` as an experiment in `folder`."""
    strategy = strategy or tf.distribute.get_strategy()
    chief = is_chief(strategy)
    job = folder / "job"
    checkpoint = StageCheckpoint(
        stage.trackables(),
        job / stage.name / "checkpoints",
        start_from=start_from,
        is_chief=chief,
    )
    logs = job / stage.name / "logs"
    metrics_file = job / "metrics.jsonl"
    with RunLog(folder.name, stage.name, logs, metrics_file, is_chief=chief) as log:
        return train_stage(
            stage, batches_from, schedule, checkpoint, log, on_validation, strategy
        )


def main(folder: str, distribution: str, n_cpus: str, schedule: dict) -> None:
    """Train under a distribution; every process stores its replicas' weights."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * int(n_cpus)
    tf.config.set_logical_device_configuration(cpu, logical)
    strategy = make_strategy(distribution)
    check_batch_size(BATCH_SIZE, strategy)
    with strategy.scope():
        stage = LinearStage(noise=0.0, dropout=0.0)
    plan = Schedule(**schedule)
    train(
        Path(folder),
        stage,
        plan,
        strategy=strategy,
        on_validation=lambda _: time.sleep(0.02),
    )
    resolver = strategy.cluster_resolver
    task = resolver.task_id if resolver else 0
    values = {
        f"{number}/{replica}": value.numpy()
        for number, variable in enumerate(stage.net.variables)
        for replica, value in enumerate(
            strategy.experimental_local_results(variable.value)
        )
    }
    np.savez(Path(folder) / f"weights-{task}.npz", **values)


if __name__ == "__main__":
    import json

    main(*sys.argv[1:4], json.loads(sys.argv[4]))
