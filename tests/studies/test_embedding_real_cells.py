"""Embeddings of real blood cells: latents that know types, and cells given back."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import pytest
from sklearn.linear_model import LogisticRegression

from cellgan.cli import main

PRESET = Path(__file__).parents[2] / "Misc" / "parameters" / "LDVAE_labels.json"
N_STEPS = 250


@pytest.mark.slow
@pytest.mark.realdata
def test_held_out_cells_come_back_as_others_do_and_keep_their_type(data_dir, tmp_path):
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
    split = embedded.obs["split"].to_numpy()
    is_known, is_new = split == "train", split == "test"
    r2 = embedded.obs["reconstruction_r2"].to_numpy()
    assert r2[is_new].mean() > 0.25
    assert r2[is_new].mean() > r2[is_known].mean() - 0.03
    types = embedded.obs["cell_type"].astype(str).to_numpy()
    latents = embedded.obsm["X_ldvae"]
    model = LogisticRegression(max_iter=2000).fit(latents[is_known], types[is_known])
    assert model.score(latents[is_new], types[is_new]) > 0.65
