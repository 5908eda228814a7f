"""A file of a composition study: its names, its columns, and which cells may be used.

Of a file only names and columns in use are in memory; counts are read in blocks. One
pass finds the cells that are good enough and the fingerprint of what the file holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellgan.composition.plan import describe_filter
from cellgan.config.sources import LISTS, ORDERS, Filter, Quality, Source
from cellgan.errors import ConfigError, DataError, did_you_mean
from preprocessing.annotations import as_text
from preprocessing.raw_counts import AUTO_LAYERS, CountsPlace, choose_counts
from preprocessing.readers.anndata_files import read_h5ad, read_zarr
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.open import UNREADABLE, open_raw_file
from preprocessing.readers.rows import (
    CELLS_AT_ONCE,
    RowsInMemory,
    open_rows,
    same_block,
)
from preprocessing.sparse_blocks import LARGEST_COUNT

MITO_PREFIXES = ("MT-", "mt-")
HUMAN_MITO_IDS = frozenset(
    {
        *("ENSG00000198888", "ENSG00000198763", "ENSG00000198840", "ENSG00000198886"),
        *("ENSG00000212907", "ENSG00000198786", "ENSG00000198695"),  # ND1 to ND6
        *("ENSG00000198804", "ENSG00000198712", "ENSG00000198938"),  # CO1 to CO3
        *("ENSG00000198899", "ENSG00000228253", "ENSG00000198727"),  # ATP6, ATP8, CYB
    }
)
"""Ensembl ids of the 13 human genes of proteins on the mitochondrial chromosome."""
CHECKED_CELLS = 200
"""Cells that are looked at to tell whether a matrix holds counts."""
ON_DISK = (".h5ad", ".zarr")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
ROTATION = np.uint64(29)

Mask = npt.NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """An open file of cells."""

    where: str
    """Parameter that names it, for messages."""
    source: Source
    cells: CellSource
    """With the columns in use; counts are as stored, checked by `filter_source`."""

    @functools.cached_property
    def ids(self) -> npt.NDArray[Any]:
        """Name of every cell."""
        column = self.source.cell_column
        if column is None:
            return np.array(
                [_text(name) for name in self.cells.obs.index], dtype=object
            )
        return as_text(self.cells.obs[column])


class FilterResult(NamedTuple):
    """What one pass over a file tells."""

    passed: Mask
    """Cells that met all filters, ``(n_cells,)``."""
    left: list[tuple[str, int]]
    """Each filter in words, and the cells left after it."""
    sha256: str
    """Of names and counts, however they are stored."""


@contextlib.contextmanager
def open_source(
    source: Source,
    where: str,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    client: Any = None,
    cells_at_once: int = 0,
) -> Iterator[SourceFile]:
    """Open a file and read the columns in use.

    Parameters
    ----------
    columns
        Columns of obs that are needed besides those that `source` names.
    optional
        Columns that are read where they are there.
    client
        Of a Dask cluster, which reads .h5ad and .zarr files; None for this process.

    Raises
    ------
    ConfigError, DataError
        If there is no such file, it is damaged, lacks a column or a layer, or two cells
        have one name.
    """
    path = Path(source.file).expanduser()
    needed = tuple(dict.fromkeys((*_own_columns(source), *columns)))
    wanted = tuple(dict.fromkeys((*needed, *optional)))
    if not path.exists():
        msg = f"{where}: {source.file}: no such file. Check its path and name."
        raise DataError(msg)
    with contextlib.ExitStack() as files:
        if path.suffix in ON_DISK:
            try:
                opened = _open_on_disk(source, where, path, files, wanted)
            except UNREADABLE as error:
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                msg = f"{where}: {source.file}: cannot be read: {reason}."
                raise DataError(msg) from error
        else:
            opened = None
        if opened is None:
            file = _open_in_memory(source, where, wanted)
        else:
            element, obs, var = opened
            rows = open_rows(element, client, cells_at_once)
            file = SourceFile(where, source, CellSource(obs, var, rows))
        _check_columns(file, needed)
        _check_ids(file)
        yield file


def _own_columns(source: Source) -> list[str]:
    columns = [each.column for each in source.filters]
    others = (source.cell_column, source.group, source.qc.mito_column)
    if source.stratify is not None:
        columns.append(source.stratify.by)
    return [*columns, *(name for name in others if name is not None)]


def _open_on_disk(
    source: Source,
    where: str,
    path: Path,
    files: contextlib.ExitStack,
    columns: Sequence[str],
) -> tuple[Any, pd.DataFrame, pd.DataFrame] | None:
    """Open an AnnData without reading counts; None if it cannot be read by cells."""
    read = read_zarr if path.suffix == ".zarr" else read_h5ad
    raw = read(path, files, columns)
    names: list[str] = [name for name in AUTO_LAYERS if name in raw.matrices]
    if source.layer != "auto":
        if source.layer not in raw.matrices:
            msg = (
                f'{where}.layer: no "{source.layer}" in {source.file}.'
                f"{did_you_mean(source.layer, raw.matrices)} "
                f"It has: {', '.join(raw.matrices)}."
            )
            raise ConfigError(msg)
        names = [source.layer]
    for name in names:
        matrix = raw.matrices[name]
        if matrix.element is None:
            return None  # columns together: read as any other file
        rows = open_rows(matrix.element, None, 0)
        wanted = np.zeros(rows.n_cells, bool)
        wanted[: min(CHECKED_CELLS, rows.n_cells)] = True
        if all(
            _are_counts(block.data) for _, block in rows.map_blocks(same_block, wanted)
        ):
            return matrix.element, raw.obs, matrix.var
    msg = (
        f"{where}: {source.file}: no counts in {', '.join(names) or 'X'}. Say where "
        f"they are with layer (here: {', '.join(raw.matrices) or 'none'})."
    )
    raise DataError(msg)


def _open_in_memory(source: Source, where: str, columns: tuple[str, ...]) -> SourceFile:
    with open_raw_file(source.file, columns) as raw:
        place = CountsPlace(source.file, source.layer, where, "gene")
        cells = choose_counts(place, raw, counts=True)
    names = raw.obs.index if len(raw.obs) == len(cells.obs) else cells.obs.index
    obs = cells.obs.set_axis(pd.Index(names, dtype=object), axis=0)
    rows = RowsInMemory(cells.rows.gather(), CELLS_AT_ONCE)
    return SourceFile(where, source, cells._replace(obs=obs, rows=rows))


def _check_columns(file: SourceFile, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in file.cells.obs.columns:
            path = Path(file.source.file).expanduser()
            known = _obs_names(path) if path.suffix == ".h5ad" else list(file.cells.obs)
            msg = (
                f'{file.where}: no obs column "{column}" in {file.source.file}.'
                f"{did_you_mean(column, known)} Columns: {', '.join(known) or 'none'}."
            )
            raise DataError(msg)


def _obs_names(path: Path) -> list[str]:
    with h5py.File(path, "r") as file:
        return [str(name) for name in file["obs"].attrs.get("column-order", ())]


def _check_ids(file: SourceFile) -> None:
    ids = pd.Index(file.ids)
    if not ids.is_unique:
        twice = ids[ids.duplicated()]
        msg = (
            f'{file.where}: {file.source.file}: the cell "{twice[0]}" is there twice '
            f"({len(twice):,} names are). Name a column of unique ids in cell_column."
        )
        raise DataError(msg)


def are_numbers(ids: npt.NDArray[Any]) -> bool:
    """Whether names are those of rows that nobody has named: 0, 1, 2 or 1, 2, 3."""
    first = str(ids[0]) if len(ids) else ""
    if first not in ("0", "1"):
        return False
    expected = range(int(first), int(first) + len(ids))
    return all(
        str(name) == str(number) for name, number in zip(ids, expected, strict=True)
    )


def filter_source(
    file: SourceFile, column_of: npt.NDArray[np.int64], n_genes: int
) -> FilterResult:
    """Find the cells that meet all filters, in one pass.

    Parameters
    ----------
    column_of
        Column of each of the file's genes among those of the study; -1 of others.
    n_genes
        Genes of the study.

    Raises
    ------
    DataError
        If a value is no count.
    ConfigError
        If a filter does not suit its column, or mitochondrial genes are not found.
    """
    left = [("in the file", file.cells.rows.n_cells)]
    passed = np.ones(file.cells.rows.n_cells, bool)
    for each in file.source.filters:
        passed &= filter_mask(file, each)
        left.append(
            (describe_filter(each.column, each.op, each.value), int(passed.sum()))
        )
    if not passed.any():
        msg = f"{file.where}.filters: no cell meets them: {_said(left)}."
        raise ConfigError(msg)
    quality = file.source.qc
    mito = mito_mask(file)
    mito_shares = None
    if quality.mito_column is not None:
        mito_shares = pd.to_numeric(
            file.cells.obs[quality.mito_column], errors="coerce"
        ).to_numpy()
    look = functools.partial(_look_at_block, mito=mito, shared=column_of >= 0)
    steps = _quality_steps(quality)
    numbers = [0] * len(steps)
    checksum = hashlib.sha256()
    for rows, (
        totals,
        n_expressed,
        of_mito,
        in_shared,
        sums,
        bad,
    ) in file.cells.rows.map_blocks(look):
        if bad is not None:
            _refuse_value(file, rows.start, bad)
        checksum.update(sums.astype("<u8"))
        if mito_shares is not None:
            of_mito = mito_shares[rows] * totals
        masks = _quality_masks(quality, totals, n_expressed, of_mito, in_shared)
        mine = passed[rows]
        for step, mask in enumerate(masks):
            mine &= mask
            numbers[step] += int(mine.sum())
    left += list(zip(steps, numbers, strict=True))
    if not passed.any():
        msg = f"{file.where}.qc: no cell is left: {_said(left)}."
        raise ConfigError(msg)
    for name in itertools.chain(file.ids, map(_text, file.cells.var.index)):
        checksum.update(str(name).encode() + b"\0")
    return FilterResult(passed, left, checksum.hexdigest())


def _said(left: Sequence[tuple[str, int]]) -> str:
    return "; ".join(f"{what}: {n_cells:,}" for what, n_cells in left)


def _quality_steps(quality: Quality) -> list[str]:
    steps = [f"counts >= {quality.min_counts}"]
    if quality.max_counts is not None:
        steps.append(f"counts <= {quality.max_counts}")
    steps.append(f"genes >= {quality.min_genes}")
    if quality.max_mito_fraction is not None:
        steps.append(f"mitochondrial share <= {quality.max_mito_fraction:g}")
    return [*steps, "counts of the study's genes >= 1"]


def _quality_masks(
    quality: Quality,
    totals: npt.NDArray[np.float64],
    n_expressed: npt.NDArray[np.int64],
    of_mito: npt.NDArray[np.float64],
    in_shared: npt.NDArray[np.float64],
) -> list[Mask]:
    masks = [totals >= quality.min_counts]
    if quality.max_counts is not None:
        masks.append(totals <= quality.max_counts)
    masks.append(n_expressed >= quality.min_genes)
    if quality.max_mito_fraction is not None:
        masks.append(of_mito <= quality.max_mito_fraction * totals)
    return [*masks, in_shared >= 1]


def _look_at_block(
    block: sp.csr_matrix, mito: Mask | None, shared: Mask
) -> tuple[Any, ...]:
    """Return what a pass needs to know of some cells; it runs where they are read."""
    suitable = _suitable(block.data)
    bad = None
    if not suitable.all():
        at = int(np.argmin(suitable))
        row = int(np.searchsorted(block.indptr, at, side="right")) - 1
        bad = (row, int(block.indices[at]), float(block.data[at]))
    is_there = block.data != 0
    n_cells = block.shape[0]
    cell_of = np.repeat(np.arange(n_cells), np.diff(block.indptr))
    genes, values = block.indices, block.data.astype(np.float64)

    def sums(which: Mask | None) -> npt.NDArray[Any]:
        if which is None:
            return np.bincount(cell_of, values, minlength=n_cells)
        inside = which[genes]
        return np.bincount(cell_of[inside], values[inside], minlength=n_cells)

    return (
        sums(None),
        np.bincount(cell_of[is_there], minlength=n_cells),
        np.zeros(n_cells) if mito is None else sums(mito),
        sums(shared),
        row_checksums(cell_of[is_there], genes[is_there], values[is_there], n_cells),
        bad,
    )


def row_checksums(
    row: npt.NDArray[Any],
    genes: npt.NDArray[Any],
    values: npt.NDArray[np.float64],
    n_cells: int,
) -> npt.NDArray[np.uint64]:
    """Return a number per cell of its genes and counts, in whatever order they are."""
    mixed = (genes.astype(np.uint64) + np.uint64(1)) * MULTIPLIER
    mixed ^= mixed >> ROTATION
    mixed *= values.astype(np.uint64) * np.uint64(2) + np.uint64(1)
    mixed ^= mixed >> ROTATION
    mixed *= MULTIPLIER
    checksums = np.zeros(n_cells, np.uint64)
    np.add.at(checksums, row, mixed)
    return checksums


def _are_counts(values: npt.NDArray[np.float32]) -> bool:
    return bool(_suitable(values).all())


def _suitable(values: npt.NDArray[np.float32]) -> Mask:
    with np.errstate(invalid="ignore"):
        return (values >= 0) & (values <= LARGEST_COUNT) & (values == np.rint(values))


def _refuse_value(file: SourceFile, first: int, bad: tuple[int, int, float]) -> None:
    row, gene, value = bad
    msg = (
        f"{file.where}: {file.source.file}: no count: {value:g} in cell "
        f'"{file.ids[first + row]}", gene "{file.cells.var.index[gene]}". Counts are '
        "whole numbers from 0 on; layer says where they are."
    )
    raise DataError(msg)


def filter_mask(file: SourceFile, each: Filter) -> Mask:
    """Return which cells meet a filter.

    Raises
    ------
    ConfigError
        If a column of text is to be compared in size.
    """
    column = file.cells.obs[each.column]
    texts = as_text(column)
    is_null = texts == ""
    if each.op == "is null":
        return is_null
    if each.op == "not null":
        return ~is_null
    if each.op in ORDERS:
        numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(float)
        is_text = np.isnan(numbers) & ~is_null
        if is_text.any():
            msg = (
                f'{file.where}.filters: column "{each.column}" holds '
                f'"{texts[is_text][0]}", which cannot be {each.op} '
                f"{each.value}. Use ==, !=, in or not in."
            )
            raise ConfigError(msg)
        compare = {"<": np.less, "<=": np.less_equal, ">": np.greater}
        least = float(each.value) if isinstance(each.value, int | float) else np.nan
        met = compare.get(each.op, np.greater_equal)(numbers, least)
        return np.asarray(met, bool) & ~is_null
    values = each.value if each.op in LISTS else (each.value,)
    is_any = np.zeros(len(texts), bool)
    for value in values if isinstance(values, tuple) else ():
        is_any |= _equals(column, texts, value)
    return is_any if each.op in ("==", "in") else ~is_any


def _equals(column: pd.Series, texts: npt.NDArray[Any], value: Any) -> Mask:
    if isinstance(value, bool | str):
        return np.asarray(texts == str(value).strip())
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(float)
    return np.asarray(numbers == value)


def mito_mask(file: SourceFile) -> Mask | None:
    """Return which genes are mitochondrial; None if nothing is asked of them.

    Raises
    ------
    ConfigError
        If a limit is set and there are none.
    """
    quality = file.source.qc
    if quality.max_mito_fraction is None or quality.mito_column is not None:
        return None
    columns = _name_columns(file.cells.var)
    if quality.mito_genes:
        wanted = set(quality.mito_genes)
        masks = [np.isin(names, list(wanted)) for names in columns]
    else:
        prefixes = (quality.mito_prefix,) if quality.mito_prefix else MITO_PREFIXES
        masks = [
            np.array([name.startswith(prefixes) for name in names]) for names in columns
        ]
        if quality.mito_prefix is None:
            masks += [
                np.array([name.split(".")[0] in HUMAN_MITO_IDS for name in names])
                for names in columns
            ]
    best = max(masks, key=lambda mask: int(mask.sum()))
    if not best.any():
        msg = (
            f"{file.where}.qc: max_mito_fraction is {quality.max_mito_fraction:g}, but "
            f"{file.source.file} has no mitochondrial gene by its names "
            f'("{file.cells.var.index[0]}", ...). Name them in mito_genes or '
            "mito_prefix, name a column of obs in mito_column, or leave the limit out."
        )
        raise ConfigError(msg)
    return best


def _name_columns(var: pd.DataFrame) -> list[npt.NDArray[Any]]:
    """Return the names of genes and every column that holds other names of them."""
    columns = [np.array([_text(name) for name in var.index], dtype=object)]
    for name in var.columns:
        if var[name].dtype.kind in "OUST" or isinstance(
            var[name].dtype, pd.CategoricalDtype | pd.StringDtype
        ):
            columns.append(as_text(var[name]))
    return columns


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
