"""Which solver of the flow is the cheapest that loses nothing.

Run ``python benchmarks/flow_solvers.py`` (about five minutes on two cores), or give the
folder of a trained CFGen experiment. The same noise is followed by every solver; beside
the distance of its latents from the converged ones stand seconds, and the distances of
the cells to held-out ones as the report computes them. Real training cells in place of
generated ones tell what is noise: two samples of them, of the same number.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from cellgan.config.reading import parse_experiment
from cellgan.experiment import Experiment
from cellgan.start import load_tensorflow

load_tensorflow()

from cellgan.actions.perform import perform
from cellgan.evaluation.comparison.sides import compare_experiment
from cellgan.generation.allotment import assign_covariates
from cellgan.generation.library_sizes import draw_library_sizes
from cellgan.generation.trained_model import TrainedModel
from cellgan.models.base import GenerationRequest, SolverSettings
from cellgan.studies.guidance_sweep import measures

CONVERGED = SolverSettings("rk4", n_steps=200)
SOLVERS = (
    *(SolverSettings("euler", n) for n in (5, 10, 20, 50)),
    *(SolverSettings("midpoint", n) for n in (5, 10, 25)),
    *(SolverSettings("heun", n) for n in (5, 10)),
    *(SolverSettings("rk4", n) for n in (5, 10)),
    *(SolverSettings("dopri5", tolerance=tolerance) for tolerance in (1e-2, 1e-3)),
    CONVERGED,
)
SHOWN = ("mmd_squared", "wasserstein_2", "label_agreement")
DEMO = {
    "input_ds": {
        "raw_input": "builtin:pbmc68k_reduced",
        "clustering": {"key": "bulk_labels"},
        "split": {"valid_cells": 70, "test_cells": 200},
    },
    "model": {"type": "CFGen"},
    "training": {
        "validation_freq": 0,
        "stages": {
            "autoencoder": {"max_steps": 600, "learning_rate": {"alpha_0": 3e-3}},
            "flow": {"max_steps": 5000, "learning_rate": {"alpha_0": 1e-3}},
        },
    },
}


def main() -> None:
    """Print one line per solver."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.experiment is None:
            experiment = train(Path(folder))
        else:
            experiment = Experiment.open(options.experiment)
        compare(experiment, Path(folder) / "cells.h5ad", options.seeds)


def train(folder: Path) -> Experiment:
    """Train a small model on the embedded data."""
    experiment = Experiment(folder / "demo", parse_experiment(DEMO, "benchmark"))
    perform("process", experiment)
    perform("train", experiment)
    return experiment


def compare(experiment: Experiment, path: Path, n_seeds: int) -> None:
    """Generate with every solver and seed, and print means over seeds."""
    trained = TrainedModel.load(experiment.folder)
    latents = [trained_latents(trained, CONVERGED, seed) for seed in range(n_seeds)]
    print(f"{'solver':>22} {'seconds':>8} {'difference':>11}", *map(column, SHOWN))
    for solver in SOLVERS:
        trained.write(path, seed=0, solver=solver)  # compiles
        seconds, rows, differences = [], [], []
        for seed in range(n_seeds):
            started = time.perf_counter()
            trained.write(path, seed=seed, solver=solver)
            seconds.append(time.perf_counter() - started)
            compared = compare_experiment(experiment, path, seed=seed)
            found = measures(compared, "generated", seed)
            rows.append([found[name] for name in SHOWN])
            own = trained_latents(trained, solver, seed)
            differences.append(np.abs(own - latents[seed]).max())
        steps = f"{solver.tolerance:g}" if solver.name == "dopri5" else solver.n_steps
        print(
            f"{solver.name:>16} {steps!s:>5} {min(seconds):8.2f}",
            f"{np.mean(differences):11.4f}",
            *texts(rows),
        )
    real = [measures(compared, "control", seed) for seed in range(n_seeds)]
    rows = [[found[name] for name in SHOWN] for found in real]
    print(f"{'real cells':>43}", *texts(rows))


def trained_latents(
    trained: TrainedModel, solver: SolverSettings, seed: int
) -> np.ndarray:
    """Return the latents of some cells, with the same noise for all solvers."""
    manifest = trained.manifest
    codes = assign_covariates([({}, 256)], manifest)
    request = GenerationRequest(
        codes,
        256,
        seed,
        library_sizes=draw_library_sizes(codes, manifest, "modelled", seed=seed),
        solver=solver,
    )
    return trained.model.generate(request).latent


def column(name: str) -> str:
    """Return a column's title."""
    return f"{name:>22}"


def texts(rows: list[list[float]]) -> list[str]:
    """Return means over seeds with their standard deviations."""
    means, sds = np.mean(rows, axis=0), np.std(rows, axis=0)
    return [f"{mean:12.4f} +- {sd:6.4f}" for mean, sd in zip(means, sds, strict=True)]


if __name__ == "__main__":
    main()
