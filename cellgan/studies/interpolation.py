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
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf

from cellgan.config.reading import as_json
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA
from cellgan.errors import DataError
from cellgan.experiment import Experiment, replacing
from cellgan.generation.allotment import (
    Codes,
    assign_covariates,
    check_guidance,
    draw_library_sizes,
)
from cellgan.generation.files import read_processed
from cellgan.generation.trained_model import TrainedModel, piece_size, versions
from cellgan.models.base import GenerationRequest, Mixture, SolverSettings
from cellgan.studies.checks import InterpolationRequest, check_interpolation

log = logging.getLogger(__name__)


def interpolate(
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
    of_weights = [
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
    cells = _joined(trained, request, codes, of_weights)
    cells.uns["cellgan"] = {
        "parameters": json.dumps(as_json(experiment.parameters), sort_keys=True),
        "model_type": model.type,
        "step": trained.step,
        "seed": request.seed,
        "request": json.dumps(
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
        "scale": "counts"
        if model.makes_counts
        else f"library-size-normalised to {manifest.target_library_size}, no log",
        "are_counts": model.makes_counts,
        "versions": versions(),
    }
    with replacing(path) as temporary:
        cells.write_h5ad(temporary)
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
    counts = cells.X[np.resize(rows, n_cells)]
    dense = counts.toarray() if sp.issparse(counts) else np.asarray(counts)
    values = tf.constant(dense, tf.float32)
    return CellBatch({RNA: values}, {RNA: tf.reduce_sum(values, axis=1)}, {})


def _cells(
    trained: TrainedModel, request: GenerationRequest
) -> tuple[sp.csr_matrix, npt.NDArray[np.float32]]:
    """Return values and latents of a request's cells, made in pieces."""
    size = piece_size(len(trained.genes))
    values, latents = [], []
    for first in range(0, request.n_cells, size):
        made = trained.model.generate(_between(request, first, first + size))
        values.append(made.features[RNA])
        latents.append(np.asarray(made.latent, np.float32))
    return sp.vstack(values, format="csr"), np.concatenate(latents)


def _between(request: GenerationRequest, first: int, end: int) -> GenerationRequest:
    """Return some consecutive cells of a request."""
    rows = slice(first, min(end, request.n_cells))
    parts: dict[str, Any] = {
        "covariates": request.covariates,
        "library_sizes": request.library_sizes,
        "source": request.source,
    }
    parts = tf.nest.map_structure(lambda of: None if of is None else of[rows], parts)
    mixture = request.mixture
    if mixture is not None:
        mixture = Mixture(mixture.covariate, mixture.codes[rows], mixture.shares[rows])
    return dataclasses.replace(
        request,
        **parts,
        mixture=mixture,
        first_cell=first,
        n_cells=rows.stop - first,
    )


def _joined(
    trained: TrainedModel,
    request: InterpolationRequest,
    codes: Codes,
    of_weights: Sequence[tuple[sp.csr_matrix, npt.NDArray[np.float32]]],
) -> anndata.AnnData:
    """Return the cells of all weights, one after the other."""
    manifest, n_weights = trained.manifest, len(request.weights)
    n_all = n_weights * request.n_cells
    obs = pd.DataFrame(
        index=pd.Index([f"cell_{n}" for n in range(n_all)], dtype=object)
    )
    obs["from"], obs["to"] = request.ends
    obs["weight"] = np.repeat(request.weights, request.n_cells)
    for name in trained.experiment.parameters.model.conditions(manifest):
        if name != manifest.label:
            of_cells = manifest.covariates[name].decode(codes[name])
            obs[name] = np.tile(of_cells, n_weights)
    cells = anndata.AnnData(
        sp.vstack([values for values, _ in of_weights], format="csr"),
        obs=obs,
        var=pd.DataFrame(index=pd.Index(list(trained.genes), dtype=object)),
    )
    cells.obsm["X_latent"] = np.concatenate([latents for _, latents in of_weights])
    return cells
