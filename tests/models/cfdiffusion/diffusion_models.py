"""Small cfDiffusion models and batches for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import CovariateVocabulary, DatasetManifest
from cellgan.models import build_model
from cellgan.models.cfdiffusion.model import LatentDiffusion
from cellgan.models.cfdiffusion.training import DiffusionStage
from cellgan.models.latent.autoencoder import AutoencoderStage
from tests.manifests import make_manifest

N_GENES, N_LATENT = 12, 4
CATEGORIES = {"cluster": 3, "donor": 2}
"""Number of categories by covariate; the first is the label."""


def diffusion_manifest() -> DatasetManifest:
    """Make a manifest of two covariates."""
    labels = [f"type {code}" for code in range(CATEGORIES["cluster"])]
    manifest = make_manifest(labels, (30, 20, 10), n_genes=N_GENES)
    donors = CovariateVocabulary(("1", "2"))
    return dataclasses.replace(
        manifest,
        covariates={**manifest.covariates, "donor": donors},
        cells_per_category={
            split: {**of_split, "donor": (30, 30) if split == "train" else (0, 0)}
            for split, of_split in manifest.cells_per_category.items()
        },
    )


def make_model(
    *,
    autoencoder: dict[str, Any] | None = None,
    diffusion: dict[str, Any] | None = None,
    manifest: DatasetManifest | None = None,
    **blocks: Any,
) -> LatentDiffusion:
    """Build a model from parameters, of which some may be given."""
    block = {
        "input_ds": {"raw_input": "a.h5ad", "covariates": ["donor"]},
        "training": blocks.get("training", {}),
        "generation": {"n_steps": 8, **blocks.get("generation", {})},
        "model": {
            "type": "cfDiffusion",
            "autoencoder": {
                "n_latent": N_LATENT,
                "layers": [8],
                "decoder": "squared_error",
                **(autoencoder or {}),
            },
            "diffusion": {"widths": [8, 6, 4], "n_steps": 50, **(diffusion or {})},
            **blocks.get("model", {}),
        },
    }
    parameters = parse_experiment(block, "test")
    model = build_model(parameters, manifest or diffusion_manifest())
    assert isinstance(model, LatentDiffusion)
    return model


def randomized(model: LatentDiffusion, seed: int = 0) -> LatentDiffusion:
    """Give a model noise that depends on everything, a scale and statistics."""
    rng = np.random.default_rng(seed)
    parts = model.generation_weights()
    (network,) = (of for k, of in parts["diffusion"].items() if k != "scale")
    for weight in network.trainable_variables:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    parts["diffusion"]["scale"].fit(rng.normal(0.3, 0.5, (50, N_LATENT)))
    for weight in parts["autoencoder"]["network"].weights:
        if "moving" in weight.path:
            weight.assign(rng.uniform(0.5, 2.0, weight.shape))
    return model


def stages_of(model: LatentDiffusion) -> tuple[AutoencoderStage, DiffusionStage]:
    """Return both stages."""
    autoencoder, diffusion = model.stages()
    assert isinstance(autoencoder, AutoencoderStage)
    assert isinstance(diffusion, DiffusionStage)
    return autoencoder, diffusion


def draw_codes(n_cells: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw all covariates."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, n, n_cells).astype(np.int32)
        for name, n in CATEGORIES.items()
    }


def make_batch(n_cells: int = 20, seed: int = 0) -> CellBatch:
    """Draw counts and covariates."""
    rng = np.random.default_rng(seed)
    counts = 1 + rng.poisson(3.0, (n_cells, N_GENES)).astype(np.float32)
    return CellBatch(
        {"rna": tf.constant(counts)},
        {"rna": tf.constant(counts.sum(axis=1))},
        {name: tf.constant(of) for name, of in draw_codes(n_cells, seed).items()},
    )
