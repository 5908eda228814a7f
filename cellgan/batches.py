"""Cells as training and evaluation see them: batches of dense float32 tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import tensorflow as tf


class CellBatch(NamedTuple):
    """Some cells; `m` is a modality such as ``"rna"``, `c` a covariate's name."""

    features: Mapping[str, tf.Tensor]
    """``[m]`` (n_cells, n_features) float32: counts, unless the manifest's
    ``record_values`` is ``"normalized"``."""
    library_size: Mapping[str, tf.Tensor]
    """``[m]`` (n_cells,) float32: total counts before any scaling; for normalised
    records, the stored total of the scaled values."""
    covariates: Mapping[str, tf.Tensor]
    """``[c]`` (n_cells,) int32 codes."""
