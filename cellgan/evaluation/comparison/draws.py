"""Which cells are compared: equal numbers of every label from each side, seeded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from cellgan.evaluation.comparison.space import Labels, Rows
from cellgan.seeds import derive_seed

LabelState = Literal["compared", "too few", "missing", "not asked for"]

FEWEST_PER_LABEL = 20
"""A label with fewer cells a side has no numbers of its own."""


@dataclasses.dataclass(frozen=True)
class DrawnLabel:
    """Cells of a label a side, and what became of it."""

    n: int
    state: LabelState


@dataclasses.dataclass(frozen=True)
class DrawnCells:
    """Rows of each side, ascending and without repeats."""

    held_out: Rows
    generated: Rows
    control: Rows
    """Training cells that stand in for a perfect generator: as many of each label as
    `held_out`."""
    training: Rows
    """All other training cells, or as many as are wanted."""
    labels: Mapping[str, DrawnLabel]
    """Of the held-out cells."""


def draw_cells(
    held_out: Labels,
    generated: Labels,
    training: Labels,
    *,
    asked: Sequence[str] | None,
    most_cells: int,
    most_training: int,
    seed: int,
) -> DrawnCells:
    """Draw the cells of a comparison.

    A label's number is that of the side with fewest (half of the training cells count
    as one side), so what numbers were asked of the generator has no effect. Labels
    that were never generated stay among the real cells, so that their lack is seen;
    generated cells of other labels make up the number. When all together are more than
    `most_cells`, every number is reduced in proportion.

    Parameters
    ----------
    held_out, generated, training
        Label of every cell of each side.
    asked
        Labels that cells were asked for, where that is known: others are left out.
    """
    numbers, labels = _numbers(held_out, generated, training, asked, most_cells)
    sides = {"held_out": held_out, "generated": generated, "control": training}
    drawn = {}
    for name, of_side in sides.items():
        rng = np.random.default_rng(derive_seed(seed, "draw cells", name))
        rows = [
            rng.choice(np.flatnonzero(of_side == label), n, replace=False)
            for label, n in numbers.items()
            if name != "generated" or labels[label].state != "missing"
        ]
        drawn[name] = np.concatenate([np.empty(0, np.intp), *rows])
    n_more = len(drawn["held_out"]) - len(drawn["generated"])
    rng = np.random.default_rng(derive_seed(seed, "draw more"))
    present = np.flatnonzero(np.isin(generated, list(numbers)))
    left = np.setdiff1d(present, drawn["generated"])
    more = rng.permutation(left)[:n_more]
    drawn["generated"] = np.concatenate([drawn["generated"], more])
    others = np.flatnonzero(np.isin(training, list(numbers)))
    others = np.setdiff1d(others, drawn["control"])
    rng = np.random.default_rng(derive_seed(seed, "draw training"))
    drawn["training"] = rng.permutation(others)[:most_training]
    ordered = {name: np.sort(rows) for name, rows in drawn.items()}
    return DrawnCells(**ordered, labels=labels)


def _numbers(
    held_out: Labels,
    generated: Labels,
    training: Labels,
    asked: Sequence[str] | None,
    most_cells: int,
) -> tuple[dict[str, int], dict[str, DrawnLabel]]:
    """Return cells to draw per label, and what becomes of every label."""
    counts = [_count(side) for side in (held_out, generated, training)]
    numbers: dict[str, int] = {}
    states: dict[str, LabelState] = {}
    for label, n_real in counts[0].items():
        n_made, n_trained = (count.get(label, 0) for count in counts[1:])
        if asked is not None and label not in asked:
            states[label] = "not asked for"
            continue
        states[label] = "compared" if n_made else "missing"
        numbers[label] = min(n_real, n_made or n_real, n_trained // 2)
    share = min(1.0, most_cells / max(1, sum(numbers.values())))
    numbers = {label: round(share * n) for label, n in numbers.items()}
    for label, n in numbers.items():
        if states[label] == "compared" and n < FEWEST_PER_LABEL:
            states[label] = "too few"
    return numbers, {
        label: DrawnLabel(numbers.get(label, 0), state)
        for label, state in states.items()
    }


def _count(labels: Labels) -> dict[str, int]:
    names, counts = np.unique(labels, return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))
