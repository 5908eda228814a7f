"""Copies are called a leak, honest cells are not, whatever else differs."""

from __future__ import annotations

import functools

import anndata
import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from cellgan.evaluation.comparison.pairs import Side, concatenate_sides, make_side
from cellgan.evaluation.comparison.space import fit_space, log_expression
from cellgan.evaluation.metrics import memorisation as module
from cellgan.evaluation.metrics import shares
from cellgan.evaluation.metrics.memorisation import memorisation
from tests.evaluation.sides import draw_cells, draw_side, make_frame


@functools.cache
def frame():
    return make_frame()


def training() -> Side:
    return frame().training


@functools.cache
def held_out(n_cells: int = 300) -> Side:
    return draw_side(frame(), 1, n_cells)


@functools.cache
def fresh() -> Side:
    return draw_side(frame(), 2)


def side(counts, labels=None) -> Side:
    labels = np.full(counts.shape[0], "") if labels is None else labels
    return make_side(sp.csr_array(counts), labels, frame().space)


def copies(n_cells: int = 300) -> Side:
    return training().take(np.random.default_rng(3).integers(0, 600, n_cells))


def scaled_copies() -> Side:
    return side(copies().values * np.float32(0.37))


def normalised_copies() -> Side:
    return side(np.expm1(copies().log_values.toarray()))


def some_copies() -> Side:
    return concatenate_sides(fresh().take(np.arange(270)), copies(30))


def recounted_copies() -> Side:
    rng = np.random.default_rng(4)
    return side(rng.poisson(copies().values.toarray()).astype(np.float32))


def values_of(check) -> dict[str, float]:
    return {number.name: number.value for number in check.numbers}


@functools.cache
def check_of(make):
    """Check cells of the same origin as all others."""
    return memorisation(training(), held_out(), make(), seed=0)


# Parts with known answers


def test_nearest_cells_are_those_of_all_distances():
    rng = np.random.default_rng(0)
    cells, others = (rng.normal(size=(n, 5)).astype(np.float32) for n in (1100, 40))
    cells, others = (x / np.linalg.norm(x, axis=1)[:, None] for x in (cells, others))
    found = module.nearest_cells(cells, others, 2)
    expected = cdist(cells, others)
    np.testing.assert_array_equal(found.rows, expected.argsort(axis=1)[:, :2])
    expected.sort(axis=1)
    np.testing.assert_allclose(found.distances, expected[:, :2], atol=2e-3)


def test_nearest_cells_pass_over_the_cell_itself():
    angles = np.array([0.0, 0.1, 0.3])
    cells = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = module.nearest_cells(cells, cells, own=np.arange(3))
    np.testing.assert_array_equal(found.rows[:, 0], [1, 0, 1])
    chords = 2 * np.sin([0.05, 0.05, 0.1])
    np.testing.assert_allclose(found.distances[:, 0], chords, rtol=1e-4)


def test_equal_cells_have_no_distance():
    cells = np.random.default_rng(1).normal(size=(200, 300)).astype(np.float32)
    cells /= np.linalg.norm(cells, axis=1)[:, None]
    assert (module.nearest_cells(cells, cells).distances == 0).all()


def test_closest_records_count_ties_half_and_shared_records_once():
    def near(distances, rows):
        return module.NearestCells(
            np.array(distances)[:, None], np.array(rows)[:, None]
        )

    of_training = near([1.0, 1.0, 3.0, 2.0], [0, 0, 0, 1])
    of_held_out = near([2.0, 2.0, 1.0, 2.0], [0, 0, 0, 1])
    found = module.closest_records(of_training, of_held_out)
    assert found.value == 2.5 / 4
    expected = shares.estimated_share(2.5 / 4, 16 / 6)  # records seen 2, 1, 1 times
    assert found == expected


def test_near_copies_of_few_cells_do_not_decide():
    rows = np.repeat([0, 1, 2], 100)
    few = module.near_copy_share(np.ones(300, dtype=bool), rows)
    assert (few.value, few.at_least) == (1.0, 0.0)
    many = module.near_copy_share(np.ones(300, dtype=bool), np.arange(300) % 6)
    assert many == shares.estimated_share(1.0, 6)


# The whole check


def test_fresh_cells_are_no_leak():
    check = check_of(fresh)
    assert not check.leaks
    assert check.reasons == ()
    assert check.caution is None
    values = values_of(check)
    assert values["exact_copies"] == 0
    assert values["near_copies"] < 0.02
    assert values["nndr_ratio"] == pytest.approx(1, abs=0.1)
    for name in ("dcr_share", "membership_auc", "membership_auc_density"):
        assert values[name] == pytest.approx(0.5, abs=0.12)  # 5 standard errors


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (copies, 1.0),
        (scaled_copies, 1.0),
        (normalised_copies, 1.0),
        (some_copies, 0.1),
    ],
)
def test_copies_are_counted_and_called_a_leak(make, share):
    check = check_of(make)
    assert check.leaks
    assert values_of(check)["exact_copies"] == pytest.approx(share)
    assert values_of(check)["near_copies"] >= share
    said = f"{share:.1%} of the generated cells equal a training cell"
    assert check.reasons[0].startswith(said)


def test_copies_are_found_by_every_attack():
    values = values_of(check_of(copies))
    # 300 draws hit 39 % of the 600 training cells: half of what is left is chance
    assert values["membership_auc"] == pytest.approx(0.7, abs=0.06)
    assert values["membership_auc_density"] == pytest.approx(0.7, abs=0.06)
    assert values["dcr_share"] > 0.6
    assert values["nndr_ratio"] < 0.01


def test_noisy_copies_are_called_near_copies():
    check = check_of(recounted_copies)
    assert check.leaks
    assert values_of(check)["exact_copies"] == 0
    assert values_of(check)["near_copies"] > 0.4
    assert any("nearly a training cell" in reason for reason in check.reasons)


def test_ceiling_is_what_fresh_held_out_cells_reach():
    check = check_of(copies)
    ceilings = {number.name: number.ceiling for number in check.numbers}
    assert ceilings["exact_copies"] == 0
    assert ceilings["near_copies"] < 0.02
    assert ceilings["nndr_ratio"] == 1
    for name in ("dcr_share", "membership_auc", "membership_auc_density"):
        assert ceilings[name] == pytest.approx(0.5, abs=0.17)  # 150 cells


@pytest.mark.parametrize("seed", range(5))
def test_generated_cells_that_are_all_alike_are_no_leak(seed):
    one = fresh().take(np.full(300, seed))
    assert not memorisation(training(), held_out(), one, seed=seed).leaks


@pytest.mark.parametrize("seed", range(5))
def test_label_means_are_no_leak(seed):
    cells = draw_cells(10 + seed)
    of_training = training().values.toarray()
    means = [
        of_training[training().labels == label].mean(axis=0) for label in cells.labels
    ]
    generated = side(np.array(means), cells.labels)
    assert not memorisation(training(), held_out(), generated, seed=seed).leaks


def test_smooth_cells_are_near_to_all_and_not_to_one():
    cells = draw_cells(2)
    label_means = {
        label: training().values[training().labels == label].mean(axis=0)
        for label in np.unique(cells.labels)
    }
    means = np.array([label_means[label] for label in cells.labels])
    generated = side((means + cells.counts.toarray()) / 2, cells.labels)
    check = memorisation(training(), held_out(), generated, seed=0)
    assert not check.leaks
    nearest = check.generated_to_training
    assert (nearest < np.quantile(check.held_out_to_training, 0.01)).mean() > 0.3
    assert values_of(check)["near_copies"] < 0.1


def test_one_copy_is_taken_for_chance():
    one = concatenate_sides(fresh().take(np.arange(299)), copies(1))
    check = memorisation(training(), held_out(), one, seed=0)
    assert values_of(check)["exact_copies"] == pytest.approx(1 / 300)
    assert not check.leaks


def test_cells_with_few_genes_are_not_called_copies():
    few = np.zeros((600, 60), np.float32)
    few[:, :4] = np.random.default_rng(5).integers(1, 3, (600, 4))
    trained, fresh_cells, made = (side(part) for part in np.split(few, 3))
    check = memorisation(trained, fresh_cells, made, seed=0)
    assert values_of(check)["exact_copies"] is None
    assert not check.leaks


def test_copies_that_held_out_cells_are_as_well_are_no_leak():
    rng = np.random.default_rng(7)
    profiles = rng.poisson(3.0, (5, 60)).astype(np.float32) + 1
    trained, fresh_cells, made = (
        side(profiles[rng.integers(0, 5, n)]) for n in (600, 300, 300)
    )
    check = memorisation(trained, fresh_cells, made, seed=0)
    assert values_of(check)["exact_copies"] == 1
    assert not check.leaks


def shifted_held_out() -> Side:
    """Draw cells of another origin: some genes are expressed more in them."""
    cells = draw_cells(1)
    factors = np.exp(np.random.default_rng(8).normal(0, 1.5, 60))
    counts = np.random.default_rng(9).poisson(cells.counts.toarray() * factors)
    return side(counts.astype(np.float32), cells.labels)


def test_another_origin_of_held_out_cells_is_no_leak_but_a_caution():
    check = memorisation(training(), shifted_held_out(), fresh(), seed=0)
    values = values_of(check)
    assert values["dcr_share"] > 0.8
    assert values["membership_auc"] > 0.7
    assert not check.leaks
    assert "different origin" in check.caution


def test_copies_are_a_leak_whatever_the_origin_of_held_out_cells():
    check = memorisation(training(), shifted_held_out(), some_copies(), seed=0)
    assert check.leaks


def test_other_shares_of_labels_are_no_other_origin():
    rows = np.concatenate(
        [
            np.flatnonzero(training().labels == label)[:n]
            for label, n in (("type A", 110), ("type B", 100), ("type C", 20))
        ]
    )
    check = memorisation(training().take(rows), held_out(), fresh(), seed=0)
    assert check.caution is None
    values = values_of(check)
    assert values["dcr_share"] == pytest.approx(0.5, abs=0.15)
    assert values["membership_auc"] == pytest.approx(0.5, abs=0.17)


def donors_of(names: str, n_cells: int):
    return np.resize(names.split(), n_cells)


def test_donors_are_attacked_by_their_mean_distance():
    names = donors_of("a b c", 600), donors_of("d e f", 300)
    check = memorisation(training(), held_out(), copies(), seed=0, donors=names)
    assert values_of(check)["membership_auc_donors"] == 1
    without = check_of(copies)
    assert values_of(without)["membership_auc_donors"] is None


def test_donors_on_both_sides_are_left_out_and_too_few_are_said():
    names = donors_of("a b c d", 600), donors_of("d e f", 300)
    check = memorisation(training(), held_out(), fresh(), seed=0, donors=names)
    assert values_of(check)["membership_auc_donors"] is None
    said = "3 are in training alone and 2 among held-out cells alone, 3 of each"
    assert said in check.caution


def test_too_few_cells_say_nothing():
    check = memorisation(training(), held_out(30), fresh(), seed=0)
    assert check.numbers == ()
    assert not check.leaks
    assert "fewer than 20 cells" in check.caution


def test_order_of_generated_cells_does_not_matter():
    cells = some_copies()
    order = np.random.default_rng(11).permutation(len(cells))
    first, second = (
        memorisation(training(), held_out(), made, seed=0)
        for made in (cells, cells.take(order))
    )
    assert values_of(first) == pytest.approx(values_of(second), nan_ok=True)


def test_same_seed_gives_the_same_numbers():
    first, second = (
        memorisation(training(), held_out(), fresh(), seed=5).numbers for _ in range(2)
    )
    assert repr(first) == repr(second)


def test_distances_are_those_of_every_cell():
    check = check_of(some_copies)
    assert check.generated_to_training.shape == (300,)
    assert check.held_out_to_training.shape == (300,)
    assert (check.generated_to_training == 0).sum() == 30
    assert (check.held_out_to_training > 0).all()


# Real cells


@pytest.fixture(scope="module")
def kang(data_dir):
    return anndata.read_h5ad(data_dir / "kang_ctrl_pbmc_8donors_raw.h5ad")


def sides_of(cells, *groups):
    logged = log_expression(cells.X)
    space = fit_space(logged[groups[0]], seed=0)
    labels = cells.obs["cell_type"].to_numpy(str)
    return [make_side(cells.X[rows], labels[rows], space) for rows in groups]


@pytest.mark.slow
@pytest.mark.realdata
def test_fresh_real_cells_are_no_leak_and_copies_are(kang):
    order = np.random.default_rng(0).permutation(kang.n_obs)
    trained, unseen, new = sides_of(kang, *np.split(order[:8000], [4000, 6000]))
    check = memorisation(trained, unseen, new, seed=0)
    assert not check.leaks
    assert check.caution is None
    assert values_of(check)["membership_auc"] == pytest.approx(0.5, abs=0.046)
    rows = np.random.default_rng(1).integers(0, 4000, 200)
    mixed = concatenate_sides(new.take(np.arange(1800)), trained.take(rows))
    assert memorisation(trained, unseen, mixed, seed=0).leaks


@pytest.mark.slow
@pytest.mark.realdata
def test_fresh_cells_of_training_donors_are_no_leak(kang):
    is_trained = kang.obs["donor"].astype(str).isin(["1015", "1256", "1488", "1244"])
    rng = np.random.default_rng(0)
    ours, others = (
        rng.permutation(np.flatnonzero(x)) for x in (is_trained, ~is_trained)
    )
    trained, unseen, new = sides_of(kang, ours[:4000], others[:2000], ours[4000:6000])
    check = memorisation(trained, unseen, new, seed=0)
    assert not check.leaks
    assert "different origin" in check.caution
    values = values_of(check)
    assert values["membership_auc_density"] == pytest.approx(0.5, abs=0.046)
