"""Rates of writing and reading records, against the way of the reference scGAN.

The reference takes one cell after the other out of its AnnData, builds a
``tf.train.Example`` of its dense row and writes it with TensorFlow's GZIP writer; it
reads cell by cell with ``parse_single_example``, turns each into a dense row and
batches the rows. Both ways are timed in turn, in one process, on the same synthetic
counts, each reading the files that it wrote::

    python benchmarks/records.py --repeats 3

Cost is the processor time of all threads, in microseconds per cell: the figure to read
on a machine that others use too. Wall-clock time is beside it. The first epoch includes
all that comes before it: checking the files, and decoding them for "memory". Targets:
writing at 8 times, reading (later epochs, from memory) at 4 times the reference's rate.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cellgan.start import set_environment

set_environment()

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf

from cellgan.data.batches import training_batches
from cellgan.data.manifest import CovariateVocabulary, DatasetManifest
from cellgan.data.shards import RECORD_FILES
from preprocessing.readers.cell_source import CellSource
from preprocessing.write_tfrecords import assign_files, write_tfrecords

CASES = ((2_000, 144, 12_000), (20_000, 1_434, 6_000))
"""Genes, values per cell, cells."""
N_LABELS, BATCH, LATER_EPOCHS, SEED = 10, 128, 2, 0


class Cost(NamedTuple):
    """Microseconds per cell."""

    processor: float
    wall: float


def main() -> None:
    """Print one table per size."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    for n_genes, n_values, n_cells in CASES:
        cells = make_cells(n_genes, n_values, n_cells)
        print(
            f"{n_cells:,} cells x {n_genes:,} genes, "
            f"{cells.X.nnz / n_cells:,.0f} values per cell"
        )
        reference: dict[str, list[Cost]] = {}
        ours: dict[str, list[Cost]] = {}
        for _ in range(options.repeats):
            with tempfile.TemporaryDirectory() as folder:
                time_reference(cells, Path(folder) / "reference", reference)
                time_ours(cells, Path(folder) / "ours", ours)
                sizes = [
                    sum(file.stat().st_size for file in (Path(folder) / way).iterdir())
                    for way in ("reference", "ours")
                ]
        print_table(reference, ours)
        print(
            f"bytes per cell   {sizes[0] / n_cells:14,.0f}{sizes[1] / n_cells:14,.0f}\n"
        )


def print_table(reference: dict[str, list[Cost]], ours: dict[str, list[Cost]]) -> None:
    """Print medians, and how many times less ours takes."""
    print(f"{'us per cell':17}{'reference':>14}{'ours':>14}{'ratio':>14}")
    print(f"{'':17}" + f"{'cpu':>7}{'wall':>7}" * 3)
    for task in ours:
        medians = [
            [statistics.median(cost) for cost in zip(*costs[task], strict=True)]
            for costs in (reference, ours)
        ]
        (cpu, wall), (our_cpu, our_wall) = medians
        print(
            f"{task:17}{cpu:7.1f}{wall:7.1f}{our_cpu:7.1f}{our_wall:7.1f}"
            f"{cpu / our_cpu:6.1f}x{wall / our_wall:6.1f}x"
        )


def make_cells(n_genes: int, n_values: int, n_cells: int) -> ad.AnnData:
    """Make counts of heavy-tailed genes, with about `n_values` per cell."""
    rng = np.random.default_rng(SEED)
    shares = rng.gamma(0.3, 1.0, n_genes)
    rates = shares / shares.sum() * n_values * 1.1
    depth = rng.lognormal(0.0, 0.3, (n_cells, 1))
    blocks = [
        sp.csr_matrix(rng.poisson(some * rates).astype(np.float32))
        for some in np.array_split(depth, max(n_cells // 500, 1))
    ]
    counts = sp.vstack(blocks, format="csr")
    labels = rng.integers(0, N_LABELS, n_cells).astype(str)
    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical(labels),
            "split": "train",
            "n_genes": np.diff(counts.indptr),
        },
        index=[f"{cell:016x}-1" for cell in rng.permutation(n_cells)],
    )
    return ad.AnnData(counts, obs=obs)


def time_reference(
    cells: ad.AnnData, folder: Path, costs: dict[str, list[Cost]]
) -> None:
    """Write and read as the reference does."""
    folder.mkdir()
    files = assign_files(cells.obs["split"], SEED)
    file_of = {row: file for file, rows in files.items() for row in rows.tolist()}

    def write() -> None:
        writers = {
            file: tf.io.TFRecordWriter(str(folder / file), options="GZIP")
            for file in RECORD_FILES
        }
        for row in range(cells.n_obs):
            example = build_example(cells[row])
            writers[file_of[row]].write(example.SerializeToString())
        for writer in writers.values():
            writer.close()

    record("writing", costs, write, cells.n_obs)
    time_reading(costs, lambda: reference_batches(folder, cells.n_vars), cells.n_obs)


def build_example(cell: ad.AnnData) -> tf.train.Example:
    """Build the message of one cell."""
    dense = cell.X.toarray().ravel()
    (indices,) = dense.nonzero()
    label = int(cell.obs["cluster"].iloc[0])

    def numbers(values: object) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    one_hot = np.zeros(N_LABELS, dtype=int)
    one_hot[label] = 1
    features = {
        "indices": numbers(indices),
        "values": tf.train.Feature(float_list=tf.train.FloatList(value=dense[indices])),
        "barcode": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[cell.obs_names[0].encode()])
        ),
        "genes_no": numbers([cell.obs["n_genes"].iloc[0]]),
        "count_no": numbers([int(dense.sum())]),
        "cluster_1hot": numbers(one_hot),
        "cluster_int": numbers([label]),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def reference_batches(folder: Path, n_genes: int) -> Iterator[object]:
    """Read cell by cell, in as many threads as TensorFlow likes."""
    schema = {
        "scg": tf.io.SparseFeature("indices", "values", tf.float32, n_genes),
        "cluster_int": tf.io.FixedLenFeature((), tf.int64),
    }

    def parse(record: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        cell = tf.io.parse_single_example(record, schema)
        return tf.sparse.to_dense(cell["scg"]), cell["cluster_int"]

    files = tf.data.Dataset.list_files(str(folder / "train*"), seed=SEED)
    batches = (
        files.interleave(
            lambda file: tf.data.TFRecordDataset(file, compression_type="GZIP")
        )
        .shuffle(10_000, seed=SEED)
        .repeat()
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(BATCH, drop_remainder=True)
        .prefetch(2)
    )
    return iter(batches)


def time_ours(cells: ad.AnnData, folder: Path, costs: dict[str, list[Cost]]) -> None:
    """Write and read as this package does, from memory and from disk."""
    shards: dict[str, int] = {}

    def write() -> None:
        written = write_tfrecords(
            CellSource.of_anndata(cells),
            folder,
            label="cluster",
            record_values="counts",
            target_library_size=20_000,
            seed=SEED,
        )
        shards.update(written)

    record("writing", costs, write, cells.n_obs)
    categories = tuple(cells.obs["cluster"].cat.categories)
    manifest = DatasetManifest(
        features={"rna": tuple(cells.var_names)},
        covariates={"cluster": CovariateVocabulary(categories)},
        label="cluster",
        target_library_size=20_000,
        record_values="counts",
        split_sizes={"train": cells.n_obs, "valid": 0, "test": 0},
        cells_per_category={},
        library_sizes={},
        shards=shards,
    )
    for source in ("memory", "disk"):

        def start(source: str = source) -> Iterator[object]:
            return iter(
                training_batches(
                    folder, manifest, batch_size=BATCH, seed=SEED, source=source
                )
            )

        time_reading(costs, start, cells.n_obs, source)


def time_reading(
    costs: dict[str, list[Cost]],
    start: Callable[[], Iterator[object]],
    n_cells: int,
    source: str | None = None,
) -> None:
    """Time the first epoch, with all that comes before it, and later ones."""
    n_batches = n_cells // BATCH
    batches: list[Iterator[object]] = []

    def first() -> None:
        batches.append(start())
        for _ in range(n_batches):
            next(batches[0])

    def later() -> None:
        for _ in range(LATER_EPOCHS * n_batches):
            next(batches[0])

    for epochs, task, n_epochs in (("first", first, 1), ("later", later, LATER_EPOCHS)):
        cost = measure(task, n_cells * n_epochs)
        for name in (source,) if source else ("memory", "disk"):
            costs.setdefault(f"{epochs}, {name}", []).append(cost)


def record(
    name: str, costs: dict[str, list[Cost]], task: Callable[[], None], n_cells: int
) -> None:
    """Time a task under a name."""
    costs.setdefault(name, []).append(measure(task, n_cells))


def measure(task: Callable[[], None], n_cells: int) -> Cost:
    """Return what a task takes per cell."""
    processor, wall = time.process_time(), time.perf_counter()
    task()
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    return Cost(1e6 * processor / n_cells, 1e6 * wall / n_cells)


if __name__ == "__main__":
    main()
