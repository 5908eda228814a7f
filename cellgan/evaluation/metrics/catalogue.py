"""What a metric is: the record that stands beside every number of a report."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

Floor = Literal["independent", "permuted", "label_means"]
"""Cells that keep only part of the truth.

- ``"independent"``: every gene drawn from a negative binomial of its own, fitted per
  label.
- ``"permuted"``: every gene's values permuted across all cells, whatever their label.
- ``"label_means"``: every cell is the mean of its label.
"""
FLOORS: tuple[Floor, ...] = get_args(Floor)
Defect = Literal[
    "missing_label", "library_size", "dependence", "weak_effects", "noise_cells"
]
"""What can be wrong with generated cells.

- ``"missing_label"``: a label of the real cells was never made.
- ``"library_size"``: totals of cells are wrong.
- ``"dependence"``: genes (within a label) vary independently of each other.
- ``"weak_effects"``: differences between labels are smaller than they are.
- ``"noise_cells"``: some cells are nowhere near any real one.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of the report, what it means and what it can see."""

    name: str
    """Lower case with underscores; its name in every file."""
    title: str
    """For tables, with the best value: ``"precision (1 is best)"``."""
    meaning: str
    """What it is and every setting it depends on, in one sentence without a full
    stop."""
    space: str
    """Where it is computed: ``"components"``, ``"variable genes"``, ``"counts"``,
    ``"library sizes"``, ..."""
    floor: Floor | None
    """The floor that lacks what the metric looks for. It scores 0, but for metrics that
    see dependence: these are scored from the independent floor where they tell it from
    real cells."""
    sees: frozenset[Defect]
    """The defects that move it."""
    needs_labels: bool = False
    """Undefined where cells have no labels."""
    needs_counts: bool = False
    """Undefined where generated cells are not counts."""
    per_label: bool = True
    """Whether it is also computed within each label."""
    more_is_better: bool = False
    """Known to be: there is no score where real cells are not above the floor, as it
    would rise while the value falls."""
