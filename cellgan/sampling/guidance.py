"""Classifier-free guidance by several covariates, and the dropping that it needs.

With ``v_0`` the prediction without any covariate and ``v_i`` with covariate i alone,

    v = v_0 + sum over i of scale_i (v_i - v_0),

a sum of branches whose weights add up to 1 (`guidance_branches`). A network that is
trained with covariates together is guided by ``v_1..i``, with the covariates of the i
largest scales, in place of ``v_i`` (`nested_branches`):

    v = v_0 + sum over i of scale_i (v_1..i - v_1..i-1).

A covariate is left out of a cell's condition by its null code, one past its last
category.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

Dropping = Literal["independent", "joint"]


class Branch(NamedTuple):
    """One prediction that guidance needs, and its weight in the sum."""

    covariates: frozenset[str]
    """Those that cells keep their codes of; the others are null."""
    weight: float


def guidance_branches(
    scales: Mapping[str, float],
    codes: Mapping[str, np.ndarray],
    null_codes: Mapping[str, int],
) -> tuple[Branch, ...]:
    """Return the branches that have a part in the guided prediction.

    A single scale of 1 needs the conditional branch alone, no guided covariate the
    unconditional one.

    Parameters
    ----------
    scales
        Guidance scale of each guided covariate; 0 is as good as not guided.
    codes
        Codes of all cells, ``(n_cells,)`` per covariate. One that is missing, or that
        all cells have the null code of, is not guided.
    null_codes
        Null code of each covariate.

    Returns
    -------
    At least one branch; their weights add up to 1.

    References
    ----------
    Palma et al. (2025), Multi-Modal and Multi-Attribute Generation of Single Cells with
    CFGen, section 4.3. https://arxiv.org/abs/2407.11734
    """
    guided = _guided(scales, codes, null_codes)
    branches = [Branch(frozenset(), 1 - sum(guided.values()))]
    branches += [Branch(frozenset({name}), scale) for name, scale in guided.items()]
    return tuple(branch for branch in branches if branch.weight)


def nested_branches(
    scales: Mapping[str, float],
    codes: Mapping[str, np.ndarray],
    null_codes: Mapping[str, int],
) -> tuple[Branch, ...]:
    """Return the branches that have a part in guidance by covariates together.

    With equal scales there are two, with all covariates and with none:
    ``v_0 + scale (v - v_0)``; at a scale of 1 the first alone.

    Parameters
    ----------
    scales, codes, null_codes
        As of `guidance_branches`.

    Returns
    -------
    At least one branch; their weights add up to 1.

    References
    ----------
    Ho and Salimans (2022), Classifier-Free Diffusion Guidance, equation 6 (its weight
    is ``scale - 1``). https://arxiv.org/abs/2207.12598
    """
    guided = _guided(scales, codes, null_codes)
    levels = sorted({0.0, *guided.values()}, reverse=True)
    branches = [Branch(frozenset(), 1 - levels[0])]
    branches += [
        Branch(frozenset(n for n, scale in guided.items() if scale >= level), weight)
        for level, below in itertools.pairwise(levels)
        if (weight := level - below)
    ]
    return tuple(branch for branch in branches if branch.weight)


def _guided(
    scales: Mapping[str, float],
    codes: Mapping[str, np.ndarray],
    null_codes: Mapping[str, int],
) -> dict[str, float]:
    """Return the scales of covariates that some cell is conditioned on."""
    return {
        name: scale
        for name, scale in scales.items()
        if name in codes and not np.all(np.asarray(codes[name]) == null_codes[name])
    }


def branch_codes(
    branch: Branch,
    codes: Mapping[str, np.ndarray],
    null_codes: Mapping[str, int],
    n_cells: int,
) -> dict[str, np.ndarray]:
    """Return the codes ``(n_cells,)`` int32, all null but those of the branch."""
    return {
        name: np.asarray(codes[name], np.int32)
        if name in branch.covariates
        else np.full(n_cells, null, np.int32)
        for name, null in null_codes.items()
    }


def weighted_sum(values: Sequence[tf.Tensor], weights: Sequence[float]) -> tf.Tensor:
    """Return ``sum over b of weights[b] * values[b]``."""
    terms = [weight * value for weight, value in zip(weights, values, strict=True)]
    return terms[0] if len(terms) == 1 else tf.add_n(terms)


def drop_covariates(
    codes: Mapping[str, tf.Tensor],
    null_codes: Mapping[str, int],
    seed: tf.Tensor,
    probability: float,
    per: Literal["cell", "batch"] = "cell",
) -> dict[str, tf.Tensor]:
    """Keep one covariate, drawn uniformly, or with `probability` none.

    So a network learns every prediction that guidance adds up, and no other.

    Parameters
    ----------
    codes
        ``(n_cells,)`` int32 per covariate.
    null_codes
        Null code of each covariate, which dropped ones become.
    seed
        Stateless seed, ``(2,)`` int32.
    probability
        Of dropping all covariates, from 0 to 1.
    per
        - ``"cell"``: drawn for each cell;
        - ``"batch"``: drawn once for all cells, as the reference does.

    Notes
    -----
    Call it outside functions compiled by XLA, which draws other values for the same
    seed (TensorFlow 2.21 on a CPU, for Philox too).
    """
    n_cells = tf.shape(next(iter(codes.values())))[0]
    shape = (n_cells,) if per == "cell" else (1,)
    draw = tf.random.stateless_uniform(shape, seed, alg="philox")
    # [0, 1 - probability) in as many equal intervals as covariates; beyond it, none.
    share = (1 - probability) / len(codes)
    return {
        name: tf.where(
            (draw >= index * share) & (draw < (index + 1) * share),
            of_cells,
            null_codes[name],
        )
        for index, (name, of_cells) in enumerate(codes.items())
    }


def drop_each_covariate(
    codes: Mapping[str, tf.Tensor],
    null_codes: Mapping[str, int],
    seed: tf.Tensor,
    probability: float,
    dropping: Dropping,
) -> dict[str, tf.Tensor]:
    """Leave every covariate of every cell out with `probability`.

    So a network learns the predictions with all combinations of covariates.

    Parameters
    ----------
    codes
        ``(n_cells,)`` int32 per covariate.
    null_codes
        Null code of each covariate, which dropped ones become.
    seed
        Stateless seed, ``(2,)`` int32.
    probability
        From 0 to 1.
    dropping
        - ``"independent"``: each by itself, so that cells without any of several are
          few, as in cfDiffusion;
        - ``"joint"``: all of a cell with `probability`; and of the other cells, each of
          several by itself with the same.

    Notes
    -----
    Call it outside functions compiled by XLA, as `drop_covariates`.
    """
    n_cells = tf.shape(next(iter(codes.values())))[0]
    shape = (len(codes) + 1, n_cells)
    is_drawn = tf.random.stateless_uniform(shape, seed, alg="philox") < probability
    together, *alone = tf.unstack(is_drawn)
    if dropping == "joint":
        several = len(codes) > 1
        alone = [together | own if several else together for own in alone]
    return {
        name: tf.where(is_dropped, null_codes[name], of_cells)
        for is_dropped, (name, of_cells) in zip(alone, codes.items(), strict=True)
    }
