"""Which format a raw file has, by its name; loads nothing, so it answers at once."""

from __future__ import annotations

from pathlib import Path

from cellgan.config.input import BUILTIN_PREFIX
from cellgan.errors import DataError

FORMATS = (
    ".h5ad, .h5 (10x), a folder with matrix.mtx (10x), .loom, .zarr, .csv, .tsv, "
    f".csv.gz, .tsv.gz, .h5mu, {BUILTIN_PREFIX}pbmc68k_reduced"
)
TEXT = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
FILES = (".h5ad", ".h5", ".h5mu", ".loom", *TEXT)
MTX = "mtx folder"


def raw_format(raw_input: str, key: str = "input_ds.raw_input") -> str:
    """Return the format of a raw file: its suffix, `MTX` or `BUILTIN_PREFIX`.

    Parameters
    ----------
    key
        The parameter that names the file.

    Raises
    ------
    DataError
        If there is no such file or folder, or its name says no format of ours.
    """
    if raw_input.startswith(BUILTIN_PREFIX):
        return BUILTIN_PREFIX
    path = Path(raw_input).expanduser()
    name = path.name.lower()
    if not path.exists():
        reason = "a link to nothing" if path.is_symlink() else "no such file or folder"
        msg = f"{path}: {reason}. Check {key}.\n    Formats read: {FORMATS}."
        raise DataError(msg)
    if path.is_dir():
        return ".zarr" if name.endswith(".zarr") else MTX
    for suffix in FILES:
        if name.endswith(suffix):
            return suffix
    msg = f"{path}: not a format we read.\n    Formats read: {FORMATS}."
    if name.endswith((".mtx", ".mtx.gz")):
        msg += "\n    Give the folder that holds matrix.mtx, barcodes and genes."
    raise DataError(msg)
