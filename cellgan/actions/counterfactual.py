"""``--counterfactual``: cells, edited to other categories."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellgan.actions.base import Action
from cellgan.actions.options import (
    INPUT,
    SAVE_PATH,
    SEED,
    generation_settings,
    read_pairs,
)

if TYPE_CHECKING:
    from cellgan.experiment import Experiment


class Edit(NamedTuple):
    """Which cells are edited to what, and where they go."""

    target: dict[str, str]
    cells: Path | None
    path: Path
    seed: int


class Counterfactual(Action):
    """Edit cells to other categories."""

    name = "counterfactual"
    needs_training = True
    help = "edit cells to these categories, with what each head adds"
    takes = types.MappingProxyType({"nargs": "+", "metavar": "FIELD=VALUE"})
    options = (INPUT, SEED, SAVE_PATH)
    ability = ("is_additive", "is no sum of what covariates add")
    is_for_folders = True

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse pairs that are none."""
        read_pairs(options.counterfactual, "--counterfactual")

    def prepare(self, experiment: Experiment, options: argparse.Namespace) -> Edit:
        """Refuse what are no categories of the model's fields."""
        from cellgan.generation.requests import check_save_path
        from cellgan.studies.checks import check_counterfactual

        target = read_pairs(options.counterfactual, "--counterfactual") or {}
        check_counterfactual(experiment, target)
        path = check_save_path(
            options.save_path or experiment.counterfactual_file,
            modalities=experiment.manifest().features,
            suffix=".h5ad",
            reason="edited cells go to .h5ad files alone.",
        )
        settings = generation_settings(experiment, {"seed": options.seed})
        return Edit(target, options.input, path, settings.seed)

    def run(self, experiment: Experiment, plan: Edit) -> None:
        """Edit the cells and say how near they come."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan.studies import counterfactual

        cells = None
        if plan.cells is not None:
            from preprocessing.new_cells import read_new_cells

            parameters, manifest = experiment.parameters, experiment.manifest()
            fields = parameters.model.conditions(manifest)
            cells = read_new_cells(
                str(plan.cells), manifest, parameters.input_ds, fields
            )
        counterfactual.edit_cells(
            experiment,
            plan.target,
            plan.path,
            cells=cells,
            origin=str(plan.cells),
            seed=plan.seed,
        )


ACTION = Counterfactual()
