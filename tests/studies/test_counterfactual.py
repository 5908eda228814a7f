"""Counterfactual cells and influence, by the command line; what is refused, and how."""

from __future__ import annotations

import json
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from cellgan.cli import main
from cellgan.experiment import Experiment
from tests.evaluation.folders import write_experiment
from tests.trained_cycle import train_cycle

HEADS = ("base", "cell_type", "batch")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Experiment:
    """An experiment of a few steps: what a file holds does not depend on learning."""
    return train_cycle(tmp_path_factory.mktemp("cycle"), 20)


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Experiment:
    return train_cycle(tmp_path_factory.mktemp("learned"), 1500)


@pytest.fixture(scope="module")
def param(trained):
    return trained.folder.parents[1] / "parameters.json"


@pytest.fixture(scope="module")
def edited(trained, param) -> anndata.AnnData:
    """All processed cells, edited to the new batch."""
    assert main(["--param", str(param), "--counterfactual", "batch=new"]) == 0
    return anndata.read_h5ad(trained.counterfactual_file)


@pytest.fixture(scope="module")
def processed(trained) -> anndata.AnnData:
    return anndata.read_h5ad(trained.processed_file)


def test_layers_of_the_heads_sum_to_the_cells(edited):
    assert set(edited.layers) == {f"head_{head}" for head in HEADS}
    total = sum(edited.layers[name] for name in edited.layers)
    np.testing.assert_allclose(total, edited.X, rtol=1e-6, atol=1e-6)
    assert edited.X.min() >= 0
    assert edited.X.max() > 0


def test_metadata_changes_as_asked_and_no_other(edited, processed):
    assert set(edited.obs["batch"]) == {"new"}
    assert edited.obs["original_batch"].tolist() == processed.obs["batch"].tolist()
    assert edited.obs["cell_type"].tolist() == processed.obs["cell_type"].tolist()
    assert edited.obs_names.tolist() == processed.obs_names.tolist()
    assert edited.var_names.tolist() == processed.var_names.tolist()
    origin = edited.uns["cellgan"]
    assert origin["counterfactual"] == {"batch": "new"}
    assert origin["scale"].startswith(
        "log(1 + x) of expression library-size-normalised"
    )
    assert not origin["are_counts"]


@pytest.mark.slow
def test_genes_of_the_batch_change_and_those_of_the_type_stay(learned):
    param = learned.folder.parents[1] / "parameters.json"
    assert main(["--param", str(param), "--counterfactual", "batch=new"]) == 0
    edited = anndata.read_h5ad(learned.counterfactual_file)
    processed = anndata.read_h5ad(learned.processed_file)
    # the last quarter of the genes has 6 counts more in old cells
    counts = processed.X.toarray()
    before = np.log1p(counts * (1000 / counts.sum(axis=1, keepdims=True)))
    is_old = (processed.obs["batch"] == "old").to_numpy()

    def excess(values):
        shift = values[is_old].mean(axis=0) - values[~is_old].mean(axis=0)
        return np.abs(shift[-10:]).mean()

    assert excess(edited.X) < 0.3 * excess(before)
    scores = json.loads(edited.uns["cellgan"]["scores"])
    assert scores["edited"]["agreement"] > 0.9
    assert scores["unedited"]["agreement"] < 0.1
    assert scores["edited"]["kept"] > 0.9
    assert scores["edited"]["correlation"] > scores["unedited"]["correlation"] + 0.1


def test_cells_of_a_file_are_edited_as_the_processed_ones(
    trained, param, edited, tmp_path
):
    raw = anndata.read_h5ad(param.parent / "raw.h5ad")
    raw = raw[:9, ::-1].copy()  # genes in another order, and one more
    more = anndata.AnnData(np.ones((9, 1), np.float32), obs=raw.obs)
    more.var_names = ["another"]
    raw = anndata.concat([raw, more], axis=1, merge="same")
    raw.write_h5ad(tmp_path / "cells.h5ad")
    path = tmp_path / "edited.h5ad"
    code = main(
        [
            *("--model_path", str(trained.folder), "--counterfactual", "batch=new"),
            *("--input", str(tmp_path / "cells.h5ad"), "--save_path", str(path)),
        ]
    )
    assert code == 0
    found = anndata.read_h5ad(path)
    assert found.obs_names.tolist() == raw.obs_names.tolist()
    expected = edited[found.obs_names]
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-5, atol=1e-6)


def test_generated_cells_are_training_cells_edited_and_say_so(trained, param):
    assert main(["--param", str(param), "--generate", "--cells_no", "20", "30"]) == 0
    cells = anndata.read_h5ad(trained.generated_file)
    assert cells.obs["cell_type"].value_counts().to_dict() == {
        "type A": 20,
        "type B": 30,
    }
    origin = cells.uns["cellgan"]
    assert origin["source"] == "training cells, drawn at random and edited"
    np.testing.assert_allclose(cells.X.sum(axis=1), 1000, rtol=1e-4)


# Influence


@pytest.fixture(scope="module")
def influence(trained, param):
    assert main(["--param", str(param), "--influence"]) == 0
    return trained.influence_folder


def test_norms_are_those_of_the_contributions_that_are_written(
    trained, param, influence, processed, tmp_path
):
    test = processed[processed.obs["split"] == "test"]
    norms = {head: [] for head in HEADS}
    for batch in ("new", "old"):  # cells that stay as they are
        path = tmp_path / f"{batch}.h5ad"
        arguments = ["--counterfactual", f"batch={batch}", "--save_path", str(path)]
        assert main(["--param", str(param), *arguments]) == 0
        own = anndata.read_h5ad(path)[test.obs_names]
        own = own[own.obs["original_batch"] == batch]
        for head in HEADS:
            layer = np.asarray(own.layers[f"head_{head}"])
            norms[head] += np.linalg.norm(layer, axis=1).tolist()
    table = pd.read_csv(influence / "heads.csv").set_index("head")
    means = {head: np.mean(of) for head, of in norms.items()}
    for head in HEADS:
        assert table.loc[head, "n_cells"] == test.n_obs
        assert table.loc[head, "mean_norm"] == pytest.approx(means[head], rel=1e-4)
        share = means[head] / sum(means.values())
        assert table.loc[head, "share"] == pytest.approx(share, rel=1e-4)


@pytest.mark.slow
def test_genes_of_a_batch_are_at_the_top_of_its_genes(learned):
    param = learned.folder.parents[1] / "parameters.json"
    assert main(["--param", str(param), "--influence"]) == 0
    top = pd.read_csv(learned.influence_folder / "top_genes.csv")
    old = top[(top["field"] == "batch") & (top["category"] == "old")]
    shifted = {f"gene_{gene}" for gene in range(30, 40)}
    assert old["rank"].tolist() == list(range(1, 41))
    assert len(shifted & set(old["gene"][:10])) >= 8
    assert old["effect"].is_monotonic_decreasing


def test_loadings_have_gene_names_and_tables_all_categories(influence, processed):
    loadings = anndata.read_h5ad(influence / "loadings.h5ad")
    assert loadings.obs_names.tolist() == processed.var_names.tolist()
    assert set(loadings.obsm) == {
        "base",
        *("batch=new", "batch=old", "cell_type=type A", "cell_type=type B"),
    }
    assert loadings.obsm["base"].shape == (40, 8)
    genes = pd.read_csv(influence / "category_genes.csv", index_col="gene")
    assert genes.index.tolist() == processed.var_names.tolist()
    assert set(genes) == set(loadings.obsm) - {"base"}
    labels = pd.read_csv(influence / "labels.csv")
    assert set(labels["label"]) == {"type A", "type B"}
    assert labels.groupby("label")["share"].sum().tolist() == pytest.approx([1, 1])
    assert (influence / "influence.png").stat().st_size > 10_000


def test_influence_is_a_scalar_of_tensorboard_during_training(trained):
    events = EventAccumulator(str(trained.logs_folder("cycle")))
    events.Reload()
    tags = [f"influence/{head}" for head in HEADS]
    shares = [make_ndarray(events.Tensors(tag)[-1].tensor_proto) for tag in tags]
    assert sum(shares) == pytest.approx(1, abs=1e-5)


def test_validation_maps_edited_cells_and_measures_influence(trained):
    assert [path.name for path in trained.embedding_folder.iterdir()] == ["step_20.png"]
    *_, last = map(json.loads, trained.metrics_file.read_text().splitlines())
    shares = [last[f"validation/influence/{head}"] for head in HEADS]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert 0 <= last["validation/classifier_accuracy/batch"] <= 1


# What is refused


def refused(capsys, *arguments: object) -> str:
    """Run a command that must fail; return its message, of one line."""
    assert main([str(argument) for argument in arguments]) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batc=new"], r'--counterfactual: no covariate "batc". Did you mean "batch"'),
        (["batch=nwe"], '--counterfactual: batch: "nwe" is not a known category'),
        (["batch"], '--counterfactual: "batch" is no pair'),
        (["batch=new", "batch=old"], '--counterfactual: "batch" is given twice'),
    ],
)
def test_targets_that_do_not_suit(param, capsys, words, message):
    assert message in refused(capsys, "--param", param, "--counterfactual", *words)


def write_input(param, path, change):
    cells = anndata.read_h5ad(param.parent / "raw.h5ad")[:20].copy()
    cells.obs = cells.obs.astype(object)
    changed = change(cells)
    (cells if changed is None else changed).write_h5ad(path)


def unseen(cells):
    cells.obs.iloc[3, 1] = "newest"


def null(cells):
    cells.obs.iloc[3, 1] = None


def no_column(cells):
    del cells.obs["batch"]


def other_genes(cells):
    return cells[:, 2:].copy()


def no_counts(cells):
    cells.X = cells.X * 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            unseen,
            'obs column "batch": 1 cells have "newest", which no training cell has',
        ),
        (null, 'obs column "batch": 1 of 20 cells have no value'),
        (no_column, 'no obs column "batch"'),
        (other_genes, "2 of the 40 genes of the model are missing (gene_0, gene_1)"),
        (no_counts, "They must be non-negative integers"),
    ],
)
def test_files_that_do_not_suit(param, capsys, tmp_path, change, message):
    path, saved = tmp_path / "cells.h5ad", tmp_path / "edited.h5ad"
    write_input(param, path, change)
    found = refused(
        capsys,
        *("--param", param, "--counterfactual", "batch=new"),
        *("--input", path, "--save_path", saved),
    )
    assert message in found
    assert str(path) in found
    assert not saved.exists()


def test_no_file_and_other_formats_are_refused(param, capsys, tmp_path):
    command = ["--param", param, "--counterfactual", "batch=new"]
    missing = refused(capsys, *command, "--input", tmp_path / "none.h5ad")
    assert "none.h5ad: no such file" in missing
    other = refused(capsys, *command, "--save_path", tmp_path / "cells.zarr")
    assert "edited cells go to .h5ad files alone" in other
    alone = refused(capsys, "--param", param, "--train", "--input", "a.h5ad")
    assert "--input goes with --counterfactual or --embed, which is not given" in alone


@pytest.mark.parametrize(
    "option", [("--counterfactual", "cluster=type A"), ("--influence",)]
)
def test_models_that_are_no_sums_are_refused(tmp_path, capsys, option):
    experiment = write_experiment(tmp_path / "experiments" / "gan")
    blocks = json.loads(experiment.parameters_file.read_text())
    document = {
        "exp_param": {"experiments_dir": str(tmp_path / "experiments"), "GPU": []},
        "experiments": {"gan": {"input_ds": blocks["input_ds"]}},
    }
    param = tmp_path / "parameters.json"
    param.write_text(json.dumps(document))
    message = refused(capsys, "--param", param, *option)
    assert (
        '"cscGAN" is no sum of what covariates add. Model types for it: cycleAE.'
        in message
    )


def test_an_experiment_that_is_not_trained_is_told(trained, tmp_path, capsys):
    folder = tmp_path / "experiments" / "cycle"
    shutil.copytree(trained.folder, folder, ignore=shutil.ignore_patterns("job"))
    document = json.loads((trained.folder.parents[1] / "parameters.json").read_text())
    document["exp_param"]["experiments_dir"] = str(tmp_path / "experiments")
    param = tmp_path / "parameters.json"
    param.write_text(json.dumps(document))
    message = refused(capsys, "--param", param, "--influence")
    assert "no checkpoint found. Run --train first." in message
