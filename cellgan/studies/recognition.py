"""How well a classifier trained on some cells recognises one label among others."""

from __future__ import annotations

from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

from cellgan.evaluation.comparison.space import N_COMPONENTS, Labels, Matrix, fit_space

N_TREES = 100


def held_out_f1(
    training: Matrix,
    training_labels: Labels,
    held_out: Matrix,
    held_out_labels: Labels,
    *,
    label: str,
    seed: int,
) -> float:
    """Return the F1 of one label against all others on held-out cells.

    Variable genes, principal components and the random forest are all learned from
    the training cells given, whether real, repeated or generated.

    Parameters
    ----------
    training, held_out
        Log expression at the same library size.
    training_labels, held_out_labels
        Label of every cell.
    label
        The label whose cells are to be recognised.
    seed
        Seed of decomposition and forest.
    """
    space = fit_space(training, seed=seed, n_components=N_COMPONENTS)
    forest = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=-1)
    forest.fit(space.components(training), training_labels == label)
    predicted = forest.predict(space.components(held_out))
    return float(f1_score(held_out_labels == label, predicted, zero_division=0.0))
