"""Files of the original cfDiffusion and scDiffusion become checkpoints of ours."""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cellgan.actions.perform import perform
from cellgan.data.manifest import CovariateVocabulary
from cellgan.errors import CellganError
from cellgan.experiment import Experiment
from cellgan.files import write_json
from cellgan.generation.trained_model import TrainedModel
from cellgan.models.base import GenerationRequest
from cellgan.training.checkpoints import saved_steps
from tests.manifests import make_manifest
from tests.models.cfdiffusion.diffusion_reference import (
    DiffusionReference,
    assert_close,
)
from tests.stored import stored_config

torch = pytest.importorskip("torch", reason="PyTorch, the extra import, is missing")
pytestmark = pytest.mark.slow

STEPS = {"autoencoder": 30, "diffusion": 50, "classifier": 20}


def take_weights(experiment: Experiment, *files: Path) -> None:
    perform("import-weights", experiment, import_weights=["cfdiffusion", *files])


@pytest.fixture(scope="module")
def reference(reference_dir: Path) -> DiffusionReference:
    return DiffusionReference(reference_dir)


def categories_of(n: int) -> tuple[str, ...]:
    """Name categories so that our order is another one than that of sorted names."""
    return (*tuple(f"t{code}" for code in range(2, n)), "t1000", "u")


class Case:
    """An experiment as the stored networks are, and their files."""

    def __init__(
        self, reference: DiffusionReference, folder: Path, case: str, **changes: Any
    ) -> None:
        self.reference, self.case = reference, case
        sizes = reference.config
        self.is_steered = case == "scdiffusion_base"
        numbers = sizes["num_classes_multi" if case == "multi" else "num_classes"]
        self.covariates = {
            name: categories_of(n)
            for name, n in zip(("cell_type", "batch"), numbers, strict=False)
        }
        model: dict[str, Any] = {
            "type": "cfDiffusion",
            "autoencoder": {
                "n_latent": sizes["ae"]["latent"],
                "layers": sizes["ae"]["hidden"],
                "decoder": "squared_error",
            },
            "diffusion": {
                "widths": sizes["denoiser"]["hidden"],
                "latent_scale": "none",
                **changes.pop("diffusion", {}),
            },
        }
        stages = {k: {"max_steps": STEPS[k]} for k in ("autoencoder", "diffusion")}
        if self.is_steered:
            model["classifier"] = {"widths": sizes["classifier"]["hidden"]}
            stages["classifier"] = {"max_steps": STEPS["classifier"]}
        model["autoencoder"] |= changes.pop("autoencoder", {})
        self.experiment = self.process(folder, model, stages, sizes["ae"]["n_genes"])
        self.folder = folder

    def process(
        self, folder: Path, model: Any, stages: Any, n_genes: int
    ) -> Experiment:
        labels = self.covariates["cell_type"]
        manifest = make_manifest(labels, (5,) * len(labels), n_genes)
        manifest = dataclasses.replace(
            manifest,
            label="cell_type",
            covariates={k: CovariateVocabulary(v) for k, v in self.covariates.items()},
            cells_per_category={
                split: {k: (n,) * len(v) for k, v in self.covariates.items()}
                for split, n in (("train", 6), ("valid", 0), ("test", 0))
            },
        )
        block = {
            "input_ds": {
                "raw_input": "cells.h5ad",
                "clustering": {"key": "cell_type"},
                "covariates": list(self.covariates)[1:],
            },
            "model": model,
            "training": {"data_source": "disk", "stages": stages},
        }
        write_json(folder / "one" / "parameters.json", block)
        write_json(folder / "one" / "manifest.json", manifest.as_json())
        return Experiment.open(folder / "one")

    def files(self) -> list[Path]:
        """Write the files as the originals do."""
        written = {
            "autoencoder.pt": {
                key.replace("/", ".", 1): of
                for key, of in self.reference.below("weights/ae/").items()
            },
            "model000050.pt": self.reference.below(f"weights/denoiser_{self.case}/"),
        }
        if self.is_steered:
            written["classifier.pt"] = self.reference.below("weights/classifier/")
        for name, weights in written.items():
            tensors = {key: torch.tensor(of) for key, of in weights.items()}
            torch.save(OrderedDict(tensors), self.folder / name)
        return [self.folder / name for name in written]

    def codes(self, y: np.ndarray) -> dict[str, tf.Tensor]:
        """Return stored labels, numbered by sorted name, as our codes."""
        columns = y.reshape(len(y), -1).T
        return {
            name: tf.constant([ours.index(sorted(ours)[code]) for code in column])
            for (name, ours), column in zip(
                self.covariates.items(), columns, strict=False
            )
        }


@pytest.mark.parametrize("case", ["single", "multi"])
def test_latents_and_noise_are_those_of_the_original(
    reference: DiffusionReference, tmp_path: Path, case: str
) -> None:
    one = Case(reference, tmp_path, case)
    take_weights(one.experiment, *one.files())
    parts = TrainedModel.load(one.experiment.folder).model.generation_weights()
    network = parts["diffusion"]["average"]
    x, t, y = (reference[f"in/denoiser_{case}/{name}"] for name in "xty")
    noise = network(
        tf.constant(x),
        network.shifts(tf.constant(t)),
        network.gates(one.codes(y)),
    )
    assert_close(noise, reference[f"out/denoiser_{case}/cond"])
    encoder = parts["autoencoder"]["network"].encoders["rna"]
    latent, _ = encoder(tf.constant(reference["in/ae/x"]))
    expected = reference["out/ae/eval/latent"]
    assert_close(tf.math.l2_normalize(latent, axis=1), expected)


def test_autoencoder_alone_leaves_the_denoiser_to_train(
    reference: DiffusionReference, tmp_path: Path
) -> None:
    one = Case(reference, tmp_path, "single")
    take_weights(one.experiment, *one.files()[:1])
    found = {
        name: saved_steps(one.experiment.checkpoints_folder(name)) for name in STEPS
    }
    assert found == {"autoencoder": [30], "diffusion": [], "classifier": []}


def test_steered_model_gets_its_classifier(
    reference: DiffusionReference, tmp_path: Path
) -> None:
    one = Case(reference, tmp_path, "scdiffusion_base")
    take_weights(one.experiment, *one.files())
    model = TrainedModel.load(one.experiment.folder).model
    (classifier,) = model.generation_weights()["classifier"]["network"].classifiers
    x, t = (tf.constant(reference[f"in/classifier/{name}"]) for name in "xt")
    logits = classifier(x, t)[0].numpy()
    ours = one.covariates["cell_type"]
    of_theirs = [ours.index(name) for name in sorted(ours)]
    expected = reference["out/classifier/logits_eval"]
    assert_close(logits[:, of_theirs], expected)
    request = GenerationRequest({"cell_type": np.array([0, 1])}, 2, seed=1)
    n_genes = reference.config["ae"]["n_genes"]
    assert model.generate(request).features["rna"].shape == (2, n_genes)


SIZES = stored_config("cfdiffusion.npz")
LAYERS = SIZES["ae"]["hidden"]
WRONG = {
    "genes": (
        {"autoencoder": {"layers": [*LAYERS, 9]}},
        re.escape(f"model.autoencoder.layers: {LAYERS} there, {[*LAYERS, 9]} here"),
    ),
    "units": (
        {"diffusion": {"latent_scale": "standardized"}},
        r'latent_scale: "none" there, "standardized" here',
    ),
    "counts": (
        {"autoencoder": {"decoder": "negative_binomial"}},
        r'decoder: "squared_error" there, "negative_binomial" here',
    ),
    "covariates": (
        {"diffusion": {"latent_scale": "none", "condition_on": []}},
        rf"categories .*: {sum(SIZES['num_classes'])} there, 0 here",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_another_model_is_told_by_its_parameters(
    reference: DiffusionReference, tmp_path: Path, changes: Any, message: str
) -> None:
    one = Case(reference, tmp_path, "single", **changes)
    with pytest.raises(CellganError, match=message):
        take_weights(one.experiment, *one.files())
    assert not one.experiment.imported_file.exists()
    assert not one.experiment.has_checkpoint


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([1], r"model000050\.pt: without an autoencoder"),
        ([0, 1, 1], r"a second diffusion"),
        ([0, 1, 2], r"1 classifiers given, but the model has 0"),
    ],
)
def test_files_that_do_not_go_together_are_refused(
    reference: DiffusionReference, tmp_path: Path, chosen: list[int], message: str
) -> None:
    steered = Case(reference, tmp_path / "a", "scdiffusion_base").files()
    one = Case(reference, tmp_path / "b", "single")
    files = [*one.files()[:2], steered[2]]
    with pytest.raises(CellganError, match=message):
        take_weights(one.experiment, *(files[index] for index in chosen))
