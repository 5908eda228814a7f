"""Whether edited cells are like real cells of the context they were taken to.

Edited cells have no partner to be compared with: nobody has measured the same cell
twice. They are judged as a population, beside three others: the cells as they were, the
same cells moved by the difference of the means of both contexts ("mean shift", the
plain baseline), and real cells of the context that were not trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = npt.NDArray[np.float32]
Names = npt.NDArray[np.str_]

N_COMPONENTS = 50
FEWEST_CELLS = 10
"""Means of fewer cells are not compared."""
UNEDITED, SHIFTED, EDITED, REAL = "unedited", "mean shift", "edited", "real"


@dataclasses.dataclass(frozen=True)
class Population:
    """Some cells on the scale of the model, and what they are."""

    values: Floats
    """``(n_cells, n_genes)``."""
    columns: Mapping[str, Names]
    """Category of every cell by field, ``(n_cells,)``."""

    def where(self, rows: npt.NDArray[np.bool_]) -> Population:
        """Return some of the cells."""
        columns = {name: of[rows] for name, of in self.columns.items()}
        return Population(self.values[rows], columns)

    def in_context(self, context: Mapping[str, str]) -> npt.NDArray[np.bool_]:
        """Return which cells have all categories of a context."""
        matches = np.ones(len(self.values), bool)
        for name, category in context.items():
            matches &= self.columns[name] == category
        return matches


@dataclasses.dataclass(frozen=True)
class CounterfactualScores:
    """Scores of one kind of cells; nan where nothing can be compared."""

    agreement: float
    """Share of cells that a classifier of real training cells takes for cells of the
    target, in all changed fields together."""
    correlation: float
    """Of mean expression with that of real cells of the target context: Pearson's over
    genes, mean over groups of cells that agree in all other fields."""
    shift_correlation: float
    """The same of the changes of the means from the unedited cells: what an unedited
    cell has for nothing does not count. nan of unedited cells."""
    kept: float
    """Share of cells that the classifier takes for what they were, mean over the
    fields that were not changed; nan without any."""


def counterfactual_scores(
    training: Population,
    held_out: Population,
    source: Population,
    edited: Floats,
    target: Mapping[str, str],
    *,
    seed: int,
) -> dict[str, CounterfactualScores]:
    """Score edited cells, and what they are to be compared with.

    Parameters
    ----------
    training
        Real cells that the model was trained on: they teach the classifiers and give
        the mean shift.
    held_out
        Real cells that it was not trained on: those of the target context are what
        edited cells should be like.
    source, edited
        Cells before and after, in the same order.
    target
        Category by field that was changed.
    seed
        Of the classifiers' components.

    Returns
    -------
    By kind: `UNEDITED`, `SHIFTED`, `EDITED`, and `REAL`, the held-out cells of the
    target context themselves.
    """
    others = [name for name in training.columns if name not in target]
    classifiers = Classifiers(training, seed=seed)
    real = held_out.where(held_out.in_context(target))
    kinds = {
        UNEDITED: source.values,
        SHIFTED: mean_shift(training, source, target),
        EDITED: edited,
        REAL: real.values,
    }
    scores = {}
    for kind, values in kinds.items():
        columns = real.columns if kind == REAL else source.columns
        cells = Population(values, columns)
        compared = [
            _correlations(cells, source, real, others, changes=changes)
            for changes in (False, True)
        ]
        scores[kind] = CounterfactualScores(
            classifiers.agreement(values, target),
            compared[0] if kind != REAL else float("nan"),
            compared[1] if kind in (SHIFTED, EDITED) else float("nan"),
            classifiers.kept(cells, others),
        )
    return scores


class Classifiers:
    """A logistic regression per field, of principal components of real cells."""

    def __init__(self, training: Population, *, seed: int) -> None:
        n_components = min(N_COMPONENTS, *training.values.shape)
        space = make_pipeline(PCA(n_components, random_state=seed), StandardScaler())
        points = space.fit_transform(training.values)
        self._space = space
        self._models = {
            name: LogisticRegression(max_iter=1000).fit(points, of)
            for name, of in training.columns.items()
            if len(np.unique(of)) > 1
        }

    def agreement(self, values: Floats, target: Mapping[str, str]) -> float:
        """Return the share of cells that are taken for the target in all its fields."""
        if not len(values):
            return float("nan")
        points = self._space.transform(values)
        right = np.ones(len(values), bool)
        for name, category in target.items():
            right &= self._models[name].predict(points) == category
        return float(right.mean())

    def kept(self, cells: Population, fields: Sequence[str]) -> float:
        """Return the share of cells taken for what they are, mean over fields."""
        known = [name for name in fields if name in self._models]
        if not len(cells.values) or not known:
            return float("nan")
        points = self._space.transform(cells.values)
        shares = [
            (self._models[name].predict(points) == cells.columns[name]).mean()
            for name in known
        ]
        return float(np.mean(shares))


def mean_shift(
    training: Population, source: Population, target: Mapping[str, str]
) -> Floats:
    """Move cells by the difference of the means of target and own context.

    No value falls below 0. Cells of contexts without training cells stay.
    """
    shifted = source.values.copy()
    of_target = training.in_context(target)
    if not of_target.any():
        return shifted
    goal = training.values[of_target].mean(axis=0)
    own = np.stack([source.columns[name] for name in target], axis=1)
    for combination in np.unique(own, axis=0):
        context = dict(zip(target, combination, strict=True))
        trained = training.in_context(context)
        if trained.any():
            shift = goal - training.values[trained].mean(axis=0)
            shifted[source.in_context(context)] += shift
    return np.maximum(shifted, 0)


def _correlations(
    cells: Population,
    source: Population,
    real: Population,
    fields: Sequence[str],
    *,
    changes: bool,
) -> float:
    """Correlate means of groups with those of real cells; nan without a group."""
    if len(cells.values) != len(source.values):
        return float("nan")
    found = []
    for group in _groups(real, fields):
        mine, theirs = cells.in_context(group), real.in_context(group)
        if min(mine.sum(), theirs.sum()) < FEWEST_CELLS:
            continue
        start = source.values[mine].mean(axis=0) if changes else 0
        means = cells.values[mine].mean(axis=0), real.values[theirs].mean(axis=0)
        found.append(_pearson(means[0] - start, means[1] - start))
    return float(np.mean(found)) if found else float("nan")


def _groups(cells: Population, fields: Sequence[str]) -> list[dict[str, str]]:
    if not fields:
        return [{}]
    together = np.stack([cells.columns[name] for name in fields], axis=1)
    return [dict(zip(fields, row, strict=True)) for row in np.unique(together, axis=0)]


def _pearson(first: Floats, second: Floats) -> float:
    deviations = [of.astype(np.float64) - of.mean() for of in (first, second)]
    norms = [np.linalg.norm(of) for of in deviations]
    if min(norms) == 0:
        return float("nan")
    return float(deviations[0] @ deviations[1] / (norms[0] * norms[1]))
