"""How well batches mix, and clusters stay apart, after correction by CFGen and Harmony.

Run ``python benchmarks/batch_correction.py`` (about four minutes on two cores): half of
the embedded cells with a made-up batch effect. Or give a file and its obs column of
batches, and the steps of training. Clusters are found within each batch, without
knowing the other: a correction must keep them apart, in each batch by itself. CFGen is
conditioned on the batch alone.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path

import anndata
import harmonypy
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp

from cellgan.config.reading import parse_experiment
from cellgan.experiment import Experiment
from cellgan.start import load_tensorflow
from preprocessing.readers.open import open_raw_file, read_matrix

load_tensorflow()

from cellgan.actions.perform import perform
from cellgan.evaluation.metrics.integration import integration
from cellgan.models.base import SolverSettings
from cellgan.studies.correction import AFTER, BEFORE, correct_cells

EMBEDDED = "builtin:pbmc68k_reduced"
CLUSTERS = "cluster_within_batch"
N_COMPONENTS = 30


def main() -> None:
    """Print one line per embedding."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?")
    parser.add_argument("batch", nargs="?", default="batch")
    parser.add_argument("--label", help="known cell types, besides the clusters")
    parser.add_argument("--target", help="batch to move all cells to; else the largest")
    parser.add_argument("--autoencoder-steps", type=int, default=600)
    parser.add_argument("--flow-steps", type=int, default=5000)
    parser.add_argument("--guidance", type=float, default=1.0)
    options = parser.parse_args()
    logging.getLogger("harmonypy").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        run(options, Path(folder))


def run(options: argparse.Namespace, folder: Path) -> None:
    """Correct the batches in every way, and print how well."""
    batch = options.batch
    cells = (
        embedded_cells() if options.file is None else anndata.read_h5ad(options.file)
    )
    cells.obs[CLUSTERS] = clusters_within(cells, batch)
    raw = folder / "cells.h5ad"
    cells.write_h5ad(raw)
    started = time.perf_counter()
    experiment = train(raw, options, folder)
    trained = time.perf_counter() - started
    target = options.target or cells.obs[batch].value_counts().index[0]
    started = time.perf_counter()
    path = correct_cells(
        experiment,
        {batch: target},
        folder / "corrected.h5ad",
        seed=0,
        guidance={batch: options.guidance},
        solver=SolverSettings(),
    )
    corrected = anndata.read_h5ad(path)
    moved = time.perf_counter() - started
    processed = anndata.read_h5ad(experiment.processed_file)[corrected.obs_names]
    obs = processed.obs
    before = components(processed)
    started = time.perf_counter()
    embeddings = {
        "components, as they are": before,
        "components, Harmony": harmony(before, obs, batch),
        "components of CFGen's corrected counts": components(corrected),
        "latents, as they are": corrected.obsm[BEFORE],
        "latents, Harmony": harmony(corrected.obsm[BEFORE], obs, batch),
        "latents, CFGen": corrected.obsm[AFTER],
    }
    labels = [CLUSTERS, *([options.label] if options.label else [])]
    names = ["clusters", *labels[1:]]
    titles = [f"{name[:10]} {what}" for name in names for what in ("cLISI", "silh.")]
    print(f"{'':40}{'iLISI':>8}", *(f"{title:>19}" for title in titles))
    for name, points in embeddings.items():
        mixing = integration(points, text(obs, batch), text(obs, batch)).batch_mixing
        kept = [
            score for label in labels for score in within(points, obs, batch, label)
        ]
        print(f"{name:40}{mixing:8.3f}", *(f"{score:19.3f}" for score in kept))
    print(
        f"CFGen: {trained:.0f} s of training, {moved:.0f} s of correction, to {target}"
    )


def embedded_cells() -> anndata.AnnData:
    """Return the embedded cells, half of them with other shares of every gene."""
    with open_raw_file(EMBEDDED) as raw:
        counts = read_matrix(EMBEDDED, raw, "X", counts=True).toarray().astype(np.int64)
        var = raw.matrices["X"].var
    rng = np.random.default_rng(0)
    is_other = rng.random(len(counts)) < 0.5
    kept = np.exp(-rng.gamma(1.0, 0.7, counts.shape[1]))
    counts[is_other] = rng.binomial(counts[is_other], kept)
    obs = pd.DataFrame(
        {"batch": np.where(is_other, "altered", "original")}, index=raw.obs.index
    )
    return anndata.AnnData(sp.csr_matrix(counts, dtype=np.float32), obs, var)


def clusters_within(cells: anndata.AnnData, batch: str) -> pd.Series:
    """Return Leiden clusters of each batch, found without the others."""
    found = pd.Series("", index=cells.obs_names, dtype=object)
    for name, rows in cells.obs.groupby(batch, observed=True).groups.items():
        own = cells[rows].copy()
        own.obsm["X_pca"] = components(own)
        sc.pp.neighbors(own, random_state=0)
        sc.tl.leiden(own, resolution=0.5, flavor="igraph", n_iterations=2)
        found[rows] = [f"{name}:{cluster}" for cluster in own.obs["leiden"]]
    return found


def components(cells: anndata.AnnData) -> np.ndarray:
    """Return principal components of log-normalised counts."""
    own = anndata.AnnData(cells.X.copy(), obs=cells.obs.copy(), var=cells.var.copy())
    sc.pp.normalize_total(own, target_sum=1e4)
    sc.pp.log1p(own)
    sc.pp.highly_variable_genes(own, n_top_genes=min(2000, own.n_vars))
    sc.pp.pca(own, n_comps=N_COMPONENTS)
    return own.obsm["X_pca"]


def train(raw: Path, options: argparse.Namespace, folder: Path) -> Experiment:
    """Train CFGen, conditioned on the batch."""
    parameters = {
        "input_ds": {
            "raw_input": str(raw),
            "clustering": {"res": None, "key": CLUSTERS},
            "covariates": [options.batch],
            "filtering": {"min_cells": 3, "min_genes": 1},
            "split": {"valid_cells": 100, "test_cells": 0},
        },
        "model": {
            "type": "CFGen",
            "autoencoder": {"n_latent": 20, "dropout": 0.2},
            "flow": {"condition_on": [options.batch]},
        },
        "training": {
            "validation_freq": 0,
            "stages": {
                "autoencoder": {
                    "max_steps": options.autoencoder_steps,
                    "batch_size": 128,
                    "learning_rate": {"alpha_0": 3e-3},
                },
                "flow": {
                    "max_steps": options.flow_steps,
                    "learning_rate": {"alpha_0": 1e-3},
                },
            },
        },
    }
    experiment = Experiment(folder / "model", parse_experiment(parameters, "benchmark"))
    perform("process", experiment)
    perform("train", experiment)
    return experiment


def harmony(points: np.ndarray, obs: pd.DataFrame, batch: str) -> np.ndarray:
    """Return points as Harmony corrects them."""
    found = harmonypy.run_harmony(
        points.astype(np.float64), obs, [batch], verbose=False, random_state=0
    )
    return np.asarray(found.Z_corr)


def within(
    points: np.ndarray, obs: pd.DataFrame, batch: str, label: str
) -> tuple[float, float]:
    """Return how well labels stay apart, as means over batches."""
    batches, labels = text(obs, batch), text(obs, label)
    scores = []
    for name in np.unique(batches):
        rows = batches == name
        of = integration(points[rows], batches[rows], labels[rows])
        scores.append((of.label_separation, of.label_silhouette))
    separation, silhouette = np.nanmean(scores, axis=0)
    return float(separation), float(silhouette)


def text(obs: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column as text."""
    return obs[column].astype(str).to_numpy()


if __name__ == "__main__":
    main()
