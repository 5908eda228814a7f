"""A folder of records of synthetic cells, written as ``--process`` writes it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from cellgan.data.manifest import SPLITS, CovariateVocabulary, DatasetManifest
from cellgan.data.records import CellRecords, RecordSchema
from cellgan.data.shards import open_shards
from cellgan.data.tfrecords import open_records
from preprocessing.readers.cell_source import CellSource
from preprocessing.write_tfrecords import write_tfrecords
from tests.synthetic import make_cells


def write_records(path: Path, blocks: Iterable[Iterable[bytes]]) -> None:
    """Write a compressed TFRecord file."""
    with open_records(path) as write:
        for block in blocks:
            write(block)


def write_shard(
    path: Path, blocks: Iterable[CellRecords], schema: RecordSchema
) -> None:
    """Write one record file."""
    with open_shards(path.parent, [path.name], schema) as shards:
        for cells in blocks:
            shards[path.name](cells)


class RecordsFolder(NamedTuple):
    """Record files, what is said of them, and what is in them."""

    folder: Path
    manifest: DatasetManifest
    cells: ad.AnnData
    atac: ad.AnnData | None = None


def make_records(  # noqa: PLR0913 -- what tests vary
    folder: Path,
    n_cells: int = 60,
    n_genes: int = 30,
    record_values: str = "counts",
    target_library_size: int = 1000,
    n_valid: int = 9,
    n_test: int = 5,
    n_peaks: int = 0,
) -> RecordsFolder:
    """Write synthetic cells; the last rows are validation and test cells.

    With peaks, they are synthetic counts too.
    """
    cells = annotated_cells(n_cells, n_genes, n_valid, n_test)
    atac = None
    if n_peaks:
        atac = ad.AnnData(make_cells(n_cells, n_peaks, seed=1).counts)
        atac.var_names = [f"peak {peak}" for peak in range(n_peaks)]
    features = {"rna": cells} if atac is None else {"rna": cells, "atac": atac}
    shards = write_tfrecords(
        CellSource.of_anndata(cells),
        folder,
        label="cluster",
        atac=None if atac is None else CellSource.of_anndata(atac),
        record_values=record_values,
        target_library_size=target_library_size,
        seed=3,
    )
    categories = cells.obs["cluster"].cat.categories
    sizes = cells.obs["split"].value_counts()
    manifest = DatasetManifest(
        features={name: tuple(found.var_names) for name, found in features.items()},
        covariates={"cluster": CovariateVocabulary(tuple(categories))},
        label="cluster",
        target_library_size=target_library_size,
        record_values=record_values,
        split_sizes={split: int(sizes.get(split, 0)) for split in SPLITS},
        cells_per_category={},
        library_sizes={},
        shards=shards,
    )
    return RecordsFolder(folder, manifest, cells, atac)


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
