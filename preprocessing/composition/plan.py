"""What a study is to be made of: files surveyed, corpora planned."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from natsort import natsorted

from cellgan.composition.eligible import (
    Eligible,
    Exclusion,
    Names,
    exclude,
    hold_out,
)
from cellgan.composition.plan import (
    SOURCE,
    Corpus,
    plan_corpora,
)
from cellgan.config.composition import Composition, VariableGenes
from cellgan.errors import DataError
from preprocessing.annotations import as_text
from preprocessing.composition.genes import (
    FEWEST_SHARED,
    GeneNames,
    dispersed_genes,
    gene_names,
    shared_genes,
)
from preprocessing.composition.sources import (
    FilterResult,
    SourceFile,
    are_numbers,
    filter_source,
    open_source,
)
from preprocessing.readers.rows import (
    dask_client,
)

log = logging.getLogger(__name__)


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
