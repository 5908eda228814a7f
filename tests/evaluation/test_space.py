"""The space of comparison: scaling, variable genes, components."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellgan.evaluation.space import (
    LARGEST_SCALED,
    fit_space,
    log_expression,
    scale_cells,
    variable_genes,
)
from tests.synthetic import make_cells


def test_log_expression_is_log1p_at_the_library_size():
    counts = np.array([[1.0, 3.0], [0.0, 2.0]])
    logged = log_expression(sp.csr_matrix(counts), 100).toarray()
    expected = np.log1p(np.array([[25.0, 75.0], [0.0, 100.0]]))
    np.testing.assert_allclose(logged, expected, rtol=1e-6)


def test_cell_without_counts_stays_zero():
    scaled = scale_cells(sp.csr_matrix(np.array([[0.0, 0.0], [1.0, 1.0]])), 10)
    np.testing.assert_array_equal(scaled.toarray(), [[0, 0], [5, 5]])


def test_scaling_leaves_its_input_as_it_is():
    counts = make_cells().counts
    before = counts.copy()
    log_expression(counts)
    assert (counts != before).nnz == 0


def test_all_genes_are_kept_when_they_are_few_the_most_variable_first():
    values = np.array([[0.0, 0.0, 1.0], [0.0, 4.0, 2.0], [0.0, 8.0, 3.0]])
    np.testing.assert_array_equal(variable_genes(sp.csr_array(values), 5), [1, 2, 0])


def test_variable_genes_are_scanpy_s_when_there_are_many():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2.0, 1.0, size=200), size=(300, 200)).astype(float)
    marked = np.arange(0, 200, 20)
    counts[:150, marked] *= 5
    logged = log_expression(sp.csr_array(counts))
    chosen = variable_genes(logged, 10)
    # by chance 0.5: few genes of like mean are in a bin, so not all are found
    assert len(set(marked) & set(chosen)) >= 3
    assert len(chosen) == 10
    variances = logged.toarray()[:, chosen].var(axis=0)
    assert (np.diff(variances) <= 0).all()


def test_both_sides_go_through_one_scaler():
    logged = log_expression(make_cells().counts)
    space = fit_space(logged, seed=0, n_components=5)
    shifted = space.components(logged.toarray() + 1.0)
    moved = (shifted - space.components(logged)).mean(axis=0)
    scaled = 1.0 / space.scaler.scale_
    expected = space.pca.components_ @ scaled
    np.testing.assert_allclose(moved, expected, rtol=1e-2, atol=1e-2)


def test_outliers_are_clipped_after_scaling():
    logged = log_expression(make_cells().counts).toarray()
    space = fit_space(logged, seed=0, n_components=5)
    far, further = logged[:1].copy(), logged[:1].copy()
    far[0, 0], further[0, 0] = 1e3, 1e6
    assert (far[0, 0] - logged.mean()) / logged.std() > LARGEST_SCALED
    np.testing.assert_allclose(space.components(far), space.components(further))


@pytest.mark.parametrize("n_cells", [8, 100])
def test_components_are_at_most_as_many_as_cells_and_genes(n_cells):
    logged = log_expression(make_cells(n_cells, n_genes=30).counts)
    space = fit_space(logged, seed=0)
    assert space.components(logged).shape == (n_cells, min(n_cells, 30))
