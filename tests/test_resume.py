"""A run that was interrupted ends with the weights of one that was not."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cellgan.training import Schedule
from tests.linear_stage import LinearStage, train

ROOT = Path(__file__).parents[1]
SCHEDULE = Schedule(
    max_steps=60, progress_freq=0, validation_freq=1, summary_freq=5, save_freq=6
)


def assert_equal(these, those):
    for this, that in zip(these, those, strict=True):
        np.testing.assert_array_equal(this, that)


@pytest.mark.parametrize("stop", [1, 7, 30])
def test_resume_is_exact_for_a_stage_with_dropout(tmp_path, stop):
    whole, before, after = LinearStage(), LinearStage(), LinearStage()
    train(tmp_path / "whole", whole, SCHEDULE)
    train(tmp_path / "cut", before, dataclasses.replace(SCHEDULE, max_steps=stop))
    train(tmp_path / "cut", after, SCHEDULE)
    assert_equal(after.weights(), whole.weights())


def wait_for(path, process):
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.005)


def test_resume_is_exact_after_sigkill(tmp_path):
    folder = tmp_path / "killed"
    schedule = json.dumps(dataclasses.asdict(SCHEDULE))
    command = [sys.executable, "-m", "tests.linear_stage", folder, "one_device", "1"]
    process = subprocess.Popen([*command, schedule], cwd=ROOT)
    wait_for(folder / "job/linear/checkpoints/model-18", process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "weights-0.npz").exists()

    whole, resumed = (LinearStage(noise=0.0, dropout=0.0) for _ in range(2))
    train(tmp_path / "whole", whole, SCHEDULE)
    assert train(folder, resumed, SCHEDULE) == 60
    assert_equal(resumed.weights(), whole.weights())
    steps = [
        json.loads(line)["step"]
        for line in (folder / "job/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(5, 61, 5))
