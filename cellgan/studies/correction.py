"""Batch correction: real cells taken to noise and back with another covariate.

A cell's latent is followed back to the noise it comes from, with the cell's own
covariates, and from there to a latent with the target's. What the covariates explain
changes, what they do not stays in the noise.

References
----------
Palma et al. (2025), Multi-Modal and Multi-Attribute Generation of Single Cells with
CFGen, section 5.4. https://arxiv.org/abs/2407.11734
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from tqdm import tqdm

from cellgan.config.reading import as_json
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA
from cellgan.evaluation.figures import plots
from cellgan.evaluation.metrics.integration import (
    Integration,
    compared_cells,
    integration,
)
from cellgan.experiment import Experiment, replacing
from cellgan.generation.allotment import check_guidance
from cellgan.generation.files import read_processed
from cellgan.generation.trained_model import TrainedModel, piece_size, versions
from cellgan.models.base import GenerationRequest, SolverSettings
from cellgan.studies.checks import check_correction

log = logging.getLogger(__name__)

BEFORE, AFTER = "X_latent", "X_corrected"
"""Keys of ``obsm``."""


def correct(
    experiment: Experiment,
    target: Mapping[str, str],
    path: Path,
    *,
    seed: int,
    guidance: Mapping[str, float],
    solver: SolverSettings,
) -> Path:
    """Move all processed cells of an experiment to other categories.

    Parameters
    ----------
    target
        Category, by covariate, that all cells get; other covariates stay.
    path
        File of the corrected cells, ``.h5ad``, or ``.h5mu`` with ATAC. A figure of
        the same name is written beside it.
    seed
        Of the counts that are drawn.
    guidance
        Scale by covariate, both ways; 1 where not named.
    solver
        How the flow is followed, both ways.

    Returns
    -------
    Where the cells are. ``X`` holds counts with each cell's own library size,
    ``obsm["X_latent"]`` and ``obsm["X_corrected"]`` the latents before and after.

    Raises
    ------
    ConfigError
        If the model is not conditioned on a covariate of the target, or it names a
        category that no training cell has.
    CheckpointError
        If the experiment is not trained.
    """
    codes = check_correction(experiment, target)
    conditions = experiment.parameters.model.conditions(experiment.manifest())
    check_guidance(guidance, conditions)
    trained = TrainedModel.load(experiment.folder)
    started = time.perf_counter()
    frames = read_processed(experiment)
    before, after, counts = _moved(trained, frames, codes, seed, guidance, solver)
    for modality, cells in frames.items():
        cells.X = counts[modality]
        cells.obsm[BEFORE], cells.obsm[AFTER] = before, after
        for column in {"n_counts", "n_genes", "n_peaks"} & {*cells.obs}:
            cells.obs[f"original_{column}"] = cells.obs.pop(column)
        cells.layers.clear()
        cells.uns["cellgan"] = {
            "parameters": json.dumps(as_json(experiment.parameters), sort_keys=True),
            "step": trained.step,
            "seed": seed,
            "corrected_to": dict(target),
            "guidance": dict(guidance),
            "solver": solver.name,
            "scale": "counts, each cell with its own library size",
            "are_counts": True,
            "versions": versions(),
        }
    obs = frames[RNA].obs
    rows = compared_cells(len(obs), seed)
    points = {"before": before[rows], "after": after[rows]}
    columns = {
        name: obs[name].astype(str).to_numpy()[rows]
        for name in (trained.manifest.label, *target)
    }
    label = columns[trained.manifest.label]
    for name, category in target.items():
        scores = {
            when: integration(of, columns[name], label) for when, of in points.items()
        }
        frames[RNA].uns["cellgan"][f"integration_{name}"] = {
            when: of._asdict() for when, of in scores.items()
        }
        log.info(
            "%s: %d cells to %s %s in %.1f s (scores are of %d cells)\n%s",
            experiment.name,
            len(obs),
            name,
            category,
            time.perf_counter() - started,
            len(rows),
            describe(scores, name, trained.manifest.label),
        )
    for name, category in target.items():  # what cells were is kept beside
        was = obs[name].copy()
        now = pd.Categorical([category] * len(obs), categories=was.cat.categories)
        for cells in frames.values():
            cells.obs[f"original_{name}"] = was
            cells.obs[name] = now
    _write(path, frames)
    log.info("%s: corrected cells in %s", experiment.name, path)
    maps = [
        plots.embed(of, method="tsne", seed=0, log_components=False)
        for of in points.values()
    ]
    for name in target:
        in_a_file_name = re.sub(r"[^\w.-]+", "_", name)
        figure = path.with_name(f"{path.stem}_{in_a_file_name}.png")
        plots.integration_figure(figure, maps, columns[name], label, name)
        log.info("%s", figure)
    return path


def describe(scores: Mapping[str, Integration], batch: str, label: str) -> str:
    """Return the scores as a small table."""
    titles = {
        "batch_mixing": f"mixing of {batch} (iLISI, 1 is best)",
        "label_separation": f"separation of {label} (cLISI, 1 is best)",
        "label_silhouette": f"silhouette of {label} (1 is best)",
    }
    width = max(map(len, titles.values()))
    lines = [f"    {'':{width}}  " + "  ".join(f"{when:>7}" for when in scores)]
    for key, title in titles.items():
        values = "  ".join(f"{getattr(of, key):7.3f}" for of in scores.values())
        lines.append(f"    {title:{width}}  {values}")
    return "\n".join(lines)


def _moved(
    trained: TrainedModel,
    frames: Mapping[str, anndata.AnnData],
    target: Mapping[str, int],
    seed: int,
    guidance: Mapping[str, float],
    solver: SolverSettings,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], dict[str, sp.csr_matrix]]:
    """Return latents before and after, and counts by modality."""
    manifest = trained.manifest
    conditions = trained.experiment.parameters.model.conditions(manifest)
    obs = frames[RNA].obs
    own = {
        name: manifest.covariates[name].encode(obs[name].astype(str).tolist())
        for name in {*conditions, manifest.label}
    }
    before: list[Any] = []
    after: list[Any] = []
    counts: dict[str, list[sp.csr_matrix]] = {modality: [] for modality in frames}
    size = piece_size(sum(map(len, manifest.features.values())))
    with tqdm(total=len(obs), unit=" cells", delay=2, desc="correcting") as bar:
        for first in range(0, len(obs), size):
            rows = slice(first, min(first + size, len(obs)))
            source = _batch(frames, own, rows)
            requested = {
                name: np.full_like(of[rows], target[name])
                if name in target
                else of[rows]
                for name, of in own.items()
            }
            made = trained.model.generate(
                GenerationRequest(
                    covariates=requested,
                    n_cells=rows.stop - first,
                    seed=seed,
                    first_cell=first,
                    source=source,
                    library_sizes={
                        name: of.numpy() for name, of in source.library_size.items()
                    },
                    guidance=guidance,
                    solver=solver,
                )
            )
            before.append(trained.model.latents(source.features))
            after.append(made.latent)
            for modality, values in made.features.items():
                counts[modality].append(values)
            bar.update(rows.stop - first)
    return (
        np.concatenate(before),
        np.concatenate(after),
        {name: sp.vstack(of, format="csr") for name, of in counts.items()},
    )


def _batch(
    frames: Mapping[str, anndata.AnnData],
    codes: Mapping[str, npt.NDArray[np.int32]],
    rows: slice,
) -> CellBatch:
    features = {
        name: tf.constant(cells.X[rows].toarray(), tf.float32)
        for name, cells in frames.items()
    }
    return CellBatch(
        features,
        {name: tf.reduce_sum(of, axis=1) for name, of in features.items()},
        {name: tf.constant(of[rows]) for name, of in codes.items()},
    )


def _write(path: Path, frames: Mapping[str, anndata.AnnData]) -> None:
    if len(frames) == 1:
        with replacing(path) as temporary:
            frames[RNA].write_h5ad(temporary)
        return
    import mudata  # noqa: PLC0415  (slow, and seldom needed)

    with mudata.set_options(pull_on_update=False), replacing(path) as temporary:
        mudata.write_h5mu(temporary, mudata.MuData(dict(frames)))
