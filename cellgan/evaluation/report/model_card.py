"""``MODEL_CARD.md``: what a model is, what it is good for, and how to make it again.

The front matter is that of model hubs. Whether training cells leak is said before all
else, because it decides whether generated cells may be shared at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cellgan.evaluation.report.document import ExperimentReport
from cellgan.evaluation.report.rendering import render
from cellgan.evaluation.report.tables import SCORE_LEGEND, pooled

TAGS = ("biology", "single-cell", "synthetic-data")
ASKED = ("cells_no", "seed", "request")
"""What ``--generate`` was asked for, as generated files say it."""
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
    run = experiment.run
    parameters = run.parameters or {}
    modalities = sorted(
        {part for m in experiment.metrics for part in m.modality.split("+")}
    )
    model_type = run.origin.get("model_type")
    unscored = [
        f"{result.name} ({result.no_score})"
        for result in pooled(experiment)
        if result.score is None
    ]
    blocks = {key: parameters.get(key) or {} for key in ("model", "training")}
    document = {
        "exp_param": {"experiments_dir": "experiments"},
        "experiments": {name: run.parameters},
    }
    return render(
        "model_card.md.j2",
        name=name,
        report=experiment,
        tags=[*TAGS, *modalities, *([model_type] if model_type else [])],
        raw_input=(parameters.get("input_ds") or {}).get("raw_input"),
        settings={**run.origin, **flat(blocks)},
        uses=USES[experiment.verdict.grade],
        unscored=", ".join(unscored),
        legend=SCORE_LEGEND,
        parameters=document if run.parameters is not None else None,
        asked={key: run.origin[key] for key in ASKED if key in run.origin},
    )


def metrics_table(experiment: ExperimentReport) -> str:
    """Return the pooled metrics as a table in Markdown."""
    return render("metrics.md.j2", report=experiment).rstrip()


def flat(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested blocks as one, keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in block.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
