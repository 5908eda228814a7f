from __future__ import annotations

import numpy as np
import tensorflow as tf

from cellgan.layers.covariate_embedding import CovariateEmbedding


def make_embedding(n_categories: int = 3, width: int = 4) -> CovariateEmbedding:
    embedding = CovariateEmbedding(n_categories, width, seed=1)
    embedding.build()
    return embedding


def test_cells_get_the_vector_of_their_category():
    embedding = make_embedding()
    found = embedding(tf.constant([2, 0, 2]))
    np.testing.assert_array_equal(found, np.asarray(embedding.table)[[2, 0, 2]])


def test_null_code_adds_exactly_zero():
    embedding = make_embedding()
    found = embedding(tf.constant([1, embedding.table.shape[0]]))
    np.testing.assert_array_equal(found[0], np.asarray(embedding.table)[1])
    np.testing.assert_array_equal(found[1], np.zeros(4))


def test_null_code_gets_no_gradient():
    embedding = make_embedding()
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(embedding(tf.constant([3, 1, 3])))
    gradient = tape.gradient(total, embedding.table.value)
    np.testing.assert_array_equal(gradient, [[0] * 4, [1] * 4, [0] * 4])


def test_lookup_compiles_by_xla():
    embedding = make_embedding()
    codes = tf.constant([2, 3, 0])
    compiled = tf.function(embedding, jit_compile=True)
    np.testing.assert_array_equal(compiled(codes), embedding(codes))


def test_initial_vectors_are_standard_normal_and_repeat_by_seed():
    first, second = (np.asarray(make_embedding(200, 100).table) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    # 5 standard errors of mean and variance of 20,000 values
    assert abs(first.mean()) < 5 / np.sqrt(20_000)
    assert abs(first.var() - 1) < 5 * np.sqrt(2 / 20_000)
