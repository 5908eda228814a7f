"""The one training loop."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from cellgan.errors import TrainingError
from cellgan.seeds import derive_seed
from cellgan.training.checkpoints import saved_steps
from cellgan.training.loop import Schedule, replica_seed
from tests.linear_stage import LinearStage, batches_from
from tests.training_run import train

QUIET = Schedule(
    max_steps=23, progress_freq=0, validation_freq=0, summary_freq=0, save_freq=10
)
frequencies = st.integers(min_value=-1, max_value=12)


def assert_equal(these, those):
    for this, that in zip(these, those, strict=True):
        np.testing.assert_array_equal(this, that)


@pytest.mark.parametrize("save_freq", [0, -1])
def test_only_the_last_step_is_saved_when_saving_is_off(save_freq):
    schedule = Schedule(25, 0, 0, 0, save_freq)
    due = {step: set(schedule.due(step)) for step in range(1, 26) if schedule.due(step)}
    assert due == {25: {"save"}}


def test_the_trained_model_is_kept_when_saving_is_off(tmp_path):
    train(tmp_path, LinearStage(), dataclasses.replace(QUIET, save_freq=0))
    assert saved_steps(tmp_path / "job/linear/checkpoints") == [23]


def test_schedule_has_an_action_due_at_its_frequency_and_after_the_last_step():
    schedule = Schedule(25, 10, 0, -1, 8)
    due = {step: set(schedule.due(step)) for step in range(1, 26) if schedule.due(step)}
    assert due == {
        8: {"save"},
        10: {"progress"},
        16: {"save"},
        20: {"progress"},
        24: {"save"},
        25: {"progress", "save"},
    }


@given(
    st.tuples(frequencies, frequencies, frequencies, frequencies), st.integers(1, 40)
)
def test_next_due_is_the_first_later_step_with_an_action_or_the_last(freqs, max_steps):
    schedule = Schedule(max_steps, *freqs)
    for step in range(max_steps):
        later = range(step + 1, max_steps + 1)
        expected = next((s for s in later if schedule.due(s)), max_steps)
        assert schedule.next_due(step) == expected


@pytest.mark.parametrize(
    "steps_per_call", [3, pytest.param(10, marks=pytest.mark.slow)]
)
def test_weights_do_not_depend_on_steps_per_call(tmp_path, steps_per_call):
    one, several = LinearStage(), LinearStage()
    train(tmp_path / "one", one, dataclasses.replace(QUIET, steps_per_call=1))
    schedule = dataclasses.replace(QUIET, steps_per_call=steps_per_call)
    train(tmp_path / "several", several, schedule)
    assert_equal(several.weights(), one.weights())


@pytest.mark.slow
def test_weights_do_not_depend_on_summaries(tmp_path):
    quiet, talking = LinearStage(), LinearStage()
    train(tmp_path / "quiet", quiet, QUIET)
    train(tmp_path / "talking", talking, dataclasses.replace(QUIET, summary_freq=1))
    assert_equal(talking.weights(), quiet.weights())


@pytest.mark.slow
def test_every_step_gets_the_batches_at_its_position(tmp_path):
    schedule = dataclasses.replace(QUIET, summary_freq=1, max_steps=4)
    train(tmp_path, LinearStage(), schedule)
    train(tmp_path, LinearStage(), dataclasses.replace(schedule, max_steps=8))
    lines = (tmp_path / "job/metrics.jsonl").read_text().splitlines()
    drawn = batches_from(0, 0, 1).batch(2).take(8)
    expected = [float(batches.features["rna"][0, 0, 0]) for batches in drawn]
    assert [json.loads(line)["value"] for line in lines] == expected


def test_every_function_is_traced_once_whatever_the_number_of_steps(tmp_path):
    stage = LinearStage()
    schedule = Schedule(41, 3, 0, 5, 7, steps_per_call=4)
    train(tmp_path, stage, schedule)
    assert stage.traces == {"first_step": 1, "train_step": 1, "diagnostics": 1}


def test_step_0_alone_is_the_first_step(tmp_path):
    stage, by_hand = LinearStage(), LinearStage()
    train(tmp_path, stage, dataclasses.replace(QUIET, max_steps=2))
    drawn = list(batches_from(0, 0, 1).take(4))
    for step, method in enumerate((by_hand.first_step, by_hand.train_step)):
        seed = replica_seed(derive_seed(0, "linear"), tf.constant(step, tf.int64))
        method(tuple(drawn[2 * step : 2 * step + 2]), seed)
    for found, expected in zip(stage.weights(), by_hand.weights(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_resumed_run_does_not_do_the_first_step_again(tmp_path):
    train(tmp_path, LinearStage(), dataclasses.replace(QUIET, max_steps=5))
    stage = LinearStage()
    train(tmp_path, stage, dataclasses.replace(QUIET, max_steps=8))
    assert stage.traces == {"first_step": 0, "train_step": 1, "diagnostics": 0}


def test_a_finished_stage_is_skipped_with_a_line_in_the_log(tmp_path, caplog):
    train(tmp_path, LinearStage(), QUIET)
    stage = LinearStage()
    with caplog.at_level(logging.INFO, logger="cellgan"):
        assert train(tmp_path, stage, QUIET) == 23
    assert 'stage "linear" is finished: 23 steps' in caplog.text
    assert stage.traces["train_step"] == 0


@pytest.mark.parametrize(
    "steps_per_call", [1, pytest.param(4, marks=pytest.mark.slow), 100]
)
def test_a_nan_inside_a_call_stops_at_its_step_and_keeps_the_checkpoint(
    tmp_path, steps_per_call
):
    stage = LinearStage(nan_at_iteration=16)  # the step after 16 completed ones
    schedule = dataclasses.replace(QUIET, save_freq=8, steps_per_call=steps_per_call)
    message = (
        r'stage "linear": loss became nan in step 17; the checkpoint of step 16 is '
        r"sound.\n    .*alpha_0.* goes on from step 16"
    )
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, stage, schedule)
    assert int(stage.optimizer.iterations) == 17
    folder = tmp_path / "job/linear/checkpoints"
    assert {path.name for path in folder.iterdir()} == {"model-8", "model-16"}


def test_a_nan_before_any_checkpoint_says_so(tmp_path):
    with pytest.raises(TrainingError, match="in step 1; there is no checkpoint yet"):
        train(tmp_path, LinearStage(nan_at_iteration=0), QUIET)
    assert not (tmp_path / "job/linear/checkpoints").exists()


def test_a_failing_validation_leaves_the_checkpoint_of_its_step(tmp_path):
    def fail(step):
        msg = f"no plot of step {step}"
        raise OSError(msg)

    with pytest.raises(OSError, match="no plot of step 6"):
        train(tmp_path, LinearStage(), Schedule(12, 0, 6, 0, 6), on_validation=fail)
    assert saved_steps(tmp_path / "job/linear/checkpoints") == [6]


def test_validation_follows_every_step_at_its_frequency(tmp_path):
    seen = []
    schedule = Schedule(14, 0, 6, 0, 0)
    train(tmp_path, LinearStage(), schedule, on_validation=seen.append)
    assert seen == [6, 12, 14]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "expected"), [((), [12, 14]), ((6,), [6, 12, 14]), ((5, 8), [12, 14])]
)
def test_a_resumed_run_begins_with_the_validation_it_has_missed(
    tmp_path, missing, expected
):
    resumed, seen = LinearStage(), []
    train(tmp_path, LinearStage(), Schedule(6, 0, 0, 0, 6))
    schedule = Schedule(14, 0, 6, 0, 7)
    train(tmp_path, resumed, schedule, on_validation=seen.append, missing=missing)
    whole = LinearStage()
    train(tmp_path / "whole", whole, schedule)
    assert seen == expected
    assert_equal(resumed.weights(), whole.weights())


@pytest.mark.parametrize(
    ("frequency", "expected"),
    [pytest.param(6, [14], marks=pytest.mark.slow), (0, [])],
    ids=["due", "switched off"],
)
def test_a_finished_stage_makes_up_for_its_last_validation(
    tmp_path, frequency, expected
):
    seen = []
    train(tmp_path, LinearStage(), Schedule(14, 0, 0, 0, 7))
    schedule = Schedule(14, 0, frequency, 0, 7)
    stage = LinearStage()
    train(tmp_path, stage, schedule, on_validation=seen.append, missing=(14,))
    assert seen == expected
    assert int(stage.optimizer.iterations) == 14


def test_a_run_that_begins_validates_nothing_first(tmp_path):
    seen = []
    schedule = Schedule(6, 0, 6, 0, 6)
    train(tmp_path, LinearStage(), schedule, on_validation=seen.append, missing=(0, 6))
    assert seen == [6]


def test_progress_is_one_line_with_rate_and_losses(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="cellgan"):
        train(tmp_path / "pbmc", LinearStage(), Schedule(20, 10, 0, 0, 0))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    pattern = (
        r"pbmc: step 10/20, [\d.e+]+ steps/s, (\d+ min )?\d+ s left, loss [\d.]+, "
        r"iteration 9, value -?[\d.]+"
    )
    assert re.fullmatch(pattern, lines[0])


@pytest.mark.slow
def test_the_seed_of_a_step_differs_from_that_of_every_other():
    root = derive_seed(0, "linear")
    steps = tf.range(500, dtype=tf.int64)
    seeds = tf.map_fn(
        lambda step: replica_seed(root, step), steps, fn_output_signature=tf.int32
    )
    assert len(np.unique(seeds.numpy(), axis=0)) == 500
