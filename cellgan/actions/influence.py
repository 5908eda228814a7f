"""``--influence``: what each covariate contributes to cells."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cellgan.actions.base import Action

if TYPE_CHECKING:
    from cellgan.experiment import Experiment


class Influence(Action):
    """Tell how much each covariate contributes to cells, and to which genes."""

    name = "influence"
    needs_training = True
    help = "what each covariate contributes: tables, loadings, a plot"
    ability = ("is_additive", "is no sum of what covariates add")

    def prepare(self, experiment: Experiment, options: argparse.Namespace) -> None:
        """Refuse an experiment that was trained with other parameters."""
        del options
        experiment.manifest()
        experiment.check_frozen("input_ds", "model")

    def run(self, experiment: Experiment, plan: None) -> None:
        """Write the tables."""
        from cellgan.start import load_tensorflow

        del plan
        load_tensorflow()
        from cellgan.studies import influence

        influence.measure_influence(experiment)


ACTION = Influence()
