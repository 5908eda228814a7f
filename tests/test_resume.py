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

from cellgan.training import Schedule
from tests.linear_stage import LinearStage
from tests.training_run import STAGES, saved_variables, train

ROOT = Path(__file__).parents[1]
SCHEDULE = Schedule(
    max_steps=60, progress_freq=0, validation_freq=1, summary_freq=5, save_freq=6
)


def assert_same_variables(these, those):
    for this, that in zip(saved_variables(these), saved_variables(those), strict=True):
        np.testing.assert_array_equal(this, that)


def killed_run(folder, kind, schedule, checkpoint):
    """Start training in a process of its own; kill it once a checkpoint is there."""
    command = [sys.executable, "-m", "tests.training_run", folder, kind]
    plan = json.dumps(dataclasses.asdict(schedule))
    process = subprocess.Popen([*command, "one_device", "1", plan], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (folder / checkpoint).exists() and time.monotonic() < deadline:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("stop", [1, 7])
def test_resume_is_exact_for_a_stage_with_dropout(tmp_path, stop):
    whole, before, after = (LinearStage() for _ in range(3))
    train(tmp_path / "whole", whole, SCHEDULE)
    train(tmp_path / "cut", before, dataclasses.replace(SCHEDULE, max_steps=stop))
    train(tmp_path / "cut", after, SCHEDULE)
    assert_same_variables(after, whole)


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


def test_resume_is_exact_after_sigkill(tmp_path):
    folder = tmp_path / "killed"
    killed_run(folder, "linear", SCHEDULE, "job/linear/checkpoints/model-18")
    whole, resumed = STAGES["linear"](), STAGES["linear"]()
    train(tmp_path / "whole", whole, SCHEDULE)
    assert train(folder, resumed, SCHEDULE) == 60
    assert_same_variables(resumed, whole)
    lines = (folder / "job/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 61, 5))


@pytest.mark.slow
def test_resume_of_the_gan_is_exact_after_sigkill(tmp_path):
    folder = tmp_path / "killed"
    killed_run(folder, "cscGAN", SCHEDULE, "job/gan/checkpoints/model-24")
    whole, resumed = STAGES["cscGAN"](), STAGES["cscGAN"]()
    train(tmp_path / "whole", whole, SCHEDULE)
    assert train(folder, resumed, SCHEDULE) == 60
    assert_same_variables(resumed, whole)
