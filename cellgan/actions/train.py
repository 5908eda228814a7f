"""``--train``: train every stage of the model, or go on where a stopped run ended."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellgan import queue
from cellgan.actions.base import Action

if TYPE_CHECKING:
    from tensorflow.data import Dataset
    from tensorflow.distribute import Strategy

    from cellgan.composition.study import Study
    from cellgan.data.manifest import DatasetManifest
    from cellgan.data.memory import DataSource
    from cellgan.experiment import Experiment
    from cellgan.models.base import GenerativeModel, TrainingStage
    from cellgan.training.distribution import BatchesFrom

log = logging.getLogger(__name__)

PREPARED_CELLS = 1024
"""Cells that a stage prepares at a time."""


class Train(Action):
    """Train every stage of the model, or go on where a stopped run ended."""

    name = "train"
    help = "train, or resume a run that was stopped"
    is_for_studies = True

    def prepare(
        self, experiment: Experiment, options: argparse.Namespace
    ) -> DatasetManifest:
        """Refuse an experiment that was processed or trained with other parameters."""
        del options
        manifest = experiment.manifest()
        experiment.check_frozen("input_ds")
        if experiment.has_checkpoint:
            _as_begun(experiment).check_frozen("model", "training")
        return manifest

    def run(self, experiment: Experiment, plan: DatasetManifest) -> None:
        """Train the stages one after the other."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan import models
        from cellgan.data.memory import choose_data_source
        from cellgan.training import distribution

        if experiment.has_checkpoint:
            experiment = _as_begun(experiment)
        training = experiment.parameters.training
        strategy = distribution.make_strategy(training.distribution)
        log.info("%s: training on %s", experiment.name, distribution.devices())
        source = choose_data_source(
            experiment.records_folder,
            plan,
            distribution.common_data_source(strategy, training.data_source),
        )
        if distribution.is_chief(strategy):
            _with_data_source(experiment, source).freeze("model", "training")
        with strategy.scope():
            model = models.build_model(experiment.parameters, plan)
            stages = model.stages()
        for stage in stages:
            of_stage = training.of_stage(stage.name)
            distribution.check_batch_size(of_stage.batch_size, strategy)
        n_trained = plan.split_sizes["train"]
        last = training.of_stage(stages[-1].name)
        for remark in experiment.parameters.model.remarks(last, n_trained):
            log.info("%s: %s", experiment.name, remark)
        for stage in stages:
            _train_stage(experiment, plan, model, stage, source, strategy)
        folder = experiment.job_folder
        log.info("%s: trained; checkpoints in %s", experiment.name, folder)

    def run_on_study(
        self, study: Study, options: argparse.Namespace, gpus: Sequence[int]
    ) -> int:
        """Train the model of every mixture and seed that is not trained yet."""
        from cellgan.files import write_json

        del options
        document = study.manifest()
        experiments = study.experiments(document)
        for experiment in experiments.values():
            experiment.manifest()  # not processed: said before a process starts
            experiment.check_frozen("input_ds")
        waiting = [each for each in experiments.values() if not each.is_trained]
        n_done, n_all = len(experiments) - len(waiting), len(experiments)
        log.info("%s: %d of %d models are trained", study.name, n_done, n_all)
        if not waiting:
            return 0
        write_json(study.experiments_file, study.experiments_document(document))
        arguments = ["--param", str(study.experiments_file), "--train"]
        codes = queue.run_queue(
            {each.name: [*arguments, "--experiment", each.name] for each in waiting},
            queue.gpu_groups(waiting, gpus),
            _teller(study.name, n_done, len(waiting)),
        )
        failed = [name for name, code in codes.items() if code]
        if failed:
            log.info("%s: failed: %s", study.name, ", ".join(failed))
        return 1 if any(codes[name] != 2 for name in failed) else 2 if failed else 0


def _teller(name: str, n_done: int, n_waiting: int) -> queue.OnEnd:
    """Return what tells of every model of a study that has ended."""
    started = time.perf_counter()
    ended: list[str] = []

    def tell(model: str, code: int) -> None:
        ended.append(model)
        minutes = (time.perf_counter() - started) / 60
        log.info(
            "%s: %d of %d models, %s %s; %.1f min so far, about %.1f min left",
            name,
            n_done + len(ended),
            n_done + n_waiting,
            model,
            f"failed ({code})" if code else "trained",
            minutes,
            minutes / len(ended) * (n_waiting - len(ended)),
        )

    return tell


def _train_stage(
    experiment: Experiment,
    manifest: DatasetManifest,
    model: GenerativeModel,
    stage: TrainingStage,
    source: DataSource,
    strategy: Strategy,
) -> None:
    """Train one stage to the end, with its checkpoints, log and validation."""
    from cellgan.training import distribution, summaries
    from cellgan.training.checkpoints import StageCheckpoint
    from cellgan.training.loop import Schedule, train_stage
    from cellgan.training.validation import Validation

    training = experiment.parameters.training.of_stage(stage.name)
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
            _training_batches(experiment, manifest, stage, source),
            Schedule.of(training),
            checkpoint,
            run_log,
            validation,
            strategy,
        )


def _training_batches(
    experiment: Experiment,
    manifest: DatasetManifest,
    stage: TrainingStage,
    source: DataSource,
) -> BatchesFrom:
    """Return what gives the training batches of a stage, from any position on.

    What a stage computes of all cells is computed when the first batch is asked for: a
    finished stage needs none.
    """
    from cellgan.data import batches

    training = experiment.parameters.training.of_stage(stage.name)
    folder = experiment.records_folder
    all_cells = functools.partial(
        batches.cells_in_order, folder, manifest, "train", batch_size=PREPARED_CELLS
    )
    prepare = functools.cache(lambda: stage.prepare(all_cells))
    initialize = functools.cache(lambda: stage.initialize(all_cells))

    def batches_from(position: int, shard_index: int, n_shards: int) -> Dataset:
        place: dict[str, Any] = {
            "batch_size": training.batch_size // n_shards,
            "seed": training.seed,
            "position": position * n_shards,
            "shard_index": shard_index,
            "n_shards": n_shards,
        }
        if position == 0:
            initialize()
        prepared = prepare()
        if prepared is not None:
            return batches.prepared_batches(prepared, **place)
        return batches.training_batches(folder, manifest, source=source, **place)

    return batches_from


def _as_begun(experiment: Experiment) -> Experiment:
    """Return an experiment with the source of data that its first run settled."""
    stored = experiment.stored_parameters()["training"]
    return _with_data_source(experiment, stored["data_source"])


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


ACTION = Train()
