"""Pictures of cells: their map, their sizes, their distance to training cells."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.neighbors import NearestNeighbors

from cellgan.evaluation.comparison.pairs import Pair
from cellgan.evaluation.comparison.space import Floats, Labels
from cellgan.evaluation.figures.canvas import (
    GENERATED_COLOUR,
    GRID_COLOUR,
    SIDE_COLOURS,
    Picture,
    handle,
    legend_above,
    percent,
    png,
    shortened,
    side_handles,
)
from cellgan.evaluation.figures.maps import METHOD_TITLES, embed
from cellgan.seeds import derive_seed

MOST_MAPPED_CELLS = 1000
"""At most this many cells of each side are mapped: 2,000 points fill a map."""
N_NEIGHBOURS = 15
MOST_PANELS = 20
QUANTILES = np.linspace(0.01, 0.99, 99)


Points = npt.NDArray[np.float32]


class NearestDistances(NamedTuple):
    """Distance of every cell to the nearest training cell."""

    generated: Floats
    held_out: Floats


class CellMap(NamedTuple):
    """Cells of both sides in the plane, real ones first."""

    points: Points
    """``(n_cells, 2)``."""
    labels: Labels
    is_real: npt.NDArray[np.bool_]
    method: Literal["tsne", "umap"]


def map_cells(pair: Pair, method: Literal["tsne", "umap"]) -> CellMap:
    """Map cells of both sides into the plane together, by their components."""
    rng = np.random.default_rng(derive_seed(pair.frame.seed, "map"))
    sides = [
        side.take(np.sort(rng.permutation(len(side))[:MOST_MAPPED_CELLS]))
        for side in (pair.real, pair.other)
    ]
    points = embed(
        np.concatenate([side.components for side in sides]),
        method=method,
        seed=derive_seed(pair.frame.seed, method),
        log_components=False,
    )
    labels = np.concatenate([side.labels for side in sides])
    return CellMap(points, labels, np.arange(len(points)) < len(sides[0]), method)


def map_picture(cells: CellMap) -> Picture:
    """Draw the map, coloured by side."""
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    _draw_sides(axes, cells, np.ones(len(cells.points), dtype=bool))
    name = METHOD_TITLES[cells.method]
    axes.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
    n_real, n_made = int(cells.is_real.sum()), int((~cells.is_real).sum())
    legend_above(figure, side_handles((f" ({n_real})", f" ({n_made})")))
    mixing, best = _mixing(cells)
    return Picture(
        "map",
        f"{name} map of real and generated cells",
        f"{name} map of {n_real} held-out real and {n_made} generated cells. Of the "
        f"{N_NEIGHBOURS} points nearest to a generated cell, {percent(mixing)} are "
        f"generated on average; perfectly mixed sides would give {percent(best)}.",
        png(figure),
    )


def _draw_sides(axes: Axes, cells: CellMap, shown: npt.NDArray[np.bool_]) -> None:
    """Draw points in random order: neither side hides the other."""
    order = np.random.default_rng(0).permutation(np.flatnonzero(shown))
    colours = np.where(cells.is_real[order], *SIDE_COLOURS)
    axes.scatter(*_xy(cells.points[order]), s=9, c=colours, alpha=0.6, linewidths=0)
    axes.set(xticks=[], yticks=[])


def _xy(points: Points) -> tuple[Points, Points]:
    return points[:, 0], points[:, 1]


def _mixing(cells: CellMap) -> tuple[float, float]:
    """Return the share of generated cells around generated ones, and of all others."""
    generated = cells.points[~cells.is_real]
    others = len(cells.points) - 1
    index = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, others) + 1)
    nearest = index.fit(cells.points).kneighbors(generated, return_distance=False)
    is_generated = ~cells.is_real[nearest[:, 1:]]
    return float(np.mean(is_generated)), (len(generated) - 1) / others


def label_maps(cells: CellMap) -> Picture:
    """Draw the map once per label, its real cells against its generated ones."""
    labels, numbers = np.unique(cells.labels, return_counts=True)
    shown = np.sort(labels[np.argsort(-numbers, kind="stable")[:MOST_PANELS]])
    n_columns = int(np.ceil(np.sqrt(len(shown))))
    n_rows = -(-len(shown) // n_columns)
    figure = Figure(
        figsize=(2.7 * n_columns + 0.2, 2.8 * n_rows + 0.5), layout="constrained"
    )
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    for axes, label in zip(panels, shown, strict=False):
        _draw_label(axes, cells, label)
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    legend_above(figure, [*side_handles(), handle("0.8", "other labels")])
    name = METHOD_TITLES[cells.method]
    left_out = len(labels) - len(shown)
    rest = f" The {left_out} smallest labels are left out." if left_out else ""
    sentences = "; ".join(_where_generated(cells, label) for label in shown)
    return Picture(
        "labels",
        f"The same {name} map, label by label",
        f"The {name} map, one panel per label. {sentences}.{rest}",
        png(figure),
    )


def _draw_label(axes: Axes, cells: CellMap, label: str) -> None:
    is_label = cells.labels == label
    axes.scatter(*_xy(cells.points[~is_label]), s=2, c="0.87", linewidths=0)
    _draw_sides(axes, cells, is_label)
    n_real = (is_label & cells.is_real).sum()
    title = (
        f"{shortened(label, 30)}\n{n_real} real, {is_label.sum() - n_real} generated"
    )
    axes.set_title(title, fontsize=10)


def _where_generated(cells: CellMap, label: str) -> str:
    """Say next to which real cells a label's generated cells are."""
    is_label = cells.labels == label
    n_real = int((is_label & cells.is_real).sum())
    generated = cells.points[is_label & ~cells.is_real]
    numbers = f"{label}: {n_real} real and {len(generated)} generated cells"
    if not n_real or not len(generated):
        return numbers
    index = NearestNeighbors(n_neighbors=1).fit(cells.points[cells.is_real])
    nearest = index.kneighbors(generated, return_distance=False)[:, 0]
    share = float(np.mean(cells.labels[cells.is_real][nearest] == label))
    return f"{numbers}, {percent(share)} of these next to a real cell of the label"


def size_picture(pair: Pair) -> Picture:
    """Draw quantiles of library sizes and detected genes, generated against real."""
    sides = (pair.real, pair.other)
    panels = [("genes detected in a cell", [np.diff(of.values.indptr) for of in sides])]
    if pair.frame.are_counts:
        sizes = [np.asarray(of.values.sum(axis=1)).ravel() for of in sides]
        panels.insert(0, ("library size (counts in a cell)", sizes))
    figure = Figure(figsize=(4.9 * len(panels), 4.6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, of_sides) in zip(all_axes, panels, strict=True):
        _draw_quantiles(axes, name, *of_sides)
    sentences = "; ".join(_quantiles_sentence(*panel) for panel in panels)
    return Picture(
        "sizes",
        "Quantiles of cell sizes",
        "Quantiles of generated against those of real cells; equal distributions lie "
        f"on the diagonal. {sentences}.",
        png(figure),
    )


def _draw_quantiles(axes: Axes, name: str, real: Floats, made: Floats) -> None:
    points = np.quantile(real, QUANTILES), np.quantile(made, QUANTILES)
    start, end = float(np.min(points)), float(np.max(points))
    axes.axline((end, end), slope=1, color="0.35", linewidth=1, linestyle="--")
    axes.plot(*points, "o", color=GENERATED_COLOUR, markersize=3.5, alpha=0.7)
    for share in (0.05, 0.5, 0.95):
        at = np.quantile(real, share), np.quantile(made, share)
        axes.plot(*at, "o", color="black", markersize=5)
        axes.annotate(percent(share), at, (6, -10), textcoords="offset points")
    margin = 0.06 * (end - start) or 1.0
    limits = (start - margin, end + margin)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set(xlabel="quantile of real cells", ylabel="quantile of generated cells")
    axes.set_title(name, fontsize=11)
    axes.grid(color=GRID_COLOUR)


def _quantiles_sentence(name: str, sides: list[Floats]) -> str:
    (low, median, high), (made_low, made_median, made_high) = (
        np.quantile(side, (0.05, 0.5, 0.95)) for side in sides
    )
    return (
        f"{name}: median {median:.0f} in real and {made_median:.0f} in generated cells,"
        f" 5 to 95 %: {low:.0f} to {high:.0f} and {made_low:.0f} to {made_high:.0f}"
    )


def distance_picture(distances: NearestDistances) -> Picture:
    """Draw distances to the nearest training cell, generated against held-out."""
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    made, real = distances
    end = max(np.quantile(side, 0.99) for side in distances) or 1.0
    bins = np.linspace(0, end, 51)
    names = ("held-out real cells", "generated cells")
    for values, colour, name in zip((real, made), SIDE_COLOURS, names, strict=True):
        counts, _ = np.histogram(values.clip(max=end), bins)
        heights = counts / len(values)
        axes.stairs(heights, bins, fill=True, color=colour, alpha=0.15)
        axes.stairs(heights, bins, color=colour, linewidth=2, label=name)
    xlabel = "distance to the nearest training cell (the last bar holds all beyond)"
    axes.set(xlabel=xlabel, ylabel="share of cells", xlim=(0, end))
    axes.legend(frameon=False)
    axes.grid(color=GRID_COLOUR)
    nearer = float(np.mean(made < np.quantile(real, 0.05)))
    return Picture(
        "distances",
        "Distance to the nearest training cell",
        "Histograms of the distance to the nearest training cell: median "
        f"{np.median(made):.3g} for {len(made)} generated and {np.median(real):.3g} "
        f"for {len(real)} held-out real cells. {percent(nearer)} of the generated "
        "cells are nearer than the nearest 5 % of held-out ones; "
        f"{int((made == 0).sum())} are at no distance at all.",
        png(figure),
    )
