"""Library-size-normalised cells -> integer counts.

A cell gets a library size drawn from the training cells, its expression is scaled to
it, and the expected counts are rounded at random. All draws of cell ``i`` come from
(seed, i) alone: the uniform number of a cell has its own place in a counter-based
stream, so a request may be cut into pieces of any sizes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.seeds import derive_seed

PHILOX_BLOCK = 4
"""Numbers that Philox makes per counter; it can only be advanced by whole blocks."""
VALUES_AT_ONCE = 2**18
"""Values rounded at once: 2 MB of float64 sums, which stay in the processor's cache."""


def to_counts(
    expression: npt.NDArray[np.float32],
    codes: npt.NDArray[np.int32] | None,
    manifest: DatasetManifest,
    *,
    seed: int,
    first_cell: int,
) -> npt.NDArray[np.float32]:
    """Turn expression into integer counts with library sizes like the training cells'.

    Parameters
    ----------
    expression
        Non-negative, ``(n_cells, n_genes)``, any library size.
    codes
        Label code of each cell, ``(n_cells,)``; its library size is drawn from the
        training cells of that label. None draws from all training cells.
    manifest
        Holds the library sizes; `requests.check_library_sizes` has found them
        complete.
    seed
        Seed of the request.
    first_cell
        Position of the first row in the request.

    Returns
    -------
    ``(n_cells, n_genes)``, whole numbers. Rows sum to the drawn library sizes, except
    that a row of zeros stays so.
    """
    n_cells = len(expression)
    size_draws = uniform(derive_seed(seed, "library_size"), first_cell, n_cells)
    if codes is None:
        codes, size_draws = split_draws(size_draws, manifest.label_ratios)
    sizes = invert_library_sizes(size_draws, codes, manifest.library_sizes[RNA])
    rounding_draws = uniform(derive_seed(seed, "rounding"), first_cell, n_cells)
    return round_to_totals(expression, sizes, rounding_draws)


def uniform(seed: int, first: int, n_draws: int) -> npt.NDArray[np.float64]:
    """Return numbers ``first`` to ``first + n_draws - 1`` of a stream, in [0, 1).

    Parameters
    ----------
    seed
        Names the stream; positive.
    first
        Position of the first number; reaching it costs nothing.
    """
    block, skipped = divmod(first, PHILOX_BLOCK)
    stream = np.random.Philox(key=seed)
    stream.advance(block)
    raw = stream.random_raw(skipped + n_draws)[skipped:]
    return np.ldexp((raw >> np.uint64(11)).astype(np.float64), -53)


def split_draws(
    draws: npt.NDArray[np.float64], ratios: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Spend one uniform number on both a label and a uniform number within it.

    Parameters
    ----------
    draws
        In [0, 1), ``(n_cells,)``.
    ratios
        Probability of each label, ``(n_categories,)``.

    Returns
    -------
    Label codes, and where in its label's share of [0, 1) each draw lies, in [0, 1].
    """
    upper = np.cumsum(ratios)
    upper /= upper[-1]
    codes = np.searchsorted(upper, draws, side="right")
    lower = np.concatenate([[0.0], upper[:-1]])
    within = (draws - lower[codes]) / (upper - lower)[codes]
    return codes.astype(np.int32), within


def invert_library_sizes(
    draws: npt.NDArray[np.float64],
    codes: npt.NDArray[np.int32],
    quantiles: Sequence[Sequence[float]],
) -> npt.NDArray[np.int64]:
    """Draw library sizes by inverting their distribution function.

    Parameters
    ----------
    draws
        Uniform numbers, ``(n_cells,)``.
    codes
        Label code of each cell, ``(n_cells,)``.
    quantiles
        For each label, evenly spaced quantiles (0 to 1) of the library sizes; the
        function is linear between them.

    Returns
    -------
    ``(n_cells,)``, at least 1.
    """
    sizes = np.empty(len(codes))
    for code in np.unique(codes):
        cells = codes == code
        table = quantiles[code]
        sizes[cells] = np.interp(draws[cells], np.linspace(0, 1, len(table)), table)
    return np.maximum(np.rint(sizes), 1).astype(np.int64)


def round_to_totals(
    expression: npt.NDArray[np.float32],
    totals: npt.NDArray[np.int64],
    draws: npt.NDArray[np.float64],
) -> npt.NDArray[np.float32]:
    """Scale rows to whole totals and round them at random without changing the total.

    Systematic rounding: with ``S_g`` the expected counts summed up to gene ``g`` and
    one uniform ``u`` per cell, gene ``g`` gets ``floor(S_g + u) - floor(S_{g-1} + u)``.
    That is the floor or the ceiling of its expectation, is right on average, and adds
    up to the total exactly.

    Parameters
    ----------
    expression
        Non-negative, ``(n_cells, n_genes)``.
    totals
        Library size of each cell, ``(n_cells,)``.
    draws
        Uniform numbers in [0, 1), ``(n_cells,)``.

    Returns
    -------
    Whole numbers of the shape of `expression`. A row of zeros stays so.

    References
    ----------
    Madow (1949), On the theory of systematic sampling II, Annals of Mathematical
    Statistics 20: sampling with unequal probabilities.
    """
    counts = np.empty(expression.shape, np.float32)
    n_rows = max(1, VALUES_AT_ONCE // expression.shape[1])
    for first in range(0, len(expression), n_rows):
        rows = slice(first, first + n_rows)
        sums = np.cumsum(expression[rows], axis=1, dtype=np.float64)
        row_total = sums[:, -1:].copy()
        row_total[row_total == 0] = 1
        # Dividing first makes the last sum exactly 1, and so the total exact.
        sums /= row_total
        sums *= totals[rows, None]
        sums += draws[rows, None]
        np.floor(sums, out=sums)
        # total + u may be rounded up to total + 1.
        np.minimum(sums, totals[rows, None], out=sums)
        counts[rows] = np.diff(sums, axis=1, prepend=0.0)
    return counts
