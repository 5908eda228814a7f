"""Cells are chosen, read and brought to one scale; bad files are refused."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgan.errors import ConfigError, DataError
from cellgan.evaluation.comparison import cell_files as files
from cellgan.evaluation.comparison.sides import compare_experiment, compare_files
from cellgan.evaluation.comparison.space import log_expression
from tests.evaluation.folders import (
    gene_frame,
    generated_cells,
    processed_cells,
    write_experiment,
    write_generated,
)
from tests.synthetic import make_cells


@pytest.fixture
def experiment(tmp_path):
    """Return a processed experiment without generated cells."""
    return write_experiment(tmp_path / "pbmc")


def made_cells() -> anndata.AnnData:
    cells = make_cells(90)
    return generated_cells(cells.counts, cells.labels)


def counted_cells(n_cells: int = 90, seed: int = 0) -> anndata.AnnData:
    cells = make_cells(n_cells, seed=seed)
    made = generated_cells(cells.counts, cells.labels)
    made.X = cells.counts
    return made


def compare(experiment, cells: anndata.AnnData, **options):
    return compare_experiment(experiment, write_generated(experiment, cells), **options)


def log_values(compared, side: str = "generated"):
    return log_expression(compared.modalities["rna"].values[side]).toarray()


def test_comparison_is_the_same_for_counts_scaled_values_and_shuffled_genes(experiment):
    counts, scaled = counted_cells(), made_cells()
    shuffled = scaled[:, np.random.default_rng(0).permutation(scaled.n_vars)].copy()
    first, second, third = (
        log_values(compare(experiment, cells)) for cells in (counts, scaled, shuffled)
    )
    np.testing.assert_allclose(second, first, rtol=1e-5)
    np.testing.assert_allclose(third, second, rtol=1e-6)


def test_counts_stay_counts_and_say_so(experiment):
    compared = compare(experiment, counted_cells())
    modality = compared.modalities["rna"]
    assert modality.are_counts
    assert "both sides are counts" in compared.scale
    values = modality.values["generated"].data
    np.testing.assert_array_equal(values, np.rint(values))


def test_normalised_cells_bring_both_sides_to_the_median_library_size(experiment):
    compared = compare(experiment, made_cells())
    modality = compared.modalities["rna"]
    real = anndata.read_h5ad(experiment.processed_file)
    is_test = (real.obs["split"] == "test").to_numpy()
    totals = np.asarray(real.X[is_test].sum(axis=1))
    assert not modality.are_counts
    assert "library sizes are not judged" in compared.scale
    for side in ("held_out", "generated"):
        sums = modality.values[side].sum(axis=1)
        np.testing.assert_allclose(sums, sums[0], rtol=1e-4)
        # a few cells were left out where a label has fewer generated ones
        assert sums[0] == pytest.approx(np.median(totals), rel=0.1)


def test_sides_are_of_different_cells(experiment):
    compared = compare(experiment, made_cells())
    rows = {
        side: {row.tobytes() for row in log_values(compared, side)}
        for side in ("training", "control", "held_out")
    }
    assert rows["training"].isdisjoint(rows["control"])
    assert rows["held_out"].isdisjoint(rows["training"] | rows["control"])


def test_held_out_cells_are_of_the_valid_split_when_there_is_no_test_split(tmp_path):
    experiment = write_experiment(tmp_path / "pbmc", n_test=0, n_valid=60)
    assert compare(experiment, made_cells()).split == "valid"


def test_genes_that_only_one_file_has_are_left_out_and_said(experiment):
    cells = made_cells()
    cells.var_names = ["other", *cells.var_names[1:]]
    compared = compare(experiment, cells)
    assert compared.modalities["rna"].names == tuple(cells.var_names[1:])
    assert compared.dropped == (
        "1 of 60 genes of processed.h5ad are not in cells.h5ad and were left out",
        "1 of 60 genes of cells.h5ad are not in processed.h5ad and were left out",
    )


def test_library_sizes_are_of_the_shared_genes(experiment):
    cells = counted_cells()[:, :30].copy()
    compared = compare(experiment, cells)
    totals = np.expm1(log_values(compared, "held_out")).sum(axis=1)
    np.testing.assert_allclose(totals, 10_000, rtol=1e-4)


def test_labels_asked_for_are_known_from_the_file(experiment):
    cells = made_cells()
    cells = cells[cells.obs["cluster"] != "type A"].copy()
    cells.obs["cluster"] = pd.Categorical(
        cells.obs["cluster"], categories=["type A", "type B", "type C"]
    )
    cells.uns["cellgan"] = {"cells_no": np.array([0, 30, 45]), "are_counts": False}
    compared = compare(experiment, cells)
    assert compared.label_states["type A"].state == "not asked for"
    assert "type A" not in compared.labels["held_out"]


def test_label_that_was_asked_for_and_is_not_there_is_missing(experiment):
    cells = made_cells()
    compared = compare(experiment, cells[cells.obs["cluster"] != "type A"].copy())
    assert compared.label_states["type A"].state == "missing"
    assert "type A" in compared.labels["held_out"]


def test_unlabelled_cells_are_compared_without_labels(experiment):
    cells = make_cells(90)
    compared = compare(experiment, generated_cells(cells.counts, None))
    assert compared.label is None
    assert compared.label_states == {}
    assert set(compared.labels["held_out"]) == {""}


def test_files_of_others_are_split_by_chance(tmp_path):
    real, made = tmp_path / "real.h5ad", tmp_path / "made.h5ad"
    counted_cells(300).write_h5ad(real)
    counted_cells(300, seed=1).write_h5ad(made)
    compared = compare_files(real, made)
    assert not compared.knows_training
    assert compared.label == "cluster"
    assert 90 <= compared.n_cells("held_out") <= 100


def test_split_column_of_a_file_says_what_was_held_out(tmp_path):
    real, made = tmp_path / "real.h5ad", tmp_path / "made.h5ad"
    processed_cells(make_cells(300), n_test=80, n_valid=20).write_h5ad(real)
    counted_cells(300, seed=1).write_h5ad(made)
    compared = compare_files(real, made)
    assert compared.knows_training
    assert compared.split == "test"
    assert compared.n_cells("held_out") <= 80


def test_modalities_of_h5mu_files_are_compared(tmp_path):
    path = tmp_path / "cells.h5mu"
    write_h5mu(path, make_cells(200).counts, make_cells(200, seed=1).counts)
    compared = compare_files(path, path)
    assert set(compared.modalities) == {"rna", "atac"}
    assert compared.modalities["atac"].values["held_out"].shape[1] == 60


def test_counts_in_a_layer_are_found(tmp_path):
    path = tmp_path / "cells.h5ad"
    cells = counted_cells(200)
    cells.layers["counts"] = cells.X.copy()
    cells.X = sp.csr_matrix(np.log1p(cells.X.toarray() * 1.37))
    cells.write_h5ad(path)
    values = compare_files(path, path).modalities["rna"].values["held_out"].data
    np.testing.assert_array_equal(values, np.rint(values))


def write_h5mu(path, *counts):
    with h5py.File(path, "w") as file:
        obs = pd.DataFrame(index=[f"cell_{i}" for i in range(counts[0].shape[0])])
        anndata.io.write_elem(file, "obs", obs)
        for name, values in zip(("rna", "atac"), counts, strict=True):
            adata = anndata.AnnData(values, obs, gene_frame(values.shape[1]))
            anndata.io.write_elem(file, f"mod/{name}", adata)


def with_logarithms(cells):
    cells.X.data = np.log1p(cells.X.data * 1.37)
    return cells


def with_nan(cells):
    cells.X.data[0] = np.nan
    return cells


def with_negative_values(cells):
    cells.X.data *= -1
    return cells


def without_counts(cells):
    cells.X.data[:] = 0
    return cells


def with_other_genes(cells):
    cells.var_names = [str(gene) for gene in range(cells.n_vars)]
    return cells


def with_one_gene_twice(cells):
    cells.var_names = ["gene_1", *cells.var_names[1:]]
    return cells


def with_other_labels(cells):
    cells.obs["cluster"] = cells.obs["cluster"].astype(str) + "?"
    return cells


BAD_FILES = {
    "logarithms": (with_logarithms, r"X holds values that look like logarithms"),
    "nan": (with_nan, r"X holds a value that is not finite: nan in cell 1 of 90"),
    "negative": (with_negative_values, r"X holds a negative value: -1 in cell 1 of 90"),
    "all zero": (without_counts, r"all \d+ cells are zero in every gene"),
    "genes": (with_other_genes, r'0 of its 60 genes.*"0".*"gene_0"'),
    "a gene twice": (with_one_gene_twice, r'the gene "gene_1" is there twice'),
    "labels": (
        with_other_labels,
        r'values of "cluster" \(type A\?.*\(type A, ',
    ),
    "one cell": (lambda cells: cells[:1].copy(), r"too few cells to compare"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_bad_generated_file_is_refused_by_name(experiment, name):
    spoil, message = BAD_FILES[name]
    with pytest.raises(DataError, match=rf"cells\.h5ad: [\s\S]*{message}"):
        compare(experiment, spoil(counted_cells()))


def spoiled(value: float, *, n_cells: int = 300, seed: int = 0):
    """Return cells of which one has an impossible value, and that cell and gene."""
    cells = counted_cells(n_cells, seed=seed)
    cell, gene = 201, int(cells.X[201].indices[0])
    cells.X[cell, gene] = value
    return cells, cells.obs_names[cell], cells.var_names[gene]


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.5])
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("at_once", [7, 4_000_000])
def test_impossible_value_of_a_cell_that_is_not_drawn_is_named(
    tmp_path, monkeypatch, value, form, at_once
):
    monkeypatch.setattr(files, "CHECKED_AT_ONCE", at_once)
    real, made = tmp_path / "real.h5ad", tmp_path / "made.h5ad"
    counted_cells(300).write_h5ad(real)
    cells, cell, gene = spoiled(value)
    if form == "dense":
        cells.X = cells.X.toarray()
    if form == "csc":
        cells.X = sp.csc_matrix(cells.X)
    cells.write_h5ad(made)
    place = rf'{value:.3g} in cell 202 of 300 \("{cell}"\), gene "{gene}"'
    with pytest.raises(DataError, match=rf"made\.h5ad: X holds a[\s\S]*{place}"):
        compare_files(real, made, most_cells=30)


@pytest.mark.parametrize(
    ("whose", "advice"),
    [("real", "Put raw counts of all cells"), ("generated", "Generate again")],
)
def test_impossible_values_of_either_side_come_with_their_own_advice(
    tmp_path, whose, advice
):
    paths = {side: tmp_path / f"{side}.h5ad" for side in ("real", "generated")}
    for side, path in paths.items():
        cells = counted_cells(300) if side != whose else spoiled(np.nan)[0]
        cells.write_h5ad(path)
    with pytest.raises(DataError, match=rf"{whose}\.h5ad: [\s\S]*{advice}"):
        compare_files(paths["real"], paths["generated"], most_cells=30)


def renamed(cells: anndata.AnnData, **names: str) -> anndata.AnnData:
    cells.obs["cluster"] = [names.get(of[-1], of) for of in cells.obs["cluster"]]
    return cells


def test_labels_spelled_differently_are_a_warning_with_the_nearest_spelling(tmp_path):
    real, made = tmp_path / "real.h5ad", tmp_path / "made.h5ad"
    counted_cells(300).write_h5ad(real)
    other = renamed(counted_cells(300, seed=1), A="Type a.", B="unlike")
    other.write_h5ad(made)
    (warning,) = compare_files(real, made).warnings
    assert '"Type a." Did you mean "type A"?' in warning
    assert '"unlike"' in warning
    assert 'held-out cells have "type A", "type B"' in warning


def test_labels_that_only_real_cells_have_are_no_mistake_of_spelling(experiment):
    cells = made_cells()
    cells = cells[cells.obs["cluster"] != "type A"].copy()
    assert compare(experiment, cells).warnings == ()


def test_cells_of_labels_that_are_left_out_are_counted(experiment):
    cells = renamed(made_cells(), A="other")
    (said,) = compare(experiment, cells).dropped
    n_cells = int((cells.obs["cluster"] == "other").sum())
    assert said.startswith("1 labels of cells.h5ad (other) are not among")
    assert f"{n_cells} cells were left out" in said


def test_cells_that_are_there_are_counted_beside_those_compared(tmp_path):
    path = tmp_path / "cells.h5ad"
    counted_cells(300).write_h5ad(path)
    compared = compare_files(path, path, most_cells=30)
    assert compared.n_in_files == {"held_out": 100, "training": 200, "generated": 300}
    assert compared.n_cells("generated") <= 30


def test_training_cells_must_be_known_where_leaks_have_to_be_found(tmp_path):
    path = tmp_path / "cells.h5ad"
    counted_cells(200).write_h5ad(path)
    with pytest.raises(ConfigError, match=r'--fail-on-leak: .*no obs column "split"'):
        compare_files(path, path, must_know_training=True)


def test_split_column_without_held_out_cells_is_told(tmp_path):
    path = tmp_path / "cells.h5ad"
    cells = counted_cells(200)
    cells.obs["split"] = ["training", "testing"] * 100
    cells.write_h5ad(path)
    with pytest.raises(ConfigError, match=r"holds testing, training, but neither test"):
        compare_files(path, path, must_know_training=True)


def test_known_training_cells_are_not_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    processed_cells(make_cells(300), n_test=80, n_valid=0).write_h5ad(path)
    assert compare_files(path, path, must_know_training=True).knows_training


def test_too_few_cells_in_a_file_come_with_advice_for_files(tmp_path):
    path = tmp_path / "cells.h5ad"
    counted_cells(20).write_h5ad(path)
    with pytest.raises(DataError, match="too few cells") as raised:
        compare_files(path, path)
    assert "test_cells" not in str(raised.value)
    assert "give more real cells" in str(raised.value)


def test_many_labels_are_cut_with_dots(tmp_path):
    real, made = tmp_path / "real.h5ad", tmp_path / "made.h5ad"
    counted_cells(300).write_h5ad(real)
    other = counted_cells(300)
    other.obs["cluster"] = [f"c{cell % 8}" for cell in range(300)]
    other.write_h5ad(made)
    with pytest.raises(DataError, match=r"c0, c1, c2, c3, c4, \.\.\. \(3 more\)"):
        compare_files(real, made)


@pytest.mark.parametrize("option", ["--real", "--generated"])
def test_missing_file_is_named_with_its_option(tmp_path, option):
    paths = {name: tmp_path / f"{name[2:]}.h5ad" for name in ("--real", "--generated")}
    for name, path in paths.items():
        if name != option:
            counted_cells(200).write_h5ad(path)
    with pytest.raises(DataError, match=rf"^{option}: .*no such file"):
        compare_files(*paths.values())


def test_file_cut_short_is_told_from_one_of_another_kind(experiment):
    path = write_generated(experiment, made_cells())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"damaged, cut short[\s\S]*download it again"):
        compare_experiment(experiment, path)
    path.write_text("gene,cell\n")
    with pytest.raises(DataError, match=r"not an HDF5 file[\s\S]*write_h5ad"):
        compare_experiment(experiment, path)


def test_generated_cells_must_be_there(experiment):
    with pytest.raises(DataError, match=r"cells\.h5ad: no such file.*--generate"):
        compare_experiment(experiment, experiment.generated_file)


def test_held_out_cells_must_be_there(tmp_path):
    experiment = write_experiment(tmp_path / "pbmc", n_test=0)
    with pytest.raises(DataError, match=r"no held-out cells[\s\S]*test_cells"):
        compare(experiment, made_cells())


def test_processed_file_must_be_there(experiment):
    path = write_generated(experiment, made_cells())
    experiment.processed_file.unlink()
    with pytest.raises(DataError, match=r"processed\.h5ad: no such file.*--process"):
        compare_experiment(experiment, path)


def test_file_of_another_kind_is_named(experiment):
    path = write_generated(experiment, made_cells())
    path.write_bytes(b"not a file of cells")
    with pytest.raises(DataError, match=r"cells\.h5ad: cannot be read as \.h5ad"):
        compare_experiment(experiment, path)


def test_unknown_label_column_names_the_nearest(tmp_path):
    path = tmp_path / "cells.h5ad"
    counted_cells(200).write_h5ad(path)
    with pytest.raises(ConfigError, match=r'no obs column "clusters".*"cluster"'):
        compare_files(path, path, label="clusters")
