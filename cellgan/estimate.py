"""How much memory, disk and time an experiment takes, told before it runs.

Steps of training, and cells, are timed on this machine with the experiment's own model
and made-up cells; memory is what the process then holds. Everything else follows from
the size of the data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from cellgan import models
from cellgan.config.parameters import ExperimentParameters
from cellgan.data.batches import CellBatch
from cellgan.data.cells import cell_batch
from cellgan.data.manifest import ATAC, RNA, DatasetManifest
from cellgan.evaluation.figures import maps
from cellgan.generation.library_sizes import draw_library_sizes
from cellgan.generation.pieces import MOST_VALUES, piece_size
from cellgan.models.base import GenerationRequest, SolverSettings, TrainingStage
from cellgan.seeds import derive_seed
from cellgan.training import distribution
from cellgan.training.checkpoints import variables_by_part
from cellgan.training.loop import CompiledSteps
from cellgan.training.validation import PROJECTED_COMPONENTS

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
PROCESSING_COPIES = 2
"""Most memory of processing, as a multiple of the sparse counts (measured,
benchmarks/processing_memory.py)."""
PROCESSING_SECONDS = 3e-7
"""Of one count, to read, filter and write it on one core (measured, the same)."""
CLUSTERING_SECONDS = 8e-4
"""Of one cell, on one core (measured, the same)."""
DISK_BYTES_PER_VALUE = 5
"""Of a count in the compressed records and ``processed.h5ad`` together."""
WRITTEN_BYTES_PER_VALUE = {"expression": 5.6, "counts": 3.2}
"""Of a generated value in its compressed file (measured, benchmarks/generation.py)."""
WRITING_SECONDS = 5e-7
"""Of a generated value, to pack and write it on one core (measured, the same)."""

EVALUATION_SECONDS = 50.0
"""Of a report on few cells, on two cores (measured, benchmarks/evaluate.py)."""
EVALUATION_SECONDS_PER_CELL = 0.03
"""Of a report, for each held-out cell beyond these (measured, the same)."""
EVALUATION_BYTES_PER_CELL = 80_000
"""Memory of a report, for each held-out cell (measured, the same)."""


@dataclasses.dataclass(frozen=True)
class StageEstimate:
    """What one part of the work takes: a row of the table."""

    part: str
    memory: int
    """Most memory of the process, in bytes; 0 if that of another row includes it."""
    disk: int
    """In bytes."""
    seconds: float
    note: str = ""


def estimate_all(
    parameters: ExperimentParameters,
    manifest: DatasetManifest,
    n_values: int | None,
    *,
    is_processed: bool,
) -> list[StageEstimate]:
    """Return what every part of the work takes, in its order.

    Parameters
    ----------
    parameters
        Of the experiment.
    manifest
        The data set: its genes and labels fix the sizes of the networks.
    n_values
        Counts that are not zero; None when it is not known.
    is_processed
        Whether processing is done already, so that it needs no row.
    """
    strategy = distribution.make_strategy(parameters.training.distribution)
    n_values = n_values or 0
    # First, since a process does not give back all that training has taken.
    generation = estimate_generation(parameters, manifest, n_values)
    processing = estimate_processing(parameters, manifest, n_values)
    return [
        *([] if is_processed else [processing]),
        *estimate_training(parameters, manifest, n_values, strategy),
        *estimate_maps(parameters, manifest.split_sizes["valid"]),
        *generation,
        *estimate_evaluation(parameters, manifest),
    ]


def estimate_processing(
    parameters: ExperimentParameters, manifest: DatasetManifest, n_values: int
) -> StageEstimate:
    """Tell what processing takes, by its numbers of counts and cells."""
    seconds = PROCESSING_SECONDS * n_values
    if parameters.input_ds.clustering.res is not None:
        seconds += CLUSTERING_SECONDS * sum(manifest.split_sizes.values())
    memory = LIBRARIES + PROCESSING_COPIES * BYTES_PER_VALUE * n_values
    disk = DISK_BYTES_PER_VALUE * n_values
    return StageEstimate("process", memory, disk, seconds)


def estimate_training(
    parameters: ExperimentParameters,
    manifest: DatasetManifest,
    n_values: int,
    strategy: tf.distribute.Strategy,
) -> list[StageEstimate]:
    """Time some steps of every stage."""
    forget_peak_memory()
    with strategy.scope():
        stages = models.build_model(parameters, manifest).stages()
    estimates = []
    for stage in stages:
        training = parameters.training.of_stage(stage.name)
        distribution.check_batch_size(training.batch_size, strategy)
        steps = CompiledSteps(stage, training.seed, strategy)
        batches = made_up_batches(manifest, training.batch_size, stage, strategy)
        rate = _steps_per_second(steps, batches)
        n_parameters = _count_parameters(stage)
        estimates.append(
            StageEstimate(
                f"train, {stage.name}",
                memory=peak_memory() + BYTES_PER_VALUE * n_values,
                disk=4 * n_parameters * KEPT_CHECKPOINTS,
                seconds=training.max_steps / rate,
                note=f"at {rate:.3g} steps/s, {n_parameters:,} numbers with optimizer "
                f"states",
            )
        )
    return estimates


def estimate_maps(
    parameters: ExperimentParameters, n_cells: int
) -> list[StageEstimate]:
    """Time one map of validation and generated cells.

    Parameters
    ----------
    n_cells
        Validation cells; as many generated ones are drawn beside them.
    """
    last = parameters.model.stages[-1]  # the one that completes the model
    training = parameters.training.of_stage(last)
    if n_cells == 0 or training.validation_freq <= 0:
        return []
    n_maps = -(-training.max_steps // training.validation_freq)
    rng = np.random.default_rng(derive_seed(0, "made-up map"))
    points = rng.normal(size=(2 * n_cells, PROJECTED_COMPONENTS)).astype(np.float32)
    started = time.perf_counter()
    maps.embed(points, method=training.embedding, seed=0, log_components=False)
    seconds = n_maps * (time.perf_counter() - started)
    return [StageEstimate(f"train, {n_maps:,} maps", 0, n_maps * MAP_BYTES, seconds)]


def estimate_generation(
    parameters: ExperimentParameters, manifest: DatasetManifest, n_values: int
) -> list[StageEstimate]:
    """Time one piece of the cells that ``generation.cells_no`` asks for.

    The cells of a model that is not trained are anything but sparse, so the size of
    the file, and the time to write it, take generated cells to be as sparse as the
    real ones.

    Parameters
    ----------
    n_values
        Counts of the real cells that are not zero; 0 when it is not known, and the
        file then not counted.
    """
    n_cells = requested_cells(parameters, manifest)
    if n_cells == 0:
        return []
    forget_peak_memory()
    seconds = n_cells * _seconds_per_cell(parameters, manifest)
    n_written = round(n_values / sum(manifest.split_sizes.values()) * n_cells)
    are_counts = parameters.generation.counts or parameters.model.makes_counts
    kind = "counts" if are_counts else "expression"
    return [
        StageEstimate(
            "generate",
            memory=peak_memory() + 4 * MOST_VALUES,  # a piece that is being written
            disk=round(WRITTEN_BYTES_PER_VALUE[kind] * n_written),
            seconds=seconds + WRITING_SECONDS * n_written,
            note=f"for {n_cells:,} cells",
        )
    ]


def estimate_evaluation(
    parameters: ExperimentParameters, manifest: DatasetManifest
) -> list[StageEstimate]:
    """Tell what a report takes, by the number of held-out cells that it compares."""
    n_held_out = manifest.split_sizes["test"] or manifest.split_sizes["valid"]
    if n_held_out == 0:
        return []
    n_compared = min(n_held_out, parameters.evaluation.max_cells)
    return [
        StageEstimate(
            "evaluate",
            memory=LIBRARIES + EVALUATION_BYTES_PER_CELL * n_compared,
            disk=0,
            seconds=EVALUATION_SECONDS + EVALUATION_SECONDS_PER_CELL * n_compared,
            note=f"for {n_compared:,} held-out cells",
        )
    ]


def requested_cells(parameters: ExperimentParameters, manifest: DatasetManifest) -> int:
    """Return how many cells ``generation.cells_no`` asks for, of all labels."""
    request = parameters.generation.cells_no
    if isinstance(request, str):  # "like-data"
        return manifest.split_sizes["train"]
    return sum(request.values() if isinstance(request, Mapping) else request)


def made_up_batches(
    manifest: DatasetManifest,
    batch_size: int,
    stage: TrainingStage,
    strategy: tf.distribute.Strategy,
) -> Iterator[CellBatch]:
    """Iterate over batches of the right shapes, of what a stage trains on."""

    def batches_from(position: int, shard_index: int, n_shards: int) -> tf.data.Dataset:
        del position, shard_index
        n_cells = batch_size // n_shards
        rng = np.random.default_rng(derive_seed(0, "made-up cells"))
        counts = {}
        for modality, names in manifest.features.items():
            drawn = rng.poisson(0.2, size=(n_cells, len(names))).astype(np.float32)
            drawn[:, 0] += 1
            is_binary = modality in manifest.binary
            counts[modality] = np.minimum(drawn, 1) if is_binary else drawn
        batch = CellBatch(
            features={name: tf.constant(values) for name, values in counts.items()},
            library_size={
                name: tf.constant(values.sum(axis=1)) for name, values in counts.items()
            },
            covariates={
                name: tf.constant(np.arange(n_cells) % len(vocabulary), tf.int32)
                for name, vocabulary in manifest.covariates.items()
            },
        )
        prepared = stage.prepare(lambda: [batch])
        return tf.data.Dataset.from_tensors(prepared or batch).repeat()

    return distribution.distributed_batches(strategy, batches_from, 0)


def peak_memory() -> int:
    """Return the most memory this process has held: of the GPU if it has one."""
    if tf.config.list_physical_devices("GPU"):
        return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


def forget_peak_memory() -> None:
    """Let `peak_memory` tell of the time from now on, where the system allows it."""
    if tf.config.list_physical_devices("GPU"):
        tf.config.experimental.reset_memory_stats("GPU:0")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _seconds_per_cell(
    parameters: ExperimentParameters, manifest: DatasetManifest
) -> float:
    """Time the second of two pieces of generated cells: the first one compiles."""
    model = models.build_model(parameters, manifest)
    size = piece_size(sum(map(len, manifest.features.values())))
    codes = {name: np.zeros(size, dtype=np.int32) for name in manifest.covariates}
    sizes = None
    if parameters.model.makes_counts:
        sizes = draw_library_sizes(codes, manifest, "modelled", seed=0)
    source = None
    if parameters.model.source_cells != "none":
        source = cell_batch({RNA: np.ones((size, len(manifest.features[RNA])))}, codes)
    wanted = parameters.generation
    request = GenerationRequest(
        codes,
        size,
        seed=0,
        library_sizes=sizes,
        guidance=wanted.guidance,
        solver=SolverSettings.of(wanted),
        source=source,
    )
    model.generate(request)
    started = time.perf_counter()
    model.generate(request)
    return (time.perf_counter() - started) / size


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
    name: str, manifest: DatasetManifest, estimates: Sequence[StageEstimate]
) -> str:
    """Return the estimates as a table."""
    n_cells, n_genes = sum(manifest.split_sizes.values()), len(manifest.features[RNA])
    n_peaks = len(manifest.features.get(ATAC, ()))
    peaks = f" and {n_peaks:,} peaks" if n_peaks else ""
    lines = [
        f"{name}: {n_cells:,} cells x {n_genes:,} genes{peaks} on "
        f"{distribution.devices()}",
        f"    {'':<22} {'memory':>10} {'disk':>10}   time",
    ]
    lines += [
        f"    {row.part:<22} {_bytes(row.memory):>10} {_bytes(row.disk):>10}   "
        f"{_time(row.seconds)} {row.note}".rstrip()
        for row in estimates
    ]
    return "\n".join(lines)


def _bytes(number: int) -> str:
    if number == 0:
        return ""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 180 else f"{seconds:.0f} s"
