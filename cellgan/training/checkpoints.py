"""What a resumed run needs, on disk: saved whole or not at all.

A checkpoint is a folder ``model-<step>``, named after the completed steps, that is
written under a temporary name and renamed when complete. Nothing is trusted on the way
back: a checkpoint that is damaged, or of another model, is an error and never a fresh
start.

A part of a stage (a network, an optimizer) is saved as the list of its variables.
TensorFlow's own tracking of objects is not relied upon: it sees neither layers that a
Keras layer holds in a list nor the states of seed generators, and says nothing.
"""

from __future__ import annotations

import itertools
import logging
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from cellgan.errors import CheckpointError, TrainingError
from cellgan.files import replacing

log = logging.getLogger(__name__)

Variables = Mapping[str, Sequence[keras.Variable]]
"""Variables by part, for example ``{"generator": [...], "critic": [...]}``."""
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
"""Ends the key of every variable in a checkpoint: ``generator/0/.ATTRIBUTES/...``."""
NAME = re.compile(r"model-([1-9][0-9]*)")
UNREADABLE = (tf.errors.OpError, LookupError, RuntimeError, OSError)
"""What TensorFlow raises for damaged files, partly as untranslated C++ exceptions."""


class StageCheckpoint:
    """The checkpoints of one stage.

    Parameters
    ----------
    trackables
        What `TrainingStage.trackables` returns: parts with ``variables``, built.
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
        self._variables = variables_by_part(trackables)
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
                _as_checkpoint(self._variables).write(str(Path(scratch) / "model"))
            return
        path = checkpoint_path(self._folder, step)
        try:
            with replacing(path) as temporary:
                temporary.mkdir()
                _as_checkpoint(self._variables).write(_prefix(temporary))
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
        saved = _shapes(folder, step)
        _require_same(checkpoint_path(folder, step), self._variables, saved)
        _read(folder, step, self._variables)

    def _require_finite(self, step: int) -> None:
        for variable in itertools.chain(*self._variables.values()):
            value = tf.convert_to_tensor(variable)
            if not value.dtype.is_floating:
                continue
            if tf.reduce_all(tf.math.is_finite(value)):
                continue
            latest = self.latest_step()
            sound = (
                f"the checkpoint of step {latest} is sound"
                if latest
                else "there is no older checkpoint"
            )
            msg = (
                f"{self._folder}: {variable.path} is not finite after step {step}, so "
                f"it is not saved; {sound}.\n    Train under another experiment name "
                f"with a lower training.learning_rate.alpha_0."
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
    parts = variables_by_part(trackables)
    saved = _shapes(folder, step)
    given = {name: shape for name, shape in saved.items() if _part(name) in parts}
    _require_same(checkpoint_path(folder, step), parts, given)
    _read(folder, step, parts)
    return step


def saved_steps(folder: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a folder, in rising order."""
    matches = [NAME.fullmatch(path.name) for path in folder.glob("model-*")]
    return sorted(int(match[1]) for match in matches if match)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"model-{step}"


def variables_by_part(
    trackables: Mapping[str, Any],
) -> dict[str, list[keras.Variable]]:
    """Return every variable that a checkpoint of these parts holds."""
    return {name: list(part.variables) for name, part in trackables.items()}


def _as_checkpoint(parts: Variables) -> tf.train.Checkpoint:
    values = {name: [v.value for v in part] for name, part in parts.items()}
    return tf.train.Checkpoint(**values)


def _key(part: str, index: int) -> str:
    return f"{part}/{index}{SUFFIX}"


def _part(key: str) -> str:
    return key.partition("/")[0]


def _shapes(folder: Path, step: int) -> dict[str, list[int]]:
    """Return the shapes of what a checkpoint holds, by key."""
    try:
        reader = tf.train.load_checkpoint(_prefix(checkpoint_path(folder, step)))
        shapes: dict[str, list[int]] = reader.get_variable_to_shape_map()
    except UNREADABLE as error:
        raise _damaged(folder, step, error) from error
    return {key: shape for key, shape in shapes.items() if key.endswith(SUFFIX)}


def _read(folder: Path, step: int, parts: Variables) -> None:
    prefix = _prefix(checkpoint_path(folder, step))
    try:
        status = _as_checkpoint(parts).read(prefix).expect_partial()
        status.assert_existing_objects_matched()
    except UNREADABLE as error:
        raise _damaged(folder, step, error) from error


def _require_same(path: Path, parts: Variables, saved: Mapping[str, list[int]]) -> None:
    """Refuse a checkpoint that holds more, less or other shapes than are wanted."""
    wanted = {
        _key(name, index): variable
        for name, part in parts.items()
        for index, variable in enumerate(part)
    }
    differences = [
        f"{variable.path} has shape {tuple(variable.shape)} here and "
        f"{tuple(saved[key]) if key in saved else 'no place'} there"
        for key, variable in wanted.items()
        if list(variable.shape) != saved.get(key)
    ]
    extra = sorted({_part(key) for key in saved.keys() - wanted.keys()})
    differences += [f"more variables of {name} are there" for name in extra]
    if differences:
        msg = (
            f"{path}: made by another model: {differences[0]} "
            f"({len(differences)} differences).\n    Use the model parameters it was "
            f"trained with, or another experiment name."
        )
        raise CheckpointError(msg)


def _damaged(folder: Path, step: int, error: Exception) -> CheckpointError:
    path = checkpoint_path(folder, step)
    older = [s for s in saved_steps(folder) if s < step]
    sound = [s for s in older if _is_sound(checkpoint_path(folder, s))]
    advice = (
        f"The checkpoint of step {sound[-1]} is sound: delete {path} and run the same "
        f"command again to go on from there."
        if sound
        else f"No older checkpoint is sound: delete {folder} and train again."
    )
    return CheckpointError(f"{path}: damaged: {_first_line(error)}\n    {advice}")


def _is_sound(path: Path) -> bool:
    try:
        reader = tf.train.load_checkpoint(_prefix(path))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)  # checks its checksum
    except UNREADABLE:
        return False
    return True


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _prefix(path: Path) -> str:
    return str(path / "model")


def _remove(path: Path) -> None:
    """Delete a checkpoint; at no moment is half of it there under its name."""
    shutil.rmtree(path.rename(path.with_name(f".{path.name}.old.tmp")))
