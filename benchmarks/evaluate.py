"""How long a whole report takes, and in how much memory.

Run ``python benchmarks/evaluate.py`` (about five minutes on two cores). 5,000 generated
against 5,000 held-out cells x 2,000 genes, 10,000 training cells, 10 labels: every
metric with interval, ceiling and floors, memorisation, published variants, pictures and
files. The limits are 240 s and 4 GB. The peer of exact transport is POT's network
simplex on the same cells, the most costly part of published evaluations.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

for backend in ("TENSORFLOW", "PYTORCH", "JAX"):  # POT loads what it finds
    os.environ[f"POT_BACKEND_DISABLE_{backend}"] = "1"
import ot

from cellgan.evaluation.evaluate import evaluate_files

SECONDS, GIGABYTES = 240, 4.0
N_LABELS = 10


def main() -> None:
    """Time a report and print one line per part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--genes", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        real, generated = write_cells(Path(folder), options.cells, options.genes)
        started = time.perf_counter()
        document = evaluate_files(real, [generated], Path(folder) / "evaluation")
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    (entry,) = document.experiments.values()
    for part, spent in sorted(entry.run.seconds.items(), key=lambda x: -x[1]):
        print(f"{part:24}{spent:8.1f} s")
    print(f"{'whole report':24}{seconds:8.1f} s  {seconds / SECONDS:.2f} of the limit")
    print(f"{'peak memory':24}{peak:8.2f} GB {peak / GIGABYTES:.2f} of the limit")
    print_transport()


def write_cells(folder: Path, n_cells: int, n_genes: int) -> tuple[Path, Path]:
    """Write real cells with a split, and generated ones that are a little off."""
    rng = np.random.default_rng(0)
    base = rng.gamma(0.3, 1.0, size=(1, n_genes))
    programs = base * rng.lognormal(0.0, 0.6, size=(N_LABELS, n_genes))
    sizes = {"train": 2 * n_cells, "test": n_cells}
    split = np.repeat(list(sizes), list(sizes.values()))
    real = folder / "real.h5ad"
    draw_cells(programs, len(split), rng, split=split).write_h5ad(real)
    weaker = base * (programs / base) ** 0.8
    generated = folder / "generated.h5ad"
    draw_cells(weaker, n_cells, rng).write_h5ad(generated)
    return real, generated


def draw_cells(
    programs: np.ndarray,
    n_cells: int,
    rng: np.random.Generator,
    split: np.ndarray | None = None,
) -> anndata.AnnData:
    """Draw counts of cells whose label is one of the programs."""
    codes = rng.integers(N_LABELS, size=n_cells)
    depth = rng.lognormal(0.0, 0.4, size=(n_cells, 1))
    noise = rng.gamma(2.0, 0.5, size=(n_cells, len(programs[0])))
    counts = rng.poisson(programs[codes] * depth * noise).astype(np.float32)
    obs = pd.DataFrame({"cell_type": pd.Categorical([f"type {c}" for c in codes])})
    if split is not None:
        obs["split"] = pd.Categorical(split)
    obs.index = pd.Index([f"cell_{i}" for i in range(n_cells)])
    genes = pd.DataFrame(index=[f"gene_{i}" for i in range(counts.shape[1])])
    return anndata.AnnData(sp.csr_matrix(counts), obs, genes)


def print_transport(n_cells: int = 2000, n_repeats: int = 3) -> None:
    """Print exact transport by assignment and by POT, interleaved."""
    rng = np.random.default_rng(0)
    scale = np.linspace(5, 0.5, 50)
    first, second = (scale * rng.normal(size=(n_cells, 50)) for _ in range(2))
    cost = cdist(first, second, "sqeuclidean")
    ours, theirs = [], []
    for _ in range(n_repeats):
        started = time.perf_counter()
        rows, columns = linear_sum_assignment(cost)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        reached = ot.emd2([], [], cost, numItermax=10_000_000)
        theirs.append(time.perf_counter() - started)
    assert np.isclose(cost[rows, columns].mean(), reached)  # noqa: S101
    print(
        f"exact transport of {n_cells:,} cells: assignment {min(ours):.2f} s, POT "
        f"{min(theirs):.2f} s, ratio {min(theirs) / min(ours):.1f}"
    )


if __name__ == "__main__":
    main()
