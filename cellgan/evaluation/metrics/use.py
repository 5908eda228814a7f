"""What generated cells are good for: training classifiers of labels, and being judged.

Convention: one kind of classifier recognises labels everywhere (`fit_recogniser`), in
principal components. It is fitted once and its predictions are re-weighted for every
draw. F1 is averaged over the labels of the held-out real cells, each counting the same:
one that the other side lacks has F1 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cellgan.evaluation.comparison.pairs import (
    Estimates,
    Frame,
    Pair,
    Side,
    weighted_means,
)
from cellgan.evaluation.comparison.space import Floats, Labels, Rows
from cellgan.evaluation.metrics.catalogue import Metric
from cellgan.seeds import derive_seed

INVERSE_PENALTY = 1e-2
"""scikit-learn's ``C``. On real cells of ten types, 1,000 to train, macro-F1 was 0.90
with it, 0.88 for a forest that also weighs labels equally, 0.78 for one that does not,
0.61 for 15 neighbours; the forests took fifty times as long."""
RARE_SHARE = 0.05
MOST_RARE_LABELS = 5
RARE_CELLS = 3
"""Training cells of a rare label that are left: ten real ones were enough (F1 0.92,
which more did not raise), three were not (0.73, raised to 0.92)."""
N_REDUCTIONS = 3
"""Times that the cells to be left are drawn."""

_RECOGNISER = (
    "a logistic regression on components (scaled to unit variance, L2 penalty with"
    f" C = {INVERSE_PENALTY}, labels weighted equally)"
)

METRICS: tuple[Metric, ...] = (
    Metric(
        name="train_on_generated_f1",
        title="F1, trained on generated, tested on real (1 is best)",
        meaning=f"Macro-F1 on held-out real cells of {_RECOGNISER} trained on the other"
        " side's cells, over the held-out cells' labels",
        space="components",
        floor="permuted",
        sees=frozenset({"missing_label"}),
        needs_labels=True,
        per_label=False,
    ),
    Metric(
        name="train_on_real_f1",
        title="F1, trained on real, tested on generated (1 is best)",
        meaning=f"Macro-F1 on the other side's cells of {_RECOGNISER} trained on real"
        " training cells, over the held-out cells' labels",
        space="components",
        floor="permuted",
        sees=frozenset({"missing_label", "noise_cells"}),
        needs_labels=True,
        per_label=False,
    ),
    Metric(
        name="label_agreement",
        title="label agreement (1 is best)",
        meaning="Share of the other side's cells for which a classifier names the"
        f" label they were made for: {_RECOGNISER} trained on real training cells",
        space="components",
        floor="permuted",
        sees=frozenset({"noise_cells"}),
        needs_labels=True,
    ),
    Metric(
        name="rare_label_f1_gain",
        title="gain of F1 for rare labels (0 is none, more is better)",
        meaning="What the other side's cells of a rare label add to the F1 of that"
        f" label on held-out real cells when only {RARE_CELLS} of its training cells"
        f" are left beside those of all other labels, mean over {N_REDUCTIONS} draws"
        f" of these cells and over the labels (the {MOST_RARE_LABELS} rarest at most)"
        f" with less than {RARE_SHARE:.0%} of the training cells, or the rarest one if"
        f" none has; the classifier is {_RECOGNISER}",
        space="components",
        floor="label_means",
        sees=frozenset(),
        needs_labels=True,
        per_label=False,
        more_is_better=True,
    ),
)


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Training cells of which almost all of one rare label are taken away."""

    label: str
    rows: Rows
    """All training cells of other labels, at most `RARE_CELLS` of this one."""
    recogniser: Pipeline
    """Trained on these cells alone."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """What real training cells alone decide; the same for every pair of a report."""

    recogniser: Pipeline
    """Trained on the labels of all training cells."""
    reductions: tuple[Reduction, ...]
    """What `rare_label_f1_gain` is the mean over: `N_REDUCTIONS` for each of
    `rare_labels`."""


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far a classifier confirms the labels that cells were made for."""

    overall: Floats
    """Share of cells, ``(n_draws,)``."""
    per_label: Mapping[str, Floats]
    """Label -> share of its cells, ``(n_draws,)``."""
    labels: tuple[str, ...]
    """Of cells or classifier, sorted."""
    counts: npt.NDArray[np.intp]
    """``(n_labels, n_labels)``: cells made for the label of a row that are taken for
    the label of a column."""


def fit_judge(frame: Frame) -> Judge:
    """Fit what `use_metrics` needs from the training cells, once per report."""
    training = frame.training
    recogniser = fit_recogniser(training.components, training.labels)
    reductions = (
        _reduce(frame, label, index)
        for label in rare_labels(training.labels)
        for index in range(N_REDUCTIONS)
    )
    return Judge(recogniser, tuple(reductions))


def use_metrics(pair: Pair, judge: Judge) -> Estimates:
    """Return what the other side's cells are good for.

    Parameters
    ----------
    judge
        From `fit_judge` of the pair's frame.

    Returns
    -------
    nan without labels. Within one label, only `label_agreement` is defined.
    """
    undefined = np.full(len(pair.draws), np.nan)
    estimates = {metric.name: undefined for metric in METRICS}
    if not (_is_labelled(pair.real) and _is_labelled(pair.other)):
        return estimates
    other = pair.other
    agreement = label_agreement(
        judge.recogniser, other.components, other.labels, pair.draws.other
    )
    estimates["label_agreement"] = agreement.overall
    if min(len(np.unique(pair.real.labels)), len(judge.recogniser.classes_)) > 1:
        estimates["train_on_generated_f1"] = train_on_generated_f1(pair)
        estimates["train_on_real_f1"] = train_on_real_f1(pair, judge)
        estimates["rare_label_f1_gain"] = rare_label_f1_gain(pair, judge)
    return estimates


def fit_recogniser(components: npt.NDArray[np.floating], labels: Labels) -> Pipeline:
    """Train a classifier to tell labels by principal components.

    Parameters
    ----------
    components
        ``(n_cells, n_components)``, one cell or more.
    labels
        ``(n_cells,)``. Where all are the same, so is every prediction.
    """
    if len(np.unique(labels)) < 2:
        return make_pipeline(DummyClassifier()).fit(components, labels)
    classifier = LogisticRegression(
        C=INVERSE_PENALTY, class_weight="balanced", max_iter=1000
    )
    return make_pipeline(StandardScaler(), classifier).fit(components, labels)


def label_agreement(
    recogniser: Pipeline,
    components: npt.NDArray[np.floating],
    labels: Labels,
    multiplicity: Floats,
) -> Agreement:
    """Ask a classifier of real cells for the labels of others.

    Parameters
    ----------
    recogniser
        From `fit_recogniser`, for the labels or for any other covariate.
    components, labels
        Cells ``(n_cells, n_components)`` and what they were made for ``(n_cells,)``.
    multiplicity
        ``(n_draws, n_cells)``.

    Returns
    -------
    Shares are nan when the classifier knows but one label, or without cells.
    """
    asked = np.unique(labels)
    everything = np.union1d(asked, recogniser.classes_)
    counts = np.zeros((len(everything), len(everything)), np.intp)
    undefined = np.full(len(multiplicity), np.nan)
    overall, per_label = undefined, {str(label): undefined for label in asked}
    if len(labels) and len(recogniser.classes_) > 1:
        predicted = recogniser.predict(components)
        places = (np.searchsorted(everything, names) for names in (labels, predicted))
        np.add.at(counts, tuple(places), 1)
        agrees = predicted == labels
        overall = weighted_means(multiplicity, agrees)
        for label in asked:
            cells = labels == label
            of_label = weighted_means(multiplicity[:, cells], agrees[cells])
            per_label[str(label)] = of_label
    return Agreement(overall, per_label, tuple(map(str, everything)), counts)


def train_on_generated_f1(pair: Pair) -> Floats:
    """Return macro-F1 on held-out cells after training on the others, ``(n_draws,)``.

    nan without cells to train on.
    """
    if not len(pair.other):
        return np.full(len(pair.draws), np.nan)
    recogniser = fit_recogniser(pair.other.components, pair.other.labels)
    predicted = recogniser.predict(pair.real.components)
    labels = pair.real.labels
    f1 = weighted_f1(labels, predicted, np.unique(labels), pair.draws.real)
    return f1.mean(axis=1)


def train_on_real_f1(pair: Pair, judge: Judge) -> Floats:
    """Return macro-F1 on the others after training on real cells, ``(n_draws,)``.

    nan without cells to test on.
    """
    if not len(pair.other):
        return np.full(len(pair.draws), np.nan)
    predicted = judge.recogniser.predict(pair.other.components)
    labels = np.unique(pair.real.labels)
    f1 = weighted_f1(pair.other.labels, predicted, labels, pair.draws.other)
    return f1.mean(axis=1)


def rare_label_f1_gain(pair: Pair, judge: Judge) -> Floats:
    """Return what the others add to F1 of rare labels, ``(n_draws,)``.

    The mean is over rare labels that held-out cells have; nan if there are none.
    """
    present = np.unique(pair.real.labels)
    gains = [
        _rare_gain(pair, reduction)
        for reduction in judge.reductions
        if reduction.label in present
    ]
    if not gains:
        return np.full(len(pair.draws), np.nan)
    return np.mean(gains, axis=0)


def rare_labels(labels: Labels) -> tuple[str, ...]:
    """Return the labels that count as rare among training cells, the rarest first.

    They have less than `RARE_SHARE` of the cells; where none has, it is the rarest
    label alone.
    """
    names, sizes = np.unique(labels, return_counts=True)
    order = np.argsort(sizes, kind="stable")
    n_rare = int((sizes < RARE_SHARE * len(labels)).sum())
    n_wanted = min(max(n_rare, 1), MOST_RARE_LABELS)
    return tuple(map(str, names[order[:n_wanted]]))


def weighted_f1(
    labels: Labels, predicted: Labels, of: Iterable[str], multiplicity: Floats
) -> Floats:
    """Return F1 of some labels in every draw, ``(n_draws, n_labels)``.

    Parameters
    ----------
    labels, predicted
        ``(n_cells,)``.
    of
        The labels wanted; 0 for one that no cell has or is taken for.
    multiplicity
        ``(n_draws, n_cells)``.
    """
    names = np.array(list(of))
    has = labels[:, None] == names
    said = predicted[:, None] == names
    hits = multiplicity @ (has & said).astype(np.float64)
    sizes = multiplicity @ (has.astype(np.float64) + said)
    f1: Floats = 2 * hits / np.where(sizes > 0, sizes, 1.0)
    return f1


def _is_labelled(side: Side) -> bool:
    return bool((side.labels != "").any())


def _reduce(frame: Frame, label: str, index: int) -> Reduction:
    training = frame.training
    of_label = np.flatnonzero(training.labels == label)
    seed = derive_seed(frame.seed, "cells of a rare label", label, index)
    kept = np.random.default_rng(seed).permutation(of_label)[:RARE_CELLS]
    rows = np.concatenate([np.flatnonzero(training.labels != label), kept])
    recogniser = fit_recogniser(training.components[rows], training.labels[rows])
    return Reduction(label, rows, recogniser)


def _rare_gain(pair: Pair, reduction: Reduction) -> Floats:
    training, other = pair.frame.training, pair.other
    rows, added = reduction.rows, other.labels == reduction.label
    augmented = fit_recogniser(
        np.concatenate([training.components[rows], other.components[added]]),
        np.concatenate([training.labels[rows], other.labels[added]]),
    )
    after, before = (
        weighted_f1(
            pair.real.labels,
            recogniser.predict(pair.real.components),
            [reduction.label],
            pair.draws.real,
        )[:, 0]
        for recogniser in (augmented, reduction.recogniser)
    )
    return after - before
