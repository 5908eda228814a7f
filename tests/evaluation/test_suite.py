"""Intervals, scores, and what the suite makes of its families."""

from __future__ import annotations

import numpy as np
import pytest

from cellgan.evaluation.catalogue import Metric
from cellgan.evaluation.suite import (
    FAMILIES,
    interval,
    median_bandwidths,
    metric_record,
    overall_score,
    score_draws,
)

METRIC = Metric(
    name="example",
    title="example",
    meaning="an example",
    space="components",
    floor="permuted",
    sees=frozenset(),
)


def draws(value: float, spread: float = 0.01, *, bias: float = 0.0, n: int = 400):
    noise = np.random.default_rng(0).normal(bias, spread, size=n)
    return np.concatenate([[value], value + noise])


def test_interval_lies_around_the_value_whatever_the_bias_of_resamples():
    low, high = interval(draws(0.8, 0.01, bias=-0.3))
    # 1.96 standard deviations; 5 standard errors of a quantile of 400 draws are 0.007
    assert low == pytest.approx(0.8 - 0.0196, abs=0.007)
    assert high == pytest.approx(0.8 + 0.0196, abs=0.007)


def test_interval_is_undefined_without_resamples():
    assert np.isnan(interval(np.array([0.5]))).all()


def test_score_is_1_at_the_ceiling_and_0_at_the_floor():
    ceiling = draws(0.9)
    assert score_draws(draws(0.9), ceiling, 0.1)[0] == pytest.approx(1)
    assert score_draws(draws(0.1), ceiling, 0.1)[0] == pytest.approx(0)
    assert score_draws(draws(0.5), ceiling, 0.1)[0] == pytest.approx(0.5)


def test_score_works_where_less_is_better():
    assert score_draws(draws(0.6), draws(0.5), 1.0)[0] == pytest.approx(0.8)


def test_shared_noise_of_the_held_out_cells_cancels_in_the_score():
    value, ceiling = draws(0.6, 0.05), draws(0.6, 0.05)  # the same draws
    scores = score_draws(value, ceiling, 0.0)
    np.testing.assert_allclose(scores, 1.0)


def test_ceiling_that_is_not_told_from_the_floor_gives_no_score():
    assert np.isnan(score_draws(draws(0.5), draws(0.5, 0.1), 0.4)).all()


def test_record_holds_value_ceiling_floors_and_score():
    estimates = {
        "value": draws(0.5),
        "ceiling": draws(0.9),
        "independent": np.array([0.2]),
        "permuted": np.array([0.1]),
        "label_means": None,
    }
    record = metric_record(METRIC, "family", "rna", "B", estimates)
    assert (record["value"], record["ceiling"]) == (0.5, 0.9)
    assert record["floors"]["permuted"] == 0.1
    assert np.isnan(record["floors"]["label_means"])
    assert record["score"] == pytest.approx(0.5)
    assert record["low"] < 0.5 < record["high"]
    assert record["score_low"] < 0.5 < record["score_high"]


def test_overall_score_weighs_families_not_metrics_and_clips():
    records = [
        {"family": "a", "label": None, "score": 1.4},
        {"family": "a", "label": None, "score": 0.0},
        {"family": "b", "label": None, "score": 1.0},
        {"family": "b", "label": None, "score": None},
        {"family": "c", "label": "B", "score": 0.0},
    ]
    assert overall_score(records) == pytest.approx((0.5 + 1.0) / 2)


def test_overall_score_is_undefined_without_scores():
    assert np.isnan(overall_score([]))


def test_bandwidths_are_multiples_of_the_median_distance():
    line = np.arange(3.0)[:, None]  # distances 1, 1, 2
    assert median_bandwidths(line) == (0.25, 0.5, 1.0, 2.0, 4.0)


def test_every_metric_has_one_name_and_a_whole_record():
    metrics = [metric for family in FAMILIES for metric in family.metrics]
    names = [metric.name for metric in metrics]
    assert len(set(names)) == len(names) > 35
    assert all(
        metric.meaning and not metric.meaning.endswith(".") for metric in metrics
    )
