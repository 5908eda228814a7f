"""The verbs of the command line: process, train, generate, evaluate, augment, estimate.

Each takes an `Experiment` and wires the rooms together: this is the only place that
knows all of them. Heavy libraries are imported by the verb that needs them.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cellgan import queue
from cellgan.composition.study import Study
from cellgan.config.model_types import family_of, types_with
from cellgan.config.parameters import GenerationParameters
from cellgan.config.reading import with_generation
from cellgan.data.manifest import RNA
from cellgan.errors import ConfigError, did_you_mean
from cellgan.experiment import Experiment, write_json
from cellgan.generation.allotment import check_guidance, doubts, request_parts
from cellgan.generation.requests import LIKE_DATA, check_save_path
from cellgan.start import load_tensorflow

if TYPE_CHECKING:
    from tensorflow.data import Dataset
    from tensorflow.distribute import Strategy

    from cellgan.data.batches import DataSource
    from cellgan.data.manifest import DatasetManifest
    from cellgan.models.base import GenerativeModel, TrainingStage
    from cellgan.training.distribution import BatchesFrom

log = logging.getLogger(__name__)

LEAK = 3
"""Exit code of ``--fail-on-leak`` when training cells were copied."""
PREPARED_CELLS = 1024
"""Cells that a stage prepares at a time."""
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


def process_composition(study: Study, *, overwrite: bool = False) -> None:
    """Choose the cells of every corpus of a study, and write them.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.composition.corpora`.
    """
    from preprocessing.composition.corpora import (  # noqa: PLC0415  (loads AnnData)
        process_composition,
    )

    process_composition(study, overwrite=overwrite)


def train_composition(study: Study, gpus: Sequence[int]) -> int:
    """Train the model of every mixture and seed that is not trained yet, as a queue.

    Returns
    -------
    Exit code, as `run_queue`.

    Raises
    ------
    DataError, ConfigError
        If the study is not processed, or differently.
    """
    document = study.manifest()
    experiments = study.experiments(document)
    for experiment in experiments.values():
        experiment.manifest()  # not processed: said before a process starts
        experiment.check_frozen("input_ds")
    waiting = [e for e in experiments.values() if not e.is_trained]
    n_done, n_all = len(experiments) - len(waiting), len(experiments)
    log.info("%s: %d of %d models are trained", study.name, n_done, n_all)
    if not waiting:
        return 0
    write_json(study.experiments_file, study.experiments_document(document))
    started = time.perf_counter()
    ended: list[str] = []

    def report(name: str, code: int) -> None:
        ended.append(name)
        minutes = (time.perf_counter() - started) / 60
        left = minutes / len(ended) * (len(waiting) - len(ended))
        log.info(
            "%s: %d of %d models, %s %s; %.1f min so far, about %.1f min left",
            study.name,
            n_done + len(ended),
            n_all,
            name,
            f"failed ({code})" if code else "trained",
            minutes,
            left,
        )

    groups = queue.visible_gpus(gpus)
    if any(e.parameters.training.uses_all_gpus for e in waiting):
        groups = [",".join(groups)]
    arguments = ["--param", str(study.experiments_file), "--train", "--experiment"]
    codes = queue.run_queue(
        {e.name: [*arguments, e.name] for e in waiting}, groups, report
    )
    failed = [name for name, code in codes.items() if code]
    if failed:
        log.info("%s: failed: %s", study.name, ", ".join(failed))
    return 1 if any(codes[name] != 2 for name in failed) else 2 if failed else 0


def evaluate_composition(study: Study) -> None:
    """Judge every model of a study on every evaluation set, and write the report.

    Raises
    ------
    CheckpointError, ConfigError, DataError
        As `cellgan.composition.scores.evaluate_composition`.
    """
    study.manifest()

    load_tensorflow()
    from cellgan.composition import scores as composition_scores  # noqa: PLC0415

    composition_scores.evaluate_composition(study)


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
    from cellgan import models  # noqa: PLC0415
    from cellgan.data import batches  # noqa: PLC0415
    from cellgan.training import distribution  # noqa: PLC0415

    training = experiment.parameters.training
    strategy = distribution.make_strategy(training.distribution)
    log.info("%s: training on %s", experiment.name, distribution.devices())
    source = batches.choose_data_source(
        experiment.records_folder,
        manifest,
        distribution.common_data_source(strategy, training.data_source),
    )
    if distribution.is_chief(strategy):
        _with_data_source(experiment, source).freeze("model", "training")
    with strategy.scope():
        model = models.build_model(experiment.parameters, manifest)
        stages = model.stages()
    for stage in stages:
        of_stage = training.of_stage(stage.name)
        distribution.check_batch_size(of_stage.batch_size, strategy)
    n_trained = manifest.split_sizes["train"]
    last = training.of_stage(stages[-1].name)
    for remark in experiment.parameters.model.remarks(last, n_trained):
        log.info("%s: %s", experiment.name, remark)
    for stage in stages:
        _train_stage(experiment, manifest, model, stage, source, strategy)
    log.info("%s: trained; checkpoints in %s", experiment.name, experiment.job_folder)


def _train_stage(
    experiment: Experiment,
    manifest: DatasetManifest,
    model: GenerativeModel,
    stage: TrainingStage,
    source: DataSource,
    strategy: Strategy,
) -> None:
    """Train one stage to the end, with its checkpoints, log and validation."""
    from cellgan.training import distribution, summaries  # noqa: PLC0415
    from cellgan.training.checkpoints import StageCheckpoint  # noqa: PLC0415
    from cellgan.training.loop import Schedule, train_stage  # noqa: PLC0415
    from cellgan.training.validation import Validation  # noqa: PLC0415

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
    from cellgan.data import batches  # noqa: PLC0415

    training = experiment.parameters.training.of_stage(stage.name)
    folder = experiment.records_folder
    all_cells = functools.partial(
        batches.cells_in_order,
        folder,
        manifest,
        "train",
        batch_size=PREPARED_CELLS,
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


def import_weights(experiment: Experiment, family: str, files: Sequence[Path]) -> None:
    """Take the weights that the original program of a family has trained.

    Raises
    ------
    ConfigError
        If the experiment is of another family, or is trained already.
    CheckpointError
        As `cellgan.weight_import.import_weights`.
    """
    original = {family_of(kind): kind for kind in types_with("imports_weights")}
    if family not in original:
        msg = (
            f'--import-weights: no family "{family}".{did_you_mean(family, original)}'
            f" Families: {', '.join(original)}."
        )
        raise ConfigError(msg)
    experiment.manifest()  # not processed: said before anything is read
    experiment.check_frozen("input_ds")
    kind = experiment.parameters.model.type
    if kind != original[family]:
        msg = (
            f"--import-weights {family}: model.type of {experiment.name} is "
            f'"{kind}", expected "{original[family]}".'
        )
        raise ConfigError(msg)
    if experiment.has_checkpoint:
        msg = (
            f"--import-weights: {experiment.name} is trained already: there are "
            f"checkpoints in {experiment.job_folder}. Give it another name."
        )
        raise ConfigError(msg)

    load_tensorflow()
    from cellgan import weight_import  # noqa: PLC0415

    weight_import.import_weights(experiment, family, files)


def _generation_settings(
    experiment: Experiment, given: Mapping[str, Any]
) -> GenerationParameters:
    """Return the ``generation`` block of an experiment, with what is given over it.

    Raises
    ------
    ConfigError
        If a key does not suit, or the experiment was processed or trained with others.
    """
    experiment.check_frozen("input_ds", "model")
    known = {key: of for key, of in given.items() if of is not None}
    return with_generation(experiment.parameters, known).generation


def generate(
    experiment: Experiment,
    *,
    cells_no: Sequence[str] | None = None,
    counts: bool = False,
    save_path: Path | None = None,
    requests: Path | None = None,
    **given: Any,
) -> None:
    """Make cells with the trained model; what is not given is as the parameters say.

    Parameters
    ----------
    given
        Keys of the ``generation`` block that stand for those of the parameters: `seed`,
        `condition`, `guidance`, `latents`, `library_size`, and those of the solver.
        None leaves one as it is.

    Raises
    ------
    ConfigError
        If the request does not fit the model.
    CheckpointError
        If the experiment is not trained.
    """
    manifest = experiment.manifest()
    settings = _generation_settings(experiment, given)
    model = experiment.parameters.model.as_asked(settings.latents)
    request = settings.cells_no if cells_no is None else cells_no
    condition = settings.condition
    if requests is not None:  # stands for what the parameters say
        if given.get("condition"):
            msg = (
                "--requests stands for --condition: give the file alone, with a column "
                "for each covariate."
            )
            raise ConfigError(msg)
        request, condition = cells_no or LIKE_DATA, {}
    # A slip is answered before TensorFlow loads.
    parts = request_parts(
        request,
        manifest,
        model,
        condition=condition,
        requests=requests,
        where="generation.cells_no" if cells_no is None else "--cells_no",
    )
    for sentence in doubts(parts, manifest, settings.guidance):
        log.warning("%s: %s", experiment.name, sentence)
    check_guidance(settings.guidance, model.conditions(manifest))
    path = check_save_path(
        save_path or experiment.generated_file, modalities=manifest.features
    )

    load_tensorflow()
    from cellgan.generation.trained_model import TrainedModel  # noqa: PLC0415
    from cellgan.models.base import SolverSettings  # noqa: PLC0415

    TrainedModel.load(experiment.folder).write(
        path,
        request,
        seed=settings.seed,
        counts=counts or settings.counts,
        condition=condition,
        requests=requests,
        guidance=settings.guidance,
        library_size=settings.library_size,
        solver=SolverSettings.of(settings),
        latents=settings.latents,
    )


def correct(
    experiment: Experiment,
    target: Mapping[str, str],
    *,
    save_path: Path | None = None,
    **given: Any,
) -> None:
    """Move the processed cells to other categories: batch correction.

    Parameters
    ----------
    target
        Category by covariate.
    given
        Keys of the ``generation`` block, as in `generate`: `seed`, `guidance`,
        and those of the solver.

    Raises
    ------
    ConfigError, CheckpointError
        As `cellgan.studies.correction.correct`.
    """
    manifest = experiment.manifest()
    settings = _generation_settings(experiment, given)
    path = check_save_path(
        save_path or experiment.corrected_file, modalities=manifest.features
    )
    if path.suffix != experiment.corrected_file.suffix:
        msg = (
            f"--save_path: {path}: corrected cells have latents beside them, which "
            f"{experiment.corrected_file.suffix} files hold. End the path in it."
        )
        raise ConfigError(msg)

    load_tensorflow()
    from cellgan.models.base import SolverSettings  # noqa: PLC0415
    from cellgan.studies import correction  # noqa: PLC0415

    correction.correct(
        experiment,
        target,
        path,
        seed=settings.seed,
        guidance=settings.guidance,
        solver=SolverSettings.of(settings),
    )


def interpolate(
    experiment: Experiment,
    ends: tuple[str, str],
    weights: Sequence[float],
    *,
    n_cells: int,
    noise_step: int | None = None,
    save_path: Path | None = None,
    **given: Any,
) -> None:
    """Make cells between two labels.

    Parameters
    ----------
    ends, weights, n_cells, noise_step
        Of `cellgan.studies.interpolation.InterpolationRequest`.
    given
        Keys of the ``generation`` block, as in `generate`: `seed`, `guidance`,
        and those of the solver.

    Raises
    ------
    ConfigError, CheckpointError
        As `cellgan.studies.interpolation.interpolate`.
    """
    manifest = experiment.manifest()
    settings = _generation_settings(experiment, given)
    path = check_save_path(
        save_path or experiment.interpolated_file, modalities=manifest.features
    )
    if path.suffix != ".h5ad":
        msg = f"--save_path: {path}: interpolated cells go to .h5ad files alone."
        raise ConfigError(msg)

    load_tensorflow()
    from cellgan.models.base import SolverSettings  # noqa: PLC0415
    from cellgan.studies import interpolation  # noqa: PLC0415

    interpolation.interpolate(
        experiment,
        interpolation.InterpolationRequest(
            ends, tuple(weights), n_cells, noise_step, settings.seed
        ),
        path,
        guidance=settings.guidance,
        solver=SolverSettings.of(settings),
    )


def counterfactual(
    experiment: Experiment,
    target: Mapping[str, str],
    *,
    cells: Path | None = None,
    save_path: Path | None = None,
    seed: int | None = None,
) -> None:
    """Edit cells to other categories.

    Parameters
    ----------
    target
        Category by field.
    cells
        File of raw counts, of any format; None for the processed cells.
    seed
        Of the scores.

    Raises
    ------
    ConfigError, CheckpointError, DataError
        As `cellgan.studies.counterfactual.counterfactual`.
    """
    manifest = experiment.manifest()
    settings = _generation_settings(experiment, {"seed": seed})
    path = check_save_path(
        save_path or experiment.counterfactual_file, modalities=manifest.features
    )
    if path.suffix != ".h5ad":
        msg = f"--save_path: {path}: edited cells go to .h5ad files alone."
        raise ConfigError(msg)
    parameters = experiment.parameters

    load_tensorflow()
    from cellgan.studies import counterfactual as room  # noqa: PLC0415

    room.check_target(experiment, target)
    given = None
    if cells is not None:
        from preprocessing.new_cells import read_new_cells  # noqa: PLC0415

        fields = parameters.model.conditions(manifest)
        given = read_new_cells(str(cells), manifest, parameters.input_ds, fields)
    room.counterfactual(
        experiment, target, path, cells=given, origin=str(cells), seed=settings.seed
    )


def embed(
    experiment: Experiment,
    *,
    cells: Path | None = None,
    layers: Sequence[str] | None = None,
    n_samples: int | None = None,
    condition: Mapping[str, str] = types.MappingProxyType({}),
    save_path: Path | None = None,
    seed: int | None = None,
) -> None:
    """Write cells with their latents and reconstructions.

    Parameters
    ----------
    cells
        File of raw counts, of any format; None for the processed cells. Genes that it
        lacks count as genes without counts.
    layers, n_samples, condition, seed
        Of `cellgan.studies.embedding.Settings`; None for its default.

    Raises
    ------
    ConfigError, CheckpointError, DataError
        As `cellgan.studies.embedding.embed`.
    """
    manifest = experiment.manifest()
    settings = _generation_settings(experiment, {"seed": seed})
    path = check_save_path(save_path or experiment.embedded_file, modalities=(RNA,))
    if path.suffix != ".h5ad":
        msg = f"--save_path: {path}: cells with latents go to .h5ad files alone."
        raise ConfigError(msg)
    parameters = experiment.parameters

    load_tensorflow()
    from cellgan.studies import embedding  # noqa: PLC0415

    embedding.check_encoder(experiment)
    given = None
    if cells is not None:
        from preprocessing.new_cells import read_new_cells  # noqa: PLC0415

        columns = parameters.model.needed_columns(manifest)
        given = read_new_cells(
            str(cells), manifest, parameters.input_ds, columns, fills_missing=True
        )
    embedding.embed(
        experiment,
        path,
        embedding.Settings(
            embedding.Settings().layers if layers is None else tuple(layers),
            n_samples or 0,
            settings.seed,
            condition,
        ),
        cells=given,
        origin=str(cells),
    )


def influence(experiment: Experiment) -> None:
    """Tell how much each covariate contributes to cells, and to which genes.

    Raises
    ------
    ConfigError, CheckpointError, DataError
        As `cellgan.studies.influence.influence`.
    """
    experiment.manifest()
    experiment.check_frozen("input_ds", "model")

    load_tensorflow()
    from cellgan.studies import influence as room  # noqa: PLC0415

    room.influence(experiment)


def sweep_guidance(experiment: Experiment, **given: Any) -> None:
    """Compare cells generated with several guidance scales.

    Parameters
    ----------
    given
        Keys of the ``generation`` block, as in `generate`: `seed`, `library_size`,
        and those of the solver.

    Raises
    ------
    ConfigError, CheckpointError
        As `cellgan.studies.guidance_sweep.sweep_guidance`.
    """
    experiment.manifest()
    settings = _generation_settings(experiment, given)

    load_tensorflow()
    from cellgan.models.base import SolverSettings  # noqa: PLC0415
    from cellgan.studies import guidance_sweep  # noqa: PLC0415

    guidance_sweep.sweep_guidance(
        experiment,
        seed=settings.seed,
        library_size=settings.library_size,
        solver=SolverSettings.of(settings),
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

    from cellgan.evaluation import evaluate as report  # noqa: PLC0415

    return report.leaking(report.evaluate(experiment, generated))


def evaluate_files(
    real: Path,
    generated: Sequence[Path],
    folder: Path,
    *,
    label: str | None,
    seed: int,
    must_know_training: bool = False,
) -> list[str]:
    """Compare files of generated cells, whoever made them, with one of real cells.

    Parameters
    ----------
    must_know_training
        Refuse a file that does not say which cells were trained on: leaks could not be
        looked for.

    Returns
    -------
    Names of those whose training cells were copied.
    """
    from cellgan.evaluation import evaluate as report  # noqa: PLC0415

    return report.leaking(
        report.evaluate_files(
            real,
            generated,
            folder,
            label=label,
            seed=seed,
            must_know_training=must_know_training,
        )
    )


def write_leaderboards(experiments: Sequence[Experiment]) -> None:
    """Put reports of experiments on the same data side by side."""
    from cellgan.evaluation import evaluate as report  # noqa: PLC0415

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
        As `cellgan.studies.augmentation.augment`.
    """
    experiment.manifest()  # not processed: said before anything is checked
    experiment.check_frozen("input_ds")

    load_tensorflow()
    import keras  # noqa: PLC0415

    from cellgan.generation.trained_model import TrainedModel  # noqa: PLC0415
    from cellgan.studies import augmentation  # noqa: PLC0415
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
