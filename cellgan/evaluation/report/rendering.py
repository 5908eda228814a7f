"""Pages and cards from the templates beside this file.

Everything that is shown of a report passes through the filters named here, so that one
thing is written in one way. All text in HTML is escaped.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import re
from collections.abc import Iterable
from importlib import resources
from typing import TYPE_CHECKING, Any

from cellgan.evaluation.report import tables

if TYPE_CHECKING:
    import jinja2

BAR_START, BAR_END = -0.1, 1.2
"""Scores at the ends of a bar: a little beyond floor and ceiling."""


def render(template: str, **values: Any) -> str:
    """Return a template of ``templates/`` filled with values."""
    return environment().get_template(template).render(**values)


@functools.cache
def environment() -> jinja2.Environment:
    """Return what all templates share."""
    import jinja2  # noqa: PLC0415  (who writes no report needs none of it)

    shared = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__ or ""),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    shared.globals["asset"] = asset
    filters = (
        *(as_numbers, code, policy_hash, indented, place, markdown, sentence),
        *(tables.floor_name, tables.floor_value, tables.held_out_cells),
        *(tables.interval_text, tables.mean_score, tables.metric_title, tables.number),
        *(tables.of_labels, tables.pooled, tables.score_text, tables.score_words),
        *(tables.used_cells, tables.weakest),
    )
    shared.filters |= {of.__name__: of for of in filters}
    shared.filters["base64"] = lambda data: base64.b64encode(data).decode()
    return shared


def asset(file: str) -> str:
    """Return the text of a file of this package."""
    return resources.files(__package__).joinpath(file).read_text("utf-8")


def policy_hash(text: str) -> str:
    """Return the name by which a content security policy allows a text."""
    hashed = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(hashed).decode()}"


def as_numbers(names: Iterable[str]) -> list[str]:
    """Mark names as heads of columns of numbers."""
    return [f"#{name}" for name in names]


def place(score: float) -> float:
    """Return where a score lies on a bar."""
    return round(100 * (min(max(score, BAR_START), BAR_END) - BAR_START), 1)


def sentence(text: str) -> str:
    """Return text that begins with a capital and ends with a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def indented(block: Any) -> str:
    """Return JSON for people."""
    return json.dumps(block, indent=2, ensure_ascii=False)


def markdown(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|&$~#])", r"\\\1", " ".join(text.split()))


def code(value: Any) -> str:
    """Return a value as JSON in a code span of Markdown, which no value can end."""
    text = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"
