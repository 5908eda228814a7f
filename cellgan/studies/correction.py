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

import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.data.cells import batch_of_rows
from cellgan.data.manifest import RNA
from cellgan.evaluation.figures import maps
from cellgan.evaluation.figures.canvas import save
from cellgan.evaluation.metrics.integration import (
    Integration,
    compared_cells,
    integration,
)
from cellgan.generation.allotment import check_guidance
from cellgan.generation.files import read_processed
from cellgan.generation.trained_model import TrainedModel, provenance
from cellgan.models.base import GenerationRequest, SolverSettings
from cellgan.studies.checks import check_correction
from cellgan.studies.figures import integration_figure
from cellgan.studies.kit import change_category, set_aside, write_whole

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

BEFORE, AFTER = "X_latent", "X_corrected"
"""Keys of ``obsm``."""


def correct_cells(
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
        set_aside(cells.obs, ("n_counts", "n_genes", "n_peaks"))
        cells.layers.clear()
        cells.uns["cellgan"] = provenance(
            experiment.parameters,
            trained.step,
            seed=seed,
            corrected_to=dict(target),
            guidance=dict(guidance),
            solver=solver.name,
            scale="counts, each cell with its own library size",
            are_counts=True,
        )
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
            when: integration(latents, columns[name], label)
            for when, latents in points.items()
        }
        frames[RNA].uns["cellgan"][f"integration_{name}"] = {
            when: score._asdict() for when, score in scores.items()
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
    for name, category in target.items():
        own = obs[name].copy()
        for cells in frames.values():
            change_category(cells.obs, own, category, own.cat.categories)
    write_whole(path, frames)
    log.info("%s: corrected cells in %s", experiment.name, path)
    points_of = [
        maps.embed(latents, method="tsne", seed=0, log_components=False)
        for latents in points.values()
    ]
    for name in target:
        in_a_file_name = re.sub(r"[^\w.-]+", "_", name)
        file = path.with_name(f"{path.stem}_{in_a_file_name}.png")
        save(integration_figure(points_of, columns[name], label, name), file)
        log.info("%s", file)
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
        values = "  ".join(f"{getattr(score, key):7.3f}" for score in scores.values())
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
    names = {*conditions, manifest.label}
    before: list[Any] = []
    after: list[Any] = []
    counts: dict[str, list[sp.csr_matrix]] = {modality: [] for modality in frames}
    for rows in trained.row_slices(frames[RNA].n_obs, task="correcting"):
        source = batch_of_rows(frames, manifest, rows, names)
        codes = {name: own.numpy() for name, own in source.covariates.items()}
        codes |= {
            name: np.full_like(codes[name], code) for name, code in target.items()
        }
        made = trained.model.generate(
            GenerationRequest(
                covariates=codes,
                n_cells=rows.stop - rows.start,
                seed=seed,
                first_cell=rows.start,
                source=source,
                library_sizes={
                    name: total.numpy() for name, total in source.library_size.items()
                },
                guidance=guidance,
                solver=solver,
            )
        )
        before.append(trained.model.latents(source.features))
        after.append(made.latent)
        for modality, values in made.features.items():
            counts[modality].append(values)
    return (
        np.concatenate(before),
        np.concatenate(after),
        {name: sp.vstack(parts, format="csr") for name, parts in counts.items()},
    )
