"""Every model of a composition study, judged on every evaluation set.

Each model is that of its own mixture and seed. Cells are reconstructed in pieces, and
the same is asked of what needs no model: the mean of the training cells, and as many
principal components as the model has latent dimensions.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import anndata
import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
from sklearn.decomposition import PCA

from cellgan.composition import report as composition_report
from cellgan.composition import statistics as composition
from cellgan.composition.agreement import latent_rows, loading_rows
from cellgan.composition.plan import missing_genes
from cellgan.composition.statistics import (
    COMPONENTS,
    MEAN_PROFILE,
    TRAINED,
    Statistic,
    resampled_medians,
    summarise,
)
from cellgan.composition.study import Study
from cellgan.config.composition import METRICS
from cellgan.data.batches import CellBatch, cells_in_order
from cellgan.data.cells import cell_batch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import CheckpointError, ConfigError
from cellgan.evaluation.comparison.pairs import Frame, make_pair, make_side
from cellgan.evaluation.comparison.space import fit_space, log_expression
from cellgan.evaluation.metrics.distribution import distribution_metrics
from cellgan.evaluation.metrics.reconstruction import (
    ResidualSums,
    cell_accuracy,
    log_normalized,
    log_shares,
    most_dispersed_genes,
)
from cellgan.evaluation.suite import median_bandwidths
from cellgan.generation.pieces import piece_size, row_slices
from cellgan.generation.trained_model import TrainedModel
from cellgan.models.base import ReconstructingModel, Reconstruction
from cellgan.seeds import derive_seed

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Key = tuple[str, int]
"""Mixture and seed."""

GENE_CHOICE_CELLS = 5000
"""Cells of an evaluation set that its variable genes are chosen by, at most."""
SIMPLE_CELLS = 3000
"""Training cells that mean and components are learned from, at most."""
DISTANCES = ("mmd_squared", "energy_distance", "sliced_wasserstein", "frechet_distance")
DISTANCE_REPLICATES = 200
OTHERS = "the most frequent value of training cells"


class Evaluated(NamedTuple):
    """An evaluation set, open on disk or in memory, and what it is compared by."""

    name: str
    cells: anndata.AnnData
    genes: npt.NDArray[np.bool_]
    groups: npt.NDArray[Any]
    """Value of ``group_by`` of every cell; ``""`` without one."""


@dataclasses.dataclass
class Scored:
    """What has been found so far."""

    cells: list[pd.DataFrame]
    latents: dict[str, dict[Key, Floats]]
    loadings: dict[Key, Floats]
    residuals: list[pd.DataFrame]
    distances: dict[tuple[str, str], dict[Key, Floats]]
    """(Evaluation, metric) -> (mixture, seed) -> draws."""
    notes: dict[str, None]
    """In order, each once."""


def evaluate_composition(study: Study) -> None:
    """Write tables, figures and the report of a study.

    Raises
    ------
    CheckpointError
        If a model is not trained.
    ConfigError, DataError
        If the study is not processed, or with other parameters.
    """
    document = study.manifest()
    experiments = study.experiments(document)
    missing = [name for name, one in experiments.items() if not one.is_trained]
    if missing:
        msg = (
            f"{study.name}: {len(missing)} of {len(experiments)} models are not "
            f"trained ({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''})."
            " Run --train first."
        )
        raise CheckpointError(msg)
    started = time.perf_counter()
    evaluations = [_open_evaluation(study, name) for name in document["evaluations"]]
    scored = Scored([], {e.name: {} for e in evaluations}, {}, [], {}, {})
    for index, (name, experiment) in enumerate(experiments.items(), 1):
        corpus = document["corpora"][name]
        key = corpus["mixture"], corpus["seed"]
        trained = TrainedModel.load(experiment.folder)
        if isinstance(trained.model, ReconstructingModel):
            _score_reconstructions(study, trained, experiment, key, evaluations, scored)
        else:
            _score_generated(trained, key, evaluations, scored)
        log.info(
            "%s: %d of %d models evaluated, %s; %.0f s so far",
            study.name,
            index,
            len(experiments),
            name,
            time.perf_counter() - started,
        )
        del trained
        keras.utils.clear_session()
    for name, evaluation in document["evaluations"].items():
        if evaluation["genes"]["missing"]:
            scored.notes[f"{name}: {missing_genes(document, name)}."] = None
    tables = _tables(study, scored, evaluations)
    composition_report.write_study_report(
        study.report_folder, study.name, study.composition, document, tables
    )
    for line in tables.verdict_lines():
        log.info("    %s", line)
    log.info("%s: %s", study.name, study.report_folder / composition_report.HTML)


def _open_evaluation(study: Study, name: str) -> Evaluated:
    cells = anndata.read_h5ad(study.evaluation_file(name))
    cells.X = sp.csr_matrix(cells.X)
    asked = study.composition.evaluations[name]
    if asked.genes == "all":
        genes = np.ones(cells.n_vars, bool)
    elif isinstance(asked.genes, tuple):
        genes = cells.var_names.isin(asked.genes)
    else:
        step = -(-cells.n_obs // GENE_CHOICE_CELLS)
        genes = most_dispersed_genes(log_normalized(cells.X[::step]), asked.genes)
    if not genes.any():
        msg = (
            f"evaluations.{name}.genes: the study has none of them "
            f'("{asked.genes[0]}", ...). Name genes as the sources do.'
            if isinstance(asked.genes, tuple)
            else f"evaluations.{name}: no gene varies among its cells."
        )
        raise ConfigError(msg)
    groups = np.full(cells.n_obs, "", dtype=object)
    if asked.group_by is not None:
        groups = cells.obs[asked.group_by].astype(str).to_numpy(object)
    return Evaluated(name, cells, np.asarray(genes, bool), groups)


def as_known_batch(
    cells: anndata.AnnData, manifest: DatasetManifest, rows: slice
) -> tuple[CellBatch, dict[str, int]]:
    """Return cells for a model, and how many have a value that it does not know.

    Of a covariate that is missing or unknown, the most frequent value of the training
    cells stands in: a model must be given one.
    """
    n_cells = rows.stop - rows.start
    codes, unknown = {}, {}
    for name, vocabulary in manifest.covariates.items():
        common = int(np.argmax(manifest.cells_per_category["train"][name]))
        known = {value: code for code, value in enumerate(vocabulary.categories)}
        values: list[str | None] = [None] * n_cells
        if name in cells.obs:
            values = cells.obs[name].iloc[rows].astype(str).tolist()
        own = [-1 if value is None else known.get(value, -1) for value in values]
        unknown[name] = own.count(-1)
        codes[name] = [common if code < 0 else code for code in own]
    return cell_batch({RNA: cells.X[rows]}, codes), unknown


def _score_reconstructions(
    study: Study,
    trained: TrainedModel,
    experiment: Experiment,
    key: Key,
    evaluations: list[Evaluated],
    scored: Scored,
) -> None:
    """Encode and decode the cells of every evaluation set by one model."""
    model = cast(ReconstructingModel, trained.model)
    loadings = model.gene_loadings()
    if loadings is not None:
        scored.loadings[key] = loadings.astype(np.float64)
    is_first = key == (study.composition.baseline, study.composition.seeds[0])
    n_latent = 0
    simple = None
    for evaluation in evaluations:
        cells = evaluation.cells
        residuals = ResidualSums() if is_first else None
        made: dict[str, list[Floats]] = {}
        latents, unknown = [], Counter[str]()
        size = max(1, piece_size(cells.n_vars) // 2)
        for rows in row_slices(cells.n_obs, size):
            batch, not_known = as_known_batch(cells, trained.manifest, rows)
            unknown.update(not_known)
            result = model.reconstruct(
                batch,
                n_samples=study.composition.n_samples,
                seed=derive_seed(key[1], "evaluation", evaluation.name),
            )
            if simple is None:
                n_latent = result.latent.shape[1]
                simple = learn_simple(experiment, trained.manifest, n_latent)
            accuracies = _accuracies(cells.X[rows], result, simple, evaluation.genes)
            for name, values in accuracies.items():
                made.setdefault(name, []).append(values)
            latents.append(np.asarray(result.latent, np.float64))
            if residuals is not None:
                residuals.add(cells.X[rows], result.expression)
        scored.latents[evaluation.name][key] = np.concatenate(latents)
        scored.cells.append(_cell_table(evaluation, key, made))
        if residuals is not None:
            scored.residuals.append(_residual_table(residuals, evaluation, key))
        for name in experiment.parameters.model.needed_columns(trained.manifest):
            if unknown[name]:
                scored.notes[
                    f'{evaluation.name}: {unknown[name]:,} cells have no "{name}" that '
                    f"the model of {key[0]} knows; {OTHERS} stands in."
                ] = None


def _residual_table(
    residuals: ResidualSums, evaluation: Evaluated, key: Key
) -> pd.DataFrame:
    """Return what one model leaves over of an evaluation set, by gene."""
    table = residuals.table(evaluation.cells.var_names).reset_index()
    own = {"evaluation": evaluation.name, "mixture": key[0], "seed": key[1]}
    return pd.concat([pd.DataFrame(own, index=table.index), table], axis=1)


def _accuracies(
    counts: sp.csr_matrix,
    result: Reconstruction,
    simple: SimpleModels,
    genes: npt.NDArray[np.bool_],
) -> dict[str, Floats]:
    """Return the metrics of some cells, by way of reconstruction and metric."""
    observed = log_normalized(counts)
    nothing = np.full(len(observed), np.nan)
    own = {"nll": result.negative_log_likelihood, "elbo": result.elbo}
    found: dict[str, Floats] = {}
    for way, expression in (
        (TRAINED, log_shares(result.expression)),
        (MEAN_PROFILE, np.broadcast_to(simple.mean, observed.shape)),
        (COMPONENTS, simple.reconstruct(observed)),
    ):
        chosen = cell_accuracy(observed, expression, genes)
        found[f"{way}/correlation"], found[f"{way}/r2"] = chosen
        found[f"{way}/r2_all_genes"] = cell_accuracy(observed, expression).r2
        for metric, values in own.items():
            is_there = way == TRAINED and values is not None
            found[f"{way}/{metric}"] = (
                np.asarray(values, np.float64) if is_there else nothing
            )
    return found


def _cell_table(
    evaluation: Evaluated, key: Key, made: Mapping[str, list[Floats]]
) -> pd.DataFrame:
    """Return a row per cell and way of reconstruction."""
    frames = []
    for way in (TRAINED, MEAN_PROFILE, COMPONENTS):
        frame = pd.DataFrame(
            {
                "mixture": key[0],
                "seed": key[1],
                "evaluation": evaluation.name,
                "model": way,
                "cell": evaluation.cells.obs_names,
                "group": evaluation.groups,
            }
        )
        for metric in METRICS:
            frame[metric] = np.concatenate(made[f"{way}/{metric}"])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


class SimpleModels(NamedTuple):
    """What is learned from training cells without a model."""

    mean: Floats
    """Mean of log-normalised expression, ``(1, n_genes)``."""
    components: Floats
    """Principal axes, ``(n_latent, n_genes)``."""

    def reconstruct(self, observed: Floats) -> Floats:
        """Project cells on the principal axes and back."""
        centred = observed - self.mean
        found: Floats = centred @ self.components.T @ self.components + self.mean
        return found


def learn_simple(
    experiment: Experiment, manifest: DatasetManifest, n_latent: int
) -> SimpleModels:
    """Learn mean and components from training cells, evenly spaced among all."""
    step = -(-manifest.split_sizes["train"] // SIMPLE_CELLS)
    taken, first = [], 0
    folder = experiment.records_folder
    for batch in cells_in_order(folder, manifest, "train", batch_size=1024):
        values = batch.features[RNA].numpy()
        taken.append(sp.csr_matrix(values[-first % step :: step]))
        first += len(values)
    expression = log_normalized(sp.vstack(taken, format="csr")).astype(np.float32)
    n_latent = min(n_latent, *expression.shape)
    pca = PCA(n_latent, svd_solver="randomized", random_state=0).fit(expression)
    return SimpleModels(
        pca.mean_.astype(np.float64)[None, :], pca.components_.astype(np.float64)
    )


def _score_generated(
    trained: TrainedModel, key: Key, evaluations: list[Evaluated], scored: Scored
) -> None:
    """Compare as many generated cells with each half of an evaluation set."""
    ratios = trained.manifest.label_ratios
    for evaluation in evaluations:
        cells = evaluation.cells
        held_out = np.arange(cells.n_obs) % 2 == 1
        n_wanted = int(held_out.sum())
        numbers = np.floor(ratios * n_wanted).astype(int)
        numbers[np.argmax(ratios)] += n_wanted - numbers.sum()
        asked = numbers.tolist() if trained.labels else [n_wanted]
        made = trained.generate(asked, seed=derive_seed(key[1], evaluation.name))
        frame, real = _frame_of(cells, held_out)
        labels = np.full(made.n_obs, "", dtype=np.str_)
        other = make_side(made.X, labels, frame.space)
        pair = make_pair(real, other, frame, DISTANCE_REPLICATES)
        found = distribution_metrics(pair)
        for metric in DISTANCES:
            scored.distances.setdefault((evaluation.name, metric), {})[key] = found[
                metric
            ]


def _frame_of(
    cells: anndata.AnnData, held_out: npt.NDArray[np.bool_]
) -> tuple[Frame, Any]:
    """Learn the space of comparison from one half of some cells; the other is judged.

    It depends on these cells alone, so distances of all models are comparable.
    """
    logged = log_expression(cells.X[~held_out])
    space = fit_space(logged, seed=derive_seed(0, "space"))
    sides = [
        make_side(cells.X[which], np.full(int(which.sum()), "", dtype=np.str_), space)
        for which in (~held_out, held_out)
    ]
    frame = Frame(
        training=sides[0],
        space=space,
        gene_names=tuple(cells.var_names),
        bandwidths=median_bandwidths(sides[1].components),
        are_counts=True,
        seed=0,
    )
    return frame, sides[1]


def _tables(
    study: Study, scored: Scored, evaluations: list[Evaluated]
) -> composition_report.Tables:
    asked = study.composition
    mixtures, seeds = list(asked.mixtures), list(asked.seeds)
    cells = pd.concat(scored.cells, ignore_index=True) if scored.cells else None
    rows: list[dict[str, Any]] = []
    if cells is not None:
        for keys, values, n_replicates in _values(asked, cells, evaluations):
            statistic = resampled_medians(
                values, n_replicates, derive_seed(0, "bootstrap", keys["evaluation"])
            )
            rows += _rows(study, keys, statistic)
    for (name, metric), by_key in scored.distances.items():
        draws = np.array([[by_key[m, s] for s in seeds] for m in mixtures])
        n_cells = next(e.cells.n_obs for e in evaluations if e.name == name) // 2
        keys = {"evaluation": name, "metric": metric, "model": TRAINED, "group": ""}
        rows += _rows(study, keys, Statistic(draws, n_cells, 0))
    summary = pd.DataFrame(rows)
    order = [*composition.KEYS, *(c for c in summary if c not in composition.KEYS)]
    return composition_report.Tables(
        summary=summary[order],
        cells=cells,
        latents=pd.DataFrame(
            [
                row
                for name, by_key in scored.latents.items()
                for row in latent_rows(by_key, name)
            ]
        ),
        loadings=pd.DataFrame(list(loading_rows(scored.loadings))),
        residuals=pd.concat(scored.residuals) if scored.residuals else None,
        metric=_main_metric(study, summary),
        baseline=asked.baseline,
        size_control=asked.size_control,
        notes=tuple(scored.notes),
    )


def _rows(
    study: Study, keys: Mapping[str, str], statistic: Statistic
) -> list[dict[str, Any]]:
    asked = study.composition
    seed = derive_seed(0, "bootstrap seeds")
    found = summarise(
        statistic, list(asked.mixtures), asked.baseline, asked.size_control, seed
    )
    return [{**keys, **row} for row in found]


def _values(
    asked: Any, cells: pd.DataFrame, evaluations: list[Evaluated]
) -> Iterator[tuple[dict[str, str], Floats, int]]:
    """Yield values by mixture, seed and cell, of all cells and of each group."""
    mixtures, seeds = list(asked.mixtures), list(asked.seeds)
    for (name, way), scores in cells.groupby(["evaluation", "model"], sort=False):
        groups = next(e.groups for e in evaluations if e.name == name)
        n_cells = len(groups)
        for metric in asked.metrics:
            table = np.full((len(mixtures), len(seeds), n_cells), np.nan)
            for (mixture, seed), own in scores.groupby(["mixture", "seed"], sort=False):
                table[mixtures.index(mixture), seeds.index(seed)] = own[metric]
            if not np.isfinite(table).any():
                continue
            keys = {"evaluation": name, "metric": metric, "model": way, "group": ""}
            yield keys, table, asked.replicates
            if way != TRAINED:
                continue
            for group in sorted(set(groups) - {""}):
                mine = groups == group
                if mine.sum() >= asked.min_cells:
                    yield {**keys, "group": group}, table[:, :, mine], asked.replicates


def _main_metric(study: Study, summary: pd.DataFrame) -> str:
    """Return the first metric that was asked for and is there."""
    there = list(dict.fromkeys(summary["metric"]))
    asked = [metric for metric in study.composition.metrics if metric in there]
    return asked[0] if asked else str(there[0])
