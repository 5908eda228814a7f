"""Which cells make which corpus: the plan of a composition study.

Pure arithmetic on names and row numbers. Orders come from the raw numbers of PCG64,
which NumPy keeps the same for ever, by a stable sort; so equal parameters and equal
files give equal plans, byte for byte, on any machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cellgan.composition.eligible import Eligible, Rows, seeded_order
from cellgan.config.composition import (
    Composition,
)
from cellgan.config.sources import Stratify
from cellgan.errors import ConfigError
from cellgan.seeds import derive_seed

if TYPE_CHECKING:
    from cellgan.config.composition import Composition, MixtureBlock, Part

SCHEMA_VERSION = 1
"""Of the manifest of a study."""
SOURCE = "source"


@dataclasses.dataclass(frozen=True)
class PlannedPart:
    """The cells of one part of one corpus."""

    source: str
    slot: int
    train: Rows
    """Rows of the source's file, ascending."""
    valid: Rows

    def __len__(self) -> int:
        return len(self.train) + len(self.valid)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The training cells of one mixture and one seed."""

    mixture: str
    seed: int
    parts: tuple[PlannedPart, ...]

    @property
    def n_train(self) -> int:
        """Number of cells trained on."""
        return sum(len(part.train) for part in self.parts)


def slot_order(
    n_cells: int,
    seed: int,
    strata: npt.NDArray[np.int64] | None = None,
    stratify: Stratify | None = None,
) -> Rows:
    """Return the order that slots are consecutive blocks of.

    With strata, every block has them in proportion, or in equal numbers: each stratum's
    cells are spread evenly over the whole order, or come in turns.
    """
    order = seeded_order(n_cells, seed)
    if strata is None or stratify is None:
        return order
    of_place = strata[order]
    sizes = np.bincount(strata)
    rank = np.zeros(n_cells, np.int64)
    for stratum in range(len(sizes)):
        mine = of_place == stratum
        rank[mine] = np.arange(sizes[stratum])
    if stratify.how == "equal":
        return order[np.lexsort((of_place, rank))]
    # Places (2 rank + 1) / (2 size): floats that are rounded alike everywhere.
    place = (2 * rank + 1) / (2 * sizes[of_place])
    return order[np.lexsort((of_place, place))]


def part_sizes(
    mixtures: Mapping[str, MixtureBlock],
    budgets: Mapping[str, int | None],
    available: Mapping[str, int],
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Return how many cells each part takes, and how many a slot of each source has.

    Parameters
    ----------
    budgets
        Source -> cells of a slot; None for as many as the largest part asks for.
    available
        Source -> eligible cells.

    Raises
    ------
    ConfigError
        If a part asks for more than there are.
    """
    sizes = {
        name: _sizes_of(mixture, budgets, available)
        for name, mixture in mixtures.items()
    }
    widths = dict.fromkeys(budgets, 0)
    for name, mixture in mixtures.items():
        for part, size in zip(mixture.parts, sizes[name], strict=True):
            widths[part.source] = max(widths[part.source], size)
    widths = {name: budgets[name] or width for name, width in widths.items()}
    for name, mixture in mixtures.items():
        for number, (part, size) in enumerate(
            zip(mixture.parts, sizes[name], strict=True), 1
        ):
            where = f"mixtures.{name}, part {number}"
            _check_part(part, size, widths[part.source], available[part.source], where)
    return sizes, widths


def _check_part(part: Part, size: int, width: int, available: int, where: str) -> None:
    first, end = part.slot * width, part.slot * width + size
    if size > width:
        msg = (
            f'{where}: {size:,} cells of source "{part.source}", whose slots have '
            f"{width:,} (sources.{part.source}.cells). Ask for fewer, or raise that."
        )
        raise ConfigError(msg)
    if not size or end > available:
        before = f", after {first:,} of the slots before" if first else ""
        msg = (
            f'{where}: {size:,} cells of slot {part.slot} of source "{part.source}"'
            f"{before}, but {available:,} are available. Ask for fewer, or loosen its "
            "filters."
        )
        raise ConfigError(msg)


def _sizes_of(
    mixture: MixtureBlock,
    budgets: Mapping[str, int | None],
    available: Mapping[str, int],
) -> tuple[int, ...]:
    if mixture.total_cells:
        weights = [Fraction(str(part.weight)) for part in mixture.parts]
        sizes = shares_of(mixture.total_cells, weights)
    else:
        sizes = tuple(
            _size_of(part, budgets[part.source], available[part.source])
            for part in mixture.parts
        )
    if mixture.size_match:
        return (min(sizes),) * len(sizes)
    return sizes


def _size_of(part: Part, budget: int | None, available: int) -> int:
    if part.fraction is not None:
        return int(Fraction(str(part.fraction)) * available)
    if isinstance(part.cells, int):
        return part.cells
    if budget is not None:
        return budget
    return available


def shares_of(total: int, weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Divide a number by weights: whole numbers that sum to it, by largest remainder.

    Of equal remainders the first is rounded up.
    """
    exact = [total * weight / sum(weights) for weight in weights]
    floors = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (floors[i] - exact[i], i))
    for index in by_remainder[: total - sum(floors)]:
        floors[index] += 1
    return tuple(floors)


def plan_corpora(
    composition: Composition, cells: Mapping[str, Eligible]
) -> list[Corpus]:
    """Return the corpus of every mixture and seed.

    Parameters
    ----------
    cells
        Source -> cells that may be trained on.

    Raises
    ------
    ConfigError
        If a part asks for more cells than there are.
    """
    sizes, widths = part_sizes(
        composition.mixtures,
        {name: of.cells for name, of in composition.sources.items()},
        {name: len(of) for name, of in cells.items()},
    )
    valid = Fraction(str(composition.valid_fraction))
    corpora = []
    for seed in composition.seeds:
        drawn_by = data_seed(composition, seed)
        orders = {
            name: slot_order(
                len(of),
                derive_seed(drawn_by, "cells", name),
                of.strata,
                composition.sources[name].stratify,
            )
            for name, of in cells.items()
        }
        for name, mixture in composition.mixtures.items():
            parts = []
            for part, size in zip(mixture.parts, sizes[name], strict=True):
                first = part.slot * widths[part.source]
                chosen = orders[part.source][first : first + size]
                rows = cells[part.source].rows[chosen]
                n_valid = int(valid * size)
                parts.append(
                    PlannedPart(
                        part.source,
                        part.slot,
                        np.sort(rows[: size - n_valid]),
                        np.sort(rows[size - n_valid :]),
                    )
                )
            corpora.append(Corpus(name, seed, tuple(parts)))
    return corpora


def data_seed(composition: Composition, seed: int) -> int:
    """Return the seed that cells are drawn by."""
    return composition.seeds[0] if composition.seed_scope == "training" else seed


def digest(*parts: Any) -> str:
    """Return the SHA-256 of arrays, texts and JSON values, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray) and part.dtype != object:
            found.update(part.astype(part.dtype.newbyteorder("<")).tobytes())
        elif isinstance(part, np.ndarray):
            for text in part:
                found.update(str(text).encode() + b"\0")
        else:
            found.update(json.dumps(part, sort_keys=True).encode() + b"\0")
    return found.hexdigest()


def describe_filter(column: str, op: str, value: Any) -> str:
    """Return a filter as one reads it."""
    shown = "" if value is None else f" {json.dumps(value, ensure_ascii=False)}"
    return f"{column} {op}{shown}"


def training_seed(composition: Composition, seed: int) -> int:
    """Return the seed that models are trained by."""
    return composition.seeds[0] if composition.seed_scope == "data" else seed


def missing_genes(document: Mapping[str, Any], name: str) -> str:
    """Say how many genes an evaluation set lacks."""
    n_missing = document["evaluations"][name]["genes"]["missing"]
    return (
        f"{n_missing:,} of the {document['genes']['n']:,} genes are not in its file "
        "and count as zeros"
    )
