"""``MODEL_CARD.md``: what a model is, what it is good for, and how to make it again.

The front matter is that of model hubs. Whether training cells leak is said before all
else, because it decides whether generated cells may be shared at all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cellgan.evaluation.report.tables import (
    SCORE_LEGEND,
    ExperimentReport,
    floor_name,
    floor_value,
    held_out_cells,
    interval,
    metric_title,
    number,
    pooled,
    score_text,
    score_words,
    used_cells,
)

USES = {
    "close": "Suited to augment training data and to test methods, within the limits "
    "below.",
    "usable": "Suited to test methods and to augment training data where the limits "
    "below do not matter; check on real cells what is concluded from generated ones.",
    "far": "Not suited for conclusions about biology: generated cells differ from real "
    "ones in ways that most analyses see.",
    "leak": "Not to be shared in place of real cells: treat generated cells, and the "
    "model's weights, as confidentially as the training data.",
}


def model_card(name: str, experiment: ExperimentReport) -> str:
    """Return the Markdown of a model card.

    Parameters
    ----------
    name
        Name of the experiment.
    experiment
        Its part of a report.
    """
    verdict, memorisation = experiment["verdict"], experiment["memorisation"]
    sections: dict[str, str] = {
        "Data": _data(experiment),
        "Training": _training(experiment),
        "Intended use and limits": _use(experiment),
        "Metrics": f"{_escape(SCORE_LEGEND)}\n\n{metrics_table(experiment)}",
        "Memorisation": _memorisation(memorisation),
        "How to reproduce": _reproduction(name, experiment),
        "Citation": "Cite the authors of the model and of the data, and cellgan: its "
        "`CITATION.cff` lists the work that each model type is from.",
    }
    if memorisation["leaks"]:
        sections = {
            "Warning: training cells leak": sections.pop("Memorisation"),
            **sections,
        }
    body = "".join(f"\n## {title}\n\n{text}\n" for title, text in sections.items())
    return (
        f"{_front_matter(experiment)}\n# {_escape(name)}\n\n"
        f"Grade: **{verdict['grade']}**. {_escape(verdict['headline'])}\n{body}"
    )


def _front_matter(experiment: ExperimentReport) -> str:
    modalities = sorted(
        {part for m in experiment["metrics"] for part in m["modality"].split("+")}
    )
    model_type = experiment["run"]["origin"].get("model_type")
    tags = ["biology", "single-cell", "synthetic-data", *modalities]
    tags += [model_type] if model_type else []
    # JSON strings are YAML strings, whatever is in them
    lines = ["library_name: cellgan", "tags:"]
    lines += [f"  - {json.dumps(tag)}" for tag in tags]
    return "\n".join(["---", *lines, "---", ""])


def _data(experiment: ExperimentReport) -> str:
    cells = experiment["cells"]
    source = _parameter(experiment, "input_ds", "raw_input")
    sentences = [
        f"Real cells: {_code(source)}." if source else "",
        f"Compared: {cells['generated']} generated cells with {cells['held_out']} real "
        f"ones ({_escape(held_out_cells(cells))}). The ceiling is the value of "
        f"{cells['control']} training cells; the space of comparison was learned from "
        f"{cells['training']} others. {used_cells(cells)}",
        *map(_escape, experiment["warnings"]),
        _escape(_sentence(experiment["scale"])),
        *(_escape(_sentence(text)) for text in experiment["dropped"]),
    ]
    text = " ".join(filter(None, sentences))
    if not experiment["labels"]:
        return f"{text}\n\nCells are not labelled."
    rows = (
        (_escape(label), str(found["n"]), found["state"])
        for label, found in experiment["labels"].items()
    )
    return f"{text}\n\n{_table(('label', 'cells a side', 'state'), rows)}"


def _sentence(text: str) -> str:
    """Return text that begins with a capital and ends with a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _training(experiment: ExperimentReport) -> str:
    origin = experiment["run"]["origin"]
    rows = [(_escape(key), _code(value)) for key, value in origin.items()]
    for block in ("model", "training"):
        rows += [
            (_escape(f"{block}.{key}"), _code(value))
            for key, value in flat(_parameter(experiment, block) or {}).items()
        ]
    return _table(("", "value"), rows)


def _use(experiment: ExperimentReport) -> str:
    verdict = experiment["verdict"]
    unscored = [
        f"{r['name']} ({r['no_score']})"
        for r in pooled(experiment)
        if r["score"] is None
    ]
    limits = [
        *verdict["findings"],
        "Generated cells follow the donors, protocol and labels of the training cells; "
        "nothing is known of others.",
    ]
    if unscored:
        limits.append(f"Without a score, so not judged: {', '.join(unscored)}.")
    return f"{USES[verdict['grade']]}\n\n{_bullets(limits)}"


def metrics_table(experiment: ExperimentReport) -> str:
    """Return the pooled metrics as a table in Markdown."""
    header = (
        *("metric", "value", "95 % interval", "real cells"),
        *("floor", "which floor", "score", "cells"),
    )
    rows = (
        (
            _escape(metric_title(result, experiment)),
            number(result["value"]),
            interval(result),
            number(result["ceiling"]),
            number(floor_value(result)),
            floor_name(result),
            _score(result),
            number(result["n"]),
        )
        for result in pooled(experiment)
    )
    return _table(header, rows)


def _score(result: Mapping[str, Any]) -> str:
    if result["score"] is None:
        return f"no score: {_escape(result['no_score'] or 'undefined')}"
    words = score_words(result["score"])
    said = _escape(score_text(result["score"])) + (f", {words}" if words else "")
    return said if result["earns"] else f"{said} (check)"


def _memorisation(found: Mapping[str, Any]) -> str:
    if not found["known"]:
        answer = "It is not known which cells were trained on: nothing can be said."
    elif found["leaks"]:
        answer = "**Generated cells give training cells away.**"
    else:
        answer = "No sign was found that training cells were copied."
    parts = [answer]
    if found["reasons"]:
        parts.append(_bullets(found["reasons"]))
    if found["caution"]:
        parts.append(_escape(_sentence(found["caution"])))
    if found["numbers"]:
        rows = (
            (
                _escape(result["title"]),
                number(result["value"]),
                interval(result),
                number(result["ceiling"]),
            )
            for result in found["numbers"]
        )
        header = ("number", "value", "95 % interval", "held-out cells")
        parts.append(_table(header, rows))
    return "\n\n".join(parts)


def _reproduction(name: str, experiment: ExperimentReport) -> str:
    run = experiment["run"]
    versions = ", ".join(f"{of} {number}" for of, number in run["versions"].items())
    made_with = f"Evaluated with seed {run['seed']} and {_escape(versions)}."
    if run["parameters"] is None:
        return f"{made_with} How the cells were made is not known."
    document = {
        "exp_param": {"experiments_dir": "experiments"},
        "experiments": {name: run["parameters"]},
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    asked = [
        f"`{key}` {_code(run['origin'][key])}"
        for key in ("cells_no", "seed", "request")
        if key in run["origin"]
    ]
    told = f" `--generate` was asked for {', '.join(asked)}." if asked else ""
    return (
        "Save as `parameters.json`:\n\n"
        f"```json\n{text}\n```\n\n"
        "```\ncellgan --param parameters.json --process --train --generate "
        f"--evaluate\n```\n\n{made_with}{told}"
    )


def flat(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested blocks as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in block.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _parameter(experiment: ExperimentReport, *keys: str) -> Any:
    value = experiment["run"]["parameters"] or {}
    for key in keys:
        value = value.get(key) or {}
    return value


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {_escape(sentence)}" for sentence in sentences)


def _escape(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|&$~#])", r"\\\1", " ".join(text.split()))


def _code(value: Any) -> str:
    """Return a value as JSON in a code span, which nothing in it can end."""
    text = json.dumps(value, ensure_ascii=False).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if len(fence) > 1 else f"`{text}`"
