"""Distances between distributions: closed forms, POT, resamples, undefined cases."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from cellgan.evaluation.comparison.pairs import Resamples, make_pair
from cellgan.evaluation.metrics import distribution, transport
from cellgan.evaluation.metrics.distribution import (
    METRICS,
    discrepancies,
    distribution_metrics,
    equal_sides,
    gaussian_distance,
    gaussian_fit,
    mean_kernel,
    mmd_permutation_p,
    n_transported,
    rows_of_all_labels,
)
from cellgan.evaluation.metrics.transport import (
    potentials,
    potentials_on_line,
    transport_costs,
)
from cellgan.seeds import derive_seed
from tests.evaluation.component_pairs import (
    frame_of,
    normal,
    pair_of,
    pair_with_draws,
    side_of,
)
from tests.stored import stored_names

FILE = "cfgen.npz"


@pytest.fixture(scope="module")
def ot():
    """Return POT, without the deep learning libraries that it would import."""
    for library in ("TENSORFLOW", "PYTORCH", "JAX"):
        os.environ.setdefault(f"POT_BACKEND_DISABLE_{library}", "1")
    return pytest.importorskip("ot", reason="POT is not installed")


@pytest.fixture
def reference_cells(reference_dir):
    with np.load(reference_dir / FILE) as stored:
        sides = stored["in/metrics/A"], stored["in/metrics/B"]
    n_cells = min(map(len, sides))
    return tuple(side[:n_cells] for side in sides)


def value(name, real, other, **options):
    return distribution_metrics(pair_of(real, other, **options))[name][0]


def test_every_metric_has_one_number_per_draw():
    found = distribution_metrics(
        pair_of(normal(20, 3, seed=0), normal(25, 3, seed=1), n_resamples=7)
    )

    assert list(found) == [metric.name for metric in METRICS]
    assert {numbers.shape for numbers in found.values()} == {(8,)}
    assert all(np.isfinite(numbers).all() for numbers in found.values())


def test_value_does_not_depend_on_resamples_or_on_the_order_of_cells():
    real, other = normal(40, 3, seed=0), normal(40, 3, seed=1, shift=0.5)

    with_resamples = distribution_metrics(pair_of(real, other, n_resamples=5))
    shuffled = distribution_metrics(pair_of(real[::-1], np.roll(other, 7, axis=0)))

    for name, numbers in with_resamples.items():
        assert shuffled[name] == pytest.approx(numbers[:1], rel=1e-5)


def test_fewer_than_two_cells_give_nan():
    found = distribution_metrics(
        pair_of(normal(5, 3, seed=0), normal(1, 3, seed=1), n_resamples=2)
    )

    assert np.isnan(np.stack(list(found.values()))).all()


def test_side_of_equal_cells_gives_numbers():
    real = normal(30, 2, seed=0)
    found = distribution_metrics(pair_of(real, np.zeros((30, 2)), n_resamples=3))

    to_origin = np.linalg.norm(real.astype(np.float32), axis=1)
    assert found["wasserstein_1"][0] == pytest.approx(to_origin.mean())
    assert found["wasserstein_2"][0] == pytest.approx(np.sqrt((to_origin**2).mean()))
    assert np.isfinite(np.stack(list(found.values()))).all()


# Maximum mean discrepancy, energy distance


def test_mmd_matches_the_reference(reference_cells, reference_dir):
    with np.load(reference_dir / FILE) as stored:
        expected = float(stored["out/metrics/rbf_mmd2_unbiased"])
    widths = stored_names(FILE, "out/metrics/rbf_mmd2_biased_sigma_(.+)")
    bandwidths = tuple(map(float, widths))

    found = value("mmd_squared", *reference_cells, bandwidths=bandwidths)

    # The reference sums kernels, in single precision: 1e-6 of terms near 1.
    assert found * len(bandwidths) == pytest.approx(expected, abs=2e-6)


def test_mmd_of_shifted_gaussians_is_the_closed_form():
    n_components, shift, bandwidth = 3, 0.5, 1.5
    real = normal(1000, n_components, seed=0)
    other = normal(1000, n_components, seed=1, shift=shift)

    pair = pair_of(real, other, n_resamples=30)
    (numbers,) = discrepancies(pair, (mean_kernel((bandwidth,)),))

    spread = bandwidth**2 + 2
    expected = (
        2
        * (bandwidth**2 / spread) ** (n_components / 2)
        * (1 - np.exp(-n_components * shift**2 / (2 * spread)))
    )
    assert numbers[1:].std() < expected / 8
    assert numbers[0] == pytest.approx(expected, abs=5 * numbers[1:].std())


def test_energy_distance_of_two_and_two_cells_by_hand():
    # Between: (1 + 5 + 1 + 3) / 4 = 2.5; within: 2 and 4.
    found = value("energy_distance", [[0.0], [2.0]], [[1.0], [5.0]])

    assert found == pytest.approx(2 * 2.5 - 2 - 4)


def test_energy_distance_of_cells_far_apart_is_twice_their_distance():
    real, other = normal(50, 3, seed=0), normal(50, 3, seed=1)
    other[:, 0] += 1e4

    assert value("energy_distance", real, other) == pytest.approx(2e4, rel=1e-3)


def all_pairs_by_hand(function, real, other, of_real, of_other):
    """Average over pairs of resampled cells that are not copies of one cell."""

    def mean(first, second, *, same_cells):
        values = [
            function(np.sum((first[i] - second[j]) ** 2))
            for i in range(len(first))
            for j in range(len(second))
            for _ in range(int(first_of[i] * second_of[j]))
            if not (same_cells and i == j)
        ]
        return np.mean(values)

    first_of, second_of = of_real, of_real
    within_real = mean(real, real, same_cells=True)
    first_of, second_of = of_other, of_other
    within_other = mean(other, other, same_cells=True)
    first_of, second_of = of_real, of_other
    return within_real + within_other - 2 * mean(real, other, same_cells=False)


def test_resamples_leave_out_pairs_of_copies(monkeypatch):
    monkeypatch.setattr(distribution, "ROWS_AT_ONCE", 2)
    real, other = normal(5, 2, seed=0), normal(4, 2, seed=1)
    of_real, of_other = [2, 0, 1, 2, 0], [0, 1, 2, 1]
    pair = pair_with_draws(real, other, [of_real], [of_other])

    similarity, distance = discrepancies(pair, (mean_kernel((1.0, 2.0)), np.sqrt))

    by_hand = (real, other, of_real, of_other)
    assert distance[1] == pytest.approx(all_pairs_by_hand(np.sqrt, *by_hand))
    assert similarity[1] == pytest.approx(
        all_pairs_by_hand(
            lambda squared: (np.exp(-squared / 2) + np.exp(-squared / 8)) / 2, *by_hand
        ),
        abs=1e-6,
    )


def test_resample_of_one_cell_gives_nan():
    pair = pair_with_draws([[0.0], [1.0]], [[0.0], [3.0]], [[2, 0]], [[1, 1]])

    found = distribution_metrics(pair)

    assert np.isnan(found["mmd_squared"][1])
    assert np.isnan(found["energy_distance"][1])


def test_bandwidth_of_zero_gives_nan():
    pair = pair_of(np.zeros((4, 2)), normal(4, 2, seed=0), bandwidths=(0.0, 0.0))

    assert np.isnan(distribution_metrics(pair)["mmd_squared"][0])
    assert np.isnan(mmd_permutation_p(pair))


def test_permutation_p_is_smallest_for_sides_apart_and_one_for_copies():
    real = normal(20, 2, seed=0)

    assert mmd_permutation_p(pair_of(real, real + 9)) == pytest.approx(1 / 200)
    assert mmd_permutation_p(pair_of(real, real)) == 1


def test_permutation_p_is_uniform_for_equal_distributions():
    p_values = [
        mmd_permutation_p(
            pair_of(normal(12, 2, seed=2 * i), normal(8, 2, seed=2 * i + 1))
        )
        for i in range(60)
    ]

    # 5 standard errors of the mean and of the spread of 60 uniform numbers
    assert np.mean(p_values) == pytest.approx(0.5, abs=5 * 0.289 / np.sqrt(60))
    assert np.std(p_values) == pytest.approx(0.289, abs=5 * 0.289 * 0.63 / np.sqrt(60))


def test_permutation_p_is_the_rank_of_the_metric_among_permuted_cells():
    real, other = normal(9, 2, seed=3), normal(4, 2, seed=4, shift=0.2)
    pair = pair_of(real, other)
    rng = np.random.default_rng(derive_seed(pair.frame.seed, "permutations"))
    sides = rng.permuted(np.tile(np.arange(13) < 9, (199, 1)), axis=1)
    cells = np.vstack([real, other])

    def mmd(first, second):
        permuted = pair_of(first, second)
        return discrepancies(permuted, (mean_kernel(permuted.frame.bandwidths),))[0, 0]

    values = np.array([mmd(cells[side], cells[~side]) for side in sides])
    expected = (1 + np.sum(values >= mmd(real, other) - 1e-7)) / 200
    assert 0.1 < expected < 0.9
    assert mmd_permutation_p(pair) == pytest.approx(expected)


# Optimal transport


@pytest.mark.parametrize("name", ["wasserstein_1", "wasserstein_2"])
def test_transport_of_shifted_cells_costs_the_shift(name):
    real = normal(60, 4, seed=0)
    shift = np.array([3.0, 0.0, -4.0, 0.0])

    assert value(name, real, real + shift) == pytest.approx(5.0, rel=1e-5)


def test_transport_matches_pot(reference_cells, ot):
    found = distribution_metrics(pair_of(*reference_cells))
    cells = [np.asarray(side, np.float64) for side in reference_cells]

    first = ot.emd2([], [], cdist(*cells))
    second = ot.emd2([], [], cdist(*cells, "sqeuclidean"))
    assert found["wasserstein_1"][0] == pytest.approx(first, rel=1e-6)
    assert found["wasserstein_2"][0] == pytest.approx(np.sqrt(second), rel=1e-6)


@pytest.mark.parametrize("power", [1, 2])
def test_potentials_are_feasible_tight_and_worth_the_cost(ot, power):
    costs = cdist(normal(80, 3, seed=0), normal(80, 3, seed=1, shift=1.0)) ** power
    rows, partners = linear_sum_assignment(costs)

    of_rows, of_columns = potentials(costs, partners)

    slack = costs - of_rows[:, None] - of_columns
    assert slack.min() > -1e-9
    np.testing.assert_allclose(slack[rows, partners], 0, atol=1e-9)
    _, log = ot.emd([], [], costs, log=True)
    expected = log["u"].mean() + log["v"].mean()
    assert of_rows.mean() + of_columns.mean() == pytest.approx(expected)


def test_resampled_transport_is_the_tangent_of_pot(ot):
    n_cells = 60
    costs = cdist(normal(n_cells, 2, seed=0), normal(n_cells, 2, seed=1, shift=0.5))
    rng = np.random.default_rng(2)
    drawn = rng.multinomial(n_cells, np.full(n_cells, 1 / n_cells), size=(2, 10))
    # A tenth of the way to the resamples, where the tangent is close to the function.
    draws = Resamples(*(np.vstack([np.ones(n_cells), 0.9 + 0.1 * of]) for of in drawn))

    found = transport_costs(costs, draws)

    exact = np.array(
        [
            ot.emd2(real / n_cells, other / n_cells, costs)
            for real, other in zip(draws.real, draws.other, strict=True)
        ]
    )
    assert found[0] == pytest.approx(exact[0])
    # The cost is convex in the weights: its tangent lies below it.
    assert (found < exact + 1e-9).all()
    np.testing.assert_allclose(found, exact, rtol=0.03)
    assert np.corrcoef(found[1:], exact[1:])[0, 1] > 0.97


def test_transport_without_resamples_is_the_same_value():
    costs = cdist(normal(30, 2, seed=0), normal(30, 2, seed=1))
    ones = np.ones((1, 30))

    alone = transport_costs(costs, Resamples(ones, ones))
    first = transport_costs(costs, Resamples(*2 * [np.vstack([ones, ones])]))

    assert alone == pytest.approx(first[:1])


def test_transport_between_near_copies_is_never_negative():
    real = normal(40, 2, seed=0)
    pair = pair_of(real, real + normal(40, 2, seed=1) / 1000, n_resamples=20)

    numbers = distribution_metrics(pair)["wasserstein_2"]

    assert numbers[0] == pytest.approx(np.sqrt(2) / 1000, rel=0.3)
    assert (numbers >= 0).all()


def test_sliced_distance_on_a_line_is_that_of_scipy():
    real, other = normal(30, 1, seed=0), normal(45, 1, seed=1, shift=0.3)

    found = value("sliced_wasserstein", real, other)

    expected = scipy.stats.wasserstein_distance(real[:, 0], other[:, 0])
    assert found == pytest.approx(expected, rel=1e-5)


def test_sliced_distance_of_shifted_cells_is_the_mean_projection_of_the_shift():
    n_components = 10
    real = normal(50, n_components, seed=0)

    found = value("sliced_wasserstein", real, real + 2.0)

    # The mean of |cos| to a random direction; its spread is 0.19 in 10 dimensions.
    mean_cosine = math.gamma(n_components / 2) / (
        math.sqrt(math.pi) * math.gamma((n_components + 1) / 2)
    )
    length = 2.0 * np.sqrt(n_components)
    error = 0.19 / np.sqrt(transport.N_DIRECTIONS)
    assert mean_cosine == pytest.approx(0.259, abs=1e-3)
    assert found == pytest.approx(length * mean_cosine, abs=5 * length * error)


def test_potentials_on_a_line_by_hand():
    # Shares 1/2 at 0 and 4, and 1 at 1: the difference is 1/2 up to 1, then -1/2.
    found = potentials_on_line(np.array([0.0, 4.0, 1.0]), np.array([0.5, 0.5, -1.0]))

    np.testing.assert_allclose(found, [1 - 3, 0, -3])
    assert found @ [0.5, 0.5, -1.0] == pytest.approx(2.0)


def test_sliced_distance_of_copies_is_zero_in_every_resample():
    real = normal(50, 3, seed=0)
    pair = pair_of(real, real.repeat(3, axis=0), n_resamples=5)
    numbers = distribution_metrics(pair)

    np.testing.assert_array_equal(numbers["sliced_wasserstein"], np.zeros(6))


def test_resampled_sliced_distance_follows_shifted_weights():
    real, other = [[0.0], [1.0]], [[10.0], [10.0]]
    pair = pair_with_draws(real, other, [[2, 0], [0, 2]], [[1, 1], [2, 0]])

    numbers = distribution_metrics(pair)["sliced_wasserstein"]

    np.testing.assert_allclose(numbers, [9.5, 10.0, 9.0])


# Gaussian fits


def test_gaussian_distance_with_common_axes_is_that_of_deviations():
    rotation = scipy.stats.special_ortho_group.rvs(3, random_state=0)
    first = rotation @ np.diag([1.0, 4.0, 9.0]) @ rotation.T
    second = rotation @ np.diag([4.0, 4.0, 0.0]) @ rotation.T

    found = gaussian_distance(np.zeros(3), first, np.full(3, 2.0), second)

    assert found == pytest.approx(3 * 2.0**2 + (1 - 2) ** 2 + 0 + 3**2)


def test_gaussian_distance_is_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    first, second = (np.cov(rng.normal(size=(4, 30)) ** 3) for _ in range(2))
    zero = np.zeros(4)

    root = scipy.linalg.sqrtm(first @ second)
    expected = np.trace(first + second - 2 * root)
    assert gaussian_distance(zero, first, zero, second) == pytest.approx(expected.real)


def test_gaussian_fit_is_that_of_repeated_cells():
    cells, times = normal(6, 3, seed=0), np.array([0, 3, 1, 1, 0, 2])
    repeated = cells.repeat(times, axis=0)

    mean, covariance = gaussian_fit(cells, times.astype(float))

    np.testing.assert_allclose(mean, repeated.mean(axis=0))
    np.testing.assert_allclose(covariance, np.cov(repeated.T))


def test_frechet_distance_of_resample_is_that_of_repeated_cells():
    real, other = normal(6, 2, seed=0), normal(5, 2, seed=1)
    times = np.array([2, 0, 1, 1, 0, 2]), np.array([1, 1, 0, 3, 0])

    pair = pair_with_draws(real, other, *([row] for row in times))
    repeated = [
        cells.repeat(row, axis=0)
        for cells, row in zip((real, other), times, strict=True)
    ]

    found = distribution_metrics(pair)["frechet_distance"][1]
    assert found == pytest.approx(value("frechet_distance", *repeated))


# Equally many cells


def test_rows_of_all_labels_keep_shares():
    labels = np.array(["b"] * 50 + ["a"] * 30 + ["c"] * 20)

    rows = rows_of_all_labels(labels, 10, seed=0)

    assert len(np.unique(rows)) == 10
    assert np.unique(labels[rows], return_counts=True)[1].tolist() == [3, 5, 2]
    assert not np.array_equal(rows, rows_of_all_labels(labels, 10, seed=1))


def test_sides_become_equal_with_the_same_real_cells_for_every_other_side():
    labels = np.array(["a", "b"] * 20)
    real = side_of(normal(40, 2, seed=0), labels)
    pairs = [
        make_pair(real, side_of(normal(n, 2, seed=n)), frame_of(), 3) for n in (10, 60)
    ]

    small, large = (equal_sides(pair, 10) for pair in pairs)

    sizes = [len(side) for pair in (small, large) for side in (pair.real, pair.other)]
    assert sizes == [10, 10, 10, 10]
    np.testing.assert_array_equal(small.real.components, large.real.components)
    assert small.draws.real.shape == large.draws.other.shape == (4, 10)
    # Resampled within labels, of which 5 cells each are left.
    of_a = small.draws.real[:, small.real.labels == "a"]
    np.testing.assert_array_equal(of_a.sum(axis=1), np.full(4, 5))


def test_equal_sides_are_left_as_they_are():
    pair = pair_of(normal(9, 2, seed=0), normal(9, 2, seed=1), n_resamples=2)

    assert equal_sides(pair, 9) is pair


def test_exact_transport_is_computed_on_a_subset(monkeypatch):
    monkeypatch.setattr(distribution, "MOST_TRANSPORTED", 12)
    pair = pair_of(normal(40, 2, seed=0), normal(30, 2, seed=1), n_resamples=2)

    found = distribution_metrics(pair)
    subset = distribution_metrics(equal_sides(pair, 12))

    assert n_transported(pair) == 12
    np.testing.assert_allclose(found["wasserstein_1"], subset["wasserstein_1"])
    assert found["sliced_wasserstein"][0] != subset["sliced_wasserstein"][0]
