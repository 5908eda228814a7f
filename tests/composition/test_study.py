"""Whole studies, from files to the report: what they find, and what is done again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest

from cellgan.actions.perform import perform
from cellgan.cli import main
from cellgan.composition.scores import evaluate_composition
from cellgan.composition.study import Study
from cellgan.config.reading import load_parameters
from cellgan.errors import CellganError
from preprocessing.composition.corpora import process_composition
from tests.composition_studies import composition, write_parameters, write_source
from tests.tissues import REFERENCE_ELBO, REFERENCE_R2, write_tissue

TRAINING = {
    "max_steps": 40,
    "batch_size": 32,
    "validation_freq": 0,
    "progress_freq": 0,
    "learning_rate": {"alpha_0": 5e-3},
}


def open_study(file: Path, folder: Path) -> Study:
    return Study(
        folder / "experiments" / "study", load_parameters(file).studies["study"]
    )


def train_here(study: Study) -> list[str]:
    """Train what is not trained, in this process; return the names."""
    trained = []
    for name, experiment in study.experiments(study.manifest()).items():
        if not experiment.is_trained:
            keras.utils.clear_session()
            perform("train", experiment)
            trained.append(name)
    return trained


def summary_of(study: Study, metric: str = "r2") -> pd.DataFrame:
    rows = pd.read_csv(study.report_folder / "summary.csv", keep_default_na=True)
    rows = rows[(rows["metric"] == metric) & rows["group"].isna()]
    return rows[rows["model"] == "trained model"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """Process, train and evaluate three sources, four mixtures and two seeds."""
    folder = tmp_path_factory.mktemp("finished")
    block = composition(folder)
    write_source(folder / "skin.h5ad", 7, tissue=["skin"] * 300)
    block["sources"]["skin"] = {"file": str(folder / "skin.h5ad"), "cells": 80}
    block["mixtures"]["skin"] = [{"source": "skin"}]
    block["evaluations"]["skin"] = {"source": "skin", "cells": 40, "genes": 20}
    block["evaluations"]["blood"]["group_by"] = "cell_type"
    block["seeds"] = [0, 1]
    file = write_parameters(folder, block, training=TRAINING)
    assert main(["--param", str(file), "--process"]) == 0
    study = open_study(file, folder)
    assert len(train_here(study)) == 8
    assert main(["--param", str(file), "--evaluate"]) == 0
    return study, file


@pytest.mark.slow
def test_study_ends_in_tables_that_agree(finished: tuple[Study, Path]) -> None:
    study, _ = finished
    cells = pd.read_csv(study.report_folder / "cells.csv.gz", keep_default_na=False)
    cells["r2"] = pd.to_numeric(cells["r2"])
    rows = summary_of(study)

    assert len(rows) == 4 * 3
    assert set(cells["model"]) == {
        "trained model",
        "mean of training cells",
        "principal components",
    }
    trained = cells[cells["model"] == "trained model"]
    assert len(trained) == 4 * 2 * (60 + 50 + 40)
    medians = trained.groupby(["mixture", "evaluation", "seed"])["r2"].median()
    values = medians.groupby(["mixture", "evaluation"]).mean()
    found = rows.set_index(["mixture", "evaluation"])
    # The table of cells has six digits.
    np.testing.assert_allclose(found["value"], values[found.index], rtol=1e-4)
    baseline = found.xs("base")["value"]
    ratio = np.log2(found["value"] / baseline[found.index.get_level_values(1)].array)
    np.testing.assert_allclose(found["log2_ratio"], ratio, atol=1e-9)
    assert (found.xs("base")["log2_ratio"] == 0).all()


@pytest.mark.slow
def test_models_of_two_seeds_are_different_models(
    finished: tuple[Study, Path],
) -> None:
    study, _ = finished
    cells = pd.read_csv(study.report_folder / "cells.csv.gz", keep_default_na=False)
    of = cells[(cells["model"] == "trained model") & (cells["mixture"] == "base")]
    values = of.pivot(index=["evaluation", "cell"], columns="seed", values="r2")

    assert (values[0].astype(float) != values[1].astype(float)).mean() > 0.99
    latents = pd.read_csv(study.report_folder / "latents.csv")
    same_mixture = latents[latents["mixture"] == latents["other_mixture"]]
    assert (same_mixture["predictability"] < 0.9999).all()


@pytest.mark.slow
def test_report_has_a_verdict_for_every_evaluation_set(
    finished: tuple[Study, Path],
) -> None:
    study, _ = finished
    document = json.loads((study.report_folder / "report.json").read_text())
    page = (study.report_folder / "report.html").read_text()

    assert [of["evaluation"] for of in document["verdicts"]] == [
        "blood",
        "marrow",
        "skin",
    ]
    for of in document["verdicts"]:
        assert of["sentences"][0].split(":")[0] in page
    figures = {path.stem for path in (study.report_folder / "figures").iterdir()}
    assert {"heat_map", "control_differences", "boxes", "seeds"} <= figures


@pytest.mark.slow
def test_groups_have_rows_of_their_own(finished: tuple[Study, Path]) -> None:
    study, _ = finished
    rows = pd.read_csv(study.report_folder / "summary.csv")
    groups = rows[rows["group"].notna() & (rows["metric"] == "r2")]

    assert set(groups["evaluation"]) == {"blood"}
    assert groups["n_cells"].min() >= study.composition.min_cells
    assert groups.groupby("mixture")["n_cells"].sum().max() <= 60


@pytest.mark.slow
def test_deleted_model_is_trained_again_alone(
    finished: tuple[Study, Path], tmp_path: Path
) -> None:
    study, file = finished
    copy = Study(tmp_path / "study", study.parameters)
    shutil.copytree(study.folder, copy.folder)
    shutil.rmtree(copy.folder / "plus-seed1" / "job")

    assert main(["--param", str(file), "--train"]) == 0  # nothing to do: at once
    assert train_here(copy) == ["plus-seed1"]


@pytest.mark.slow
def test_changed_share_retrains_its_mixture_alone(
    finished: tuple[Study, Path], tmp_path: Path
) -> None:
    study, _ = finished
    shutil.copytree(study.folder.parent, tmp_path / "experiments")
    document = json.loads((study.folder.parents[1] / "parameters.json").read_text())
    document["exp_param"]["experiments_dir"] = str(tmp_path / "experiments")
    block = document["experiments"]["study"]["composition"]
    block["mixtures"]["plus"][1]["cells"] = 50
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps(document))

    assert main(["--param", str(file), "--process", "--overwrite"]) == 0

    assert train_here(open_study(file, tmp_path)) == ["plus-seed0", "plus-seed1"]


@pytest.mark.slow
def test_queue_trains_every_model_and_tells_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = composition(tmp_path)
    del block["mixtures"]["control"], block["size_control"]
    file = write_parameters(tmp_path, block, training={**TRAINING, "max_steps": 5})

    assert main(["--param", str(file), "--process", "--train"]) == 0

    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("study: ") and " models" in line]
    assert told[0] == "study: 0 of 2 models are trained"
    assert told[-1].startswith("study: 2 of 2 models, plus-seed0 trained;")


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["cscGAN", "CFGen"])
def test_other_model_types_are_studied_too(tmp_path: Path, model_type: str) -> None:
    block = composition(tmp_path)
    block["mixtures"] = {name: block["mixtures"][name] for name in ("base", "plus")}
    del block["size_control"]
    models: dict[str, Any] = {
        "cscGAN": {"latent_dim": 4, "critic_layers": [16], "gen_layers": [16]},
        "CFGen": {
            "autoencoder": {
                "n_latent": 3,
                "rna_layers": [16],
                "inverse_dispersion": "gene",
            },
        },
    }
    block["budget"] = {"steps": 20}
    file = write_parameters(
        tmp_path,
        block,
        model={"type": model_type, **models[model_type]},
        training={key: of for key, of in TRAINING.items() if key != "max_steps"},
    )
    assert main(["--param", str(file), "--process"]) == 0
    study = open_study(file, tmp_path)
    train_here(study)

    assert main(["--param", str(file), "--evaluate"]) == 0

    metrics = {
        "cscGAN": {"mmd_squared", "energy_distance", "sliced_wasserstein"},
        "CFGen": {"r2", "correlation", "nll"},
    }
    rows = pd.read_csv(study.report_folder / "summary.csv")
    assert metrics[model_type] <= set(rows["metric"])
    assert np.isfinite(rows.loc[rows["model"] == "trained model", "value"]).all()


@pytest.mark.slow
def test_study_that_is_not_trained_is_not_evaluated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_parameters(tmp_path, composition(tmp_path))
    assert main(["--param", str(file), "--process"]) == 0

    assert main(["--param", str(file), "--evaluate"]) == 2

    assert "3 of 3 models are not trained" in capsys.readouterr().err


def test_what_is_not_for_a_study_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_parameters(tmp_path, composition(tmp_path))

    assert main(["--param", str(file), "--generate"]) == 2
    assert "--generate is not for a composition study" in capsys.readouterr().err
    assert main(["--param", str(file), "--train"]) == 2
    assert "composition.json: no such file. Run --process" in capsys.readouterr().err


def test_config_of_a_study_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_parameters(tmp_path, composition(tmp_path))

    assert main(["--param", str(file), "--print-config"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["study"]["composition"]["seed_scope"] == "both"
    assert printed["study"]["training"]["optimizer"]["algorithm"] == "AdamL2"


def test_changed_composition_is_told_by_key(tmp_path: Path) -> None:
    file = write_parameters(tmp_path, composition(tmp_path))
    assert main(["--param", str(file), "--process"]) == 0
    block = composition(tmp_path)
    block["mixtures"]["base"][0]["cells"] = 40
    file = write_parameters(tmp_path, block)

    with pytest.raises(CellganError, match="mixtures of the composition differ"):
        open_study(file, tmp_path).manifest()


@pytest.mark.realdata
def test_preset_makes_its_corpora_from_real_cells(
    tmp_path: Path, data_dir: Path
) -> None:
    preset = Path(__file__).parents[2] / "Misc/parameters/LDVAE_composition.json"
    document = json.loads(preset.read_text())
    document["exp_param"]["experiments_dir"] = str(tmp_path)
    block = document["experiments"]["blood"]["composition"]
    others = [block["evaluations"]["other donors"]["external"]]
    for source in (*block["sources"].values(), *others):
        source["file"] = str(data_dir / source["file"])
    block["seeds"] = [0]
    file = tmp_path / "parameters.json"
    file.write_text(json.dumps(document))

    assert main(["--param", str(file), "--process"]) == 0

    found = json.loads((tmp_path / "blood" / "composition.json").read_text())
    available = {name: of["available"] for name, of in found["sources"].items()}
    assert available == {
        "healthy": 2194,
        "frozen": 2382,
        "aml": 2767,
        "stimulated": 840,
    }
    assert found["genes"]["n"] == 3000
    assert {name: of["n_train"] for name, of in found["corpora"].items()} == {
        "healthy-seed0": 800,
        "more healthy-seed0": 1600,
        "plus frozen-seed0": 1600,
        "plus aml-seed0": 1600,
        "plus stimulated-seed0": 1600,
        "aml-seed0": 800,
    }
    for of in found["corpora"].values():
        assert [shared["cells"] for shared in of["overlap"].values()] == [0] * 5


# The toy study: tissues, and what the original has found with them.


@pytest.fixture(scope="module")
def tissues(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Train on four mixtures of tissues with two seeds; return values and ELBO."""
    folder = tmp_path_factory.mktemp("tissues")
    evaluations = {
        tissue: {
            "external": {
                "file": write_tissue(folder / f"e{tissue}.h5ad", tissue, 200, seed)
            },
            "genes": "all",
        }
        for tissue, seed in (("A", 101), ("B", 102), ("C", 103))
    }
    rows = []
    for seed in (0, 1):
        sources = {
            name: {
                "file": write_tissue(
                    folder / f"{name}{seed}.h5ad", name[0], 600, first + seed
                )
            }
            for name, first in (("A", 11), ("A2", 21), ("B", 31))
        }
        block = {
            "sources": sources,
            "mixtures": {
                "A": [{"source": "A"}],
                "A+A": [{"source": "A"}, {"source": "A2"}],
                "A+B": [{"source": "A"}, {"source": "B"}],
                "B": [{"source": "B"}],
            },
            "baseline": "A",
            "size_control": "A+A",
            "seeds": [seed],
            "valid_fraction": 0.1,
            "evaluations": evaluations,
            "budget": {"epochs": 60, "equal": False},
            "replicates": 20,
        }
        training = {
            "batch_size": 128,
            "validation_freq": 0,
            "progress_freq": 0,
            "summary_freq": 10,
            "learning_rate": {"alpha_0": 5e-3},
        }
        model = {"type": "LDVAE", "n_latent": 10, "n_layers": 2}
        file = write_parameters(folder, block, model=model, training=training)
        study = open_study(file, folder)
        study = Study(folder / "experiments" / f"study{seed}", study.parameters)
        process_composition(study)
        train_here(study)
        evaluate_composition(study)
        found = summary_of(study)[["mixture", "evaluation", "value"]]
        rows.append(found.assign(seed=seed))
        for mixture in REFERENCE_ELBO:
            metrics = study.folder / f"{mixture}-seed{seed}" / "job" / "metrics.jsonl"
            lines = list(map(json.loads, metrics.read_text().splitlines()))
            last = np.mean([line["negative_elbo"] for line in lines[-5:]])
            elbo = {"mixture": mixture, "evaluation": "elbo", "value": last}
            rows.append(pd.DataFrame([{**elbo, "seed": seed}]))
    values = pd.concat(rows)
    return values.pivot_table(index="mixture", columns="evaluation", values="value")


@pytest.mark.slow
def test_tissues_are_learned_as_well_as_by_the_original(
    tissues: pd.DataFrame,
) -> None:
    for mixture, expected in REFERENCE_ELBO.items():
        assert tissues.loc[mixture, "elbo"] == pytest.approx(expected, rel=0.1)


@pytest.mark.slow
def test_unseen_tissues_are_not_reconstructed(tissues: pd.DataFrame) -> None:
    reference = pd.DataFrame(REFERENCE_R2).T
    unseen = reference.to_numpy() < 0.01
    found = tissues.loc[reference.index, reference.columns].to_numpy()

    assert unseen.sum() == 7
    assert found[unseen].max() < 0.02


@pytest.mark.slow
def test_mixtures_are_as_good_as_the_original_s_and_in_its_order(
    tissues: pd.DataFrame,
) -> None:
    reference = pd.DataFrame(REFERENCE_R2).T
    found = tissues.loc[reference.index, reference.columns]

    np.testing.assert_allclose(found, reference, atol=0.08)
    assert found["A"].sort_values().index.tolist() == ["B", "A", "A+A", "A+B"]
    assert found["B"]["A+B"] > found["B"]["B"] > found["B"]["A"]
