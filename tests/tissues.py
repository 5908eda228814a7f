"""Tissues of three gene programs, with numbers that the original has reached on them.

A tissue is a base level per gene and three programs; a cell has one of the programs.
Draws are those of the reference, in its order, so the same seeds give the same cells.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

N_GENES = 200
TISSUES = {"A": 1, "B": 2, "C": 3}
# scvi-tools' LinearSCVI, 60 epochs: median over cells of the squared correlation on
# all genes, mean of two seeds, by training cells and tissue of the evaluation.
REFERENCE_R2 = {
    "A": {"A": 0.355, "B": 0.0015, "C": 0.003},
    "A+A": {"A": 0.405, "B": 0.002, "C": 0.0025},
    "A+B": {"A": 0.615, "B": 0.525, "C": 0.0035},
    "B": {"A": 0.0015, "B": 0.215, "C": 0.004},
}
# Negative ELBO of the training cells after 60 epochs.
REFERENCE_ELBO = {"A": 616.5, "A+A": 579.0, "A+B": 491.5, "B": 478.5}


def draw_tissue(tissue: str, n_cells: int, seed: int) -> np.ndarray:
    """Draw counts ``(n_cells, n_genes)`` of a tissue."""
    of_tissue = np.random.default_rng(TISSUES[tissue])
    base = of_tissue.normal(0, 1, N_GENES)
    programs = of_tissue.normal(size=(3, N_GENES))
    programs *= (of_tissue.random((3, N_GENES)) < 0.3) * 2
    rng = np.random.default_rng(seed)
    logits = base + programs[rng.integers(0, 3, n_cells)]
    logits += rng.normal(0, 0.3, logits.shape)
    rates = np.exp(logits - logits.max(axis=1, keepdims=True))
    rates /= rates.sum(axis=1, keepdims=True)
    depth = rng.lognormal(7.6, 0.3, (n_cells, 1))
    noise = rng.gamma(5, 1 / 5, logits.shape)
    return rng.poisson(rates * depth * noise).astype(np.float32)


def write_tissue(path: Path, tissue: str, n_cells: int, seed: int) -> str:
    """Write a file of cells, named after it; return its path."""
    names = [f"{path.stem}_{number}" for number in range(n_cells)]
    ad.AnnData(
        sp.csr_matrix(draw_tissue(tissue, n_cells, seed)),
        obs=pd.DataFrame(index=names),
        var=pd.DataFrame(index=[f"gene_{number:03d}" for number in range(N_GENES)]),
    ).write_h5ad(path)
    return str(path)
