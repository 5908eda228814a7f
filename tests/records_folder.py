"""A folder of records of synthetic cells, written as ``--process`` writes it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from cellgan.manifest import SPLITS, CovariateVocabulary, DatasetManifest
from preprocessing.write_tfrecords import write_tfrecords
from tests.synthetic import make_cells


class RecordsFolder(NamedTuple):
    """Record files, what is said of them, and what is in them."""

    folder: Path
    manifest: DatasetManifest
    cells: ad.AnnData


def make_records(
    folder: Path,
    n_cells: int = 60,
    n_genes: int = 30,
    record_values: str = "counts",
    target_library_size: int = 1000,
    n_valid: int = 9,
    n_test: int = 5,
) -> RecordsFolder:
    """Write synthetic cells; the last rows are validation and test cells."""
    cells = annotated_cells(n_cells, n_genes, n_valid, n_test)
    shards = write_tfrecords(
        cells,
        folder,
        label="cluster",
        record_values=record_values,
        target_library_size=target_library_size,
        seed=3,
    )
    categories = cells.obs["cluster"].cat.categories
    sizes = cells.obs["split"].value_counts()
    manifest = DatasetManifest(
        features={"rna": tuple(cells.var_names)},
        covariates={"cluster": CovariateVocabulary(tuple(categories))},
        label="cluster",
        target_library_size=target_library_size,
        record_values=record_values,
        split_sizes={split: int(sizes.get(split, 0)) for split in SPLITS},
        cells_per_category={},
        library_sizes={},
        shards=shards,
    )
    return RecordsFolder(folder, manifest, cells)


def annotated_cells(
    n_cells: int, n_genes: int, n_valid: int, n_test: int
) -> ad.AnnData:
    """Make cells with the annotations that processing gives them."""
    counts, labels = make_cells(n_cells, n_genes)
    n_train = n_cells - n_valid - n_test
    split = np.repeat(["train", "valid", "test"], [n_train, n_valid, n_test])
    obs = pd.DataFrame(
        {
            "cluster": pd.Categorical(labels),
            "split": split,
            "n_genes": np.diff(counts.indptr) + 1,
        },
        index=[f"cell {row} \N{GREEK SMALL LETTER BETA}" for row in range(n_cells)],
    )
    return ad.AnnData(counts, obs=obs)
