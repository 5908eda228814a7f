"""RNA and ATAC of the same real cells, from file to report."""

from __future__ import annotations

import json
from pathlib import Path

import mudata
import numpy as np
import pytest

from cellgan.cli import main
from cellgan.experiment import Experiment

N_GENES = 1185
FEW_STEPS = {"max_steps": 20, "batch_size": 64}


@pytest.fixture(scope="module")
def experiment(data_dir, tmp_path_factory) -> Experiment:
    """Experiment that has seen the four verbs, hardly trained, and a correction."""
    folder = tmp_path_factory.mktemp("multiome")
    blocks = {
        "input_ds": {
            "raw_input": str(data_dir / "a549_scicar_multiome_raw.h5mu"),
            "clustering": {"key": "time"},
            "atac": {"min_cells": 100, "values": "binary"},
            "split": {"test_cells": 200, "valid_cells": 100},
        },
        "model": {
            "type": "CFGen",
            "autoencoder": {
                "n_latent": 8,
                "rna_layers": [32],
                "atac_layers": [32],
            },
        },
        "training": {
            "validation_freq": 0,
            "summary_freq": 0,
            "stages": {"autoencoder": FEW_STEPS, "flow": FEW_STEPS},
        },
        "generation": {"cells_no": {"0h": 100, "1h": 100, "3h": 100}},
    }
    document = {
        "exp_param": {"experiments_dir": str(folder), "GPU": []},
        "experiments": {"a549": blocks},
    }
    file = folder / "parameters.json"
    file.write_text(json.dumps(document))
    verbs = ["--process", "--train", "--generate", "--evaluate"]
    assert main(["--param", str(file), *verbs]) == 0
    assert main(["--param", str(file), "--correct", "time=0h"]) == 0
    return Experiment.open(folder / "a549")


def read(path: Path) -> mudata.MuData:
    with mudata.set_options(pull_on_update=False):
        return mudata.read_h5mu(path)


@pytest.mark.realdata
def test_generated_cells_are_counts_and_accessible_peaks(experiment):
    made, processed = read(experiment.generated_file), read(experiment.processed_file)
    assert made["rna"].shape == (300, N_GENES)
    assert made["atac"].var_names.equals(processed["atac"].var_names)
    assert np.all(made["rna"].X.data % 1 == 0)
    assert set(np.unique(made["atac"].X.data)) == {1}


@pytest.mark.realdata
def test_the_report_judges_both_modalities_and_their_pairing(experiment):
    report = json.loads((experiment.evaluation_folder / "report.json").read_text())
    (entry,) = report["experiments"].values()
    modalities = {metric["modality"] for metric in entry["metrics"]}
    assert {"rna", "atac"} <= modalities


@pytest.mark.realdata
def test_both_modalities_are_corrected(experiment):
    corrected, processed = (
        read(experiment.corrected_file),
        read(experiment.processed_file),
    )
    for modality in ("rna", "atac"):
        cells = corrected[modality]
        assert cells.shape == processed[modality].shape
        assert set(cells.obs["time"]) == {"0h"}
        own = processed.obs["time"].astype(str).tolist()
        assert cells.obs["original_time"].astype(str).tolist() == own
        assert cells.obsm["X_corrected"].shape == (cells.n_obs, 8)
