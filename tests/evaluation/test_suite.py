"""Intervals, scores, and what the suite makes of its families."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cellgan.evaluation.metrics.catalogue import Metric
from cellgan.evaluation.suite import (
    COSTS,
    FAMILIES,
    Chosen,
    choose_floor,
    covariate_agreements,
    interval,
    make_sides,
    median_bandwidths,
    metric_record,
    overall_score,
    score_draws,
)
from tests.evaluation.corruptions import comparison
from tests.synthetic import make_cells

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
        {"family": "a", "label": None, "score": 1.4, "earns": True},
        {"family": "a", "label": None, "score": 0.0, "earns": True},
        {"family": "b", "label": None, "score": 1.0, "earns": True},
        {"family": "b", "label": None, "score": None, "earns": True},
        {"family": "c", "label": "B", "score": 0.0, "earns": True},
    ]
    assert overall_score(records) == pytest.approx((0.5 + 1.0) / 2)


def scores(*rows: tuple[str, float, bool]):
    return [
        {"family": family, "label": None, "score": score, "earns": earns}
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
    assert np.isnan(overall_score(scores(("a", 1.0, False))))


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
    said = metric_record(metric, "family", "rna", None, estimates)["no_score"]
    assert said == reason or reason in said


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


def test_progress_knows_the_cost_of_every_part():
    assert set(COSTS) == {"fit", *(family.name for family in FAMILIES)}


def test_covariates_are_confirmed_one_by_one_and_all_at_once():
    cells = make_cells(200)
    compared = comparison(cells, make_cells(120, seed=1), make_cells(120, seed=2))
    sides = make_sides(compared, compared.modalities["rna"], seed=0)
    assert covariate_agreements(compared, sides, 0) == {}
    # a covariate that is the label, and one that is its opposite half of the time
    same = dict(compared.labels)
    wrong = {side: of.copy() for side, of in compared.labels.items()}
    wrong["generated"][::2] = "another"
    covariates = {"same": same, "wrong": wrong}
    shares = covariate_agreements(
        dataclasses.replace(compared, covariates=covariates), sides, 0
    )
    found = {name: float(of["generated"][0]) for name, of in shares.items()}
    assert found["agreement_of_same"] > 0.9
    assert found["agreement_of_wrong"] == pytest.approx(
        0.5 * found["agreement_of_same"], abs=0.05
    )
    assert found["agreement_of_all_covariates"] == found["agreement_of_wrong"]
    assert shares["agreement_of_wrong"]["control"][0] > 0.9


def test_one_category_alone_is_no_agreement():
    cells = make_cells(200)
    compared = comparison(cells, make_cells(120, seed=1), make_cells(120, seed=2))
    one = {side: np.full(len(of), "only") for side, of in compared.labels.items()}
    compared = dataclasses.replace(compared, covariates={"donor": one})
    sides = make_sides(compared, compared.modalities["rna"], seed=0)
    shares = covariate_agreements(compared, sides, 0)
    assert np.isnan([of["generated"][0] for of in shares.values()]).all()
