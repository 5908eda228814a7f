"""The linearly decoded VAE learns what the original learns of made-up tissues.

Reference numbers are those of the original on the same cells: minus the bound of the
training cells at the end, and the median r2 of reconstructed cells over all genes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch, prepared_batches
from cellgan.evaluation.metrics.reconstruction import (
    accuracy_of_counts,
    accuracy_summary,
)
from cellgan.models import build_model
from cellgan.training.loop import CompiledSteps
from tests.manifests import make_manifest

pytestmark = pytest.mark.slow

N_GENES, N_CELLS, N_EVALUATED, BATCH, EPOCHS = 200, 600, 200, 128, 60
TISSUES = {"A": 1, "B": 2, "C": 3}
EVALUATION_SEEDS = {"A": 101, "B": 102, "C": 103}
RUNS = (0, 1)


def draw_counts(tissue: str, n_cells: int, seed: int) -> np.ndarray:
    """Draw cells of a tissue: one of three programs each, noise, and depth."""
    of_tissue = np.random.default_rng(TISSUES[tissue])
    base = of_tissue.normal(0, 1, N_GENES)
    programs = of_tissue.normal(size=(3, N_GENES))
    programs = programs * (of_tissue.random((3, N_GENES)) < 0.3) * 2
    rng = np.random.default_rng(seed)
    program = rng.integers(0, 3, n_cells)
    logits = base + programs[program] + rng.normal(0, 0.3, (n_cells, N_GENES))
    rates = np.exp(logits)
    rates /= rates.sum(axis=1, keepdims=True)
    depth = rng.lognormal(7.6, 0.3, (n_cells, 1))
    spread = rng.gamma(5, 1 / 5, (n_cells, N_GENES))
    return rng.poisson(rates * depth * spread).astype(np.float32)


def as_cells(counts: np.ndarray) -> CellBatch:
    codes = np.zeros(len(counts), np.int32)
    return CellBatch({"rna": counts}, {"rna": counts.sum(axis=1)}, {"cluster": codes})


class Trained(NamedTuple):
    """Of the runs of one mixture, their means."""

    negative_elbo: float
    r2: dict[str, float]


def train(*parts: tuple[str, int], run: int) -> Trained:
    """Train on cells of tissues, drawn with seeds, as the original does.

    It holds a tenth of the cells back, and makes a step of each epoch's last cells.
    """
    counts = np.concatenate([draw_counts(name, N_CELLS, seed) for name, seed in parts])
    order = np.random.default_rng(run).permutation(len(counts))
    counts = counts[order[: int(np.ceil(0.9 * len(counts)))]]
    n_steps = EPOCHS * -(-len(counts) // BATCH)
    block = {
        "input_ds": {"raw_input": "a.h5ad"},
        "model": {"type": "LDVAE", "n_layers": 2},
        "training": {
            "max_steps": n_steps,
            "learning_rate": {"alpha_0": 5e-3},
            "seed": run,
        },
    }
    manifest = make_manifest(("A",), (len(counts),), N_GENES, [counts.sum(axis=1)])
    model = build_model(parse_experiment(block, "test"), manifest)
    steps = CompiledSteps(model.stages()[0], run, tf.distribute.get_strategy())
    batches = iter(prepared_batches(as_cells(counts), batch_size=BATCH, seed=run))
    steps.run(batches, 0, 1)
    last_epoch = n_steps - -(-len(counts) // BATCH)
    steps.run(batches, 1, last_epoch)
    bounds = [
        steps.run(batches, step, step + 1)[1]["negative_elbo"]
        for step in range(last_epoch, n_steps)
    ]
    r2 = {}
    for name, seed in EVALUATION_SEEDS.items():
        evaluated = draw_counts(name, N_EVALUATED, seed)
        made = model.reconstruct(as_cells(evaluated))
        found = accuracy_of_counts(evaluated, made.expression, None)
        r2[name] = accuracy_summary(found).median_r2
    return Trained(float(np.mean(bounds)), r2)


def mean_of_runs(*parts: tuple[str, int]) -> Trained:
    """Train with every seed; `parts` have those of run 0."""
    runs = [
        train(*[(name, seed + run) for name, seed in parts], run=run) for run in RUNS
    ]
    return Trained(
        float(np.mean([one.negative_elbo for one in runs])),
        {name: float(np.mean([one.r2[name] for one in runs])) for name in TISSUES},
    )


@pytest.fixture(scope="module")
def alone() -> Trained:
    return mean_of_runs(("A", 11))


@pytest.fixture(scope="module")
def mixed() -> Trained:
    return mean_of_runs(("A", 11), ("B", 31))


def test_bounds_reach_the_level_of_the_original(alone, mixed) -> None:
    assert alone.negative_elbo == pytest.approx(617, rel=0.1)
    assert mixed.negative_elbo == pytest.approx(492, rel=0.1)


def test_accuracy_is_that_of_the_original(alone, mixed) -> None:
    assert alone.r2 == pytest.approx({"A": 0.355, "B": 0.0015, "C": 0.003}, abs=0.08)
    assert mixed.r2 == pytest.approx({"A": 0.615, "B": 0.525, "C": 0.0035}, abs=0.08)


def test_more_tissues_help_each_and_no_unseen_one(alone, mixed) -> None:
    assert mixed.r2["A"] > alone.r2["A"] > 10 * alone.r2["B"]
    assert mixed.r2["B"] > 10 * mixed.r2["C"]
