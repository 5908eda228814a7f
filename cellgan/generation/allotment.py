"""Which covariates, and which library size, every cell of a request gets.

A request names some covariates; the others go with them as they do among the training
cells. Everything here is a function of the request and its seed, worked out before a
cell is made, so a request may be cut into pieces of any sizes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellgan.config.base import ModelConfig
from cellgan.data.manifest import Combination, DatasetManifest
from cellgan.errors import ConfigError, DataError, did_you_mean
from cellgan.generation.requests import LIKE_DATA, CellsRequest, parse_cells_no

Codes = dict[str, npt.NDArray[np.int32]]
"""Code of every cell, ``(n_cells,)``, by covariate."""

NUMBER_COLUMN = "n_cells"
FEW_CELLS = 10
"""Log-normals of combinations with as many cells are half their own, half those of all
combinations of the label."""


def check_condition(
    condition: Mapping[str, str], manifest: DatasetManifest, where: str = "--condition"
) -> dict[str, int]:
    """Return the codes of named categories.

    Raises
    ------
    ConfigError
        If a covariate or a category is unknown, or no training cell has it.
    """
    codes = {}
    for name, category in condition.items():
        if name not in manifest.covariates:
            msg = (
                f'{where}: no covariate "{name}".'
                f"{did_you_mean(name, manifest.covariates)}\n    Covariates: "
                f"{', '.join(manifest.covariates)}. Others can be named in "
                f"input_ds.covariates before --process."
            )
            raise ConfigError(msg)
        try:
            (code,) = manifest.covariates[name].encode([category]).tolist()
        except DataError as error:
            msg = f"{where}: {name}: {error}"
            raise ConfigError(msg) from None
        if not manifest.cells_per_category["train"][name][code]:
            msg = (
                f'{where}: no training cell has {name} "{category}": the model has not '
                "seen it. Choose another."
            )
            raise ConfigError(msg)
        codes[name] = code
    return codes


def request_parts(
    cells_no: CellsRequest,
    manifest: DatasetManifest,
    model: ModelConfig,
    *,
    condition: Mapping[str, str],
    requests: str | Path | None = None,
    where: str = "--cells_no",
) -> list[tuple[dict[str, int], int]]:
    """Read who is asked for: covariates that are named, and numbers of cells.

    Parameters
    ----------
    cells_no
        As `requests.parse_cells_no` takes it. With a condition, also one number alone;
        ``"like-data"`` then means the training cells that meet it.
    condition
        Category of all cells, by covariate.
    requests
        File of requests, in place of both.

    Raises
    ------
    ConfigError
        If anything is unknown, contradicts something else, or makes no cell.
    """
    known = model.conditions(manifest)
    if requests is not None:
        if condition or cells_no != LIKE_DATA:
            msg = (
                f"--requests stands for {where} and --condition: give the file alone, "
                "with a column for each covariate."
            )
            raise ConfigError(msg)
        parts = read_requests(Path(requests), manifest)
        _check_conditioned({name for codes, _ in parts for name in codes}, known)
        return parts
    codes = check_condition(condition, manifest)
    _check_conditioned(codes, known)
    knows_labels = model.knows_labels(manifest)
    if not codes:
        numbers = parse_cells_no(
            cells_no, manifest, is_conditional=knows_labels, where=where
        )
        return _by_label(numbers, {}, manifest) if knows_labels else [({}, numbers[0])]
    if cells_no == LIKE_DATA:
        numbers = like_data(codes, manifest)
        if not sum(numbers):
            named = ", ".join(f'{name} "{value}"' for name, value in condition.items())
            msg = (
                f"--condition: no training cell has {named} together, so there is no "
                f"number to copy: give one with {where}."
            )
            raise ConfigError(msg)
    elif (number := _one_number(cells_no)) is not None:
        return [(codes, number)]
    else:
        numbers = parse_cells_no(
            cells_no, manifest, is_conditional=knows_labels, where=where
        )
    if manifest.label in codes and cells_no != LIKE_DATA:
        msg = (
            f'{where}: numbers by label contradict --condition, which names "'
            f'{manifest.label}" for all cells. Give one number.'
        )
        raise ConfigError(msg)
    if not knows_labels:
        return [(codes, sum(numbers))]
    return _by_label(numbers, codes, manifest)


def doubts(
    parts: Sequence[tuple[Mapping[str, int], int]],
    manifest: DatasetManifest,
    guidance: Mapping[str, float],
) -> list[str]:
    """Return what a user should know before relying on cells, in sentences."""
    sentences = []
    for codes, n_cells in parts:
        n_trained = sum(each.n_cells for each in matching_combinations(codes, manifest))
        if n_cells and n_trained < FEW_CELLS:
            named = ", ".join(
                f"{name} {manifest.covariates[name].categories[code]}"
                for name, code in codes.items()
            )
            sentences.append(
                f"only {n_trained} training cells are {named}: the model knows little "
                "of them"
                if n_trained
                else f"no training cells are {named}: what is made is extrapolated "
                "from others"
            )
    named_covariates = {name for codes, _ in parts for name in codes}
    sentences += [
        f"guidance of {name} is 0: cells carry the {name} that was asked for, and do "
        "not follow it"
        for name, scale in guidance.items()
        if scale == 0 and name in named_covariates
    ]
    return sentences


def check_guidance(
    guidance: Mapping[str, float], known: Sequence[str], where: str = "--guidance"
) -> None:
    """Refuse scales that are negative, or of a covariate the model does not have.

    Raises
    ------
    ConfigError
        Saying which.
    """
    _check_conditioned(guidance, known, where)
    for name, scale in guidance.items():
        if not (np.isfinite(scale) and scale >= 0):
            msg = (
                f"{where}: the scale of {name} is {scale:g}. Give 0 (ignore it), 1 "
                "(plainly conditional) or more (more typical)."
            )
            raise ConfigError(msg)


def read_requests(
    path: Path, manifest: DatasetManifest
) -> list[tuple[dict[str, int], int]]:
    """Read a table of requests: covariates and ``n_cells``, one row each.

    Parameters
    ----------
    path
        Comma- or tab-separated, with a header. An empty field leaves a covariate open.

    Returns
    -------
    Codes of the named covariates, and the number of cells, of each row.

    Raises
    ------
    ConfigError
        If the file cannot be read, a column or a value is unknown, or a number is none.
    """
    where = f"--requests: {path}"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            head = file.readline()
            delimiter = "\t" if "\t" in head else ","
            file.seek(0)
            table = csv.DictReader(file, delimiter=delimiter)
            rows = list(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{where}: cannot be read: {error}."
        raise ConfigError(msg) from None
    if not rows or NUMBER_COLUMN not in rows[0]:
        columns = ", ".join(map(str, rows[0])) if rows else "none"
        msg = (
            f'{where}: needs a header with "{NUMBER_COLUMN}" and covariates, and one '
            f"row per request (columns found: {columns})."
        )
        raise ConfigError(msg)
    header = list(table.fieldnames or ())
    if len(set(header)) < len(header):
        msg = f"{where}: a column is there twice: {', '.join(header)}."
        raise ConfigError(msg)
    requests = []
    for number, row in enumerate(rows, 2):
        if None in row:
            msg = (
                f"{where}: line {number} has more fields than the header. Put values "
                "that hold a comma in double quotes."
            )
            raise ConfigError(msg)
        text = (row.pop(NUMBER_COLUMN) or "").strip()
        if not text.isdecimal():
            msg = f'{where}: line {number}: {NUMBER_COLUMN} is "{text}", no number.'
            raise ConfigError(msg)
        stripped = {name: (value or "").strip() for name, value in row.items()}
        condition = {name: value for name, value in stripped.items() if value}
        codes = check_condition(condition, manifest, f"{where}: line {number}")
        requests.append((codes, int(text)))
    if not sum(n for _, n in requests):
        msg = f"{where}: no cells at all. Ask for one or more."
        raise ConfigError(msg)
    return requests


def _check_conditioned(
    names: Iterable[str], known: Sequence[str], where: str = "--condition"
) -> None:
    for name in names:
        if name not in known:
            msg = (
                f'{where}: this model is not conditioned on "{name}".'
                f"{did_you_mean(name, known)}\n    It is conditioned on: "
                f"{', '.join(known) or 'nothing'}."
            )
            raise ConfigError(msg)


def _one_number(cells_no: Any) -> int | None:
    """Return the number if a request is one number above 0."""
    if isinstance(cells_no, Mapping):
        return None
    is_one = isinstance(cells_no, str | int | np.integer)
    words = [cells_no] if is_one else list(cells_no)
    if len(words) == 1 and str(words[0]).isdecimal() and int(words[0]):
        return int(words[0])
    return None


def _by_label(
    numbers: Sequence[int], codes: Mapping[str, int], manifest: DatasetManifest
) -> list[tuple[dict[str, int], int]]:
    return [
        ({**codes, manifest.label: label}, n_cells)
        for label, n_cells in enumerate(numbers)
        if n_cells
    ]


def like_data(
    condition: Mapping[str, int], manifest: DatasetManifest
) -> tuple[int, ...]:
    """Return how many training cells of each label meet a condition."""
    numbers = [0] * len(manifest.label_vocabulary)
    for combination in matching_combinations(condition, manifest):
        numbers[combination.codes[manifest.label]] += combination.n_cells
    return tuple(numbers)


def matching_combinations(
    condition: Mapping[str, int], manifest: DatasetManifest
) -> list[Combination]:
    """Return the combinations of training cells that meet a condition."""
    return [
        combination
        for combination in manifest.combinations
        if all(combination.codes[name] == code for name, code in condition.items())
    ]


def assign_covariates(
    requests: Sequence[tuple[Mapping[str, int], int]], manifest: DatasetManifest
) -> Codes:
    """Return all covariates of every cell, the cells of the first request first.

    Covariates that a request leaves open have the shares they have among the training
    cells that meet it, to whole cells. Where no training cell meets all of it, those
    of its label stand in; the named covariates stay as named.
    """
    columns: dict[str, list[npt.NDArray[np.int32]]] = {
        name: [] for name in manifest.covariates
    }
    for condition, n_cells in requests:
        label = manifest.label
        of_label = {label: condition[label]} if label in condition else {}
        combinations = (
            matching_combinations(condition, manifest)
            or matching_combinations(of_label, manifest)
            or list(manifest.combinations)
        )
        numbers = apportion(n_cells, [c.n_cells for c in combinations])
        for name, parts in columns.items():
            codes = [condition.get(name, c.codes[name]) for c in combinations]
            parts.append(np.repeat(np.array(codes, np.int32), numbers))
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def apportion(n: int, weights: Sequence[float]) -> npt.NDArray[np.int64]:
    """Divide whole things by weight: shares rounded down, the rest by remainder."""
    shares = n * np.asarray(weights, np.float64) / np.sum(weights)
    numbers = np.floor(shares).astype(np.int64)
    order = np.argsort(numbers - shares, kind="stable")
    numbers[order[: n - numbers.sum()]] += 1
    return numbers
