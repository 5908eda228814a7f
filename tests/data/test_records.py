"""Records are those of the reference, in both directions."""

from __future__ import annotations

import dataclasses
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgan.data.records import (
    AtacRecords,
    CellRecords,
    RecordSchema,
    decode_examples,
    encode_examples,
)
from cellgan.data.shards import RECORD_FILES, concatenate, read_shard, split_files
from cellgan.errors import DataError
from cellgan.experiment import reference_manifest
from tests.manifests import make_manifest
from tests.records_folder import write_records, write_shard
from tests.stored import stored_arrays

N_GENES = 2**14 + 100
N_PEAKS = 2**14 + 200
SCHEMA = RecordSchema(N_GENES, "cell type", {"cell type": 3, "donor": 200})
MULTIOME = SCHEMA._replace(n_peaks=N_PEAKS)


@st.composite
def sparse_rows(draw: st.DrawFn, n_cells: int, n_columns: int) -> sp.csr_matrix:
    """Rows with few values, some with none, at positions of 1 to 3 bytes."""
    positions = st.sampled_from([0, 127, 128, 2**14 - 1, 2**14]) | st.integers(
        0, n_columns - 1
    )
    value = st.floats(0.0, 1e6, width=32, exclude_min=True)
    rows = [draw(st.dictionaries(positions, value, max_size=6)) for _ in range(n_cells)]
    ordered = [sorted(row.items()) for row in rows]
    return sp.csr_matrix(
        (
            np.array([v for row in ordered for _, v in row], np.float32),
            np.array([p for row in ordered for p, _ in row], np.int32),
            np.cumsum([0, *map(len, ordered)]),
        ),
        shape=(n_cells, n_columns),
    )


@st.composite
def cell_records(draw: st.DrawFn, n_peaks: int = 0) -> CellRecords:
    n_cells = draw(st.integers(1, 5))

    def each(elements: st.SearchStrategy[int]) -> np.ndarray:
        size = {"min_size": n_cells, "max_size": n_cells}
        return np.array(draw(st.lists(elements, **size)), dtype=np.int64)

    atac = None
    if n_peaks:
        peaks = draw(sparse_rows(n_cells, n_peaks))
        atac = AtacRecords(peaks, each(st.integers(0, 2**40)))
    return CellRecords(
        values=draw(sparse_rows(n_cells, N_GENES)),
        barcodes=[draw(st.text(max_size=8)) for _ in range(n_cells)],
        genes_no=each(st.integers(0, 2**20)),
        count_no=each(st.integers(0, 2**40)),
        codes={
            "cell type": each(st.integers(0, 2)).astype(np.int32),
            "donor": each(st.integers(0, 199)).astype(np.int32),
        },
        atac=atac,
    )


def example_of(cells: CellRecords, row: int) -> tf.train.Example:
    """Build a record as the reference does: a message object, from the dense row."""
    values = cells.values[row].toarray().ravel()
    (indices,) = values.nonzero()
    label = cells.codes["cell type"][row]

    def numbers(*value: int) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=value))

    features = {
        "indices": numbers(*indices),
        "values": tf.train.Feature(
            float_list=tf.train.FloatList(value=values[indices])
        ),
        "barcode": tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[cells.barcodes[row].encode()])
        ),
        "genes_no": numbers(cells.genes_no[row]),
        "count_no": numbers(cells.count_no[row]),
        "cluster_1hot": numbers(*np.eye(3, dtype=int)[label]),
        "cluster_int": numbers(label),
        "covariate_donor": numbers(cells.codes["donor"][row]),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


def assert_equal(found: CellRecords, expected: CellRecords) -> None:
    assert found.values.dtype == np.float32
    assert np.array_equal(found.values.toarray(), expected.values.toarray())
    assert list(found.barcodes) == list(expected.barcodes)
    assert np.array_equal(found.genes_no, expected.genes_no)
    assert np.array_equal(found.count_no, expected.count_no)
    assert found.codes.keys() == expected.codes.keys()
    for name, codes in expected.codes.items():
        assert np.array_equal(found.codes[name], codes)


def assert_equal_atac(found: CellRecords, expected: CellRecords) -> None:
    assert found.atac.values.dtype == np.float32
    assert found.atac.values.shape == expected.atac.values.shape
    assert (found.atac.values != expected.atac.values).nnz == 0
    assert np.array_equal(found.atac.count_no, expected.atac.count_no)


def some_cells(n_cells: int = 4, n_genes: int = 6, n_labels: int = 2) -> CellRecords:
    counts = np.arange(n_cells * n_genes, dtype=np.float32).reshape(n_cells, n_genes)
    return CellRecords(
        values=sp.csr_matrix(counts % 4),
        barcodes=[f"cell {row}" for row in range(n_cells)],
        genes_no=np.arange(n_cells),
        count_no=np.arange(n_cells) + 10,
        codes={"cluster": (np.arange(n_cells) % n_labels).astype(np.int32)},
    )


@settings(deadline=None, max_examples=50)
@given(cell_records())
def test_encoded_cell_is_the_example_that_the_reference_builds(
    cells: CellRecords,
) -> None:
    encoded = encode_examples(cells, SCHEMA)

    assert [tf.train.Example.FromString(record) for record in encoded] == [
        example_of(cells, row) for row in range(len(cells))
    ]


@settings(deadline=None, max_examples=50)
@given(cell_records())
def test_example_that_the_reference_builds_is_decoded_to_the_same_cells(
    cells: CellRecords,
) -> None:
    records = [example_of(cells, row).SerializeToString() for row in range(len(cells))]

    assert_equal(decode_examples(records, SCHEMA), cells)


@settings(deadline=None, max_examples=50)
@given(cell_records())
def test_decoding_inverts_encoding(cells: CellRecords) -> None:
    assert_equal(decode_examples(encode_examples(cells, SCHEMA), SCHEMA), cells)


@settings(deadline=None, max_examples=50)
@given(cell_records(N_PEAKS))
def test_decoding_inverts_encoding_of_both_modalities(cells: CellRecords) -> None:
    found = decode_examples(encode_examples(cells, MULTIOME), MULTIOME)

    assert_equal(found, cells)
    assert_equal_atac(found, cells)


@settings(deadline=None, max_examples=20)
@given(cell_records(N_PEAKS))
def test_peaks_are_features_beside_those_of_the_reference(cells: CellRecords) -> None:
    examples = map(tf.train.Example.FromString, encode_examples(cells, MULTIOME))

    for row, example in enumerate(examples):
        found = dict(example.features.feature)
        peaks = cells.atac.values[row]
        assert found.pop("atac_indices").int64_list.value == peaks.indices.tolist()
        assert found.pop("atac_values").float_list.value == peaks.data.tolist()
        total = int(cells.atac.count_no[row])
        assert found.pop("atac_count_no").int64_list.value == [total]
        assert found == dict(example_of(cells, row).features.feature)


def test_record_of_rna_alone_is_the_same_as_ever() -> None:
    """Bytes that were written before there was ATAC."""
    cells = CellRecords(
        values=sp.csr_matrix(np.array([[0, 2, 0, 1]], np.float32)),
        barcodes=["AC-1"],
        genes_no=np.array([300]),
        count_no=np.array([3]),
        codes={"cluster": np.array([1], np.int32)},
    )

    (record,) = encode_examples(cells, RecordSchema(4, "cluster", {"cluster": 2}))

    assert record == (
        b"\n\x95\x01\n\x11\n\x07indices\x12\x06\x1a\x04\n\x02\x01\x03"
        b"\n\x16\n\x06values\x12\x0c\x12\n\n\x08\x00\x00\x00@\x00\x00\x80?"
        b"\n\x13\n\x07barcode\x12\x08\n\x06\n\x04AC-1"
        b"\n\x12\n\x08genes_no\x12\x06\x1a\x04\n\x02\xac\x02"
        b"\n\x11\n\x08count_no\x12\x05\x1a\x03\n\x01\x03"
        b"\n\x16\n\x0ccluster_1hot\x12\x06\x1a\x04\n\x02\x00\x01"
        b"\n\x14\n\x0bcluster_int\x12\x05\x1a\x03\n\x01\x01"
    )


def test_blocks_of_both_modalities_are_joined_in_order(tmp_path: Path) -> None:
    blocks = [
        dataclasses.replace(
            some_cells(n_cells),
            atac=AtacRecords(
                sp.csr_matrix(np.full((n_cells, 9), n_cells, np.float32)),
                np.full(n_cells, 9 * n_cells),
            ),
        )
        for n_cells in (2, 5)
    ]
    manifest = dataclasses.replace(
        make_manifest(),
        features={"rna": ("gene",) * 6, "atac": ("peak",) * 9},
    )
    path = tmp_path / "train-0.tfrecords"

    write_shard(path, blocks, RecordSchema.of(manifest))

    found = read_shard(path, manifest)
    assert_equal(found, concatenate(blocks))
    assert found.atac.count_no.tolist() == [18] * 2 + [45] * 5
    assert found.atac.values.toarray().tolist() == [[2.0] * 9] * 2 + [[5.0] * 9] * 5


@pytest.mark.parametrize(
    ("n_peaks", "message"),
    [(9, 'no feature "atac_indices": .* another run'), (3, "peak has number 3, ")],
)
def test_peaks_that_are_not_those_of_the_data_set_are_refused(
    n_peaks: int, message: str
) -> None:
    schema = RecordSchema(6, "cluster", {"cluster": 2}, 4)
    cells = some_cells(1)
    atac = AtacRecords(sp.csr_matrix(np.ones((1, 4), np.float32)), np.array([4]))
    records = {
        9: encode_examples(cells, schema),
        3: encode_examples(dataclasses.replace(cells, atac=atac), schema),
    }

    with pytest.raises(DataError, match=message):
        decode_examples(records[n_peaks], schema._replace(n_peaks=n_peaks))


def test_feature_that_is_not_needed_is_ignored() -> None:
    narrow = SCHEMA._replace(n_categories={"cell type": 3})
    cells = some_cells(n_genes=N_GENES)
    codes = {"cell type": cells.codes["cluster"], "donor": cells.codes["cluster"]}
    cells = dataclasses.replace(cells, codes=codes)

    found = decode_examples(encode_examples(cells, SCHEMA), narrow)

    assert list(found.codes) == ["cell type"]


def test_folder_of_the_reference_is_read_exactly(reference_dir: Path) -> None:
    folder = reference_dir / "scgan_TF_records"
    expected = stored_arrays(folder / "expected.npz")
    manifest = manifest_of_reference(expected)
    rows = {barcode: row for row, barcode in enumerate(expected["barcode"])}

    files = {
        split: split_files(folder, manifest, split)
        for split in np.unique(expected["split"])
    }
    shards = {
        file.name: read_shard(file, manifest)
        for file in chain.from_iterable(files.values())
    }

    assert set(shards) == set(RECORD_FILES)
    for split, names in files.items():
        cells = concatenate([shards[file.name] for file in names])
        at = np.array([rows[barcode] for barcode in cells.barcodes])
        assert sorted(at) == np.flatnonzero(expected["split"] == split).tolist()
        assert np.array_equal(cells.values.toarray(), expected["X"][at])
        assert np.array_equal(cells.codes["cluster"], expected["cluster"][at])
        assert np.array_equal(cells.genes_no, expected["n_genes"][at])
        assert np.array_equal(cells.count_no, expected["count_no"][at])
    for shard in range(10):
        cells = shards[f"train-{shard}.tfrecords"]
        at = [rows[barcode] for barcode in cells.barcodes]
        assert at == np.flatnonzero(expected["train_shard"] == shard).tolist()


def manifest_of_reference(expected):
    per_split = {
        f"{split}_cells_per_cluster": {
            str(label): int(
                ((expected["split"] == split) & (expected["cluster"] == label)).sum()
            )
            for label in np.unique(expected["cluster"])
        }
        for split in ("train", "valid", "test")
    }
    block = {
        "genes_no": expected["X"].shape[1],
        "scale": {"scale_value": int(expected["lib_size"])},
        **per_split,
    }
    return reference_manifest(block, "parameters.json")


def test_written_file_is_parsed_by_the_schema_of_the_reference(tmp_path: Path) -> None:
    cells = some_cells(n_cells=7, n_labels=3)
    path = tmp_path / "train-0.tfrecords"
    write_shard(path, [cells], RecordSchema(6, "cluster", {"cluster": 3}))
    schema = {
        "scg": tf.io.SparseFeature(
            index_key="indices", value_key="values", dtype=tf.float32, size=6
        ),
        "barcode": tf.io.FixedLenFeature([], tf.string),
        "genes_no": tf.io.FixedLenFeature([], tf.int64),
        "count_no": tf.io.FixedLenFeature([], tf.int64),
        "cluster_1hot": tf.io.FixedLenFeature([3], tf.int64),
        "cluster_int": tf.io.FixedLenFeature([], tf.int64),
    }

    parsed = [
        tf.io.parse_single_example(record, schema)
        for record in tf.data.TFRecordDataset(str(path), compression_type="GZIP")
    ]

    dense = [tf.sparse.to_dense(cell["scg"]) for cell in parsed]
    assert np.array_equal(dense, cells.values.toarray())
    assert [cell["barcode"].numpy().decode() for cell in parsed] == cells.barcodes
    assert [int(cell["genes_no"]) for cell in parsed] == cells.genes_no.tolist()
    assert [int(cell["count_no"]) for cell in parsed] == cells.count_no.tolist()
    codes = cells.codes["cluster"]
    assert [int(cell["cluster_int"]) for cell in parsed] == codes.tolist()
    one_hot = [cell["cluster_1hot"].numpy() for cell in parsed]
    assert np.array_equal(one_hot, np.eye(3)[codes])


def test_read_shard_joins_blocks_in_order(tmp_path: Path) -> None:
    cells = some_cells(n_cells=9)
    manifest = make_manifest()
    path = tmp_path / "train-0.tfrecords"
    blocks = [take(cells, slice(0, 2)), take(cells, slice(2, 9))]

    write_shard(path, blocks, RecordSchema.of(manifest))

    assert_equal(read_shard(path, manifest), cells)


def take(cells: CellRecords, rows: slice) -> CellRecords:
    return CellRecords(
        values=cells.values[rows],
        barcodes=cells.barcodes[rows],
        genes_no=cells.genes_no[rows],
        count_no=cells.count_no[rows],
        codes={name: codes[rows] for name, codes in cells.codes.items()},
    )


def with_feature(name: str, values: list[int]) -> bytes:
    """Return record of a cell whose feature `name` is another, or missing."""
    (record,) = encode_examples(
        some_cells(n_cells=1), RecordSchema(6, "cluster", {"cluster": 2})
    )
    example = tf.train.Example.FromString(record)
    example.features.feature[name].Clear()
    example.features.feature[name].int64_list.value.extend(values)
    return example.SerializeToString()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"no message", "record 1 is not that of a cell"),
        (tf.train.Example().SerializeToString(), "record 1 is not that of a cell"),
        (
            tf.train.Example(
                features=tf.train.Features(feature={"image": tf.train.Feature()})
            ).SerializeToString(),
            'record 1 has no feature "indices": the file is of another run',
        ),
        (
            with_feature("indices", [1, 2, 3, 6]),
            "record 1: gene has number 6, expected 0 to 5: the file is of another run",
        ),
        (with_feature("indices", [1, 2]), "record 1 has lists of unequal length"),
        (with_feature("count_no", [1, 2]), "record 1 has lists of unequal length"),
        (with_feature("count_no", []), "record 1 has lists of unequal length"),
        (
            with_feature("cluster_int", [2]),
            'record 1: "cluster" has number 2, expected 0 to 1: the file is of another',
        ),
        (with_feature("cluster_int", [-1]), 'record 1: "cluster" has number -1'),
    ],
)
def test_read_shard_names_file_and_record_of_what_is_no_cell_of_this_data_set(
    tmp_path: Path, bad: bytes, message: str
) -> None:
    path = tmp_path / "train-0.tfrecords"
    good = encode_examples(some_cells(3), RecordSchema(6, "cluster", {"cluster": 2}))
    write_records(path, [[good[0], bad, *good[1:]]])

    with pytest.raises(DataError, match=re.escape(f"{path}: {message}")):
        read_shard(path, make_manifest())


def test_read_shard_refuses_a_file_with_another_number_of_cells(
    tmp_path: Path,
) -> None:
    manifest = dataclasses.replace(make_manifest(), shards={"test.tfrecords": 5})
    path = tmp_path / "test.tfrecords"
    write_shard(path, [some_cells(4)], RecordSchema.of(manifest))

    with pytest.raises(
        DataError, match=r"4 cells, the manifest says 5: .* another run"
    ):
        read_shard(path, manifest)


def test_read_shard_names_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "test.tfrecords"
    write_shard(path, [some_cells()], RecordSchema.of(make_manifest()))
    path.write_bytes(path.read_bytes()[:-20])

    with pytest.raises(
        DataError, match=r"test.tfrecords: cannot be read after \d+ rec"
    ):
        read_shard(path, make_manifest())


def test_split_files_names_missing_files(tmp_path: Path) -> None:
    shards = {"train-0.tfrecords": 1, "train-1.tfrecords": 2, "test.tfrecords": 0}
    manifest = dataclasses.replace(make_manifest(), shards=shards)
    (tmp_path / "train-0.tfrecords").touch()

    with pytest.raises(DataError, match=r"train-1.tfrecords is missing. Run --process"):
        split_files(tmp_path, manifest, "train")
    with pytest.raises(DataError, match='any file with "valid" in its name is missing'):
        split_files(tmp_path, manifest, "valid")


def test_write_shard_says_so_when_the_disk_is_full() -> None:
    full = Path("/dev/full")

    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        write_shard(full, [some_cells()], RecordSchema.of(make_manifest()))
