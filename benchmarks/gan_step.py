"""Time one outer step of cscGAN against the step uncompiled and against PyTorch.

An outer step is `critic_iters` + 1 critic updates and one generator update. Three forms
of the same networks are timed in turn, in one process, on random cells::

    python benchmarks/gan_step.py --genes 2000 17789 --repeats 7

- compiled: `GanStage.train_step` as training runs it;
- uncompiled: the same function run operation by operation;
- PyTorch: the networks written with torch.nn and torch.optim.Adam (amsgrad), run as
  PyTorch runs by default.

The table holds medians of wall-clock and of processor time (all threads of this
process, which is the figure to read on a machine that others use too), and how many
times longer each takes than the compiled step. PyTorch is left out when it is not
installed (the extra "bench").
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable

from cellgan.start import set_environment

set_environment()
# Threads that wait for work in a loop would be billed to whoever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA
from cellgan.models.gan.networks import Critic, Generator
from cellgan.models.gan.training import BatchReader, GanStage, Player
from cellgan.optimizers import adam

try:
    import torch
except ImportError:
    torch = None

N_LATENT, GENERATOR, CRITIC = 128, (256, 512, 1024), (1024, 512, 256)
N_CATEGORIES, LIBRARY_SIZE, RATE, MOMENTS, LAMBDA = 10, 20000, 1e-4, (0.5, 0.9), 10.0
Step = Callable[[], None]


def main() -> None:
    """Print one table per number of genes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--genes", type=int, nargs="+", default=[2000])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--critic-iters", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--jit", action="store_true", help="compile with XLA")
    parser.add_argument("--precision", choices=("float32", "mixed_bfloat16"))
    options = parser.parse_args()
    for n_genes in options.genes:
        batches = random_batches(n_genes, options.batch_size, options.critic_iters + 1)
        dtype = options.precision or "float32"
        stage = make_stage(batches, dtype=dtype, jit=options.jit)
        steps = {
            "compiled": compiled(stage, batches),
            "uncompiled": uncompiled(stage, batches),
        }
        if torch is not None:
            steps["PyTorch"] = torch_step(batches)
        report(n_genes, time_interleaved(steps, options.repeats))


def random_batches(n_genes: int, n_cells: int, n_batches: int) -> tuple[CellBatch, ...]:
    """Draw batches of sparse counts, of which about 7 in 100 are not zero."""
    rng = np.random.default_rng(0)
    batches = []
    for _ in range(n_batches):
        counts = rng.poisson(0.07, (n_cells, n_genes)).astype(np.float32)
        codes = rng.integers(0, N_CATEGORIES, n_cells).astype(np.int32)
        batches.append(
            CellBatch(
                {RNA: tf.constant(counts)},
                {RNA: tf.constant(counts.sum(axis=1))},
                {"cluster": tf.constant(codes)},
            )
        )
    return tuple(batches)


def make_stage(batches: tuple[CellBatch, ...], *, dtype: str, jit: bool) -> GanStage:
    """Return our training stage for such batches."""
    n_genes = batches[0].features[RNA].shape[1]
    generator = Generator(
        (N_LATENT, *GENERATOR, n_genes),
        N_CATEGORIES,
        library_size=LIBRARY_SIZE,
        dtype=dtype,
    )
    critic = Critic(
        (n_genes, *CRITIC), N_CATEGORIES, read_out="per_category", dtype=dtype
    )
    stage = GanStage(
        Player(generator, adam(RATE, MOMENTS, amsgrad=True)),
        Player(critic, adam(RATE, MOMENTS, amsgrad=True)),
        BatchReader("cluster", np.full(N_CATEGORIES, 1 / N_CATEGORIES), LIBRARY_SIZE),
        penalty_weight=LAMBDA,
        critic_iters=len(batches) - 1,
        jit=jit,
    )
    return stage


def compiled(stage: GanStage, batches: tuple[CellBatch, ...]) -> Step:
    """Return the outer step as one compiled function."""
    step, seed = tf.function(stage.train_step), tf.constant((1, 2))

    def run() -> None:
        step(batches, seed)["gen_loss"].numpy()

    return run


def uncompiled(stage: GanStage, batches: tuple[CellBatch, ...]) -> Step:
    """Return the outer step run operation by operation."""
    seed = tf.constant((1, 2))

    def run() -> None:
        tf.config.run_functions_eagerly(True)  # noqa: FBT003
        stage.train_step(batches, seed)["gen_loss"].numpy()
        tf.config.run_functions_eagerly(False)  # noqa: FBT003

    return run


def time_interleaved(
    steps: dict[str, Step], n_repeats: int
) -> dict[str, tuple[float, float]]:
    """Return the median wall-clock and processor seconds of each step."""
    for step in steps.values():
        step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(n_repeats):
        for name, step in steps.items():
            time.sleep(0.3)  # let the threads of the one before come to rest
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: tuple(statistics.median(kind) for kind in zip(*pairs, strict=True))
        for name, pairs in times.items()
    }


def report(n_genes: int, seconds: dict[str, tuple[float, float]]) -> None:
    """Print the table of one number of genes."""
    wall_ours, cpu_ours = seconds["compiled"]
    print(f"\n{n_genes} genes   wall ms  ratio    CPU ms  ratio")
    for name, (wall, cpu) in seconds.items():
        print(
            f"{name:12}{wall * 1e3:9.0f}{wall / wall_ours:7.2f}"
            f"{cpu * 1e3:10.0f}{cpu / cpu_ours:7.2f}"
        )


class TorchPlayers:
    """The two networks in PyTorch, with the same layers, losses and updates."""

    def __init__(self, n_genes: int) -> None:
        widths = (N_LATENT, *GENERATOR)
        pairs = list(itertools.pairwise(widths))
        self.linears = torch.nn.ModuleList(
            torch.nn.Linear(n_in, n_out, bias=False) for n_in, n_out in pairs
        )
        self.norms = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(n_out, affine=False, momentum=1e-3)
            for _, n_out in pairs
        )
        self.scales = torch.nn.ModuleList(
            torch.nn.Embedding(N_CATEGORIES, n_out) for _, n_out in pairs
        )
        self.offsets = torch.nn.ModuleList(
            torch.nn.Embedding(N_CATEGORIES, n_out) for _, n_out in pairs
        )
        self.last = torch.nn.Linear(widths[-1], n_genes)
        sizes = (n_genes, *CRITIC)
        layers: list[torch.nn.Module] = []
        for n_in, n_out in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(n_in, n_out), torch.nn.ReLU()]
        self.critic = torch.nn.Sequential(*layers)
        self.projection = torch.nn.Embedding(N_CATEGORIES, CRITIC[-1])
        self.projection_bias = torch.nn.Embedding(N_CATEGORIES, 1)
        generator = (self.linears, self.scales, self.offsets, self.last)
        critic = (self.critic, self.projection, self.projection_bias)
        self.generator_optimizer = self._adam(generator)
        self.critic_optimizer = self._adam(critic)

    def _generate(self, noise: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        hidden = noise
        for linear, norm, scale, offset in zip(
            self.linears, self.norms, self.scales, self.offsets, strict=True
        ):
            hidden = norm(linear(hidden)) * scale(codes) + offset(codes)
            hidden = torch.relu(hidden)
        cells = torch.relu(self.last(hidden))
        return cells * (LIBRARY_SIZE / (cells.sum(dim=1, keepdim=True) + 2.2e-16))

    def _score(self, cells: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        hidden = self.critic(cells)
        scores = (hidden * self.projection(codes)).sum(dim=1)
        return scores + self.projection_bias(codes)[:, 0]

    def update_critic(
        self,
        real: torch.Tensor,
        codes: torch.Tensor,
        noise: torch.Tensor,
        fake_codes: torch.Tensor,
    ) -> None:
        """Update the critic once."""
        with torch.no_grad():
            fake = self._generate(noise, fake_codes)
            partner = self._generate(noise, codes)
            between = torch.lerp(real, partner, torch.rand(len(real), 1))
        between.requires_grad_()
        (slope,) = torch.autograd.grad(
            self._score(between, codes).sum(), between, create_graph=True
        )
        penalty = (slope.norm(dim=1) - 1).square().mean()
        distance = (
            self._score(fake, fake_codes).mean() - self._score(real, codes).mean()
        )
        self.critic_optimizer.zero_grad()
        (distance + LAMBDA * penalty).backward()
        self.critic_optimizer.step()

    def update_generator(self, noise: torch.Tensor, codes: torch.Tensor) -> None:
        """Update the generator once."""
        self.generator_optimizer.zero_grad()
        (-self._score(self._generate(noise, codes), codes).mean()).backward()
        self.generator_optimizer.step()

    @staticmethod
    def _adam(modules: tuple[torch.nn.Module, ...]) -> torch.optim.Optimizer:
        weights = [weight for module in modules for weight in module.parameters()]
        return torch.optim.Adam(weights, RATE, MOMENTS, amsgrad=True)


def torch_step(batches: tuple[CellBatch, ...]) -> Step:
    """Return the outer step in PyTorch."""
    real = [
        (
            torch.from_numpy(batch.features[RNA].numpy()),
            torch.from_numpy(batch.library_size[RNA].numpy()),
            torch.from_numpy(batch.covariates["cluster"].numpy()),
        )
        for batch in batches
    ]
    players = TorchPlayers(real[0][0].shape[1])

    def run() -> None:
        for counts, sizes, codes in real:
            cells = counts * (LIBRARY_SIZE / sizes)[:, None]
            noise = torch.randn(len(cells), N_LATENT)
            fake_codes = torch.randint(0, N_CATEGORIES, (len(cells),))
            players.update_critic(cells, codes, noise, fake_codes)
        players.update_generator(noise, fake_codes)

    return run


if __name__ == "__main__":
    main()
