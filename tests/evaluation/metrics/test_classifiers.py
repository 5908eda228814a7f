"""Two-sample classifiers: areas by hand, Gaussians, folds, labels, genes."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from cellgan.evaluation.comparison.pairs import (
    Pair,
    Resamples,
    Side,
    make_pair,
    make_side,
)
from cellgan.evaluation.metrics import classifiers
from cellgan.evaluation.metrics.classifiers import (
    METRICS,
    OutOfFold,
    auc_metrics,
    fit_out_of_fold,
    giveaway_genes,
    of_label,
    weighted_auc,
)
from tests.evaluation.sides import N_TRAINING, make_frame, population

N_CELLS = 150
FIVE_ERRORS = 5 * np.sqrt((2 * N_CELLS + 1) / (12 * N_CELLS**2))
"""Of an area between equal sides."""
SPREAD, SHIFT = 3.0, 0.6
GIVEAWAY = 7


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(classifiers, "N_TREES", 20)


@functools.cache
def frame():
    return make_frame()


def disjoint_sides() -> tuple[Side, Side]:
    cells = population()
    middle = N_TRAINING + N_CELLS
    rows = slice(N_TRAINING, middle), slice(middle, middle + N_CELLS)
    real, other = (
        make_side(cells.counts[cut], cells.labels[cut], frame().space) for cut in rows
    )
    return real, other


@functools.cache
def equal_pair() -> Pair:
    return make_pair(*disjoint_sides(), frame(), 8)


@functools.cache
def equal_scores() -> OutOfFold:
    return fit_out_of_fold(equal_pair())


@functools.cache
def unequal_pair() -> Pair:
    """Components that differ in mean, one gene that is never expressed."""
    rng = np.random.default_rng(0)
    real, other = disjoint_sides()
    noise = rng.normal(size=(2, *real.components.shape)).astype(np.float32)
    genes = other.genes.copy()
    genes[:, GIVEAWAY] = 0.0
    real = dataclasses.replace(real, components=noise[0])
    other = dataclasses.replace(other, components=noise[1] + SHIFT, genes=genes)
    return make_pair(real, other, frame(), 0)


@functools.cache
def unequal_scores() -> OutOfFold:
    return fit_out_of_fold(unequal_pair())


def random_draws(n_real: int, n_other: int, n_draws: int = 6) -> Resamples:
    rng = np.random.default_rng(3)
    drawn = Resamples(
        rng.integers(0, 4, (n_draws, n_real)).astype(float),
        rng.integers(0, 4, (n_draws, n_other)).astype(float),
    )
    drawn.real[0], drawn.other[0] = 1, 1
    return drawn


def tied_values(n_cells: int, seed: int):
    return np.random.default_rng(seed).integers(0, 5, n_cells) / 4


def test_area_of_four_pairs_counts_a_tie_half():
    draws = Resamples(np.ones((1, 2)), np.ones((1, 2)))

    np.testing.assert_allclose(weighted_auc([1.0, 0.0], [1.0, 2.0], draws), [3.5 / 4])


def test_area_of_every_draw_is_that_of_scikit_learn_with_weights():
    real, other, draws = tied_values(40, 0), tied_values(30, 1), random_draws(40, 30)

    areas = weighted_auc(real, other, draws)

    expected = [
        roc_auc_score(np.repeat([0, 1], [40, 30]), [*real, *other], sample_weight=row)
        for row in np.concatenate([draws.real, draws.other], axis=1)
    ]
    np.testing.assert_allclose(areas, expected, rtol=1e-12)


def test_area_of_a_draw_is_that_of_cells_repeated():
    real, other, draws = tied_values(40, 0), tied_values(30, 1), random_draws(40, 30)
    n_real, n_other = draws.real[1].astype(int), draws.other[1].astype(int)
    repeated = real.repeat(n_real), other.repeat(n_other)
    once = Resamples(*(np.ones((1, len(cells))) for cells in repeated))

    area = weighted_auc(real, other, draws)[1]

    np.testing.assert_allclose(area, weighted_auc(*repeated, once)[0], rtol=1e-12)


def test_area_does_not_depend_on_the_order_of_cells():
    real, other, draws = tied_values(40, 0), tied_values(30, 1), random_draws(40, 30)
    order = np.random.default_rng(4).permutation(40)
    reordered = Resamples(draws.real[:, order], draws.other)

    areas = weighted_auc(real[order], other, reordered)

    np.testing.assert_allclose(areas, weighted_auc(real, other, draws), rtol=1e-12)


@pytest.mark.parametrize(("real", "other"), [([], [1.0]), ([1.0], []), ([np.nan], [1])])
def test_area_is_nan_without_scores(real, other):
    draws = Resamples(np.ones((3, len(real))), np.ones((3, len(other))))

    assert np.isnan(weighted_auc(real, other, draws)).tolist() == [True] * 3


def test_estimates_have_every_metric_and_one_number_per_draw():
    estimates = auc_metrics(equal_pair(), equal_scores())

    assert list(estimates) == [metric.name for metric in METRICS]
    assert {len(values) for values in estimates.values()} == {9}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_equal_sides_cannot_be_told_apart(metric):
    values = auc_metrics(equal_pair(), equal_scores())[metric.name]

    assert abs(values[0] - 0.5) < FIVE_ERRORS
    assert np.std(values[1:]) > 0


def test_logistic_regression_reaches_the_best_area_for_shifted_gaussians():
    values = auc_metrics(unequal_pair(), unequal_scores())["logistic_auc_components"]

    distance = SHIFT * np.sqrt(unequal_pair().real.components.shape[1])
    best = norm.cdf(distance / np.sqrt(2))
    standard_error = np.sqrt(best * (1 - best) / N_CELLS)
    np.testing.assert_allclose(values[0], best, atol=5 * standard_error)


def test_forest_sees_the_spread_that_logistic_regression_does_not():
    pair = unequal_pair()
    spread = (pair.other.components - np.float32(SHIFT)) * np.float32(SPREAD)
    other = dataclasses.replace(
        pair.other, components=spread, genes=pair.other.genes[:, :1]
    )
    real = dataclasses.replace(pair.real, genes=pair.real.genes[:, :1])

    pair = make_pair(real, other, frame(), 0)
    estimates = auc_metrics(pair, fit_out_of_fold(pair))

    assert estimates["forest_auc_components"][0] > 0.95
    assert abs(estimates["logistic_auc_components"][0] - 0.5) < FIVE_ERRORS


def test_scores_are_the_same_for_the_same_seed():
    again = fit_out_of_fold(equal_pair())

    for name, scores in equal_scores().real.items():
        np.testing.assert_array_equal(again.real[name], scores)
    np.testing.assert_array_equal(again.importances, equal_scores().importances)


def test_label_has_the_area_of_its_cells_scores():
    pair, scores = equal_pair(), equal_scores()
    within = pair.of_label("type B", 4)

    estimates = auc_metrics(within, of_label(scores, pair, "type B"))

    name = "forest_auc_genes"
    real = scores.real[name][pair.real.labels == "type B"]
    other = scores.other[name][pair.other.labels == "type B"]
    truth = np.repeat([0, 1], [len(real), len(other)])
    assert estimates[name][0] == pytest.approx(roc_auc_score(truth, [*real, *other]))
    assert estimates[name].shape == (5,)


def test_label_without_cells_is_nan():
    pair = equal_pair()
    within = pair.of_label("type Z", 4)

    estimates = auc_metrics(within, of_label(equal_scores(), pair, "type Z"))

    assert all(np.isnan(values).all() for values in estimates.values())


def test_fewer_cells_than_folds_are_nan():
    pair = equal_pair()
    few = make_pair(pair.real, pair.other.take(np.arange(4)), frame(), 2)

    scores = fit_out_of_fold(few)

    assert all(np.isnan(x).all() for x in auc_metrics(few, scores).values())
    assert giveaway_genes(few, scores) == ()


def test_constant_cells_cannot_be_told_apart():
    rows = np.zeros(13, np.intp)
    real, other = equal_pair().real.take(rows), equal_pair().real.take(rows[:11])

    pair = make_pair(real, other, frame(), 0)
    estimates = auc_metrics(pair, fit_out_of_fold(pair))

    assert estimates["logistic_auc_components"][0] == 0.5
    assert estimates["logistic_auc_genes"][0] == 0.5


def test_gene_that_is_never_expressed_gives_cells_away():
    pair = unequal_pair()

    genes = giveaway_genes(pair, unequal_scores(), n=3)

    first, real = genes[0], pair.real.genes[:, GIVEAWAY]
    assert first.gene == f"gene_{frame().space.genes[GIVEAWAY]}"
    assert first.importance == pytest.approx(max(unequal_scores().importances))
    assert first.auc == pytest.approx((real == 0).mean() / 2)
    assert first.real_mean == pytest.approx(real.mean())
    assert first.real_detected == pytest.approx((real > 0).mean())
    assert (first.generated_mean, first.generated_detected) == (0.0, 0.0)


def test_giveaway_genes_come_in_order_of_importance():
    genes = giveaway_genes(unequal_pair(), unequal_scores(), n=3)

    importances = [gene.importance for gene in genes]
    assert len(importances) == 3
    assert importances == sorted(importances, reverse=True)


def test_importances_of_all_genes_sum_to_one():
    assert unequal_scores().importances.sum() == pytest.approx(1.0)
