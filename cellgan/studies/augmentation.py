"""Whether adding generated cells of a rare label helps to recognise it.

The experiment of the scGAN paper as one command. A label's training cells are cut down
to a fraction, the model is trained on what is left, and random forests are trained on
the cut data, on the cut data with its cells of the label repeated, on the cut data
with generated cells added, and on all data. Each is scored by the F1 of the label on
held-out cells. Every cut is an experiment folder of its own, and a finished one is not
run again.

References
----------
Marouf et al. (2020), Realistic in silico generation and augmentation of single-cell
RNA-seq data using generative adversarial networks, figure 3.
https://doi.org/10.1038/s41467-019-14018-z
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score

from cellgan.config.reading import as_json
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import DataError
from cellgan.evaluation.comparison.sides import cell_labels
from cellgan.evaluation.comparison.space import (
    N_COMPONENTS,
    Labels,
    fit_space,
    log_expression,
)
from cellgan.evaluation.figures.canvas import save
from cellgan.experiment import Experiment
from cellgan.files import write_json
from cellgan.generation.files import read_processed
from cellgan.seeds import derive_seed
from cellgan.studies.checks import check_augmentation
from cellgan.studies.figures import MeanInterval, strategy_figure
from cellgan.studies.kit import write_table

log = logging.getLogger(__name__)

STRATEGIES = ("reduced", "upsampled", "augmented", "full")
FEWEST_KEPT = 3
"""However small the fraction, this many training cells of the label are kept."""
CONFIDENCE = 0.95
N_TREES = 100

WriteDataset = Callable[[Experiment, anndata.AnnData], object]
Train = Callable[[Experiment], object]
Generate = Callable[[Experiment, Mapping[str, int], int], anndata.AnnData]
Rows = npt.NDArray[np.intp]


class Cells(NamedTuple):
    """Cells as the random forests see them."""

    log_values: sp.csr_array
    """log1p of expression at one library size, ``(n_cells, n_genes)``."""
    labels: Labels

    def take(self, rows: Rows) -> Cells:
        """Return the cells of these rows."""
        return Cells(self.log_values[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Cut:
    """The training cells of a label, divided into those that stay and the others."""

    kept: Rows
    """Rows of the label's training cells that stay."""
    removed: Rows


@dataclasses.dataclass(frozen=True)
class DividedCells:
    """The cells of the whole experiment, as the random forests see them."""

    cells: Cells
    training: Rows
    held_out: Rows
    split: str
    """The split of `held_out`."""
    label: str
    """The label to be recognised."""

    def with_label(self, rows: Rows) -> Rows:
        """Return those of the rows whose label is the one to be recognised."""
        return rows[self.cells.labels[rows] == self.label]

    def cut(self, fraction: float, seed: int) -> Cut:
        """Keep a fraction of the label's training cells.

        Cuts of one seed are nested: a smaller fraction keeps some of the cells that a
        larger one keeps.
        """
        rows = self.with_label(self.training)
        n_kept = max(FEWEST_KEPT, round(fraction * len(rows)))
        n_kept = min(n_kept, len(rows) - 1)
        rng = np.random.default_rng(derive_seed(seed, "cut", self.label))
        order = rng.permutation(rows)
        return Cut(np.sort(order[:n_kept]), np.sort(order[n_kept:]))


@dataclasses.dataclass(frozen=True)
class Run:
    """One cut, and the experiment that is trained on what it leaves."""

    derived: Experiment
    label: str
    fraction: float
    seed: int
    cut: Cut

    @property
    def numbers(self) -> dict[str, Any]:
        """What tells this run from the others."""
        return {
            "fraction": self.fraction,
            "seed": self.seed,
            "n_kept": len(self.cut.kept),
            "n_added": len(self.cut.removed),
        }

    def stored_scores(self) -> dict[str, float] | None:
        """Return the scores, or None if the run is another one or not finished."""
        if not self._file.exists():
            return None
        stored = json.loads(self._file.read_text(encoding="utf-8"))
        scores: dict[str, float] = stored.pop("f1")
        return scores if stored == self._record else None

    def store(self, scores: Mapping[str, float]) -> None:
        """Finish the run."""
        write_json(self._file, {**self._record, "f1": scores})

    @property
    def _file(self) -> Path:
        return self.derived.evaluation_folder / "augmentation.json"

    @property
    def _record(self) -> dict[str, Any]:
        """All that the scores depend on."""
        parameters = as_json(self.derived.parameters)
        blocks = {key: parameters[key] for key in ("input_ds", "model", "training")}
        return {"label": self.label, **self.numbers, **blocks}


def measure_augmentation(
    experiment: Experiment,
    label: str,
    fractions: Sequence[float],
    seeds: Sequence[int],
    *,
    write_dataset: WriteDataset,
    train: Train,
    generate: Generate,
) -> dict[str, Any]:
    """Measure whether generated cells help to recognise a label with few cells.

    For each fraction and seed the experiment
    ``augmentation/<label>_fraction_<fraction>_seed_<seed>`` is made and trained, with
    ``training.seed`` raised by the seed. As many generated (or repeated) cells are
    added as were taken away.

    Parameters
    ----------
    experiment
        A processed experiment of a conditional model; it need not be trained.
    label
        The label to cut down, a category of the manifest's label.
    fractions
        Shares of the label's training cells to keep, each between 0 and 1.
    seeds
        Repeats: each has its own cut, weights, generated cells and forests.
    write_dataset
        ``write_dataset(experiment, cells)`` makes the folder of a processed
        experiment, complete or not at all: ``processed.h5ad`` with these cells,
        ``TF_records/`` and ``manifest.json`` of them, and ``parameters.json`` with the
        ``input_ds`` block. ``cells`` has the form of a ``processed.h5ad``: counts, and
        the label and ``"split"`` in ``obs``.
    train
        ``train(experiment)`` trains to the end, or resumes, or returns at once when
        training has ended; it refuses parameters that differ from earlier ones.
    generate
        ``generate(experiment, numbers, seed)`` returns cells of a trained experiment,
        ``numbers`` of each label named and none of the others, named by gene.

    Returns
    -------
    What ``augmentation/<label>.json`` holds: ``"runs"``, one per fraction and seed with
    the F1 of every strategy, and ``"summary"``, their means and confidence intervals
    over seeds. The runs are also in ``<label>.csv``, the summary in ``<label>.png``.

    Raises
    ------
    ConfigError
        If the label is unknown, a fraction is not between 0 and 1, there is no seed,
        or the model cannot be asked for a label.
    DataError
        If the experiment is not processed, or the label has no held-out cells or too
        few training cells.
    """
    manifest = experiment.manifest()
    check_augmentation(experiment, label, fractions, len(seeds))
    processed = read_processed(experiment)[RNA]
    real = _divide(experiment, processed, manifest, label)
    name = _file_name(label, manifest.label_vocabulary.categories)
    runs = [
        _plan(experiment, name, real, fraction, seed)
        for fraction in dict.fromkeys(fractions)
        for seed in dict.fromkeys(seeds)
    ]
    rows = []
    for number, run in enumerate(runs, start=1):
        n_kept, n_removed = len(run.cut.kept), len(run.cut.removed)
        log.info(
            'augmentation of "%s", run %d of %d: %s, %d of %d cells kept',
            label,
            number,
            len(runs),
            run.derived.name,
            n_kept,
            n_kept + n_removed,
        )
        scores = run.stored_scores()
        if scores is None:
            if not run.derived.is_processed:
                write_dataset(run.derived, _without(processed, run.cut.removed))
            train(run.derived)
            seed = derive_seed(run.seed, "augmentation")
            made = generate(run.derived, {label: n_removed}, seed)
            scores = _scores(real, run, _expression(made, processed, manifest))
            run.store(scores)
        rows.append({**run.numbers, **scores})
    return _write_report(experiment, name, real, rows)


def _divide(
    experiment: Experiment,
    processed: anndata.AnnData,
    manifest: DatasetManifest,
    label: str,
) -> DividedCells:
    """Find the cells to train and to test on; refuse when there are too few."""
    labels = cell_labels(processed.obs, manifest.label)
    splits = np.asarray(processed.obs["split"].astype(str))
    held_out_splits = [
        split
        for split in ("test", "valid")
        if np.any((splits == split) & (labels == label))
    ]
    if not held_out_splits:
        msg = (
            f'{experiment.name}: no held-out cell is "{label}", so nothing can be '
            f"tested on.\n    Raise input_ds.split.test_cells (with balanced_split) "
            f"and process again, under another name or with --overwrite."
        )
        raise DataError(msg)
    n_training = int(((splits == "train") & (labels == label)).sum())
    if n_training <= FEWEST_KEPT:
        msg = (
            f'{experiment.name}: {n_training} training cells are "{label}", more than '
            f"{FEWEST_KEPT} are needed to take some away. Choose a larger label."
        )
        raise DataError(msg)
    size = manifest.target_library_size
    return DividedCells(
        cells=Cells(log_expression(processed.X, size), labels),
        training=np.flatnonzero(splits == "train"),
        held_out=np.flatnonzero(splits == held_out_splits[0]),
        split=held_out_splits[0],
        label=label,
    )


def _file_name(label: str, categories: Sequence[str]) -> str:
    """Return the label as a part of file names, different for every category."""
    names = [re.sub(r"[^\w.+-]+", "_", category) for category in categories]
    code = list(categories).index(label)
    is_shared = names.count(names[code]) > 1
    return f"{names[code]}_{code}" if is_shared else names[code]


def _plan(
    experiment: Experiment, name: str, real: DividedCells, fraction: float, seed: int
) -> Run:
    """Return the run of a fraction and seed.

    Its experiment starts from nothing: a checkpoint of a model that has seen the
    removed cells would give them back.
    """
    training = dataclasses.replace(
        experiment.parameters.training,
        seed=experiment.parameters.training.seed + seed,
        checkpoint=None,
    )
    parameters = dataclasses.replace(experiment.parameters, training=training)
    name = f"{name}_fraction_{fraction:g}_seed_{seed}"
    folder = experiment.augmentation_folder / name
    cut = real.cut(fraction, seed)
    return Run(Experiment(folder, parameters), real.label, fraction, seed, cut)


def _without(processed: anndata.AnnData, removed: Rows) -> anndata.AnnData:
    """Return the processed cells but for some; no category of a column is lost."""
    rows = np.setdiff1d(np.arange(processed.n_obs), removed)
    rest = processed[rows].copy()
    for column in processed.obs.select_dtypes("category"):
        categories = processed.obs[column].cat.categories
        rest.obs[column] = rest.obs[column].cat.set_categories(categories)
    return rest


def _expression(
    made: anndata.AnnData, processed: anndata.AnnData, manifest: DatasetManifest
) -> sp.csr_array:
    """Return generated cells on the scale of the real ones, genes in their order."""
    columns = made.var_names.get_indexer(processed.var_names)
    values = sp.csr_array(made.X)[:, columns]
    return log_expression(values, manifest.target_library_size)


def _scores(real: DividedCells, run: Run, generated: sp.csr_array) -> dict[str, float]:
    """Return the held-out F1 of the label for every strategy."""
    cut, seed = run.cut, run.seed
    rng = np.random.default_rng(derive_seed(seed, "upsample", len(cut.kept)))
    repeated = rng.choice(cut.kept, size=len(cut.removed))
    reduced = np.setdiff1d(real.training, cut.removed)
    cells = real.cells
    training_sets = {
        "reduced": cells.take(reduced),
        "upsampled": cells.take(np.concatenate([reduced, repeated])),
        "augmented": Cells(
            sp.vstack([cells.log_values[reduced], generated], format="csr"),
            np.concatenate(
                [cells.labels[reduced], np.full(generated.shape[0], real.label)]
            ),
        ),
        "full": cells.take(real.training),
    }
    held_out = cells.take(real.held_out)
    forest_seed = derive_seed(seed, "forest")
    return {
        strategy: held_out_f1(
            training_sets[strategy], held_out, label=real.label, seed=forest_seed
        )
        for strategy in STRATEGIES
    }


def held_out_f1(training: Cells, held_out: Cells, *, label: str, seed: int) -> float:
    """Return the F1 of one label against all others on held-out cells.

    Variable genes, principal components and the random forest are all learned from
    the training cells given, whether real, repeated or generated.

    Parameters
    ----------
    training, held_out
        With values at the same library size.
    label
        The label whose cells are to be recognised.
    seed
        Seed of decomposition and forest.
    """
    space = fit_space(training.log_values, seed=seed, n_components=N_COMPONENTS)
    forest = RandomForestClassifier(N_TREES, random_state=seed, n_jobs=-1)
    forest.fit(space.components(training.log_values), training.labels == label)
    predicted = forest.predict(space.components(held_out.log_values))
    return float(f1_score(held_out.labels == label, predicted, zero_division=0.0))


def mean_and_interval(values: Sequence[float]) -> MeanInterval:
    """Return the mean and Student's 95 % confidence interval, cut to 0...1.

    One value has no interval: its ends are nan.
    """
    mean = float(np.mean(values))
    if len(values) == 1:
        return MeanInterval(mean, float("nan"), float("nan"))
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)
    half = float(quantile * np.std(values, ddof=1) / np.sqrt(len(values)))
    return MeanInterval(mean, max(0.0, mean - half), min(1.0, mean + half))


def _write_report(
    experiment: Experiment, name: str, real: DividedCells, runs: list[dict[str, Any]]
) -> dict[str, Any]:
    fractions = list(dict.fromkeys(run["fraction"] for run in runs))
    scores = {
        strategy: [
            mean_and_interval([r[strategy] for r in runs if r["fraction"] == fraction])
            for fraction in fractions
        ]
        for strategy in STRATEGIES
    }
    document = {
        "experiment": experiment.name,
        "label": real.label,
        "held_out_split": real.split,
        "n_held_out": len(real.held_out),
        "n_held_out_of_label": len(real.with_label(real.held_out)),
        "n_training_of_label": len(real.with_label(real.training)),
        "confidence": CONFIDENCE,
        "runs": runs,
        "summary": [
            {
                "fraction": fraction,
                "strategy": strategy,
                "mean": estimate.mean,
                "low": None if np.isnan(estimate.low) else estimate.low,
                "high": None if np.isnan(estimate.high) else estimate.high,
            }
            for strategy, estimates in scores.items()
            for fraction, estimate in zip(fractions, estimates, strict=True)
        ],
    }
    folder = experiment.augmentation_folder
    title = f'{experiment.name}: recognising "{real.label}"'
    save(strategy_figure(fractions, scores, title=title), folder / f"{name}.png")
    write_table(folder / f"{name}.csv", runs)
    write_json(folder / f"{name}.json", document)
    log.info("%s", _table(real, fractions, scores))
    return document


def _table(
    real: DividedCells,
    fractions: Sequence[float],
    scores: Mapping[str, Sequence[MeanInterval]],
) -> str:
    lines = [
        f'held-out F1 of "{real.label}", mean over seeds (95 % confidence interval)',
        "    " + "".join(f"{word:>22}" for word in ("fraction kept", *STRATEGIES)),
    ]
    for index, fraction in enumerate(fractions):
        cells = [f"{fraction:g}"]
        for strategy in STRATEGIES:
            mean, low, high = scores[strategy][index]
            interval = "" if np.isnan(low) else f" ({low:.2f} to {high:.2f})"
            cells.append(f"{mean:.3f}{interval}")
        lines.append("    " + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)
