"""``--correct``: batch correction."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellgan.actions.base import Action
from cellgan.actions.options import (
    GUIDANCE,
    SAVE_PATH,
    SEED,
    SOLVER,
    generation_settings,
    read_pairs,
    read_scales,
    solver_keys,
)

if TYPE_CHECKING:
    from cellgan.config.parameters import GenerationParameters
    from cellgan.experiment import Experiment


class Correction(NamedTuple):
    """Where cells are moved to, and where they are written."""

    target: dict[str, str]
    path: Path
    settings: GenerationParameters


class Correct(Action):
    """Move the processed cells to other categories."""

    name = "correct"
    needs_training = True
    help = "batch correction: move the processed cells to this category"
    takes = types.MappingProxyType({"nargs": "+", "metavar": "COVARIATE=VALUE"})
    options = (SEED, GUIDANCE, *SOLVER, SAVE_PATH)
    ability = ("has_latents", "cannot take cells back to noise")

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse pairs and scales that are none."""
        read_pairs(options.correct, "--correct")
        read_scales(options.guidance)

    def prepare(
        self, experiment: Experiment, options: argparse.Namespace
    ) -> Correction:
        """Refuse what are no categories, or none that the model knows."""
        from cellgan.generation.requests import check_save_path
        from cellgan.studies.checks import check_correction

        target = read_pairs(options.correct, "--correct") or {}
        check_correction(experiment, target)
        keys = {"guidance": read_scales(options.guidance), **solver_keys(options)}
        suffix = experiment.corrected_file.suffix
        path = check_save_path(
            options.save_path or experiment.corrected_file,
            modalities=experiment.manifest().features,
            suffix=suffix,
            reason=f"corrected cells have latents beside them, which {suffix} files "
            "hold. End the path in it.",
        )
        return Correction(target, path, generation_settings(experiment, keys))

    def run(self, experiment: Experiment, plan: Correction) -> None:
        """Move the cells and say how well batches mix."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan.models.base import SolverSettings
        from cellgan.studies import correction

        correction.correct_cells(
            experiment,
            plan.target,
            plan.path,
            seed=plan.settings.seed,
            guidance=plan.settings.guidance,
            solver=SolverSettings.of(plan.settings),
        )


ACTION = Correct()
