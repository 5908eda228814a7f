"""Manifest and vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellgan.errors import DataError
from cellgan.manifest import (
    LIBRARY_SIZE_QUANTILES,
    CovariateVocabulary,
    DatasetManifest,
    library_size_quantiles,
    read_manifest,
)

MANIFEST = DatasetManifest(
    features={"rna": ("CD3D", "LYZ")},
    covariates={"cell_type": CovariateVocabulary(("B cell", "T cell"))},
    label="cell_type",
    target_library_size=1000,
    record_values="counts",
    split_sizes={"train": 4, "valid": 1, "test": 0},
    cells_per_category={
        "train": {"cell_type": (1, 3)},
        "valid": {"cell_type": (0, 1)},
        "test": {"cell_type": (0, 0)},
    },
    library_sizes={"rna": ((500.0,), (400.0, 450.0, 900.0))},
    shards={"train-0.tfrecords": 4, "validate.tfrecords": 1},
)


def test_manifest_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST.as_json()))

    assert read_manifest(path) == MANIFEST


def test_label_ratios_are_indexed_by_label_not_by_size() -> None:
    np.testing.assert_array_equal(MANIFEST.label_ratios, [0.25, 0.75])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"schema_version": 0}, r"schema version 0 found, expected 1"),
        ({"label": None}, r"manifest\.json: the field 'label' is missing"),
    ],
)
def test_manifest_of_another_form_is_refused(
    tmp_path: Path, edit: dict[str, object], message: str
) -> None:
    document = {**MANIFEST.as_json(), **edit}
    kept = {key: value for key, value in document.items() if value is not None}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(kept))

    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_damaged_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"schema_version"')

    with pytest.raises(DataError, match=r"manifest\.json: cannot be read"):
        read_manifest(path)


@given(st.lists(st.text(), unique=True, min_size=1), st.data())
def test_vocabulary_decodes_what_it_encoded(
    categories: list[str], data: st.DataObject
) -> None:
    vocabulary = CovariateVocabulary(tuple(categories))
    values = data.draw(st.lists(st.sampled_from(categories)))

    codes = vocabulary.encode(values)

    assert [vocabulary.categories[code] for code in codes] == values


def test_unknown_category_names_the_nearest() -> None:
    with pytest.raises(DataError, match=r'"b cells" is not.*Did you mean "B cell"'):
        MANIFEST.label_vocabulary.encode(["b cells"])


def test_library_sizes_are_all_kept_when_few() -> None:
    assert library_size_quantiles([30, 10, 20]) == (10.0, 20.0, 30.0)


def test_library_sizes_are_summarised_when_many() -> None:
    sizes = np.arange(1, 10_001)[::-1]

    quantiles = library_size_quantiles(sizes)

    assert len(quantiles) == LIBRARY_SIZE_QUANTILES
    assert (quantiles[0], quantiles[500], quantiles[-1]) == (1, 5000.5, 10_000)
