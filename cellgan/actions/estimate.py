"""``--estimate``: memory, disk and hours, told before anything runs."""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING

from cellgan.actions.base import Action

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)


class Estimate(Action):
    """Tell the memory, disk and time that each action needs.

    The raw file is read and filtered (unless the experiment is processed), and some
    steps of training and some cells are timed; nothing is written.
    """

    name = "estimate"
    help = "tell memory, disk and hours that the stages need, and stop"
    goes_alone = (
        "--estimate only tells what would be needed: give it without an action."
    )

    def prepare(self, experiment: Experiment, options: argparse.Namespace) -> None:
        """Refuse an experiment that was processed with other parameters."""
        del options
        if experiment.is_processed:
            experiment.check_frozen("input_ds")

    def run(self, experiment: Experiment, plan: None) -> None:
        """Measure, and tell."""
        from preprocessing.survey import survey

        del plan
        manifest, n_values = survey(experiment)

        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan.estimate import describe, estimate_all

        rows = estimate_all(
            experiment.parameters,
            manifest,
            n_values,
            is_processed=experiment.is_processed,
        )
        log.info("%s", describe(experiment.name, manifest, rows))


ACTION = Estimate()
