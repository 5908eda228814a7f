"""Peak memory and time of processing, against the size of the counts in memory.

Synthetic counts are written to an .h5ad in a temporary folder and processed in a fresh
process, whose peak resident memory is taken relative to what it holds once the
libraries are imported. The target is at most 3 times the CSR matrix. Of few cells only
the reading can meet it: what clustering needs for a moment is some 80 MB however small
they are.

Run with ``python benchmarks/processing_memory.py [--cells N] [--genes N] [--dense]``;
the default of 68,000 x 20,000 at 5 % needs about 3 GB of memory and 2 GB of disk.
``--dense`` stores X dense and compressed: try it with ``--cells 2000``.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

from cellgan.config.reading import parse_experiment
from cellgan.experiment import Experiment
from preprocessing import write_tfrecords  # noqa: F401  (processing imports it late)
from preprocessing.pipeline import process_cells
from preprocessing.raw_counts import read_cells

ROWS_AT_ONCE = 1000
N_TYPES = 10
TARGET_RATIO = 3.0


def main() -> None:
    """Process synthetic counts in a process of its own and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=68_000)
    parser.add_argument("--genes", type=int, default=20_000)
    parser.add_argument("--density", type=float, default=0.05)
    parser.add_argument("--dense", action="store_true", help="store X dense")
    parser.add_argument("--folder", type=Path, help="where the files are made")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        raw = Path(folder) / "synthetic.h5ad"
        n_values = write_counts(raw, options.cells, options.genes, options.density)
        if options.dense:
            cells = ad.read_h5ad(raw)
            cells.X = cells.X.toarray()
            cells.write_h5ad(raw, compression="gzip")
        command = [sys.executable, __file__, "--measure", str(raw)]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report(json.loads(result.stdout), n_values, options)


def write_counts(path: Path, n_cells: int, n_genes: int, density: float) -> int:
    """Write counts of 10 cell types; return the number of non-zero ones."""
    rng = np.random.default_rng(0)
    odds = rng.lognormal(0, 1.5, size=(N_TYPES, 1, n_genes)).clip(max=20)
    odds[1:] = np.where(rng.random((N_TYPES - 1, 1, n_genes)) < 0.1, odds[1:], odds[0])
    detection = (odds / odds.mean(axis=2, keepdims=True) * density).clip(max=0.95)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = [n_cells, n_genes]
        options = {"shape": (0,), "maxshape": (None,), "chunks": (2**18,)}
        data = group.create_dataset("data", dtype=np.float32, **options)
        indices = group.create_dataset("indices", dtype=np.int32, **options)
        sizes = []
        for start in range(0, n_cells, ROWS_AT_ONCE):
            n_rows = min(ROWS_AT_ONCE, n_cells - start)
            types = rng.integers(0, N_TYPES, n_rows)
            expressed = rng.random((n_rows, n_genes), np.float32) < detection[types, 0]
            sizes.append(expressed.sum(axis=1))
            values = rng.geometric(0.6, int(sizes[-1].sum()))
            end = len(data) + len(values)
            data.resize((end,))
            indices.resize((end,))
            data[-len(values) :] = values
            indices[-len(values) :] = np.nonzero(expressed)[1]
        group["indptr"] = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
        n_values = len(data)
        names = {"obs": ("cell", n_cells), "var": ("gene", n_genes)}
        for table, (name, number) in names.items():
            index = [f"{name}{i}" for i in range(number)]
            write_elem(file, table, pd.DataFrame(index=index))
    return n_values


def measure(raw: Path) -> None:
    """Process a file and print, as JSON, memory in bytes and seconds by phase."""
    block = {"raw_input": str(raw), "split": {"valid_cells": 200}}
    parameters = parse_experiment({"input_ds": block}, "benchmark")
    before = _memory("VmRSS")
    read_cells(parameters.input_ds)
    read = _memory("VmHWM") - before
    summary = process_cells(Experiment(raw.parent / "experiment", parameters))
    document = {
        "imports": before,
        "read": read,
        "peak": _memory("VmHWM") - before,
        "seconds": summary.seconds,
        "clusters": len(summary.cells_per_label),
        "disk": sum(summary.bytes_on_disk.values()),
    }
    print(json.dumps(document))


def report(measured: dict, n_values: int, options: argparse.Namespace) -> None:
    """Print the table, and say whether the target is met."""
    csr = 8 * n_values + 4 * (options.cells + 1)
    phases = ", ".join(f"{name} {s:.1f}" for name, s in measured["seconds"].items())
    rows = {
        "counts": f"{options.cells:,} x {options.genes:,}, "
        f"{n_values / options.cells / options.genes:.1%} not zero",
        "CSR in memory": f"{csr / 1e6:,.0f} MB",
        "peak while reading": _against(measured["read"], csr),
        "peak while processing": _against(measured["peak"], csr),
        "imported libraries": f"{measured['imports'] / 1e6:,.0f} MB on top",
        "seconds": f"{sum(measured['seconds'].values()):.1f}: {phases}",
        "clusters": str(measured["clusters"]),
        "written": f"{measured['disk'] / 1e6:,.0f} MB",
    }
    for name, value in rows.items():
        print(f"{name:<22} {value}")


def _against(peak: int, csr: int) -> str:
    return f"{peak / 1e6:,.0f} MB, {peak / csr:.2f} x CSR (target {TARGET_RATIO:g})"


def _memory(field: str) -> int:
    """Return memory of this process alone, in bytes.

    The peak that `resource` gives is at least that of the process that started it.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", status)[1])


if __name__ == "__main__":
    main()
