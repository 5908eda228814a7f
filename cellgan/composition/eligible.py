"""Cells that may be trained on, and what evaluation sets take out of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cellgan.errors import ConfigError
from cellgan.seeds import derive_seed

if TYPE_CHECKING:
    from cellgan.config.composition import (
        EvaluationSet,
    )

Rows = npt.NDArray[np.int64]


Names = npt.NDArray[Any]


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


def seeded_order(n_cells: int, seed: int) -> Rows:
    """Return a permutation of 0 to n - 1: a stable sort of raw PCG64 numbers."""
    keys = np.random.PCG64(seed).random_raw(n_cells)
    return np.argsort(keys, kind="stable").astype(np.int64)


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
