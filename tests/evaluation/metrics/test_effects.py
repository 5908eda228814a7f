from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import stats

from cellgan.evaluation.comparison.pairs import make_pair
from cellgan.evaluation.metrics.effects import label_effects, significant_genes
from tests.evaluation.sides import TYPES, draw_side, make_frame


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.fixture(scope="module")
def side(frame):
    return draw_side(frame, 1)


def with_genes(side, genes, labels):
    """Return a side of which only variable genes and labels are looked at."""
    return dataclasses.replace(
        side, genes=np.asarray(genes, np.float32), labels=np.asarray(labels)
    )


def of_cells(side):
    return np.ones((1, len(side.labels)))


def test_fold_changes_are_those_computed_by_hand(side):
    # Mean expression per 10,000: 3 in a, 1 in the rest (0 in b, 1.5 in the larger c).
    expression = np.array([[1.0], [5.0], [0.0], [1.5], [1.5]])
    labels = ["a", "a", "b", "c", "c"]
    cells = with_genes(side, np.log1p(expression), labels)

    effects = label_effects(cells, ["a", "b"], of_cells(cells))

    np.testing.assert_allclose(
        effects.log_fold_changes[:, 0, 0], np.log2([4 / 2, 1 / 3.25]), rtol=1e-6
    )


def test_t_is_scipys_welch_statistic(side):
    effects = label_effects(side, list(TYPES), of_cells(side))

    for index, label in enumerate(TYPES):
        of_label = side.labels == label
        expected = stats.ttest_ind(
            side.genes[of_label].astype(float),
            side.genes[~of_label].astype(float),
            equal_var=False,
        )
        np.testing.assert_allclose(effects.t[index, 0], expected.statistic, rtol=1e-6)


def test_a_draw_has_the_effects_of_repeated_cells(frame, side):
    draws = make_pair(side, side, frame, 2).draws.real

    effects = label_effects(side, list(TYPES), draws)

    for draw in range(3):
        cells = side.take(np.repeat(np.arange(len(side)), draws[draw].astype(int)))
        expected = label_effects(cells, list(TYPES), of_cells(cells))
        for computed, value in zip(effects, expected, strict=True):
            np.testing.assert_allclose(computed[:, draw], value[:, 0], rtol=1e-7)


def test_other_labels_belong_to_the_rest(side):
    every = label_effects(side, list(TYPES), of_cells(side))
    one = label_effects(side, [TYPES[1]], of_cells(side))

    np.testing.assert_array_equal(one.t[0], every.t[1])


@pytest.mark.parametrize("missing", ["label", "rest"])
def test_a_label_without_cells_or_without_rest_has_no_effects(side, missing):
    kept = side.take(np.flatnonzero((side.labels == TYPES[0]) == (missing == "rest")))

    effects = label_effects(kept, list(TYPES), of_cells(kept))

    assert np.isnan(effects.t[0]).all()
    assert np.isnan(effects.log_fold_changes[0]).all()
    assert np.isnan(effects.t[1:]).all() == (missing == "rest")


def test_copies_of_one_cell_have_finite_effects(side):
    cells = with_genes(side, [[1.0], [1.0], [2.0], [2.0]], ["a", "a", "b", "b"])

    effects = label_effects(cells, ["a", "b"], of_cells(cells))

    assert np.isfinite(effects.t).all()
    assert effects.t[0, 0, 0] < 0 < effects.t[1, 0, 0]


def test_significant_genes_are_those_that_make_the_difference(side):
    rng = np.random.default_rng(0)
    genes = rng.normal(5.0, 1.0, size=(200, 100))
    genes[:40, :10] += 3.0
    training = with_genes(side, genes, np.repeat(["a", "b"], [40, 160]))

    significant = significant_genes(training, ["a"])

    assert significant[0, :10].all()
    # A false discovery rate of 5 % lets one of these through at most now and then.
    assert np.count_nonzero(significant[0, 10:]) <= 2
