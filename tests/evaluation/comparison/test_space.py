"""The space of comparison: scaling, variable genes, components."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellgan.evaluation.comparison.space import (
    CELLS_PER_COMPONENT,
    FEWEST_COMPONENTS,
    LARGEST_CENTRED,
    N_COMPONENTS,
    fit_space,
    log_expression,
    most_variable_genes,
    scale_cells,
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
    np.testing.assert_array_equal(
        most_variable_genes(sp.csr_array(values), 5), [1, 2, 0]
    )


def test_variable_genes_are_scanpy_s_when_there_are_many():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2.0, 1.0, size=200), size=(300, 200)).astype(float)
    marked = np.arange(0, 200, 20)
    counts[:150, marked] *= 5
    logged = log_expression(sp.csr_array(counts))
    chosen = most_variable_genes(logged, 10)
    # by chance 0.5: few genes of like mean are in a bin, so not all are found
    assert len(set(marked) & set(chosen)) >= 3
    assert len(chosen) == 10
    variances = logged.toarray()[:, chosen].var(axis=0)
    assert (np.diff(variances) <= 0).all()


def test_peaks_are_chosen_by_variance_alone():
    values = np.zeros((100, 4))
    values[::2, 2] = 1.0  # half of the cells have it
    values[::4, 0] = 1.0
    values[0, 1] = 1.0
    chosen = most_variable_genes(sp.csr_array(values), 2, by_dispersion=False)
    np.testing.assert_array_equal(chosen, [2, 0])


def test_both_sides_go_through_one_scaler():
    logged = log_expression(make_cells().counts)
    space = fit_space(logged, seed=0, n_components=5)
    shifted = space.components(logged.toarray() + 1.0)
    moved = (shifted - space.components(logged)).mean(axis=0)
    expected = space.pca.components_.sum(axis=1)
    np.testing.assert_allclose(moved, expected, rtol=1e-2, atol=1e-2)


def test_outliers_are_clipped():
    logged = log_expression(make_cells().counts).toarray()
    space = fit_space(logged, seed=0, n_components=5)
    far, further = logged[:1].copy(), logged[:1].copy()
    far[0, 0], further[0, 0] = 1e3, 1e6
    assert far[0, 0] - logged.max() > LARGEST_CENTRED
    np.testing.assert_allclose(space.components(far), space.components(further))


@pytest.mark.parametrize("n_cells", [8, 100])
def test_components_are_at_most_as_many_as_cells_and_genes(n_cells):
    logged = log_expression(make_cells(n_cells, n_genes=30).counts)
    space = fit_space(logged, seed=0, n_components=50)
    assert space.components(logged).shape == (n_cells, min(n_cells, 30))


@pytest.mark.parametrize(
    ("n_cells", "expected"),
    [
        (4, 4),
        (100, FEWEST_COMPONENTS),
        (20 * CELLS_PER_COMPONENT, 20),
        (100 * CELLS_PER_COMPONENT, N_COMPONENTS),
    ],
)
def test_components_are_as_many_as_cells_can_teach(n_cells, expected):
    logged = log_expression(make_cells(n_cells, n_genes=60).counts)
    assert fit_space(logged, seed=0).n_components == expected


def noise(n_cells: int, seed: int) -> sp.csr_array:
    """Draw cells in which no gene goes with another."""
    counts = np.random.default_rng(seed).poisson(2.0, size=(n_cells, 300))
    return log_expression(sp.csr_array(counts.astype(np.float32)))


def test_training_cells_spread_in_components_as_new_ones_do():
    training, fresh = noise(500, 0), noise(500, 1)
    space = fit_space(training, seed=0)
    ours, theirs = (
        space.components(cells).var(axis=0).sum() for cells in (training, fresh)
    )
    everything = fit_space(training, seed=0, n_components=N_COMPONENTS)
    over, under = (
        everything.components(cells).var(axis=0).sum() for cells in (training, fresh)
    )
    # noise alone, the worst case: what components add up to is what can be avoided
    assert ours - theirs < 0.15 * (over - under)
