"""Floors keep what they say and lose the rest."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellgan.evaluation.comparison.floors import floor_cells
from tests.evaluation.sides import draw_cells, population


@pytest.fixture(scope="module")
def cells():
    training, control = population(), draw_cells(seed=1, n_cells=2000)
    return training, control


def make(floor, cells, seed: int = 0):
    training, control = cells
    values = floor_cells(
        floor,
        sp.csr_array(training.counts),
        training.labels,
        sp.csr_array(control.counts),
        control.labels,
        seed=seed,
    )
    return values.toarray()


def correlations(values):
    found = np.corrcoef(values.T)
    return np.abs(found[np.triu_indices(len(found), 1)])


def test_permuted_genes_keep_every_gene_s_values(cells):
    made = make("permuted", cells)
    real = cells[1].counts.toarray()
    np.testing.assert_array_equal(np.sort(made, axis=0), np.sort(real, axis=0))


def test_permuted_genes_are_independent(cells):
    # 5 standard errors of a correlation over 2,000 cells
    assert correlations(make("permuted", cells)).max() < 5 / np.sqrt(2000)


def test_label_means_are_the_means_of_the_training_cells(cells):
    training, control = cells
    made = make("label_means", cells)
    label = control.labels[0]
    expected = training.counts[training.labels == label].toarray().mean(axis=0)
    np.testing.assert_allclose(made[0], expected, rtol=1e-5)
    assert np.ptp(made[control.labels == label], axis=0).max() == 0


def test_independent_genes_have_mean_and_variance_of_their_label(cells):
    training, control = cells
    made = make("independent", cells)
    label = "type C"
    real = training.counts[training.labels == label].toarray()
    drawn = made[control.labels == label]
    error = real.std(axis=0) * np.sqrt(1 / len(real) + 1 / len(drawn))
    assert (np.abs(drawn.mean(axis=0) - real.mean(axis=0)) < 5 * error).all()
    # the variance of a variance of 1,000 negative binomial values: about 8 %
    np.testing.assert_allclose(drawn.var(axis=0), real.var(axis=0), rtol=0.5)
    assert np.median(drawn.var(axis=0) / real.var(axis=0)) == pytest.approx(1, abs=0.05)


def test_independent_genes_are_integers_that_vary_independently_within_a_label(cells):
    made = make("independent", cells)
    drawn = made[cells[1].labels == "type C"]
    assert (made == np.rint(made)).all()
    assert correlations(drawn).max() < 5 / np.sqrt(len(drawn))


def test_gene_without_overdispersion_is_poisson():
    rng = np.random.default_rng(0)
    counts = sp.csr_array(rng.binomial(20, 0.5, size=(500, 1)).astype(np.float32))
    one = np.full(500, "a")
    made = floor_cells("independent", counts, one, counts, one, seed=0).toarray()
    # variance of binomial 5, of Poisson 10; 5 standard errors are 3.2
    assert made.var() == pytest.approx(10, abs=3.2)


@pytest.mark.parametrize("floor", ["independent", "permuted", "label_means"])
def test_floor_is_a_function_of_its_seed(cells, floor):
    np.testing.assert_array_equal(make(floor, cells, 1), make(floor, cells, 1))
