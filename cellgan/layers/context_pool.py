"""Matrices by category, and products with them that cost nothing for absent ones.

Rows are multiplied each by the matrix of its category. They are sorted into tiles of a
fixed height, all rows of a tile of one category, and all tiles are multiplied at once:
only matrices of categories that occur are read. XLA needs shapes that no value decides;
for it there are as many tiles as there can be (`is_static`), some of them left over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

NO_CATEGORY = -1
"""Of tiles and of slots that are left over."""
PRODUCT_ROWS = 16
"""Rows of a tile in products, at most: more are multiplied faster, until most tiles are
half empty."""
GRADIENT_ROWS = (8, 64)
"""Rows of a tile in gradients, at least and at most."""


class Tiles(NamedTuple):
    """How the rows of a batch are sorted into tiles of one category each."""

    slots: tf.Tensor
    """``(n_rows,)`` int32: where each row is among the rows of all tiles."""
    sources: tf.Tensor
    """``(n_tiles * height,)`` int32: number of the row, from 1, that each row of a tile
    is; 0 of those that are left over."""
    categories: tf.Tensor
    """``(n_tiles,)`` int32; `NO_CATEGORY` of tiles that are left over."""
    height: int
    """Rows of a tile."""


class SlotGradients(NamedTuple):
    """Gradients of the matrices that a batch has touched, and of which they are."""

    values: tf.Tensor
    """``(n_slots, n_latent, n_latent)``."""
    categories: tf.Tensor
    """``(n_slots,)`` int32; `NO_CATEGORY` of slots that are left over."""


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


def tile_rows(
    codes: tf.Tensor, n_categories: int, height: int, *, is_static: bool = False
) -> Tiles:
    """Sort rows into tiles of one category each.

    Parameters
    ----------
    codes
        Category of each row, ``(n_rows,)`` int32, from 0 to ``n_categories - 1``.
    n_categories
        Number of categories there are.
    height
        Rows of a tile.
    is_static
        Make as many tiles as there can be with so many rows and categories; otherwise
        as many as there are.
    """
    n_rows = tf.shape(codes)[0]
    order = tf.argsort(codes, stable=True)
    ordered = tf.gather(codes, order)
    rank = tf.range(n_rows) - tf.searchsorted(ordered, ordered, side="left")
    row_in_tile = rank % height
    tile = tf.cumsum(tf.cast(row_in_tile == 0, tf.int32)) - 1
    place = tile * height + row_in_tile
    slots = tf.scatter_nd(order[:, None], place, (n_rows,))
    if is_static:
        rows = codes.shape[0]
        n_tiles = min(rows, rows // height + n_categories)
        categories = tf.math.unsorted_segment_max(ordered, tile, n_tiles)
        categories = tf.maximum(categories, NO_CATEGORY)
    else:
        categories = tf.math.segment_max(ordered, tile)
        n_tiles = tf.shape(categories)[0]
    sources = tf.scatter_nd(place[:, None], order + 1, (n_tiles * height,))
    return Tiles(slots, sources, categories, height)


def product_tiles(codes: tf.Tensor, n_categories: int, *, is_static: bool) -> Tiles:
    """Sort rows into tiles of the height for products."""
    height = PRODUCT_ROWS
    if codes.shape[0] is not None:
        height = max(1, min(height, codes.shape[0] // n_categories))
    return tile_rows(codes, n_categories, height, is_static=is_static)


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
        As `matrices_of` returns them. No gradient flows into them:
        `gradients_by_category` finds that of several products at once.

    Returns
    -------
    ``(n_rows, n_latent)``: ``rows[i] @ pool[codes[i]]``.
    """

    def product(rows: tf.Tensor, *, is_transposed: bool = False) -> tf.Tensor:
        # rows left over are multiplied too, whatever they hold, and never read
        in_tiles = _in_tiles(rows, tf.maximum(tiles.sources - 1, 0), tiles)
        products = tf.matmul(in_tiles, matrices, transpose_b=is_transposed)
        return tf.gather(tf.reshape(products, (-1, products.shape[-1])), tiles.slots)

    @tf.custom_gradient
    def of_rows(rows: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        return product(rows), lambda slopes: product(slopes, is_transposed=True)

    return of_rows(rows)


def gradients_by_category(
    rows: tf.Tensor,
    slopes: tf.Tensor,
    codes: tf.Tensor,
    n_categories: int,
    *,
    is_static: bool,
) -> SlotGradients:
    """Return the gradients of the matrices that rows were multiplied by.

    Parameters
    ----------
    rows
        What was multiplied, in all products, ``(n_rows, n_latent)``.
    slopes
        Gradients of the results, ``(n_rows, n_latent)``.
    codes
        Categories, ``(n_rows,)`` int32.
    n_categories
        Number of categories there are.
    is_static
        As of `tile_rows`.

    Returns
    -------
    ``rows^T slopes`` of every category that occurs, each in a slot of its own.
    """
    least, most = GRADIENT_ROWS
    height = most
    if codes.shape[0] is not None:
        height = min(max(codes.shape[0] // n_categories, least), most)
    tiles = tile_rows(codes, n_categories, height, is_static=is_static)
    rows, slopes = (
        _in_tiles(tf.pad(of, [(1, 0), (0, 0)]), tiles.sources, tiles)
        for of in (rows, slopes)
    )
    values = tf.matmul(rows, slopes, transpose_a=True)
    categories = tiles.categories
    is_first = tf.concat([[True], categories[1:] != categories[:-1]], axis=0)
    slot = tf.cumsum(tf.cast(is_first, tf.int32)) - 1
    if is_static:
        # tiles left over come last, in a slot of their own if there is one left
        n_slots = min(categories.shape[0], n_categories)
        slot = tf.where(categories < 0, NO_CATEGORY, slot)
        found = tf.math.unsorted_segment_max(categories, slot, n_slots)
        summed = tf.math.unsorted_segment_sum(values, slot, n_slots)
        return SlotGradients(summed, tf.maximum(found, NO_CATEGORY))
    return tf.cond(
        slot[-1] + 1 == tf.shape(slot)[0],
        lambda: SlotGradients(values, categories),
        lambda: SlotGradients(
            tf.math.segment_sum(values, slot), tf.math.segment_max(categories, slot)
        ),
    )


def _in_tiles(rows: tf.Tensor, places: tf.Tensor, tiles: Tiles) -> tf.Tensor:
    """Return the rows of all tiles, ``(n_tiles, height, n_latent)``."""
    shape = (tf.shape(tiles.categories)[0], tiles.height, rows.shape[1])
    return tf.reshape(tf.gather(rows, places), shape)
