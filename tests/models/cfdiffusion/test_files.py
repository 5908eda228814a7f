"""The whole path of cfDiffusion: process, train, generate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from cellgan.cli import main
from cellgan.experiment import Experiment
from tests.synthetic import make_cells

pytestmark = pytest.mark.slow

STEPS = 20
LABELS = ("type A", "type B", "type C")


def write_parameters(folder: Path, **decoders: str) -> Path:
    """Write raw cells of few genes, and an experiment for each decoder."""
    cells = make_cells(n_cells=240)
    obs = pd.DataFrame({"cell_type": cells.labels})
    obs["donor"] = np.arange(len(obs)) % 2
    obs["donor"] = obs["donor"].map({0: "d1", 1: "d2"})
    obs.index = pd.Index([f"cell_{row}" for row in range(len(obs))])
    raw = anndata.AnnData(cells.counts, obs=obs)
    raw.var_names = [f"gene_{column}" for column in range(raw.n_vars)]
    raw.write_h5ad(folder / "raw.h5ad")
    document = {
        "exp_param": {"experiments_dir": str(folder / "experiments"), "GPU": []},
        "experiments": {
            name: {
                "input_ds": {
                    "raw_input": str(folder / "raw.h5ad"),
                    "clustering": {"key": "cell_type"},
                    "covariates": ["donor"],
                    "scale": "normalize_per_cell_LS_1000",
                    "split": {"test_cells": 60, "valid_cells": 36},
                },
                "training": {
                    "max_steps": STEPS,
                    "batch_size": 16,
                    "progress_freq": 10,
                    "validation_freq": STEPS,
                    "summary_freq": 5,
                    "save_freq": STEPS,
                },
                "model": {
                    "type": "cfDiffusion",
                    "autoencoder": {"n_latent": 4, "layers": [16], "decoder": decoder},
                    "diffusion": {"widths": [8, 6], "n_steps": 100},
                },
                "generation": {"n_steps": 5},
            }
            for name, decoder in decoders.items()
        },
    }
    path = folder / "parameters.json"
    path.write_text(json.dumps(document))
    return path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment with the decoder of counts."""
    folder = tmp_path_factory.mktemp("cfDiffusion")
    path = write_parameters(folder, tiny="negative_binomial")
    actions = ["--process", "--train", "--generate", "--library-size", "250"]
    assert main(["--param", str(path), *actions]) == 0
    return Experiment.open(folder / "experiments" / "tiny")


def generate(experiment: Experiment, path: Path, *options: Any) -> anndata.AnnData:
    arguments = ["--generate", "--model_path", str(experiment.folder), *options]
    assert main([*map(str, arguments), "--save_path", str(path)]) == 0
    return anndata.read_h5ad(path)


def test_both_stages_leave_a_checkpoint_and_losses(experiment: Experiment) -> None:
    lines = [
        json.loads(line) for line in experiment.metrics_file.read_text().splitlines()
    ]
    for stage in ("autoencoder", "diffusion"):
        kept = [path.name for path in experiment.checkpoints_folder(stage).iterdir()]
        assert kept == [f"model-{STEPS}"]
        of_stage = [line for line in lines if line["stage"] == stage]
        losses = [line["loss"] for line in of_stage if "loss" in line]
        assert len(losses) >= 4
        assert np.isfinite(losses).all()
    assert "validation/loss" in lines[-1]


def test_maps_are_of_cells_and_of_latents(experiment: Experiment) -> None:
    maps = {path.name for path in experiment.embedding_folder.iterdir()}
    assert {
        f"step_{STEPS}.png",
        f"latents_cell_type_step_{STEPS}.png",
        f"latents_donor_step_{STEPS}.png",
    } <= maps


def test_cells_are_counts_of_the_size_asked_for_with_names(
    experiment: Experiment,
) -> None:
    manifest = experiment.manifest()
    cells = anndata.read_h5ad(experiment.generated_file)
    totals = cells.X.sum(axis=1).A1
    assert cells.n_obs == manifest.split_sizes["train"]
    assert tuple(cells.var_names) == manifest.features["rna"]
    assert set(cells.obs["cell_type"]) == set(LABELS)
    assert set(cells.obs.columns) == {"cell_type", "donor"}
    assert np.all(cells.X.data % 1 == 0)
    error = totals.std() / np.sqrt(len(totals))
    assert totals.mean() == pytest.approx(250, abs=5 * error)
    assert cells.uns["cellgan"]["scale"] == "counts"


def test_numbers_labels_and_guidance_are_as_asked_for(
    experiment: Experiment, tmp_path: Path
) -> None:
    numbers = ["type A=3", "type C=7"]
    options = ["--solver", "ddim", "--n-steps", 6, "--condition", "donor=d2"]
    plain, guided = (
        generate(
            experiment,
            tmp_path / f"{scale}.h5ad",
            "--cells_no",
            *numbers,
            *options,
            "--guidance",
            f"cell_type={scale}",
            f"donor={scale}",
        )
        for scale in (1, 4)
    )
    assert plain.obs["cell_type"].value_counts().to_dict() == {
        "type C": 7,
        "type A": 3,
        "type B": 0,
    }
    assert set(plain.obs["donor"]) == {"d2"}
    assert (plain.X != guided.X).nnz > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--n-steps", "101"], "--n-steps is 101, but the model diffuses in 100 steps"),
        (["--cache-interval", "0"], "--cache-interval: 0 found"),
        (
            ["--cache-interval", "2", "--cache-branch", "1"],
            "--cache-branch is 1, but the",
        ),
        (["--cache-spacing", "uneven"], "no effect with cache_interval 1"),
        (["--eta", "0.5"], "eta is 0.5, which only the solver ddim has"),
        (["--solver", "rk4"], 'solver is "rk4", which the model type "cfDiffusion"'),
        (["--condition", "donr=d1"], 'no covariate "donr". Did you mean "donor"'),
        (["--guidance", "dnor=2"], 'not conditioned on "dnor"'),
    ],
)
def test_wrong_request_is_answered_in_one_message(
    experiment: Experiment,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    arguments = ["--generate", "--model_path", str(experiment.folder), *options]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_expression_has_the_library_size_of_the_scale(tmp_path: Path) -> None:
    path = write_parameters(tmp_path, tiny="squared_error")
    actions = ["--process", "--train", "--generate"]
    assert main(["--param", str(path), *actions]) == 0
    experiment = Experiment.open(tmp_path / "experiments" / "tiny")
    cells = anndata.read_h5ad(experiment.generated_file)
    np.testing.assert_allclose(cells.X.sum(axis=1).A1, 1000, rtol=1e-4)
    assert cells.X.data.min() > 0
    assert cells.uns["cellgan"]["scale"] == "library-size-normalised to 1000, no log"
    counts = generate(experiment, tmp_path / "counts.h5ad", "--counts")
    assert np.all(counts.X.data % 1 == 0)


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment whose classifiers steer."""
    folder = tmp_path_factory.mktemp("scDiffusion")
    path = write_parameters(folder, tiny="negative_binomial")
    document = json.loads(path.read_text())
    model = document["experiments"]["tiny"]["model"]
    model["classifier"] = {"widths": [8, 6]}
    path.write_text(json.dumps(document))
    assert main(["--param", str(path), "--process", "--train", "--generate"]) == 0
    return Experiment.open(folder / "experiments" / "tiny")


def test_classifiers_are_a_third_stage_that_steers(
    steered: Experiment, tmp_path: Path
) -> None:
    assert [p.name for p in steered.checkpoints_folder("classifier").iterdir()] == [
        f"model-{STEPS}"
    ]
    lines = [json.loads(line) for line in steered.metrics_file.read_text().splitlines()]
    assert "validation/accuracy/cell_type" in lines[-1]
    plain, guided = (
        generate(
            steered, tmp_path / f"{scale}.h5ad", "--guidance", f"cell_type={scale}"
        )
        for scale in (0, 4)
    )
    assert (plain.X != guided.X).nnz > 0


def test_classifiers_steer_between_labels(steered: Experiment, tmp_path: Path) -> None:
    options = ["--weights", 0, 1, "--cells_no", 4, "--init-step", 60]
    cells = interpolate(steered, tmp_path / "a.h5ad", *options)
    first, second = cells.obsm["X_latent"].reshape(2, 4, -1)
    assert np.all(np.any(first != second, axis=1))


def interpolate(experiment: Experiment, path: Path, *options: Any) -> anndata.AnnData:
    parameters = experiment.folder.parents[1] / "parameters.json"
    arguments = ["--param", parameters, "--interpolate", "type A", "type C"]
    assert main([*map(str, [*arguments, *options, "--save_path", path])]) == 0
    return anndata.read_h5ad(path)


def test_cells_between_two_labels_say_what_they_are(
    experiment: Experiment, tmp_path: Path
) -> None:
    options = ["--weights", 0, 0.5, 1, "--cells_no", 6, "--solver", "ddim"]
    cells = interpolate(experiment, tmp_path / "a.h5ad", *options)
    assert cells.obs["weight"].tolist() == [0.0] * 6 + [0.5] * 6 + [1.0] * 6
    assert set(cells.obs["from"]) == {"type A"}
    assert set(cells.obs["to"]) == {"type C"}
    assert tuple(cells.var_names) == experiment.manifest().features["rna"]
    latents = cells.obsm["X_latent"].reshape(3, 6, -1)
    assert np.all(np.any(latents[0] != latents[1], axis=1))
    assert np.all(np.any(latents[2] != latents[1], axis=1))


def test_interpolation_may_start_from_real_cells(
    experiment: Experiment, tmp_path: Path
) -> None:
    ends = ["--weights", 0, 1, "--cells_no", 5, "--solver", "ddim", "--n-steps", 50]
    near, far = (
        interpolate(experiment, tmp_path / f"{step}.h5ad", *ends, "--init-step", step)
        for step in (0, 99)
    )
    moved = [
        np.linalg.norm(np.subtract(*of.obsm["X_latent"].reshape(2, 5, -1)), axis=1)
        for of in (near, far)
    ]
    assert moved[0].max() < moved[1].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["type A", "type X"], '--interpolate: cell_type: "type X"'),
        (
            ["type A", "type B", "--weights", "1.5"],
            "--weights: 1.5 found, expected num",
        ),
        (["type A", "type B", "--init-step", "100"], "--init-step: 100 found, but the"),
        (["type A", "type B", "--cells_no", "1", "2"], "with --interpolate, give one"),
        (
            ["type A", "type B", "--generate", "--cells_no", "5"],
            "--cells_no would be of --generate and of --interpolate: run them one",
        ),
    ],
)
def test_wrong_interpolation_is_answered_in_one_message(
    experiment: Experiment,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    parameters = experiment.folder.parents[1] / "parameters.json"
    assert main(["--param", str(parameters), "--interpolate", *options]) == 2
    assert message in capsys.readouterr().err
