"""Files of cells, opened without reading their expression.

``.h5ad`` files hold one modality, called "rna"; ``.h5mu`` files hold several. Values
are read by rows, so files much larger than memory can be compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import read_elem, sparse_dataset

from cellgan.data.manifest import RNA
from cellgan.errors import DataError
from cellgan.evaluation.comparison.space import Rows

Kind = Literal["counts", "expression", "logarithms"]

SAMPLED_CELLS = 200
"""Cells that are looked at to tell what kind of values a matrix holds."""
LARGEST_LOGARITHM = 30.0
"""Values above are no logarithms of expression: exp(30) counts are in no cell."""
EQUAL_TOTALS = 0.01
"""Relative spread of cells' totals below which they count as equal."""
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
CHECKED_AT_ONCE = 4_000_000
"""Values that are in memory while a file is checked: 16 MB of float32."""
WAYS_OUT = {
    "real": 'Put raw counts of all cells into X or layers["counts"] (values that were '
    "scaled or centred are none), or leave such cells out of the file.",
    "generated": "Generate again, from an earlier checkpoint if training diverged; or "
    "export expression before it is scaled or centred.",
}
"""What to do about impossible values, by whose file they are in."""


@dataclasses.dataclass(frozen=True)
class FeatureMatrix:
    """One modality's values on disk."""

    names: pd.Index
    """Names of genes or peaks."""
    place: str
    """``"X"``, ``'layers["counts"]'`` or ``"raw"``."""
    kind: Kind
    """What the values are, judged by a sample of cells."""
    stored: Any
    file: Path

    def read(self, rows: Rows) -> sp.csr_array:
        """Read cells, in the order of `rows`, which ascend."""
        values = _read_rows(self.stored, rows)
        values.eliminate_zeros()
        return values

    def impossible(self) -> tuple[int, int, float] | None:
        """Return cell, gene and value of the first that is negative or not finite.

        All stored values are looked at, `CHECKED_AT_ONCE` at a time; zeros that are
        not stored are not. In a matrix stored by genes, the first is that of the first
        gene.
        """
        dense = isinstance(self.stored, h5py.Dataset)
        values = self.stored if dense else self.stored.group["data"]
        step = max(1, CHECKED_AT_ONCE // (values.shape[1] if dense else 1))
        for start in range(0, values.shape[0], step):
            block = values[start : start + step]
            # nan goes through both, and is neither at least 0 nor finite
            if block.size and not (block.min() >= 0 and np.isfinite(block.max())):
                at = int(np.argmax(~(np.isfinite(block) & (block >= 0)).ravel()))
                value = float(block.ravel()[at])
                if dense:
                    row, column = divmod(at, values.shape[1])
                    return start + row, column, value
                return (*self._place_of(start + at), value)
        return None

    def _place_of(self, stored: int) -> tuple[int, int]:
        """Return cell and gene of a stored value of a sparse matrix."""
        group = self.stored.group
        line = int(np.searchsorted(group["indptr"][:], stored, side="right")) - 1
        other = int(group["indices"][stored])
        return (line, other) if self.stored.format == "csr" else (other, line)


@dataclasses.dataclass(frozen=True)
class CellFile:
    """An open file of cells."""

    path: Path
    obs: pd.DataFrame
    provenance: Mapping[str, Any]
    """What `cellgan.generation` wrote into ``uns``; empty for files of others."""
    modalities: Mapping[str, FeatureMatrix]

    def __len__(self) -> int:
        return len(self.obs)


def check_values(file: CellFile, whose: Literal["real", "generated"]) -> None:
    """Refuse a file that holds an impossible value in any of its cells.

    Raises
    ------
    DataError
        If a value is negative or not finite; the first is named.
    """
    for matrix in file.modalities.values():
        found = matrix.impossible()
        if found is not None:
            cell, gene, value = found
            what = "a negative value" if value < 0 else "a value that is not finite"
            msg = (
                f"{file.path}: {matrix.place} holds {what}: {value:.3g} in cell "
                f'{cell + 1} of {len(file)} ("{file.obs.index[cell]}"), gene '
                f'"{matrix.names[gene]}".\n'
                f"    Counts, or expression without logarithm, are finite and never "
                f"below 0. {WAYS_OUT[whose]}"
            )
            raise DataError(msg)


@contextlib.contextmanager
def open_cells(path: Path, *, option: str = "") -> Iterator[CellFile]:
    """Open an ``.h5ad`` or ``.h5mu`` file.

    Parameters
    ----------
    option
        Command-line option that names the file, for messages.

    Raises
    ------
    DataError
        If the file is missing, cannot be read, or names a feature twice.
    """
    of_option = f"{option}: " if option else ""
    if not path.exists():
        msg = f"{of_option}{path}: no such file. Check its path and name."
        raise DataError(msg)
    try:
        with h5py.File(path, "r") as file:
            yield _cell_file(path, file)
    except (OSError, KeyError, ValueError, AttributeError) as error:
        msg = (
            f"{of_option}{path}: cannot be read as .h5ad or .h5mu: {error}.\n"
            f"    {_way_to_read(path)}"
        )
        raise DataError(msg) from error


def _way_to_read(path: Path) -> str:
    """Return what to do about a file that cannot be read."""
    with path.open("rb") as file:
        is_hdf5 = file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE
    if is_hdf5:
        return (
            "It is an HDF5 file, but damaged, cut short or of another layout: copy or "
            "download it again and compare sizes, or write it again by "
            "AnnData.write_h5ad (MuData.write_h5mu)."
        )
    return (
        "It is not an HDF5 file. Tables and text are read by anndata.io (read_csv, "
        "read_mtx) and written by AnnData.write_h5ad."
    )


def _cell_file(path: Path, file: h5py.File) -> CellFile:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of files that older AnnData wrote
        obs = read_elem(file["obs"])
        provenance = read_elem(file["uns/cellgan"]) if "uns/cellgan" in file else {}
        groups = {RNA: file}
        if "mod" in file:
            groups = {name: file["mod"][name] for name in file["mod"]}
            obs = _joined_obs(obs, groups)
        modalities = {
            name: _feature_matrix(path, group, provenance)
            for name, group in groups.items()
        }
    return CellFile(path, obs, provenance, modalities)


def _joined_obs(obs: pd.DataFrame, groups: Mapping[str, h5py.Group]) -> pd.DataFrame:
    """Return the columns all modalities share, and those of the first that has more."""
    for group in groups.values():
        own = read_elem(group["obs"])
        new = [column for column in own.columns if column not in obs.columns]
        obs = obs.join(own[new])
    return obs


def _feature_matrix(
    path: Path, group: h5py.Group, provenance: Mapping[str, Any]
) -> FeatureMatrix:
    """Choose where the values are: the first place with counts, else X."""
    places = {"X": ("X", "var")}
    places['layers["counts"]'] = ("layers/counts", "var")
    places["raw"] = ("raw/X", "raw/var")
    found = {}
    for place, (values, features) in places.items():
        if values in group:
            stored = _stored(group[values])
            names = pd.Index(read_elem(group[features]).index.astype(str))
            found[place] = names, stored, _kind(stored, provenance)
    if not found:
        msg = f"{path}: holds no expression: neither X nor raw nor layers/counts."
        raise DataError(msg)
    place = next(
        (name for name, (_, _, kind) in found.items() if kind == "counts"),
        next(iter(found)),
    )
    names, stored, kind = found[place]
    if not names.is_unique:
        twice = names[names.duplicated()][0]
        msg = f'{path}: the gene "{twice}" is there twice. Give every gene one name.'
        raise DataError(msg)
    return FeatureMatrix(names, place, kind, stored, path)


def _stored(element: Any) -> Any:
    return sparse_dataset(element) if isinstance(element, h5py.Group) else element


def _read_rows(stored: Any, rows: Rows) -> sp.csr_array:
    if isinstance(stored, h5py.Dataset) or stored.format == "csr":
        return sp.csr_array(stored[rows])
    return sp.csr_array(stored.to_memory())[rows]


def _kind(stored: Any, provenance: Mapping[str, Any]) -> Kind:
    """Tell what the values are, by what is known of the file or by their look."""
    n_cells = stored.shape[0]
    rows = np.unique(
        np.linspace(0, n_cells - 1, min(n_cells, SAMPLED_CELLS)).astype(int)
    )
    values = _read_rows(stored, rows) if n_cells else sp.csr_array(stored.shape)
    data = values.data[np.isfinite(values.data)]
    if (data == np.rint(data)).all():
        return "counts"
    is_ours = not provenance.get("are_counts", True)
    if is_ours or data.max() > LARGEST_LOGARITHM or _has_equal_totals(values):
        return "expression"
    return "logarithms"


def _has_equal_totals(values: sp.csr_array) -> bool:
    totals = np.asarray(values.sum(axis=1, dtype=np.float64)).ravel()
    return bool(np.ptp(totals) < EQUAL_TOTALS * totals.mean())
