"""Figures of a composition study: numbers in, pictures out."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from cellgan.composition.statistics import MEAN_PROFILE, TITLES, TRAINED
from cellgan.evaluation.figures.canvas import (
    GENERATED_COLOUR,
    GRID_COLOUR,
    REAL_COLOUR,
    Picture,
    png,
    shortened,
)
from cellgan.evaluation.report.tables import number

COLOURS = colormaps["RdBu_r"]
LEAST_RANGE = 0.25
"""Of log2 ratios shown: smaller differences must not look large."""
MOST_RANGE = 2.0
"""Beyond fourfold all are of one colour, or they would take it from the others."""
LONGEST_NAME = 22
MOST_POINTS = 2000
MOST_IN_A_ROW = 4


def heat_map(summary: pd.DataFrame, metric: str, baseline: str) -> Picture:
    """Draw evaluations x mixtures: values printed, colour by log2 ratio to a baseline.

    Parameters
    ----------
    summary
        Rows of trained models and all cells.
    """
    values, errors, ratios = (
        _grid(summary, column) for column in ("value", "se", "log2_ratio")
    )
    n_rows, n_columns = values.shape
    figure = Figure(
        figsize=(2.4 + 1.15 * n_columns, 1.7 + 0.62 * n_rows), layout="constrained"
    )
    axes = figure.add_subplot()
    finite = np.abs(ratios.to_numpy()[np.isfinite(ratios.to_numpy())])
    largest = float(finite.max(initial=0.0))
    limit = min(max(LEAST_RANGE, largest), MOST_RANGE)
    image = axes.imshow(
        np.ma.masked_invalid(ratios.to_numpy()),
        cmap=COLOURS,
        norm=TwoSlopeNorm(0.0, -limit, limit),
        aspect="auto",
    )
    for row, column in np.ndindex(n_rows, n_columns):
        ratio = ratios.iloc[row, column]
        is_dark = np.isfinite(ratio) and abs(ratio) > 0.65 * limit
        axes.text(
            column,
            row,
            f"{values.iloc[row, column]:.3g}\n± {errors.iloc[row, column]:.1g}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if is_dark else "black",
        )
    _name_axes(axes, list(values.columns), list(values.index))
    axes.set_title(f"{TITLES.get(metric, metric)} (baseline: {baseline})", fontsize=11)
    figure.colorbar(
        image,
        ax=axes,
        label="log2 ratio to the baseline",
        shrink=0.9,
        extend="both" if largest > limit else "neither",
    )
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{mixture} {number(of[mixture])}" for mixture in values.columns)
        for name, of in values.iterrows()
    )
    return Picture("heat_map", "mixtures by evaluation set", said, png(figure))


def _grid(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    grid = rows.pivot(index="evaluation", columns="mixture", values=column)
    return grid.loc[
        list(dict.fromkeys(rows["evaluation"])), list(dict.fromkeys(rows["mixture"]))
    ]


def _name_axes(axes: Axes, columns: list[str], rows: list[str]) -> None:
    names = [shortened(name, LONGEST_NAME) for name in columns]
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(rows)), [shortened(name, LONGEST_NAME) for name in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def differences(summary: pd.DataFrame, metric: str, against: str) -> Picture:
    """Draw paired differences with their intervals, and how far seeds differ.

    Parameters
    ----------
    summary
        As in `heat_map`.
    against
        ``"difference"`` for those to the baseline, ``"control_difference"``.
    """
    names = list(dict.fromkeys(summary["evaluation"]))
    mixtures = list(dict.fromkeys(summary["mixture"]))
    n_columns = min(MOST_IN_A_ROW, len(names))
    n_rows = math.ceil(len(names) / n_columns)
    figure = Figure(
        figsize=(1.6 + 2.9 * n_columns, 0.8 + (0.5 + 0.36 * len(mixtures)) * n_rows),
        layout="constrained",
    )
    panels = figure.subplots(n_rows, n_columns, squeeze=False, sharey=True)
    said = []
    for place, name in enumerate(names):
        axes = panels.flat[place]
        of = summary[summary["evaluation"] == name].set_index("mixture")
        for row, mixture in enumerate(mixtures):
            one = of.loc[mixture]
            low, high = one[f"{against}_low"], one[f"{against}_high"]
            spread = one[f"{against}_sd_seeds"]
            if np.isfinite(spread):
                axes.barh(row, 2 * spread, left=-spread, color=GRID_COLOUR, height=0.8)
            axes.plot([low, high], [row, row], color=REAL_COLOUR, linewidth=2)
            axes.plot(one[against], row, "o", color=REAL_COLOUR, markersize=5)
            said.append(
                f"{name}, {mixture}: {number(one[against])} "
                f"({number(low)} to {number(high)})"
            )
        axes.axvline(0, color="0.4", linewidth=1, zorder=0)
        axes.set_title(shortened(name, LONGEST_NAME), fontsize=10)
        axes.set_yticks(
            range(len(mixtures)), [shortened(m, LONGEST_NAME) for m in mixtures]
        )
        axes.locator_params(axis="x", nbins=4)
    panels.flat[0].invert_yaxis()
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    other = "baseline" if against == "difference" else "size control"
    figure.supxlabel(
        f"{metric}: difference to the {other}; line: 95 % interval; grey: one standard "
        "deviation between seeds",
        fontsize=9,
    )
    return Picture(
        f"{against}s", f"differences to the {other}", "; ".join(said), png(figure)
    )


def seed_scatter(cells: pd.DataFrame, metric: str, seeds: list[int]) -> Picture | None:
    """Draw each cell's value by one seed against another, in a panel per evaluation."""
    if len(seeds) < 2:
        return None
    first, second = seeds[:2]
    trained = cells[cells["model"] == TRAINED]
    names = list(dict.fromkeys(trained["evaluation"]))
    mixtures = list(dict.fromkeys(trained["mixture"]))
    n_columns = min(MOST_IN_A_ROW, len(names))
    n_rows = math.ceil(len(names) / n_columns)
    figure = Figure(figsize=(2.9 * n_columns, 0.5 + 2.9 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    palette = colormaps["tab10"]
    said = []
    for place, name in enumerate(names):
        axes = panels.flat[place]
        ends: list[float] = []
        for index, mixture in enumerate(mixtures):
            of = trained[
                (trained["evaluation"] == name) & (trained["mixture"] == mixture)
            ]
            one, other = (
                of[of["seed"] == seed][metric].to_numpy() for seed in (first, second)
            )
            step = -(-len(one) * len(mixtures) // MOST_POINTS)
            axes.plot(
                one[::step],
                other[::step],
                ".",
                color=palette(index % 10),
                markersize=3,
                alpha=0.5,
                label=shortened(mixture, LONGEST_NAME),
            )
            known = np.isfinite(one) & np.isfinite(other)
            if known.sum() > 2 and np.ptp(one[known]) and np.ptp(other[known]):
                r = np.corrcoef(one[known], other[known])[0, 1]
                said.append(f"{name}, {mixture}: correlation of seeds {number(r)}")
                ends += [*np.percentile(one[known], (0, 100))]
                ends += [*np.percentile(other[known], (0, 100))]
        if ends:
            axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.5", lw=1)
        axes.set(title=shortened(name, LONGEST_NAME), xlabel=f"{metric}, seed {first}")
        axes.set_ylabel(f"seed {second}")
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(5, len(labels)),
        frameon=False,
        markerscale=4,
    )
    return Picture(
        "seeds",
        f"cells by seed {first} and by seed {second}",
        "; ".join(said),
        png(figure),
    )


def box_plots(cells: pd.DataFrame, metric: str) -> Picture:
    """Draw quartiles over cells and seeds, by evaluation set and mixture."""
    trained = cells[cells["model"] == TRAINED]
    simple = cells[cells["model"] == MEAN_PROFILE]
    names = list(dict.fromkeys(trained["evaluation"]))
    mixtures = list(dict.fromkeys(trained["mixture"]))
    n_columns = min(MOST_IN_A_ROW, len(names))
    n_rows = math.ceil(len(names) / n_columns)
    figure = Figure(
        figsize=(1.2 + 2.6 * n_columns, 0.8 + 2.8 * n_rows), layout="constrained"
    )
    panels = figure.subplots(n_rows, n_columns, squeeze=False)
    said = []
    for place, name in enumerate(names):
        axes = panels.flat[place]
        of, plain = (table[table["evaluation"] == name] for table in (trained, simple))
        values = [
            of.loc[of["mixture"] == mixture, metric].dropna().to_numpy()
            for mixture in mixtures
        ]
        axes.boxplot(values, showfliers=False, widths=0.6, medianprops={"color": "k"})
        for row, mixture in enumerate(mixtures, 1):
            median = plain.loc[plain["mixture"] == mixture, metric].median()
            if np.isfinite(median):
                axes.plot(row, median, "D", color=GENERATED_COLOUR, markersize=4)
            said.append(
                f"{name}, {mixture}: median {number(float(np.median(values[row - 1])))}"
                if len(values[row - 1])
                else f"{name}, {mixture}: undefined"
            )
        axes.set_xticks(
            range(1, len(mixtures) + 1),
            [shortened(mixture, LONGEST_NAME) for mixture in mixtures],
            rotation=40,
            ha="right",
        )
        axes.set_title(shortened(name, LONGEST_NAME), fontsize=10)
        axes.grid(visible=True, axis="y", color=GRID_COLOUR)
        axes.set_axisbelow(True)
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    figure.supylabel(metric, fontsize=10)
    figure.supxlabel("red: mean of the training cells in place of a model", fontsize=9)
    return Picture("boxes", f"{metric} of cells", "; ".join(said), png(figure))


def latent_map(latents: pd.DataFrame, evaluation: str) -> Picture | None:
    """Draw what the latent of one mixture (row) tells of that of another (column).

    On the diagonal, what a seed tells of another seed of the same mixture.
    """
    of = latents[latents["evaluation"] == evaluation]
    grid = of.pivot_table(
        index="mixture", columns="other_mixture", values="predictability"
    )
    if grid.empty:
        return None
    order = [name for name in dict.fromkeys(of["mixture"]) if name in grid.index]
    grid = grid.reindex(index=order, columns=order)
    n_mixtures = len(order)
    figure = Figure(
        figsize=(2.2 + 0.8 * n_mixtures, 1.9 + 0.6 * n_mixtures), layout="constrained"
    )
    axes = figure.add_subplot()
    image = axes.imshow(
        np.ma.masked_invalid(grid.to_numpy()),
        cmap="viridis",
        vmin=0,
        vmax=1,
        aspect="auto",
    )
    for row, column in np.ndindex(n_mixtures, n_mixtures):
        value = grid.iloc[row, column]
        if np.isfinite(value):
            colour = "black" if value > 0.6 else "white"
            axes.text(
                column, row, f"{value:.2f}", ha="center", va="center", color=colour
            )
    _name_axes(axes, order, order)
    axes.set(ylabel="predicted from", xlabel="latent that is predicted")
    axes.set_title(f"linear predictability of latents, {evaluation}", fontsize=10)
    figure.colorbar(image, ax=axes, label="R2 on other cells", shrink=0.9)
    said = "; ".join(
        f"{one} tells {number(float(grid.loc[one, other]))} of {other}"
        for one in order
        for other in order
        if np.isfinite(grid.loc[one, other])
    )
    return Picture(
        f"latents_{evaluation}", f"latents on {evaluation}", said, png(figure)
    )
