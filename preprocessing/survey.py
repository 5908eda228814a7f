"""How large the data of an experiment will be, without processing it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pandas as pd

from cellgan.data.manifest import DatasetManifest
from cellgan.errors import ConfigError
from cellgan.experiment import Experiment
from preprocessing.experiment_folder import make_manifest
from preprocessing.process_raw import (
    add_covariates,
    add_labels,
    add_splits,
    filter_counts,
)
from preprocessing.raw_counts import read_atac, read_counts

ASSUMED_CLUSTERS = 10
"""Clusters are not computed for a survey; the cost hardly depends on their number."""


class Survey(NamedTuple):
    """What is known of the data of an experiment, processed or not."""

    manifest: DatasetManifest
    """As processing has written it or would write it, but for clusters."""
    n_values: int | None
    """Counts of all modalities that are not zero, after filtering; None if the
    processed file is gone."""


def survey(experiment: Experiment) -> Survey:
    """Look at a processed experiment, or read and filter its raw file; write nothing.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.process`.
    """
    if experiment.is_processed:
        return Survey(experiment.manifest(), _stored_values(experiment.processed_file))
    parameters = experiment.parameters.input_ds
    if parameters.chunks is not None:
        msg = (
            "--estimate: cells in chunks are not surveyed, which takes as long as "
            "processing. Run --process first."
        )
        raise ConfigError(msg)
    raw = read_counts(parameters)
    raw_atac = read_atac(parameters, raw.obs.index)
    cells, atac = filter_counts(raw, raw_atac, parameters)
    if parameters.clustering.res is None:
        add_labels(cells, parameters)
    else:
        codes = np.arange(cells.n_obs) % ASSUMED_CLUSTERS
        names = [str(code) for code in range(ASSUMED_CLUSTERS)]
        cells.obs[parameters.clustering.label] = pd.Categorical.from_codes(codes, names)
    add_covariates(cells, parameters)
    add_splits(cells, parameters)
    manifest = make_manifest(cells, parameters, {}, atac)
    n_values = cells.X.nnz + (0 if atac is None else atac.X.nnz)
    return Survey(manifest, int(n_values))


def _stored_values(path: Path) -> int | None:
    if not path.exists():
        return None
    with h5py.File(path, "r") as file:
        modalities = file["mod"].values() if "mod" in file else [file]
        return sum(int(modality["X/data"].shape[0]) for modality in modalities)
