"""scGAN and cscGAN of other sizes, and records of other cells."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from cellgan.config.input import SplitParameters
from cellgan.data.shards import read_shard
from preprocessing.readers.cell_source import CellSource
from preprocessing.splits import assign_splits
from preprocessing.write_tfrecords import write_tfrecords
from tests.data.test_records import manifest_of_reference
from tests.models.gan.gan_reference import Reference, all_outputs
from tests.other_sizes.arrays import Arrays, Shapes, drawn, prefixed, save

CONFIG = {
    "latent_dim": 5,
    "gen_layers": [11, 4],
    "genes_no": 15,
    "clusters_no": 4,
    "critic_layers": [8, 10],
    "batch_size": 17,
    "output_LSN": 250.0,
    "lambd": 4.0,
}


def weight_shapes() -> Shapes:
    n_clusters, n_genes = CONFIG["clusters_no"], CONFIG["genes_no"]
    shapes: dict[str, tuple[int, ...]] = {}
    widths = [CONFIG["latent_dim"], *CONFIG["gen_layers"]]
    for index, (n_in, n_out) in enumerate(pairwise(widths), start=1):
        layer = f"gen/layer_{index}"
        shapes[f"{layer}/kernel"] = (n_in, n_out)
        for name in ("bn_moving_mean", "bn_moving_var", "bn_offset", "bn_scale"):
            shapes[f"{layer}/{name}"] = (n_out,)
        for name in ("bn_offset", "bn_scale", "ln_offset", "ln_scale"):
            shapes[f"{layer}/cond_{name}"] = (n_clusters, n_out)
    shapes |= {
        "gen/output/kernel": (widths[-1], n_genes),
        "gen/output/bias": (n_genes,),
    }
    widths = [n_genes, *CONFIG["critic_layers"]]
    for index, (n_in, n_out) in enumerate(pairwise(widths), start=1):
        shapes[f"critic/layer_{index}/kernel"] = (n_in, n_out)
        shapes[f"critic/layer_{index}/bias"] = (n_out,)
    return shapes | {
        "critic/proj/proj_weights": (n_clusters, widths[-1], 1),
        "critic/proj/proj_bias": (n_clusters, 1),
        "critic/output/kernel": (widths[-1], 1),
        "critic/output/bias": (1,),
    }


def inputs() -> Arrays:
    rng = np.random.default_rng(1)
    n_cells, n_genes = CONFIG["batch_size"], CONFIG["genes_no"]
    n_clusters = CONFIG["clusters_no"]
    # so unlike that no unit of the critic is active in all cells: its bias would have
    # a gradient of nothing but rounding
    counts = rng.poisson(rng.gamma(0.3, 9.0, (n_cells, n_genes))) + 0.0
    counts[:, 0] += 1
    return {
        "z": rng.normal(size=(n_cells, CONFIG["latent_dim"])),
        "clusters_ratios": rng.dirichlet(np.full(n_clusters, 9.0))[None],
        "fake_labels": rng.integers(0, n_clusters, n_cells),
        "real_labels": rng.integers(0, n_clusters, n_cells),
        "real_counts": counts,
        "real_cells": counts * CONFIG["output_LSN"] / counts.sum(axis=1, keepdims=True),
        "alpha": rng.uniform(size=(n_cells, 1)),
        "optimiser/param": rng.normal(size=(2, 5)),
        "optimiser/grads": rng.normal(size=(4, 2, 5)),
        "optimiser/lr": np.array([1e-2, 1e-3, 2e-3, 1e-2]),
        "optimiser/beta1": 0.6,
        "optimiser/beta2": 0.95,
        "lr/steps": np.array([0, 1, 30, 400, 5000]),
        "lr/alpha_0": 3e-4,
        "lr/alpha_final": 2e-5,
        "lr/max_steps": 5000,
        "lsn/x": rng.uniform(0.1, 3.0, (3, n_genes)),
        "split/cluster_sizes": np.array([140, 93, 61, 20]),
        "split/valid_cells": 45,
        "split/test_cells": 33,
    }


def split_sizes(entries: Arrays) -> Arrays:
    sizes = entries["split/cluster_sizes"]
    codes = np.repeat(np.arange(len(sizes)), sizes)
    numbers = {
        f"{k}_cells": int(entries[f"split/{k}_cells"]) for k in ("valid", "test")
    }
    names = tuple(map(str, range(len(sizes))))
    splits = assign_splits(codes, names, SplitParameters(**numbers))
    return {
        f"{name}_per_cluster": np.bincount(codes[splits == name], minlength=len(sizes))
        for name in ("train", "valid", "test")
    }


def write_gan(folder: Path) -> None:
    entries = inputs()
    weights = {
        k: v.astype(np.float64) for k, v in drawn(weight_shapes(), seed=1).items()
    }
    arrays = {
        **prefixed("config/", CONFIG),
        **prefixed("weights/", weights),
        **prefixed("in/", entries),
    }
    save(folder / "scgan.npz", arrays)
    arrays |= all_outputs(Reference(folder, "float64"))
    save(folder / "scgan.npz", arrays | prefixed("out/split/", split_sizes(entries)))
    write_records(folder / "scgan_TF_records")


def write_records(
    folder: Path, n_cells: int = 57, n_genes: int = 9, target: int = 240
) -> None:
    """Write records of four clusters, whose names are their codes."""
    rng = np.random.default_rng(2)
    counts = rng.poisson(1.5, (n_cells, n_genes)).astype(np.float32)
    counts[:, 0] += 1
    expected = {
        "X": counts * target / counts.sum(axis=1, keepdims=True),
        "barcode": np.array([f"c{row}" for row in range(n_cells)]),
        "cluster": rng.permutation(np.arange(n_cells) % 4),
        "split": rng.permutation(
            np.array(["train"] * 40 + ["valid"] * 10 + ["test"] * 7)
        ),
        "n_genes": np.count_nonzero(counts, axis=1) + 1,
        "count_no": np.zeros(n_cells, int),
        "train_shard": np.full(n_cells, -1),
        "seed": 5,
        "lib_size": target,
    }
    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical(expected["cluster"].astype(str)),
            "split": expected["split"],
            "n_genes": expected["n_genes"],
        },
        index=expected["barcode"],
    )
    files = write_tfrecords(
        CellSource.of_anndata(ad.AnnData(sp.csr_matrix(counts), obs=obs)),
        folder,
        label="cluster",
        record_values="normalized",
        target_library_size=target,
        seed=expected["seed"],
    )
    manifest = manifest_of_reference(expected)
    for number, file in enumerate(files):
        cells = read_shard(folder / file, manifest)
        rows = [int(barcode[1:]) for barcode in cells.barcodes]
        expected["X"][rows] = cells.values.toarray()
        expected["count_no"][rows] = cells.count_no
        expected["train_shard"][rows] = number if "train" in file else -1
    save(folder / "expected.npz", expected)
