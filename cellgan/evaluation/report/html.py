"""The report as one page that needs nothing but itself.

Styles, script and pictures are inside the file, and a content security policy forbids
all else: nothing is loaded from anywhere, and only the script whose hash is named runs.
All text of a report is escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.report.markup import (
    bullets,
    cell,
    interval_cell,
    number_cell,
    score_cell,
    table,
    undefined,
)
from cellgan.evaluation.report.tables import (
    SCORE_LEGEND,
    Document,
    ExperimentReport,
    MetricResult,
    family_scores,
    floor_name,
    floor_value,
    held_out_cells,
    mean_score,
    metric_title,
    number,
    of_labels,
    pooled,
    ranked,
    used_cells,
    weakest,
)
from cellgan.experiment import replacing

TITLE = "Generated against real cells"


def write_html(
    path: Path, document: Document, pictures: Mapping[str, Sequence[Picture]]
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
        temporary.write_text(page(document, pictures), encoding="utf-8")


def page(document: Document, pictures: Mapping[str, Sequence[Picture]]) -> str:
    """Return the text of the page."""
    experiments = ranked(document)
    sections = "\n".join(
        _experiment_section(index, name, experiment, pictures.get(name, ()))
        for index, (name, experiment) in enumerate(experiments)
    )
    main = f"""{_leaderboard(experiments)}
<section aria-labelledby="verdicts">
<h2 id="verdicts">Verdict</h2>
<div class="verdicts">
{"".join(_verdict(index, *entry) for index, entry in enumerate(experiments))}
</div>
</section>
{sections}
{_glossary(experiments)}"""
    made = f"{document['version']}, {document['created']}"
    return shell(TITLE, [name for name, _ in experiments], made, main)


def shell(title: str, of: Iterable[str], made: str, main: str) -> str:
    """Return a whole page around what it shows.

    Parameters
    ----------
    title, made
        Heading, and version and time of the making; plain text.
    of
        Names of what the page is about.
    main
        HTML of its sections.
    """
    style, script = (
        resources.files(__package__).joinpath(file).read_text("utf-8")
        for file in ("report.css", "report.js")
    )
    policy = (
        "default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}: {escape(", ".join(of))}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="quiet">Made by cellgan {escape(made)}.</p>
</header>
<main>
{main}
</main>
<dialog aria-label="enlarged picture"><img src="data:," alt=""></dialog>
<script>{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _leaderboard(experiments: Sequence[tuple[str, ExperimentReport]]) -> str:
    families = list(
        dict.fromkeys(
            family
            for _, experiment in experiments
            for family in family_scores(experiment)
        )
    )
    rows = []
    for index, (name, experiment) in enumerate(experiments):
        scores = family_scores(experiment)
        grade = experiment["verdict"]["grade"]
        rows.append(
            [
                cell(f'<a href="#experiment-{index}">{escape(name)}</a>', is_head=True),
                cell(_grade(grade)),
                score_cell({"score": experiment["overall"]}),
                *(number_cell(scores.get(family)) for family in families),
                number_cell(experiment["cells"]["generated"]),
            ]
        )
    header = ["experiment", "grade", "overall", *families, "cells"]
    note = (
        f"{SCORE_LEGEND} Overall is the mean of the columns that follow it; "
        "experiments that leak training cells come last."
    )
    return f"""<section aria-labelledby="leaderboard">
<h2 id="leaderboard">Leaderboard</h2>
{table("Scores of all experiments, the best first", header, rows)}
<p class="quiet">{note}</p>
</section>"""


def _verdict(index: int, name: str, experiment: ExperimentReport) -> str:
    verdict, memorisation = experiment["verdict"], experiment["memorisation"]
    leaks = " leak" if memorisation["leaks"] else ""
    return f"""<article class="card{leaks}">
<h3><a href="#experiment-{index}">{escape(name)}</a> {_grade(verdict["grade"])}</h3>
<p>{escape(verdict["headline"])}</p>
{bullets(verdict["findings"])}
</article>
"""


def _grade(grade: str) -> str:
    return f'<span class="grade grade-{escape(grade)}">{escape(grade)}</span>'


def _experiment_section(
    index: int, name: str, experiment: ExperimentReport, pictures: Sequence[Picture]
) -> str:
    cells = experiment["cells"]
    parts = (
        _memorisation(experiment),
        picture_section(pictures),
        _scores(experiment),
        _labels(experiment),
        _giveaway_genes(experiment),
        _guidance(experiment),
        _published(experiment),
        _run(experiment),
    )
    return f"""<section class="experiment" aria-labelledby="experiment-{index}">
<h2 id="experiment-{index}">{escape(name)} {_grade(experiment["verdict"]["grade"])}</h2>
<p>{cells["generated"]} generated cells against {cells["held_out"]} held-out real
cells ({escape(held_out_cells(cells))}). The ceiling is the value of {cells["control"]}
training cells; the space of comparison was learned from {cells["training"]} others.
{escape(used_cells(cells))} {escape(_sentence(experiment["scale"]))}</p>
{bullets([*experiment["warnings"], *map(_sentence, experiment["dropped"])])}
{"".join(parts)}
</section>"""


def _sentence(text: str) -> str:
    """Return text that begins with a capital and ends with a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _memorisation(experiment: ExperimentReport) -> str:
    found = experiment["memorisation"]
    if not found["known"]:
        answer = "It is not known which cells were trained on: nothing can be said."
    elif found["leaks"]:
        answer = "Training cells leak: do not share these cells in place of real ones."
    else:
        answer = "No sign that training cells were copied."
    caution = ""
    if found["caution"]:
        caution = f"<p>{escape(_sentence(found['caution']))}</p>"
    rows = [
        [
            cell(escape(result["title"]), is_head=True),
            number_cell(result["value"]),
            interval_cell(result),
            number_cell(result["ceiling"]),
            cell(escape(result["meaning"]), kind="wide"),
        ]
        for result in found["numbers"]
    ]
    header = ["number", "value", "95 % interval", "of held-out cells", "meaning"]
    return f"""<h3>Memorisation</h3>
<div class="card{" leak" if found["leaks"] else ""}">
<p><strong>{answer}</strong></p>
{bullets([*map(_sentence, found["reasons"])])}{caution}
</div>
{table("Numbers of the memorisation check", header, rows)}"""


def picture_section(pictures: Sequence[Picture]) -> str:
    """Return pictures with their titles, and in words; nothing without any."""
    if not pictures:
        return ""
    figures = "".join(
        f"""<figure>
<button type="button" aria-label="enlarge: {escape(picture.title)}">
<img src="data:image/png;base64,{base64.b64encode(picture.png).decode()}"
alt="{escape(picture.alt)}"></button>
<figcaption>{escape(picture.title)}
<details><summary class="quiet">in numbers</summary>{escape(picture.alt)}</details>
</figcaption>
</figure>
"""
        for picture in pictures
    )
    return f'<h3>Pictures</h3>\n<div class="pictures">\n{figures}</div>\n'


def _scores(experiment: ExperimentReport) -> str:
    rows = [_score_row(result, experiment) for result in pooled(experiment)]
    shown = table("Metrics of all cells together", _score_header("metric"), rows)
    return f"<h3>Metrics</h3>\n{shown}"


def _score_header(*first: str) -> list[str]:
    return [
        *(*first, "score", "value", "95 % interval", "real cells", "floor"),
        *("role", "family", "cells", "space"),
    ]


def _score_row(result: MetricResult, experiment: ExperimentReport) -> list[str]:
    p_value = experiment["p_values"].get(result["name"])
    note = ""
    if p_value is not None and result["label"] is None:
        note = f' <span class="quiet">p = {number(p_value)}</span>'
    title = escape(metric_title(result, experiment))
    return [
        cell(
            f'<a href="#meaning-{escape(result["name"])}">{title}</a>{note}',
            is_head=True,
        ),
        score_cell(result),
        number_cell(result["value"]),
        interval_cell(result),
        number_cell(result["ceiling"]),
        number_cell(floor_value(result), note=floor_name(result)),
        cell("earns" if result["earns"] else "check"),
        cell(escape(result["family"])),
        number_cell(result["n"]),
        cell(escape(result["space"])),
    ]


def _labels(experiment: ExperimentReport) -> str:
    if not experiment["labels"]:
        return ""
    results = of_labels(experiment)
    rows = []
    for label, found in experiment["labels"].items():
        mine = [result for result in results if result["label"] == label]
        lowest = weakest(mine)
        rows.append(
            [
                cell(escape(label), is_head=True),
                number_cell(found["n"]),
                cell(escape(found["state"])),
                score_cell({"score": mean_score(mine)}),
                cell(
                    escape(metric_title(lowest, experiment)) if lowest else undefined()
                ),
                score_cell({"score": lowest["score"] if lowest else None}),
            ]
        )
    header = [
        "label",
        "cells",
        "state",
        "mean score",
        "weakest metric",
        "its score",
    ]
    shown = table("Labels, and how well each is met", header, rows)
    all_rows = [
        [
            cell(escape(result["label"]), is_head=True),
            *_score_row(result, experiment),
        ]
        for result in results
    ]
    return f"""<h3>Labels</h3>
{shown}
<details><summary>All metrics of every label</summary>
{table("Metrics within labels", _score_header("label", "metric"), all_rows)}
</details>"""


def _giveaway_genes(experiment: ExperimentReport) -> str:
    columns = (*("real_mean", "generated_mean", "real_detected", "generated_detected"),)
    rows = [
        [
            cell(escape(gene["gene"]), is_head=True),
            number_cell(gene["importance"]),
            _auc_cell(gene["auc"]),
            *(number_cell(gene[column]) for column in columns),
        ]
        for gene in experiment["giveaway_genes"]
    ]
    header = [
        *("gene", "importance", "AUC by it alone", "mean log: real", "generated"),
        *("share of cells: real", "generated"),
    ]
    shown = table("Genes that tell generated from real cells", header, rows)
    note = (
        "Importance is the gene's share in a random forest on all variable genes. AUC "
        "by it alone: 0.5 is chance, 1 tells all cells; more or less is expressed in "
        "generated cells. Then mean log expression, and the share of cells with it."
    )
    if not rows:
        return ""
    return f'<h3>Give-away genes</h3>\n{shown}\n<p class="quiet">{note}</p>'


def _guidance(experiment: ExperimentReport) -> str:
    rows = experiment["guidance"]
    if not rows:
        return ""
    names = list(rows[0])
    shown = [
        [
            cell("real cells", is_head=True)
            if row["scale"] is None
            else number_cell(row["scale"]),
            *(number_cell(row[name]) for name in names[1:]),
        ]
        for row in rows
    ]
    header = [name.replace("_", " ") for name in names]
    return "<h3>Guidance</h3>\n" + table(
        "Cells generated with several guidance scales", header, shown
    )


def _auc_cell(auc: float | None) -> str:
    """Return a cell that shows how well a gene tells, and in which direction."""
    if auc is None:
        return number_cell(None)
    return number_cell(max(auc, 1 - auc), note="more" if auc > 0.5 else "less")


def _published(experiment: ExperimentReport) -> str:
    rows = [
        [
            cell(escape(result["protocol"]), is_head=True),
            cell(escape(result["name"])),
            number_cell(result["value"]),
            number_cell(result["ceiling"]),
            cell(escape(result["settings"]), kind="wide"),
        ]
        for result in experiment["published"]
    ]
    header = ["protocol", "metric", "value", "real cells", "settings"]
    shown = table("Metrics as publications compute them", header, rows)
    return f"<h3>As published</h3>\n{shown}" if rows else ""


def _run(experiment: ExperimentReport) -> str:
    run = experiment["run"]
    blocks = {
        "Generated cells": run["origin"],
        "Seed of the evaluation": run["seed"],
        "Seconds": {name: round(taken, 1) for name, taken in run["seconds"].items()},
        "Versions": run["versions"],
        "Parameters": run["parameters"],
    }
    texts = "".join(
        f"<h4>{title}</h4>\n<pre>{escape(_as_text(block))}</pre>\n"
        for title, block in blocks.items()
        if block is not None
    )
    return f"<details><summary>What was run</summary>\n{texts}</details>"


def _as_text(block: Any) -> str:
    return json.dumps(block, indent=2, ensure_ascii=False)


def _glossary(experiments: Iterable[tuple[str, ExperimentReport]]) -> str:
    found = {
        result["name"]: result
        for _, experiment in experiments
        for result in experiment["metrics"]
    }
    entries = "".join(
        f'<dt id="meaning-{escape(name)}">{escape(result["title"])} '
        f'<code class="quiet">{escape(name)}</code></dt>\n'
        f"<dd>{escape(result['meaning'])}. Space: {escape(result['space'])}. "
        f"{_floor_sentence(result)}</dd>\n"
        for name, result in found.items()
    )
    return f"""<section aria-labelledby="meanings">
<h2 id="meanings">What the metrics mean</h2>
<dl>
{entries}</dl>
</section>"""


def _floor_sentence(result: MetricResult) -> str:
    floors = {
        "independent": "genes independent of each other within a label",
        "permuted": "every gene's values permuted across all cells",
        "label_means": "every cell the mean of its label",
    }
    floor = floors.get(result["floor"])
    why = f" No score: {result['no_score']}." if result["no_score"] else ""
    return f"Floor: {floor}.{why}" if floor else "It has no floor, so no score."
