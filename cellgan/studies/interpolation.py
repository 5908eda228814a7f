"""Cells between two labels, from noise or from real cells that noise was added to.

At every step of a diffusion, the noise that is taken away is a mixture of what the
model finds for one label and for the other. Cells of one label can be started from,
with so much noise that what labels have in common is left of them.

References
----------
Luo et al. (2024), scDiffusion: conditional generation of high-quality single-cell data
using diffusion model, section 2.4 (with the gradients of a classifier).
https://arxiv.org/abs/2401.03968
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.data.batches import CellBatch
from cellgan.data.cells import cell_batch, name_frame
from cellgan.data.manifest import RNA
from cellgan.errors import DataError
from cellgan.generation.allotment import Codes, assign_covariates, check_guidance
from cellgan.generation.files import read_processed
from cellgan.generation.library_sizes import draw_library_sizes
from cellgan.generation.pieces import request_rows
from cellgan.generation.trained_model import TrainedModel, provenance
from cellgan.models.base import GenerationRequest, Mixture, SolverSettings
from cellgan.studies.checks import InterpolationRequest, check_interpolation
from cellgan.studies.kit import write_whole

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)


def interpolate_labels(
    experiment: Experiment,
    request: InterpolationRequest,
    path: Path,
    *,
    guidance: Mapping[str, float],
    solver: SolverSettings,
) -> Path:
    """Make cells between two labels.

    Parameters
    ----------
    request
        Labels, weights and numbers. Cells of the same number have the same noise (and
        start from the same real cell) at all weights.
    path
        An ``.h5ad`` file.
    guidance
        Scale by covariate, 1 where not named.
    solver
        How noise is followed.

    Returns
    -------
    Where the cells are: ``obs`` holds ``from``, ``to`` and ``weight``, ``obsm`` the
    latents.

    Raises
    ------
    ConfigError
        If the model cannot mix labels, or the request does not suit.
    CheckpointError
        If the experiment is not trained.
    """
    first, second = check_interpolation(experiment, request)
    manifest = experiment.manifest()
    model = experiment.parameters.model
    check_guidance(guidance, model.conditions(manifest))
    trained = TrainedModel.load(experiment.folder)
    started = time.perf_counter()
    codes = assign_covariates([({manifest.label: first}, request.n_cells)], manifest)
    sizes = None
    if model.makes_counts:
        sizes = draw_library_sizes(codes, manifest, "modelled", seed=request.seed)
    source = None
    if request.noise_step is not None:
        source = _source(experiment, request.ends[0], request.n_cells)
    parts = [
        _cells(
            trained,
            GenerationRequest(
                covariates=codes,
                n_cells=request.n_cells,
                seed=request.seed,
                source=source,
                library_sizes=sizes,
                guidance=guidance,
                solver=solver,
                mixture=Mixture(
                    manifest.label,
                    np.full(request.n_cells, second, np.int32),
                    np.full(request.n_cells, weight, np.float32),
                ),
                noise_step=request.noise_step,
            ),
        )
        for weight in request.weights
    ]
    cells = _joined(trained, request, codes, parts)
    cells.uns["cellgan"] = provenance(
        experiment.parameters,
        trained.step,
        model_type=model.type,
        seed=request.seed,
        request=json.dumps(
            {
                "interpolate": request.ends,
                "weights": request.weights,
                "cells_per_weight": request.n_cells,
                "init_step": request.noise_step,
                "guidance": dict(guidance),
                "solver": dataclasses.asdict(solver),
            },
            sort_keys=True,
        ),
        scale="counts"
        if model.makes_counts
        else f"library-size-normalised to {manifest.target_library_size}, no log",
        are_counts=model.makes_counts,
    )
    write_whole(path, {RNA: cells})
    log.info(
        "%s: %d cells between %s and %s in %.1f s: %s",
        experiment.name,
        cells.n_obs,
        *request.ends,
        time.perf_counter() - started,
        path,
    )
    return path


def _source(experiment: Experiment, label: str, n_cells: int) -> CellBatch:
    """Return training cells of a label, as often as it takes."""
    manifest = experiment.manifest()
    cells = read_processed(experiment)[RNA]
    is_own = (cells.obs[manifest.label].astype(str) == label) & (
        cells.obs["split"] == "train"
    )
    rows = np.flatnonzero(is_own.to_numpy())
    if not len(rows):
        msg = (
            f'{experiment.processed_file}: no training cell is "{label}", so there is '
            f"none to start from. Leave --init-step out."
        )
        raise DataError(msg)
    return cell_batch({RNA: cells.X[np.resize(rows, n_cells)]}, {})


def _cells(
    trained: TrainedModel, request: GenerationRequest
) -> tuple[sp.csr_matrix, npt.NDArray[np.float32]]:
    """Return values and latents of a request's cells, made in pieces."""
    values, latents = [], []
    for rows in trained.row_slices(request.n_cells):
        made = trained.model.generate(request_rows(request, rows))
        values.append(made.features[RNA])
        latents.append(np.asarray(made.latent, np.float32))
    return sp.vstack(values, format="csr"), np.concatenate(latents)


def _joined(
    trained: TrainedModel,
    request: InterpolationRequest,
    codes: Codes,
    parts: Sequence[tuple[sp.csr_matrix, npt.NDArray[np.float32]]],
) -> anndata.AnnData:
    """Return the cells of all weights, one after the other."""
    manifest, n_weights = trained.manifest, len(request.weights)
    n_all = n_weights * request.n_cells
    obs = name_frame(f"cell_{n}" for n in range(n_all))
    obs["from"], obs["to"] = request.ends
    obs["weight"] = np.repeat(request.weights, request.n_cells)
    for name in trained.experiment.parameters.model.conditions(manifest):
        if name != manifest.label:
            categories = manifest.covariates[name].decode(codes[name])
            obs[name] = np.tile(categories, n_weights)
    cells = anndata.AnnData(
        sp.vstack([values for values, _ in parts], format="csr"),
        obs=obs,
        var=name_frame(trained.genes),
    )
    cells.obsm["X_latent"] = np.concatenate([latents for _, latents in parts])
    return cells
