"""Real cells with exactly one thing wrong, and comparisons of them without files."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp

from cellgan.evaluation.comparison.draws import draw_cells
from cellgan.evaluation.comparison.sides import Comparison, ModalityValues
from tests.synthetic import SyntheticCells


def as_it_is(cells: SyntheticCells) -> SyntheticCells:
    return cells


def without_a_label(cells: SyntheticCells) -> SyntheticCells:
    """Drop the label that comes second by size."""
    names, counts = np.unique(cells.labels, return_counts=True)
    rows = np.flatnonzero(cells.labels != names[np.argsort(counts)[-2]])
    return SyntheticCells(cells.counts[rows], cells.labels[rows])


def with_half_the_library_size(cells: SyntheticCells) -> SyntheticCells:
    """Keep every molecule with a probability of one half."""
    rng = np.random.default_rng(1)
    counts = cells.counts.copy()
    counts.data = rng.binomial(counts.data.astype(int), 0.5).astype(np.float32)
    counts.eliminate_zeros()
    return SyntheticCells(counts, cells.labels)


def with_genes_permuted_within_labels(cells: SyntheticCells) -> SyntheticCells:
    rng = np.random.default_rng(2)
    counts = cells.counts.toarray()
    for label in np.unique(cells.labels):
        rows = np.flatnonzero(cells.labels == label)
        counts[rows] = rng.permuted(counts[rows], axis=0)
    return SyntheticCells(sp.csr_matrix(counts), cells.labels)


def with_half_the_fold_changes(cells: SyntheticCells) -> SyntheticCells:
    """Bring every label half-way, in logarithms, to the mean of all cells."""
    rng = np.random.default_rng(3)
    counts = cells.counts.toarray()
    overall = counts.mean(axis=0)
    for label in np.unique(cells.labels):
        rows = cells.labels == label
        mean = counts[rows].mean(axis=0)
        factors = np.sqrt(np.where(mean > 0, overall / np.maximum(mean, 1e-9), 1.0))
        moved = counts[rows] * np.minimum(factors, 20.0)
        counts[rows] = np.floor(moved + rng.random(moved.shape))
    return SyntheticCells(sp.csr_matrix(counts, dtype=np.float32), cells.labels)


def with_a_fifth_of_noise(cells: SyntheticCells) -> SyntheticCells:
    """Shuffle the genes of every fifth cell."""
    rng = np.random.default_rng(4)
    counts = cells.counts.toarray()
    rows = rng.permutation(len(counts))[: len(counts) // 5]
    counts[rows] = rng.permuted(counts[rows], axis=1)
    return SyntheticCells(sp.csr_matrix(counts), cells.labels)


def poisson_by_label(training: SyntheticCells, cells: SyntheticCells) -> SyntheticCells:
    """Draw every gene of a cell from a Poisson distribution with its label's mean."""
    rng = np.random.default_rng(5)
    counts = np.empty(cells.counts.shape, dtype=np.float32)
    for label in np.unique(cells.labels):
        rows = np.flatnonzero(training.labels == label)
        mean = np.asarray(training.counts[rows].mean(axis=0)).ravel()
        drawn = cells.labels == label
        counts[drawn] = rng.poisson(mean, size=(drawn.sum(), len(mean)))
    return SyntheticCells(sp.csr_matrix(counts), cells.labels)


DEFECTS: dict[str, Callable[[SyntheticCells], SyntheticCells]] = {
    "missing_label": without_a_label,
    "library_size": with_half_the_library_size,
    "dependence": with_genes_permuted_within_labels,
    "weak_effects": with_half_the_fold_changes,
    "noise_cells": with_a_fifth_of_noise,
}


def comparison(
    training: SyntheticCells,
    held_out: SyntheticCells,
    generated: SyntheticCells,
    *,
    are_counts: bool = True,
    seed: int = 0,
) -> Comparison:
    """Compare cells in memory as if they had been read from files."""
    drawn = draw_cells(
        held_out.labels,
        generated.labels,
        training.labels,
        asked=None,
        most_cells=5000,
        most_training=10_000,
        seed=seed,
    )
    sides = {
        "training": (training, drawn.training),
        "control": (training, drawn.control),
        "held_out": (held_out, drawn.held_out),
        "generated": (generated, drawn.generated),
    }
    names = tuple(f"gene_{gene}" for gene in range(training.counts.shape[1]))
    values = {
        side: sp.csr_array(cells.counts[rows]) for side, (cells, rows) in sides.items()
    }
    return Comparison(
        modalities={"rna": ModalityValues(names, values, are_counts)},
        labels={side: cells.labels[rows] for side, (cells, rows) in sides.items()},
        label="cell_type",
        covariates={},
        label_states=drawn.labels,
        split="test",
        knows_training=True,
        held_out_by=None,
        donors=None,
        n_in_files={
            "held_out": len(held_out.labels),
            "training": len(training.labels),
            "generated": len(generated.labels),
        },
        warnings=(),
        dropped=(),
        scale="both sides are counts",
        origin={},
    )
