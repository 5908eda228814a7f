"""Time training steps of the cycle autoencoder against the original's way in PyTorch.

The original's networks, losses, loop over categories and updates are written here in
plain PyTorch and given our weights; both are timed in turn, in one process, with the
same number of threads, on the same dense cells in memory, of which about 8 % of the
values are not zero::

    python benchmarks/cycle_autoencoder.py

A step is all that the original does for a batch: targets are drawn, cells go there and
back, heads and classifier are updated, and no weight is left below 0. Ours runs as
training runs it, ten steps a call.

Takes about two minutes on two cores. Figures are medians of the turns; processor time
is that of all threads of the process, the one to read on a machine that others use too.
A ratio above 1 is in our favour. Targets: 2 with fields of 5, 10 and 2 categories, 5
with one field of 500.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cellgan.start import set_environment

set_environment()
# Threads that wait for work in a loop would be billed to whoever runs next.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import tensorflow as tf
from turns import Cost, Task, time_in_turn

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA, CovariateVocabulary, DatasetManifest
from cellgan.models import build_model
from cellgan.models.cycle.training import CycleStage
from cellgan.training.loop import CompiledSteps

try:
    import torch
except ImportError:
    torch = None

N_GENES, N_CELLS, BATCH, N_LATENT, RATE = 2000, 4096, 128, 128, 1e-4
FIELDS: Mapping[str, tuple[int, ...]] = {
    "fields of 5, 10, 2": (5, 10, 2),
    "a field of 500": (500,),
}
TARGETS = {"fields of 5, 10, 2": 2, "a field of 500": 5}
FIELD_SCALE, CLIP_NORM, BASE_DECAY, FIELD_DECAY = 0.0159, 10.0, 1e-4, 5e-4


class Cells(NamedTuple):
    """Made-up training cells."""

    expression: np.ndarray
    """``(N_CELLS, N_GENES)`` float32."""
    codes: dict[str, np.ndarray]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    options = parser.parse_args()
    if torch is not None:
        n_threads = tf.config.threading.get_intra_op_parallelism_threads()
        torch.set_num_threads(n_threads or len(os.sched_getaffinity(0)))
    print(f"batch {BATCH}, {N_GENES:,} genes, {N_LATENT} latent dimensions")
    print(f"{'':22}{'':10}{'ms a step':>12}{'CPU ms':>9}{'ratio':>8}{'CPU ratio':>11}")
    for name, sizes in FIELDS.items():
        cells = make_cells(sizes)
        stage = make_stage(sizes)
        tasks = {"ours": our_steps(stage, cells, options.steps)}
        if torch is not None:
            peer = TorchCycle(stage, cells)
            check_same_losses(stage, peer, cells)
            tasks["PyTorch"] = peer.steps(options.steps)
        print_costs(name, time_in_turn(tasks, options.repeats), options.steps)


def make_cells(sizes: Sequence[int]) -> Cells:
    """Draw sparse expression, and categories that are all alike frequent."""
    rng = np.random.default_rng(0)
    is_there = rng.random((N_CELLS, N_GENES)) < 0.08
    values = rng.gamma(2.0, 0.7, (N_CELLS, N_GENES)) * is_there
    codes = {
        f"field {i}": rng.integers(0, n, N_CELLS).astype(np.int32)
        for i, n in enumerate(sizes)
    }
    return Cells(values.astype(np.float32), codes)


def make_stage(sizes: Sequence[int]) -> CycleStage:
    """Return a stage as parameters make it."""
    names = [f"field {i}" for i in range(len(sizes))]
    block: dict[str, Any] = {
        "input_ds": {
            "raw_input": "x.h5ad",
            "clustering": {"key": names[0]},
            "covariates": names,
        },
        "model": {"type": "cycleAE", "input_scale": "stored", "n_latent": N_LATENT},
        "training": {"learning_rate": {"alpha_0": RATE}},
    }
    ones = {name: (N_CELLS // n,) * n for name, n in zip(names, sizes, strict=True)}
    manifest = DatasetManifest(
        features={RNA: tuple(f"gene{gene}" for gene in range(N_GENES))},
        covariates={
            name: CovariateVocabulary(tuple(map(str, range(n))))
            for name, n in zip(names, sizes, strict=True)
        },
        label=names[0],
        target_library_size=1000,
        record_values="counts",
        split_sizes={"train": N_CELLS, "valid": 0, "test": 0},
        cells_per_category={"train": ones},
        library_sizes={},
        shards={},
    )
    (stage,) = build_model(parse_experiment(block, "benchmark"), manifest).stages()
    if not isinstance(stage, CycleStage):
        raise TypeError(stage)
    return stage


def our_steps(stage: CycleStage, cells: Cells, n_steps: int) -> Task:
    """Return some steps as training runs them."""
    whole = CellBatch(
        {RNA: cells.expression}, {RNA: cells.expression.sum(1)}, cells.codes
    )
    batches = tf.data.Dataset.from_tensor_slices(whole).batch(
        BATCH, drop_remainder=True
    )
    # batches are made once, so that neither side is billed for them
    batches = iter(batches.cache().repeat())
    steps = CompiledSteps(stage, 0, tf.distribute.get_strategy())
    done, _ = steps.run(batches, 0, 1)
    position = itertools.count(done, 10)

    def run() -> None:
        for start in itertools.islice(position, n_steps // 10):
            steps.run(batches, start, start + 10)

    return run


def print_costs(name: str, costs: Mapping[str, Cost], n_steps: int) -> None:
    """Print a row per side, with the ratio to ours."""
    ours = costs["ours"]
    for side, cost in costs.items():
        ratios = ""
        if side != "ours":
            wall, cpu = cost.wall / ours.wall, cost.cpu / ours.cpu
            ratios = f"{wall:8.2f}{cpu:11.2f}  (target {TARGETS[name]})"
        milliseconds = [1000 * of / n_steps for of in cost]
        print(
            f"{name:22}{side:10}{milliseconds[0]:12.1f}{milliseconds[1]:9.1f}{ratios}"
        )


if torch is not None:
    from torch import nn
    from torch.nn import functional

    class TorchHeads(nn.Module):
        """Base and fields, with a matrix module per category."""

        def __init__(self, sizes: Sequence[int]) -> None:
            super().__init__()
            self.base = nn.Linear(N_GENES, N_LATENT, bias=False)
            self.encoders, self.decoders, self.contexts = (
                nn.ModuleList() for _ in range(3)
            )
            for n in sizes:
                self.encoders.append(nn.Linear(N_GENES, N_LATENT, bias=False))
                self.decoders.append(nn.Linear(N_LATENT, N_GENES, bias=False))
                matrices = [nn.Linear(N_LATENT, N_LATENT, bias=False) for _ in range(n)]
                self.contexts.append(nn.ModuleList(matrices))

        def forward(
            self,
            cells: torch.Tensor,
            source: list[torch.Tensor],
            target: list[torch.Tensor],
        ) -> tuple[torch.Tensor, list[torch.Tensor]]:
            """Return the output, and the latents after the source matrices."""
            latent = self.base(cells)
            output = latent @ self.base.weight
            hidden = [latent]
            for i, matrices in enumerate(self.contexts):
                own = in_context(self.encoders[i](cells), source[i], matrices)
                moved = in_context(own, target[i], matrices)
                output = output + FIELD_SCALE * self.decoders[i](moved)
                hidden.append(own)
            return output, hidden

    def in_context(
        rows: torch.Tensor, one_hot: torch.Tensor, matrices: nn.ModuleList
    ) -> torch.Tensor:
        """Multiply the rows of one category after the other."""
        codes = one_hot.argmax(dim=1)
        moved = torch.zeros_like(rows)
        for code in torch.unique(codes):
            chosen = (codes == code).nonzero(as_tuple=True)[0]
            moved[chosen] = matrices[int(code)](rows[chosen])
        return moved

    class TorchClassifier(nn.Module):
        """One hidden layer, a read-out per field."""

        def __init__(self, sizes: Sequence[int]) -> None:
            super().__init__()
            self.shared = nn.Linear(N_GENES, N_LATENT)
            self.heads = nn.ModuleList(nn.Linear(N_LATENT, n) for n in sizes)

        def losses(
            self, cells: torch.Tensor, one_hots: list[torch.Tensor]
        ) -> torch.Tensor:
            """Return the mean cross-entropy of the fields."""
            hidden = functional.relu(self.shared(cells))
            losses = [
                functional.cross_entropy(head(hidden), of.argmax(dim=1))
                for head, of in zip(self.heads, one_hots, strict=True)
            ]
            return torch.stack(losses).mean()

    class TorchCycle:
        """The original's training, with copies of our weights."""

        def __init__(self, stage: CycleStage, cells: Cells) -> None:
            self.sizes = stage.network.n_categories
            self.heads, self.classifier = (
                kind(self.sizes) for kind in (TorchHeads, TorchClassifier)
            )
            self.take(stage)
            base = [self.heads.base.weight]
            fields = [
                of for name, of in self.heads.named_parameters() if name[:4] != "base"
            ]
            groups = [
                {"params": base, "weight_decay": BASE_DECAY},
                {"params": fields, "weight_decay": FIELD_DECAY},
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=RATE)
            self.classifier_optimizer = torch.optim.Adam(
                self.classifier.parameters(), lr=RATE
            )
            self.cells = torch.from_numpy(cells.expression)
            self.one_hots = [
                functional.one_hot(torch.from_numpy(of).long(), n).float()
                for of, n in zip(cells.codes.values(), self.sizes, strict=True)
            ]

        def take(self, stage: CycleStage) -> None:
            """Take the weights of ours."""
            network = stage.network
            pairs = [(self.heads.base, network.base)]
            for i, matrices in enumerate(self.heads.contexts):
                pairs += [
                    (self.heads.encoders[i], network.encoders[:, i]),
                    (self.heads.decoders[i], network.decoders[i]),
                ]
                first = network.starts[i]
                pairs += [
                    (matrix, network.contexts[first + code])
                    for code, matrix in enumerate(matrices)
                ]
            shared, heads = stage.classifier.shared, stage.classifier.heads
            pairs.append((self.classifier.shared, shared.kernel))
            self.classifier.shared.bias.data = as_torch(shared.bias)
            for i, head in enumerate(self.classifier.heads):
                place = slice(int(network.starts[i]), None)
                n = self.sizes[i]
                pairs.append((head, heads.kernel[:, place][:, :n]))
                head.bias.data = as_torch(heads.bias[place][:n])
            for linear, kernel in pairs:
                linear.weight.data = as_torch(kernel).T.contiguous()

        def losses(
            self,
            cells: torch.Tensor,
            source: list[torch.Tensor],
            target: list[torch.Tensor],
        ) -> torch.Tensor:
            """Return the loss of the heads."""
            there, first = self.heads(cells, source, target)
            back, second = self.heads(there, target, source)
            integration = sum(
                functional.mse_loss(one, other)
                for one, other in zip(first, second, strict=True)
            )
            return (
                functional.mse_loss(back, cells)
                + integration
                + self.classifier.losses(there, target)
            )

        def steps(self, n_steps: int) -> Task:
            """Return some steps of training."""
            rows = itertools.cycle(torch.arange(N_CELLS).split(BATCH))

            def run() -> None:
                for batch in itertools.islice(rows, n_steps):
                    self.step(self.cells[batch], [of[batch] for of in self.one_hots])

            return run

        def step(self, cells: torch.Tensor, source: list[torch.Tensor]) -> None:
            """Update heads and classifier once."""
            target = []
            for of, n in zip(source, self.sizes, strict=True):
                shift = torch.randint(1, n, (len(of),))
                moved = (of.argmax(dim=1) + shift) % n
                target.append(functional.one_hot(moved, n).float())
            for weight in self.classifier.parameters():
                weight.requires_grad = False
            self.optimizer.zero_grad()
            loss = self.losses(cells, source, target)
            loss.backward()
            nn.utils.clip_grad_norm_(self.heads.parameters(), CLIP_NORM)
            self.optimizer.step()
            with torch.no_grad():
                for weight in self.heads.parameters():
                    weight.clamp_(min=0)
            for weight in self.classifier.parameters():
                weight.requires_grad = True
            self.classifier_optimizer.zero_grad()
            of_classifier = self.classifier.losses(cells, source)
            of_classifier.backward()
            self.classifier_optimizer.step()
            loss.item(), of_classifier.item()

    def as_torch(weight: Any) -> torch.Tensor:
        """Return a copy of a weight."""
        return torch.from_numpy(tf.convert_to_tensor(weight).numpy().copy())

    def check_same_losses(stage: CycleStage, peer: TorchCycle, cells: Cells) -> None:
        """Refuse a peer that is another model than ours."""
        expression = cells.expression[:BATCH]
        source = np.stack([of[:BATCH] for of in cells.codes.values()], axis=1)
        target = (source + 1) % np.array(peer.sizes)
        ours = stage.terms(
            tf.constant(expression),
            stage.network.role(tf.constant(source)),
            tf.constant(target, tf.int32),
        ).total
        one_hots = (
            [
                functional.one_hot(torch.from_numpy(codes[:, i]).long(), n).float()
                for i, n in enumerate(peer.sizes)
            ]
            for codes in (source, target)
        )
        theirs = peer.losses(torch.from_numpy(expression), *one_hots).item()
        np.testing.assert_allclose(theirs, float(ours), rtol=1e-4)


if __name__ == "__main__":
    main()
