"""--embed by the command line: what the file holds, alignment, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgan.cli import main
from cellgan.evaluation.figures.latents import top_genes
from cellgan.evaluation.metrics.reconstruction import CellAccuracy
from cellgan.experiment import Experiment
from cellgan.studies.embedding import describe
from tests.evaluation.folders import write_experiment
from tests.synthetic import make_batches

N_LATENT = 4


def make_raw() -> anndata.AnnData:
    cells, batches = make_batches()
    obs = pd.DataFrame({"cell_type": cells.labels, "batch": batches})
    obs.index = pd.Index([f"cell_{row}" for row in range(len(obs))])
    raw = anndata.AnnData(cells.counts, obs=obs)
    raw.var_names = [f"gene_{column}" for column in range(raw.n_vars)]
    return raw


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folder with raw cells, parameters, and a trained experiment."""
    folder = tmp_path_factory.mktemp("vae")
    make_raw().write_h5ad(folder / "raw.h5ad")
    document = {
        "exp_param": {"experiments_dir": str(folder / "experiments"), "GPU": []},
        "experiments": {
            "vae": {
                "input_ds": {
                    "raw_input": str(folder / "raw.h5ad"),
                    "clustering": {"key": "cell_type"},
                    "covariates": ["batch"],
                    "scale": "normalize_per_cell_LS_1000",
                    "split": {"test_cells": 40, "valid_cells": 0},
                },
                "model": {
                    "type": "LDVAE",
                    "n_latent": N_LATENT,
                    "n_hidden": 16,
                    "batch_key": "batch",
                    "observed_library": True,
                    "initial_genes": "cells",
                },
                "training": {
                    "max_steps": 40,
                    "batch_size": 32,
                    "learning_rate": {"alpha_0": 0.01},
                    "progress_freq": 0,
                    "summary_freq": 0,
                    "save_freq": 0,
                    "jit": False,
                },
            }
        },
    }
    (folder / "parameters.json").write_text(json.dumps(document))
    path = str(folder / "parameters.json")
    assert main(["--param", path, "--process", "--train", "--embed"]) == 0
    return folder


@pytest.fixture(scope="module")
def experiment(folder) -> Experiment:
    return Experiment.open(folder / "experiments" / "vae")


@pytest.fixture(scope="module")
def embedded(experiment) -> anndata.AnnData:
    return anndata.read_h5ad(experiment.embedded_file)


def embed(experiment, raw: anndata.AnnData, path: Path, *options: str) -> int:
    """Embed cells of a file; return the exit code. The result is ``out.h5ad``."""
    raw.write_h5ad(path / "new.h5ad")
    return main(
        [
            *("--embed", "--model_path", str(experiment.folder)),
            *("--input", str(path / "new.h5ad")),
            *("--save_path", str(path / "out.h5ad")),
            *options,
        ]
    )


@pytest.mark.slow
def test_file_follows_the_conventions(embedded, experiment) -> None:
    processed = anndata.read_h5ad(experiment.processed_file)

    assert embedded.obsm["X_ldvae"].shape == (embedded.n_obs, N_LATENT)
    assert embedded.varm["ldvae_loadings"].shape == (embedded.n_vars, N_LATENT)
    assert (embedded.X != processed.X).nnz == 0
    assert list(embedded.obs["batch"]) == list(processed.obs["batch"])
    assert embedded.uns["cellgan"]["model_type"] == "LDVAE"


@pytest.mark.slow
def test_layers_are_expected_and_drawn_counts(embedded) -> None:
    expected, drawn = (
        embedded.layers[name]
        for name in ("normalized_expression", "posterior_predictive")
    )

    np.testing.assert_allclose(expected.sum(axis=1), 1e4, rtol=1e-4)
    assert sp.issparse(drawn)
    assert np.array_equal(drawn.data, np.rint(drawn.data))
    ratio = drawn.sum() / embedded.X.sum()
    assert ratio == pytest.approx(1, abs=0.3)


@pytest.mark.slow
def test_columns_tell_how_each_cell_comes_out(embedded) -> None:
    obs = embedded.obs

    r2, correlation = obs["reconstruction_r2"], obs["reconstruction_correlation"]
    np.testing.assert_allclose(r2, correlation**2)
    # Programs are learned in a few steps: shuffled cells would have almost none
    assert correlation.median() > 0.3
    assert (obs["elbo"] < 0).all()
    assert (obs["negative_log_likelihood"] > 0).all()


@pytest.mark.slow
def test_tables_are_those_of_the_file(embedded, experiment) -> None:
    beside = experiment.embedded_file.with_name

    loadings = pd.read_csv(beside("cells_loadings.csv"), index_col="gene")
    residuals = pd.read_csv(beside("cells_residuals.csv"), index_col="gene")

    assert list(loadings.columns) == [f"Z_{factor}" for factor in range(N_LATENT)]
    assert list(loadings.index) == list(residuals.index) == list(embedded.var_names)
    np.testing.assert_allclose(loadings, embedded.varm["ldvae_loadings"], rtol=1e-5)
    made = embedded.layers["normalized_expression"].mean(axis=0)
    np.testing.assert_allclose(residuals["reconstructed_mean"], made, rtol=1e-4)
    for figure in ("cells_loadings.png", "cells_latents.png"):
        assert beside(figure).stat().st_size > 10_000


@pytest.mark.slow
def test_genes_are_aligned_by_name(experiment, tmp_path, caplog) -> None:
    raw = make_raw()[:30].copy()
    kept = raw.n_vars - 5
    aligned = raw.copy()
    aligned.X = sp.csr_matrix(aligned.X.toarray() * (np.arange(raw.n_vars) < kept))
    extra = anndata.AnnData(
        sp.csr_matrix(np.full((30, 1), 9, np.float32)),
        obs=raw.obs,
        var=pd.DataFrame(index=["unknown"]),
    )
    shuffled = anndata.concat([raw[:, :kept], extra], axis=1, merge="first")
    shuffled = shuffled[:, np.random.default_rng(0).permutation(kept + 1)].copy()
    found = []
    for name, cells in (("aligned", aligned), ("shuffled", shuffled)):
        (tmp_path / name).mkdir()
        assert embed(experiment, cells, tmp_path / name, "--layers", "none") == 0
        found.append(anndata.read_h5ad(tmp_path / name / "out.h5ad"))

    one, other = found
    np.testing.assert_array_equal(one.obsm["X_ldvae"], other.obsm["X_ldvae"])
    np.testing.assert_array_equal(
        one.obs["reconstruction_r2"], other.obs["reconstruction_r2"]
    )
    assert not one.layers
    assert "genes of the model are missing" not in caplog.text


@pytest.mark.slow
def test_cells_are_decoded_as_of_another_batch(experiment, tmp_path, capsys) -> None:
    raw = make_raw()[:12].copy()
    first, second = sorted(raw.obs["batch"].unique())
    found = {}
    for batch in (first, second):
        options = ("--layers", "normalized", "--condition", f"batch={batch}")
        assert embed(experiment, raw, tmp_path, *options) == 0
        found[batch] = anndata.read_h5ad(tmp_path / "out.h5ad")
    own = raw.obs["batch"].to_numpy() == first
    assert embed(experiment, raw, tmp_path, "--layers", "normalized") == 0
    plain = anndata.read_h5ad(tmp_path / "out.h5ad").layers["normalized_expression"]
    alike, other = (of.layers["normalized_expression"] for of in found.values())

    assert own.any()
    assert not own.all()
    np.testing.assert_array_equal(alike[own], plain[own])
    np.testing.assert_array_equal(other[~own], plain[~own])
    assert np.abs(alike - other).max(axis=1).min() > 1e-3
    latents = [of.obsm["X_ldvae"] for of in found.values()]
    np.testing.assert_array_equal(*latents)
    capsys.readouterr()
    assert embed(experiment, raw, tmp_path, "--condition", "cell_type=type A") == 2
    assert "Covariates that count: batch" in capsys.readouterr().err


@pytest.mark.slow
def test_few_genes_are_doubted(experiment, tmp_path, capsys) -> None:
    raw = make_raw()[:12].copy()

    code = embed(experiment, raw[:, : raw.n_vars // 2].copy(), tmp_path)

    told = capsys.readouterr()
    assert code == 0
    assert "of the model are missing" in told.out + told.err
    assert "fewer than 80 % of the genes" in told.out + told.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda raw: raw.var_names.__class__([f"x{i}" for i in range(raw.n_vars)]),
            "genes of the model are missing",
        ),
        (None, 'obs column "batch"'),
    ],
    ids=["genes", "column"],
)
def test_cells_that_cannot_be_read_are_refused_in_one_message(
    experiment, tmp_path, capsys, spoil, message
) -> None:
    raw = make_raw()[:12].copy()
    if spoil is None:
        del raw.obs["batch"]
    else:
        raw.var_names = spoil(raw)

    code = embed(experiment, raw, tmp_path)

    told = capsys.readouterr().err
    assert code == 2
    assert message in told
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--embed", "--layers", "log"], 'no layer "log"'),
        (["--embed", "--layers", "none", "normalized"], 'no layer "none"'),
        (["--embed", "--n-samples", "-1"], "--n-samples: -1 found. Give 0"),
        (["--embed", "--save_path", "a.zarr"], "go to .h5ad files alone"),
        (
            ["--embed", "--generate", "--save_path", "a.h5ad"],
            "--save_path would be of --generate and of --embed",
        ),
        (["--generate", "--n-samples", "3"], "--n-samples goes with --embed"),
        (["--generate", "--latents", "noise"], '--latents: "noise" found, expected'),
        (
            ["--generate", "--latents", "prior", "--cells_no", "cluster_0=5"],
            "not conditioned on a label",
        ),
        (["--generate", "--guidance", "batch=2"], "guidance has no meaning"),
    ],
)
def test_options_that_do_not_suit_are_refused(
    folder, experiment, capsys, arguments, message
) -> None:
    del experiment

    code = main(["--param", str(folder / "parameters.json"), *arguments])

    assert code == 2
    assert message in capsys.readouterr().err


def test_model_without_an_encoder_is_refused(tmp_path, capsys) -> None:
    experiment = write_experiment(tmp_path / "gan")

    code = main(["--embed", "--model_path", str(experiment.folder)])

    assert code == 2
    assert "Model types for it: CFGen, cfDiffusion, LDVAE." in capsys.readouterr().err


@pytest.mark.slow
def test_other_families_give_latents(trained_flow, capsys) -> None:
    code = main(["--embed", "--model_path", str(trained_flow.folder)])

    cells = anndata.read_h5ad(trained_flow.embedded_file)
    assert code == 0, capsys.readouterr().err
    assert cells.obsm["X_cfgen"].shape[0] == cells.n_obs
    assert np.ptp(cells.obsm["X_cfgen"], axis=0).min() > 0


@pytest.mark.slow
def test_posterior_cells_are_of_their_label_and_prior_cells_of_none(
    folder, experiment
) -> None:
    path, made = str(folder / "parameters.json"), {}
    for latents in ("posterior", "prior"):
        file = folder / f"{latents}.h5ad"
        options = ["--latents", latents, "--save_path", str(file)]
        assert main(["--param", path, "--generate", *options]) == 0
        made[latents] = anndata.read_h5ad(file)

    assert set(made["posterior"].obs) == {"cell_type", "batch"}
    assert set(made["prior"].obs) == {"batch"}
    processed = anndata.read_h5ad(experiment.processed_file)
    trained = processed[processed.obs["split"] == "train"]
    for label in trained.obs["cell_type"].unique():
        real, other = (
            np.asarray(of[of.obs["cell_type"] == label].X.mean(axis=0)).ravel()
            for of in (trained, made["posterior"])
        )
        assert np.corrcoef(real, other)[0, 1] > 0.8
    assert "posteriors of training cells" in made["posterior"].uns["cellgan"]["source"]
    assert made["prior"].uns["cellgan"]["source"] == "drawn from the model"


def test_accuracy_is_told_by_split() -> None:
    correlation = np.array([0.5, 0.7, np.nan, 0.9])
    obs = pd.DataFrame({"split": ["test", "train", "train", "train"]})

    lines = describe(CellAccuracy(correlation, correlation**2), obs)

    assert [line.split(":")[0] for line in lines] == ["train", "test"]
    assert "median correlation of 0.800" in lines[0]
    assert "of 3 cells, 1 without one" in lines[0]


def test_top_genes_are_those_of_both_ends() -> None:
    loadings = np.array([0.1, -3.0, 2.0, 0.0, -1.0, 5.0])

    np.testing.assert_array_equal(top_genes(loadings, 2), [5, 2, 4, 1])
    np.testing.assert_array_equal(top_genes(loadings, 3), [5, 2, 0, 3, 4, 1])
