"""The verbs of the command line: process, train, generate, evaluate, augment, estimate.

Each takes an `Experiment` and wires the rooms together: this is the only place that
knows all of them. Heavy libraries are imported by the verb that needs them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

from cellgan import queue
from cellgan.cell_requests import LIKE_DATA, check_save_path, parse_cells_no
from cellgan.experiment import Experiment

log = logging.getLogger(__name__)


def run_queue(
    experiments: Sequence[Experiment], gpus: Sequence[int], arguments: Sequence[str]
) -> int:
    """Run the same command for several experiments, each in a process of its own.

    Returns
    -------
    Exit code: 0 when all succeeded, 2 when each failure was one a user can put right,
    1 otherwise. The failed ones are named at the end.
    """
    if any(e.parameters.training.distribution != "auto" for e in experiments):
        groups = [",".join(map(str, gpus)) or "-1"]  # each wants every GPU
    else:
        groups = [str(gpu) for gpu in gpus] or ["-1"]
    commands = {e.name: [*arguments, "--experiment", e.name] for e in experiments}
    codes = queue.run_queue(commands, groups)
    failed = [name for name, code in codes.items() if code]
    log.info(
        "%d of %d experiments succeeded%s",
        len(codes) - len(failed),
        len(codes),
        f"; failed: {', '.join(failed)}" if failed else "",
    )
    if not failed:
        return 0
    return 2 if all(codes[name] == 2 for name in failed) else 1


def process(experiment: Experiment, *, overwrite: bool = False) -> None:
    """Turn the raw file into filtered, split records."""
    import preprocessing  # noqa: PLC0415  (loads scanpy)

    preprocessing.process(experiment, overwrite=overwrite)


def train(experiment: Experiment) -> None:
    """Train every stage of the model, or go on where a stopped run ended.

    Raises
    ------
    DataError
        If the experiment is not processed.
    ConfigError
        If parameters differ from those the experiment was processed or trained with.
    """
    manifest = experiment.manifest()
    experiment.check_frozen("input_ds", "model", "training")

    from cellgan import batches, distribution, models, summaries  # noqa: PLC0415
    from cellgan.checkpoints import StageCheckpoint  # noqa: PLC0415
    from cellgan.training import Schedule, train_stage  # noqa: PLC0415
    from cellgan.validation import Validation  # noqa: PLC0415

    training = experiment.parameters.training
    strategy = distribution.make_strategy(training.distribution)
    distribution.check_batch_size(training.batch_size, strategy)
    is_chief = distribution.is_chief(strategy)
    if is_chief:
        experiment.freeze("model", "training")
    source = batches.choose_data_source(
        experiment.records_folder, manifest, training.data_source
    )

    def batches_from(position: int, shard_index: int, n_shards: int) -> object:
        return batches.training_batches(
            experiment.records_folder,
            manifest,
            batch_size=training.batch_size // n_shards,
            seed=training.seed,
            position=position * n_shards,
            shard_index=shard_index,
            n_shards=n_shards,
            source=source,
        )

    with strategy.scope():
        model = models.build_model(experiment.parameters, manifest)
        stages = model.stages()
    for stage in stages:
        checkpoint = StageCheckpoint(
            stage.trackables(),
            experiment.checkpoints_folder(stage.name),
            start_from=Path(training.checkpoint) if training.checkpoint else None,
            is_chief=is_chief,
        )
        with summaries.RunLog(
            experiment.name,
            stage.name,
            experiment.logs_folder(stage.name),
            experiment.metrics_file,
            is_chief=is_chief,
        ) as run_log:
            validation = Validation(
                experiment, manifest, model, stage, run_log, is_chief=is_chief
            )
            train_stage(
                stage,
                batches_from,
                Schedule(
                    max_steps=training.max_steps,
                    progress_freq=training.progress_freq,
                    validation_freq=training.validation_freq,
                    summary_freq=training.summary_freq,
                    save_freq=training.save_freq,
                    seed=training.seed,
                    steps_per_call=training.steps_per_call,
                ),
                checkpoint,
                run_log,
                validation,
                strategy,
            )


def generate(
    experiment: Experiment,
    *,
    cells_no: Sequence[str] | None = None,
    seed: int | None = None,
    counts: bool = False,
    save_path: Path | None = None,
) -> None:
    """Make cells with the trained model; what is not given is as the parameters say.

    Raises
    ------
    ConfigError
        If the request does not fit the model.
    CheckpointError
        If the experiment is not trained.
    """
    parameters = experiment.parameters.generation
    request = parameters.cells_no if cells_no is None else cells_no
    where = "generation.cells_no" if cells_no is None else "--cells_no"
    parse_cells_no(  # a slip is answered before TensorFlow loads
        request,
        experiment.manifest(),
        is_conditional=experiment.parameters.model.is_conditional,
        where=where,
    )
    path = check_save_path(save_path or experiment.generated_file)

    from cellgan.generation import TrainedModel  # noqa: PLC0415

    TrainedModel.load(experiment.folder).write(
        path,
        request,
        seed=parameters.seed if seed is None else seed,
        counts=counts or parameters.counts,
    )


def evaluate(experiment: Experiment) -> None:
    """Compare generated with held-out cells and write the report."""
    from cellgan import evaluation  # noqa: PLC0415

    evaluation.evaluate(experiment)
