"""The whole path on synthetic cells: process, train, generate, evaluate."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cellgan.cli import main
from cellgan.evaluation.metrics import classifiers, published
from cellgan.experiment import Experiment
from tests.synthetic import make_cells

STEPS = 12
TINY_GAN = {"latent_dim": 4, "critic_layers": [16, 8], "gen_layers": [8, 16]}
TINY_FLOW = {
    "autoencoder": {"n_latent": 4, "rna_layers": [16]},
    "flow": {"width": 8, "embedding_width": 8, "n_blocks": 1},
}


def is_flow(blocks: dict[str, Any]) -> bool:
    return blocks.get("model", {}).get("type") == "CFGen"


def write_inputs(folder: Path, **experiments: dict[str, Any]) -> Path:
    """Write raw cells, and parameters of experiments that differ in their blocks."""
    cells = make_cells(n_cells=240)
    obs = pd.DataFrame({"cell_type": cells.labels})
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
                    "scale": "normalize_per_cell_LS_1000",
                    "split": {"test_cells": 60, "valid_cells": 36},
                },
                "training": {
                    "max_steps": STEPS,
                    "batch_size": 16,
                    "progress_freq": 4,
                    "validation_freq": 6,
                    "summary_freq": 4,
                    "save_freq": 6,
                    **({} if is_flow(blocks) else {"critic_iters": 2}),
                    **blocks.get("training", {}),
                },
                "model": {
                    **(TINY_FLOW if is_flow(blocks) else TINY_GAN),
                    **blocks.get("model", {}),
                },
            }
            for name, blocks in experiments.items()
        },
    }
    path = folder / "parameters.json"
    path.write_text(json.dumps(document))
    return path


def changed_parameters(experiment: Experiment, block: str, **changes: Any) -> Path:
    """Write the experiment's parameter file with other values in one block."""
    path = experiment.folder.parents[1] / "parameters.json"
    document = json.loads(path.read_text())
    document["experiments"]["tiny"][block].update(changes)
    changed = path.with_name("changed.json")
    changed.write_text(json.dumps(document))
    return changed


@pytest.fixture(
    scope="module", params=[pytest.param("scGAN", marks=pytest.mark.slow), "cscGAN"]
)
def experiment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Experiment:
    """An experiment after all four actions."""
    folder = tmp_path_factory.mktemp(request.param)
    path = write_inputs(folder, tiny={"model": {"type": request.param}})
    actions = ["--process", "--train", "--generate", "--evaluate"]
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "cscGAN":  # scGAN's test takes the time of whole forests
            patch.setattr(classifiers, "N_TREES", 10)
            patch.setattr(published, "N_TREES", 30)
        assert main(["--param", str(path), *actions]) == 0
    return Experiment.open(folder / "experiments" / "tiny")


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """An experiment of CFGen that is processed, trained and has generated."""
    folder = tmp_path_factory.mktemp("CFGen")
    training = {"max_steps": 20, "save_freq": 20, "validation_freq": 20}
    path = write_inputs(folder, tiny={"model": {"type": "CFGen"}, "training": training})
    actions = ["--process", "--train", "--generate", "--library-size", "250"]
    assert main(["--param", str(path), *actions]) == 0
    return Experiment.open(folder / "experiments" / "tiny")


@pytest.mark.slow
def test_both_stages_of_cfgen_leave_a_checkpoint_and_losses(flow: Experiment) -> None:
    lines = [json.loads(line) for line in flow.metrics_file.read_text().splitlines()]

    for stage in ("autoencoder", "flow"):
        kept = [path.name for path in flow.checkpoints_folder(stage).iterdir()]
        assert kept == ["model-20"]
        of_stage = [line for line in lines if line["stage"] == stage]
        losses = [line["loss"] for line in of_stage if "loss" in line]
        assert len(losses) >= 5
        assert np.isfinite(losses).all()


@pytest.mark.slow
def test_maps_of_cfgen_are_of_cells_and_of_latents(flow: Experiment) -> None:
    maps = {path.name for path in flow.embedding_folder.iterdir()}

    assert {"step_20.png", "latents_cell_type_step_20.png"} <= maps


@pytest.mark.slow
def test_cells_of_cfgen_are_counts_of_the_size_asked_for(flow: Experiment) -> None:
    cells = anndata.read_h5ad(flow.generated_file)
    totals = cells.X.sum(axis=1).A1

    assert cells.n_obs == flow.manifest().split_sizes["train"]
    assert np.all(cells.X.data % 1 == 0)
    error = totals.std() / np.sqrt(len(totals))
    assert totals.mean() == pytest.approx(250, abs=5 * error)
    assert cells.uns["cellgan"]["scale"] == "counts"


@pytest.mark.slow
def test_same_command_again_does_nothing_new_for_cfgen(flow: Experiment) -> None:
    path = flow.folder.parents[1] / "parameters.json"
    before = flow.metrics_file.read_text()

    assert main(["--param", str(path), "--process", "--train"]) == 0
    assert flow.metrics_file.read_text() == before


@pytest.mark.slow
def test_cells_of_cfgen_are_evaluated(flow: Experiment) -> None:
    path = flow.folder.parents[1] / "parameters.json"

    assert main(["--param", str(path), "--evaluate"]) == 0
    report = json.loads((flow.evaluation_folder / "report.json").read_text())
    (entry,) = report["experiments"].values()
    assert entry["cells"]["split"] == "test"


def test_every_validation_leaves_a_map(experiment: Experiment) -> None:
    maps = {path.name for path in experiment.embedding_folder.iterdir()}

    assert maps == {"step_6.png", f"step_{STEPS}.png"}


def test_checkpoints_are_kept_of_the_last_two_saves(experiment: Experiment) -> None:
    kept = {path.name for path in experiment.checkpoints_folder("gan").iterdir()}

    assert kept == {"model-6", f"model-{STEPS}"}


def test_events_hold_the_tags_of_the_reference(experiment: Experiment) -> None:
    events = EventAccumulator(str(experiment.logs_folder("gan")))
    events.Reload()
    tags = events.Tags()["tensors"]

    assert {
        "gen_loss",
        "critic_loss_1",
        "Penalty",
        "learning_rate",
        "single_cell_fake/mean",
        "single_cell_fake/histogram",
        "single_cell_real/mean",
        "single_cell_real/histogram",
        "Distance_fake",
        "Distance_real",
        "validation/critic_loss_1",
        "t-SNE",
    } <= set(tags)
    weights = [tag for tag in tags if tag.endswith("/values")]
    assert len(weights) > 8
    assert {tag.replace("/values", "/gradients") for tag in weights} <= set(tags)


def test_metrics_are_one_line_per_summary(experiment: Experiment) -> None:
    lines = experiment.metrics_file.read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]

    assert steps == [4, 6, 8, 12, 12]


def test_generated_cells_are_like_the_training_cells_in_number_and_name(
    experiment: Experiment,
) -> None:
    manifest = experiment.manifest()
    cells = anndata.read_h5ad(experiment.generated_file)

    assert cells.n_obs == manifest.split_sizes["train"]
    assert tuple(cells.var_names) == manifest.features["rna"]
    np.testing.assert_allclose(cells.X.sum(axis=1).A1, 1000, rtol=1e-4)


def test_report_has_a_ceiling_beside_every_value(experiment: Experiment) -> None:
    report = json.loads((experiment.evaluation_folder / "report.json").read_text())

    (entry,) = report["experiments"].values()
    pooled = [row for row in entry["metrics"] if row["label"] is None]
    assert len(pooled) > 30
    assert all(row["ceiling"] is not None for row in pooled if row["value"] is not None)
    assert entry["cells"]["split"] == "test"


def test_report_is_a_page_a_table_and_a_card(experiment: Experiment) -> None:
    folder = experiment.evaluation_folder

    assert "<html" in (folder / "report.html").read_text()
    assert (folder / "metrics.csv").read_text().startswith("experiment,")
    assert list((folder / "figures").glob("*.png"))
    assert experiment.name in experiment.model_card_file.read_text()


def test_same_command_again_does_nothing_new(experiment: Experiment) -> None:
    path = experiment.folder.parents[1] / "parameters.json"
    before = sorted(experiment.job_folder.rglob("model-*"))

    code = main(["--param", str(path), "--process", "--train"])

    assert code == 0
    assert sorted(experiment.job_folder.rglob("model-*")) == before


def test_changed_training_is_refused_by_key(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed_parameters(experiment, "training", batch_size=32)

    code = main(["--param", str(path), "--train"])

    assert code == 2
    assert "training.batch_size: 16 then, 32 now" in capsys.readouterr().err


def test_generating_with_the_parameters_of_another_model_is_refused(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed_parameters(experiment, "model", latent_dim=9)

    assert main(["--param", str(path), "--generate"]) == 2
    assert "model.latent_dim: 4 then, 9 now" in capsys.readouterr().err


@pytest.mark.slow
def test_parameters_may_change_until_a_step_is_kept(tmp_path: Path) -> None:
    path = write_inputs(
        tmp_path, tiny={"training": {"learning_rate": {"alpha_0": 1e30}}}
    )
    assert main(["--param", str(path), "--process", "--train"]) == 2
    experiment = Experiment.open(tmp_path / "experiments" / "tiny")
    repaired = changed_parameters(experiment, "training", learning_rate={})

    assert main(["--param", str(repaired), "--train"]) == 0
    assert experiment.has_checkpoint


@pytest.mark.parametrize("action", [["--train"], ["--generate"], ["--evaluate"]])
def test_action_before_processing_says_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], action: list[str]
) -> None:
    path = write_inputs(tmp_path, tiny={})

    assert main(["--param", str(path), *action]) == 2
    assert "Run --process first" in capsys.readouterr().err


@pytest.mark.slow
def test_estimate_tells_every_stage_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_inputs(tmp_path, tiny={})

    code = main(["--param", str(path), "--estimate"])

    output = capsys.readouterr().out
    assert code == 0
    assert re.search(r"240 cells x \d+ genes on", output)
    assert re.search(r"process +\d+ MB +\d+ (MB|kB)", output)
    assert re.search(
        r"train, gan +[\d.]+ [MG]B +\d+ MB +.* at [\d.e+]+ steps/s", output
    )
    assert re.search(r"train, 2 maps +\d+ MB +\d+ (s|min)", output)
    assert re.search(r"generate +[\d.]+ [MG]B +\d+ MB +\d+ s for 148 cells", output)
    assert re.search(r"evaluate +\d+ MB +\d+ s for 58 held-out cells", output)
    assert not (tmp_path / "experiments").exists()


@pytest.mark.slow
def test_failing_experiment_does_not_stop_the_others(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_inputs(tmp_path, good={}, bad={"training": {"checkpoint": "nowhere"}})

    code = main(["--param", str(path), "--process", "--train", "--generate"])

    output = capfd.readouterr().out
    assert code == 2
    assert "[bad] error: training.checkpoint: no checkpoint in" in output
    assert "1 of 2 experiments succeeded; failed: bad" in output
    good = Experiment.open(tmp_path / "experiments" / "good")
    assert anndata.read_h5ad(good.generated_file).n_obs > 0


@pytest.mark.slow
def test_augmentation_trains_and_scores_every_fraction(tmp_path: Path) -> None:
    path = write_inputs(tmp_path, tiny={})
    options = ["--augment", "type A", "--fractions", "0.5", "0.2", "--seeds", "1"]

    code = main(["--param", str(path), "--process", *options])

    folder = tmp_path / "experiments" / "tiny" / "augmentation"
    report = json.loads((folder / "type_A.json").read_text())
    assert code == 0
    assert [run["fraction"] for run in report["runs"]] == [0.5, 0.2]
    assert (folder / "type_A.png").exists()
