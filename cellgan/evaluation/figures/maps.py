"""Figures of real and generated cells.

Figures are Matplotlib `Figure` objects drawn by Agg, never pyplot's: nothing is kept
after saving and no global state (backend, current figure) is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from cellgan.evaluation.comparison.space import (
    N_COMPONENTS,
    Labels,
    Matrix,
    dense,
)
from cellgan.evaluation.figures.canvas import (
    GENERATED_COLOUR,
    LEGEND_ROWS,
    REAL_COLOUR,
    category_colours,
    marker_handle,
)

FEW_CELLS = 1000
FEWEST_CELLS = 4  # that t-SNE and UMAP find neighbours among
METHOD_TITLES = {"tsne": "t-SNE", "umap": "UMAP"}


def embedding_figure(  # noqa: PLR0913  (two sides with labels, and how to map them)
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
) -> Figure:
    """Map real and generated cells into the plane together, and draw the map.

    Real cells are "*", generated ones "o". With labels, each label has one colour for
    both; without, real cells are blue and generated ones red.

    Parameters
    ----------
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
    """
    cells = np.concatenate([dense(real), dense(generated)])
    coordinates = embed(cells, method=method, seed=seed, log_components=log_components)
    labels = None
    if real_labels is not None and generated_labels is not None:
        labels = np.concatenate([real_labels, generated_labels])
    return map_figure(
        coordinates,
        real.shape[0],
        labels,
        name=METHOD_TITLES[method],
        categories=categories,
        title=title,
    )


def map_figure(
    coordinates: npt.NDArray[np.float32],
    n_real: int,
    labels: Labels | None,
    *,
    name: str,
    categories: Sequence[str] | None = None,
    title: str = "",
) -> Figure:
    """Draw a map of real and generated cells: see `embedding_figure`.

    Parameters
    ----------
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
    return figure


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


def _draw_sides(
    axes: Axes, coordinates: npt.NDArray[np.float32], is_real: npt.NDArray[np.bool_]
) -> list[Line2D]:
    _scatter(axes, coordinates[is_real], "*", REAL_COLOUR)
    _scatter(axes, coordinates[~is_real], "o", GENERATED_COLOUR)
    return [
        marker_handle("*", REAL_COLOUR, "real"),
        marker_handle("o", GENERATED_COLOUR, "generated"),
    ]


def _draw_labels(
    axes: Axes,
    coordinates: npt.NDArray[np.float32],
    is_real: npt.NDArray[np.bool_],
    labels: Labels,
    categories: Sequence[str],
) -> list[Line2D]:
    colours = dict(zip(categories, category_colours(len(categories)), strict=True))
    of_each = np.array([colours[label] for label in labels])
    _scatter(axes, coordinates[is_real], "*", of_each[is_real])
    _scatter(axes, coordinates[~is_real], "o", of_each[~is_real])
    return [
        marker_handle("*", "0.3", "real"),
        marker_handle("o", "0.3", "generated"),
        *(marker_handle("s", colour, str(label)) for label, colour in colours.items()),
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
