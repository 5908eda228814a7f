"""Neighbourhoods of real and generated cells: by hand, second sources, resamples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from cellgan.evaluation.metrics import support
from cellgan.evaluation.metrics.distribution import equal_sides
from cellgan.evaluation.metrics.mixing import (
    Neighbours,
    local_mixing,
    nearest_is_own,
    neighbour_weights,
)
from cellgan.evaluation.metrics.support import (
    METRICS,
    distances,
    nearest,
    nearest_own,
    prdc,
    support_metrics,
)
from tests.evaluation.component_pairs import normal, pair_of, pair_with_draws
from tests.stored import stored_name

FILE = "cfgen.npz"
PERPLEXITY = 30
PRDC = ("precision", "recall", "density", "coverage")
MIXING = (
    "ilisi",
    "nearest_neighbour_accuracy_real",
    "nearest_neighbour_accuracy_generated",
)


@pytest.fixture
def reference_cells(reference_dir):
    with np.load(reference_dir / FILE) as stored:
        return stored["in/metrics/A"], stored["in/metrics/B"]


def means(found):
    return {
        "precision": found.precise.mean(),
        "recall": found.recalled.mean(),
        "density": found.density.mean(),
        "coverage": found.covered.mean(),
    }


def values(real, other):
    found = support_metrics(pair_of(real, other))
    return {name: numbers[0] for name, numbers in found.items()}


def neighbours(cells, others, n_neighbours):
    return Neighbours(
        nearest_own(cells, n_neighbours),
        nearest(distances(cells, others), n_neighbours),
    )


def test_every_metric_has_one_number_per_draw():
    found = support_metrics(
        pair_of(normal(40, 3, seed=0), normal(50, 3, seed=1), n_resamples=7)
    )

    assert set(found) == {metric.name for metric in METRICS}
    assert {numbers.shape for numbers in found.values()} == {(8,)}
    assert all(np.isfinite(numbers).all() for numbers in found.values())


def test_value_does_not_depend_on_resamples_on_blocks_or_on_the_order_of_cells(
    monkeypatch,
):
    real, other = normal(60, 3, seed=0), normal(60, 3, seed=1, shift=0.5)
    with_resamples = support_metrics(pair_of(real, other, n_resamples=5))

    monkeypatch.setattr(support, "ROWS_AT_ONCE", 7)
    shuffled = values(real[::-1], np.roll(other, 7, axis=0))

    for name, numbers in with_resamples.items():
        assert shuffled[name] == pytest.approx(numbers[0], rel=1e-6)


@pytest.mark.parametrize(("n_real", "n_other"), [(40, 70), (70, 40)])
def test_unequal_sides_are_those_of_a_subset(n_real, n_other):
    pair = pair_of(normal(n_real, 3, seed=0), normal(n_other, 3, seed=1), n_resamples=3)

    found, subset = support_metrics(pair), support_metrics(equal_sides(pair, 40))

    for name, numbers in subset.items():
        np.testing.assert_array_equal(found[name], numbers)


@pytest.mark.parametrize(
    ("n_cells", "undefined"),
    [(1, {*PRDC, *MIXING}), (5, {*PRDC, "ilisi"}), (7, {"ilisi"}), (8, set())],
)
def test_too_few_cells_give_nan(n_cells, undefined):
    pair = pair_of(normal(n_cells, 2, seed=0), normal(9, 2, seed=1), n_resamples=2)

    found = support_metrics(pair)

    nan = {name for name, numbers in found.items() if np.isnan(numbers).any()}
    assert nan == undefined


def test_sides_of_equal_cells_give_numbers():
    found = values(np.zeros((20, 2)), np.zeros((20, 2)))

    # No cell is inside a ball of radius 0, and every nearest cell is a tie.
    assert [found[name] for name in PRDC] == [0, 0, 0, 0]
    assert found["nearest_neighbour_accuracy_real"] == 0.5
    assert found["nearest_neighbour_accuracy_generated"] == 0.5


# Precision, recall, density, coverage


def test_balls_on_a_line_by_hand():
    real, generated = [[0.0], [1.0], [5.0]], [[1.5], [2.0], [20.0]]

    found = prdc(np.array(real), np.array(generated), k=1)

    # Radii 1, 1, 4 of real and 0.5, 0.5, 18 of generated cells. The cell at 2 is on the
    # edge of the ball of 1, which does not count; the real cell at 5 is 15 from 20.
    np.testing.assert_array_equal(found.precise, [1, 1, 0])
    np.testing.assert_array_equal(found.density, [2, 1, 0])
    np.testing.assert_array_equal(found.recalled, [0, 0, 1])
    np.testing.assert_array_equal(found.covered, [0, 1, 1])
    np.testing.assert_array_equal(found.reach, [0, 1, 2])


def test_balls_match_the_reference_by_sums_of_absolute_differences(
    reference_cells, reference_dir
):
    k = int(stored_name(FILE, r"out/metrics/prdc_k(\d+)_recall"))
    with np.load(reference_dir / FILE) as stored:
        expected = {x: float(stored[f"out/metrics/prdc_k{k}_{x}"]) for x in PRDC}

    found = means(prdc(*reference_cells, k=k, metric="cityblock"))

    assert found == pytest.approx(expected)


def test_balls_match_scikit_learn(reference_cells):
    k, (real, other) = 5, reference_cells
    reach, inside = {}, {}
    for name, own, others in (("real", real, other), ("other", other, real)):
        fit = NearestNeighbors(n_neighbors=k).fit(own)
        reach[name] = fit.kneighbors()[0][:, -1]
        inside[name] = cdist(own, others) <= reach[name][:, None]
    expected = {
        "precision": inside["real"].any(axis=0).mean(),
        "recall": inside["other"].any(axis=0).mean(),
        "density": inside["real"].sum(axis=0).mean() / k,
        "coverage": inside["real"].any(axis=1).mean(),
    }

    assert means(prdc(*reference_cells, k=k)) == pytest.approx(expected)


def test_metrics_are_the_means_of_their_cells():
    real, other = normal(50, 3, seed=0), normal(50, 3, seed=1, shift=1.5)
    components = (np.float32(cells) for cells in (real, other))

    expected = means(prdc(*components, k=5))

    found = values(real, other)
    assert {name: found[name] for name in PRDC} == pytest.approx(expected)
    assert 0.1 < found["precision"] < 0.9


def test_balls_need_more_cells_than_neighbours():
    with pytest.raises(ValueError, match="5 real and 9 generated cells: with k = 5"):
        prdc(normal(5, 2, seed=0), normal(9, 2, seed=1), k=5)


def test_resamples_of_balls_repeat_the_cells_that_are_judged():
    real, other = normal(30, 3, seed=0), normal(30, 3, seed=1, shift=1.5)
    times = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=2)
    found = prdc(np.float32(real), np.float32(other), k=5)

    numbers = support_metrics(pair_with_draws(real, other, times[:1], times[1:]))

    assert numbers["recall"][1] == pytest.approx(found.recalled.repeat(times[0]).mean())
    assert numbers["coverage"][1] == pytest.approx(
        found.covered.repeat(times[0]).mean()
    )
    assert numbers["precision"][1] == pytest.approx(
        found.precise.repeat(times[1]).mean()
    )


@pytest.mark.parametrize("resampled", ["real", "generated"])
def test_resamples_of_density_repeat_balls_or_the_cells_in_them(resampled):
    real, other = normal(30, 3, seed=0), normal(30, 3, seed=1, shift=1.0)
    times = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30))
    ones = np.ones(30)
    weights = {"real": (times, ones), "generated": (ones, times)}[resampled]
    near = distances(np.float32(real), np.float32(other))
    radii = np.sort(distances(np.float32(real), np.float32(real)))[:, 5]

    numbers = support_metrics(pair_with_draws(real, other, *([of] for of in weights)))

    inside = near < radii[:, None]
    expected = weights[0] @ inside @ weights[1] / (5 * 30)
    assert numbers["density"][1] == pytest.approx(expected)


# Mixing


def test_sides_apart_do_not_mix():
    found = values(normal(100, 3, seed=0), normal(100, 3, seed=1, shift=100.0))

    assert [found[name] for name in MIXING] == pytest.approx([0, 1, 1])


def test_nearest_cell_of_copies_is_the_copy():
    real = normal(50, 3, seed=0)
    found = values(real, real)

    assert [found[name] for name in MIXING[1:]] == [0, 0]
    assert [found[name] for name in PRDC] == [1, 1, 1, 1]


def test_cells_at_equal_distances_mix_as_their_numbers_say():
    n_cells = 20
    corners = 100 * np.eye(2 * n_cells)

    found = values(corners[:n_cells], corners[n_cells:])["ilisi"]

    share = (n_cells - 1) / (2 * n_cells - 1)
    expected = 1 / (share**2 + (1 - share) ** 2) - 1
    assert found == pytest.approx(expected)


def test_mixing_matches_scipy(reference_cells):
    n_cells = min(map(len, reference_cells))
    real, generated = (side[:n_cells] for side in reference_cells)
    cells, is_real = np.vstack([real, generated]), np.arange(2 * n_cells) < n_cells
    n_neighbours = 3 * PERPLEXITY - 1
    fit = NearestNeighbors(n_neighbors=n_neighbours).fit(cells)

    def n_sides(radii, are_real):
        """Return the local inverse Simpson index of sides, as harmonypy defines it."""

        def shares(precision):
            weights = np.exp(-precision * (radii - radii[0]))
            return weights / weights.sum()

        def excess(precision):
            return entropy(shares(precision)) - np.log(PERPLEXITY)

        of_real = shares(brentq(excess, 1e-3, 1e3, xtol=1e-12))[are_real].sum()
        return 1 / (of_real**2 + (1 - of_real) ** 2)

    radii, rows = fit.kneighbors()
    expected = np.array([n_sides(*of) for of in zip(radii, is_real[rows], strict=True)])
    found = [
        local_mixing(neighbours(*sides, n_neighbours), n_neighbours).n_sides
        for sides in ((real, generated), (generated, real))
    ]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
    ilisi = values(real, generated)["ilisi"]
    assert ilisi == pytest.approx(expected.mean() - 1, abs=1e-6)


def test_neighbour_weights_have_the_perplexity():
    near = np.sort(np.random.default_rng(0).gamma(5.0, size=(6, 40)), axis=1)
    near *= np.geomspace(1e-6, 1e6, 6)[:, None]

    weights = neighbour_weights(near, 12.0)

    entropy = -(weights * np.log(weights)).sum(axis=1)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    np.testing.assert_allclose(np.exp(entropy), 12.0, rtol=1e-6)
    # An exponential of the distance: logarithms fall in proportion to it.
    slopes = np.diff(np.log(weights)) / np.diff(near)
    np.testing.assert_allclose(slopes, slopes[:, :1].repeat(39, axis=1), rtol=1e-5)


def test_neighbours_at_one_distance_weigh_the_same():
    weights = neighbour_weights(np.full((2, 10), 3.0), 4.0)

    np.testing.assert_allclose(weights, 0.1)


def mean_mixing(cells, sides, times):
    """Return the mean LISI of all cells, neighbours counted as often as they occur."""
    apart = cdist(cells, cells)
    np.fill_diagonal(apart, np.inf)
    order = np.argsort(apart, axis=1)[:, :89]
    weights = neighbour_weights(np.take_along_axis(apart, order, axis=1), 30.0)
    weights = weights * times[order]
    share = (weights * sides[order]).sum(axis=1) / weights.sum(axis=1)
    lisi = 1 / (share**2 + (1 - share) ** 2)
    return np.mean([np.average(lisi[of], weights=times[of]) for of in (sides, ~sides)])


def test_resamples_of_mixing_are_the_tangent_of_repeating_neighbours():
    real, other = normal(60, 3, seed=0), normal(60, 3, seed=1, shift=0.7)
    rng = np.random.default_rng(0)
    times = rng.multinomial(60, np.full(60, 1 / 60), size=2)
    cells, sides = np.float32(np.vstack([real, other])), np.arange(120) < 60

    pair = pair_with_draws(real, other, times[:1], times[1:])
    numbers = support_metrics(pair)["ilisi"]

    step = 1e-4 * (times.ravel() - 1.0)
    change = mean_mixing(cells, sides, 1 + step) - mean_mixing(cells, sides, 1 - step)
    assert numbers[0] == pytest.approx(mean_mixing(cells, sides, np.ones(120)) - 1)
    assert numbers[1] - numbers[0] == pytest.approx(change / 2e-4, rel=1e-3)


def test_nearest_neighbour_accuracies_match_scikit_learn():
    real, other = normal(80, 3, seed=0), normal(80, 3, seed=1, shift=0.8)
    cells, sides = np.float32(np.vstack([real, other])), np.arange(160) < 80

    own = [
        KNeighborsClassifier(1)
        .fit(np.delete(cells, i, axis=0), np.delete(sides, i))
        .predict(cells[i : i + 1])[0]
        == sides[i]
        for i in range(160)
    ]

    found = values(real, other)
    assert found["nearest_neighbour_accuracy_real"] == np.mean(own[:80])
    assert found["nearest_neighbour_accuracy_generated"] == np.mean(own[80:])
    assert 0.5 < np.mean(own) < 0.95


def test_nearest_cells_on_both_sides_count_half():
    real, generated = np.array([[0.0], [1.0], [9.0]]), np.array([[2.0], [9.5]])

    found = nearest_is_own(neighbours(real, generated, 2))

    np.testing.assert_array_equal(found, [1, 0.5, 0])


def test_nearest_own_cells_are_all_others_where_cells_are_few():
    found = nearest_own(np.array([[0.0], [1.0], [5.0]]), 9)

    np.testing.assert_array_equal(np.sort(found.distances), [[1, 5], [1, 4], [4, 5]])
    np.testing.assert_array_equal(np.sort(found.rows), [[1, 2], [0, 2], [0, 1]])


def test_distances_are_equal_wherever_they_are_computed():
    cells = normal(40, 20, seed=0).astype(np.float32) * 100

    found = distances(cells, cells[::-1])[:, ::-1]

    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(np.diagonal(found), np.zeros(40))
