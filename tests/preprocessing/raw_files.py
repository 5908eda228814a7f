"""Writers of small raw files in every format that is read."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata.io import write_elem

from tests.synthetic import make_cells


def make_adata(n_cells: int = 60, n_genes: int = 40, seed: int = 0) -> ad.AnnData:
    """Synthetic counts with cell names, gene names, ids and a text label."""
    cells = make_cells(n_cells=n_cells, n_genes=n_genes, seed=seed)
    return ad.AnnData(
        cells.counts,
        pd.DataFrame(
            {"cell_type": pd.Categorical(cells.labels)},
            index=[f"cell{i}" for i in range(n_cells)],
        ),
        pd.DataFrame(
            {"gene_ids": [f"ENSG{i}" for i in range(n_genes)]},
            index=[f"gene{i}" for i in range(n_genes)],
        ),
    )


def h5ad_csr(adata: ad.AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "csr.h5ad")
    return folder / "csr.h5ad"


def h5ad_csc(adata: ad.AnnData, folder: Path) -> Path:
    ad.AnnData(sp.csc_matrix(adata.X), adata.obs, adata.var).write_h5ad(
        folder / "csc.h5ad"
    )
    return folder / "csc.h5ad"


def h5ad_dense_integers(adata: ad.AnnData, folder: Path) -> Path:
    dense = adata.X.toarray().astype(np.int64)
    ad.AnnData(dense, adata.obs, adata.var).write_h5ad(folder / "dense.h5ad")
    return folder / "dense.h5ad"


def h5ad_raw(adata: ad.AnnData, folder: Path) -> Path:
    """Counts in raw; X is log-normalised and has fewer genes."""
    logged = adata.copy()
    logged.raw = adata
    logged = logged[:, :10].copy()
    logged.X = logged.X.log1p()
    logged.write_h5ad(folder / "raw.h5ad")
    return folder / "raw.h5ad"


def h5ad_layer(adata: ad.AnnData, folder: Path) -> Path:
    """Counts in the layer "counts"; X is log-normalised."""
    logged = ad.AnnData(adata.X.log1p(), adata.obs, adata.var)
    logged.layers["counts"] = adata.X
    logged.write_h5ad(folder / "layer.h5ad")
    return folder / "layer.h5ad"


def zarr_v2(adata: ad.AnnData, folder: Path) -> Path:
    with ad.settings.override(zarr_write_format=2), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that format 3 will be the default
        adata.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def zarr_v3(adata: ad.AnnData, folder: Path) -> Path:
    with ad.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that strings have no final specification
        adata.write_zarr(folder / "cells.zarr")
    return folder / "cells.zarr"


def h5_v2(adata: ad.AnnData, folder: Path) -> Path:
    with h5py.File(folder / "v2.h5", "w") as file:
        group = file.create_group("GRCh38_any")
        group["genes"] = adata.var["gene_ids"].to_numpy().astype("S")
        group["gene_names"] = adata.var_names.to_numpy().astype("S")
        _fill_10x(group, adata)
    return folder / "v2.h5"


def h5_v3(adata: ad.AnnData, folder: Path) -> Path:
    """With three antibody features between the genes."""
    protein = sp.csr_matrix(np.full((adata.n_obs, 3), 7.0))
    joined = sp.hstack([adata.X[:, :20], protein, adata.X[:, 20:]]).tocsr()
    names = np.insert(adata.var_names.to_numpy(str), 20, ["CD3", "CD4", "CD8"])
    kinds = np.full(len(names), "Gene Expression", dtype="<U20")
    kinds[20:23] = "Antibody Capture"
    with h5py.File(folder / "v3.h5", "w") as file:
        group = file.create_group("matrix")
        features = group.create_group("features")
        features["name"] = names.astype("S")
        ids = np.insert(adata.var["gene_ids"].to_numpy(str), 20, ["a", "b", "c"])
        features["id"] = ids.astype("S")
        features["feature_type"] = kinds.astype("S")
        _fill_10x(group, ad.AnnData(joined, adata.obs))
    return folder / "v3.h5"


def mtx_v2(adata: ad.AnnData, folder: Path) -> Path:
    folder = folder / "hg19"
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", adata.X.T.astype(int), field="integer")
    genes = adata.var["gene_ids"] + "\t" + adata.var_names
    (folder / "genes.tsv").write_text("\n".join(genes) + "\n")
    (folder / "barcodes.tsv").write_text("\n".join(adata.obs_names) + "\n")
    return folder


def mtx_v3_gz(adata: ad.AnnData, folder: Path) -> Path:
    """Gzipped, prefixed as in public archives, with one antibody as last feature."""
    folder = folder / "filtered"
    folder.mkdir()
    protein = sp.csr_matrix(np.full((adata.n_obs, 1), 5.0))
    joined = sp.hstack([adata.X, protein]).T.astype(int)
    scipy.io.mmwrite(folder / "plain.mtx", joined, field="integer")
    _gzip(folder / "plain.mtx", folder / "GSM1_matrix.mtx.gz")
    genes = [
        f"{identifier}\t{name}\tGene Expression"
        for name, identifier in adata.var["gene_ids"].items()
    ]
    features = "\n".join([*genes, "CD3\tCD3\tAntibody Capture"]) + "\n"
    (folder / "plain.tsv").write_text(features)
    _gzip(folder / "plain.tsv", folder / "GSM1_features.tsv.gz")
    (folder / "plain.tsv").write_text("\n".join(adata.obs_names) + "\n")
    _gzip(folder / "plain.tsv", folder / "GSM1_barcodes.tsv.gz")
    return folder


def loom(adata: ad.AnnData, folder: Path) -> Path:
    with h5py.File(folder / "cells.loom", "w") as file:
        file.create_dataset("matrix", data=adata.X.toarray().T, chunks=(16, 16))
        file["row_attrs/Gene"] = adata.var_names.to_numpy().astype("S")
        file["row_attrs/gene_ids"] = adata.var["gene_ids"].to_numpy().astype("S")
        file["col_attrs/CellID"] = adata.obs_names.to_numpy().astype("S")
        file["col_attrs/cell_type"] = adata.obs["cell_type"].to_numpy().astype("S")
    return folder / "cells.loom"


def csv(adata: ad.AnnData, folder: Path) -> Path:
    adata.to_df().to_csv(folder / "cells.csv")
    return folder / "cells.csv"


def tsv_gz(adata: ad.AnnData, folder: Path) -> Path:
    """With a label column among the genes, and integers."""
    table = adata.to_df().astype(int)
    table.insert(3, "cell_type", adata.obs["cell_type"])
    table.to_csv(folder / "cells.tsv.gz", sep="\t", index_label="cell")
    return folder / "cells.tsv.gz"


def tsv_of_r(adata: ad.AnnData, folder: Path) -> Path:
    """As R writes it: no header over the cell names."""
    text = adata.to_df().to_csv(sep="\t")
    (folder / "r.tsv").write_text(text.removeprefix("\t"))
    return folder / "r.tsv"


def h5mu(adata: ad.AnnData, folder: Path) -> Path:
    """RNA and ATAC; the label is with all modalities, in another order of cells."""
    with h5py.File(folder / "cells.h5mu", "w") as file:
        write_elem(file, "mod/rna", ad.AnnData(adata.X, adata.obs[[]], adata.var))
        write_elem(file, "mod/atac", ad.AnnData(adata.X[:, :5], adata.obs[[]]))
        write_elem(file, "obs", adata.obs.iloc[::-1])
    return folder / "cells.h5mu"


def multiome(rna: ad.AnnData, atac: ad.AnnData, folder: Path) -> Path:
    """RNA and ATAC, each with its own columns."""
    with h5py.File(folder / "multiome.h5mu", "w") as file:
        write_elem(file, "mod/rna", rna)
        write_elem(file, "mod/atac", atac)
        write_elem(file, "obs", rna.obs[[]])
    return folder / "multiome.h5mu"


def _fill_10x(group: h5py.Group, adata: ad.AnnData) -> None:
    group["barcodes"] = adata.obs_names.to_numpy().astype("S")
    group["data"] = adata.X.data.astype(np.int32)
    group["indices"] = adata.X.indices.astype(np.int64)
    group["indptr"] = adata.X.indptr.astype(np.int64)
    group["shape"] = np.array(adata.shape[::-1])


def _gzip(plain: Path, packed: Path) -> None:
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
