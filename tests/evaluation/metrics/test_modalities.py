"""Two modalities of one cell: correlations across, and matching."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from cellgan.evaluation.comparison.pairs import Frame, Side, make_pair, make_side
from cellgan.evaluation.comparison.space import fit_space, log_expression
from cellgan.evaluation.metrics.modalities import (
    METRICS,
    closer_than_match,
    cross_correlations,
    cross_modal_metrics,
    matched_components,
    shared_space,
)

N_CELLS = 400


def two_modalities(seed: int, n_cells: int = N_CELLS, *, linked: bool = True):
    """Draw genes and peaks that follow the same three programs of a cell."""
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(99).normal(size=(2, 3, 30))
    program = rng.normal(size=(n_cells, 3))
    programs = program, program if linked else rng.normal(size=(n_cells, 3))
    return [
        sp.csr_matrix(rng.poisson(5 * np.exp(0.6 * p @ load)).astype(np.float32))
        for p, load in zip(programs, loadings, strict=True)
    ]


def frame_of(values) -> Frame:
    space = fit_space(log_expression(values), seed=0, n_components=10)
    return Frame(
        training=make_side(values, np.full(values.shape[0], ""), space),
        space=space,
        gene_names=tuple(map(str, range(values.shape[1]))),
        bandwidths=(1.0,),
        are_counts=True,
        seed=0,
    )


FRAMES = [frame_of(values) for values in two_modalities(0)]


def compare(generated, n_resamples: int = 0):
    pairs = [
        make_pair(
            make_side(real, np.full(real.shape[0], ""), frame.space),
            make_side(made, np.full(made.shape[0], ""), frame.space),
            frame,
            n_resamples,
        )
        for frame, real, made in zip(FRAMES, two_modalities(1), generated, strict=True)
    ]
    return cross_modal_metrics(*pairs)


def test_linked_modalities_match_and_correlate_as_real_ones_do():
    found = compare(two_modalities(2))
    assert found["cross_modal_correlation"][0] > 0.95
    assert found["cross_modal_matching"][0] < 0.1


def test_unlinked_modalities_are_at_chance():
    found = compare(two_modalities(2, linked=False))
    # both are means over 400 cells and 900 pairs; 5 standard errors
    assert abs(found["cross_modal_correlation"][0]) < 0.3
    assert found["cross_modal_matching"][0] == pytest.approx(0.5, abs=0.08)


def test_resamples_lie_around_the_value():
    found = compare(two_modalities(2), n_resamples=20)
    for draws in found.values():
        assert draws.shape == (21,)
        assert np.std(draws[1:]) > 0
        assert np.mean(draws[1:]) == pytest.approx(draws[0], abs=0.03)


def test_matching_of_identical_cells_is_0_and_of_reversed_ones_is_1():
    line = np.arange(10.0)[:, None]
    np.testing.assert_array_equal(closer_than_match(line, line), 0)
    ends = closer_than_match(line, line[::-1])[[0, -1]]
    np.testing.assert_array_equal(ends, 1)


def test_matching_counts_distances_in_both_directions_and_in_blocks():
    rng = np.random.default_rng(6)
    first = rng.normal(size=(1100, 3))
    second = first * [1, 2, 0.5] + rng.normal(size=(1100, 3))
    distances = cdist(first, second)
    match = np.diagonal(distances)
    closer = [(distances < match[:, None]).mean(axis=1)]
    closer.append((distances < match).mean(axis=0))
    expected = sum(closer) / 2 * 1100 / 1099
    np.testing.assert_allclose(closer_than_match(first, second), expected, rtol=1e-9)


def test_matching_with_a_constant_modality_is_chance():
    line = np.arange(10.0)[:, None]
    towards_constant = closer_than_match(np.zeros((10, 1)), np.zeros((10, 1)))
    np.testing.assert_array_equal(towards_constant, 0.5)
    assert closer_than_match(line, np.zeros((10, 1))).mean() == pytest.approx(0.5)


def test_cross_correlations_are_numpy_s_on_repeated_cells():
    first, second = two_modalities(3, 40)
    sides: list[Side] = [
        make_side(values, np.full(40, ""), frame.space)
        for values, frame in zip((first, second), FRAMES, strict=True)
    ]
    times = np.random.default_rng(0).integers(0, 4, size=40)
    found = cross_correlations(*sides, times[None].astype(float))[0]
    repeated = [np.repeat(side.genes, times, axis=0) for side in sides]
    expected = np.corrcoef(repeated[0].T, repeated[1].T)[:30, 30:]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_feature_that_a_resample_leaves_constant_correlates_with_none():
    first, second = two_modalities(3, 40)
    counts = first.toarray()
    counts[:, 4] = 0
    counts[7, 4] = 3  # one cell alone has it
    sides = [
        make_side(sp.csr_matrix(values), np.full(40, ""), frame.space)
        for values, frame in zip((counts, second), FRAMES, strict=True)
    ]
    column = int(np.flatnonzero(FRAMES[0].space.genes == 4)[0])
    without = np.ones((2, 40))
    without[1, 7] = 0
    found = cross_correlations(*sides, without)
    assert np.abs(found[0, column]).max() > 0
    np.testing.assert_array_equal(found[1, column], 0)
    assert np.abs(found).max() <= 1


def test_identical_modalities_match_without_error():
    frame, real, made = FRAMES[0], two_modalities(1)[0], two_modalities(2)[0]
    sides = (make_side(x, np.full(N_CELLS, ""), frame.space) for x in (real, made))
    pair = make_pair(*sides, frame, 0)
    found = cross_modal_metrics(pair, pair)
    assert found["cross_modal_matching"][0] == 0
    assert found["cross_modal_correlation"][0] > 0.95


def test_shared_space_finds_the_direction_that_modalities_share():
    rng = np.random.default_rng(4)
    shared, *alone = rng.normal(size=(3, 2000))
    first = np.stack([9 * alone[0], 0.5 * shared], axis=1)
    second = np.stack([shared + 7, 4 * alone[1]], axis=1)
    x, y = shared_space((first, second), (first, second))
    # singular values are about 1 and 0; 5 standard errors of a correlation
    assert np.corrcoef(x[:, 0], y[:, 0])[0, 1] == pytest.approx(1, abs=1e-3)
    assert abs(np.corrcoef(x[:, 0], shared)[0, 1]) == pytest.approx(1, abs=0.01)
    assert x[:, 0].std() == pytest.approx(1, abs=0.01)
    assert x[:, 1].std() < np.sqrt(5 / np.sqrt(2000))


def test_shared_space_is_scaled_by_training_cells_alone():
    rng = np.random.default_rng(7)
    training = rng.normal(size=(2, 300, 4))
    cells = rng.normal(size=(2, 50, 4))
    first, _ = shared_space((training[0], training[1]), (cells[0], cells[1]))
    moved, _ = shared_space((training[0], training[1]), (2 * cells[0] + 1, cells[1]))
    assert np.abs(moved.mean(axis=0) - first.mean(axis=0)).max() > 0.05
    np.testing.assert_allclose(moved.std(axis=0), 2 * first.std(axis=0), rtol=1e-9)


def test_matching_is_weighted_by_draws():
    pairs = [
        make_pair(
            make_side(real, np.full(N_CELLS, ""), frame.space),
            make_side(made, np.full(N_CELLS, ""), frame.space),
            frame,
            5,
        )
        for frame, real, made in zip(
            FRAMES, two_modalities(1), two_modalities(2), strict=True
        )
    ]
    found = cross_modal_metrics(*pairs)["cross_modal_matching"]
    matched = [matched_components(pair) for pair in pairs]
    x, y = shared_space(*zip(*matched, strict=True))
    shares = closer_than_match(x, y)
    times = pairs[0].draws.other[3].astype(int)
    assert found[3] == pytest.approx(np.repeat(shares, times).mean())


def test_order_of_cells_does_not_matter():
    order = np.random.default_rng(5).permutation(N_CELLS)
    made = two_modalities(2)
    first, second = compare(made), compare([values[order] for values in made])
    for name, draws in first.items():
        assert second[name][0] == pytest.approx(draws[0], rel=1e-6)


def test_few_cells_are_undefined():
    found = compare(two_modalities(2, 10), n_resamples=3)
    for draws in found.values():
        np.testing.assert_array_equal(draws, np.full(4, np.nan))


def test_metrics_are_those_that_are_returned():
    assert list(compare(two_modalities(2))) == [metric.name for metric in METRICS]
