"""Comparisons made into reports: files that people read and files that programs read.

``evaluation/`` of an experiment gets ``report.json`` (everything), ``metrics.csv``,
``report.html`` (one file, no network), ``figures/``; the experiment's folder gets
``MODEL_CARD.md`` and its ``job`` folder what TensorBoard shows.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime
import json
import logging
import platform
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import cellgan
from cellgan.config.reading import as_json
from cellgan.errors import ConfigError, DataError
from cellgan.evaluation.comparison.pairs import Pair, concatenate_sides, make_pair
from cellgan.evaluation.comparison.sides import (
    Comparison,
    compare_experiment,
    compare_files,
)
from cellgan.evaluation.figures import pictures
from cellgan.evaluation.figures.pictures import NearestDistances, Picture
from cellgan.evaluation.metrics.memorisation import (
    MemorisationCheck,
    memorisation,
    unknown,
)
from cellgan.evaluation.metrics.published import published
from cellgan.evaluation.report import boards, html, model_card, tables
from cellgan.evaluation.report.document import (
    CellNumbers,
    ExperimentReport,
    MemorisationRecord,
    PublishedRecord,
    Report,
    RunRecord,
    plain,
    read_report,
    write_report,
)
from cellgan.evaluation.report.verdict import verdict
from cellgan.evaluation.scoring import overall_score
from cellgan.evaluation.suite import Judged, Sides, judge_cells
from cellgan.files import replacing
from cellgan.seeds import derive_seed

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

HTML, TABLE, JSON = "report.html", "metrics.csv", "report.json"
FEW_CELLS = 50
"""Fewer compared cells than this earn a word of caution."""


def evaluate(experiment: Experiment, generated: Path | None = None) -> Report:
    """Compare an experiment's generated cells with held-out ones; write the report.

    Held-out cells are those of the test split, or of the valid split when that is
    empty; never training cells.

    Parameters
    ----------
    experiment
        A processed experiment; its model is not needed.
    generated
        File of generated cells, the experiment's own by default.

    Returns
    -------
    What ``evaluation/report.json`` holds.

    Raises
    ------
    DataError
        If there are no generated or no held-out cells, or they cannot be compared.
    """
    asked = experiment.parameters.evaluation
    compared = compare_experiment(
        experiment,
        generated or experiment.generated_file,
        most_cells=asked.max_cells,
        seed=asked.seed,
    )
    _remove_earlier(experiment.evaluation_folder)
    experiment.model_card_file.unlink(missing_ok=True)
    said, drawn = _judge(
        compared,
        seed=asked.seed,
        method=experiment.parameters.training.embedding,
        parameters=as_json(experiment.parameters),
    )
    if experiment.guidance_file.exists():
        rows = guidance_rows(experiment.guidance_file)
        said = dataclasses.replace(said, guidance=rows)
        drawn = (*drawn, pictures.guidance_picture(experiment.guidance_file))
    document = _document({experiment.name: said})
    _write(experiment.evaluation_folder, document, {experiment.name: drawn})
    card = model_card.model_card(experiment.name, said)
    with replacing(experiment.model_card_file) as temporary:
        temporary.write_text(card, encoding="utf-8")
    boards.write_boards(
        experiment.job_folder / "evaluation", experiment.name, said, drawn
    )
    return document


def evaluate_files(
    real: Path,
    generated: Sequence[Path],
    folder: Path,
    *,
    label: str | None = None,
    seed: int = 0,
    must_know_training: bool = False,
) -> Report:
    """Compare files of generated cells, whoever made them, with a file of real ones.

    Parameters
    ----------
    real, label, must_know_training
        As in `cellgan.evaluation.comparison.sides.compare_files`.
    generated
        One file or several, which share a leaderboard.
    folder
        Where the report goes.

    Raises
    ------
    ConfigError, DataError
        If two files have one name, or files cannot be read or compared.
    """
    names = _names(generated)
    entries: dict[str, ExperimentReport] = {}
    drawn: dict[str, Sequence[Picture]] = {}
    for name, path in zip(names, generated, strict=True):
        compared = compare_files(
            real, path, label=label, must_know_training=must_know_training, seed=seed
        )
        if not entries:
            _remove_earlier(folder)
        entries[name], drawn[name] = _judge(compared, seed=seed, method="tsne")
    document = _document(entries)
    _write(folder, document, drawn)
    return document


def leaderboard(experiments: Sequence[Experiment], folder: Path) -> Report | None:
    """Put the reports of experiments on the same data side by side.

    Returns
    -------
    The common report, written to `folder`; None when fewer than two experiments have a
    report.
    """
    entries: dict[str, ExperimentReport] = {}
    drawn: dict[str, Sequence[Picture]] = {}
    for experiment in experiments:
        file = experiment.evaluation_folder / JSON
        if file.exists():
            entries |= read_report(file).experiments
            drawn[experiment.name] = _stored_pictures(experiment.evaluation_folder)
    if len(entries) < 2:
        return None
    document = _document(entries)
    _write(folder, document, drawn)
    return document


def leaking(document: Report) -> list[str]:
    """Return the names of those whose training cells were copied."""
    entries = document.experiments.items()
    return [name for name, said in entries if said.memorisation.leaks]


@contextlib.contextmanager
def without_thread_warnings() -> Iterator[None]:
    """Do not show what scikit-learn says when its threads lose the warning filters.

    Each thread of a forest puts the filters back that it has found, and with several at
    once they may end up empty; every further tree then warns. No filter can help.
    """
    shown = warnings.showwarning

    def show(message: Warning | str, *arguments: Any, **options: Any) -> None:
        if "sklearn.utils.parallel.delayed" not in str(message):
            shown(message, *arguments, **options)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = shown


def _judge(
    compared: Comparison,
    *,
    seed: int,
    method: Literal["tsne", "umap"],
    parameters: Mapping[str, Any] | None = None,
) -> tuple[ExperimentReport, tuple[Picture, ...]]:
    """Return an experiment's part of the report, and its pictures."""
    started = time.perf_counter()
    with without_thread_warnings():
        judged = judge_cells(compared, seed=seed)
    sides = judged.main
    clock = time.perf_counter()
    check = check_memorisation(compared, sides, seed)
    judged.seconds["memorisation"] = time.perf_counter() - clock
    clock = time.perf_counter()
    with without_thread_warnings():
        numbers = _published(sides, seed)
    judged.seconds["published"] = time.perf_counter() - clock
    clock = time.perf_counter()
    drawn = pictures.draw_pictures(
        _pair(sides),
        giveaway_genes=[dataclasses.asdict(gene) for gene in judged.giveaways],
        distances=_distances(check),
        method=method,
        peaks=_pair(judged.second) if judged.second is not None else None,
        modality=judged.records[0].modality,
    )
    judged.seconds["pictures"] = time.perf_counter() - clock
    judged.seconds["all"] = time.perf_counter() - started
    said = entry(compared, judged, check, seed=seed)
    run = dataclasses.replace(said.run, parameters=plain(parameters))
    return dataclasses.replace(said, published=numbers, run=run), drawn


def _pair(sides: Sides) -> Pair:
    """Return held-out and generated cells."""
    return make_pair(sides.held_out, sides.generated, sides.frame, 0)


def entry(
    compared: Comparison, judged: Judged, check: MemorisationCheck, *, seed: int
) -> ExperimentReport:
    """Return an experiment's part of a report, without what needs files or pictures."""
    sides = judged.main
    memorised = MemorisationRecord(
        known=compared.knows_training,
        leaks=check.leaks if compared.knows_training else None,
        reasons=list(check.reasons),
        caution=check.caution,
        numbers=list(check.numbers),
    )
    overall = overall_score(judged.records)
    return ExperimentReport(
        verdict=verdict(
            judged.records,
            overall,
            held_out=sides.held_out,
            generated=sides.generated,
            are_counts=sides.frame.are_counts,
            label_states=compared.label_states,
            memorisation=memorised,
            warnings=compared.warnings,
        ),
        overall=overall,
        metrics=judged.records,
        p_values=dict(judged.p_values),
        memorisation=memorised,
        published=[],
        giveaway_genes=list(judged.giveaways),
        labels=dict(compared.label_states),
        cells=CellNumbers(
            **{side: compared.n_cells(side) for side in compared.labels},
            in_files=dict(compared.n_in_files),
            split=compared.split,
            held_out_by=compared.held_out_by,
        ),
        warnings=list(compared.warnings),
        dropped=list(compared.dropped),
        guidance=[],
        scale=compared.scale,
        run=RunRecord(
            seed=seed,
            seconds=judged.seconds,
            versions=_versions(),
            parameters=None,
            origin=plain(compared.origin),
        ),
    )


def guidance_rows(path: Path) -> list[dict[str, float | None]]:
    """Read the table of a guidance sweep; what is no number is null.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}. Run --guidance-sweep again."
        raise DataError(msg) from None
    return [{name: _number(text) for name, text in row.items()} for row in rows]


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def check_memorisation(
    compared: Comparison, sides: Sides, seed: int
) -> MemorisationCheck:
    """Check all training cells that were read; none are known in files of others."""
    if not compared.knows_training:
        return unknown(
            "the real file does not say which cells were trained on: an obs column "
            '"split" with the values train and test would'
        )
    training = concatenate_sides(sides.frame.training, sides.control)
    donors = None
    if compared.donors is not None:
        donors = (
            (*compared.donors["training"], *compared.donors["control"]),
            tuple(compared.donors["held_out"]),
        )
    return memorisation(
        training,
        sides.held_out,
        sides.generated,
        seed=derive_seed(seed, "memorisation"),
        donors=donors,
    )


def _distances(check: MemorisationCheck) -> NearestDistances | None:
    """Return what the picture of nearest records shows, if training cells are known."""
    if not len(check.generated_to_training):
        return None
    return NearestDistances(check.generated_to_training, check.held_out_to_training)


def _published(sides: Sides, seed: int) -> list[PublishedRecord]:
    """Return published variants, of generated cells and of real training cells."""
    root = derive_seed(seed, "published")
    values, ceilings = (
        published(sides.held_out, side, seed=root)
        for side in (sides.generated, sides.control)
    )
    return [
        PublishedRecord(
            protocol=value.protocol,
            name=value.name,
            value=value.value,
            ceiling=ceiling.value,
            settings=value.settings,
        )
        for value, ceiling in zip(values, ceilings, strict=True)
    ]


def _document(entries: Mapping[str, ExperimentReport]) -> Report:
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    return Report(
        schema=2,
        version=cellgan.__version__,
        created=now.isoformat().replace("+00:00", "Z"),
        experiments=dict(entries),
    )


def _remove_earlier(folder: Path) -> None:
    """Remove the report on cells that others are in the place of now.

    Called when the new ones are read and can be compared. If the work on them fails
    then, no report is there, rather than one that looks like theirs.
    """
    for name in (HTML, TABLE, JSON):
        (folder / name).unlink(missing_ok=True)


def _write(
    folder: Path, document: Report, drawn: Mapping[str, Sequence[Picture]]
) -> None:
    """Write every file of a report, and say where it is and what it says."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_pictures(folder / "figures", drawn)
    html.write_html(folder / HTML, document, drawn)
    tables.write_csv(folder / TABLE, document)
    write_report(folder / JSON, document)
    for name, said in document.experiments.items():
        if len(document.experiments) == 1:
            log.info("%s", tables.summary_text(name, said))
        for warning in said.warnings:
            log.warning("%s: %s", name, warning)
        if said.cells.generated < FEW_CELLS:
            log.info(
                "%s: only %d cells a side could be compared, which says little; "
                "generate like-data, or hold out more cells",
                name,
                said.cells.generated,
            )
        if said.memorisation.leaks is None:
            reason = tables.why_unknown(said)
            log.info("%s: leaks were not looked for: %s", name, reason)
    if len(document.experiments) > 1:
        log.info("%s", tables.leaderboard_text(document))
    for name, said in document.experiments.items():
        log.info("%s: %s", name, said.verdict.headline)
        for finding in said.verdict.findings:
            log.info("    - %s", finding)
    log.info("report: %s", folder / HTML)


def _write_pictures(folder: Path, drawn: Mapping[str, Sequence[Picture]]) -> None:
    """Write all pictures and their texts, in place of what is there."""
    with replacing(folder) as temporary:
        temporary.mkdir()
        texts = []
        for name, of_one in drawn.items():
            prefix = f"{name}_" if len(drawn) > 1 else ""
            for picture in of_one:
                file = f"{prefix}{picture.name}.png"
                (temporary / file).write_bytes(picture.png)
                texts.append(
                    {
                        "name": picture.name,
                        "title": picture.title,
                        "alt": picture.alt,
                        "file": file,
                    }
                )
        (temporary / "pictures.json").write_text(
            json.dumps(texts, indent=4), encoding="utf-8"
        )


def _stored_pictures(folder: Path) -> tuple[Picture, ...]:
    """Read the pictures that an earlier evaluation has drawn."""
    file = folder / "figures" / "pictures.json"
    if not file.exists():
        return ()
    return tuple(
        Picture(
            text["name"],
            text["title"],
            text["alt"],
            (file.parent / text["file"]).read_bytes(),
        )
        for text in json.loads(file.read_text(encoding="utf-8"))
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """Return a name for every file: its own, or with its folder's where two agree."""
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):
        names = [f"{path.absolute().parent.name}/{path.stem}" for path in paths]
    if len(set(names)) < len(names):
        msg = "--generated: two files have the same name. Give each file once."
        raise ConfigError(msg)
    return names


def _versions() -> dict[str, str]:
    libraries = ("anndata", "numpy", "scikit-learn", "scipy")
    return {
        "cellgan": cellgan.__version__,
        "python": platform.python_version(),
        **{library: metadata.version(library) for library in libraries},
    }
