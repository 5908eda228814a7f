"""A run that was interrupted ends with the weights of one that was not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cellgan.cli import main
from cellgan.training import validation
from cellgan.training.loop import Schedule
from tests.linear_stage import LinearStage
from tests.training_run import (
    STAGES,
    make_cfdiffusion_stages,
    make_cfgen_stages,
    saved_variables,
    train,
)

ROOT = Path(__file__).parents[1]
SCHEDULE = Schedule(
    max_steps=60, progress_freq=0, validation_freq=1, summary_freq=5, save_freq=6
)


def assert_same_variables(these, those):
    for this, that in zip(saved_variables(these), saved_variables(those), strict=True):
        np.testing.assert_array_equal(this, that)


def run_and_kill(command, checkpoint):
    """Run a program of this checkout; kill it once a checkpoint is there."""
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("stop", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_resume_is_exact_for_a_stage_with_dropout(tmp_path, stop):
    whole, before, after = (LinearStage() for _ in range(3))
    train(tmp_path / "whole", whole, SCHEDULE)
    train(tmp_path / "cut", before, dataclasses.replace(SCHEDULE, max_steps=stop))
    train(tmp_path / "cut", after, SCHEDULE)
    assert_same_variables(after, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["scGAN", "cscGAN"])
def test_resume_is_exact_for_the_gan(tmp_path, kind):
    whole, resumed = STAGES[kind](), STAGES[kind]()
    schedule = Schedule(8, 0, 0, 0, 4)
    train(tmp_path / "whole", whole, schedule)
    checkpoints = "job/gan/checkpoints"
    kept = tmp_path / "whole" / checkpoints / "model-4"
    shutil.copytree(kept, tmp_path / "cut" / checkpoints / "model-4")
    train(tmp_path / "cut", resumed, schedule)
    assert_same_variables(resumed, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cycle", "vae"])
def test_resume_is_exact_for_models_of_one_stage(tmp_path, kind):
    whole, resumed = STAGES[kind](), STAGES[kind]()
    schedule = Schedule(6, 0, 0, 0, 3)
    train(tmp_path / "whole", whole, schedule)
    keep_checkpoints(tmp_path, f"{kind}/checkpoints/model-3")
    train(tmp_path / "cut", resumed, schedule)
    assert_same_variables(resumed, whole)


@pytest.mark.slow
def test_resume_is_exact_for_the_autoencoder_of_cfgen(tmp_path):
    whole, resumed = make_cfgen_stages()[0], make_cfgen_stages()[0]
    schedule = Schedule(6, 0, 0, 0, 3)
    train(tmp_path / "whole", whole, schedule)
    keep_checkpoints(tmp_path, "autoencoder/checkpoints/model-3")
    train(tmp_path / "cut", resumed, schedule)
    assert_same_variables(resumed, whole)


@pytest.mark.slow
def test_resume_is_exact_for_the_flow_of_cfgen_in_a_new_model(tmp_path):
    whole, resumed = make_cfgen_stages(), make_cfgen_stages()
    schedule = Schedule(6, 0, 0, 0, 3)
    for stage in whole:
        train(tmp_path / "whole", stage, schedule)
    kept = ("autoencoder/checkpoints/model-6", "flow/checkpoints/model-3")
    keep_checkpoints(tmp_path, *kept)
    for stage in resumed:
        train(tmp_path / "cut", stage, schedule)
    for mine, other in zip(resumed, whole, strict=True):
        assert_same_variables(mine, other)


@pytest.mark.slow
def test_resume_is_exact_for_both_stages_of_cfdiffusion_in_a_new_model(tmp_path):
    whole, resumed = make_cfdiffusion_stages(), make_cfdiffusion_stages()
    schedule = Schedule(6, 0, 0, 0, 3)
    for stage in whole:
        train(tmp_path / "whole", stage, schedule)
    kept = ("autoencoder/checkpoints/model-3", "diffusion/checkpoints/model-3")
    keep_checkpoints(tmp_path, *kept)
    for stage in resumed:
        train(tmp_path / "cut", stage, schedule)
    for mine, other in zip(resumed, whole, strict=True):
        assert_same_variables(mine, other)


def keep_checkpoints(folder, *kept):
    """Let a run find some checkpoints of another, as if it had been stopped there."""
    for path in kept:
        shutil.copytree(folder / "whole/job" / path, folder / "cut/job" / path)


@pytest.mark.slow
def test_resume_is_exact_after_sigkill(tmp_path):
    folder = tmp_path / "killed"
    plan = json.dumps(dataclasses.asdict(SCHEDULE))
    run_and_kill(
        ["tests.training_run", folder, "linear", "one_device", "1", plan],
        folder / "job/linear/checkpoints/model-18",
    )
    whole, resumed = STAGES["linear"](), STAGES["linear"]()
    train(tmp_path / "whole", whole, SCHEDULE)
    assert train(folder, resumed, SCHEDULE) == 60
    assert_same_variables(resumed, whole)
    lines = (folder / "job/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 61, 5))


def checkpoint_of_step(experiments_dir, step):
    folder = experiments_dir / "pbmc/job/gan/checkpoints" / f"model-{step}"
    reader = tf.train.load_checkpoint(str(folder / "model"))
    keys = reader.get_variable_to_shape_map()
    return {key: reader.get_tensor(key) for key in keys if key[0] != "_"}


def write_parameters(folder, model_type, valid_cells, **training):
    """Write parameters of a tiny GAN of the embedded cells."""
    experiment = {
        "input_ds": {
            "raw_input": "builtin:pbmc68k_reduced",
            "clustering": {"key": "bulk_labels"},
            "split": {"valid_cells": valid_cells},
        },
        "training": {"batch_size": 16, "progress_freq": 0, "summary_freq": 0}
        | training,
        "model": {
            "type": model_type,
            "latent_dim": 4,
            "gen_layers": [8],
            "critic_layers": [8],
        },
    }
    document = {
        "exp_param": {"experiments_dir": str(folder), "GPU": []},
        "experiments": {"pbmc": experiment},
    }
    file = folder.with_suffix(".json")
    file.write_text(json.dumps(document))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["scGAN", "cscGAN"])
def test_the_same_command_goes_on_exactly_after_sigkill(tmp_path, model_type):
    commands = {}
    for name in ("whole", "killed"):
        file = write_parameters(
            tmp_path / name,
            model_type,
            valid_cells=0,
            max_steps=600,
            validation_freq=0,
            save_freq=20,
        )
        commands[name] = ["cellgan.cli", "--param", file, "--process", "--train"]
    checkpoints = tmp_path / "killed/pbmc/job/gan/checkpoints"
    run_and_kill(commands["killed"], checkpoints / "model-100")
    assert not (checkpoints / "model-600").exists()
    commands["killed"].remove("--process")
    for command in commands.values():
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    whole, resumed = (checkpoint_of_step(tmp_path / name, 600) for name in commands)
    assert set(resumed) == set(whole)
    assert len(whole) > 20
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed[key], value)


class KilledError(BaseException):
    """Stops a process where nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 8])
def test_a_map_that_a_killed_run_had_not_drawn_is_drawn_on_resume(
    tmp_path, monkeypatch, step
):
    plan = {"max_steps": 8, "validation_freq": 4, "save_freq": 4}
    commands = {}
    for name in ("whole", "killed"):
        file = write_parameters(tmp_path / name, "cscGAN", valid_cells=60, **plan)
        commands[name] = ["--param", str(file), "--process", "--train"]
    save = validation.save

    def save_until_killed(figure, path):
        if path.name == f"step_{step}.png":
            raise KilledError
        save(figure, path)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "save", save_until_killed)
        with pytest.raises(KilledError):
            main(commands["killed"])
    job = tmp_path / "killed/pbmc/job"
    assert checkpoint_of_step(tmp_path / "killed", step)
    assert not (job / "TSNE" / f"step_{step}.png").exists()

    assert [main(command) for command in commands.values()] == [0, 0]
    maps = {path.name for path in (job / "TSNE").iterdir()}
    assert maps == {"step_4.png", "step_8.png"}
    lines = (job / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 8]
    whole, resumed = (checkpoint_of_step(tmp_path / name, 8) for name in commands)
    assert set(resumed) == set(whole)
    for key, value in whole.items():
        np.testing.assert_array_equal(resumed[key], value)
