"""Manifest and vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellgan.data.manifest import (
    LIBRARY_SIZE_QUANTILES,
    Combination,
    CovariateVocabulary,
    DatasetManifest,
    find_combinations,
    library_size_quantiles,
    log_moments,
    read_manifest,
)
from cellgan.errors import DataError
from cellgan.files import write_json
from tests.manifests import make_manifest
from tests.stored import stored_names

MANIFEST = DatasetManifest(
    features={"rna": ("CD3D", "LYZ"), "atac": ("peak 1", "peak 2", "peak 3")},
    covariates={
        "cell_type": CovariateVocabulary(("B cell", "T cell")),
        "age": CovariateVocabulary(("old", "young")),
    },
    label="cell_type",
    target_library_size=1000,
    record_values="counts",
    split_sizes={"train": 4, "valid": 1, "test": 0},
    cells_per_category={
        "train": {"cell_type": (1, 3), "age": (4, 0)},
        "valid": {"cell_type": (0, 1), "age": (0, 1)},
        "test": {"cell_type": (0, 0), "age": (0, 0)},
    },
    library_sizes={
        "rna": ((500.0,), (400.0, 450.0, 900.0)),
        "atac": ((2.0,), (1.0, 1.0, 3.0)),
    },
    shards={"train-0.tfrecords": 4, "validate.tfrecords": 1},
    combinations=(
        Combination(
            {"cell_type": 0, "age": 0},
            1,
            {"rna": 6.2},
            {"rna": None},
            {"rna": (500.0,)},
        ),
        Combination(
            {"cell_type": 1, "age": 0},
            3,
            {"rna": 6.3},
            {"rna": 0.4},
            {"rna": (400.0, 450.0, 900.0), "atac": (3.0, 1.0, 1.0)},
        ),
    ),
    binary=("atac",),
)


def test_manifest_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST.as_json()))

    assert read_manifest(path) == MANIFEST


def test_covariates_are_read_with_the_label_first(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, MANIFEST.as_json())

    assert list(read_manifest(path).covariates) == ["cell_type", "age"]


def test_label_ratios_are_indexed_by_label_not_by_size() -> None:
    np.testing.assert_array_equal(MANIFEST.label_ratios, [0.25, 0.75])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"schema_version": 3},
            r"schema version 3 found, expected 2\. Run --process --overwrite",
        ),
        (
            {"combinations": None},
            r"manifest\.json: the field 'combinations' is missing",
        ),
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


def test_manifest_of_the_first_version_gets_what_it_lacks(tmp_path: Path) -> None:
    manifest = make_manifest(
        trained=(3, 2), library_sizes=[(100.0, 200.0, 400.0), (50.0, 60.0)]
    )
    document = manifest.as_json() | {"schema_version": 1}
    del document["combinations"], document["binary"]
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(document))

    assert read_manifest(path) == manifest


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


# combinations


def test_combinations_are_those_that_cells_have_by_codes() -> None:
    codes = {
        "kind": np.array([1, 0, 1, 1, 0, 1]),
        "donor": np.array([0, 2, 0, 2, 2, 0]),
    }
    sizes = {"rna": np.exp([3.0, 1.0, 2.0, 9.0, 1.0, 4.0])}

    found = find_combinations(codes, sizes)

    assert [combination.codes for combination in found] == [
        {"kind": 0, "donor": 2},
        {"kind": 1, "donor": 0},
        {"kind": 1, "donor": 2},
    ]
    assert [combination.n_cells for combination in found] == [2, 3, 1]
    means = [combination.log_mean["rna"] for combination in found]
    assert means == pytest.approx([1.0, 3.0, 9.0])
    assert [combination.log_sd["rna"] for combination in found] == [
        0.0,
        pytest.approx(1.0),
        None,
    ]
    assert found[1].library_sizes["rna"] == pytest.approx(np.exp([2.0, 3.0, 4.0]))


def test_sizes_of_a_combination_are_of_the_same_cells_in_all_modalities() -> None:
    """ATAC sizes fall as RNA sizes rise, so cells that are not the same would show."""
    rna = np.random.default_rng(0).permutation(5000) + 1.0
    sizes = {"atac": 10_000.0 - rna, "rna": rna}

    (found,) = find_combinations({"kind": np.zeros(5000, dtype=np.int8)}, sizes)

    kept = np.array(found.library_sizes["rna"])
    assert len(kept) == LIBRARY_SIZE_QUANTILES
    assert (kept[0], kept[500], kept[-1]) == (1, 2501, 5000)
    assert set(np.diff(kept)) == {4, 5}
    assert found.library_sizes["atac"] == tuple(10_000.0 - kept)
    assert found.n_cells == 5000
    assert found.log_mean["rna"] == pytest.approx(np.log(rna).mean())


def test_combinations_say_nothing_of_library_sizes_that_are_unknown() -> None:
    (found,) = find_combinations({"kind": np.zeros(3, dtype=np.int8)}, {})

    assert found == Combination({"kind": 0}, 3, {}, {}, {})


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40)
)
def test_every_cell_is_in_one_combination(pairs: list[tuple[int, int]]) -> None:
    first, second = np.array(pairs).T
    sizes = np.arange(len(pairs)) + 1.0

    found = find_combinations({"a": first, "b": second}, {"rna": sizes})

    of_pair = {
        pair: tuple(sizes[[pair == other for other in pairs]])
        for pair in sorted(set(pairs))
    }
    assert [
        (tuple(each.codes.values()), each.library_sizes["rna"]) for each in found
    ] == list(of_pair.items())


@pytest.mark.parametrize(
    "covariate", stored_names("cfgen.npz", "out/loader/codes_(.+)")
)
def test_moments_are_those_of_the_reference(
    reference_dir: Path, covariate: str
) -> None:
    with np.load(reference_dir / "cfgen.npz") as stored:
        sizes = stored["in/loader/X_counts"].sum(axis=1)
        expected = {
            key: stored[f"out/loader/log_size_factor_{key}"]
            for key in (f"mean_{covariate}", f"sd_{covariate}", "min", "max")
        }
        codes = stored[f"out/loader/codes_{covariate}"]

    found = find_combinations({covariate: codes}, {"rna": sizes})

    means = [each.log_mean["rna"] for each in found]
    np.testing.assert_allclose(means, expected[f"mean_{covariate}"], rtol=1e-6)
    sds = [each.log_sd["rna"] for each in found]
    np.testing.assert_allclose(sds, expected[f"sd_{covariate}"], rtol=1e-5)
    moments = log_moments(sizes)
    extremes = [moments.smallest, moments.largest]
    np.testing.assert_allclose(extremes, [expected["min"], expected["max"]], rtol=1e-6)
