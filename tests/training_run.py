"""Training for tests: in this process, or as a program that is killed or distributed.

Stages are a linear one, tiny GANs, and those of a tiny CFGen, cfDiffusion, cycle
autoencoder and LDVAE, on cells that are a function of their number.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch, prepared_batches
from cellgan.models import build_model
from cellgan.models.base import TrainingStage
from cellgan.training.checkpoints import StageCheckpoint
from cellgan.training.distribution import (
    BatchesFrom,
    check_batch_size,
    is_chief,
    make_strategy,
)
from cellgan.training.loop import Schedule, train_stage
from cellgan.training.summaries import RunLog
from tests import linear_stage
from tests.manifests import make_manifest
from tests.synthetic import make_cells

N_CELLS, N_GENES = 64, 24


def make_gan_stage(model_type: str) -> TrainingStage:
    """Build the stage of a tiny GAN."""
    block = {
        "input_ds": {"raw_input": "a.h5ad", "scale": "normalize_per_cell_LS_1000"},
        "model": {
            "type": model_type,
            "latent_dim": 4,
            "gen_layers": [8],
            "critic_layers": [8],
        },
        "training": {
            "max_steps": 100,
            "critic_iters": 2,
            "learning_rate": {"alpha_0": 1e-3, "alpha_final": 1e-4},
        },
    }
    manifest = make_manifest(("A", "B", "C"), (10, 20, 34), n_genes=N_GENES)
    (stage,) = build_model(parse_experiment(block, "test"), manifest).stages()
    return stage


def make_cfgen_stages() -> tuple[TrainingStage, ...]:
    """Build both stages of a tiny CFGen with dropout everywhere."""
    block = {
        "input_ds": {"raw_input": "a.h5ad"},
        "model": {
            "type": "CFGen",
            "autoencoder": {"n_latent": 3, "rna_layers": [6], "dropout": 0.2},
            "flow": {
                "width": 6,
                "embedding_width": 4,
                "n_blocks": 1,
                "normalization": "batchnorm",
                "dropout": 0.2,
                "use_library_size": True,
            },
        },
        "training": {"learning_rate": {"decay": True, "alpha_0": 1e-2}},
    }
    sizes = [(10.0, 20.0), (30.0, 50.0), (70.0, 90.0)]
    manifest = make_manifest(("A", "B", "C"), (10, 20, 34), N_GENES, sizes)
    return build_model(parse_experiment(block, "test"), manifest).stages()


def make_cfdiffusion_stages() -> tuple[TrainingStage, ...]:
    """Build both stages of a tiny cfDiffusion."""
    block = {
        "input_ds": {"raw_input": "a.h5ad"},
        "model": {
            "type": "cfDiffusion",
            "autoencoder": {"n_latent": 3, "layers": [6]},
            "diffusion": {"widths": [6, 4], "n_steps": 200},
        },
    }
    manifest = make_manifest(("A", "B", "C"), (10, 20, 34), n_genes=N_GENES)
    return build_model(parse_experiment(block, "test"), manifest).stages()


def make_cycle_stage() -> TrainingStage:
    """Build the stage of a tiny cycle autoencoder."""
    block = {
        "input_ds": {"raw_input": "a.h5ad"},
        "model": {"type": "cycleAE", "n_latent": 3, "classifier_width": 4},
    }
    manifest = make_manifest(("A", "B", "C"), (10, 20, 34), n_genes=N_GENES)
    (stage,) = build_model(parse_experiment(block, "test"), manifest).stages()
    return stage


def make_vae_stage() -> TrainingStage:
    """Build the stage of a tiny linearly decoded VAE with dropout."""
    block = {
        "input_ds": {"raw_input": "a.h5ad"},
        "model": {"type": "LDVAE", "n_latent": 3, "n_hidden": 6, "dropout": 0.2},
        "training": {"learning_rate": {"alpha_0": 1e-2}, "jit": False},
    }
    manifest = make_manifest(("A", "B", "C"), (10, 20, 34), n_genes=N_GENES)
    (stage,) = build_model(parse_experiment(block, "test"), manifest).stages()
    return stage


def every_cell() -> CellBatch:
    """Return counts and clusters of all cells."""
    cells = make_cells(N_CELLS, N_GENES)
    counts = cells.counts.toarray()
    codes = np.unique(cells.labels, return_inverse=True)[1].astype(np.int32)
    return CellBatch({"rna": counts}, {"rna": counts.sum(1)}, {"cluster": codes})


def gan_batches_from(position: int, shard_index: int, n_shards: int) -> tf.data.Dataset:
    """Return counts and clusters of 8 cells at a time, in order."""
    size = linear_stage.BATCH_SIZE // n_shards
    batches = tf.data.Dataset.from_tensor_slices(every_cell())
    batches = batches.batch(size, drop_remainder=True)
    return batches.repeat().shard(n_shards, shard_index).skip(position)


def batches_of(stage: TrainingStage) -> BatchesFrom:
    """Return what a stage trains on: cells, or what it prepares of them."""
    if stage.name == "linear":
        return linear_stage.batches_from

    def prepared_from(position: int, index: int, n_shards: int) -> tf.data.Dataset:
        cells = tf.nest.map_structure(tf.constant, every_cell())
        if position == 0:
            stage.initialize(lambda: [cells])
        prepared = stage.prepare(lambda: [cells])
        if prepared is None:
            return gan_batches_from(position, index, n_shards)
        return prepared_batches(
            prepared,
            batch_size=linear_stage.BATCH_SIZE // n_shards,
            seed=0,
            position=position * n_shards,
            shard_index=index,
            n_shards=n_shards,
        )

    return prepared_from


class Validation:
    """Calls a function with the step; the steps in `missing` have lost theirs."""

    def __init__(self, call: Callable[[int], object], missing: Sequence[int]) -> None:
        self._call = call
        self._missing = missing

    def __call__(self, step: int) -> None:
        self._call(step)

    def is_missing(self, step: int) -> bool:
        return step in self._missing


def train(
    folder: Path,
    stage: TrainingStage,
    schedule: Schedule,
    *,
    strategy=None,
    on_validation=lambda _: None,
    missing=(),
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
            stage,
            batches_of(stage),
            schedule,
            checkpoint,
            log,
            Validation(on_validation, missing),
            strategy,
        )


def saved_variables(stage: TrainingStage) -> list[tf.Variable]:
    """Return every variable of the stage, in an order of its own."""
    variables = [
        variable
        for _, part in sorted(stage.trackables().items())
        for variable in part.variables
    ]
    assert variables
    return variables


STAGES = {
    "linear": lambda: linear_stage.LinearStage(noise=0.0, dropout=0.0),
    "scGAN": lambda: make_gan_stage("scGAN"),
    "cscGAN": lambda: make_gan_stage("cscGAN"),
    "autoencoder": lambda: make_cfgen_stages()[0],
    "flow": lambda: make_cfgen_stages()[1],
    "diffusion": lambda: make_cfdiffusion_stages()[1],
    "cycle": make_cycle_stage,
    "vae": make_vae_stage,
}


def main(folder: Path, kind: str, distribution: str, n_cpus: int, plan: str) -> None:
    """Train under a distribution; every process stores its replicas' variables."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    logical = [tf.config.LogicalDeviceConfiguration()] * n_cpus
    tf.config.set_logical_device_configuration(cpu, logical)
    strategy = make_strategy(distribution)
    check_batch_size(linear_stage.BATCH_SIZE, strategy)
    with strategy.scope():
        stage = STAGES[kind]()
    train(
        folder,
        stage,
        Schedule(**json.loads(plan)),
        strategy=strategy,
        on_validation=lambda _: time.sleep(0.02),
    )
    resolver = strategy.cluster_resolver
    task = resolver.task_id if resolver else 0
    values = {
        f"{number}/{replica}": value.numpy()
        for number, variable in enumerate(saved_variables(stage))
        for replica, value in enumerate(
            strategy.experimental_local_results(variable.value)
        )
    }
    np.savez(folder / f"variables-{task}.npz", **values)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5])
