"""How large the data of an experiment will be, without processing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np
import pandas as pd

from cellgan.data.manifest import SPLITS, DatasetManifest
from cellgan.data.shards import read_shard, split_files
from preprocessing.experiment_folder import make_manifest
from preprocessing.pipeline import (
    add_covariates,
    add_labels,
    add_splits,
    prepare_cells,
)

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

ASSUMED_CLUSTERS = 10
"""Clusters are not computed for a survey; the cost hardly depends on their number."""


class Survey(NamedTuple):
    """What is known of the data of an experiment, processed or not."""

    manifest: DatasetManifest
    """As processing has written it or would write it, but for clusters."""
    n_values: int
    """Counts of all modalities that are not zero, after filtering."""


def survey(experiment: Experiment) -> Survey:
    """Look at a processed experiment, or read and filter its cells; write nothing.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.process`.
    """
    if experiment.is_processed:
        manifest = experiment.manifest()
        return Survey(manifest, _stored_values(experiment, manifest))
    parameters = experiment.parameters.input_ds
    cells, atac, n_values = prepare_cells(experiment, {}).cells
    if parameters.clustering.res is None:
        add_labels(cells, parameters)
    else:
        codes = np.arange(len(cells.obs)) % ASSUMED_CLUSTERS
        names = [str(code) for code in range(ASSUMED_CLUSTERS)]
        cells.obs[parameters.clustering.label] = pd.Categorical.from_codes(codes, names)
    add_covariates(cells, parameters)
    add_splits(cells, parameters)
    manifest = make_manifest(cells, parameters, {}, atac)
    return Survey(manifest, sum(n_values))


def _stored_values(experiment: Experiment, manifest: DatasetManifest) -> int:
    """Count values in the processed file, or in the records where there is none."""
    path = experiment.processed_file
    if path.exists():
        with h5py.File(path, "r") as file:
            modalities = file["mod"].values() if "mod" in file else [file]
            return sum(int(modality["X/data"].shape[0]) for modality in modalities)
    n_values = 0
    for split in SPLITS:
        for file in split_files(experiment.records_folder, manifest, split):
            cells = read_shard(file, manifest)
            n_values += cells.values.nnz
            if cells.atac is not None:
                n_values += cells.atac.values.nnz
    return n_values
