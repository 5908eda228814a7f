"""Readers of 10x data: .h5 of Cell Ranger 2 and later, and .mtx folders."""

from __future__ import annotations

import contextlib
import csv
import functools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from preprocessing.readers.anndata_files import read_h5ad
from preprocessing.readers.raw_file import (
    Blocks,
    Matrix,
    RawFile,
    as_float32,
    compressed_blocks,
    texts,
)
from preprocessing.readers.tables import open_text
from preprocessing.sparse_blocks import BLOCK_VALUES, progress

GENE_EXPRESSION = "Gene Expression"


def read_10x_h5(path: Path, files: contextlib.ExitStack) -> RawFile:
    """Open the .h5 of Cell Ranger 3 and later, or of one genome of Cell Ranger 2."""
    file = files.enter_context(h5py.File(path, "r"))
    if "obs" in file:  # an .h5ad under another name
        return read_h5ad(path, files)
    if "matrix" in file:
        group = file["matrix"]
        features = group["features"]
        names, ids = texts(features["name"]), texts(features["id"])
        kinds = texts(features["feature_type"]) if "feature_type" in features else None
    else:
        genomes = [name for name in file if "indptr" in file[name]]
        if len(genomes) != 1:
            listed = ", ".join(genomes) or "none"
            msg = (
                f"one genome is expected in a 10x file, found {len(genomes)}: {listed}"
            )
            raise ValueError(msg)
        group = file[genomes[0]]
        names, ids, kinds = texts(group["gene_names"]), texts(group["genes"]), None
    var = pd.DataFrame({"gene_ids": ids}, index=names)
    obs = pd.DataFrame(index=texts(group["barcodes"]))
    blocks = functools.partial(compressed_blocks, group, len(obs), len(var))
    return RawFile(obs, {"X": _gene_expression(Matrix(var, blocks), kinds)})


def read_mtx(path: Path, _files: contextlib.ExitStack) -> RawFile:
    """Open a folder with matrix.mtx, barcodes.tsv and features.tsv or genes.tsv."""
    matrix_file = _one_of(path, "matrix.mtx")
    barcodes = _read_table(_one_of(path, "barcodes.tsv"))
    features = _read_table(_one_of(path, "features.tsv", "genes.tsv"))
    names = features[min(1, features.shape[1] - 1)]
    var = pd.DataFrame({"gene_ids": features[0].to_numpy()}, index=names.to_numpy())
    kinds = features[2].to_numpy() if features.shape[1] > 2 else None
    obs = pd.DataFrame(index=barcodes[0].to_numpy())
    blocks = functools.partial(_coordinate_blocks, matrix_file, len(obs), len(var))
    return RawFile(obs, {"X": _gene_expression(Matrix(var, blocks), kinds)})


def _coordinate_blocks(path: Path, n_cells: int, n_genes: int) -> Blocks:
    """Read a genes x cells Matrix Market file as one block."""
    with open_text(path) as file:
        header = file.readline().lower().split()
        if header[:3] != ["%%matrixmarket", "matrix", "coordinate"] or header[
            3:
        ] not in (
            ["integer", "general"],
            ["real", "general"],
        ):
            msg = f"{path.name}: not a general coordinate Matrix Market file"
            raise ValueError(msg)
        line = file.readline()
        while line.startswith("%"):
            line = file.readline()
        rows, columns, n_values = (int(number) for number in line.split())
        if (rows, columns) != (n_genes, n_cells):
            msg = (
                f"{path.name} is {rows} x {columns}, expected genes x cells, "
                f"{n_genes} x {n_cells}"
            )
            raise ValueError(msg)
        gene = np.empty(n_values, dtype=np.int32)
        cell = np.empty(n_values, dtype=np.int32)
        value = np.empty(n_values, dtype=np.float32)
        end = 0
        chunks = pd.read_csv(
            file,
            sep=r"\s+",
            header=None,
            names=["gene", "cell", "value"],
            dtype={"gene": np.int32, "cell": np.int32, "value": np.float64},
            chunksize=max(1, BLOCK_VALUES // 4),
        )
        with progress(n_values, f"parse {path.name}", "values") as bar:
            for chunk in chunks if n_values else ():
                span = slice(end, end + len(chunk))
                gene[span], cell[span] = chunk["gene"] - 1, chunk["cell"] - 1
                value[span] = as_float32(chunk["value"])
                end += len(chunk)
                bar.update(len(chunk))
    if end != n_values:
        msg = f"{path.name} ends after {end} of {n_values} values"
        raise ValueError(msg)
    block = sp.csr_matrix((value, (cell, gene)), shape=(n_cells, n_genes))
    del gene, cell, value
    yield block


def _gene_expression(matrix: Matrix, kinds: npt.NDArray[Any] | None) -> Matrix:
    """Keep the gene expression features of a matrix with several kinds."""
    if kinds is None or (kinds == GENE_EXPRESSION).all():
        return matrix
    kept = kinds == GENE_EXPRESSION
    if not kept.any():
        others = ", ".join(sorted(set(kinds)))
        msg = f'no "{GENE_EXPRESSION}" feature, only {others}'
        raise ValueError(msg)

    def blocks() -> Blocks:
        for block in matrix.blocks():
            yield block[:, kept]

    return Matrix(matrix.var[kept], blocks)


def _one_of(folder: Path, *endings: str) -> Path:
    """Return the one file whose name ends so, plain or .gz; GEO adds prefixes."""
    files = sorted(
        file
        for file in folder.iterdir()
        if file.name.removesuffix(".gz").endswith(endings)
    )
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        msg = f"one {' or '.join(endings)} (or .gz) is expected, found {names}"
        raise ValueError(msg)
    return files[0]


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(
        path,
        sep="\t",
        header=None,
        dtype=str,
        quoting=csv.QUOTE_NONE,
        keep_default_na=False,
    )
