"""The one training loop, for the stages of every family.

It owns steps, saving, logging, resuming and the check for non-finite losses; a stage is
mathematics only. Steps are counted as completed steps. What a step does depends on the
weights, the step's number and its batches alone, so a resumed run is the uninterrupted
one, whatever `Schedule.steps_per_call`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import tensorflow as tf

from cellgan.config.training import TrainingParameters
from cellgan.data.batches import CellBatch
from cellgan.errors import TrainingError
from cellgan.models.base import TrainingStage
from cellgan.seeds import derive_seed
from cellgan.training.checkpoints import StageCheckpoint
from cellgan.training.distribution import (
    BatchesFrom,
    check_same_step,
    distributed_dataset,
    mean_over_replicas,
)
from cellgan.training.summaries import RunLog

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """What happens after which step.

    A frequency is in steps; 0 or less switches its action off. An action that is on is
    also due after the last step. The trained model is saved after the last step in any
    case.
    """

    max_steps: int
    progress_freq: int = 10
    validation_freq: int = 1000
    summary_freq: int = 50
    save_freq: int = 1000
    seed: int = 0
    """Root seed of everything drawn inside steps."""
    steps_per_call: int = 10
    """Most steps run by one call of the compiled function; no effect on results."""

    @classmethod
    def of(cls, training: TrainingParameters) -> Schedule:
        """Return the schedule that an experiment's parameters say."""
        return cls(
            max_steps=training.max_steps,
            progress_freq=training.progress_freq,
            validation_freq=training.validation_freq,
            summary_freq=training.summary_freq,
            save_freq=training.save_freq,
            seed=training.seed,
            steps_per_call=training.steps_per_call,
        )

    def due(self, step: int) -> frozenset[str]:
        """Return which of "progress", "summary", "validation", "save" follow a step."""
        active = self._active()
        if step == self.max_steps:
            return frozenset({*active, "save"})
        return frozenset(name for name, freq in active.items() if step % freq == 0)

    def next_due(self, step: int) -> int:
        """Return the first step after `step` that is followed by something."""
        ends = [(step // freq + 1) * freq for freq in self._active().values()]
        return min([self.max_steps, *ends])

    def _active(self) -> Mapping[str, int]:
        every = {
            "progress": self.progress_freq,
            "summary": self.summary_freq,
            "validation": self.validation_freq,
            "save": self.save_freq,
        }
        return {name: freq for name, freq in every.items() if freq > 0}


class OnValidation(Protocol):
    """What follows a step in which "validation" is due."""

    def __call__(self, step: int) -> None:
        """Look at the model as it is after `step` completed steps."""

    def is_missing(self, step: int) -> bool:
        """Whether a run that saved `step` was stopped before it had looked."""


class CompiledSteps:
    """The steps of one stage as compiled functions, each traced once.

    Parameters
    ----------
    seed
        Root seed. Replica r draws what it needs in step s from a seed that is a
        function of (seed, the stage's name, s, r).
    """

    def __init__(
        self, stage: TrainingStage, seed: int, strategy: tf.distribute.Strategy
    ) -> None:
        self._stage = stage
        self._strategy = strategy
        self._seed = derive_seed(seed, stage.name)
        self._diagnostics_seed = derive_seed(seed, stage.name, "diagnostics")
        self._first_step = tf.function(self._trace_first_step, autograph=False)
        self._one_step = tf.function(self._trace_one_step, autograph=False)
        self._many_steps = tf.function(self._trace_many_steps, autograph=False)
        self._diagnostics = tf.function(self._trace_diagnostics, autograph=False)

    def trace(self, batches: Iterator[CellBatch], start: int) -> None:
        """Do now what would make the first calls of `run` from `start` on slow."""
        step = tf.constant(start, tf.int64)
        if start == 0:
            self._first_step.get_concrete_function(batches, step)
        self._many_steps.get_concrete_function(batches, step, step)

    def run(
        self, batches: Iterator[CellBatch], start: int, end: int
    ) -> tuple[int, dict[str, float]]:
        """Run the steps from `start` completed steps to `end`, or to a non-finite loss.

        Step 0 is always a call of its own.

        Returns
        -------
        The completed steps, and the metrics of the last of them.
        """
        first = tf.constant(start, tf.int64)
        if start == 0:
            done, metrics = 1, self._first_step(batches, first)
        else:
            n_steps = tf.constant(end - start, tf.int64)
            done, metrics = self._many_steps(batches, first, n_steps)
        return start + int(done), {k: float(v) for k, v in metrics.items()}

    def diagnostics(self, batch: CellBatch, step: int) -> Mapping[str, tf.Tensor]:
        """Return the stage's diagnostics of one batch, as the first replica sees it."""
        return self._diagnostics(batch, tf.constant(step, tf.int64))

    def _trace_first_step(
        self, batches: Iterator[CellBatch], step: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        return self._on_replicas(self._stage.first_step, batches, step)

    def _trace_one_step(
        self, batches: Iterator[CellBatch], step: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        return self._on_replicas(self._stage.train_step, batches, step)

    def _trace_many_steps(
        self, batches: Iterator[CellBatch], start: tf.Tensor, n_steps: tf.Tensor
    ) -> tuple[tf.Tensor, Mapping[str, tf.Tensor]]:
        one_step = self._one_step.get_concrete_function(batches, start)
        before = {name: tf.zeros(()) for name in one_step.structured_outputs}

        def goes_on(done: tf.Tensor, metrics: Mapping[str, tf.Tensor]) -> tf.Tensor:
            finite = tf.math.is_finite(tf.stack(list(metrics.values())))
            return (done < n_steps) & tf.reduce_all(finite)

        def step(
            done: tf.Tensor, _: Mapping[str, tf.Tensor]
        ) -> tuple[tf.Tensor, Mapping[str, tf.Tensor]]:
            return done + 1, self._one_step(batches, start + done)

        return tf.while_loop(goes_on, step, (tf.zeros((), tf.int64), before))

    def _trace_diagnostics(
        self, batch: CellBatch, step: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        def of_replica(batch: CellBatch) -> Mapping[str, tf.Tensor]:
            return self._stage.diagnostics(
                batch, replica_seed(self._diagnostics_seed, step)
            )

        return self._first_replica(self._strategy.run(of_replica, (batch,)))

    def _on_replicas(
        self,
        step_function: Callable[..., Mapping[str, tf.Tensor]],
        batches: Iterator[CellBatch],
        step: tf.Tensor,
    ) -> Mapping[str, tf.Tensor]:
        def of_replica(drawn: tuple[CellBatch, ...]) -> Mapping[str, tf.Tensor]:
            metrics = step_function(drawn, replica_seed(self._seed, step))
            return mean_over_replicas(metrics)

        drawn = tuple(next(batches) for _ in range(self._stage.batches_per_step))
        return self._first_replica(self._strategy.run(of_replica, (drawn,)))

    def _first_replica(
        self, values: Mapping[str, tf.Tensor]
    ) -> Mapping[str, tf.Tensor]:
        return {
            name: self._strategy.experimental_local_results(value)[0]
            for name, value in values.items()
        }


def train_stage(
    stage: TrainingStage,
    batches_from: BatchesFrom,
    schedule: Schedule,
    checkpoint: StageCheckpoint,
    log: RunLog,
    on_validation: OnValidation,
    strategy: tf.distribute.Strategy,
) -> int:
    """Train a stage to the end of its schedule, from its newest checkpoint.

    Parameters
    ----------
    stage
        Built inside ``strategy.scope()``.
    batches_from
        Training batches from a position on, in global batches; step s starts at
        ``s * stage.batches_per_step``. Diagnostics look at the first batch of this
        run at every summary, through an iterator of their own.
    on_validation
        Called with the step, after the step is saved, so that its failure loses
        nothing: a run that resumes from a step it is missing for begins with it.
        Called on every worker, since weights that are averaged over replicas can only
        be read by all of them together.

    Returns
    -------
    The completed steps.

    Raises
    ------
    TrainingError
        If a loss becomes non-finite. The newest checkpoint is older than that.
    CheckpointError
        If the newest checkpoint cannot be restored or the next one not be written.
    """
    step = checkpoint.restore_latest()
    check_same_step(strategy, step)
    is_due = step > 0 and "validation" in schedule.due(step)
    is_missed = is_due and on_validation.is_missing(step)
    if step >= schedule.max_steps and not is_missed:
        logger.info('stage "%s" is finished: %d steps', stage.name, step)
        return step
    steps = CompiledSteps(stage, schedule.seed, strategy)
    position = step * stage.batches_per_step
    dataset = distributed_dataset(strategy, batches_from, position)
    batches, first_batch = iter(dataset), next(iter(dataset))
    steps.trace(batches, step)
    log.begin(step, schedule.max_steps)
    if is_missed:
        on_validation(step)
    while step < schedule.max_steps:
        end = min(schedule.next_due(step), step + schedule.steps_per_call)
        step, metrics = steps.run(batches, step, end)
        _require_finite(metrics, step, log, checkpoint)
        due = schedule.due(step)
        if "progress" in due:
            log.progress(step, metrics)
        if "summary" in due:
            log.scalars(step, metrics)
            log.tensors(step, steps.diagnostics(first_batch, step))
        if "save" in due:
            checkpoint.save(step)
        if "validation" in due:
            on_validation(step)
    return step


def replica_seed(seed: int, step: tf.Tensor) -> tf.Tensor:
    """Return the stateless seed of a step on the replica that asks.

    Parameters
    ----------
    seed
        What `derive_seed` returns.
    step
        Scalar int64: completed steps.

    Returns
    -------
    ``(2,)`` int32.
    """
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    root = tf.constant((seed, 0), tf.int32)
    of_step = tf.random.experimental.stateless_fold_in(root, step, alg="philox")
    return tf.random.experimental.stateless_fold_in(of_step, replica, alg="philox")


def _require_finite(
    metrics: Mapping[str, float], step: int, log: RunLog, checkpoint: StageCheckpoint
) -> None:
    bad = [name for name, value in metrics.items() if not math.isfinite(value)]
    if not bad:
        return
    saved = checkpoint.latest_step()
    if saved:
        sound = f"the checkpoint of step {saved} is sound"
        advice = (
            " and training.checkpoint set to this one's job folder: it goes on from "
            f"step {saved}"
        )
    else:
        sound, advice = "there is no checkpoint yet", ""
    msg = (
        f'{log.experiment}, stage "{log.stage}": {bad[0]} became {metrics[bad[0]]} in '
        f"step {step}; {sound}.\n    Train under another experiment name with a lower "
        f"training.learning_rate.alpha_0{advice}."
    )
    raise TrainingError(msg)
