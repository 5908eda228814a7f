"""Cells in chunks: the records of one file, and nothing unpickled but data."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import preprocessing
from cellgan.config.reading import parse_experiment
from cellgan.data.records import read_shard, split_files
from cellgan.errors import ConfigError, DataError
from cellgan.experiment import Experiment
from preprocessing.readers.chunks import read_table
from preprocessing.readers.restricted_pickle import read_pickled_table
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


def records_of(experiment: Experiment) -> dict[str, tuple]:
    """Return every cell of the records by the place it had among all."""
    manifest = experiment.manifest()
    found = {}
    for split in ("train", "valid", "test"):
        for file in split_files(experiment.records_folder, manifest, split):
            shard = read_shard(file, manifest)
            for row, name in enumerate(shard.barcodes):
                found[name] = (
                    split,
                    shard.values[row].toarray().tolist(),
                    {key: int(of[row]) for key, of in shard.codes.items()},
                )
    return found


@pytest.mark.parametrize("suffix", [".pkl", ".csv", ".parquet"])
def test_chunks_give_the_records_of_one_file(tmp_path, suffix):
    chunks = experiment_of(write_chunks(tmp_path / "chunks", suffix), suffix)
    preprocessing.process(chunks)
    table = make_table().set_axis(np.arange(N_CELLS).astype(str))
    whole = anndata.AnnData(make_cells(N_CELLS, N_GENES).counts, obs=table)
    whole.obs_names = [f"counts_{8 + row // 30}-{row % 30}" for row in range(N_CELLS)]
    whole.var_names = [f"gene_{gene}" for gene in range(N_GENES)]
    whole.obs = whole.obs.drop(columns="nothing")
    whole.write_h5ad(tmp_path / "whole.h5ad")
    inputs = dataclasses.replace(
        chunks.parameters.input_ds, raw_input=str(tmp_path / "whole.h5ad"), chunks=None
    )
    one = Experiment(
        tmp_path / "one", dataclasses.replace(chunks.parameters, input_ds=inputs)
    )
    preprocessing.process(one)

    assert records_of(chunks) == records_of(one)
    mine, other = chunks.manifest().as_json(), one.manifest().as_json()
    assert mine == other
    found, expected = (anndata.read_h5ad(e.processed_file) for e in (chunks, one))
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.var_names.tolist() == expected.var_names.tolist()
    assert found.obs["split"].tolist() == expected.obs["split"].tolist()


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


def test_chunks_are_not_clustered(tmp_path):
    folder = write_chunks(tmp_path / "chunks")
    experiment = experiment_of(folder, clustering={"res": 0.2})
    with pytest.raises(ConfigError, match="cells in chunks are not clustered"):
        preprocessing.process(experiment)


def test_other_tables_are_refused(tmp_path):
    path = tmp_path / "table.xlsx"
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"not a table we read\. Suffixes: \.pkl"):
        read_table(path)
