"""Splits: disjoint, complete, of the exact size, the same in every process."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellgan.config.input import SplitParameters
from cellgan.errors import DataError
from preprocessing.splits import assign_splits
from tests.stored import stored_arrays

FRESH_PROCESS = """
import hashlib, numpy as np
from cellgan.config.input import SplitParameters
from preprocessing.splits import assign_splits
codes = np.arange(500) % 7
split = SplitParameters(valid_cells=100, test_cells=50, split_seed=3)
splits = assign_splits(codes, tuple("ABCDEFG"), split)
print(hashlib.sha256("".join(splits).encode()).hexdigest())
"""


def counts_of(splits: np.ndarray, codes: np.ndarray, name: str) -> list[int]:
    return np.bincount(codes[splits == name], minlength=codes.max() + 1).tolist()


def test_balanced_split_has_the_numbers_of_the_reference(reference_dir):
    stored = stored_arrays(reference_dir / "scgan.npz")
    sizes = stored["in/split/cluster_sizes"]
    codes = np.repeat(np.arange(len(sizes)), sizes)
    split = SplitParameters(
        valid_cells=int(stored["in/split/valid_cells"]),
        test_cells=int(stored["in/split/test_cells"]),
    )
    splits = assign_splits(codes, tuple(map(str, range(len(sizes)))), split)
    for name in ("train", "valid", "test"):
        expected = stored[f"out/split/{name}_per_cluster"].tolist()
        assert counts_of(splits, codes, name) == expected


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6).filter(lambda s: sum(s) > 1),
    st.data(),
)
def test_balanced_split_takes_the_share_of_each_label_rounded_down(sizes, data):
    n_cells = sum(sizes)
    n_valid = data.draw(st.integers(0, n_cells - 1))
    n_test = data.draw(st.integers(0, n_cells - 1 - n_valid))
    codes = np.random.default_rng(0).permutation(np.repeat(range(len(sizes)), sizes))
    names = tuple(f"label {code}" for code in range(len(sizes)))
    split = SplitParameters(valid_cells=n_valid, test_cells=n_test)
    splits = assign_splits(codes, names, split)
    valid = [int(size / n_cells * n_valid) for size in sizes]
    test = [int(size / n_cells * n_test) for size in sizes]
    assert counts_of(splits, codes, "valid") == valid
    assert counts_of(splits, codes, "test") == test
    assert np.isin(splits, ["train", "valid", "test"]).all()


@given(st.integers(2, 200), st.data())
def test_random_split_takes_exactly_the_numbers_asked_for(n_cells, data):
    n_valid = data.draw(st.integers(0, n_cells - 1))
    n_test = data.draw(st.integers(0, n_cells - 1 - n_valid))
    split = SplitParameters(
        balanced_split=False, valid_cells=n_valid, test_cells=n_test
    )
    splits = assign_splits(np.zeros(n_cells, dtype=int), ("only",), split)
    assert (splits == "valid").sum() == n_valid
    assert (splits == "test").sum() == n_test


def test_split_is_the_same_in_a_fresh_process():
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "77", "PYTHONPATH": ":".join(sys.path)},
    )
    split = SplitParameters(valid_cells=100, test_cells=50, split_seed=3)
    splits = assign_splits(np.arange(500) % 7, tuple("ABCDEFG"), split)
    digest = hashlib.sha256("".join(splits).encode()).hexdigest()
    assert fresh.stdout.strip() == digest


def test_another_seed_draws_other_cells():
    codes = np.arange(400) % 3
    first, second = (
        assign_splits(
            codes, tuple("ABC"), SplitParameters(valid_cells=100, split_seed=seed)
        )
        for seed in (0, 1)
    )
    shared = ((first == "valid") & (second == "valid")).sum()
    assert 5 < shared < 50  # 25 expected by chance, standard deviation 3.8


def test_default_seed_is_zero():
    codes = np.arange(90) % 3
    default, zero = (
        assign_splits(
            codes, tuple("ABC"), SplitParameters(valid_cells=30, split_seed=seed)
        )
        for seed in ("default", 0)
    )
    assert (default == zero).all()


def test_every_cell_of_a_label_is_drawn_with_the_same_chance():
    codes = np.repeat([0, 1], [30, 10])
    drawn = np.zeros(40)
    for seed in range(400):
        split = SplitParameters(valid_cells=12, test_cells=8, split_seed=seed)
        drawn += assign_splits(codes, ("A", "B"), split) != "train"
    # A half of the cells is drawn; the standard error of a share is 0.025.
    np.testing.assert_allclose(drawn / 400, 0.5, atol=5 * 0.025)


def test_held_out_categories_go_entirely_to_their_split():
    donor = np.array(["d1", "d2", "d3", "d4"])[np.arange(200) % 4]
    codes = np.arange(200) // 100
    split = SplitParameters(
        by="donor", test_values=("d2",), valid_values=("d4",), valid_cells=20
    )
    splits = assign_splits(codes, ("A", "B"), split, donor)
    assert (splits[donor == "d2"] == "test").all()
    assert (splits[donor == "d4"] == "valid").all()
    rest = np.isin(donor, ["d1", "d3"])
    assert (splits[rest] == "valid").sum() == 20
    assert (splits[rest] == "train").sum() == 80


def test_held_out_value_that_no_cell_has_is_refused():
    split = SplitParameters(by="donor", test_values=("donor_1",), valid_cells=1)
    expected = (
        r'split.test_values: no cell has "donor_1" in obs column "donor". Did you '
    )
    with pytest.raises(DataError, match=expected + 'mean "donor1"'):
        assign_splits(
            np.zeros(4, int), ("A",), split, np.array(["donor1", "donor2"] * 2)
        )


def test_held_out_category_that_is_all_of_a_label_is_refused():
    codes = np.repeat([0, 1], 50)
    donor = np.repeat(["d1", "d2"], 50)
    split = SplitParameters(by="donor", test_values=("d2",), valid_cells=5)
    with pytest.raises(DataError, match=r'no training cell of "B" \(50 cells\)'):
        assign_splits(codes, ("A", "B"), split, donor)


def test_random_split_that_takes_all_of_a_label_is_refused():
    codes = np.array([0] * 40 + [1])
    split = SplitParameters(balanced_split=False, valid_cells=38, split_seed=1)
    with pytest.raises(
        DataError, match=r'"rare" \(1 cells\)[\s\S]*balanced_split to t'
    ):
        assign_splits(codes, ("common", "rare"), split)


@pytest.mark.parametrize(
    ("valid", "test", "advice"),
    [
        (2000, 0, "Set valid_cells to 140 "),
        (700, 0, "Set valid_cells to 140 "),
        (500, 200, "Set valid_cells and test_cells to 70 each"),
    ],
)
def test_more_held_out_cells_than_there_are_is_answered_with_numbers(
    valid, test, advice
):
    split = SplitParameters(valid_cells=valid, test_cells=test)
    expected = (
        rf"700 cells .* valid_cells is {valid} and test_cells {test}[\s\S]*{advice}"
    )
    with pytest.raises(DataError, match=expected):
        assign_splits(np.arange(700) % 2, ("A", "B"), split)
