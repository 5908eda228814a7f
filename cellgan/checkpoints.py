"""What a resumed run needs, on disk: saved whole or not at all.

A checkpoint is a folder ``model-<step>``, named after the completed steps, that is
written under a temporary name and renamed when complete. It holds TensorFlow's own
object-based format. Nothing is trusted on the way back: a checkpoint that is damaged,
or of another model, is an error and never a fresh start.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from cellgan.errors import CheckpointError, TrainingError
from cellgan.experiment import replacing

log = logging.getLogger(__name__)

NAME = re.compile(r"model-([1-9][0-9]*)")
UNREADABLE = (tf.errors.OpError, LookupError, RuntimeError, OSError)
"""What TensorFlow raises for damaged files, partly as untranslated C++ exceptions."""


class StageCheckpoint:
    """The checkpoints of one stage.

    Parameters
    ----------
    trackables
        What `TrainingStage.trackables` returns, built.
    folder
        ``job/<stage>/checkpoints``; made when needed.
    keep
        How many of the newest are kept.
    start_from
        ``training.checkpoint``: another experiment's ``job`` folder (or its folder of
        checkpoints of this stage) to start from while `folder` has no checkpoint.
    is_chief
        Only the chief keeps what it saves. Other workers save too, because variables
        that are averaged over replicas need all of them to be read, but throw it away.
    """

    def __init__(
        self,
        trackables: Mapping[str, Any],
        folder: Path,
        *,
        keep: int = 2,
        start_from: Path | None = None,
        is_chief: bool = True,
    ) -> None:
        self._variables = _variables(trackables)
        self._checkpoint = _checkpoint(self._variables)
        self._folder = folder
        self._keep = keep
        self._start_from = start_from
        self._is_chief = is_chief

    def latest_step(self) -> int:
        """Return the step of the newest checkpoint, 0 when there is none."""
        return max(saved_steps(self._folder), default=0)

    def restore_latest(self) -> int:
        """Restore the newest checkpoint and return its step, 0 when there is none.

        What is started from is saved in this folder at once, so that a later run does
        not depend on the other experiment any more.

        Raises
        ------
        CheckpointError
            If the newest checkpoint is damaged or of another model, or `start_from`
            has none.
        """
        if self._is_chief:
            self._remove_leftovers()
        step = self.latest_step()
        if step:
            self._restore(self._folder, step)
            return step
        if self._start_from is None:
            return 0
        source = self._other_folder(self._start_from)
        step = max(saved_steps(source))
        self._restore(source, step)
        log.info("starting from step %d of %s", step, source)
        self.save(step)
        return step

    def save(self, step: int) -> None:
        """Save the state after `step` completed steps; drop checkpoints beyond `keep`.

        Raises
        ------
        TrainingError
            If a weight is not finite; nothing is written.
        CheckpointError
            If it cannot be written, for example because the disk is full. Older
            checkpoints are intact and nothing half-written stays.
        """
        self._require_finite(step)
        if not self._is_chief:
            with tempfile.TemporaryDirectory() as scratch:
                self._checkpoint.write(str(Path(scratch) / "model"))
            return
        path = checkpoint_path(self._folder, step)
        try:
            with replacing(path) as temporary:
                temporary.mkdir()
                self._checkpoint.write(_prefix(temporary))
        except UNREADABLE as error:
            latest = self.latest_step()
            sound = f"The checkpoint of step {latest} is intact" if latest else ""
            msg = (
                f"{path}: the checkpoint cannot be written: {_first_line(error)}\n"
                f"    {sound or 'There is no older checkpoint'}. Free some disk space "
                f"and run --train again"
                f"{f': it resumes from step {latest}.' if latest else '.'}"
            )
            raise CheckpointError(msg) from error
        for old in saved_steps(self._folder)[: -self._keep]:
            _remove(checkpoint_path(self._folder, old))

    def _restore(self, folder: Path, step: int) -> None:
        path = checkpoint_path(folder, step)
        status = _read(self._checkpoint, folder, step)
        try:
            status.assert_consumed()
        except AssertionError as error:
            raise CheckpointError(_of_another_model(path, error)) from error

    def _require_finite(self, step: int) -> None:
        for variable in self._variables.values():
            value = tf.convert_to_tensor(variable)
            if value.dtype.is_floating and not bool(
                tf.reduce_all(tf.math.is_finite(value))
            ):
                latest = self.latest_step()
                sound = (
                    f"the checkpoint of step {latest} is sound"
                    if latest
                    else "there is no older checkpoint"
                )
                msg = (
                    f"{self._folder}: the weight {variable.name} is not finite after step "
                    f"{step}, so it is not saved; {sound}.\n    Lower "
                    f"training.learning_rate.alpha_0."
                )
                raise TrainingError(msg)

    def _remove_leftovers(self) -> None:
        """Remove what a killed process was writing or deleting."""
        for leftover in self._folder.glob(".model-*.tmp"):
            shutil.rmtree(leftover)

    def _other_folder(self, start_from: Path) -> Path:
        own = self._folder
        candidates = (start_from, start_from / own.parent.name / own.name)
        for candidate in candidates:
            if saved_steps(candidate):
                return candidate
        msg = (
            f"training.checkpoint: no checkpoint in {candidates[1]}, nor in "
            f"{start_from} itself. Give the job folder of a trained experiment."
        )
        raise CheckpointError(msg)


def restore_weights(
    folder: Path, trackables: Mapping[str, Any], step: int | None = None
) -> int:
    """Restore some of what a stage saved, for example the generator alone.

    Parameters
    ----------
    folder
        The stage's checkpoints.
    trackables
        A part of what the stage's `trackables` returns, under the same names, built.
    step
        Which checkpoint; the newest by default.

    Returns
    -------
    The restored step.

    Raises
    ------
    CheckpointError
        If there is no such checkpoint, it is damaged, or it lacks a given weight.
    """
    steps = saved_steps(folder)
    if not steps:
        msg = f"{folder}: no checkpoint found. Run --train first."
        raise CheckpointError(msg)
    step = steps[-1] if step is None else step
    if step not in steps:
        known = ", ".join(map(str, steps))
        msg = f"{folder}: no checkpoint of step {step}. There are: {known}."
        raise CheckpointError(msg)
    status = _read(_checkpoint(_variables(trackables)), folder, step)
    try:
        status.assert_existing_objects_matched().expect_partial()
    except AssertionError as error:
        path = checkpoint_path(folder, step)
        raise CheckpointError(_of_another_model(path, error)) from error
    return step


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a folder, in rising order."""
    matches = [NAME.fullmatch(path.name) for path in folder.glob("model-*")]
    return sorted(int(match[1]) for match in matches if match)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"model-{step}"


def _read(checkpoint: tf.train.Checkpoint, folder: Path, step: int) -> Any:
    path = checkpoint_path(folder, step)
    try:
        return checkpoint.read(_prefix(path))
    except ValueError as error:  # shapes or types differ
        raise CheckpointError(_of_another_model(path, error)) from error
    except UNREADABLE as error:
        older = [s for s in saved_steps(folder) if s < step]
        sound = [s for s in older if _is_sound(checkpoint_path(folder, s))]
        advice = (
            f"The checkpoint of step {sound[-1]} is sound: delete {path} and run the "
            f"same command again to go on from there."
            if sound
            else f"No older checkpoint is sound: delete {folder} and train again."
        )
        msg = f"{path}: damaged: {_first_line(error)}\n    {advice}"
        raise CheckpointError(msg) from error


def _is_sound(path: Path) -> bool:
    try:
        reader = tf.train.load_checkpoint(_prefix(path))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)  # checks its checksum
    except UNREADABLE:
        return False
    return True


def _of_another_model(path: Path, error: Exception) -> str:
    return (
        f"{path}: made by another model: {_first_line(error)}\n"
        f"    Use the model parameters it was trained with, or another experiment name."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _prefix(path: Path) -> str:
    return str(path / "model")


def _remove(path: Path) -> None:
    """Delete a checkpoint; at no moment is half of it there under its name."""
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.old.tmp")))


def _checkpoint(variables: Mapping[str, tf.Variable]) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(variables=dict(variables))


def _variables(trackables: Mapping[str, Any]) -> dict[str, tf.Variable]:
    """Return every variable of the parts of a stage, named by its place in them.

    TensorFlow finds neither the layers that a Keras layer holds in a list nor the states
    of seed generators, so what Keras itself lists is saved.
    """
    return {
        f"{name}/{place}": (
            variable.value if isinstance(variable, keras.Variable) else variable
        )
        for name, part in trackables.items()
        for place, variable in enumerate(getattr(part, "variables", (part,)))
    }
