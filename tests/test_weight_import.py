"""Checkpoints of the original CFGen become ours, and nothing in them is run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import pathlib
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cellgan.actions.perform import perform
from cellgan.cli import main
from cellgan.data.manifest import CovariateVocabulary
from cellgan.errors import CellganError, CheckpointError
from cellgan.experiment import Experiment
from cellgan.files import write_json
from cellgan.generation.trained_model import TrainedModel
from cellgan.models.base import GenerationRequest
from cellgan.training.checkpoints import saved_steps
from cellgan.weight_import import Placeholder, read_checkpoint
from tests.manifests import make_combination, make_manifest
from tests.stored import reference_folder, stored_config

torch = pytest.importorskip("torch", reason="PyTorch, the extra import, is missing")

FILE = "cfgen.npz"
NETWORK = stored_config(FILE)["cases"]["dn_main"]
AUTOENCODER = stored_config(FILE)["cases"]["ae_rna"]
N_GENES = AUTOENCODER["in_dim"]["rna"]
*LAYERS, N_LATENT = AUTOENCODER["encoder_kwargs"]["rna"]["dims"]
EXTREMES = {
    end: float(np.float32(NETWORK[f"log_size_factor_{end}"]["rna"]))
    for end in ("min", "max")
}


def names_of(covariate: str) -> tuple[str, ...]:
    """Name its categories in our order; the original sorts c1000 before c2."""
    with np.load(reference_folder() / FILE) as stored:
        n = len(stored[f"weights/embeddings/{covariate}"])
    return tuple(f"{covariate[0]}{number}" for number in (*range(1, n), 1000))


CATEGORIES = {name: names_of(name) for name in NETWORK["covariates"]}
N_PER_COVARIATE = {name: len(names) for name, names in CATEGORIES.items()}
FIRST = next(iter(CATEGORIES))
STEPS = {"autoencoder": 30, "flow": 50}
MODEL = {
    "type": "CFGen",
    "autoencoder": {"n_latent": N_LATENT, "rna_layers": LAYERS},
    "flow": {
        "width": NETWORK["hidden_dim"],
        "embedding_width": NETWORK["embedding_dim"],
        "n_blocks": NETWORK["n_blocks"],
        "use_library_size": True,
        "log_library_sizes": {"rna": list(EXTREMES.values())},
        "standardize_latents": False,
    },
}


def take_weights(experiment: Experiment, *files: Path) -> None:
    perform("import-weights", experiment, import_weights=["cfgen", *files])


class Featurizer(torch.nn.Module):
    """Stands for the original's: a table that Lightning pickles among parameters."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.n_cat = len(table)
        self.embeddings = torch.nn.Embedding.from_pretrained(torch.tensor(table))


class Network(torch.nn.Module):
    """Stands for the original's, whose attributes Lightning pickles."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.attributes = attributes
        for name, value in attributes.items():
            setattr(self, name, value)


class Files:
    """The two files of the original, of weights that are stored for parity."""

    def __init__(self, arrays: dict[str, np.ndarray], folder: Path) -> None:
        self.arrays = arrays
        self.encoder, self.flow = folder / "encoder.ckpt", folder / "flow.ckpt"
        self.of_encoder = self.below("weights/ae_rna/")
        self.of_encoder["encoder.rna.net.0.1.num_batches_tracked"] = np.array(7)
        network = self.below("weights/dn_main/")
        self.of_flow = {
            **{f"encoder_model.{name}": of for name, of in self.of_encoder.items()},
            **{f"denoising_model.{name}": of for name, of in network.items()},
            **{f"node.vf.vf.model.{name}": of for name, of in network.items()},
        }
        self.network = {
            **{
                f"size_factor_{end}": {"rna": torch.tensor(of)}
                for end, of in EXTREMES.items()
            },
            "guided_conditioning": True,
            "conditional": True,
        }
        self.tables = {
            name: self.arrays[f"weights/embeddings/{name}"] for name in CATEGORIES
        }
        self.settings: dict[str, Any] = {
            "plotting_folder": pathlib.Path("plots"),
            "sigma": np.float64(1e-4),
            "size_factor_statistics": np.arange(3.0),
        }

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        return {
            key.removeprefix(prefix): of
            for key, of in self.arrays.items()
            if key.startswith(prefix)
        }

    def write(self) -> list[Path]:
        save(self.encoder, self.of_encoder, {"is_binarized": False})
        save(
            self.flow,
            self.of_flow,
            {
                **self.settings,
                "denoising_model": Network(**self.network),
                "feature_embeddings": {
                    name: Featurizer(table) for name, table in self.tables.items()
                },
            },
        )
        return [self.encoder, self.flow]


def save(path: Path, weights: dict[str, np.ndarray], settings: Any) -> None:
    tensors = OrderedDict((name, torch.tensor(of)) for name, of in weights.items())
    content = {"epoch": 3, "state_dict": tensors, "hyper_parameters": settings}
    torch.save(content, path)


@pytest.fixture(scope="module")
def arrays(reference_dir: Path) -> dict[str, np.ndarray]:
    with np.load(reference_dir / FILE) as stored:
        return {key: stored[key] for key in stored.files if key != "config"}


@pytest.fixture
def files(arrays: dict[str, np.ndarray], tmp_path: Path) -> Files:
    return Files(arrays, tmp_path)


def make_experiment(
    folder: Path,
    model: dict[str, Any] | None = None,
    n_genes: int = N_GENES,
    atac: dict[str, Any] | None = None,
) -> Experiment:
    """Write what --process leaves of an experiment, less its data."""
    manifest = dataclasses.replace(
        make_manifest(CATEGORIES[FIRST], range(5, 5 + N_PER_COVARIATE[FIRST]), n_genes),
        label=FIRST,
        covariates={k: CovariateVocabulary(v) for k, v in CATEGORIES.items()},
        cells_per_category={
            split: {name: (n,) * size for name, size in N_PER_COVARIATE.items()}
            for split, n in (("train", 6), ("valid", 0), ("test", 0))
        },
        combinations=tuple(
            make_combination(
                dict.fromkeys(CATEGORIES, 0) | {FIRST: code}, 6, {"rna": (50.0, 90.0)}
            )
            for code in range(N_PER_COVARIATE[FIRST])
        ),
    )
    stages = {name: {"max_steps": steps} for name, steps in STEPS.items()}
    block = {
        "input_ds": {
            "raw_input": "cells.h5ad",
            "clustering": {"key": FIRST},
            "covariates": list(CATEGORIES)[1:],
            "atac": atac,
        },
        "model": model or MODEL,
        "training": {"data_source": "disk", "stages": stages} if model is None else {},
    }
    write_json(folder / "parameters.json", block)
    write_json(folder / "manifest.json", manifest.as_json())
    return Experiment.open(folder)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return make_experiment(tmp_path / "one")


@pytest.fixture(scope="module")
def imported(
    arrays: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Experiment:
    folder = tmp_path_factory.mktemp("imported")
    experiment = make_experiment(folder / "one")
    take_weights(experiment, *Files(arrays, folder).write())
    return experiment


def parts(experiment: Experiment) -> dict[str, Any]:
    weights = TrainedModel.load(experiment.folder).model.generation_weights()
    return {**weights["flow"], "autoencoder": weights["autoencoder"]["network"]}


def close(found: Any, expected: np.ndarray) -> None:
    size = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-5 * size)


def test_autoencoder_gives_the_outputs_of_the_original(
    imported: Experiment, arrays: dict[str, np.ndarray]
) -> None:
    network = parts(imported)["autoencoder"]
    counts = {"rna": tf.constant(arrays["in/ae_rna/X_rna"])}
    latent = network.encode(counts)
    sizes = {"rna": tf.reduce_sum(counts["rna"], axis=1)}
    decoded = network.decode(latent, sizes)["rna"]

    close(latent, arrays["out/ae_rna/z_rna"])
    close(decoded.mean, arrays["out/ae_rna/mu_rna"])
    close(decoded.log_prob(counts["rna"]), arrays["out/ae_rna/logprob_rna"])


@pytest.mark.parametrize("covariate", CATEGORIES)
def test_velocity_is_that_of_the_original_with_categories_by_sorted_name(
    imported: Experiment, arrays: dict[str, np.ndarray], covariate: str
) -> None:
    network = parts(imported)["network"]
    latent = tf.constant(arrays["in/dn_main/x"])
    codes = {
        name: tf.fill((len(latent),), size) for name, size in N_PER_COVARIATE.items()
    }
    ours = CATEGORIES[covariate]
    of_theirs = [ours.index(category) for category in sorted(ours)]
    theirs = arrays[f"in/common/cat_{covariate}"]
    codes[covariate] = tf.constant([of_theirs[code] for code in theirs])
    sizes = {"rna": tf.constant(arrays["in/dn_main/log_size_factor_rna"][:, 0])}
    velocity = network(
        latent,
        tf.constant(arrays["in/common/t"]),
        network.condition(codes, sizes),
    )

    close(velocity, arrays[f"out/dn_main/v_{covariate}"])


def test_latents_are_not_standardized(imported: Experiment) -> None:
    scale = parts(imported)["scale"]

    np.testing.assert_array_equal(scale.mean, 0)
    np.testing.assert_array_equal(scale.deviation, 1)


@pytest.mark.slow
def test_stages_are_finished_and_cells_are_made(
    imported: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    found = {name: saved_steps(imported.checkpoints_folder(name)) for name in STEPS}
    assert found == {name: [steps] for name, steps in STEPS.items()}
    request = GenerationRequest(
        covariates={k: np.array([0, n - 1]) for k, n in N_PER_COVARIATE.items()},
        n_cells=2,
        seed=1,
        library_sizes={"rna": np.array([80.0, 900.0], np.float32)},
    )
    cells = TrainedModel.load(imported.folder).model.generate(request)
    assert cells.features["rna"].shape == (2, N_GENES)
    with caplog.at_level(logging.INFO):
        perform("train", Experiment.open(imported.folder))
    assert 'stage "autoencoder" is finished: 30 steps' in caplog.text
    assert 'stage "flow" is finished: 50 steps' in caplog.text


def test_note_names_the_files_and_the_order_of_categories(imported: Experiment) -> None:
    note = json.loads(imported.imported_file.read_text())
    paths = [Path(file["path"]) for file in note["files"]]

    assert [path.name for path in paths] == ["encoder.ckpt", "flow.ckpt"]
    assert [file["sha256"] for file in note["files"]] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
    ]
    assert note["categories"] == {k: sorted(of) for k, of in CATEGORIES.items()}
    assert note["steps"] == STEPS


def test_flow_alone_brings_its_encoder(
    files: Files, experiment: Experiment, imported: Experiment
) -> None:
    files.write()
    take_weights(experiment, files.flow)

    assert_same_weights(experiment, imported)


def test_running_statistics_are_those_of_the_flow(
    files: Files, experiment: Experiment, imported: Experiment
) -> None:
    name = "encoder.rna.net.0.1.running_mean"
    files.of_encoder[name] = files.of_encoder[name] + 1
    take_weights(experiment, *files.write())

    assert_same_weights(experiment, imported)


def test_encoder_alone_leaves_the_flow_to_train(
    files: Files, experiment: Experiment
) -> None:
    files.write()
    take_weights(experiment, files.encoder)

    found = {name: saved_steps(experiment.checkpoints_folder(name)) for name in STEPS}
    assert found == {"autoencoder": [30], "flow": []}


def test_names_of_categories_in_the_file_go_before_their_order(
    files: Files, experiment: Experiment, arrays: dict[str, np.ndarray]
) -> None:
    files.settings["id2cov"] = {
        name: {category: code for code, category in enumerate(reversed(categories))}
        for name, categories in CATEGORIES.items()
    }
    take_weights(experiment, *files.write())

    tables = [layer.table for layer in parts(experiment)["network"].embeddings]
    for name, table in zip(CATEGORIES, tables, strict=True):
        stored = arrays[f"weights/embeddings/{name}"]
        np.testing.assert_array_equal(table, stored[::-1])


def test_library_sizes_are_scaled_as_the_file_says(
    files: Files, tmp_path: Path
) -> None:
    flow = {**MODEL["flow"], "log_library_sizes": None}
    experiment = make_experiment(tmp_path / "one", {**MODEL, "flow": flow})

    there = json.dumps({"rna": list(EXTREMES.values())})
    refused(experiment, files, re.escape(f"flow.log_library_sizes: {there} there"))


def another(block: str, key: str, here: Any) -> tuple[dict[str, Any], int, str]:
    """Return a change of a parameter, the number of genes, and what is said of it."""
    there = MODEL[block][key]
    message = f"model.{block}.{key}: {json.dumps(there)} there, {json.dumps(here)} here"
    return {block: {key: here}}, N_GENES, re.escape(message)


WRONG_MODELS = {
    "genes": (
        {},
        N_GENES - 1,
        rf"genes \(.*min_cells\): {N_GENES} there, {N_GENES - 1} here",
    ),
    "hidden widths": another("autoencoder", "rna_layers", [*LAYERS[:-1], 2]),
    "latent": another("autoencoder", "n_latent", N_LATENT + 1),
    "dispersion": (
        {"autoencoder": {"inverse_dispersion": "gene-label"}},
        N_GENES,
        r'model\.autoencoder\.inverse_dispersion: "gene" there, "gene-label" here',
    ),
    "width": another("flow", "width", NETWORK["hidden_dim"] + 2),
    "embedding": another("flow", "embedding_width", NETWORK["embedding_dim"] + 2),
    "blocks": another("flow", "n_blocks", NETWORK["n_blocks"] + 1),
    "norm": (
        {"flow": {"normalization": "layernorm"}},
        N_GENES,
        r'model\.flow\.normalization: "none" there, "layernorm" here',
    ),
    "library size": (
        {"flow": {"use_library_size": False, "log_library_sizes": None}},
        N_GENES,
        r"model\.flow\.use_library_size: true there, false here",
    ),
    "time": (
        {"flow": {"time_frequency": 10.0}},
        N_GENES,
        r"model\.flow\.time_frequency: 1000\.0 there, 10\.0 here",
    ),
    "scale": (
        {"flow": {"standardize_latents": True}},
        N_GENES,
        r"model\.flow\.standardize_latents: false there, true here",
    ),
    "covariates": (
        {"flow": {"condition_on": [FIRST]}},
        N_GENES,
        re.escape(f': {json.dumps(sorted(CATEGORIES))} there, ["{FIRST}"] here'),
    ),
}


@pytest.mark.parametrize(
    ("changes", "n_genes", "message"), WRONG_MODELS.values(), ids=WRONG_MODELS.keys()
)
def test_other_size_is_refused_by_its_parameter(
    files: Files, tmp_path: Path, changes: dict, n_genes: int, message: str
) -> None:
    blocks = {
        name: {**MODEL[name], **changes.get(name, {})}
        for name in ("autoencoder", "flow")
    }
    experiment = make_experiment(tmp_path / "one", {**MODEL, **blocks}, n_genes)

    refused(experiment, files, message)


def lacks_a_weight(files: Files) -> None:
    del files.of_flow["denoising_model.blocks.0.cond_proj.1.bias"]


def has_a_stranger(files: Files) -> None:
    files.of_flow["denoising_model.skip.weight"] = np.ones((2, 2), np.float32)


def has_another_part(files: Files) -> None:
    files.of_flow["critic.weight"] = np.ones((2, 2), np.float32)


def has_another_shape(files: Files) -> None:
    values = np.ones((NETWORK["hidden_dim"], 9), "f4")
    files.of_flow["denoising_model.blocks.0.net1.1.weight"] = values


def is_not_finite(files: Files) -> None:
    name = "denoising_model.net_in.bias"
    files.of_flow[name] = np.full_like(files.of_flow[name], np.nan)


def has_fewer_categories(files: Files) -> None:
    files.tables[FIRST] = files.tables[FIRST][:-1]


def has_other_names(files: Files) -> None:
    codes = {name: code for code, name in enumerate(CATEGORIES[FIRST])}
    codes["another"] = codes.pop(CATEGORIES[FIRST][-1])
    files.settings["id2cov"] = {FIRST: codes}


def has_another_encoder(files: Files) -> None:
    files.of_encoder["theta"] = files.of_encoder["theta"] + 1


def is_unguided(files: Files) -> None:
    files.network["guided_conditioning"] = False


WRONG_FILES = {
    lacks_a_weight: r"flow\.ckpt:.*it lacks blocks\.0\.cond_proj\.1\.bias",
    has_a_stranger: r"flow\.ckpt:.*skip\.weight has no place here",
    has_another_part: r"flow\.ckpt:.*critic\.weight has no place here",
    has_another_shape: r"net1\.1\.weight: \((\d+), 9\) there, \(\1, \1\) here",
    is_not_finite: r"flow\.ckpt: net_in\.bias is not finite",
    has_fewer_categories: (
        f"of {FIRST}: {N_PER_COVARIATE[FIRST] - 1} there, {N_PER_COVARIATE[FIRST]} here"
    ),
    has_other_names: f"other categories of {FIRST}.*: another, {CATEGORIES[FIRST][-1]}",
    has_another_encoder: r"trained with another encoder than.*theta differs",
    is_unguided: r"guided_conditioning false",
}


@pytest.mark.parametrize(("change", "message"), WRONG_FILES.items())
def test_other_weights_are_refused_by_name(
    files: Files, experiment: Experiment, change: Any, message: str
) -> None:
    change(files)

    refused(experiment, files, message)


def refused(experiment: Experiment, files: Files, message: str) -> None:
    with pytest.raises(CellganError, match=message):
        take_weights(experiment, *files.write())
    assert not experiment.job_folder.exists()


def test_flow_without_its_encoder_is_refused(
    files: Files, experiment: Experiment
) -> None:
    for name in [n for n in files.of_flow if n.startswith("encoder_model.")]:
        del files.of_flow[name]
    files.write()

    with pytest.raises(CheckpointError, match=r"a flow without its encoder"):
        take_weights(experiment, files.flow)


def test_file_given_twice_is_refused(files: Files, experiment: Experiment) -> None:
    files.write()

    with pytest.raises(CheckpointError, match=r"a second flow, after"):
        take_weights(experiment, files.flow, files.flow)


def test_checkpoint_of_something_else_is_refused(
    files: Files, experiment: Experiment
) -> None:
    save(files.flow, {"conv.weight": np.ones(3)}, {})

    with pytest.raises(CheckpointError, match=r"neither an encoder.*conv\.weight"):
        take_weights(experiment, files.flow)


class Malicious:
    """Its pickle asks for a call that leaves a file behind."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def test_nothing_in_a_pickle_is_run(files: Files, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    calls = {
        "exec": Malicious(exec, f"open({str(trace)!r}, 'w')"),
        "path": Malicious(Path.touch, trace),
        "process": Malicious(subprocess.check_call, ["touch", str(trace)]),
    }
    save(files.flow, files.of_flow, {**calls, "sigma": 0.5})

    found = read_checkpoint(files.flow)

    assert not trace.exists()
    assert found.settings["sigma",] == 0.5
    assert {"exec", "getattr", "check_call"} <= {
        name.rpartition(".")[2] for name in found.unread
    }


def test_placeholders_keep_state_and_items(tmp_path: Path) -> None:
    save(tmp_path / "a.ckpt", {}, {"list": Names(["a", "b"]), "of": Network(x=4)})

    found = read_checkpoint(tmp_path / "a.ckpt").settings

    assert found["list", "0"] == "a"
    assert found["list", "1"] == "b"
    assert found["of", "x"] == 4


class Names(list):
    """A list of another class."""


def test_arrays_and_numbers_of_numpy_are_read(tmp_path: Path) -> None:
    values = {"a": np.arange(6.0).reshape(2, 3), "b": np.float32(0.25)}
    save(tmp_path / "a.ckpt", {}, values)

    found = read_checkpoint(tmp_path / "a.ckpt").settings

    np.testing.assert_array_equal(found["a",], values["a"])
    assert found["b",] == 0.25


def not_there(path: Path) -> None:
    path.unlink(missing_ok=True)


def text(path: Path) -> None:
    path.write_text("weights")


def truncated(path: Path) -> None:
    torch.save({"state_dict": {}}, path)
    path.write_bytes(path.read_bytes()[:300])


def other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


def script(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/data.pkl", b"")


def no_tensors(path: Path) -> None:
    torch.save({"theta": 3.0}, path)


NO_CHECKPOINTS = {
    not_there: r"x\.ckpt: no such file",
    text: r"x\.ckpt: not a checkpoint of PyTorch.*no zip archive",
    truncated: r"x\.ckpt: not a checkpoint of PyTorch",
    other_archive: r"x\.ckpt: not a checkpoint of PyTorch",
    script: r"x\.ckpt: not a checkpoint of PyTorch.*TorchScript",
    no_tensors: r'x\.ckpt: no weights of PyTorch.*"state_dict"',
}


@pytest.mark.parametrize(("write", "message"), NO_CHECKPOINTS.items())
def test_file_that_is_no_checkpoint_is_one_clear_line(
    tmp_path: Path, write: Any, message: str
) -> None:
    write(tmp_path / "x.ckpt")

    with pytest.raises(CheckpointError, match=message) as error:
        read_checkpoint(tmp_path / "x.ckpt")
    assert "\n" not in str(error.value)


def test_weights_alone_are_read(tmp_path: Path) -> None:
    torch.save(OrderedDict(theta=torch.ones(3)), tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt")
    assert list(found.weights) == ["theta"]
    assert not found.settings


def test_missing_pytorch_is_told_with_what_to_install(
    files: Files, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write()
    monkeypatch.setitem(sys.modules, "torch", None)

    with pytest.raises(CellganError, match=r"pip install 'torch>=2\.5'"):
        take_weights(experiment, files.flow)


def test_trained_experiment_is_not_overwritten(
    files: Files, imported: Experiment
) -> None:
    before = imported.imported_file.read_text()

    with pytest.raises(CellganError, match=r"one is trained already"):
        take_weights(imported, *files.write())
    assert imported.imported_file.read_text() == before


def test_other_model_type_is_refused(files: Files, tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "one", {"type": "cscGAN"})

    refused(experiment, files, r'model\.type of one is "cscGAN", expected "CFGen"')


def test_unknown_family_is_refused(experiment: Experiment) -> None:
    with pytest.raises(CellganError, match=r'no family "cfgn"\. Did you mean "cfgen"'):
        perform("import-weights", experiment, import_weights=["cfgn", "a.ckpt"])


def test_unprocessed_experiment_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {
        "exp_param": {"experiments_dir": str(tmp_path), "GPU": []},
        "experiments": {"new": {"input_ds": {"raw_input": "a.h5ad"}, "model": MODEL}},
    }
    (tmp_path / "p.json").write_text(json.dumps(document))
    command = ["--param", str(tmp_path / "p.json"), "--import-weights", "cfgen", "x"]

    assert main(command) == 2
    assert "Run --process first" in capsys.readouterr().err


def test_placeholder_takes_any_call() -> None:
    made = Placeholder(1, key=2)
    made.append(3)
    made["a"] = 4

    assert (made.arguments, made.items) == ((1, {"key": 2}), [3, {"a": 4}])


def assert_same_weights(these: Experiment, those: Experiment) -> None:
    ours, theirs = parts(these), parts(those)
    for name, network in ours.items():
        for found, expected in zip(
            network.variables, theirs[name].variables, strict=True
        ):
            np.testing.assert_array_equal(found, expected)


class OriginalMlp(torch.nn.Module):
    """Layers nested as the original nests them, which gives weights their names."""

    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        blocks: list[torch.nn.Module] = [
            torch.nn.Sequential(
                torch.nn.Linear(n_in, n_out),
                torch.nn.BatchNorm1d(n_out),
                torch.nn.ELU(),
                torch.nn.Dropout(0.1),
            )
            for n_in, n_out in itertools.pairwise(dims[:-1])
        ]
        self.net = torch.nn.Sequential(*blocks, torch.nn.Linear(*dims[-2:]))

    def forward(self, inputs: Any) -> Any:
        return self.net(inputs)


class OriginalEncoder(torch.nn.Module):
    """The original's autoencoder of both modalities."""

    def __init__(self, order: tuple[str, ...], *, joint: bool) -> None:
        super().__init__()
        dims = {"rna": [60, 24, 16, 8], "atac": [20, 12, 8]}
        top = [8] if joint else []
        self.theta = torch.nn.Parameter(torch.randn(60))
        self.encoder = torch.nn.ModuleDict({m: OriginalMlp(dims[m]) for m in order})
        self.decoder = torch.nn.ModuleDict(
            {m: OriginalMlp([*top, *dims[m][::-1]]) for m in order}
        )
        self.encoder_joint = OriginalMlp([16, 8]) if joint else None

    def encode(self, features: dict[str, Any]) -> Any:
        latents = [self.encoder[m](features[m]) for m in self.encoder]
        latent = torch.cat(latents, dim=1)
        return latent if self.encoder_joint is None else self.encoder_joint(latent)


class OriginalBlock(torch.nn.Module):
    """A residual block of the original, with layer normalisation and dropout."""

    def __init__(self) -> None:
        super().__init__()
        nn = torch.nn
        self.net1 = nn.Sequential(nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 16))
        self.cond_proj = nn.Sequential(nn.SiLU(), nn.Linear(12, 16))
        self.net2 = nn.Sequential(
            nn.LayerNorm(16), nn.SiLU(), nn.Dropout(0.1), nn.Linear(16, 16)
        )

    def forward(self, hidden: Any, condition: Any) -> Any:
        return hidden + self.net2(self.net1(hidden) + self.cond_proj(condition))


class OriginalVelocity(torch.nn.Module):
    """The original's velocity network."""

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        nn = torch.nn
        self.time_embedder = nn.Sequential(
            nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 12)
        )
        self.net_in = nn.Linear(n_latent, 16)
        self.blocks = nn.ModuleList(OriginalBlock() for _ in range(3))
        self.net_out = nn.Sequential(
            nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, n_latent)
        )

    def forward(self, latent: Any, time: Any) -> Any:
        angles = 1000 * time[:, None] * torch.logspace(0, -4, 6)[None]
        features = torch.cat([angles.sin(), angles.cos()], dim=1)
        condition = self.time_embedder(features)
        hidden = self.net_in(latent)
        for block in self.blocks:
            hidden = block(hidden, condition)
        return self.net_out(hidden)


class OriginalFlow(torch.nn.Module):
    """What Lightning saves of the flow."""

    def __init__(self, order: tuple[str, ...], *, joint: bool) -> None:
        super().__init__()
        self.encoder_model = OriginalEncoder(order, joint=joint)
        self.denoising_model = OriginalVelocity(8 if joint else 16)


@pytest.mark.parametrize(
    ("order", "joint"),
    [
        pytest.param(("rna", "atac"), True, marks=pytest.mark.slow),
        (("atac", "rna"), True),
        pytest.param(("rna", "atac"), False, marks=pytest.mark.slow),
        (("atac", "rna"), False),
    ],
)
def test_modules_nested_as_the_originals_give_its_outputs(
    tmp_path: Path, order: tuple[str, ...], *, joint: bool
) -> None:
    torch.manual_seed(0)
    theirs = OriginalFlow(order, joint=joint).eval()
    for of in theirs.state_dict().values():
        if of.ndim == 1:  # norms and biases too
            of.uniform_(0.5, 1.5)
    tables = {name: np.zeros((len(c), 12), "f4") for name, c in CATEGORIES.items()}
    settings = {
        "is_binarized": True,
        "modality_list": list(order),
        "feature_embeddings": {k: Featurizer(of) for k, of in tables.items()},
        "denoising_model": Network(guided_conditioning=True, conditional=True),
    }
    weights = {name: of.numpy() for name, of in theirs.state_dict().items()}
    save(tmp_path / "flow.ckpt", weights, settings)
    experiment = make_multiome(tmp_path / "one", joint=joint)
    take_weights(experiment, tmp_path / "flow.ckpt")

    rng = np.random.default_rng(0)
    features = {
        "rna": np.float32(rng.poisson(2, (5, 60))),
        "atac": np.float32(rng.integers(0, 2, (5, 20))),
    }
    width = 8 if joint else 16
    latent, time = np.float32(rng.normal(size=(5, width))), np.float32(rng.random(5))
    with torch.no_grad():
        of_theirs = {name: torch.tensor(of) for name, of in features.items()}
        expected = theirs.encoder_model.encode(of_theirs).numpy()
        velocity = theirs.denoising_model(torch.tensor(latent), torch.tensor(time))
    ours = parts(experiment)
    nothing = ours["network"].condition(
        {name: tf.fill((5,), len(of)) for name, of in CATEGORIES.items()}, {}
    )
    # Ours are in the order of their names.
    is_swapped = not joint and order[0] == "rna"
    swapped = np.roll(np.arange(width), 8 if is_swapped else 0)
    found = ours["autoencoder"].encode(features)
    close(found, expected[:, swapped])
    found = ours["network"](tf.constant(latent[:, swapped]), tf.constant(time), nothing)
    close(found, velocity.numpy()[:, swapped])


def make_multiome(folder: Path, *, joint: bool) -> Experiment:
    """Return an experiment of 60 genes and 20 peaks, open or closed."""
    autoencoder = {
        **{"n_latent": 8, "rna_layers": [24, 16], "atac_layers": [12]},
        **{"joint_latent": joint, "input_transform": "none"},
    }
    flow = {
        **{"width": 16, "embedding_width": 12, "n_blocks": 3, "dropout": 0.1},
        **{"normalization": "layernorm", "standardize_latents": False},
    }
    experiment = make_experiment(
        folder,
        {"type": "CFGen", "autoencoder": autoencoder, "flow": flow},
        n_genes=60,
        atac={"raw_input": "peaks.h5ad", "values": "binary"},
    )
    manifest = experiment.manifest()
    manifest = dataclasses.replace(
        manifest,
        features={**manifest.features, "atac": tuple(f"peak{n}" for n in range(20))},
        library_sizes={
            **manifest.library_sizes,
            "atac": ((3.0, 9.0),) * N_PER_COVARIATE[FIRST],
        },
        binary=("atac",),
    )
    write_json(folder / "manifest.json", manifest.as_json())
    return Experiment.open(folder)
