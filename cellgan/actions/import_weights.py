"""``--import-weights``: the weights that an original program has trained."""

from __future__ import annotations

import argparse
import types
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellgan.actions.base import Action
from cellgan.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from cellgan.experiment import Experiment


class OriginalWeights(NamedTuple):
    """Files that an original program has written, and whose it is."""

    family: str
    files: tuple[Path, ...]


class ImportWeights(Action):
    """Take the weights that the original program of a family has trained."""

    name = "import-weights"
    help = (
        "in place of --train: take weights that the original program of a family has "
        "trained"
    )
    takes = types.MappingProxyType({"nargs": "+", "metavar": ("FAMILY", "CKPT")})
    goes_alone = (
        "--import-weights goes with --param alone: process before, and do the rest "
        "after it."
    )
    is_for_one = (
        "--import-weights fills one experiment, but there are several: choose one with "
        "--experiment NAME."
    )

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse a family without files."""
        if len(options.import_weights) < 2:
            msg = (
                "--import-weights takes a family and files: --import-weights cfgen "
                "A.ckpt"
            )
            raise ConfigError(msg)

    def prepare(
        self, experiment: Experiment, options: argparse.Namespace
    ) -> OriginalWeights:
        """Refuse another family's experiment, and one that is trained already."""
        from cellgan.config.model_types import family_of, types_with

        family, *files = options.import_weights
        original = {family_of(kind): kind for kind in types_with("imports_weights")}
        if family not in original:
            msg = (
                f'--import-weights: no family "{family}".'
                f"{did_you_mean(family, original)} Families: {', '.join(original)}."
            )
            raise ConfigError(msg)
        experiment.manifest()  # not processed: said before anything is read
        experiment.check_frozen("input_ds")
        kind = experiment.parameters.model.type
        if kind != original[family]:
            msg = (
                f"--import-weights {family}: model.type of {experiment.name} is "
                f'"{kind}", expected "{original[family]}".'
            )
            raise ConfigError(msg)
        if experiment.has_checkpoint:
            msg = (
                f"--import-weights: {experiment.name} is trained already: there are "
                f"checkpoints in {experiment.job_folder}. Give it another name."
            )
            raise ConfigError(msg)
        return OriginalWeights(family, tuple(map(Path, files)))

    def run(self, experiment: Experiment, plan: OriginalWeights) -> None:
        """Fill the stages that the files are of."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan import weight_import

        weight_import.import_weights(experiment, plan.family, plan.files)


ACTION = ImportWeights()
