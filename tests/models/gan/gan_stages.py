"""Small GANs and batches for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch
from cellgan.models import build_model
from cellgan.models.gan.model import Gan
from cellgan.models.gan.training import GanStage
from tests.manifests import make_manifest

N_GENES, N_CELLS, CRITIC_ITERS = 20, 6, 1
RATIOS = (10, 0, 30)
"""Training cells of each label: not in order of size, and none of the second."""
SEED = tf.constant((3, 4))


def make_gan(
    model_type: str = "cscGAN",
    *,
    trained: Sequence[int] = RATIOS,
    model: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> Gan:
    """Build a GAN from parameters, of which some may be given."""
    block = {
        "input_ds": {"raw_input": "a.h5ad", "scale": "normalize_per_cell_LS_1000"},
        "model": {
            "type": model_type,
            "latent_dim": 5,
            "gen_layers": [7, 8],
            "critic_layers": [9, 6],
            **(model or {}),
        },
        "training": {"max_steps": 8, "critic_iters": CRITIC_ITERS, **(training or {})},
    }
    labels = [f"type {index}" for index in range(len(trained))]
    manifest = make_manifest(labels, trained, n_genes=N_GENES)
    gan = build_model(parse_experiment(block, "test"), manifest)
    assert isinstance(gan, Gan)
    return gan


def make_stage(model_type: str = "cscGAN", **options: Any) -> GanStage:
    """Build the stage of `make_gan`."""
    (stage,) = make_gan(model_type, **options).stages()
    assert isinstance(stage, GanStage)
    return stage


def make_batch(seed: int = 0, n_cells: int = N_CELLS, n_labels: int = 3) -> CellBatch:
    """Draw counts and labels."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (n_cells, N_GENES)).astype(np.float32)
    return CellBatch(
        {"rna": tf.constant(counts)},
        {"rna": tf.constant(counts.sum(axis=1))},
        {"cluster": tf.constant(rng.integers(0, n_labels, n_cells), tf.int32)},
    )


def make_batches(**options: Any) -> tuple[CellBatch, ...]:
    """Draw the batches of one step."""
    return tuple(make_batch(seed, **options) for seed in range(CRITIC_ITERS + 1))


def values(network: Any) -> dict[str, np.ndarray]:
    """Return the weights of a network, running statistics included, by path."""
    return {weight.path: weight.numpy().copy() for weight in network.weights}


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Assert that two sets of arrays are equal bit for bit."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def changed(found: dict[str, Any], before: dict[str, Any]) -> set[str]:
    """Return the names of arrays that are not the same."""
    return {key for key in before if not np.array_equal(found[key], before[key])}
