"""A saved model makes cells from its folder alone."""

from __future__ import annotations

import json
import subprocess
import sys

import anndata
import numpy as np
import pytest
import tensorflow as tf

import cellgan
from cellgan.errors import CheckpointError, DataError
from cellgan.experiment import Experiment
from cellgan.files import write_json
from cellgan.generation import pieces
from cellgan.generation.trained_model import TrainedModel
from cellgan.models import build_model
from cellgan.training.checkpoints import StageCheckpoint
from tests.manifests import make_manifest

MANIFEST = make_manifest(
    labels=("B", "T", "NK"),
    trained=(30, 50, 20),
    n_genes=40,
    library_sizes=[(300.0, 400.0), (500.0,), (9000.0,)],
)
N_CELLS = 300  # more than one block of the model
FORMS = {"scGAN": (N_CELLS,), "cscGAN": (100, 0, 200)}
ON_TWO_DEVICES = """
import json, sys
import numpy as np
import tensorflow as tf
import cellgan
from cellgan.training.distribution import make_strategy

folder, cells_no, path = sys.argv[1:]
cpu = tf.config.list_physical_devices("CPU")[0]
logical = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, logical)
strategy = make_strategy("mirrored")
with strategy.scope():
    mirrored = cellgan.load(folder)
with tf.device("CPU:1"):
    moved = cellgan.load(folder)
models = {"first": cellgan.load(folder), "both": mirrored, "second": moved}
found = {}
for name, trained in models.items():
    with tf.device("CPU:1" if name == "second" else None):
        cells = trained.generate(json.loads(cells_no), seed=6, counts=True)
    kernel = trained.model.generation_weights()["gan"]["generator"].last.kernel.value
    parts = strategy.experimental_local_results(kernel)
    found[f"{name}/devices"] = [part.device[-5:] for part in parts]
    found[f"{name}/cells"] = cells.X.toarray()
np.savez(path, **found)
"""


def make_experiment(folder, model_type="cscGAN"):
    """Write what --process leaves of an experiment, less its data."""
    write_json(
        folder / "parameters.json",
        {
            "input_ds": {
                "raw_input": "cells.h5ad",
                "scale": "normalize_per_cell_LS_1000",
            },
            "model": {
                "type": model_type,
                "latent_dim": 4,
                "gen_layers": [8, 8],
                "critic_layers": [8],
            },
        },
    )
    write_json(folder / "manifest.json", MANIFEST.as_json())
    return Experiment.open(folder)


def save_model(experiment, step, shift):
    """Save a checkpoint whose generator is moved by `shift`, statistics included."""
    model = build_model(experiment.parameters, MANIFEST)
    (stage,) = model.stages()
    trackables = stage.trackables()
    rng = np.random.default_rng(step)
    for variable in trackables["generator"].variables:
        variable.assign_add(shift * np.abs(rng.normal(size=variable.shape)))
    folder = experiment.checkpoints_folder(stage.name)
    StageCheckpoint(trackables, folder).save(step)
    return TrainedModel(experiment, MANIFEST, model, step)


@pytest.fixture(scope="module", params=sorted(FORMS))
def saved(request, tmp_path_factory):
    """Return two saved models by step."""
    experiment = make_experiment(tmp_path_factory.mktemp(request.param), request.param)
    return {step: save_model(experiment, step, 0.3) for step in (10, 20)}


def request_of(trained):
    return FORMS[trained.experiment.parameters.model.type]


@pytest.mark.parametrize(("step", "expected_step"), [(None, 20), (20, 20), (10, 10)])
def test_loaded_model_makes_the_cells_of_the_saved_one(saved, step, expected_step):
    original = saved[expected_step]
    loaded = cellgan.load(original.experiment.folder, step=step)
    cells = loaded.generate(request_of(original), seed=6)
    expected = original.generate(request_of(original), seed=6)
    np.testing.assert_array_equal(cells.X.toarray(), expected.X.toarray())
    assert cells.uns["cellgan"]["step"] == loaded.step == expected_step


def test_steps_and_seeds_make_different_cells(saved):
    request = request_of(saved[10])
    cells = [
        saved[step].generate(request, seed=seed).X.toarray()
        for step, seed in [(10, 0), (20, 0), (10, 1)]
    ]
    assert np.abs(cells[0] - cells[1]).max() > 1
    assert np.abs(cells[0] - cells[2]).max() > 1


def test_cells_have_the_library_size_of_the_model(saved):
    totals = saved[20].generate(request_of(saved[20])).X.sum(axis=1).A1
    np.testing.assert_allclose(totals, 1000, rtol=1e-4)


@pytest.mark.slow
def test_cells_are_the_same_whatever_the_number_of_devices(saved, tmp_path):
    trained, request = saved[20], request_of(saved[20])
    assert len(tf.config.list_logical_devices()) == 1
    expected = trained.generate(request, seed=6, counts=True).X.toarray()
    arguments = [trained.experiment.folder, json.dumps(request), tmp_path / "cells.npz"]
    subprocess.run([sys.executable, "-c", ON_TWO_DEVICES, *arguments], check=True)
    found = np.load(tmp_path / "cells.npz")
    places = {"first": ["CPU:0"], "both": ["CPU:0", "CPU:1"], "second": ["CPU:1"]}
    for name, devices in places.items():
        assert found[f"{name}/devices"].tolist() == devices
        np.testing.assert_array_equal(found[f"{name}/cells"], expected)


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("size", [32, 256, 4096])
def test_cells_are_the_same_whatever_the_piece_size(saved, monkeypatch, size, counts):
    trained, request = saved[20], request_of(saved[20])
    monkeypatch.setattr(pieces, "MOST_CELLS", 1024)
    expected = trained.generate(request, counts=counts).X.toarray()
    monkeypatch.setattr(pieces, "MOST_CELLS", size)
    found = trained.generate(request, counts=counts).X.toarray()
    np.testing.assert_array_equal(found, expected)


def test_first_cells_are_the_same_when_more_are_asked_for(saved):
    trained = saved[20]
    first, *others = request_of(trained)
    few, more = first - 50, first + 50
    few_cells = trained.generate((few, *others), counts=True).X.toarray()[:few]
    more_cells = trained.generate((more, *others), counts=True).X.toarray()[:few]
    np.testing.assert_array_equal(few_cells, more_cells)


def test_label_changes_the_cells(tmp_path):
    trained = save_model(make_experiment(tmp_path), 5, 0.5)
    cells = [trained.generate({label: 9}).X.toarray() for label in ("B", "T")]
    assert np.abs(cells[0] - cells[1]).max() > 1


def test_written_file_holds_what_generate_returns(saved, tmp_path):
    trained, request = saved[20], request_of(saved[20])
    path = trained.write(tmp_path / "cells.h5ad", request, seed=3, counts=True)
    expected = trained.generate(request, seed=3, counts=True)
    found = anndata.read_h5ad(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.var_names.tolist() == list(MANIFEST.features["rna"])


def test_untrained_experiment_is_an_error(tmp_path):
    make_experiment(tmp_path)
    with pytest.raises(CheckpointError, match=r"no checkpoint found\. Run --train"):
        cellgan.load(tmp_path)


def test_step_that_was_not_saved_is_an_error(saved):
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 15.*10, 20"):
        cellgan.load(saved[10].experiment.folder, step=15)


def test_unprocessed_experiment_is_an_error(tmp_path):
    (make_experiment(tmp_path).folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: no such file\. Run --proc"):
        cellgan.load(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "labels"), [("scGAN", ()), ("cscGAN", ("B", "T", "NK"))]
)
def test_a_model_tells_what_it_is_in_one_line(tmp_path, model_type, labels):
    experiment = make_experiment(tmp_path / "pbmc", model_type)
    save_model(experiment, 7, shift=0)
    model = cellgan.load(experiment.folder)

    assert model.labels == labels
    assert model.genes == MANIFEST.features["rna"]
    assert repr(model) == (
        f"{model_type} of {experiment.folder}, step 7: 40 genes; "
        f"labels: {', '.join(labels) or 'none'}"
    )
