"""Blocks of sparse rows: what a dense matrix would give, for any size of block."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing import sparse_blocks
from preprocessing.sparse_blocks import (
    UnsuitableValueError,
    assemble,
    keep,
    row_blocks,
    row_ranges,
    row_sums,
    rows_per_column,
    values_per_row,
)

MATRICES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 6)),
    elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 2.0, 300.0]),
)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=20), st.integers(1, 30))
def test_row_ranges_cover_all_rows_and_hold_at_most_the_limit(sizes, limit):
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    ranges = list(row_ranges(indptr, limit))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(
        range(len(sizes))
    )
    assert all(
        indptr[stop] - indptr[start] <= limit or stop == start + 1
        for start, stop in ranges
    )


@given(MATRICES, st.lists(st.integers(1, 3), min_size=8, max_size=8))
def test_assemble_joins_blocks_of_any_size(dense, heights):
    edges = np.concatenate([[0], np.cumsum(heights)]).clip(max=len(dense))
    blocks = [
        sp.csr_matrix(dense[start:stop])
        for start, stop in itertools.pairwise(edges)
        if stop > start
    ]
    joined = assemble(
        blocks, len(dense), integers=True, description="test", unit="rows"
    )
    np.testing.assert_array_equal(joined.toarray(), dense)
    assert joined.nnz == np.count_nonzero(dense)
    assert joined.has_canonical_format


def test_assemble_refuses_another_number_of_rows():
    with pytest.raises(ValueError, match="3 rows found, 4 expected"):
        assemble(
            [sp.csr_matrix((3, 2), dtype=np.float32)],
            4,
            integers=True,
            description="test",
            unit="rows",
        )


def test_assemble_tells_the_place_of_an_unsuitable_value():
    dense = np.eye(4, dtype=np.float32)[np.arange(12) % 4]
    dense[6, 1] = 1.5
    blocks = [sp.csr_matrix(dense[start : start + 4]) for start in (0, 4, 8)]
    with pytest.raises(UnsuitableValueError) as error:
        assemble(blocks, 12, integers=True, description="test", unit="rows")
    assert (error.value.value, error.value.row, error.value.column) == (1.5, 6, 1)


@given(MATRICES, st.data(), st.integers(1, 20))
def test_keep_equals_dense_indexing(dense, data, limit):
    n_rows, n_columns = dense.shape
    rows = np.array(
        data.draw(st.lists(st.booleans(), min_size=n_rows, max_size=n_rows))
    )
    columns = np.array(
        data.draw(st.lists(st.booleans(), min_size=n_columns, max_size=n_columns))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_ranges, "__defaults__", (limit,))
        kept = keep(sp.csr_matrix(dense), rows, columns)
    np.testing.assert_array_equal(kept.toarray(), dense[rows][:, columns])


def test_keep_needs_no_memory_of_its_own():
    matrix = sp.csr_matrix(np.ones((6, 5), dtype=np.float32))
    values = matrix.data
    kept = keep(matrix, np.arange(6) > 1, np.arange(5) != 2)
    assert np.shares_memory(kept.data, values)


@given(MATRICES, st.integers(1, 20))
def test_sums_and_numbers_equal_the_dense_ones(dense, limit):
    matrix = sp.csr_matrix(dense)
    odd = np.arange(len(dense)) % 2 == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_ranges, "__defaults__", (limit,))
        sums, numbers = row_sums(matrix), rows_per_column(matrix, odd)
        first_rows = [start for start, _ in row_blocks(matrix)]
    np.testing.assert_array_equal(sums, dense.sum(axis=1, dtype=np.float64))
    np.testing.assert_array_equal(numbers, np.count_nonzero(dense[odd], axis=0))
    assert first_rows[0] == 0


def test_row_sums_are_exact_beyond_float32():
    matrix = sp.csr_matrix(np.array([[2.0**24, 1, 1, 1]], dtype=np.float32))
    assert row_sums(matrix)[0] == 2**24 + 3


def test_largest_count_is_the_last_that_float32_separates_from_the_next():
    largest = sparse_blocks.LARGEST_COUNT
    assert np.float32(largest) != np.float32(largest - 1)
    assert np.float32(largest) == np.float32(largest + 1)


@given(MATRICES, st.data(), st.integers(1, 20))
def test_values_per_row_are_those_in_the_chosen_columns(dense, data, limit):
    n_columns = dense.shape[1]
    size = {"min_size": n_columns, "max_size": n_columns}
    columns = np.array(data.draw(st.lists(st.booleans(), **size)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_ranges, "__defaults__", (limit,))
        found = values_per_row(sp.csr_matrix(dense), columns)
    assert found.tolist() == np.count_nonzero(dense[:, columns], axis=1).tolist()
