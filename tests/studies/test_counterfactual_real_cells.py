"""Control cells edited to stimulated ones, where one cell type was never seen so."""

from __future__ import annotations

import json

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from cellgan.cli import main
from cellgan.evaluation.metrics.counterfactual import EDITED, SHIFTED, UNEDITED

TYPES = {
    "CD4 T cells": "T",
    "CD8 T cells": "T",
    "NK cells": "NK",
    "CD14+ Monocytes": "CD14",
    "B cells": "B",
}
HELD_OUT = "CD14"


def typed_cells(path) -> anndata.AnnData:
    """Return cells with a type each: stimulated ones have hardly any in the file.

    A classifier of control cells gives it, by genes that stimulation does not move.
    """
    cells = anndata.read_h5ad(path)
    values = cells.X.toarray()
    values = np.log1p(1000 * values / values.sum(axis=1, keepdims=True))
    state = cells.obs["condition"].astype(str).to_numpy()
    moved = np.abs(
        values[state == "stim"].mean(axis=0) - values[state == "ctrl"].mean(axis=0)
    )
    still = values[:, (moved < 0.05) & ((values > 0).mean(axis=0) > 0.02)]
    for name in ("ctrl", "stim"):
        still[state == name] -= still[state == name].mean(axis=0)
    points = PCA(30, random_state=0).fit_transform(still)
    known = cells.obs["cell_type"].astype(str).map(TYPES)
    taught = (state == "ctrl") & known.notna().to_numpy()
    model = LogisticRegression(max_iter=2000, C=0.1).fit(points[taught], known[taught])
    cells.obs["type"] = pd.Categorical(
        known.fillna(pd.Series(model.predict(points), index=known.index))
    )
    is_held_out = (cells.obs["type"] == HELD_OUT) & (state == "stim")
    cells.obs["is_held_out"] = np.where(is_held_out, "yes", "no")
    return cells


@pytest.mark.slow
@pytest.mark.realdata
def test_control_cells_are_edited_towards_stimulated_ones(data_dir, tmp_path):
    """Monocytes that were never seen stimulated gain the response, and lose their type.

    The shift of means does better: Misc/parameters/README.md has the numbers.
    """
    cells = typed_cells(data_dir / "kang_ifnb_pbmc_2k_raw.h5ad")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    block = {
        "input_ds": {
            "raw_input": str(tmp_path / "cells.h5ad"),
            "clustering": {"key": "type"},
            "covariates": ["condition"],
            "filtering": {"min_cells": 150, "min_genes": 10},
            "scale": "normalize_per_cell_LS_1000",
            "split": {
                "valid_cells": 0,
                "test_cells": 200,
                "by": "is_held_out",
                "test_values": ["yes"],
            },
        },
        "model": {"type": "cycleAE", "n_latent": 16, "classifier_width": 32},
        "training": {
            "max_steps": 3000,
            "progress_freq": 500,
            "validation_freq": 0,
            "summary_freq": 0,
        },
    }
    document = {
        "exp_param": {"experiments_dir": str(tmp_path), "GPU": []},
        "experiments": {"kang": block},
    }
    param = tmp_path / "parameters.json"
    param.write_text(json.dumps(document))
    assert main(["--param", str(param), "--process", "--train"]) == 0
    # stimulated cells of the type were never seen: its control cells, to be edited
    control = cells[
        (cells.obs["type"] == HELD_OUT) & (cells.obs["condition"] == "ctrl")
    ]
    control.write_h5ad(tmp_path / "control.h5ad")
    path = tmp_path / "edited.h5ad"
    code = main(
        [
            *("--param", str(param), "--counterfactual", "condition=stim"),
            *("--input", str(tmp_path / "control.h5ad"), "--save_path", str(path)),
        ]
    )
    assert code == 0
    edited = anndata.read_h5ad(path)
    before = np.log1p(1000 * control[:, "ISG15"].X.toarray() / control.X.sum(axis=1))
    assert edited[:, "ISG15"].X.mean() > 2 * np.asarray(before).mean()
    scores = json.loads(edited.uns["cellgan"]["scores"])
    assert scores[EDITED]["agreement"] > 0.9
    assert scores[UNEDITED]["agreement"] < 0.05
    # towards the real response, but not as well as by the difference of the means
    assert scores[EDITED]["shift_correlation"] > 0.1
    assert scores[EDITED]["shift_correlation"] < scores[SHIFTED]["shift_correlation"]
