"""Embeddings of real blood cells: latents that know types, and cells given back."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from cellgan.cli import main
from cellgan.evaluation.reconstruction import accuracy_of_counts, accuracy_summary

PRESET = Path(__file__).parents[1] / "Misc" / "parameters" / "LDVAE_labels.json"
N_STEPS = 250


@pytest.mark.slow
@pytest.mark.realdata
def test_held_out_cells_come_back_better_than_the_mean_and_keep_their_type(
    data_dir, tmp_path
):
    document = json.loads(PRESET.read_text())
    document["exp_param"] = {"experiments_dir": str(tmp_path), "GPU": []}
    block = document["experiments"]["pbmc3k_ldvae"]
    block["input_ds"]["raw_input"] = str(data_dir / "pbmc3k_raw.h5ad")
    block["training"] |= {"max_steps": N_STEPS, "validation_freq": 0}
    path = tmp_path / "parameters.json"
    path.write_text(json.dumps(document))

    assert main(["--param", str(path), "--process", "--train", "--embed"]) == 0

    folder = tmp_path / "pbmc3k_ldvae"
    embedded = anndata.read_h5ad(folder / "embedding" / "cells.h5ad")
    counts = anndata.read_h5ad(folder / "processed.h5ad").X
    split = embedded.obs["split"].to_numpy()
    is_known, is_new = split == "train", split == "test"
    mean = counts[is_known].sum(axis=0)
    mean = np.repeat(np.asarray(mean / mean.sum()), int(is_new.sum()), axis=0)
    of_mean = accuracy_summary(accuracy_of_counts(counts[is_new], mean)).mean_r2
    r2 = embedded.obs["reconstruction_r2"].to_numpy()[is_new].mean()
    assert r2 > of_mean + 0.05
    types = embedded.obs["cell_type"].astype(str).to_numpy()
    latents = embedded.obsm["X_ldvae"]
    model = LogisticRegression(max_iter=2000).fit(latents[is_known], types[is_known])
    assert model.score(latents[is_new], types[is_new]) > 0.8
