"""Integer counts: exact totals, right on average, the same however cells are cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellgan.generation import integer_counts
from cellgan.generation.integer_counts import (
    invert_library_sizes,
    round_to_totals,
    split_draws,
    to_counts,
    uniform,
)
from tests.manifests import make_manifest

ALMOST_ONE = 1 - 2.0**-53

rows = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 30)),
    elements=st.one_of(
        st.just(0.0), st.floats(2.0**-10, 1e4, width=32, allow_subnormal=False)
    ),
)
unit = st.one_of(st.just(0.0), st.just(ALMOST_ONE), st.floats(0, ALMOST_ONE))


@given(rows, st.integers(1, 10**6), unit)
def test_rounded_counts_add_up_to_the_total(expression, total, draw):
    n_cells = len(expression)
    counts = round_to_totals(
        expression, np.full(n_cells, total), np.full(n_cells, draw)
    )
    sums = expression.sum(axis=1)
    expected = np.where(sums > 0, total, 0)
    np.testing.assert_array_equal(counts.sum(axis=1, dtype=np.float64), expected)


@given(rows, st.integers(1, 10**6), unit)
def test_rounded_counts_are_neighbours_of_their_expectation(expression, total, draw):
    n_cells = len(expression)
    counts = round_to_totals(
        expression, np.full(n_cells, total), np.full(n_cells, draw)
    )
    sums = expression.sum(axis=1, keepdims=True, dtype=np.float64)
    expected = expression * (total / np.where(sums > 0, sums, 1))
    # 1e-9: rounding errors of cumulative sums up to 1e6 in float64.
    assert (np.abs(counts - expected) < 1 + 1e-9).all()
    assert (counts >= 0).all()
    assert (counts[expression == 0] == 0).all()


def test_rounded_counts_are_right_on_average():
    n_cells = 20_000
    expression = np.array([[0.3, 0, 1.7, 2.2, 5.05, 0.75]], np.float32)
    expected = (expression / expression.sum()).ravel() * 10
    counts = round_to_totals(
        np.repeat(expression, n_cells, axis=0),
        np.full(n_cells, 10),
        uniform(3, 0, n_cells),
    )
    share = expected % 1
    standard_error = np.sqrt(share * (1 - share) / n_cells)
    error = np.abs(counts.mean(axis=0) - expected)
    assert (error <= 5 * standard_error + 1e-6).all()


def test_row_of_zeros_stays_zero():
    expression = np.zeros((1, 4), np.float32)
    counts = round_to_totals(expression, np.array([500]), np.array([0.9]))
    assert (counts == 0).all()


@given(
    st.integers(0, 50), st.lists(st.integers(1, 9), min_size=1, max_size=6), st.data()
)
def test_uniform_stream_is_the_same_when_drawn_in_pieces(first, sizes, data):
    seed = data.draw(st.integers(1, 2**31 - 1))
    edges = first + np.cumsum([0, *sizes])
    pieces = [uniform(seed, int(a), int(b - a)) for a, b in itertools.pairwise(edges)]
    whole = uniform(seed, 0, int(edges[-1]))
    np.testing.assert_array_equal(np.concatenate(pieces), whole[first:])


def test_uniform_stream_is_uniform_and_differs_between_seeds():
    n_draws = 100_000
    draws = uniform(1, 0, n_draws)
    assert draws.min() >= 0
    assert draws.max() < 1
    # Standard errors of the mean and of the second moment of a uniform number.
    assert abs(draws.mean() - 1 / 2) < 5 * np.sqrt(1 / 12 / n_draws)
    assert abs((draws**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / n_draws)
    correlation = np.corrcoef(draws, uniform(2, 0, n_draws))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(n_draws)


def test_library_sizes_follow_the_quantiles_of_their_label():
    quantiles = [(100.0, 200.0, 1000.0), (7.0,), (0.2,)]
    draws = np.array([0.0, 0.25, 0.5, 0.75, ALMOST_ONE, 0.4, 0.4])
    codes = np.array([0, 0, 0, 0, 0, 1, 2], np.int32)
    sizes = invert_library_sizes(draws, codes, quantiles)
    assert sizes.tolist() == [100, 150, 200, 600, 1000, 7, 1]


def test_one_draw_gives_label_and_place_within_it():
    ratios = np.array([0.25, 0.0, 0.5, 0.25])
    codes, within = split_draws(np.array([0.0, 0.125, 0.25, 0.5, 0.9375]), ratios)
    assert codes.tolist() == [0, 0, 2, 2, 3]
    assert within.tolist() == [0.0, 0.5, 0.0, 0.5, 0.75]


def test_split_draw_stays_in_range_when_ratios_do_not_add_up_to_one():
    ratios = np.full(10, 0.1)  # sums to 0.9999999999999999
    codes, within = split_draws(np.array([ALMOST_ONE]), ratios)
    assert codes.tolist() == [9]
    assert within[0] <= 1


def test_counts_have_library_sizes_of_their_label():
    manifest = make_manifest(library_sizes=[(100.0, 200.0), (5000.0, 6000.0)])
    codes = np.repeat(np.array([0, 1], np.int32), 500)
    expression = np.random.default_rng(0).gamma(1, 9, (1000, 6)).astype(np.float32)
    counts = to_counts(expression, codes, manifest, seed=5, first_cell=0)
    totals = counts.sum(axis=1).reshape(2, 500)
    middle, spread = totals.mean(axis=1), 5 * np.array([100, 1000]) / np.sqrt(12 * 500)
    np.testing.assert_array_less(np.abs(middle - [150, 5500]), spread)
    assert totals[0].max() <= 200
    assert totals[1].min() >= 5000


def test_counts_have_pooled_library_sizes_when_there_is_no_label():
    manifest = make_manifest(trained=(30, 70), library_sizes=[(100.0,), (5000.0,)])
    counts = to_counts(
        np.ones((4000, 6), np.float32), None, manifest, seed=5, first_cell=0
    )
    share = (counts.sum(axis=1) == 5000).mean()
    assert abs(share - 0.7) < 5 * np.sqrt(0.7 * 0.3 / 4000)
    assert set(counts.sum(axis=1)) == {100, 5000}


@pytest.mark.parametrize("size", [1, 3, 10, 64])
def test_counts_are_the_same_when_cells_come_in_pieces(monkeypatch, size):
    monkeypatch.setattr(integer_counts, "VALUES_AT_ONCE", 60)  # 10 rows
    manifest = make_manifest()
    n_cells = 55
    rng = np.random.default_rng(1)
    expression = rng.gamma(0.3, 9, (n_cells, 6)).astype(np.float32)
    codes = rng.integers(0, 2, n_cells).astype(np.int32)
    pieces = [
        to_counts(
            expression[first : first + size],
            codes[first : first + size],
            manifest,
            seed=8,
            first_cell=first,
        )
        for first in range(0, n_cells, size)
    ]
    whole = to_counts(expression, codes, manifest, seed=8, first_cell=0)
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
