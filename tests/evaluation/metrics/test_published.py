"""Published variants give the numbers that the publications' own codes give."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import NearestNeighbors

from cellgan.evaluation.comparison.pairs import make_side
from cellgan.evaluation.comparison.space import log_expression
from cellgan.evaluation.metrics import published as room
from cellgan.evaluation.metrics.published import published
from tests.evaluation.sides import draw_cells, draw_side, make_frame
from tests.stored import stored_arrays, stored_name, stored_names

CFGEN, CFDIFFUSION = "cfgen.npz", "cfdiffusion.npz"
BALLS = stored_names(CFGEN, r"out/metrics/(prdc_k\d+_.+)")
F1 = stored_name(CFGEN, r"out/metrics/(knn\d+_macro_f1_real_vs_fake)")
N_COLUMNS = stored_name(CFDIFFUSION, r"out/metrics/mmd_on_first_(\d+)_columns")
KNN = stored_name(CFDIFFUSION, r"out/metrics/(knn\d+)_auc")
N_JOINT = stored_name(CFDIFFUSION, r"out/metrics/mmd_on_(\d+)_joint_principal_.+")
N_OF_FOREST = stored_name(CFDIFFUSION, r"out/metrics/rf_auc_on_(\d+)_joint_pcs")


@pytest.fixture(scope="module")
def cfgen(reference_dir):
    return stored_arrays(reference_dir / CFGEN)


@pytest.fixture(scope="module")
def scdiffusion(reference_dir):
    return stored_arrays(reference_dir / CFDIFFUSION)


@pytest.fixture(scope="module")
def two_sides(scdiffusion):
    return scdiffusion["in/metrics/real"], scdiffusion["in/metrics/generated"]


@pytest.fixture
def few_trees(monkeypatch):
    monkeypatch.setattr(room, "N_TREES", 30)


def numbers_of(*sides, seed=0):
    return {
        (number.protocol, number.name): number.value
        for number in published(*sides, seed=seed)
    }


# CFGen

OF_PAPER = {
    "1-Wasserstein": "1-Wasserstein",
    "2-Wasserstein": "2-Wasserstein",
    "Linear_MMD": "Linear MMD",
    "RBF_MMD": "RBF MMD",
}


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        *OF_PAPER.items(),
        *((stored, stored.rpartition("_")[2]) for stored in BALLS),
        (F1, "kNN macro F1"),
    ],
)
def test_cfgen_s_numbers_are_the_original_s(cfgen, stored, name):
    found = room.cfgen_distances(cfgen["in/metrics/A"], cfgen["in/metrics/B"])
    # the original works in float32
    assert found[name] == pytest.approx(float(cfgen[f"out/metrics/{stored}"]), rel=2e-6)


@pytest.fixture(scope="module")
def pipeline(cfgen):
    """Return the log expression of chosen genes, of all real cells and by type."""
    genes = cfgen["out/pipeline/highly_variable"]
    sides = {
        side: log_expression(cfgen[f"in/pipeline/X_{side}"])[:, genes].toarray()
        for side in ("real", "generated")
    }
    parts = [
        tuple(
            values[cfgen[f"in/pipeline/labels_{side}"] == label]
            for side, values in sides.items()
        )
        for label in cfgen["out/pipeline/per_type_labels"]
    ]
    return sides["real"], parts


@pytest.mark.parametrize(("stored", "name"), OF_PAPER.items())
def test_cfgen_s_protocol_from_counts_is_the_original_s(cfgen, pipeline, stored, name):
    n_components = cfgen["out/pipeline/X_pca_real"].shape[1]
    found = room.cfgen_numbers(*pipeline, n_components)
    expected = float(cfgen[f"out/pipeline/mean/{stored}_PCA"])
    assert found[name] == pytest.approx(expected, rel=1e-5)


def test_cfgen_s_mean_leaves_out_labels_that_are_too_small(cfgen, pipeline):
    n_components = cfgen["out/pipeline/X_pca_real"].shape[1]
    real, parts = pipeline
    small = (parts[0][0][:4], parts[0][1][:4])
    with_small = room.cfgen_numbers(real, [*parts, small], n_components)
    without = room.cfgen_numbers(real, parts, n_components)
    assert with_small["precision"] == without["precision"]
    assert with_small["2-Wasserstein"] != without["2-Wasserstein"]


def test_wasserstein_of_shifted_points_is_the_shift():
    line = np.arange(7.0)[:, None]
    assert room.wasserstein(line, line + 3, 1) == pytest.approx(3)
    assert room.wasserstein(line, line + 3, 2) == pytest.approx(3)


def test_wasserstein_on_a_line_is_scipy_s_for_unequal_numbers():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=30), rng.normal(1.0, size=50)
    expected = wasserstein_distance(first, second)
    found = room.wasserstein(first[:, None], second[:, None], 1)
    assert found == pytest.approx(expected)


def test_own_side_nearest_counts_cells():
    real, generated = np.array([[0.0], [1.0], [9.0]]), np.array([[10.0], [11.0], [5.0]])
    # nearest: 1 -> own, 0 -> own, 10 -> other; 9 and 11 -> 9 other, 10 own, 1 other
    assert room.own_side_nearest(real, generated) == pytest.approx(3 / 6)


# scDiffusion


@pytest.mark.parametrize(
    ("stored", "name"),
    {
        "scc": "SCC",
        "pcc": "PCC",
        "wasserstein_of_gene_means": "Wasserstein of gene means",
    }.items(),
)
def test_scdiffusion_s_means_are_the_original_s(scdiffusion, two_sides, stored, name):
    found = room.mean_agreement(*(side.mean(axis=0) for side in two_sides))
    expected = float(scdiffusion[f"out/metrics/{stored}"])
    assert found[name] == pytest.approx(expected, rel=1e-6)


def test_scdiffusion_s_kernel_is_the_original_s(scdiffusion, two_sides):
    columns = [side[:, : int(N_COLUMNS)] for side in two_sides]
    expected = float(scdiffusion[f"out/metrics/mmd_on_first_{N_COLUMNS}_columns"])
    assert room.five_kernel_mmd(*columns) == pytest.approx(expected, rel=1e-5)
    expected = float(scdiffusion["out/metrics/mmd_smallest_bandwidth"])
    assert room.smallest_bandwidth(*columns) == pytest.approx(expected, rel=1e-5)


def test_scdiffusion_s_mmd_of_joint_components_is_the_original_s(
    scdiffusion, two_sides
):
    components = room.joint_components(*two_sides, int(N_JOINT))
    expected = scdiffusion[f"out/metrics/mmd_on_{N_JOINT}_joint_principal_components"]
    found = room.five_kernel_mmd(*components)
    assert found == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_array])
def test_scdiffusion_s_neighbours_are_the_original_s(scdiffusion, two_sides, form):
    accuracy, auc = room.neighbour_votes(*map(form, two_sides))
    assert accuracy == pytest.approx(float(scdiffusion[f"out/metrics/{KNN}_accuracy"]))
    assert auc == pytest.approx(float(scdiffusion[f"out/metrics/{KNN}_auc"]))


@pytest.mark.slow
def test_scdiffusion_s_forest_is_the_original_s_but_for_the_version(
    scdiffusion, two_sides
):
    split = room.split_cells(
        *room.joint_components(*two_sides, int(N_OF_FOREST)), test_size=0.25, seed=1
    )
    found = room.forest_scores(split, seed=1, max_depth=5)
    # which way components point, and scikit-learn's version, are worth 0.02
    expected = float(scdiffusion[f"out/metrics/rf_auc_on_{N_OF_FOREST}_joint_pcs"])
    assert found.auc == pytest.approx(expected, abs=0.02)
    expected = float(scdiffusion["out/metrics/rf_oob"])
    assert found.out_of_bag == pytest.approx(expected, abs=0.02)


def test_mixing_is_high_for_one_population_and_0_for_separate_ones():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 400, 5))
    assert room.median_mixing(first, second) == pytest.approx(0.95, abs=0.05)
    assert room.median_mixing(first, second + 100) == pytest.approx(0, abs=1e-6)
    assert np.isnan(room.median_mixing(first[:50], second[:50]))


# scGAN


def test_scgan_s_scale_is_that_of_neighbours_in_resamples():
    cells = np.random.default_rng(1).normal(size=(80, 3))
    rng = np.random.default_rng(4)
    medians = []
    for _ in range(200):
        sample = cells[rng.integers(0, 80, 80)]
        near, _ = NearestNeighbors(n_neighbors=25).fit(sample).kneighbors(sample)
        medians.append(np.median(near[:, 1:]))
    error = np.std(medians) * np.sqrt(np.pi / 2 * (1 / 20 + 1 / 200))  # of medians
    found = room.neighbour_scale(cells, seed=3)
    assert found == pytest.approx(np.median(medians), abs=3 * error)
    near, _ = NearestNeighbors(n_neighbors=25).fit(cells).kneighbors(cells)
    assert found != pytest.approx(np.median(near[:, 1:]), rel=1e-9)  # no resamples


def test_scgan_s_mmd_is_that_of_three_kernels_of_second_source():
    real = np.random.default_rng(1).normal(size=(80, 3))
    generated = np.random.default_rng(2).normal(size=(60, 3)) + 0.5
    expected = 0.0
    for scale in room.neighbour_scale(real, 3) * np.array([0.5, 1, 2]):
        expected += sum(
            sign * rbf_kernel(a, b, gamma=scale**-2).mean()
            for sign, a, b in (
                (1, real, real),
                (1, generated, generated),
                (-2, real, generated),
            )
        )
    found = room.neighbour_scale_mmd(real, generated, seed=3)
    assert found == pytest.approx(expected)


@pytest.mark.usefixtures("few_trees")
def test_scgan_s_means_are_of_cells_at_one_library_size():
    frame = make_frame()
    sides = draw_side(frame, 1, 60), draw_side(frame, 2, 60)
    means = []
    for side in sides:
        counts = side.values.toarray()
        means.append((20_000 * counts / counts.sum(axis=1)[:, None]).mean(axis=0))
    values = numbers_of(*sides)
    expected = np.linalg.norm(means[0] - means[1])
    found = values["scGAN", "euclidean distance of means"]
    assert found == pytest.approx(expected, rel=1e-4)


def test_scgan_s_mmd_is_0_for_the_same_cells_and_3_kernels_for_far_ones():
    cells = np.random.default_rng(0).normal(size=(60, 3))
    assert room.neighbour_scale_mmd(cells, cells, 0) == pytest.approx(0, abs=1e-12)
    line = np.arange(300.0)[:, None] * 1e6
    # all kernels of a cell with others vanish but those of resampled neighbours
    assert room.biased_mmd(line, line + 1e12, [1.0] * 3) == pytest.approx(6 / 300)


def test_scgan_s_mmd_is_undefined_without_spread():
    cells = np.ones((30, 4))
    assert np.isnan(room.neighbour_scale_mmd(cells, cells + 1, 0))


# What protocols share


def test_squared_distances_are_scipy_s_also_far_from_the_origin():
    rng = np.random.default_rng(0)
    first, second = rng.normal(100, 1, size=(2, 40, 6))
    expected = cdist(first, second, "sqeuclidean")
    np.testing.assert_allclose(room.squared_distances(first, second), expected, 1e-8)
    assert (np.diagonal(room.squared_distances(first, first)) == 0).all()


@pytest.mark.usefixtures("few_trees")
def test_forest_is_as_deep_as_told():
    cells = np.random.default_rng(0).normal(size=(400, 2))
    is_real = cells.prod(axis=1) > 0  # no single cut tells
    sides = cells[is_real], cells[~is_real]
    split = room.split_cells(*sides, test_size=0.3, seed=1)
    assert room.forest_scores(split, seed=1).auc > 0.9
    assert room.forest_scores(split, seed=1, max_depth=1).auc < 0.8


def test_classifiers_are_undefined_when_a_split_leaves_a_side_out():
    cells = np.random.default_rng(0).normal(size=(40, 2))
    sides = cells[1:], cells[:1]
    assert np.isnan(room.neighbour_votes(*sides)).all()
    split = room.split_cells(*sides, test_size=0.3, seed=1)
    assert np.isnan(room.forest_scores(split, seed=1)).all()


@pytest.mark.usefixtures("few_trees")
def test_real_cells_reach_what_every_protocol_calls_good():
    frame = make_frame()
    values = numbers_of(draw_side(frame, 1), draw_side(frame, 2))
    assert {protocol for protocol, _ in values} == {"scGAN", "scDiffusion", "CFGen"}
    assert values["scGAN", "cosine distance of means"] < 0.01
    assert values["scGAN", "MMD"] < 0.03
    assert values["scGAN", "MMD as released"] == 3 * values["scGAN", "MMD"]
    assert values["scGAN", "RF AUROC"] == pytest.approx(0.5, abs=0.2)
    assert values["scDiffusion", "SCC"] > 0.98
    assert values["scDiffusion", "MMD"] < 0.05
    assert values["scDiffusion", "iLISI"] > 0.8
    assert values["scDiffusion", "RF AUC"] == pytest.approx(0.5, abs=0.2)
    assert values["scDiffusion", "KNN AUC"] == pytest.approx(0.5, abs=0.2)
    assert values["CFGen", "precision"] > 0.6
    assert values["CFGen", "1-NN accuracy"] == pytest.approx(0.5, abs=0.15)


@pytest.mark.usefixtures("few_trees")
def test_genes_that_hardly_any_real_cell_has_do_not_count_in_means():
    frame = make_frame()
    sides = []
    for seed, n_detecting in ((1, 2), (2, 60)):
        side = draw_side(frame, seed, 60)
        rare = np.zeros((60, 1), np.float32)
        rare[:n_detecting] = 9
        with_rare = sp.hstack([side.log_values, rare], format="csr")
        sides.append((side, dataclasses.replace(side, log_values=with_rare)))
    without, with_it = (numbers_of(*pair) for pair in zip(*sides, strict=True))
    assert with_it["scDiffusion", "PCC"] == without["scDiffusion", "PCC"]


@pytest.mark.usefixtures("few_trees")
def test_cfgen_compares_cells_of_one_label():
    frame = make_frame()
    real, generated = draw_side(frame, 1), draw_side(frame, 2)
    shuffled = dataclasses.replace(
        generated, labels=np.random.default_rng(0).permutation(generated.labels)
    )
    right, wrong = (numbers_of(real, side) for side in (generated, shuffled))
    name = ("CFGen", "2-Wasserstein")
    assert wrong[name] > 1.1 * right[name]


@pytest.mark.usefixtures("few_trees")
def test_every_protocol_tells_cells_with_permuted_genes():
    frame = make_frame()
    cells = draw_cells(2)
    counts = np.random.default_rng(3).permuted(cells.counts.toarray(), axis=0)
    permuted = make_side(sp.csr_array(counts), cells.labels, frame.space)
    values = numbers_of(draw_side(frame, 1), permuted)
    assert values["scGAN", "RF AUROC"] > 0.8
    assert values["scGAN", "MMD"] > 0.05
    assert values["scDiffusion", "RF AUC"] > 0.8
    assert values["scDiffusion", "iLISI"] < 0.6
    assert values["scDiffusion", "PCC"] > 0.99  # which sees no cell
    assert values["CFGen", "1-NN accuracy"] > 0.7


@pytest.mark.usefixtures("few_trees")
def test_more_cells_than_a_protocol_takes_are_drawn_and_said(monkeypatch):
    monkeypatch.setattr(room, "MOST_CELLS", 100)
    frame = make_frame()
    sides = draw_side(frame, 1), draw_side(frame, 2)
    found = published(*sides, seed=0)
    settings = {(number.protocol, number.name): number.settings for number in found}
    assert settings["scGAN", "MMD"].endswith("100 real and 100 generated cells")
    assert "at most 100 cells a side" in settings["CFGen", "RBF MMD"]
    assert numbers_of(*sides, seed=0) == {(n.protocol, n.name): n.value for n in found}
    other = numbers_of(*sides, seed=1)
    assert (
        other["CFGen", "1-Wasserstein"]
        != {n.name: n.value for n in found}["1-Wasserstein"]
    )


@pytest.mark.usefixtures("few_trees")
def test_few_cells_leave_numbers_undefined_and_in_their_place():
    frame = make_frame()
    few = published(draw_side(frame, 1, 10), draw_side(frame, 2, 10), seed=0)
    many = published(draw_side(frame, 1, 60), draw_side(frame, 2, 60), seed=0)
    assert [number[:2] for number in few] == [number[:2] for number in many]
    values = {number.name: number.value for number in few}
    assert np.isnan(values["KNN AUC"])
    assert np.isnan(values["iLISI"])
    assert np.isfinite(values["2-Wasserstein"])


@pytest.mark.usefixtures("few_trees")
@pytest.mark.parametrize(("n_cells", "is_defined"), [(60, True), (15, False)])
def test_cells_without_labels_are_one_label(n_cells, is_defined):
    frame = make_frame()
    unlabelled = [
        make_side(cells.counts, np.full(n_cells, ""), frame.space)
        for cells in (draw_cells(1, n_cells), draw_cells(2, n_cells))
    ]
    found = {n.name: n for n in published(*unlabelled, seed=0)}
    assert "mean over 1 labels" in found["2-Wasserstein"].settings
    assert np.isfinite(found["KNN AUC"].value) == is_defined


def test_optimal_transport_loads_no_tensorflow():
    room.wasserstein(np.eye(3), np.eye(3), 1)
    backend = sys.modules["ot"].backend
    assert (backend.tf, backend.torch, backend.jax) == (False, False, False)
