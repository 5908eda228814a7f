"""Which mixtures are better than the baseline, beyond their size and simple models."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from scipy.stats import t as student

from cellgan.composition.statistics import (
    COMPONENTS,
    LOWER_IS_BETTER,
    MEAN_PROFILE,
    TRAINED,
)
from cellgan.evaluation.report.tables import number


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
