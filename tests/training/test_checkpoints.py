"""Checkpoints: whole or not at all, and never silently ignored."""

from __future__ import annotations

import resource
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from cellgan.errors import CheckpointError, TrainingError
from cellgan.training.checkpoints import StageCheckpoint, restore_weights, saved_steps
from tests.linear_stage import LinearStage


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "job" / "linear" / "checkpoints"


def filled_stage(value, **options):
    """A stage whose every float is `value`."""
    stage = LinearStage(**options)
    for variable in [*stage.net.weights, *stage.optimizer.variables[2:]]:
        variable.assign(tf.fill(variable.shape, float(value)))
    return stage


def save(folder, *steps):
    for step in steps:
        StageCheckpoint(filled_stage(step).trackables(), folder).save(step)


def flip_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 255
    path.write_bytes(bytes(content))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_restore_gives_back_the_newest_weights_and_optimizer_state(folder):
    save(folder, 2, 10)
    stage = LinearStage()
    assert StageCheckpoint(stage.trackables(), folder).restore_latest() == 10
    np.testing.assert_array_equal(stage.net.weights[0], np.full((5, 4), 10.0))
    np.testing.assert_array_equal(stage.optimizer.variables[2], np.full((5, 4), 10.0))


def test_restore_gives_back_the_state_of_seed_generators(folder):
    stage = LinearStage()
    states = [v for v in stage.net.variables if "seed_generator" in v.path]
    states[0].assign([5, 77])
    StageCheckpoint(stage.trackables(), folder).save(1)
    fresh = LinearStage()
    StageCheckpoint(fresh.trackables(), folder).restore_latest()
    restored = [v for v in fresh.net.variables if "seed_generator" in v.path]
    np.testing.assert_array_equal(restored[0], [5, 77])


def test_restore_gives_back_layers_that_a_layer_holds_in_a_list(folder):
    """TensorFlow's own tracking of objects misses them."""

    class Stack(keras.layers.Layer):
        def __init__(self, value):
            super().__init__()
            self.parts = [keras.layers.BatchNormalization() for _ in range(2)]
            for part in self.parts:
                part.build((None, 3))
                part.moving_mean.assign([value] * 3)

    StageCheckpoint({"stack": Stack(7.0)}, folder).save(1)
    resumed, generating = Stack(0.0), Stack(0.0)
    StageCheckpoint({"stack": resumed}, folder).restore_latest()
    restore_weights(folder, {"stack": generating})
    for part in (*resumed.parts, *generating.parts):
        np.testing.assert_array_equal(part.moving_mean, [7.0, 7.0, 7.0])


def test_restore_returns_0_in_a_fresh_folder(folder):
    checkpoint = StageCheckpoint(LinearStage().trackables(), folder)
    assert checkpoint.restore_latest() == 0
    assert not folder.exists()


def test_save_keeps_the_newest_two(folder):
    save(folder, 9, 10, 11)
    assert {path.name for path in folder.iterdir()} == {"model-10", "model-11"}


def test_save_can_replace_the_checkpoint_of_the_same_step(folder):
    save(folder, 3)
    StageCheckpoint(filled_stage(8).trackables(), folder).save(3)
    stage = LinearStage()
    StageCheckpoint(stage.trackables(), folder).restore_latest()
    np.testing.assert_array_equal(stage.net.weights[0], np.full((5, 4), 8.0))


@pytest.mark.parametrize("kind", ["net", "optimizer"])
def test_save_refuses_weights_that_are_not_finite(folder, kind):
    save(folder, 10)
    stage = filled_stage(1)
    variable = {"net": stage.net.weights[1], "optimizer": stage.optimizer.variables[4]}
    variable[kind].assign(tf.fill(variable[kind].shape, np.inf))
    message = (
        "is not finite after step 20, so it is not saved; the checkpoint of step 10"
    )
    with pytest.raises(TrainingError, match=message):
        StageCheckpoint(stage.trackables(), folder).save(20)
    assert saved_steps(folder) == [10]


@pytest.mark.parametrize("damage", [truncate, flip_byte])
@pytest.mark.parametrize("file", ["model.index", "model.data-00000-of-00001"])
def test_a_damaged_checkpoint_is_an_error_that_names_the_sound_one(
    folder, damage, file
):
    save(folder, 10, 20)
    damage(folder / "model-20" / file)
    message = (
        r"model-20: damaged: .*\n    The checkpoint of step 10 is sound: delete "
        r".*model-20 and run the same command"
    )
    with pytest.raises(CheckpointError, match=message):
        StageCheckpoint(LinearStage().trackables(), folder).restore_latest()


def test_following_the_advice_for_a_damaged_checkpoint_works(folder):
    save(folder, 10, 20)
    truncate(folder / "model-20" / "model.index")
    shutil.rmtree(folder / "model-20")
    stage = LinearStage()
    assert StageCheckpoint(stage.trackables(), folder).restore_latest() == 10
    np.testing.assert_array_equal(stage.net.weights[0], np.full((5, 4), 10.0))


def test_a_missing_file_is_damage_and_no_sound_checkpoint_is_promised(folder):
    save(folder, 10, 20)
    truncate(folder / "model-10" / "model.data-00000-of-00001")
    (folder / "model-20" / "model.index").unlink()
    message = r"model-20: damaged: .*\n    No older checkpoint is sound: delete"
    with pytest.raises(CheckpointError, match=message):
        StageCheckpoint(LinearStage().trackables(), folder).restore_latest()


def test_a_checkpoint_of_other_shapes_is_of_another_model(folder):
    save(folder, 10)
    with pytest.raises(
        CheckpointError,
        match=r"made by another model: \S+/kernel has shape \(5, 5\) here and \(5, 4\)",
    ):
        StageCheckpoint(LinearStage(width=5).trackables(), folder).restore_latest()


def test_a_checkpoint_with_less_than_the_model_is_of_another_model(folder):
    stage = LinearStage()
    StageCheckpoint({"net": stage.net}, folder).save(10)
    with pytest.raises(CheckpointError, match="made by another model"):
        StageCheckpoint(stage.trackables(), folder).restore_latest()


def test_an_optimizer_that_was_not_built_is_no_silent_skip(folder):
    save(folder, 10)
    parts = {**LinearStage().trackables(), "optimizer": keras.optimizers.Adam(1e-2)}
    message = r"made by another model: more variables of optimizer are there \(1 diff"
    with pytest.raises(CheckpointError, match=message):
        StageCheckpoint(parts, folder).restore_latest()


def test_a_write_that_fails_leaves_the_older_checkpoint_and_no_rubbish(folder):
    save(folder, 10)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint = StageCheckpoint(filled_stage(1).trackables(), folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))  # bytes of any file
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            checkpoint.save(20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert [path.name for path in folder.iterdir()] == ["model-10"]
    assert StageCheckpoint(LinearStage().trackables(), folder).restore_latest() == 10


def test_a_full_disk_is_named_with_what_to_do(folder, monkeypatch):
    save(folder, 10)

    def no_space(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.Checkpoint, "write", no_space)
    message = (
        r"model-20: .* cannot be written: No space left on device\n    The checkpoint "
        r"of step 10 is intact. Free some disk space .* resumes from step 10"
    )
    with pytest.raises(CheckpointError, match=message):
        StageCheckpoint(filled_stage(1).trackables(), folder).save(20)
    assert [path.name for path in folder.iterdir()] == ["model-10"]


def test_what_a_killed_process_left_is_removed_and_not_read(folder):
    save(folder, 10)
    shutil.copytree(folder / "model-10", folder / ".model-20.4711.tmp")
    assert StageCheckpoint(LinearStage().trackables(), folder).restore_latest() == 10
    assert [path.name for path in folder.iterdir()] == ["model-10"]


def test_restore_weights_restores_the_given_part_alone(folder):
    save(folder, 10, 20)
    stage = filled_stage(1)
    assert restore_weights(folder, {"net": stage.net}, step=10) == 10
    np.testing.assert_array_equal(stage.net.weights[0], np.full((5, 4), 10.0))
    np.testing.assert_array_equal(stage.optimizer.variables[2], np.full((5, 4), 1.0))


def test_restore_weights_takes_the_newest_by_default(folder):
    save(folder, 10, 20)
    assert restore_weights(folder, {"net": LinearStage().net}) == 20


def test_restore_weights_refuses_a_weight_that_was_not_saved(folder):
    save(folder, 10)
    extra = keras.layers.Dense(2)
    extra.build((None, 3))
    with pytest.raises(CheckpointError, match=r"has shape \(3, 2\) here and no place"):
        restore_weights(folder, {"net": LinearStage().net, "extra": extra})


def test_restore_weights_refuses_a_part_that_was_saved_with_more_layers(folder):
    save(folder, 10)
    fewer = keras.Sequential(LinearStage().net.layers[:1])
    with pytest.raises(CheckpointError, match="more variables of net are there"):
        restore_weights(folder, {"net": fewer})


@pytest.mark.parametrize(
    ("steps", "step", "message"),
    [
        ((), None, "no checkpoint found. Run --train first"),
        ((10, 20), 15, "no checkpoint of step 15. There are: 10, 20"),
    ],
)
def test_restore_weights_says_what_there_is(folder, steps, step, message):
    save(folder, *steps)
    with pytest.raises(CheckpointError, match=message):
        restore_weights(folder, {"net": LinearStage().net}, step=step)


@pytest.mark.parametrize("given", ["job", "job/linear/checkpoints"])
def test_start_from_goes_on_from_another_experiment(folder, tmp_path, given):
    save(tmp_path / "other" / "job" / "linear" / "checkpoints", 10, 20)
    stage = LinearStage()
    start_from = tmp_path / "other" / given
    checkpoint = StageCheckpoint(stage.trackables(), folder, start_from=start_from)
    assert checkpoint.restore_latest() == 20
    np.testing.assert_array_equal(stage.net.weights[0], np.full((5, 4), 20.0))
    assert saved_steps(folder) == [20]


def test_start_from_is_ignored_once_there_is_an_own_checkpoint(folder, tmp_path):
    save(tmp_path / "other", 20)
    save(folder, 10)
    trackables = LinearStage().trackables()
    checkpoint = StageCheckpoint(trackables, folder, start_from=tmp_path / "other")
    assert checkpoint.restore_latest() == 10


def test_start_from_a_folder_without_checkpoints_is_an_error(folder, tmp_path):
    trackables = LinearStage().trackables()
    checkpoint = StageCheckpoint(trackables, folder, start_from=tmp_path / "other")
    with pytest.raises(CheckpointError, match=r"training.checkpoint: no checkpoint in"):
        checkpoint.restore_latest()


def test_a_worker_that_is_not_chief_keeps_nothing(folder):
    StageCheckpoint(filled_stage(1).trackables(), folder, is_chief=False).save(10)
    assert not folder.exists()


class LayersInAList(keras.layers.Layer):
    """Holds its layers in a list, as TensorFlow's own tracking does not see."""

    def __init__(self):
        super().__init__()
        self.layers = [keras.layers.Dense(3), keras.layers.BatchNormalization()]
        for layer in self.layers:
            layer.build((None, 3))


def test_layers_that_are_held_in_a_list_are_saved_and_restored(folder):
    saved, fresh = LayersInAList(), LayersInAList()
    for variable in saved.variables:
        variable.assign(tf.fill(variable.shape, 7.0))
    StageCheckpoint({"net": saved}, folder).save(1)
    restore_weights(folder, {"net": fresh})
    assert len(fresh.variables) == 6
    assert all(np.all(np.asarray(variable) == 7) for variable in fresh.variables)
