"""Cells as training and evaluation see them: batches of dense float32 tensors.

Which cells a training batch holds is a function of the seed and the batch's number
alone, so a resumed run sees the batches of an uninterrupted one without anything being
saved, and several workers share the batches without talking to each other.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.errors import DataError
from cellgan.manifest import RNA, DatasetManifest
from cellgan.records import (
    CellRecords,
    RecordSchema,
    check_shard,
    concatenate,
    read_blocks,
    read_shard,
    split_files,
)
from cellgan.seeds import derive_seed

logger = logging.getLogger(__name__)

DataSource = Literal["memory", "disk"]
MEMORY_SHARE = 0.4
"""Share of the available memory that decoded cells may take. Joining the files takes
as much again for a moment."""
BYTES_PER_VALUE = 8


class CellBatch(NamedTuple):
    """Some cells; `m` is a modality such as ``"rna"``, `c` a covariate's name."""

    features: Mapping[str, tf.Tensor]
    """``[m]`` (n_cells, n_features) float32: counts, unless the manifest's
    ``record_values`` is ``"normalized"``."""
    library_size: Mapping[str, tf.Tensor]
    """``[m]`` (n_cells,) float32: total counts before any scaling; for normalised
    records, the stored total of the scaled values."""
    covariates: Mapping[str, tf.Tensor]
    """``[c]`` (n_cells,) int32 codes."""


class SparseCells(NamedTuple):
    """Some cells, their values one after the other."""

    n_values: npt.NDArray[np.int32]
    """``(n_cells,)``: how many of the values are each cell's."""
    genes: npt.NDArray[np.int32]
    """Position of the gene of each value."""
    values: npt.NDArray[np.float32]
    library_size: npt.NDArray[np.float32]
    """``(n_cells,)``."""
    covariates: Mapping[str, npt.NDArray[np.int32]]
    """``[c]`` (n_cells,)."""


Part = tuple[CellRecords, npt.NDArray[np.int64]]
"""Cells, and which of them are meant, in order."""


def training_batches(  # noqa: PLR0913 -- what, in which order, whose share
    folder: Path,
    manifest: DatasetManifest,
    *,
    batch_size: int,
    seed: int,
    position: int = 0,
    shard_index: int = 0,
    n_shards: int = 1,
    source: DataSource,
) -> tf.data.Dataset:
    """Return the training batches from a position on: endless, always full.

    The cells come in an endless sequence of epochs, each a permutation of all training
    cells of its own; batch ``k`` holds those at ``k * batch_size`` to
    ``(k + 1) * batch_size - 1``, so it may straddle two epochs.

    Parameters
    ----------
    folder
        The records folder.
    seed
        Root seed of the order.
    position
        Number of the first batch; a run that has drawn ``k`` batches resumes at ``k``.
    shard_index, n_shards
        Yield batch ``position + shard_index``, then every ``n_shards``-th. Together,
        the ``n_shards`` data sets of one `position` yield each batch exactly once: N
        workers with ``batch_size = B / N`` and ``position = N * k`` draw, between
        them, the cells of the batches from ``k`` on of one worker with batch size B.
    source
        - ``"memory"``: all cells are decoded once and kept; any cell may follow any.
        - ``"disk"``: files are decoded one after the other, in an order of their own
          in each epoch, and the cells of each are shuffled; memory holds about one
          file, which is a random tenth of the training cells. Another order than
          that of ``"memory"``, and as reproducible.

    Raises
    ------
    DataError
        If a record file is missing, damaged or of another run, or there are no
        training cells. All files are read once before this returns.
    """
    files = split_files(folder, manifest, "train")
    if source == "memory":
        cells = _read_all(files, manifest)
        sizes = [len(cells)]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            sizes = list(pool.map(lambda file: check_shard(file, manifest), files))
    _require_cells(sum(sizes), folder, "train")

    def load(index: int) -> CellRecords:
        return cells if source == "memory" else read_shard(files[index], manifest)

    def generate() -> Iterator[SparseCells]:
        first = (position + shard_index) * batch_size
        parts = _shuffled_parts(load, sizes, seed, first)
        return itertools.islice(_cut(parts, batch_size, manifest), 0, None, n_shards)

    return _dense_batches(generate, manifest, batch_size)


def evaluation_batches(
    folder: Path, manifest: DatasetManifest, split: str, *, batch_size: int
) -> tf.data.Dataset:
    """Return all cells of a split once, in record order; the last batch may be partial.

    Parameters
    ----------
    split
        ``"train"``, ``"valid"`` or ``"test"``. Its cells are held in memory.

    Raises
    ------
    DataError
        If a record file is missing, damaged or of another run, or the split is empty.
    """
    cells = _read_all(split_files(folder, manifest, split), manifest)
    _require_cells(len(cells), folder, split)

    def generate() -> Iterator[SparseCells]:
        rows = np.arange(len(cells))
        for start in range(0, len(cells), batch_size):
            yield _take(cells, rows[start : start + batch_size], manifest)

    return _dense_batches(generate, manifest, None)


def choose_data_source(
    folder: Path, manifest: DatasetManifest, requested: Literal["auto"] | DataSource
) -> DataSource:
    """Resolve ``"auto"``: memory if the training cells fit in a part of what is free.

    Their size is that of the first few hundred, multiplied.

    Raises
    ------
    DataError
        If a record file is missing, or the first one is damaged or of another run.
    """
    if requested != "auto":
        return requested
    files = split_files(folder, manifest, "train")
    n_bytes, n_cells = 0, 0
    for file in files:
        for block in itertools.islice(read_blocks(file, RecordSchema.of(manifest)), 1):
            n_bytes += block.values.nnz * BYTES_PER_VALUE
            n_cells += len(block)
    needed = n_bytes / max(n_cells, 1) * manifest.split_sizes["train"]
    available = _available_bytes()
    source: DataSource = "memory" if needed < MEMORY_SHARE * available else "disk"
    logger.info(
        "training cells need %.2f GB, %.1f GB are available: batches come from %s",
        needed / 1e9,
        available / 1e9,
        source,
    )
    return source


def _read_all(files: Sequence[Path], manifest: DatasetManifest) -> CellRecords:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return concatenate(
            list(pool.map(lambda file: read_shard(file, manifest), files))
        )


def _require_cells(n_cells: int, folder: Path, split: str) -> None:
    if n_cells:
        return
    advice = (
        "Lower split.valid_cells and split.test_cells"
        if split == "train"
        else f"Raise split.{split}_cells"
    )
    msg = (
        f'{folder}: no cells in the split "{split}". {advice} in input_ds and process '
        f"the data again."
    )
    raise DataError(msg)


def _shuffled_parts(
    load: Callable[[int], CellRecords], sizes: Sequence[int], seed: int, first: int
) -> Iterator[Part]:
    """Yield shuffled files, epoch after epoch, from the cell numbered `first`."""
    epoch, skipped = divmod(first, sum(sizes))
    while True:
        for index in _permutation(len(sizes), seed, "files", epoch).tolist():
            if skipped < sizes[index]:
                rows = _permutation(sizes[index], seed, f"cells of {index}", epoch)
                yield load(index), rows[skipped:]
            skipped = max(skipped - sizes[index], 0)
        epoch += 1


def _permutation(n: int, seed: int, *names: str | int) -> npt.NDArray[np.int64]:
    return np.random.default_rng(derive_seed(seed, *names)).permutation(n)


def _cut(
    parts: Iterable[Part], batch_size: int, manifest: DatasetManifest
) -> Iterator[SparseCells]:
    """Cut parts into batches; a batch may straddle several."""
    pieces: list[SparseCells] = []
    missing = batch_size
    for cells, rows in parts:
        while len(rows):
            pieces.append(_take(cells, rows[:missing], manifest))
            missing, rows = max(missing - len(rows), 0), rows[missing:]
            if not missing:
                yield _join(pieces)
                pieces, missing = [], batch_size


def _take(
    cells: CellRecords, rows: npt.NDArray[np.int64], manifest: DatasetManifest
) -> SparseCells:
    values = cells.values[rows]
    is_scaled = manifest.record_values == "normalized"
    totals = cells.count_no[rows] if is_scaled else values.sum(axis=1).A1
    return SparseCells(
        n_values=np.diff(values.indptr).astype(np.int32),
        genes=values.indices.astype(np.int32, copy=False),
        values=values.data,
        library_size=totals.astype(np.float32),
        covariates={name: codes[rows] for name, codes in cells.codes.items()},
    )


def _join(pieces: Sequence[SparseCells]) -> SparseCells:
    return tf.nest.map_structure(lambda *arrays: np.concatenate(arrays), *pieces)


def _dense_batches(
    generate: Callable[[], Iterator[SparseCells]],
    manifest: DatasetManifest,
    batch_size: int | None,
) -> tf.data.Dataset:
    per_cell = {
        dtype: tf.TensorSpec((batch_size,), dtype) for dtype in (tf.int32, tf.float32)
    }
    signature = SparseCells(
        n_values=per_cell[tf.int32],
        genes=tf.TensorSpec((None,), tf.int32),
        values=tf.TensorSpec((None,), tf.float32),
        library_size=per_cell[tf.float32],
        covariates=dict.fromkeys(manifest.covariates, per_cell[tf.int32]),
    )
    n_genes = len(manifest.features[RNA])
    return (
        tf.data.Dataset.from_generator(generate, output_signature=signature)
        .map(
            lambda cells: _densify(cells, n_genes),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def _densify(cells: SparseCells, n_genes: int) -> CellBatch:
    n_cells = tf.size(cells.n_values, tf.int64)
    rows = tf.repeat(tf.range(n_cells), cells.n_values)
    # One flat index: twice as fast as pairs of row and column.
    dense = tf.raw_ops.SparseToDense(
        sparse_indices=rows * n_genes + tf.cast(cells.genes, tf.int64),
        output_shape=tf.reshape(n_cells * n_genes, (1,)),
        sparse_values=cells.values,
        default_value=tf.zeros((), tf.float32),
        validate_indices=False,
    )
    shape = (cells.n_values.shape[0] or -1, n_genes)
    return CellBatch(
        features={RNA: tf.reshape(dense, shape)},
        library_size={RNA: cells.library_size},
        covariates=cells.covariates,
    )


def _available_bytes() -> int:
    """Return the memory that this process may still take, as far as Linux tells."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    groups = Path("/proc/self/cgroup").read_text()
    return min([available, *_control_group_bytes(groups, Path("/sys/fs/cgroup"))])


def _control_group_bytes(groups: str, root: Path) -> Iterator[int]:
    """Yield what each control group around this process, as a container, has left."""
    for group in re.findall("^0::/(.*)$", groups, flags=re.MULTILINE):
        folder = root / group
        for level in (folder, *folder.parents):
            limit = level / "memory.max"
            if limit.exists() and limit.read_text().strip() != "max":
                used = int((level / "memory.current").read_text())
                yield int(limit.read_text()) - used
