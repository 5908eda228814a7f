"""Bytes on disk: varints, messages and frames, against TensorFlow's own."""

from __future__ import annotations

import gzip
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgan.data.tfrecords import (
    encode_varint,
    pack_varints,
    parse_example,
    read_records,
    unpack_varints,
)
from tests.records_folder import write_records

LIMIT = 2**21 + 10
# The last number of each length and the first of the next.
BOUNDARIES = [0, 127, 128, 2**14 - 1, 2**14, 2**21 - 1, 2**21]
numbers_below_limit = st.lists(
    st.sampled_from(BOUNDARIES) | st.integers(0, LIMIT - 1), max_size=20
)


@pytest.mark.parametrize("number", [*BOUNDARIES, 2**62])
def test_varint_is_that_of_protobuf(number: int) -> None:
    message = tf.train.Int64List(value=[number]).SerializeToString()

    assert message == b"\x0a" + bytes([len(message) - 2]) + encode_varint(number)


@settings(deadline=None)
@given(st.lists(numbers_below_limit, max_size=6))
def test_packed_numbers_are_unpacked_to_the_same(lists: list[list[int]]) -> None:
    joined = np.array([*chain.from_iterable(lists)], dtype=np.int32)
    starts = np.cumsum([0, *map(len, lists)])

    packed, byte_starts = pack_varints(joined, LIMIT)
    ends = byte_starts[starts].tolist()
    pieces = [packed[ends[i] : ends[i + 1]] for i in range(len(lists))]
    numbers, found_starts = unpack_varints(pieces)

    assert pieces == [b"".join(map(encode_varint, numbers)) for numbers in lists]
    assert numbers.tolist() == joined.tolist()
    assert found_starts.tolist() == starts.tolist()


@pytest.mark.parametrize("number", [2**28 - 1, 2**31 - 1, 2**31, 2**40 + 5])
def test_unpack_varints_reads_large_numbers(number: int) -> None:
    numbers, _ = unpack_varints([encode_varint(number), encode_varint(3)])

    assert numbers.tolist() == [number, 3]


def test_parse_example_refuses_a_record_that_is_cut_off_anywhere() -> None:
    numbers = tf.train.Feature(int64_list=tf.train.Int64List(value=range(200)))
    features = tf.train.Features(feature={"numbers": numbers})
    record = tf.train.Example(features=features).SerializeToString()

    assert parse_example(record).keys() == {b"numbers"}
    for end in range(len(record)):
        with pytest.raises((IndexError, ValueError)):
            parse_example(record[:end])


def test_written_file_passes_the_checksums_of_tensorflow(tmp_path: Path) -> None:
    path = tmp_path / "some.tfrecords"
    records = [b"", b"a", b"record " * 5000]

    write_records(path, [records[:2], [], records[2:]])

    read = tf.data.TFRecordDataset(str(path), compression_type="GZIP")
    assert [record.numpy() for record in read] == records


def test_read_records_reads_what_tensorflow_wrote(tmp_path: Path) -> None:
    path = tmp_path / "some.tfrecords"
    # Does not compress: several chunks, with records across their borders.
    noise = np.random.default_rng(0).bytes(900_000)
    records = [noise[:300_001], b"", noise[300_001:500_000], noise[500_000:]]
    with tf.io.TFRecordWriter(str(path), options="GZIP") as writer:
        for record in records:
            writer.write(record)

    assert [*chain.from_iterable(read_records(path))] == records


def test_read_records_reads_files_joined_by_concatenation(tmp_path: Path) -> None:
    write_records(tmp_path / "a", [[b"first"]])
    write_records(tmp_path / "b", [[b"second"]])
    joined = tmp_path / "joined"
    joined.write_bytes((tmp_path / "a").read_bytes() + (tmp_path / "b").read_bytes())

    assert [*chain.from_iterable(read_records(joined))] == [b"first", b"second"]


def test_file_without_records_is_read_as_such(tmp_path: Path) -> None:
    write_records(tmp_path / "none", [])

    assert [*chain.from_iterable(read_records(tmp_path / "none"))] == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "it is cut off"),
        (lambda data: b"", "it is cut off"),
        (lambda data: gzip.decompress(data), "not a sound GZIP file"),
        (lambda data: data + b"rubbish" * 9, "not a sound GZIP file"),
        (
            lambda data: gzip.compress(gzip.decompress(data)[:-1]),
            "it ends in the middle of a record",
        ),
        (
            lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
            "not a sound GZIP file",
        ),
    ],
)
def test_read_records_refuses_a_damaged_file(tmp_path: Path, damage, message) -> None:
    path = tmp_path / "some.tfrecords"
    write_records(path, [[bytes(range(256))]])
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ValueError, match=message):
        [*chain.from_iterable(read_records(path))]
