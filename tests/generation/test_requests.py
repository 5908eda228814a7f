"""What a user asks for is understood exactly, or refused with advice."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellgan.errors import ConfigError
from cellgan.generation.requests import (
    check_library_sizes,
    check_save_path,
    parse_cells_no,
)
from tests.manifests import make_manifest

LABELS = ("B cell", "CD14+ = mono", "NK's")
MANIFEST = make_manifest(labels=LABELS, trained=(20, 5, 75))


def conditional(request):
    return parse_cells_no(request, MANIFEST, is_conditional=True)


def unconditional(request):
    return parse_cells_no(request, MANIFEST, is_conditional=False)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (["10", "0", "7"], (10, 0, 7)),
        ((10, np.int64(0), 7), (10, 0, 7)),
        (np.array([1, 2, 3]), (1, 2, 3)),
        (["like-data"], (20, 5, 75)),
        ("like-data", (20, 5, 75)),
        (["NK's=4"], (0, 0, 4)),
        (["NK's=4", "B cell=9"], (9, 0, 4)),
        (["CD14+ = mono=3"], (0, 3, 0)),
        ({"CD14+ = mono": 3, "B cell": 1}, (1, 3, 0)),
    ],
)
def test_request_gives_numbers_in_label_order(request_, expected):
    assert conditional(request_) == expected


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (["12"], (12,)),
        (12, (12,)),
        (["10", "0", "7"], (17,)),
        ("like-data", (100,)),
    ],
)
def test_unconditional_request_is_one_number(request_, expected):
    assert unconditional(request_) == expected


def test_single_label_takes_a_single_number():
    manifest = make_manifest(labels=("all",), trained=(9,))
    assert parse_cells_no(["5"], manifest, is_conditional=True) == (5,)


@given(st.lists(st.integers(0, 10**7), min_size=3, max_size=3).filter(any))
def test_parsed_numbers_are_a_valid_request(numbers):
    parsed = conditional([str(number) for number in numbers])
    assert parsed == tuple(numbers) == conditional(parsed)
    total = unconditional(parsed)
    assert total == (sum(numbers),) == unconditional(total)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            ["10", "20"],
            r'--cells_no: 2 numbers \(10 20\) for 3 values of "cluster": B cell, '
            r"CD14\+ = mono, NK's\.\n    Give one number per value, in this order",
        ),
        (["10"], r"1 number \(10\) for 3 values"),
        (["1", "2", "3", "4"], r"4 numbers \(1 2 3 4\) for 3 values"),
        (["1", "-2", "3"], "-2 cells cannot be made"),
        (["1", "2.5", "3"], r"'2\.5' is no whole number"),
        ((1, 2.5, 3), r"2\.5 is no whole number"),
        (["1e3", "0", "0"], "'1e3' is no whole number"),
        (["like_data"], 'Did you mean "like-data"'),
        (["B", "cell=10"], r"'B' is no whole number.*\n.*in quotes where"),
        (["B cel=10"], r'"B cel" is not a known category\. Did you mean "B cell"'),
        (["B cell=x"], "'x' is no whole number"),
        (["B cell=1", "B cell=2"], '"B cell" is given twice'),
        ({"T": 3}, '"T" is not a known category'),
        (["0", "0", "0"], "no cells at all"),
        ([], "no cells at all"),
        (["B cell=0"], "no cells at all"),
    ],
)
def test_request_is_refused_with_advice(request_, message):
    with pytest.raises(ConfigError, match=message):
        conditional(request_)


def test_labels_are_refused_when_the_model_has_none():
    with pytest.raises(ConfigError, match=r'not conditioned .* "B cell" cannot be'):
        unconditional(["B cell=3"])


def test_label_without_training_cells_is_refused_when_wanted():
    manifest = make_manifest(labels=("a", "b"), trained=(10, 0))
    assert parse_cells_no(["3", "0"], manifest, is_conditional=True) == (3, 0)
    with pytest.raises(ConfigError, match='1 cells of "b", which no training cell is'):
        parse_cells_no(["3", "1"], manifest, is_conditional=True)


def test_message_names_where_the_request_stands():
    where = "parameters.json: experiments.pbmc.generation.cells_no"
    with pytest.raises(ConfigError, match=f"^{where}: 1 number"):
        parse_cells_no((4,), MANIFEST, is_conditional=True, where=where)


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr", "a.mtx"])
def test_save_path_of_a_known_format_is_accepted(tmp_path, name):
    assert check_save_path(str(tmp_path / name)) == tmp_path / name


def test_save_path_is_refused_with_the_reason_when_another_format_is_needed(tmp_path):
    options = {"suffix": ".h5ad", "reason": "edited cells go to .h5ad files alone."}
    path = tmp_path / "a.h5ad"
    assert check_save_path(path, **options) == path
    with pytest.raises(ConfigError, match=r"^--save_path: .*a\.mtx: edited cells go"):
        check_save_path(tmp_path / "a.mtx", **options)


@pytest.mark.parametrize(
    ("name", "found"), [("a.csv", 'the suffix is ".csv"'), ("a", "it has no suffix")]
)
def test_save_path_is_refused_when_the_format_is_unknown(name, found):
    with pytest.raises(ConfigError, match=rf"(?s){found}.*\.h5ad.*\.zarr.*\.mtx"):
        check_save_path(Path(name))


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr", "a.mtx"])
def test_save_path_is_refused_when_a_foreign_folder_is_there(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="exists and holds something else"):
        check_save_path(tmp_path / name)


def test_save_path_may_be_a_folder_of_the_same_format(tmp_path):
    (tmp_path / "a.mtx").mkdir()
    (tmp_path / "a.mtx" / "matrix.mtx.gz").touch()
    assert check_save_path(tmp_path / "a.mtx") == tmp_path / "a.mtx"


def test_counts_are_refused_when_library_sizes_are_unknown():
    unknown = dataclasses.replace(MANIFEST, library_sizes={"rna": ((), (), ())})
    with pytest.raises(ConfigError, match=r"--counts: the library sizes .* unknown"):
        check_library_sizes((1, 0, 0), unknown)
    with pytest.raises(ConfigError, match=r"--counts: the library sizes .* unknown"):
        check_library_sizes((9,), unknown)


def test_counts_need_library_sizes_only_of_the_wanted_labels():
    partly = dataclasses.replace(MANIFEST, library_sizes={"rna": ((5.0,), (), ())})
    check_library_sizes((1, 0, 0), partly)
    with pytest.raises(ConfigError, match="unknown"):
        check_library_sizes((1, 0, 2), partly)
