"""The report of a composition study: verdicts, tables and pictures, in one folder.

::

    report.html                one file for any browser
    summary.csv                a row per mixture, evaluation set, metric and group
    cells.csv.gz               a row per cell and model
    latents.csv, loadings.csv  how alike models are
    residuals.csv.gz           by gene, of the baseline
    report.json                verdicts, and what was asked for
    figures/
"""

from __future__ import annotations

import dataclasses
import datetime
import gzip
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import cellgan
from cellgan.composition import figures
from cellgan.composition.statistics import TITLES, TRAINED
from cellgan.composition.verdicts import MixtureVerdict, mixture_verdict
from cellgan.config.composition import Composition
from cellgan.config.reading import as_json
from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.report.rendering import render
from cellgan.files import replacing, write_json

HTML, JSON = "report.html", "report.json"
TITLE = "What training cells add"


@dataclasses.dataclass(frozen=True)
class Tables:
    """All numbers of a study."""

    summary: pd.DataFrame
    """See `cellgan.composition.statistics.summarise`; ``group`` is ``""`` of all."""
    cells: pd.DataFrame | None
    """A row per cell, of models that reconstruct."""
    latents: pd.DataFrame
    loadings: pd.DataFrame
    residuals: pd.DataFrame | None
    metric: str
    """What verdicts and pictures are about."""
    baseline: str
    size_control: str | None
    notes: tuple[str, ...] = ()

    def of_metric(self, metric: str) -> pd.DataFrame:
        """Return the rows of trained models and all cells."""
        rows = self.summary
        return rows[
            (rows["metric"] == metric)
            & (rows["model"] == TRAINED)
            & (rows["group"] == "")
        ]

    def verdicts(self) -> list[MixtureVerdict]:
        """Return what each evaluation set allows to say."""
        rows = self.summary
        rows = rows[(rows["metric"] == self.metric) & (rows["group"] == "")]
        return [
            mixture_verdict(
                rows[rows["evaluation"] == name],
                name,
                self.metric,
                self.baseline,
                self.size_control,
            )
            for name in dict.fromkeys(rows["evaluation"])
        ]

    def verdict_lines(self) -> list[str]:
        """Return the verdicts, one line each."""
        return [" ".join(of.sentences) for of in self.verdicts()]


def write_study_report(
    folder: Path,
    name: str,
    asked: Composition,
    document: Mapping[str, Any],
    tables: Tables,
) -> None:
    """Write all files of a report in place of an earlier one.

    Parameters
    ----------
    asked
        What the study is.
    document
        Its manifest.
    """
    pictures = draw(asked, tables)
    with replacing(folder) as staged:
        (staged / "figures").mkdir(parents=True)
        for picture in pictures:
            path = staged / "figures" / f"{picture.name}.png"
            path.write_bytes(picture.png)
        tables.summary.to_csv(staged / "summary.csv", index=False)
        for file, rows in (
            ("latents.csv", tables.latents),
            ("loadings.csv", tables.loadings),
        ):
            if len(rows):
                rows.to_csv(staged / file, index=False)
        for file, large in (
            ("cells.csv.gz", tables.cells),
            ("residuals.csv.gz", tables.residuals),
        ):
            if large is not None:
                _write_packed(staged / file, large)
        write_json(
            staged / JSON,
            {
                "study": name,
                "version": cellgan.__version__,
                "metric": tables.metric,
                "verdicts": [dataclasses.asdict(of) for of in tables.verdicts()],
                "notes": list(tables.notes),
                "composition": as_json(asked),
                "corpora": document["corpora"],
            },
        )
        (staged / HTML).write_text(
            study_page(name, document, tables, pictures), encoding="utf-8"
        )


def _write_packed(path: Path, rows: pd.DataFrame) -> None:
    """Write a table, the same bytes for the same rows."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", newline="") as file,
    ):
        rows.to_csv(file, index=False, float_format="%.6g")


def draw(asked: Composition, tables: Tables) -> list[Picture]:
    """Draw what the numbers allow."""
    metric = tables.metric
    summary = tables.of_metric(metric)
    drawn: list[Picture | None] = [
        figures.heat_map(summary, metric, tables.baseline),
        figures.differences(
            summary,
            metric,
            "control_difference" if tables.size_control else "difference",
        ),
    ]
    if tables.cells is not None:
        drawn.append(figures.box_plots(tables.cells, metric))
        drawn.append(figures.seed_scatter(tables.cells, metric, list(asked.seeds)))
    if len(tables.latents):
        drawn += [
            figures.latent_map(tables.latents, name)
            for name in dict.fromkeys(tables.latents["evaluation"])
        ]
    return [picture for picture in drawn if picture is not None]


def study_page(
    name: str,
    document: Mapping[str, Any],
    tables: Tables,
    pictures: Sequence[Picture],
) -> str:
    """Return the text of the page."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    summary = tables.summary
    metrics = sorted(
        dict.fromkeys(summary["metric"]), key=lambda metric: metric != tables.metric
    )
    is_main, is_group = summary["metric"] == tables.metric, summary["group"] != ""
    likeness = {
        "Latents of the same cells": _records(tables.latents),
        "Genes at the ends of factors": _records(tables.loadings),
    }
    return render(
        "study.html.j2",
        title=TITLE,
        names=[name],
        made=f"{cellgan.__version__}, {created}",
        verdicts=tables.verdicts(),
        notes=tables.notes,
        pictures=pictures,
        has_size_control=bool(tables.size_control),
        values={
            TITLES.get(metric, metric): _records(
                summary[(summary["metric"] == metric) & ~is_group]
            )
            for metric in metrics
        },
        groups=_records(summary[is_main & is_group]),
        corpora={
            corpus: {**of, "overlap": _overlap(of["overlap"])}
            for corpus, of in document["corpora"].items()
        },
        sources=document["sources"],
        genes=document["genes"]["sources"],
        likeness={caption: rows for caption, rows in likeness.items() if rows},
    )


def _records(rows: pd.DataFrame) -> list[dict[str, str | float | None]]:
    """Return rows as text, numbers, and None where a number is undefined."""
    return [
        {
            str(name): value
            if isinstance(value, str)
            else None
            if pd.isna(value)
            else float(value)
            for name, value in row.items()
        }
        for row in rows.to_dict("records")
    ]


def _overlap(overlap: Mapping[str, Mapping[str, int | None]]) -> str:
    said = []
    for name, of in overlap.items():
        n_cells = "unknown" if of["cells"] is None else f"{of['cells']:,} cells"
        if n_cells != "0 cells" or of["groups"]:
            said.append(f"{name}: {n_cells}, {of['groups']} groups")
    return "; ".join(said) or "nothing"
