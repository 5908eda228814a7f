"""What cells would look like in another context: edited cells, as sums of their heads.

Cells keep every field that is not named. An additive model gives each cell anew as the
sum of what its heads add, and every addend is kept beside the sum.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import anndata
import h5py
import numpy as np
import numpy.typing as npt
from anndata.io import write_elem

from cellgan.data.cells import batch_of_rows, name_frame
from cellgan.data.manifest import RNA
from cellgan.evaluation.metrics.counterfactual import (
    EDITED,
    FEWEST_CELLS,
    CounterfactualScores,
    Population,
    counterfactual_scores,
)
from cellgan.evaluation.metrics.integration import compared_cells
from cellgan.generation.files import read_processed
from cellgan.generation.trained_model import (
    TrainedModel,
    provenance,
)
from cellgan.models.base import AdditiveModel, EditedCells
from cellgan.studies.checks import check_counterfactual
from cellgan.studies.kit import (
    cells_to_study,
    change_category,
    dense_rows,
    set_aside,
    writing,
)

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

LAYER = "head_{}"


def edit_cells(
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
    frames, origin = cells_to_study(experiment, cells, origin)
    cells = frames[RNA]
    skeleton = _skeleton(trained, cells, target, origin)
    scores = _scores(experiment, trained, cells, target, codes, seed=seed)
    skeleton.uns["cellgan"]["scores"] = json.dumps(
        {kind: _plain(score) for kind, score in scores.items()}, sort_keys=True
    )
    with writing(path) as temporary:
        _write(temporary, skeleton, _pieces(trained, cells, codes), trained)
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


def _plain(scores: CounterfactualScores) -> dict[str, float | None]:
    """Return scores by name, null where nothing can be compared."""
    return {
        name: None if np.isnan(value) else value
        for name, value in dataclasses.asdict(scores).items()
    }


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
        values = [getattr(score, key) for score in scores.values()]
        words = ["-" if np.isnan(value) else f"{value:.3f}" for value in values]
        lines.append(f"    {title:{width}}  " + "  ".join(f"{w:>10}" for w in words))
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
    for rows in trained.row_slices(cells.n_obs, task="editing"):
        batch = batch_of_rows({RNA: cells}, trained.manifest, rows)
        yield model.edit(batch, _of_all(rows.stop - rows.start, codes))


def _of_all(n_cells: int, codes: Mapping[str, int]) -> dict[str, npt.NDArray[np.int32]]:
    return {name: np.full(n_cells, code, np.int32) for name, code in codes.items()}


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
    set_aside(obs, ("n_counts", "n_genes"))
    for name, category in target.items():
        categories = list(manifest.covariates[name].categories)
        change_category(obs, obs[name], category, categories)
    edited = anndata.AnnData(obs=obs, var=name_frame(trained.genes))
    edited.uns["cellgan"] = provenance(
        parameters,
        trained.step,
        model_type=parameters.model.type,
        counterfactual=dict(target),
        source=origin,
        scale=model.scale,
        layers="what each head adds; they sum to X",
        are_counts=False,
    )
    return edited


def _write(
    path: Path,
    skeleton: anndata.AnnData,
    pieces: Iterator[EditedCells],
    trained: TrainedModel,
) -> None:
    """Write an AnnData file whose dense matrices are filled piece by piece."""
    heads = cast(AdditiveModel, trained.model).heads()
    with h5py.File(path, "w") as file:
        write_elem(file, "/", skeleton)
        if "X" in file:  # a place for nothing
            del file["X"]
        stored = {
            name: dense_rows(file, name, skeleton.shape)
            for name in ("X", *(f"layers/{LAYER.format(head)}" for head in heads))
        }
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

    def sample(which: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
        rows = np.flatnonzero(which)
        return rows[compared_cells(len(rows), seed)]

    def population(side: anndata.AnnData, which: npt.NDArray[np.bool_]) -> Population:
        rows = sample(which)
        values = model.expression(batch_of_rows({RNA: side}, manifest, rows))
        obs = side.obs.iloc[rows]
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
    rows = sample(changed)
    batch = batch_of_rows({RNA: cells}, manifest, rows)
    edited = model.edit(batch, _of_all(len(rows), codes))
    return counterfactual_scores(
        population(processed, split == "train"),
        population(processed, split != "train"),
        population(cells, changed),
        edited.values,
        target,
        seed=seed,
    )
