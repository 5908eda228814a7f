"""The numbers are right where the answer is known, and see just what they claim to.

Real cells in place of generated ones score 1. A floor scores 0. Each defect moves the
metrics that claim to see it, no others, and the verdict names it. Copies of training
cells are caught as such and by nothing else.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from cellgan.evaluation import evaluate as report
from cellgan.evaluation.metrics.catalogue import Defect
from cellgan.evaluation.suite import FAMILIES, judge_cells
from tests.evaluation.corruptions import (
    DEFECTS,
    as_it_is,
    comparison,
    poisson_by_label,
)
from tests.evaluation.sides import population
from tests.synthetic import SyntheticCells

METRICS = {metric.name: metric for family in FAMILIES for metric in family.metrics}
CLAIMED = 0.1
"""A defect moves the score of a metric that claims to see it by at least this."""
UNCLAIMED = 0.16
"""And that of all others by at most this, or within their interval."""


FLOOR = {"train_on_generated_f1": 0.25}
"""Two draws of a floor differ by less, by 0.1 where nothing is said: a classifier
trained on permuted cells guesses, and no interval of test cells knows what."""


def part(cells: SyntheticCells, rows) -> SyntheticCells:
    return SyntheticCells(cells.counts[rows], cells.labels[rows])


@pytest.fixture(scope="module")
def sides():
    """Return training, held-out and generated cells of one population."""
    cells = population(6000)
    order = np.random.default_rng(0).permutation(6000)
    return [part(cells, rows) for rows in np.split(order, [3600, 4800])]


def is_within(score: float, row) -> bool:
    """Tell whether a score is within 5 standard errors, 2.55 half-widths of 95 %."""
    low, high = (
        row.score + 2.55 * (getattr(row, end) - row.score)
        for end in ("score_low", "score_high")
    )
    return low <= score <= high


def judged(sides, spoil):
    """Return pooled metric records, and the verdict with its findings."""
    training, held_out, generated = sides
    compared = comparison(training, held_out, spoil(generated))
    found = judge_cells(compared, seed=0)
    check = report.check_memorisation(compared, found.main, 0)
    entry = report.entry(compared, found, check, seed=0)
    records = {row.name: row for row in entry.metrics if row.label is None}
    return records, entry


@pytest.fixture(scope="module")
def clean(sides):
    return judged(sides, as_it_is)


@pytest.fixture(scope="module", params=DEFECTS)
def spoiled(request, sides):
    return request.param, *judged(sides, DEFECTS[request.param])


@pytest.mark.slow
def test_real_cells_score_1_within_their_interval(clean):
    records, _ = clean
    scored = {name: row for name, row in records.items() if row.score is not None}
    missed = {
        name: (row.score_low, row.score, row.score_high)
        for name, row in scored.items()
        if not is_within(1, row)
    }
    assert missed == {}
    assert len(scored) > 25


@pytest.mark.slow
def test_real_cells_are_called_close(clean):
    _, entry = clean
    assert entry.verdict.grade == "close"
    assert not entry.memorisation.leaks
    assert entry.overall > 0.95


@pytest.mark.slow
def test_defect_moves_the_metrics_that_claim_to_see_it(spoiled):
    defect, records, _ = spoiled
    blind = {
        name: row.score
        for name, row in records.items()
        if defect in METRICS[name].sees
        and (defect != "dependence" or row.earns)
        and row.score is not None
        and row.score > 1 - CLAIMED
    }
    assert blind == {}


@pytest.mark.slow
def test_defect_moves_no_other_metric(spoiled):
    defect, records, _ = spoiled
    moved = {
        name: (row.score, row.score_high)
        for name, row in records.items()
        if defect not in METRICS[name].sees
        and row.score is not None
        and row.score < 1 - UNCLAIMED
        and row.score_high < 1
    }
    assert moved == {}


NAMED = {
    "missing_label": "No cells of type B were generated",
    "library_size": "Library sizes are wrong: the median is",
    "dependence": "Genes do not vary together within a label",
    "weak_effects": "Differences between labels are too small",
    "noise_cells": "of the generated cells lie nowhere near a real one",
}


@pytest.mark.slow
def test_verdict_names_the_defect(spoiled):
    defect, _, entry = spoiled
    assert any(NAMED[defect] in finding for finding in entry.verdict.findings)
    assert entry.verdict.grade != "close"


def test_every_defect_is_known_and_tried():
    assert set(DEFECTS) == set(NAMED) == set(get_args(Defect))


@pytest.mark.slow
@pytest.mark.parametrize("floor", ["independent", "permuted", "label_means"])
def test_floor_scores_0_by_the_metrics_it_is_the_floor_of(sides, floor):
    from cellgan.evaluation.comparison.floors import floor_cells

    training, held_out, generated = sides
    counts = floor_cells(
        floor,
        training.counts,
        training.labels,
        generated.counts,
        generated.labels,
        seed=11,
    )
    compared = comparison(training, held_out, SyntheticCells(counts, generated.labels))
    records = judge_cells(compared, seed=0).records
    missed = {
        row.name: row.score
        for row in records
        if row.label is None
        and row.floor == floor
        and np.isfinite(row.score)
        and abs(row.score) > FLOOR.get(row.name, 0.1)
        and not is_within(0, row)
    }
    assert missed == {}


@pytest.mark.slow
def test_independent_genes_earn_no_trust(sides):
    """A Poisson distribution for every gene and label is no model of cells."""
    training, *_ = sides
    _, entry = judged(sides, lambda cells: poisson_by_label(training, cells))
    assert entry.verdict.grade == "far"
    assert entry.overall < 0.2


def copies_of(sides, n_training: int):
    """Put training cells in the place of generated ones."""
    training, held_out, _ = sides
    some = part(training, np.arange(n_training))
    rows = np.random.default_rng(1).permutation(n_training)[:1200]
    return [some, held_out, part(some, rows)]


COPIED = {True: 0.7, False: 1 - UNCLAIMED}
"""Scores that earn trust are over a range of 8 standard errors of the ceiling or more,
and of as many of the value: they have a standard error of up to 0.18. Checks are moved
by copies a little, since the space is learned from some of the copied cells."""


@pytest.mark.slow
@pytest.mark.parametrize("n_training", [250, 3600])
def test_copies_of_training_cells_are_caught_by_memorisation_and_nothing_else(
    sides, n_training
):
    records, entry = judged(copies_of(sides, n_training), as_it_is)
    assert entry.memorisation.leaks
    assert entry.verdict.grade == "leak"
    assert all("Memorised" in finding for finding in entry.verdict.findings)
    low = {
        name: row.score
        for name, row in records.items()
        if row.score is not None
        and row.score < COPIED[row.earns]
        and row.score_high < 1
    }
    assert low == {}


def test_metric_without_claims_of_its_own_is_an_exception():
    blind = {name for name, metric in METRICS.items() if not metric.sees}
    assert blind <= {"zero_fraction_spearman", "rare_label_f1_gain"}


def test_defects_change_nothing_but_generated_cells(sides):
    training, held_out, generated = sides
    before = [side.counts.copy() for side in sides]
    for spoil in DEFECTS.values():
        spoil(generated)
    for side, counts in zip((training, held_out, generated), before, strict=True):
        assert (side.counts != counts).nnz == 0
