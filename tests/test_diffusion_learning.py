"""Diffusion learns cells with known truth: types in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from cellgan.actions.perform import perform
from cellgan.config.reading import parse_experiment
from cellgan.experiment import Experiment
from cellgan.generation.trained_model import TrainedModel
from cellgan.models.base import SolverSettings
from tests.synthetic import make_batches

pytestmark = pytest.mark.slow

COVARIATES = ("cell_type", "batch")
N_CELLS = 100
LIBRARY_SIZE = 150


def real_cells() -> anndata.AnnData:
    """Draw cells of two types in two batches."""
    cells, batches = make_batches(n_cells=480)
    obs = pd.DataFrame({"cell_type": cells.labels, "batch": batches})
    obs.index = pd.Index([f"cell_{row}" for row in range(len(obs))])
    real = anndata.AnnData(cells.counts, obs=obs)
    real.var_names = [f"gene_{column}" for column in range(real.n_vars)]
    return real


def train(folder: Path, model: dict[str, Any]) -> Experiment:
    """Process and train all cells."""
    real_cells().write_h5ad(folder / "raw.h5ad")
    rate = {"decay": "linear", "alpha_0": 5e-3}
    block = {
        "input_ds": {
            "raw_input": str(folder / "raw.h5ad"),
            "clustering": {"key": "cell_type"},
            "covariates": ["batch"],
            "scale": "normalize_per_cell_LS_1000",
            "filtering": {"min_cells": 1, "min_genes": 1},
            "split": {"test_cells": 0, "valid_cells": 0},
        },
        "model": {
            "type": "cfDiffusion",
            "autoencoder": {"n_latent": 6, "layers": [32]},
            "diffusion": {"widths": [64, 64, 32]},
            **model,
        },
        "training": {
            "batch_size": 64,
            "learning_rate": rate,
            "progress_freq": 0,
            "summary_freq": 0,
            "validation_freq": 0,
            "stages": {
                "autoencoder": {"max_steps": 300},
                "diffusion": {"max_steps": 1500, "learning_rate": rate},
                **({"classifier": {"max_steps": 300}} if model else {}),
            },
        },
    }
    experiment = Experiment(folder / "one", parse_experiment(block, "test"))
    perform("process", experiment)
    perform("train", experiment)
    return experiment


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("diffusion")
    return TrainedModel.load(train(folder, {}).folder)


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> TrainedModel:
    folder = tmp_path_factory.mktemp("steered")
    model = {"classifier": {"widths": [64, 32], "dropout": 0.0}}
    return TrainedModel.load(train(folder, model).folder)


@pytest.fixture(scope="module")
def judges() -> dict[str, LogisticRegression]:
    real = real_cells()
    values = standardized(real)
    return {
        name: LogisticRegression(max_iter=500).fit(values, real.obs[name])
        for name in COVARIATES
    }


def standardized(cells: anndata.AnnData) -> np.ndarray:
    counts = cells.X.toarray()
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1000)


def recognised(
    trained: TrainedModel, judges: Any, condition: dict[str, str], **wishes: Any
) -> dict[str, float]:
    """Return which share of cells is of the category asked for, by covariate."""
    made = trained.generate(
        N_CELLS, seed=0, condition=condition, library_size=LIBRARY_SIZE, **wishes
    )
    values = standardized(made)
    return {
        name: float(np.mean(judges[name].predict(values) == value))
        for name, value in condition.items()
    }


PAIRS = [
    {"cell_type": "type A", "batch": "new"},
    {"cell_type": "type B", "batch": "new"},
    {"cell_type": "type A", "batch": "old"},
    {"cell_type": "type B", "batch": "old"},
]


@pytest.mark.parametrize("condition", PAIRS)
def test_each_covariate_is_as_asked_for(trained, judges, condition) -> None:
    found = recognised(trained, judges, condition)
    assert found["cell_type"] > 0.9
    assert found["batch"] > 0.9


@pytest.mark.parametrize(
    "solver",
    [
        SolverSettings("ddim", 50),
        SolverSettings("ddpm", 1000, cache_interval=5),
        SolverSettings("ddpm", 100, cache_interval=2, cache_spacing="uneven"),
    ],
)
def test_fewer_steps_and_a_cache_keep_the_labels(trained, judges, solver) -> None:
    found = recognised(trained, judges, PAIRS[1], solver=solver)
    assert found["cell_type"] > 0.9
    assert found["batch"] > 0.9


def test_no_guidance_gives_the_mixture_of_all_training_cells(trained, judges) -> None:
    real = anndata.read_h5ad(trained.experiment.processed_file)
    found = recognised(
        trained, judges, PAIRS[0], guidance={"cell_type": 0.0, "batch": 0.0}
    )
    for name, share in found.items():
        expected = np.mean(real.obs[name] == PAIRS[0][name])
        error = np.sqrt(expected * (1 - expected) / N_CELLS)
        assert share == pytest.approx(expected, abs=5 * error)


def test_stronger_classifiers_are_obeyed_more(steered, judges) -> None:
    shares = [
        recognised(
            steered, judges, PAIRS[0], guidance={"cell_type": scale, "batch": scale}
        )
        for scale in (0.0, 1.0, 3.0)
    ]
    for name in COVARIATES:
        none, one, three = (of[name] for of in shares)
        assert none < one <= three + 0.05
        assert three > 0.9


def test_cells_between_two_labels_go_over_from_one_to_the_other(
    trained, judges, tmp_path
) -> None:
    weights = [0.0, 0.25, 0.5, 0.75, 1.0]
    path = tmp_path / "between.h5ad"
    perform(
        "interpolate",
        trained.experiment,
        interpolate=["type A", "type B"],
        weights=weights,
        cells_no=[str(N_CELLS)],
        save_path=path,
        seed=0,
    )
    cells = anndata.read_h5ad(path)
    judge = judges["cell_type"]
    of_second = judge.predict_proba(standardized(cells))[:, 1]
    means = [of_second[cells.obs["weight"] == weight].mean() for weight in weights]
    # Five standard errors of a mean of probabilities are at most 0.25.
    assert np.all(np.diff(means) > -0.1)
    assert means[0] < 0.2
    assert means[-1] > 0.8


def test_numbers_of_each_label_are_as_asked_for(trained) -> None:
    made = trained.generate({"type A": 1, "type B": 600}, seed=0)
    assert made.obs["cell_type"].value_counts().to_dict() == {
        "type A": 1,
        "type B": 600,
    }
    assert list(made.var_names) == list(trained.genes)
    assert np.all(np.isfinite(made.X.data))
    assert made.X.min() == 0
