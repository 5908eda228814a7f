"""Time the training of LDVAE against scvi-tools' LinearSCVI, and compare accuracy.

Both train on the same cells with the same settings, in turn, in one process: ours as
``--train`` does, from records in memory, ten steps a call; theirs by ``model.train``,
from a sparse matrix in memory, timed from the first epoch to the last, so that what its
trainer takes to begin and to end is not billed. Where scvi-tools cannot be imported,
the peer is a plain loop in PyTorch of the same arithmetic::

    python benchmarks/ldvae.py

Afterwards both are trained for as many epochs from the beginning, by several seeds, and
give held-out cells back: r2 of cells over the 1,000 most variable genes, mean and
standard error over cells for each seed, and over seeds for the difference.

Takes about fifteen minutes on two cores, most of them the peer's. Figures are medians
of the turns; processor time is that of all threads of the process, the one to read on
a machine that others use too. A ratio above 1 is in our favour; the target is 3.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cellgan.start import set_environment

set_environment()
# Threads that wait for work in a loop would be billed to whoever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import anndata as ad
import keras
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from turns import Cost

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch, training_batches
from cellgan.data.manifest import (
    RNA,
    CovariateVocabulary,
    DatasetManifest,
    find_combinations,
)
from cellgan.evaluation.metrics.reconstruction import (
    AccuracySummary,
    accuracy_of_counts,
    accuracy_summary,
)
from cellgan.models import build_model
from cellgan.training.loop import CompiledSteps
from preprocessing.readers.cell_source import CellSource
from preprocessing.write_tfrecords import write_tfrecords

try:
    import torch
except ImportError:
    torch = None
try:
    import scvi
    from lightning.pytorch.callbacks import Callback
except ImportError:
    scvi, Callback = None, object

N_GENES, N_CELLS, N_HELD_OUT, N_PROGRAMS = 2000, 4096, 1024, 12
N_LATENT, N_HIDDEN, RATE, SEED = 10, 128, 5e-3, 0
BATCHES = (128, 1024)
TARGET = 3
EPSILON = 1e-8


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of a turn")
    parser.add_argument(
        "--accuracy-epochs", type=int, default=30, help="0 compares no accuracy"
    )
    parser.add_argument("--accuracy-seeds", type=int, default=5)
    options = parser.parse_args()
    if torch is None:
        msg = "this needs PyTorch, and better scvi-tools: make bench"
        raise SystemExit(msg)
    n_threads = tf.config.threading.get_intra_op_parallelism_threads()
    torch.set_num_threads(n_threads or len(os.sched_getaffinity(0)))
    cells = make_cells(N_CELLS + N_HELD_OUT)
    held_out, cells = cells[N_CELLS:], cells[:N_CELLS].copy()
    share = cells.X.nnz / np.prod(cells.shape)
    peer = "plain PyTorch" if scvi is None else f"scvi-tools {scvi.__version__}"
    print(f"{N_CELLS:,} cells x {N_GENES:,} genes, {share:.0%} not zero; {peer}")
    head = f"{'batch':>5}  {'':18}{'cells/s':>9}{'CPU us a cell':>15}"
    print(f"{head}{'ratio':>8}{'CPU ratio':>11}")
    with tempfile.TemporaryDirectory() as folder:
        for batch_size in BATCHES:
            ours = OurTraining(cells, Path(folder) / str(batch_size), batch_size, SEED)
            theirs = make_peer(cells, batch_size, SEED)
            trained = {"ours": ours, peer: theirs}
            print_costs(batch_size, in_turn(trained, options), options.epochs)
        if options.accuracy_epochs:
            for batch_size in BATCHES:
                differences = []
                for seed in range(options.accuracy_seeds):
                    records = Path(folder) / f"{batch_size}-{seed}"
                    ours = OurTraining(cells, records, batch_size, seed)
                    theirs = make_peer(cells, batch_size, seed)
                    found = []
                    for name, each in {"ours": ours, peer: theirs}.items():
                        each.train(options.accuracy_epochs)
                        found.append(each.accuracy(held_out))
                        print_accuracy(batch_size, f"{name}, {seed}", found[-1])
                    differences.append(found[0].mean_r2 - found[1].mean_r2)
                print_difference(batch_size, differences)


def make_cells(n_cells: int) -> ad.AnnData:
    """Draw counts of cells that mix programs, with about 8 % not zero."""
    rng = np.random.default_rng(SEED)
    base = rng.normal(0, 1.2, N_GENES)
    programs = rng.normal(size=(N_PROGRAMS, N_GENES)) * 2
    programs *= rng.random((N_PROGRAMS, N_GENES)) < 0.1
    mixture = rng.dirichlet(np.full(N_PROGRAMS, 0.3), n_cells) * 2
    rates = np.exp(base + mixture @ programs)
    rates /= rates.sum(axis=1, keepdims=True)
    depth = rng.lognormal(np.log(250), 0.35, (n_cells, 1))
    counts = rng.poisson(rates * depth * rng.gamma(4, 1 / 4, rates.shape))
    kept = sp.csr_matrix(counts.astype(np.float32))
    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical(["all"] * n_cells),
            "split": "train",
            "n_genes": np.diff(kept.indptr),
        },
        index=[f"cell_{cell}" for cell in range(n_cells)],
    )
    return ad.AnnData(kept, obs=obs)


class OurTraining:
    """Training as ``--train`` runs it."""

    def __init__(
        self, cells: ad.AnnData, folder: Path, batch_size: int, seed: int
    ) -> None:
        keras.utils.set_random_seed(seed)
        shards = write_tfrecords(
            CellSource.of_anndata(cells),
            folder,
            label="cluster",
            record_values="counts",
            target_library_size=1000,
            seed=seed,
        )
        totals = np.asarray(cells.X.sum(axis=1)).ravel()
        manifest = DatasetManifest(
            features={RNA: tuple(cells.var_names)},
            covariates={"cluster": CovariateVocabulary(("all",))},
            label="cluster",
            target_library_size=1000,
            record_values="counts",
            split_sizes={"train": cells.n_obs, "valid": 0, "test": 0},
            cells_per_category={"train": {"cluster": (cells.n_obs,)}},
            library_sizes={},
            shards=shards,
            combinations=find_combinations(
                {"cluster": np.zeros(cells.n_obs, np.int64)}, {RNA: totals}
            ),
        )
        block: dict[str, Any] = {
            "input_ds": {"raw_input": "x.h5ad"},
            "model": {"type": "LDVAE", "n_latent": N_LATENT, "n_hidden": N_HIDDEN},
            "training": {
                "batch_size": batch_size,
                "learning_rate": {"alpha_0": RATE},
                "seed": seed,
            },
        }
        parameters = parse_experiment(block, "benchmark")
        self._model: Any = build_model(parameters, manifest)
        strategy = tf.distribute.get_strategy()
        self._steps = CompiledSteps(self._model.stages()[0], seed, strategy)
        self._batches = iter(
            training_batches(
                folder, manifest, batch_size=batch_size, seed=seed, source="memory"
            )
        )
        self._per_epoch = cells.n_obs // batch_size
        self._done = 0

    def train(self, n_epochs: int) -> Cost:
        """Train for some epochs, and return what they cost."""
        end = self._done + n_epochs * self._per_epoch
        wall, cpu = time.perf_counter(), time.process_time()
        while self._done < end:
            to = 1 if not self._done else min(self._done + 10, end)
            self._done, _ = self._steps.run(self._batches, self._done, to)
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)

    def accuracy(self, cells: ad.AnnData) -> AccuracySummary:
        """Return how held-out cells come out."""
        counts = cells.X.toarray()
        batch = CellBatch({RNA: counts}, {RNA: counts.sum(axis=1)}, {})
        made = self._model.reconstruct(batch)
        return accuracy_summary(accuracy_of_counts(cells.X, made.expression))


class EpochClock(Callback):  # type: ignore[misc]
    """Notes when the first epoch begins and the last one ends."""

    def __init__(self) -> None:
        self.began = self.ended = (0.0, 0.0)

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        """Note the first."""
        del module
        if not trainer.current_epoch:
            self.began = (time.perf_counter(), time.process_time())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Note every one; the last stays."""
        del trainer, module
        self.ended = (time.perf_counter(), time.process_time())


class ScviTraining:
    """Training by scvi-tools."""

    def __init__(self, cells: ad.AnnData, batch_size: int, seed: int) -> None:
        scvi.settings.seed = seed
        scvi.settings.verbosity = logging.ERROR
        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore")
        self._batch_size = batch_size
        cells = cells.copy()
        scvi.model.LinearSCVI.setup_anndata(cells)
        self._model = scvi.model.LinearSCVI(cells, n_latent=N_LATENT, n_hidden=N_HIDDEN)

    def train(self, n_epochs: int) -> Cost:
        """Train for some epochs, and return what they cost."""
        clock = EpochClock()
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            self._model.train(
                max_epochs=n_epochs,
                train_size=1.0,
                batch_size=self._batch_size,
                accelerator="cpu",
                enable_progress_bar=False,
                plan_kwargs={"lr": RATE},
                callbacks=[clock],
            )
        began, ended = clock.began, clock.ended
        return Cost(*(end - begin for begin, end in zip(began, ended, strict=True)))

    def accuracy(self, cells: ad.AnnData) -> AccuracySummary:
        """Return how held-out cells come out of means of their latents."""
        counts = torch.from_numpy(cells.X.toarray())
        module = self._model.module.eval()
        with torch.no_grad():
            batch = torch.zeros((len(counts), 1), dtype=torch.long)
            means = module.inference(counts, batch)["qz"].loc
            library = torch.log(counts.sum(dim=1, keepdim=True))
            made = module.generative(means, library, batch)
        shares = made["px"].scale.numpy()
        return accuracy_summary(accuracy_of_counts(cells.X, shares))


class TorchTraining:
    """The same arithmetic in a plain loop."""

    def __init__(self, cells: ad.AnnData, batch_size: int, seed: int) -> None:
        torch.manual_seed(seed)
        self._counts, self._batch_size = cells.X, batch_size

        def encoder(n_outputs: int) -> Any:
            return torch.nn.Sequential(
                torch.nn.Linear(N_GENES, N_HIDDEN),
                torch.nn.BatchNorm1d(N_HIDDEN, eps=1e-3, momentum=0.01),
                torch.nn.ReLU(),
                torch.nn.Dropout(0.1),
                torch.nn.Linear(N_HIDDEN, 2 * n_outputs),
            )

        self._encoder, self._library = encoder(N_LATENT), encoder(1)
        self._decoder = torch.nn.Sequential(
            torch.nn.Linear(N_LATENT, N_GENES, bias=False),
            torch.nn.BatchNorm1d(N_GENES, eps=1e-3, momentum=0.01),
        )
        self._log_theta = torch.nn.Parameter(torch.randn(N_GENES))
        parts = (self._encoder, self._library, self._decoder)
        weights = itertools.chain(*(part.parameters() for part in parts))
        self._optimizer = torch.optim.Adam(
            [*weights, self._log_theta], lr=RATE, eps=0.01, weight_decay=1e-6
        )
        logs = np.log(np.asarray(cells.X.sum(axis=1)))
        self._prior = float(logs.mean()), float(logs.var())
        self._rng = np.random.default_rng(seed)
        self._epoch = 0

    def train(self, n_epochs: int) -> Cost:
        """Train for some epochs, and return what they cost."""
        for part in (self._encoder, self._library, self._decoder):
            part.train()
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(n_epochs):
            for counts in self._batches():
                self._optimizer.zero_grad()
                loss = self._loss(counts)
                loss.backward()
                self._optimizer.step()
            self._epoch += 1
        return Cost(time.perf_counter() - wall, time.process_time() - cpu)

    def accuracy(self, cells: ad.AnnData) -> AccuracySummary:
        """Return how held-out cells come out of means of their latents."""
        logs = torch.log1p(torch.from_numpy(cells.X.toarray()))
        for part in (self._encoder, self._decoder):
            part.eval()
        with torch.no_grad():
            means = self._encoder(logs)[:, :N_LATENT]
            shares = torch.softmax(self._decoder(means), dim=1).numpy()
        return accuracy_summary(accuracy_of_counts(cells.X, shares))

    def _batches(self) -> Iterator[Any]:
        order = self._rng.permutation(self._counts.shape[0])
        for first in range(0, len(order), self._batch_size):
            rows = order[first : first + self._batch_size]
            yield torch.from_numpy(self._counts[rows].toarray())

    def _loss(self, counts: Any) -> Any:
        logs = torch.log1p(counts)
        drawn, divergences = [], []
        priors = ((0.0, 1.0), self._prior)
        pairs = zip((self._encoder, self._library), priors, strict=True)
        for encoder, (mean, variance) in pairs:
            center, spread = encoder(logs).chunk(2, dim=1)
            spread = torch.exp(spread) + 1e-4
            drawn.append(center + torch.sqrt(spread) * torch.randn_like(center))
            ratio = spread / variance
            distance = (center - mean) ** 2 / variance
            divergences.append(0.5 * (ratio + distance - 1 - torch.log(ratio)).sum(1))
        mean = torch.exp(drawn[1]) * torch.softmax(self._decoder(drawn[0]), dim=1)
        theta = torch.exp(self._log_theta)
        total = torch.log(theta + mean + EPSILON)
        log_prob = (
            theta * (torch.log(theta + EPSILON) - total)
            + counts * (torch.log(mean + EPSILON) - total)
            + torch.lgamma(counts + theta)
            - torch.lgamma(theta)
            - torch.lgamma(counts + 1)
        )
        weight = min(self._epoch / 400, 1.0)
        each = weight * divergences[0] + divergences[1] - log_prob.sum(dim=1)
        return each.mean()


def make_peer(
    cells: ad.AnnData, batch_size: int, seed: int
) -> ScviTraining | TorchTraining:
    """Return scvi-tools, or what stands for it."""
    return (TorchTraining if scvi is None else ScviTraining)(cells, batch_size, seed)


def in_turn(
    trained: dict[str, Any], options: argparse.Namespace
) -> dict[str, list[Cost]]:
    """Train one after the other, some times; the first time is not counted."""
    for each in trained.values():
        each.train(1)
    turns: dict[str, list[Cost]] = {name: [] for name in trained}
    for _ in range(options.repeats):
        for name, each in trained.items():
            time.sleep(0.2)  # let the threads of the one before come to rest
            turns[name].append(each.train(options.epochs))
    return turns


def print_costs(batch_size: int, turns: dict[str, list[Cost]], n_epochs: int) -> None:
    """Print a row per side, with the ratio to ours."""
    medians = {
        name: Cost(*np.median(np.array(costs), axis=0)) for name, costs in turns.items()
    }
    ours = medians["ours"]
    for name, cost in medians.items():
        ratios = ""
        if name != "ours":
            wall, cpu = cost.wall / ours.wall, cost.cpu / ours.cpu
            ratios = f"{wall:8.2f}{cpu:11.2f}  (target {TARGET})"
        n_trained = N_CELLS * n_epochs
        rate, each = n_trained / cost.wall, 1e6 * cost.cpu / n_trained
        row = f"{batch_size:>5}  {name:18}{rate:9,.0f}{each:15,.0f}{ratios}"
        print(row, flush=True)


def print_accuracy(batch_size: int, name: str, found: AccuracySummary) -> None:
    """Print how held-out cells came out."""
    print(
        f"{batch_size:>5}  {name:18}r2 of held-out cells: mean {found.mean_r2:.3f} +- "
        f"{found.r2_standard_error:.3f}, median {found.median_r2:.3f}",
        flush=True,
    )


def print_difference(batch_size: int, differences: list[float]) -> None:
    """Print how much better ours give cells back than the peer's, over seeds."""
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    print(
        f"{batch_size:>5}  ours less the peer's: {np.mean(differences):+.4f} +- "
        f"{error:.4f} over {len(differences)} seeds",
        flush=True,
    )


if __name__ == "__main__":
    main()
