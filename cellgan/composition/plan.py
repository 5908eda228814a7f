"""Which cells make which corpus: the plan of a composition study.

Pure arithmetic on names and row numbers. Orders come from the raw numbers of PCG64,
which NumPy keeps the same for ever, by a stable sort; so equal parameters and equal
files give equal plans, byte for byte, on any machine.

::

    <experiments_dir>/<study>/
      composition.json     the manifest: which cell is in which corpus, and why
      cells.csv.gz         the same, cell by cell
      experiments.json     one experiment for every mixture and seed
      evaluations/         <name>.h5ad: cells that models are judged on
      <mixture>-seed<n>/   an experiment like any other
      report/              tables, figures, report.html
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellgan.config.composition import (
    Budget,
    Composition,
    EvaluationSet,
    Mixture,
    Part,
    Stratify,
)
from cellgan.config.parameters import (
    ExperimentParameters,
    StageParameters,
    StudyParameters,
    as_json,
    parse_experiment,
    read_json,
)
from cellgan.errors import ConfigError, DataError
from cellgan.experiment import Experiment
from cellgan.seeds import derive_seed

SCHEMA_VERSION = 1
RAW_PREFIX = "composition:"
"""What ``input_ds.raw_input`` of a study's experiments begins with; the fingerprint of
their corpus follows."""
DATA_KEYS = (
    *("sources", "mixtures", "evaluations", "genes", "seeds", "seed_scope"),
    *("exclude", "label", "covariates", "valid_fraction", "scale"),
)
"""What of a composition decides the corpora."""
SOURCE = "source"

Rows = npt.NDArray[np.int64]
Names = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Study:
    """A composition study: its folder and its parameters."""

    folder: Path
    parameters: StudyParameters

    @property
    def name(self) -> str:
        """Name of the study, which is that of its folder."""
        return self.folder.name

    @property
    def composition(self) -> Composition:
        """Sources, mixtures and evaluations."""
        return self.parameters.composition

    @property
    def manifest_file(self) -> Path:
        """Which cell is in which corpus; written last."""
        return self.folder / "composition.json"

    @property
    def cells_file(self) -> Path:
        """The same, a row per cell."""
        return self.folder / "cells.csv.gz"

    @property
    def experiments_file(self) -> Path:
        """Parameter file of all experiments of the study."""
        return self.folder / "experiments.json"

    @property
    def report_folder(self) -> Path:
        """Tables, figures and the report."""
        return self.folder / "report"

    def evaluation_file(self, name: str) -> Path:
        """Cells of an evaluation set, with the genes of the study."""
        return self.folder / "evaluations" / f"{name}.h5ad"

    def experiment_name(self, mixture: str, seed: int) -> str:
        """Name of the experiment of a mixture and a seed."""
        return f"{mixture}-seed{seed}"

    def manifest(self) -> dict[str, Any]:
        """Read the manifest, and check that it is of these parameters.

        Raises
        ------
        DataError
            If the study is not processed.
        ConfigError
            If it was processed with other parameters.
        """
        if not self.manifest_file.exists():
            msg = f"{self.manifest_file}: no such file. Run --process first."
            raise DataError(msg)
        document = dict(read_json(self.manifest_file))
        if document.get("schema_version") != SCHEMA_VERSION:
            msg = f"{self.manifest_file}: of another version. Run --process again."
            raise DataError(msg)
        before, now = document["composition"], data_parameters(self.composition)
        differing = [key for key in DATA_KEYS if before[key] != now[key]]
        if differing:
            msg = (
                f"{self.name}: {', '.join(differing)} of the composition differ from "
                f"those in {self.manifest_file}. Run --process --overwrite, which "
                "replaces the corpora that change and keeps the others."
            )
            raise ConfigError(msg)
        return document

    def experiments(self, manifest: Mapping[str, Any]) -> dict[str, Experiment]:
        """Return the experiment of every mixture and seed, by name."""
        return {
            name: Experiment(
                self.folder / name,
                experiment_parameters(self.parameters, manifest, name),
            )
            for name in manifest["corpora"]
        }

    def experiments_document(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameter file of all experiments of the study."""
        return {
            "exp_param": {"experiments_dir": str(self.folder.absolute()), "GPU": []},
            "experiments": {
                name: experiment_block(self.parameters, manifest, name)
                for name in manifest["corpora"]
            },
        }


@dataclasses.dataclass(frozen=True)
class Eligible:
    """Cells of a file that met its filters; all arrays are of these cells."""

    rows: Rows
    """Their rows in the file, ascending."""
    ids: Names
    groups: Names | None
    strata: npt.NDArray[np.int64] | None
    """Code of each cell's stratum."""
    are_numbered: bool
    """Whether names in the file are mere row numbers."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, which: npt.NDArray[Any]) -> Eligible:
        """Return some of the cells: positions, or a mask."""
        return Eligible(
            self.rows[which],
            self.ids[which],
            None if self.groups is None else self.groups[which],
            None if self.strata is None else self.strata[which],
            self.are_numbered,
        )


@dataclasses.dataclass(frozen=True)
class PlannedPart:
    """The cells of one part of one corpus."""

    source: str
    slot: int
    train: Rows
    """Rows of the source's file, ascending."""
    valid: Rows

    def __len__(self) -> int:
        return len(self.train) + len(self.valid)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The training cells of one mixture and one seed."""

    mixture: str
    seed: int
    parts: tuple[PlannedPart, ...]

    @property
    def n_train(self) -> int:
        """Number of cells trained on."""
        return sum(len(part.train) for part in self.parts)


def seeded_order(n_cells: int, seed: int) -> Rows:
    """Return a permutation of 0 to n - 1: a stable sort of raw PCG64 numbers."""
    keys = np.random.PCG64(seed).random_raw(n_cells)
    return np.argsort(keys, kind="stable").astype(np.int64)


def slot_order(
    n_cells: int,
    seed: int,
    strata: npt.NDArray[np.int64] | None = None,
    stratify: Stratify | None = None,
) -> Rows:
    """Return the order that slots are consecutive blocks of.

    With strata, every block has them in proportion, or in equal numbers: each stratum's
    cells are spread evenly over the whole order, or come in turns.
    """
    order = seeded_order(n_cells, seed)
    if strata is None or stratify is None:
        return order
    of_place = strata[order]
    sizes = np.bincount(strata)
    rank = np.zeros(n_cells, np.int64)
    for stratum in range(len(sizes)):
        mine = of_place == stratum
        rank[mine] = np.arange(sizes[stratum])
    if stratify.how == "equal":
        return order[np.lexsort((of_place, rank))]
    # Places (2 rank + 1) / (2 size): floats that are rounded alike everywhere.
    place = (2 * rank + 1) / (2 * sizes[of_place])
    return order[np.lexsort((of_place, place))]


def part_sizes(
    mixtures: Mapping[str, Mixture],
    budgets: Mapping[str, int | None],
    available: Mapping[str, int],
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return how many cells each part takes, and how many a slot of each source has.

    Parameters
    ----------
    budgets
        Source -> cells of a slot; None for as many as the largest part asks for.
    available
        Source -> eligible cells.

    Raises
    ------
    ConfigError
        If a part asks for more than there are.
    """
    sizes = {
        name: _sizes_of(mixture, budgets, available)
        for name, mixture in mixtures.items()
    }
    widths = dict.fromkeys(budgets, 0)
    for name, mixture in mixtures.items():
        for part, size in zip(mixture.parts, sizes[name], strict=True):
            widths[part.source] = max(widths[part.source], size)
    widths = {name: budgets[name] or width for name, width in widths.items()}
    for name, mixture in mixtures.items():
        for number, (part, size) in enumerate(
            zip(mixture.parts, sizes[name], strict=True), 1
        ):
            where = f"mixtures.{name}, part {number}"
            _check_part(part, size, widths[part.source], available[part.source], where)
    return sizes, widths


def _check_part(part: Part, size: int, width: int, available: int, where: str) -> None:
    first, end = part.slot * width, part.slot * width + size
    if size > width:
        msg = (
            f'{where}: {size:,} cells of source "{part.source}", whose slots have '
            f"{width:,} (sources.{part.source}.cells). Ask for fewer, or raise that."
        )
        raise ConfigError(msg)
    if not size or end > available:
        before = f", after {first:,} of the slots before" if first else ""
        msg = (
            f'{where}: {size:,} cells of slot {part.slot} of source "{part.source}"'
            f"{before}, but {available:,} are available. Ask for fewer, or loosen its "
            "filters."
        )
        raise ConfigError(msg)


def _sizes_of(
    mixture: Mixture,
    budgets: Mapping[str, int | None],
    available: Mapping[str, int],
) -> tuple[int, ...]:
    if mixture.total_cells:
        weights = [Fraction(str(part.weight)) for part in mixture.parts]
        sizes = shares_of(mixture.total_cells, weights)
    else:
        sizes = tuple(
            _size_of(part, budgets[part.source], available[part.source])
            for part in mixture.parts
        )
    if mixture.size_match:
        return (min(sizes),) * len(sizes)
    return sizes


def _size_of(part: Part, budget: int | None, available: int) -> int:
    if part.fraction is not None:
        return int(Fraction(str(part.fraction)) * available)
    if isinstance(part.cells, int):
        return part.cells
    if budget is not None:
        return budget
    return available


def shares_of(total: int, weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Divide a number by weights: whole numbers that sum to it, by largest remainder.

    Of equal remainders the first is rounded up.
    """
    exact = [total * weight / sum(weights) for weight in weights]
    floors = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    for index in by_remainder[: total - sum(floors)]:
        floors[index] += 1
    return tuple(floors)


def hold_out(evaluation: EvaluationSet, name: str, cells: Eligible) -> Eligible:
    """Return the cells of an evaluation set among the eligible ones of its file.

    Raises
    ------
    ConfigError
        If a group is not there, or there are too few cells.
    """
    if evaluation.groups and cells.groups is not None:
        known = set(cells.groups.tolist())
        for group in evaluation.groups:
            if group not in known:
                msg = (
                    f'evaluations.{name}: source "{evaluation.source}" has no eligible '
                    f'cell of group "{group}". Groups: '
                    f"{', '.join(sorted(known)[:20])}."
                )
                raise ConfigError(msg)
        cells = cells.take(is_among(cells.groups, evaluation.groups))
    if evaluation.cells is None:
        if not len(cells):
            msg = f"evaluations.{name}: no cell meets the filters."
            raise ConfigError(msg)
        return cells
    if evaluation.cells > len(cells):
        msg = (
            f"evaluations.{name}: {evaluation.cells:,} cells, but {len(cells):,} are "
            "available. Ask for fewer, or leave the number out to take all."
        )
        raise ConfigError(msg)
    order = seeded_order(len(cells), derive_seed(0, "evaluation", name))
    return cells.take(np.sort(order[: evaluation.cells]))


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """What of a source is left when evaluation cells are taken out."""

    cells: Eligible
    removed: Mapping[str, Mapping[str, int]]
    """Evaluation -> ``held_out``, ``same_cell``, ``same_group``: cells that went."""


def exclude(
    source: str,
    cells: Eligible,
    evaluations: Mapping[str, tuple[str | None, Eligible]],
    how: str,
) -> Exclusion:
    """Take the cells of evaluation sets, and perhaps their groups, out of a source.

    Parameters
    ----------
    evaluations
        Name -> the source they are drawn from (None: another file), and the cells.
    how
        ``Composition.exclude``.

    Raises
    ------
    ConfigError
        If a cell or a group is in both and that is not to be mended, or names tell
        nothing.
    """
    gone = np.zeros(len(cells), bool)
    removed: dict[str, dict[str, int]] = {}
    for name, (origin, others) in evaluations.items():
        is_held_out = np.zeros(len(cells), bool)
        same_cell = np.zeros(len(cells), bool)
        if origin == source:
            is_held_out = np.isin(cells.rows, others.rows)
        elif cells.are_numbered or others.are_numbered:
            if how != "refuse":
                numbered = f'source "{source}"' if cells.are_numbered else name
                msg = (
                    f"evaluations.{name}: shared cells cannot be looked for: names of "
                    f"{numbered} are mere row numbers. Name a column of ids in "
                    "cell_column."
                )
                raise ConfigError(msg)
        else:
            same_cell = is_among(cells.ids, others.ids)
        same_group = np.zeros(len(cells), bool)
        if cells.groups is not None and others.groups is not None:
            same_group = is_among(cells.groups, others.groups) & ~is_held_out
        if how == "refuse":
            _refuse_shared(name, source, cells, same_cell, same_group)
        if how != "groups":
            same_group[:] = False
        same_group &= ~same_cell
        removed[name] = {
            "held_out": int(is_held_out.sum()),
            "same_cell": int(same_cell.sum()),
            "same_group": int(same_group.sum()),
        }
        gone |= is_held_out | same_cell | same_group
    return Exclusion(cells.take(~gone), removed)


def _refuse_shared(
    name: str,
    source: str,
    cells: Eligible,
    same_cell: npt.NDArray[np.bool_],
    same_group: npt.NDArray[np.bool_],
) -> None:
    if same_group.any() and cells.groups is not None:
        group = cells.groups[same_group][0]
        n_cells = int((cells.groups == group).sum())
        msg = (
            f'evaluations.{name}: "{group}" is also trained on: {n_cells:,} cells of '
            f'source "{source}". Set composition.exclude to "groups", which leaves '
            'them out, or to "cells", which lets groups be shared.'
        )
        raise ConfigError(msg)
    if same_cell.any():
        msg = (
            f"evaluations.{name}: {same_cell.sum():,} cells are also in source "
            f'"{source}" (the first is "{cells.ids[same_cell][0]}"). Set '
            'composition.exclude to "cells", which leaves them out.'
        )
        raise ConfigError(msg)


def is_among(names: Names, others: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Return which names are among others (by hash: ``np.isin`` sorts them)."""
    wanted = set(others)
    return np.fromiter((name in wanted for name in names), bool, len(names))


def plan_corpora(
    composition: Composition, cells: Mapping[str, Eligible]
) -> list[Corpus]:
    """Return the corpus of every mixture and seed.

    Parameters
    ----------
    cells
        Source -> cells that may be trained on.

    Raises
    ------
    ConfigError
        If a part asks for more cells than there are.
    """
    sizes, widths = part_sizes(
        composition.mixtures,
        {name: of.cells for name, of in composition.sources.items()},
        {name: len(of) for name, of in cells.items()},
    )
    valid = Fraction(str(composition.valid_fraction))
    corpora = []
    for seed in composition.seeds:
        drawn_by = data_seed(composition, seed)
        orders = {
            name: slot_order(
                len(of),
                derive_seed(drawn_by, "cells", name),
                of.strata,
                composition.sources[name].stratify,
            )
            for name, of in cells.items()
        }
        for name, mixture in composition.mixtures.items():
            parts = []
            for part, size in zip(mixture.parts, sizes[name], strict=True):
                first = part.slot * widths[part.source]
                chosen = orders[part.source][first : first + size]
                rows = cells[part.source].rows[chosen]
                n_valid = int(valid * size)
                parts.append(
                    PlannedPart(
                        part.source,
                        part.slot,
                        np.sort(rows[: size - n_valid]),
                        np.sort(rows[size - n_valid :]),
                    )
                )
            corpora.append(Corpus(name, seed, tuple(parts)))
    return corpora


def data_seed(composition: Composition, seed: int) -> int:
    """Return the seed that cells are drawn by."""
    return composition.seeds[0] if composition.seed_scope == "training" else seed


def training_seed(composition: Composition, seed: int) -> int:
    """Return the seed that models are trained by."""
    return composition.seeds[0] if composition.seed_scope == "data" else seed


def digest(*parts: Any) -> str:
    """Return the SHA-256 of arrays, texts and JSON values, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype != object:
            found.update(part.astype(part.dtype.newbyteorder("<")).tobytes())
        elif isinstance(part, np.ndarray):
            for text in part:
                found.update(str(text).encode() + b"\0")
        else:
            found.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return found.hexdigest()


def data_parameters(composition: Composition) -> dict[str, Any]:
    """Return what of a composition decides the corpora, as plain JSON values."""
    document = as_json(composition)
    return {key: document[key] for key in DATA_KEYS}


def training_steps(
    study: StudyParameters, budget: Budget, corpora: Mapping[str, Any], name: str
) -> dict[str, int]:
    """Return the steps of every stage that a budget gives the model of a corpus.

    Parameters
    ----------
    corpora
        ``corpora`` of the manifest.
    name
        Of the corpus.
    """
    corpus = corpora[name]
    if budget.epochs is not None:
        of = corpus
        if budget.equal:
            baseline = study.composition.baseline
            of = next(
                other
                for other in corpora.values()
                if (other["mixture"], other["seed"]) == (baseline, corpus["seed"])
            )
        n_cells = Fraction(str(budget.epochs)) * of["n_train"]
    else:
        n_cells = Fraction(budget.cells_seen or 0)
    steps = {}
    for stage in study.model.stages:
        batch_size = study.training.of_stage(stage).batch_size
        steps[stage] = budget.steps or max(1, math.ceil(n_cells / batch_size))
    return steps


def experiment_block(
    study: StudyParameters, manifest: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return the entry of an ordinary parameter file for one mixture and seed."""
    composition = study.composition
    corpus = manifest["corpora"][name]
    training = as_json(study.training)
    training["seed"] = training_seed(composition, corpus["seed"])
    stages = study.model.stages
    if composition.budget is not None:
        steps = training_steps(study, composition.budget, manifest["corpora"], name)
        training["max_steps"] = steps[stages[-1]]
        if training["stages"] or len(set(steps.values())) > 1:
            keys = [field.name for field in dataclasses.fields(StageParameters)]
            for stage in stages:
                of_stage = as_json(study.training.of_stage(stage))
                own = training["stages"].setdefault(
                    stage, {key: of_stage[key] for key in keys}
                )
                own["max_steps"] = steps[stage]
    return {
        "input_ds": {
            "raw_input": f"{RAW_PREFIX}{corpus['sha256']}",
            "clustering": {"res": None, "key": composition.label},
            "covariates": list(composition.covariates),
            "filtering": {"min_cells": 0, "min_genes": 0},
            "scale": composition.scale,
            "split": {"valid_cells": corpus["n_valid"], "test_cells": 0},
        },
        "model": as_json(study.model),
        "training": training,
        "generation": as_json(study.generation),
        "evaluation": as_json(study.evaluation),
    }


def experiment_parameters(
    study: StudyParameters, manifest: Mapping[str, Any], name: str
) -> ExperimentParameters:
    """Return the parameters of the experiment of one mixture and seed."""
    return parse_experiment(experiment_block(study, manifest, name), name)


def missing_genes(document: Mapping[str, Any], name: str) -> str:
    """Say how many genes an evaluation set lacks."""
    n_missing = document["evaluations"][name]["genes"]["missing"]
    return (
        f"{n_missing:,} of the {document['genes']['n']:,} genes are not in its file "
        "and count as zeros"
    )


def describe_filter(column: str, op: str, value: Any) -> str:
    """Return a filter as one reads it."""
    shown = "" if value is None else f" {json.dumps(value, ensure_ascii=False)}"
    return f"{column} {op}{shown}"
