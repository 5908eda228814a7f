"""Cells of a pair of categories that was never seen together, by a latent family.

The control and stimulated blood cells of Kang et al. (2018), of which one cell type is
taken out of the stimulated ones: a model is trained on the rest, asked for the missing
pair, and its cells are judged by the real ones that were kept away::

    python benchmarks/unseen_pair.py data/kang_ifnb_pbmc_2k_raw.h5ad cfDiffusion

Stimulated cells of the file have hardly any labels. They get those of a logistic
regression of the labelled control cells, on genes standardised within each condition;
its accuracy on the stimulated cells that have a label is printed.

Two classifiers, of type and of condition, trained on all real cells, say whether a
generated cell is of the type and of the condition asked for. Beside it stand the same
numbers of the real cells of the pair (five-fold, so not of cells they were trained on),
and the correlation of mean log-expression with the real pair: of generated cells, of
real control cells of the type, and of these moved by the mean shift of other types.

Takes about 20 minutes on two cores. Without the file it does nothing.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scanpy as sc
import scipy.sparse as sp
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cellgan.config.reading import parse_experiment
from cellgan.experiment import Experiment
from cellgan.start import load_tensorflow

load_tensorflow()

from cellgan.actions.perform import perform
from cellgan.generation.trained_model import TrainedModel

TYPE, CONDITION, UNKNOWN = "cell_type", "condition", "unknown"
CONTROL, STIMULATED = "ctrl", "stim"
STAGES: dict[str, dict[str, Any]] = {
    "cfDiffusion": {"diffusion": {"max_steps": 10_000}},
    "CFGen": {
        "flow": {
            "max_steps": 10_000,
            "learning_rate": {"decay": True, "alpha_0": 1e-3, "alpha_final": 1e-4},
        }
    },
}
AUTOENCODER_STEPS = {
    "max_steps": 800,
    "batch_size": 128,
    "learning_rate": {"decay": True, "alpha_0": 3e-3, "alpha_final": 3e-4},
}
FAMILIES = tuple(STAGES)


def main() -> None:
    """Train, generate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = os.environ.get("CELLGAN_DATA_DIR", "data")
    default = Path(folder) / "kang_ifnb_pbmc_2k_raw.h5ad"
    parser.add_argument("file", type=Path, nargs="?", default=default)
    parser.add_argument("family", nargs="?", default=FAMILIES[0], choices=FAMILIES)
    parser.add_argument("--held-out", default="CD14+ Monocytes", metavar="TYPE")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 2.0])
    parser.add_argument("--keep", type=Path, help="folder of the experiment")
    options = parser.parse_args()
    if not options.file.is_file():
        print(f"{options.file}: no such file, so nothing is compared")
        return
    cells = labelled_cells(options.file)
    is_pair = np.asarray(
        (cells.obs[TYPE] == options.held_out) & (cells.obs[CONDITION] == STIMULATED)
    )
    print(f"held out: {is_pair.sum()} stimulated cells of type {options.held_out}")
    with tempfile.TemporaryDirectory() as temporary:
        place = options.keep or Path(temporary)
        experiment = train(cells[~is_pair].copy(), place, options.family)
        judge(cells, is_pair, experiment, options.held_out, options.guidance)


def labelled_cells(path: Path) -> ad.AnnData:
    """Read the file, and give every cell a type."""
    cells = ad.read_h5ad(path)
    cells.obs = cells.obs[[TYPE, CONDITION]].astype(str)
    condition = cells.obs[CONDITION].to_numpy()
    is_known = (cells.obs[TYPE] != UNKNOWN).to_numpy()
    values = log_expression(cells.X)
    n_cells = cells.X.getnnz(axis=0)
    genes = np.argsort(-n_cells)[:2000]
    standardized = np.empty((cells.n_obs, len(genes)))
    for name in (CONTROL, STIMULATED):
        rows = condition == name
        standardized[rows] = StandardScaler().fit_transform(values[rows][:, genes])
    labels = cells.obs[TYPE].to_numpy().copy()
    taught = is_known & (condition == CONTROL)
    teacher = LogisticRegression(C=1e-3, max_iter=500)
    teacher.fit(standardized[taught], labels[taught])
    checked = is_known & (condition == STIMULATED)
    accuracy = np.mean(teacher.predict(standardized[checked]) == labels[checked])
    print(
        f"labels of stimulated cells: right for {accuracy:.2f} of the "
        f"{checked.sum()} that have one"
    )
    labels[~is_known] = teacher.predict(standardized[~is_known])
    cells.obs[TYPE] = labels
    # Types of a handful of cells have nothing to judge.
    numbers = cells.obs[TYPE].value_counts()
    return cells[cells.obs[TYPE].isin(numbers.index[numbers >= 40])].copy()


def log_expression(counts: Any) -> np.ndarray:
    """Return dense log expression per 10,000."""
    cells = ad.AnnData(sp.csr_matrix(counts, dtype=np.float32, copy=True))
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    dense: np.ndarray = cells.X.toarray()
    return dense


def train(cells: ad.AnnData, folder: Path, family: str) -> Experiment:
    """Process the cells and train on them, or go on where a folder stands."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / "seen.h5ad"
    if not raw.exists():
        cells.write_h5ad(raw)
    block = {
        "input_ds": {
            "raw_input": str(raw),
            "clustering": {"res": None, "key": TYPE},
            "covariates": [CONDITION],
            "filtering": {"min_cells": 10, "min_genes": 10},
            "split": {"valid_cells": 150, "test_cells": 0},
        },
        "model": {
            "type": family,
            "autoencoder": {"n_latent": 20, "dropout": 0.2},
        },
        "training": {
            "validation_freq": 1000,
            "progress_freq": 500,
            "stages": {"autoencoder": AUTOENCODER_STEPS, **STAGES[family]},
        },
    }
    experiment = Experiment(folder / family, parse_experiment(block, "benchmark"))
    if not experiment.manifest_file.exists():
        perform("process", experiment)
    perform("train", experiment)
    return experiment


def judge(
    cells: ad.AnnData,
    is_pair: np.ndarray,
    experiment: Experiment,
    held_out: str,
    scales: list[float],
) -> None:
    """Print agreement with both conditions, and correlations of mean expression."""
    trained = TrainedModel.load(experiment.folder)
    cells = cells[:, list(trained.genes)]
    values = log_expression(cells.X)
    types, conditions = (cells.obs[name].to_numpy() for name in (TYPE, CONDITION))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=500))
    folds = {
        name: cross_val_predict(model, values, of)[is_pair]
        for name, of in ((TYPE, types), (CONDITION, conditions))
    }
    judges = {
        name: make_pipeline(
            StandardScaler(), LogisticRegression(C=1e-3, max_iter=500)
        ).fit(values, of)
        for name, of in ((TYPE, types), (CONDITION, conditions))
    }
    asked = {TYPE: held_out, CONDITION: STIMULATED}
    target = values[is_pair].mean(axis=0)
    is_control = conditions == CONTROL
    source = values[is_control & (types == held_out)].mean(axis=0)
    shifts = [
        values[~is_control & (types == name)].mean(axis=0)
        - values[is_control & (types == name)].mean(axis=0)
        for name in set(types) - {held_out}
    ]
    shifted = np.maximum(source + np.mean(shifts, axis=0), 0)

    def line(name: str, agreement: dict[str, float], mean: np.ndarray) -> None:
        of_all = np.corrcoef(mean, target)[0, 1]
        of_shift = np.corrcoef(mean - source, target - source)[0, 1]
        shares = " ".join(f"{agreement.get(key, np.nan):10.2f}" for key in asked)
        print(f"{name:26} {shares} {of_all:13.3f} {of_shift:13.3f}")

    print(f"\n{'':26} {TYPE:>10} {CONDITION:>10} {'means':>13} {'response':>13}")
    line(
        "real cells of the pair",
        {name: float(np.mean(folds[name] == of)) for name, of in asked.items()},
        target,
    )
    with np.errstate(invalid="ignore"):
        line("control cells", {}, source)
    line("control + mean shift", {}, shifted)
    with tempfile.TemporaryDirectory() as folder:
        for scale in scales:
            path = Path(folder) / "cells.h5ad"
            trained.write(
                path,
                cells_no=int(is_pair.sum()),
                condition=asked,
                guidance=dict.fromkeys(asked, scale),
                seed=0,
            )
            made = log_expression(ad.read_h5ad(path).X)
            line(
                f"{experiment.parameters.model.type}, guidance {scale:g}",
                {
                    name: float(np.mean(judges[name].predict(made) == of))
                    for name, of in asked.items()
                },
                made.mean(axis=0),
            )


if __name__ == "__main__":
    main()
