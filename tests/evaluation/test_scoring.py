"""Intervals, floors and scores."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from cellgan.evaluation.metrics.catalogue import Metric
from cellgan.evaluation.scoring import (
    Chosen,
    choose_floor,
    interval,
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
    record = metric_record(METRIC, "family", "rna", estimates, n=9, space="")
    assert (record.value, record.ceiling) == (0.5, 0.9)
    assert record.floors["permuted"] == 0.1
    assert record.floors["label_means"] is None
    assert record.score == pytest.approx(0.5)
    assert record.low < 0.5 < record.high
    assert record.score_low < 0.5 < record.score_high


def test_overall_score_weighs_families_not_metrics_and_clips():
    records = [
        *scores(("a", 1.4, True), ("a", 0.0, True), ("b", 1.0, True)),
        *scores(("b", None, True)),
        SimpleNamespace(family="c", label="B", score=0.0, earns=True),
    ]
    assert overall_score(records) == pytest.approx((0.5 + 1.0) / 2)


def scores(*rows: tuple[str, float, bool]):
    return [
        SimpleNamespace(family=family, label=None, score=score, earns=earns)
        for family, score, earns in rows
    ]


def test_checks_lower_a_family_and_never_raise_it():
    earned = ("a", 0.5, True)
    assert overall_score(scores(earned, ("a", 1.0, False))) == pytest.approx(0.5)
    assert overall_score(scores(earned, ("a", 0.2, False))) == pytest.approx(0.2)


def test_family_of_checks_alone_is_at_most_what_others_earn():
    earned = (("a", 0.2, True), ("b", 0.4, True))
    assert overall_score(scores(*earned, ("c", 1.0, False))) == pytest.approx(0.3)
    assert overall_score(scores(*earned, ("c", 0.0, False))) == pytest.approx(0.2)


def test_checks_alone_earn_no_score():
    assert overall_score(scores(("a", 1.0, False))) is None


JOINT = dataclasses.replace(METRIC, sees=frozenset({"dependence"}))
FLOORS = {"independent": 0.3, "permuted": 0.1, "label_means": 0.9}


def test_metric_that_sees_dependence_is_scored_from_independent_genes():
    chosen = choose_floor(JOINT, draws(0.8), FLOORS)
    assert (chosen.floor, chosen.earns) == ("independent", True)


def test_metric_that_does_not_see_dependence_is_a_check():
    chosen = choose_floor(METRIC, draws(0.8), FLOORS)
    assert (chosen.floor, chosen.earns) == ("permuted", False)


def test_metric_that_independent_genes_pass_is_a_check():
    near = choose_floor(JOINT, draws(0.37), FLOORS)  # 7 standard errors
    better = choose_floor(JOINT, draws(0.2), FLOORS)  # on the other side
    assert {near, better} == {Chosen("permuted", earns=False)}


@pytest.mark.parametrize(
    ("metric", "value", "ceiling", "reason"),
    [
        (METRIC, 0.5, 0.9, None),
        (METRIC, 0.5, 0.1, "real cells cannot be told from the floor"),
        (dataclasses.replace(METRIC, more_is_better=True), 0.5, 0.9, None),
        (dataclasses.replace(METRIC, more_is_better=True), 0.5, -9, "are not better"),
        (dataclasses.replace(METRIC, floor=None), 0.5, 0.9, "no floor lacks"),
        (METRIC, np.nan, 0.9, "undefined for these cells"),
        (dataclasses.replace(METRIC, needs_labels=True), np.nan, 1, "no feature that"),
        (dataclasses.replace(METRIC, needs_counts=True), np.nan, 1, "are not counts"),
    ],
)
def test_missing_score_has_a_reason(metric, value, ceiling, reason):
    estimates = {
        "value": draws(value),
        "ceiling": draws(ceiling),
        **{name: np.array([0.1]) for name in FLOORS},
    }
    said = metric_record(metric, "family", "rna", estimates, n=9, space="").no_score
    assert said == reason or reason in said


def test_overall_score_is_undefined_without_scores():
    assert overall_score([]) is None
