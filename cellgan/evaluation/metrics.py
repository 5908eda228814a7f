"""Numbers that compare generated with real cells: functions of matrices, no files.

Convention: ``log_values`` are log1p of expression at one library size, for real and
generated cells alike; `fit_space` learns variable genes and principal components from
real training cells only, and both sides go through the same transform.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.spatial.distance import cdist, pdist
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.utils.sparsefuncs import mean_variance_axis

from cellgan.seeds import derive_seed

Matrix: TypeAlias = npt.NDArray[np.floating] | sp.spmatrix | sp.sparray
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.str_]

BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
N_COMPONENTS = 50
N_FOLDS = 5
N_SPACE_GENES = 2000
N_TREES = 100
ROWS_AT_ONCE = 1000


class LabelAgreement(NamedTuple):
    """Share of cells whose predicted label is the one they were made for."""

    overall: float
    per_label: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Space:
    """Where cells are compared: the variable genes and their principal components."""

    genes: npt.NDArray[np.intp]
    """Columns of the variable genes, the most variable first."""
    pca: PCA

    def variable_genes(self, log_values: Matrix) -> npt.NDArray[np.float32]:
        """Return the variable genes' log expression, dense."""
        return dense(log_values[:, self.genes])

    def components(self, log_values: Matrix) -> npt.NDArray[np.float32]:
        """Return the principal components ``(n_cells, n_components)``."""
        projected: npt.NDArray[np.float32] = self.pca.transform(
            self.variable_genes(log_values)
        )
        return projected


def dense(matrix: Matrix) -> npt.NDArray[np.float32]:
    """Return a sparse or dense matrix as a dense float32 array."""
    array = sp.csr_array(matrix).toarray() if sp.issparse(matrix) else matrix
    return np.asarray(array, dtype=np.float32)


def log_expression(values: Matrix, library_size: float) -> sp.csr_array:
    """Scale every cell to one library size and take log1p.

    Parameters
    ----------
    values
        Counts or expression, non-negative, ``(n_cells, n_genes)``. A cell without
        any value stays zero.
    library_size
        Total of every cell before the logarithm.
    """
    scaled = sp.csr_array(values, dtype=np.float32)
    totals = np.asarray(scaled.sum(axis=1, dtype=np.float64)).ravel()
    factors = library_size / np.where(totals > 0, totals, 1.0)
    scaled.data = np.log1p(scaled.data * factors.repeat(np.diff(scaled.indptr)))
    scaled.data = scaled.data.astype(np.float32)
    return scaled


def most_variable_genes(log_values: Matrix, n_genes: int) -> npt.NDArray[np.intp]:
    """Return the columns of the `n_genes` largest variances, largest first."""
    _, variances = mean_variance_axis(sp.csr_matrix(log_values), axis=0)
    return np.argsort(-variances, kind="stable")[:n_genes]


def fit_space(
    log_values: Matrix,
    *,
    seed: int,
    n_genes: int = N_SPACE_GENES,
    n_components: int = N_COMPONENTS,
) -> Space:
    """Learn the space of comparison from real training cells.

    Parameters
    ----------
    log_values
        Log expression of training cells, ``(n_cells, n_genes)``.
    seed
        Seed of the randomised decomposition.
    n_genes, n_components
        Upper limits; small data have fewer of both.
    """
    genes = most_variable_genes(log_values, n_genes)
    pca = PCA(min(n_components, log_values.shape[0], len(genes)), random_state=seed)
    return Space(genes, pca.fit(dense(log_values[:, genes])))


def median_bandwidths(real: Floats | npt.NDArray[np.float32]) -> tuple[float, ...]:
    """Return the median distance between real cells, times `BANDWIDTH_FACTORS`.

    Real cells alone set the scale, so values of different models are comparable.
    At most 1,000 cells, evenly spaced in the given order, are looked at.
    """
    step = -(-len(real) // ROWS_AT_ONCE)
    median = float(np.median(pdist(np.asarray(real[::step], np.float64))))
    return tuple(factor * median for factor in BANDWIDTH_FACTORS)


def mmd_squared(
    real: Floats | npt.NDArray[np.float32],
    generated: Floats | npt.NDArray[np.float32],
    *,
    bandwidths: tuple[float, ...],
) -> float:
    """Estimate the squared maximum mean discrepancy without bias.

    The kernel is the mean over bandwidths s of ``exp(-distance**2 / (2 * s**2))``, so
    the value is at most 2; it is 0 in expectation (and may be slightly negative) for
    equal distributions.

    Parameters
    ----------
    real, generated
        Cells, ``(n, n_dimensions)`` and ``(m, n_dimensions)``, 2 or more of each.
    bandwidths
        As from `median_bandwidths`.

    References
    ----------
    Gretton et al. (2012), A Kernel Two-Sample Test, equation 3.
    https://jmlr.org/papers/v13/gretton12a.html
    """
    within = sum(
        (_kernel_sum(cells, cells, bandwidths) - len(cells))
        / (len(cells) * (len(cells) - 1))
        for cells in (real, generated)
    )
    between = _kernel_sum(real, generated, bandwidths) / (len(real) * len(generated))
    return float(within - 2 * between)


def classifier_auc(real: Matrix, generated: Matrix, *, seed: int) -> float:
    """Return how well a random forest tells generated from real cells.

    Parameters
    ----------
    real, generated
        Cells in the same space; at least `N_FOLDS` of each.
    seed
        Seed of folds and forest.

    Returns
    -------
    Mean area under the ROC curve over 5 folds: 0.5 when they cannot be told apart, 1
    when always.
    """
    cells = np.concatenate([dense(real), dense(generated)])
    is_generated = np.repeat([0, 1], [real.shape[0], generated.shape[0]])
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_score(
        _forest(seed), cells, is_generated, cv=folds, scoring="roc_auc"
    )
    return float(scores.mean())


def label_classifier(
    training: Matrix, labels: Labels, *, seed: int
) -> RandomForestClassifier:
    """Train a random forest to tell the labels of real training cells."""
    return _forest(seed).fit(dense(training), labels)


def label_agreement(
    classifier: RandomForestClassifier, cells: Matrix, labels: Labels
) -> LabelAgreement:
    """Ask a classifier of real cells for the labels of others.

    Parameters
    ----------
    classifier
        From `label_classifier`, in the same space as `cells`.
    cells, labels
        Generated cells and the labels they were made for, or held-out real cells and
        theirs: the latter tell what can be reached.
    """
    agrees = classifier.predict(dense(cells)) == labels
    per_label = {str(x): float(agrees[labels == x].mean()) for x in np.unique(labels)}
    return LabelAgreement(float(agrees.mean()), per_label)


def mean_expression_correlation(real: Matrix, generated: Matrix) -> float:
    """Return Pearson's correlation over genes of mean log expression."""
    return _pearson(gene_means(real), gene_means(generated))


def detection_rate_correlation(real: Matrix, generated: Matrix) -> float:
    """Return Pearson's correlation over genes of the share of cells expressing it."""
    return _pearson(detection_rates(real), detection_rates(generated))


def gene_means(values: Matrix) -> Floats:
    """Return the mean of every gene ``(n_genes,)``."""
    return np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()


def detection_rates(values: Matrix) -> Floats:
    """Return the share of cells with a value above zero, for every gene."""
    return np.asarray((values > 0).sum(axis=0)).ravel() / values.shape[0]


def zero_fraction(values: Matrix) -> float:
    """Return the share of entries that are exactly zero."""
    return float(1 - detection_rates(values).mean())


def gene_correlations(log_values: Matrix) -> Floats:
    """Return Pearson's correlation between genes, ``(n_genes, n_genes)``.

    A gene without variance has correlation 0 with every other gene.
    """
    values = np.asarray(dense(log_values), np.float64)
    values -= values.mean(axis=0)
    lengths = np.linalg.norm(values, axis=0)
    values /= np.where(lengths > 0, lengths, 1.0)
    correlations: Floats = values.T @ values
    np.fill_diagonal(correlations, 1.0)
    return np.clip(correlations, -1.0, 1.0)


def correlation_of_correlations(real: Floats, generated: Floats) -> float:
    """Return Pearson's correlation between two gene-gene correlation matrices.

    Parameters
    ----------
    real, generated
        From `gene_correlations`, same genes; every pair of genes counts once.
    """
    pairs = np.triu_indices(len(real), k=1)
    return _pearson(real[pairs], generated[pairs])


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
    space = fit_space(training, seed=seed)
    forest = _forest(seed).fit(space.components(training), training_labels == label)
    predicted = forest.predict(space.components(held_out))
    return float(f1_score(held_out_labels == label, predicted, zero_division=0.0))


def draw_per_label(
    sides: tuple[Labels, ...], *, max_cells: int, seed: int
) -> tuple[npt.NDArray[np.intp], ...]:
    """Draw the same number of cells of every label from each side.

    A label's number is that of the side which has fewest. When all together are more
    than `max_cells`, every number is reduced in proportion, but never to 0.

    Returns
    -------
    Sorted positions into each side, without repeats.
    """
    counts = [
        dict(zip(*np.unique(side, return_counts=True), strict=True)) for side in sides
    ]
    shared = {
        label: min(count[label] for count in counts)
        for label in counts[0]
        if all(label in count for count in counts)
    }
    share = min(1.0, max_cells / max(1, sum(shared.values())))
    numbers = {label: max(1, int(share * n)) for label, n in shared.items()}
    drawn = []
    for index, side in enumerate(sides):
        rng = np.random.default_rng(derive_seed(seed, "draw cells", index))
        rows = [
            rng.choice(np.flatnonzero(side == label), n, replace=False)
            for label, n in numbers.items()
        ]
        drawn.append(np.sort(np.concatenate([np.empty(0, np.intp), *rows])))
    return tuple(drawn)


def _forest(seed: int) -> RandomForestClassifier:
    return RandomForestClassifier(N_TREES, random_state=seed, n_jobs=-1)


def _pearson(first: Floats, second: Floats) -> float:
    """Return Pearson's correlation, nan when either side is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def _kernel_sum(
    first: npt.NDArray[np.floating],
    second: npt.NDArray[np.floating],
    bandwidths: tuple[float, ...],
) -> float:
    """Sum the kernel over all pairs, a block of rows at a time to bound memory."""
    total = 0.0
    for start in range(0, len(first), ROWS_AT_ONCE):
        squared = cdist(first[start : start + ROWS_AT_ONCE], second, "sqeuclidean")
        for bandwidth in bandwidths:
            total += np.exp(squared / (-2 * bandwidth**2)).sum() / len(bandwidths)
    return total
