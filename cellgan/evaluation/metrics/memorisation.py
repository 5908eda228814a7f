"""Were training cells copied? Closest records, copies and membership attacks.

A generator that has learned the population is no closer to the cells it was trained on
than to fresh ones of the same origin. So training cells are set against held-out cells,
equally many of every label: what tells the two apart is what the generator has kept.

Convention: cells are compared by profile: log expression of the most variable genes,
centred and scaled to length 1; the distance is that between the ends (0 to 2).
Principal components would not do. They are fitted to training cells, which then stick
out in directions of their own noise: among fresh PBMC, 1 % instead of 50 % came out
closer to training than to held-out cells. And they leave out the noise of all genes
together, which is what identifies a cell.

Cells of other donors differ too, without any copying. Such a shift between training
and held-out cells is looked for, and then only copies decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.stats import binom
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from cellgan.evaluation.comparison.pairs import Side
from cellgan.evaluation.comparison.space import Floats, Labels, Rows
from cellgan.evaluation.metrics.shares import (
    UNKNOWN_SHARE,
    ShareEstimate,
    area_under_curve,
    estimated_share,
)
from cellgan.evaluation.report.document import MemorisationNumber
from cellgan.seeds import derive_seed

Profiles: TypeAlias = npt.NDArray[np.float32]
"""``(n_cells, n_genes)``, rows of length 1."""
Flags: TypeAlias = npt.NDArray[np.bool_]
Names: TypeAlias = Sequence[str] | Labels

N_GENES = 300
"""Most variable genes that a profile consists of."""
FEWEST_CELLS = 20
"""Held-out, generated or attacked training cells: fewer say nothing."""
FEWEST_DONORS = 3
FEWEST_DETECTED = 10
"""Cells with fewer detected genes may be equal by chance: they are not judged."""
SAME_VALUE = 1e-3
"""Log expression of an exact copy differs by at most this, in every gene."""
NO_DISTANCE = 3e-3
"""Distances below it are rounding errors of float32, and count as 0."""
NEAR_DISTANCE = 0.01
"""A near copy is closer to a training cell than this quantile of real cells, and ..."""
NEAR_RATIO = 0.9
"""... its ratio of nearest to second nearest distance is below this part of the 5th
percentile of real cells: smooth cells are close to several, copies to one."""
N_FOLDS = 5
N_RESAMPLES = 200
ROWS_AT_ONCE = 1000

LEAKING_SHARE = 0.55
"""A leak: share of closest records in training, or area under the curve of an attack,
that is above with confidence; 0.5 is chance."""
LEAKING_COPIES = 0.001
"""A leak: the share of exact copies is larger by more than this than that of held-out
cells, ..."""
UNLIKELY = 0.01
"""... and as many copies or more have at most this probability at their rate."""
LEAKING_NEAR_COPIES = 0.03
"""A leak: share of near copies that is above with confidence, of ..."""
FEWEST_COPIED = 5
"""... this many training cells or more, in effect."""
SHIFTED = 0.55
"""Training and held-out cells are of different origin: a linear classifier tells them
apart with an area under the curve above this, and above 0.5 with confidence."""

TEXTS: Mapping[str, tuple[str, str]] = {
    "exact_copies": (
        "exact copies of training cells (0 is best)",
        "share of generated cells that equal a training cell at one library size, in "
        f"log expression of every gene within {SAME_VALUE:g}, so scaled copies count; "
        f"cells with fewer than {FEWEST_DETECTED} detected genes are left out",
    ),
    "near_copies": (
        "near copies of training cells (up to 0.01 is chance)",
        "share of generated cells that are closer to a training cell than 99 % of "
        "held-out and of other training cells are, and to it alone: nearest over second"
        f" nearest distance is below {NEAR_RATIO:g} times the 5th percentile of theirs",
    ),
    "dcr_share": (
        "distance to closest record: in training (0.5 is chance)",
        "share of generated cells whose closest record among equally many training and "
        "held-out cells is a training cell, ties counting half; in the interval, cells "
        "with the same closest record count about once",
    ),
    "nndr_ratio": (
        "nearest neighbour distance ratio (1 is that of held-out cells)",
        "distance to the nearest training cell over that to the second nearest: 5th "
        "percentile of generated cells, divided by that of held-out cells; it nears 0 "
        "when one cell in twenty sits on a training cell",
    ),
    "membership_auc": (
        "membership attack by distance (0.5 is chance)",
        "area under the ROC curve when equally many training and held-out cells are "
        "ranked by the distance to the nearest generated cell, nearest first",
    ),
    "membership_auc_density": (
        "membership attack by density (0.5 is chance)",
        "the same when ranked by how much nearer the nearest generated cell is than "
        "the nearest of as many reference cells, as a log ratio; the reference are "
        "other training cells, so another origin of held-out cells matters little",
    ),
    "membership_auc_donors": (
        "membership attack on donors (0.5 is chance)",
        "area under the ROC curve when donors of training and of held-out cells are "
        "ranked by the mean distance of their cells to the nearest generated cell; it "
        "also rises when the training donors merely differ from the others",
    ),
}
"""Name of a number -> its title, and its meaning."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemorisationCheck:
    """What was found, and distances for the picture."""

    numbers: tuple[MemorisationNumber, ...]
    leaks: bool
    reasons: tuple[str, ...]
    """Why it is a leak, in words; empty when it is none."""
    caution: str | None
    """What limits the conclusion, in words."""
    generated_to_training: Floats
    """Distance of each generated cell to the nearest training cell."""
    held_out_to_training: Floats


class Parts(NamedTuple):
    """Profiles of cells by their part in an attack."""

    members: Profiles
    """Training cells that are attacked."""
    strangers: Profiles
    """Equally many held-out cells, of the same labels."""
    reference: Profiles
    """Other training cells."""
    generated: Profiles


class NearestCells(NamedTuple):
    """Nearest cells, the nearest first; both ``(n_cells, n_nearest)``."""

    distances: Floats
    rows: Rows


def memorisation(
    training: Side,
    held_out: Side,
    generated: Side,
    *,
    seed: int,
    donors: tuple[Names, Names] | None = None,
) -> MemorisationCheck:
    """Say whether generated cells give training cells away.

    Parameters
    ----------
    training
        Cells the model was trained on, all or a large random part: copies of others
        are not found.
    held_out
        Real cells it has not seen.
    generated
        Its cells.
    seed
        Seed of the choice of attacked and of reference cells.
    donors
        Donor of every training and of every held-out cell, where known.

    References
    ----------
    Chen et al. (2020), GAN-Leaks, section 4.2 (membership by distance). van Breugel et
    al. (2023), Membership Inference Attacks against Synthetic Data through Overfitting
    Detection, equation 2 (by density).
    """
    drawn = _draw(training.labels, held_out.labels, derive_seed(seed, "attacked"))
    if min(len(drawn.members), len(held_out) // 2, len(generated)) < FEWEST_CELLS:
        return unknown(
            f"fewer than {FEWEST_CELLS} cells a side could be set against each other"
        )
    of_training, of_held_out, of_generated = _profiles(training, held_out, generated)
    parts = _parts(of_training, of_held_out, of_generated, drawn)
    fresh = _fresh_parts(of_training, of_held_out, training, held_out, seed)
    near = Nearby(
        generated=nearest_cells(of_generated, of_training, 2),
        held_out=nearest_cells(of_held_out, of_training, 2),
        members=nearest_cells(parts.members, of_training, 2, own=drawn.members),
    )
    copied = _are_copies(generated, training, near.generated)
    equal_anyway = _are_copies(held_out, training, near.held_out)
    estimates = _attacks(parts, seed) | _closeness(near.generated, near, copied, seed)
    ceilings = _attacks(fresh, seed) | _closeness(
        near.held_out, near, equal_anyway, seed
    )
    reasons = _copy_reasons(estimates, copied, equal_anyway)
    shift = _shift(training, held_out, drawn, seed)
    if shift is None:
        reasons += _attack_reasons(estimates)
    cautions = [shift]
    if donors is not None:
        found, too_few = _donors(of_training, of_held_out, of_generated, donors)
        estimates["membership_auc_donors"] = found
        cautions.append(too_few)
    return MemorisationCheck(
        numbers=_numbers(estimates, ceilings),
        leaks=bool(reasons),
        reasons=tuple(reasons),
        caution="; ".join(caution for caution in cautions if caution) or None,
        generated_to_training=near.generated.distances[:, 0],
        held_out_to_training=near.held_out.distances[:, 0],
    )


def unknown(reason: str) -> MemorisationCheck:
    """Return a check of which nothing is known, with the reason as its caution."""
    return MemorisationCheck(
        numbers=(),
        leaks=False,
        reasons=(),
        caution=reason,
        generated_to_training=np.empty(0),
        held_out_to_training=np.empty(0),
    )


def _numbers(
    estimates: Mapping[str, ShareEstimate], ceilings: Mapping[str, ShareEstimate]
) -> tuple[MemorisationNumber, ...]:
    numbers = []
    for name, (title, meaning) in TEXTS.items():
        of = estimates.get(name, UNKNOWN_SHARE)
        number = MemorisationNumber(
            name=name,
            title=title,
            value=of.value,
            low=of.low,
            high=of.high,
            ceiling=ceilings.get(name, UNKNOWN_SHARE).value,
            meaning=meaning,
        )
        numbers.append(number)
    return tuple(numbers)


# Who is set against whom


class Drawn(NamedTuple):
    """Rows of cells that are set against each other."""

    members: Rows
    """Of training cells."""
    strangers: Rows
    """Of held-out cells."""


def _draw(of_training: Labels, of_held_out: Labels, seed: int) -> Drawn:
    """Draw equal numbers of every label, at most half of the training cells."""
    rng = np.random.default_rng(seed)
    members, strangers = [np.empty(0, np.intp)], [np.empty(0, np.intp)]
    for label in np.unique(of_held_out):
        trained, fresh = (
            np.flatnonzero(x == label) for x in (of_training, of_held_out)
        )
        n = min(len(trained) // 2, len(fresh))
        members.append(rng.choice(trained, n, replace=False))
        strangers.append(rng.choice(fresh, n, replace=False))
    return Drawn(np.concatenate(members), np.concatenate(strangers))


def _parts(
    of_training: Profiles, of_held_out: Profiles, of_generated: Profiles, drawn: Drawn
) -> Parts:
    return Parts(
        members=of_training[drawn.members],
        strangers=of_held_out[drawn.strangers],
        reference=np.delete(of_training, drawn.members, axis=0),
        generated=of_generated,
    )


def _fresh_parts(
    of_training: Profiles,
    of_held_out: Profiles,
    training: Side,
    held_out: Side,
    seed: int,
) -> Parts:
    """Put one half of the held-out cells in place of generated ones."""
    rng = np.random.default_rng(derive_seed(seed, "halves"))
    first, second = np.array_split(rng.permutation(len(held_out)), 2)
    labels = held_out.labels[second]
    drawn = _draw(training.labels, labels, derive_seed(seed, "attacked", "halves"))
    return _parts(of_training, of_held_out[second], of_held_out[first], drawn)


def _profiles(training: Side, *others: Side) -> list[Profiles]:
    """Centre log expression by training means and scale every cell to length 1."""
    centre = training.genes[:, :N_GENES].mean(axis=0)
    profiles = []
    for side in (training, *others):
        cells = side.genes[:, :N_GENES] - centre
        lengths = np.linalg.norm(cells, axis=1, keepdims=True)
        profiles.append(cells / np.where(lengths > 0, lengths, 1.0))
    return profiles


def nearest_cells(
    cells: Profiles, others: Profiles, n_nearest: int = 1, own: Rows | None = None
) -> NearestCells:
    """Find the nearest cells, a block of rows at a time.

    Parameters
    ----------
    own
        Row of each cell among `others`, which is passed over.
    """
    distances = np.empty((len(cells), n_nearest))
    rows = np.empty((len(cells), n_nearest), np.intp)
    for start in range(0, len(cells), ROWS_AT_ONCE):
        block = slice(start, start + ROWS_AT_ONCE)
        cosines = cells[block] @ others.T
        of_block = np.arange(len(cosines))
        if own is not None:
            cosines[of_block, own[block]] = -np.inf
        for rank in range(n_nearest):
            found = cosines.argmax(axis=1)
            rows[block, rank] = found
            distances[block, rank] = cosines[of_block, found]
            cosines[of_block, found] = -np.inf
    # For rows of length 1, the squared distance is 2 - 2 cosine.
    distances = np.sqrt(np.maximum(2 - 2 * distances, 0))
    return NearestCells(np.where(distances < NO_DISTANCE, 0.0, distances), rows)


# Attacks


def _attacks(parts: Parts, seed: int) -> dict[str, ShareEstimate]:
    """Return the numbers that set training against held-out cells, if there are any."""
    if min(map(len, parts)) < FEWEST_CELLS // 2:
        return {}
    near_members = nearest_cells(parts.generated, parts.members)
    near_strangers = nearest_cells(parts.generated, parts.strangers)
    to_generated = [
        nearest_cells(cells, parts.generated).distances[:, 0]
        for cells in (parts.members, parts.strangers)
    ]
    return {
        "dcr_share": closest_records(near_members, near_strangers),
        "membership_auc": area_under_curve(*(-distances for distances in to_generated)),
        "membership_auc_density": _density_attack(parts, seed),
    }


def closest_records(
    to_members: NearestCells, to_strangers: NearestCells
) -> ShareEstimate:
    """Return the share of generated cells whose closest record is a training cell."""
    of_members, of_strangers = (x.distances[:, 0] for x in (to_members, to_strangers))
    in_training = of_members < of_strangers
    is_tie = of_members == of_strangers
    record = np.where(in_training, to_members.rows[:, 0], -1 - to_strangers.rows[:, 0])
    return estimated_share(_mean(in_training + 0.5 * is_tie), effective_number(record))


def _density_attack(parts: Parts, seed: int) -> ShareEstimate:
    """Rank by log distance to the reference minus log distance to generated cells.

    Of both, equally many are taken: the score of a cell that was not trained on is then
    symmetric around 0, however common its kind is among training cells.
    """
    n = min(len(parts.reference), len(parts.generated))
    rng = np.random.default_rng(derive_seed(seed, "reference"))
    reference, generated = (
        cells[rng.choice(len(cells), n, replace=False)]
        for cells in (parts.reference, parts.generated)
    )
    scores = []
    for cells in (parts.members, parts.strangers):
        expected, found = (
            np.maximum(nearest_cells(cells, others).distances[:, 0], NO_DISTANCE)
            for others in (reference, generated)
        )
        scores.append(np.log(expected) - np.log(found))
    return area_under_curve(*scores)


def _donors(
    of_training: Profiles,
    of_held_out: Profiles,
    of_generated: Profiles,
    donors: tuple[Names, Names],
) -> tuple[ShareEstimate, str | None]:
    """Attack whole donors; return why not where that is impossible."""
    of_sides = [np.asarray(names, dtype=np.str_) for names in donors]
    on_both = np.intersect1d(of_sides[0], of_sides[1])
    scores = []
    for cells, of_cell in zip((of_training, of_held_out), of_sides, strict=True):
        names = np.setdiff1d(of_cell, on_both)
        kept = np.isin(of_cell, names)
        distances = nearest_cells(cells[kept], of_generated).distances[:, 0]
        codes = np.searchsorted(names, of_cell[kept])
        scores.append(-np.bincount(codes, distances) / np.bincount(codes))
    numbers = [len(of_side) for of_side in scores]
    if min(numbers) < FEWEST_DONORS:
        return UNKNOWN_SHARE, (
            f"no attack on donors: {numbers[0]} are in training alone and {numbers[1]} "
            f"among held-out cells alone, {FEWEST_DONORS} of each are needed"
        )
    return area_under_curve(*scores), None


def _shift(training: Side, held_out: Side, drawn: Drawn, seed: int) -> str | None:
    """Say so if training and held-out cells of one label differ in origin."""
    sides = training.components[drawn.members], held_out.components[drawn.strangers]
    cells = np.concatenate(sides).astype(np.float64)
    is_member = np.repeat([True, False], [len(side) for side in sides])
    folds = StratifiedKFold(
        N_FOLDS, shuffle=True, random_state=derive_seed(seed, "shift")
    )
    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    scores = cross_val_predict(
        classifier, cells, is_member, cv=folds, method="decision_function"
    )
    auc = area_under_curve(scores[is_member], scores[~is_member])
    if auc.value <= SHIFTED or auc.low <= 0.5:
        return None
    return (
        "training and held-out cells are of different origin (a linear classifier tells"
        f" them apart with an area under the curve of {auc.value:.2f}): that generated "
        "cells are closer to training cells is then no proof of copying, and exact and "
        "near copies alone count as a leak"
    )


# Copies


class Nearby(NamedTuple):
    """The two nearest training cells of ..."""

    generated: NearestCells
    held_out: NearestCells
    members: NearestCells
    """... attacked training cells, themselves left out."""


def _are_copies(cells: Side, training: Side, near: NearestCells) -> Flags:
    """Tell which cells equal one of their nearest training cells, in every gene.

    Returns
    -------
    One value per cell with at least `FEWEST_DETECTED` genes.
    """
    is_copy = np.zeros(len(cells), dtype=bool)
    candidates = np.flatnonzero(near.distances[:, 0] == 0)
    found = cells.log_values[candidates]
    for nearest in near.rows[candidates].T:
        difference = abs(found - training.log_values[nearest])
        is_copy[candidates] |= difference.max(axis=1).toarray().ravel() <= SAME_VALUE
    kept: Flags = is_copy[(cells.log_values > 0).sum(axis=1) >= FEWEST_DETECTED]
    return kept


def _closeness(
    which: NearestCells, near: Nearby, copied: Flags, seed: int
) -> dict[str, ShareEstimate]:
    """Return the numbers that look at the nearest training cells of one side."""
    real = (near.held_out, near.members)
    distance = min(np.quantile(x.distances[:, 0], NEAR_DISTANCE) for x in real)
    ratio = NEAR_RATIO * min(np.quantile(_ratios(x), 0.05) for x in real)
    is_near = (which.distances[:, 0] < distance) & (_ratios(which) < ratio)
    return {
        "exact_copies": estimated_share(_mean(copied), len(copied)),
        "near_copies": near_copy_share(is_near, which.rows[:, 0]),
        "nndr_ratio": _nndr_ratio(_ratios(which), _ratios(near.held_out), seed),
    }


def near_copy_share(is_near: Flags, rows: Rows) -> ShareEstimate:
    """Return the share of near copies, decided only if many training cells are copied.

    Generated cells that are all alike may lie near a training cell by chance.
    """
    share = estimated_share(_mean(is_near), effective_number(rows))
    if effective_number(rows[is_near]) < FEWEST_COPIED:
        share = share._replace(at_least=0.0)
    return share


def _ratios(near: NearestCells) -> Floats:
    """Return nearest over second nearest distance; 1 where both are 0."""
    nearest, second = np.maximum(near.distances, NO_DISTANCE).T
    ratios: Floats = nearest / second
    return ratios


def _nndr_ratio(ratios: Floats, real: Floats, seed: int) -> ShareEstimate:
    """Divide 5th percentiles, with a bootstrap interval."""
    rng = np.random.default_rng(derive_seed(seed, "nndr"))
    drawn = [
        np.quantile(rng.choice(of, (N_RESAMPLES, len(of))), 0.05, axis=1)
        for of in (ratios, real)
    ]
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    value = np.quantile(ratios, 0.05) / np.quantile(real, 0.05)
    return ShareEstimate(float(value), float(low), float(high), np.nan)


# Decisions


def _copy_reasons(
    estimates: Mapping[str, ShareEstimate],
    copied: Flags,
    equal_anyway: Flags,
) -> list[str]:
    """Return sentences on copies.

    Held-out cells that equal a training cell by chance tell how common that is; their
    rate is taken as if there were one more.
    """
    reasons = []
    rate = (equal_anyway.sum() + 1) / (len(equal_anyway) + 2)
    is_unlikely = binom.sf(copied.sum() - 1, len(copied), rate) <= UNLIKELY
    share, by_chance = _mean(copied), _mean(equal_anyway)
    if is_unlikely and share > by_chance + LEAKING_COPIES:
        reasons.append(
            f"{share:.1%} of the generated cells equal a training cell at one library "
            f"size; of held-out cells, {by_chance:.1%} do"
        )
    near = estimates["near_copies"]
    if near.at_least > LEAKING_NEAR_COPIES:
        reasons.append(
            f"{near.value:.1%} of the generated cells are nearly a training cell; "
            f"{NEAR_DISTANCE:.0%} at most is chance"
        )
    return reasons


def _attack_reasons(estimates: Mapping[str, ShareEstimate]) -> list[str]:
    sentences = {
        "dcr_share": "{:.0%} of the generated cells are closer to a training cell than"
        " to any of as many held-out cells; 50 % is chance",
        "membership_auc": "training cells are told from held-out ones by the distance"
        " to generated cells, with an area under the curve of {:.2f}; 0.5 is chance",
        "membership_auc_density": "training cells are told from held-out ones by the"
        " density of generated cells around them, with an area under the curve of"
        " {:.2f}; 0.5 is chance",
    }
    return [
        sentence.format(estimates[name].value)
        for name, sentence in sentences.items()
        if estimates[name].at_least > LEAKING_SHARE
    ]


# Intervals


def _mean(values: npt.NDArray[Any]) -> float:
    """Return the mean; 0 of no values, as there are no copies among no cells."""
    return float(np.mean(values)) if len(values) else 0.0


def effective_number(groups: Rows) -> float:
    """Return Kish's effective number of cells when those of one group are alike."""
    _, numbers = np.unique(groups, return_counts=True)
    return float(len(groups) ** 2 / max(1.0, (numbers.astype(np.float64) ** 2).sum()))
