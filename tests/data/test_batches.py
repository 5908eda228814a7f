"""Batches hold the right cells, in an order that a resumed run finds again."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from itertools import chain, groupby, islice
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cellgan.data import memory
from cellgan.data.batches import (
    CellBatch,
    cells_in_order,
    evaluation_batches,
    prepared_batches,
    training_batches,
)
from cellgan.data.memory import choose_data_source
from cellgan.data.records import RecordSchema
from cellgan.data.shards import read_shard, split_files
from cellgan.errors import DataError
from tests.data.test_records import manifest_of_reference
from tests.records_folder import RecordsFolder, make_records, write_shard
from tests.stored import stored_arrays

SOURCES = ("memory", "disk")
each_source = pytest.mark.parametrize("source", SOURCES)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> RecordsFolder:
    return make_records(tmp_path_factory.mktemp("cells") / "records")


def draw(records: RecordsFolder, n_batches: int, **arguments) -> list[CellBatch]:
    arguments = {"batch_size": 8, "seed": 5, **arguments}
    drawn = training_batches(records.folder, records.manifest, **arguments)
    return list(islice(drawn, n_batches))


def rows_of(records: RecordsFolder, drawn: list[CellBatch]) -> np.ndarray:
    """Return which rows of the processed cells the batches hold, in order."""
    row_of = {cell.tobytes(): row for row, cell in enumerate(records.cells.X.toarray())}
    assert len(row_of) == records.cells.n_obs
    return np.array(
        [row_of[cell.tobytes()] for batch in drawn for cell in expression(batch)]
    )


def expression(batch: CellBatch) -> np.ndarray:
    return batch.features["rna"].numpy()


def training_rows(records: RecordsFolder) -> list[int]:
    return np.flatnonzero(records.cells.obs["split"] == "train").tolist()


def assert_same_batches(found: list[CellBatch], expected: list[CellBatch]) -> None:
    assert len(found) == len(expected) > 0
    for some, other in zip(found, expected, strict=True):
        tf.nest.map_structure(np.testing.assert_array_equal, some, other)


@each_source
def test_batch_holds_cells_with_their_library_size_and_label(records, source) -> None:
    drawn = draw(records, 6, source=source)

    cells = records.cells[rows_of(records, drawn)]
    library_size = np.concatenate([batch.library_size["rna"] for batch in drawn])
    codes = np.concatenate([batch.covariates["cluster"] for batch in drawn])
    assert library_size.dtype == np.float32
    assert codes.dtype == np.int32
    assert np.array_equal(library_size, cells.X.toarray().sum(axis=1))
    assert np.array_equal(codes, cells.obs["cluster"].cat.codes)


@each_source
def test_every_epoch_holds_each_training_cell_once(records, source) -> None:
    expected = training_rows(records)
    n_epochs = 3
    n_batches = -(-n_epochs * len(expected) // 8)
    assert len(expected) % 8, "batches shall straddle epochs"

    rows = rows_of(records, draw(records, n_batches, source=source))

    epochs = [rows[e * len(expected) :][: len(expected)] for e in range(n_epochs)]
    for epoch in epochs:
        assert sorted(epoch) == expected
        assert epoch.tolist() != expected
    assert len({tuple(epoch) for epoch in epochs}) == n_epochs


@each_source
def test_order_is_that_of_the_seed(records, source) -> None:
    first, again, other = (
        rows_of(records, draw(records, 3, seed=seed, source=source)).tolist()
        for seed in (5, 5, 6)
    )

    assert first == again
    assert first != other


@each_source
@pytest.mark.parametrize(
    "position",
    [1, 6, *(pytest.param(of, marks=pytest.mark.slow) for of in (5, 11, 40))],
)
def test_batches_from_a_position_are_those_of_a_run_from_the_start(
    records, source, position
) -> None:
    whole = draw(records, position + 8, source=source)

    resumed = draw(records, 8, source=source, position=position)

    assert_same_batches(resumed, whole[position:])


@each_source
@pytest.mark.parametrize("position", [pytest.param(0, marks=pytest.mark.slow), 4])
def test_shards_share_the_batches_between_them(records, source, position) -> None:
    whole = draw(records, position + 9, source=source)[position:]

    for shard in range(3):
        share = {"shard_index": shard, "n_shards": 3, "position": position}
        assert_same_batches(draw(records, 3, source=source, **share), whole[shard::3])


@pytest.mark.slow
@each_source
def test_two_workers_draw_the_cells_of_one(records, source) -> None:
    position = 3
    (one,) = draw(records, 1, source=source, position=position)

    halves = [
        draw(
            records,
            1,
            source=source,
            batch_size=4,
            position=2 * position,
            shard_index=worker,
            n_shards=2,
        )[0]
        for worker in range(2)
    ]

    joined = np.concatenate([expression(half) for half in halves])
    assert np.array_equal(joined, expression(one))


@each_source
def test_batch_larger_than_the_data_set_is_full(records, source) -> None:
    expected = training_rows(records)
    batch_size = 2 * len(expected) + 1

    (batch,) = draw(records, 1, source=source, batch_size=batch_size)

    rows = rows_of(records, [batch])
    assert sorted(rows[: len(expected)]) == expected
    assert sorted(rows[len(expected) : -1]) == expected


@each_source
def test_shapes_are_static(records, source) -> None:
    element = training_batches(
        records.folder, records.manifest, batch_size=8, seed=0, source=source
    ).element_spec

    assert element == CellBatch(
        features={"rna": tf.TensorSpec((8, records.cells.n_vars), tf.float32)},
        library_size={"rna": tf.TensorSpec((8,), tf.float32)},
        covariates={"cluster": tf.TensorSpec((8,), tf.int32)},
    )


@pytest.fixture(scope="module")
def multiome(tmp_path_factory: pytest.TempPathFactory) -> RecordsFolder:
    return make_records(tmp_path_factory.mktemp("multiome") / "records", n_peaks=47)


@each_source
def test_batch_holds_both_modalities_of_its_cells(multiome, source) -> None:
    drawn = draw(multiome, 6, source=source)

    rows = rows_of(multiome, drawn)
    peaks = multiome.atac.X.toarray()[rows]
    found = np.concatenate([batch.features["atac"] for batch in drawn])
    assert found.dtype == np.float32
    assert np.array_equal(found, peaks)
    sizes = np.concatenate([batch.library_size["atac"] for batch in drawn])
    assert sizes.dtype == np.float32
    assert np.array_equal(sizes, peaks.sum(axis=1))
    rna_sizes = np.concatenate([batch.library_size["rna"] for batch in drawn])
    assert np.array_equal(rna_sizes, multiome.cells.X[rows].sum(axis=1).A1)


@each_source
def test_shapes_of_both_modalities_are_static(multiome, source) -> None:
    element = training_batches(
        multiome.folder, multiome.manifest, batch_size=8, seed=0, source=source
    ).element_spec

    assert element.features == {
        "rna": tf.TensorSpec((8, 30), tf.float32),
        "atac": tf.TensorSpec((8, 47), tf.float32),
    }
    assert element.library_size == {
        name: tf.TensorSpec((8,), tf.float32) for name in ("rna", "atac")
    }


@each_source
def test_order_of_cells_is_the_same_with_a_second_modality(
    records, multiome, source
) -> None:
    of_one, of_both = (
        rows_of(folder, draw(folder, 9, source=source))
        for folder in (records, multiome)
    )

    assert of_one.tolist() == of_both.tolist()


def test_cells_in_order_are_those_of_the_files_one_after_the_other(records) -> None:
    place = (records.folder, records.manifest, "train")
    (expected,) = evaluation_batches(*place, batch_size=999)
    batches = list(cells_in_order(*place, batch_size=4))
    assert max(len(batch.library_size["rna"]) for batch in batches) <= 4
    for index, field in enumerate(expected):
        for name, of in field.items():
            found = tf.concat([batch[index][name] for batch in batches], axis=0)
            np.testing.assert_array_equal(found, of)


def test_evaluation_batches_hold_both_modalities(multiome) -> None:
    (batch,) = evaluation_batches(
        multiome.folder, multiome.manifest, "valid", batch_size=99
    )

    rows = rows_of(multiome, [batch])
    assert np.array_equal(batch.features["atac"], multiome.atac.X.toarray()[rows])


def test_memory_of_both_modalities_is_counted(multiome, monkeypatch) -> None:
    rows = training_rows(multiome)
    n_values = multiome.cells.X[rows].nnz + multiome.atac.X[rows].nnz
    needed = 8 * n_values / memory.MEMORY_SHARE
    chosen = []
    for available in (needed * 1.01, needed * 0.99):
        monkeypatch.setattr(memory, "_available_bytes", lambda n=available: n)
        chosen.append(choose_data_source(multiome.folder, multiome.manifest, "auto"))

    assert chosen == ["memory", "disk"]


def test_memory_order_mixes_cells_of_all_files(records) -> None:
    """The mean place of a row over many epochs is the middle, within 5 errors."""
    n_cells, n_epochs = len(training_rows(records)), 400
    drawn = draw(records, n_epochs, source="memory", batch_size=n_cells)

    places = np.argsort([rows_of(records, [batch]) for batch in drawn], axis=1)

    standard_error = np.sqrt((n_cells**2 - 1) / 12 / n_epochs)
    assert np.abs(places.mean(axis=0) - (n_cells - 1) / 2).max() < 5 * standard_error


def test_disk_order_shuffles_the_files_and_the_cells_of_each(records) -> None:
    files = split_files(records.folder, records.manifest, "train")
    row_of = {barcode: row for row, barcode in enumerate(records.cells.obs_names)}
    rows_in = [
        [row_of[barcode] for barcode in read_shard(file, records.manifest).barcodes]
        for file in files
    ]
    file_of = {row: file for file, rows in enumerate(rows_in) for row in rows}
    n_cells = len(training_rows(records))

    epochs = [
        rows_of(records, [epoch]).tolist()
        for epoch in draw(records, 2, source="disk", batch_size=n_cells)
    ]

    read = [[file for file, _ in groupby(map(file_of.get, rows))] for rows in epochs]
    within = [sorted(rows, key=file_of.get) for rows in epochs]
    for order in read:
        assert sorted(order) == sorted(set(file_of.values()))
    assert read[0] != read[1]
    assert within[0] != within[1]
    assert within[0] != list(chain.from_iterable(rows_in))


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_evaluation_batches_hold_a_split_once_in_record_order(records, split) -> None:
    files = split_files(records.folder, records.manifest, split)
    barcodes = [
        barcode
        for file in files
        for barcode in read_shard(file, records.manifest).barcodes
    ]

    drawn = list(
        evaluation_batches(records.folder, records.manifest, split, batch_size=4)
    )

    rows = rows_of(records, drawn)
    assert records.cells.obs_names[rows].tolist() == barcodes
    assert sorted(barcodes) == sorted(
        records.cells.obs_names[records.cells.obs["split"] == split]
    )
    sizes = [len(expression(batch)) for batch in drawn]
    assert set(sizes[:-1]) == {4}
    assert sizes[-1] == (len(barcodes) - 1) % 4 + 1
    labels = np.concatenate([batch.covariates["cluster"] for batch in drawn])
    assert np.array_equal(labels, records.cells.obs["cluster"].cat.codes.iloc[rows])


def test_library_size_of_normalized_records_is_the_stored_total(tmp_path: Path) -> None:
    records = make_records(tmp_path, record_values="normalized")
    (file,) = split_files(tmp_path, records.manifest, "valid")

    (batch,) = evaluation_batches(tmp_path, records.manifest, "valid", batch_size=99)

    totals = read_shard(file, records.manifest).count_no
    assert set(totals) <= {999, 1000}
    assert np.array_equal(batch.library_size["rna"], totals)
    sums = expression(batch).sum(axis=1)
    np.testing.assert_allclose(sums, records.manifest.target_library_size, rtol=1e-5)


@each_source
def test_library_size_of_fractional_counts_is_their_exact_total(
    tmp_path: Path, records, source
) -> None:
    """The records store totals as integers, which would not do."""
    schema = RecordSchema.of(records.manifest)
    for file in records.manifest.shards:
        cells = read_shard(records.folder / file, records.manifest)
        cells = dataclasses.replace(cells, values=cells.values * np.float32(0.3))
        write_shard(tmp_path / file, [cells], schema)

    (batch,) = draw(records._replace(folder=tmp_path), 1, source=source)

    totals = batch.library_size["rna"].numpy()
    np.testing.assert_allclose(totals, expression(batch).sum(axis=1), rtol=1e-5)
    assert np.abs(totals - np.rint(totals)).max() > 0.05


@each_source
def test_folder_of_the_reference_is_trained_and_evaluated_on(
    reference_dir: Path, source
) -> None:
    folder = reference_dir / "scgan_TF_records"
    expected = stored_arrays(folder / "expected.npz")
    manifest = manifest_of_reference(expected)
    is_train, is_valid = (expected["split"] == split for split in ("train", "valid"))

    epoch = training_batches(
        folder, manifest, batch_size=int(is_train.sum()), seed=0, source=source
    )
    (batch,) = epoch.take(1)
    n_valid = int(is_valid.sum())
    (valid,) = evaluation_batches(folder, manifest, "valid", batch_size=n_valid)

    matrix = expected["X"]
    assert np.array_equal(sorted_rows(expression(batch)), sorted_rows(matrix[is_train]))
    assert np.array_equal(expression(valid), matrix[is_valid])
    assert np.array_equal(valid.covariates["cluster"], expected["cluster"][is_valid])


def sorted_rows(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.lexsort(matrix.T)]


def test_data_source_is_memory_when_the_cells_fit(records, monkeypatch, caplog) -> None:
    caplog.set_level("INFO", "cellgan")
    chosen = []
    training = records.cells.X[training_rows(records)]
    needed = 8 * training.nnz / memory.MEMORY_SHARE
    for available in (needed * 1.01, needed * 0.99):
        monkeypatch.setattr(memory, "_available_bytes", lambda n=available: n)
        chosen.append(choose_data_source(records.folder, records.manifest, "auto"))

    assert chosen == ["memory", "disk"]
    assert "batches come from disk" in caplog.text


@each_source
def test_data_source_is_the_requested_one(records, source) -> None:
    assert choose_data_source(records.folder, records.manifest, source) == source


def test_available_memory_is_that_of_the_tightest_control_group(tmp_path) -> None:
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    (job / "memory.max").write_text("max\n")
    (job / "memory.current").write_text("100\n")
    (job.parent / "memory.max").write_text("5000\n")
    (job.parent / "memory.current").write_text("2000\n")

    left = list(memory._control_group_bytes("0::/slurm/job_7\n", tmp_path))

    assert left == [3000]
    assert 2**20 < memory._available_bytes() < 2**50


def open_everything(folder: Path, records: RecordsFolder) -> Iterator[None]:
    """Open batches in each way there is; every step must fail."""
    for source in SOURCES:
        with pytest.raises(DataError) as error:
            training_batches(
                folder, records.manifest, batch_size=2, seed=0, source=source
            )
        yield str(error.value)
    with pytest.raises(DataError) as error:
        evaluation_batches(folder, records.manifest, "train", batch_size=2)
    yield str(error.value)


def test_damaged_file_is_named(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    file = tmp_path / "train-4.tfrecords"
    file.write_bytes(file.read_bytes()[:-7])

    for message in open_everything(tmp_path, records):
        assert "train-4.tfrecords: cannot be read after" in message
        assert message.endswith("Run --process --overwrite.")


def test_missing_file_is_named(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    (tmp_path / "train-4.tfrecords").unlink()

    for message in open_everything(tmp_path, records):
        assert "train-4.tfrecords is missing. Run --process --overwrite." in message


def test_file_of_another_run_is_named(tmp_path: Path) -> None:
    records = make_records(tmp_path)
    other = make_records(tmp_path / "other", n_cells=200)
    (other.folder / "train-4.tfrecords").replace(tmp_path / "train-4.tfrecords")

    for message in open_everything(tmp_path, records):
        assert "train-4.tfrecords: " in message
        assert "the file is of another run. Run --process --overwrite." in message


def test_empty_training_split_is_refused_with_advice(tmp_path: Path) -> None:
    records = make_records(tmp_path, n_cells=14)

    for message in open_everything(tmp_path, records):
        assert 'no cells in the split "train". Lower split.valid_cells' in message


def test_empty_validation_split_is_refused_with_advice(tmp_path: Path) -> None:
    records = make_records(tmp_path, n_valid=0)

    with pytest.raises(DataError, match=r'split "valid". Raise split.valid_cells'):
        evaluation_batches(tmp_path, records.manifest, "valid", batch_size=2)


def test_second_covariate_reaches_the_batch(tmp_path: Path, records) -> None:
    vocabulary = records.manifest.label_vocabulary
    covariates = {"cluster": vocabulary, "donor": vocabulary}
    manifest = dataclasses.replace(records.manifest, covariates=covariates)
    schema = RecordSchema.of(manifest)
    for file in manifest.shards:
        cells = read_shard(records.folder / file, records.manifest)
        donor = (cells.codes["cluster"] + 1) % len(vocabulary)
        codes = {**cells.codes, "donor": donor}
        write_shard(tmp_path / file, [dataclasses.replace(cells, codes=codes)], schema)

    (batch,) = evaluation_batches(tmp_path, manifest, "valid", batch_size=99)

    expected = (batch.covariates["cluster"].numpy() + 1) % len(vocabulary)
    assert np.array_equal(batch.covariates["donor"], expected)


def prepared(records: RecordsFolder) -> CellBatch:
    """Return the training cells as arrays, in record order."""
    (cells,) = evaluation_batches(
        records.folder, records.manifest, "train", batch_size=10_000
    )
    return tf.nest.map_structure(lambda values: values.numpy(), cells)


@pytest.mark.parametrize(("position", "n_shards"), [(0, 1), (13, 1), (5, 3)])
def test_prepared_batches_are_those_of_the_records_in_memory(
    records, position, n_shards
) -> None:
    cells = prepared(records)
    for shard_index in range(n_shards):
        share = {
            "position": position,
            "shard_index": shard_index,
            "n_shards": n_shards,
        }
        expected = draw(records, 20, source="memory", **share)

        found = list(islice(prepared_batches(cells, batch_size=8, seed=5, **share), 20))

        assert_same_batches(found, expected)


def test_prepared_batches_hold_features_of_any_shape_with_their_cells() -> None:
    n_cells = 11
    numbers = np.arange(n_cells, dtype=np.float32)
    cells = CellBatch(
        features={"latent": tf.constant(numbers[:, None] + [0.0, 0.5], tf.float32)},
        library_size={"rna": numbers, "atac": 10 * numbers},
        covariates={"donor": numbers.astype(np.int32)},
    )

    drawn = prepared_batches(cells, batch_size=25, seed=0)

    assert drawn.element_spec == CellBatch(
        features={"latent": tf.TensorSpec((25, 2), tf.float32)},
        library_size={
            name: tf.TensorSpec((25,), tf.float32) for name in ("rna", "atac")
        },
        covariates={"donor": tf.TensorSpec((25,), tf.int32)},
    )
    (batch,) = drawn.take(1)
    rows = batch.covariates["donor"].numpy()
    assert sorted(rows[:n_cells]) == sorted(rows[n_cells:22]) == list(range(n_cells))
    assert np.array_equal(batch.features["latent"], rows[:, None] + [0.0, 0.5])
    assert np.array_equal(batch.library_size["rna"], rows)
    assert np.array_equal(batch.library_size["atac"], 10 * rows)


def test_prepared_batches_of_another_seed_have_another_order(records) -> None:
    cells = prepared(records)

    first, other = (
        rows_of(records, list(prepared_batches(cells, batch_size=8, seed=seed).take(3)))
        for seed in (5, 6)
    )

    assert first.tolist() != other.tolist()


@pytest.mark.parametrize(("n_sizes", "message"), [(3, r"\[3, 4\]"), (0, r"\[0, 4\]")])
def test_prepared_cells_of_unequal_numbers_are_refused(n_sizes, message) -> None:
    cells = CellBatch({"latent": np.zeros((4, 2))}, {"rna": np.ones(n_sizes)}, {})

    with pytest.raises(ValueError, match=f"{message} cells, expected one number"):
        prepared_batches(cells, batch_size=2, seed=0)


@each_source
def test_batches_are_drawn_inside_a_compiled_loop_with_one_trace(
    records, source
) -> None:
    n_traces = 0

    @tf.function
    def total_of(drawn: Iterator[CellBatch], n_batches: tf.Tensor) -> tf.Tensor:
        nonlocal n_traces
        n_traces += 1
        total = tf.zeros(())
        for _ in tf.range(n_batches):
            total += tf.reduce_sum(next(drawn).features["rna"])
        return total

    iterator = iter(
        training_batches(
            records.folder, records.manifest, batch_size=8, seed=5, source=source
        )
    )
    totals = [float(total_of(iterator, tf.constant(n))) for n in (3, 2)]

    expected = [expression(batch).sum() for batch in draw(records, 5, source=source)]
    assert totals == [sum(expected[:3]), sum(expected[3:])]
    assert n_traces == 1


TWO_DEVICES = """
    import sys
    from pathlib import Path

    import numpy as np
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )

    from cellgan.data.batches import training_batches
    from tests.records_folder import make_records

    records = make_records(Path(sys.argv[1]))
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def batches_from(source, batch_size):
        return training_batches(
            records.folder, records.manifest, batch_size=batch_size, seed=5,
            source=source,
        )

    @tf.function
    def cells_of(iterator):
        def of_replica(batch):
            return batch.features["rna"]

        return strategy.run(of_replica, (next(iterator),))

    for source in ("memory", "disk"):
        shared = iter(
            strategy.distribute_datasets_from_function(
                lambda context: batches_from(source, 4)
            )
        )
        whole = iter(batches_from(source, 8))
        for _ in range(20):
            shares = strategy.experimental_local_results(cells_of(shared))
            assert len(shares) == 2
            joined = np.concatenate([share.numpy() for share in shares])
            np.testing.assert_array_equal(joined, next(whole).features["rna"])
"""


@pytest.mark.slow
def test_two_devices_of_one_process_share_each_batch(tmp_path: Path) -> None:
    """Runs in a process of its own, where two devices can be made of one CPU."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_DEVICES), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )

    assert run.returncode == 0, run.stderr
