"""The folder of a processed experiment: its files, and what is said about them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anndata as ad
import h5py
import mudata
import numpy as np
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

from cellgan.config.input import InputParameters
from cellgan.config.reading import as_json
from cellgan.data.manifest import (
    ATAC,
    RNA,
    SPLITS,
    CovariateVocabulary,
    DatasetManifest,
    find_combinations,
    library_size_quantiles,
)
from cellgan.errors import DataError
from cellgan.files import remove_leftovers, replacing, write_json
from cellgan.seeds import derive_seed
from preprocessing.fields import vocabulary_document
from preprocessing.readers.cell_source import CellSource

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

STORAGE = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
"""Shuffled bytes take a third of the time of AnnData's gzip, and a fifth less disk."""

SHOWN_LABELS = 30
"""At most this many labels are listed, in the order that --cells_no takes."""


class AtacSummary(NamedTuple):
    """What processing did with peaks."""

    n_before: int
    """Peaks of the raw file."""
    n_after: int
    n_values: int
    """Non-zero values kept."""


class ProcessingSummary(NamedTuple):
    """What processing did."""

    source: str
    shape_before: tuple[int, int]
    """Cells and genes of the raw file."""
    shape_after: tuple[int, int]
    n_values: int
    """Non-zero counts kept."""
    label: str
    cells_per_label: Mapping[str, int]
    cells_per_covariate: Mapping[str, Mapping[str, int]]
    """Of the covariates besides the label."""
    split_sizes: Mapping[str, int]
    bytes_on_disk: Mapping[str, int]
    """The processed file and ``TF_records``."""
    seconds: Mapping[str, float]
    """By phase."""
    atac: AtacSummary | None = None


def write_experiment(
    experiment: Experiment,
    cells: CellSource,
    seconds: dict[str, float],
    atac: CellSource | None = None,
    *,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, int]:
    """Write all files beside the folder's place, then move them there.

    Parameters
    ----------
    cells
        Counts of RNA, with label, covariates and split in obs.
    seconds
        Gets the time of each phase.
    atac
        ATAC counts of the same cells in the same order.
    fields
        What `field_specifications` found; None for cells without a raw file.

    Returns
    -------
    Bytes of the processed file and of ``TF_records``.

    Raises
    ------
    DataError
        If something cannot be written; the folder is as it was before.
    """
    from preprocessing.write_tfrecords import write_tfrecords  # noqa: PLC0415

    parameters = experiment.parameters.input_ds
    try:
        remove_leftovers(experiment.folder)
        with replacing(experiment.folder) as temporary:
            temporary.mkdir()
            staged = dataclasses.replace(experiment, folder=temporary)
            modalities = {RNA: cells} if atac is None else {RNA: cells, ATAC: atac}
            with contextlib.ExitStack() as files:
                with timed(seconds, "write"):
                    append = files.enter_context(
                        open_processed(staged.processed_file, modalities)
                    )
                with timed(seconds, "records"):
                    shards = write_tfrecords(
                        cells,
                        staged.records_folder,
                        atac=atac,
                        label=parameters.clustering.label,
                        covariates=parameters.other_covariates,
                        record_values=parameters.record_values,
                        target_library_size=parameters.target_library_size,
                        seed=derive_seed(parameters.split.seed, "shards"),
                        each_block=append,
                    )
            write_descriptions(staged, cells, shards, atac, fields=fields)
            records = staged.records_folder.iterdir()
            return {
                staged.processed_file.name: staged.processed_file.stat().st_size,
                staged.records_folder.name: sum(
                    file.stat().st_size for file in records
                ),
            }
    except OSError as error:
        msg = f"{experiment.folder}: cannot be written: {error}."
        raise DataError(msg) from error


def write_descriptions(
    staged: Experiment,
    cells: CellSource,
    shards: Mapping[str, int],
    atac: CellSource | None = None,
    *,
    fields: Mapping[str, Any] | None,
) -> None:
    """Write parameters, fields, vocabulary and, last, the manifest.

    Parameters
    ----------
    cells
        With label, covariates and split in obs; values are not looked at.
    shards
        Record file -> number of cells in it.
    fields
        As `write_experiment`.
    """
    parameters = staged.parameters.input_ds
    blocks = {
        "input_ds": as_json(parameters),
        "preprocessed": preprocessed_block(cells, parameters),
    }
    write_json(staged.parameters_file, blocks)
    manifest = make_manifest(cells, parameters, shards, atac)
    if fields is not None:
        write_json(staged.fields_file, fields)
    categories = {
        name: vocabulary.categories for name, vocabulary in manifest.covariates.items()
    }
    write_json(staged.vocabulary_file, vocabulary_document(categories))
    write_json(staged.manifest_file, manifest.as_json())


@contextlib.contextmanager
def open_processed(
    path: Path, modalities: Mapping[str, CellSource]
) -> Iterator[Callable[[Sequence[sp.csr_matrix]], None]]:
    """Write what describes cells; yield what appends a block of each modality.

    Counts that are in memory are written at once, and nothing is appended.
    """
    tables = {name: cells.as_anndata() for name, cells in modalities.items()}
    if all(cells.rows.in_memory for cells in modalities.values()):
        if len(tables) > 1:
            write_modalities(path, tables)
        else:
            write_h5ad(path, tables[RNA])
        yield lambda _: None
        return
    if len(tables) > 1:
        for table in tables.values():
            del table.X
        write_modalities(path, tables)
    with h5py.File(path, "a") as file:
        if len(tables) == 1:
            write_elem(file, "/", tables[RNA])
        stored = [
            empty_matrix(
                file[f"mod/{name}"] if len(tables) > 1 else file, len(cells.var)
            )
            for name, cells in modalities.items()
        ]

        def append(blocks: Sequence[sp.csr_matrix]) -> None:
            for matrix, block in zip(stored, blocks, strict=True):
                matrix.append(block)

        yield append


def empty_matrix(group: h5py.Group, n_features: int) -> Any:
    """Make X a CSR matrix without rows, to which blocks are appended."""
    if "X" in group:
        del group["X"]
    empty = sp.csr_matrix((0, n_features), dtype=np.float32)
    empty.indptr = empty.indptr.astype(np.int64)
    write_elem(group, "X", empty, dataset_kwargs={**STORAGE, "chunks": (2**16,)})
    return sparse_dataset(group["X"])


def write_h5ad(path: Path, cells: ad.AnnData) -> None:
    """Write an .h5ad file, its arrays as `STORAGE` says."""
    with h5py.File(path, "w") as file:
        write_elem(file, "/", cells, dataset_kwargs=STORAGE)


def write_modalities(path: Path, cells: Mapping[str, ad.AnnData]) -> None:
    """Write an .h5mu file; what describes RNA describes the cells as a whole too."""
    with mudata.set_options(pull_on_update=False):
        together = mudata.MuData(dict(cells))
        together.obs = cells[RNA].obs
        mudata.write_h5mu(path, together, **STORAGE)


def preprocessed_block(
    cells: CellSource, parameters: InputParameters
) -> dict[str, Any]:
    """Return what the reference records of processing, with realised numbers."""
    label = cells.obs[parameters.clustering.label]
    sizes = split_sizes(cells)
    per_split = {
        f"{split}_cells_per_cluster": label[cells.obs["split"] == split]
        .value_counts(sort=False)
        .to_dict()
        for split in SPLITS
    }
    return {
        **{f"{split}_count": sizes[split] for split in SPLITS},
        **per_split,
        "total_count": len(cells.obs),
        "genes_no": len(cells.var),
        "split_seed": parameters.split.seed,
        "scale": {
            "scaling": "normalize_per_cell_LS",
            "scale_value": parameters.target_library_size,
        },
        "clusters_no": len(label.cat.categories),
        "clusters_ratios": label.value_counts(normalize=True, sort=False).to_dict(),
    }


def make_manifest(
    cells: CellSource,
    parameters: InputParameters,
    shards: Mapping[str, int],
    atac: CellSource | None = None,
) -> DatasetManifest:
    """Describe the processed cells for training and generation."""
    modalities = {RNA: cells} if atac is None else {RNA: cells, ATAC: atac}
    is_binary = parameters.atac is not None and parameters.atac.values == "binary"
    label = parameters.clustering.label
    names = (label, *parameters.other_covariates)
    covariates = {name: cells.obs[name] for name in names}
    split = cells.obs["split"]
    in_train = (split == "train").to_numpy()
    library_sizes = {
        modality: each.obs["n_counts"].to_numpy()
        for modality, each in modalities.items()
    }
    return DatasetManifest(
        features={
            modality: tuple(each.var.index) for modality, each in modalities.items()
        },
        covariates={
            name: CovariateVocabulary(tuple(column.cat.categories))
            for name, column in covariates.items()
        },
        label=label,
        target_library_size=parameters.target_library_size,
        record_values=parameters.record_values,
        split_sizes=split_sizes(cells),
        cells_per_category={
            part: {
                name: tuple(column[split == part].value_counts(sort=False).tolist())
                for name, column in covariates.items()
            }
            for part in SPLITS
        },
        library_sizes={
            modality: tuple(
                library_size_quantiles(
                    sizes[in_train & (covariates[label] == category).to_numpy()]
                )
                for category in covariates[label].cat.categories
            )
            for modality, sizes in library_sizes.items()
        },
        shards=dict(shards),
        combinations=find_combinations(
            {
                name: column.cat.codes.to_numpy()[in_train]
                for name, column in covariates.items()
            },
            {
                modality: sizes[in_train]
                for modality, sizes in library_sizes.items()
                if parameters.record_values == "counts"
            },
        ),
        binary=(ATAC,) if is_binary else (),
    )


def describe(summary: ProcessingSummary) -> str:
    """Return the summary as a table of a few lines."""
    covariates = {summary.label: summary.cells_per_label, **summary.cells_per_covariate}
    splits = summary.split_sizes
    n_cells, n_genes = summary.shape_after
    filled = summary.n_values / (n_cells * n_genes)
    peaks = {}
    if summary.atac is not None:
        n_raw, n_peaks, n_open = summary.atac
        share = n_open / (n_cells * n_peaks)
        peaks["peaks"] = f"{n_peaks:,} of {n_raw:,}, {share:.1%} not zero"
    megabytes = (
        f"{name} {size / 1e6:,.1f} MB" for name, size in summary.bytes_on_disk.items()
    )
    phases = ", ".join(f"{phase} {time:.1f}" for phase, time in summary.seconds.items())
    rows = {
        "cells": f"{n_cells:,} of {summary.shape_before[0]:,}",
        "genes": f"{n_genes:,} of {summary.shape_before[1]:,}",
        "counts": f"from {summary.source}, {filled:.1%} not zero",
        **peaks,
        **{name: _values(numbers) for name, numbers in covariates.items()},
        "split": ", ".join(f"{name} {splits[name]:,}" for name in SPLITS),
        "on disk": ", ".join(megabytes),
        "seconds": f"{sum(summary.seconds.values()):.1f}: {phases}",
    }
    width = max(map(len, rows))
    return "\n".join(f"    {name:<{width}}  {value}" for name, value in rows.items())


def _values(cells_per_category: Mapping[str, int]) -> str:
    """List the categories of a covariate with their numbers of cells."""
    numbers = list(cells_per_category.items())
    sizes = ", ".join(f"{name} ({number:,})" for name, number in numbers[:SHOWN_LABELS])
    n_more = len(numbers) - SHOWN_LABELS
    more = f", and {n_more} more" if n_more > 0 else ""
    return f"{len(numbers)} values: {sizes}{more}"


def split_sizes(cells: CellSource) -> dict[str, int]:
    """Return the number of cells of each split, zeros included."""
    sizes = np.bincount(cells.obs["split"].cat.codes, minlength=len(SPLITS))
    return dict(zip(SPLITS, sizes.tolist(), strict=True))


@contextlib.contextmanager
def timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """Store the seconds that the block takes under the name of its phase."""
    start = time.perf_counter()
    yield
    seconds[phase] = time.perf_counter() - start
