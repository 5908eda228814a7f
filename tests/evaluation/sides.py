"""Synthetic cells in the form that metrics take.

One population stands for the truth: three cell types with marker genes, library sizes
that vary, and groups of genes that vary together within a type.
"""

from __future__ import annotations

import functools

import numpy as np
import scipy.sparse as sp

from cellgan.evaluation.comparison.pairs import Frame, Side, make_side
from cellgan.evaluation.comparison.space import fit_space, log_expression
from tests.synthetic import SyntheticCells

N_TRAINING = 600
N_GENES = 60
TYPES = ("type A", "type B", "type C")
SHARES = (0.2, 0.3, 0.5)


@functools.cache
def population(n_cells: int = 3000, seed: int = 100) -> SyntheticCells:
    """Draw all cells there are; none is drawn twice by `training` and `draw_side`."""
    rng = np.random.default_rng(seed)
    codes = rng.choice(len(TYPES), size=n_cells, p=SHARES)
    rates = np.tile(rng.gamma(2.0, 1.0, size=N_GENES), (len(TYPES), 1))
    for code in range(len(TYPES)):
        rates[code, 10 * code : 10 * (code + 1)] += 8.0
    together = rng.gamma(4.0, 1 / 4.0, size=(n_cells, 6)).repeat(N_GENES // 6, axis=1)
    together = together[:, rng.permutation(N_GENES)]
    depth = rng.lognormal(0.0, 0.3, size=(n_cells, 1))
    counts = rng.poisson(rates[codes] * together * depth).astype(np.float32)
    return SyntheticCells(sp.csr_matrix(counts), np.array(TYPES)[codes])


def make_frame(seed: int = 0) -> Frame:
    """Learn the frame of a report from the first cells of the population."""
    cells = population()
    counts = cells.counts[:N_TRAINING]
    space = fit_space(log_expression(counts), seed=seed, n_components=10)
    return Frame(
        training=make_side(counts, cells.labels[:N_TRAINING], space),
        space=space,
        gene_names=tuple(f"gene_{gene}" for gene in range(N_GENES)),
        bandwidths=(1.0, 2.0, 4.0, 8.0),
        are_counts=True,
        seed=seed,
    )


def draw_cells(seed: int, n_cells: int = 300) -> SyntheticCells:
    """Draw cells of the population that the frame has not seen."""
    cells = population()
    rng = np.random.default_rng(seed)
    rows = N_TRAINING + rng.choice(
        len(cells.labels) - N_TRAINING, n_cells, replace=False
    )
    return SyntheticCells(cells.counts[rows], cells.labels[rows])


def draw_side(frame: Frame, seed: int, n_cells: int = 300) -> Side:
    """Draw real cells in the form of a side."""
    cells = draw_cells(seed, n_cells)
    return make_side(cells.counts, cells.labels, frame.space)
