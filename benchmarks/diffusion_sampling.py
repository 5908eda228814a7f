"""Time the sampling of cfDiffusion against the original's loop, and what speed costs.

The original's network and loop are written here in plain PyTorch, with the widths of
the paper, and given our weights; both are timed in turn, in one process, with the same
number of threads. Guidance is on in both: what the released code computes at each step
is two rows for each cell (it gives both the same label; here one of them has none)::

    python benchmarks/diffusion_sampling.py

Takes seven to twenty minutes on two cores. Figures are medians of the turns; processor
time is that of all threads of the process, the one to read on a machine that others use
too. Targets: all 1,000 steps 3 times as fast as the original's; a cache of interval 5
1.3 times as fast again; 50 steps of DDIM 10 times as fast as 1,000. Cells are made in
blocks of 512: fewer take as long.

With the folder of a trained cfDiffusion experiment, the second table says what the
shortcuts cost: distances of generated to held-out cells as the report computes them,
beside those of real training cells, means over seeds::

    python benchmarks/diffusion_sampling.py experiments/pbmc3k --figure pareto.png
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cellgan.start import set_environment

set_environment()
# Threads that wait for work in a loop would be billed to whoever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from turns import Task, time_in_turn

from cellgan.config.reading import parse_experiment
from cellgan.data.manifest import CovariateVocabulary, DatasetManifest
from cellgan.evaluation.comparison.sides import compare_experiment
from cellgan.experiment import Experiment
from cellgan.generation.allotment import assign_covariates
from cellgan.generation.library_sizes import draw_library_sizes
from cellgan.generation.trained_model import TrainedModel
from cellgan.models import build_model
from cellgan.models.base import GenerationRequest, SolverSettings
from cellgan.models.cfdiffusion.model import LatentDiffusion
from cellgan.models.cfdiffusion.networks import PAPER_WIDTHS, Denoiser
from cellgan.studies.guidance_sweep import measures

try:
    import torch
except ImportError:
    torch = None

N_LATENT, N_LABELS, N_GENES, WEIGHT = 128, 11, 32, 0.5
ALL = SolverSettings("ddpm", 1000)
TIMED = {
    "1,000 steps": ALL,
    "cache 5": dataclasses.replace(ALL, cache_interval=5),
    "cache 5, uneven": dataclasses.replace(
        ALL, cache_interval=5, cache_spacing="uneven"
    ),
    "cache 10": dataclasses.replace(ALL, cache_interval=10),
    "100 steps": SolverSettings("ddpm", 100),
    "DDIM 50": SolverSettings("ddim", 50),
}
JUDGED = {
    **TIMED,
    "200 steps": SolverSettings("ddpm", 200),
    "50 steps": SolverSettings("ddpm", 50),
    "DDIM 100": SolverSettings("ddim", 100),
    "DDIM 50, eta 1": SolverSettings("ddim", 50, eta=1.0),
    "DDIM 20": SolverSettings("ddim", 20),
}
SHOWN = ("mmd_squared", "wasserstein_2", "label_agreement")


def main() -> None:
    """Print the table of speed, and that of quality of a trained model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, nargs="?")
    parser.add_argument("--figure", type=Path, help="draw the second table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=512, help="of the first table")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.experiment is None:
        report_speed(options.cells, options.repeats)
    else:
        rows = report_quality(Experiment.open(options.experiment), options.seeds)
        if options.figure is not None:
            draw(rows, options.figure)


def report_speed(n_cells: int, n_repeats: int) -> None:
    """Print seconds of every way to sample, and how much faster it is."""
    model = paper_model()
    network = model.generation_weights()["diffusion"]["average"]
    labels = (np.arange(n_cells) % N_LABELS).astype(np.int32)
    request = GenerationRequest(
        {"cell_type": labels},
        n_cells,
        seed=0,
        library_sizes={},
        guidance={"cell_type": 1 + WEIGHT},
    )

    def ours(solver: SolverSettings) -> Task:
        own = dataclasses.replace(request, solver=solver)
        return lambda: model.generate(own) and None

    tasks = {name: ours(solver) for name, solver in TIMED.items()}
    if torch is not None:
        peer = TorchDenoiser()
        peer.take(network)
        check_same_noise(network, peer)
        tasks = {"PyTorch, 1,000 steps": lambda: peer.sample(labels), **tasks}
    for name, task in tasks.items():
        if not name.startswith("PyTorch"):
            task()  # compiles
    costs = time_in_turn(tasks, n_repeats, warm=False)
    print(f"{n_cells} cells, latents of {N_LATENT}, widths {PAPER_WIDTHS}, guided\n")
    print(f"{'':22}{'s':>8}{'CPU s':>8}{'cells/s':>9}", end="")
    print(f"{'to PyTorch':>12}{'CPU':>7}{'to 1,000':>10}{'CPU':>7}")
    peer_cost = costs.get("PyTorch, 1,000 steps")
    own_cost = costs["1,000 steps"]
    for name, (wall, cpu) in costs.items():
        print(f"{name:22}{wall:8.2f}{cpu:8.2f}{n_cells / wall:9,.0f}", end="")
        for other, width in ((peer_cost, 12), (own_cost, 10)):
            ratios = ("", "") if other is None else (other.wall / wall, other.cpu / cpu)
            for ratio, room in zip(ratios, (width, 7), strict=True):
                print(f"{ratio:{room}.2f}" if ratio else " " * room, end="")
        print()


def paper_model() -> LatentDiffusion:
    """Return a model of the paper's size, not trained, of few genes.

    Decoding then takes no time beside the steps.
    """
    block = {
        "input_ds": {"raw_input": "x.h5ad", "clustering": {"key": "cell_type"}},
        "model": {
            "type": "cfDiffusion",
            "autoencoder": {
                "n_latent": N_LATENT,
                "layers": [32],
                "decoder": "squared_error",
            },
            "diffusion": {"widths": list(PAPER_WIDTHS), "n_steps": 1000},
        },
    }
    names = tuple(f"type {code:02}" for code in range(N_LABELS))
    manifest = DatasetManifest(
        features={"rna": tuple(f"gene{gene}" for gene in range(N_GENES))},
        covariates={"cell_type": CovariateVocabulary(names)},
        label="cell_type",
        target_library_size=1000,
        record_values="counts",
        split_sizes={"train": 1100, "valid": 0, "test": 0},
        cells_per_category={"train": {"cell_type": (100,) * N_LABELS}},
        library_sizes={},
        shards={},
    )
    model = build_model(parse_experiment(block, "benchmark"), manifest)
    assert isinstance(model, LatentDiffusion)  # noqa: S101
    return model


class Row(NamedTuple):
    """One line of the second table."""

    name: str
    cpu: float
    """Seconds of sampling and decoding, of all cells."""
    values: np.ndarray
    """Of `SHOWN`, ``(n_seeds, 3)``."""


def report_quality(experiment: Experiment, n_seeds: int) -> list[Row]:
    """Generate in every way and with every seed; print means over seeds."""
    trained = TrainedModel.load(experiment.folder)
    rows = []
    columns = "".join(f"{name:>22}" for name in SHOWN)
    print(f"{'':22}{'CPU s':>8}{columns}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        for name, solver in JUDGED.items():
            values = []
            for seed in range(n_seeds):
                trained.write(path, seed=seed, solver=solver, quiet=True)
                compared = compare_experiment(experiment, path, seed=seed)
                found = measures(compared, "generated", seed)
                values.append([found[name] for name in SHOWN])
            row = Row(name, sampling_seconds(trained, solver), np.array(values))
            rows.append(row)
            print_row(row)
        real = [measures(compared, "control", seed) for seed in range(n_seeds)]
    values = np.array([[found[name] for name in SHOWN] for found in real])
    rows.append(Row("real cells", math.nan, values))
    print_row(rows[-1])
    return rows


def sampling_seconds(trained: TrainedModel, solver: SolverSettings) -> float:
    """Return seconds of processor time of 2,048 cells; call after a first run."""
    manifest = trained.manifest
    codes = assign_covariates([({}, 2048)], manifest)
    sizes = draw_library_sizes(codes, manifest, "modelled", seed=0)
    request = GenerationRequest(codes, 2048, 0, library_sizes=sizes, solver=solver)
    started = time.process_time()
    trained.model.generate(request)
    return time.process_time() - started


def print_row(row: Row) -> None:
    """Print means over seeds with their standard deviations."""
    seconds = "" if math.isnan(row.cpu) else f"{row.cpu:.2f}"
    cells = (
        f"{mean:12.4f} +- {sd:6.4f}"
        for mean, sd in zip(
            row.values.mean(axis=0), row.values.std(axis=0), strict=True
        )
    )
    print(f"{row.name:22}{seconds:>8}", *cells, flush=True)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw each measure against the time, with the level of real cells."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    titles = ("squared MMD", "2-Wasserstein distance", "label agreement")
    *made, real = rows
    for axes, title, column in zip(
        figure.subplots(1, 3), titles, range(len(SHOWN)), strict=True
    ):
        level, spread = real.values[:, column].mean(), real.values[:, column].std()
        axes.axhspan(level - spread, level + spread, color="0.85", lw=0)
        axes.axhline(level, color="0.5", lw=1, label="real cells")
        for row in made:
            values = row.values[:, column]
            is_ddim = row.name.startswith("DDIM")
            is_cached = "cache" in row.name
            color = "tab:blue" if is_ddim else "tab:green" if is_cached else "tab:red"
            axes.errorbar(
                row.cpu, values.mean(), values.std(), fmt="o", ms=4, color=color
            )
            axes.annotate(
                row.name,
                (row.cpu, values.mean()),
                xytext=(2, 4),
                textcoords="offset points",
                rotation=60,
                fontsize=6,
            )
        axes.set(xscale="log", xlabel="CPU seconds for 2,048 cells", title=title)
        axes.margins(x=0.15, y=0.25)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        figure.axes[0].scatter([], [], s=16, color=color, label=label)
        for color, label in (
            ("tab:red", "drawn steps"),
            ("tab:green", "with cached layers"),
            ("tab:blue", "DDIM"),
        )
    ]
    figure.axes[0].legend(handles=handles, fontsize=7, frameon=False, loc="center left")
    figure.savefig(path, dpi=150)


if torch is not None:
    nn = torch.nn

    class TorchLayer(nn.Module):
        """A layer that labels gate and the step shifts."""

        def __init__(self, n_inputs: int, n_outputs: int, n_embedding: int) -> None:
            super().__init__()
            self.fc = nn.Linear(n_inputs, n_outputs)
            self.gate = nn.Sequential(nn.SiLU(), nn.Linear(n_embedding, n_outputs))
            self.shift = nn.Sequential(nn.SiLU(), nn.Linear(n_embedding, n_outputs))
            self.norm = nn.LayerNorm(n_outputs)

        def forward(
            self, hidden: torch.Tensor, time: torch.Tensor, label: torch.Tensor
        ) -> torch.Tensor:
            """Return the layer's output."""
            units = self.fc(hidden) * self.gate(label) + self.shift(time)
            return nn.functional.silu(self.norm(units))

    class TorchDenoiser(nn.Module):
        """The original's network: every row has its own embeddings."""

        def __init__(self) -> None:
            super().__init__()
            widths = PAPER_WIDTHS
            width = widths[0]
            self.time = self.embedding(width, width)
            self.label = self.embedding(N_LABELS, width)
            pairs = zip((N_LATENT, *widths), widths, strict=False)
            self.down = nn.ModuleList(TorchLayer(a, b, width) for a, b in pairs)
            pairs = zip(widths[::-1], widths[::-1][1:], strict=False)
            self.up = nn.ModuleList(TorchLayer(a, b, width) for a, b in pairs)
            self.head = nn.Sequential(
                nn.Linear(width, 2 * widths[1]),
                nn.LayerNorm(2 * widths[1]),
                nn.SiLU(),
                nn.Linear(2 * widths[1], N_LATENT),
            )

        @staticmethod
        def embedding(n_inputs: int, width: int) -> nn.Sequential:
            """Return the layers of an embedding."""
            return nn.Sequential(
                nn.Linear(n_inputs, width), nn.SiLU(), nn.Linear(width, width)
            )

        def take(self, ours: Denoiser) -> None:
            """Take the weights of ours."""
            for mine, of in (
                (self.time, ours.time_layers),
                (self.label, ours.label_layers),
            ):
                for position, layer in zip((0, 2), of, strict=True):
                    take_linear(mine[position], layer)
            start = 0
            layers = (*self.down, *self.up)
            for mine, layer, norm in zip(layers, ours.layers, ours.norms, strict=True):
                take_linear(mine.fc, layer)
                own = slice(start, start + mine.fc.out_features)
                take_linear(mine.gate[1], ours.label_projection, own)
                take_linear(mine.shift[1], ours.time_projection, own)
                take_norm(mine.norm, norm)
                start = own.stop
            take_linear(self.head[0], ours.head)
            take_norm(self.head[1], ours.head_norm)
            take_linear(self.head[3], ours.output_layer)

        def forward(
            self, latent: torch.Tensor, steps: torch.Tensor, labels: torch.Tensor
        ) -> torch.Tensor:
            """Return the noise; labels come as minus their one-hot code."""
            half = PAPER_WIDTHS[0] // 2
            rates = torch.exp(-math.log(1e4) * torch.arange(half) / half)
            angles = steps[:, None].float() * rates
            time = self.time(torch.cat([angles.cos(), angles.sin()], dim=1))
            label = self.label(labels)
            hidden, outputs = latent, []
            for layer in self.down:
                hidden = layer(hidden, time, label)
                outputs.append(hidden)
            outputs.pop()
            for layer in self.up:
                hidden = layer(hidden, time, label) + outputs.pop()
            return self.head(hidden)

        @torch.no_grad()
        def sample(self, codes: np.ndarray) -> torch.Tensor:
            """Take all steps of the original, from noise to latents."""
            betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
            kept = torch.cumprod(1 - betas, 0)
            before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
            of_latent = betas * before.sqrt() / (1 - kept)
            of_noisy = (1 - before) * (1 - betas).sqrt() / (1 - kept)
            n_cells = len(codes)
            one_hot = nn.functional.one_hot(torch.from_numpy(codes).long(), N_LABELS)
            labels = -one_hot.float()
            labels = torch.cat([labels, torch.zeros_like(labels)])
            noisy = torch.randn(n_cells, N_LATENT)
            for step in range(999, -1, -1):
                steps = torch.full((2 * n_cells,), step)
                both = self(torch.cat([noisy, noisy]), steps, labels)
                with_label, without = both.chunk(2)
                noise = (1 + WEIGHT) * with_label - WEIGHT * without
                clean = noisy / kept[step].sqrt().float()
                clean = clean - (1 / kept[step] - 1).sqrt().float() * noise
                noisy = of_latent[step].float() * clean + of_noisy[step].float() * noisy
                if step:
                    noisy = noisy + betas[step].sqrt().float() * torch.randn_like(noisy)
            return noisy

    def take_linear(linear: nn.Linear, ours: Any, columns: slice = slice(None)) -> None:
        """Take the weights of some columns of one of our layers."""
        kernel, bias = (weight.numpy() for weight in ours.weights)
        linear.weight.data = torch.from_numpy(kernel[:, columns].T.copy())
        linear.bias.data = torch.from_numpy(bias[columns].copy())

    def take_norm(norm: nn.LayerNorm, ours: Any) -> None:
        """Take the weights of one of our normalisations."""
        norm.weight.data = torch.from_numpy(ours.scale.numpy().reshape(-1).copy())
        norm.bias.data = torch.from_numpy(ours.offset.numpy().reshape(-1).copy())

    def check_same_noise(network: Denoiser, peer: TorchDenoiser) -> None:
        """Refuse a peer that is another network than ours."""
        rng = np.random.default_rng(0)
        latent = rng.normal(size=(8, N_LATENT)).astype(np.float32)
        codes = np.arange(8, dtype=np.int32)
        steps = np.arange(8) * 100
        ours = network(
            tf.constant(latent),
            network.shifts(tf.constant(steps)),
            network.gates({"cell_type": tf.constant(codes)}),
        )
        labels = -np.eye(N_LABELS, dtype=np.float32)[codes]
        with torch.no_grad():
            theirs = peer(*(torch.from_numpy(of) for of in (latent, steps, labels)))
        np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main()
