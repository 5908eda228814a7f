"""The dense stack: linear, shift, normalisation, activation, residual, dropout.

Networks own the layers, whose names are those of stored weights, and pass them in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import tensorflow as tf

from cellgan.layers.conditioning import (
    NORMALIZATION_EPSILON,
    RUNNING_DECAY,
    BatchNormalization,
    BatchStatistics,
    LayerNormalization,
    unbiased,
)
from cellgan.layers.linear import Linear

Normalization = Literal["batchnorm", "layernorm", "none"]
Norms = Sequence[BatchNormalization | LayerNormalization]


def normalizations(
    kind: Normalization,
    widths: Iterable[int],
    n_categories: int | None = None,
    *,
    epsilon: float = NORMALIZATION_EPSILON,
    dtype: str = "float32",
) -> list[BatchNormalization | LayerNormalization]:
    """Make the normalisation of every layer, ``norm_1`` and on; none of ``"none"``."""
    if kind == "none":
        return []
    kinds = {"batchnorm": BatchNormalization, "layernorm": LayerNormalization}
    return [
        kinds[kind](
            width, n_categories, epsilon=epsilon, name=f"norm_{index}", dtype=dtype
        )
        for index, width in enumerate(widths, start=1)
    ]


def normalize(
    norms: Norms,
    index: int,
    units: tf.Tensor,
    categories: tf.Tensor | None = None,
    *,
    training: bool,
) -> tuple[tf.Tensor, list[BatchStatistics]]:
    """Normalise by one of some norms, or by none if there are none.

    Returns
    -------
    The units, and the statistics of the batch that were used, if any were.
    """
    if not norms:
        return units, []
    norm = norms[index]
    if isinstance(norm, LayerNormalization):
        return norm(units, categories), []
    units, used = norm(units, categories, training=training)
    return units, [used]


def dense_stack(  # noqa: PLR0913  (what a layer does, one by one)
    inputs: tf.Tensor,
    linears: Sequence[Linear],
    norms: Norms,
    activate: Callable[[tf.Tensor, int], tf.Tensor],
    *,
    categories: tf.Tensor | None = None,
    shifts: Sequence[tf.Tensor] = (),
    residual: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    seed: tf.Tensor | None = None,
) -> tuple[tf.Tensor, list[BatchStatistics]]:
    """Take cells through hidden layers.

    Parameters
    ----------
    inputs
        ``(n_cells, n_inputs)``.
    linears, norms
        Of every layer; no norms for no normalisation.
    activate
        Of units ``(n_cells, width)`` and the number of their layer, from 0.
    categories
        One-hot rows that norms depend on; None without categories.
    shifts
        What is added to the units of the first layers before they are normalised.
    residual
        Add the input of every layer but the first to its output.
    dropout
        Share of units set to 0 in training.
    training
        Normalise by the statistics of this batch, and drop units.
    seed
        Stateless seed, ``(2,)`` int32, of the units to drop.

    Returns
    -------
    Units of the last layer, and the statistics used, with the biased variance.
    """
    hidden, statistics = inputs, []
    for index, linear in enumerate(linears):
        units = linear(hidden)
        if index < len(shifts):
            units += shifts[index]
        units, used = normalize(norms, index, units, categories, training=training)
        statistics += used
        units = activate(units, index)
        hidden = units + hidden if residual and index else units
        if training and dropout:
            hidden = drop_units(hidden, dropout, seed, index)
    return hidden, statistics


def drop_units(units: tf.Tensor, rate: float, seed: tf.Tensor, index: int) -> tf.Tensor:
    """Set a share of units to 0, by the seed and the number of their layer."""
    own = tf.random.experimental.stateless_fold_in(seed, index, alg="philox")
    return tf.nn.experimental.stateless_dropout(units, rate, own, rng_alg="philox")


def all_unbiased(
    statistics: Iterable[BatchStatistics], rows: tf.Tensor
) -> list[BatchStatistics]:
    """Return the statistics of a batch of rows with the unbiased variances."""
    n_rows = tf.shape(rows)[0]
    return [unbiased(used, n_rows) for used in statistics]


def update_norms(
    norms: Norms,
    statistics: Sequence[BatchStatistics],
    decay: float = RUNNING_DECAY,
) -> None:
    """Let running statistics take one step towards those of a batch.

    Layer normalisations, which have none, are passed over when `statistics` is empty.
    """
    for norm, used in zip(norms, statistics, strict=bool(statistics)):
        norm.update(used, decay)
