"""Time CFGen's training and sampling against the same networks in PyTorch.

The networks, losses, optimizer and loops of the original are written here in plain
PyTorch and given our weights; both are timed in turn, in one process, with the same
number of threads, on made-up cells of 2,000 genes of which about 8 % are not zero::

    python benchmarks/cfgen.py

- Training: `CompiledSteps`, ten steps a call, on cells in memory and on latents that
  are computed once. The original encodes each batch of the flow anew ("encoding"); the
  other row gives it latents too ("latents").
- Sampling: `generate` in the pieces in which files are written, with what makes the
  counts sparse, against the original's loop: a network call for each branch of the
  guidance, then decoding, Gamma and Poisson, and a copy as a dense array.
- Guidance: the cost of ours by two covariates, beside cells without any.

Takes about six minutes on two cores. Figures are medians of the turns; processor time
is that of all threads of the process, the one to read on a machine that others use too.
A ratio above 1 is in our favour. Targets: training 1.5, sampling 3; guidance 2.2.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cellgan.start import set_environment

set_environment()
# Threads that wait for work in a loop would be billed to whoever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from turns import Cost, Task, time_in_turn

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import (
    CellBatch,
    evaluation_batches,
    prepared_batches,
    training_batches,
)
from cellgan.data.manifest import RNA, CovariateVocabulary, DatasetManifest
from cellgan.generation.pieces import piece_size
from cellgan.models import build_model
from cellgan.models.base import GenerationRequest, SolverSettings
from cellgan.models.cfgen.model import LatentFlow
from cellgan.models.latent.stage import LATENT
from cellgan.training.loop import CompiledSteps
from preprocessing.readers.cell_source import CellSource
from preprocessing.write_tfrecords import write_tfrecords

try:
    import torch
except ImportError:
    torch = None

N_GENES, N_CELLS, BATCH, CELLS_PER_CALL = 2000, 8192, 256, 512
N_CATEGORIES = {"cell_type": 14, "donor": 4}
AUTOENCODER = (512, 256, 50)
FLOWS = {"small": (32, 20), "big": (64, 100)}
N_BLOCKS, LARGEST_ANGLE, FREQUENCY_RANGE, SIGMA, UNCONDITIONAL = 3, 1000, 1e4, 1e-4, 0.2
EULER, ADAPTIVE = SolverSettings("euler", 20), SolverSettings("dopri5", tolerance=1e-5)
GUIDANCE: Mapping[str, Mapping[str, float]] = {
    "no covariate": {"cell_type": 0, "donor": 0},
    "one, scale 1": {"cell_type": 1, "donor": 0},
    "one, scale 2": {"cell_type": 2, "donor": 0},
    "two covariates": {"cell_type": 2, "donor": 1.5},
}


class Cells(NamedTuple):
    """Made-up training cells and where their records are."""

    counts: sp.csr_matrix
    codes: dict[str, np.ndarray]
    folder: Path
    manifest: DatasetManifest

    @property
    def library_size(self) -> np.ndarray:
        """Total of every cell."""
        return np.asarray(self.counts.sum(axis=1), np.float32).ravel()


def main() -> None:
    """Print tables of training and of sampling."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cells", type=int, default=10_000, help="to sample")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cells = make_cells(Path(folder) / "records")
        density = cells.counts.nnz / np.prod(cells.counts.shape)
        print(f"{N_GENES:,} genes, {density:.1%} not zero, batch {BATCH}")
        models = {name: make_model(cells, *FLOWS[name]) for name in FLOWS}
        report_training(cells, models, options.repeats)
    for name, model in models.items():
        report_sampling(name, model, cells, options.cells, options.repeats)


def make_cells(folder: Path) -> Cells:
    """Draw counts of heavy-tailed genes and write their records."""
    rng = np.random.default_rng(0)
    profiles = rng.normal(0, 2.4, N_GENES) + rng.normal(0, 0.5, (14, N_GENES))
    codes = {
        name: rng.integers(0, n, N_CELLS).astype(np.int32)
        for name, n in N_CATEGORIES.items()
    }
    shares = np.exp(profiles) / np.exp(profiles).sum(axis=1, keepdims=True)
    means = shares[codes["cell_type"]] * rng.lognormal(6.2, 0.4, (N_CELLS, 1))
    theta = np.exp(rng.normal(0, 1, N_GENES))
    drawn = rng.poisson(rng.gamma(theta, means / theta))
    counts = sp.csr_matrix(drawn.astype(np.float32))
    names = {
        name: tuple(f"{name} {code:02}" for code in range(n))
        for name, n in N_CATEGORIES.items()
    }
    obs = pd.DataFrame({"split": ["train"] * N_CELLS, "n_genes": counts.getnnz(axis=1)})
    obs.index = obs.index.astype(str)
    for name, of in codes.items():
        obs[name] = pd.Categorical.from_codes(of, list(names[name]))
    adata = ad.AnnData(counts, obs=obs)
    shards = write_tfrecords(
        CellSource.of_anndata(adata),
        folder,
        label="cell_type",
        covariates=["donor"],
        record_values="counts",
        target_library_size=1000,
        seed=0,
    )
    by_type = [counts[codes["cell_type"] == code] for code in range(14)]
    per_category = {name: tuple(np.bincount(of).tolist()) for name, of in codes.items()}
    manifest = DatasetManifest(
        features={RNA: tuple(f"gene{gene}" for gene in range(N_GENES))},
        covariates={name: CovariateVocabulary(of) for name, of in names.items()},
        label="cell_type",
        target_library_size=1000,
        record_values="counts",
        split_sizes={"train": N_CELLS, "valid": 0, "test": 0},
        cells_per_category={"train": per_category},
        library_sizes={RNA: tuple(tuple(of.sum(axis=1).A1) for of in by_type)},
        shards=shards,
    )
    return Cells(counts, codes, folder, manifest)


def make_model(cells: Cells, width: int, n_embedding: int) -> LatentFlow:
    """Return a model as parameters make it, not trained but with cells as sparse.

    Its velocities depend on time and covariates.
    """
    flow = {"width": width, "embedding_width": n_embedding, "n_blocks": N_BLOCKS}
    block = {"input_ds": {"raw_input": "x.h5ad"}, "model": {"type": "CFGen"}}
    block["model"]["flow"] = {**flow, "standardize_latents": False}
    parameters = parse_experiment(block, "benchmark")
    model = build_model(parameters, cells.manifest)
    parts = model.generation_weights()
    rng = np.random.default_rng(1)
    for layer in parts["flow"]["network"].second_layers:
        layer.kernel.assign(rng.normal(0, 0.5 / width**0.5, layer.kernel.shape))
    last = parts["autoencoder"]["network"].decoders[RNA].linears[-1]
    totals = np.asarray(cells.counts.sum(axis=0)).ravel()
    last.bias.assign(np.log(totals + 0.5))
    return model


def report_training(
    cells: Cells, models: Mapping[str, LatentFlow], n_repeats: int
) -> None:
    """Time steps of the autoencoder and of both flows."""
    print(
        f"\n{'training':24}{'steps/s':>9}{'per CPU s':>11}{'ratio':>8}{'CPU ratio':>11}"
    )
    for name, model in models.items():
        autoencoder, flow = model.stages()
        if name == "small":
            counts = training_batches(
                cells.folder, cells.manifest, batch_size=BATCH, seed=0, source="memory"
            )
            tasks = {"ours": our_steps(autoencoder, iter(counts), 20)}
            if torch is not None:
                tasks["PyTorch"] = TorchTraining(model, cells).autoencoder_steps(20)
            print_rates("autoencoder", 20, time_in_turn(tasks, n_repeats))
        latents = flow.prepare(lambda: every_cell(cells))
        prepared = iter(prepared_batches(latents, batch_size=BATCH, seed=0))
        tasks = {"ours": our_steps(flow, prepared, 100)}
        if torch is not None:
            peer = TorchTraining(model, cells)
            tasks["PyTorch, encoding"] = peer.flow_steps(100, latents=None)
            of_cells = torch.from_numpy(latents.features[LATENT])
            tasks["PyTorch, latents"] = peer.flow_steps(100, latents=of_cells)
        print_rates(f"flow {name}", 100, time_in_turn(tasks, n_repeats))


def report_sampling(
    name: str, model: LatentFlow, cells: Cells, n_cells: int, n_repeats: int
) -> None:
    """Time sampling with each kind of guidance."""
    print_header(f"sampling, {name}", "cells/s")
    cells_of = np.arange(n_cells) % N_CELLS
    request = GenerationRequest(
        {k: of[cells_of] for k, of in cells.codes.items()},
        n_cells,
        seed=0,
        library_sizes={RNA: cells.library_size[cells_of]},
        solver=EULER,
    )
    guided = GUIDANCE if name == "big" else ("one, scale 1",)
    costs = {
        scales: compare_sampling(
            scales,
            model,
            dataclasses.replace(request, guidance=GUIDANCE[scales]),
            n_repeats,
        )
        for scales in guided
    }
    few = first_cells(
        dataclasses.replace(request, guidance=GUIDANCE["one, scale 1"]), 512
    )
    few = dataclasses.replace(few, solver=ADAPTIVE)
    compare_sampling("adaptive 1e-5", model, few, n_repeats)
    if name == "big":
        two, none = costs["two covariates"], costs["no covariate"]
        print(
            f"ours by two covariates takes {two.wall / none.wall:.2f} times as long "
            f"as by none, {two.cpu / none.cpu:.2f} times the processor time"
        )


def compare_sampling(
    name: str, model: LatentFlow, request: GenerationRequest, n_repeats: int
) -> Cost:
    """Print the rates of one request; return what ours costs."""
    our_cells(model, first_cells(request, 512))  # compiles
    tasks: dict[str, Task] = {"ours": lambda: our_cells(model, request)}
    if torch is not None:
        peer = TorchSampling(model)
        tasks["PyTorch"] = lambda: peer.cells(request)
        check_same_velocity(model, peer)
    costs = time_in_turn(tasks, n_repeats, warm=False)
    print_rates(name, request.n_cells, costs)
    return costs["ours"]


def our_steps(stage: Any, batches: Iterator[CellBatch], n_steps: int) -> Task:
    """Return some steps as training runs them."""
    steps = CompiledSteps(stage, 0, tf.distribute.get_strategy())
    done, _ = steps.run(batches, 0, 1)
    position = itertools.count(done, 10)

    def run() -> None:
        for start in itertools.islice(position, n_steps // 10):
            steps.run(batches, start, start + 10)

    return run


def every_cell(cells: Cells) -> Iterator[CellBatch]:
    """Return all cells in the order of their records."""
    return iter(
        evaluation_batches(cells.folder, cells.manifest, "train", batch_size=1024)
    )


def our_cells(model: LatentFlow, request: GenerationRequest) -> sp.csr_matrix:
    """Make cells as they are made for a file."""
    size = piece_size(N_GENES)
    pieces = []
    for first in range(0, request.n_cells, size):
        part = cut(request, first, min(first + size, request.n_cells))
        pieces.append(model.generate(part).features[RNA])
    return sp.vstack(pieces, format="csr")


def cut(request: GenerationRequest, first: int, end: int) -> GenerationRequest:
    """Return the part of a request that is some consecutive cells."""
    return dataclasses.replace(
        request,
        covariates={k: of[first:end] for k, of in request.covariates.items()},
        n_cells=end - first,
        first_cell=first,
        library_sizes={k: of[first:end] for k, of in request.library_sizes.items()},
    )


def first_cells(request: GenerationRequest, n_cells: int) -> GenerationRequest:
    """Return the part of a request that is its first cells."""
    return cut(request, 0, min(n_cells, request.n_cells))


def print_header(name: str, unit: str) -> None:
    """Print what is in the columns."""
    print(f"\n{name:33}{unit:>9}{'per CPU s':>11}{'ratio':>8}{'CPU ratio':>11}")


def print_rates(name: str, n_units: int, costs: Mapping[str, Cost]) -> None:
    """Print how many units each does in a second, and how much faster ours is."""
    ours = costs["ours"]
    for who, (wall, cpu) in costs.items():
        print(f"{name:15}{who:>18}{n_units / wall:9,.0f}{n_units / cpu:11,.0f}", end="")
        print(f"{wall / ours.wall:8.2f}{cpu / ours.cpu:11.2f}")
        name = ""


if torch is not None:
    nn = torch.nn

    class TorchMlp(nn.Sequential):
        """Linear layers with batch normalisation and ELU between them."""

        def __init__(self, widths: Sequence[int]) -> None:
            layers: list[nn.Module] = []
            for n_inputs, n_outputs in itertools.pairwise(widths[:-1]):
                linear = nn.Linear(n_inputs, n_outputs)
                layers += [linear, nn.BatchNorm1d(n_outputs), nn.ELU()]
            super().__init__(*layers, nn.Linear(*widths[-2:]))

        def take(self, ours: Any) -> None:
            """Take the weights of one of our networks."""
            mine = [layer for layer in self if isinstance(layer, nn.Linear)]
            for linear, of in zip(mine, ours.linears, strict=True):
                take_linear(linear, of)
            norms = [layer for layer in self if isinstance(layer, nn.BatchNorm1d)]
            for norm, of in zip(norms, ours.norms, strict=True):
                norm.weight.data = as_torch(of.scale)
                norm.bias.data = as_torch(of.offset)
                norm.running_mean.data = as_torch(of.moving_mean)
                norm.running_var.data = as_torch(of.moving_variance)

    class TorchAutoencoder(nn.Module):
        """The count autoencoder of one modality."""

        def __init__(self) -> None:
            super().__init__()
            widths = (N_GENES, *AUTOENCODER)
            self.encoder, self.decoder = TorchMlp(widths), TorchMlp(widths[::-1])
            self.log_theta = nn.Parameter(torch.randn(N_GENES))

        def take(self, ours: Any) -> None:
            """Take the weights of ours."""
            self.encoder.take(ours.encoders[RNA])
            self.decoder.take(ours.decoders[RNA])
            self.log_theta.data = as_torch(ours.log_inverse_dispersion[RNA])

        def loss(self, counts: torch.Tensor) -> torch.Tensor:
            """Return the negative log-likelihood of counts."""
            latent = self.encoder(torch.log1p(counts))
            total = counts.sum(dim=1, keepdim=True)
            mean = total * torch.softmax(self.decoder(latent), dim=1)
            theta, epsilon = self.log_theta.exp(), 1e-8
            both = torch.log(theta + mean + epsilon)
            log_prob = (
                theta * (torch.log(theta + epsilon) - both)
                + counts * (torch.log(mean + epsilon) - both)
                + torch.lgamma(counts + theta)
                - torch.lgamma(theta)
                - torch.lgamma(counts + 1)
            )
            return -log_prob.sum(dim=1).mean()

        def draw(self, latent: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
            """Draw counts of latents."""
            mean = sizes[:, None] * torch.softmax(self.decoder(latent), dim=1)
            theta = self.log_theta.exp().expand_as(mean)
            rate = torch.distributions.Gamma(theta, theta / mean).sample()
            return torch.poisson(rate.clamp(max=1e8))

    class TorchBlock(nn.Module):
        """One residual block of the velocity network."""

        def __init__(self, width: int, n_embedding: int) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.SiLU(), nn.Linear(width, width))
            self.shift = nn.Sequential(nn.SiLU(), nn.Linear(n_embedding, width))
            self.second = nn.Sequential(nn.SiLU(), nn.Linear(width, width))

        def forward(
            self, hidden: torch.Tensor, condition: torch.Tensor
        ) -> torch.Tensor:
            """Add to what comes in."""
            return hidden + self.second(self.first(hidden) + self.shift(condition))

    class TorchVelocity(nn.Module):
        """The velocity network and the embeddings of its covariates."""

        def __init__(self, width: int, n_embedding: int) -> None:
            super().__init__()
            self.n_embedding = n_embedding
            self.time = nn.Sequential(
                nn.Linear(n_embedding, n_embedding),
                nn.SiLU(),
                nn.Linear(n_embedding, n_embedding),
            )
            self.tables = nn.ModuleDict(
                {name: nn.Embedding(n, n_embedding) for name, n in N_CATEGORIES.items()}
            )
            self.input = nn.Linear(AUTOENCODER[-1], width)
            self.blocks = nn.ModuleList(
                TorchBlock(width, n_embedding) for _ in range(N_BLOCKS)
            )
            self.output = nn.Sequential(nn.SiLU(), nn.Linear(width, AUTOENCODER[-1]))

        def take(self, ours: Any) -> None:
            """Take the weights of ours."""
            for mine, of in zip((0, 2), ours.time_layers, strict=True):
                take_linear(self.time[mine], of)
            for table, of in zip(self.tables.values(), ours.embeddings, strict=True):
                table.weight.data = as_torch(of.table)
            take_linear(self.input, ours.input_layer)
            kernel, bias = (as_torch(weight) for weight in ours.projection.weights)
            width = kernel.shape[1] // N_BLOCKS
            for index, block in enumerate(self.blocks):
                own = slice(index * width, (index + 1) * width)
                block.shift[1].weight.data = kernel[:, own].T.contiguous()
                block.shift[1].bias.data = bias[own].clone()
                take_linear(block.first[1], ours.first_layers[index])
                take_linear(block.second[1], ours.second_layers[index])
            take_linear(self.output[1], ours.output_layer)

        def forward(
            self,
            latent: torch.Tensor,
            time: torch.Tensor,
            codes: torch.Tensor | None,
            covariate: str = "",
        ) -> torch.Tensor:
            """Return the velocity, given one covariate or none."""
            n_frequencies = self.n_embedding // 2
            exponents = torch.arange(n_frequencies) / (n_frequencies - 1)
            angles = LARGEST_ANGLE * time[:, None] * FREQUENCY_RANGE**-exponents
            condition = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
            if codes is not None:
                condition = condition + self.tables[covariate](codes)
            hidden = self.input(latent)
            for block in self.blocks:
                hidden = block(hidden, condition)
            return self.output(hidden)

    class TorchTraining:
        """Both stages of the original's training."""

        def __init__(self, model: LatentFlow, cells: Cells) -> None:
            self.autoencoder, self.velocity = copies(model)
            self.counts = torch.from_numpy(cells.counts.toarray())
            self.codes = {k: torch.from_numpy(of) for k, of in cells.codes.items()}

        def autoencoder_steps(self, n_steps: int) -> Task:
            """Return some steps of the autoencoder."""
            weights = list(self.autoencoder.parameters())
            optimizer = torch.optim.AdamW(weights, 1e-3, weight_decay=1e-5)

            def run() -> None:
                self.autoencoder.train()
                for rows in batches_of_rows(n_steps):
                    loss = self.autoencoder.loss(self.counts[rows])
                    update(optimizer, weights, loss)

            return run

        def flow_steps(self, n_steps: int, latents: torch.Tensor | None) -> Task:
            """Return some steps of the flow, on latents or on those it computes."""
            weights = list(self.velocity.parameters())
            optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=1e-6)
            rng = np.random.default_rng(0)

            def run() -> None:
                self.autoencoder.eval()
                for rows in batches_of_rows(n_steps):
                    if latents is None:
                        with torch.no_grad():
                            counts = torch.log1p(self.counts[rows])
                            latent = self.autoencoder.encoder(counts)
                    else:
                        latent = latents[rows]
                    covariate = str(rng.choice(list(N_CATEGORIES)))
                    is_kept = rng.uniform() > UNCONDITIONAL
                    codes = self.codes[covariate][rows] if is_kept else None
                    loss = self.flow_loss(latent, codes, covariate)
                    update(optimizer, weights, loss)

            return run

        def flow_loss(
            self, latent: torch.Tensor, codes: torch.Tensor | None, covariate: str
        ) -> torch.Tensor:
            """Return the error of the velocity at stratified times."""
            noise = torch.randn_like(latent)
            time = (torch.arange(len(latent)) + torch.rand(())) / len(latent)
            left = 1 - (1 - SIGMA) * time[:, None]
            point = time[:, None] * latent + left * noise
            target = (latent - (1 - SIGMA) * point) / left
            velocity = self.velocity(point, time, codes, covariate)
            return (velocity - target).square().mean()

    class TorchSampling:
        """The original's sampling."""

        def __init__(self, model: LatentFlow) -> None:
            self.autoencoder, self.velocity = copies(model)

        @torch.no_grad()
        def cells(self, request: GenerationRequest) -> np.ndarray:
            """Make the cells of a request, as counts in a dense array."""
            made = []
            for first in range(0, request.n_cells, CELLS_PER_CALL):
                part = cut(request, first, min(first + CELLS_PER_CALL, request.n_cells))
                noise = torch.randn(part.n_cells, AUTOENCODER[-1])
                sizes = torch.from_numpy(part.library_sizes[RNA])
                counts = self.autoencoder.draw(self.latents(noise, part), sizes)
                made.append(counts.numpy())
            return np.concatenate(made)

        @torch.no_grad()
        def latents(
            self, noise: torch.Tensor, request: GenerationRequest
        ) -> torch.Tensor:
            """Follow the guided velocity from noise."""
            codes = {k: torch.from_numpy(of) for k, of in request.covariates.items()}
            guided = {k: scale for k, scale in request.guidance.items() if scale}

            def velocity(time: float, latent: torch.Tensor) -> torch.Tensor:
                times = torch.full((len(latent),), time)
                without = self.velocity(latent, times, None)
                total = without
                for name, scale in guided.items():
                    own = self.velocity(latent, times, codes[name], name)
                    total = total + scale * (own - without)
                return total

            if request.solver.name == "dopri5":
                return dormand_prince(velocity, noise, request.solver.tolerance)
            step = 1 / request.solver.n_steps
            latent = noise
            for index in range(request.solver.n_steps):
                latent = latent + step * velocity(index * step, latent)
            return latent

    def dormand_prince(
        velocity: Callable[[float, torch.Tensor], torch.Tensor],
        latent: torch.Tensor,
        tolerance: float,
    ) -> torch.Tensor:
        """Solve from 0 to 1, with the original's rule for the length of steps."""
        rows = (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        )
        fourth = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339100)
        fourth += (187 / 2100, 1 / 40)
        nodes = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1)
        time, step, slope = 0.0, 1e-3, velocity(0.0, latent)
        while time < 1:
            step = min(step, 1 - time)
            slopes = [slope]
            for node, row in zip(nodes, rows, strict=True):
                point = latent + step * combined(row, slopes)
                slopes.append(velocity(time + node * step, point))
            error = step * (combined(rows[-1], slopes) - combined(fourth, slopes))
            scale = tolerance * (1 + torch.maximum(latent.abs(), point.abs()))
            ratio = float((error / scale).square().mean().sqrt())
            if ratio <= 1:
                time, latent, slope = time + step, point, slopes[-1]
            step *= min(10.0, max(0.2, 0.9 * max(ratio, 1e-10) ** -0.2))
        return latent

    def combined(shares: Sequence[float], slopes: list[torch.Tensor]) -> torch.Tensor:
        """Return the sum of slopes, each times its share."""
        pairs = zip(shares, slopes, strict=False)
        return sum(share * slope for share, slope in pairs if share)

    def copies(model: LatentFlow) -> tuple[TorchAutoencoder, TorchVelocity]:
        """Return both networks with the weights of ours, for inference."""
        parts = model.generation_weights()
        network = parts["flow"]["network"]
        autoencoder = TorchAutoencoder()
        autoencoder.take(parts["autoencoder"]["network"])
        width = network.input_layer.kernel.shape[1]
        velocity = TorchVelocity(width, network.projection.kernel.shape[0])
        velocity.take(network)
        return autoencoder.eval(), velocity.eval()

    def take_linear(linear: nn.Linear, ours: Any) -> None:
        """Take the weights of one of our layers."""
        kernel, bias = ours.weights
        linear.weight.data = as_torch(kernel).T.contiguous()
        linear.bias.data = as_torch(bias)

    def as_torch(weight: Any) -> torch.Tensor:
        """Return a copy of a weight."""
        return torch.from_numpy(weight.numpy().copy())

    def batches_of_rows(n_batches: int) -> Iterator[torch.Tensor]:
        """Return the rows of shuffled cells."""
        order = itertools.chain.from_iterable(
            torch.randperm(N_CELLS).split(BATCH) for _ in itertools.count()
        )
        return itertools.islice(order, n_batches)

    def update(
        optimizer: torch.optim.Optimizer,
        weights: list[nn.Parameter],
        loss: torch.Tensor,
    ) -> None:
        """Take one step with clipped gradients."""
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        loss.item()

    def check_same_velocity(model: LatentFlow, peer: TorchSampling) -> None:
        """Refuse a peer that is another network than ours."""
        network = model.generation_weights()["flow"]["network"]
        rng = np.random.default_rng(2)
        latent = rng.normal(size=(8, AUTOENCODER[-1])).astype(np.float32)
        time = rng.uniform(size=8).astype(np.float32)
        codes = {name: np.full(8, n) for name, n in network.null_codes.items()}
        codes["cell_type"] = np.arange(8)
        ours = network(latent, time, network.condition(codes, {})).numpy()
        arguments = (torch.from_numpy(of) for of in (latent, time, codes["cell_type"]))
        theirs = peer.velocity(*arguments, "cell_type").detach().numpy()
        np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3)


if __name__ == "__main__":
    main()
