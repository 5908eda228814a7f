"""Checked cells of raw files and chunks: RNA, and ATAC of the same cells."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from cellgan.config.input import InputParameters
from cellgan.data.manifest import ATAC
from cellgan.errors import ConfigError, DataError, did_you_mean
from preprocessing.annotations import (
    as_text,
    require_column,
    with_unique_names,
)
from preprocessing.readers.cell_source import CellSource
from preprocessing.readers.chunks import MATRIX, read_chunks, read_peak_chunks
from preprocessing.readers.open import open_raw_file, read_matrix
from preprocessing.readers.raw_file import RawFile
from preprocessing.readers.rows import RowsInMemory
from preprocessing.sparse_blocks import UnsuitableValueError

OUR_COLUMNS = ("n_genes", "n_counts", "split")
AUTO_LAYERS = ("X", "raw", "counts")
"""Where counts are looked for, in this order."""
SHOWN_CELLS = 3
UNKNOWN = "unknown"

log = logging.getLogger(__name__)


class CountsPlace(NamedTuple):
    """Where counts are to be found."""

    raw_input: str
    layer: str
    key: str
    """The parameter block that says so."""
    feature: str
    """What a column is: gene or peak."""


def read_cells(parameters: InputParameters) -> CellSource:
    """Read the cells of the raw file, or open their chunks; check columns first.

    Raises
    ------
    ConfigError
        If `parameters` name a layer the file does not have, or as label or covariate
        a column of ours.
    DataError
        If the file cannot be read, lacks a column, or holds no counts where they
        should be.
    """
    columns = needed_columns(parameters)
    if parameters.chunks is not None:
        return read_chunks(parameters, parameters.chunks, columns)
    with open_raw_file(parameters.raw_input, tuple(columns)) as raw:
        for column, where in columns.items():
            require_column(raw.obs, column, where)
        place = CountsPlace(parameters.raw_input, parameters.layer, "input_ds", "gene")
        return choose_counts(place, raw, counts=parameters.counts)


def read_atac(parameters: InputParameters, rna: CellSource) -> CellSource | None:
    """Read the ATAC counts of some cells, in the order of these; None without any.

    Raises
    ------
    ConfigError
        As `read_cells`.
    DataError
        As `read_cells`; or if the file is one of other cells, or has no ATAC counts.
    """
    atac = parameters.atac
    if atac is None:
        return None
    raw_input = atac.raw_input or parameters.raw_input
    is_binary = atac.values == "binary"
    if raw_input.lower().endswith(MATRIX):
        return read_peak_chunks(
            raw_input, rna, counts=parameters.counts, is_binary=is_binary
        )
    place = CountsPlace(raw_input, atac.layer, "input_ds.atac", "peak")
    with open_raw_file(raw_input, modality=ATAC) as raw:
        order = cell_order(rna.obs.index, raw.obs.index, raw_input)
        cells = choose_counts(place, raw, counts=parameters.counts)
    counts = cells.rows.gather()
    if is_binary:
        counts.data[:] = 1
    if order is None:
        return cells
    return cells._replace(rows=RowsInMemory(counts[order]), obs=cells.obs.iloc[order])


def cell_order(
    cells: pd.Index, names: pd.Index, raw_input: str
) -> npt.NDArray[np.intp] | None:
    """Return where each cell is in another file; None if they are in one order.

    Parameters
    ----------
    cells
        Unique names of the cells.
    names
        Names of the cells of the other file, as they are.
    raw_input
        The other file.

    Raises
    ------
    DataError
        If the cells are not the same, or are in another order and names are there
        twice.
    """
    others = with_unique_names(pd.DataFrame(index=names)).index
    if cells.equals(others):
        return None
    shared = cells.intersection(others)
    if len(shared) < max(len(cells), len(others)):
        examples = [
            f"only {where}: {', '.join(alone[:SHOWN_CELLS])}"
            for where, alone in (
                ("with RNA", cells.difference(others, sort=False)),
                ("with ATAC", others.difference(cells, sort=False)),
            )
            if len(alone)
        ]
        msg = (
            f"{raw_input}: not the cells of the RNA: {len(cells)} with RNA, "
            f"{len(others)} with ATAC, {len(shared)} with both ({'; '.join(examples)})."
            f"\n    Give both modalities the same cells under the same names."
        )
        raise DataError(msg)
    if not names.is_unique:
        msg = (
            f"{raw_input}: cell names are there twice and not in the order of the RNA, "
            f"so cells cannot be paired. Give every cell a name of its own."
        )
        raise DataError(msg)
    return others.get_indexer(cells)


def with_values(
    obs: pd.DataFrame, parameters: InputParameters
) -> npt.NDArray[np.bool_]:
    """Return which cells have a value in every column that is used.

    As `parameters` say: the column says ``"unknown"`` from now on where there is none,
    or the cell is to be dropped; otherwise all cells are taken, to be refused later.
    """
    has_values = np.ones(len(obs), bool)
    if parameters.missing == "refuse":
        return has_values
    names = [*parameters.other_covariates]
    if parameters.clustering.res is None:
        names.append(parameters.clustering.label)
    for name in names:
        texts = as_text(obs[name])
        is_missing = texts == ""
        if parameters.missing == "drop":
            has_values &= ~is_missing
        elif is_missing.any():
            obs[name] = np.where(is_missing, UNKNOWN, texts)
        if is_missing.any():
            what = "left out" if parameters.missing == "drop" else f'now "{UNKNOWN}"'
            log.info(
                'obs column "%s": %d cells have no value, %s',
                name,
                is_missing.sum(),
                what,
            )
    return has_values


def needed_columns(parameters: InputParameters) -> dict[str, str]:
    """Return the obs columns that must be there, and the parameter that names each.

    Raises
    ------
    ConfigError
        If one of them is a column of ours.
    """
    clustering, split = parameters.clustering, parameters.split
    ours = dict.fromkeys(parameters.other_covariates, "covariates name")
    ours[clustering.label] = "clustering: key is"
    for column in OUR_COLUMNS:
        if column in ours:
            msg = (
                f'input_ds.{ours[column]} "{column}", a column that we write. Give it '
                f"another name in the raw file."
            )
            raise ConfigError(msg)
    columns = dict.fromkeys(parameters.other_covariates, "input_ds.covariates")
    if split.by is not None:
        columns[split.by] = "input_ds.split.by"
    if clustering.res is None:
        columns[clustering.label] = "input_ds.clustering.key"
    return columns


def choose_counts(place: CountsPlace, raw: RawFile, *, counts: bool) -> CellSource:
    """Read the first matrix that suits; say what is wrong with each if none does."""
    raw_input, layer, key, feature = place
    layers = ", ".join(raw.matrices) or "none"
    if layer == "auto":
        names = [name for name in AUTO_LAYERS if name in raw.matrices]
    elif layer in raw.matrices:
        names = [layer]
    else:
        msg = (
            f'{key}.layer: no "{layer}" in {raw_input}.'
            f"{did_you_mean(layer, raw.matrices)}\n    It has: {layers}."
        )
        raise ConfigError(msg)
    refusals = []
    for name in names:
        var = raw.matrices[name].var
        if not len(raw.obs) or not len(var):
            refusals.append(
                f"{_place(name)} is {len(raw.obs)} cells x {len(var)} {feature}s"
            )
            continue
        try:
            matrix = read_matrix(raw_input, raw, name, counts=counts)
        except UnsuitableValueError as error:
            cell, column = raw.obs.index[error.row], var.index[error.column]
            refusals.append(
                f'{_place(name)} holds {error.value:g} (cell "{cell}", {feature} '
                f'"{column}")'
            )
            continue
        obs, var = with_unique_names(raw.obs), with_unique_names(var)
        return CellSource(obs, var, RowsInMemory(matrix), _place(name))
    needed, advice = "finite and not negative", ""
    if counts:
        needed = "non-negative integers"
        advice = ", or set input_ds.counts to false for values that are no integers"
    msg = (
        f"{raw_input}: no counts: {'; '.join(refusals) or 'no X'}. "
        f"They must be {needed}.\n    Say where they are with {key}.layer (here: "
        f"{layers}){advice}."
    )
    raise DataError(msg)


def _place(name: str) -> str:
    return name if name in ("X", "raw") else f'layer "{name}"'
