"""What cells are good for: F1 by hand, labels swapped, missing and rare."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import f1_score

from cellgan.evaluation.comparison.pairs import Frame, Side, make_pair
from cellgan.evaluation.metrics.use import (
    METRICS,
    N_REDUCTIONS,
    RARE_CELLS,
    Judge,
    fit_judge,
    fit_recogniser,
    label_agreement,
    rare_label_f1_gain,
    rare_labels,
    train_on_generated_f1,
    train_on_real_f1,
    use_metrics,
    weighted_f1,
)
from tests.evaluation.sides import make_frame

CENTRES = {"A": 0, "B": 1, "C": 2}
SIZES = {"A": 20, "B": 60, "C": 120}
N_COMPONENTS = 30


def cells(sizes: dict[str, int], seed: int, *, apart: float = 30.0) -> Side:
    """Return labels as Gaussian clusters, each along a component of its own."""
    labels = np.repeat(list(sizes), list(sizes.values()))
    components = np.random.default_rng(seed).normal(size=(len(labels), N_COMPONENTS))
    components[np.arange(len(labels)), [CENTRES[label] for label in labels]] += apart
    nothing = sp.csr_array((len(labels), 1), dtype=np.float32)
    genes = np.zeros((len(labels), 1), np.float32)
    return Side(nothing, nothing, genes, components.astype(np.float32), labels)


def relabelled(side: Side, names: dict[str, str]) -> Side:
    labels = np.array([names.get(label, label) for label in side.labels])
    return Side(side.values, side.log_values, side.genes, side.components, labels)


def frame_of(training: Side) -> Frame:
    return dataclasses.replace(make_frame(), training=training)


@functools.cache
def separable() -> tuple[Frame, Judge]:
    frame = frame_of(cells(SIZES, 0))
    return frame, fit_judge(frame)


def pair_with(other: Side, n_resamples: int = 0):
    return make_pair(cells(SIZES, 1), other, separable()[0], n_resamples)


def values_with(other: Side) -> dict[str, float]:
    estimates = use_metrics(pair_with(other), separable()[1])
    return {name: float(values[0]) for name, values in estimates.items()}


def random_labels(n_cells: int, seed: int):
    return np.random.default_rng(seed).choice(["A", "B", "C"], n_cells)


def test_f1_of_four_cells_by_hand():
    labels, predicted = np.array(["A", "A", "B", "B"]), np.array(["A", "B", "B", "B"])

    f1 = weighted_f1(labels, predicted, ["A", "B", "C"], np.ones((1, 4)))

    np.testing.assert_allclose(f1, [[2 / 3, 4 / 5, 0.0]])


def test_f1_of_every_draw_is_that_of_scikit_learn_with_weights():
    labels, predicted = random_labels(50, 0), random_labels(50, 1)
    weights = np.random.default_rng(2).integers(0, 4, (5, 50)).astype(float)

    f1 = weighted_f1(labels, predicted, "ABC", weights)

    expected = [
        f1_score(labels, predicted, average=None, sample_weight=row) for row in weights
    ]
    np.testing.assert_allclose(f1, expected)


def test_recogniser_finds_separable_labels():
    recogniser = fit_recogniser(cells(SIZES, 0).components, cells(SIZES, 0).labels)

    others = cells(SIZES, 1)

    np.testing.assert_array_equal(recogniser.predict(others.components), others.labels)


def test_agreement_counts_cells_made_for_one_label_and_taken_for_another():
    others = cells({"A": 4, "B": 6, "C": 10}, 1)
    labels = others.labels.copy()
    labels[[0, 4, 5]] = ["B", "C", "C"]  # an A, then two B

    agreement = label_agreement(
        separable()[1].recogniser, others.components, labels, np.ones((1, 20))
    )

    assert agreement.overall == pytest.approx([17 / 20])
    assert agreement.per_label == {"A": [1.0], "B": [4 / 5], "C": [10 / 12]}
    assert agreement.labels == ("A", "B", "C")
    assert agreement.counts.tolist() == [[3, 0, 0], [1, 4, 0], [0, 2, 10]]


def test_agreement_in_a_draw_is_that_of_cells_repeated():
    others = cells(SIZES, 1, apart=2.0)
    recogniser = separable()[1].recogniser
    numbers = np.random.default_rng(2).integers(0, 3, len(others))
    rows = np.arange(len(others)).repeat(numbers)

    drawn = label_agreement(
        recogniser, others.components, others.labels, numbers[None].astype(float)
    )

    repeated = label_agreement(
        recogniser,
        others.components[rows],
        others.labels[rows],
        np.ones((1, len(rows))),
    )
    np.testing.assert_allclose(drawn.overall, repeated.overall)
    np.testing.assert_allclose(drawn.per_label["B"], repeated.per_label["B"])
    assert 0 < drawn.overall[0] < 1


def test_agreement_is_none_for_a_label_that_training_cells_lack():
    others = relabelled(cells({"A": 5, "B": 5}, 1), {"B": "unheard of"})

    agreement = label_agreement(
        separable()[1].recogniser, others.components, others.labels, np.ones((1, 10))
    )

    assert agreement.overall == pytest.approx([0.5])
    assert agreement.per_label["unheard of"] == pytest.approx([0.0])
    assert agreement.labels == ("A", "B", "C", "unheard of")


def test_agreement_is_nan_when_training_cells_have_one_label():
    others = cells({"A": 5}, 1)
    recogniser = fit_recogniser(others.components, others.labels)

    agreement = label_agreement(
        recogniser, others.components, others.labels, np.ones((2, 5))
    )

    assert np.isnan(agreement.overall).tolist() == [True, True]
    assert np.isnan(agreement.per_label["A"]).all()


def test_real_cells_are_as_good_as_real_cells():
    values = values_with(cells(SIZES, 2))

    assert list(values) == [metric.name for metric in METRICS]
    assert values["train_on_generated_f1"] == 1.0
    assert values["train_on_real_f1"] == 1.0
    assert values["label_agreement"] == 1.0


def test_two_labels_swapped_leave_f1_to_the_third():
    values = values_with(relabelled(cells(SIZES, 2), {"A": "B", "B": "A"}))

    assert values["train_on_generated_f1"] == pytest.approx(1 / 3)
    assert values["train_on_real_f1"] == pytest.approx(1 / 3)
    assert values["label_agreement"] == pytest.approx(120 / 200)


def test_label_that_was_never_made_has_no_f1():
    pair = pair_with(cells({"B": 60, "C": 120}, 2))

    judge = separable()[1]
    trained = train_on_generated_f1(pair)[0]

    # Cells of A are taken for B or C, whose F1 suffers too.
    assert trained + 1e-9 >= (2 * 60 / (2 * 60 + 20) + 1) / 3
    assert trained < 2 / 3
    assert train_on_real_f1(pair, judge)[0] == pytest.approx(2 / 3)


def test_cells_nowhere_near_their_label_spoil_tests_but_not_training():
    other = cells(SIZES, 2)
    other.components[::10] = cells({"A": 20}, 3).components

    values = values_with(other)

    assert values["train_on_generated_f1"] > 0.98
    assert values["label_agreement"] == pytest.approx(1 - 18 / 200)
    assert values["train_on_real_f1"] < 0.9


def test_replicates_reweigh_the_cells_that_are_tested():
    other = cells(SIZES, 2, apart=2.0)
    pair = pair_with(other, n_resamples=3)
    judge = separable()[1]

    f1 = train_on_real_f1(pair, judge)

    rows = np.arange(len(other)).repeat(pair.draws.other[2].astype(int))
    repeated = train_on_real_f1(pair_with(other.take(rows)), judge)
    assert f1[2] == pytest.approx(repeated[0])
    assert f1[2] != f1[0]


def test_one_label_alone_has_agreement_and_no_f1():
    judge = separable()[1]
    pair = pair_with(cells(SIZES, 2)).of_label("B", 2)

    estimates = use_metrics(pair, judge)

    np.testing.assert_array_equal(estimates["label_agreement"], [1.0, 1.0, 1.0])
    f1 = [values for name, values in estimates.items() if name.endswith(("f1", "gain"))]
    assert np.isnan(f1).all()
    assert len(f1) == 3


def test_cells_without_labels_have_no_values():
    unlabelled = relabelled(cells(SIZES, 2), dict.fromkeys(SIZES, ""))

    assert np.isnan(list(values_with(unlabelled).values())).all()


def test_no_generated_cells_have_no_values():
    assert np.isnan(list(values_with(cells({"A": 0}, 2)).values())).all()


def test_training_cells_of_one_label_have_no_values():
    frame = frame_of(cells({"A": 20}, 0))
    pair = make_pair(cells({"A": 9, "B": 9}, 1), cells({"A": 8}, 2), frame, 0)

    estimates = use_metrics(pair, fit_judge(frame))

    assert np.isnan(list(estimates.values())).all()


def test_rare_labels_are_the_five_smallest_below_a_twentieth():
    sizes = [400, 300, 51, 49, 9, 8, 7, 6, 5, 4]
    labels = np.repeat([f"type {size}" for size in sizes], sizes)

    assert rare_labels(labels) == ("type 4", "type 5", "type 6", "type 7", "type 8")


def test_rarest_label_stands_in_when_none_is_rare():
    assert rare_labels(np.repeat(["A", "B", "C"], [30, 20, 50])) == ("B",)


def test_reductions_leave_three_cells_of_a_rare_label():
    frame, judge = separable()
    labels = [frame.training.labels[r.rows].tolist() for r in judge.reductions]

    assert [r.label for r in judge.reductions] == ["A"] * N_REDUCTIONS
    assert [x.count("A") for x in labels] == [RARE_CELLS] * N_REDUCTIONS
    assert [len(x) for x in labels] == [180 + RARE_CELLS] * N_REDUCTIONS
    assert len({tuple(r.rows) for r in judge.reductions}) == N_REDUCTIONS


@functools.cache
def overlapping() -> tuple[Frame, Judge]:
    frame = frame_of(cells({"A": 20, "B": 300, "C": 300}, 0, apart=4.0))
    return frame, fit_judge(frame)


def gain_from(other: Side) -> float:
    frame, judge = overlapping()
    real = cells({"A": 40, "B": 300, "C": 300}, 1, apart=4.0)
    return float(rare_label_f1_gain(make_pair(real, other, frame, 0), judge)[0])


def test_more_cells_of_a_rare_label_help():
    assert gain_from(cells({"A": 100, "B": 10}, 2, apart=4.0)) > 0.05


def test_mislabelled_cells_of_a_rare_label_harm():
    mistaken = relabelled(cells({"B": 100}, 2, apart=4.0), {"B": "A"})

    assert gain_from(mistaken) < -0.05


def test_rare_label_that_was_never_made_gains_nothing():
    assert gain_from(cells({"B": 100, "C": 100}, 2, apart=4.0)) == 0.0


def test_gain_is_nan_when_no_held_out_cell_has_a_rare_label():
    frame, judge = overlapping()
    sides = (cells({"B": 30, "C": 30}, seed, apart=4.0) for seed in (1, 2))

    assert np.isnan(rare_label_f1_gain(make_pair(*sides, frame, 0), judge)).all()
