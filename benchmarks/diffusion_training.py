"""Time the training of cfDiffusion against the same networks in PyTorch.

Both stages with the networks, losses and optimizers of the paper, on made-up cells of
which about 8 % of the counts are not zero; both are timed in turn, in one process, with
the same number of threads::

    python benchmarks/diffusion_training.py

Ours are `CompiledSteps`, ten a call, on batches of counts that are densified and turned
into log expression on the way. The original's have all cells as one dense matrix of log
expression in memory, and encode all latents before the second stage, as ours do. "As
released" is the original's autoencoder with PyTorch's search for anomalies, which the
released program has switched on.

Takes about five minutes on two cores. Figures are medians of the turns; processor time
is that of all threads of the process, the one to read on a machine that others use too.
Targets: 1.5 with 2,000 genes, 1.0 with 17,000.
"""

from __future__ import annotations

import argparse
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cellgan.start import set_environment

set_environment()
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from diffusion_sampling import N_LABELS, N_LATENT, torch
from turns import Task, time_in_turn

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import (
    evaluation_batches,
    prepared_batches,
    training_batches,
)
from cellgan.data.manifest import CovariateVocabulary, DatasetManifest
from cellgan.models import build_model
from cellgan.models.cfdiffusion.networks import PAPER_WIDTHS
from cellgan.training.loop import CompiledSteps
from preprocessing.readers.cell_source import CellSource
from preprocessing.write_tfrecords import write_tfrecords

BATCH, LAYERS = 128, (1024, 1024, 1024)


def main() -> None:
    """Print steps per second of both stages, and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--genes", type=int, nargs="+", default=[2000, 17_000])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{'':40}{'steps/s':>9}{'per CPU s':>11}{'ratio':>8}{'CPU ratio':>11}")
    for n_genes in options.genes:
        with tempfile.TemporaryDirectory() as folder:
            report(n_genes, Path(folder) / "records", options.repeats)


def report(n_genes: int, folder: Path, n_repeats: int) -> None:
    """Time both stages with so many genes."""
    counts, labels, manifest = make_cells(n_genes, folder)
    model = paper_model(manifest)
    autoencoder, diffusion = model.stages()
    batches = training_batches(
        folder, manifest, batch_size=BATCH, seed=0, source="memory"
    )
    n_steps = max(10, 40_000 // n_genes)
    tasks = {"ours": our_steps(autoencoder, iter(batches), n_steps)}
    if torch is not None:
        tasks["PyTorch"] = autoencoder_steps(counts, n_steps, is_watched=False)
        tasks["as released"] = autoencoder_steps(counts, n_steps, is_watched=True)
    print_rates(f"autoencoder, {n_genes:,} genes", n_steps, tasks, n_repeats)
    if n_genes != 2000:
        return  # the second stage knows no genes
    latents = diffusion.prepare(
        lambda: iter(evaluation_batches(folder, manifest, "train", batch_size=1024))
    )
    prepared = iter(prepared_batches(latents, batch_size=BATCH, seed=0))
    tasks = {"ours": our_steps(diffusion, prepared, 40)}
    if torch is not None:
        tasks["PyTorch"] = denoiser_steps(latents.features["latent"], labels, 40)
    print_rates("denoiser", 40, tasks, n_repeats)


def print_rates(
    name: str, n_steps: int, tasks: dict[str, Task], n_repeats: int
) -> None:
    """Time tasks in turn and print how many steps each does in a second."""
    costs = time_in_turn(tasks, n_repeats)
    for who, (wall, cpu) in costs.items():
        print(f"{name:30}{who:>10}{n_steps / wall:9.1f}{n_steps / cpu:11.1f}", end="")
        ours = costs["ours"]
        print(f"{wall / ours.wall:8.2f}{cpu / ours.cpu:11.2f}", flush=True)
        name = ""


def make_cells(
    n_genes: int, folder: Path, n_cells: int = 2048
) -> tuple[sp.csr_matrix, np.ndarray, DatasetManifest]:
    """Draw counts of heavy-tailed genes and write their records."""
    rng = np.random.default_rng(0)
    shares = np.exp(rng.normal(0, 2.4, n_genes))
    shares /= shares.sum()
    means = shares * rng.lognormal(6.2, 0.4, (n_cells, 1)) * n_genes / 2000
    counts = sp.csr_matrix(rng.poisson(means).astype(np.float32))
    codes = rng.integers(0, N_LABELS, n_cells).astype(np.int32)
    names = tuple(f"type {code:02}" for code in range(N_LABELS))
    obs = pd.DataFrame({"split": ["train"] * n_cells, "n_genes": counts.getnnz(axis=1)})
    obs.index = obs.index.astype(str)
    obs["cell_type"] = pd.Categorical.from_codes(codes, list(names))
    shards = write_tfrecords(
        CellSource.of_anndata(ad.AnnData(counts, obs=obs)),
        folder,
        label="cell_type",
        covariates=[],
        record_values="counts",
        target_library_size=10_000,
        seed=0,
    )
    manifest = DatasetManifest(
        features={"rna": tuple(f"gene{gene}" for gene in range(n_genes))},
        covariates={"cell_type": CovariateVocabulary(names)},
        label="cell_type",
        target_library_size=10_000,
        record_values="counts",
        split_sizes={"train": n_cells, "valid": 0, "test": 0},
        cells_per_category={
            "train": {"cell_type": tuple(np.bincount(codes, minlength=N_LABELS))}
        },
        library_sizes={},
        shards=shards,
    )
    return counts, codes, manifest


def paper_model(manifest: DatasetManifest) -> Any:
    """Return the paper's model, with its optimizers."""
    block = {
        "input_ds": {"raw_input": "x.h5ad", "clustering": {"key": "cell_type"}},
        "model": {
            "type": "cfDiffusion",
            "autoencoder": {
                "n_latent": N_LATENT,
                "layers": list(LAYERS),
                "decoder": "squared_error",
            },
            "diffusion": {"widths": list(PAPER_WIDTHS), "latent_scale": "none"},
        },
        "training": {
            "batch_size": BATCH,
            "clip_norm": None,
            "stages": {"autoencoder": {"optimizer": {"weight_decay": 0.01}}},
        },
    }
    return build_model(parse_experiment(block, "benchmark"), manifest)


def our_steps(stage: Any, batches: Iterator[Any], n_steps: int) -> Task:
    """Return some steps as training runs them."""
    steps = CompiledSteps(stage, 0, tf.distribute.get_strategy())
    done, _ = steps.run(batches, 0, 1)
    position = itertools.count(done, 10)

    def run() -> None:
        for start in itertools.islice(position, n_steps // 10):
            steps.run(batches, start, start + 10)

    return run


if torch is not None:
    from diffusion_sampling import TorchDenoiser

    nn = torch.nn

    def block(n_inputs: int, n_outputs: int) -> list[Any]:
        """Return one hidden layer of the autoencoder."""
        linear = nn.Linear(n_inputs, n_outputs)
        return [linear, nn.BatchNorm1d(n_outputs), nn.PReLU()]

    def mlp(*widths: int) -> Any:
        """Return the encoder or the decoder."""
        hidden = itertools.pairwise(widths[:-1])
        layers = [layer for pair in hidden for layer in block(*pair)]
        return nn.Sequential(*layers, nn.Linear(*widths[-2:]))

    def autoencoder_steps(
        counts: sp.csr_matrix, n_steps: int, *, is_watched: bool
    ) -> Task:
        """Return steps of the original's autoencoder, which PyTorch may look through.

        The released program does so: it switches the search for anomalies on.
        """
        n_genes = counts.shape[1]
        encoder = mlp(n_genes, *LAYERS, N_LATENT)
        decoder = mlp(N_LATENT, *LAYERS[::-1], n_genes)
        weights = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.AdamW(weights, 5e-4, weight_decay=0.01)
        dense = counts.toarray()
        dense = np.log1p(dense / dense.sum(axis=1, keepdims=True) * 1e4)
        cells = torch.from_numpy(dense)

        def run() -> None:
            for rows in batches_of_rows(len(cells), n_steps):
                genes = cells[rows]
                latent = nn.functional.normalize(encoder(genes))
                loss = nn.functional.mse_loss(decoder(latent), genes)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        def run_as_asked() -> None:
            with torch.autograd.set_detect_anomaly(is_watched):
                run()

        return run_as_asked

    def denoiser_steps(latents: np.ndarray, codes: np.ndarray, n_steps: int) -> Task:
        """Return steps of the original's denoiser, with its moving average."""
        network = TorchDenoiser()
        weights = list(network.parameters())
        average = [weight.detach().clone() for weight in weights]
        optimizer = torch.optim.AdamW(weights, 1e-4, weight_decay=1e-4)
        kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
        cells = torch.from_numpy(latents)
        one_hot = -nn.functional.one_hot(torch.from_numpy(codes).long(), N_LABELS)

        def run() -> None:
            for rows in batches_of_rows(len(cells), n_steps):
                latent, labels = cells[rows], one_hot[rows].float()
                labels = labels * (torch.rand_like(labels) > 0.1)
                steps = torch.randint(0, 1000, (len(rows),))
                rate, noise = kept[steps][:, None], torch.randn_like(latent)
                noisy = rate.sqrt() * latent + (1 - rate).sqrt() * noise
                loss = (network(noisy, steps, labels) - noise).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for old, new in zip(average, weights, strict=True):
                    old.mul_(0.9999).add_(new.detach(), alpha=1e-4)

        return run

    def batches_of_rows(n_cells: int, n_batches: int) -> Iterator[Any]:
        """Return the rows of shuffled cells."""
        order = itertools.chain.from_iterable(
            torch.randperm(n_cells).split(BATCH) for _ in itertools.count()
        )
        return itertools.islice(order, n_batches)


if __name__ == "__main__":
    main()
