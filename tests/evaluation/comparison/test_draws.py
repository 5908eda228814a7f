"""Which cells are compared."""

from __future__ import annotations

import numpy as np
import pytest

from cellgan.evaluation.comparison.draws import (
    FEWEST_PER_LABEL,
    DrawnLabel,
    draw_cells,
)


def labels(**numbers: int):
    return np.repeat(list(numbers), list(numbers.values()))


HELD_OUT = labels(a=100, b=60, c=40)
TRAINING = labels(a=300, b=150, c=90)


def draw(generated, *, asked=None, most_cells=5000, most_training=10_000, seed=0):
    return draw_cells(
        HELD_OUT,
        generated,
        TRAINING,
        asked=asked,
        most_cells=most_cells,
        most_training=most_training,
        seed=seed,
    )


def counts(of, rows):
    return dict(zip(*np.unique(of[rows], return_counts=True), strict=True))


def test_every_side_has_the_number_of_the_side_with_fewest():
    drawn = draw(generated := labels(c=500, a=70, b=500))
    assert counts(HELD_OUT, drawn.held_out) == {"a": 70, "b": 60, "c": 40}
    assert counts(generated, drawn.generated) == {"a": 70, "b": 60, "c": 40}
    assert counts(TRAINING, drawn.control) == {"a": 70, "b": 60, "c": 40}


def test_at_most_half_of_the_training_cells_are_controls():
    drawn = draw_cells(
        labels(a=100),
        labels(a=100),
        labels(a=60),
        asked=None,
        most_cells=5000,
        most_training=10_000,
        seed=0,
    )
    assert len(drawn.control) == len(drawn.training) == len(drawn.held_out) == 30


def test_training_and_control_cells_share_no_cell_and_repeat_none():
    drawn = draw(labels(a=70, b=60, c=40))
    together = np.concatenate([drawn.training, drawn.control])
    assert len(together) == len(np.unique(together)) == len(TRAINING)


def test_missing_label_stays_among_the_real_cells_and_others_fill_its_place():
    drawn = draw(generated := labels(a=500, b=60))
    assert counts(HELD_OUT, drawn.held_out) == {"a": 100, "b": 60, "c": 40}
    assert counts(generated, drawn.generated) == {"a": 140, "b": 60}
    assert drawn.labels["c"] == DrawnLabel(40, "missing")
    assert drawn.labels["a"] == DrawnLabel(100, "compared")


def test_labels_that_nobody_asked_for_are_left_out_on_every_side():
    drawn = draw(labels(a=500, b=60), asked=["a", "b"])
    assert counts(HELD_OUT, drawn.held_out) == {"a": 100, "b": 60}
    assert counts(TRAINING, drawn.control) == {"a": 100, "b": 60}
    assert counts(TRAINING, drawn.training) == {"a": 200, "b": 90}
    assert drawn.labels["c"] == DrawnLabel(0, "not asked for")


def test_numbers_fall_in_proportion_when_there_are_too_many():
    drawn = draw(labels(a=500, b=500, c=500), most_cells=100, most_training=50)
    assert counts(HELD_OUT, drawn.held_out) == {"a": 50, "b": 30, "c": 20}
    assert len(drawn.training) == 50


def test_label_with_few_cells_is_said_to_have_too_few():
    drawn = draw(labels(a=500, b=500, c=FEWEST_PER_LABEL - 1))
    assert drawn.labels["c"] == DrawnLabel(FEWEST_PER_LABEL - 1, "too few")


def test_strange_labels_are_not_drawn():
    drawn = draw(generated := labels(a=100, b=60, c=40, z=1000))
    assert "z" not in generated[drawn.generated]


@pytest.mark.parametrize("seed", [1, 2])
def test_same_seed_draws_the_same_cells(seed: int):
    generated = labels(a=500, b=500, c=500)
    first, again, other = (
        draw(generated, seed=s, most_cells=100) for s in (seed, seed, seed + 10)
    )
    np.testing.assert_array_equal(first.generated, again.generated)
    np.testing.assert_array_equal(first.control, again.control)
    assert not np.array_equal(first.generated, other.generated)
