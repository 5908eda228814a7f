"""Training cells that are drawn to be edited."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cellgan.data.batches import cells_in_order
from cellgan.errors import DataError
from cellgan.generation import sources as source_cells
from cellgan.generation.sources import draw_sources
from tests.records_folder import make_records


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records"))


def test_drawn_cells_are_training_cells_with_their_own_codes(records):
    found = draw_sources(records.folder, records.manifest, 500, seed=1)
    batch = found.piece(slice(100, 160))
    cells = records.cells[records.cells.obs["split"] == "train"]
    known = {
        (tuple(row), code)
        for row, code in zip(
            cells.X.toarray().tolist(), cells.obs["cluster"].cat.codes, strict=True
        )
    }
    drawn = list(
        zip(
            map(tuple, batch.features["rna"].numpy().tolist()),
            batch.covariates["cluster"].numpy().tolist(),
            strict=True,
        )
    )
    assert len(drawn) == 60
    assert set(drawn) <= known
    totals = batch.features["rna"].numpy().sum(axis=1)
    np.testing.assert_array_equal(batch.library_size["rna"], totals)
    # 500 draws of 46 cells leave none out, but with a chance of 46 * (45 / 46)**500
    assert len(np.unique(found.rows)) == cells.n_obs


def test_the_first_cells_are_the_same_in_a_longer_request(records):
    few, many = (
        draw_sources(records.folder, records.manifest, n, seed=2).piece(slice(0, 20))
        for n in (20, 90)
    )
    np.testing.assert_array_equal(few.features["rna"], many.features["rna"])
    other = draw_sources(records.folder, records.manifest, 20, seed=3).piece(
        slice(0, 20)
    )
    assert (other.features["rna"].numpy() != few.features["rna"].numpy()).any()


def test_cells_start_from_cells_of_their_kind(records):
    wanted = np.repeat(np.arange(3, dtype=np.int32), 40)[:100]
    label = {"cluster": wanted}

    found = draw_sources(records.folder, records.manifest, 100, seed=4, wanted=label)

    obs = records.cells.obs
    trained = obs["cluster"].cat.codes[obs["split"] == "train"]
    codes = found.piece(slice(0, 100)).covariates["cluster"].numpy()
    there = np.isin(wanted, trained)
    assert there.any()
    np.testing.assert_array_equal(codes[there], wanted[there])
    assert len(np.unique(found.rows)) > 10


def test_a_kind_without_training_cells_starts_from_its_label(records):
    n = 60
    no_such_batch = {
        "cluster": np.arange(n, dtype=np.int32) % 2,
        "cluster_again": np.full(n, 99, np.int32),
    }
    manifest = dataclasses.replace(
        records.manifest,
        covariates={
            **records.manifest.covariates,
            "cluster_again": records.manifest.covariates["cluster"],
        },
    )
    with_batch = [
        batch._replace(
            covariates={
                **batch.covariates,
                "cluster_again": batch.covariates["cluster"],
            }
        )
        for batch in cells_in_order(
            records.folder, records.manifest, "train", batch_size=16
        )
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_cells, "cells_in_order", lambda *_, **__: with_batch)
        found = draw_sources(records.folder, manifest, n, seed=4, wanted=no_such_batch)

    codes = found.piece(slice(0, n)).covariates["cluster"].numpy()
    np.testing.assert_array_equal(codes, no_such_batch["cluster"])


def test_records_that_are_gone_are_told(records, tmp_path):
    with pytest.raises(DataError, match=r"train-0\.tfrecords"):
        draw_sources(tmp_path, records.manifest, 5, seed=0)
