"""Cells in chunks: pairs of a matrix file and a table, read one pair at a time.

The form of the original cycle autoencoder: SciPy's ``.npz`` matrices, cells x genes,
each with a table of its cells in the same order. Matrices are never in memory together;
tables, which are small, are.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from natsort import natsorted

from cellgan.config.parameters import ChunkParameters, InputParameters
from cellgan.errors import DataError
from preprocessing.annotations import require_column
from preprocessing.readers.restricted_pickle import read_pickled_table
from preprocessing.sparse_blocks import UnsuitableValueError, assemble

UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)
TABLES = (".pkl", ".pickle", ".parquet", ".csv", ".tsv")


class ChunkPair(NamedTuple):
    """One matrix, and the file of its cells' table."""

    matrix: Path
    table: Path
    n_cells: int
    n_genes: int

    def read(self, *, counts: bool) -> sp.csr_matrix:
        """Read the matrix: canonical CSR, float32.

        Parameters
        ----------
        counts
            Whether all values must be integers.

        Raises
        ------
        DataError
            If it is damaged, or a value is negative, not finite or no count.
        """
        try:
            matrix = sp.csr_matrix(sp.load_npz(self.matrix), dtype=np.float32)
            return assemble(
                iter([matrix]),
                self.n_cells,
                integers=counts,
                description=f"read {self.matrix.name}",
                unit="cells",
            )
        except UnsuitableValueError as error:
            needed = "non-negative integers" if counts else "finite and not negative"
            msg = (
                f"{self.matrix}: holds {error.value:g} (cell {error.row}, gene "
                f"{error.column}, counted from 0). Values must be {needed}"
                + (", or set input_ds.counts to false." if counts else ".")
            )
            raise DataError(msg) from None
        except UNREADABLE as error:
            raise _damaged(self.matrix, error) from error


def find_chunks(
    parameters: InputParameters, chunks: ChunkParameters
) -> list[ChunkPair]:
    """Pair matrices with tables, and check their shapes before a value is read.

    Raises
    ------
    DataError
        If there are none, a partner is missing, or rows or genes do not fit.
    """
    matrices, tables = (
        natsorted(Path(of).expanduser().parent.glob(Path(of).name))
        for of in (parameters.raw_input, chunks.metadata)
    )
    for found, key, pattern in (
        (matrices, "raw_input", parameters.raw_input),
        (tables, "chunks.metadata", chunks.metadata),
    ):
        if not found:
            msg = f"input_ds.{key}: no file matches {pattern}. Check the pattern."
            raise DataError(msg)
    if len(matrices) != len(tables):
        msg = (
            f"input_ds.chunks: {len(matrices)} matrices ({parameters.raw_input}) but "
            f"{len(tables)} tables ({chunks.metadata}); {_alone(matrices, tables)}. "
            "Give every matrix its table."
        )
        raise DataError(msg)
    pairs = []
    for matrix, table in zip(matrices, tables, strict=True):
        n_cells, n_genes = _shape(matrix)
        pairs.append(ChunkPair(matrix, table, n_cells, n_genes))
        if n_genes != pairs[0].n_genes:
            msg = (
                f"{matrix}: {n_genes} genes, but {pairs[0].matrix} has "
                f"{pairs[0].n_genes}. All chunks must have the same genes."
            )
            raise DataError(msg)
    return pairs


def read_tables(pairs: Sequence[ChunkPair], columns: dict[str, str]) -> pd.DataFrame:
    """Read the tables of all chunks, one under the other.

    Parameters
    ----------
    columns
        Those that must be there, and the parameter that names each.

    Raises
    ------
    DataError
        If a table has another number of rows than its matrix, or lacks a column.
    """
    frames = []
    for pair in pairs:
        table = read_table(pair.table)
        if len(table) != pair.n_cells:
            msg = (
                f"{pair.table}: {len(table)} rows, but {pair.matrix} has "
                f"{pair.n_cells} cells. Each cell needs its row, in the same order."
            )
            raise DataError(msg)
        for column, where in columns.items():
            require_column(table, column, f"{pair.table}: {where}")
        names = [f"{pair.matrix.stem}-{row}" for row in range(len(table))]
        frames.append(table.set_axis(pd.Index(names, dtype=object), axis=0))
    return pd.concat(frames, axis=0)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table: restricted pickle, Parquet, or text.

    Raises
    ------
    DataError
        If the suffix is none of these, or the file cannot be read.
    """
    suffix = path.suffix.lower()
    if suffix in (".pkl", ".pickle"):
        return read_pickled_table(path)
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        if suffix in (".csv", ".tsv"):
            return pd.read_csv(path, sep="\t" if suffix == ".tsv" else ",", dtype=str)
    except (ImportError, *UNREADABLE) as error:
        raise _damaged(path, error) from error
    msg = f"{path}: not a table we read. Suffixes: {', '.join(TABLES)}."
    raise DataError(msg)


def read_genes(chunks: ChunkParameters, n_genes: int) -> list[str]:
    """Return the names of genes: of a file, one a line, or numbers from 0.

    Raises
    ------
    DataError
        If there are more or fewer than columns, or some twice.
    """
    if chunks.genes is None:
        return [f"gene_{number}" for number in range(n_genes)]
    path = Path(chunks.genes).expanduser()
    try:
        names = [line.strip() for line in path.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error) from error
    names = [name for name in names if name]
    if len(names) != n_genes or len(set(names)) != len(names):
        msg = (
            f"{path}: {len(names)} gene names, {len(set(names))} of them different, "
            f"but the chunks have {n_genes} genes. Give one name a line, each once."
        )
        raise DataError(msg)
    return names


def rows_of(pairs: Sequence[ChunkPair]) -> Iterator[tuple[ChunkPair, slice]]:
    """Yield each chunk with the place of its cells among all."""
    first = 0
    for pair in pairs:
        yield pair, slice(first, first + pair.n_cells)
        first += pair.n_cells


def _shape(path: Path) -> tuple[int, int]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            n_cells, n_genes = stored["shape"].tolist()
    except UNREADABLE as error:
        raise _damaged(path, error) from error
    return int(n_cells), int(n_genes)


def _alone(matrices: Sequence[Path], tables: Sequence[Path]) -> str:
    """Name a file without partner: one whose last number no partner has."""
    numbers = [
        {"".join(filter(str.isdigit, path.stem)): path.name for path in paths}
        for paths in (matrices, tables)
    ]
    for mine, others in (numbers, numbers[::-1]):
        for number, name in mine.items():
            if number not in others:
                return f"{name} has no partner"
    return "names tell no partners"


def _damaged(path: Path, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{path}: cannot be read: {reason}. Is it what its name says?")
