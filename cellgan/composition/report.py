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
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

import cellgan
from cellgan.composition import figures
from cellgan.composition.statistics import TITLES, TRAINED, Verdict, verdict
from cellgan.config.composition import Composition
from cellgan.config.reading import as_json
from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.report.html import picture_section, shell
from cellgan.evaluation.report.markup import bullets, cell, number_cell, table
from cellgan.evaluation.report.tables import UNDEFINED
from cellgan.experiment import replacing, write_json

HTML, JSON = "report.html", "report.json"
TITLE = "What training cells add"
MOST_GENES = 20
HOW = (
    "A value is the mean over seeds of the median over cells. Its error (±) joins the "
    "cells, resampled, and the spread between seeds. Differences are paired: the same "
    "cells and the same seeds on both sides. A difference is claimed where it is "
    "larger than seeds differ, its 95 % interval leaves out 0, all seeds agree, and it "
    "is as many errors above 0 as Student's t asks of so few seeds and of the best of "
    "so many mixtures. Mean and principal components of the training cells are learned "
    "on the very logarithms that are compared, which models of counts are not: they "
    "are hard to beat."
)


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

    def verdicts(self) -> list[Verdict]:
        """Return what each evaluation set allows to say."""
        rows = self.summary
        rows = rows[(rows["metric"] == self.metric) & (rows["group"] == "")]
        return [
            verdict(
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


def write_report(
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
            page(name, document, tables, pictures), encoding="utf-8"
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


def page(
    name: str,
    document: Mapping[str, Any],
    tables: Tables,
    pictures: Sequence[Picture],
) -> str:
    """Return the text of the page."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    cards = "".join(
        f'<article class="card"><h3>{escape(of.evaluation)}</h3>\n'
        f"{bullets(of.sentences)}</article>\n"
        for of in tables.verdicts()
    )
    main = f"""<section aria-labelledby="verdicts">
<h2 id="verdicts">Verdict</h2>
<p>{escape(HOW)}</p>
<div class="verdicts">
{cards}</div>
{bullets(tables.notes)}
</section>
<section>
<h2>{escape(name)}</h2>
{picture_section(pictures)}
{"".join(_value_tables(tables))}
{_groups(tables)}
{_corpora(document)}
{_sources(document)}
{_likeness(tables)}
</section>"""
    return shell(TITLE, [name], f"{cellgan.__version__}, {created}", main)


def _value_tables(tables: Tables) -> Iterator[str]:
    metrics = dict.fromkeys(tables.summary["metric"])
    for metric in sorted(metrics, key=lambda name: name != tables.metric):
        rows = tables.summary[
            (tables.summary["metric"] == metric) & (tables.summary["group"] == "")
        ]
        title = TITLES.get(metric, metric)
        shown = table(f"{title}, all cells", _header(tables), _rows(rows, tables))
        if metric == tables.metric:
            yield f"<h3>{escape(title)}</h3>\n{shown}"
        else:
            yield f"<details><summary>{escape(title)}</summary>\n{shown}</details>"


def _header(tables: Tables, *first: str) -> list[str]:
    against = ["to the size control", "its interval"] if tables.size_control else []
    return [
        *(*first, "evaluation", "mixture", "model", "value", "±", "between seeds"),
        *("to the baseline", "its interval", "log2 ratio"),
        *against,
        *("cells", "undefined"),
    ]


def _rows(rows: pd.DataFrame, tables: Tables, *first: str) -> list[list[str]]:
    return [
        [
            *(cell(escape(str(row[name])), is_head=True) for name in first),
            cell(escape(row["evaluation"]), is_head=not first),
            cell(escape(row["mixture"])),
            cell(escape(row["model"])),
            *(_number(row[name]) for name in ("value", "se", "sd_seeds")),
            *_difference_cells(row, "difference"),
            _number(row["log2_ratio"]),
            *(
                _difference_cells(row, "control_difference")
                if tables.size_control
                else ()
            ),
            _number(row["n_cells"]),
            _number(row["n_undefined"]),
        ]
        for _, row in rows.iterrows()
    ]


def _difference_cells(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    words = f"{low:.3g} to {high:.3g}" if pd.notna(low) else UNDEFINED
    return _number(row[name]), cell(escape(words))


def _number(value: Any) -> str:
    return number_cell(None if pd.isna(value) else float(value))


def _groups(tables: Tables) -> str:
    rows = tables.summary[
        (tables.summary["metric"] == tables.metric) & (tables.summary["group"] != "")
    ]
    if not len(rows):
        return ""
    header = _header(tables, "group")
    shown = table("Values within groups", header, _rows(rows, tables, "group"))
    return f"<details><summary>By group of cells</summary>\n{shown}</details>"


def _corpora(document: Mapping[str, Any]) -> str:
    rows = [
        [
            cell(escape(name), is_head=True),
            cell(
                escape(
                    " + ".join(
                        f"{part['n_train'] + part['n_valid']:,} {part['source']} "
                        f"(slot {part['slot']})"
                        for part in of["parts"]
                    )
                )
            ),
            number_cell(of["n_train"]),
            cell(escape(_overlap(of["overlap"]))),
            cell(f"<code>{escape(of['sha256'][:12])}</code>"),
        ]
        for name, of in document["corpora"].items()
    ]
    header = ["corpus", "parts", "trained on", "shared with evaluations", "SHA-256"]
    return f"<h3>Corpora</h3>\n{table('Training cells of every model', header, rows)}"


def _overlap(overlap: Mapping[str, Mapping[str, int | None]]) -> str:
    said = []
    for name, of in overlap.items():
        n_cells = "unknown" if of["cells"] is None else f"{of['cells']:,} cells"
        if n_cells != "0 cells" or of["groups"]:
            said.append(f"{name}: {n_cells}, {of['groups']} groups")
    return "; ".join(said) or "nothing"


def _sources(document: Mapping[str, Any]) -> str:
    rows = []
    for name, of in document["sources"].items():
        genes = document["genes"]["sources"][name]
        steps = "; ".join(f"{what}: {n_cells:,}" for what, n_cells in of["left"])
        rows.append(
            [
                cell(escape(name), is_head=True),
                number_cell(of["available"]),
                cell(escape(steps), kind="wide"),
                number_cell(genes["kept"]),
                number_cell(genes["in_file"] - genes["kept"]),
            ]
        )
    header = ["source", "available cells", "left after each filter"]
    header += ["genes kept", "genes left out"]
    return f"<h3>Sources</h3>\n{table('Where cells come from', header, rows)}"


def _likeness(tables: Tables) -> str:
    """Return how alike latents and loadings of models are."""
    parts = []
    for caption, rows in (
        ("Latents of the same cells", tables.latents),
        ("Genes at the ends of factors", tables.loadings),
    ):
        if not len(rows):
            continue
        shown = [
            [
                cell(escape(str(value)), is_head=index == 0)
                if isinstance(value, str)
                else _number(value)
                for index, value in enumerate(row)
            ]
            for row in rows.itertuples(index=False)
        ]
        header = [str(name).replace("_", " ") for name in rows.columns]
        parts.append(
            f"<details><summary>{caption}</summary>\n"
            f"{table(caption, header, shown)}</details>"
        )
    if not parts:
        return ""
    note = (
        "Predictability: share of the variance of the other model's latent that a "
        "linear map of this one's tells, on cells it was not fitted on. Overlap: "
        "Jaccard index of the genes at the ends of matched factors. Seeds begin at "
        "other weights and draw other cells, and factors may be turned into each other "
        "without a loss: low overlap of one mixture's seeds says that single factors "
        "are not to be interpreted, not that models differ in what they tell of cells."
    )
    return f"<h3>How alike models are</h3>\n<p>{note}</p>\n{''.join(parts)}"
