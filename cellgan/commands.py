"""The verbs of the command line: process, train, generate, evaluate, augment, estimate.

Each takes an `Experiment` and wires the rooms together: this is the only place that
knows all of them. Heavy libraries are imported by the verb that needs them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cellgan import queue
from cellgan.cell_requests import check_save_path, parse_cells_no
from cellgan.experiment import Experiment
from cellgan.start import load_tensorflow

if TYPE_CHECKING:
    from tensorflow.data import Dataset
    from tensorflow.distribute import Strategy

    from cellgan.batches import DataSource
    from cellgan.distribution import BatchesFrom
    from cellgan.manifest import DatasetManifest
    from cellgan.models.base import GenerativeModel, TrainingStage

log = logging.getLogger(__name__)

LEAK = 3
"""Exit code of ``--fail-on-leak`` when training cells were copied."""
LEADERBOARD = "leaderboard"
"""Folder, beside the experiments, of the report on all of them."""


def run_queue(
    experiments: Sequence[Experiment], gpus: Sequence[int], arguments: Sequence[str]
) -> int:
    """Run the same command for several experiments, each in a process of its own.

    Returns
    -------
    Exit code: 0 when all succeeded, 1 when one met a bug, else 2 when one met something
    a user can put right, else 3 (`LEAK`). The failed ones are named at the end.
    """
    groups = queue.visible_gpus(gpus)
    if any(e.parameters.training.uses_all_gpus for e in experiments):
        groups = [",".join(groups)]
    commands = {e.name: [*arguments, "--experiment", e.name] for e in experiments}
    codes = queue.run_queue(commands, groups)
    failed = [name for name, code in codes.items() if code]
    log.info(
        "%d of %d experiments succeeded%s",
        len(codes) - len(failed),
        len(codes),
        f"; failed: {', '.join(failed)}" if failed else "",
    )
    if "--evaluate" in arguments:
        write_leaderboards(experiments)
    ours = {2, LEAK}
    if any(code not in ours for code in codes.values() if code):
        return 1
    return min((code for code in codes.values() if code), default=0)


def process(experiment: Experiment, *, overwrite: bool = False) -> None:
    """Turn the raw file into filtered, split records."""
    import preprocessing  # noqa: PLC0415  (main needs it for this verb only)

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
    experiment.check_frozen("input_ds")
    if experiment.has_checkpoint:
        stored = experiment.stored_parameters()["training"]
        experiment = _with_data_source(experiment, stored["data_source"])
        experiment.check_frozen("model", "training")

    load_tensorflow()
    from cellgan import batches, distribution, models  # noqa: PLC0415

    training = experiment.parameters.training
    strategy = distribution.make_strategy(training.distribution)
    distribution.check_batch_size(training.batch_size, strategy)
    log.info("%s: training on %s", experiment.name, distribution.devices())
    source = batches.choose_data_source(
        experiment.records_folder,
        manifest,
        distribution.common_data_source(strategy, training.data_source),
    )
    if distribution.is_chief(strategy):
        _with_data_source(experiment, source).freeze("model", "training")
    batches_from = _training_batches(experiment, manifest, source)
    with strategy.scope():
        model = models.build_model(experiment.parameters, manifest)
        stages = model.stages()
    for stage in stages:
        _train_stage(experiment, manifest, model, stage, batches_from, strategy)
    log.info("%s: trained; checkpoints in %s", experiment.name, experiment.job_folder)


def _train_stage(
    experiment: Experiment,
    manifest: DatasetManifest,
    model: GenerativeModel,
    stage: TrainingStage,
    batches_from: BatchesFrom,
    strategy: Strategy,
) -> None:
    """Train one stage to the end, with its checkpoints, log and validation."""
    from cellgan import distribution, summaries  # noqa: PLC0415
    from cellgan.checkpoints import StageCheckpoint  # noqa: PLC0415
    from cellgan.training import Schedule, train_stage  # noqa: PLC0415
    from cellgan.validation import Validation  # noqa: PLC0415

    training = experiment.parameters.training
    is_chief = distribution.is_chief(strategy)
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
            Schedule.of(training),
            checkpoint,
            run_log,
            validation,
            strategy,
        )


def _training_batches(
    experiment: Experiment, manifest: DatasetManifest, source: DataSource
) -> BatchesFrom:
    """Return what gives the training batches of an experiment, from any position on."""
    from cellgan.batches import training_batches  # noqa: PLC0415

    training = experiment.parameters.training

    def batches_from(position: int, shard_index: int, n_shards: int) -> Dataset:
        return training_batches(
            experiment.records_folder,
            manifest,
            batch_size=training.batch_size // n_shards,
            seed=training.seed,
            position=position * n_shards,
            shard_index=shard_index,
            n_shards=n_shards,
            source=source,
        )

    return batches_from


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
    manifest = experiment.manifest()
    experiment.check_frozen("input_ds", "model")
    parameters = experiment.parameters.generation
    request = parameters.cells_no if cells_no is None else cells_no
    where = "generation.cells_no" if cells_no is None else "--cells_no"
    parse_cells_no(  # a slip is answered before TensorFlow loads
        request,
        manifest,
        is_conditional=experiment.parameters.model.is_conditional,
        where=where,
    )
    path = check_save_path(save_path or experiment.generated_file)

    load_tensorflow()
    from cellgan.generation import TrainedModel  # noqa: PLC0415

    TrainedModel.load(experiment.folder).write(
        path,
        request,
        seed=parameters.seed if seed is None else seed,
        counts=counts or parameters.counts,
    )


def evaluate(experiment: Experiment, *, generated: Path | None = None) -> list[str]:
    """Compare generated with held-out cells and write the report.

    Parameters
    ----------
    generated
        File of the generated cells; by default where ``--generate`` puts them.

    Returns
    -------
    Name of the experiment if its training cells were copied, else nothing.
    """
    experiment.manifest()  # not processed: said before anything is compared
    experiment.check_frozen("input_ds")

    from cellgan.evaluation import report  # noqa: PLC0415

    return report.leaking(report.evaluate(experiment, generated))


def evaluate_files(
    real: Path, generated: Sequence[Path], folder: Path, *, label: str | None, seed: int
) -> list[str]:
    """Compare files of generated cells, whoever made them, with one of real cells.

    Returns
    -------
    Names of those whose training cells were copied.
    """
    from cellgan.evaluation import report  # noqa: PLC0415

    return report.leaking(
        report.evaluate_files(real, generated, folder, label=label, seed=seed)
    )


def write_leaderboards(experiments: Sequence[Experiment]) -> None:
    """Put reports of experiments on the same data side by side."""
    from cellgan.evaluation import report  # noqa: PLC0415

    groups: dict[object, list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault(experiment.parameters.input_ds, []).append(experiment)
    for group in groups.values():
        folder = group[0].folder.parent / LEADERBOARD
        if len(groups) > 1:
            folder = folder / group[0].name
        report.leaderboard(group, folder)


def augment(
    experiment: Experiment, label: str, fractions: Sequence[float], *, n_seeds: int
) -> None:
    """Measure whether generated cells help to recognise a label with few cells.

    Raises
    ------
    ConfigError, DataError
        As `cellgan.augmentation.augment`.
    """
    experiment.manifest()  # not processed: said before anything is checked
    experiment.check_frozen("input_ds")

    load_tensorflow()
    import keras  # noqa: PLC0415

    from cellgan import augmentation  # noqa: PLC0415
    from cellgan.generation import TrainedModel  # noqa: PLC0415
    from preprocessing.experiment_folder import write_experiment  # noqa: PLC0415

    def train_alone(derived: Experiment) -> None:
        keras.utils.clear_session()  # the graphs of the run before
        train(derived)

    augmentation.augment(
        experiment,
        label,
        fractions,
        range(n_seeds),
        write_dataset=lambda derived, cells: write_experiment(derived, cells, {}),
        train=train_alone,
        generate=lambda derived, numbers, seed: TrainedModel.load(
            derived.folder
        ).generate(numbers, seed=seed),
    )


def estimate(experiment: Experiment) -> None:
    """Tell the memory, disk and time that each action needs, before anything runs.

    The raw file is read and filtered (unless the experiment is processed), and some
    steps of training and some cells are timed; nothing is written.
    """
    if experiment.is_processed:
        experiment.check_frozen("input_ds")

    from preprocessing.survey import survey  # noqa: PLC0415

    manifest, n_values = survey(experiment)

    load_tensorflow()
    from cellgan.estimate import describe, estimate_all  # noqa: PLC0415

    is_processed = experiment.is_processed
    rows = estimate_all(
        experiment.parameters, manifest, n_values, is_processed=is_processed
    )
    log.info("%s", describe(experiment.name, manifest, rows))


def _with_data_source(
    experiment: Experiment, settled: Literal["auto", "memory", "disk"]
) -> Experiment:
    """Let what the first run settled stand for ``"auto"``.

    Memory and disk give batches in different orders, so a resumed run must not choose
    anew.
    """
    training = experiment.parameters.training
    if training.data_source != "auto":
        return experiment
    training = dataclasses.replace(training, data_source=settled)
    parameters = dataclasses.replace(experiment.parameters, training=training)
    return dataclasses.replace(experiment, parameters=parameters)
