from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq

from cellgan.evaluation.metrics import integration as module
from cellgan.evaluation.metrics.integration import (
    Integration,
    compared_cells,
    integration,
    lisi,
)


def line(n_cells: int) -> np.ndarray:
    """Return points on a line, no two of which are equally far from a third."""
    return (np.arange(n_cells) + np.linspace(0, 0.1, n_cells) ** 2)[:, None]


def lisi_of_harmonypy(points, groups, perplexity=30) -> np.ndarray:
    """Return each cell's index, by the definition of harmonypy's ``compute_lisi``.

    Its neighbours are the ``3 * perplexity`` nearest, itself included and then left
    out; weights are ``exp(-beta d)`` of the perplexity.
    """
    found = []
    for row, point in enumerate(points):
        distances = np.linalg.norm(points - point, axis=1)
        near = np.argsort(distances)[1 : 3 * perplexity]
        assert row not in near

        def weights(log_beta, of=distances[near]):
            unscaled = np.exp(-np.exp(log_beta) * (of - of.min()))
            return unscaled / unscaled.sum()

        def excess(log_beta, weights=weights):
            w = weights(log_beta)
            return -np.sum(w * np.log(np.maximum(w, 1e-300))) - np.log(perplexity)

        w = weights(brentq(excess, -20, 20, xtol=1e-10))
        shares = [w[groups[near] == group].sum() for group in np.unique(groups)]
        found.append(1 / np.sum(np.square(shares)))
    return np.array(found)


def test_lisi_is_the_median_of_that_of_harmonypy():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3))
    groups = np.where(points[:, 0] + rng.normal(size=200) > 0.5, "a", "b")
    groups[rng.choice(200, 30)] = "c"
    expected = lisi_of_harmonypy(points, groups)
    assert np.ptp(expected) > 0.5
    assert lisi(points, groups) == pytest.approx(np.median(expected), rel=1e-6)


def test_lisi_of_one_group_is_1():
    assert lisi(line(120), np.full(120, "a")) == pytest.approx(1)


def test_lisi_of_two_groups_that_alternate_is_near_2():
    groups = np.tile(["a", "b"], 100)
    assert 1.97 < lisi(line(200), groups) < 2


def test_lisi_of_groups_far_apart_is_1():
    points = np.concatenate([line(150), 1000 + line(150)])
    assert lisi(points, np.repeat(["a", "b"], 150)) == pytest.approx(1)


def test_lisi_of_few_cells_takes_all_others_as_neighbours():
    # 6 cells, all as far from each other: 2 of the 5 neighbours are of the own group
    groups = np.tile(["a", "b"], 3)
    assert lisi(np.eye(6), groups) == pytest.approx(1 / (0.4**2 + 0.6**2))


def test_lisi_does_not_depend_on_the_scale_or_the_order_of_cells():
    rng = np.random.default_rng(1)
    points, groups = rng.normal(size=(150, 2)), rng.choice(["a", "b"], 150)
    order = rng.permutation(150)
    expected = lisi(points, groups)
    assert lisi(7 * points, groups) == pytest.approx(expected)
    assert lisi(points[order], groups[order]) == pytest.approx(expected)


def test_scores_are_from_0_to_1():
    points = np.concatenate([line(150), 1000 + line(150)])
    halves, alternating = np.repeat(["a", "b"], 150), np.tile(["x", "y"], 150)
    best = integration(points, alternating, halves)
    worst = integration(points, halves, alternating)
    assert best.batch_mixing > 0.97
    assert best.label_separation == pytest.approx(1)
    assert worst.batch_mixing == pytest.approx(0, abs=1e-6)
    assert worst.label_separation < 0.03


def test_three_batches_mixed_alike_are_as_good_as_two():
    batches = np.tile(["a", "b", "c"], 70)
    found = integration(line(210), batches, np.repeat(["x", "y"], 105))
    assert 0.97 < found.batch_mixing < 1


def test_silhouette_is_scaled_from_0_to_1():
    # the two nearest cells of each label are 1 apart; the other label 9 to 11
    points = np.array([[0.0], [1.0], [10.0], [11.0]])
    labels = np.array(["a", "a", "b", "b"])
    plain = (9.5 / 10.5 + 8.5 / 9.5) / 2
    found = integration(points, labels, labels).label_silhouette
    assert found == pytest.approx((plain + 1) / 2)


def test_of_many_cells_some_are_scored(monkeypatch):
    monkeypatch.setattr(module, "MOST_COMPARED", 60)
    first, same, other = (compared_cells(200, seed) for seed in (0, 0, 1))
    assert len(first) == len(np.unique(first)) == 60
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(compared_cells(50, 0), np.arange(50))


def test_scores_of_a_single_batch_or_label_are_not_numbers():
    one, two = np.full(40, "a"), np.tile(["x", "y"], 20)
    of_batch, of_label = (
        integration(line(40), *pair) for pair in ((one, two), (two, one))
    )
    assert np.isnan(Integration(*of_batch).batch_mixing)
    assert np.isnan(of_label.label_separation)
    assert np.isnan(of_label.label_silhouette)
    assert np.isfinite([of_batch.label_separation, of_label.batch_mixing]).all()
