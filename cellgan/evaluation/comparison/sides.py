"""Real and generated cells of one comparison: chosen, read, brought to one scale."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellgan.errors import ConfigError, DataError, did_you_mean
from cellgan.evaluation.comparison.cell_files import (
    CellFile,
    FeatureMatrix,
    check_values,
    open_cells,
)
from cellgan.evaluation.comparison.draws import DrawnCells, DrawnLabel, draw_cells
from cellgan.evaluation.comparison.space import LIBRARY_SIZE, Labels, Rows, scale_cells
from cellgan.seeds import derive_seed

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

FEWEST_CELLS = 10
"""Fewer cells than this on either side are not worth a comparison."""
MOST_CELLS = 5000
"""Cells of each side that are compared, unless told otherwise."""
MOST_TRAINING_CELLS = 10_000
"""Training cells that space and label classifier are learned from, at most."""
MOST_NAMED = 5
"""Labels that a sentence names."""
LABEL_COLUMNS = (
    "cell_type",
    "celltype",
    "label",
    "labels",
    "cluster",
    "louvain",
    "leiden",
)
"""obs columns that are taken for the label, in this order, where none is named."""
BY_CHANCE = "a third of the file"
"""What cells are held out where a file does not say which were."""
SIDES = ("training", "control", "held_out", "generated")


@dataclasses.dataclass(frozen=True)
class ModalityValues:
    """Values of all sides in one modality: the same features, the same scale."""

    names: tuple[str, ...]
    values: Mapping[str, sp.csr_array]
    """Side -> ``(n_cells, n_features)``: counts, or expression at one library size."""
    are_counts: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything a report compares, and where it is from."""

    modalities: Mapping[str, ModalityValues]
    labels: Mapping[str, Labels]
    """Side -> label of every cell; all ``""`` when generated ones have none."""
    label: str | None
    """The obs column compared; None without labels."""
    covariates: Mapping[str, Mapping[str, Labels]]
    """Further obs columns that both files have -> side -> category of every cell."""
    label_states: Mapping[str, DrawnLabel]
    """What became of the labels of held-out cells; empty without labels."""
    split: str
    """What the held-out cells are: "test", "valid" or `BY_CHANCE`."""
    knows_training: bool
    """Whether the training cells are those that the model has seen."""
    held_out_by: str | None
    """obs column whose categories were held out as a whole."""
    donors: Mapping[str, Labels] | None
    """Side -> category of `held_out_by`, of the real sides."""
    n_in_files: Mapping[str, int]
    """``"held_out"``, ``"training"``, ``"generated"`` -> cells there are in the files,
    of which those compared were drawn."""
    warnings: tuple[str, ...]
    """What is probably a mistake, in sentences."""
    dropped: tuple[str, ...]
    """What was left out, in sentences."""
    scale: str
    """How both sides were brought to one scale, in a sentence."""
    origin: Mapping[str, Any]
    """What the generated file says of itself."""

    def n_cells(self, side: str) -> int:
        """Return the cells of a side."""
        return len(self.labels[side])


@dataclasses.dataclass(frozen=True)
class RealFile:
    """Which rows of an open file of real cells were trained on, and which held out."""

    file: CellFile
    training: Rows
    held_out: Rows
    split: str
    knows_training: bool
    advice: str
    """How there can be more held-out cells."""


def compare_experiment(
    experiment: Experiment, path: Path, *, most_cells: int = MOST_CELLS, seed: int = 0
) -> Comparison:
    """Read held-out and training cells of an experiment, and generated ones.

    Parameters
    ----------
    experiment
        A processed experiment; its model is not needed.
    path
        File of the generated cells.

    Raises
    ------
    DataError
        If a file is missing or unreadable, there are too few cells to compare, or the
        files have no gene or no label in common.
    """
    manifest = experiment.manifest()
    if not path.exists():
        msg = f"{path}: no such file of generated cells. Run --generate first."
        raise DataError(msg)
    if not experiment.processed_file.exists():
        msg = f"{experiment.processed_file}: no such file. Run --process first."
        raise DataError(msg)
    by = experiment.parameters.input_ds.split.by
    with open_cells(experiment.processed_file) as real, open_cells(path) as made:
        cells = _by_split(real)
        if cells is None:
            msg = (
                f"{experiment.processed_file}: no held-out cells: the test and valid "
                f"splits are empty.\n    Set input_ds.split.test_cells (or "
                f"valid_cells) and run --process again."
            )
            raise DataError(msg)
        label = manifest.label if manifest.label in made.obs else None
        others = [name for name in manifest.covariates if name != manifest.label]
        return _compare(
            cells,
            made,
            label=label,
            covariates=[name for name in others if name in made.obs],
            held_out_by=by if by in real.obs else None,
            most_cells=most_cells,
            seed=seed,
        )


def compare_files(
    real: Path,
    generated: Path,
    *,
    label: str | None = None,
    must_know_training: bool = False,
    most_cells: int = MOST_CELLS,
    seed: int = 0,
) -> Comparison:
    """Read real cells and generated ones from files that any tool made.

    Parameters
    ----------
    real
        ``.h5ad`` or ``.h5mu`` file. An obs column ``"split"`` with the values train
        and test (or valid) says which cells the model has seen; without one, a random
        third is held out.
    generated
        File of the generated cells.
    label
        obs column of both files to compare by; by default the first of
        `LABEL_COLUMNS` that both have.
    must_know_training
        Refuse a real file that does not say which cells the model has seen.

    Raises
    ------
    ConfigError
        If `label` is no obs column of both files, or training cells must be known and
        are not.
    DataError
        As `compare_experiment`.
    """
    with (
        open_cells(real, option="--real") as of_real,
        open_cells(generated, option="--generated") as made,
    ):
        cells = _by_split(of_real)
        if cells is None and must_know_training:
            raise ConfigError(_unknown_training(of_real))
        cells = cells or _by_chance(of_real, seed)
        return _compare(
            cells,
            made,
            label=_label_column(label, of_real, made),
            covariates=[],
            held_out_by=None,
            most_cells=most_cells,
            seed=seed,
        )


def cell_labels(obs: pd.DataFrame, label: str | None) -> Labels:
    """Return every cell's label as text; ``""`` for all when `label` is None."""
    if label is None:
        return np.full(len(obs), "", dtype=np.str_)
    return np.asarray(obs[label].astype(str), dtype=np.str_)


def held_out_split(obs: pd.DataFrame) -> str | None:
    """Return the split that cells are tested on: test, else valid, else None."""
    present = set(obs["split"].astype(str)) if "split" in obs else set()
    return next((split for split in ("test", "valid") if split in present), None)


def _by_split(real: CellFile) -> RealFile | None:
    split = held_out_split(real.obs)
    if split is None:
        return None
    of_cell = real.obs["split"].astype(str).to_numpy()
    training, held_out = (np.flatnonzero(of_cell == name) for name in ("train", split))
    return RealFile(
        real,
        training,
        held_out,
        split,
        knows_training=True,
        advice="hold out more (test_cells, valid_cells; in files made elsewhere, obs "
        'column "split")',
    )


def _unknown_training(real: CellFile) -> str:
    """Say why leaks cannot be looked for, and what is needed."""
    found = 'it has no obs column "split"'
    if "split" in real.obs:
        values = _some(np.unique(real.obs["split"].astype(str)))
        found = f'its obs column "split" holds {values}, but neither test nor valid'
    return (
        f"--fail-on-leak: {real.path} does not say which cells were trained on: "
        f'{found}.\n    Add an obs column "split" with the value train for cells that '
        f"the model has seen and test for those that it has not, or leave "
        f"--fail-on-leak out."
    )


def _some(names: Sequence[str] | np.ndarray) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - MOST_NAMED
    named = ", ".join(str(name) for name in names[:MOST_NAMED])
    return f"{named}, ... ({more} more)" if more > 0 else named


def _by_chance(real: CellFile, seed: int) -> RealFile:
    order = np.random.default_rng(derive_seed(seed, "held out")).permutation(len(real))
    third = len(real) // 3  # as many as there are of controls, half of the rest
    return RealFile(
        real,
        np.sort(order[third:]),
        np.sort(order[:third]),
        BY_CHANCE,
        knows_training=False,
        advice='give more real cells, or say which were held out (obs column "split")',
    )


def _label_column(label: str | None, real: CellFile, made: CellFile) -> str | None:
    if label is None:
        shared = [name for name in LABEL_COLUMNS if name in real.obs]
        return next((name for name in shared if name in made.obs), None)
    for file in (real, made):
        if label not in file.obs:
            msg = (
                f'--label: {file.path} has no obs column "{label}".'
                f"{did_you_mean(label, file.obs.columns)}\n"
                f"    Columns: {', '.join(file.obs.columns) or 'none'}."
            )
            raise ConfigError(msg)
    return label


def _compare(
    real: RealFile,
    made: CellFile,
    *,
    label: str | None,
    covariates: Sequence[str],
    held_out_by: str | None,
    most_cells: int,
    seed: int,
) -> Comparison:
    check_values(real.file, "real")
    check_values(made, "generated")
    of_real, of_made = (cell_labels(file.obs, label) for file in (real.file, made))
    drawn = draw_cells(
        of_real[real.held_out],
        of_made,
        of_real[real.training],
        asked=_asked(made, label),
        most_cells=most_cells,
        most_training=MOST_TRAINING_CELLS,
        seed=seed,
    )
    _check_labels(real.file, made, label, of_real, of_made, drawn)
    rows = {
        "training": real.training[drawn.training],
        "control": real.training[drawn.control],
        "held_out": real.held_out[drawn.held_out],
        "generated": drawn.generated,
    }
    _check_numbers(real, made, rows)
    modalities, dropped = _read_modalities(real.file, made, rows)
    strangers = np.setdiff1d(of_made, list(drawn.labels))
    if len(strangers):
        n_cells = int(np.isin(of_made, strangers).sum())
        dropped.append(
            f"{len(strangers)} labels of {made.path.name} ({_some(strangers)}) are not "
            f"among the held-out cells, and their {n_cells:,} cells were left out"
        )
    columns = {
        name: (cell_labels(real.file.obs, name), cell_labels(made.obs, name))
        for name in covariates
    }
    donors = None
    if held_out_by is not None:
        of_cell = cell_labels(real.file.obs, held_out_by)
        donors = {side: of_cell[rows[side]] for side in SIDES[:3]}
    return Comparison(
        modalities=modalities,
        labels=_of_sides(of_real, of_made, rows),
        label=label,
        covariates={name: _of_sides(*both, rows) for name, both in columns.items()},
        label_states=drawn.labels if label is not None else {},
        split=real.split,
        knows_training=real.knows_training,
        held_out_by=held_out_by,
        donors=donors,
        n_in_files={
            "held_out": len(real.held_out),
            "training": len(real.training),
            "generated": len(made),
        },
        warnings=_unmatched_labels(label, drawn, strangers),
        dropped=tuple(dropped),
        scale=_scale_sentence(modalities, made),
        origin=_origin(made),
    )


def _of_sides(
    of_real: Labels, of_made: Labels, rows: Mapping[str, Rows]
) -> dict[str, Labels]:
    return {
        side: (of_made if side == "generated" else of_real)[rows[side]]
        for side in SIDES
    }


def _asked(made: CellFile, label: str | None) -> list[str] | None:
    """Return the labels that cells were asked for, if the file says so."""
    numbers = made.provenance.get("cells_no")
    if label is None or numbers is None or not hasattr(made.obs[label], "cat"):
        return None
    categories = made.obs[label].cat.categories.astype(str)
    if len(numbers) != len(categories):
        return None
    return [name for name, n in zip(categories, numbers, strict=True) if n > 0]


def _unmatched_labels(
    label: str | None, drawn: DrawnCells, strangers: Labels
) -> tuple[str, ...]:
    """Warn of labels of one side alone: they may be one label, spelled twice."""
    lacking = [name for name, of in drawn.labels.items() if of.state == "missing"]
    if label is None or not lacking or not len(strangers):
        return ()
    pairs = {name: did_you_mean(name, lacking) for name in strangers.tolist()}
    said = [f'"{name}"{pair}' for name, pair in pairs.items()]
    return (
        f'Labels ("{label}") are not spelled alike: generated cells have '
        f"{_some(said)}, which no held-out cell has; held-out cells have "
        f"{_some([_quoted(name) for name in lacking])}, which no generated cell has. "
        f"These cells are not compared with each other: if labels are the same, rename "
        f"them in one of the files.",
    )


def _quoted(name: str) -> str:
    return f'"{name}"'


def _check_labels(
    real: CellFile,
    made: CellFile,
    label: str | None,
    of_real: Labels,
    of_made: Labels,
    drawn: DrawnCells,
) -> None:
    """Refuse files whose labels have nothing in common."""
    if label is None or any(name in drawn.labels for name in np.unique(of_made)):
        return
    ours, theirs = (_some(np.unique(names)) for names in (of_real, of_made))
    msg = (
        f'{made.path}: none of its values of "{label}" ({theirs}) is among those of '
        f"{real.path.name} ({ours}).\n    Name labels alike in both files, or leave "
        f"the column out of the generated one."
    )
    raise DataError(msg)


def _check_numbers(real: RealFile, made: CellFile, rows: Mapping[str, Rows]) -> None:
    short = [side for side in SIDES if len(rows[side]) < FEWEST_CELLS]
    if not short:
        return
    numbers = ", ".join(f"{len(rows[side])} {side.replace('_', '-')}" for side in SIDES)
    msg = (
        f"{made.path}: too few cells to compare with {real.file.path.name}: of the "
        f"labels in both there are {numbers}; {FEWEST_CELLS} of each are needed.\n"
        f"    Generate more cells, or {real.advice}."
    )
    raise DataError(msg)


def _read_modalities(
    real: CellFile, made: CellFile, rows: Mapping[str, Rows]
) -> tuple[dict[str, ModalityValues], list[str]]:
    shared = [name for name in real.modalities if name in made.modalities]
    if not shared:
        msg = (
            f"{made.path}: its modalities ({', '.join(made.modalities)}) are not those "
            f"of {real.path} ({', '.join(real.modalities)})."
        )
        raise DataError(msg)
    modalities, dropped = {}, []
    for name in shared:
        ours, theirs = real.modalities[name], made.modalities[name]
        for matrix in (ours, theirs):
            _refuse_logarithms(matrix)
        names, said = _shared_names(ours, theirs)
        dropped += said
        values = {
            side: _columns(theirs if side == "generated" else ours, rows[side], names)
            for side in SIDES
        }
        dropped += _empty_cells(values, theirs.file)
        are_counts = ours.kind == theirs.kind == "counts"
        if not are_counts:
            size = _median_total(values["held_out"])
            values = {side: scale_cells(of, size) for side, of in values.items()}
        modalities[name] = ModalityValues(tuple(names), values, are_counts)
    return modalities, dropped


def _refuse_logarithms(matrix: FeatureMatrix) -> None:
    if matrix.kind != "logarithms":
        return
    msg = (
        f"{matrix.file}: {matrix.place} holds values that look like logarithms: not "
        f"integers, none large.\n    Put counts, or expression without logarithm, into "
        f'X or layers["counts"] (numpy.expm1 undoes scanpy.pp.log1p).'
    )
    raise DataError(msg)


def _shared_names(
    ours: FeatureMatrix, theirs: FeatureMatrix
) -> tuple[pd.Index, list[str]]:
    """Return the features both have, in the real ones' order, and what is dropped."""
    names = ours.names[ours.names.isin(theirs.names)]
    if len(names) < 2:
        msg = (
            f"{theirs.file}: {len(names)} of its {len(theirs.names)} genes are among "
            f'the {len(ours.names)} of {ours.file}: its first is "{theirs.names[0]}", '
            f'there it is "{ours.names[0]}".\n'
            f"    Generated and real cells must name genes alike."
        )
        raise DataError(msg)
    dropped = [
        f"{len(matrix.names) - len(names):,} of {len(matrix.names):,} genes of "
        f"{matrix.file.name} are not in {other.file.name} and were left out"
        for matrix, other in ((ours, theirs), (theirs, ours))
        if len(matrix.names) > len(names)
    ]
    return names, dropped


def _columns(matrix: FeatureMatrix, rows: Rows, names: pd.Index) -> sp.csr_array:
    values = matrix.read(rows)
    if not matrix.names.equals(names):
        values = values[:, matrix.names.get_indexer(names)]
    return sp.csr_array(values, dtype=np.float32)


def _empty_cells(values: Mapping[str, sp.csr_array], path: Path) -> list[str]:
    """Refuse a generated side without any value; tell of cells without one."""
    n_values = np.diff(values["generated"].indptr)
    n_empty = int((n_values == 0).sum())
    if n_empty == len(n_values):
        msg = f"{path}: all {n_empty} cells are zero in every gene. Generate again."
        raise DataError(msg)
    if not n_empty:
        return []
    return [f"{n_empty} generated cells are zero in every gene; they are compared"]


def _median_total(values: sp.csr_array) -> float:
    return float(np.median(np.asarray(values.sum(axis=1, dtype=np.float64))))


def _scale_sentence(modalities: Mapping[str, ModalityValues], made: CellFile) -> str:
    per = f"log values: log1p of values per {LIBRARY_SIZE:,.0f} in every cell"
    if all(modality.are_counts for modality in modalities.values()):
        return f"both sides are counts; {per}"
    said = made.provenance.get("scale")
    theirs = f" ({said})" if said else ""
    return (
        f"generated cells are not counts{theirs}: both sides were scaled to the median "
        f"library size of the held-out cells, so library sizes are not judged; {per}"
    )


def _origin(made: CellFile) -> dict[str, Any]:
    """Return where generated cells come from, as far as their file says."""
    keys = ("model_type", "step", "seed", "scale", "cells_no", "request")
    said = {key: made.provenance[key] for key in keys if key in made.provenance}
    if "cells_no" in said:
        said["cells_no"] = np.ravel(said["cells_no"]).tolist()
    return {"file": made.path.name, **said}
