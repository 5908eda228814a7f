"""Names made unique, labels as text, columns that can be written."""

from __future__ import annotations

import datetime

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellgan.data.manifest import CovariateVocabulary
from cellgan.errors import DataError
from preprocessing.annotations import (
    as_text,
    label_categories,
    require_column,
    with_unique_names,
    writable_columns,
)
from preprocessing.experiment_folder import write_h5ad
from tests.stored import stored_names


@given(st.lists(st.sampled_from(["a", "a-1", "a-2", "a-1-1", "b"]), max_size=12))
def test_names_become_unique_and_first_ones_stay(names):
    table = with_unique_names(pd.DataFrame(index=names))
    assert table.index.is_unique
    first = ~pd.Index(names).duplicated()
    assert list(table.index[first]) == list(np.array(names, dtype=object)[first])
    changed = "original_name" in table.columns
    assert changed == (len(set(names)) < len(names))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pd.Series([3, 1, 20]), ["3", "1", "20"]),
        (pd.Series([1.0, 2.5, np.nan]), ["1", "2.5", ""]),
        (pd.Series([True, False]), ["True", "False"]),
        (pd.Series(["B cell", None, "NK"]), ["B cell", "", "NK"]),
        (pd.Series(pd.Categorical([0, 10, 0])), ["0", "10", "0"]),
        (pd.Series([b"T", b"B"]), ["T", "B"]),
    ],
)
def test_as_text_writes_labels_as_a_reader_would(values, expected):
    assert list(as_text(values)) == expected


def test_label_categories_are_in_natural_order():
    labels = np.array(["10", "2", "1", "NK", "B 10", "B 9"] * 4, dtype=object)
    assert label_categories(labels, "x", "here") == (
        "1",
        "2",
        "10",
        "B 9",
        "B 10",
        "NK",
    )


def test_missing_labels_are_counted():
    labels = np.array(["A", "", "A", "", "B", "B", "A"], dtype=object)
    expected = (
        r'obs column "kind": 2 of 7 cells have no value.\n.*for example "unknown"'
    )
    with pytest.raises(DataError, match=expected):
        label_categories(labels, "kind", "here")


@pytest.mark.parametrize(
    "covariate", stored_names("cfgen.npz", "out/loader/codes_(.+)")
)
def test_codes_are_those_of_the_reference(reference_dir, covariate):
    with np.load(reference_dir / "cfgen.npz") as stored:
        values = stored[f"in/loader/{covariate}"].astype(object)
        codes = stored[f"out/loader/codes_{covariate}"]
    categories = label_categories(values, covariate, "here")
    assert CovariateVocabulary(categories).encode(values).tolist() == codes.tolist()


def test_column_of_different_values_is_no_label():
    labels = np.array([str(i) for i in range(30)], dtype=object)
    with pytest.raises(
        DataError,
        match=r'(?s)"barcode": 30 values in 30 cells, so it does.*another .* with here',
    ):
        label_categories(labels, "barcode", "here")


def test_missing_column_is_answered_with_the_nearest_and_all():
    obs = pd.DataFrame({"cell_type": [1], "donor": [2]})
    expected = (
        r'input_ds.clustering.key: no obs column "celltype". Did you mean '
        r'"cell_type"\?\n    obs columns: cell_type, donor\.'
    )
    with pytest.raises(DataError, match=expected):
        require_column(obs, "celltype", "input_ds.clustering.key")


def test_columns_that_cannot_be_written_are_left_out():
    obs = pd.DataFrame(
        {
            "number": [1.5, np.nan],
            "flag": [True, False],
            "text": ["a", None],
            "kind": pd.Categorical(["x", "y"]),
            "string": pd.array(["p", "q"], dtype="string"),
            "nullable": pd.array([1, None], dtype="Int64"),
            "list": [[1], [2]],
            "mixed": ["a", 1],
            "with/slash": [1, 2],
            "day": [datetime.datetime(2020, 1, 1)] * 2,
        }
    )
    kept, dropped = writable_columns(obs)
    assert list(kept) == ["number", "flag", "text", "kind", "string", "nullable"]
    assert dropped == ["list", "mixed", "with/slash", "day"]


def test_written_columns_come_back(tmp_path):
    obs = pd.DataFrame(
        {
            "text": ["a", None, "b"],
            "string": pd.array(["p", "q", "p"], dtype="string"),
            "unique": ["x", "y", "z"],
            "nullable": pd.array([1, None, 2], dtype="Int64"),
        },
        index=["c0", "c1", "c2"],
    )
    kept, dropped = writable_columns(obs)
    write_h5ad(tmp_path / "cells.h5ad", ad.AnnData(np.eye(3), kept))
    written = ad.read_h5ad(tmp_path / "cells.h5ad").obs
    assert dropped == []
    assert list(as_text(written["text"])) == ["a", "", "b"]
    assert list(as_text(written["string"])) == ["p", "q", "p"]
    assert list(as_text(written["unique"])) == ["x", "y", "z"]
    assert list(as_text(written["nullable"])) == ["1", "", "2"]


def test_column_name_that_cannot_be_stored_is_refused():
    with pytest.raises(DataError, match=r'clustering.key: "cell/type" holds a "/"'):
        require_column(
            pd.DataFrame({"cell/type": [1]}), "cell/type", "input_ds.clustering.key"
        )
