"""Pieces of the page: tables that can be sorted, cells, bars, lists.

What is undefined is a dash, and last however a column is sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from cellgan.evaluation.report.tables import (
    UNDEFINED,
    interval,
    number,
    score_text,
    score_words,
)

BAR_START, BAR_END = -0.1, 1.2
"""Scores at the ends of a bar: a little beyond floor and ceiling."""


def table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a sortable table in a container that scrolls by itself.

    Parameters
    ----------
    caption, header
        Plain text.
    rows
        Cells made by the functions below; without rows there is no table.
    """
    if not rows:
        return ""
    heads = "".join(
        f'<th scope="col" aria-sort="none"{_number_class(below)}>'
        f'<button type="button">{escape(name)}</button></th>'
        for name, below in zip(header, rows[0], strict=True)
    )
    name = escape(caption)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"""<div class="scroll" role="region" aria-label="{name}" tabindex="0">
<table>
<caption>{name}</caption>
<thead><tr>{heads}</tr></thead>
<tbody>
{body}
</tbody>
</table>
</div>
"""


def _number_class(html: str) -> str:
    return ' class="number"' if html.startswith('<td class="number"') else ""


def cell(html: str, *, is_head: bool = False, kind: str = "") -> str:
    """Return a cell of text that is escaped already.

    Parameters
    ----------
    is_head
        Whether it says what the row is about.
    kind
        Class of the cell: ``"wide"`` for sentences.
    """
    name = f' class="{kind}"' if kind else ""
    return f'<th scope="row">{html}</th>' if is_head else f"<td{name}>{html}</td>"


def number_cell(value: float | None, *, note: str = "") -> str:
    """Return a cell that shows three digits and is sorted by all.

    Parameters
    ----------
    note
        Plain text below the number.
    """
    if value is None:
        return _sorted_cell(None, None)
    return _sorted_cell(value, number(value) + _note(note))


def _note(text: str) -> str:
    return f'<span class="note">{escape(text)}</span>' if text else ""


def interval_cell(result: Mapping[str, Any]) -> str:
    """Return a cell with an interval, sorted by its lower end."""
    text = interval(result)
    return _sorted_cell(result["low"], None if text == UNDEFINED else text)


def score_cell(result: Mapping[str, Any]) -> str:
    """Return a cell with a score, as a number and as a bar with its interval."""
    score = result["score"]
    if score is None:
        return _sorted_cell(None, None, why=result.get("no_score"))
    shown = escape(score_text(score)) + _bar(result) + _note(score_words(score))
    return _sorted_cell(score, shown)


def _sorted_cell(key: float | None, html: str | None, why: str | None = None) -> str:
    if html is None:
        said = undefined() + _note(why or "")
        return f'<td class="number" data-sort="">{said}</td>'
    return f'<td class="number" data-sort="{key!r}">{html}</td>'


def undefined() -> str:
    """Return what stands for a number that is undefined."""
    return f'<span title="undefined">{UNDEFINED}</span>'


def bullets(sentences: Sequence[str]) -> str:
    """Return sentences as a list; none give nothing."""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>\n" if items else ""


def _bar(result: Mapping[str, Any]) -> str:
    """Draw a score between floor (0) and ceiling (1)."""
    zero, one, end = _at(0.0), _at(1.0), _at(result["score"])
    left, width = min(zero, end), abs(end - zero)
    low, high = result.get("score_low"), result.get("score_high")
    words = f"score {number(result['score'])}: 0 is the floor, 1 real cells"
    whisker = ""
    if low is not None and high is not None:
        words += f"; interval {number(low)} to {number(high)}"
        whisker = f'<path class="interval" d="M{_at(low)} 8H{_at(high)}"/>'
    return (
        f'<svg class="bar" viewBox="0 0 130 16" role="img" aria-label="{words}">'
        f"<title>{words}</title>"
        f'<rect class="track" x="{zero}" y="5" width="{one - zero:g}" height="6"/>'
        f'<rect class="value" x="{left}" y="4" width="{width:g}" height="8"/>'
        f'{whisker}<path class="end" d="M{zero} 1V15M{one} 1V15"/></svg>'
    )


def _at(score: float) -> float:
    return round(100 * (min(max(score, BAR_START), BAR_END) - BAR_START), 1)
