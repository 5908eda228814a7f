"""Intervals of shares and of areas under curves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from cellgan.evaluation.metrics import shares


def test_share_has_the_interval_of_wilson():
    expected = binomtest(7, 40).proportion_ci(0.95, "wilson")
    decided = binomtest(7, 40).proportion_ci(0.999, "wilson")
    found = shares.estimated_share(7 / 40, 40)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.at_least == pytest.approx(decided.low)


def test_area_under_curve_counts_pairs_and_ties():
    rng = np.random.default_rng(2)
    positives, negatives = rng.integers(0, 6, 30), rng.integers(0, 5, 20)
    expected = roc_auc_score(
        np.repeat([1, 0], [30, 20]), np.concatenate([positives, negatives])
    )
    found = shares.area_under_curve(positives, negatives)
    assert found.value == pytest.approx(expected)


def test_area_under_curve_has_the_interval_of_delong():
    # placements of positives 1, 1, 0 (variance 1/3), of negatives 2/3, 2/3 (0)
    found = shares.area_under_curve(np.array([5.0, 4, 1]), np.array([2.0, 3]))
    assert found.value == pytest.approx(2 / 3)
    error = np.sqrt(1 / 3 / 3)  # 1/12 for two samples of one distribution
    assert found.low == pytest.approx(2 / 3 - 1.959964 * error)
    assert found.at_least == pytest.approx(2 / 3 - 3.290527 * error)


def test_perfect_attack_on_few_cells_is_not_certain():
    found = shares.area_under_curve(np.arange(3.0) + 9, np.arange(3.0))
    assert found.value == 1
    assert found.low == pytest.approx(1 - 1.959964 * np.sqrt(7 / 108))
