"""The report as one page that needs nothing but itself.

Styles, script and pictures are inside the file, and a content security policy forbids
all else: nothing is loaded from anywhere, and only the script whose hash is named runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.report.document import ExperimentReport, Report
from cellgan.evaluation.report.rendering import render
from cellgan.evaluation.report.tables import (
    SCORE_LEGEND,
    family_scores,
    ranked,
)
from cellgan.files import replacing

TITLE = "Generated against real cells"
FLOOR_MEANINGS = {
    "independent": "genes independent of each other within a label",
    "permuted": "every gene's values permuted across all cells",
    "label_means": "every cell the mean of its label",
}


class Shown(NamedTuple):
    """An experiment of a page."""

    place: int
    name: str
    report: ExperimentReport
    scores: Mapping[str, float | None]
    pictures: Sequence[Picture]

    @property
    def run(self) -> dict[str, Any]:
        """What was run, under the titles of the page."""
        run = self.report.run
        return {
            "Generated cells": run.origin,
            "Seed of the evaluation": run.seed,
            "Seconds": {of: round(taken, 1) for of, taken in run.seconds.items()},
            "Versions": run.versions,
            "Parameters": run.parameters,
        }


def write_html(
    path: Path, document: Report, pictures: Mapping[str, Sequence[Picture]]
) -> None:
    """Write a report as one HTML file.

    Parameters
    ----------
    path
        File to write.
    document
        Of one experiment or several.
    pictures
        Experiment -> its pictures; an experiment may have none.
    """
    with replacing(path) as temporary:
        temporary.write_text(report_page(document, pictures), encoding="utf-8")


def report_page(document: Report, pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Return the text of the page."""
    shown = [
        Shown(place, name, report, family_scores(report), pictures.get(name, ()))
        for place, (name, report) in enumerate(ranked(document))
    ]
    glossary = {result.name: result for one in shown for result in one.report.metrics}
    return render(
        "report.html.j2",
        title=TITLE,
        names=[one.name for one in shown],
        made=f"{document.version}, {document.created}",
        shown=shown,
        families=list(dict.fromkeys(name for one in shown for name in one.scores)),
        glossary=glossary.values(),
        floors=FLOOR_MEANINGS,
        legend=SCORE_LEGEND,
    )
