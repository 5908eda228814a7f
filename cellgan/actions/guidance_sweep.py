"""``--guidance-sweep``: cells of several guidance scales, compared."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from cellgan.actions.base import Action
from cellgan.actions.options import SEED, SOLVER, generation_settings, solver_keys

if TYPE_CHECKING:
    from cellgan.config.parameters import GenerationParameters
    from cellgan.experiment import Experiment


class GuidanceSweep(Action):
    """Compare cells generated with several guidance scales."""

    name = "guidance-sweep"
    needs_training = True
    help = "compare cells generated with several guidance scales"
    options = (SEED, *SOLVER)

    def prepare(
        self, experiment: Experiment, options: argparse.Namespace
    ) -> GenerationParameters:
        """Refuse a model that nothing guides."""
        from cellgan.studies.checks import check_guided

        check_guided(experiment)
        return generation_settings(experiment, solver_keys(options))

    def run(self, experiment: Experiment, plan: GenerationParameters) -> None:
        """Generate and compare."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan.models.base import SolverSettings
        from cellgan.studies import guidance_sweep

        guidance_sweep.compare_scales(
            experiment,
            seed=plan.seed,
            library_size=plan.library_size,
            solver=SolverSettings.of(plan),
        )


ACTION = GuidanceSweep()
