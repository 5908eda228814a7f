"""Scores: from the numbers of every pair to one record with interval and score.

The score is ``(value - floor) / (ceiling - floor)``: 0 at the floor, 1 at the value of
real cells. `cellgan.evaluation.suite` says what the floors are for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cellgan.evaluation.comparison.space import Floats
from cellgan.evaluation.metrics.catalogue import FLOORS, Floor, Metric
from cellgan.evaluation.report.document import MetricRecord
from cellgan.evaluation.report.tables import family_means

INTERVAL = (2.5, 97.5)
"""Percentiles of the bootstrap between which an interval lies."""
FEWEST_ERRORS_APART = 3.0
"""A ceiling fewer standard errors than this from its floor gives no score."""
FEWEST_ERRORS_EARNED = 8.0
"""A ceiling fewer standard errors than this better than the independent floor gives no
score that earns trust: noise would decide it. With 5, copies of 1,200 real cells had
scores as low as 0.54."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What a score is measured from."""

    floor: Floor | None
    earns: bool
    """Whether it is the independent floor."""


def metric_record(
    metric: Metric,
    family: str,
    modality: str,
    estimates: Mapping[str, Floats | None],
    *,
    label: str | None = None,
    n: int,
    space: str,
) -> MetricRecord:
    """Return one number with its interval, ceiling, floors and score.

    Parameters
    ----------
    estimates
        "value", "ceiling" and the floors -> one number per draw, the first of the cells
        as they are; None where a pair has none.
    n
        Cells a side.
    space
        Where it is computed, in words.
    """
    none = np.array([np.nan])
    value, ceiling = (
        none if estimates[kind] is None else np.asarray(estimates[kind])
        for kind in ("value", "ceiling")
    )
    floors = {
        floor: float(none[0] if (of := estimates.get(floor)) is None else of[0])
        for floor in FLOORS
        if floor in estimates
    }
    low, high = interval(value)
    chosen = choose_floor(metric, ceiling, floors)
    floor = floors[chosen.floor] if chosen.floor else np.nan
    if metric.more_is_better and not ceiling[0] > floor:
        floor = np.nan
    scores = score_draws(value, ceiling, floor)
    score_low, score_high = interval(scores)
    return MetricRecord(
        name=metric.name,
        title=metric.title,
        family=family,
        modality=modality,
        label=label,
        value=value[0],
        low=low,
        high=high,
        ceiling=ceiling[0],
        floors=floors,
        floor=chosen.floor,
        earns=chosen.earns,
        score=scores[0],
        score_low=score_low,
        score_high=score_high,
        no_score=why_no_score(metric, value[0], ceiling[0], scores[0]),
        meaning=metric.meaning,
        n=n,
        space=space,
    )


def choose_floor(
    metric: Metric, ceiling: Floats, floors: Mapping[Floor, float]
) -> Chosen:
    """Return the independent floor where the metric tells it from real cells.

    That is only asked of metrics that claim to see dependence. Which way is better is
    known from the weaker floor, which the catalogue names.
    """
    if metric.floor is None or metric.floor == "independent":
        return Chosen(metric.floor, earns=metric.floor is not None)
    strict, weak = (floors.get(of, np.nan) for of in ("independent", metric.floor))
    is_better = (ceiling[0] - strict) * (ceiling[0] - weak) > 0
    if (
        "dependence" in metric.sees
        and is_better
        and are_told_apart(ceiling, strict, FEWEST_ERRORS_EARNED)
    ):
        return Chosen("independent", earns=True)
    return Chosen(metric.floor, earns=False)


def are_told_apart(
    ceiling: Floats, floor: float, n_errors: float = FEWEST_ERRORS_APART
) -> bool:
    """Tell whether real cells differ from a floor by this many standard errors."""
    if not np.isfinite([ceiling[0], floor]).all():
        return False
    error = np.nanstd(ceiling[1:]) if len(ceiling) > 2 else 0.0
    return bool(abs(ceiling[0] - floor) > max(n_errors * error, 1e-12))


def why_no_score(
    metric: Metric, value: float, ceiling: float, score: float
) -> str | None:
    """Return why there is no score, if there is none."""
    if np.isfinite(score):
        return None
    if metric.floor is None:
        return "no floor lacks what the metric looks for"
    if np.isfinite([value, ceiling]).all():
        return (
            "real cells are not better than the floor"
            if metric.more_is_better
            else "real cells cannot be told from the floor"
        )
    if metric.needs_counts:
        return "undefined where cells are not counts"
    if metric.needs_labels:
        return "undefined: too few cells of two labels, or no feature that differs"
    return "undefined for these cells"


def interval(draws: Floats) -> tuple[float, float]:
    """Return the ends of the bootstrap interval around the first draw.

    Resampled cells repeat each other, which biases many statistics (correlations fall,
    distances shrink): the spread of the replicates is laid around the value itself.
    """
    replicates = draws[1:][np.isfinite(draws[1:])]
    if len(replicates) < 2 or not np.isfinite(draws[0]):
        return np.nan, np.nan
    low, high = np.percentile(replicates - replicates.mean(), INTERVAL)
    return float(draws[0] + low), float(draws[0] + high)


def score_draws(value: Floats, ceiling: Floats, floor: float) -> Floats:
    """Return ``(value - floor) / (ceiling - floor)`` for the value and every draw.

    Draw ``b`` of value and ceiling share their resample of held-out cells. All nan when
    the ceiling cannot be told from the floor.
    """
    undefined = np.full(1, np.nan)
    if not (np.isfinite(value[0]) and are_told_apart(ceiling, floor)):
        return undefined
    n = min(len(value), len(ceiling))
    centred = [
        np.concatenate([of[:1], of[1:n] - np.nanmean(of[1:n]) + of[0]])
        if n > 1
        else of[:1]
        for of in (value, ceiling)
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        scores: Floats = (centred[0] - floor) / (centred[1] - floor)
    return scores


def overall_score(records: Sequence[MetricRecord]) -> float | None:
    """Return the mean score of families (`tables.family_means`)."""
    pooled = [record for record in records if record.label is None]
    scores = [score for score in family_means(pooled).values() if score is not None]
    return float(np.mean(scores)) if scores else None
