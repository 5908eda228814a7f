"""The folders of a study's corpora, and its evaluation cells."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from anndata.io import write_elem
from natsort import natsorted

from cellgan.composition.eligible import (
    Names,
)
from cellgan.composition.plan import (
    SOURCE,
    Corpus,
    data_seed,
)
from cellgan.config.composition import Composition
from cellgan.data.manifest import SPLITS
from cellgan.errors import DataError
from cellgan.files import remove_leftovers, replacing
from cellgan.seeds import derive_seed
from preprocessing.annotations import as_text
from preprocessing.composition.genes import (
    to_columns,
)
from preprocessing.composition.sources import (
    SourceFile,
)
from preprocessing.experiment_folder import empty_matrix, write_descriptions
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.rows import (
    JoinedRows,
    SelectedRows,
    StoredRows,
    same_block,
)
from preprocessing.write_tfrecords import write_tfrecords

if TYPE_CHECKING:
    from cellgan.composition.study import (
        Study,
    )
    from cellgan.experiment import Experiment
    from preprocessing.composition.plan import Plan, Surveyed

CELLS_HEADER = ("mixture", "seed", "source", "cell", "slot", "split")


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


def write_cell_table(path: Path, plan: Plan) -> None:
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
