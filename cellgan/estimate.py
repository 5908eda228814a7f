"""How much memory, disk and time an experiment takes, told before it runs.

Steps are timed on this machine with the experiment's own model and batches of made-up
cells; memory is what the process then holds. Everything else follows from the size of
the data.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from cellgan import distribution, models
from cellgan.batches import CellBatch
from cellgan.checkpoints import variables_by_part
from cellgan.config import ExperimentParameters
from cellgan.evaluation import plots
from cellgan.manifest import RNA, DatasetManifest
from cellgan.models.base import TrainingStage
from cellgan.seeds import derive_seed
from cellgan.training import CompiledSteps
from cellgan.validation import PROJECTED_COMPONENTS

TIMED_SECONDS = 5.0
"""Steps are timed for about this long per stage, after the first calls."""
FEWEST_STEPS, MOST_STEPS = 3, 200
MAP_BYTES = 400_000
"""Of one map, as a file and in TensorBoard's log (measured)."""
KEPT_CHECKPOINTS = 3
"""Two that are kept and the one being written."""


BYTES_PER_VALUE = 8
"""Of a sparse count in memory: value and column."""
LIBRARIES = 600_000_000
"""Memory of the libraries that processing loads, in bytes (measured)."""
PROCESSING_COPIES = 3
"""Most memory of processing, as a multiple of the sparse counts (benchmarks/)."""
DISK_BYTES_PER_VALUE = 5
"""Of a count in the compressed records and ``processed.h5ad`` together."""


@dataclasses.dataclass(frozen=True)
class StageEstimate:
    """What one stage of training takes."""

    stage: str
    steps_per_second: float
    hours: float
    memory: int
    """Most memory of the process so far, in bytes, without the data."""
    disk: int
    """Checkpoints, in bytes."""
    n_parameters: int
    """Numbers in the weights and the optimizer states."""


def estimate_training(
    parameters: ExperimentParameters, manifest: DatasetManifest
) -> list[StageEstimate]:
    """Time some steps of every stage.

    Parameters
    ----------
    parameters
        Of the experiment.
    manifest
        The data set: its genes and labels fix the sizes of the networks.
    """
    strategy = distribution.make_strategy(parameters.training.distribution)
    distribution.check_batch_size(parameters.training.batch_size, strategy)
    with strategy.scope():
        stages = models.build_model(parameters, manifest).stages()
    estimates = []
    for stage in stages:
        steps = CompiledSteps(stage, parameters.training.seed, strategy)
        rate = _steps_per_second(steps, made_up_batches(manifest, parameters, strategy))
        n_parameters = _count_parameters(stage)
        estimates.append(
            StageEstimate(
                stage=stage.name,
                steps_per_second=rate,
                hours=parameters.training.max_steps / rate / 3600,
                memory=peak_memory(),
                disk=4 * n_parameters * KEPT_CHECKPOINTS,
                n_parameters=n_parameters,
            )
        )
    return estimates


def estimate_maps(
    parameters: ExperimentParameters, n_cells: int
) -> tuple[int, float, int]:
    """Time one map of validation and generated cells.

    Parameters
    ----------
    n_cells
        Validation cells; as many generated ones are drawn beside them.

    Returns
    -------
    Number of maps, hours for all, and their bytes on disk.
    """
    training = parameters.training
    if n_cells == 0 or training.validation_freq <= 0:
        return 0, 0.0, 0
    n_maps = -(-training.max_steps // training.validation_freq)
    rng = np.random.default_rng(derive_seed(0, "made-up map"))
    points = rng.normal(size=(2 * n_cells, PROJECTED_COMPONENTS)).astype(np.float32)
    started = time.perf_counter()
    plots.embed(points, method=training.embedding, seed=0, log_components=False)
    hours = n_maps * (time.perf_counter() - started) / 3600
    return n_maps, hours, n_maps * MAP_BYTES


def made_up_batches(
    manifest: DatasetManifest,
    parameters: ExperimentParameters,
    strategy: tf.distribute.Strategy,
) -> Iterator[CellBatch]:
    """Iterate over batches of cells of the right shapes, for timing."""

    def batches_from(position: int, shard_index: int, n_shards: int) -> tf.data.Dataset:
        del position, shard_index
        n_cells = parameters.training.batch_size // n_shards
        n_genes = len(manifest.features[RNA])
        rng = np.random.default_rng(derive_seed(0, "made-up cells"))
        counts = rng.poisson(0.2, size=(n_cells, n_genes)).astype(np.float32)
        counts[:, 0] += 1
        batch = CellBatch(
            features={RNA: tf.constant(counts)},
            library_size={RNA: tf.constant(counts.sum(axis=1))},
            covariates={
                name: tf.constant(np.arange(n_cells) % len(vocabulary), tf.int32)
                for name, vocabulary in manifest.covariates.items()
            },
        )
        return tf.data.Dataset.from_tensors(batch).repeat()

    return distribution.distributed_batches(strategy, batches_from, 0)


def peak_memory() -> int:
    """Return the most memory this process has held: of the GPU if it has one."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _steps_per_second(steps: CompiledSteps, batches: Iterator[CellBatch]) -> float:
    """Time steps after the first calls, which compile."""
    done, _ = steps.run(batches, 0, 1)
    done, _ = steps.run(batches, done, done + 1)
    started = time.perf_counter()
    done, _ = steps.run(batches, done, done + FEWEST_STEPS)
    seconds = time.perf_counter() - started
    n_steps = int(np.clip(TIMED_SECONDS * FEWEST_STEPS / seconds, 1, MOST_STEPS))
    started = time.perf_counter()
    steps.run(batches, done, done + n_steps)
    return n_steps / (time.perf_counter() - started)


def _count_parameters(stage: TrainingStage) -> int:
    """Count the numbers a checkpoint of the stage holds."""
    parts = variables_by_part(stage.trackables())
    return sum(math.prod(value.shape) for part in parts.values() for value in part)


def describe(
    name: str,
    manifest: DatasetManifest,
    n_values: int | None,
    estimates: Sequence[StageEstimate],
    maps: tuple[int, float, int],
) -> str:
    """Return the estimate as a table.

    Parameters
    ----------
    n_values
        Counts that are not zero; None when the experiment is processed already.
    maps
        What `estimate_maps` returns.
    """
    n_cells, n_genes = sum(manifest.split_sizes.values()), len(manifest.features[RNA])
    lines = [
        f"{name}: {n_cells:,} cells x {n_genes:,} genes on {distribution.devices()}",
        f"    {'':<22} {'memory':>10} {'disk':>10}   time",
    ]
    if n_values is not None:
        lines.append(
            _row(
                "process",
                LIBRARIES + PROCESSING_COPIES * BYTES_PER_VALUE * n_values,
                DISK_BYTES_PER_VALUE * n_values,
                "",
            )
        )
    lines += [
        _row(
            f"train, {estimate.stage}",
            estimate.memory + BYTES_PER_VALUE * (n_values or 0),
            estimate.disk,
            f"{_hours(estimate.hours)} at {estimate.steps_per_second:.3g} steps/s, "
            f"{estimate.n_parameters:,} numbers with optimizer states",
        )
        for estimate in estimates
    ]
    n_maps, hours, disk = maps
    if n_maps:
        lines.append(_row(f"train, {n_maps:,} maps", 0, disk, _hours(hours)))
    return "\n".join(lines)


def _row(name: str, memory: int, disk: int, time: str) -> str:
    return f"    {name:<22} {_bytes(memory):>10} {_bytes(disk):>10}   {time}".rstrip()


def _bytes(number: int) -> str:
    if number == 0:
        return ""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{60 * hours:.0f} min" if hours >= 1 / 20 else f"{3600 * hours:.0f} s"
