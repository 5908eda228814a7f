"""Pairs of sides of which nothing but principal components is known."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from cellgan.evaluation.comparison.pairs import Frame, Pair, Resamples, Side, make_pair


def side_of(components, labels=None) -> Side:
    components = np.asarray(components, np.float32)
    n_cells = len(components)
    nothing = sp.csr_array((n_cells, 1), dtype=np.float32)
    return Side(
        values=nothing,
        log_values=nothing,
        genes=np.zeros((n_cells, 1), np.float32),
        components=components,
        labels=np.full(n_cells, "") if labels is None else np.asarray(labels),
    )


def frame_of(bandwidths=(1.0,)) -> Frame:
    return Frame(
        training=side_of(np.zeros((1, 1))),
        space=None,
        gene_names=(),
        bandwidths=bandwidths,
        are_counts=True,
        seed=0,
    )


def pair_of(real, other, *, n_resamples=0, bandwidths=(1.0,)) -> Pair:
    frame = frame_of(bandwidths)
    return make_pair(side_of(real), side_of(other), frame, n_resamples)


def pair_with_draws(real, other, of_real, of_other, bandwidths=(1.0,)) -> Pair:
    """Return a pair whose resamples after row 0 are the given multiplicities."""
    draws = Resamples(
        *(
            np.vstack([np.ones(len(cells)), np.asarray(rows, np.float64)])
            for cells, rows in ((real, of_real), (other, of_other))
        )
    )
    return Pair(side_of(real), side_of(other), frame_of(bandwidths), draws)


def normal(n_cells, n_components, *, seed, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n_cells, n_components)) + shift
