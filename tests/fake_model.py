"""A model whose cells can be written down: no weights, no TensorFlow operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cellgan.config.reading import parse_experiment
from cellgan.data.manifest import DatasetManifest
from cellgan.experiment import Experiment
from cellgan.generation.trained_model import TrainedModel
from cellgan.models.base import (
    GeneratedCells,
    GenerationRequest,
    GenerativeModel,
    TrainingStage,
    sparse_rows,
)
from tests.manifests import make_manifest


def fake_expression(seed: int, cells: Any, codes: Any, n_genes: int) -> Any:
    """Expression of cells by (seed, position, code): about a third is not zero."""
    mixed = (
        np.asarray(cells)[:, None] * 7919
        + np.asarray(codes)[:, None] * 104_729
        + np.arange(n_genes) * 31
        + seed * 1_299_709
    )
    return np.maximum(mixed * 48_271 % 3001 - 2000, 0).astype(np.float32)


@dataclasses.dataclass
class FakeModel(GenerativeModel):
    """Makes `fake_expression`; remembers what it was asked for."""

    manifest: DatasetManifest
    are_counts: bool = False
    requests: list[GenerationRequest] = dataclasses.field(default_factory=list)

    def stages(self) -> tuple[TrainingStage, ...]:
        return ()

    def generation_weights(self) -> Mapping[str, Mapping[str, Any]]:
        return {}

    def generate(self, request: GenerationRequest) -> GeneratedCells:
        self.requests.append(request)
        cells = request.first_cell + np.arange(request.n_cells)
        codes = request.covariates[self.manifest.label]
        features = {
            modality: sparse_rows(
                fake_expression(request.seed + index, cells, codes, len(names))
            )
            for index, (modality, names) in enumerate(self.manifest.features.items())
        }
        return GeneratedCells(features, self.are_counts)


def make_trained(
    folder: Path,
    manifest: DatasetManifest | None = None,
    model_type: str = "cscGAN",
    **model: Any,
) -> TrainedModel:
    """Return a fake model as if it had been loaded from `folder`."""
    manifest = manifest or make_manifest()
    block = {
        "input_ds": {
            "raw_input": "cells.h5mu" if "atac" in manifest.features else "cells.h5ad",
            "atac": {} if "atac" in manifest.features else None,
            "scale": f"normalize_per_cell_LS_{manifest.target_library_size}",
        },
        "model": {"type": model_type, **model},
    }
    experiment = Experiment(folder, parse_experiment(block, "test"))
    fake = FakeModel(manifest, are_counts=experiment.parameters.model.makes_counts)
    return TrainedModel(experiment, manifest, fake, step=40)
