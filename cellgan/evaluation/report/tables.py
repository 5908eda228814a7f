"""A report as tables: ``metrics.csv``, and what the console shows.

All rooms that people look at take their numbers from here, so one number is written in
one way: three significant digits, and a dash where it is undefined. A score is 0 at the
metric's floor and 1 at its ceiling, the value of real cells.
"""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cellgan.evaluation.metrics.catalogue import FLOORS, Floor
from cellgan.evaluation.report.document import (
    CellNumbers,
    ExperimentReport,
    MemorisationNumber,
    MetricRecord,
    Report,
)
from cellgan.files import replacing

COPIED_COLUMNS = (
    *("title", "family", "modality", "label", "value", "low", "high", "ceiling"),
    *("floor", "earns", "score", "score_low", "score_high", "no_score", "n"),
    *("space", "meaning"),
)
CSV_COLUMNS = (
    *("experiment", "name", *COPIED_COLUMNS[:8]),
    *(f"floor_{name}" for name in FLOORS),
    *COPIED_COLUMNS[8:],
)
UNDEFINED = "\u2013"
LONGEST_NAME = 32
LINE_WIDTH = 96
BELOW_FLOOR = -0.05
"""A score below is worse than the floor by more than chance makes it."""
FLOOR_NAMES: dict[Floor, str] = {
    "independent": "independent",
    "permuted": "permuted",
    "label_means": "label means",
}
SCORE_LEGEND = (
    "Scores are 0 at the floor (independent: genes drawn independently label by label; "
    "permuted: genes permuted across cells; label means) and 1 at the value of real "
    "training cells; 1 is written for more, < 0 for less than the floor. Scores from "
    "the independent floor earn trust. All others are checks: where they are low they "
    "lower the overall score, and they never raise it."
)


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


def score_text(score: float | None, *, undefined: str = UNDEFINED) -> str:
    """Return a score: 1 for all that are as good as real, < 0 for worse than floors."""
    if score is None or not math.isfinite(score):
        return undefined
    if score >= 1:
        return "1"
    return "< 0" if score < BELOW_FLOOR else number(max(score, 0.0))


def score_words(score: float | None) -> str:
    """Return what is said of a score that is not shown as it is."""
    if score is None or not math.isfinite(score) or BELOW_FLOOR <= score < 1:
        return ""
    return "as good as real" if score >= 1 else "worse than the floor"


def held_out_cells(cells: CellNumbers) -> str:
    """Return what the held-out cells of a report are, in words."""
    split = cells.split
    of = f"the {split} split" if split in ("test", "valid") else split
    by = f", held out by {cells.held_out_by}" if cells.held_out_by else ""
    return f"{of}{by}"


def used_cells(cells: CellNumbers) -> str:
    """Say how many cells of the files were compared, and how many were not."""
    in_files = cells.in_files
    used = {
        "generated": (cells.generated, in_files["generated"]),
        "held-out": (cells.held_out, in_files["held_out"]),
        "training": (cells.control + cells.training, in_files["training"]),
    }
    parts = (
        f"{n:,} of {of:,} {name} cells" + f" ({of - n:,} not)" * (of > n)
        for name, (n, of) in used.items()
    )
    return (
        f"Used were {', '.join(parts)}: equally many of every label from each side, "
        f"drawn at random."
    )


def interval_text(
    result: MetricRecord | MemorisationNumber, *, undefined: str = UNDEFINED
) -> str:
    """Return the interval of a value in words."""
    low, high = result.low, result.high
    if low is None or high is None:
        return undefined
    return f"{number(low)} to {number(high)}"


def pooled(experiment: ExperimentReport) -> list[MetricRecord]:
    """Return the metrics of all cells together."""
    return [result for result in experiment.metrics if result.label is None]


def of_labels(experiment: ExperimentReport) -> list[MetricRecord]:
    """Return the metrics of cells of one label."""
    return [result for result in experiment.metrics if result.label is not None]


def floor_value(result: MetricRecord) -> float | None:
    """Return the value that scores 0."""
    return None if result.floor is None else result.floors.get(result.floor)


def floor_name(result: MetricRecord) -> str:
    """Return which floor a score uses, in a word or two; nothing without a floor."""
    return "" if result.floor is None else FLOOR_NAMES[result.floor]


def mean_score(results: Iterable[MetricRecord]) -> float | None:
    """Return the mean score, each clipped to 0..1; None when there is none."""
    scores = [
        min(max(result.score, 0.0), 1.0)
        for result in results
        if result.score is not None
    ]
    return sum(scores) / len(scores) if scores else None


def family_scores(experiment: ExperimentReport) -> dict[str, float | None]:
    """Return the score of every family, of all cells together."""
    return family_means(pooled(experiment))


def family_means(results: Sequence[MetricRecord]) -> dict[str, float | None]:
    """Return the score of every family, whose mean is the overall score.

    It is the mean score of the metrics that earn trust: of those that tell genes
    independent of each other from real ones. All others are checks: where their mean is
    lower, it is taken instead. A family of checks alone is at most the mean of the
    families that earn.
    """
    families: dict[str, list[MetricRecord]] = {}
    for result in results:
        families.setdefault(result.family, []).append(result)
    earned, checked = (
        {
            name: mean_score(result for result in of if result.earns is earns)
            for name, of in families.items()
        }
        for earns in (True, False)
    )
    own = [score for score in earned.values() if score is not None]
    overall = sum(own) / len(own) if own else None
    return {
        name: _lowest(overall if earned[name] is None else earned[name], checked[name])
        for name in families
        if earned[name] is not None or checked[name] is not None
    }


def _lowest(earned: float | None, checked: float | None) -> float | None:
    """Return the lower of both; None where nothing is earned."""
    if earned is None or checked is None:
        return earned
    return min(earned, checked)


def weakest(results: Iterable[MetricRecord]) -> MetricRecord | None:
    """Return the metric with the lowest score; None when none has a score."""
    scored = [
        (of.score, place, of)
        for place, of in enumerate(results)
        if of.score is not None
    ]
    return min(scored)[2] if scored else None


def metric_name(result: MetricRecord, experiment: ExperimentReport) -> str:
    """Return a metric's name, with its modality where there are several."""
    return f"{result.name}{_modality_note(result, experiment)}"


def metric_title(result: MetricRecord, experiment: ExperimentReport) -> str:
    """Return a metric's title, with its modality where there are several."""
    return f"{result.title}{_modality_note(result, experiment)}"


def why_unknown(experiment: ExperimentReport) -> str:
    """Return why it is not known whether training cells were copied."""
    return experiment.memorisation.caution or "training cells are not known"


def _modality_note(result: MetricRecord, experiment: ExperimentReport) -> str:
    modalities = {other.modality for other in experiment.metrics}
    return f" ({result.modality})" if len(modalities) > 1 else ""


def ranked(document: Report) -> list[tuple[str, ExperimentReport]]:
    """Return names and experiments, the best first.

    Those that leak training cells are last, whatever they score: copies of training
    cells are like real cells in every other way.
    """

    def place(entry: tuple[str, ExperimentReport]) -> tuple[bool, bool, float]:
        overall = entry[1].overall
        leaks = entry[1].verdict.grade == "leak"
        return leaks, overall is None, -(overall or 0.0)

    return sorted(document.experiments.items(), key=place)


def write_csv(path: Path, document: Report) -> None:
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
        for name, experiment in document.experiments.items():
            writer.writerows(
                {
                    "experiment": name,
                    "name": result.name,
                    **{column: getattr(result, column) for column in COPIED_COLUMNS},
                    **{f"floor_{of}": result.floors.get(of) for of in FLOORS},
                }
                for result in experiment.metrics
            )


def leaderboard_text(document: Report) -> str:
    """Return all experiments as one table for the console, the best first."""
    header = ("experiment", "grade", "score", "weakest metric", "its score")
    rows = []
    for name, experiment in ranked(document):
        lowest = weakest(pooled(experiment))
        rows.append(
            (
                _shortened(name),
                experiment.verdict.grade,
                score_text(experiment.overall, undefined="-"),
                "-" if lowest is None else _shortened(metric_name(lowest, experiment)),
                score_text(None if lowest is None else lowest.score, undefined="-"),
            )
        )
    return "\n".join(
        (
            "experiments, best first (score: 0 floor, 1 as good as real cells)",
            *_aligned(header, rows, numeric=(2, 4)),
        )
    )


def summary_text(name: str, experiment: ExperimentReport) -> str:
    """Return one experiment's pooled metrics as a table for the console."""
    cells = experiment.cells
    header = ("metric", "value", "95 % interval", "real cells", "floor", "", "score")
    rows = [
        (
            _shortened(metric_name(result, experiment)),
            number(result.value, undefined="-"),
            interval_text(result, undefined="-"),
            number(result.ceiling, undefined="-"),
            number(floor_value(result), undefined="-"),
            floor_name(result)[:1],
            score_text(result.score, undefined="-"),
        )
        for result in pooled(experiment)
    ]
    letters = ", ".join(f"{of[0]}: {of}" for of in FLOOR_NAMES.values())
    notes = [f"Floors are {letters}. {SCORE_LEGEND}", *_missing_scores(experiment)]
    return "\n".join(
        (
            f"{name}: {cells.generated} generated against {cells.held_out} "
            f"held-out cells ({held_out_cells(cells)})",
            *_aligned(header, rows, numeric=(1, 2, 3, 4, 6)),
            *_wrapped([*notes, used_cells(cells)]),
        )
    )


def _missing_scores(experiment: ExperimentReport) -> list[str]:
    """Return a sentence for each reason why metrics have no score."""
    names: dict[str, list[str]] = {}
    for result in pooled(experiment):
        if result.score is None:
            name = metric_name(result, experiment)
            names.setdefault(result.no_score or "undefined", []).append(name)
    return [f"No score, {why}: {', '.join(of)}." for why, of in names.items()]


def _wrapped(sentences: Iterable[str]) -> Iterator[str]:
    for sentence in sentences:
        for line in textwrap.wrap(sentence, LINE_WIDTH, break_long_words=True):
            yield f"    {line}"


def _shortened(name: str) -> str:
    """Shorten a name in its middle: names often differ at their ends."""
    half = (LONGEST_NAME - 3) // 2
    return name if len(name) <= LONGEST_NAME else f"{name[:half]}...{name[-half:]}"


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
