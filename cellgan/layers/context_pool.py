"""Matrices by category, and products with them that cost nothing for absent ones.

Rows are multiplied each by the matrix of its category. They are sorted into tiles of a
fixed height, all rows of a tile of one category, and every tile is multiplied at once:
shapes depend on the numbers of rows and categories alone, so XLA compiles it, and only
matrices of categories that occur are read.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

NO_CATEGORY = -1
"""Of tiles and of slots that are left over."""
MOST_ROWS_PER_TILE = 8


class Tiles(NamedTuple):
    """How the rows of a batch are sorted into tiles of one category each."""

    slots: tf.Tensor
    """``(n_rows,)`` int32: where each row is among the rows of all tiles."""
    categories: tf.Tensor
    """``(n_tiles,)`` int32; `NO_CATEGORY` of tiles that are left over."""
    height: int
    """Rows of a tile."""


class SlotGradients(NamedTuple):
    """Gradients of the matrices that a batch has touched, and of which they are."""

    values: tf.Tensor
    """``(n_slots, n_latent, n_latent)``; of slots without a category they are 0."""
    categories: tf.Tensor
    """``(n_slots,)`` int32: rising, then `NO_CATEGORY`; or every category at its own
    place, `NO_CATEGORY` where it is absent."""


class UnitRows(keras.initializers.Initializer):
    """Uniform from 0 to 1, then scaled to norm 1 along the last axis.

    Parameters
    ----------
    seed
        Of the draws.

    Notes
    -----
    A product with such a kernel gives every input the same weight; the last axis is
    that of the outputs.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, shape: tuple[int, ...], dtype: str | None = None) -> tf.Tensor:
        """Draw a kernel of any shape."""
        seed = tf.constant((self.seed, 0), tf.int32)
        values = tf.random.stateless_uniform(
            shape, seed, dtype=dtype or "float32", alg="philox"
        )
        norm = tf.norm(values, axis=-1, keepdims=True)
        return values / tf.maximum(norm, tf.constant(1e-12, values.dtype))

    def get_config(self) -> dict[str, int]:
        """Return the constructor's arguments."""
        return {"seed": self.seed}


def tile_rows(codes: tf.Tensor, n_categories: int) -> Tiles:
    """Sort rows into tiles of one category each.

    Parameters
    ----------
    codes
        Category of each row, ``(n_rows,)`` int32, from 0 to ``n_categories - 1``.
    n_categories
        Number of categories there are.

    Returns
    -------
    At most ``n_rows`` tiles, and no more than there can be with so many categories.
    """
    n_rows = codes.shape[0] if codes.shape[0] is not None else tf.shape(codes)[0]
    height = MOST_ROWS_PER_TILE
    if isinstance(n_rows, int):
        height = max(1, min(height, n_rows // n_categories))
        n_tiles: int | tf.Tensor = min(n_rows, n_rows // height + n_categories)
    else:
        n_tiles = tf.minimum(n_rows, n_rows // height + n_categories)
    order = tf.argsort(codes, stable=True)
    ordered = tf.gather(codes, order)
    rank = tf.range(n_rows) - tf.searchsorted(ordered, ordered, side="left")
    row_in_tile = rank % height
    tile = tf.cumsum(tf.cast(row_in_tile == 0, tf.int32)) - 1
    slots = tf.scatter_nd(order[:, None], tile * height + row_in_tile, (n_rows,))
    categories = tf.math.unsorted_segment_max(ordered, tile, n_tiles)
    return Tiles(slots, tf.maximum(categories, NO_CATEGORY), height)


def matrices_of(pool: tf.Tensor, tiles: Tiles) -> tf.Tensor:
    """Return the matrix of every tile, ``(n_tiles, n_latent, n_latent)``.

    Parameters
    ----------
    pool
        Matrices of all categories, ``(n_categories, n_latent, n_latent)``.
    tiles
        Those left over get the first matrix.
    """
    return tf.gather(pool, tf.maximum(tiles.categories, 0))


def product_by_category(
    rows: tf.Tensor, matrices: tf.Tensor, tiles: Tiles
) -> tf.Tensor:
    """Multiply each row by the matrix of its category.

    Parameters
    ----------
    rows
        ``(n_rows, n_latent)``.
    matrices
        As `matrices_of` returns them.

    Returns
    -------
    ``(n_rows, n_latent)``: ``rows[i] @ pool[codes[i]]``.
    """
    width = rows.shape[1]
    n_tiles = tf.shape(matrices)[0]
    places = tiles.slots[:, None]
    in_tiles = tf.scatter_nd(places, rows, (n_tiles * tiles.height, width))
    in_tiles = tf.reshape(in_tiles, (n_tiles, tiles.height, width))
    return tf.gather(tf.reshape(in_tiles @ matrices, (-1, width)), tiles.slots)


def gradients_by_category(
    gradients: tf.Tensor, categories: tf.Tensor, n_categories: int
) -> SlotGradients:
    """Sum the gradients of matrices that are of the same category.

    Parameters
    ----------
    gradients
        Of the matrices of tiles, ``(n_tiles, n_latent, n_latent)``.
    categories
        ``(n_tiles,)`` int32, `NO_CATEGORY` where a tile is left over.
    n_categories
        Number of categories there are.

    Returns
    -------
    One slot per category; one per tile, if that is fewer.
    """
    n_tiles = categories.shape[0]
    if n_tiles is None or n_categories <= n_tiles:
        values = tf.math.unsorted_segment_sum(gradients, categories, n_categories)
        present = tf.math.unsorted_segment_max(categories, categories, n_categories)
        return SlotGradients(values, tf.maximum(present, NO_CATEGORY))
    # left over ones go last
    key = tf.where(categories < 0, n_categories, categories)
    ordered = tf.sort(key)
    is_first = tf.concat([[True], ordered[1:] != ordered[:-1]], axis=0)
    slot_of_ordered = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
    slot = tf.gather(slot_of_ordered, tf.searchsorted(ordered, key, side="left"))
    slot = tf.where(categories < 0, NO_CATEGORY, slot)
    values = tf.math.unsorted_segment_sum(gradients, slot, n_tiles)
    found = tf.math.unsorted_segment_max(categories, slot, n_tiles)
    return SlotGradients(values, tf.maximum(found, NO_CATEGORY))
