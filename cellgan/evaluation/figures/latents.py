"""Pictures of latents and of what a linear decoder makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from natsort import natsorted

from cellgan.evaluation.figures.canvas import LEGEND_ROWS, category_colours

PANEL_WIDTH = 2.6
PANELS_IN_A_ROW = 5
N_TOP_GENES = 6
"""Genes shown at either end of a factor."""
COLOURS = ("#b2182b", "#2166ac")
"""Of genes that a factor raises and lowers."""


def latent_figure(
    coordinates: npt.NDArray[np.floating[Any]],
    columns: Mapping[str, npt.NDArray[Any]],
    *,
    name: str,
    title: str,
) -> Figure:
    """Draw one map of cells for every column, in a colour for each of its values.

    Parameters
    ----------
    coordinates
        In the plane, ``(n_cells, 2)``.
    columns
        Values of every cell by column, at least one column.
    name
        Of the map, for the axes.
    title
        Of the figure.
    """
    n = len(columns)
    figure = Figure(figsize=(8.5 * n, 6.5), layout="constrained")
    panels = np.ravel(figure.subplots(1, n))
    # Drawn in any order, so that no value lies on top of all others
    order = np.random.default_rng(0).permutation(len(coordinates))
    for axes, (column, values) in zip(panels, columns.items(), strict=True):
        names = natsorted(set(values.tolist()))
        colours = category_colours(len(names))
        codes = np.searchsorted(np.sort(names), values)
        by_sorted = [colours[names.index(each)] for each in sorted(names)]
        of_cells = [by_sorted[code] for code in codes[order]]
        axes.scatter(
            *coordinates[order].T, s=6, c=of_cells, linewidths=0, rasterized=True
        )
        axes.set(
            xticks=[], yticks=[], xlabel=f"{name} 1", ylabel=f"{name} 2", title=column
        )
        axes.legend(
            handles=[
                Line2D([], [], linestyle="", marker="o", color=colour, label=str(each))
                for each, colour in zip(names, colours, strict=True)
            ],
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            ncols=-(-len(names) // LEGEND_ROWS),
            frameon=False,
            fontsize=9,
        )
    figure.suptitle(title)
    return figure


def loadings_figure(
    loadings: npt.NDArray[np.floating[Any]],
    genes: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Draw the genes with the largest loadings of every factor, of either sign.

    Parameters
    ----------
    loadings
        ``(n_genes, n_latent)``.
    genes
        Names.
    title
        Of the figure.
    """
    n_latent = loadings.shape[1]
    n_columns = min(n_latent, PANELS_IN_A_ROW)
    n_rows = -(-n_latent // n_columns)
    figure = Figure(
        figsize=(PANEL_WIDTH * n_columns, 3.1 * n_rows + 0.5), layout="constrained"
    )
    panels = np.ravel(figure.subplots(n_rows, n_columns, sharex=True, squeeze=False))
    for axes in panels[n_latent:]:
        axes.set_axis_off()
    for factor, axes in enumerate(panels[:n_latent]):
        top = top_genes(loadings[:, factor], N_TOP_GENES)
        values = loadings[top, factor]
        rows = np.arange(len(top))[::-1]
        colours = [COLOURS[0] if value > 0 else COLOURS[1] for value in values]
        axes.barh(rows, values, color=colours)
        axes.set_yticks(rows, [genes[gene] for gene in top], fontsize=7)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.set_title(f"Z_{factor}", fontsize=10)
        axes.tick_params(axis="x", labelsize=7)
    figure.suptitle(title)
    figure.supxlabel("loading: added to the logit of a gene", fontsize=9)
    return figure


def top_genes(
    loadings: npt.NDArray[np.floating[Any]], n_genes: int
) -> npt.NDArray[np.intp]:
    """Return the genes of the largest loadings, then those of the smallest ones.

    Parameters
    ----------
    loadings
        Of one factor, ``(n_genes,)``.
    n_genes
        Of either end; ends that meet are not shown twice.

    Returns
    -------
    Positions, by falling loading.
    """
    order = np.argsort(-loadings, kind="stable")
    if len(order) <= 2 * n_genes:
        return order
    return np.concatenate([order[:n_genes], order[-n_genes:]])
