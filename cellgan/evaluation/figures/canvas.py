"""What all pictures of a report share: colours, words, and how they become bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from cellgan.evaluation.figures.plots import GENERATED_COLOUR, REAL_COLOUR

SIDE_COLOURS = (REAL_COLOUR, GENERATED_COLOUR)
"""Of held-out real and of generated cells, told apart by the colour-blind too."""
SIDE_NAMES = ("real", "generated")
GRID_COLOUR = "0.93"
DPI = 110


class Picture(NamedTuple):
    """One picture of a report."""

    name: str
    """Lower case with underscores; its name in every file."""
    title: str
    alt: str
    """What is to be seen, in numbers, for those who cannot look."""
    png: bytes


def png(figure: Figure) -> bytes:
    """Return a figure as PNG.

    All text is shown as it is: a label or gene may have dollar signs in its name,
    between which Matplotlib would read mathematics. Logarithmic axes therefore need
    `plain_numbers`.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def plain_numbers(*axes: Axes) -> None:
    """Write the ticks of logarithmic axes as numbers, not as powers of ten."""
    for of_panel in axes:
        for axis in (of_panel.xaxis, of_panel.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_formatter("{x:g}")


def handle(colour: str, label: str) -> Line2D:
    """Return a legend's dot."""
    return Line2D([], [], linestyle="", marker="o", color=colour, label=label)


def side_handles(notes: Sequence[str] = ("", "")) -> list[Line2D]:
    """Return the legend of both sides, each with a note."""
    return [
        handle(colour, f"{name}{note}")
        for colour, name, note in zip(SIDE_COLOURS, SIDE_NAMES, notes, strict=True)
    ]


def legend_above(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Put a legend above all panels."""
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        frameon=False,
    )


def percent(share: float | None) -> str:
    """Return a share in words; a share of nothing is "none"."""
    return "none" if share is None or np.isnan(share) else f"{100 * share:.0f} %"


def shortened(text: str, length: int) -> str:
    """Return a name that fits; the full one is in the alternative text."""
    return text if len(text) <= length else f"{text[: length - 3]}..."
