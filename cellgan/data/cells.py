"""Rows of AnnData <-> `CellBatch`, and the names of cells and genes made anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA, DatasetManifest

Rows = npt.NDArray[np.intp] | slice


def cell_batch(
    values: Mapping[str, Any],
    covariates: Mapping[str, npt.ArrayLike],
    library_size: Mapping[str, npt.ArrayLike] | None = None,
) -> CellBatch:
    """Return cells as a model takes them.

    Parameters
    ----------
    values
        Sparse or dense, ``(n_cells, n_features)`` by modality.
    covariates
        Codes ``(n_cells,)`` by covariate.
    library_size
        ``(n_cells,)`` by modality; None for the totals of the values.
    """
    features = {
        modality: tf.constant(
            rows.toarray() if sp.issparse(rows) else np.asarray(rows), tf.float32
        )
        for modality, rows in values.items()
    }
    sizes = (
        {modality: tf.reduce_sum(rows, axis=1) for modality, rows in features.items()}
        if library_size is None
        else {
            modality: tf.constant(total, tf.float32)
            for modality, total in library_size.items()
        }
    )
    codes = {name: tf.constant(code, tf.int32) for name, code in covariates.items()}
    return CellBatch(features, sizes, codes)


def batch_of_rows(
    frames: Mapping[str, anndata.AnnData],
    manifest: DatasetManifest,
    rows: Rows,
    names: Iterable[str] | None = None,
) -> CellBatch:
    """Return some cells as the records would give them.

    Parameters
    ----------
    frames
        Counts by modality; covariates are in the ``obs`` of RNA.
    names
        Covariates that cells are given; others may have values that no model knows.
        None for all that cells have.
    """
    obs = frames[RNA].obs.iloc[rows]
    codes = {
        name: vocabulary.encode(obs[name].astype(str).tolist())
        for name, vocabulary in manifest.covariates.items()
        if name in (obs if names is None else names)
    }
    batch = cell_batch({name: cells.X[rows] for name, cells in frames.items()}, codes)
    if manifest.record_values != "normalized":
        return batch
    counts, total = batch.features[RNA], batch.library_size[RNA]
    size = tf.constant(manifest.target_library_size, tf.float32)
    scaled = counts * tf.math.divide_no_nan(size, total)[:, None]
    return batch._replace(features={**batch.features, RNA: scaled})


def name_frame(names: Iterable[str]) -> pd.DataFrame:
    """Return a frame without columns, a row for each name."""
    return pd.DataFrame(index=pd.Index(list(names), dtype=object))
