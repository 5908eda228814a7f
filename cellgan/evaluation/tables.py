"""A report as tables: ``metrics.csv``, and what the console shows.

All rooms that people look at take their numbers from here, so one number is written in
one way: three significant digits, and a dash where it is undefined. A score is 0 at the
metric's floor and 1 at its ceiling, the value of real cells.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from cellgan.experiment import replacing

Document: TypeAlias = Mapping[str, Any]
"""A whole report: JSON values."""
ExperimentReport: TypeAlias = Mapping[str, Any]
"""One experiment of a report."""
MetricResult: TypeAlias = Mapping[str, Any]
"""One metric of an experiment, pooled or of one label."""

FLOORS = ("independent", "permuted", "label_means")
COPIED_COLUMNS = (
    *("title", "family", "modality", "label", "value", "low", "high", "ceiling"),
    *("floor", "score", "score_low", "score_high", "n", "space", "meaning"),
)
CSV_COLUMNS = (
    *("experiment", "name", *COPIED_COLUMNS[:8]),
    *(f"floor_{name}" for name in FLOORS),
    *COPIED_COLUMNS[8:],
)
UNDEFINED = "\u2013"
LONGEST_NAME = 30


def number(value: float | None, *, undefined: str = UNDEFINED) -> str:
    """Return three significant digits; whole numbers are written as they are."""
    if value is None or not math.isfinite(value):
        return undefined
    if isinstance(value, int):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 999.5:
        return f"{value:#.3g}".removesuffix(".")
    if 999.5 <= abs(value) < 1e6:
        return str(int(float(f"{value:.3g}")))
    return f"{value:.3g}"


def interval(result: Mapping[str, Any], *, undefined: str = UNDEFINED) -> str:
    """Return the interval of a value in words."""
    low, high = result["low"], result["high"]
    if low is None or high is None:
        return undefined
    return f"{number(low)} to {number(high)}"


def pooled(experiment: ExperimentReport) -> list[MetricResult]:
    """Return the metrics of all cells together."""
    return [result for result in experiment["metrics"] if result["label"] is None]


def of_labels(experiment: ExperimentReport) -> list[MetricResult]:
    """Return the metrics of cells of one label."""
    return [result for result in experiment["metrics"] if result["label"] is not None]


def floor_value(result: MetricResult) -> float | None:
    """Return the value that scores 0."""
    name = result["floor"]
    floor: float | None = None if name is None else result["floors"].get(name)
    return floor


def mean_score(results: Iterable[MetricResult]) -> float | None:
    """Return the mean score, each clipped to 0..1; None when there is none."""
    scores = [
        min(max(result["score"], 0.0), 1.0)
        for result in results
        if result["score"] is not None
    ]
    return sum(scores) / len(scores) if scores else None


def family_scores(experiment: ExperimentReport) -> dict[str, float | None]:
    """Return the mean score of the pooled metrics of every family."""
    results = pooled(experiment)
    families = dict.fromkeys(result["family"] for result in results)
    return {
        family: mean_score(result for result in results if result["family"] == family)
        for family in families
    }


def weakest(results: Iterable[MetricResult]) -> MetricResult | None:
    """Return the metric with the lowest score; None when none has a score."""
    scored = [result for result in results if result["score"] is not None]
    return min(scored, key=lambda result: result["score"], default=None)


def metric_name(result: MetricResult, experiment: ExperimentReport) -> str:
    """Return a metric's name, with its modality where there are several."""
    return f"{result['name']}{_modality_note(result, experiment)}"


def metric_title(result: MetricResult, experiment: ExperimentReport) -> str:
    """Return a metric's title, with its modality where there are several."""
    return f"{result['title']}{_modality_note(result, experiment)}"


def _modality_note(result: MetricResult, experiment: ExperimentReport) -> str:
    modalities = {other["modality"] for other in experiment["metrics"]}
    return f" ({result['modality']})" if len(modalities) > 1 else ""


def ranked(document: Document) -> list[tuple[str, ExperimentReport]]:
    """Return names and experiments, the best first.

    Those that leak training cells are last, whatever they score: copies of training
    cells are like real cells in every other way.
    """

    def place(entry: tuple[str, ExperimentReport]) -> tuple[bool, bool, float]:
        overall = entry[1]["overall"]
        leaks = entry[1]["verdict"]["grade"] == "leak"
        return leaks, overall is None, -(overall or 0.0)

    return sorted(document["experiments"].items(), key=place)


def write_csv(path: Path, document: Document) -> None:
    """Write one row per experiment, metric and label (empty: all cells together).

    Parameters
    ----------
    path
        File to write, UTF-8. Numbers are not rounded; what is undefined is empty.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, CSV_COLUMNS)
        writer.writeheader()
        for name, experiment in document["experiments"].items():
            writer.writerows(
                {
                    "experiment": name,
                    "name": result["name"],
                    **{column: result[column] for column in COPIED_COLUMNS},
                    **{f"floor_{of}": result["floors"].get(of) for of in FLOORS},
                }
                for result in experiment["metrics"]
            )


def leaderboard(document: Document) -> str:
    """Return all experiments as one table for the console, the best first."""
    header = ("experiment", "grade", "score", "weakest metric", "its score")
    rows = []
    for name, experiment in ranked(document):
        lowest = weakest(pooled(experiment))
        rows.append(
            (
                _shortened(name),
                experiment["verdict"]["grade"],
                number(experiment["overall"], undefined="-"),
                "-" if lowest is None else _shortened(metric_name(lowest, experiment)),
                number(None if lowest is None else lowest["score"], undefined="-"),
            )
        )
    return "\n".join(
        (
            "experiments, best first (score: 0 floor, 1 as good as real cells)",
            *_aligned(header, rows, numeric=(2, 4)),
        )
    )


def summary(name: str, experiment: ExperimentReport) -> str:
    """Return one experiment's pooled metrics as a table for the console."""
    cells = experiment["cells"]
    header = ("metric", "value", "95 % interval", "real cells", "floor", "score")
    rows = [
        (
            _shortened(metric_name(result, experiment)),
            number(result["value"], undefined="-"),
            interval(result, undefined="-"),
            number(result["ceiling"], undefined="-"),
            number(floor_value(result), undefined="-"),
            number(result["score"], undefined="-"),
        )
        for result in pooled(experiment)
    ]
    return "\n".join(
        (
            f"{name}: {cells['generated']} generated against {cells['held_out']} "
            f"held-out ({cells['split']}) cells",
            *_aligned(header, rows, numeric=(1, 2, 3, 4, 5)),
        )
    )


def _shortened(name: str) -> str:
    is_long = len(name) > LONGEST_NAME
    return f"{name[: LONGEST_NAME - 3]}..." if is_long else name


def _aligned(
    header: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int]
) -> list[str]:
    """Return lines with columns aligned, those of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "    "
        + "  ".join(
            cell.rjust(width) if column in numeric else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, *rows)
    ]
