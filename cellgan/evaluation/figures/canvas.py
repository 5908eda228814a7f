"""What all pictures of a report share: colours, words, and how they become bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text

from cellgan.files import replacing

REAL_COLOUR = "#1f5fbf"
GENERATED_COLOUR = "#d62728"
LEGEND_ROWS = 30
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


def png(figure: Figure, dpi: int = DPI) -> bytes:
    """Return a figure as PNG.

    All text is shown as it is: a label or gene may have dollar signs in its name,
    between which Matplotlib would read mathematics. Logarithmic axes therefore need
    `plain_numbers`.
    """
    _show_as_it_is(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
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


def save(figure: Figure, path: Path) -> None:
    """Write a figure by temporary name and rename.

    All text is shown as it is: a label or gene may have dollar signs in its name,
    between which Matplotlib would read mathematics.
    """
    _show_as_it_is(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."), dpi=150)


def _show_as_it_is(figure: Figure) -> None:
    for text in figure.findobj(Text):
        text.set_parse_math(False)


def marker_handle(marker: str, colour: Any, label: str) -> Line2D:
    """Return a legend's marker; a ring for generated cells."""
    fill = "none" if marker == "o" else colour
    return Line2D(
        [], [], linestyle="", marker=marker, color=colour, mfc=fill, label=label
    )


def category_colours(n: int) -> list[Any]:
    """Return `n` colours that can be told apart as well as `n` allows."""
    if n <= 20:
        return list(colormaps["tab10" if n <= 10 else "tab20"](range(n)))
    return list(colormaps["nipy_spectral"](np.linspace(0.04, 0.94, n)))
