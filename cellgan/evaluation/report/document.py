"""The report as data: what ``report.json`` holds, checked when written and when read.

Everything that people see (pages, tables, cards, TensorBoard) is made from this and
pictures alone. A number that is undefined is null.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from cellgan.errors import DataError
from cellgan.evaluation.comparison.draws import DrawnLabel
from cellgan.evaluation.metrics.catalogue import Floor
from cellgan.files import write_json

FORM = ConfigDict(extra="forbid")

Grade = Literal["close", "usable", "far", "leak"]


def plain(value: Any) -> Any:
    """Return JSON values: NumPy scalars as Python's, nan and infinity as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list | np.ndarray):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


Number: TypeAlias = Annotated[float | None, BeforeValidator(plain)]
"""None where it is undefined."""


@dataclass(frozen=True, kw_only=True, config=FORM)
class MetricRecord:
    """One number with all that is needed to read it."""

    name: str
    title: str
    family: str
    modality: str
    label: str | None
    """None for all cells together."""
    value: Number
    low: Number
    high: Number
    """Ends of the 95 % bootstrap interval of `value`."""
    ceiling: Number
    """The value of real training cells in place of generated ones."""
    floors: Mapping[Floor, Number]
    floor: Floor | None
    """The floor that scores 0."""
    earns: bool
    """Whether that is the independent floor: other scores are checks, which lower the
    overall score and never raise it."""
    score: Number
    """(value - floor) / (ceiling - floor): 1 is as good as real cells."""
    score_low: Number
    score_high: Number
    no_score: str | None
    """Why there is no score; None where there is one."""
    n: int
    """Cells a side."""
    space: str
    meaning: str


@dataclass(frozen=True, kw_only=True, config=FORM)
class MemorisationNumber:
    """One number of the memorisation check."""

    name: str
    title: str
    value: Number
    low: Number
    high: Number
    ceiling: Number
    """What held-out cells give in place of generated ones."""
    meaning: str


@dataclass(frozen=True, kw_only=True, config=FORM)
class MemorisationRecord:
    """Whether training cells were copied."""

    known: bool
    """Whether it is known which cells were trained on."""
    leaks: bool | None
    """None where it is not known which cells were trained on."""
    reasons: list[str]
    caution: str | None
    numbers: list[MemorisationNumber]


@dataclass(frozen=True, kw_only=True, config=FORM)
class PublishedRecord:
    """A number as a publication computes it."""

    protocol: str
    name: str
    value: Number
    ceiling: Number
    settings: str


@dataclass(frozen=True, kw_only=True, config=FORM)
class GiveawayGene:
    """A gene that tells generated from real cells."""

    gene: str
    importance: float
    """Share of the forests' decrease in impurity."""
    auc: Number
    """Share of (real, generated) pairs of cells in which the generated one expresses it
    more, ties counting half: below 0.5 for a gene with too little expression."""
    real_mean: float
    """Mean log expression."""
    generated_mean: float
    real_detected: float
    """Share of cells that express it."""
    generated_detected: float


@dataclass(frozen=True, kw_only=True, config=FORM)
class Verdict:
    """What the numbers say, in plain words."""

    grade: Grade
    headline: str
    findings: list[str]


@dataclass(frozen=True, kw_only=True, config=FORM)
class CellNumbers:
    """How many cells were compared, and which."""

    held_out: int
    generated: int
    control: int
    training: int
    in_files: dict[str, int]
    """Held-out, training and generated cells there are, compared or not."""
    split: str
    """``"test"``, ``"valid"``, or what cells were held out by chance."""
    held_out_by: str | None


@dataclass(frozen=True, kw_only=True, config=FORM)
class RunRecord:
    """What was run."""

    seed: int
    seconds: dict[str, float]
    versions: dict[str, str]
    parameters: dict[str, Any] | None
    origin: dict[str, Any]


@dataclass(frozen=True, kw_only=True, config=FORM)
class ExperimentReport:
    """Everything said of one file of generated cells."""

    verdict: Verdict
    overall: Number
    """Mean over families of the mean score of their pooled metrics, within 0..1."""
    metrics: list[MetricRecord]
    p_values: dict[str, Number]
    memorisation: MemorisationRecord
    published: list[PublishedRecord]
    giveaway_genes: list[GiveawayGene]
    labels: dict[str, DrawnLabel]
    """Of the held-out cells."""
    cells: CellNumbers
    warnings: list[str]
    """What is probably a mistake of whoever made the files."""
    dropped: list[str]
    guidance: list[dict[str, Number]]
    """A row per guidance scale, of `cellgan.studies.guidance_sweep`; scale null is of
    real cells. Empty without a sweep."""
    scale: str
    run: RunRecord


@dataclass(frozen=True, kw_only=True, config=FORM)
class Report:
    """A whole report file."""

    schema: Literal[2]
    version: str
    created: str
    """UTC, ISO 8601."""
    experiments: dict[str, ExperimentReport]


def write_report(path: Path, document: Report) -> None:
    """Write a report as JSON, by temporary name and rename."""
    write_json(path, dataclasses.asdict(document))


def read_report(path: Path) -> Report:
    """Read a report file.

    Raises
    ------
    DataError
        If the file is missing, or is not a report of this schema.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return TypeAdapter(Report).validate_python(document)
    except FileNotFoundError:
        msg = f"{path}: no such file. Run --evaluate first."
        raise DataError(msg) from None
    except (OSError, ValueError) as error:  # ValidationError is a ValueError
        reason = _first_problem(error)
        msg = f"{path}: not a report of this version: {reason}. Run --evaluate again."
        raise DataError(msg) from None


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return str(error)
