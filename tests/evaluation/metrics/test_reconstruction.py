"""Accuracy of reconstructions: golden numbers, closed forms, the undefined cases."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from cellgan.evaluation.metrics.reconstruction import (
    CellAccuracy,
    ResidualSums,
    accuracy_of_counts,
    accuracy_summary,
    cell_accuracy,
    log_normalized,
    log_shares,
    most_dispersed_genes,
    most_dispersed_of_counts,
    normalized_dispersions,
)
from tests.stored import stored_name

FILE = "ldvae.npz"
CHOSEN = stored_name(FILE, r"eval/out/(.+)_mask")
"""What the original calls the variable genes that it chose."""
PER = stored_name(FILE, r"eval/in/reconstruction_(.+)")
"""What the counts of a reconstructed cell sum to."""


@pytest.fixture(scope="module")
def golden(reference_dir):
    with np.load(reference_dir / FILE) as file:
        return {
            key.removeprefix("eval/"): file[key]
            for key in file.files
            if key.startswith("eval/")
        }


@pytest.fixture(scope="module")
def shares(golden):
    return golden[f"in/reconstruction_{PER}"] / float(PER)


@pytest.fixture(scope="module")
def n_chosen(golden) -> int:
    return int(golden[f"out/{CHOSEN}_mask"].sum())


def test_correlations_over_all_genes_equal_the_original(golden, shares) -> None:
    found = accuracy_of_counts(golden["in/counts"], shares, None)

    np.testing.assert_allclose(
        found.correlation, golden["out/correlation_all_genes"], rtol=1e-5
    )


def test_correlations_over_variable_genes_equal_the_original(
    golden, shares, n_chosen
) -> None:
    found = accuracy_of_counts(golden["in/counts"], shares, n_chosen)

    expected = golden[f"out/correlation_{CHOSEN}"]
    np.testing.assert_allclose(found.correlation, expected, rtol=1e-5)
    np.testing.assert_allclose(
        accuracy_summary(found).median_r2,
        golden[f"out/r2_median_{CHOSEN}"],
        rtol=1e-5,
    )


def test_variable_genes_equal_the_original(golden, n_chosen) -> None:
    observed = log_normalized(golden["in/counts"])

    found = normalized_dispersions(observed)

    expected = golden["out/hvg_normalized_dispersion"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    mask = golden[f"out/{CHOSEN}_mask"]
    np.testing.assert_array_equal(most_dispersed_genes(observed, n_chosen), mask)


def residual_table(counts, shares, genes):
    sums = ResidualSums()
    sums.add(counts, shares)
    return sums.table(genes)


@pytest.mark.parametrize(
    ("column", "stored"),
    [
        ("residual_mean", "residual_mean"),
        ("residual_variance", "residual_variance"),
        ("proportional_residual_mean", "proportional_residual_mean"),
        ("variance_ratio", "explained_variance"),
    ],
)
def test_residuals_equal_the_formula(golden, shares, column, stored) -> None:
    counts = golden["in/counts"]

    table = residual_table(counts, shares, np.arange(counts.shape[1]))

    np.testing.assert_allclose(
        table[column].to_numpy(), golden[f"out/{stored}"], rtol=1e-5, atol=1e-4
    )


def test_residuals_of_pieces_equal_those_of_all(golden, shares) -> None:
    counts = golden["in/counts"]
    genes = np.arange(counts.shape[1])
    sums = ResidualSums()

    for rows in (slice(0, 7), slice(7, 7), slice(7, None)):
        sums.add(sp.csr_matrix(counts[rows]), shares[rows])

    whole = residual_table(counts, shares, genes)
    np.testing.assert_allclose(
        sums.table(genes).to_numpy(), whole.to_numpy(), rtol=1e-9, atol=1e-9
    )


def test_a_gene_without_counts_has_no_ratios() -> None:
    counts = np.array([[4.0, 0.0], [2.0, 0.0]])

    table = residual_table(counts, [[0.9, 0.1], [0.9, 0.1]], ["a", "b"])

    assert np.isnan(table["proportional_residual_mean"].iloc[1])
    assert np.isnan(table["variance_ratio"].iloc[1])
    assert table["residual_mean"].iloc[1] == pytest.approx(-1000)


def test_residuals_of_no_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="no cells were added"):
        ResidualSums().table(["a"])


def test_cells_without_variation_have_no_correlation_and_are_counted() -> None:
    counts = np.array([[1.0, 2, 3], [0, 0, 0], [4, 4, 4], [5, 0, 1]])
    shares = np.array([[0.1, 0.3, 0.6], [0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [1 / 3] * 3])

    found = accuracy_of_counts(counts, shares, None)

    summary = accuracy_summary(found)
    np.testing.assert_array_equal(np.isnan(found.r2), [False, True, True, True])
    assert (summary.n_cells, summary.n_undefined) == (4, 3)
    assert summary.mean_r2 == found.r2[0]
    assert np.isnan(summary.r2_standard_error)


def test_summary_without_any_correlation_is_undefined() -> None:
    nothing = np.full(3, np.nan)

    summary = accuracy_summary(CellAccuracy(nothing, nothing))

    assert np.isnan(summary.median_r2)
    assert summary.n_undefined == 3


def test_sign_of_the_correlation_is_kept_beside_its_square() -> None:
    found = cell_accuracy([[1.0, 2, 3], [1, 2, 3]], [[2.0, 4, 6], [3, 2, 1]])

    np.testing.assert_allclose(found.correlation, [1, -1])
    np.testing.assert_allclose(found.r2, [1, 1])


def test_summary_has_the_standard_error_of_the_mean() -> None:
    correlation = np.array([0.0, np.sqrt(0.5), 1.0])

    summary = accuracy_summary(CellAccuracy(correlation, correlation**2))

    assert summary.mean_r2 == pytest.approx(0.5)
    assert summary.r2_standard_error == pytest.approx(0.5 / np.sqrt(3))


def test_counts_and_shares_meet_on_one_scale() -> None:
    counts = np.array([[1.0, 3.0], [0.0, 0.0]])

    found = log_normalized(counts)

    np.testing.assert_allclose(found[0], np.log1p([2500, 7500]))
    np.testing.assert_allclose(found[0], log_shares([0.25, 0.75]))
    np.testing.assert_array_equal(found[1], 0)


def test_genes_that_do_not_vary_are_never_chosen() -> None:
    rng = np.random.default_rng(0)
    values = np.log1p(rng.poisson(2, (30, 8)).astype(float))
    values[:, 3] = 0
    values[:, 5] = 1

    chosen = most_dispersed_genes(values, 100)

    np.testing.assert_array_equal(np.flatnonzero(~chosen), [3, 5])


def test_no_gene_is_chosen_where_none_varies() -> None:
    assert not most_dispersed_genes(np.ones((4, 3)), 2).any()


def test_variable_genes_of_sparse_counts_are_the_same(golden, n_chosen) -> None:
    counts = golden["in/counts"].copy()
    counts[:, 3] = 0
    counts[4] = 0

    found = most_dispersed_of_counts(sp.csr_matrix(counts), n_chosen)

    expected = most_dispersed_genes(log_normalized(counts), n_chosen)
    np.testing.assert_array_equal(found, expected)
    assert found.sum() == n_chosen
