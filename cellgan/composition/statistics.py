"""What mixtures of training cells are worth: tables, comparisons and a verdict.

A mixture's value on an evaluation set is the mean over seeds of the median over cells.
Two things make it uncertain: which cells there are, and which seed drew and trained.
Cells are resampled for all mixtures and seeds alike, so that differences are paired;
seeds are resampled too. With few seeds their resampling is too narrow, so nothing is
claimed that the spread between seeds does not allow as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from cellgan.evaluation.report.tables import number
from cellgan.evaluation.scoring import INTERVAL
from cellgan.seeds import derive_seed

Floats = npt.NDArray[np.float64]

TRAINED = "trained model"
MEAN_PROFILE = "mean of training cells"
COMPONENTS = "principal components"
"""What reconstructs cells: a model, or what is learned without one."""
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
N_TOP_GENES = 50
"""Of each end of a factor."""
VARIES = 1e-6
"""Directions of a latent with a smaller share of its variance are none."""


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


@dataclasses.dataclass(frozen=True)
class MixtureVerdict:
    """What the numbers of one evaluation set allow to say."""

    evaluation: str
    best: str
    """Mixture of the best value, the size control left out unless alone."""
    beats_control: bool | None
    """Whether it beats the size control by more than seeds differ; None if there is no
    size control, or one seed."""
    sentences: tuple[str, ...]


def mixture_verdict(
    rows: pd.DataFrame,
    evaluation: str,
    metric: str,
    baseline: str,
    size_control: str | None,
) -> MixtureVerdict:
    """Say what one evaluation set tells, and no more than its error bars carry.

    Parameters
    ----------
    rows
        Rows of the summary of one evaluation, metric and of all cells: those of trained
        models and of what is learned without one.
    """
    sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
    trained = rows[rows["model"] == TRAINED].set_index("mixture")
    candidates = trained.drop(index=[size_control] if size_control else [])
    candidates = candidates if len(candidates) else trained
    order = (sign * candidates["value"]).sort_values(ascending=False)
    if not np.isfinite(order.iloc[0]):
        sentence = f"{evaluation}: {metric} is undefined."
        return MixtureVerdict(evaluation, baseline, None, (sentence,))
    best = str(order.index[0])
    row = trained.loc[best]
    base = trained.loc[baseline]
    of_baseline = f"; the baseline {baseline} has {_with_error(base)}"
    beside = ""
    if size_control and sign * trained.loc[size_control, "value"] > order.iloc[0]:
        beside = " but for the size control"
    sentences = [
        f"{evaluation}: the best mixture{beside} is {best}, {metric} {_with_error(row)}"
        f"{'' if best == baseline else of_baseline}."
    ]
    beats = None
    if size_control is None:
        sentences.append(
            "There is no size control: more cells and other cells are not told apart."
        )
    elif best == size_control:
        sentences.append("It is the size control: there is nothing to compare it with.")
    elif int(row["n_seeds"]) == 1:
        sentences.append(
            "One seed: how much trainings differ is not known, so no difference is "
            f"claimed (to the size control {size_control}: "
            f"{number(row['control_difference'])})."
        )
    else:
        n_rivals = len(candidates)
        beats, sentence = _against_control(trained, best, size_control, sign, n_rivals)
        sentences.append(sentence)
    sentences += _against_simple(rows, best, sign)
    return MixtureVerdict(evaluation, best, beats, tuple(sentences))


def _against_control(
    trained: pd.DataFrame, best: str, control: str, sign: float, n_rivals: int
) -> tuple[bool, str]:
    """Say whether a lead is more than chance and the choice of the best would give.

    Few seeds tell little of their own spread, and the best of several is partly the
    luckiest: the lead must be above 0 by as many standard errors as Student's t asks,
    at 95 % for all `n_rivals` together (Bonferroni).
    """
    row = trained.loc[best]
    difference = sign * row["control_difference"]
    spread = max(
        row["sd_seeds"],
        trained.loc[control, "sd_seeds"],
        row["control_difference_sd_seeds"],
    )
    ends = sign * row["control_difference_low"], sign * row["control_difference_high"]
    freedom = int(row["n_seeds"]) - 1
    n_errors = float(student.ppf(1 - 0.025 / n_rivals, freedom))
    needed = max(spread, n_errors * row["control_difference_se"])
    is_sure = min(ends) > 0 and bool(row["control_difference_same_sign"])
    numbers = (
        f"{number(abs(difference))} (95 % interval {number(min(ends))} to "
        f"{number(max(ends))}), seeds differ by {number(spread)}"
    )
    if difference > needed and is_sure:
        return True, (
            f"It beats the size control {control} by {numbers}: it is what the cells "
            "are that helps, not their number."
        )
    if difference > 0:
        return False, (
            f"It is ahead of the size control {control} by {numbers}: that is not "
            f"enough to claim anything ({number(needed)} would be, of the best of "
            f"{n_rivals} with {freedom + 1} seeds)."
        )
    return False, (
        f"It is behind the size control {control} by {numbers}: as many more cells of "
        "the baseline's kind do as well or better."
    )


def _against_simple(rows: pd.DataFrame, best: str, sign: float) -> list[str]:
    """Say so where the best model is no better than what needs no model."""
    trained = rows[rows["model"] == TRAINED].set_index("mixture").loc[best]
    found = []
    for name in (MEAN_PROFILE, COMPONENTS):
        of_name = rows[rows["model"] == name].set_index("mixture")
        if of_name.empty:
            continue
        simple = of_name.loc[(sign * of_name["value"]).idxmax()]
        error = float(np.hypot(simple["se"], trained["se"]))
        lead = sign * (trained["value"] - simple["value"])
        if lead <= 2 * error:
            word = "no better than" if lead > -2 * error else "worse than"
            found.append(
                f"The model is {word} the {name} of {simple.name} "
                f"({number(simple['value'])})."
            )
    return found


def _with_error(row: pd.Series) -> str:
    return f"{number(row['value'])} ± {number(row['se'])}"


def linear_predictability(one: Floats, other: Floats) -> float:
    """Return how much of one latent a linear map of another tells, on other cells.

    Every second cell fits the map and the others judge it.

    Parameters
    ----------
    one
        ``(n_cells, n_latent)``, what is predicted from.
    other
        ``(n_cells, m_latent)`` of the same cells, what is predicted.

    Returns
    -------
    R2, at most 1: the share of the variance of `other` that is predicted; nan of too
    few cells, or of a latent that does not vary.
    """
    fit, judge = slice(0, None, 2), slice(1, None, 2)
    if len(one) < 4 * (one.shape[1] + 1):
        return float("nan")
    design = np.column_stack([one, np.ones(len(one))])
    weights = np.linalg.lstsq(design[fit], other[fit], rcond=None)[0]
    missed = ((other[judge] - design[judge] @ weights) ** 2).sum()
    total = ((other[judge] - other[fit].mean(axis=0)) ** 2).sum()
    return float(1 - missed / total) if total > 0 else float("nan")


def canonical_correlations(one: Floats, other: Floats) -> Floats:
    """Return the canonical correlations of two latents of the same cells, falling."""
    bases = [_basis(np.asarray(of, np.float64)) for of in (one, other)]
    if min(basis.shape[1] for basis in bases) == 0:
        return np.zeros(0)
    found = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return np.asarray(np.minimum(found, 1.0), np.float64)


def _basis(latent: Floats) -> Floats:
    """Return an orthonormal basis of the directions in which a latent varies."""
    left, scale, _ = np.linalg.svd(latent - latent.mean(axis=0), full_matrices=False)
    varies = scale**2 > VARIES * (scale**2).sum()
    basis: Floats = left[:, varies]
    return basis


def top_gene_overlap(one: Floats, other: Floats, n_top: int = N_TOP_GENES) -> Floats:
    """Return how far factors of two models have the same genes at their ends.

    Factors have no order and no sign: each is paired with one of the other model so
    that overlaps are largest.

    Parameters
    ----------
    one, other
        Loadings ``(n_genes, n_latent)`` of the same genes.
    n_top
        Genes of each end of a factor, by signed loading.

    Returns
    -------
    Jaccard index of the ends, mean of both, for each pair, falling.
    """
    ends = [_ends(np.asarray(of, np.float64), n_top) for of in (one, other)]
    overlap = np.zeros((len(ends[0]), len(ends[1])))
    for i, mine in enumerate(ends[0]):
        for j, theirs in enumerate(ends[1]):
            same, turned = (
                np.mean([_jaccard(a, b) for a, b in zip(mine, of, strict=True)])
                for of in (theirs, theirs[::-1])
            )
            overlap[i, j] = max(same, turned)
    rows, columns = linear_sum_assignment(-overlap)
    found: Floats = np.sort(overlap[rows, columns])[::-1]
    return found


def _ends(loadings: Floats, n_top: int) -> list[tuple[set[int], set[int]]]:
    order = np.argsort(loadings, axis=0, kind="stable")
    n_top = min(n_top, len(loadings) // 2)
    return [
        (set(column[:n_top].tolist()), set(column[-n_top:].tolist()))
        for column in order.T
    ]


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def latent_rows(
    latents: Mapping[tuple[str, int], Floats], evaluation: str
) -> Iterator[dict[str, Any]]:
    """Yield comparisons of latents: of mixtures with one seed, of seeds of a mixture.

    Parameters
    ----------
    latents
        (mixture, seed) -> latents of the same cells.
    """
    for (mixture, seed), one in latents.items():
        for (other_mixture, other_seed), other in latents.items():
            is_other_seed = mixture == other_mixture and seed != other_seed
            if not is_other_seed and (seed != other_seed or mixture == other_mixture):
                continue
            correlations = canonical_correlations(one, other)
            yield {
                "evaluation": evaluation,
                "mixture": mixture,
                "seed": seed,
                "other_mixture": other_mixture,
                "other_seed": other_seed,
                "predictability": linear_predictability(one, other),
                "canonical_correlation": float(correlations.mean())
                if len(correlations)
                else float("nan"),
            }


def loading_rows(
    loadings: Mapping[tuple[str, int], Floats],
) -> Iterator[dict[str, Any]]:
    """Yield comparisons of loadings, of the pairs of `latent_rows`, each once."""
    keys = list(loadings)
    for index, (mixture, seed) in enumerate(keys):
        for other_mixture, other_seed in keys[index + 1 :]:
            if mixture != other_mixture and seed != other_seed:
                continue
            one = loadings[mixture, seed]
            found = top_gene_overlap(one, loadings[other_mixture, other_seed])
            n_top = min(N_TOP_GENES, len(one) // 2)
            yield {
                "mixture": mixture,
                "seed": seed,
                "other_mixture": other_mixture,
                "other_seed": other_seed,
                "overlap": float(found.mean()),
                "largest_overlap": float(found[0]),
                "by_chance": n_top / (2 * len(one) - n_top),
            }
