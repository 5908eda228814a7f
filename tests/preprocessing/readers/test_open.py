"""Every format gives back the counts and names that were written to it."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgan.config.reading import parse_experiment
from cellgan.errors import ConfigError, DataError
from preprocessing import sparse_blocks
from preprocessing.raw_counts import read_cells
from preprocessing.readers import anndata_files as read_anndata
from preprocessing.readers.cell_source import CellSource
from tests.preprocessing import raw_files

FORMATS = [
    (raw_files.h5ad_csr, "X"),
    (raw_files.h5ad_csc, "X"),
    (raw_files.h5ad_dense_integers, "X"),
    (raw_files.h5ad_raw, "raw"),
    (raw_files.h5ad_layer, 'layer "counts"'),
    (raw_files.zarr_v2, "X"),
    (raw_files.zarr_v3, "X"),
    (raw_files.h5_v2, "X"),
    (raw_files.h5_v3, "X"),
    (raw_files.mtx_v2, "X"),
    (raw_files.mtx_v3_gz, "X"),
    (raw_files.loom, "X"),
    (raw_files.csv, "X"),
    (raw_files.tsv_of_r, "X"),
    (raw_files.h5mu, "X"),
]
WITH_LABEL = [
    raw_files.h5ad_csr,
    raw_files.zarr_v3,
    raw_files.loom,
    raw_files.tsv_gz,
    raw_files.h5mu,
]
WITH_GENE_IDS = [
    raw_files.h5ad_csr,
    raw_files.h5ad_raw,
    raw_files.h5_v2,
    raw_files.h5_v3,
    raw_files.mtx_v2,
    raw_files.mtx_v3_gz,
    raw_files.loom,
]


@pytest.fixture
def adata() -> ad.AnnData:
    return raw_files.make_adata()


def read(path: object, **parameters: object) -> CellSource:
    block = {"raw_input": str(path), **parameters}
    return read_cells(parse_experiment({"input_ds": block}, "test").input_ds)


def assert_equal(cells: CellSource, adata: ad.AnnData) -> None:
    assert cells.rows.gather().dtype == np.float32
    assert cells.rows.gather().indices.dtype == np.int32
    assert cells.rows.gather().has_canonical_format
    np.testing.assert_array_equal(cells.rows.gather().toarray(), adata.X.toarray())
    assert list(cells.obs.index) == list(adata.obs_names)
    assert list(cells.var.index) == list(adata.var_names)


@pytest.mark.parametrize(("write", "source"), FORMATS)
def test_read_cells_returns_what_was_written(write, source, adata, tmp_path):
    cells = read(write(adata, tmp_path))
    assert_equal(cells, adata)
    assert cells.place == source


@pytest.mark.parametrize(("write", "source"), FORMATS)
def test_read_cells_is_the_same_when_blocks_are_tiny(
    write, source, adata, tmp_path, monkeypatch
):
    monkeypatch.setattr(sparse_blocks, "BLOCK_VALUES", 50)
    monkeypatch.setattr(sparse_blocks, "FIRST_VALUES", 70)
    monkeypatch.setattr("preprocessing.readers.raw_file.BLOCK_VALUES", 50)
    monkeypatch.setattr("preprocessing.readers.tenx.BLOCK_VALUES", 50)
    monkeypatch.setattr("preprocessing.readers.tables.BLOCK_VALUES", 50)
    monkeypatch.setattr(sparse_blocks.row_ranges, "__defaults__", (50,))
    cells = read(write(adata, tmp_path))
    assert_equal(cells, adata)
    assert cells.place == source


def write_dense(path, n_cells, **options):
    """Write dense counts, one in twenty not zero; return the size of their CSR."""
    dense = np.random.default_rng(0).poisson(0.05, (n_cells, 20_000))
    names = {"obs": n_cells, "var": dense.shape[1]}
    with h5py.File(path, "w") as file:
        for table, size in names.items():
            index = [f"{table}{number}" for number in range(size)]
            ad.io.write_elem(file, table, pd.DataFrame(index=index))
        file.create_dataset("X", data=dense, **options)
    return 8 * np.count_nonzero(dense) + 4 * (n_cells + 1)


def test_dense_counts_are_not_in_memory_twice_while_they_are_read(
    tmp_path, monkeypatch
):
    csr = write_dense(tmp_path / "dense.h5ad", 1500)
    monkeypatch.setattr(sparse_blocks, "FIRST_VALUES", 1)
    tracemalloc.start()
    try:
        read(tmp_path / "dense.h5ad")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * csr


MEASURE_READING = """
import re, sys
from pathlib import Path
from cellgan.config.reading import parse_experiment
from preprocessing.raw_counts import read_cells

def memory(field):
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{field}:\\s+(\\d+)", status)[1])

block = {"input_ds": {"raw_input": sys.argv[1]}}
before = memory("VmRSS")
read_cells(parse_experiment(block, "test").input_ds)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
def test_reading_dense_counts_takes_at_most_three_times_their_size(tmp_path):
    options = {"compression": "gzip", "compression_opts": 1}
    csr = write_dense(tmp_path / "dense.h5ad", 2000, **options)
    command = [sys.executable, "-c", MEASURE_READING, tmp_path / "dense.h5ad"]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    assert 1 < int(result.stdout) / csr <= 3


@pytest.mark.parametrize("write", WITH_LABEL)
def test_read_cells_keeps_the_label_column(write, adata, tmp_path):
    cells = read(write(adata, tmp_path), clustering={"key": "cell_type", "res": None})
    assert_equal(cells, adata)
    assert list(cells.obs["cell_type"]) == list(adata.obs["cell_type"])


@pytest.mark.parametrize("write", WITH_GENE_IDS)
def test_read_cells_keeps_gene_ids(write, adata, tmp_path):
    cells = read(write(adata, tmp_path))
    assert list(cells.var["gene_ids"]) == list(adata.var["gene_ids"])


@pytest.mark.parametrize(
    ("name", "header"), [("", ""), ("", "Barcode"), ("cell_", "sample")]
)
def test_text_keeps_cell_names_that_header_or_value_tell(name, header, adata, tmp_path):
    adata.obs_names = [f"{name}{7 * i}" for i in range(adata.n_obs)]
    adata.to_df().to_csv(tmp_path / "cells.csv", index_label=header)
    assert_equal(read(tmp_path / "cells.csv"), adata)


def test_text_without_cell_names_numbers_them(adata, tmp_path):
    adata.to_df().to_csv(tmp_path / "cells.csv", index=False, sep=";")
    adata.obs_names = [str(i) for i in range(adata.n_obs)]
    assert_equal(read(tmp_path / "cells.csv"), adata)


def test_text_whose_first_column_is_the_label_numbers_its_cells(adata, tmp_path):
    table = adata.to_df()
    table.insert(0, "cell_type", adata.obs["cell_type"])
    table.to_csv(tmp_path / "cells.csv", index=False)
    adata.obs_names = [str(i) for i in range(adata.n_obs)]
    cells = read(tmp_path / "cells.csv", clustering={"key": "cell_type"})
    assert_equal(cells, adata)
    assert list(cells.obs["cell_type"]) == list(adata.obs["cell_type"])


def test_text_keeps_a_gene_that_is_named_twice(adata, tmp_path):
    adata.var_names = ["gene0", "gene0", *adata.var_names[2:]]
    adata.to_df().to_csv(tmp_path / "cells.csv")
    adata.var_names = ["gene0", "gene0-1", *adata.var_names[2:]]
    assert_equal(read(tmp_path / "cells.csv"), adata)


def test_mtx_reads_entries_in_any_order(adata, tmp_path):
    folder = raw_files.mtx_v2(adata, tmp_path)
    lines = (folder / "matrix.mtx").read_text().splitlines(keepends=True)
    start = 1 + max(i for i, line in enumerate(lines) if line.startswith("%")) + 1
    (folder / "matrix.mtx").write_text("".join(lines[:start] + lines[start:][::-1]))
    assert_equal(read(folder), adata)


def test_h5_that_holds_an_anndata_is_read_as_one(adata, tmp_path):
    path = raw_files.h5ad_csr(adata, tmp_path).rename(tmp_path / "processed.h5")
    assert_equal(read(path), adata)


def test_stored_zeros_are_dropped_and_duplicates_summed(adata, tmp_path):
    path = raw_files.h5ad_csr(adata, tmp_path)
    with h5py.File(path, "a") as file:
        indptr = file["X/indptr"][:2]
        indices = file["X/indices"][: indptr[1]]
        values = file["X/data"][: indptr[1]]
        file["X/indices"][1] = indices[0]  # the second value now adds to the first
        file["X/data"][2] = 0
    expected = adata.X.toarray()
    expected[0, indices[0]] += values[1]
    expected[0, indices[1:3]] = 0
    cells = read(path)
    np.testing.assert_array_equal(cells.rows.gather().toarray(), expected)
    assert cells.rows.gather().nnz == np.count_nonzero(expected)


def test_duplicate_names_get_suffixes_and_keep_the_original(adata, tmp_path):
    names = adata.obs_names.to_numpy(dtype=object, copy=True)
    names[:4] = ["twin", "twin", "twin-1", "twin"]
    path = raw_files.h5ad_csr(adata, tmp_path)
    with h5py.File(path, "a") as file:
        del file["obs/_index"]
        ad.io.write_elem(file, "obs/_index", names)
    cells = read(path)
    assert list(cells.obs.index[:4]) == ["twin", "twin-2", "twin-1", "twin-3"]
    assert list(cells.obs["original_name"][:4]) == list(names[:4])
    assert "original_name" not in cells.var


def test_builtin_recovers_integer_counts_of_the_embedded_data():
    cells = read("builtin:pbmc68k_reduced")
    assert cells.rows.gather().shape == (700, 765)
    assert (cells.rows.gather().data == np.rint(cells.rows.gather().data)).all()
    assert cells.rows.gather().data.min() == 1
    assert cells.obs["bulk_labels"].nunique() == 10
    # Cells with few reads are rounded less: there the recovery is exact.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy

        original = scanpy.datasets.pbmc68k_reduced()
    factor = 10_000 / original.obs["n_counts"].to_numpy()[:, None]
    logged = np.log1p(cells.rows.gather().toarray() * factor)
    np.testing.assert_allclose(logged, original.raw.X.toarray(), atol=2e-3)


def test_builtin_is_refused_when_counts_are_no_integers(monkeypatch):
    monkeypatch.setattr(read_anndata, "RECOVERY_TOLERANCE", 1e-3)
    with pytest.raises(
        DataError, match=r"cannot be recovered: a value is 0\.08\d from"
    ):
        read("builtin:pbmc68k_reduced")


def test_named_layer_is_read_rather_than_x(adata, tmp_path):
    adata.layers["spliced"] = adata.X * 2
    cells = read(raw_files.h5ad_csr(adata, tmp_path), layer="spliced")
    np.testing.assert_array_equal(cells.rows.gather().toarray(), 2 * adata.X.toarray())
    assert cells.place == 'layer "spliced"'


def test_unknown_layer_is_refused_with_the_nearest(adata, tmp_path):
    adata.layers["spliced"] = adata.X
    path = raw_files.h5ad_csr(adata, tmp_path)
    expected = (
        r'no "splice" in .*csr.h5ad. Did you mean "spliced"\?\n.*It has: X, spliced'
    )
    with pytest.raises(ConfigError, match=expected):
        read(path, layer="splice")


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "0.5"), (-1, "-1"), (np.nan, "nan"), (np.inf, "inf")]
)
@pytest.mark.parametrize("write", [raw_files.h5ad_csr, raw_files.h5ad_csc])
def test_value_that_is_no_count_is_refused_with_its_place(
    value, shown, write, adata, tmp_path
):
    counts = adata.X.tolil()
    counts[17, 23] = value
    adata.X = counts.tocsr()
    expected = (
        rf'h5ad: no counts: X holds {shown} \(cell "cell17", gene "gene23"\). They '
        r"must be non-negative integers.\n.*layer \(here: X\), or set input_ds.counts"
    )
    with pytest.raises(DataError, match=expected):
        read(write(adata, tmp_path))


def test_no_counts_anywhere_lists_what_is_wrong_with_each_place(adata, tmp_path):
    path = raw_files.h5ad_layer(adata, tmp_path)
    with h5py.File(path, "a") as file:
        file["layers/counts/data"][:] = -1
    with pytest.raises(
        DataError, match=r'X holds \d\..*; layer "counts" holds -1 \(cell'
    ):
        read(path)


def test_values_that_are_no_integers_pass_when_counts_is_false(adata, tmp_path):
    adata.X = adata.X * np.float32(0.5)
    cells = read(raw_files.h5ad_csr(adata, tmp_path), counts=False)
    np.testing.assert_array_equal(cells.rows.gather().toarray(), adata.X.toarray())


@pytest.mark.parametrize("factor", [-1, np.inf])
def test_negative_and_infinite_values_are_refused_even_when_counts_is_false(
    factor, adata, tmp_path
):
    adata.X = adata.X * np.float32(factor)
    expected = r"X holds (-\d|inf).*They must be finite and not negative"
    with pytest.raises(DataError, match=expected):
        read(raw_files.h5ad_csr(adata, tmp_path), counts=False)


def test_count_beyond_float32_is_refused(adata, tmp_path):
    dense = adata.X.toarray().astype(np.int64)
    dense[3, 4] = 2**24 + 2
    adata.X = sp.csr_matrix(dense)
    with pytest.raises(DataError, match=r"X holds 1.67772e\+07 \(cell \"cell3\""):
        read(raw_files.h5ad_csr(adata, tmp_path))


def damage_nothing_there(adata: ad.AnnData, folder: Path) -> Path:
    return folder / "absent.h5ad"


def damage_suffix(adata: ad.AnnData, folder: Path) -> Path:
    return raw_files.h5ad_csr(adata, folder).rename(folder / "cells.xlsx")


def damage_loose_mtx(adata: ad.AnnData, folder: Path) -> Path:
    return raw_files.mtx_v2(adata, folder) / "matrix.mtx"


def damage_truncated(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.h5ad_csr(adata, folder)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def damage_text_as_h5ad(adata: ad.AnnData, folder: Path) -> Path:
    (folder / "cells.h5ad").write_text("not HDF5")
    return folder / "cells.h5ad"


def damage_index_outside(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.h5ad_csr(adata, folder)
    with h5py.File(path, "a") as file:
        file["X/indices"][5] = 10_000
    return path


def damage_pointers(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.h5ad_csr(adata, folder)
    with h5py.File(path, "a") as file:
        file["X/indptr"][3] = 0
    return path


def damage_values_left_over(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.h5_v2(adata, folder)
    with h5py.File(path, "a") as file:
        for name in ("GRCh38_any/data", "GRCh38_any/indices"):
            values = np.append(file[name][:], 1)
            del file[name]
            file[name] = values
    return path


def damage_too_few_names(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.h5_v2(adata, folder)
    with h5py.File(path, "a") as file:
        names = file["GRCh38_any/barcodes"][:-1]
        del file["GRCh38_any/barcodes"]
        file["GRCh38_any/barcodes"] = names
    return path


def damage_two_genomes(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.h5_v2(adata, folder)
    with h5py.File(path, "a") as file:
        file.copy("GRCh38_any", "mm10")
    return path


def damage_only_antibodies(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.h5_v3(adata, folder)
    with h5py.File(path, "a") as file:
        file["matrix/features/feature_type"][:] = b"Antibody Capture"
    return path


def damage_empty_folder(adata: ad.AnnData, folder: Path) -> Path:
    (folder / "empty").mkdir()
    return folder / "empty"


def damage_mtx_cut_short(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.mtx_v2(adata, folder)
    lines = (path / "matrix.mtx").read_text().splitlines(keepends=True)
    (path / "matrix.mtx").write_text("".join(lines[:-3]))
    return path


def damage_mtx_of_cells(adata: ad.AnnData, folder: Path) -> Path:
    return raw_files.mtx_v2(adata.T.copy(), folder)


def damage_gzip(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.mtx_v3_gz(adata, folder)
    file = path / "GSM1_matrix.mtx.gz"
    file.write_bytes(file.read_bytes()[:-40])
    return path


def damage_empty_text(adata: ad.AnnData, folder: Path) -> Path:
    (folder / "cells.csv").write_text("")
    return folder / "cells.csv"


def damage_words_in_text(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.csv(adata, folder)
    path.write_text(path.read_text().replace("cell9,", "cell9,many", 1))
    return path


def damage_short_line(adata: ad.AnnData, folder: Path) -> Path:
    path = raw_files.csv(adata, folder)
    path.write_text(path.read_text().replace("cell9,", "", 1))
    return path


def damage_zarr(adata: ad.AnnData, folder: Path) -> Path:
    (folder / "cells.zarr").mkdir()
    return folder / "cells.zarr"


def damage_loom(adata: ad.AnnData, folder: Path) -> Path:
    return raw_files.h5ad_csr(adata, folder).rename(folder / "cells.loom")


DAMAGES = [
    (damage_nothing_there, "no such file or folder"),
    (damage_suffix, "not a format we read"),
    (damage_loose_mtx, "Give the folder that holds matrix.mtx"),
    (damage_truncated, "cannot be read"),
    (damage_text_as_h5ad, "cannot be read"),
    (damage_index_outside, "a column index is outside 0 to 39"),
    (damage_pointers, "pointers do not fit 60 rows"),
    (damage_values_left_over, "pointers do not fit 60 rows"),
    (damage_too_few_names, "pointers do not fit 59 rows"),
    (damage_two_genomes, "one genome is expected .*, found 2: GRCh38_any, mm10"),
    (damage_only_antibodies, 'no "Gene Expression" feature, only Antibody Capture'),
    (damage_empty_folder, r"one matrix.mtx \(or .gz\) is expected, found none"),
    (damage_mtx_cut_short, r"matrix.mtx ends after \d+ of \d+ values"),
    (damage_gzip, "cannot be read"),
    (damage_empty_text, "cannot be read"),
    (damage_words_in_text, "cannot be read: line 11: could not convert .*many"),
    (damage_short_line, "cannot be read: line 11: 40 columns, expected 41"),
    (damage_zarr, "cannot be read"),
    (damage_loom, "cannot be read"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_file_that_cannot_be_read_is_refused_with_path_and_formats(
    damage, reason, adata, tmp_path
):
    path = damage(adata, tmp_path)
    with pytest.raises(DataError, match=reason) as error:
        read(path)
    assert str(path) in str(error.value)
    assert "Formats read: .h5ad, .h5 (10x), a folder" in str(error.value)


def test_h5mu_without_rna_is_refused_with_its_modalities(adata, tmp_path):
    path = raw_files.h5mu(adata, tmp_path)
    with h5py.File(path, "a") as file:
        file.move("mod/rna", "mod/gex")
    with pytest.raises(DataError, match=r'no modality "rna"; .*found: atac, gex'):
        read(path)


def test_file_without_cells_is_refused(adata, tmp_path):
    with pytest.raises(DataError, match="X is 0 cells x 40 genes"):
        read(raw_files.h5ad_csr(adata[:0].copy(), tmp_path))
