"""The corpora of a composition study: planned from names, written a block at a time.

Every mixture and seed becomes the folder of an ordinary experiment, without a processed
file: its cells are in the sources already. What was planned is in one manifest.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cellgan.composition.plan import SCHEMA_VERSION, missing_genes
from cellgan.composition.study import DATA_KEYS, Study, data_parameters
from cellgan.config.reading import read_json
from cellgan.errors import ConfigError, DataError
from cellgan.files import write_json
from preprocessing.composition.manifest import describe_plan
from preprocessing.composition.plan import make_plan
from preprocessing.composition.writing import (
    write_cell_table,
    write_corpus,
    write_evaluation,
)

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)


def process_composition(study: Study, *, overwrite: bool = False) -> None:
    """Write the corpora of a study, its evaluation cells and its manifest.

    Parameters
    ----------
    overwrite
        Replace corpora that are planned differently now, with what was trained on
        them; the others stay.

    Raises
    ------
    ConfigError
        If parameters do not fit the files, or a corpus is there that differs.
    DataError
        If a file cannot be used.
    """
    if study.manifest_file.exists() and not overwrite:
        document = study.manifest()
        if all(map(_is_unchanged, study.experiments(document).values())):
            log.info("%s: already processed, %s", study.name, study.folder)
            return
    started = time.perf_counter()
    before = _earlier(study)
    with _named(study.name), contextlib.ExitStack() as stack:
        plan = make_plan(study.composition, stack)
        parameters = data_parameters(study.composition)
        document = describe_plan(study.composition, plan, parameters)
        experiments = study.experiments(document)
        changed = {
            name: experiment
            for name, experiment in experiments.items()
            if not _is_unchanged(experiment)
        }
        in_the_way = [e.name for e in changed.values() if e.folder.exists()]
        if in_the_way:
            _check_replacing(
                in_the_way, _changes(before, document), overwrite=overwrite
            )
        if before != document and study.report_folder.exists():
            log.info("%s: removing the report, which is of other cells", study.name)
            shutil.rmtree(study.report_folder)
        study.folder.mkdir(parents=True, exist_ok=True)
        study.manifest_file.unlink(missing_ok=True)  # written last: then all is there
        for corpus in plan.corpora:
            name = study.experiment_name(corpus.mixture, corpus.seed)
            if name in changed:
                write_corpus(study.composition, plan, corpus, changed[name])
        for name in plan.evaluations:
            write_evaluation(study, plan, name, document["evaluations"][name])
        write_cell_table(study.cells_file, plan)
    write_json(study.experiments_file, study.experiments_document(document))
    write_json(study.manifest_file, document)
    log.info(
        "%s: processed in %.1f s; %d of %d corpora written\n%s",
        study.name,
        time.perf_counter() - started,
        len(changed),
        len(experiments),
        summary(document),
    )


@contextlib.contextmanager
def _named(study: str) -> Iterator[None]:
    """Put the name of a study before what is wrong with it."""
    try:
        yield
    except (ConfigError, DataError) as error:
        msg = f"{study}: {error}"
        raise type(error)(msg) from error


def _check_replacing(corpora: Sequence[str], changes: str, *, overwrite: bool) -> None:
    """Say which corpora are about to be replaced and why, or refuse it."""
    names = ", ".join(corpora)
    if not overwrite:
        msg = (
            f"the corpora of {names} are others than parameters and files give now "
            f"({changes}). Add --overwrite, which replaces these and what was trained "
            "on them, and keeps the others."
        )
        raise ConfigError(msg)
    log.info("replacing %s and what was trained on them (%s)", names, changes)


def _earlier(study: Study) -> dict[str, Any]:
    """Return the manifest that is there, of whatever parameters; {} if none is."""
    if not study.manifest_file.exists():
        return {}
    document = dict(read_json(study.manifest_file))
    return document if document.get("schema_version") == SCHEMA_VERSION else {}


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what makes corpora others than they were."""
    if not before:
        return "there is no manifest of what they were"
    old, new = before["composition"], now["composition"]
    changed = [f"composition.{key}" for key in DATA_KEYS if old[key] != new[key]]
    changed += [
        f"the file of source {name}"
        for name, source in now["sources"].items()
        if source["sha256"] != before["sources"].get(name, source)["sha256"]
    ]
    return f"{', '.join(changed) or 'genes'} changed"


def _is_unchanged(experiment: Experiment) -> bool:
    """Whether the folder holds the corpus that is planned."""
    if not experiment.manifest_file.exists():
        return False
    stored = experiment.stored_parameters()["input_ds"]["raw_input"]
    return bool(stored == experiment.parameters.input_ds.raw_input)


def summary(document: Mapping[str, Any]) -> str:
    """Return the plan as a few lines."""
    lines = [f"    {document['genes']['n']:,} genes"]
    for name, source in document["sources"].items():
        left = source["left"]
        removed = sum(sum(numbers.values()) for numbers in source["removed"].values())
        lines.append(
            f"    source {name}: {left[0][1]:,} cells, {left[-1][1]:,} meet the "
            f"filters, {source['available']:,} available"
            + (f" ({removed:,} taken out for evaluations)" if removed else "")
        )
    for name, evaluation in document["evaluations"].items():
        lines.append(f"    evaluation {name}: {evaluation['n_cells']:,} cells")
        if evaluation["genes"]["missing"]:
            lines[-1] += f"; {missing_genes(document, name)}"
    for name, corpus in document["corpora"].items():
        parts = " + ".join(
            f"{part['n_train'] + part['n_valid']:,} {part['source']}[{part['slot']}]"
            for part in corpus["parts"]
        )
        lines.append(f"    corpus {name}: {parts}")
    return "\n".join(lines)
