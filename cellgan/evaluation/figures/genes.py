"""Pictures of genes: moments, markers, correlations, and what gives cells away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from sklearn.utils.sparsefuncs import mean_variance_axis

from cellgan.evaluation.comparison.pairs import Pair, Side
from cellgan.evaluation.comparison.space import (
    Floats,
)
from cellgan.evaluation.figures.canvas import (
    GRID_COLOUR,
    SIDE_COLOURS,
    SIDE_NAMES,
    Picture,
    legend_above,
    percent,
    plain_numbers,
    png,
    shortened,
    side_handles,
)

N_CURVE_BINS = 16
FEWEST_IN_BIN = 5
N_CORRELATED_GENES = 80
MOST_GENE_NAMES = 100
GENE_NAMES_DPI = 150
MOST_GIVEAWAY_GENES = 20


class GeneMoments(NamedTuple):
    """Of one side's values, each ``(n_genes,)``."""

    means: Floats
    variances: Floats
    zeros: Floats
    """Share of cells without the gene."""


def gene_curves(pair: Pair) -> Picture:
    """Draw variance and share of zeros of every gene against its mean."""
    what = "count" if pair.frame.are_counts else "expression"
    real, made = moments_of_side(pair.real), moments_of_side(pair.other)
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for width, of_side, colour in zip((5, 2), (real, made), SIDE_COLOURS, strict=True):
        _draw_curve(panels[0], of_side.means, of_side.variances, colour, width)
        _draw_curve(panels[1], of_side.means, of_side.zeros, colour, width)
    handles = side_handles()
    if pair.frame.are_counts:
        handles.append(_draw_poisson(panels, real.means))
    panels[0].set(xscale="log", yscale="log", ylabel=f"variance of the gene's {what}s")
    panels[1].set(xscale="log", ylabel="share of cells without the gene")
    for axes in panels:
        axes.set_xlabel(f"mean {what} of the gene")
        axes.grid(color=GRID_COLOUR)
    plain_numbers(*panels)
    legend_above(figure, handles)
    return Picture(
        "genes",
        "Variance and zeros of genes by their mean",
        _moments_sentence(real, made, what),
        png(figure),
    )


def open_share_picture(pair: Pair) -> Picture:
    """Draw the share of cells in which each peak is open, generated against real."""
    sides = (pair.real, pair.other)
    real, made = (1 - moments_of_side(side).zeros for side in sides)
    mean = moments_of_side(pair.real).means
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    curve, shares = figure.subplots(1, 2)
    for width, of_side, colour in zip((5, 2), sides, SIDE_COLOURS, strict=True):
        found = moments_of_side(of_side)
        _draw_curve(curve, found.means, 1 - found.zeros, colour, width)
    curve.set(xscale="log", yscale="log", xlabel="mean count of the peak")
    curve.set_ylabel("share of cells in which it is open")
    seen = (real > 0) & (made > 0)
    shares.plot(real[seen], made[seen], ".", color="0.3", markersize=2, alpha=0.4)
    shares.axline((0.01, 0.01), (0.1, 0.1), color=GRID_COLOUR, linewidth=1)
    shares.set(xscale="log", yscale="log", xlabel="share of real cells")
    shares.set_ylabel("share of generated cells")
    for axes in (curve, shares):
        axes.grid(color=GRID_COLOUR)
    plain_numbers(curve, shares)
    legend_above(figure, side_handles())
    difference = float(np.abs(made - real).mean())
    return Picture(
        "open_shares",
        "How many cells have each peak open, by its mean",
        f"Share of cells in which a peak is open: mean {real.mean():.4f} in real and "
        f"{made.mean():.4f} in generated cells, over {len(mean)} peaks; they differ by "
        f"{difference:.4f} on average. {percent(float(np.mean(~seen)))} of the peaks "
        f"are open on one side at most.",
        png(figure),
    )


def moments_of_side(side: Side) -> GeneMoments:
    """Return mean, variance and share of zeros of every gene."""
    values = sp.csr_matrix(side.values, dtype=np.float64)
    means, variances = mean_variance_axis(values, axis=0)
    return GeneMoments(means, variances, 1 - values.getnnz(axis=0) / len(side))


def _draw_curve(
    axes: Axes, means: Floats, values: Floats, colour: str, width: float
) -> None:
    """Draw genes as points, and their median in bins of the mean as a line.

    The line of real cells is wide, that of generated ones narrow: both are seen where
    they agree.
    """
    means, values = means[means > 0], values[means > 0]
    if not len(means):
        return
    axes.scatter(means, values, s=4, c=colour, alpha=0.12, linewidths=0)
    ends = np.geomspace(means.min(), means.max(), N_CURVE_BINS + 1)
    bins = np.digitize(means, ends[1:-1])
    filled = np.flatnonzero(np.bincount(bins) >= FEWEST_IN_BIN)
    middles = [np.median(means[bins == of]) for of in filled]
    medians = [np.median(values[bins == of]) for of in filled]
    axes.plot(middles, medians, color=colour, linewidth=width)


def _draw_poisson(panels: Sequence[Axes], means: Floats) -> Line2D:
    style: dict[str, Any] = {"linestyle": "--", "color": "0.3", "linewidth": 1}
    if (means > 0).any():
        line = np.geomspace(means[means > 0].min(), means.max(), 100)
        panels[0].plot(line, line, **style)
        panels[1].plot(line, np.exp(-line), **style)
    return Line2D([], [], label="Poisson", **style)


def _moments_sentence(real: GeneMoments, made: GeneMoments, what: str) -> str:
    both = (real.variances > 0) & (made.variances > 0)
    mean_ratio, variance_ratio = (
        np.median(second[both] / first[both]) if both.any() else np.nan
        for first, second in zip(real[:2], made[:2], strict=True)
    )
    return (
        f"Variance and share of zeros of {len(both)} genes against their mean {what}. "
        f"In the median gene, the mean of generated cells is {mean_ratio:.2f} times "
        f"that of real ones and the variance {variance_ratio:.2f} times. "
        f"{100 * real.zeros.mean():.1f} % of all values of real cells are zero and "
        f"{100 * made.zeros.mean():.1f} % of generated ones; "
        f"{int((real.means == 0).sum())} genes are in no real cell and "
        f"{int((made.means == 0).sum())} in no generated one."
    )


def correlation_picture(pair: Pair) -> Picture | None:
    """Draw correlations of the most variable genes, real upper right.

    Returns
    -------
    None with fewer than two genes that vary on both sides.
    """
    values = [side.genes[:, :N_CORRELATED_GENES] for side in (pair.real, pair.other)]
    varying = np.flatnonzero(np.logical_and(*(np.ptp(side, axis=0) for side in values)))
    if len(varying) < 2:
        return None
    real, made = (
        np.asarray(np.corrcoef(side[:, varying], rowvar=False)) for side in values
    )
    columns = pair.frame.space.genes[varying]
    names = [pair.frame.gene_names[column] for column in columns]
    image = png(correlation_figure(real, made, names), dpi=GENE_NAMES_DPI)
    pairs = np.triu_indices(len(varying), 1)
    sizes = [np.abs(matrix[pairs]).mean() for matrix in (real, made)]
    return Picture(
        "correlations",
        "Gene-gene correlations",
        f"Correlations of the {len(varying)} most variable genes, real cells upper "
        f"right, generated lower left. Their mean size is {sizes[0]:.3f} in real and "
        f"{sizes[1]:.3f} in generated cells; the mean difference is "
        f"{np.abs(real - made)[pairs].mean():.3f}.",
        image,
    )


def giveaway_picture(genes: Sequence[Mapping[str, Any]]) -> Picture:
    """Draw the genes that tell generated from real cells, and what differs in them."""
    shown = sorted(genes, key=lambda gene: -gene["importance"])[:MOST_GIVEAWAY_GENES]
    figure = Figure(figsize=(10, 0.27 * len(shown) + 1.3), layout="constrained")
    bars, *panels = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1.2, 1.2))
    rows = np.arange(len(shown))
    bars.barh(rows, [gene["importance"] for gene in shown], color="0.55", height=0.7)
    bars.set_yticks(rows, [shortened(gene["gene"], 25) for gene in shown])
    bars.set(xlabel="importance to the classifier", ylim=(len(shown) - 0.4, -0.6))
    bars.locator_params(axis="x", nbins=4)
    _draw_dumbbells(panels[0], shown, "detected")
    panels[0].set(xlabel="share of cells with the gene", xlim=(-0.04, 1.04))
    _draw_dumbbells(panels[1], shown, "mean")
    panels[1].set_xlabel("mean log expression")
    handles = side_handles()
    handles[0].set_markerfacecolor("none")
    legend_above(figure, handles)
    named = "; ".join(
        f"{gene['gene']} (importance {gene['importance']:.3f}), found in "
        f"{percent(gene['real_detected'])} of real and "
        f"{percent(gene['generated_detected'])} of generated cells"
        for gene in shown[:5]
    )
    return Picture(
        "giveaway_genes",
        "Genes that give generated cells away",
        f"The {len(shown)} genes that matter most to a classifier that tells generated "
        f"from real cells. The first: {named}.",
        png(figure),
    )


def _draw_dumbbells(axes: Axes, genes: Sequence[Mapping[str, Any]], what: str) -> None:
    """Draw both sides' numbers of every gene, joined; rings keep both to be seen."""
    real, made = (
        np.array([gene[f"{side}_{what}"] for gene in genes], np.float64)
        for side in SIDE_NAMES
    )
    rows = np.arange(len(genes))
    axes.hlines(rows, real, made, color="0.7", linewidth=2, zorder=1)
    real_colour, made_colour = SIDE_COLOURS
    axes.scatter(real, rows, s=70, facecolors="none", edgecolors=real_colour, lw=1.8)
    axes.scatter(made, rows, s=22, c=made_colour)
    axes.grid(axis="x", color=GRID_COLOUR)
    axes.set_axisbelow(True)


def correlation_figure(real: Floats, generated: Floats, genes: Sequence[str]) -> Figure:
    """Draw gene-gene correlations: generated lower left, real upper right.

    Parameters
    ----------
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
    return figure
