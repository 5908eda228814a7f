"""Actions, checked and run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cellgan.actions import actions
from cellgan.actions.base import Action, flag
from cellgan.actions.parsing import defaults
from cellgan.errors import CheckpointError

if TYPE_CHECKING:
    from cellgan.experiment import Experiment


def perform(name: str, experiment: Experiment, **options: Any) -> int:
    """Check and run one action on one experiment.

    Parameters
    ----------
    options
        By name, as the command line reads them: ``correct=["batch=v3"], seed=1``.

    Returns
    -------
    Exit code.

    Raises
    ------
    CellganError
        What the action refuses.
    """
    (action,) = (each for each in actions() if each.name == name)
    return run_actions((action,), experiment, defaults(**options))


def run_actions(
    wanted: Sequence[Action], experiment: Experiment, options: argparse.Namespace
) -> int:
    """Check and run actions on one experiment; all checks that can come first do.

    Returns
    -------
    The last exit code that is not 0.

    Raises
    ------
    CellganError
        What an action refuses.
    """
    from cellgan.config.model_types import require_ability

    for action in wanted:
        if action.ability is not None:
            ability, lack = action.ability
            where = flag(action.attribute)
            require_ability(experiment.parameters.model, ability, where, lack)
    if all(action.name != "process" for action in wanted):
        for action in wanted:
            action.prepare(experiment, options)
    code = 0
    for action in wanted:
        if action.needs_training and not experiment.has_checkpoint:
            msg = f"{experiment.job_folder}: no checkpoint found. Run --train first."
            raise CheckpointError(msg)
        code = action.run(experiment, action.prepare(experiment, options)) or code
    return code
