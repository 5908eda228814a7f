"""Protobuf fields and TFRecord files as bytes, without TensorFlow.

Knows nothing of cells. Building one message object per cell costs more than ten times
what joining its bytes does, so messages are written and read here, whole blocks at a
time where numbers are packed.

A message is a sequence of fields; every field met here is a tag byte, a length and
that many bytes. Lengths and integers are varints: seven bits a byte, low ones first,
the top bit set on all bytes but the last. A TFRecord frames each message by its length
and two checksums; the whole file is compressed by GZIP.
"""

from __future__ import annotations

import contextlib
import functools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from isal import isal_zlib

COMPRESSION_LEVEL = 2
"""isal's levels end at 3. Files are as large as those of zlib's level 1, for a sixth of
its time, and 10 % larger than those of zlib's level 6."""
GZIP_WINDOW = 31
CHUNK_BYTES = 1 << 18
LENGTH_FRAME = struct.Struct("<QI")
LENGTH = struct.Struct("<Q")
CHECKSUM = struct.Struct("<I")

# Tags: the field's number and wire type 2, which says that a length follows. In
# ``tf.train.Feature`` the number tells what kind of list the field is.
FIELD_1, FIELD_2, FIELD_3 = b"\x0a", b"\x12", b"\x1a"
BYTES_LIST, FLOAT_LIST, INT64_LIST = FIELD_1, FIELD_2, FIELD_3


def encode_feature(key: bytes, kind: bytes, payload: bytes) -> bytes:
    """Encode one named list of a ``tf.train.Example``.

    Parameters
    ----------
    kind
        `BYTES_LIST`, `FLOAT_LIST` or `INT64_LIST`.
    payload
        The single string, the packed little-endian floats, or the packed varints.
    """
    feature = encode_field(kind, encode_field(FIELD_1, payload))
    return encode_field(
        FIELD_1, encode_field(FIELD_1, key) + encode_field(FIELD_2, feature)
    )


def encode_field(tag: bytes, payload: bytes) -> bytes:
    """Encode one field."""
    return tag + encode_varint(len(payload)) + payload


@functools.lru_cache(maxsize=1 << 16)
def encode_varint(number: int) -> bytes:
    """Encode a non-negative integer."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def pack_varints(
    numbers: npt.NDArray[np.integer], limit: int
) -> tuple[bytes, npt.NDArray[np.int64]]:
    """Encode non-negative integers below `limit`.

    Returns
    -------
    The varints joined, and where each begins: ``(n + 1,)``, the last being the end.
    """
    table, lengths, is_used = _varint_table(limit)
    packed = table.take(numbers, axis=0)[is_used.take(numbers, axis=0)].tobytes()
    starts = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(lengths.take(numbers), out=starts[1:])
    return packed, starts


@functools.lru_cache(maxsize=2)
def _varint_table(
    limit: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Varints of ``0..limit-1``, padded; their lengths; which bytes are no padding."""
    numbers = np.arange(limit)[:, None]
    longest = len(encode_varint(max(limit - 1, 0)))
    place = np.arange(longest)
    lengths = 1 + np.sum(numbers >> 7 * place[1:] > 0, axis=1)
    table = numbers >> 7 * place & 127 | 128 * (place < lengths[:, None] - 1)
    return table.astype(np.uint8), lengths, place < lengths[:, None]


def unpack_varints(
    packed: Sequence[bytes],
) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.int64]]:
    """Decode packed varints.

    Returns
    -------
    All numbers, and where each element of `packed` begins among them: ``(n + 1,)``.
    """
    joined = np.frombuffer(b"".join(packed), np.uint8)
    ends = np.flatnonzero(joined < 128)
    lengths = np.diff(ends, prepend=-1)
    longest = int(lengths.max(initial=1))
    kind = np.int32 if longest < 5 else np.int64
    numbers: npt.NDArray[np.integer[Any]] = joined.take(ends).astype(kind)
    for back in range(1, longest):
        longer = numbers << 7 | joined.take(ends - back) & 127
        numbers = np.where(lengths > back, longer, numbers)
    boundaries = np.cumsum([0, *map(len, packed)])
    return numbers, np.searchsorted(ends, boundaries)


def parse_example(record: bytes) -> dict[bytes, bytes]:
    """Return the payload of each feature of a serialised ``tf.train.Example``.

    Raises
    ------
    ValueError, IndexError
        If the bytes are no such message.
    """
    features = {}
    for entry in _fields(_fields(record)[0]):
        key, feature = _fields(entry)
        # An empty list may be left out, and so may its payload.
        lists = _fields(feature)
        payloads = _fields(lists[0]) if lists else []
        features[key] = payloads[0] if payloads else b""
    return features


def _fields(message: bytes) -> list[bytes]:
    """Split a message whose fields all have a length into their payloads."""
    payloads = []
    position, end = 0, len(message)
    while position < end:
        if message[position] & 7 != 2:
            msg = "a field without a length"
            raise ValueError(msg)
        length = message[position + 1]
        position += 2
        if length > 127:
            length, shift = length & 127, 7
            while message[position] > 127:
                length |= (message[position] & 127) << shift
                position, shift = position + 1, shift + 7
            length |= message[position] << shift
            position += 1
        payloads.append(message[position : position + length])
        position += length
    if position > end:
        msg = "a field that ends after its message"
        raise ValueError(msg)
    return payloads


@contextlib.contextmanager
def open_records(path: Path) -> Iterator[Callable[[Iterable[bytes]], None]]:
    """Open a compressed TFRecord file; yield what appends records to it.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    compressor = isal_zlib.compressobj(COMPRESSION_LEVEL, wbits=GZIP_WINDOW)
    with path.open("wb") as file:

        def write(block: Iterable[bytes]) -> None:
            file.write(compressor.compress(b"".join(map(_frame, block))))

        yield write
        file.write(compressor.flush())


def _frame(record: bytes) -> bytes:
    length = LENGTH.pack(len(record))
    head, tail = _masked_checksum(length), _masked_checksum(record)
    return b"".join((length, head, record, tail))


def _masked_checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def read_records(path: Path) -> Iterator[list[bytes]]:
    """Yield the records of a compressed TFRecord file, some megabytes at a time.

    TFRecord's own checksums are left alone: GZIP's covers the same bytes.

    Raises
    ------
    OSError
        If the file cannot be opened or read.
    ValueError
        Saying what is wrong, if it is damaged or cut off.
    """
    rest = b""
    for inflated in _inflate(path):
        records, rest = _split_frames(rest + inflated)
        yield records
    if rest:
        msg = "it ends in the middle of a record"
        raise ValueError(msg)


def _split_frames(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the complete records at the start of a buffer, and the rest."""
    records = []
    start = 0
    while start + LENGTH_FRAME.size <= len(buffer):
        length, _ = LENGTH_FRAME.unpack_from(buffer, start)
        stop = start + LENGTH_FRAME.size + length
        if stop + CHECKSUM.size > len(buffer):
            break
        records.append(buffer[start + LENGTH_FRAME.size : stop])
        start = stop + CHECKSUM.size
    return records, buffer[start:]


def _inflate(path: Path) -> Iterator[bytes]:
    inflater = isal_zlib.decompressobj(wbits=GZIP_WINDOW)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            while chunk:
                if inflater.eof:
                    inflater = isal_zlib.decompressobj(wbits=GZIP_WINDOW)
                try:
                    yield inflater.decompress(chunk)
                except isal_zlib.error as error:  # type: ignore[misc] # stub: an instance
                    msg = f"not a sound GZIP file ({error})"
                    raise ValueError(msg) from None
                chunk = inflater.unused_data
    if not inflater.eof:
        msg = "it is cut off"
        raise ValueError(msg)
