"""Processing of RNA and ATAC of the same cells."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import preprocessing
from cellgan.config.input import InputParameters
from cellgan.config.reading import parse_experiment
from cellgan.data.manifest import DatasetManifest
from cellgan.data.shards import read_shard
from cellgan.errors import CellganError, DataError
from cellgan.evaluation.comparison.cell_files import open_cells
from cellgan.experiment import Experiment
from preprocessing.pipeline import filter_counts
from preprocessing.raw_counts import cell_order, read_atac
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.rows import RowsInMemory
from preprocessing.survey import survey
from tests.preprocessing import raw_files

N_CELLS, N_GENES, N_PEAKS = 120, 40, 70
RARE, CLOSED = slice(60, 64), slice(64, 67)
"""Peaks open in 4 cells, and in none."""
LARGEST = {"counts": np.inf, "binary": 1}
BLIND = (7, 33)
"""Cells without an ATAC count."""


@pytest.fixture
def rna() -> ad.AnnData:
    return raw_files.make_adata(N_CELLS, N_GENES)


@pytest.fixture
def atac(rna: ad.AnnData) -> ad.AnnData:
    rng = np.random.default_rng(5)
    counts = rng.poisson(0.4, size=(N_CELLS, N_PEAKS)).astype(np.float32)
    counts[:, 0] += 1
    counts[:, RARE] = 0
    counts[10:14, RARE] = 2
    counts[:, CLOSED] = 0
    counts[list(BLIND)] = 0
    peaks = pd.DataFrame(
        {"chrom": ["chr1"] * N_PEAKS}, index=[f"peak{i}" for i in range(N_PEAKS)]
    )
    obs = pd.DataFrame({"fragments": np.arange(N_CELLS)}, index=rna.obs_names)
    return ad.AnnData(sp.csr_matrix(counts), obs, peaks)


@pytest.fixture
def make_experiment(tmp_path: Path, rna: ad.AnnData, atac: ad.AnnData) -> Callable:
    """Return experiments on one .h5mu, or on two .h5ad in different orders of cells."""

    def make(*, in_one: bool = True, **changes: object) -> Experiment:
        files = tmp_path / "files"
        files.mkdir(exist_ok=True)
        if in_one:
            raw, atac_raw = raw_files.multiome(rna, atac, files), None
        else:
            raw = raw_files.h5ad_csr(rna, files)
            atac_raw = str(files / "atac.h5ad")
            order = np.random.default_rng(0).permutation(atac.n_obs)
            atac[order].copy().write_h5ad(atac_raw)
        block = {
            "raw_input": str(raw),
            "clustering": {"key": "cell_type"},
            "filtering": {"min_genes": 1, "min_cells": 1},
            "split": {"valid_cells": 20, "test_cells": 10},
            "atac": {"raw_input": atac_raw, **changes.pop("atac", {})},
            **changes,
        }
        parameters = parse_experiment({"input_ds": block}, "test")
        return Experiment(tmp_path / "experiments" / "pbmc", parameters)

    return make


def read_processed(experiment: Experiment) -> mudata.MuData:
    with mudata.set_options(pull_on_update=False):
        return mudata.read_h5mu(experiment.processed_file)


def read_records(
    experiment: Experiment, manifest: DatasetManifest
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return names, peak values and stored totals of all records."""
    shards = [
        read_shard(path, manifest)
        for path in sorted(experiment.records_folder.iterdir())
    ]
    return (
        [name for shard in shards for name in shard.barcodes],
        np.concatenate([shard.atac.values.toarray() for shard in shards]),
        np.concatenate([shard.atac.count_no for shard in shards]),
    )


both_ways = pytest.mark.parametrize("in_one", [True, False], ids=["h5mu", "two h5ad"])


@both_ways
def test_both_modalities_keep_the_same_cells_with_their_counts(
    make_experiment, rna, atac, in_one
):
    experiment = make_experiment(in_one=in_one)
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    assert experiment.processed_file.name == "processed.h5mu"
    kept = [name for i, name in enumerate(rna.obs_names) if i not in BLIND]
    names = list(processed["rna"].obs_names)
    assert names == kept
    assert list(processed["atac"].obs_names) == names
    for modality, raw in (("rna", rna), ("atac", atac)):
        found = processed[modality]
        assert sp.isspmatrix_csr(found.X)
        assert found.X.dtype == np.float32
        expected = raw[names, found.var_names].X.toarray()
        np.testing.assert_array_equal(found.X.toarray(), expected)
        np.testing.assert_array_equal(found.obs["n_counts"], expected.sum(axis=1))
        np.testing.assert_array_equal(
            found.var["n_cells"], np.count_nonzero(expected, axis=0)
        )


@pytest.mark.parametrize(("min_cells", "n_peaks"), [(5, 63), (4, 67), (0, 67)])
def test_rare_peaks_go_by_the_cells_kept_and_closed_ones_always(
    make_experiment, caplog, min_cells, n_peaks
):
    with caplog.at_level(logging.INFO, "preprocessing"):
        summary = preprocessing.process(make_experiment(atac={"min_cells": min_cells}))
    assert summary.atac.n_before == N_PEAKS
    assert summary.atac.n_after == n_peaks
    assert "left out 2 cells" in caplog.text
    assert "3 peaks open in no cell" in caplog.text
    assert f"{N_PEAKS - 3 - n_peaks} more that are open in fewer" in caplog.text
    assert f"peaks      {n_peaks} of 70" in caplog.text


def test_numbers_of_cells_are_those_of_the_cells_that_stay():
    """One cell goes for its ATAC, so a gene and a peak lose their last cell too."""
    genes = np.zeros((14, 3), dtype=np.float32)
    genes[:, :2] = 1
    genes[:2, 2] = 1
    peaks = np.zeros((14, 4), dtype=np.float32)
    peaks[1:, :2] = 3
    peaks[1:3, 2] = 1
    obs = pd.DataFrame(index=[f"c{i}" for i in range(14)])
    rna, atac = (
        CellSource(
            obs,
            pd.DataFrame(index=[f"{name}{i}" for i in range(counts.shape[1])]),
            RowsInMemory(sp.csr_matrix(counts)),
        )
        for name, counts in (("g", genes), ("p", peaks))
    )
    kept = filter_counts(rna, atac, parameters(min_cells=2, min_peaks_cells=2))
    assert kept.rna.obs.index[0] == "c1"
    assert len(kept.rna.obs) == len(kept.atac.obs) == 13
    assert list(kept.rna.var.index) == ["g0", "g1"]  # g2 is in one cell kept
    assert kept.atac.var["n_cells"].to_dict() == {"p0": 13, "p1": 13, "p2": 2}
    assert kept.atac.obs.loc["c1"].to_dict() == {"n_peaks": 3, "n_counts": 7}


def parameters(min_cells: int, min_peaks_cells: int) -> InputParameters:
    block = {
        "raw_input": "x.h5mu",
        "filtering": {"min_genes": 1, "min_cells": min_cells},
        "atac": {"min_cells": min_peaks_cells},
    }
    return parse_experiment({"input_ds": block}, "test").input_ds


@pytest.mark.parametrize("values", ["counts", "binary"])
def test_records_hold_the_values_of_the_peaks(make_experiment, atac, values):
    experiment = make_experiment(in_one=False, atac={"values": values})
    preprocessing.process(experiment)
    manifest, processed = experiment.manifest(), read_processed(experiment)
    names, found, totals = read_records(experiment, manifest)
    expected = atac[names, list(manifest.features["atac"])].X.toarray()
    assert expected.max() > 1
    expected = expected.clip(max=LARGEST[values])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(totals, expected.sum(axis=1))
    np.testing.assert_array_equal(processed["atac"][names].X.toarray(), expected)
    assert sorted(names) == sorted(processed["atac"].obs_names)
    assert manifest.binary == {"counts": (), "binary": ("atac",)}[values]


def test_manifest_tells_features_and_library_sizes_of_both(make_experiment):
    experiment = make_experiment(atac={"values": "binary"})
    preprocessing.process(experiment)
    processed, manifest = read_processed(experiment), experiment.manifest()
    rna, atac = processed["rna"].obs, processed["atac"]
    open_peaks = pd.Series(np.diff(atac.X.indptr), index=atac.obs_names)
    assert list(manifest.features) == ["atac", "rna"]
    assert manifest.features["atac"] == tuple(atac.var_names)
    for code, label in enumerate(manifest.label_vocabulary.categories):
        chosen = (rna["split"] == "train") & (rna["cell_type"] == label)
        assert list(manifest.library_sizes["atac"][code]) == sorted(open_peaks[chosen])
        combination = manifest.combinations[code]
        pairs = zip(
            combination.library_sizes["rna"],
            combination.library_sizes["atac"],
            strict=True,
        )
        expected = zip(rna.loc[chosen, "n_counts"], open_peaks[chosen], strict=True)
        assert sorted(pairs) == sorted(expected)
        mean = np.log(open_peaks[chosen]).mean()
        assert combination.log_mean["atac"] == pytest.approx(mean)


def test_what_describes_rna_describes_the_cells_of_the_processed_file(make_experiment):
    experiment = make_experiment()
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    pd.testing.assert_frame_equal(
        processed.obs, processed["rna"].obs, check_dtype=False
    )
    assert "fragments" in processed["atac"].obs
    assert processed["atac"].var["chrom"].eq("chr1").all()
    with open_cells(experiment.processed_file) as cells:
        assert {"split", "cell_type"} <= set(cells.obs)
        assert cells.obs["n_counts"].tolist() == processed.obs["n_counts"].tolist()


def test_rna_records_are_the_same_without_atac(make_experiment, tmp_path):
    """But for what is added, and for cells that have no ATAC counts."""
    experiment = make_experiment()
    preprocessing.process(experiment)
    manifest = experiment.manifest()
    alone = dataclasses.replace(
        manifest, features={"rna": manifest.features["rna"]}, library_sizes={}
    )
    for file in experiment.records_folder.iterdir():
        both, rna = read_shard(file, manifest), read_shard(file, alone)
        assert rna.atac is None
        assert both.barcodes == rna.barcodes
        np.testing.assert_array_equal(both.values.toarray(), rna.values.toarray())


@both_ways
def test_survey_tells_both_modalities_before_and_after_processing(
    make_experiment, in_one
):
    experiment = make_experiment(in_one=in_one)
    before = survey(experiment)
    preprocessing.process(experiment)
    processed = read_processed(experiment)
    n_values = processed["rna"].X.nnz + processed["atac"].X.nnz
    assert before.n_values == survey(experiment).n_values == n_values
    assert before.manifest == dataclasses.replace(experiment.manifest(), shards={})


def test_combined_clusters_are_of_rna(make_experiment):
    experiment = make_experiment(clustering={"res": 0.3})
    preprocessing.process(experiment)
    assert "cluster" in read_processed(experiment)["rna"].obs


# what does not suit


def renamed(cells: ad.AnnData, old: int, new: str) -> None:
    names = list(cells.obs_names)
    names[old] = new
    cells.obs_names = names


@both_ways
def test_other_cells_are_refused_with_numbers_and_examples(
    make_experiment, atac, in_one
):
    renamed(atac, 3, "stranger")
    message = (
        r"not the cells of the RNA: 120 with RNA, 120 with ATAC, 119 with both \(only "
        r"with RNA: cell3; only with ATAC: stranger\)\.\n.*under the same names"
    )
    with pytest.raises(DataError, match=message):
        preprocessing.process(make_experiment(in_one=in_one))


def test_missing_cells_are_refused_with_a_few_examples(make_experiment, atac, tmp_path):
    experiment = make_experiment(in_one=False)
    atac[10:].copy().write_h5ad(tmp_path / "files" / "atac.h5ad")
    message = r"110 with both \(only with RNA: cell0, cell1, cell2\)"
    with pytest.raises(DataError, match=message):
        preprocessing.process(experiment)


def test_twins_are_paired_in_one_order_and_refused_in_another():
    names = pd.Index(["a", "twin", "twin"])
    unique = pd.Index(["a", "twin", "twin-1"])
    assert cell_order(unique, names, "atac.h5ad") is None
    with pytest.raises(DataError, match="names are there twice and not in the order"):
        cell_order(unique, names[::-1], "atac.h5ad")


def test_h5mu_without_atac_is_refused(make_experiment, tmp_path):
    experiment = make_experiment()
    with h5py.File(tmp_path / "files" / "multiome.h5mu", "r+") as file:
        file.move("mod/atac", "mod/peaks")
    message = r'no modality "atac"; modalities found: peaks, rna.\n.*atac.raw_input'
    with pytest.raises(DataError, match=message):
        preprocessing.process(experiment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"atac": {"layer": "spliced"}},
            r'input_ds.atac.layer: no "spliced" in .*h5mu',
        ),
        (
            {"atac": {"min_cells": 119}},
            r"atac.min_cells 119: 0 of 70 peaks\); at least 10 cells",
        ),
    ],
)
def test_wrong_parameters_are_refused_and_leave_nothing(
    make_experiment, tmp_path, changes, message
):
    with pytest.raises(CellganError, match=message):
        preprocessing.process(make_experiment(**changes))
    assert [path.name for path in tmp_path.iterdir()] == ["files"]


def test_values_that_are_no_counts_are_refused_with_cell_and_peak(
    make_experiment, atac
):
    atac.X = atac.X * 0.5
    with pytest.raises(
        DataError,
        match=r'X holds 0.5 \(cell "cell0", peak "peak\d+"\)[\s\S]*atac.layer',
    ):
        preprocessing.process(make_experiment())


def test_absent_atac_file_is_named_with_its_key(make_experiment, tmp_path):
    experiment = make_experiment(in_one=False)
    (tmp_path / "files" / "atac.h5ad").unlink()
    with pytest.raises(
        DataError, match=r"atac.h5ad: no such .*input_ds.atac.raw_input"
    ):
        preprocessing.process(experiment)


def test_atac_is_read_in_the_order_of_the_rna(make_experiment, rna, atac):
    parameters = make_experiment(in_one=False).parameters.input_ds
    cells = read_atac(parameters, CellSource.of_anndata(rna))
    assert list(cells.obs.index) == list(rna.obs_names)
    np.testing.assert_array_equal(cells.rows.gather().toarray(), atac.X.toarray())


@pytest.mark.realdata
@pytest.mark.parametrize("values", ["counts", "binary"])
def test_multiome_of_a549(make_experiment, data_dir, values):
    file = data_dir / "a549_scicar_multiome_raw.h5mu"
    experiment = make_experiment(
        raw_input=str(file),
        clustering={"key": "time"},
        split={"valid_cells": 300},
        atac={"values": values},
    )
    preprocessing.process(experiment)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # columns of the raw file
        raw = mudata.read_h5mu(file)
    manifest, processed = experiment.manifest(), read_processed(experiment)
    names, found, _ = read_records(experiment, manifest)
    cells = processed["atac"][names]
    np.testing.assert_array_equal(found, cells.X.toarray())
    expected = raw["atac"][names, list(manifest.features["atac"])].X.copy()
    expected.data = expected.data.clip(max=LARGEST[values])
    assert (expected != cells.X).nnz == 0
    assert processed["atac"].var["n_cells"].min() >= 5
    assert (np.diff(processed["atac"].X.indptr) > 0).all()
    assert manifest.cells_per_category["train"]["time"][0] > 400
    assert len(manifest.features["atac"]) < 52_761
