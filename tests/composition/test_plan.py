"""Which cells make which corpus: slots, shares, exclusion, budgets."""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgan.composition.eligible import Eligible, exclude, hold_out, seeded_order
from cellgan.composition.plan import part_sizes, plan_corpora, shares_of, slot_order
from cellgan.composition.study import training_steps
from cellgan.config.composition import Budget, EvaluationSet, MixtureBlock, Part
from cellgan.config.parameters import StudyParameters
from cellgan.config.reading import parse_study
from cellgan.config.sources import Stratify
from cellgan.errors import ConfigError


def eligible(n_cells: int, **others: Any) -> Eligible:
    """Return cells in every third row of a file."""
    rows = np.arange(n_cells, dtype=np.int64) * 3
    ids = np.array([f"cell {row}" for row in rows], dtype=object)
    fields = {"groups": None, "strata": None, "are_numbered": False, **others}
    return Eligible(rows, ids, **fields)


def study(mixtures: dict[str, Any], **others: Any) -> StudyParameters:
    names = {part["source"] for parts in mixtures.values() for part in parts}
    block = {
        "sources": {name: {"file": f"{name}.h5ad"} for name in sorted(names)},
        "mixtures": mixtures,
        "baseline": next(iter(mixtures)),
        "evaluations": {"e": {"external": {"file": "e.h5ad"}}},
        **others,
    }
    return parse_study({"composition": block, "model": {"type": "LDVAE"}}, "test")


def mixtures_of(**mixtures: list[Part]) -> dict[str, MixtureBlock]:
    return {name: MixtureBlock(parts=tuple(parts)) for name, parts in mixtures.items()}


# Permutations.


def test_order_is_that_of_the_raw_numbers_of_pcg64() -> None:
    # NumPy keeps these numbers the same in all versions and on all machines.
    assert np.random.PCG64(7).random_raw(3).tolist() == [
        11530976094092348043,
        16550673365885938325,
        14308875409591826786,
    ]
    assert seeded_order(3, 7).tolist() == [0, 2, 1]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 200), st.integers(1, 2**31))
def test_order_is_a_permutation(n_cells: int, seed: int) -> None:
    assert sorted(seeded_order(n_cells, seed).tolist()) == list(range(n_cells))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.integers(1, 99))
def test_every_block_has_strata_in_proportion(sizes: list[int], seed: int) -> None:
    strata = np.repeat(np.arange(len(sizes)), sizes)
    order = slot_order(len(strata), seed, strata, Stratify(by="x"))

    assert sorted(order.tolist()) == list(range(len(strata)))
    seen = np.cumsum(strata[order][:, None] == np.arange(len(sizes)), axis=0)
    expected = np.outer(np.arange(1, len(strata) + 1), np.array(sizes) / len(strata))
    assert np.abs(seen - expected).max() <= len(sizes)


def test_equal_strata_come_in_turns_until_one_is_used_up() -> None:
    strata = np.array([0] * 6 + [1] * 3 + [2] * 2)
    order = slot_order(11, 5, strata, Stratify(by="x", how="equal"))

    assert strata[order].tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 0, 0, 0]


# Numbers of cells.


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10_000), st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_shares_sum_to_the_total_and_are_off_by_less_than_one(
    total: int, weights: list[float]
) -> None:
    exact = [Fraction(str(weight)) for weight in weights]
    shares = shares_of(total, exact)

    assert sum(shares) == total
    assert all(
        abs(share - total * weight / sum(exact)) < 1
        for share, weight in zip(shares, exact, strict=True)
    )


def test_weights_that_floats_cannot_hold_are_taken_as_written() -> None:
    assert shares_of(10, [Fraction(str(w)) for w in (0.1, 0.2, 0.7)]) == (1, 2, 7)


def test_slots_are_as_wide_as_the_largest_part_or_the_budget() -> None:
    mixtures = mixtures_of(
        base=[Part(source="a", cells=100)],
        more=[Part(source="a", cells=60), Part(source="b", fraction=0.5)],
        rest=[Part(source="b", cells="all")],
    )
    sizes, widths = part_sizes(mixtures, {"a": None, "b": 40}, {"a": 200, "b": 80})

    assert sizes == {"base": (100,), "more": (60, 40), "rest": (40,)}
    assert widths == {"a": 100, "b": 40}


def test_size_match_shrinks_parts_to_the_smallest() -> None:
    mixture = MixtureBlock(
        parts=(Part(source="a", cells=50), Part(source="b", cells="all")),
        size_match=True,
    )
    sizes, _ = part_sizes({"m": mixture}, {"a": None, "b": None}, {"a": 99, "b": 20})

    assert sizes == {"m": (20, 20)}


@pytest.mark.parametrize(
    ("part", "budget", "message"),
    [
        (
            Part(source="a", cells=101),
            None,
            r'mixtures.m, part 1: 101 cells of slot 0 of source "a", but 100 are avai',
        ),
        (
            Part(source="a", slot=2, cells=40),
            40,
            r'slot 2 of source "a", after 80 of the slots before, but 100 are availabl',
        ),
        (
            Part(source="a", cells=50),
            40,
            r'50 cells of source "a", whose slots have 40 \(sources.a.cells\)',
        ),
        (Part(source="a", fraction=0.001), None, "0 cells of slot 0"),
    ],
)
def test_part_larger_than_its_source_is_told_what_there_is(
    part: Part, budget: int | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        part_sizes(mixtures_of(m=[part]), {"a": budget}, {"a": 100})


# Corpora.

MIXTURES: dict[str, Any] = {
    "base": [{"source": "a", "cells": 30}],
    "control": [{"source": "a", "cells": 30}, {"source": "a", "cells": 30, "slot": 1}],
    "plus": [{"source": "a", "cells": 30}, {"source": "b", "cells": 30}],
    "b": [{"source": "b", "cells": 30}],
}


def rows_of(asked: StudyParameters, **cells: Eligible) -> dict[Any, list[set[int]]]:
    return {
        (corpus.mixture, corpus.seed): [
            {*part.train.tolist(), *part.valid.tolist()} for part in corpus.parts
        ]
        for corpus in plan_corpora(asked.composition, cells)
    }


def test_same_slot_is_the_same_cells_and_another_one_is_disjoint() -> None:
    asked = study(MIXTURES, seeds=[0, 1])
    found = rows_of(asked, a=eligible(100), b=eligible(40))

    for seed in (0, 1):
        (base,) = found["base", seed]
        assert len(base) == 30
        assert found["control", seed][0] == found["plus", seed][0] == base
        assert not found["control", seed][1] & base
        assert found["b", seed][0] == found["plus", seed][1]
    assert found["base", 0] != found["base", 1]


@pytest.mark.parametrize(
    ("scope", "same_cells", "training_seeds"),
    [("both", False, [4, 9]), ("data", False, [4, 4]), ("training", True, [4, 9])],
)
def test_seed_scope_says_what_differs_between_seeds(
    scope: str,
    same_cells: object,
    training_seeds: list[int],
) -> None:
    from cellgan.composition.plan import training_seed

    asked = study(MIXTURES, seeds=[4, 9], seed_scope=scope)
    found = rows_of(asked, a=eligible(100), b=eligible(40))

    assert (found["base", 4] == found["base", 9]) is same_cells
    composition = asked.composition
    assert [training_seed(composition, s) for s in (4, 9)] == training_seeds


def test_changing_one_mixture_changes_no_other_where_slots_have_a_budget() -> None:
    cells = {"a": eligible(100), "b": eligible(40)}
    sources = {
        "a": {"file": "a.h5ad", "cells": 30},
        "b": {"file": "b.h5ad", "cells": 30},
    }
    changed = {**MIXTURES, "plus": [MIXTURES["plus"][0], {"source": "b", "cells": 9}]}
    before = rows_of(study(MIXTURES, sources=sources), **cells)
    after = rows_of(study(changed, sources=sources), **cells)

    assert {key for key in before if before[key] != after[key]} == {("plus", 0)}
    assert after["plus", 0][1] < before["plus", 0][1]


def test_validation_cells_are_a_share_of_every_part() -> None:
    asked = study(MIXTURES, valid_fraction=0.1)
    (base, *_) = plan_corpora(
        asked.composition, {"a": eligible(100), "b": eligible(40)}
    )

    (part,) = base.parts
    assert (len(part.train), len(part.valid), base.n_train) == (27, 3, 27)
    assert not set(part.train) & set(part.valid)


# Evaluation sets, and what is left to train on.


def test_held_out_cells_are_the_same_for_all_seeds_of_a_study() -> None:
    asked = EvaluationSet(source="a", cells=10)

    assert hold_out(asked, "e", eligible(50)).rows.tolist() == (
        hold_out(asked, "e", eligible(50)).rows.tolist()
    )
    assert len(hold_out(asked, "e", eligible(50))) == 10
    with pytest.raises(ConfigError, match=r"evaluations\.e: 10 cells, but 9 are avail"):
        hold_out(asked, "e", eligible(9))


def test_group_that_is_not_there_is_refused_with_those_that_are() -> None:
    cells = eligible(4, groups=np.array(["x", "x", "y", "y"], dtype=object))
    asked = EvaluationSet(source="a", groups=("y",))

    assert hold_out(asked, "e", cells).rows.tolist() == [6, 9]
    with pytest.raises(ConfigError, match=r'no eligible cell of group "z".*: x, y'):
        hold_out(dataclasses.replace(asked, groups=("z",)), "e", cells)


def groups(*names: str) -> np.ndarray:
    return np.array(names, dtype=object)


CELLS = eligible(4, groups=groups("x", "x", "y", "z"))
OTHERS = dataclasses.replace(
    eligible(2, groups=groups("y", "w")), ids=groups("cell 0", "new")
)


@pytest.mark.parametrize(
    ("how", "left", "numbers"),
    [
        ("cells", [3, 6, 9], {"held_out": 0, "same_cell": 1, "same_group": 0}),
        ("groups", [3, 9], {"held_out": 0, "same_cell": 1, "same_group": 1}),
    ],
)
def test_shared_cells_and_groups_are_taken_out(
    how: str, left: list[int], numbers: dict[str, int]
) -> None:
    found = exclude("a", CELLS, {"e": (None, OTHERS)}, how)

    assert found.cells.rows.tolist() == left
    assert found.removed == {"e": numbers}


def test_held_out_cells_of_a_source_go_by_their_rows() -> None:
    found = exclude("a", CELLS, {"e": ("a", CELLS.take(np.array([1])))}, "cells")

    assert found.cells.rows.tolist() == [0, 6, 9]
    assert found.removed["e"]["held_out"] == 1


def test_evaluation_donor_that_is_also_trained_on_is_refused() -> None:
    with pytest.raises(
        ConfigError,
        match=r'evaluations\.e: "y" is also trained on: 1 cells of source "a".*exclude',
    ):
        exclude("a", CELLS, {"e": (None, OTHERS)}, "refuse")


def test_evaluation_cell_that_is_also_trained_on_is_refused() -> None:
    cells = dataclasses.replace(CELLS, groups=None)

    with pytest.raises(ConfigError, match=r'1 cells are also in source "a".*"cell 0"'):
        exclude("a", cells, {"e": (None, OTHERS)}, "refuse")


@pytest.mark.parametrize("which", ["cells", "others"])
def test_row_numbers_cannot_tell_shared_cells(which: str) -> None:
    cells = dataclasses.replace(CELLS, are_numbered=which == "cells")
    others = dataclasses.replace(OTHERS, are_numbered=which == "others")

    with pytest.raises(
        ConfigError, match=r"are mere row numbers\. Name a column of ids"
    ):
        exclude("a", cells, {"e": (None, others)}, "groups")


# Budgets.

CORPORA = {
    "base-seed0": {"mixture": "base", "seed": 0, "n_train": 600},
    "plus-seed0": {"mixture": "plus", "seed": 0, "n_train": 1200},
}


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        (Budget(steps=50), (50, 50)),
        (Budget(cells_seen=1000), (8, 8)),
        (Budget(epochs=60.0), (282, 282)),
        (Budget(epochs=60.0, equal=False), (282, 563)),
    ],
)
def test_budget_is_equal_for_all_mixtures_unless_told_otherwise(
    budget: Budget, steps: tuple[int, int]
) -> None:
    asked = study(MIXTURES)

    assert asked.training.batch_size == 128
    assert (
        tuple(training_steps(asked, budget, CORPORA, name)["vae"] for name in CORPORA)
        == steps
    )
