"""How labels differ from the rest: fold changes and t statistics in every draw.

Convention: a label is compared with all other cells of its own side, on the variable
genes of the frame.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from cellgan.evaluation.comparison.pairs import Side
from cellgan.evaluation.comparison.space import Floats

FALSE_DISCOVERIES = 0.05
PSEUDO_VALUE = 1.0
"""Added to mean expression per 10,000 before ratios."""
SMALLEST_VARIANCE = 1e-12
"""Of a mean, in log expression squared; keeps t finite where cells are copies."""


class Effects(NamedTuple):
    """How each label differs from the rest, ``(n_labels, n_draws, n_genes)``.

    All nan for a label without cells.
    """

    t: Floats
    """Welch's t statistic of log expression."""
    log_fold_changes: Floats
    """log2 ratio of mean expression per 10,000, `PSEUDO_VALUE` added to both."""


def label_effects(side: Side, labels: list[str], multiplicity: Floats) -> Effects:
    """Compare each label with all other cells of its side, in every draw.

    Parameters
    ----------
    labels
        Labels to compare; others of the side are part of the rest only.
    multiplicity
        ``(n_draws, n_cells)``.

    Notes
    -----
    Fold changes are ratios of mean expression plus 1, as in Seurat's ``FoldChange`` up
    to version 4. Scanpy's ``rank_genes_groups`` takes ``expm1`` of mean log expression
    and adds 1e-9, which makes a gene unseen in a label a change of 20 or more: the
    slope between two parts of real PBMC was 0.63 then, and is 0.96. With the square
    root of every ratio of rates it is 0.49.
    """
    present, code = np.unique(side.labels, return_inverse=True)
    sums = {}
    for index, label in enumerate(present):
        rows = np.flatnonzero(code == index)
        values = side.genes[rows].astype(np.float64)
        sums[str(label)] = _label_sums(values, multiplicity[:, rows])
    everything = LabelSums(
        *(np.sum(x, axis=0) for x in zip(*sums.values(), strict=True))
    )
    nothing = LabelSums(*map(np.zeros_like, everything))
    groups = [sums.get(label, nothing) for label in labels]
    effects = [_compare(group, everything.less(group)) for group in groups]
    return Effects(*map(np.stack, zip(*effects, strict=True)))


def significant_genes(training: Side, labels: list[str]) -> npt.NDArray[np.bool_]:
    """Return which genes differ between label and rest, ``(n_labels, n_genes)``.

    Degrees of freedom are those of the smaller group, which is on the safe side.
    """
    effects = label_effects(training, labels, np.ones((1, len(training))))
    sizes = np.array([np.count_nonzero(training.labels == label) for label in labels])
    degrees = np.minimum(sizes, len(training) - sizes) - 1
    p_values = 2 * student.sf(np.abs(effects.t[:, 0]), degrees[:, None])
    adjusted: Floats = false_discovery_control(p_values, axis=1)
    return adjusted < FALSE_DISCOVERIES


class LabelSums(NamedTuple):
    """Sums over cells in every draw, ``(n_draws, n_genes)``."""

    n_cells: Floats
    """``(n_draws, 1)``."""
    log_values: Floats
    squares: Floats
    """Of log expression."""
    expression: Floats
    """Per 10,000."""

    def less(self, part: LabelSums) -> LabelSums:
        """Return the sums over all other cells."""
        return LabelSums(*(a - b for a, b in zip(self, part, strict=True)))

    def mean_and_its_variance(self) -> tuple[Floats, Floats]:
        """Return the mean log expression and the variance of that mean."""
        mean = self.log_values / self.n_cells
        spread = np.maximum(self.squares - mean * self.log_values, 0)
        return mean, spread / (self.n_cells - 1) / self.n_cells


def _label_sums(values: Floats, multiplicity: Floats) -> LabelSums:
    return LabelSums(
        multiplicity.sum(axis=1, keepdims=True),
        multiplicity @ values,
        multiplicity @ values**2,
        multiplicity @ np.expm1(values),
    )


def _compare(group: LabelSums, rest: LabelSums) -> tuple[Floats, Floats]:
    """Return Welch's t and log fold changes; nan where there are too few cells."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, variance = group.mean_and_its_variance()
        rest_mean, rest_variance = rest.mean_and_its_variance()
        of_difference = np.maximum(variance + rest_variance, SMALLEST_VARIANCE)
        t = (mean - rest_mean) / np.sqrt(of_difference)
        expression = group.expression / group.n_cells + PSEUDO_VALUE
        rest_expression = rest.expression / rest.n_cells + PSEUDO_VALUE
        return t, np.log2(expression / rest_expression)
