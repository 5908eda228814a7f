"""How alike the latents and loadings of models are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import linear_sum_assignment

if TYPE_CHECKING:
    from cellgan.composition.statistics import Floats


N_TOP_GENES = 50
"""Of each end of a factor."""


VARIES = 1e-6
"""Directions of a latent with a smaller share of its variance are none."""


def linear_predictability(one: Floats, other: Floats) -> float:
    """Return how much of one latent a linear map of another tells, on other cells.

    Every second cell fits the map and the others judge it.

    Parameters
    ----------
    one
        ``(n_cells, n_latent)``, what is predicted from.
    other
        ``(n_cells, m_latent)`` of the same cells, what is predicted.

    Returns
    -------
    R2, at most 1: the share of the variance of `other` that is predicted; nan of too
    few cells, or of a latent that does not vary.
    """
    fit, judge = slice(0, None, 2), slice(1, None, 2)
    if len(one) < 4 * (one.shape[1] + 1):
        return float("nan")
    design = np.column_stack([one, np.ones(len(one))])
    weights = np.linalg.lstsq(design[fit], other[fit], rcond=None)[0]
    missed = ((other[judge] - design[judge] @ weights) ** 2).sum()
    total = ((other[judge] - other[fit].mean(axis=0)) ** 2).sum()
    return float(1 - missed / total) if total > 0 else float("nan")


def canonical_correlations(one: Floats, other: Floats) -> Floats:
    """Return the canonical correlations of two latents of the same cells, falling."""
    bases = [_basis(np.asarray(of, np.float64)) for of in (one, other)]
    if min(basis.shape[1] for basis in bases) == 0:
        return np.zeros(0)
    found = np.linalg.svd(bases[0].T @ bases[1], compute_uv=False)
    return np.asarray(np.minimum(found, 1.0), np.float64)


def _basis(latent: Floats) -> Floats:
    """Return an orthonormal basis of the directions in which a latent varies."""
    left, scale, _ = np.linalg.svd(latent - latent.mean(axis=0), full_matrices=False)
    varies = scale**2 > VARIES * (scale**2).sum()
    basis: Floats = left[:, varies]
    return basis


def top_gene_overlap(one: Floats, other: Floats, n_top: int = N_TOP_GENES) -> Floats:
    """Return how far factors of two models have the same genes at their ends.

    Factors have no order and no sign: each is paired with one of the other model so
    that overlaps are largest.

    Parameters
    ----------
    one, other
        Loadings ``(n_genes, n_latent)`` of the same genes.
    n_top
        Genes of each end of a factor, by signed loading.

    Returns
    -------
    Jaccard index of the ends, mean of both, for each pair, falling.
    """
    ends = [_ends(np.asarray(of, np.float64), n_top) for of in (one, other)]
    overlap = np.zeros((len(ends[0]), len(ends[1])))
    for i, mine in enumerate(ends[0]):
        for j, theirs in enumerate(ends[1]):
            same, turned = (
                np.mean([_jaccard(a, b) for a, b in zip(mine, of, strict=True)])
                for of in (theirs, theirs[::-1])
            )
            overlap[i, j] = max(same, turned)
    rows, columns = linear_sum_assignment(-overlap)
    found: Floats = np.sort(overlap[rows, columns])[::-1]
    return found


def _ends(loadings: Floats, n_top: int) -> list[tuple[set[int], set[int]]]:
    order = np.argsort(loadings, axis=0, kind="stable")
    n_top = min(n_top, len(loadings) // 2)
    return [
        (set(column[:n_top].tolist()), set(column[-n_top:].tolist()))
        for column in order.T
    ]


def _jaccard(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other) if one | other else 0.0


def latent_rows(
    latents: Mapping[tuple[str, int], Floats], evaluation: str
) -> Iterator[dict[str, Any]]:
    """Yield comparisons of latents: of mixtures with one seed, of seeds of a mixture.

    Parameters
    ----------
    latents
        (mixture, seed) -> latents of the same cells.
    """
    for (mixture, seed), one in latents.items():
        for (other_mixture, other_seed), other in latents.items():
            is_other_seed = mixture == other_mixture and seed != other_seed
            if not is_other_seed and (seed != other_seed or mixture == other_mixture):
                continue
            correlations = canonical_correlations(one, other)
            yield {
                "evaluation": evaluation,
                "mixture": mixture,
                "seed": seed,
                "other_mixture": other_mixture,
                "other_seed": other_seed,
                "predictability": linear_predictability(one, other),
                "canonical_correlation": float(correlations.mean())
                if len(correlations)
                else float("nan"),
            }


def loading_rows(
    loadings: Mapping[tuple[str, int], Floats],
) -> Iterator[dict[str, Any]]:
    """Yield comparisons of loadings, of the pairs of `latent_rows`, each once."""
    keys = list(loadings)
    for index, (mixture, seed) in enumerate(keys):
        for other_mixture, other_seed in keys[index + 1 :]:
            if mixture != other_mixture and seed != other_seed:
                continue
            one = loadings[mixture, seed]
            found = top_gene_overlap(one, loadings[other_mixture, other_seed])
            n_top = min(N_TOP_GENES, len(one) // 2)
            yield {
                "mixture": mixture,
                "seed": seed,
                "other_mixture": other_mixture,
                "other_seed": other_seed,
                "overlap": float(found.mean()),
                "largest_overlap": float(found[0]),
                "by_chance": n_top / (2 * len(one) - n_top),
            }
