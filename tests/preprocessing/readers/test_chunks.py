"""Cells in chunks: the records of one file, and nothing unpickled but data."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import preprocessing
from cellgan.config.reading import parse_experiment
from cellgan.errors import DataError
from cellgan.experiment import Experiment
from preprocessing.readers.chunks import read_table
from preprocessing.readers.restricted_pickle import read_pickled_table
from preprocessing.survey import survey
from tests.synthetic import make_cells

N_CELLS, N_GENES, N_CHUNKS = 90, 20, 3


def make_table(n_cells: int = N_CELLS) -> pd.DataFrame:
    labels = make_cells(N_CELLS, N_GENES).labels[:n_cells]
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "type": pd.Categorical(labels),
            "sex": rng.choice(["f", "m "], n_cells),
            "plate": rng.integers(1, 3, n_cells),
            "age": rng.normal(40, 9, n_cells),
            "is_old": rng.random(n_cells) > 0.5,
            "nothing": None,
        }
    )


def write_chunks(folder: Path, suffix: str = ".pkl") -> Path:
    """Write chunks of 30 cells each, numbered 8, 9 and 10."""
    folder.mkdir(exist_ok=True)
    counts, table = make_cells(N_CELLS, N_GENES).counts, make_table()
    for chunk in range(N_CHUNKS):
        rows = slice(chunk * 30, (chunk + 1) * 30)
        sp.save_npz(folder / f"counts_{chunk + 8}.npz", counts[rows])
        part, path = table.iloc[rows], folder / f"table_{chunk + 8}{suffix}"
        if suffix == ".pkl":
            part.to_pickle(path)
        elif suffix == ".parquet":
            part.to_parquet(path)
        else:
            part.to_csv(path, index=False)
    return folder


def experiment_of(folder: Path, suffix: str = ".pkl", **keys) -> Experiment:
    """Return the experiment of chunks, its folder not made."""
    block = {
        "raw_input": str(folder / "counts_*.npz"),
        "chunks": {"metadata": str(folder / f"table_*{suffix}")},
        "clustering": {"key": "type"},
        "covariates": ["plate", "sex"],
        "scale": "normalize_per_cell_LS_1000",
        "filtering": {"min_cells": 3, "min_genes": 2},
        "split": {"valid_cells": 12, "test_cells": 12},
        **keys,
    }
    parameters = parse_experiment({"input_ds": block}, "chunks")
    return Experiment(folder / "experiment", parameters)


def in_one_file(chunks: Experiment, **columns) -> Experiment:
    """Return the experiment of the same cells in one file, its folder not made."""
    folder = chunks.folder.parent
    table = make_table().drop(columns="nothing")
    table.index = [f"counts_{8 + row // 30}-{row % 30}" for row in range(N_CELLS)]
    whole = anndata.AnnData(make_cells(N_CELLS, N_GENES).counts, obs=table)
    whole.var_names = [f"gene_{gene}" for gene in range(N_GENES)]
    whole.write_h5ad(folder / "whole.h5ad")
    inputs = dataclasses.replace(
        chunks.parameters.input_ds,
        raw_input=str(folder / "whole.h5ad"),
        chunks=None,
        **columns,
    )
    parameters = dataclasses.replace(chunks.parameters, input_ds=inputs)
    return Experiment(folder / "one", parameters)


def assert_same(chunks: Experiment, one: Experiment) -> None:
    """Compare all that models are trained from; records are only packed otherwise."""
    mine, others = (
        {
            file.name: gzip.decompress(file.read_bytes())
            for file in e.records_folder.iterdir()
        }
        for e in (chunks, one)
    )
    assert len(mine) == 12
    assert mine == others
    assert chunks.manifest_file.read_bytes() == one.manifest_file.read_bytes()


@pytest.mark.parametrize("suffix", [".pkl", ".csv", ".parquet"])
def test_chunks_give_the_records_of_one_file(tmp_path, suffix):
    chunks = experiment_of(write_chunks(tmp_path / "chunks", suffix), suffix)
    one = in_one_file(chunks)
    preprocessing.process(chunks)
    preprocessing.process(one)
    assert_same(chunks, one)
    mine, expected = (anndata.read_h5ad(e.processed_file) for e in (chunks, one))
    np.testing.assert_array_equal(mine.X.toarray(), expected.X.toarray())
    assert mine.var_names.tolist() == expected.var_names.tolist()
    assert mine.obs["split"].tolist() == expected.obs["split"].tolist()


@pytest.mark.parametrize("method", ["louvain", "leiden"])
def test_chunks_are_clustered_as_one_file(tmp_path, method):
    clustering = {"res": 0.6, "method": method}
    filtering = {"min_cells": 25, "min_genes": 9}  # cells and genes go
    chunks = experiment_of(
        write_chunks(tmp_path / "chunks"), clustering=clustering, filtering=filtering
    )
    one = in_one_file(chunks)
    preprocessing.process(chunks)
    preprocessing.process(one)
    assert_same(chunks, one)
    cells = anndata.read_h5ad(chunks.processed_file)
    assert cells.n_obs < N_CELLS
    assert cells.n_vars < N_GENES
    assert cells.obs["cluster"].nunique() > 1
    expected = anndata.read_h5ad(one.processed_file)
    assert cells.obs["cluster"].tolist() == expected.obs["cluster"].tolist()


@pytest.mark.parametrize("missing", ["drop", "unknown"])
def test_a_survey_of_chunks_tells_what_processing_writes(tmp_path, missing):
    folder = write_chunks(tmp_path / "chunks")
    null_value(folder)
    experiment = experiment_of(folder, missing=missing)
    before = survey(experiment)
    assert not experiment.folder.exists()
    preprocessing.process(experiment)
    written = dataclasses.replace(experiment.manifest(), shards={})
    assert before.manifest == written
    cells = anndata.read_h5ad(experiment.processed_file)
    assert cells.n_obs == {"drop": N_CELLS - 1, "unknown": N_CELLS}[missing]
    assert before.n_values == cells.X.nnz


def make_peaks() -> sp.csr_matrix:
    """Counts of peaks, one of them closed, and one cell without any."""
    counts = np.random.default_rng(3).poisson(0.6, (N_CELLS, 12)).astype(np.float32)
    counts[:, 0] += 1
    counts[:, 4] = 0
    counts[33] = 0
    return sp.csr_matrix(counts)


def write_peaks(folder: Path, *, in_chunks: bool) -> str:
    """Write the peaks in chunks, or in a file that has the cells in another order."""
    peaks = make_peaks()
    if in_chunks:
        for chunk in range(N_CHUNKS):
            rows = slice(chunk * 30, (chunk + 1) * 30)
            sp.save_npz(folder / f"peaks_{chunk + 8}.npz", peaks[rows])
        return str(folder / "peaks_*.npz")
    cells = anndata.AnnData(peaks)
    cells.obs_names = [f"counts_{8 + row // 30}-{row % 30}" for row in range(N_CELLS)]
    cells.var_names = [f"peak_{peak}" for peak in range(12)]
    cells[::-1].copy().write_h5ad(folder / "peaks.h5ad")
    return str(folder / "peaks.h5ad")


@pytest.mark.parametrize("values", ["counts", "binary"])
@pytest.mark.parametrize("in_chunks", [True, False], ids=["chunks", "h5ad"])
def test_atac_beside_chunks_gives_the_records_of_one_file(tmp_path, in_chunks, values):
    folder = write_chunks(tmp_path / "chunks")
    peaks = write_peaks(folder, in_chunks=in_chunks)
    chunks = experiment_of(folder, atac={"raw_input": peaks, "values": values})
    whole = write_peaks(folder, in_chunks=False)
    atac = dataclasses.replace(chunks.parameters.input_ds.atac, raw_input=whole)
    one = in_one_file(chunks, atac=atac)
    before = survey(chunks)
    summary = preprocessing.process(chunks)
    preprocessing.process(one)
    assert_same(chunks, one)
    with mudata.set_options(pull_on_update=False):
        mine, expected = (mudata.read_h5mu(e.processed_file) for e in (chunks, one))
    assert mine["atac"].shape == (N_CELLS - 1, 11)
    assert summary.atac == (12, 11, mine["atac"].X.nnz)
    for modality in ("rna", "atac"):
        counts = mine[modality].X.toarray()
        np.testing.assert_array_equal(counts, expected[modality].X.toarray())
        totals = mine[modality].obs["n_counts"]
        np.testing.assert_array_equal(totals, counts.sum(axis=1))
    n_values = mine["rna"].X.nnz + mine["atac"].X.nnz
    assert before.n_values == survey(chunks).n_values == n_values
    assert before.manifest == dataclasses.replace(chunks.manifest(), shards={})


def test_chunks_of_peaks_need_the_cells_of_the_rna(tmp_path):
    folder = write_chunks(tmp_path / "chunks")
    peaks = write_peaks(folder, in_chunks=True)
    sp.save_npz(folder / "peaks_9.npz", make_peaks()[:29])
    experiment = experiment_of(folder, atac={"raw_input": peaks})
    expected = r"peaks_\*\.npz have 30, 29, 30 cells, those of the RNA 30, 30, 30"
    with pytest.raises(DataError, match=expected):
        preprocessing.process(experiment)


def test_fields_and_vocabulary_are_written(tmp_path):
    experiment = experiment_of(write_chunks(tmp_path / "chunks"))
    preprocessing.process(experiment)
    document = json.loads(experiment.fields_file.read_text())
    fields = document["fields"]
    kinds = {name: (of["kind"], of["using"]) for name, of in fields.items()}
    assert kinds == {
        "type": ("categorical", True),
        "sex": ("categorical", True),
        "plate": ("numeric", True),
        "age": ("numeric", False),
        "is_old": ("boolean", False),
        "nothing": ("empty", False),
    }
    assert fields["sex"]["cardinality"] == 2
    assert fields["nothing"]["non_null_fraction"] == 0
    assert fields["age"]["numeric_summary"]["mean"] == pytest.approx(
        make_table()["age"].mean()
    )
    assert set(document["policy"]) == {"null", "unseen"}
    vocabulary = json.loads(experiment.vocabulary_file.read_text())
    assert vocabulary["sex"] == {"f": 0, "m": 1}  # without the space
    assert vocabulary["plate"] == {"1": 0, "2": 1}


@pytest.mark.parametrize(
    ("missing", "n_cells", "values"),
    [("drop", N_CELLS - 2, {"f", "m"}), ("unknown", N_CELLS, {"f", "m", "unknown"})],
)
def test_cells_without_a_value_are_treated_as_said(tmp_path, missing, n_cells, values):
    folder = write_chunks(tmp_path / "chunks")
    table = pd.read_pickle(folder / "table_9.pkl")
    table["sex"] = table["sex"].astype(object)
    table.iloc[3, 1], table.iloc[7, 1] = None, " "
    table.to_pickle(folder / "table_9.pkl")
    experiment = experiment_of(folder, missing=missing)
    preprocessing.process(experiment)
    cells = anndata.read_h5ad(experiment.processed_file)
    assert cells.n_obs == n_cells
    assert set(cells.obs["sex"]) == values


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_chunks(tmp_path):
    matrix = sp.csr_matrix(
        np.random.default_rng(0).poisson(0.7, (40, 2000)).astype(np.float32)
    )
    peaks = {}
    for n_chunks in (5, 5, 25):  # the first run imports and fills tables of its own
        folder = tmp_path / f"chunks_{len(peaks)}_{n_chunks}"
        folder.mkdir()
        for chunk in range(n_chunks):
            sp.save_npz(folder / f"counts_{chunk}.npz", matrix)
            make_table(40).to_pickle(folder / f"table_{chunk}.pkl")
        tracemalloc.start()
        preprocessing.process(experiment_of(folder))
        peaks[n_chunks] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    more = matrix.nnz * 8 * 20
    assert peaks[25] - peaks[5] < 0.2 * more


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_runs_something_is_refused_by_name_and_does_not_run(tmp_path):
    path, trace = tmp_path / "table.pkl", tmp_path / "trace"
    table = pd.DataFrame({"a": [Malicious(f"touch {trace}")]})
    path.write_bytes(pickle.dumps(table))
    with pytest.raises(
        DataError, match=r"table\.pkl: refused: .* asks for \w+\.system"
    ):
        read_pickled_table(path)
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["eval", "getattr", "__import__", "exec"], ids=lambda name: name
)
def test_builtins_are_refused(tmp_path, name):
    path = tmp_path / "table.pkl"
    path.write_bytes(f"cbuiltins\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(DataError, match=f"asks for builtins.{name}"):
        read_pickled_table(path)


@pytest.mark.parametrize("place", ["pandas.io.pickle\nread_pickle", "numpy\nload"])
def test_functions_of_pandas_and_numpy_are_refused(tmp_path, place):
    path = tmp_path / "table.pkl"
    path.write_bytes(f"c{place}\n(S'x'\ntR.".encode())
    with pytest.raises(DataError, match="refused: it is no plain table"):
        read_pickled_table(path)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_tables_of_all_kinds_of_columns_come_back(tmp_path, protocol):
    table = make_table()
    table["date"] = pd.Timestamp("2024-07-01")
    table["text"] = pd.array(["a", None] * 45, dtype="string[python]")
    table["maybe"] = pd.array([1, None] * 45, dtype="Int64")
    path = tmp_path / "table.pkl"
    path.write_bytes(pickle.dumps(table, protocol=protocol))
    pd.testing.assert_frame_equal(read_pickled_table(path), table)


def test_a_pickle_of_something_else_is_refused(tmp_path):
    path = tmp_path / "table.pkl"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(DataError, match="holds a dict, expected a pandas DataFrame"):
        read_pickled_table(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(DataError, match="cannot be read as a pickled table"):
        read_pickled_table(path)


def break_rows(folder: Path) -> None:
    make_table(29).to_pickle(folder / "table_9.pkl")


def break_genes(folder: Path) -> None:
    sp.save_npz(folder / "counts_9.npz", sp.csr_matrix(np.ones((30, 19))))


def remove_table(folder: Path) -> None:
    (folder / "table_9.pkl").unlink()


def negative_value(folder: Path) -> None:
    sp.save_npz(folder / "counts_10.npz", -make_cells(30, N_GENES).counts)


def damaged_matrix(folder: Path) -> None:
    (folder / "counts_9.npz").write_bytes(b"PK")


def no_column(folder: Path) -> None:
    make_table(30).drop(columns="sex").to_pickle(folder / "table_10.pkl")


def null_value(folder: Path) -> None:
    table = make_table(30)
    table["sex"] = table["sex"].astype(object)
    table.iloc[4, 1] = None
    table.to_pickle(folder / "table_9.pkl")


def list_value(folder: Path) -> None:
    table = make_table(30)
    table["sex"] = [["f", "m"]] * 30
    table.to_pickle(folder / "table_9.pkl")


def malicious(folder: Path) -> None:
    (folder / "table_9.pkl").write_bytes(pickle.dumps(Malicious("true")))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (break_rows, r"table_9\.pkl: 29 rows, but .*counts_9\.npz has 30 cells"),
        (break_genes, r"counts_9\.npz: 19 genes, but .*counts_8\.npz has 20"),
        (remove_table, r"3 matrices .* but 2 tables .*; counts_9\.npz has no partner"),
        (negative_value, r"counts_10\.npz: holds -\d+ \(cell \d+, gene \d+, counted"),
        (damaged_matrix, r"counts_9\.npz: cannot be read"),
        (no_column, r'table_10\.pkl: input_ds\.covariates: no obs column "sex"'),
        (null_value, 'obs column "sex": 1 of 90 cells have no value'),
        (list_value, r"an obs column holds \['f', 'm'\], several values for one cell"),
        (malicious, r"table_9\.pkl: refused: .* asks for \w+\.system"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path, spoil, message):
    experiment = experiment_of(write_chunks(tmp_path / "chunks"))
    spoil(tmp_path / "chunks")
    with pytest.raises(DataError, match=message):
        preprocessing.process(experiment)
    assert not experiment.folder.exists()


def test_gene_names_come_from_their_file(tmp_path):
    folder = write_chunks(tmp_path / "chunks")
    names = [f"G{gene}" for gene in range(N_GENES)]
    (folder / "genes.txt").write_text("\n".join(names))
    chunks = {
        "metadata": str(folder / "table_*.pkl"),
        "genes": str(folder / "genes.txt"),
    }
    experiment = experiment_of(folder, chunks=chunks)
    preprocessing.process(experiment)
    assert set(experiment.manifest().features["rna"]) <= set(names)
    (folder / "genes.txt").write_text("\n".join(names[:-1]))
    with pytest.raises(DataError, match=r"genes\.txt: 19 gene names, 19 of them diff"):
        preprocessing.process(
            dataclasses.replace(experiment, folder=tmp_path / "another")
        )


def test_other_tables_are_refused(tmp_path):
    path = tmp_path / "table.xlsx"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"not a table we read\. Suffixes: \.pkl"):
        read_table(path)
