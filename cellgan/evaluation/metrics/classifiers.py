"""Two-sample classifiers: how well real cells can be told from others.

Convention: a score is high where a classifier takes a cell for one of the other side,
and every cell is scored by the classifier of the fold that left it out. The area under
the ROC curve (AUC) of these scores is the share of (real, other) pairs of cells in
which the other one scores higher, ties counting half.

Classifiers are fitted once per pair. Bootstrap replicates, and values within a label,
are areas of the same scores: cells are re-weighted or left out, nothing is refitted.

References
----------
Lopez-Paz & Oquab (2017), Revisiting Classifier Two-Sample Tests.
https://arxiv.org/abs/1610.06545
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cellgan.evaluation.comparison.pairs import Estimates, Pair, Resamples
from cellgan.evaluation.comparison.space import Floats
from cellgan.evaluation.metrics.catalogue import Defect, Metric
from cellgan.evaluation.report.document import GiveawayGene
from cellgan.seeds import derive_seed

N_FOLDS = 5
N_TREES = 100
MAX_DEPTH = 10
LEAF_CELLS = 5
TREE_CELLS = 2000
"""Cells a tree is grown from, or half the cells of the folds where these are fewer.
Between equal sides trees find nothing and grow deep, so this is what bounds the time.
With 5,000 cells a side, trees of 1,000, 2,000 and 4,000 cells (8 deep) detected weak
corruptions of genes alike: AUC 0.57, 0.58, 0.60 and, for another, 0.83, 0.86, 0.85."""
INVERSE_PENALTY = 1e-3
"""scikit-learn's ``C``. Of 1 to 1e-4, 1e-3 detected thinned genes best on 2,000 genes;
on 50 components they were alike."""

Kind = Literal["forest", "logistic"]
Cells = Literal["components", "genes"]

_KINDS: tuple[Kind, ...] = ("forest", "logistic")
_SETTINGS: dict[Kind, str] = {
    "forest": f"a random forest ({N_TREES} trees at most {MAX_DEPTH} deep, each of half"
    f" the cells but at most {TREE_CELLS:,}, {LEAF_CELLS} or more cells to a leaf,"
    " square root of the features at a split)",
    "logistic": "a logistic regression (features scaled to unit variance, L2 penalty"
    f" with C = {INVERSE_PENALTY})",
}
_SPACES: dict[Cells, str] = {"components": "components", "genes": "variable genes"}
_SEES: dict[Kind, frozenset[Defect]] = {
    "forest": frozenset(
        {
            "missing_label",
            "library_size",
            "dependence",
            "weak_effects",
            "noise_cells",
        }
    ),
    # Genes that vary independently, or labels nearer to each other, keep their means.
    "logistic": frozenset({"missing_label", "library_size", "noise_cells"}),
}


def _metric(kind: Kind, cells: Cells) -> Metric:
    return Metric(
        name=f"{kind}_auc_{cells}",
        title=f"{kind} AUC, {_SPACES[cells]} (0.5 is best)",
        meaning=f"Area under the ROC curve of {_SETTINGS[kind]} that tells real from"
        f" other cells by their {_SPACES[cells]}, over the scores of all cells in"
        f" {N_FOLDS}-fold stratified cross-validation, both sides weighing the same",
        space=_SPACES[cells],
        floor="label_means",
        sees=_SEES[kind],
    )


METRICS: tuple[Metric, ...] = tuple(
    _metric(kind, cells) for cells in _SPACES for kind in _KINDS
)


@dataclasses.dataclass(frozen=True)
class OutOfFold:
    """What classifiers of one pair say of the cells they were not trained on."""

    real: Mapping[str, Floats]
    """Metric -> scores of real cells ``(n_real,)``; nan where a side has fewer cells
    than there are folds."""
    other: Mapping[str, Floats]
    """Metric -> scores of the other side's cells ``(n_other,)``."""
    importances: Floats
    """Mean decrease in impurity of every variable gene ``(n_variable,)``, summing to
    1: the mean over the folds' forests."""


def fit_out_of_fold(pair: Pair) -> OutOfFold:
    """Fit every classifier to every fold of both sides' cells.

    Folds are the same for all classifiers: stratified by side and shuffled by the
    frame's seed. Both sides weigh the same, however many cells they have.
    """
    n_real, n_other = len(pair.real), len(pair.other)
    scores = {metric.name: np.full(n_real + n_other, np.nan) for metric in METRICS}
    importances = np.full(pair.real.genes.shape[1], np.nan)
    if min(n_real, n_other) >= N_FOLDS:
        importances[:] = 0.0
        for cells in _SPACES:
            _score_folds(pair, cells, scores, importances)
    return OutOfFold(
        real={name: of_cells[:n_real] for name, of_cells in scores.items()},
        other={name: of_cells[n_real:] for name, of_cells in scores.items()},
        importances=importances,
    )


def of_label(scores: OutOfFold, pair: Pair, label: str) -> OutOfFold:
    """Return the scores of one label's cells, in the order of ``pair.of_label(label)``.

    Parameters
    ----------
    scores
        From `fit_out_of_fold` of `pair`, which knows nothing of labels.
    """
    is_real, is_other = pair.real.labels == label, pair.other.labels == label
    return OutOfFold(
        real={name: of_cells[is_real] for name, of_cells in scores.real.items()},
        other={name: of_cells[is_other] for name, of_cells in scores.other.items()},
        importances=scores.importances,
    )


def auc_metrics(pair: Pair, scores: OutOfFold) -> Estimates:
    """Return the area under the ROC curve of given scores in every draw of a pair.

    Parameters
    ----------
    pair
        Whose draws are used; for one label ``pair.of_label(label, n_resamples)``, with
        ``of_label(scores, pair, label)``.
    """
    return {
        name: weighted_auc(scores.real[name], scores.other[name], pair.draws)
        for name in scores.real
    }


def weighted_auc(real: npt.ArrayLike, other: npt.ArrayLike, draws: Resamples) -> Floats:
    """Return how often an other cell's value exceeds a real one's, ``(n_draws,)``.

    Parameters
    ----------
    real, other
        One value per cell, ``(n_real,)`` and ``(n_other,)``.

    Returns
    -------
    Weighted share of pairs of cells, ties counting half; nan without cells or where
    a value is nan.
    """
    real, other = np.asarray(real, np.float64), np.asarray(other, np.float64)
    if not (len(real) and len(other)) or np.isnan([real.sum(), other.sum()]).any():
        return np.full(len(draws), np.nan)
    order = np.argsort(real, kind="stable")
    ranked = real[order]
    up_to = np.cumsum(draws.real[:, order], axis=1)
    up_to = np.concatenate([np.zeros((len(draws), 1)), up_to], axis=1)
    below = up_to[:, np.searchsorted(ranked, other, "left")]
    not_above = up_to[:, np.searchsorted(ranked, other, "right")]
    wins = (draws.other * (below + not_above)).sum(axis=1) / 2
    return wins / (draws.real.sum(axis=1) * draws.other.sum(axis=1))


def giveaway_genes(
    pair: Pair, scores: OutOfFold, n: int = 20
) -> tuple[GiveawayGene, ...]:
    """Return the genes that forests tell the sides apart by, most important first.

    Parameters
    ----------
    scores
        From `fit_out_of_fold` of `pair`.
    n
        Number of genes; fewer when the forests used fewer.
    """
    ranked = np.argsort(-scores.importances, kind="stable")[:n]
    return tuple(
        _giveaway_gene(pair, column, float(scores.importances[column]))
        for column in ranked
        if scores.importances[column] > 0
    )


def _giveaway_gene(pair: Pair, column: int, importance: float) -> GiveawayGene:
    real, other = pair.real.genes[:, column], pair.other.genes[:, column]
    as_they_are = Resamples(np.ones((1, len(real))), np.ones((1, len(other))))
    return GiveawayGene(
        gene=pair.frame.gene_names[pair.frame.space.genes[column]],
        importance=importance,
        auc=float(weighted_auc(real, other, as_they_are)[0]),
        real_mean=float(real.mean(dtype=np.float64)),
        generated_mean=float(other.mean(dtype=np.float64)),
        real_detected=float((real > 0).mean()),
        generated_detected=float((other > 0).mean()),
    )


def _score_folds(
    pair: Pair, cells: Cells, scores: Mapping[str, Floats], importances: Floats
) -> None:
    """Score the cells of every fold in place, and add up what forests find of genes."""
    features = np.concatenate([getattr(pair.real, cells), getattr(pair.other, cells)])
    is_other = np.repeat([0, 1], [len(pair.real), len(pair.other)])
    seed = derive_seed(pair.frame.seed, "two-sample folds")
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    for fold, (fitted, left_out) in enumerate(folds.split(features, is_other)):
        seed = derive_seed(pair.frame.seed, "two-sample forest", cells, fold)
        forest = _forest(len(fitted), seed)
        # Trees read one feature of many cells at a time: twice as fast by columns.
        forest.fit(np.asfortranarray(features[fitted]), is_other[fitted])
        # Threads would add up the trees' votes in an order of their own.
        forest.set_params(n_jobs=1)
        votes = forest.predict_proba(features[left_out])[:, 1]
        scores[f"forest_auc_{cells}"][left_out] = votes
        if cells == "genes":
            importances += forest.feature_importances_ / N_FOLDS
        logistic = _logistic().fit(features[fitted], is_other[fitted])
        log_odds = logistic.decision_function(features[left_out])
        scores[f"logistic_auc_{cells}"][left_out] = log_odds


def _forest(n_cells: int, seed: int) -> RandomForestClassifier:
    return RandomForestClassifier(
        N_TREES,
        max_depth=MAX_DEPTH,
        min_samples_leaf=LEAF_CELLS,
        max_samples=min(TREE_CELLS, -(-n_cells // 2)),
        max_features="sqrt",
        class_weight="balanced",
        random_state=seed,
        n_jobs=-1,
    )


def _logistic() -> Pipeline:
    classifier = LogisticRegression(
        C=INVERSE_PENALTY, class_weight="balanced", max_iter=500
    )
    return make_pipeline(StandardScaler(), classifier)
