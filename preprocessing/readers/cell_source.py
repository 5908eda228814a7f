"""Cells as the pipelines take them: names, columns, and counts read by blocks."""

from __future__ import annotations

from typing import NamedTuple

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd

from preprocessing.readers.rows import RowsInMemory, StoredRows

Mask = npt.NDArray[np.bool_]


class CellSource(NamedTuple):
    """Cells of one modality, of whatever format they are stored in."""

    obs: pd.DataFrame
    var: pd.DataFrame
    rows: StoredRows
    """Their counts, which are canonical and checked unless a reader says otherwise."""
    place: str = "X"
    """Where the counts were."""

    @classmethod
    def of_anndata(cls, cells: ad.AnnData) -> CellSource:
        """Take cells that are in memory."""
        return cls(cells.obs, cells.var, RowsInMemory(cells.X))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of cells and features."""
        return len(self.obs), len(self.var)

    def select(self, cells: Mask, features: Mask | None = None) -> CellSource:
        """Return some cells and features; these are of no use afterwards."""
        if features is None:
            features = np.ones(len(self.var), bool)
        rows = self.rows.select(cells, features)
        return CellSource(self.obs[cells], self.var[features], rows, self.place)

    def as_anndata(self) -> ad.AnnData:
        """Return an AnnData; without X if counts are not in memory."""
        counts = self.rows.gather() if self.rows.in_memory else None
        return ad.AnnData(counts, obs=self.obs, var=self.var)
