"""Marker genes of labels: found in training cells, drawn real beside generated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cellgan.evaluation.comparison.pairs import Pair, Side
from cellgan.evaluation.comparison.space import Floats, Rows
from cellgan.evaluation.figures.canvas import (
    SIDE_NAMES,
    Picture,
    percent,
    png,
    shortened,
)

MOST_MARKERS = 36


MARKERS_PER_LABEL = 4


FEWEST_OF_LABEL = 5
"""A label with fewer training cells has no markers."""


TINY = 1e-12


def marker_picture(pair: Pair) -> Picture | None:
    """Draw detection and mean of marker genes by label, real beside generated.

    Returns
    -------
    None when fewer than two labels have enough training cells to find markers.
    """
    markers = find_markers(pair.frame.training)
    if not markers:
        return None
    labels = list(markers)
    genes = np.concatenate(list(markers.values()))
    own = np.repeat(np.arange(len(labels)), [len(of) for of in markers.values()])
    sides = [_by_label(side, genes, labels) for side in (pair.real, pair.other)]
    names = [pair.frame.gene_names[gene] for gene in genes]
    return Picture(
        "markers",
        "Marker genes of every label",
        _markers_sentence(sides, own, names, labels),
        png(_dot_figure(sides, own, names, labels)),
    )


def find_markers(training: Side) -> dict[str, Rows]:
    """Return columns of the genes that set each label's training cells apart.

    Genes are ordered by Welch's t of log expression between a label's cells and all
    others; a gene is the marker of one label only. A label has up to
    `MARKERS_PER_LABEL` markers, fewer when there are many labels.
    """
    labels, codes = np.unique(training.labels, return_inverse=True)
    numbers = np.bincount(codes)
    enough = np.flatnonzero((numbers >= FEWEST_OF_LABEL) & (labels != ""))
    enough = enough[:MOST_MARKERS]
    if len(enough) < 2:
        return {}
    scores = welch_scores(training.log_values, codes)[enough]
    scores[scores < scores.max(axis=0)] = -np.inf  # another label's
    per_label = max(1, min(MARKERS_PER_LABEL, MOST_MARKERS // len(enough)))
    best = np.argsort(-scores, axis=1, kind="stable")[:, :per_label]
    return {
        str(label): chosen[of_label[chosen] > 0]
        for label, of_label, chosen in zip(labels[enough], scores, best, strict=True)
    }


def welch_scores(log_values: sp.csr_array, codes: Rows) -> Floats:
    """Return Welch's t of every label against all others, ``(n_labels, n_genes)``.

    Parameters
    ----------
    log_values
        ``(n_cells, n_genes)``.
    codes
        Number of every cell's label, ``(n_cells,)``; every label has two cells or more,
        or its scores mean nothing.
    """
    numbers = np.bincount(codes)
    members = sp.csr_array((np.ones(len(codes)), (codes, np.arange(len(codes)))))
    sums = (members @ log_values).toarray()
    squares = (members @ log_values.power(2)).toarray()
    mean, error = _mean_and_error(sums, squares, numbers)
    other_mean, other_error = _mean_and_error(
        sums.sum(axis=0) - sums, squares.sum(axis=0) - squares, len(codes) - numbers
    )
    error = np.maximum(error + other_error, TINY)
    scores: Floats = (mean - other_mean) / np.sqrt(error)
    return scores


def _mean_and_error(sums: Floats, squares: Floats, n: Rows) -> tuple[Floats, Floats]:
    """Return means and their squared standard errors."""
    n = np.maximum(n, 2)[:, None]
    mean = sums / n
    return mean, (squares / n - mean**2) / (n - 1)


def _by_label(side: Side, genes: Rows, labels: Sequence[str]) -> tuple[Floats, Floats]:
    """Return share of cells and mean log expression, ``(n_genes, n_labels)`` each.

    A label without cells is nan.
    """
    values = side.log_values[:, genes].toarray()
    shares, means = np.full((2, len(genes), len(labels)), np.nan)
    for column, label in enumerate(labels):
        of_label = values[side.labels == label]
        if len(of_label):
            shares[:, column] = (of_label > 0).mean(axis=0)
            means[:, column] = of_label.mean(axis=0)
    return shares, means


def _dot_figure(
    sides: Sequence[tuple[Floats, Floats]],
    own: Rows,
    genes: Sequence[str],
    labels: Sequence[str],
) -> Figure:
    titles = [shortened(label, 25) for label in labels]
    height = 0.23 * len(genes) + 0.075 * max(map(len, titles)) + 1.2
    figure = Figure(figsize=(0.7 * len(labels) + 3.4, height), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    scale = Normalize(0, np.nanmax([means for _, means in sides]))
    for axes, side, name in zip(panels, sides, SIDE_NAMES, strict=True):
        _draw_dots(axes, side, own, scale)
        axes.set_title(name, fontsize=11)
        axes.set_xticks(range(len(labels)), titles, rotation=90)
        axes.tick_params(length=0, labelsize=9)
    panels[0].set_yticks(range(len(genes)), genes)
    bar = figure.colorbar(
        ScalarMappable(scale, "YlGnBu"), ax=panels, shrink=0.4, aspect=15
    )
    bar.set_label("mean log expression")
    handles = [
        panels[0].scatter([], [], s=_dot_size(share), c="0.6", label=percent(share))
        for share in (0.1, 0.5, 1.0)
    ]
    figure.legend(
        handles=handles,
        title="share of cells with the gene",
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure


def _draw_dots(
    axes: Axes, side: tuple[Floats, Floats], own: Rows, scale: Normalize
) -> None:
    """Draw one side's dots; each label's own markers are framed."""
    shares, means = side
    n_genes, n_labels = shares.shape
    x, y = np.meshgrid(np.arange(n_labels), np.arange(n_genes))
    dots = axes.scatter(x, y, s=_dot_size(shares), c=means, norm=scale, cmap="YlGnBu")
    dots.set(edgecolors="0.4", linewidths=0.4)
    for label in np.unique(own):
        rows = np.flatnonzero(own == label)
        corner = (label - 0.47, rows[0] - 0.47)
        frame = Rectangle(corner, 0.94, len(rows) - 0.06, fill=False, edgecolor="0.3")
        axes.add_patch(frame)
    axes.set(xlim=(-0.6, n_labels - 0.4), ylim=(n_genes - 0.4, -0.6))


def _dot_size(shares: npt.ArrayLike) -> Floats:
    return np.nan_to_num(90 * np.asarray(shares, np.float64))


def _markers_sentence(
    sides: Sequence[tuple[Floats, Floats]],
    own: Rows,
    genes: Sequence[str],
    labels: Sequence[str],
) -> str:
    """Say how often each label's markers are found in its own cells."""
    parts = []
    for column, label in enumerate(labels):
        rows = np.flatnonzero(own == column)
        if len(rows):
            real, made = (percent(shares[rows, column].mean()) for shares, _ in sides)
            names = ", ".join(genes[int(row)] for row in rows)
            parts.append(f"{label} ({names}): {real} and {made}")
    return (
        f"Share of cells with, and mean log expression of, {len(genes)} marker genes "
        f"in {len(labels)} labels, real beside generated. Average share of a label's "
        f"cells with its own markers, real and generated: {'; '.join(parts)}."
    )
