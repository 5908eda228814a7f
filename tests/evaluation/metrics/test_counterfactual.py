"""Scores of edited cells, on populations whose scores are known."""

from __future__ import annotations

import numpy as np
import pytest

from cellgan.evaluation.metrics.counterfactual import (
    EDITED,
    REAL,
    SHIFTED,
    UNEDITED,
    Population,
    counterfactual_scores,
    mean_shift,
)

N_CELLS, N_GENES = 400, 30
TYPES, STATES = ("B", "T"), ("ctrl", "stim")
TARGET = {"state": "stim"}


def draw_cells(seed: int) -> Population:
    """Draw cells of two types in two states; the T cells respond in other genes."""
    rng = np.random.default_rng(seed)
    types, states = rng.choice(TYPES, N_CELLS), rng.choice(STATES, N_CELLS)
    values = effect(types, states) + rng.normal(0, 0.1, (N_CELLS, N_GENES))
    columns = {"type": types, "state": states}
    return Population(np.maximum(values, 0).astype(np.float32), columns)


def effect(types: np.ndarray, states: np.ndarray) -> np.ndarray:
    values = np.ones((len(types), N_GENES))
    values[types == "T", :5] += 3
    values[states == "stim", 10:14] += 2
    values[(states == "stim") & (types == "T"), 20:22] += 2
    return values


@pytest.fixture(scope="module")
def training() -> Population:
    return draw_cells(0)


@pytest.fixture(scope="module")
def source() -> Population:
    cells = draw_cells(1)
    return cells.where(cells.columns["state"] == "ctrl")


def perfect(source: Population) -> np.ndarray:
    types = source.columns["type"]
    own = source.values - effect(types, source.columns["state"])
    return (own + effect(types, np.full(len(types), "stim"))).astype(np.float32)


@pytest.fixture(scope="module")
def scores(training, source):
    return counterfactual_scores(
        training, draw_cells(2), source, perfect(source), TARGET, seed=0
    )


def test_perfect_edits_score_1_and_unedited_cells_do_not(scores):
    assert list(scores) == [UNEDITED, SHIFTED, EDITED, REAL]
    edited, unedited = scores[EDITED], scores[UNEDITED]
    assert edited.agreement == 1
    assert edited.kept == 1
    assert edited.correlation > 0.99
    assert edited.shift_correlation > 0.99
    assert unedited.agreement == 0
    assert unedited.correlation < 0.9
    assert np.isnan(unedited.shift_correlation)
    assert scores[REAL].agreement == 1


def test_the_mean_shift_is_worse_where_types_respond_differently(scores):
    assert scores[SHIFTED].agreement > 0.9
    assert scores[SHIFTED].shift_correlation < scores[EDITED].shift_correlation - 0.02


def test_the_mean_shift_moves_cells_by_the_difference_of_the_means(training, source):
    shifted = mean_shift(training, source, TARGET)
    means = [
        training.values[training.columns["state"] == state].mean(axis=0)
        for state in ("stim", "ctrl")
    ]
    expected = np.maximum(source.values + means[0] - means[1], 0)
    np.testing.assert_allclose(shifted, expected, rtol=1e-5)


def test_cells_of_the_target_are_not_shifted(training):
    cells = draw_cells(3)
    stim = cells.where(cells.columns["state"] == "stim")
    np.testing.assert_allclose(
        mean_shift(training, stim, TARGET), stim.values, rtol=1e-6
    )


def test_a_field_that_edits_destroy_is_not_kept(training, source):
    edited = perfect(source)
    edited[:, :5] = 1  # what tells T cells
    found = counterfactual_scores(
        training, draw_cells(2), source, edited, TARGET, seed=0
    )
    is_t = source.columns["type"] == "T"
    assert found[EDITED].kept == pytest.approx(1 - is_t.mean(), abs=0.02)


def test_without_held_out_cells_of_the_target_nothing_is_correlated(training, source):
    held_out = draw_cells(2)
    held_out = held_out.where(held_out.columns["state"] == "ctrl")
    found = counterfactual_scores(
        training, held_out, source, perfect(source), TARGET, seed=0
    )
    assert np.isnan(found[EDITED].correlation)
    assert np.isnan(found[REAL].agreement)
    assert found[EDITED].agreement == 1
