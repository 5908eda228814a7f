"""Numbers as publications compute them, so that theirs and ours can be compared.

Each protocol keeps its estimators and settings, with what is doubtful in them: biased
discrepancies, which depend on the number of cells, components fitted to both sides,
one split. They judge little by themselves, so the same numbers of real training cells
stand beside them in a report. Where ours differ, their settings say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from scipy.stats import pearsonr, spearmanr, wasserstein_distance
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from cellgan.evaluation.comparison.pairs import Side
from cellgan.evaluation.comparison.space import Floats, Matrix, dense, scale_cells
from cellgan.evaluation.metrics.mixing import MOST_MIXED, Neighbours, local_mixing
from cellgan.evaluation.metrics.support import distances, nearest, nearest_own, prdc
from cellgan.seeds import derive_seed

Points: TypeAlias = npt.NDArray[np.floating]
"""Cells ``(n_cells, n_dimensions)``."""
Numbers: TypeAlias = Iterator[tuple[str, float, str]]
"""Name, value and settings, of one protocol."""

MOST_CELLS = 1000
"""Cells a side that forests, components and discrepancies are computed of, and cells of
each label, at most: as many as GRouNdGAN's table has."""
N_TREES = 1000
N_JOBS = 2
SCGAN_LIBRARY_SIZE = 20_000.0
SCGAN_NEIGHBOURS = 24
SCGAN_RESAMPLES = 20
RELEASED_WEIGHT = 3
"""Of each kernel in GRouNdGAN's code."""
JOINT_COMPONENTS, MIXED_COMPONENTS = 50, 20
SCDIFFUSION_KERNELS = 5
FEWEST_DETECTING = 3
"""Cells that a gene must be found in, in scDiffusion's filter."""
CFGEN_COMPONENTS = 30
CFGEN_SIGMAS = (0.01, 0.1, 1.0, 10.0, 100.0)
N_NEIGHBOURS = 5
"""Of classifiers, and of the balls of precision and recall."""
FEWEST_VOTING = 20
"""Cells a side and label that a classifier of neighbours is fitted to."""


class PublishedNumber(NamedTuple):
    """One number of a protocol."""

    protocol: str
    name: str
    value: float
    """nan where undefined, as with too few cells."""
    settings: str


def published(real: Side, generated: Side, *, seed: int) -> tuple[PublishedNumber, ...]:
    """Return the numbers of all protocols, the same ones in the same order always.

    Parameters
    ----------
    real
        Held-out cells.
    generated
        Cells to judge; real training cells tell what can be reached.
    seed
        Seed of the choice of cells where there are more than `MOST_CELLS`.
    """
    chosen = [
        _some(side, derive_seed(seed, "published", name))
        for name, side in (("real", real), ("generated", generated))
    ]
    parts = list(_by_label(real, generated, seed))
    protocols: Mapping[str, Numbers] = {
        "scGAN": _scgan(chosen[0], chosen[1], seed),
        "scDiffusion": _scdiffusion(real, generated, chosen, parts),
        "CFGen": _cfgen(real, parts),
    }
    return tuple(
        PublishedNumber(protocol, name, value, settings)
        for protocol, numbers in protocols.items()
        for name, value, settings in numbers
    )


def _some(side: Side, seed: int) -> Side:
    """Return at most `MOST_CELLS` cells, in their order."""
    if len(side) <= MOST_CELLS:
        return side
    rows = np.random.default_rng(seed).permutation(len(side))[:MOST_CELLS]
    return side.take(np.sort(rows))


def _by_label(real: Side, generated: Side, seed: int) -> Iterator[tuple[Side, Side]]:
    """Yield the cells of every label that both sides have two or more of."""
    for label in np.unique(real.labels):
        first, second = (
            side.take(np.flatnonzero(side.labels == label))
            for side in (real, generated)
        )
        if min(len(first), len(second)) > 1:
            seeds = [derive_seed(seed, "published", side, label) for side in (0, 1)]
            yield _some(first, seeds[0]), _some(second, seeds[1])


# scGAN, as GRouNdGAN's evaluation computes it


def _scgan(real: Side, generated: Side, seed: int) -> Numbers:
    first, second = (
        dense(scale_cells(side.values, SCGAN_LIBRARY_SIZE))
        for side in (real, generated)
    )
    sizes = _sizes(real, generated)
    space = f"all genes, {SCGAN_LIBRARY_SIZE:,.0f} a cell, no log; {sizes}"
    means = [side.mean(axis=0, dtype=np.float64) for side in (first, second)]
    for name in ("euclidean", "cosine"):
        value = cdist(means[:1], means[1:], name).item()
        yield f"{name} distance of means", value, space
    mmd = neighbour_scale_mmd(first, second, seed)
    kernels = (
        "squared, biased; sum of 3 kernels exp(-d^2 / s^2), s half, once and twice the "
        f"median distance of real cells to {SCGAN_NEIGHBOURS} neighbours in "
        f"{SCGAN_RESAMPLES} resamples (median)"
    )
    yield "MMD", mmd, f"{kernels}; {space}"
    yield (
        "MMD as released",
        RELEASED_WEIGHT * mmd,
        f"the same with every kernel counted {RELEASED_WEIGHT} times, as released",
    )
    split = split_cells(first, second, test_size=0.3, seed=0)
    pca = _components(split.train, JOINT_COMPONENTS)
    split = split._replace(
        train=pca.transform(split.train), test=pca.transform(split.test)
    )
    yield (
        "RF AUROC",
        forest_scores(split, seed=0).auc,
        f"random forest of {N_TREES:,} trees; {JOINT_COMPONENTS} components of the "
        f"70 % of both sides it is trained on; {space}",
    )


def neighbour_scale_mmd(real: Points, generated: Points, seed: int) -> float:
    """Return the squared MMD with kernels scaled to the neighbours of real cells."""
    scale = neighbour_scale(real, seed)
    if not scale > 0:
        return float("nan")
    rates = [1 / (factor * scale) ** 2 for factor in (0.5, 1.0, 2.0)]
    return biased_mmd(real, generated, rates)


def neighbour_scale(cells: Points, seed: int) -> float:
    """Return the median distance to 24 neighbours: the median over resamples.

    A resample holds repeated cells, which are neighbours at distance 0, as in the
    released code.
    """
    squared = squared_distances(cells, cells)
    n_neighbours = min(SCGAN_NEIGHBOURS, len(cells) - 1)
    rng = np.random.default_rng(derive_seed(seed, "resamples"))
    medians = []
    for _ in range(SCGAN_RESAMPLES):
        rows = rng.integers(0, len(cells), len(cells))
        resample = np.partition(squared[np.ix_(rows, rows)], n_neighbours, axis=1)
        near = np.sort(resample[:, : n_neighbours + 1], axis=1)[:, 1:]  # without itself
        medians.append(np.median(np.sqrt(near)))
    return float(np.median(medians))


# scDiffusion and cfDiffusion


def _scdiffusion(
    real: Side,
    generated: Side,
    chosen: list[Side],
    parts: list[tuple[Side, Side]],
) -> Numbers:
    detecting = np.asarray((real.log_values > 0).sum(axis=0)).ravel()
    genes = np.flatnonzero(detecting >= FEWEST_DETECTING)
    means = [
        np.asarray(side.log_values.mean(axis=0), np.float64).ravel()[genes]
        for side in (real, generated)
    ]
    settings = (
        f"means of log expression, genes in {FEWEST_DETECTING} real cells or more"
    )
    for name, value in mean_agreement(*means).items():
        yield name, value, settings
    values = [dense(side.log_values) for side in chosen]
    first, second = joint_components(values[0], values[1], JOINT_COMPONENTS)
    space = (
        f"{JOINT_COMPONENTS} components of both sides together, log expression of all "
        f"genes; {_sizes(*chosen)}"
    )
    yield (
        "MMD",
        five_kernel_mmd(first, second),
        f"squared, biased; sum of {SCDIFFUSION_KERNELS} kernels exp(-d^2 / (s 2^i)), s"
        f" a quarter of the mean squared distance of all cells; {space}",
    )
    yield (
        "iLISI",
        median_mixing(first[:, :MIXED_COMPONENTS], second[:, :MIXED_COMPONENTS]),
        f"median of cells, 0 to 1; the {MOST_MIXED + 1} nearest by distance in "
        f"{MIXED_COMPONENTS} of the components, not by paths in scib's graph; {space}",
    )
    scores = forest_scores(
        split_cells(first, second, test_size=0.25, seed=1), seed=1, max_depth=5
    )
    trees = f"random forest of {N_TREES:,} trees of depth 5, one split 75/25; {space}"
    yield "RF AUC", scores.auc, trees
    yield "RF out-of-bag accuracy", scores.out_of_bag, trees
    yield from _votes(parts)


def mean_agreement(real: Floats, generated: Floats) -> dict[str, float]:
    """Return how two vectors of gene means agree; the order of cells has no part."""
    is_constant = min(np.ptp(real), np.ptp(generated)) == 0 if len(real) else True
    if is_constant:
        return dict.fromkeys(("SCC", "PCC", "Wasserstein of gene means"), float("nan"))
    return {
        "SCC": float(spearmanr(real, generated).statistic),
        "PCC": float(pearsonr(real, generated).statistic),
        "Wasserstein of gene means": float(wasserstein_distance(real, generated)),
    }


def five_kernel_mmd(real: Points, generated: Points) -> float:
    """Return scDiffusion's MMD: five kernels around the mean squared distance."""
    scale = smallest_bandwidth(real, generated)
    if not scale > 0:
        return float("nan")
    rates = [1 / (scale * 2**i) for i in range(SCDIFFUSION_KERNELS)]
    return biased_mmd(real, generated, rates)


def smallest_bandwidth(real: Points, generated: Points) -> float:
    """Return a quarter of the mean squared distance of all cells to each other."""
    cells = np.concatenate([real, generated]).astype(np.float64)
    spread = ((cells - cells.mean(axis=0)) ** 2).sum()
    return float(2 * spread / (len(cells) - 1) / 4)


def median_mixing(real: Points, generated: Points) -> float:
    """Return the median local inverse Simpson's index, from 0 (apart) to 1 (mixed)."""
    n = min(len(real), len(generated))
    if n <= MOST_MIXED:
        return float("nan")
    cells = [np.asarray(side[:n], np.float32) for side in (real, generated)]
    between = distances(cells[0], cells[1])
    found = [
        local_mixing(
            Neighbours(nearest_own(own, MOST_MIXED), nearest(across, MOST_MIXED)),
            MOST_MIXED,
        ).n_sides
        for own, across in zip(cells, (between, between.T), strict=True)
    ]
    return float(np.median(np.concatenate(found)) - 1)


def _votes(parts: list[tuple[Side, Side]]) -> Numbers:
    found = [
        neighbour_votes(real.log_values[:n], generated.log_values[:n])
        for real, generated in parts
        if (n := min(len(real), len(generated))) >= FEWEST_VOTING
    ]
    accuracy, auc = np.mean(found, axis=0) if found else (np.nan, np.nan)
    settings = (
        f"{N_NEIGHBOURS} nearest neighbours, log expression of all genes, one split"
        f" 70/30, equally many cells; mean over {len(found)} labels with"
        f" {FEWEST_VOTING} cells or more; cells that are too smooth reach 0.5 too"
    )
    yield "KNN accuracy", float(accuracy), settings
    yield "KNN AUC", float(auc), settings


def neighbour_votes(real: Matrix, generated: Matrix) -> tuple[float, float]:
    """Return accuracy and AUC of 5 nearest neighbours on 30 % of the cells."""
    split = split_cells(real, generated, test_size=0.3, seed=1)
    if not split.has_both_sides():
        return float("nan"), float("nan")
    votes = KNeighborsClassifier(N_NEIGHBOURS).fit(split.train, split.train_is_real)
    shares = votes.predict_proba(split.test)[:, 1]
    accuracy = float(np.mean((shares > 0.5) == split.test_is_real))
    return accuracy, float(roc_auc_score(split.test_is_real, shares))


# CFGen


def _cfgen(real: Side, parts: list[tuple[Side, Side]]) -> Numbers:
    means = cfgen_numbers(
        real.genes, [(first.genes, second.genes) for first, second in parts]
    )
    space = (
        f"{CFGEN_COMPONENTS} components of real cells' log expression, centred and not "
        f"scaled, of {real.genes.shape[1]:,} variable genes chosen on training cells "
        f"(not by seurat_v3); mean over {len(parts)} labels, at most {MOST_CELLS:,} "
        "cells a side of each"
    )
    for name, settings in CFGEN_SETTINGS.items():
        yield name, means.get(name, float("nan")), f"{settings}; {space}"


CFGEN_SETTINGS: Mapping[str, str] = {
    "1-Wasserstein": "exact transport, Euclidean cost",
    "2-Wasserstein": "root of exact transport with squared Euclidean cost",
    "Linear MMD": "mean product of successive differences of paired cells, in order; "
    "may be negative",
    "RBF MMD": "squared, biased; sum of 5 kernels exp(-d^2 / (2 sigma^2)), sigma 0.01"
    " to 100; about 6 / n for n real cells of the same kind",
    "precision": f"balls to the {N_NEIGHBOURS}th neighbour, L1 distance",
    "recall": f"balls to the {N_NEIGHBOURS}th neighbour, L1 distance",
    "density": f"balls to the {N_NEIGHBOURS}th neighbour, L1 distance",
    "coverage": f"balls to the {N_NEIGHBOURS}th neighbour, L1 distance",
    "1-NN accuracy": "leave-one-out, equally many cells, as scLDM reports; 0.5 is best",
    "kNN macro F1": f"{N_NEIGHBOURS} nearest neighbours fitted and scored on the same "
    "cells, each voting for itself: about 0.69 is best",
}


def cfgen_numbers(
    real: Points,
    parts: list[tuple[Points, Points]],
    n_components: int = CFGEN_COMPONENTS,
) -> dict[str, float]:
    """Return CFGen's numbers: the unweighted mean over the labels that have them.

    Parameters
    ----------
    real
        Log expression of variable genes, of all real cells.
    parts
        The same of the real and the generated cells of each label.
    """
    pca = _components(real, n_components)
    found = [
        cfgen_distances(pca.transform(first), pca.transform(second))
        for first, second in parts
    ]
    return {
        name: float(np.mean([numbers[name] for numbers in found if name in numbers]))
        for name in {name for numbers in found for name in numbers}
    }


def cfgen_distances(real: Points, generated: Points) -> dict[str, float]:
    """Return CFGen's numbers of one label; those that need more cells are left out."""
    n = min(len(real), len(generated))
    numbers = {
        "1-Wasserstein": wasserstein(real, generated, 1),
        "2-Wasserstein": wasserstein(real, generated, 2),
        "Linear MMD": linear_mmd(real, generated),
        "RBF MMD": rbf_mmd(real, generated),
        "1-NN accuracy": own_side_nearest(real[:n], generated[:n]),
    }
    if n > N_NEIGHBOURS:
        found = prdc(real, generated, k=N_NEIGHBOURS, metric="cityblock")
        numbers |= {
            "precision": float(found.precise.mean()),
            "recall": float(found.recalled.mean()),
            "density": float(found.density.mean()),
            "coverage": float(found.covered.mean()),
            "kNN macro F1": own_vote_f1(real, generated),
        }
    return numbers


def wasserstein(real: Points, generated: Points, order: int) -> float:
    """Return the exact Wasserstein distance of order 1 or 2, of any numbers of cells.

    References
    ----------
    Flamary et al. (2021), POT: Python Optimal Transport.
    """
    for backend in ("TENSORFLOW", "PYTORCH", "JAX"):  # it would load what it finds
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{backend}", "1")
    import ot  # noqa: PLC0415  (after the lines above)

    costs = cdist(real, generated, "euclidean" if order == 1 else "sqeuclidean")
    cost = float(ot.emd2([], [], costs, numItermax=10_000_000))
    return cost if order == 1 else float(np.sqrt(cost))


def linear_mmd(real: Points, generated: Points) -> float:
    """Return CFGen's linear MMD, which depends on the order of cells."""
    n = min(len(real), len(generated))
    gaps = np.asarray(real[:n], np.float64) - np.asarray(generated[:n], np.float64)
    return float((gaps[:-1] * gaps[1:]).sum(axis=1).mean())


def rbf_mmd(real: Points, generated: Points) -> float:
    """Return CFGen's RBF MMD: squared, biased, five fixed bandwidths, equal numbers."""
    n = min(len(real), len(generated))
    rates = [1 / (2 * sigma**2) for sigma in CFGEN_SIGMAS]
    return biased_mmd(real[:n], generated[:n], rates)


def own_side_nearest(real: Points, generated: Points) -> float:
    """Return the share of cells whose nearest cell is on their own side."""
    cells = np.concatenate([real, generated])
    is_real = np.repeat([True, False], [len(real), len(generated)])
    found = nearest_own(cells, 1).rows[:, 0]
    return float(np.mean(is_real[found] == is_real))


def own_vote_f1(real: Points, generated: Points) -> float:
    """Return the macro F1 of 5 nearest neighbours on the cells they were fitted to."""
    cells = np.concatenate([real, generated])
    is_real = np.repeat([1, 0], [len(real), len(generated)])
    votes = KNeighborsClassifier(N_NEIGHBOURS).fit(cells, is_real)
    return float(f1_score(is_real, votes.predict(cells), average="macro"))


# What protocols share


def joint_components(
    real: Points, generated: Points, n_components: int
) -> tuple[Points, Points]:
    """Return components that are fitted to both sides together."""
    stacked = np.concatenate([real, generated])
    components = _components(stacked, n_components).transform(stacked)
    return components[: len(real)], components[len(real) :]


def _components(cells: Points, n_components: int) -> PCA:
    return PCA(min(n_components, *cells.shape), random_state=0).fit(cells)


def _sizes(real: Side, generated: Side) -> str:
    return f"{len(real):,} real and {len(generated):,} generated cells"


def squared_distances(first: Points, second: Points) -> Floats:
    """Return squared Euclidean distances ``(n_first, n_second)``."""
    lengths = [(side**2).sum(axis=1, dtype=np.float64) for side in (first, second)]
    squared: Floats = lengths[0][:, None] + lengths[1] - 2 * (first @ second.T)
    np.maximum(squared, 0, out=squared)
    if first is second:
        np.fill_diagonal(squared, 0)
    return squared


def biased_mmd(real: Points, generated: Points, rates: list[float]) -> float:
    """Return the squared MMD, pairs of a cell with itself included.

    Parameters
    ----------
    rates
        The kernel is the sum over rates of ``exp(-rate * distance**2)``.
    """

    def mean_kernel(first: Points, second: Points) -> float:
        squared = squared_distances(first, second)
        return sum(float(np.exp(-rate * squared).mean()) for rate in rates)

    within = mean_kernel(real, real) + mean_kernel(generated, generated)
    return within - 2 * mean_kernel(real, generated)


class Split(NamedTuple):
    """Cells of both sides, divided once for a classifier."""

    train: Matrix
    test: Matrix
    train_is_real: npt.NDArray[np.int_]
    test_is_real: npt.NDArray[np.int_]

    def has_both_sides(self) -> bool:
        """Tell whether both parts have cells of both sides."""
        return all(0 < part.mean() < 1 for part in self[2:])


def split_cells(
    real: Matrix, generated: Matrix, *, test_size: float, seed: int
) -> Split:
    """Stack both sides and divide the cells at random."""
    stack = sp.vstack if sp.issparse(real) else np.concatenate
    cells = stack([real, generated])
    is_real = np.repeat([1, 0], [real.shape[0], generated.shape[0]])
    parts = train_test_split(cells, is_real, test_size=test_size, random_state=seed)
    return Split(*parts)


class ForestScores(NamedTuple):
    """What a random forest makes of generated and real cells."""

    auc: float
    out_of_bag: float
    """Accuracy."""


def forest_scores(
    split: Split, *, seed: int, max_depth: int | None = None
) -> ForestScores:
    """Fit a random forest to one part of the cells and score the other."""
    if not split.has_both_sides():
        return ForestScores(float("nan"), float("nan"))
    forest = RandomForestClassifier(
        N_TREES,
        max_depth=max_depth,
        class_weight="balanced",
        oob_score=True,
        random_state=seed,
        n_jobs=N_JOBS,
    )
    forest.fit(split.train, split.train_is_real)
    shares = forest.predict_proba(split.test)[:, 1]
    auc = float(roc_auc_score(split.test_is_real, shares))
    return ForestScores(auc, float(forest.oob_score_))
