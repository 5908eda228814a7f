"""Processed cells become the twelve record files of the reference."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgan.data.manifest import CovariateVocabulary
from cellgan.data.shards import RECORD_FILES, concatenate, read_shard
from cellgan.errors import DataError
from preprocessing.readers.cell_source import CellSource
from preprocessing.write_tfrecords import assign_files, write_tfrecords
from tests.data.test_records import manifest_of_reference
from tests.records_folder import annotated_cells, make_records
from tests.stored import stored_arrays


def test_every_cell_is_read_back_from_the_files_of_its_split(tmp_path: Path) -> None:
    # More cells than are encoded at once.
    folder, manifest, cells, _ = make_records(
        tmp_path / "records", n_cells=900, n_valid=600, n_test=100
    )
    row_of = {barcode: row for row, barcode in enumerate(cells.obs_names)}

    read = {file: read_shard(folder / file, manifest) for file in RECORD_FILES}

    assert {file: len(shard) for file, shard in read.items()} == manifest.shards
    every = concatenate(list(read.values()))
    rows = [row_of[barcode] for barcode in every.barcodes]
    assert sorted(rows) == list(range(cells.n_obs))
    ordered = cells[rows]
    assert np.array_equal(every.values.toarray(), ordered.X.toarray())
    assert np.array_equal(every.count_no, ordered.X.toarray().sum(axis=1))
    assert np.array_equal(every.genes_no, ordered.obs["n_genes"])
    labels = cells.obs["cluster"].cat.categories[every.codes["cluster"]]
    assert labels.tolist() == ordered.obs["cluster"].tolist()
    splits = np.repeat(
        ["train"] * 10 + ["valid", "test"], [manifest.shards[f] for f in RECORD_FILES]
    )
    assert splits.tolist() == ordered.obs["split"].tolist()


def test_covariates_besides_the_label_are_in_the_records(tmp_path: Path) -> None:
    cells = annotated_cells(n_cells=50, n_genes=20, n_valid=6, n_test=4)
    donors = [f"donor {row % 7}" for row in range(cells.n_obs)]
    cells.obs["donor"] = pd.Categorical(donors)
    other = make_records(tmp_path / "other", n_cells=50, n_genes=20)
    manifest = dataclasses.replace(
        other.manifest,
        covariates={
            **other.manifest.covariates,
            "donor": CovariateVocabulary(tuple(cells.obs["donor"].cat.categories)),
        },
        shards={},
    )

    shards = write_tfrecords(
        CellSource.of_anndata(cells),
        tmp_path,
        label="cluster",
        covariates=["donor"],
        record_values="counts",
        target_library_size=1000,
        seed=0,
    )

    read = concatenate([read_shard(tmp_path / file, manifest) for file in shards])
    expected = cells.obs.loc[read.barcodes, "donor"].tolist()
    assert manifest.covariates["donor"].decode(read.codes["donor"]).tolist() == expected


def test_training_cells_are_dealt_to_ten_files_as_by_the_reference() -> None:
    splits = ["train", "test", "train", "valid", "train"] * 40
    draws = random.Random(17)
    expected = [draws.randint(0, 9) for split in splits if split == "train"]

    files = assign_files(splits, seed=17)

    training = np.flatnonzero(np.array(splits) == "train")
    for shard in range(10):
        rows = training[np.array(expected) == shard]
        assert files[f"train-{shard}.tfrecords"].tolist() == rows.tolist()
    assert files["validate.tfrecords"].tolist() == list(range(3, 200, 5))
    assert files["test.tfrecords"].tolist() == list(range(1, 200, 5))


def test_normalized_records_are_those_of_the_reference(
    tmp_path: Path, reference_dir: Path
) -> None:
    """The counts are recovered from the reference's values, and scaled again."""
    expected = stored_arrays(reference_dir / "scgan_TF_records" / "expected.npz")
    target = int(expected["lib_size"])
    cells = ad.AnnData(
        sp.csr_matrix(smallest_counts(expected["X"])),
        obs=pd.DataFrame(
            {
                "cluster": pd.Categorical(expected["cluster"].astype(str)),
                "split": expected["split"],
                "n_genes": expected["n_genes"],
            },
            index=expected["barcode"],
        ),
    )

    files = write_tfrecords(
        CellSource.of_anndata(cells),
        tmp_path,
        label="cluster",
        record_values="normalized",
        target_library_size=target,
        seed=int(expected["seed"]),
    )

    manifest = manifest_of_reference(expected)
    row_of = {barcode: row for row, barcode in enumerate(expected["barcode"])}
    files_of = np.where(
        expected["split"] == "train",
        expected["train_shard"],
        np.where(expected["split"] == "valid", 10, 11),
    )
    for number, (file, n_cells) in enumerate(files.items()):
        (tmp_path / file).rename(tmp_path / "some")
        found = read_shard(tmp_path / "some", manifest)
        rows = np.array([row_of[barcode] for barcode in found.barcodes], dtype=int)
        assert rows.tolist() == np.flatnonzero(files_of == number).tolist()
        assert len(rows) == n_cells
        assert np.array_equal(found.values.toarray(), expected["X"][rows])
        assert np.array_equal(found.count_no, expected["count_no"][rows])


def smallest_counts(scaled: np.ndarray) -> np.ndarray:
    """Return the integers with the least total that are proportional to each row."""
    counts = np.zeros_like(scaled)
    for row, values in enumerate(scaled.astype(np.float64)):
        shares = values / values.sum()
        totals = (
            total
            for total in range(1, 10_000)
            if np.abs(shares * total - np.rint(shares * total)).max() < 1e-4
        )
        counts[row] = np.rint(shares * next(totals))
    return counts


def test_all_files_are_written_when_a_split_is_empty(tmp_path: Path) -> None:
    folder, manifest, *_ = make_records(tmp_path / "records", n_valid=0, n_test=0)

    assert sorted(file.name for file in folder.iterdir()) == sorted(RECORD_FILES)
    assert manifest.shards["validate.tfrecords"] == 0
    assert len(read_shard(folder / "validate.tfrecords", manifest)) == 0


def test_the_same_cells_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (make_records(tmp_path / name).folder for name in ("a", "b"))

    for file in RECORD_FILES:
        assert (first / file).read_bytes() == (second / file).read_bytes()


def folder_in_the_way(folder: Path) -> None:
    (folder / "train-7.tfrecords").mkdir()


def full_disk(folder: Path) -> None:
    """So few bytes are written when the file is closed."""
    (folder / "train-7.tfrecords").symlink_to("/dev/full")


@pytest.mark.parametrize(
    ("spoil", "reason"), [(folder_in_the_way, "Is a d"), (full_disk, "No space")]
)
def test_file_that_cannot_be_written_is_named(
    tmp_path: Path, spoil: Callable[[Path], None], reason: str
) -> None:
    spoil(tmp_path)
    expected = rf"train-7.tfrecords: cannot be written: {reason}"
    with pytest.raises(DataError, match=expected):
        write_tfrecords(
            CellSource.of_anndata(
                annotated_cells(n_cells=40, n_genes=20, n_valid=5, n_test=5)
            ),
            tmp_path,
            label="cluster",
            record_values="counts",
            target_library_size=1000,
            seed=0,
        )
