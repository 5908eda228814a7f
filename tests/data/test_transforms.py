"""Scales of expression."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cellgan.data.transforms import normalize_library_size

counts_matrices = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.integers(0, 10_000).map(float),
)
targets = st.sampled_from([1, 1000, 20_000])


def test_normalize_library_size_scales_each_cell_to_the_target() -> None:
    counts = tf.constant([[1.0, 3.0, 0.0], [10.0, 0.0, 10.0]])

    expression = normalize_library_size(counts, tf.constant([4.0, 20.0]), 100)

    assert expression.numpy().tolist() == [[25.0, 75.0, 0.0], [50.0, 0.0, 50.0]]


def test_cell_without_counts_stays_zero() -> None:
    counts, library_size = tf.zeros((2, 3)), tf.zeros(2)

    expression = normalize_library_size(counts, library_size, 100)

    assert expression.numpy().tolist() == [[0.0] * 3] * 2


@settings(deadline=None)
@given(counts_matrices, targets)
def test_normalizing_keeps_the_shares_of_genes(counts: np.ndarray, target: int) -> None:
    library_size = counts.sum(axis=1)

    expression = normalize_library_size(tf.constant(counts), library_size, target)
    restored = expression * (library_size / target)[:, np.newaxis]

    np.testing.assert_allclose(restored, counts, rtol=1e-6)
    totals = np.where(library_size > 0, target, 0)
    np.testing.assert_allclose(expression.numpy().sum(axis=1), totals, rtol=1e-5)


def test_compiled_transform_equals_the_eager_one() -> None:
    values = tf.constant([[1.0, 3.0, 0.5], [0.0, 0.0, 0.0], [7.0, 11.0, 13.0]])
    library_size = tf.constant([4.5, 0.0, 31.0])
    compiled = tf.function(normalize_library_size, jit_compile=True)

    np.testing.assert_allclose(
        compiled(values, library_size, 20_000),
        normalize_library_size(values, library_size, 20_000),
        rtol=1e-6,
    )
