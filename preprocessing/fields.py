"""What the columns of cells are, as JSON: which are used, how full, which values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cellgan.config.input import InputParameters
from preprocessing.annotations import as_text

POLICIES = {
    "refuse": "processing stops at a cell without a value",
    "drop": "cells without a value are left out",
    "unknown": 'cells without a value get "unknown"',
}
UNSEEN = "refused: a value that no training cell has is an error, named with its column"


def field_specifications(
    obs: pd.DataFrame, parameters: InputParameters
) -> dict[str, Any]:
    """Describe every column of the cells as they are in the raw file.

    Parameters
    ----------
    obs
        Columns of all cells, before filters.
    parameters
        Name the columns in use.

    Returns
    -------
    By column: ``kind``, ``cardinality`` (different values, as text without spaces
    around), ``using``, ``non_null_fraction`` (6 digits), ``non_null_count``,
    ``null_count``, ``total_count``, and ``numeric_summary`` of numbers.
    """
    used = {parameters.clustering.label, *parameters.other_covariates}
    described = {
        str(name): _describe(obs[name])
        for name in obs.columns[~obs.columns.duplicated()]
    }
    for name, field in described.items():
        field["using"] = name in used
    return {
        "policy": {"null": POLICIES[parameters.missing], "unseen": UNSEEN},
        "fields": described,
    }


def vocabulary_document(categories: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return the code of every value of the columns in use."""
    return {
        name: {value: code for code, value in enumerate(values)}
        for name, values in categories.items()
    }


def _describe(column: pd.Series) -> dict[str, Any]:
    texts = as_text(column)
    is_there = texts != ""
    n_cells, n_there = len(texts), int(is_there.sum())
    kind = _kind(column, texts[is_there])
    described: dict[str, Any] = {
        "kind": kind,
        "cardinality": len(set(texts[is_there])),
        "non_null_fraction": round(n_there / n_cells, 6) if n_cells else 0.0,
        "non_null_count": n_there,
        "null_count": n_cells - n_there,
        "total_count": n_cells,
    }
    if kind == "numeric":
        values = column.dropna().to_numpy(np.float64)
        described["numeric_summary"] = {
            "min": float(values.min()),
            "max": float(values.max()),
            "mean": float(values.mean()),
            "std": float(values.std()),
            "p50": float(np.median(values)),
        }
    return described


def _kind(column: pd.Series, texts: np.ndarray[Any, Any]) -> str:
    if not len(texts):
        return "empty"
    if pd.api.types.is_datetime64_any_dtype(column):
        return "datetime"
    if set(texts) <= {"0", "1", "True", "False"}:
        return "boolean"
    return "numeric" if pd.api.types.is_numeric_dtype(column) else "categorical"
