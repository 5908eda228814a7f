"""How large the data of an experiment will be, without processing it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from cellgan.experiment import Experiment
from cellgan.manifest import SPLITS, DatasetManifest
from preprocessing.experiment_folder import make_manifest
from preprocessing.process_raw import add_labels, filter_counts, read_counts

ASSUMED_CLUSTERS = 10
"""Clusters are not computed for a survey; the cost hardly depends on their number."""


class Survey(NamedTuple):
    """What is known of the data before they are processed."""

    manifest: DatasetManifest
    """As processing would write it, with every cell in the training split."""
    n_values: int
    """Counts that are not zero, after filtering."""


def survey(experiment: Experiment) -> Survey:
    """Read and filter the raw file; write nothing.

    Raises
    ------
    ConfigError, DataError
        As `preprocessing.process`.
    """
    parameters = experiment.parameters.input_ds
    cells = filter_counts(read_counts(parameters), parameters.filtering)
    if parameters.clustering.res is None:
        add_labels(cells, parameters)
    else:
        codes = np.arange(cells.n_obs) % ASSUMED_CLUSTERS
        names = [str(code) for code in range(ASSUMED_CLUSTERS)]
        cells.obs[parameters.clustering.label] = pd.Categorical.from_codes(codes, names)
    cells.obs["split"] = pd.Categorical(["train"] * cells.n_obs, categories=SPLITS)
    return Survey(make_manifest(cells, parameters, shards={}), int(cells.X.nnz))
