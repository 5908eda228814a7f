"""Clusters: the recipe against scanpy's, and graphs whose clusters are known."""

from __future__ import annotations

import random
import subprocess
import sys
import warnings

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from preprocessing import clustering
from preprocessing.sparse_blocks import row_sums
from tests.synthetic import make_cells

FRESH_PROCESS = """
from preprocessing.clustering import cluster_cells
from tests.synthetic import make_cells
for method in ("louvain", "leiden"):
    print("".join(cluster_cells(make_cells(300).counts, 2.0, method, seed=0)))
"""


@pytest.fixture(scope="module")
def wide_counts() -> sp.csr_matrix:
    """More genes than are chosen, with means and dispersions that differ."""
    rng = np.random.default_rng(0)
    mean = rng.lognormal(0, 1, size=1600)
    shape = rng.uniform(0.3, 5, size=1600)
    rates = rng.gamma(shape, mean / shape, size=(150, 1600))
    return sp.csr_matrix(rng.poisson(rates), dtype=np.float32)


@pytest.fixture(scope="module")
def scanpy_recipe(wide_counts: sp.csr_matrix) -> ad.AnnData:
    import scanpy as sc

    adata = ad.AnnData(wide_counts.copy())
    adata.var_names = [str(i) for i in range(adata.n_vars)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.recipe_zheng17(adata, n_top_genes=1000)
        sc.pp.pca(adata, n_comps=50, svd_solver="arpack", zero_center=True)
    return adata


def test_most_variable_genes_are_those_of_scanpys_recipe(wide_counts, scanpy_recipe):
    totals = row_sums(wide_counts)
    ours = clustering.zheng17_genes(wide_counts, np.median(totals) / totals)
    theirs = scanpy_recipe.var_names.astype(int)
    assert len(ours) == 1000
    assert set(theirs) <= set(ours)
    assert len(theirs) >= 999  # scanpy cuts at the value of one gene


def test_log_scaled_genes_equal_scanpys_recipe_before_centring(
    wide_counts, scanpy_recipe
):
    totals = row_sums(wide_counts)
    genes = clustering.zheng17_genes(wide_counts, np.median(totals) / totals)
    shared = np.isin(genes, scanpy_recipe.var_names.astype(int))
    ours = clustering.log_scaled_genes(wide_counts)[:, shared].toarray()
    np.testing.assert_allclose(
        ours - ours.mean(axis=0), scanpy_recipe.X, atol=6e-3
    )  # one gene more or less changes the totals by a thousandth


def test_principal_components_are_those_of_a_singular_value_decomposition(wide_counts):
    expression = clustering.log_scaled_genes(wide_counts)
    components = clustering.principal_components(expression)
    dense = expression.toarray().astype(np.float64)
    left, values, _ = np.linalg.svd(dense - dense.mean(axis=0), full_matrices=False)
    expected = (left * values)[:, :50]
    sign = np.sign((components * expected).sum(axis=0))
    np.testing.assert_allclose(components * sign, expected, atol=2e-3)


def test_neighbor_edges_join_each_cell_to_its_nearest():
    points = np.arange(40, dtype=np.float32)[:, None]
    edges = clustering.neighbor_edges(points)
    distance = np.abs(points - points.T)
    nearest = np.sort(distance, axis=1)[:, 14]  # the 14th other cell
    reach = np.maximum(nearest[edges[:, 0]], nearest[edges[:, 1]])
    assert (edges[:, 0] < edges[:, 1]).all()
    assert (distance[edges[:, 0], edges[:, 1]] <= reach).all()
    assert np.bincount(edges.ravel()).min() >= 14


@pytest.mark.parametrize("method", ["louvain", "leiden"])
def test_separate_groups_are_found_and_numbered_by_falling_size(method):
    cells = make_cells(300)
    clusters = clustering.cluster_cells(cells.counts, 0.3, method, seed=0)
    names, sizes = np.unique(clusters, return_counts=True)
    assert list(names) == ["0", "1", "2"]
    assert (np.diff(sizes) < 0).all()
    pairs = set(zip(clusters, cells.labels, strict=True))
    assert pairs == {("0", "type C"), ("1", "type B"), ("2", "type A")}


@pytest.mark.parametrize("method", ["louvain", "leiden"])
def test_higher_resolution_gives_more_clusters(method):
    counts = make_cells(300).counts
    coarse, fine = (
        len(set(clustering.cluster_cells(counts, resolution, method, seed=0)))
        for resolution in (0.3, 3.0)
    )
    assert fine > coarse


@pytest.mark.slow
def test_clusters_are_the_same_in_a_fresh_process_and_after_other_draws():
    random.seed(99)
    clusters = [
        "".join(clustering.cluster_cells(make_cells(300).counts, 2.0, method, seed=0))
        for method in ("louvain", "leiden")
    ]
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert fresh.stdout.split() == clusters


def test_clustering_leaves_the_global_random_numbers_alone():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    clustering.cluster_cells(make_cells(60).counts, 1.0, "louvain", seed=0)
    assert random.random() == expected


def test_clustering_does_not_change_the_counts():
    counts = make_cells(80).counts
    before = counts.copy()
    clustering.cluster_cells(counts, 1.0, "louvain", seed=0)
    assert (counts != before).nnz == 0


def test_few_cells_and_genes_are_clustered():
    counts = sp.csr_matrix(np.eye(10, 3, dtype=np.float32) + 1)
    clusters = clustering.cluster_cells(counts, 0.15, "louvain", seed=0)
    assert len(clusters) == 10
    assert set(clusters) == {"0"}


def test_cell_without_any_chosen_gene_still_gets_a_cluster(wide_counts):
    totals = row_sums(wide_counts)
    genes = clustering.zheng17_genes(wide_counts, np.median(totals) / totals)
    dense = wide_counts.toarray()
    dense[7, genes] = 0
    clusters = clustering.cluster_cells(sp.csr_matrix(dense), 0.5, "louvain", seed=0)
    assert clusters[7] in {"0", "1", "2", "3", "4"}
