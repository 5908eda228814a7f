"""Peak memory of planning and writing the corpora of a study, while cells grow 4 times.

Two synthetic sources are written to .h5ad files in a temporary folder. A study of three
mixtures, which draw half of every source, is processed in a fresh process, whose peak
resident memory is taken above what it holds once the libraries are imported. The
target: from the smallest to the largest number of cells it grows by less than a tenth
of the growth of the counts.

Run with ``python benchmarks/composition_memory.py [--cells N] [--genes N] [--dask]``;
the default needs 1 GB of disk. ``--dask`` reads by a local cluster of two workers, and
adds the peak of the larger one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata.io import write_elem

from cellgan.composition.study import Study
from cellgan.config.reading import parse_study
from preprocessing.composition.corpora import process_composition

FACTORS = (1, 2, 4)
ROWS_AT_ONCE = 1000
TARGET_SHARE = 0.1


def main() -> None:
    """Process studies of growing size, each in a process of its own; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=20_000, help="of the smallest")
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--density", type=float, default=0.08)
    parser.add_argument("--dask", action="store_true", help="read by a local cluster")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, by_dask=options.dask)
        return
    rows = []
    for factor in FACTORS:
        n_cells = factor * options.cells
        with tempfile.TemporaryDirectory() as folder:
            n_values = 0
            for seed, name in enumerate(("blood", "marrow")):
                n_values += write_counts(
                    Path(folder) / f"{name}.h5ad",
                    (n_cells // 2, options.genes),
                    options.density,
                    seed,
                )
            command = [sys.executable, __file__, "--measure", folder]
            command += ["--dask"] * options.dask
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        rows.append({"cells": n_cells, "counts": 8 * n_values, **found})
    report(rows)


def write_counts(path: Path, shape: tuple[int, int], density: float, seed: int) -> int:
    """Write counts a thousand cells at a time; return the number of non-zero ones."""
    rng = np.random.default_rng(seed)
    n_cells, n_genes = shape
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        group.attrs["shape"] = shape
        options = {"shape": (0,), "maxshape": (None,), "chunks": (2**16,)}
        data = group.create_dataset("data", dtype=np.float32, **options)
        indices = group.create_dataset("indices", dtype=np.int32, **options)
        sizes = []
        for start in range(0, n_cells, ROWS_AT_ONCE):
            n_rows = min(ROWS_AT_ONCE, n_cells - start)
            row, gene = np.nonzero(rng.random((n_rows, n_genes), np.float32) < density)
            sizes.append(np.bincount(row, minlength=n_rows))
            end = len(data) + len(gene)
            data.resize((end,))
            indices.resize((end,))
            data[-len(gene) :] = rng.geometric(0.6, len(gene))
            indices[-len(gene) :] = gene
        group["indptr"] = np.concatenate([[0], np.cumsum(np.concatenate(sizes))])
        n_values = len(data)
        for table, name, number in (
            ("obs", f"{path.stem}_cell", n_cells),
            ("var", "gene", n_genes),
        ):
            index = pd.Index([f"{name}_{i}" for i in range(number)], dtype=object)
            write_elem(file, table, pd.DataFrame(index=index))
    return n_values


def measure(folder: Path, *, by_dask: bool) -> None:
    """Process a study and print, as JSON, its peak memory and seconds."""
    half = {"fraction": 0.5}
    block = {
        "sources": {
            name: {"file": str(folder / f"{name}.h5ad")} for name in ("blood", "marrow")
        },
        "mixtures": {
            "blood": [{"source": "blood", **half}],
            "marrow": [{"source": "marrow", **half}],
            "both": [{"source": "blood", **half}, {"source": "marrow", **half}],
        },
        "baseline": "blood",
        "evaluations": {"e": {"source": "blood", "cells": 500}},
        "exclude": "cells",
        "dask": {"workers": 2, "cells_at_once": 2048} if by_dask else None,
    }
    study = parse_study({"composition": block, "model": {"type": "LDVAE"}}, "benchmark")
    before = _memory("VmRSS")
    started = time.perf_counter()
    workers: list[int] = []
    if by_dask:
        import threading  # noqa: PLC0415  (of this measurement alone)

        watcher = threading.Thread(target=_watch_children, args=(workers,), daemon=True)
        watcher.start()
    process_composition(Study(folder / "study", study))
    document = {
        "peak": _memory("VmHWM") - before,
        "worker": max(workers, default=0),
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(document))


def report(rows: list[dict]) -> None:
    """Print the table, and say whether the target is met."""
    print(f"{'cells':>10} {'counts':>10} {'peak':>10} {'worker':>10} {'seconds':>8}")
    for row in rows:
        numbers = [f"{row[key] / 1e6:,.0f} MB" for key in ("counts", "peak", "worker")]
        print(
            f"{row['cells']:>10,} "
            + " ".join(f"{number:>10}" for number in numbers)
            + f" {row['seconds']:>8.1f}"
        )
    growth = {key: rows[-1][key] - rows[0][key] for key in ("counts", "peak")}
    share = growth["peak"] / growth["counts"]
    print(
        f"peak grew by {growth['peak'] / 1e6:,.0f} MB while counts grew by "
        f"{growth['counts'] / 1e6:,.0f} MB: {share:.1%} (target below "
        f"{TARGET_SHARE:.0%}, {'met' if share < TARGET_SHARE else 'not met'})"
    )


def _watch_children(found: list[int]) -> None:
    """Keep looking at the resident memory of the processes this one has started."""
    while True:
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                text = status.read_text()
            except OSError:
                continue
            parent = re.search(r"PPid:\s+(\d+)", text)
            resident = re.search(r"VmHWM:\s+(\d+)", text)
            if parent and resident and int(parent[1]) == os.getpid():
                found.append(1024 * int(resident[1]))
        time.sleep(0.5)


def _memory(field: str) -> int:
    """Return memory of this process alone, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", status)[1])


if __name__ == "__main__":
    main()
