"""Figures of real and generated cells.

Figures are Matplotlib `Figure` objects drawn by Agg, never pyplot's: nothing is kept
after saving and no global state (backend, current figure) is touched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from natsort import natsorted
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cellgan.evaluation.comparison.space import (
    N_COMPONENTS,
    Floats,
    Labels,
    Matrix,
    dense,
)
from cellgan.experiment import replacing

REAL_COLOUR = "#1f5fbf"
GENERATED_COLOUR = "#d62728"
LEGEND_ROWS = 30
MOST_GENE_NAMES = 100
FEW_CELLS = 1000
MOST_IN_A_ROW = 4
"""Panels of a figure."""
FEWEST_CELLS = 4  # that t-SNE and UMAP find neighbours among
METHOD_TITLES = {"tsne": "t-SNE", "umap": "UMAP"}
STRATEGY_COLOURS = ("#7f7f7f", "#ff7f0e", "#1f5fbf", "#2ca02c", "#9467bd")


class Estimate(NamedTuple):
    """A mean over repeats and the ends of its confidence interval (nan for one)."""

    mean: float
    low: float
    high: float


def embedding_figure(  # noqa: PLR0913  (two sides with labels, and how to map them)
    path: Path,
    real: Matrix,
    generated: Matrix,
    real_labels: Labels | None = None,
    generated_labels: Labels | None = None,
    *,
    method: Literal["tsne", "umap"] = "tsne",
    seed: int,
    log_components: bool = True,
    categories: Sequence[str] | None = None,
    title: str = "",
) -> npt.NDArray[np.float32]:
    """Map real and generated cells into the plane together, and draw the map.

    Real cells are "*", generated ones "o". With labels, each label has one colour for
    both; without, real cells are blue and generated ones red.

    Parameters
    ----------
    path
        File to write; its ending says the format (``.png``, ``.jpg``, ``.pdf``, ...).
    real, generated
        Cells on the same scale, ``(n, n_features)`` and ``(m, n_features)``.
    real_labels, generated_labels
        Label of every cell; both or neither.
    method
        - ``"tsne"``: Barnes-Hut t-SNE on all cores.
        - ``"umap"``: UMAP; takes 10 s or more to load.
    seed
        The same seed and cells give the same map.
    log_components
        Map 50 principal components of log1p values; with false the values as they
        are, for example components computed before.
    categories
        All labels in order, so that colours stay the same from one figure to the
        next; by default the labels present, sorted.
    title
        Title of the figure.

    Returns
    -------
    Coordinates ``(n + m, 2)``, real cells first.
    """
    cells = np.concatenate([dense(real), dense(generated)])
    coordinates = embed(cells, method=method, seed=seed, log_components=log_components)
    labels = None
    if real_labels is not None and generated_labels is not None:
        labels = np.concatenate([real_labels, generated_labels])
    map_figure(
        path,
        coordinates,
        real.shape[0],
        labels,
        name=METHOD_TITLES[method],
        categories=categories,
        title=title,
    )
    return coordinates


def map_figure(
    path: Path,
    coordinates: npt.NDArray[np.float32],
    n_real: int,
    labels: Labels | None,
    *,
    name: str,
    categories: Sequence[str] | None = None,
    title: str = "",
) -> None:
    """Draw a map of real and generated cells: see `embedding_figure`.

    Parameters
    ----------
    path
        File to write.
    coordinates
        In the plane, ``(n_cells, 2)``, of `n_real` real cells and then generated ones.
    labels
        Of all these cells; None for one colour a side.
    name
        Of the map, for the axes.
    categories
        All labels in order; by default those present, sorted.
    title
        Title of the figure.
    """
    is_real = np.arange(len(coordinates)) < n_real
    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.add_subplot()
    if labels is None:
        handles = _draw_sides(axes, coordinates, is_real)
    else:
        order = list(categories if categories is not None else np.unique(labels))
        handles = _draw_labels(axes, coordinates, is_real, labels, order)
    axes.set(xlabel=f"{name} 1", ylabel=f"{name} 2", title=title, xticks=[], yticks=[])
    figure.legend(
        handles=handles,
        loc="outside right upper",
        ncols=-(-len(handles) // LEGEND_ROWS),
        frameon=False,
        fontsize=9,
    )
    save(figure, path)


def integration_figure(
    path: Path,
    maps: Sequence[npt.NDArray[Any]],
    batches: Labels,
    labels: Labels,
    batch_name: str,
) -> None:
    """Map cells before and after a correction, by batch (above) and label (below).

    Parameters
    ----------
    path
        File to write.
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
            names = natsorted(set(groups))
            colours = dict(zip(names, _colours(len(names)), strict=True))
            of_each = np.array([colours[group] for group in groups])
            axes.scatter(*at.T, s=5, c=of_each, linewidths=0, rasterized=True)
            axes.set(xticks=[], yticks=[])
        panels[0, column].set_title(f"{when} correction of {batch_name}")
    for axes, groups in zip(panels[:, 1], (batches, labels), strict=True):
        names = natsorted(set(groups))
        colours = dict(zip(names, _colours(len(names)), strict=True))
        axes.legend(
            handles=[_handle("s", colour, str(n)) for n, colour in colours.items()],
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            frameon=False,
            fontsize=9,
        )
    save(figure, path)


def guidance_figure(
    path: Path,
    scales: Sequence[float],
    measures: Mapping[str, Sequence[float]],
) -> None:
    """Draw measures of generated cells against the guidance scale.

    Parameters
    ----------
    path
        File to write.
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
    save(figure, path)


def influence_figure(
    path: Path,
    labels: Mapping[str, Mapping[str, float]],
    categories: Mapping[str, Mapping[str, float]],
    title: str,
) -> None:
    """Draw what heads contribute, by label, and by category of their own field.

    Parameters
    ----------
    path
        File to write.
    labels
        Label -> head -> share of the contributions of the label's cells, from 0 to 1.
    categories
        Field -> category -> share of the field's head in cells of the category.
    title
        Of the figure.
    """
    heads = list(next(iter(labels.values())))
    colours = dict(zip(heads, _colours(len(heads)), strict=True))
    n_bars = max(len(labels), sum(map(len, categories.values())))
    figure = Figure(figsize=(12, 2 + 0.3 * n_bars), layout="constrained")
    left, right = figure.subplots(1, 2)
    start = np.zeros(len(labels))
    for head in heads:
        shares = np.array([of[head] for of in labels.values()])
        left.barh(list(labels), shares, left=start, color=colours[head], label=head)
        start += shares
    left.set(xlim=(0, 1), xlabel="share of contributions", title="by label")
    for field, of_field in categories.items():
        names = [f"{field}: {category}" for category in of_field]
        right.barh(names, list(of_field.values()), color=colours[field])
    right.set(xlabel="share of the field's head in its own cells", title="by category")
    for axes in (left, right):
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        handles=[_handle("s", colour, head) for head, colour in colours.items()],
        loc="outside lower center",
        ncols=min(len(heads), 8),
        frameon=False,
    )
    figure.suptitle(title)
    save(figure, path)


def embed(
    cells: npt.NDArray[np.float32],
    *,
    method: Literal["tsne", "umap"],
    seed: int,
    log_components: bool,
) -> npt.NDArray[np.float32]:
    """Return the 2-D map that `embedding_figure` draws.

    Fewer than `FEWEST_CELLS` cells are mapped to their two principal components.
    """
    if len(cells) < FEWEST_CELLS:
        return _two_components(np.log1p(cells) if log_components else cells)
    if log_components:
        pca = PCA(min(N_COMPONENTS, *cells.shape), random_state=seed)
        cells = pca.fit_transform(np.log1p(cells))
    if method == "umap":
        from umap import UMAP  # noqa: PLC0415  (compiles for seconds when imported)

        n_neighbors = min(15, len(cells) - 1)
        mapper = UMAP(n_neighbors=n_neighbors, random_state=seed, n_jobs=1)
    else:
        perplexity = min(30.0, (len(cells) - 1) / 3)
        mapper = TSNE(perplexity=perplexity, random_state=seed, n_jobs=-1)
    # Few cells are mapped faster by one thread: 160 in 0.5 s, in 2.5 s by two.
    with threadpool_limits(1 if len(cells) < FEW_CELLS else None):
        return np.asarray(mapper.fit_transform(cells), np.float32)


def _two_components(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return principal components ``(n, 2)``, zeros where there is no second one."""
    left, lengths, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    components = (left * lengths)[:, :2]
    padding = ((0, 0), (0, 2 - components.shape[1]))
    return np.pad(components, padding).astype(np.float32)


def gene_figure(
    path: Path,
    means: tuple[Floats, Floats],
    rates: tuple[Floats, Floats],
    correlations: tuple[float, float],
) -> None:
    """Draw every gene's mean and detection rate, generated against real.

    Parameters
    ----------
    path
        File to write.
    means, rates
        Mean log expression and share of cells that express a gene, each
        ``(n_genes,)`` of real, then of generated cells.
    correlations
        Pearson's correlations of the two, for the titles.
    """
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    panels = figure.subplots(1, 2)
    names = ("mean of log1p expression", "share of cells that express the gene")
    for axes, name, sides, correlation in zip(
        panels, names, (means, rates), correlations, strict=True
    ):
        end = 1.03 * max(side.max() for side in sides)
        axes.plot([0, end], [0, end], color="0.6", linewidth=1, zorder=0)
        axes.scatter(*sides, s=8, alpha=0.4, color=REAL_COLOUR, linewidths=0)
        axes.set(xlabel="real", ylabel="generated", aspect="equal")
        axes.set_title(f"{name}, r = {correlation:.3f}")
    save(figure, path)


def correlation_figure(
    path: Path, real: Floats, generated: Floats, genes: Sequence[str]
) -> None:
    """Draw gene-gene correlations: generated lower left, real upper right.

    Parameters
    ----------
    path
        File to write.
    real, generated
        Correlation matrices ``(n_genes, n_genes)``, two or more genes. Genes are
        arranged by hierarchical clustering of the real one.
    genes
        Gene names.
    """
    distances = squareform(1 - real, checks=False)
    order = leaves_list(linkage(distances, "average", optimal_ordering=True))
    arranged = np.ix_(order, order)
    both = np.triu(real[arranged], 1) + np.tril(generated[arranged], -1)
    np.fill_diagonal(both, np.nan)
    figure = Figure(figsize=(10, 9), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(both, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.set_title(f"Correlation of the {len(genes)} most variable genes")
    axes.set(xlabel="generated (lower left)", ylabel="real (upper right)")
    axes.yaxis.set_label_position("right")
    named = order if len(genes) <= MOST_GENE_NAMES else order[:0]
    names = [genes[index] for index in named]
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=max(4, min(9, 400 // max(1, len(genes)))))
    figure.colorbar(image, label="Pearson's correlation", shrink=0.7)
    save(figure, path)


def strategy_figure(
    path: Path,
    fractions: Sequence[float],
    scores: Mapping[str, Sequence[Estimate]],
    *,
    title: str,
) -> None:
    """Draw the F1 of each strategy against the fraction of cells left.

    Parameters
    ----------
    path
        File to write.
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
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure by temporary name and rename.

    All text is shown as it is: a label or gene may have dollar signs in its name,
    between which Matplotlib would read mathematics.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)


def _draw_sides(
    axes: Axes, coordinates: npt.NDArray[np.float32], is_real: npt.NDArray[np.bool_]
) -> list[Line2D]:
    _scatter(axes, coordinates[is_real], "*", REAL_COLOUR)
    _scatter(axes, coordinates[~is_real], "o", GENERATED_COLOUR)
    return [
        _handle("*", REAL_COLOUR, "real"),
        _handle("o", GENERATED_COLOUR, "generated"),
    ]


def _draw_labels(
    axes: Axes,
    coordinates: npt.NDArray[np.float32],
    is_real: npt.NDArray[np.bool_],
    labels: Labels,
    categories: Sequence[str],
) -> list[Line2D]:
    colours = dict(zip(categories, _colours(len(categories)), strict=True))
    of_each = np.array([colours[label] for label in labels])
    _scatter(axes, coordinates[is_real], "*", of_each[is_real])
    _scatter(axes, coordinates[~is_real], "o", of_each[~is_real])
    return [
        _handle("*", "0.3", "real"),
        _handle("o", "0.3", "generated"),
        *(_handle("s", colour, str(label)) for label, colour in colours.items()),
    ]


def _scatter(
    axes: Axes, coordinates: npt.NDArray[np.float32], marker: str, colour: Any
) -> None:
    """Draw real cells as filled stars, generated ones as rings that hide little."""
    if marker == "*":
        style = {"s": 30, "color": colour, "linewidths": 0, "alpha": 0.75}
    else:
        style = {"s": 16, "facecolors": "none", "edgecolors": colour, "alpha": 0.8}
    axes.scatter(*coordinates.T, marker=marker, rasterized=True, **style)


def _handle(marker: str, colour: Any, label: str) -> Line2D:
    fill = "none" if marker == "o" else colour
    return Line2D(
        [], [], linestyle="", marker=marker, color=colour, mfc=fill, label=label
    )


def _colours(n: int) -> list[Any]:
    """Return `n` colours that can be told apart as well as `n` allows."""
    if n <= 20:
        return list(colormaps["tab10" if n <= 10 else "tab20"](range(n)))
    return list(colormaps["nipy_spectral"](np.linspace(0.04, 0.94, n)))
