"""Shares and areas under curves with the intervals that leaks are decided on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import norm, rankdata

from cellgan.evaluation.comparison.space import Floats

REPORTED = norm.isf(0.025)
"""Intervals are of 95 %, in standard errors."""
DECIDED = norm.isf(0.0005)
"""A leak is decided on intervals of 99.9 %: every report looks at several."""


class ShareEstimate(NamedTuple):
    """A share or an area under a curve, with its intervals."""

    value: float
    low: float
    high: float
    at_least: float
    """Lower end of the interval that decides."""


UNKNOWN_SHARE = ShareEstimate(np.nan, np.nan, np.nan, np.nan)


def estimated_share(value: float, n_cells: float) -> ShareEstimate:
    """Return a share with Wilson's intervals, nan of no cells."""
    if not n_cells:
        return UNKNOWN_SHARE

    def wilson(errors: float) -> tuple[float, float]:
        centre = value + errors**2 / (2 * n_cells)
        spread = value * (1 - value) / n_cells + errors**2 / (4 * n_cells**2)
        ends = np.array([-1, 1]) * errors * np.sqrt(spread) + centre
        low, high = np.clip(ends / (1 + errors**2 / n_cells), 0.0, 1.0)
        return float(low), float(high)

    return ShareEstimate(value, *wilson(REPORTED), wilson(DECIDED)[0])


def area_under_curve(positives: Floats, negatives: Floats) -> ShareEstimate:
    """Return the area under the ROC curve, its error after DeLong et al. (1988).

    The error is at least that of two samples of one distribution: DeLong's is 0 when
    all positives are above all negatives.
    """
    n, m = len(positives), len(negatives)
    ranks = rankdata(np.concatenate([positives, negatives]))
    above = (ranks[:n] - rankdata(positives)) / m
    below = 1 - (ranks[n:] - rankdata(negatives)) / n
    variance = above.var(ddof=1) / n + below.var(ddof=1) / m
    error = np.sqrt(max(variance, (n + m + 1) / (12 * n * m)))
    value = float(above.mean())
    low, high = np.clip(value + np.array([-1, 1]) * REPORTED * error, 0.0, 1.0)
    return ShareEstimate(value, float(low), float(high), value - DECIDED * error)
