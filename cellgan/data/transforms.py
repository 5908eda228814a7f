"""Scales of expression, as TensorFlow functions that any compiled step may use.

Every transform of cells that a model makes has its inverse here; what encoders are
given of counts (`encoder_input`) has none. Cells are rows; a cell without counts stays
a row of zeros.
"""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

InputTransform = Literal[
    "log1p", "proportions", "log1p_proportions", "log1p_per_10000", "none"
]
PER_10000 = 10_000.0


def normalize_library_size(
    counts: tf.Tensor, library_size: tf.Tensor, target_library_size: float
) -> tf.Tensor:
    """Scale each cell's counts to the target library size.

    Parameters
    ----------
    counts
        ``(n_cells, n_genes)`` float.
    library_size
        ``(n_cells,)``: totals of `counts`.
    target_library_size
        Total of every scaled cell that has counts.

    Returns
    -------
    ``(n_cells, n_genes)``: ``counts * target_library_size / library_size``.
    """
    target = tf.constant(target_library_size, counts.dtype)
    factor = tf.math.divide_no_nan(target, library_size)
    return counts * factor[:, tf.newaxis]


def encoder_input(counts: tf.Tensor, transform: InputTransform) -> tf.Tensor:
    """Return what an encoder is given of counts.

    Parameters
    ----------
    counts
        ``(n_cells, n_features)`` float.
    transform
        - ``"log1p"``: ``log(1 + x)``, not scaled by the total;
        - ``"proportions"``: ``x / s``, with ``s`` the total of the cell;
        - ``"log1p_proportions"``: ``log(1 + x / s)``;
        - ``"log1p_per_10000"``: ``log(1 + 10,000 x / s)``;
        - ``"none"``: ``x``, for features that are 0 or 1.

    Notes
    -----
    CFGen's names are ``log_gexp``, ``proportions`` and ``log_gexp_scaled``.
    """
    if transform not in ("log1p", "none"):
        target = PER_10000 if transform == "log1p_per_10000" else 1
        counts = normalize_library_size(counts, tf.reduce_sum(counts, axis=1), target)
    return tf.math.log1p(counts) if transform.startswith("log1p") else counts
