"""Cells as training and evaluation see them: batches of dense float32 tensors.

Which cells a training batch holds is a function of the seed and the batch's number
alone, so a resumed run sees the batches of an uninterrupted one without anything being
saved, and several workers share the batches without talking to each other.

Pipelines are made of TensorFlow operations alone: one that runs Python code in its
threads can keep the process from ending.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.sparse as sp
import tensorflow as tf
from tqdm import tqdm

from cellgan.data.manifest import ATAC, RNA, DatasetManifest
from cellgan.data.records import RecordSchema
from cellgan.data.shards import check_shard, read_shard, split_files
from cellgan.errors import DataError
from cellgan.seeds import derive_seed

if TYPE_CHECKING:
    from cellgan.data.memory import DataSource

logger = logging.getLogger(__name__)

ENDLESS = 2**62
GATHERED_BATCHES = 16
"""Prepared batches gathered at once: a call costs more than the gathering itself."""

# AutoGraph would spend half a second on rewriting functions that have no branches.
as_it_is = tf.autograph.experimental.do_not_convert


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


class SparseRows(NamedTuple):
    """Values of one modality: sparse rows, one after the other."""

    starts: tf.Tensor
    """``(n_cells + 1,)`` int64: where each cell begins in `columns` and `values`."""
    columns: tf.Tensor
    """``(n_values,)`` int32: position of the gene or peak of each value."""
    values: tf.Tensor
    """``(n_values,)`` float32."""


class CellStore(NamedTuple):
    """Decoded cells in memory."""

    features: Mapping[str, SparseRows]
    library_size: Mapping[str, tf.Tensor]
    """``[m]`` ``(n_cells,)`` float32."""
    covariates: Mapping[str, tf.Tensor]
    """``[c]`` ``(n_cells,)`` int32."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.library_size[RNA])


class TrainingCells(NamedTuple):
    """The training cells of one source."""

    n_cells: int
    batched: Callable[[int, int, int], tf.data.Dataset]
    """``batched(first_epoch, n_seen, batch_size)``: full batches, as `as_batch` takes
    them, from cell `n_seen` of an epoch on, endless."""
    as_batch: Callable[[tf.Tensor], CellBatch]


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
        - ``"disk"``: files are read one after the other, in an order of their own in
          each epoch, and the cells of each are shuffled; memory holds about one file,
          which is a random tenth of the training cells. Another order than that of
          ``"memory"``, and as reproducible.

    Raises
    ------
    DataError
        If a record file is missing, damaged or of another run, or there are no
        training cells. All files are read once before this returns.
    """
    files = split_files(folder, manifest, "train")
    key = _order_key(seed)
    cells = (_in_memory if source == "memory" else _on_disk)(files, manifest, key)
    n_cells = _require_cells(cells.n_cells, folder, "train")
    first_epoch, n_seen = divmod(position * batch_size, n_cells)
    return (
        cells.batched(first_epoch, n_seen, batch_size)
        .shard(n_shards, shard_index)
        .map(cells.as_batch, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )


def prepared_batches(
    cells: CellBatch,
    *,
    batch_size: int,
    seed: int,
    position: int = 0,
    shard_index: int = 0,
    n_shards: int = 1,
) -> tf.data.Dataset:
    """Return training batches of cells that are prepared already, endless, always full.

    For a stage that trains on what an earlier one made of the cells, such as latents,
    computed once. The order is that of `training_batches` from memory: of the same
    seed, batch ``k`` holds the same rows, given that row ``i`` of `cells` is that of
    cell ``i`` of ``evaluation_batches(folder, manifest, "train", ...)``.

    Parameters
    ----------
    cells
        Arrays or tensors whose first axis is cells, at least one cell; other axes are
        free, for example features ``{"latent": (n_cells, n_latent)}``. They are kept in
        memory as they are.
    seed, position, shard_index, n_shards
        As for `training_batches`.

    Raises
    ------
    ValueError
        If the arrays hold no cells, or different numbers of them.
    """
    with tf.device("CPU:0"):
        kept = tf.nest.map_structure(tf.convert_to_tensor, cells)
    lengths = {len(values) for values in tf.nest.flatten(kept)}
    if len(lengths) != 1 or 0 in lengths:
        msg = f"cells: arrays of {sorted(lengths)} cells, expected one number above 0"
        raise ValueError(msg)
    (n_cells,) = lengths
    first_epoch, n_seen = divmod(position * batch_size, n_cells)
    return (
        _shuffled_rows(n_cells, _order_key(seed), first_epoch, n_seen, batch_size)
        .shard(n_shards, shard_index)
        .batch(GATHERED_BATCHES, drop_remainder=True)
        .map(partial(_gather, kept))
        .prefetch(1)
        .unbatch()
        .prefetch(GATHERED_BATCHES)
    )


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
    store = _load(split_files(folder, manifest, split), manifest)
    n_cells = _require_cells(store.n_cells, folder, split)
    rows = tf.data.Dataset.range(n_cells).batch(batch_size)
    return rows.map(partial(_take, store, _widths(manifest))).prefetch(1)


def cells_in_order(
    folder: Path, manifest: DatasetManifest, split: str, *, batch_size: int
) -> Iterator[CellBatch]:
    """Yield all cells of a split once, with one record file at a time in memory.

    Raises
    ------
    DataError
        As `evaluation_batches`.
    """
    n_cells = 0
    with tqdm(
        total=manifest.split_sizes[split], unit=" cells", delay=2, desc="reading"
    ) as bar:
        for file in split_files(folder, manifest, split):
            store = _load([file], manifest)
            n_cells += store.n_cells
            rows = tf.data.Dataset.range(store.n_cells).batch(batch_size)
            for batch in rows.map(partial(_take, store, _widths(manifest))):
                yield batch
                bar.update(len(batch.library_size[RNA]))
    _require_cells(n_cells, folder, split)


def _order_key(seed: int) -> int:
    return derive_seed(seed, "order of cells")


def _in_memory(
    files: Sequence[Path], manifest: DatasetManifest, key: int
) -> TrainingCells:
    """Return cells of which each epoch is a permutation of rows."""
    store = _load(files, manifest)
    batched = partial(_shuffled_rows, store.n_cells, key)
    return TrainingCells(
        store.n_cells, batched, partial(_take, store, _widths(manifest))
    )


def _on_disk(
    files: Sequence[Path], manifest: DatasetManifest, key: int
) -> TrainingCells:
    """Return cells of which each epoch reads the files in another order."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sizes = list(pool.map(lambda file: check_shard(file, manifest), files))

    @as_it_is
    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        return _shuffled_records(files, sizes, key, epoch)

    def batched(first_epoch: int, n_seen: int, batch_size: int) -> tf.data.Dataset:
        return (
            tf.data.Dataset.range(first_epoch, ENDLESS)
            .flat_map(of_epoch)
            .skip(n_seen)
            .batch(batch_size, drop_remainder=True)
        )

    return TrainingCells(sum(sizes), batched, partial(_parse, manifest))


def _load(files: Sequence[Path], manifest: DatasetManifest) -> CellStore:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        shards = list(pool.map(lambda file: read_shard(file, manifest), files))
    is_scaled = manifest.record_values == "normalized"
    matrices = {RNA: [shard.values for shard in shards]}
    if ATAC in manifest.features:
        matrices[ATAC] = [shard.atac.values for shard in shards if shard.atac]
    sizes = {
        modality: np.concatenate([rows.sum(axis=1).A1 for rows in parts])
        for modality, parts in matrices.items()
    }
    if is_scaled:
        sizes[RNA] = np.concatenate([shard.count_no for shard in shards])
    with tf.device("CPU:0"):
        return CellStore(
            features={name: _joined(parts) for name, parts in matrices.items()},
            library_size={
                name: tf.constant(size, tf.float32) for name, size in sizes.items()
            },
            covariates={
                name: tf.concat([shard.codes[name] for shard in shards], axis=0)
                for name in manifest.covariates
            },
        )


def _joined(parts: Sequence[sp.csr_matrix]) -> SparseRows:
    sizes = np.concatenate([np.diff(part.indptr) for part in parts])
    return SparseRows(
        starts=tf.constant(np.cumsum([0, *sizes]), tf.int64),
        columns=tf.concat([part.indices for part in parts], axis=0),
        values=tf.concat([part.data for part in parts], axis=0),
    )


def _widths(manifest: DatasetManifest) -> dict[str, int]:
    """Return the number of features of each modality."""
    return {modality: len(names) for modality, names in manifest.features.items()}


def _require_cells(n_cells: int, folder: Path, split: str) -> int:
    if n_cells:
        return n_cells
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


def _shuffle(values: tf.Tensor, key: int, *numbers: tf.Tensor) -> tf.Tensor:
    """Shuffle by a seed that is a function of a key and numbers, such as the epoch."""
    seed = tf.constant((key, 0), tf.int64)
    for number in numbers:
        seed = tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
    return tf.random.experimental.stateless_shuffle(values, seed, alg="philox")


def _shuffled_rows(
    n_cells: int, key: int, first_epoch: int, n_seen: int, batch_size: int
) -> tf.data.Dataset:
    """Return batches of row numbers; each epoch is a permutation of its own.

    Epochs are cut into batches as whole tensors: one element per cell would cost more
    than the gathering of the cells.
    """

    @as_it_is
    def of_epoch(epoch: tf.Tensor) -> tf.Tensor:
        rows = _shuffle(tf.range(n_cells), key, epoch)
        return rows[tf.where(tf.equal(epoch, first_epoch), n_seen, 0) :]

    return (
        tf.data.Dataset.range(first_epoch, ENDLESS)
        .map(of_epoch)
        .prefetch(1)
        .rebatch(batch_size, drop_remainder=True)
    )


def _shuffled_records(
    files: Sequence[Path], sizes: Sequence[int], key: int, epoch: tf.Tensor
) -> tf.data.Dataset:
    """Return the serialised cells of one epoch: shuffled files, shuffled inside."""
    names = tf.constant([str(file) for file in files])
    n_records = tf.constant(sizes, tf.int64)

    def of_file(file: tf.Tensor) -> tf.data.Dataset:
        return (
            tf.data.TFRecordDataset(names[file], compression_type="GZIP")
            .batch(tf.maximum(n_records[file], 1))
            .map(lambda records: _shuffle(records, key, epoch, file))
            .unbatch()
        )

    order = _shuffle(tf.range(len(files), dtype=tf.int64), key, epoch)
    return tf.data.Dataset.from_tensor_slices(order).flat_map(of_file)


@as_it_is
def _gather(cells: CellBatch, rows: tf.Tensor) -> CellBatch:
    """Return some rows of arrays, in the shape of `rows`."""
    return tf.nest.map_structure(lambda values: tf.gather(values, rows), cells)


@as_it_is
def _take(store: CellStore, widths: Mapping[str, int], rows: tf.Tensor) -> CellBatch:
    """Return the cells of some rows."""
    return CellBatch(
        features={
            modality: _take_dense(store.features[modality], width, rows)
            for modality, width in widths.items()
        },
        library_size={
            modality: tf.gather(store.library_size[modality], rows)
            for modality in widths
        },
        covariates={
            name: tf.gather(codes, rows) for name, codes in store.covariates.items()
        },
    )


def _take_dense(stored: SparseRows, width: int, rows: tf.Tensor) -> tf.Tensor:
    starts, columns = _take_lists(stored.columns, stored.starts, rows)
    _, values = _take_lists(stored.values, stored.starts, rows)
    return _densify(starts, columns, values, (rows.shape[0], width))


def _take_lists(
    values: tf.Tensor, starts: tf.Tensor, rows: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return where the lists of some rows start among their values, and these."""
    taken = tf.raw_ops.RaggedGather(
        params_nested_splits=[starts],
        params_dense_values=values,
        indices=rows,
        OUTPUT_RAGGED_RANK=1,
    )
    return taken.output_nested_splits[0], taken.output_dense_values


@as_it_is
def _parse(manifest: DatasetManifest, records: tf.Tensor) -> CellBatch:
    """Return the cells of serialised records."""
    schema = RecordSchema.of(manifest)
    is_scaled = manifest.record_values == "normalized"
    # The features' prefix, by modality.
    prefixes = {
        modality: "" if modality == RNA else f"{modality}_"
        for modality in manifest.features
    }
    one_number = tf.io.FixedLenFeature((), tf.int64)
    some_numbers = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
    features = {schema.feature(name): one_number for name in schema.n_categories}
    for prefix in prefixes.values():
        features[f"{prefix}indices"] = some_numbers
        features[f"{prefix}values"] = tf.io.RaggedFeature(tf.float32)
        features[f"{prefix}count_no"] = one_number
    parsed = tf.io.parse_example(records, features)
    dense = {
        modality: _densify(
            parsed[f"{prefix}indices"].row_splits,
            parsed[f"{prefix}indices"].flat_values,
            parsed[f"{prefix}values"].flat_values,
            (records.shape[0], len(manifest.features[modality])),
        )
        for modality, prefix in prefixes.items()
    }
    totals = {
        modality: tf.reduce_sum(values, axis=1) for modality, values in dense.items()
    }
    if is_scaled:
        totals[RNA] = tf.cast(parsed["count_no"], tf.float32)
    return CellBatch(
        features=dense,
        library_size=totals,
        covariates={
            name: tf.cast(parsed[schema.feature(name)], tf.int32)
            for name in schema.n_categories
        },
    )


def _densify(
    starts: tf.Tensor,
    genes: tf.Tensor,
    values: tf.Tensor,
    shape: tuple[int | None, int],
) -> tf.Tensor:
    """Return cells as rows; the fastest of TensorFlow's ways by a factor of 2."""
    n_genes = tf.constant(shape[1], genes.dtype)
    dense = tf.raw_ops.RaggedBincount(
        splits=starts, values=genes, size=n_genes, weights=values
    )
    return tf.ensure_shape(dense, shape)
