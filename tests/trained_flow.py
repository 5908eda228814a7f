"""A small CFGen, trained on two clusters in two batches until it is of some use."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import pandas as pd

from cellgan.cli import main
from cellgan.experiment import Experiment
from tests.synthetic import make_batches


def train_flow(folder: Path) -> Experiment:
    """Process cells and train; ``parameters.json`` is beside the experiments."""
    cells, batches = make_batches()
    obs = pd.DataFrame({"cell_type": cells.labels, "batch": batches})
    obs.index = pd.Index([f"cell_{row}" for row in range(len(obs))])
    raw = anndata.AnnData(cells.counts, obs=obs)
    raw.var_names = [f"gene_{column}" for column in range(raw.n_vars)]
    raw.write_h5ad(folder / "raw.h5ad")
    rate = {"decay": False, "alpha_0": 5e-3}
    experiment = {
        "input_ds": {
            "raw_input": str(folder / "raw.h5ad"),
            "clustering": {"key": "cell_type"},
            "covariates": ["batch"],
            "scale": "normalize_per_cell_LS_1000",
            "split": {"test_cells": 60, "valid_cells": 0},
        },
        "training": {
            "batch_size": 64,
            "learning_rate": rate,
            "progress_freq": 100,
            "summary_freq": 0,
            "save_freq": 0,
            "stages": {"autoencoder": {"max_steps": 200}, "flow": {"max_steps": 600}},
        },
        "model": {
            "type": "CFGen",
            "autoencoder": {"n_latent": 6, "rna_layers": [32]},
            "flow": {"width": 32, "embedding_width": 16, "time_frequency": 30.0},
        },
    }
    document = {
        "exp_param": {"experiments_dir": str(folder / "experiments"), "GPU": []},
        "experiments": {"batches": experiment},
    }
    path = folder / "parameters.json"
    path.write_text(json.dumps(document))
    assert main(["--param", str(path), "--process", "--train"]) == 0
    return Experiment.open(folder / "experiments" / "batches")
