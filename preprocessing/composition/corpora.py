"""The corpora of a composition study: planned from names, written a block at a time.

Every mixture and seed becomes the folder of an ordinary experiment, without a processed
file: its cells are in the sources already. What was planned is in one manifest.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import gzip
import io
import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from natsort import natsorted

from cellgan.composition.eligible import (
    Eligible,
    Exclusion,
    Names,
    exclude,
    hold_out,
    is_among,
)
from cellgan.composition.plan import (
    SOURCE,
    Corpus,
    PlannedPart,
    data_seed,
    digest,
    plan_corpora,
)
from cellgan.composition.study import (
    DATA_KEYS,
    SCHEMA_VERSION,
    Study,
    data_parameters,
    missing_genes,
    training_seed,
)
from cellgan.config.composition import Composition, VariableGenes
from cellgan.config.reading import read_json
from cellgan.data.manifest import SPLITS
from cellgan.errors import ConfigError, DataError
from cellgan.experiment import Experiment
from cellgan.files import remove_leftovers, replacing, write_json
from cellgan.seeds import derive_seed
from preprocessing.annotations import as_text
from preprocessing.composition.genes import (
    FEWEST_SHARED,
    GeneNames,
    dispersed_genes,
    gene_names,
    shared_genes,
    to_columns,
)
from preprocessing.composition.sources import (
    FilterResult,
    SourceFile,
    are_numbers,
    filter_source,
    open_source,
)
from preprocessing.experiment_folder import empty_matrix, write_descriptions
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.rows import (
    JoinedRows,
    SelectedRows,
    StoredRows,
    dask_client,
    same_block,
)
from preprocessing.write_tfrecords import write_tfrecords

log = logging.getLogger(__name__)

CELLS_HEADER = ("mixture", "seed", "source", "cell", "slot", "split")


class Surveyed(NamedTuple):
    """What is known of a file after one pass."""

    file: SourceFile
    names: GeneNames
    column_of: npt.NDArray[np.int64]
    result: FilterResult
    cells: Eligible


class Plan(NamedTuple):
    """What a study is to be made of."""

    genes: Names
    sources: Mapping[str, Surveyed]
    evaluations: Mapping[str, tuple[Surveyed, Eligible]]
    exclusions: Mapping[str, Exclusion]
    corpora: Sequence[Corpus]


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
        document = describe_plan(study.composition, plan)
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
        _write_cells(study.cells_file, plan)
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


def make_plan(composition: Composition, stack: contextlib.ExitStack) -> Plan:
    """Look at all files, and choose genes and cells; `stack` keeps the files open."""
    reader = composition.dask
    client = None if reader is None else stack.enter_context(dask_client(reader))
    options: dict[str, Any] = {
        "client": client,
        "cells_at_once": 0 if reader is None else reader.cells_at_once,
    }
    used = {
        part.source
        for mixture in composition.mixtures.values()
        for part in mixture.parts
    }
    used |= {e.source for e in composition.evaluations.values() if e.source is not None}
    of_models = (composition.label, *composition.covariates)
    of_models = tuple(name for name in of_models if name != SOURCE)
    files: dict[str, SourceFile] = {}
    for name, source in composition.sources.items():
        if name not in used:
            continue
        group_by = [
            evaluation.group_by
            for evaluation in composition.evaluations.values()
            if evaluation.source == name and evaluation.group_by is not None
        ]
        files[name] = stack.enter_context(
            open_source(source, f"sources.{name}", (*of_models, *group_by), **options)
        )
    others: dict[str, SourceFile] = {}
    for name, evaluation in composition.evaluations.items():
        if evaluation.external is not None:
            group_by = [evaluation.group_by] if evaluation.group_by else []
            where = f"evaluations.{name}.external"
            others[name] = stack.enter_context(
                open_source(evaluation.external, where, group_by, of_models, **options)
            )
    names = {name: gene_names(file) for name, file in files.items()}
    trained = {
        part.source: names[part.source]
        for mixture in composition.mixtures.values()
        for part in mixture.parts
    }
    genes = shared_genes(composition, trained)
    rule = composition.genes
    if isinstance(rule, VariableGenes):
        file, column_of = files[rule.source], names[rule.source].columns_in(genes)
        passed = filter_source(file, column_of, len(genes)).passed
        genes = dispersed_genes(rule, file, passed, column_of, genes)
    sources = {name: _survey(file, names[name], genes) for name, file in files.items()}
    more = {
        name: _survey(file, gene_names(file), genes) for name, file in others.items()
    }
    evaluations = {}
    for name, evaluation in composition.evaluations.items():
        surveyed = sources[evaluation.source] if evaluation.source else more[name]
        evaluations[name] = surveyed, hold_out(evaluation, name, surveyed.cells)
        _check_overlap_of_genes(name, surveyed, genes)
    in_mixtures = {name: sources[name] for name in trained}
    exclusions = {
        name: exclude(
            name,
            surveyed.cells,
            {
                other: (composition.evaluations[other].source, cells)
                for other, (_, cells) in evaluations.items()
            },
            composition.exclude,
        )
        for name, surveyed in in_mixtures.items()
    }
    corpora = plan_corpora(
        composition, {name: rest.cells for name, rest in exclusions.items()}
    )
    return Plan(genes, sources, evaluations, exclusions, corpora)


def _survey(file: SourceFile, names: GeneNames, genes: Names) -> Surveyed:
    column_of = names.columns_in(genes)
    result = filter_source(file, column_of, len(genes))
    ids = file.ids
    source = file.source
    strata = None
    if source.stratify is not None:
        values = as_text(file.cells.obs[source.stratify.by])[result.passed]
        order = {value: code for code, value in enumerate(natsorted(set(values)))}
        strata = np.array([order[value] for value in values], np.int64)
    groups = None
    if source.group is not None:
        groups = as_text(file.cells.obs[source.group])[result.passed]
    cells = Eligible(
        np.flatnonzero(result.passed).astype(np.int64),
        ids[result.passed],
        groups,
        strata,
        are_numbers(ids),
    )
    return Surveyed(file, names, column_of, result, cells)


def _check_overlap_of_genes(name: str, surveyed: Surveyed, genes: Names) -> None:
    n_shared = len(np.unique(surveyed.column_of[surveyed.column_of >= 0]))
    if not n_shared:
        msg = (
            f"evaluations.{name}: {surveyed.file.source.file} has none of the "
            f'{len(genes):,} genes of the study ("{genes[0]}", ...). Bring them to one '
            "kind of name with gene_column or gene_table."
        )
        raise DataError(msg)
    if n_shared < FEWEST_SHARED * len(genes):
        log.warning(
            "evaluations.%s: only %s of the study's %s genes are in %s; the others "
            "are taken for zeros",
            name,
            f"{n_shared:,}",
            f"{len(genes):,}",
            surveyed.file.source.file,
        )


def describe_plan(composition: Composition, plan: Plan) -> dict[str, Any]:
    """Return the manifest: the same for the same parameters and files anywhere."""
    genes = digest(plan.genes)
    corpora = {}
    for corpus in plan.corpora:
        name = f"{corpus.mixture}-seed{corpus.seed}"
        corpora[name] = {
            "mixture": corpus.mixture,
            "seed": corpus.seed,
            "data_seed": data_seed(composition, corpus.seed),
            "training_seed": training_seed(composition, corpus.seed),
            "n_train": corpus.n_train,
            "n_valid": sum(len(part.valid) for part in corpus.parts),
            "parts": [_describe_part(plan, part) for part in corpus.parts],
            "overlap": _overlap(composition, plan, corpus),
            "sha256": digest(
                [SCHEMA_VERSION, genes, composition.label, composition.covariates],
                [composition.scale],
                *(
                    item
                    for part in corpus.parts
                    for item in (
                        [part.source, plan.sources[part.source].result.sha256],
                        part.train,
                        part.valid,
                    )
                ),
            ),
        }
    return {
        "schema_version": SCHEMA_VERSION,
        "composition": data_parameters(composition),
        "genes": {
            "n": len(plan.genes),
            "sha256": genes,
            "sources": {
                name: _describe_genes(surveyed, plan.genes)
                for name, surveyed in plan.sources.items()
            },
        },
        "sources": {
            name: _describe_source(surveyed, plan.exclusions.get(name))
            for name, surveyed in plan.sources.items()
        },
        "evaluations": {
            name: {
                "n_cells": len(cells),
                "left": [[what, n] for what, n in surveyed.result.left],
                "file_sha256": surveyed.result.sha256,
                "sha256": digest(
                    [
                        surveyed.result.sha256,
                        genes,
                        composition.evaluations[name].group_by,
                    ],
                    [composition.label, composition.covariates],
                    cells.rows,
                ),
                "genes": _describe_genes(surveyed, plan.genes),
                "groups": [] if cells.groups is None else sorted(set(cells.groups)),
            }
            for name, (surveyed, cells) in plan.evaluations.items()
        },
        "corpora": corpora,
    }


def _describe_genes(surveyed: Surveyed, genes: Names) -> dict[str, int]:
    columns = surveyed.column_of[surveyed.column_of >= 0]
    return {
        "in_file": len(surveyed.names.names),
        "unnamed": surveyed.names.n_unnamed,
        "repeated": surveyed.names.n_repeated,
        "kept": len(columns),
        "missing": len(genes) - len(np.unique(columns)),
    }


def _describe_source(surveyed: Surveyed, exclusion: Exclusion | None) -> dict[str, Any]:
    removed = {} if exclusion is None else exclusion.removed
    return {
        "sha256": surveyed.result.sha256,
        "left": [[what, n_cells] for what, n_cells in surveyed.result.left],
        "removed": {name: dict(numbers) for name, numbers in removed.items()},
        "available": len(surveyed.cells if exclusion is None else exclusion.cells),
    }


def _describe_part(plan: Plan, part: PlannedPart) -> dict[str, Any]:
    surveyed = plan.sources[part.source]
    rows = np.sort(np.concatenate([part.train, part.valid]))
    described: dict[str, Any] = {
        "source": part.source,
        "slot": part.slot,
        "n_train": len(part.train),
        "n_valid": len(part.valid),
        "sha256": digest(surveyed.file.ids[rows]),
    }
    stratify = surveyed.file.source.stratify
    if stratify is not None:
        values, numbers = np.unique(
            as_text(surveyed.file.cells.obs[stratify.by])[rows].astype(str),
            return_counts=True,
        )
        described["strata"] = dict(zip(values.tolist(), numbers.tolist(), strict=True))
    return described


def _overlap(
    composition: Composition, plan: Plan, corpus: Corpus
) -> dict[str, dict[str, int | None]]:
    """Count the cells and groups that a corpus shares with every evaluation set."""
    overlap: dict[str, dict[str, int | None]] = {}
    for name, (_, cells) in plan.evaluations.items():
        n_cells: int | None = 0
        groups: set[str] = set()
        for part in corpus.parts:
            surveyed = plan.sources[part.source]
            rows = np.concatenate([part.train, part.valid])
            if composition.evaluations[name].source == part.source:
                shared = int(np.isin(rows, cells.rows).sum())
            elif surveyed.cells.are_numbered or cells.are_numbered:
                n_cells = None  # names tell nothing
                shared = 0
            else:
                shared = int(is_among(surveyed.file.ids[rows], cells.ids).sum())
            n_cells = None if n_cells is None else n_cells + shared
            if surveyed.file.source.group is not None and cells.groups is not None:
                mine = as_text(surveyed.file.cells.obs[surveyed.file.source.group])[
                    rows
                ]
                groups |= set(mine) & set(cells.groups)
        overlap[name] = {"cells": n_cells, "groups": len(groups)}
    return overlap


def write_corpus(
    composition: Composition, plan: Plan, corpus: Corpus, experiment: Experiment
) -> None:
    """Write the folder of one corpus, reading its sources a block at a time.

    Raises
    ------
    DataError
        If something cannot be written; the folder is then as it was.
    """
    obs, rows_of_part = corpus_obs(composition, plan, corpus)
    n_genes: list[npt.NDArray[Any]] = []
    n_counts: list[npt.NDArray[Any]] = []

    def tally(blocks: Sequence[sp.csr_matrix]) -> None:
        (counts,) = blocks
        n_genes.append(np.diff(counts.indptr))
        n_counts.append(np.asarray(counts.sum(axis=1), np.float64).ravel())

    rows = JoinedRows(
        [
            aligned_rows(plan.sources[part.source], mine, len(plan.genes))
            for part, mine in zip(corpus.parts, rows_of_part, strict=True)
        ]
    )
    cells = CellSource(obs, pd.DataFrame(index=plan.genes), rows)
    inputs = experiment.parameters.input_ds
    try:
        remove_leftovers(experiment.folder)
        with replacing(experiment.folder) as temporary:
            staged = dataclasses.replace(experiment, folder=temporary)
            shards = write_tfrecords(
                cells,
                staged.records_folder,
                label=composition.label,
                covariates=inputs.other_covariates,
                record_values="counts",
                target_library_size=inputs.target_library_size,
                seed=derive_seed(data_seed(composition, corpus.seed), "shards"),
                each_block=tally,
            )
            obs["n_genes"] = np.concatenate(n_genes).astype(np.int64)
            obs["n_counts"] = np.concatenate(n_counts)
            write_descriptions(staged, cells, shards, fields=None)
    except OSError as error:
        msg = f"{experiment.folder}: cannot be written: {error}."
        raise DataError(msg) from error


def corpus_obs(
    composition: Composition, plan: Plan, corpus: Corpus
) -> tuple[pd.DataFrame, list[npt.NDArray[np.int64]]]:
    """Return names, label, covariates and split of a corpus, and each part's rows."""
    frames, rows_of_part = [], []
    for part in corpus.parts:
        file = plan.sources[part.source].file
        rows = np.sort(np.concatenate([part.train, part.valid]))
        rows_of_part.append(rows)
        columns: dict[str, Any] = {
            name: _values(file, name, part.source, rows)
            for name in (composition.label, *composition.covariates)
        }
        columns["split"] = np.where(np.isin(rows, part.valid), "valid", "train")
        ids = [f"{part.source}:{name}" for name in file.ids[rows]]
        frames.append(pd.DataFrame(columns, index=pd.Index(ids, dtype=object)))
    obs = pd.concat(frames)
    for name in (composition.label, *composition.covariates):
        obs[name] = pd.Categorical(obs[name], natsorted(set(obs[name])))
    obs["split"] = pd.Categorical(obs["split"], SPLITS)
    return obs, rows_of_part


def _values(
    file: SourceFile, column: str, source: str, rows: npt.NDArray[np.int64]
) -> Names:
    if column == SOURCE:
        return np.full(len(rows), source, dtype=object)
    values: Names = as_text(file.cells.obs[column])[rows]
    n_missing = int((values == "").sum())
    if n_missing:
        msg = (
            f'{file.where}: column "{column}": {n_missing:,} of {len(rows):,} cells '
            "have no value. Leave them out with a filter (op: not null)."
        )
        raise DataError(msg)
    return values


def aligned_rows(
    surveyed: Surveyed, rows: npt.NDArray[np.int64], n_genes: int
) -> StoredRows:
    """Return some cells of a file, ascending, with the genes of the study."""
    wanted = np.zeros(surveyed.file.cells.rows.n_cells, bool)
    wanted[rows] = True
    take = functools.partial(to_columns, column_of=surveyed.column_of, n_genes=n_genes)
    return SelectedRows(surveyed.file.cells.rows, wanted, n_genes, take)


def write_evaluation(
    study: Study, plan: Plan, name: str, described: Mapping[str, Any]
) -> None:
    """Write the cells of an evaluation set, a block at a time."""
    path = study.evaluation_file(name)
    if path.exists():
        with h5py.File(path, "r") as stored:
            if stored.attrs.get("sha256") == described["sha256"]:
                return
    surveyed, cells = plan.evaluations[name]
    evaluation = study.composition.evaluations[name]
    source = evaluation.source or name
    obs = pd.DataFrame(index=pd.Index(cells.ids, dtype=object))
    wanted = (study.composition.label, *study.composition.covariates)
    for column in dict.fromkeys((*wanted, evaluation.group_by)):
        if column == SOURCE:
            obs[column] = source
        elif column is not None and column in surveyed.file.cells.obs:
            obs[column] = as_text(surveyed.file.cells.obs[column])[cells.rows]
    if cells.groups is not None:
        obs["group"] = cells.groups
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        var = pd.DataFrame(index=pd.Index(plan.genes, dtype=object))
        write_elem(file, "/", ad.AnnData(obs=obs.astype("category"), var=var))
        stored = empty_matrix(file, len(plan.genes))
        rows = aligned_rows(surveyed, cells.rows, len(plan.genes))
        for _, counts in rows.map_blocks(same_block):
            stored.append(counts)
        file.attrs["sha256"] = described["sha256"]


def _write_cells(path: Path, plan: Plan) -> None:
    """Write which cell is in which corpus: the same bytes for the same plan."""
    with (
        replacing(path) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(CELLS_HEADER)
        for corpus in plan.corpora:
            for part in corpus.parts:
                ids = plan.sources[part.source].file.ids
                for split, rows in (("train", part.train), ("valid", part.valid)):
                    table.writerows(
                        (
                            corpus.mixture,
                            corpus.seed,
                            part.source,
                            name,
                            part.slot,
                            split,
                        )
                        for name in ids[rows]
                    )


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
