"""Figures of studies: each function draws one, and whoever calls it saves it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from natsort import natsorted

from cellgan.evaluation.comparison.space import Labels
from cellgan.evaluation.figures.canvas import (
    GENERATED_COLOUR,
    REAL_COLOUR,
    category_colours,
)

MOST_IN_A_ROW = 4
"""Panels of a figure."""
STRATEGY_COLOURS = ("#7f7f7f", "#ff7f0e", "#1f5fbf", "#2ca02c", "#9467bd")


class MeanInterval(NamedTuple):
    """A mean over repeats and the ends of its confidence interval (nan for one)."""

    mean: float
    low: float
    high: float


def integration_figure(
    maps: Sequence[npt.NDArray[Any]],
    batches: Labels,
    labels: Labels,
    batch_name: str,
) -> Figure:
    """Map cells before and after a correction, by batch (above) and label (below).

    Parameters
    ----------
    maps
        Of `embed`: before and after, ``(n_cells, 2)`` each.
    batches, labels
        Of every cell.
    batch_name
        Name of what was corrected.
    """
    figure = Figure(figsize=(13, 10.5), layout="constrained")
    panels = figure.subplots(2, 2)
    for column, (when, at) in enumerate(zip(("before", "after"), maps, strict=True)):
        for axes, groups in zip(panels[:, column], (batches, labels), strict=True):
            colours = _colour_by_name(natsorted(set(groups)))
            each = np.array([colours[group] for group in groups])
            axes.scatter(*at.T, s=5, c=each, linewidths=0, rasterized=True)
            axes.set(xticks=[], yticks=[])
        panels[0, column].set_title(f"{when} correction of {batch_name}")
    for axes, groups in zip(panels[:, 1], (batches, labels), strict=True):
        axes.legend(
            handles=_squares(_colour_by_name(natsorted(set(groups)))),
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            fontsize=9,
        )
    return figure


def guidance_figure(
    scales: Sequence[float],
    measures: Mapping[str, Sequence[float]],
) -> Figure:
    """Draw measures of generated cells against the guidance scale.

    Parameters
    ----------
    scales
        Ascending.
    measures
        title -> a value for each scale, then that of real cells.
    """
    n_rows = math.ceil(len(measures) / MOST_IN_A_ROW)
    n_columns = math.ceil(len(measures) / n_rows)
    size = (4.2 * n_columns, 3.8 * n_rows)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes in panels[len(measures) :]:
        axes.set_axis_off()
    for axes, (title, values) in zip(panels, measures.items(), strict=False):
        axes.plot(scales, values[:-1], "o-", color=GENERATED_COLOUR, label="generated")
        axes.axhline(values[-1], color=REAL_COLOUR, linestyle="--", label="real cells")
        axes.set(xlabel="guidance scale", title=title.replace(": ", "\n", 1))
    panels[0].legend(frameon=False)
    return figure


def influence_figure(
    labels: Mapping[str, Mapping[str, float]],
    categories: Mapping[str, Mapping[str, float]],
    title: str,
) -> Figure:
    """Draw what heads contribute, by label, and by category of their own field.

    Parameters
    ----------
    labels
        Label -> head -> share of the contributions of the label's cells, from 0 to 1.
    categories
        Field -> category -> share of the field's head in cells of the category.
    title
        Of the figure.
    """
    heads = list(next(iter(labels.values())))
    colours = _colour_by_name(heads)
    n_bars = max(len(labels), sum(map(len, categories.values())))
    figure = Figure(figsize=(12, 2 + 0.3 * n_bars), layout="constrained")
    left, right = figure.subplots(1, 2)
    start = np.zeros(len(labels))
    for head in heads:
        shares = np.array([by_head[head] for by_head in labels.values()])
        left.barh(list(labels), shares, left=start, color=colours[head], label=head)
        start += shares
    left.set(xlim=(0, 1), xlabel="share of contributions", title="by label")
    for field, by_category in categories.items():
        names = [f"{field}: {category}" for category in by_category]
        right.barh(names, list(by_category.values()), color=colours[field])
    right.set(xlabel="share of the field's head in its own cells", title="by category")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=_squares(colours),
        loc="outside lower center",
        ncols=min(len(heads), 8),
        frameon=False,
    )
    figure.suptitle(title)
    return figure


def strategy_figure(
    fractions: Sequence[float],
    scores: Mapping[str, Sequence[MeanInterval]],
    *,
    title: str,
) -> Figure:
    """Draw the F1 of each strategy against the fraction of cells left.

    Parameters
    ----------
    fractions
        Fractions, in any order.
    scores
        strategy -> one estimate per fraction, with its confidence interval.
    title
        Title of the figure.
    """
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    order = np.argsort(fractions)
    at = np.asarray(fractions)[order]
    for colour, (strategy, estimates) in zip(
        STRATEGY_COLOURS, scores.items(), strict=False
    ):
        mean, low, high = np.asarray(estimates, np.float64)[order].T
        axes.plot(at, mean, "o-", color=colour, label=strategy, markersize=5)
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(at, [f"{100 * fraction:g} %" for fraction in at])
    axes.minorticks_off()
    axes.set(xlabel="training cells of the label that are left", ylabel="held-out F1")
    axes.set(ylim=(-0.02, 1.02), title=title)
    axes.grid(color="0.92")
    axes.legend(frameon=False)
    return figure


def _colour_by_name(names: Sequence[str]) -> dict[str, Any]:
    return dict(zip(names, category_colours(len(names)), strict=True))


def _squares(colours: Mapping[str, Any]) -> list[Line2D]:
    """Return the legend of names in colours."""
    return [
        Line2D([], [], linestyle="", marker="s", color=colour, mfc=colour, label=name)
        for name, colour in colours.items()
    ]
