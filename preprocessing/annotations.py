"""Names of cells and genes, and the columns that describe them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from natsort import natsorted

from cellgan.errors import DataError, did_you_mean

ORIGINAL_NAME = "original_name"
"""Column that keeps a name which had to be changed."""


def with_unique_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table with unique text as its index.

    Later duplicates get the suffix -1, -2, ...; the names as they were are then in the
    column `ORIGINAL_NAME`.
    """
    names = [_text(name) for name in table.index]
    unique = _make_unique(names)
    table = table.set_axis(pd.Index(unique, dtype=object), axis=0)
    if unique != names:
        table[ORIGINAL_NAME] = names
    return table


def require_column(obs: pd.DataFrame, column: str, where: str) -> None:
    """Refuse a column that cells do not have; `where` is the parameter that names it.

    Raises
    ------
    DataError
        With the nearest column and all columns; or if its name cannot be stored.
    """
    if "/" in column:
        msg = (
            f'{where}: "{column}" holds a "/", which .h5ad cannot store in a name. '
            f"Rename the column in the raw file."
        )
        raise DataError(msg)
    if column not in obs.columns:
        known = [str(name) for name in obs.columns]
        msg = (
            f'{where}: no obs column "{column}".{did_you_mean(column, known)}\n'
            f"    obs columns: {', '.join(known) or 'none'}."
        )
        raise DataError(msg)


def as_text(column: pd.Series) -> npt.NDArray[Any]:
    """Return a column as text, ``(n_cells,)`` of str; ``""`` where there is no value.

    Numbers that are integers are written as such, 1.0 as "1"; spaces around text go.

    Raises
    ------
    DataError
        If a value is a list or another collection.
    """
    values = column.astype(object)
    return np.array(
        ["" if _is_missing(value) else _text(value).strip() for value in values],
        dtype=object,
    )


def label_categories(
    labels: npt.NDArray[Any], name: str, where: str
) -> tuple[str, ...]:
    """Return the labels that occur, in natural order ("2" before "10").

    Parameters
    ----------
    labels
        Text of each cell, ``(n_cells,)``; ``""`` where there is none.
    name
        The column they are of.
    where
        The parameter that names the column.

    Raises
    ------
    DataError
        If a cell has no label, or there is a label for every other cell.
    """
    missing = int((labels == "").sum())
    if missing:
        msg = (
            f'obs column "{name}": {missing} of {len(labels)} cells have no value.\n'
            f'    Give them one, for example "unknown", or leave them out of the file.'
        )
        raise DataError(msg)
    categories = tuple(natsorted(set(labels)))
    if len(categories) > len(labels) / 2:
        msg = (
            f'obs column "{name}": {len(categories)} values in {len(labels)} cells, so '
            f"it does not group them (found: {', '.join(categories[:3])}, ...).\n"
            f"    Choose another column with {where}."
        )
        raise DataError(msg)
    return categories


def writable_columns(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the columns that .h5ad can hold, and the names of the others."""
    kept = {
        str(name): _as_written(table[name])
        for name in table.columns[~table.columns.duplicated()]
        if "/" not in str(name) and _is_writable(table[name])
    }
    dropped = [str(name) for name in table.columns if str(name) not in kept]
    return pd.DataFrame(kept, index=table.index), dropped


def _is_writable(column: pd.Series) -> bool:
    if isinstance(column.dtype, pd.CategoricalDtype):
        return _is_writable(column.cat.categories.to_series())
    if column.dtype.kind in "bifu":
        return True
    return all(isinstance(value, str) for value in column.dropna())


def _as_written(column: pd.Series) -> pd.Series:
    """Text that repeats or is missing as a categorical, which stores both."""
    if column.dtype.kind != "O" or isinstance(column.dtype, pd.CategoricalDtype):
        return column
    is_plain = column.is_unique and not column.hasnans
    return column.astype(object if is_plain else "category")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value)


def _is_missing(value: Any) -> bool:
    if isinstance(value, list | tuple | set | dict | np.ndarray):
        msg = (
            f"an obs column holds {str(value)[:60]}, several values for one cell. Join "
            'them into one text, for example "a+b", in the raw file.'
        )
        raise DataError(msg)
    return bool(pd.isna(value))


def _make_unique(names: Iterable[str]) -> list[str]:
    names = list(names)
    taken, seen = set(names), set()
    next_suffix: dict[str, int] = {}
    unique = []
    for name in names:
        new = name
        if name in seen:
            suffix = next_suffix.get(name, 1)
            while f"{name}-{suffix}" in taken:
                suffix += 1
            new = f"{name}-{suffix}"
            next_suffix[name] = suffix + 1
            taken.add(new)
        seen.add(name)
        unique.append(new)
    return unique
