"""One cell, one record: the record files of a processed data set.

They are those of the reference scGAN, in both directions: GZIP-compressed TFRecords of
one ``tf.train.Example`` per cell, with the features

=====================  =======  ======================================================
``indices``            int64    ascending positions of the genes with a non-zero value
``values``             float    their values
``barcode``            bytes    name of the cell, UTF-8
``genes_no``           int64    expressed genes of the cell, before genes were filtered
``count_no``           int64    total of the cell's values
``cluster_1hot``       int64    one number per label, 1 at the cell's
``cluster_int``        int64    code of the cell's label
``covariate_<name>``   int64    code of another covariate; the reference has none
``atac_indices``       int64    ascending positions of the open peaks
``atac_values``        float    their values
``atac_count_no``      int64    total of these
=====================  =======  ======================================================

The last three are there for cells with ATAC counts; the reference has none.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.data.manifest import ATAC, RNA, DatasetManifest
from cellgan.data.tfrecords import (
    BYTES_LIST,
    FIELD_1,
    FLOAT_LIST,
    INT64_LIST,
    encode_feature,
    encode_field,
    encode_varint,
    pack_varints,
    parse_example,
    unpack_varints,
)
from cellgan.errors import DataError

SHARED_FEATURES = ("indices", "values", "barcode", "genes_no", "count_no")
ATAC_FEATURES = ("atac_indices", "atac_values", "atac_count_no")
OTHER_RUN = "the file is of another run. Run --process --overwrite."


class RecordSchema(NamedTuple):
    """What a reader must know that records do not say."""

    n_genes: int
    label: str
    """The covariate that is stored as ``cluster_int``."""
    n_categories: Mapping[str, int]
    """Number of categories of each covariate, the label among them."""
    n_peaks: int = 0
    """0 means RNA alone."""

    @classmethod
    def of(cls, manifest: DatasetManifest) -> RecordSchema:
        """Return the schema of a processed data set."""
        sizes = {name: len(names) for name, names in manifest.covariates.items()}
        n_genes, n_peaks = (len(manifest.features.get(m, ())) for m in (RNA, ATAC))
        return cls(n_genes, manifest.label, sizes, n_peaks)

    def feature(self, covariate: str) -> str:
        """Return the feature that holds the codes of a covariate."""
        is_label = covariate == self.label
        return "cluster_int" if is_label else f"covariate_{covariate}"


class AtacRecords(NamedTuple):
    """What the records hold of the open peaks of some cells."""

    values: sp.csr_matrix
    """``(n_cells, n_peaks)`` float32: counts, or ones."""
    count_no: npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class CellRecords:
    """Some cells as the records hold them; row ``i`` of everything is cell ``i``."""

    values: sp.csr_matrix
    """``(n_cells, n_genes)`` float32; counts or library-size-normalised."""
    barcodes: Sequence[str]
    genes_no: npt.NDArray[np.int64]
    count_no: npt.NDArray[np.int64]
    codes: Mapping[str, npt.NDArray[np.int32]]
    """``[covariate]`` ``(n_cells,)``."""
    atac: AtacRecords | None = None

    def __len__(self) -> int:
        return len(self.barcodes)


def encode_examples(cells: CellRecords, schema: RecordSchema) -> list[bytes]:
    """Encode cells as serialised ``tf.train.Example``, one each."""
    columns = [
        *_encode_rows("indices", "values", cells.values),
        [
            encode_feature(b"barcode", BYTES_LIST, barcode.encode())
            for barcode in cells.barcodes
        ],
        _encode_numbers("genes_no", cells.genes_no),
        _encode_numbers("count_no", cells.count_no),
        _encode_one_hot(cells.codes[schema.label], schema.n_categories[schema.label]),
        *(
            _encode_numbers(schema.feature(name), cells.codes[name])
            for name in schema.n_categories
        ),
    ]
    if cells.atac is not None:
        columns += _encode_rows("atac_indices", "atac_values", cells.atac.values)
        columns.append(_encode_numbers("atac_count_no", cells.atac.count_no))
    return [
        encode_field(FIELD_1, b"".join(features))
        for features in zip(*columns, strict=True)
    ]


def _encode_rows(indices: str, values: str, rows: sp.csr_matrix) -> list[list[bytes]]:
    """Encode positions and values of sparse rows as the features of these names."""
    starts = rows.indptr.astype(np.int64)
    packed, index_bytes = pack_varints(rows.indices, rows.shape[1])
    data = rows.data.astype("<f4").tobytes()
    return [
        [
            encode_feature(indices.encode(), INT64_LIST, payload)
            for payload in _cut(packed, index_bytes[starts])
        ],
        [
            encode_feature(values.encode(), FLOAT_LIST, payload)
            for payload in _cut(data, 4 * starts)
        ],
    ]


def _cut(joined: bytes, boundaries: npt.NDArray[np.int64]) -> Iterator[bytes]:
    ends = boundaries.tolist()
    return (joined[start:end] for start, end in itertools.pairwise(ends))


def _encode_numbers(feature: str, numbers: npt.NDArray[np.integer]) -> list[bytes]:
    key = feature.encode()
    encoded = {
        number: encode_feature(key, INT64_LIST, encode_varint(number))
        for number in np.unique(numbers).tolist()
    }
    return [encoded[number] for number in numbers.tolist()]


def _encode_one_hot(codes: npt.NDArray[np.int32], n_categories: int) -> list[bytes]:
    encoded = [
        encode_feature(b"cluster_1hot", INT64_LIST, one_hot.tobytes())
        for one_hot in np.eye(n_categories, dtype=np.uint8)
    ]
    return [encoded[code] for code in codes.tolist()]


def decode_examples(
    records: Sequence[bytes], schema: RecordSchema, *, first: int = 0
) -> CellRecords:
    """Decode serialised ``tf.train.Example``; the inverse of `encode_examples`.

    Raises
    ------
    DataError
        If a record is no such example, lacks a feature, or names a gene or a code that
        the schema does not have. `first` is the number of the first record.
    """
    features = {name: schema.feature(name) for name in schema.n_categories}
    names = (*SHARED_FEATURES, *(ATAC_FEATURES if schema.n_peaks else ()))
    columns = _columns(records, (*names, *features.values()), first)
    genes = _rows(columns["indices"], columns["values"], schema.n_genes, "gene", first)
    one_each = np.arange(len(records) + 1)
    codes = {}
    for name, n_categories in schema.n_categories.items():
        codes[name] = _numbers(columns[features[name]], one_each, first)
        _check_below(n_categories, codes[name], one_each, f'"{name}"', first)
    atac = None
    if schema.n_peaks:
        peaks, values, totals = (columns[name] for name in ATAC_FEATURES)
        atac = AtacRecords(
            values=_rows(peaks, values, schema.n_peaks, "peak", first),
            count_no=_numbers(totals, one_each, first).astype(np.int64),
        )
    return CellRecords(
        values=genes,
        barcodes=[barcode.decode() for barcode in columns["barcode"]],
        genes_no=_numbers(columns["genes_no"], one_each, first).astype(np.int64),
        count_no=_numbers(columns["count_no"], one_each, first).astype(np.int64),
        codes={name: numbers.astype(np.int32) for name, numbers in codes.items()},
        atac=atac,
    )


def _rows(
    indices: Sequence[bytes],
    values: Sequence[bytes],
    n_columns: int,
    what: str,
    first: int,
) -> sp.csr_matrix:
    """Decode positions and values of sparse rows; `what` is a column, in messages."""
    starts = np.cumsum([0, *(len(payload) // 4 for payload in values)])
    data = np.frombuffer(b"".join(values), "<f4").astype(np.float32)
    positions = _numbers(indices, starts, first)
    _check_below(n_columns, positions, starts, what, first)
    return sp.csr_matrix(
        (data, positions.astype(np.int32, copy=False), starts),
        shape=(len(values), n_columns),
    )


def _columns(
    records: Sequence[bytes], features: Sequence[str], first: int
) -> dict[str, list[bytes]]:
    """Return each feature's payloads, one per record."""
    columns: dict[str, list[bytes]] = {name: [] for name in features}
    wanted = [(name.encode(), columns[name]) for name in features]
    for number, record in enumerate(records, first):
        try:
            payloads = parse_example(record)
        except (IndexError, ValueError):
            msg = f"record {number} is not that of a cell. Run --process --overwrite."
            raise DataError(msg) from None
        for key, column in wanted:
            if key not in payloads:
                msg = f'record {number} has no feature "{key.decode()}": {OTHER_RUN}'
                raise DataError(msg)
            column.append(payloads[key])
    return columns


def _numbers(
    column: Sequence[bytes], expected_starts: npt.NDArray[np.int64], first: int
) -> npt.NDArray[np.integer[Any]]:
    numbers, starts = unpack_varints(column)
    if not np.array_equal(starts, expected_starts):
        number = first + int(np.argmax(starts != expected_starts)) - 1
        msg = f"record {number} has lists of unequal length. Run --process --overwrite."
        raise DataError(msg)
    return numbers


def _check_below(
    limit: int,
    numbers: npt.NDArray[np.integer[Any]],
    starts: npt.NDArray[np.int64],
    what: str,
    first: int,
) -> None:
    if numbers.max(initial=0) >= limit or numbers.min(initial=0) < 0:
        wrong = int(np.argmax((numbers >= limit) | (numbers < 0)))
        number = first + int(np.searchsorted(starts, wrong, side="right")) - 1
        msg = (
            f"record {number}: {what} has number {numbers[wrong]}, expected 0 to "
            f"{limit - 1}: {OTHER_RUN}"
        )
        raise DataError(msg)
