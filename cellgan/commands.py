"""The verbs of the command line: process, train, generate, evaluate, augment, estimate.

Each takes an `Experiment` and wires the rooms together: this is the only place that
knows all of them. Heavy libraries are imported by the verb that needs them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cellgan import queue
from cellgan.errors import CellganError, ConfigError
from cellgan.experiment import Experiment

if TYPE_CHECKING:
    from cellgan.models.base import GenerativeModel, TrainingStage

log = logging.getLogger(__name__)


def run_queue(
    experiments: Sequence[Experiment], gpus: Sequence[int], arguments: Sequence[str]
) -> int:
    """Run the same command for several experiments, each in a process of its own.

    Returns
    -------
    Exit code: 0 when all succeeded, 2 when each failure was one a user can put right,
    1 otherwise. The failed ones are named at the end.
    """
    if any(e.parameters.training.distribution != "auto" for e in experiments):
        groups = [",".join(map(str, gpus)) or "-1"]  # each wants every GPU
    else:
        groups = [str(gpu) for gpu in gpus] or ["-1"]
    commands = {e.name: [*arguments, "--experiment", e.name] for e in experiments}
    codes = queue.run_queue(commands, groups)
    failed = [name for name, code in codes.items() if code]
    log.info(
        "%d of %d experiments succeeded%s",
        len(codes) - len(failed),
        len(codes),
        f"; failed: {', '.join(failed)}" if failed else "",
    )
    if not failed:
        return 0
    return 2 if all(codes[name] == 2 for name in failed) else 1


def process(experiment: Experiment, *, overwrite: bool = False) -> None:
    """Turn the raw file into filtered, split records."""
    import preprocessing  # noqa: PLC0415  (loads scanpy)

    preprocessing.process(experiment, overwrite=overwrite)
