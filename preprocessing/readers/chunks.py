"""Cells in chunks: matrices in files of their own, each with a table, read one by one.

The form of the original cycle autoencoder: SciPy's ``.npz`` matrices, cells x genes,
each with a table of its cells in the same order. Tables, which are small, are in memory
together.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from natsort import natsorted

from cellgan.config.input import ChunkParameters, InputParameters
from cellgan.errors import DataError
from preprocessing.annotations import require_column
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.restricted_pickle import read_pickled_table
from preprocessing.readers.rows import JoinedRows, StoredRows
from preprocessing.sparse_blocks import UnsuitableValueError, assemble

UNREADABLE = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile)
TABLES = (".pkl", ".pickle", ".parquet", ".csv", ".tsv")
MATRIX = ".npz"
SHOWN_SIZES = 5


class Chunk(StoredRows):
    """A matrix in a file of its own, read whole: canonical CSR, float32.

    Parameters
    ----------
    counts
        Whether all values must be integers.
    is_binary
        Whether a value says no more than that it is not zero.

    Raises
    ------
    DataError
        If it is damaged; when it is read, also if a value is negative, not finite or no
        count.
    """

    def __init__(self, path: Path, *, counts: bool, is_binary: bool = False) -> None:
        n_cells, n_features = _shape(path)
        super().__init__(n_cells, n_features, max(n_cells, 1))
        self.path = path
        self._counts = counts
        self._is_binary = is_binary

    def read(self, rows: slice) -> sp.csr_matrix:
        """Return rows of the file, which is read and checked as a whole."""
        matrix = self._read()
        if self._is_binary:
            matrix.data[:] = 1
        is_whole = rows.start == 0 and rows.stop == self.n_cells
        return matrix if is_whole else matrix[rows]

    def _read(self) -> sp.csr_matrix:
        try:
            matrix = sp.csr_matrix(sp.load_npz(self.path), dtype=np.float32)
            return assemble(
                iter([matrix]),
                self.n_cells,
                integers=self._counts,
                description=f"read {self.path.name}",
                unit="cells",
            )
        except UnsuitableValueError as error:
            is_count = self._counts
            needed = "non-negative integers" if is_count else "finite and not negative"
            msg = (
                f"{self.path}: holds {error.value:g} (cell {error.row}, gene "
                f"{error.column}, counted from 0). Values must be {needed}"
                + (", or set input_ds.counts to false." if is_count else ".")
            )
            raise DataError(msg) from None
        except UNREADABLE as error:
            raise _damaged(self.path, error) from error


def read_chunks(
    parameters: InputParameters, chunks: ChunkParameters, columns: dict[str, str]
) -> CellSource:
    """Read the tables of chunks, and leave their matrices to be read when needed.

    Parameters
    ----------
    columns
        Those that must be there, and the parameter that names each.

    Raises
    ------
    DataError
        If there are none, a partner is missing, or something does not fit.
    """
    matrices, tables = find_chunks(parameters, chunks)
    genes = read_genes(chunks, matrices[0].n_features)
    return CellSource(
        read_tables(matrices, tables, columns),
        pd.DataFrame(index=pd.Index(genes, dtype=object)),
        JoinedRows(matrices),
        f"{len(matrices)} chunks",
    )


def read_peak_chunks(
    pattern: str, rna: CellSource, *, counts: bool, is_binary: bool
) -> CellSource:
    """Open chunks of peaks of the same cells: row by row those of the RNA's chunks.

    Raises
    ------
    DataError
        If there are none, or they have other numbers of cells.
    """
    key = "atac.raw_input"
    chunks = [
        Chunk(path, counts=counts, is_binary=is_binary)
        for path in _matching(pattern, key)
    ]
    _check_features(chunks, "peaks")
    of_rna = rna.rows.parts if isinstance(rna.rows, JoinedRows) else ()
    sizes, expected = ([chunk.n_cells for chunk in each] for each in (chunks, of_rna))
    if sizes != expected:
        msg = (
            f"input_ds.{key}: the chunks of {pattern} have {_listed(sizes)} cells, "
            f"those of the RNA {_listed(expected)}. Each cell needs a row in both, in "
            "the same order."
        )
        raise DataError(msg)
    names = [f"peak_{number}" for number in range(chunks[0].n_features)]
    return CellSource(
        pd.DataFrame(index=rna.obs.index),
        pd.DataFrame(index=pd.Index(names, dtype=object)),
        JoinedRows(chunks),
        f"{len(chunks)} chunks",
    )


def find_chunks(
    parameters: InputParameters, chunks: ChunkParameters
) -> tuple[list[Chunk], list[Path]]:
    """Pair matrices with tables, and check their shapes before a value is read.

    Raises
    ------
    DataError
        If there are none, a partner is missing, or genes do not fit.
    """
    matrices = _matching(parameters.raw_input, "raw_input")
    tables = _matching(chunks.metadata, "chunks.metadata")
    if len(matrices) != len(tables):
        msg = (
            f"input_ds.chunks: {len(matrices)} matrices ({parameters.raw_input}) but "
            f"{len(tables)} tables ({chunks.metadata}); {_alone(matrices, tables)}. "
            "Give every matrix its table."
        )
        raise DataError(msg)
    opened = [Chunk(path, counts=parameters.counts) for path in matrices]
    _check_features(opened, "genes")
    return opened, tables


def _matching(pattern: str, key: str) -> list[Path]:
    paths = natsorted(Path(pattern).expanduser().parent.glob(Path(pattern).name))
    if not paths:
        msg = f"input_ds.{key}: no file matches {pattern}. Check the pattern."
        raise DataError(msg)
    return paths


def _check_features(chunks: Sequence[Chunk], what: str) -> None:
    first = chunks[0]
    for chunk in chunks:
        if chunk.n_features != first.n_features:
            msg = (
                f"{chunk.path}: {chunk.n_features} {what}, but {first.path} has "
                f"{first.n_features}. All chunks must have the same {what}."
            )
            raise DataError(msg)


def _listed(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN_SIZES]))
    return f"{shown}, ..." if len(numbers) > SHOWN_SIZES else shown


def read_tables(
    chunks: Sequence[Chunk], tables: Sequence[Path], columns: dict[str, str]
) -> pd.DataFrame:
    """Read the tables of all chunks, one under the other.

    Raises
    ------
    DataError
        If a table has another number of rows than its matrix, or lacks a column.
    """
    frames = []
    for chunk, path in zip(chunks, tables, strict=True):
        table = read_table(path)
        if len(table) != chunk.n_cells:
            msg = (
                f"{path}: {len(table)} rows, but {chunk.path} has "
                f"{chunk.n_cells} cells. Each cell needs its row, in the same order."
            )
            raise DataError(msg)
        for column, where in columns.items():
            require_column(table, column, f"{path}: {where}")
        names = [f"{chunk.path.stem}-{row}" for row in range(len(table))]
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
