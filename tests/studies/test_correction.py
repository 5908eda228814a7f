"""Batch correction: cells keep what they are, and lose what batch they were of."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from cellgan.actions.perform import perform
from cellgan.cli import main
from cellgan.errors import ConfigError
from cellgan.evaluation.metrics.integration import Integration, integration
from cellgan.experiment import Experiment
from cellgan.studies.checks import check_correction
from cellgan.studies.correction import describe
from tests.evaluation.folders import write_experiment


@pytest.fixture(scope="module")
def corrected(trained_flow: Experiment) -> anndata.AnnData:
    """Cells of both batches, all moved to the new one."""
    param = trained_flow.folder.parents[1] / "parameters.json"
    assert main(["--param", str(param), "--correct", "batch=new"]) == 0
    return anndata.read_h5ad(trained_flow.corrected_file)


@pytest.fixture(scope="module")
def processed(trained_flow: Experiment) -> anndata.AnnData:
    return anndata.read_h5ad(trained_flow.processed_file)


@pytest.mark.slow
def test_corrected_cells_are_counts_with_their_own_library_sizes(corrected, processed):
    counts = corrected.X.toarray()
    own = processed.X.sum(axis=1).A1
    difference = counts.sum(axis=1) - own
    error = difference.std() / np.sqrt(len(difference))
    assert np.all(counts >= 0)
    assert np.all(counts % 1 == 0)
    assert difference.mean() == pytest.approx(0, abs=5 * error)
    assert np.corrcoef(counts.sum(axis=1), own)[0, 1] > 0.8
    assert corrected.uns["cellgan"]["are_counts"]


@pytest.mark.slow
def test_corrected_cells_keep_the_batch_they_were_of_beside_the_new_one(
    corrected, processed
):
    assert set(corrected.obs["batch"]) == {"new"}
    assert corrected.obs["batch"].cat.categories.tolist() == ["new", "old"]
    for name, column in (("original_batch", "batch"), ("cell_type", "cell_type")):
        assert corrected.obs[name].tolist() == processed.obs[column].tolist()
    assert corrected.obs_names.tolist() == processed.obs_names.tolist()
    assert corrected.var_names.tolist() == processed.var_names.tolist()


@pytest.mark.slow
def test_cells_of_the_target_stay_and_the_others_move(corrected):
    before, after = (corrected.obsm[key] for key in ("X_latent", "X_corrected"))
    assert before.shape == after.shape == (corrected.n_obs, 6)
    distance = np.linalg.norm(after - before, axis=1) / before.std()
    is_old = (corrected.obs["original_batch"] == "old").to_numpy()
    assert np.median(distance[~is_old]) < 0.05
    assert np.median(distance[is_old]) > 0.5


@pytest.mark.slow
def test_genes_of_the_batch_are_gone(corrected, processed):
    # the last quarter of the genes has 6 counts more in old cells
    is_old = (processed.obs["batch"] == "old").to_numpy()

    def excess(cells):
        values = cells.X.toarray() / cells.X.sum(axis=1).A1[:, None]
        shift = values[is_old].mean(axis=0) - values[~is_old].mean(axis=0)
        return np.abs(shift[-10:]).mean()

    assert excess(corrected) < 0.3 * excess(processed)


@pytest.mark.slow
def test_batches_mix_and_types_stay_apart(corrected):
    scores = corrected.uns["cellgan"]["integration_batch"]
    batches = corrected.obs["original_batch"].astype(str).to_numpy()
    types = corrected.obs["cell_type"].astype(str).to_numpy()
    found = integration(corrected.obsm["X_corrected"], batches, types)
    assert scores["after"] == pytest.approx(found._asdict())
    mixing = [scores[when]["batch_mixing"] for when in ("before", "after")]
    assert mixing[0] < 0.1
    assert mixing[1] > mixing[0] + 0.3
    assert scores["after"]["label_separation"] > 0.9


@pytest.mark.slow
def test_a_figure_and_nothing_half_written_is_beside_the_cells(corrected, trained_flow):
    del corrected
    folder = trained_flow.corrected_file.parent
    names = {path.name for path in folder.iterdir() if "corrected" in path.name}
    assert names == {"corrected.h5ad", "corrected_batch.png"}


def test_a_model_without_latents_cannot_correct(tmp_path):
    experiment = write_experiment(tmp_path / "gan")
    with pytest.raises(
        ConfigError, match=r'"cscGAN" cannot take cells back .* for it: CFGen'
    ):
        perform("correct", experiment, correct=["cluster=type A"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"clustr": "type A"}, r'--correct: no covariate "clustr". Did you mean "cl'),
        ({"cluster": "type Z"}, '--correct: cluster: "type Z" is not a known category'),
    ],
)
def test_unknown_targets_are_refused(tmp_path, target, message):
    experiment = write_experiment(tmp_path / "flow", model="CFGen")
    with pytest.raises(ConfigError, match=message):
        check_correction(experiment, target)


@pytest.mark.parametrize("name", ["cells.zarr", "cells.mtx"])
def test_formats_without_a_place_for_latents_are_refused(tmp_path, name):
    experiment = write_experiment(tmp_path / "flow", model="CFGen")
    with pytest.raises(ConfigError, match=r"latents beside them, which \.h5ad files"):
        perform(
            "correct", experiment, correct=["cluster=type A"], save_path=tmp_path / name
        )


def test_scores_are_told_before_and_after():
    scores = {"before": Integration(0.1, 0.9, 0.8), "after": Integration(0.75, 1, 0.7)}
    table = describe(scores, "donor", "cluster").splitlines()
    assert table[0].split() == ["before", "after"]
    assert "mixing of donor" in table[1]
    assert table[1].split()[-2:] == ["0.100", "0.750"]
    assert "silhouette of cluster" in table[3]
