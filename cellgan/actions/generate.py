"""``--generate``: cells, made with the trained model."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cellgan.actions.base import Action, Option
from cellgan.actions.options import (
    CELLS_NO,
    CONDITION,
    GUIDANCE,
    SAVE_PATH,
    SEED,
    SOLVER,
    generation_settings,
    read_pairs,
    read_scales,
    solver_keys,
)
from cellgan.errors import ConfigError

if TYPE_CHECKING:
    from cellgan.config.parameters import GenerationParameters
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

COUNTS = Option(
    "counts",
    {
        "action": "store_true",
        "help": "turn library-size-normalised cells into integer counts",
    },
)
REQUESTS = Option(
    "requests",
    {
        "type": Path,
        "metavar": "FILE",
        "help": "table of requests (.csv, .tsv): a column per covariate, and n_cells; "
        "for every model that is conditioned on something",
    },
)
LIBRARY_SIZE = Option(
    "library_size",
    {
        "metavar": "N",
        "help": "of RNA: a number, or modelled (default) or copied from training cells "
        "with the same covariates",
    },
)
LATENTS = Option(
    "latents",
    {
        "metavar": "HOW",
        "help": "of a VAE: posterior (default), of training cells with the covariates "
        "asked for, or prior",
    },
)


class CheckedRequest(NamedTuple):
    """Which cells to make, and where they go."""

    path: Path
    request: Any
    condition: dict[str, str]
    requests: Path | None
    counts: bool
    settings: GenerationParameters
    doubts: tuple[str, ...]


class Generate(Action):
    """Make cells; what is not given is as the parameters say."""

    name = "generate"
    needs_training = True
    help = "make cells with the trained model"
    options = (
        *(CELLS_NO, SEED, CONDITION, REQUESTS, GUIDANCE, LIBRARY_SIZE, LATENTS),
        *(*SOLVER, COUNTS, SAVE_PATH),
    )
    is_for_folders = True

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse pairs and scales that are none."""
        _keys(options)

    def prepare(
        self, experiment: Experiment, options: argparse.Namespace
    ) -> CheckedRequest:
        """Check the whole request against parameters and manifest."""
        from cellgan.generation.allotment import check_guidance, doubts, request_parts
        from cellgan.generation.requests import LIKE_DATA, check_save_path

        manifest = experiment.manifest()
        settings = generation_settings(experiment, _keys(options))
        model = experiment.parameters.model.as_asked(settings.latents)
        is_given = options.cells_no is not None
        request = options.cells_no if is_given else settings.cells_no
        condition = dict(settings.condition)
        if options.requests is not None:  # stands for what the parameters say
            if options.condition:
                msg = (
                    "--requests stands for --condition: give the file alone, with a "
                    "column for each covariate."
                )
                raise ConfigError(msg)
            request, condition = options.cells_no or LIKE_DATA, {}
        parts = request_parts(
            request,
            manifest,
            model,
            condition=condition,
            requests=options.requests,
            where="--cells_no" if is_given else "generation.cells_no",
        )
        check_guidance(settings.guidance, model.conditions(manifest))
        path = check_save_path(
            options.save_path or experiment.generated_file, modalities=manifest.features
        )
        return CheckedRequest(
            path,
            request,
            condition,
            options.requests,
            options.counts or settings.counts,
            settings,
            tuple(doubts(parts, manifest, settings.guidance)),
        )

    def run(self, experiment: Experiment, plan: CheckedRequest) -> None:
        """Load the model and write the cells."""
        for sentence in plan.doubts:
            log.warning("%s: %s", experiment.name, sentence)
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan.generation.trained_model import TrainedModel
        from cellgan.models.base import SolverSettings

        TrainedModel.load(experiment.folder).write(
            plan.path,
            plan.request,
            seed=plan.settings.seed,
            counts=plan.counts,
            condition=plan.condition,
            requests=plan.requests,
            guidance=plan.settings.guidance,
            library_size=plan.settings.library_size,
            solver=SolverSettings.of(plan.settings),
            latents=plan.settings.latents,
        )


def _keys(options: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of the ``generation`` block that the command line gives."""
    size = options.library_size
    return {
        "condition": read_pairs(options.condition, "--condition"),
        "guidance": read_scales(options.guidance),
        "library_size": int(size) if str(size).isdecimal() else size,
        "latents": options.latents,
        **solver_keys(options),
    }


ACTION = Generate()
