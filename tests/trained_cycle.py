"""A small cycle autoencoder, trained on two clusters in two batches."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import pandas as pd

from cellgan.cli import main
from cellgan.experiment import Experiment
from tests.synthetic import make_batches


def train_cycle(folder: Path, max_steps: int) -> Experiment:
    """Process cells and train; ``parameters.json`` is beside the experiments."""
    cells, batches = make_batches()
    obs = pd.DataFrame({"cell_type": cells.labels, "batch": batches})
    obs.index = pd.Index([f"cell_{row}" for row in range(len(obs))])
    raw = anndata.AnnData(cells.counts, obs=obs)
    raw.var_names = [f"gene_{column}" for column in range(raw.n_vars)]
    raw.write_h5ad(folder / "raw.h5ad")
    experiment = {
        "input_ds": {
            "raw_input": str(folder / "raw.h5ad"),
            "clustering": {"key": "cell_type"},
            "covariates": ["batch"],
            "scale": "normalize_per_cell_LS_1000",
            "split": {"test_cells": 80, "valid_cells": 20},
        },
        "training": {
            "max_steps": max_steps,
            "batch_size": 64,
            "progress_freq": 0,
            "validation_freq": max_steps,
            "summary_freq": max_steps,
            "save_freq": 0,
            "jit": False,
        },
        "model": {"type": "cycleAE", "n_latent": 8, "classifier_width": 16},
    }
    document = {
        "exp_param": {"experiments_dir": str(folder / "experiments"), "GPU": []},
        "experiments": {"cycle": experiment},
    }
    path = folder / "parameters.json"
    path.write_text(json.dumps(document))
    assert main(["--param", str(path), "--process", "--train"]) == 0
    return Experiment.open(folder / "experiments" / "cycle")
