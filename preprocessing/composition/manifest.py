"""What is said of a planned study: its manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cellgan.composition.eligible import (
    Exclusion,
    Names,
    is_among,
)
from cellgan.composition.plan import (
    SCHEMA_VERSION,
    Corpus,
    PlannedPart,
    data_seed,
    digest,
    training_seed,
)
from cellgan.config.composition import Composition
from preprocessing.annotations import as_text

if TYPE_CHECKING:
    from preprocessing.composition.plan import Plan, Surveyed


def describe_plan(
    composition: Composition, plan: Plan, parameters: dict[str, Any]
) -> dict[str, Any]:
    """Return the manifest: the same for the same parameters and files anywhere.

    Parameters
    ----------
    parameters
        Of `data_parameters`: what of the composition decides the corpora.
    """
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
        "composition": parameters,
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
