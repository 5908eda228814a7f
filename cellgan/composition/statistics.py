"""What mixtures of training cells are worth: tables, comparisons and a verdict.

A mixture's value on an evaluation set is the mean over seeds of the median over cells.
Two things make it uncertain: which cells there are, and which seed drew and trained.
Cells are resampled for all mixtures and seeds alike, so that differences are paired;
seeds are resampled too. With few seeds their resampling is too narrow, so nothing is
claimed that the spread between seeds does not allow as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellgan.evaluation.scoring import INTERVAL
from cellgan.seeds import derive_seed

Floats = npt.NDArray[np.float64]

TRAINED = "trained model"
COMPONENTS = "principal components"
MEAN_PROFILE = "mean of training cells"
LOWER_IS_BETTER = frozenset(
    {
        *("nll", "mmd_squared", "energy_distance", "sliced_wasserstein"),
        "frechet_distance",
    }
)
TITLES: Mapping[str, str] = {
    "r2": "squared correlation, variable genes",
    "correlation": "correlation, variable genes",
    "r2_all_genes": "squared correlation, all genes",
    "nll": "minus log-likelihood",
    "elbo": "evidence lower bound",
    "mmd_squared": "squared MMD",
    "energy_distance": "energy distance",
    "sliced_wasserstein": "sliced 1-Wasserstein distance",
    "frechet_distance": "Fréchet distance",
}
KEYS = ("evaluation", "metric", "model", "group", "mixture")


class Statistic(NamedTuple):
    """One metric on one evaluation set, of several mixtures and seeds."""

    draws: Floats
    """``(n_mixtures, n_seeds, 1 + n_replicates)``; the first are the values, the others
    of resampled cells, the same ones for all mixtures and seeds."""
    n_cells: int
    n_undefined: int
    """Cells without a value in some model, left out of all."""
    spread: Mapping[str, Floats] | None = None
    """``mean``, ``q25``, ``q75`` of the cells, ``(n_mixtures, n_seeds)``."""


def resampled_medians(values: Floats, n_replicates: int, seed: int) -> Statistic:
    """Return medians over cells, as they are and resampled with replacement.

    Parameters
    ----------
    values
        ``(n_mixtures, n_seeds, n_cells)``; nan where undefined.
    """
    is_known = np.isfinite(values).all(axis=(0, 1))
    known = values[:, :, is_known]
    n_mixtures, n_seeds, n_cells = known.shape
    draws = np.full((n_mixtures, n_seeds, 1 + n_replicates), np.nan)
    spread = {
        name: np.full((n_mixtures, n_seeds), np.nan) for name in ("mean", "q25", "q75")
    }
    if n_cells:
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, n_cells, (n_replicates, n_cells), dtype=np.int32)
        for place in np.ndindex(n_mixtures, n_seeds):
            cells = known[place]
            draws[place][0] = np.median(cells)
            draws[place][1:] = np.median(cells[rows], axis=1)
            spread["mean"][place] = cells.mean()
            spread["q25"][place], spread["q75"][place] = np.percentile(cells, (25, 75))
    return Statistic(draws, n_cells, int((~is_known).sum()), spread)


def summarise(
    statistic: Statistic,
    mixtures: Sequence[str],
    baseline: str,
    size_control: str | None,
    seed: int,
) -> list[dict[str, Any]]:
    """Return a row per mixture: its value, what it is uncertain by, and differences.

    Returns
    -------
    ``value`` (mean over seeds), ``se_cells`` (of the cells, seeds as they are),
    ``sd_seeds``, ``se`` (of both), ``low`` and ``high`` (95 %, cells and seeds
    resampled), and the same of the paired differences to the baseline and to the size
    control, with ``log2_ratio`` to the baseline.
    """
    draws = statistic.draws
    n_seeds, n_replicates = draws.shape[1], draws.shape[2] - 1
    rng = np.random.default_rng(derive_seed(seed, "seeds"))
    drawn_seeds = rng.integers(0, n_seeds, (n_replicates, n_seeds))
    others = {"difference": mixtures.index(baseline)}
    if size_control is not None:
        others["control_difference"] = mixtures.index(size_control)
    rows = []
    for index, mixture in enumerate(mixtures):
        row: dict[str, Any] = {
            "mixture": mixture,
            "n_cells": statistic.n_cells,
            "n_undefined": statistic.n_undefined,
            "n_seeds": n_seeds,
            **_estimate(draws[index], drawn_seeds, "value"),
        }
        if statistic.spread is not None:
            row |= {name: of[index].mean() for name, of in statistic.spread.items()}
        for name, other in others.items():
            paired = draws[index] - draws[other]
            row |= _estimate(paired, drawn_seeds, name)
            row[f"{name}_same_sign"] = bool(
                (np.sign(paired[:, 0]) == np.sign(paired[:, 0].mean())).all()
            )
        row["log2_ratio"] = log2_ratio(row["value"], draws[others["difference"], :, 0])
        rows.append(row)
    return rows


def _estimate(
    draws: Floats, drawn_seeds: npt.NDArray[np.int64], name: str
) -> dict[str, float]:
    """Describe the mean over seeds of ``(n_seeds, 1 + n_replicates)`` draws."""
    values = draws[:, 0]
    n_seeds = len(values)
    se_cells = float(draws[:, 1:].mean(axis=0).std(ddof=1))
    sd_seeds = float(values.std(ddof=1)) if n_seeds > 1 else float("nan")
    of_seeds = 0.0 if n_seeds == 1 else sd_seeds**2 / n_seeds
    columns = np.arange(1, draws.shape[1])
    both = draws[drawn_seeds, columns[:, None]].mean(axis=1)
    low, high = np.percentile(both, INTERVAL)
    prefix = "" if name == "value" else f"{name}_"
    return {
        name: float(values.mean()),
        f"{prefix}se_cells": se_cells,
        f"{prefix}sd_seeds": sd_seeds,
        f"{prefix}se": float(np.sqrt(se_cells**2 + of_seeds)),
        f"{prefix}low": float(low),
        f"{prefix}high": float(high),
    }


def log2_ratio(value: float, baseline: Floats) -> float:
    """Return log2 of a value over the baseline's mean; nan unless it is positive."""
    other = float(baseline.mean())
    ratio = value / other if other else float("nan")
    return float(np.log2(ratio)) if ratio > 0 else float("nan")


"""What reconstructs cells: a model, or what is learned without one."""
