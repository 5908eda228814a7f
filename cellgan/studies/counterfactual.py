"""What cells would look like in another context: edited cells, as sums of their heads.

Cells keep every field that is not named. An additive model gives each cell anew as the
sum of what its heads add, and every addend is kept beside the sum.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from anndata.io import write_elem
from tqdm import tqdm

from cellgan.config.reading import as_json
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import DataError
from cellgan.evaluation.metrics.counterfactual import (
    EDITED,
    FEWEST_CELLS,
    CounterfactualScores,
    Population,
    counterfactual_scores,
)
from cellgan.evaluation.metrics.integration import compared_cells
from cellgan.experiment import Experiment, replacing
from cellgan.generation.files import OR_INPUT, read_processed
from cellgan.generation.trained_model import TrainedModel, piece_size, versions
from cellgan.models.base import AdditiveModel, EditedCells
from cellgan.studies.checks import check_counterfactual

log = logging.getLogger(__name__)

LAYER = "head_{}"
STORAGE = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


class Compared(NamedTuple):
    """Cells on the scale of the model, to score edited ones by."""

    training: Population
    held_out: Population


def counterfactual(
    experiment: Experiment,
    target: Mapping[str, str],
    path: Path,
    *,
    cells: anndata.AnnData | None = None,
    origin: str = "",
    seed: int = 0,
) -> Path:
    """Edit cells to other categories and write them with what each head adds.

    Parameters
    ----------
    experiment
        Trained; of a model that is additive.
    target
        Category by field; other fields stay as they are.
    path
        An ``.h5ad`` file.
    cells
        Counts of the model's genes, with its fields in obs. None for the processed
        cells of the experiment.
    origin
        Where `cells` come from, in words.
    seed
        Of the scores.

    Returns
    -------
    Where the cells are. ``X`` is the sum of the layers ``head_base`` and
    ``head_<field>``; ``obs`` has the new categories, and ``original_<field>``.

    Raises
    ------
    ConfigError
        If the model cannot edit cells, or the target does not suit.
    CheckpointError
        If the experiment is not trained.
    DataError
        If the file cannot be written.
    """
    codes = check_counterfactual(experiment, target)
    trained = TrainedModel.load(experiment.folder)
    started = time.perf_counter()
    if cells is None:
        cells = read_processed(experiment, otherwise=OR_INPUT)[RNA]
        origin = str(experiment.processed_file)
    skeleton = _skeleton(trained, cells, target, origin)
    scores = _scores(experiment, trained, cells, target, codes, seed=seed)
    skeleton.uns["cellgan"]["scores"] = json.dumps(
        {kind: _told(of) for kind, of in scores.items()}, sort_keys=True
    )
    try:
        with replacing(path) as temporary:
            _write(temporary, skeleton, _pieces(trained, cells, codes), trained)
    except OSError as error:
        msg = f"{path}: cannot be written: {error.strerror or error}."
        raise DataError(msg) from error
    log.info(
        "%s, step %d: %d cells to %s in %.1f s: %s%s",
        experiment.name,
        trained.step,
        cells.n_obs,
        ", ".join(f"{name} {category}" for name, category in target.items()),
        time.perf_counter() - started,
        path,
        f"\n{describe(scores)}" if scores else "",
    )
    return path


def as_batch(
    cells: anndata.AnnData,
    manifest: DatasetManifest,
    rows: npt.NDArray[np.intp] | slice,
    names: Sequence[str] | None = None,
) -> CellBatch:
    """Return some cells as the records would give them, with some covariates.

    Others may have values that no model knows. None for all that cells have.
    """
    values = cells.X[rows]
    dense = values.toarray() if sp.issparse(values) else np.asarray(values)
    counts = tf.constant(dense, tf.float32)
    total = tf.reduce_sum(counts, axis=1)
    if manifest.record_values == "normalized":
        size = tf.constant(manifest.target_library_size, tf.float32)
        counts *= tf.math.divide_no_nan(size, total)[:, None]
    obs = cells.obs.iloc[rows]
    codes = {
        name: tf.constant(vocabulary.encode(obs[name].astype(str).tolist()))
        for name, vocabulary in manifest.covariates.items()
        if name in (obs if names is None else names)
    }
    return CellBatch({RNA: counts}, {RNA: total}, codes)


def _told(scores: CounterfactualScores) -> dict[str, float | None]:
    """Return scores by name, null where nothing can be compared."""
    values = dataclasses.asdict(scores)
    return {name: None if np.isnan(of) else of for name, of in values.items()}


def describe(scores: Mapping[str, CounterfactualScores]) -> str:
    """Return the scores as a small table; "-" is what nothing can be compared for."""
    titles = {
        "agreement": "taken for the target by a classifier",
        "correlation": "correlation of means with real cells",
        "shift_correlation": "the same of the changes",
        "kept": "other fields recognised",
    }
    width = max(map(len, titles.values()))
    lines = [f"    {'':{width}}  " + "  ".join(f"{kind:>10}" for kind in scores)]
    for key, title in titles.items():
        values = [getattr(of, key) for of in scores.values()]
        told = ["-" if np.isnan(of) else f"{of:.3f}" for of in values]
        lines.append(f"    {title:{width}}  " + "  ".join(f"{of:>10}" for of in told))
    edited = scores[EDITED]
    if np.isnan(edited.correlation):
        lines.append(
            f"    (fewer than {FEWEST_CELLS} held-out cells of the target in every "
            "group of cells alike: means cannot be compared)"
        )
    return "\n".join(lines)


def _pieces(
    trained: TrainedModel, cells: anndata.AnnData, codes: Mapping[str, int]
) -> Iterator[EditedCells]:
    """Edit the cells, a piece at a time."""
    model = cast(AdditiveModel, trained.model)
    size = piece_size(len(trained.genes))
    with tqdm(total=cells.n_obs, unit=" cells", delay=2, desc="editing") as bar:
        for first in range(0, cells.n_obs, size):
            rows = slice(first, min(first + size, cells.n_obs))
            n_cells = rows.stop - first
            target = {
                name: np.full(n_cells, code, np.int32) for name, code in codes.items()
            }
            yield model.edit(as_batch(cells, trained.manifest, rows), target)
            bar.update(n_cells)


def _skeleton(
    trained: TrainedModel,
    cells: anndata.AnnData,
    target: Mapping[str, str],
    origin: str,
) -> anndata.AnnData:
    """Return names, changed metadata and provenance of edited cells, without X."""
    parameters, manifest = trained.experiment.parameters, trained.manifest
    model = cast(AdditiveModel, trained.model)
    obs = cells.obs.copy()
    for column in {"n_counts", "n_genes"} & {*obs}:
        obs[f"original_{column}"] = obs.pop(column)
    for name, category in target.items():
        obs[f"original_{name}"] = obs[name]
        obs[name] = pd.Categorical(
            [category] * len(obs), categories=list(manifest.covariates[name].categories)
        )
    edited = anndata.AnnData(
        obs=obs, var=pd.DataFrame(index=pd.Index(list(trained.genes), dtype=object))
    )
    edited.uns["cellgan"] = {
        "parameters": json.dumps(as_json(parameters), sort_keys=True),
        "model_type": parameters.model.type,
        "step": trained.step,
        "counterfactual": dict(target),
        "source": origin,
        "scale": model.scale,
        "layers": "what each head adds; they sum to X",
        "are_counts": False,
        "versions": versions(),
    }
    return edited


def _write(
    path: Path,
    skeleton: anndata.AnnData,
    pieces: Iterator[EditedCells],
    trained: TrainedModel,
) -> None:
    """Write an AnnData file whose dense matrices are filled piece by piece."""
    heads = cast(AdditiveModel, trained.model).heads()
    shape = skeleton.shape
    with h5py.File(path, "w") as file:
        write_elem(file, "/", skeleton)
        if "X" in file:  # a place for nothing
            del file["X"]
        chunks = (min(shape[0], 256), min(shape[1], 1024))
        stored = {
            name: file.create_dataset(name, shape, np.float32, chunks=chunks, **STORAGE)
            for name in ("X", *(f"layers/{LAYER.format(head)}" for head in heads))
        }
        for matrix in stored.values():
            matrix.attrs["encoding-type"] = "array"
            matrix.attrs["encoding-version"] = "0.2.0"
        first = 0
        for piece in pieces:
            rows = slice(first, first + len(piece.values))
            stored["X"][rows] = piece.values
            for head, values in piece.contributions.items():
                stored[f"layers/{LAYER.format(head)}"][rows] = values
            first = rows.stop


def _scores(
    experiment: Experiment,
    trained: TrainedModel,
    cells: anndata.AnnData,
    target: Mapping[str, str],
    codes: Mapping[str, int],
    *,
    seed: int,
) -> dict[str, CounterfactualScores]:
    """Score edited cells by the processed cells; nothing if these are not there."""
    if not experiment.processed_file.exists():
        log.info(
            "%s: no scores, for want of %s", experiment.name, experiment.processed_file
        )
        return {}
    manifest, model = trained.manifest, cast(AdditiveModel, trained.model)
    fields = experiment.parameters.model.conditions(manifest)

    def population(of: anndata.AnnData, which: npt.NDArray[np.bool_]) -> Population:
        rows = np.flatnonzero(which)
        rows = rows[compared_cells(len(rows), seed)]
        values = model.expression(as_batch(of, manifest, rows))
        obs = of.obs.iloc[rows]
        return Population(
            values, {name: obs[name].astype(str).to_numpy(str) for name in fields}
        )

    processed = read_processed(experiment)[RNA]
    split = processed.obs["split"].astype(str).to_numpy()
    changed = np.zeros(cells.n_obs, bool)
    for name, category in target.items():
        changed |= cells.obs[name].astype(str).to_numpy() != category
    if not changed.any():
        log.info("%s: no scores, all cells are of the target", experiment.name)
        return {}
    rows = np.flatnonzero(changed)
    rows = rows[compared_cells(len(rows), seed)]
    batch = as_batch(cells, manifest, rows)
    edited = model.edit(
        batch,
        {name: np.full(len(rows), code, np.int32) for name, code in codes.items()},
    )
    return counterfactual_scores(
        population(processed, split == "train"),
        population(processed, split != "train"),
        population(cells, changed),
        edited.values,
        target,
        seed=seed,
    )
