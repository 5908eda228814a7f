"""Cells in the latent space of a trained model, and how they come out of it again.

The file that is written follows the conventions of scverse: latents in ``obsm``, what
is said of a cell in ``obs``, expression in ``layers``, loadings of a linear decoder in
``varm``. Tables and figures are beside it.
"""

from __future__ import annotations

import logging
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from anndata.io import write_elem

from cellgan.data.batches import CellBatch
from cellgan.data.cells import batch_of_rows, name_frame
from cellgan.data.manifest import RNA
from cellgan.errors import ConfigError
from cellgan.evaluation.figures import maps
from cellgan.evaluation.figures.canvas import save
from cellgan.evaluation.figures.latents import latent_figure, loadings_figure
from cellgan.evaluation.metrics.integration import compared_cells
from cellgan.evaluation.metrics.reconstruction import (
    PER_10000,
    AccuracySummary,
    CellAccuracy,
    ResidualSums,
    accuracy_summary,
    cell_accuracy,
    log_normalized,
    log_shares,
    most_dispersed_of_counts,
)
from cellgan.files import replacing
from cellgan.generation.allotment import check_condition
from cellgan.generation.trained_model import TrainedModel, provenance
from cellgan.models.base import GenerativeModel, ReconstructingModel
from cellgan.seeds import derive_seed
from cellgan.studies.checks import check_embedding
from cellgan.studies.kit import cells_to_study, dense_rows, writing

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

NORMALIZED, PREDICTIVE = "normalized_expression", "posterior_predictive"
LAYERS = {"normalized": NORMALIZED, "predictive": PREDICTIVE}
"""What ``--layers`` calls them -> their names in the file."""
CORRELATION, R2 = "reconstruction_correlation", "reconstruction_r2"
LOSS, ELBO = "negative_log_likelihood", "elbo"
FEWEST_MAPPED = 10
"""Cells that a map is drawn of."""
COMMON_SHARE = 0.05
"""Of the cells, in which a gene is detected whose loadings are drawn."""
MOST_COLOURS = 60
"""Categories of a column that is drawn, at most."""


class Settings(NamedTuple):
    """What is written of cells."""

    layers: tuple[str, ...] = tuple(LAYERS)
    """Of `LAYERS`."""
    n_samples: int = 0
    """Draws of the latent that expression is the mean of; 0 for its mean."""
    seed: int = 0
    condition: Mapping[str, str] = types.MappingProxyType({})
    """Category by covariate that all cells are decoded, and judged, as if they had."""


def embed_cells(
    experiment: Experiment,
    path: Path,
    settings: Settings,
    *,
    cells: anndata.AnnData | None = None,
    origin: str = "",
) -> Path:
    """Write cells with their latents, and with what a model makes of them.

    Parameters
    ----------
    experiment
        Trained; of a model that has an encoder.
    path
        An ``.h5ad`` file. Beside it are, by the same name: residuals and loadings by
        gene as ``.csv``, a map of the latents and the loadings as ``.png``.
    cells
        Counts of the model's genes, with its covariates in obs. None for the processed
        cells of the experiment.
    origin
        Where `cells` come from, in words.

    Returns
    -------
    Where the cells are.

    Raises
    ------
    ConfigError
        If the model has no encoder.
    CheckpointError
        If the experiment is not trained.
    DataError
        If the cells are not there, or the file cannot be written.
    """
    check_embedding(experiment, settings.condition)
    trained = TrainedModel.load(experiment.folder)
    started = time.perf_counter()
    frames, origin = cells_to_study(experiment, cells, origin)
    missing = set(trained.manifest.features) - set(frames)
    if missing:
        msg = (
            f"--embed: {origin} has RNA alone, but the model's encoder needs "
            f"{', '.join(sorted(missing))} too. Embed the processed cells: leave "
            "--input out."
        )
        raise ConfigError(msg)
    with writing(path) as temporary:
        collected = _write(temporary, trained, frames, settings, origin)
    log.info(
        "%s, step %d: %d cells embedded in %.1f s: %s",
        experiment.name,
        trained.step,
        frames[RNA].n_obs,
        time.perf_counter() - started,
        path,
    )
    columns = collected.columns
    if columns:
        accuracy = CellAccuracy(columns[CORRELATION], columns[R2])
        for line in describe(accuracy, frames[RNA].obs):
            log.info("%s: %s", experiment.name, line)
    _write_beside(path, trained, frames[RNA].obs, collected)
    return path


def latent_key(model_type: str) -> str:
    """Return the key of latents in ``obsm``."""
    return f"X_{model_type.lower()}"


def describe(accuracy: CellAccuracy, obs: pd.DataFrame) -> list[str]:
    """Return how cells come out, in a sentence for each split."""
    split = (
        obs["split"].astype(str).to_numpy()
        if "split" in obs
        else np.full(len(obs), "all")
    )
    sentences = []
    for name in dict.fromkeys(["train", "valid", "test", *np.unique(split)]):
        rows = split == name
        if not rows.any():
            continue
        summary: AccuracySummary = accuracy_summary(
            CellAccuracy(accuracy.correlation[rows], accuracy.r2[rows])
        )
        n_undefined = summary.n_undefined
        undefined = f", {n_undefined} without one" if n_undefined else ""
        sentences.append(
            f"{name}: reconstructed with a median correlation of "
            f"{summary.median_correlation:.3f} (r2 {summary.median_r2:.3f}, mean "
            f"{summary.mean_r2:.3f} +- {summary.r2_standard_error:.3f}) of "
            f"{summary.n_cells} cells{undefined}"
        )
    return sentences


class Collected:
    """What is told of cells, added up a piece at a time.

    Parameters
    ----------
    model
        With an encoder.
    genes
        Those that cells are compared with their reconstruction by.
    settings
        Which layers there are to be.
    """

    def __init__(
        self, model: GenerativeModel, genes: npt.NDArray[np.bool_], settings: Settings
    ) -> None:
        self._model = model
        self._genes = genes
        self._settings = settings
        self._latents: list[npt.NDArray[np.float32]] = []
        self._columns: dict[str, list[npt.NDArray[Any]]] = {}
        self._drawn: list[sp.csr_matrix] = []
        self._n_cells = 0
        self._n_detected = np.zeros(len(genes), np.int64)
        self.residuals = ResidualSums()

    def add(
        self, cells: CellBatch, counts: sp.csr_matrix, first: int
    ) -> npt.NDArray[np.float32] | None:
        """Add cells; return their normalised expression, if there is any.

        Parameters
        ----------
        cells
            Whose place among all cells begins at `first`.
        counts
            The same counts, sparse.
        """
        model, settings = self._model, self._settings
        self._n_cells += counts.shape[0]
        self._n_detected += counts.getnnz(axis=0)
        if not isinstance(model, ReconstructingModel):
            latent = cast(npt.NDArray[np.float32], model.latents(cells.features))
            self._latents.append(latent)
            return None
        seed = derive_seed(settings.seed, "embedding", first)
        made = model.reconstruct(cells, n_samples=settings.n_samples, seed=seed)
        self._latents.append(made.latent)
        self.residuals.add(counts, made.expression)
        accuracy = cell_accuracy(
            log_normalized(counts), log_shares(made.expression), self._genes
        )
        columns = {
            CORRELATION: accuracy.correlation,
            R2: accuracy.r2,
            LOSS: made.negative_log_likelihood,
            ELBO: made.elbo,
        }
        for name, values in columns.items():
            if values is not None:
                self._columns.setdefault(name, []).append(values)
        if "predictive" in settings.layers:
            drawn = model.posterior_predictive(
                cells, seed=settings.seed, first_cell=first
            )
            self._drawn += [] if drawn is None else [drawn]
        expression: npt.NDArray[np.float32] = np.float32(PER_10000) * made.expression
        return expression

    @property
    def latent(self) -> npt.NDArray[np.float32]:
        """Of all cells, ``(n_cells, n_latent)``."""
        return np.concatenate(self._latents)

    @property
    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """What is said of each cell, by name; nothing without a reconstruction."""
        return {name: np.concatenate(parts) for name, parts in self._columns.items()}

    @property
    def common_genes(self) -> npt.NDArray[np.bool_]:
        """Which genes are detected in many cells; all, if none are."""
        common: npt.NDArray[np.bool_] = self._n_detected >= COMMON_SHARE * self._n_cells
        return common if common.any() else np.ones_like(common)

    @property
    def predictive(self) -> sp.csr_matrix | None:
        """Counts as they might have come out instead."""
        return sp.vstack(self._drawn, format="csr") if self._drawn else None


def _write(
    path: Path,
    trained: TrainedModel,
    frames: Mapping[str, anndata.AnnData],
    settings: Settings,
    origin: str,
) -> Collected:
    """Write the file, dense expression a piece of cells at a time."""
    counts = sp.csr_matrix(frames[RNA].X, dtype=np.float32)
    n_cells = counts.shape[0]
    reconstructs = isinstance(trained.model, ReconstructingModel)
    all_genes = np.ones(counts.shape[1], bool)
    compared = most_dispersed_of_counts(counts) if n_cells > 1 else all_genes
    collected = Collected(trained.model, compared, settings)
    kind = trained.experiment.parameters.model.type.lower()
    var = name_frame(trained.genes)
    obs = frames[RNA].obs.copy()
    with h5py.File(path, "w") as file:
        write_elem(file, "/", anndata.AnnData(counts, obs=obs, var=var))
        dense = None
        if reconstructs and "normalized" in settings.layers:
            dense = dense_rows(file, f"layers/{NORMALIZED}", counts.shape)
        for rows, cells in _pieces(trained, frames, settings.condition):
            expression = collected.add(cells, counts[rows], rows.start)
            if dense is not None:
                dense[rows] = expression
        write_elem(file, "obs", obs.assign(**collected.columns))
        write_elem(file, "obsm", {latent_key(kind): collected.latent})
        loadings = gene_loadings(trained)
        if loadings is not None:
            write_elem(file, "varm", {f"{kind}_loadings": loadings})
        write_elem(file, "uns", {"cellgan": _provenance(trained, settings, origin)})
        if collected.predictive is not None:
            write_elem(file, f"layers/{PREDICTIVE}", collected.predictive)
    return collected


def gene_loadings(trained: TrainedModel) -> npt.NDArray[np.float32] | None:
    """Return the loadings of a linear decoder, ``(n_genes, n_latent)``, if it is."""
    model = trained.model
    return model.gene_loadings() if isinstance(model, ReconstructingModel) else None


def _pieces(
    trained: TrainedModel,
    frames: Mapping[str, anndata.AnnData],
    condition: Mapping[str, str],
) -> Iterator[tuple[slice, CellBatch]]:
    """Yield the cells as the records would give them, some at a time."""
    same = check_condition(condition, trained.manifest)
    names = trained.experiment.parameters.model.needed_columns(trained.manifest)
    for rows in trained.row_slices(frames[RNA].n_obs, task="embedding"):
        batch = batch_of_rows(frames, trained.manifest, rows, names)
        codes = {
            name: tf.fill(tf.shape(own), same[name]) if name in same else own
            for name, own in batch.covariates.items()
        }
        yield rows, batch._replace(covariates=codes)


def _provenance(
    trained: TrainedModel, settings: Settings, origin: str
) -> dict[str, Any]:
    parameters = trained.experiment.parameters
    return provenance(
        parameters,
        trained.step,
        model_type=parameters.model.type,
        seed=settings.seed,
        n_samples=settings.n_samples,
        decoded_as=dict(settings.condition),
        source=origin,
        scale=f"X: counts; {NORMALIZED}: expected counts per 10,000, no log; "
        f"{PREDICTIVE}: counts drawn anew",
        are_counts=True,
    )


def _write_beside(
    path: Path, trained: TrainedModel, obs: pd.DataFrame, collected: Collected
) -> None:
    """Write tables and figures beside the cells."""
    kind, genes = trained.experiment.parameters.model.type, list(trained.genes)
    title = f"{trained.experiment.name}, step {trained.step}"
    written = []

    def beside(ending: str) -> Path:
        written.append(path.with_name(f"{path.stem}_{ending}"))
        return written[-1]

    if collected.columns:
        table = collected.residuals.table(genes)
        with replacing(beside("residuals.csv")) as temporary:
            table.to_csv(temporary)
    loadings = gene_loadings(trained)
    if loadings is not None:
        factors = [f"Z_{factor}" for factor in range(loadings.shape[1])]
        index = pd.Index(genes, name="gene")
        with replacing(beside("loadings.csv")) as temporary:
            pd.DataFrame(loadings, index, factors).to_csv(temporary)
        # Normalisation gives rare genes loadings as large, of which little is known
        common = collected.common_genes
        figure = loadings_figure(
            loadings[common],
            [gene for gene, is_common in zip(genes, common, strict=True) if is_common],
            title=f"{title}: largest loadings of the {common.sum():,} genes that "
            f"{COMMON_SHARE:.0%} of the cells have",
        )
        save(figure, beside("loadings.png"))
    rows = compared_cells(len(obs), seed=0)
    if len(rows) > FEWEST_MAPPED:
        shown = {
            name: obs[name].astype(str).to_numpy()[rows]
            for name in trained.manifest.covariates
            if name in obs and obs[name].nunique() <= MOST_COLOURS
        }
        points = maps.embed(
            collected.latent[rows], method="tsne", seed=0, log_components=False
        )
        figure = latent_figure(
            points,
            shown or {"cells": np.full(len(rows), "all")},
            name=maps.METHOD_TITLES["tsne"],
            title=f"{title}: latents of {kind}",
        )
        save(figure, beside("latents.png"))
    for file in written:
        log.info("%s", file)
