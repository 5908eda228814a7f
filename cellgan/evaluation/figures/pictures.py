"""Pictures of generated against held-out real cells.

A picture is a PNG in memory with a text that says in numbers what is to be seen. Real
cells are blue and generated ones red throughout. Real cells alone choose what is shown
(markers, genes), so pictures of different models show the same things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cellgan.evaluation.comparison.pairs import Pair
from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.figures.cells import (
    NearestDistances,
    distance_picture,
    label_maps,
    map_cells,
    map_picture,
    size_picture,
)
from cellgan.evaluation.figures.genes import (
    correlation_picture,
    gene_curves,
    giveaway_picture,
    open_share_picture,
)
from cellgan.evaluation.figures.markers import marker_picture

__all__ = ["NearestDistances", "Picture", "draw_pictures", "guidance_picture"]


def draw_pictures(
    pair: Pair,
    *,
    giveaway_genes: Sequence[Mapping[str, Any]] = (),
    distances: NearestDistances | None = None,
    method: Literal["tsne", "umap"] = "tsne",
    peaks: Pair | None = None,
    modality: str = "",
) -> tuple[Picture, ...]:
    """Draw all pictures that the data allow.

    Parameters
    ----------
    pair
        Held-out real cells and generated ones.
    giveaway_genes
        Genes that tell generated from real cells, as in a report: ``"gene"``,
        ``"importance"``, mean and share of cells with it on both sides.
    distances
        Distances to the nearest training cell, where training cells are known.
    method
        How cells are mapped into the plane. ``"umap"`` takes 10 s or more to load.
    peaks
        The same cells in a second modality: its map and its features' curves are drawn
        too.
    modality
        Name of `pair`'s modality, for titles, where there are two.

    Returns
    -------
    Those of labels are left out when cells have none, those of genes or distances when
    none are given, and library sizes when values are no counts.
    """
    cells = map_cells(pair, method)
    pictures: list[Picture | None] = [map_picture(cells)]
    if len(np.setdiff1d(pair.real.labels, [""])):
        pictures += [label_maps(cells), marker_picture(pair)]
    pictures += [gene_curves(pair), size_picture(pair), correlation_picture(pair)]
    if giveaway_genes:
        pictures.append(giveaway_picture(giveaway_genes))
    if distances is not None:
        pictures.append(distance_picture(distances))
    drawn = [picture for picture in pictures if picture is not None]
    if peaks is None:
        return tuple(drawn)
    drawn = [_titled(picture, modality, picture.name) for picture in drawn]
    second = (map_picture(map_cells(peaks, method)), open_share_picture(peaks))
    return (*drawn, *(_titled(of, "ATAC", f"atac_{of.name}") for of in second))


def guidance_picture(table: Path) -> Picture:
    """Return the figure that a guidance sweep has drawn beside its table."""
    return Picture(
        "guidance",
        "what guidance gives and costs",
        "Fidelity, agreement and diversity of generated cells by guidance scale, with "
        "those of real cells as a dashed line; the table below has the numbers.",
        table.with_suffix(".png").read_bytes(),
    )


def _titled(picture: Picture, modality: str, name: str) -> Picture:
    """Return the picture with its modality in title and text."""
    return picture._replace(
        name=name,
        title=f"{modality.upper()}: {picture.title}",
        alt=f"{modality.upper()}: {picture.alt}",
    )
