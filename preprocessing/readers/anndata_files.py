"""Readers of AnnData files: .h5ad, .zarr, one modality of .h5mu, the embedded data."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from cellgan.data.manifest import ATAC, RNA
from cellgan.errors import DataError
from preprocessing.readers.raw_file import RawFile, matrix_in_memory, stored_matrix

RECOVERY_TOLERANCE = 0.1
"""Largest distance of a recovered count from an integer: the embedded file rounds its
logarithms to three digits, and its largest counts come out within 0.082."""


def read_h5ad(
    path: Path, files: contextlib.ExitStack, columns: Sequence[str] | None = None
) -> RawFile:
    """Open an .h5ad file; of obs read `columns` that are there, or all."""
    file = files.enter_context(h5py.File(path, "r"))
    if isinstance(file["obs"], h5py.Dataset):
        return _read_old_h5ad(path)
    return _anndata_group(file, columns)


def _read_old_h5ad(path: Path) -> RawFile:
    """Read a file of AnnData before 0.7, which only AnnData itself understands."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = ad.read_h5ad(path)
    matrices = {"X": matrix_in_memory(adata.X, adata.var)}
    if adata.raw is not None:
        matrices["raw"] = matrix_in_memory(adata.raw.X, adata.raw.var)
    for name, layer in adata.layers.items():
        matrices.setdefault(name, matrix_in_memory(layer, adata.var))
    return RawFile(adata.obs, matrices)


def read_zarr(
    path: Path, _files: contextlib.ExitStack, columns: Sequence[str] | None = None
) -> RawFile:
    """Open an AnnData in a .zarr folder; of obs read `columns` there, or all."""
    import zarr  # noqa: PLC0415  (needed for this format only)

    return _anndata_group(zarr.open_group(str(path), mode="r"), columns)


def read_h5mu(path: Path, files: contextlib.ExitStack, modality: str) -> RawFile:
    """Open a modality of an .h5mu file; RNA with the columns that all share."""
    file = files.enter_context(h5py.File(path, "r"))
    modalities = list(file["mod"])
    if modality not in modalities:
        names = ", ".join(modalities)
        msg = f'{path}: no modality "{modality}"; modalities found: {names}.'
        if modality == ATAC:
            msg += "\n    Rename it, or name a file of it in input_ds.atac.raw_input."
        raise DataError(msg)
    raw = _anndata_group(file["mod"][modality])
    if modality != RNA:
        return raw
    shared = read_elem(file["obs"])
    new = [column for column in shared.columns if column not in raw.obs.columns]
    return raw._replace(obs=raw.obs.join(shared[new]))


def _anndata_group(group: Any, columns: Sequence[str] | None = None) -> RawFile:
    """Open an AnnData in an HDF5 or zarr group."""
    obs, var = _read_obs(group["obs"], columns), read_elem(group["var"])
    matrices = {}
    if "X" in group:
        matrices["X"] = stored_matrix(group["X"], var)
    if "raw/X" in group:
        matrices["raw"] = stored_matrix(group["raw/X"], read_elem(group["raw/var"]))
    if "layers" in group:
        for name in group["layers"].keys():  # noqa: SIM118  (zarr groups iterate otherwise)
            matrices.setdefault(name, stored_matrix(group["layers"][name], var))
    return RawFile(obs, {name: stored for name, stored in matrices.items() if stored})


def _read_obs(group: Any, columns: Sequence[str] | None) -> pd.DataFrame:
    if columns is None:
        return read_elem(group)
    index = read_elem(group[group.attrs["_index"]])
    return pd.DataFrame(
        {name: read_elem(group[name]) for name in columns if name in group},
        index=pd.Index(index, dtype=object),
    )


def read_builtin() -> RawFile:
    """Recover the integer counts of the 700 PBMC that ship inside scanpy.

    The file holds ``log(1 + 10000 * counts / n_counts)`` in ``raw``.
    """
    package = importlib.util.find_spec("scanpy")
    if package is None or not package.submodule_search_locations:
        msg = "builtin:pbmc68k_reduced is a file of scanpy, which is not installed."
        raise DataError(msg)
    folder = Path(package.submodule_search_locations[0])
    path = folder / "datasets" / "10x_pbmc68k_reduced.h5ad"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata = ad.read_h5ad(path)
    logged = adata.raw.X.tocsr().astype(np.float64)
    cell = np.repeat(np.arange(adata.n_obs), np.diff(logged.indptr))
    size_factor = adata.obs["n_counts"].to_numpy(np.float64)[cell] / 10_000
    recovered = np.expm1(logged.data) * size_factor
    residual = float(np.abs(recovered - np.rint(recovered)).max())
    if residual > RECOVERY_TOLERANCE:
        msg = (
            f"{path}: its counts cannot be recovered: a value is {residual:.3f} from "
            f"an integer, at most {RECOVERY_TOLERANCE} is expected. Use a raw file of "
            f"your own, or another version of scanpy."
        )
        raise DataError(msg)
    logged.data = np.rint(recovered)
    return RawFile(adata.obs, {"X": matrix_in_memory(logged, adata.raw.var)})
