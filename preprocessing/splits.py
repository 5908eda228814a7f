"""Train, valid and test: balanced by label, at random, or by held-out category."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cellgan.config.input import SplitParameters
from cellgan.errors import DataError, did_you_mean
from cellgan.seeds import derive_seed


def assign_splits(
    codes: npt.NDArray[np.integer[Any]],
    categories: tuple[str, ...],
    split: SplitParameters,
    held_out_by: npt.NDArray[Any] | None = None,
) -> npt.NDArray[np.str_]:
    """Choose the split of every cell.

    Parameters
    ----------
    codes
        Code of each cell's label, ``(n_cells,)``.
    categories
        Names of the labels, in code order.
    split
        How to split. Its seed alone decides which cells are drawn, in any process.
    held_out_by
        Each cell's value of the column ``split.by``, ``(n_cells,)``; None without one.

    Returns
    -------
    ``"train"``, ``"valid"`` or ``"test"`` of each cell, ``(n_cells,)``.

    Raises
    ------
    DataError
        If the numbers leave no training cells, of all cells or of one label, or no
        cell has a value that is held out.

    Notes
    -----
    A balanced split gives ``int(share * valid_cells)`` cells of a label to valid and
    ``int(share * test_cells)`` to test, where share is that of the label among the
    cells that are not held out; so the realised numbers can be a few cells below
    those asked for. The reference takes shares from before filtering, and draws in an
    order that differs between processes.
    """
    splits = np.full(len(codes), "train", dtype="<U5")
    if held_out_by is not None:
        for name, values in (
            ("test", split.test_values),
            ("valid", split.valid_values),
        ):
            splits[_held_out(held_out_by, values, f"{name}_values", split.by)] = name
    rest = np.flatnonzero(splits == "train")
    _check_numbers(len(rest), split)
    rng = np.random.default_rng(derive_seed(split.seed, "split"))
    if split.balanced_split:
        groups = [rest[codes[rest] == code] for code in range(len(categories))]
    else:
        groups = [rest]
    for cells in groups:
        n_test, n_valid = (
            int(len(cells) / len(rest) * number)
            for number in (split.test_cells, split.valid_cells)
        )
        drawn = rng.choice(cells, size=n_test + n_valid, replace=False)
        splits[drawn[:n_test]] = "test"
        splits[drawn[n_test:]] = "valid"
    _check_labels(codes[splits == "train"], codes, categories)
    return splits


def _held_out(
    held_by: npt.NDArray[Any], values: tuple[str, ...], key: str, by: str | None
) -> npt.NDArray[np.bool_]:
    known = sorted(set(held_by))
    for value in values:
        if value not in known:
            msg = (
                f'input_ds.split.{key}: no cell has "{value}" in obs column "{by}".'
                f"{did_you_mean(value, known)}\n    Values: {', '.join(known)}."
            )
            raise DataError(msg)
    return np.isin(held_by, values)


def _check_numbers(n_cells: int, split: SplitParameters) -> None:
    if split.valid_cells + split.test_cells < n_cells:
        return
    fifth = n_cells // 5
    advice = f"valid_cells to {fifth} (a fifth of the cells) or fewer"
    if split.test_cells:
        advice = f"valid_cells and test_cells to {fifth // 2} each, or fewer"
    msg = (
        f"input_ds.split: {n_cells} cells are left to split, but valid_cells is "
        f"{split.valid_cells} and test_cells {split.test_cells}, so none is left for "
        f"training.\n    Set {advice}."
    )
    raise DataError(msg)


def _check_labels(
    train_codes: npt.NDArray[np.integer[Any]],
    codes: npt.NDArray[np.integer[Any]],
    categories: tuple[str, ...],
) -> None:
    n_train = np.bincount(train_codes, minlength=len(categories))
    missing = np.flatnonzero(n_train == 0)
    if len(missing):
        n_cells = np.bincount(codes, minlength=len(categories))
        names = ", ".join(f'"{categories[i]}" ({n_cells[i]} cells)' for i in missing)
        msg = (
            f"input_ds.split: the split leaves no training cell of {names}.\n    Set "
            f"balanced_split to true, hold out fewer cells, or leave these labels out."
        )
        raise DataError(msg)
