"""Files of cells: processed ones are read whole, generated ones written piece by piece.

A file may hold many more cells than fit into memory densely: expression arrives as
consecutive sparse pieces, and each is written before the next is made. Everything else
(names, labels, provenance) is small and comes as an AnnData without ``X``.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
import zarr

from cellgan.data.manifest import RNA
from cellgan.errors import DataError
from cellgan.files import replacing
from cellgan.generation.requests import MULTIMODAL

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

Pieces = Iterable[sp.csr_matrix]
MultimodalPieces = Iterable[Mapping[str, sp.csr_matrix]]

HDF5_OPTIONS = {"chunks": (2**16,), "compression": "gzip", "compression_opts": 1}
"""Chunks of 65,536 values: a few hundred cells, so rows can be read one by one."""
ZARR_OPTIONS = {"chunks": (2**20,)}
"""Larger chunks than in HDF5: each is a file."""
GZIP_LEVEL = 1
OR_INPUT = ", or give cells with --input FILE"


def read_processed(
    experiment: Experiment, *, otherwise: str = ""
) -> dict[str, anndata.AnnData]:
    """Return the processed cells of an experiment by modality.

    Parameters
    ----------
    otherwise
        What else than ``--process`` would help where there are none: `OR_INPUT`.

    Raises
    ------
    DataError
        If their file is gone or damaged.
    """
    path = experiment.processed_file
    try:
        if path.suffix != MULTIMODAL:
            return {RNA: anndata.read_h5ad(path)}
        import mudata  # noqa: PLC0415  (slow, and seldom needed)

        with mudata.set_options(pull_on_update=False):
            return dict(mudata.read_h5mu(path).mod)
    except FileNotFoundError:
        msg = f"{path}: no such file. Run --process first{otherwise}."
        raise DataError(msg) from None
    except (OSError, KeyError, ValueError) as error:
        msg = f"{path}: cannot be read: {error}. Run --process again{otherwise}."
        raise DataError(msg) from error


def write_cells(
    path: Path, frames: Mapping[str, anndata.AnnData], pieces: MultimodalPieces
) -> None:
    """Write cells in the format of the path's suffix, replacing what is there.

    Parameters
    ----------
    path
        Ends in one of `cellgan.generation.requests.OUTPUT_FORMATS`.
    frames
        ``obs``, ``var`` and ``uns`` of all cells, without ``X``, by modality.
    pieces
        Values of the cells in order, float32, ``(n, n_features)`` each, by modality.

    Raises
    ------
    DataError
        If the file cannot be written: no permission, no space.
    """
    try:
        with replacing(path) as temporary:
            if path.suffix == MULTIMODAL:
                _write_h5mu(temporary, frames, pieces)
            else:
                (modality,) = frames
                only = (piece[modality] for piece in pieces)
                WRITERS[path.suffix](temporary, frames[modality], only)
    except OSError as error:
        reason = error.strerror or str(error)
        msg = (
            f"{path}: cannot be written: {reason}. Whatever was there is unchanged. "
            f"Free some space, or choose another path with --save_path."
        )
        raise DataError(msg) from error


def _write_h5ad(path: Path, cells: anndata.AnnData, pieces: Pieces) -> None:
    """Write an ``.h5ad`` file, ``X`` as compressed sparse rows."""
    with _hdf5(path) as (hdf5, file):
        _write_elements(hdf5, cells, file.checked(pieces), HDF5_OPTIONS)


def _write_h5mu(
    path: Path, frames: Mapping[str, anndata.AnnData], pieces: MultimodalPieces
) -> None:
    """Write an ``.h5mu`` file: what MuData writes, with ``X`` appended by and by."""
    import mudata  # noqa: PLC0415  (slow, and seldom needed)

    with mudata.set_options(pull_on_update=False):
        mudata.write_h5mu(path, mudata.MuData(dict(frames)))
    with _hdf5(path, "r+") as (hdf5, file):
        groups = {modality: hdf5["mod"][modality] for modality in frames}
        stored = {
            modality: _empty_rows(groups[modality], frames[modality].n_vars)
            for modality in frames
        }
        for piece in file.checked(pieces):
            for modality, rows in piece.items():
                stored[modality].append(rows)


@contextlib.contextmanager
def _hdf5(path: Path, mode: str = "w") -> Iterator[tuple[h5py.File, _ClosableFile]]:
    """Open an HDF5 file; an error of a write is raised when it is closed."""
    with _ClosableFile(path, "w+" if mode == "w" else mode) as file:
        try:
            with h5py.File(file, mode) as hdf5:
                yield hdf5, file
        except (OSError, RuntimeError) as error:
            raise file.error or error from error
        file.check()


def _write_zarr(path: Path, cells: anndata.AnnData, pieces: Pieces) -> None:
    """Write AnnData's Zarr folder, format 3."""
    _write_elements(
        zarr.open_group(path, mode="w", zarr_format=3), cells, pieces, ZARR_OPTIONS
    )


def _write_mtx(path: Path, cells: anndata.AnnData, pieces: Pieces) -> None:
    """Write a folder as 10x does: genes in rows, cells in columns, counted from 1.

    Labels and provenance, which that format has no place for, are in two more files:
    ``obs.tsv.gz`` and ``cellgan.json``.
    """
    path.mkdir()
    genes = pd.DataFrame({"id": cells.var_names, "name": cells.var_names})
    genes["type"] = "Gene Expression"
    _write_table(path / "features.tsv.gz", genes, header=False)
    barcodes = pd.DataFrame({"barcode": cells.obs_names})
    _write_table(path / "barcodes.tsv.gz", barcodes, header=False)
    _write_table(path / "obs.tsv.gz", cells.obs.reset_index(names="barcode"))
    provenance = cells.uns["cellgan"]
    (path / "cellgan.json").write_text(
        json.dumps(provenance, indent=4, sort_keys=True, default=np.ndarray.tolist),
        encoding="utf-8",
    )
    _write_matrix_market(
        path / "matrix.mtx.gz",
        (cells.n_vars, cells.n_obs),
        pieces,
        are_counts=bool(provenance["are_counts"]),
    )


WRITERS: dict[str, Callable[[Path, anndata.AnnData, Pieces], None]] = {
    ".h5ad": _write_h5ad,
    ".zarr": _write_zarr,
    ".mtx": _write_mtx,
}


class _ClosableFile(io.FileIO):
    """A file for HDF5 to write to, whose failed writes are remembered, not raised.

    When a write fails, HDF5 cannot close its objects, and the process crashes later, as
    Python frees them. Here it can; whoever writes asks `check` whether all went well.
    """

    error: OSError | None = None

    def check(self) -> None:
        """Raise the first error."""
        if self.error is not None:
            raise self.error

    def checked(self, pieces: Pieces) -> Pieces:
        """Yield pieces as long as what was written before them is safe."""
        for piece in pieces:
            self.check()
            yield piece

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def readinto(self, buffer: Any) -> int:
        """Read what is there; what was never written reads as zeros."""
        wanted = memoryview(buffer).cast("B")
        n_read = super().readinto(wanted) or 0
        wanted[n_read:] = bytes(len(wanted) - n_read)
        return len(wanted)


def _write_elements(
    group: Any, cells: anndata.AnnData, pieces: Pieces, options: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="zarr v3 autosharding")
        anndata.io.write_elem(group, "/", cells)
        if "raw" in group:
            del group["raw"]  # an empty one, which AnnData's backed mode cannot read
        stored = _empty_rows(group, cells.n_vars, options)
    for piece in pieces:
        stored.append(piece)


def _empty_rows(
    group: Any, n_features: int, options: dict[str, Any] = HDF5_OPTIONS
) -> Any:
    """Give a group an ``X`` without a row, that rows can be appended to."""
    # Row pointers of 64 bits: large files hold more than 2**31 values.
    start = sp.csr_matrix((0, n_features), dtype=np.float32)
    start.indptr = start.indptr.astype(np.int64)
    anndata.io.write_elem(group, "X", start, dataset_kwargs=options)
    return anndata.io.sparse_dataset(group["X"])


def _write_matrix_market(
    path: Path, shape: tuple[int, int], pieces: Pieces, *, are_counts: bool
) -> None:
    """Write a gzipped MatrixMarket file whose number of entries is known at the end.

    The header is a gzip member of its own, stored without compression, so that one of
    the same length can take its place.
    """
    kind, dtype = ("integer", np.int64) if are_counts else ("real", np.float32)
    n_cells = n_entries = 0
    with path.open("wb") as file:
        file.write(_matrix_market_header(kind, shape, n_entries))
        with gzip.open(file, "wb", compresslevel=GZIP_LEVEL) as body:
            for piece in pieces:
                entries = piece.tocoo()
                moved = sp.coo_matrix(
                    (
                        entries.data.astype(dtype),
                        (entries.col, entries.row.astype(np.int64) + n_cells),
                    ),
                    shape=shape,
                )
                body.write(_matrix_market_lines(moved, kind))
                n_cells += piece.shape[0]
                n_entries += piece.nnz
        file.seek(0)
        file.write(_matrix_market_header(kind, shape, n_entries))


def _matrix_market_header(kind: str, shape: tuple[int, int], n_entries: int) -> bytes:
    text = f"%%MatrixMarket matrix coordinate {kind} general\n"
    text += f"{shape[0]} {shape[1]} {n_entries:>20}\n"
    return gzip.compress(text.encode(), compresslevel=0, mtime=0)


def _matrix_market_lines(entries: sp.coo_matrix, kind: str) -> bytes:
    text = io.BytesIO()
    scipy.io.mmwrite(text, entries, field=kind, symmetry="general")
    lines = text.getvalue()
    start = 0
    while lines.startswith(b"%", start):
        start = lines.index(b"\n", start) + 1
    return lines[lines.index(b"\n", start) + 1 :]


def _write_table(path: Path, table: pd.DataFrame, *, header: bool = True) -> None:
    table.to_csv(
        path,
        sep="\t",
        index=False,
        header=header,
        compression={"method": "gzip", "compresslevel": GZIP_LEVEL},
    )
