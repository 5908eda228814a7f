"""Two modalities of one cell: correlations across, and matching."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellgan.evaluation.modalities import (
    closer_than_match,
    cross_correlations,
    cross_modal_metrics,
)
from cellgan.evaluation.pairs import Frame, Side, make_pair, make_side
from cellgan.evaluation.space import fit_space, log_expression

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


def test_few_cells_are_not_matched():
    found = compare(two_modalities(2, 10))
    assert np.isnan(found["cross_modal_matching"]).all()
