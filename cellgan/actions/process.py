"""``--process``: from the raw file to filtered, split records."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cellgan.actions.base import Action, Option

if TYPE_CHECKING:
    from cellgan.composition.study import Study
    from cellgan.experiment import Experiment


class Process(Action):
    """Turn the raw file into filtered, split records."""

    name = "process"
    help = "raw file -> filtered, split records"
    options = (
        Option(
            "overwrite",
            {
                "action": "store_true",
                "help": "replace an experiment that exists, its training too",
            },
        ),
    )
    is_for_studies = True

    def prepare(self, experiment: Experiment, options: argparse.Namespace) -> bool:
        """Return whether to replace what is there."""
        del experiment
        return bool(options.overwrite)

    def run(self, experiment: Experiment, plan: bool) -> None:  # noqa: FBT001
        """Make the folder of the experiment."""
        import preprocessing

        preprocessing.process(experiment, overwrite=plan)

    def run_on_study(
        self, study: Study, options: argparse.Namespace, gpus: Sequence[int]
    ) -> int:
        """Choose the cells of every corpus of a study, and write them."""
        from preprocessing.composition.corpora import process_composition

        del gpus
        process_composition(study, overwrite=options.overwrite)
        return 0


ACTION = Process()
