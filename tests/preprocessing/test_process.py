"""Processing from raw file to experiment folder, and what it leaves when it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import preprocessing
from cellgan.config.reading import parse_experiment
from cellgan.data.shards import read_shard
from cellgan.errors import CellganError, ConfigError, DataError
from cellgan.experiment import Experiment
from preprocessing import experiment_folder
from preprocessing.annotations import with_unique_names
from preprocessing.pipeline import filter_counts
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.rows import RowsInMemory
from tests.preprocessing import raw_files

N_CELLS = 120
FRESH_PROCESS = """
import sys, pathlib, preprocessing
from cellgan.config.reading import parse_experiment
from cellgan.experiment import Experiment
block = {"input_ds": {"raw_input": "absent.h5ad"}}
try:
    preprocessing.process(Experiment(pathlib.Path("x/y"), parse_experiment(block, "y")))
except Exception as error:
    print(error, sorted({"anndata", "scanpy", "sklearn", "pandas"} & set(sys.modules)))
"""
PREPROCESSED_KEYS = {
    "total_count",
    "genes_no",
    "train_count",
    "valid_count",
    "test_count",
    "train_cells_per_cluster",
    "valid_cells_per_cluster",
    "test_cells_per_cluster",
    "split_seed",
    "scale",
    "clusters_no",
    "clusters_ratios",
}


@pytest.fixture
def adata() -> ad.AnnData:
    return raw_files.make_adata(N_CELLS, 40)


@pytest.fixture
def make_experiment(tmp_path: Path, adata: ad.AnnData) -> Callable[..., Experiment]:
    """Return experiments on one raw file: own labels, 30 valid and 10 test cells."""
    raw = raw_files.h5ad_csr(adata, tmp_path)

    def make(**changes: object) -> Experiment:
        block = {
            "raw_input": str(raw),
            "clustering": {"key": "cell_type"},
            "split": {"valid_cells": 30, "test_cells": 10},
            "scale": "normalize_per_cell_LS_1000",
            **changes,
        }
        parameters = parse_experiment({"input_ds": block}, "test")
        return Experiment(tmp_path / "experiments" / "pbmc", parameters)

    return make


def read_processed(experiment: Experiment) -> ad.AnnData:
    return ad.read_h5ad(experiment.processed_file)


def snapshot(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_process_writes_a_complete_folder_and_nothing_beside_it(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    assert experiment.is_processed
    assert [path.name for path in experiment.folder.parent.iterdir()] == ["pbmc"]
    assert {path.name for path in experiment.folder.iterdir()} == {
        "parameters.json",
        "manifest.json",
        "fields.json",
        "vocabulary.json",
        "processed.h5ad",
        "TF_records",
    }
    assert len(list(experiment.records_folder.iterdir())) == 12


def test_processed_file_holds_counts_labels_and_names(make_experiment, adata):
    experiment = make_experiment()
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    assert sp.isspmatrix_csr(processed.X)
    assert processed.X.dtype == np.float32
    expected = adata[processed.obs_names, processed.var_names]
    np.testing.assert_array_equal(processed.X.toarray(), expected.X.toarray())
    assert list(processed.obs["cell_type"]) == list(expected.obs["cell_type"])
    assert list(processed.var["gene_ids"]) == list(expected.var["gene_ids"])
    totals = expected.X.toarray().sum(axis=1)
    np.testing.assert_allclose(processed.obs["n_counts"], totals)
    detected = np.count_nonzero(adata[processed.obs_names].X.toarray(), axis=1)
    np.testing.assert_array_equal(processed.obs["n_genes"], detected)
    n_cells = np.count_nonzero(expected.X.toarray(), axis=0)
    np.testing.assert_array_equal(processed.var["n_cells"], n_cells)


def test_manifest_and_preprocessed_block_tell_the_realised_numbers(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    processed, manifest = read_processed(experiment), experiment.manifest()
    block = experiment.stored_parameters()["preprocessed"]
    table = pd.crosstab(processed.obs["split"], processed.obs["cell_type"])
    labels = ("type A", "type B", "type C")
    sizes = processed.obs["split"].value_counts()
    assert set(block) == PREPROCESSED_KEYS
    assert manifest.label_vocabulary.categories == labels
    assert manifest.features["rna"] == tuple(processed.var_names)
    for split in ("train", "valid", "test"):
        per_label = table.loc[split, list(labels)]
        assert block[f"{split}_cells_per_cluster"] == per_label.to_dict()
        assert block[f"{split}_count"] == manifest.split_sizes[split] == sizes[split]
        assert manifest.cells_per_category[split]["cell_type"] == tuple(per_label)
    assert (block["total_count"], block["genes_no"]) == processed.shape
    assert block["clusters_no"] == 3
    assert block["split_seed"] == 0
    assert block["scale"] == {
        "scaling": "normalize_per_cell_LS",
        "scale_value": 1000,
    }
    shares = processed.obs["cell_type"].value_counts(normalize=True)
    assert block["clusters_ratios"] == pytest.approx(shares.to_dict())


def test_balanced_split_numbers_are_shares_of_the_filtered_cells(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    cells = processed.obs["cell_type"].value_counts()
    block = experiment.stored_parameters()["preprocessed"]
    for split, number in (("valid", 30), ("test", 10)):
        expected = {
            name: int(size / processed.n_obs * number) for name, size in cells.items()
        }
        assert block[f"{split}_cells_per_cluster"] == expected


def test_manifest_holds_library_sizes_of_training_cells_by_label(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    obs, manifest = read_processed(experiment).obs, experiment.manifest()
    for code, label in enumerate(manifest.label_vocabulary.categories):
        chosen = (obs["split"] == "train") & (obs["cell_type"] == label)
        expected = sorted(obs.loc[chosen, "n_counts"])
        assert list(manifest.library_sizes["rna"][code]) == expected


def add_donors(adata: ad.AnnData, tmp_path: Path) -> None:
    """Write the raw file again, with numbered donors, and sexes."""
    adata.obs["donor"] = np.arange(N_CELLS) % 11
    adata.obs["sex"] = np.where(np.arange(N_CELLS) % 2, "f", "m")
    raw_files.h5ad_csr(adata, tmp_path)


def test_covariate_of_one_category_is_doubted(make_experiment, adata, tmp_path, caplog):
    adata.obs["batch"] = "only"
    raw_files.h5ad_csr(adata, tmp_path)
    preprocessing.process(make_experiment(covariates=["batch"]))
    assert 'all cells have "only" in obs["batch"]' in caplog.text


def test_covariates_reach_processed_file_records_and_manifest(
    make_experiment, adata, tmp_path
):
    add_donors(adata, tmp_path)
    experiment = make_experiment(covariates=["sex", "cell_type", "donor"])
    preprocessing.process(experiment)
    obs, manifest = read_processed(experiment).obs, experiment.manifest()
    assert list(manifest.covariates) == ["cell_type", "donor", "sex"]
    donors = tuple(str(donor) for donor in range(11))
    assert manifest.covariates["donor"].categories == donors
    assert tuple(obs["donor"].cat.categories) == donors
    expected = adata.obs.loc[obs.index]
    assert obs["donor"].tolist() == expected["donor"].astype(str).tolist()
    for split in ("train", "valid", "test"):
        table = obs[obs["split"] == split]
        for name, numbers in manifest.cells_per_category[split].items():
            sizes = table[name].value_counts(sort=False)
            assert numbers == tuple(sizes[list(manifest.covariates[name].categories)])
    for file in experiment.records_folder.iterdir():
        shard = read_shard(file, manifest)
        found = manifest.covariates["donor"].decode(shard.codes["donor"])
        assert found.tolist() == obs.loc[shard.barcodes, "donor"].tolist()


def test_combinations_are_those_of_training_cells(make_experiment, adata, tmp_path):
    add_donors(adata, tmp_path)
    experiment = make_experiment(
        covariates=["donor"],
        split={"by": "donor", "test_values": ["3"], "valid_cells": 20},
    )
    preprocessing.process(experiment)
    obs, manifest = read_processed(experiment).obs, experiment.manifest()
    groups = obs[obs["split"] == "train"].groupby(
        ["cell_type", "donor"], observed=True
    )["n_counts"]
    logs = groups.apply(np.log).groupby(level=[0, 1], observed=True)
    codes = [
        tuple(
            manifest.covariates[name].encode([category])[0] for name, category in each
        )
        for each in (
            zip(("cell_type", "donor"), key, strict=True) for key in groups.groups
        )
    ]
    assert manifest.covariates["donor"].categories[3] == "3"
    assert 3 not in {donor for _, donor in codes}
    found = {tuple(each.codes.values()): each for each in manifest.combinations}
    assert list(found) == sorted(codes)
    assert [each.n_cells for each in found.values()] == groups.size().tolist()
    sizes = [list(each.library_sizes["rna"]) for each in found.values()]
    assert sizes == [sorted(group) for _, group in groups]
    means = [each.log_mean["rna"] for each in found.values()]
    np.testing.assert_allclose(means, logs.mean())
    sds = [each.log_sd["rna"] for each in found.values()]
    np.testing.assert_allclose(np.array(sds, dtype=float), logs.std())


def test_shards_hold_every_cell_once(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    manifest = experiment.manifest()
    assert set(manifest.shards) == {
        path.name for path in experiment.records_folder.iterdir()
    }
    assert sum(manifest.shards.values()) == sum(manifest.split_sizes.values())
    assert manifest.shards["validate.tfrecords"] == manifest.split_sizes["valid"]
    assert manifest.shards["test.tfrecords"] == manifest.split_sizes["test"]


def read_records(experiment: Experiment) -> tuple[np.ndarray, list[str]]:
    """Dense values of all records, and the names of their cells."""
    manifest = experiment.manifest()
    shards = [
        read_shard(path, manifest)
        for path in sorted(experiment.records_folder.iterdir())
    ]
    values = np.concatenate([shard.values.toarray() for shard in shards])
    return values, [name for shard in shards for name in shard.barcodes]


def test_records_hold_the_counts_of_the_processed_file(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    values, names = read_records(experiment)
    processed = read_processed(experiment)
    np.testing.assert_array_equal(values, processed[names].X.toarray())
    assert sorted(names) == sorted(processed.obs_names)


def test_normalized_records_sum_to_the_scale_and_the_processed_file_holds_counts(
    make_experiment,
):
    experiment = make_experiment(record_values="normalized")
    preprocessing.process(experiment)
    values, names = read_records(experiment)
    counts = read_processed(experiment)[names].X.toarray()
    np.testing.assert_allclose(values.sum(axis=1), 1000, atol=1e-3 * 1000)
    np.testing.assert_array_equal(counts, np.rint(counts))
    np.testing.assert_allclose(
        values, counts / counts.sum(axis=1, keepdims=True) * 1000, rtol=1e-5
    )
    manifest = experiment.manifest()
    assert manifest.record_values == "normalized"
    assert [each.library_sizes for each in manifest.combinations] == [{}] * 3
    assert [each.log_mean for each in manifest.combinations] == [{}] * 3


def test_clusters_are_strings_by_falling_size(make_experiment):
    experiment = make_experiment(clustering={"res": 0.3})
    preprocessing.process(experiment)
    label = read_processed(experiment).obs["cluster"]
    sizes = label.value_counts(sort=False)
    assert list(sizes.index) == ["0", "1", "2"]
    assert (np.diff(sizes) <= 0).all()
    assert experiment.manifest().label == "cluster"


def test_text_labels_keep_natural_order_when_it_is_not_that_of_size(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    sizes = experiment.manifest().cells_per_category["train"]["cell_type"]
    assert sizes[0] < sizes[1] < sizes[2]


def test_raw_file_is_only_read(make_experiment, tmp_path):
    experiment = make_experiment()
    raw = tmp_path / "csr.h5ad"
    raw.chmod(0o444)
    before = raw.read_bytes(), raw.stat().st_mtime_ns
    preprocessing.process(experiment)
    assert (raw.read_bytes(), raw.stat().st_mtime_ns) == before


def test_processing_twice_gives_the_same_files(make_experiment, tmp_path):
    first = make_experiment(clustering={"res": 1.0})
    preprocessing.process(first)
    second = Experiment(tmp_path / "again" / "pbmc", first.parameters)
    preprocessing.process(second)
    assert snapshot(first.records_folder) == snapshot(second.records_folder)
    assert first.manifest() == second.manifest()


# filters


def toy_cells() -> CellSource:
    """Gene g3 is in two cells only, one of which has too few genes."""
    counts = np.zeros((14, 4), dtype=np.float32)
    counts[:12, 0] = 1
    counts[:12, 1] = 2
    counts[0, 3] = 5
    counts[12, 3] = 7
    counts[13, 2] = 0
    obs = pd.DataFrame(index=[f"c{i}" for i in range(14)])
    var = pd.DataFrame(index=["g0", "g1", "g2", "g3"])
    return CellSource(obs, var, RowsInMemory(sp.csr_matrix(counts)))


def filtering(min_genes: int, min_cells: int) -> object:
    block = {"min_genes": min_genes, "min_cells": min_cells}
    parameters = parse_experiment(
        {"input_ds": {"raw_input": "x.h5ad", "filtering": block}}, "test"
    )
    return parameters.input_ds


def test_cells_are_filtered_before_genes():
    kept = filter_counts(toy_cells(), None, filtering(2, 2)).rna
    assert list(kept.var.index) == ["g0", "g1"]  # g3 is in one of the kept cells
    assert len(kept.obs) == 12
    assert kept.obs.loc["c0", "n_genes"] == 3  # before genes are filtered
    assert kept.obs.loc["c0", "n_counts"] == 3
    assert kept.var["n_cells"].tolist() == [12, 12]


def test_empty_cells_and_genes_go_even_without_thresholds():
    kept = filter_counts(toy_cells(), None, filtering(0, 0)).rna
    assert list(kept.var.index) == ["g0", "g1", "g3"]
    assert "c13" not in kept.obs.index
    assert len(kept.obs) == 13


def test_cells_that_gene_filtering_empties_go():
    kept = filter_counts(toy_cells(), None, filtering(1, 3)).rna
    assert list(kept.var.index) == ["g0", "g1"]
    assert "c12" not in kept.obs.index
    assert (np.diff(kept.rows.gather().indptr) > 0).all()


def test_thresholds_keep_what_equals_them():
    kept = filter_counts(toy_cells(), None, filtering(2, 12)).rna
    assert kept.shape == (12, 2)


def test_too_little_left_is_refused_with_advice():
    expected = (
        r"min_genes 4 and min_cells 1 leave 0 of 14 cells and 0 of 4 genes; at least "
        r"10 cells and 2 genes are needed.\n.*A cell expresses 2 genes \(median\)"
    )
    with pytest.raises(DataError, match=expected):
        filter_counts(toy_cells(), None, filtering(4, 1))


def test_columns_of_the_raw_file_that_we_write_are_replaced(caplog):
    raw = toy_cells()
    raw.obs["n_genes"] = 999
    raw.obs["list"] = [[1]] * 14
    with caplog.at_level(logging.INFO, "preprocessing"):
        kept = filter_counts(raw, None, filtering(1, 1)).rna
    assert kept.obs["n_genes"].max() == 3
    assert "obs columns replaced: n_genes" in caplog.text
    assert "obs columns left out, not writable: list" in caplog.text


def test_unique_names_reach_the_processed_file(make_experiment, adata, tmp_path):
    names = ["twin"] * 2 + list(adata.obs_names[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that names are not unique
        adata.obs_names = names
        path = raw_files.h5ad_csr(adata, tmp_path)
    experiment = make_experiment(raw_input=str(path))
    preprocessing.process(experiment)
    obs = read_processed(experiment).obs
    assert obs.index.is_unique
    expected = with_unique_names(pd.DataFrame(index=names))
    assert list(obs["original_name"]) == list(expected.loc[obs.index, "original_name"])


# folders that are there, and failures


def test_same_parameters_again_do_nothing(make_experiment, caplog):
    preprocessing.process(make_experiment())
    before = snapshot(make_experiment().folder)
    with caplog.at_level(logging.INFO, "preprocessing"):
        assert preprocessing.process(make_experiment()) is None
    assert "pbmc: already processed" in caplog.text
    assert snapshot(make_experiment().folder) == before


def test_other_parameters_are_refused_with_both_ways_out(make_experiment):
    preprocessing.process(make_experiment())
    before = snapshot(make_experiment().folder)
    expected = (
        r"filtering.min_cells: 3 then, 5 now[\s\S]*another name[\s\S]*--overwrite"
    )
    with pytest.raises(ConfigError, match=expected):
        preprocessing.process(make_experiment(filtering={"min_cells": 5}))
    assert snapshot(make_experiment().folder) == before


def test_overwrite_replaces_the_whole_folder(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    (experiment.job_folder / "gan").mkdir(parents=True)
    changed = make_experiment(filtering={"min_cells": 5})
    preprocessing.process(changed, overwrite=True)
    assert not changed.job_folder.exists()
    stored = changed.stored_parameters()["input_ds"]["filtering"]
    assert stored["min_cells"] == 5


@pytest.mark.parametrize("overwrite", [False, True])
def test_folder_of_something_else_is_refused(overwrite, make_experiment):
    experiment = make_experiment()
    experiment.folder.mkdir(parents=True)
    (experiment.folder / "thesis.tex").write_text("precious")
    with pytest.raises(DataError, match="not the folder of an experiment"):
        preprocessing.process(experiment, overwrite=overwrite)
    assert (experiment.folder / "thesis.tex").read_text() == "precious"


def test_file_in_the_place_of_the_folder_is_refused(make_experiment):
    experiment = make_experiment()
    experiment.folder.parent.mkdir()
    experiment.folder.write_text("precious")
    with pytest.raises(DataError, match="not the folder of an experiment"):
        preprocessing.process(experiment, overwrite=True)
    assert experiment.folder.read_text() == "precious"


def test_empty_folder_is_used(make_experiment):
    experiment = make_experiment()
    experiment.folder.mkdir(parents=True)
    preprocessing.process(experiment)
    assert experiment.is_processed


def test_overwriting_the_folder_that_holds_the_raw_file_is_refused(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    inside = make_experiment(raw_input=str(experiment.processed_file))
    before = snapshot(experiment.folder)
    with pytest.raises(
        DataError, match="the raw file lies in the folder to be written"
    ):
        preprocessing.process(inside, overwrite=True)
    assert snapshot(experiment.folder) == before


def test_experiments_dir_that_is_a_file_is_refused(make_experiment, tmp_path):
    (tmp_path / "experiments").write_text("")
    with pytest.raises(
        ConfigError, match=r"experiments_dir: .*experiments is not a folder"
    ):
        preprocessing.process(make_experiment())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_experiments_dir_that_cannot_be_written_is_refused(make_experiment, tmp_path):
    (tmp_path / "experiments").mkdir(mode=0o555)
    with pytest.raises(ConfigError, match=r"experiments_dir: .* is not writable"):
        preprocessing.process(make_experiment())


WRONG = {
    "absent file": ({"raw_input": "absent.h5ad"}, "no such file"),
    "absent layer": ({"layer": "spliced"}, 'no "spliced"'),
    "absent label": ({"clustering": {"key": "cel_type"}}, 'Did you mean "cell_type"'),
    "absent cluster": ({"clustering": {"res": None}}, 'no obs column "cluster"'),
    "label of names": ({"clustering": {"key": "name"}}, "does not group them"),
    "label missing": ({"clustering": {"key": "partial"}}, "have no value"),
    "label of ours": ({"clustering": {"key": "split"}}, 'key is "split"'),
    "absent covariate": (
        {"covariates": ["celltype"]},
        r'input_ds.covariates: no obs column "celltype". Did you mean "cell_type"',
    ),
    "covariate of names": (
        {"covariates": ["name"]},
        r'(?s)"name": 119 values in 119 cells, .*another column with input_ds.covar',
    ),
    "covariate of numbers": (
        {"covariates": ["total"]},
        r'"total": 119 values in 119 cells, so it does not group them \(found: 0.5,',
    ),
    "covariate missing": (
        {"covariates": ["partial"]},
        r'(?s)"partial": 60 of 119 cells have no value.*for example "unknown"',
    ),
    "covariate of ours": (
        {"covariates": ["n_counts"]},
        'input_ds.covariates name "n_counts", a column that we write',
    ),
    "harsh filter": ({"filtering": {"min_genes": 99}}, "leave 0 of 120 cells"),
    "default split": ({"split": {}}, "Set valid_cells to 23 "),
    "absent donor": (
        {"split": {"by": "donor", "test_values": ["d1"]}},
        'split.by: no obs column "donor"',
    ),
    "absent value": (
        {"split": {"by": "cell_type", "test_values": ["B"], "valid_cells": 5}},
        'no cell has "B"',
    ),
    "label held out": (
        {"split": {"by": "cell_type", "test_values": ["type A"], "valid_cells": 5}},
        'no training cell of "type A"',
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_refused_and_leaves_nothing(
    changes, message, make_experiment, adata, tmp_path
):
    adata.obs["name"] = adata.obs_names
    adata.obs["split"] = "a"
    adata.obs["total"] = np.arange(N_CELLS) + 0.5
    adata.obs["partial"] = ["a", None] * (N_CELLS // 2)
    raw_files.h5ad_csr(adata, tmp_path)
    with pytest.raises(CellganError, match=message):
        preprocessing.process(make_experiment(**changes))
    assert [path.name for path in tmp_path.iterdir()] == ["csr.h5ad"]


def test_absent_file_is_told_before_libraries_are_loaded():
    fresh = subprocess.run(
        [sys.executable, "-c", FRESH_PROCESS],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert fresh.stdout.startswith("absent.h5ad: no such file or folder")
    assert fresh.stdout.endswith("[]\n")


def test_disk_full_is_told_and_leaves_the_old_folder(make_experiment, monkeypatch):
    experiment = make_experiment()
    preprocessing.process(experiment)
    before = snapshot(experiment.folder)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(experiment_folder, "make_manifest", fail)
    changed = make_experiment(filtering={"min_cells": 5})
    with pytest.raises(DataError, match=r"pbmc: cannot be written: .*No space left"):
        preprocessing.process(changed, overwrite=True)
    assert [path.name for path in experiment.folder.parent.iterdir()] == ["pbmc"]
    assert snapshot(experiment.folder) == before


def test_interrupt_leaves_nothing(make_experiment, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment_folder, "make_manifest", interrupt)
    experiment = make_experiment()
    with pytest.raises(KeyboardInterrupt):
        preprocessing.process(experiment)
    assert list(experiment.folder.parent.iterdir()) == []


def test_summary_tells_cells_genes_labels_splits_and_bytes(make_experiment, caplog):
    experiment = make_experiment(filtering={"min_cells": 60})
    with caplog.at_level(logging.INFO, "preprocessing"):
        summary = preprocessing.process(experiment)
    processed = read_processed(experiment)
    assert summary.shape_before == (N_CELLS, 40)
    assert summary.shape_after == processed.shape
    assert summary.shape_after[1] < 40
    assert summary.n_values == processed.X.nnz
    size = experiment.processed_file.stat().st_size
    assert summary.bytes_on_disk["processed.h5ad"] == size
    assert sum(summary.cells_per_label.values()) == processed.n_obs
    assert f"genes      {processed.n_vars} of 40" in caplog.text
    assert "train 8" in caplog.text


def test_summary_tells_the_categories_of_every_covariate(
    make_experiment, adata, tmp_path, caplog
):
    add_donors(adata, tmp_path)
    with caplog.at_level(logging.INFO, "preprocessing"):
        preprocessing.process(make_experiment(covariates=["sex"]))
    assert "sex        2 values: f (60), m (59)" in caplog.text


def test_parameters_file_is_json_with_sorted_keys(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    text = experiment.parameters_file.read_text()
    assert json.dumps(json.loads(text), indent=4, sort_keys=True) + "\n" == text


def test_builtin_data_with_its_labels(make_experiment):
    experiment = make_experiment(
        raw_input="builtin:pbmc68k_reduced",
        clustering={"key": "bulk_labels"},
        split={"valid_cells": 140},
    )
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    assert processed.shape == (700, 765)
    assert len(experiment.manifest().label_vocabulary) == 10


@pytest.mark.realdata
def test_pbmc3k_clusters_agree_with_its_cell_types(make_experiment, data_dir):
    from sklearn.metrics import adjusted_rand_score

    experiment = make_experiment(
        raw_input=str(data_dir / "pbmc3k_raw.h5ad"),
        clustering={"res": 1.0},
        split={"valid_cells": 300, "test_cells": 200},
    )
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    assert processed.shape == (2700, 13714)
    assert 4 <= len(experiment.manifest().label_vocabulary) <= 8
    agreement = adjusted_rand_score(
        processed.obs["cell_type"], processed.obs["cluster"]
    )
    assert agreement > 0.4


@pytest.mark.realdata
def test_pbmc3k_with_its_own_labels(make_experiment, data_dir):
    experiment = make_experiment(
        raw_input=str(data_dir / "pbmc3k_raw.h5ad"),
        split={"valid_cells": 300, "test_cells": 200},
    )
    preprocessing.process(experiment)
    sizes = read_processed(experiment).obs["cell_type"].value_counts().to_dict()
    assert sizes["Naive CD4 T"] == 697
    assert sizes["Platelet"] == 14


@pytest.mark.realdata
def test_donors_of_the_kang_data_are_a_covariate(make_experiment, data_dir):
    experiment = make_experiment(
        raw_input=str(data_dir / "kang_ctrl_pbmc_8donors_raw.h5ad"),
        covariates=["donor"],
        split={"by": "donor", "test_values": ["1488"], "valid_cells": 800},
    )
    preprocessing.process(experiment)
    obs, manifest = read_processed(experiment).obs, experiment.manifest()
    donors = ("101", "107", "1015", "1016", "1039", "1244", "1256", "1488")
    assert manifest.covariates["donor"].categories == donors
    assert manifest.cells_per_category["train"]["donor"][-1] == 0
    trained = obs[obs["split"] == "train"]
    assert len(manifest.combinations) == len(
        trained[["cell_type", "donor"]].drop_duplicates()
    )
    assert sum(each.n_cells for each in manifest.combinations) == len(trained)
    assert obs["donor"].value_counts()["1015"] == 2738


@pytest.mark.realdata
def test_rna_of_the_multiome_with_the_column_of_the_whole_file(
    make_experiment, data_dir
):
    experiment = make_experiment(
        raw_input=str(data_dir / "a549_scicar_multiome_raw.h5mu"),
        clustering={"key": "time"},
        split={"valid_cells": 300},
    )
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    assert processed.shape == (2641, 1185)
    assert processed.obs["time"].value_counts().to_dict() == {
        "3h": 1075,
        "1h": 983,
        "0h": 583,
    }
