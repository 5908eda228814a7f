"""How fast cells are generated into files, and in how much memory.

Run ``python benchmarks/generation.py`` (about three minutes on two cores). Every line
is a process of its own, because the peak memory of a process never falls. The model is
a cscGAN of the default widths with its initial weights, its last bias moved so that
about one value in ten is not zero, as in sparse data.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cellgan.start import set_environment

set_environment()

import numpy as np
import tensorflow as tf

from cellgan.config.reading import parse_experiment
from cellgan.data.manifest import CovariateVocabulary, DatasetManifest
from cellgan.experiment import Experiment
from cellgan.generation.trained_model import TrainedModel
from cellgan.models import build_model

LABELS = ("A", "B", "C", "D")
LIBRARY_SIZE = 20_000
SHARE_EXPRESSED = 0.1
CASES = [
    ("cells.h5ad", "normalised"),
    ("cells.h5ad", "counts"),
    ("cells.zarr", "counts"),
    ("cells.mtx", "counts"),
]


def main() -> None:
    """Print one line per kind of file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options.cells, options.genes, *options.case)))
        return
    dense = options.cells * options.genes * 4 / 2**20
    print(f"{options.cells:,} cells x {options.genes:,} genes, dense {dense:,.0f} MB")
    print(f"{'file':12}{'values':12}{'cells/s':>9}{'peak MB':>9}", end="")
    print(f"{'above start MB':>16}{'file MB':>9}{'not zero':>10}")
    for name, values in CASES:
        command = [sys.executable, __file__, "--case", name, values]
        command += ["--cells", str(options.cells), "--genes", str(options.genes)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(output.stdout.splitlines()[-1])
        print(f"{name:12}{values:12}{found['rate']:9,.0f}{found['peak']:9,.0f}", end="")
        print(f"{found['above']:16,.0f}{found['file']:9,.0f}{found['share']:10.0%}")


def measure(n_cells: int, n_genes: int, name: str, values: str) -> dict[str, float]:
    """Write cells once; return cells/s, megabytes and the share of non-zero values."""
    trained = make_model(n_genes)
    sample = trained.generate([64] * len(LABELS)).X
    before = peak()
    request = [n_cells // len(LABELS)] * len(LABELS)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        path = trained.write(Path(folder) / name, request, counts=values == "counts")
        seconds = time.perf_counter() - start
        files = [path, *path.rglob("*")]
        size = sum(file.stat().st_size for file in files if file.is_file())
    return {
        "rate": sum(request) / seconds,
        "peak": peak(),
        "above": peak() - before,
        "file": size / 2**20,
        "share": sample.nnz / (sample.shape[0] * sample.shape[1]),
    }


def make_model(n_genes: int) -> TrainedModel:
    """Return an untrained cscGAN whose cells are as sparse as real ones."""
    manifest = DatasetManifest(
        features={"rna": tuple(f"gene{gene}" for gene in range(n_genes))},
        covariates={"cluster": CovariateVocabulary(LABELS)},
        label="cluster",
        target_library_size=LIBRARY_SIZE,
        record_values="counts",
        split_sizes={"train": 4, "valid": 0, "test": 0},
        cells_per_category={"train": {"cluster": (1,) * len(LABELS)}},
        library_sizes={"rna": ((1000.0, 2000.0, 8000.0),) * len(LABELS)},
        shards={},
    )
    parameters = parse_experiment({"input_ds": {"raw_input": "x.h5ad"}}, "benchmark")
    model = build_model(parameters, manifest)
    generator = model.generation_weights()["gan"]["generator"]
    noise = tf.random.stateless_normal((256, generator.n_latent), (1, 2), alg="philox")
    values = generator(noise, tf.zeros(256, tf.int32)).unscaled.numpy()
    generator.last.bias.assign_sub(
        np.full(n_genes, np.quantile(values, 1 - SHARE_EXPRESSED))
    )
    return TrainedModel(Experiment(Path("benchmark"), parameters), manifest, model, 0)


def peak() -> float:
    """Return the most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
