"""The record files of a data set: written, checked, read in blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from cellgan.data.manifest import DatasetManifest
from cellgan.data.records import (
    OTHER_RUN,
    AtacRecords,
    CellRecords,
    RecordSchema,
    decode_examples,
    encode_examples,
)
from cellgan.data.tfrecords import (
    open_records,
    read_records,
)
from cellgan.errors import DataError

TRAIN_FILES = tuple(f"train-{shard}.tfrecords" for shard in range(10))


VALID_FILE = "validate.tfrecords"


TEST_FILE = "test.tfrecords"


RECORD_FILES = (*TRAIN_FILES, VALID_FILE, TEST_FILE)
"""All record files; always written, possibly without a record."""


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = (
            f"{path}: cannot be written: {error.strerror}. Free some disk space or "
            f"check the permissions, and run --process again."
        )
        raise DataError(msg) from error


@contextlib.contextmanager
def open_shards(
    folder: Path, files: Sequence[str], schema: RecordSchema
) -> Iterator[Mapping[str, Callable[[CellRecords], None]]]:
    """Open record files; yield, by name, what appends cells to each.

    Raises
    ------
    DataError
        If a file cannot be written, for example because the disk is full.
    """
    with contextlib.ExitStack() as stack:
        opened, closing = {}, {}
        for file in files:
            closing[file] = stack.enter_context(contextlib.ExitStack())
            with _writing(folder / file):
                opened[file] = closing[file].enter_context(open_records(folder / file))

        def append_to(file: str) -> Callable[[CellRecords], None]:
            def append(cells: CellRecords) -> None:
                with _writing(folder / file):
                    opened[file](encode_examples(cells, schema))

            return append

        yield {file: append_to(file) for file in files}
        for file in files:
            with _writing(folder / file):  # what is left in buffers is written now
                closing[file].close()


def split_files(folder: Path, manifest: DatasetManifest, split: str) -> list[Path]:
    """Return the record files of a split: those with its name in their own.

    Raises
    ------
    DataError
        If a file of the manifest is missing, or there is none for the split.
    """
    names = manifest.shards or [path.name for path in folder.glob("*.tfrecords")]
    files = [folder / name for name in sorted(names) if split in name]
    missing = [file.name for file in files if not file.exists()]
    if missing or not files:
        what = ", ".join(missing) or f'any file with "{split}" in its name'
        msg = f"{folder}: {what} is missing. Run --process --overwrite."
        raise DataError(msg)
    return files


def read_shard(path: Path, manifest: DatasetManifest) -> CellRecords:
    """Read a whole record file.

    Raises
    ------
    DataError
        If the file is damaged, or belongs to another data set than the manifest.
    """
    schema = RecordSchema.of(manifest)
    cells = concatenate([decode_examples([], schema), *read_blocks(path, schema)])
    _check_n_cells(path, len(cells), manifest)
    return cells


def check_shard(path: Path, manifest: DatasetManifest) -> int:
    """Read a record file without keeping it; return its number of cells.

    Raises
    ------
    DataError
        As `read_shard`.
    """
    n_cells = sum(map(len, read_blocks(path, RecordSchema.of(manifest))))
    _check_n_cells(path, n_cells, manifest)
    return n_cells


def _check_n_cells(path: Path, n_cells: int, manifest: DatasetManifest) -> None:
    expected = manifest.shards.get(path.name, n_cells)
    if n_cells != expected:
        msg = f"{path}: {n_cells} cells, the manifest says {expected}: {OTHER_RUN}"
        raise DataError(msg)


def read_blocks(path: Path, schema: RecordSchema) -> Iterator[CellRecords]:
    """Read a record file in blocks of a few megabytes.

    Raises
    ------
    DataError
        If the file is damaged or does not fit the schema.
    """
    first = 0
    try:
        for records in read_records(path):
            cells = decode_examples(records, schema, first=first)
            first += len(cells)
            yield cells
    except DataError as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from None
    except (OSError, ValueError) as error:
        msg = (
            f"{path}: cannot be read after {first} records: {error}. Run --process "
            f"--overwrite."
        )
        raise DataError(msg) from error


def concatenate(parts: Sequence[CellRecords]) -> CellRecords:
    """Join at least one group of cells."""
    return CellRecords(
        values=sp.vstack([part.values for part in parts], format="csr"),
        barcodes=[barcode for part in parts for barcode in part.barcodes],
        genes_no=np.concatenate([part.genes_no for part in parts]),
        count_no=np.concatenate([part.count_no for part in parts]),
        codes={
            name: np.concatenate([part.codes[name] for part in parts])
            for name in parts[0].codes
        },
        atac=_concatenate_atac([part.atac for part in parts if part.atac is not None]),
    )


def _concatenate_atac(parts: Sequence[AtacRecords]) -> AtacRecords | None:
    if not parts:
        return None
    return AtacRecords(
        values=sp.vstack([part.values for part in parts], format="csr"),
        count_no=np.concatenate([part.count_no for part in parts]),
    )
