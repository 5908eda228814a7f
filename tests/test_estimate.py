"""What --estimate tells: numbers that are known, and what is left out."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import scipy.sparse as sp
import tensorflow as tf

from cellgan import estimate, models
from cellgan.config.reading import parse_experiment
from cellgan.estimate import (
    StageEstimate,
    describe,
    estimate_all,
    estimate_evaluation,
    estimate_generation,
    estimate_maps,
    estimate_processing,
    forget_peak_memory,
    made_up_batches,
    peak_memory,
)
from cellgan.generation.pieces import piece_size
from cellgan.models.base import GeneratedCells
from tests.fake_model import FakeModel
from tests.linear_stage import LinearStage
from tests.manifests import make_manifest

N_GENES = 2000
N_VALUES = 20_000
"""Of the 100 real cells: a tenth of all values."""
SECONDS_PER_CELL = 2e-5
TINY = {"latent_dim": 4, "gen_layers": [8], "critic_layers": [8]}


class SlowModel(FakeModel):
    """Takes its time for every cell, and more for the first request."""

    def generate(self, request):
        is_first = not self.requests
        self.requests.append(request)
        time.sleep(request.n_cells * SECONDS_PER_CELL * (5 if is_first else 1))
        return GeneratedCells({"rna": sp.csr_matrix((0, 0))}, are_counts=False)


@pytest.fixture
def manifest():
    return make_manifest(n_genes=N_GENES)


@pytest.fixture
def slow_model(monkeypatch, manifest):
    model = SlowModel(manifest)
    monkeypatch.setattr(models, "build_model", lambda *_: model)
    return model


def parameters(**blocks):
    block = {"input_ds": {"raw_input": "a.h5ad"}, "model": TINY, **blocks}
    return parse_experiment(block, "test")


def with_held_out(manifest, **numbers):
    sizes = {"train": 100, "valid": 0, "test": 0} | numbers
    return dataclasses.replace(manifest, split_sizes=sizes)


def test_generation_takes_the_time_of_its_cells_once_compiled(slow_model, manifest):
    wanted = parameters(generation={"cells_no": [50_000, 150_000]})
    (row,) = estimate_generation(wanted, manifest, n_values=0)
    assert row.seconds == pytest.approx(200_000 * SECONDS_PER_CELL, rel=0.3)
    assert row.note == "for 200,000 cells"
    pieces = [request.n_cells for request in slow_model.requests]
    assert pieces == [piece_size(N_GENES)] * 2


@pytest.mark.usefixtures("slow_model")
@pytest.mark.parametrize(("counts", "bytes_per_value"), [(False, 5.6), (True, 3.2)])
def test_generated_files_are_as_sparse_as_the_data(manifest, counts, bytes_per_value):
    wanted = parameters(generation={"cells_no": [10**6, 0], "counts": counts})
    dense, sparse = (
        estimate_generation(wanted, manifest, n_values)[0]
        for n_values in (100 * N_GENES, N_VALUES)
    )
    assert dense.disk == pytest.approx(10**6 * N_GENES * bytes_per_value)
    assert sparse.disk == pytest.approx(dense.disk / 10)
    # half a microsecond for each of 1.8 thousand million values
    assert dense.seconds - sparse.seconds == pytest.approx(900, rel=0.1)


@pytest.mark.usefixtures("slow_model")
def test_a_file_of_unknown_density_is_not_counted(manifest):
    (row,) = estimate_generation(parameters(), manifest, n_values=0)
    assert row.disk == 0


@pytest.mark.usefixtures("slow_model")
@pytest.mark.parametrize(
    ("request_", "expected"),
    [("like-data", 100), ([7, 5], 12), ({"T": 3}, 3), ([0, 0], None)],
)
def test_generation_is_of_the_cells_that_are_asked_for(manifest, request_, expected):
    wanted = parameters(generation={"cells_no": request_})
    rows = estimate_generation(wanted, with_held_out(manifest, test=40), 0)
    notes = [] if expected is None else [f"for {expected} cells"]
    assert [row.note for row in rows] == notes


@pytest.mark.usefixtures("slow_model")
def test_memory_of_generation_is_not_what_was_held_before(manifest):
    np.ones(2 * 10**8, dtype=np.int8).sum()  # written to, and given back
    before = peak_memory()
    (row,) = estimate_generation(parameters(), manifest, n_values=0)
    assert row.memory < before


def test_peak_memory_is_that_since_it_was_forgotten():
    forget_peak_memory()
    before = peak_memory()
    np.ones(2 * 10**8, dtype=np.int8).sum()
    assert peak_memory() - before > 1.5e8
    forget_peak_memory()
    assert peak_memory() - before < 0.5e8


@pytest.mark.parametrize(
    ("held_out", "most", "n_compared", "seconds", "gigabytes"),
    [
        ({"test": 5000}, 5000, "5,000", 200, 1.0),
        ({"test": 90_000, "valid": 3}, 5000, "5,000", 200, 1.0),
        ({"valid": 2500}, 5000, "2,500", 125, 0.8),
        ({"test": 9000}, 2500, "2,500", 125, 0.8),
    ],
)
def test_evaluation_takes_what_the_cells_it_compares_do(
    manifest, held_out, most, n_compared, seconds, gigabytes
):
    wanted = parameters(evaluation={"max_cells": most})
    (row,) = estimate_evaluation(wanted, with_held_out(manifest, **held_out))
    assert row.note == f"for {n_compared} held-out cells"
    assert row.seconds == pytest.approx(seconds)
    assert row.memory == pytest.approx(gigabytes * 1e9)


def test_nothing_held_out_needs_neither_maps_nor_evaluation(manifest):
    assert estimate_evaluation(parameters(), manifest) == []
    assert estimate_maps(parameters(), 0) == []


def test_processing_takes_longer_when_it_clusters(manifest):
    settings = {"raw_input": "a.h5ad"}
    own, clustered = (
        estimate_processing(
            parameters(input_ds=settings | {"clustering": clustering}),
            with_held_out(manifest, train=68_000),
            68_000_000,
        )
        for clustering in ({"key": "cell_type"}, {"res": 0.15})
    )
    assert own.seconds == pytest.approx(20, rel=0.1)
    assert clustered.seconds == pytest.approx(75, rel=0.1)
    assert clustered.memory == own.memory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("is_processed", "first"), [(False, "process"), (True, "train, gan")]
)
def test_every_part_has_a_row_in_the_order_of_the_work(
    monkeypatch, is_processed, first
):
    monkeypatch.setattr(estimate, "TIMED_SECONDS", 0.01)
    data = with_held_out(make_manifest(n_genes=20), test=50)
    training = {"batch_size": 8, "validation_freq": 0}
    rows = estimate_all(
        parameters(training=training), data, 900, is_processed=is_processed
    )
    parts = ["process", "train, gan", "generate", "evaluate"]
    assert [row.part for row in rows] == parts[parts.index(first) :]
    assert all(row.seconds > 0 and row.memory > 0 for row in rows)


def test_the_table_has_units_that_suit_and_no_zeros(manifest):
    rows = [
        StageEstimate("process", 640_000_000, 5_000_000, 12.3),
        StageEstimate("train, 9 maps", 0, 3_600_000, 7200, "drawn"),
        StageEstimate("evaluate", 4_000_000_000, 0, 240, "for 5,000 held-out cells"),
    ]
    title, *lines = describe("pbmc", manifest, rows).splitlines()
    assert title.startswith("pbmc: 100 cells x 2,000 genes on ")
    assert [line.split() for line in lines] == [
        ["memory", "disk", "time"],
        ["process", "640", "MB", "5", "MB", "12", "s"],
        ["train,", "9", "maps", "4", "MB", "2.0", "h", "drawn"],
        ["evaluate", "4.0", "GB", "4", "min", "for", "5,000", "held-out", "cells"],
    ]


def test_made_up_batches_have_the_modalities_of_the_data(manifest):
    both = dataclasses.replace(
        manifest,
        features={**manifest.features, "atac": ("peak 1", "peak 2", "peak 3")},
        binary=("atac",),
    )
    strategy = tf.distribute.get_strategy()
    batch = next(made_up_batches(both, 16, LinearStage(), strategy))
    assert batch.features["rna"].shape == (16, N_GENES)
    assert set(batch.features["atac"].numpy().ravel()) == {0, 1}
    sizes = batch.features["atac"].numpy().sum(axis=1)
    assert batch.library_size["atac"].numpy().tolist() == sizes.tolist()
    assert "genes and 3 peaks on" in describe("pbmc", both, [])
