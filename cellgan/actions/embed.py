"""``--embed``: cells with their latents, and what the model makes of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cellgan.actions.base import Action, Option
from cellgan.actions.options import (
    CONDITION,
    INPUT,
    SAVE_PATH,
    SEED,
    generation_settings,
    read_pairs,
)
from cellgan.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

LAYERS = ("normalized", "predictive")


class Encoding(NamedTuple):
    """Which cells are encoded, and what is written of them."""

    cells: Path | None
    path: Path
    layers: tuple[str, ...]
    n_samples: int
    seed: int
    condition: dict[str, str]


class Embed(Action):
    """Write cells with their latents and reconstructions."""

    name = "embed"
    needs_training = True
    help = (
        "cells with their latents; of models that decode them also what they make of "
        "them, how well, and the loadings of genes"
    )
    options = (
        INPUT,
        Option(
            "layers",
            {
                "nargs": "+",
                "metavar": "LAYER",
                "help": "normalized and predictive (default), or none",
            },
        ),
        Option(
            "n_samples",
            {
                "type": int,
                "metavar": "N",
                "help": "draws that expression is the mean of (0: that of the mean "
                "latent)",
            },
        ),
        *(CONDITION, SEED, SAVE_PATH),
    )
    ability = ("has_encoder", "has no encoder of cells")
    is_for_folders = True

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse layers and numbers that there are not."""
        read_pairs(options.condition, "--condition")
        _read_layers(options.layers)
        if options.n_samples is not None and options.n_samples < 0:
            msg = f"--n-samples: {options.n_samples} found. Give 0, the mean, or more."
            raise ConfigError(msg)

    def prepare(self, experiment: Experiment, options: argparse.Namespace) -> Encoding:
        """Refuse categories that make no difference to the decoder."""
        from cellgan.generation.requests import check_save_path
        from cellgan.studies.checks import check_embedding

        condition = read_pairs(options.condition, "--condition") or {}
        check_embedding(experiment, condition)
        path = check_save_path(
            options.save_path or experiment.embedded_file,
            suffix=".h5ad",
            reason="cells with latents go to .h5ad files alone.",
        )
        return Encoding(
            options.input,
            path,
            _read_layers(options.layers),
            options.n_samples or 0,
            generation_settings(experiment, {"seed": options.seed}).seed,
            condition,
        )

    def run(self, experiment: Experiment, plan: Encoding) -> None:
        """Encode and decode the cells."""
        from cellgan.start import load_tensorflow

        load_tensorflow()
        from cellgan.studies import embedding

        cells = None
        if plan.cells is not None:
            from preprocessing.new_cells import read_new_cells

            parameters, manifest = experiment.parameters, experiment.manifest()
            columns = parameters.model.needed_columns(manifest)
            cells = read_new_cells(
                str(plan.cells),
                manifest,
                parameters.input_ds,
                columns,
                fills_missing=True,
            )
        embedding.embed_cells(
            experiment,
            plan.path,
            embedding.Settings(plan.layers, plan.n_samples, plan.seed, plan.condition),
            cells=cells,
            origin=str(plan.cells),
        )


def _read_layers(words: Sequence[str] | None) -> tuple[str, ...]:
    if words is None:
        return LAYERS
    if list(words) == ["none"]:
        return ()
    for word in words:
        if word not in LAYERS:
            msg = (
                f'--layers: no layer "{word}".{did_you_mean(word, LAYERS)} '
                f"Layers: {', '.join(LAYERS)}; or none, alone."
            )
            raise ConfigError(msg)
    return tuple(words)


ACTION = Embed()
