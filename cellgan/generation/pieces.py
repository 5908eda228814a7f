"""Cells that are too many to be made, or read, at once: consecutive pieces of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from cellgan.models.base import GenerationRequest, Mixture

MOST_VALUES = 2**23
"""Values of a dense piece, at most: 32 MB as float32."""
MOST_CELLS = 4096
"""Cells of a piece, at most."""


def piece_size(n_features: int) -> int:
    """Return how many cells to make at once.

    A power of two, so that a piece holds whole batches of the model.
    """
    size = MOST_CELLS
    while size > 1 and size * n_features > MOST_VALUES:
        size //= 2
    return size


def row_slices(n_cells: int, size: int, *, task: str | None = None) -> Iterator[slice]:
    """Yield the rows of one piece after the other.

    Parameters
    ----------
    task
        What a bar of progress is called, which appears after 2 s; None for no bar.
    """
    with tqdm(
        total=n_cells,
        unit=" cells",
        delay=2,
        unit_scale=True,
        desc=task,
        disable=task is None,
    ) as bar:
        for first in range(0, n_cells, size):
            rows = slice(first, min(first + size, n_cells))
            yield rows
            bar.update(rows.stop - first)


def request_rows(request: GenerationRequest, rows: slice) -> GenerationRequest:
    """Return what is asked for of some consecutive cells of a request."""
    parts: dict[str, Any] = {
        "covariates": request.covariates,
        "library_sizes": request.library_sizes,
        "source": request.source,
    }
    parts = tf.nest.map_structure(
        lambda values: None if values is None else values[rows], parts
    )
    mixture = request.mixture
    if mixture is not None:
        mixture = Mixture(mixture.covariate, mixture.codes[rows], mixture.shares[rows])
    return dataclasses.replace(
        request,
        **parts,
        mixture=mixture,
        first_cell=request.first_cell + rows.start,
        n_cells=rows.stop - rows.start,
    )
