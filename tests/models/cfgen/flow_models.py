"""Small CFGen models and batches for tests."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import CovariateVocabulary, DatasetManifest
from cellgan.models import build_model
from cellgan.models.cfgen.model import FlowStage, LatentFlow
from cellgan.models.latent.autoencoder import AutoencoderStage
from tests.manifests import make_manifest

N_GENES, N_PEAKS, N_LATENT = 12, 16, 4
CATEGORIES = {"cluster": 3, "donor": 2}
"""Number of categories by covariate; the first is the label."""
SEED = tf.constant((3, 4))


def cfgen_manifest(
    *, atac: bool = False, binary: bool = False, donor_cells: tuple[int, int] = (35, 25)
) -> DatasetManifest:
    """Make a manifest of two covariates, with or without peaks."""
    labels = [f"type {code}" for code in range(CATEGORIES["cluster"])]
    manifest = make_manifest(labels, (30, 20, 10), n_genes=N_GENES)
    donors = CovariateVocabulary(("1", "2"))
    train = {**manifest.cells_per_category["train"], "donor": donor_cells}
    manifest = dataclasses.replace(
        manifest,
        covariates={**manifest.covariates, "donor": donors},
        cells_per_category={**manifest.cells_per_category, "train": train},
    )
    if not atac:
        return manifest
    peaks = tuple(f"peak{peak}" for peak in range(N_PEAKS))
    return dataclasses.replace(
        manifest,
        features={**manifest.features, "atac": peaks},
        library_sizes={"rna": ((100.0, 400.0),) * 3, "atac": ((3.0, 9.0),) * 3},
        binary=("atac",) if binary else (),
    )


def make_model(
    *,
    autoencoder: dict[str, Any] | None = None,
    flow: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    atac: bool = False,
    binary: bool = False,
    donor_cells: tuple[int, int] = (35, 25),
) -> LatentFlow:
    """Build a model from parameters, of which some may be given."""
    peaks = {"atac": {"raw_input": "b.h5ad"}} if atac else {}
    block = {
        "input_ds": {"raw_input": "a.h5ad", "covariates": ["donor"], **peaks},
        "model": {
            "type": "CFGen",
            "autoencoder": {
                "n_latent": N_LATENT,
                "rna_layers": [8],
                **({"atac_layers": [10]} if atac else {}),
                **(autoencoder or {}),
            },
            "flow": {
                "width": 8,
                "embedding_width": 6,
                "n_blocks": 1,
                "time_frequency": 5.0,
                **(flow or {}),
            },
        },
        "training": training or {},
    }
    manifest = cfgen_manifest(atac=atac, binary=binary, donor_cells=donor_cells)
    model = build_model(parse_experiment(block, "test"), manifest)
    assert isinstance(model, LatentFlow)
    return model


def randomized(model: LatentFlow, seed: int = 0, size: float = 0.4) -> LatentFlow:
    """Give a model velocities that depend on everything, and a scale of latents."""
    rng = np.random.default_rng(seed)
    parts = model.generation_weights()["flow"]
    for weight in parts["network"].trainable_variables:
        weight.assign(rng.normal(0, size, weight.shape))
    parts["scale"].fit(rng.normal(1.0, 0.5, (50, parts["scale"].mean.shape[0])))
    return model


def stages_of(model: LatentFlow) -> tuple[AutoencoderStage, FlowStage]:
    """Return both stages."""
    autoencoder, flow = model.stages()
    assert isinstance(autoencoder, AutoencoderStage)
    assert isinstance(flow, FlowStage)
    return autoencoder, flow


def draw_codes(n_cells: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw all covariates."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.integers(0, n, n_cells).astype(np.int32)
        for name, n in CATEGORIES.items()
    }


def make_batch(
    n_cells: int = 20, seed: int = 0, *, atac: bool = False, binary: bool = False
) -> CellBatch:
    """Draw counts and covariates."""
    rng = np.random.default_rng(seed)
    features = {"rna": 1 + rng.poisson(3.0, (n_cells, N_GENES)).astype(np.float32)}
    if atac:
        peaks = rng.poisson(0.6, (n_cells, N_PEAKS)).astype(np.float32)
        features["atac"] = np.minimum(peaks, 1) if binary else peaks
    return CellBatch(
        {name: tf.constant(of) for name, of in features.items()},
        {name: tf.constant(of.sum(axis=1)) for name, of in features.items()},
        {name: tf.constant(of) for name, of in draw_codes(n_cells, seed).items()},
    )
