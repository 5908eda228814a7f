"""``--interpolate``: cells between two labels."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellgan.actions.base import Action, Option
from cellgan.actions.options import (
    CELLS_NO,
    GUIDANCE,
    SAVE_PATH,
    SEED,
    SOLVER,
    generation_settings,
    read_scales,
    solver_keys,
)
from cellgan.errors import ConfigError

if TYPE_CHECKING:
    from cellgan.config.parameters import GenerationParameters
    from cellgan.experiment import Experiment
    from cellgan.studies.checks import InterpolationRequest

DEFAULT_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
CELLS_PER_WEIGHT = 100


class Interpolation(NamedTuple):
    """Which cells to make, and where they go."""

    request: InterpolationRequest
    path: Path
    settings: GenerationParameters


class Interpolate(Action):
    """Make cells between two labels."""

    name = "interpolate"
    needs_training = True
    help = "make cells between two labels"
    takes = types.MappingProxyType({"nargs": 2, "metavar": ("FROM", "TO")})
    options = (
        Option(
            "weights",
            {
                "nargs": "+",
                "type": float,
                "metavar": "W",
                "help": "0 is FROM, 1 is TO (0 0.25 0.5 0.75 1)",
            },
        ),
        Option(
            "init_step",
            {
                "type": int,
                "metavar": "N",
                "help": "start from training cells of FROM with the noise of this "
                "step; by default from noise alone",
            },
        ),
        *(CELLS_NO, SEED, GUIDANCE, *SOLVER, SAVE_PATH),
    )
    ability = ("mixes_labels", "cannot mix labels")

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse numbers and scales that are none."""
        _cells_per_weight(options)
        read_scales(options.guidance)

    def prepare(
        self, experiment: Experiment, options: argparse.Namespace
    ) -> Interpolation:
        """Refuse labels, weights and steps that there are not."""
        from cellgan.generation.allotment import check_guidance
        from cellgan.generation.requests import check_save_path
        from cellgan.studies.checks import InterpolationRequest, check_interpolation

        manifest = experiment.manifest()
        keys = {"guidance": read_scales(options.guidance), **solver_keys(options)}
        settings = generation_settings(experiment, keys)
        first, second = options.interpolate
        request = InterpolationRequest(
            (first, second),
            tuple(options.weights or DEFAULT_WEIGHTS),
            _cells_per_weight(options),
            options.init_step,
            settings.seed,
        )
        check_interpolation(experiment, request)
        conditions = experiment.parameters.model.conditions(manifest)
        check_guidance(settings.guidance, conditions)
        path = check_save_path(
            options.save_path or experiment.interpolated_file,
            modalities=manifest.features,
            suffix=".h5ad",
            reason="interpolated cells go to .h5ad files alone.",
        )
        return Interpolation(request, path, settings)

    def run(self, experiment: Experiment, plan: Interpolation) -> None:
        """Make the cells."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan.models.base import SolverSettings
        from cellgan.studies import interpolation

        interpolation.interpolate_labels(
            experiment,
            plan.request,
            plan.path,
            guidance=plan.settings.guidance,
            solver=SolverSettings.of(plan.settings),
        )


def _cells_per_weight(options: argparse.Namespace) -> int:
    words = options.cells_no
    if words is None:
        return CELLS_PER_WEIGHT
    if len(words) != 1 or not words[0].isdecimal() or not int(words[0]):
        msg = (
            f"--cells_no: {' '.join(words)} found: with --interpolate, give one number "
            "from 1 on, of the cells of each weight."
        )
        raise ConfigError(msg)
    return int(words[0])


ACTION = Interpolate()
