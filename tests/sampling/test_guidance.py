from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.sampling.guidance import (
    Branch,
    branch_codes,
    drop_covariates,
    drop_each_covariate,
    guidance_branches,
    nested_branches,
)

NULL = {"cell_type": 4, "site": 2}
CODES = {
    "cell_type": np.array([0, 3, 1, 3], np.int32),
    "site": np.array([1, 1, 0, 1], np.int32),
}
SEED = tf.constant([3, 4])


def by_names(branches):
    return {" ".join(sorted(kept)): weight for kept, weight in branches}


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ({}, {"": 1}),
        ({"cell_type": 0.0, "site": 0.0}, {"": 1}),
        ({"cell_type": 1.0}, {"cell_type": 1}),
        ({"cell_type": 1.0, "site": 0.0}, {"cell_type": 1}),
        ({"cell_type": 3.0}, {"": -2, "cell_type": 3}),
        (
            {"cell_type": 1.0, "site": 2.5},
            {"": -2.5, "cell_type": 1, "site": 2.5},
        ),
        ({"cell_type": 0.5, "site": 0.5}, {"cell_type": 0.5, "site": 0.5}),
    ],
)
def test_only_branches_with_a_weight_are_computed(scales, expected):
    assert by_names(guidance_branches(scales, CODES, NULL)) == expected


def test_covariate_that_is_null_in_all_cells_has_no_branch():
    codes = CODES | {"site": np.full(4, NULL["site"])}
    branches = guidance_branches({"cell_type": 2.0, "site": 5.0}, codes, NULL)
    assert by_names(branches) == {"": -1, "cell_type": 2}
    del codes["site"]
    scales = {"cell_type": 2.0, "site": 5.0}
    assert guidance_branches(scales, codes, NULL) == branches


@pytest.mark.parametrize("kept", [(), ("site",), ("cell_type", "site")])
def test_codes_of_a_branch_are_null_but_for_its_covariates(kept):
    codes = {name: CODES[name] for name in kept}
    found = branch_codes(Branch(frozenset(kept), 1.0), codes, NULL, 4)
    for name, null in NULL.items():
        np.testing.assert_array_equal(found[name], codes.get(name, np.full(4, null)))
    everything = branch_codes(Branch(frozenset(kept), 1.0), CODES, NULL, 4)
    np.testing.assert_equal(everything, found)


def dropped(probability, per="cell", n_cells=30_000):
    codes = {name: tf.zeros((n_cells,), tf.int32) for name in NULL}
    found = drop_covariates(codes, NULL, SEED, probability, per)
    return {name: value.numpy() == NULL[name] for name, value in found.items()}


def test_cells_keep_one_covariate_or_none():
    null = dropped(0.2)
    assert np.all(null["cell_type"] | null["site"])
    # 5 standard errors of a binomial count
    counts = [np.sum(null["cell_type"] & null["site"]), np.sum(~null["site"])]
    expected = np.array([0.2, 0.4]) * 30_000
    bounds = 5 * np.sqrt(expected * np.array([0.8, 0.6]))
    assert np.all(np.abs(counts - expected) < bounds)


def test_a_batch_keeps_the_same_covariate_when_drawn_per_batch():
    kept = {name: np.unique([dropped(0.2, "batch", 5)[name]]) for name in NULL}
    assert all(len(values) == 1 for values in kept.values())


@pytest.mark.parametrize(("probability", "n_null"), [(0.0, 1), (1.0, 2)])
def test_probability_0_always_keeps_one_and_1_none(probability, n_null):
    null = dropped(probability)
    assert np.all(null["cell_type"].astype(int) + null["site"] == n_null)


def test_kept_codes_are_those_of_the_cells_and_repeat_by_seed():
    codes = {name: tf.constant(value) for name, value in CODES.items()}
    first, second = (drop_covariates(codes, NULL, SEED, 0.2) for _ in range(2))
    for name in NULL:
        np.testing.assert_array_equal(first[name], second[name])
        kept = first[name] != NULL[name]
        np.testing.assert_array_equal(first[name][kept], CODES[name][kept])
    assert any(np.any(first[name] != NULL[name]) for name in NULL)


def test_drawing_compiles_by_xla():
    # The draws are others than those of a graph, so the rule is tested.
    codes = {name: tf.zeros((1000,), tf.int32) for name in NULL}
    compiled = tf.function(
        lambda codes: drop_covariates(codes, NULL, SEED, 0.2), jit_compile=True
    )
    kept = sum(
        (value.numpy() != NULL[name]).astype(int)
        for name, value in compiled(codes).items()
    )
    assert kept.max() == 1
    # 5 standard errors of a binomial count
    assert abs(kept.sum() - 800) < 5 * np.sqrt(160)


# Covariates together


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ({}, {"": 1}),
        ({"cell_type": 0.0, "site": 0.0}, {"": 1}),
        ({"cell_type": 1.0}, {"cell_type": 1}),
        ({"cell_type": 1.0, "site": 1.0}, {"cell_type site": 1}),
        ({"cell_type": 1.5, "site": 1.5}, {"": -0.5, "cell_type site": 1.5}),
        (
            {"cell_type": 1.0, "site": 2.5},
            {"": -1.5, "site": 1.5, "cell_type site": 1.0},
        ),
        ({"cell_type": 0.5, "site": 0.0}, {"": 0.5, "cell_type": 0.5}),
    ],
)
def test_nested_branches_are_those_of_the_largest_scales(scales, expected):
    found = nested_branches(scales, CODES, NULL)
    assert by_names(found) == expected
    assert sum(branch.weight for branch in found) == 1


def test_nested_branches_do_not_depend_on_the_order_of_covariates():
    scales = {"cell_type": 1.2, "site": 3.0}
    turned = dict(reversed(scales.items()))
    assert nested_branches(scales, CODES, NULL) == nested_branches(turned, CODES, NULL)


def test_nested_guidance_has_no_jump_where_scales_meet():
    # Predictions without covariates, with each alone, and with both.
    alone = {"": 1.0, "cell_type": 3.0, "site": 7.0, "cell_type site": 4.0}

    def guided(scale):
        branches = nested_branches({"cell_type": scale, "site": 2.0}, CODES, NULL)
        return sum(w * alone[names] for names, w in by_names(branches).items())

    assert guided(2.0) == pytest.approx(1 + 2 * (4 - 1))
    for near in (2.0 - 1e-6, 2.0 + 1e-6):
        assert guided(near) == pytest.approx(guided(2.0), abs=1e-4)


def test_nested_covariate_that_is_null_in_all_cells_is_not_guided():
    codes = CODES | {"site": np.full(4, NULL["site"])}
    branches = nested_branches({"cell_type": 2.0, "site": 5.0}, codes, NULL)
    assert list(by_names(branches).items()) == [("", -1), ("cell_type", 2)]


@pytest.mark.parametrize("dropping", ["independent", "joint"])
@pytest.mark.parametrize(("probability", "expected"), [(0.0, CODES), (1.0, None)])
def test_nothing_or_everything_is_dropped_at_the_ends(dropping, probability, expected):
    codes = {name: tf.constant(of) for name, of in CODES.items()}
    found = drop_each_covariate(codes, NULL, SEED, probability, dropping)
    expected = expected or {name: np.full(4, null) for name, null in NULL.items()}
    for name, of in found.items():
        np.testing.assert_array_equal(of, expected[name])
