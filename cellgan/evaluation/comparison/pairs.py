"""Two sides that are compared, and what every comparison of a report shares.

A metric is computed for several pairs: held-out real cells against generated ones
(the value), against real training cells (the ceiling), and against cells that keep only
part of the truth (the floors). Every pair has the same held-out cells, the same number
of cells, and the same `Frame`, which only real cells have a part in.

Intervals come from the bootstrap of cells. A resample is a row of multiplicities, so a
metric is computed for all of them at once: means are ``draws @ values``. Row 0 is all
ones: the cells as they are. A metric returns one number per row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.evaluation.comparison.space import (
    Floats,
    Labels,
    Matrix,
    Rows,
    Space,
    log_expression,
)
from cellgan.seeds import derive_seed

Estimates = Mapping[str, Floats]
"""Metric -> one number per draw ``(n_draws,)``, the first being its value; nan where
undefined."""


@dataclasses.dataclass(frozen=True)
class Side:
    """Cells of one side, in every form that metrics look at."""

    values: sp.csr_array
    """``(n_cells, n_genes)``: counts, or expression when `Frame.are_counts` is false;
    the same kind and scale on both sides."""
    log_values: sp.csr_array
    """log1p of values per `cellgan.evaluation.comparison.space.LIBRARY_SIZE`."""
    genes: npt.NDArray[np.float32]
    """Log expression of the variable genes, dense ``(n_cells, n_variable)``, in the
    order of `Frame.space`."""
    components: npt.NDArray[np.float32]
    """``(n_cells, n_components)``."""
    labels: Labels
    """Label of every cell; all ``""`` when cells are not labelled."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> Side:
        """Return the cells of these rows."""
        return Side(
            values=self.values[rows],
            log_values=self.log_values[rows],
            genes=self.genes[rows],
            components=self.components[rows],
            labels=self.labels[rows],
        )


@dataclasses.dataclass(frozen=True)
class Frame:
    """What all comparisons of a report share: fixed by real cells alone."""

    training: Side
    """Real training cells that the space was learned from; none of them is on either
    side of a pair."""
    space: Space
    gene_names: tuple[str, ...]
    bandwidths: tuple[float, ...]
    """Of the kernel: multiples of the median distance of held-out cells."""
    are_counts: bool
    """Whether `Side.values` are integer counts, with library sizes that mean
    something."""
    seed: int


@dataclasses.dataclass(frozen=True)
class Resamples:
    """Multiplicities of cells in the bootstrap; row 0 is all ones."""

    real: Floats
    """``(n_draws, n_real)``."""
    other: Floats
    """``(n_draws, n_other)``."""

    def __len__(self) -> int:
        return len(self.real)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Held-out real cells and those they are compared with."""

    real: Side
    other: Side
    frame: Frame
    draws: Resamples

    def of_label(self, label: str, n_resamples: int) -> Pair:
        """Return the pair of one label's cells."""
        real, other = (
            side.take(np.flatnonzero(side.labels == label))
            for side in (self.real, self.other)
        )
        return make_pair(real, other, self.frame, n_resamples)


def make_pair(real: Side, other: Side, frame: Frame, n_resamples: int) -> Pair:
    """Return a pair with its bootstrap resamples, drawn within labels.

    Parameters
    ----------
    n_resamples
        Resamples beside the cells as they are; 0 for a value without interval.
    """
    draws = Resamples(
        *(
            multiplicities(
                side.labels, n_resamples, derive_seed(frame.seed, "bootstrap", name)
            )
            for name, side in (("real", real), ("other", other))
        )
    )
    return Pair(real, other, frame, draws)


def multiplicities(labels: Labels, n_resamples: int, seed: int) -> Floats:
    """Return how often each cell is in each resample, ``(1 + n_resamples, n_cells)``.

    Resamples are drawn with replacement within each label. Row 0 is all ones.
    """
    rng = np.random.default_rng(seed)
    drawn = np.ones((1 + n_resamples, len(labels)))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        shares = np.full(len(rows), 1 / len(rows))
        drawn[1:, rows] = rng.multinomial(len(rows), shares, size=n_resamples)
    return drawn


def weighted_means(multiplicity: Floats, values: npt.ArrayLike) -> Floats:
    """Return the mean of per-cell values in every resample, ``(n_draws, ...)``.

    Parameters
    ----------
    multiplicity
        ``(n_draws, n_cells)``.
    values
        ``(n_cells,)`` or ``(n_cells, n_features)``, dense or sparse.
    """
    totals = multiplicity.sum(axis=1)
    features: Any = values if sp.issparse(values) else np.asarray(values, np.float64)
    sums = multiplicity @ features
    means: Floats = sums / (totals[:, None] if np.ndim(sums) == 2 else totals)
    return means


def make_side(values: Matrix, labels: Labels, space: Space) -> Side:
    """Return cells in every form that metrics look at.

    Parameters
    ----------
    values
        Counts, or expression, ``(n_cells, n_genes)``.
    labels
        ``(n_cells,)``; all ``""`` when cells are not labelled.
    """
    log_values = log_expression(values)
    return Side(
        values=sp.csr_array(values, dtype=np.float32),
        log_values=log_values,
        genes=space.variable_genes(log_values),
        components=space.components(log_values),
        labels=np.asarray(labels, dtype=np.str_),
    )


def concatenate_sides(first: Side, second: Side) -> Side:
    """Return the cells of both sides, those of `first` before those of `second`."""
    return Side(
        values=sp.vstack([first.values, second.values], format="csr"),
        log_values=sp.vstack([first.log_values, second.log_values], format="csr"),
        genes=np.concatenate([first.genes, second.genes]),
        components=np.concatenate([first.components, second.components]),
        labels=np.concatenate([first.labels, second.labels]),
    )
