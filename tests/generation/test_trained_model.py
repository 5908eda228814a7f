"""Requests become cells with names, labels and provenance, in memory and on disk."""

from __future__ import annotations

import dataclasses
import json
import platform
import resource

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

import cellgan
from cellgan.config.reading import as_json
from cellgan.data.manifest import CovariateVocabulary
from cellgan.errors import CellganError, ConfigError, DataError
from cellgan.generation import pieces
from cellgan.generation.pieces import piece_size
from cellgan.models.base import SolverSettings, sparse_rows
from tests.fake_model import fake_expression, make_trained
from tests.manifests import make_combination, make_manifest

FORMATS = ["cells.h5ad", "cells.zarr", "cells.mtx"]


@pytest.fixture
def small_pieces(monkeypatch):
    """Make pieces of 4 cells of 6 genes."""
    monkeypatch.setattr(pieces, "MOST_CELLS", 4)


def read(path):
    """Read a file by other means than the package's."""
    if path.suffix != ".mtx":
        readers = {".h5ad": anndata.read_h5ad, ".zarr": anndata.read_zarr}
        return readers[path.suffix](path)
    genes = pd.read_csv(path / "features.tsv.gz", sep="\t", header=None)
    barcodes = pd.read_csv(path / "barcodes.tsv.gz", sep="\t", header=None)
    obs = pd.read_csv(path / "obs.tsv.gz", sep="\t", index_col="barcode")
    assert obs.index.tolist() == barcodes[0].tolist()
    return anndata.AnnData(
        sp.csr_matrix(scipy.io.mmread(path / "matrix.mtx.gz").T, dtype=np.float32),
        obs=obs.astype("category").rename_axis(None),
        var=pd.DataFrame(index=genes[1].rename(None)),
        uns={"cellgan": json.loads((path / "cellgan.json").read_text())},
    )


def test_cells_are_those_of_the_model_in_label_order(tmp_path):
    cells = make_trained(tmp_path).generate((3, 2), seed=5)
    expected = fake_expression(5, np.arange(5), [0, 0, 0, 1, 1], 6)
    assert sp.isspmatrix_csr(cells.X)
    assert cells.X.dtype == np.float32
    np.testing.assert_array_equal(cells.X.toarray(), expected)


def test_cells_have_names_and_all_labels_by_name(tmp_path):
    manifest = make_manifest(labels=("z", "a", "m"), trained=(5, 5, 5))
    cells = make_trained(tmp_path, manifest).generate({"m": 2, "z": 1})
    assert cells.obs_names.tolist() == ["generated_0", "generated_1", "generated_2"]
    assert cells.var_names.tolist() == list(manifest.features["rna"])
    assert cells.obs["cluster"].tolist() == ["z", "m", "m"]
    assert cells.obs["cluster"].cat.categories.tolist() == ["z", "a", "m"]


def test_cells_have_no_label_when_the_model_has_none(tmp_path):
    cells = make_trained(tmp_path, model_type="scGAN").generate(4)
    assert cells.shape == (4, 6)
    assert cells.obs.columns.tolist() == []


def test_request_is_like_the_data_by_default(tmp_path):
    cells = make_trained(tmp_path, make_manifest(trained=(3, 9))).generate()
    assert cells.obs["cluster"].value_counts().to_dict() == {"B": 3, "T": 9}


def test_provenance_says_where_cells_come_from(tmp_path):
    trained = make_trained(tmp_path)
    provenance = trained.generate((3, 2), seed=5).uns["cellgan"]
    versions = provenance.pop("versions")
    parameters = json.loads(provenance.pop("parameters"))
    assert parameters == as_json(trained.experiment.parameters)
    assert provenance.pop("cells_no").tolist() == [3, 2]
    assert provenance == {
        "model_type": "cscGAN",
        "step": 40,
        "seed": 5,
        "scale": "library-size-normalised to 1000, no log",
        "are_counts": False,
        "request": "{}",
        "source": "drawn from the model",
    }
    assert versions["cellgan"] == cellgan.__version__
    assert versions["python"] == platform.python_version()
    assert set(versions) == {
        *("cellgan", "tensorflow", "keras", "anndata", "numpy", "python")
    }


def test_scale_is_stated_when_the_model_does_not_rescale(tmp_path):
    cells = make_trained(tmp_path, output_LSN=None).generate((1, 1))
    assert cells.uns["cellgan"]["scale"] == (
        "trained on library sizes normalised to 1000, not rescaled, no log"
    )


def test_counts_are_whole_with_library_sizes_of_the_label(tmp_path):
    manifest = make_manifest(library_sizes=[(50.0,), (700.0, 900.0)])
    cells = make_trained(tmp_path, manifest).generate((40, 60), counts=True)
    totals = cells.X.sum(axis=1).A1
    assert (cells.X.data % 1 == 0).all()
    assert set(totals[:40]) == {50.0}
    assert totals[40:].min() >= 700
    assert totals[40:].max() <= 900
    assert len(set(totals[40:])) > 30
    provenance = cells.uns["cellgan"]
    assert provenance["are_counts"]
    assert provenance["scale"] == (
        "counts, library sizes drawn from the training cells of the cell's label"
    )


def test_counts_of_a_model_that_makes_counts_are_left_alone(tmp_path):
    trained = make_trained(tmp_path)
    trained.model.are_counts = True
    plain, counted = trained.generate((3, 3)), trained.generate((3, 3), counts=True)
    np.testing.assert_array_equal(plain.X.toarray(), counted.X.toarray())
    assert plain.uns["cellgan"]["are_counts"]
    assert plain.uns["cellgan"]["scale"] == "counts"


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("size", [1, 2, 16])
def test_cells_are_the_same_whatever_the_piece_size(
    tmp_path, monkeypatch, size, counts
):
    trained = make_trained(tmp_path)
    whole = trained.generate((13, 24), seed=3, counts=counts)
    assert len(trained.model.requests) == 1
    monkeypatch.setattr(pieces, "MOST_CELLS", size)
    cut = trained.generate((13, 24), seed=3, counts=counts)
    assert len(trained.model.requests) == 1 + -(-37 // size)
    np.testing.assert_array_equal(cut.X.toarray(), whole.X.toarray())


@pytest.mark.parametrize(
    ("n_genes", "expected"),
    [(60, 4096), (2048, 4096), (2049, 2048), (17_789, 256), (2**30, 1)],
)
def test_piece_holds_few_values(n_genes, expected):
    assert piece_size(n_genes) == expected


def test_sparse_rows_are_those_of_scipy():
    dense = np.zeros((4, 5), np.float32)
    dense[[0, 0, 2, 3, 3], [1, 4, 0, 2, 3]] = (3, 1, 2, 5, 7)  # row 1 is empty
    rows, expected = sparse_rows(dense), sp.csr_matrix(dense)
    for part in ("data", "indices", "indptr"):
        found = getattr(rows, part)
        np.testing.assert_array_equal(found, getattr(expected, part))
        assert found.dtype == getattr(expected, part).dtype
    assert rows.shape == (4, 5)


@pytest.mark.parametrize("counts", [False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_file_holds_what_generate_returns(tmp_path, small_pieces, name, counts):
    trained = make_trained(tmp_path)
    expected = trained.generate((7, 12), seed=2, counts=counts)
    path = trained.write(tmp_path / name, (7, 12), seed=2, counts=counts)
    assert path == tmp_path / name
    found = read(path)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.X.has_sorted_indices
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert found.var_names.tolist() == expected.var_names.tolist()
    provenance, wanted = found.uns["cellgan"], expected.uns["cellgan"]
    assert list(provenance.pop("cells_no")) == list(wanted.pop("cells_no"))
    assert provenance == wanted
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", FORMATS)
def test_file_of_an_unconditional_model_has_no_label(tmp_path, name):
    found = read(make_trained(tmp_path, model_type="scGAN").write(tmp_path / name, 5))
    assert found.shape == (5, 6)
    assert found.obs.columns.tolist() == []


def test_matrix_market_says_whether_values_are_whole(tmp_path):
    trained = make_trained(tmp_path)
    real = trained.write(tmp_path / "a.mtx", (2, 2)) / "matrix.mtx.gz"
    whole = trained.write(tmp_path / "b.mtx", (2, 2), counts=True) / "matrix.mtx.gz"
    assert scipy.io.mminfo(real)[3:] == ("coordinate", "real", "general")
    assert scipy.io.mminfo(whole)[3:] == ("coordinate", "integer", "general")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # scanpy's own
def test_scanpy_reads_the_10x_folder(tmp_path):
    import scanpy  # takes seconds to load

    trained = make_trained(tmp_path)
    path = trained.write(tmp_path / "cells.mtx", (7, 5), counts=True)
    found = scanpy.read_10x_mtx(path)
    expected = trained.generate((7, 5), counts=True)
    np.testing.assert_array_equal(found.X.toarray(), expected.X.toarray())
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert found.var_names.tolist() == expected.var_names.tolist()
    assert set(found.var["feature_types"]) == {"Gene Expression"}


def test_h5ad_counts_its_values_in_64_bits_and_is_compressed(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = make_trained(tmp_path).write(tmp_path / "cells.h5ad", (2, 2))
    with h5py.File(path) as file:
        assert file["X/indptr"].dtype == np.int64
        assert file["X/data"].compression == "gzip"
        assert file["X/data"].dtype == np.float32


def test_h5ad_can_be_read_without_loading_it(tmp_path):
    trained = make_trained(tmp_path)
    path = trained.write(tmp_path / "cells.h5ad", (2, 2))
    cells = anndata.read_h5ad(path, backed="r")
    expected = trained.generate((2, 2)).X.toarray()
    np.testing.assert_array_equal(cells[1:3].to_memory().X.toarray(), expected[1:3])
    cells.file.close()


def test_zarr_is_of_format_3(tmp_path):
    path = make_trained(tmp_path).write(tmp_path / "cells.zarr", (2, 2))
    assert json.loads((path / "zarr.json").read_text())["zarr_format"] == 3


def test_file_goes_into_the_experiment_by_default(tmp_path):
    trained = make_trained(tmp_path / "pbmc")
    path = trained.write(cells_no=(1, 1))
    assert path == trained.experiment.generated_file
    assert read(path).n_obs == 2


@pytest.mark.parametrize("name", FORMATS)
def test_file_of_the_same_format_is_replaced(tmp_path, name):
    trained = make_trained(tmp_path)
    trained.write(tmp_path / name, (5, 5))
    assert read(trained.write(tmp_path / name, (1, 2))).n_obs == 3


def test_nothing_is_generated_when_the_request_is_wrong(tmp_path):
    trained = make_trained(tmp_path, make_manifest(library_sizes=[(), ()]))
    wrong = [
        {"path": tmp_path / "cells.csv"},
        {"cells_no": (1, 2, 3)},
        {"counts": True},
    ]
    messages = ["suffix", "cells_no: 3 numbers", "counts: the library sizes"]
    for arguments, message in zip(wrong, messages, strict=True):
        with pytest.raises(ConfigError, match=message):
            trained.write(**arguments)
    assert trained.model.requests == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_earlier_file_stays_when_the_disk_is_full(tmp_path, name):
    manifest = make_manifest(n_genes=2000)
    trained = make_trained(tmp_path, manifest)
    before = read(trained.write(tmp_path / name, (2, 2)))
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, allowed[1]))
    try:
        with pytest.raises(DataError, match=r"cannot be written: .*\. Whatever was"):
            trained.write(tmp_path / name, (300, 300))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    np.testing.assert_array_equal(read(tmp_path / name).X.toarray(), before.X.toarray())
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_file_is_not_kept_when_its_last_bytes_do_not_fit(tmp_path):
    # HDF5 writes the end of the file as it is closed.
    trained = make_trained(tmp_path)
    path = trained.write(tmp_path / "cells.h5ad", (1, 1))
    nearly_all = path.stat().st_size * 9 // 10
    path.unlink()
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nearly_all, allowed[1]))
    try:
        with pytest.raises(DataError, match="cannot be written: File too large"):
            trained.write(path, (1, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_folder_that_cannot_be_made_is_an_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=rf"file/{name}: cannot be written: "):
        make_trained(tmp_path).write(tmp_path / "file" / name, (1, 1))


def test_folder_must_be_that_of_an_experiment(tmp_path):
    with pytest.raises(CellganError, match="nowhere: not an experiment folder"):
        cellgan.load(tmp_path / "nowhere")


# Models of counts: two modalities, and what is asked of them


def two_modalities():
    """Return a manifest of genes and peaks, whose library sizes go together."""
    manifest = make_manifest()
    sizes = {"rna": (500.0, 600.0), "atac": (50.0, 60.0)}
    return dataclasses.replace(
        manifest,
        features={**manifest.features, "atac": ("peak 1", "peak 2", "peak 3")},
        combinations=tuple(
            make_combination({"cluster": code}, n_cells, sizes)
            for code, n_cells in enumerate((30, 70))
        ),
    )


def two_covariates():
    """Return a manifest of cells of two donors; B goes with donor x only."""
    manifest = make_manifest()
    trained = {"cluster": (30, 70), "donor": (40, 60)}
    return dataclasses.replace(
        manifest,
        covariates={**manifest.covariates, "donor": CovariateVocabulary(("x", "y"))},
        cells_per_category={**manifest.cells_per_category, "train": trained},
        combinations=tuple(
            make_combination(
                {"cluster": label, "donor": donor}, n_cells, {"rna": (size,)}
            )
            for label, donor, n_cells, size in (
                (0, 0, 30, 100.0),
                (1, 0, 10, 200.0),
                (1, 1, 60, 300.0),
            )
        ),
    )


def test_two_modalities_come_as_one_object_with_the_same_cells(tmp_path):
    cells = make_trained(tmp_path, two_modalities(), "CFGen").generate((3, 2), seed=5)
    codes = [0, 0, 0, 1, 1]
    assert list(cells.mod) == ["rna", "atac"]
    for index, modality, n_features in ((0, "rna", 6), (1, "atac", 3)):
        expected = fake_expression(5 + index, np.arange(5), codes, n_features)
        np.testing.assert_array_equal(cells[modality].X.toarray(), expected)
        assert cells[modality].obs["cluster"].tolist() == list("BBBTT")
    assert cells["atac"].var_names.tolist() == ["peak 1", "peak 2", "peak 3"]
    assert cells["rna"].uns["cellgan"]["are_counts"]


def test_h5mu_holds_what_generate_returns(tmp_path, small_pieces):
    trained = make_trained(tmp_path / "pbmc", two_modalities(), "CFGen")
    expected = trained.generate((7, 12), seed=2)
    path = trained.write(cells_no=(7, 12), seed=2)
    assert path == tmp_path / "pbmc" / "generated" / "cells.h5mu"
    with mudata.set_options(pull_on_update=False):
        found = mudata.read_h5mu(path)
    assert list(found.mod) == list(expected.mod)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    for modality, cells in expected.mod.items():
        np.testing.assert_array_equal(found[modality].X.toarray(), cells.X.toarray())
        pd.testing.assert_frame_equal(found[modality].obs, cells.obs)
        assert found[modality].var_names.tolist() == cells.var_names.tolist()
        provenance = found[modality].uns["cellgan"]
        assert provenance["parameters"] == cells.uns["cellgan"]["parameters"]
        assert provenance["scale"] == "counts"
    assert [file.name for file in path.parent.iterdir()] == ["cells.h5mu"]


@pytest.mark.parametrize("name", FORMATS)
def test_two_modalities_fit_into_h5mu_alone(tmp_path, name):
    trained = make_trained(tmp_path, two_modalities(), "CFGen")
    with pytest.raises(ConfigError, match=r"rna and atac\. End the path in \.h5mu"):
        trained.write(tmp_path / name)
    assert trained.model.requests == []


def test_one_modality_does_not_go_into_h5mu(tmp_path):
    trained = make_trained(tmp_path)
    with pytest.raises(ConfigError, match=r"are rna\. \.h5mu is for RNA and ATAC"):
        trained.write(tmp_path / "cells.h5mu")
    assert trained.model.requests == []


def test_wishes_reach_the_model(tmp_path):
    trained = make_trained(tmp_path, two_covariates(), "CFGen")
    solver = SolverSettings("rk4", 3)
    cells = trained.generate(
        4,
        condition={"donor": "x"},
        guidance={"donor": 2.5},
        library_size=321,
        solver=solver,
    )
    (request,) = trained.model.requests
    assert request.covariates["donor"].tolist() == [0] * 4
    assert request.covariates["cluster"].tolist() == [0, 0, 0, 1]
    assert request.library_sizes["rna"].tolist() == [321.0] * 4
    assert request.guidance == {"donor": 2.5}
    assert request.solver == solver
    assert cells.obs["donor"].tolist() == ["x"] * 4
    assert cells.obs["cluster"].tolist() == list("BBBT")
    said = json.loads(cells.uns["cellgan"]["request"])
    assert said.pop("solver")["name"] == "rk4"
    assert said == {
        "condition": {"donor": "x"},
        "guidance": {"donor": 2.5},
        "library_size": 321,
    }


def test_wishes_are_cut_with_the_cells(tmp_path, small_pieces):
    trained = make_trained(tmp_path, two_covariates(), "CFGen")
    cells = trained.generate({"B": 3, "T": 7}, library_size="copied", seed=4)
    requests = trained.model.requests
    assert [(r.first_cell, r.n_cells) for r in requests] == [(0, 4), (4, 4), (8, 2)]
    sizes = np.concatenate([request.library_sizes["rna"] for request in requests])
    of_kind = {("B", "x"): 100.0, ("T", "x"): 200.0, ("T", "y"): 300.0}
    kinds = zip(cells.obs["cluster"], cells.obs["donor"], strict=True)
    assert sizes.tolist() == [of_kind[kind] for kind in kinds]
    assert cells.obs["donor"].tolist() == ["x"] * 4 + ["y"] * 6


def test_file_of_requests_says_who_is_made(tmp_path):
    table = tmp_path / "wanted.csv"
    table.write_text("cluster,donor,n_cells\nT,y,2\nB,,1\n", encoding="utf-8")
    cells = make_trained(tmp_path, two_covariates(), "CFGen").generate(requests=table)
    kinds = zip(cells.obs["cluster"], cells.obs["donor"], strict=True)
    assert sorted(kinds) == [("B", "x"), ("T", "y"), ("T", "y")]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"guidance": {"sex": 1.0}}, 'not conditioned on "sex"'),
        ({"guidance": {"donor": -1.0}}, "the scale of donor is"),
        ({"condition": {"donor": "z"}}, 'donor: "z" is not a known category'),
        ({"library_size": "real"}, "library_size: 'real' found, expected a number"),
        ({"library_size": 0}, "library_size: 0 found, expected a number"),
    ],
)
def test_wrong_wishes_are_refused_before_a_cell_is_made(tmp_path, wishes, message):
    trained = make_trained(tmp_path, two_covariates(), "CFGen")
    with pytest.raises(ConfigError, match=message):
        trained.generate(4, **{"condition": {"donor": "x"}, **wishes})
    assert trained.model.requests == []
