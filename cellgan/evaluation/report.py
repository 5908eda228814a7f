"""One experiment's generated cells against its held-out real cells: numbers, figures.

Every number is given twice: for generated cells, and for as many real training cells
in their place. The second says what a perfect generator would reach.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import numpy as np

from cellgan import __version__
from cellgan.evaluation import metrics, plots
from cellgan.evaluation.cells import Cells, Comparison, read_comparison
from cellgan.evaluation.metrics import Space
from cellgan.experiment import Experiment, write_json
from cellgan.seeds import derive_seed

log = logging.getLogger(__name__)

MOST_MAPPED_CELLS = 2000
"""At most this many cells of each side are drawn on the map."""
N_CORRELATED_GENES = 100
FEW_CELLS = 50
"""Fewer compared cells than this earn a word of caution."""

DESCRIPTIONS = {
    "mmd_squared": "squared maximum mean discrepancy on the components, unbiased; "
    "kernel: mean over bandwidths s of exp(-distance**2 / (2 s**2)); 0 is best",
    "classifier_auc": "5-fold AUC of a random forest that tells real from generated "
    "cells by the variable genes; 0.5 is best",
    "classifier_auc_components": "the same by the components; 0.5 is best",
    "label_agreement": "share of cells whose label a random forest trained on real "
    "training cells (components) confirms; beside it, that of held-out cells",
    "mean_expression_correlation": "Pearson over genes of mean log expression",
    "detection_rate_correlation": "Pearson over genes of the share of cells with it",
    "correlation_of_correlations": "Pearson between the correlation matrices of the "
    "most variable genes",
    "zero_fraction": "share of zeros; best when equal to that of real cells",
}


def evaluate(
    experiment: Experiment, generated: Path | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """Compare generated with held-out real cells; write the report and its figures.

    Held-out cells are those of the test split, or of the valid split when that is
    empty. Of each label the same number of real and generated cells is drawn: what
    numbers were asked of the generator has no effect.

    Parameters
    ----------
    experiment
        A processed experiment; its model is not needed.
    generated
        ``.h5ad`` file of generated cells, the experiment's own by default. Counts or
        expression without logarithm; genes are matched by name.
    seed
        Seed of everything drawn: cells, folds, forests, maps.

    Returns
    -------
    What ``evaluation/report.json`` holds: under ``"metrics"``, for each metric its
    ``"value"`` and its ``"ceiling"``, the value of real training cells; null where
    undefined (a constant side).

    Raises
    ------
    DataError
        If there are no generated or no held-out cells, or they cannot be compared.
    """
    compared = read_comparison(
        experiment, generated or experiment.generated_file, seed=seed
    )
    space = metrics.fit_space(compared.training.log_values, seed=seed)
    bandwidths = metrics.median_bandwidths(
        space.components(compared.held_out.log_values)
    )
    values, ceilings = (
        _numbers(compared.held_out, other, space, bandwidths, seed)
        for other in (compared.generated, compared.control)
    )
    results: dict[str, dict[str, Any]] = {
        name: {"value": values[name], "ceiling": ceilings[name]} for name in values
    }
    results["mmd_squared"]["bandwidths"] = bandwidths
    results["correlation_of_correlations"]["n_genes"] = _n_correlated(space)
    if compared.label is not None:
        results["label_agreement"] = _label_agreement(compared, space, seed)
    for name, result in results.items():
        result["meaning"] = DESCRIPTIONS[name]
    document = _plain(
        {
            "experiment": experiment.name,
            "version": __version__,
            "seed": seed,
            "generated": compared.origin,
            "cells": _cell_numbers(compared),
            "n_genes": len(compared.genes),
            "space": _space_record(compared, space),
            "metrics": results,
        }
    )
    _draw_figures(experiment, compared, space, seed)
    write_json(experiment.evaluation_folder / "report.json", document)
    log.info("%s", _table(document))
    if len(compared.generated) < FEW_CELLS:
        log.info(
            "%s: only %d cells a side could be compared, which says little; generate "
            "like-data, or hold out more cells",
            experiment.name,
            len(compared.generated),
        )
    return document


def _numbers(
    real: Cells,
    other: Cells,
    space: Space,
    bandwidths: tuple[float, ...],
    seed: int,
) -> dict[str, float]:
    """Return the numbers that compare two sets of cells, without their labels."""
    first, second = real.log_values, other.log_values
    components = space.components(first), space.components(second)
    genes = space.variable_genes(first), space.variable_genes(second)
    n = _n_correlated(space)
    return {
        "mmd_squared": metrics.mmd_squared(*components, bandwidths=bandwidths),
        "classifier_auc": metrics.classifier_auc(*genes, seed=seed),
        "classifier_auc_components": metrics.classifier_auc(*components, seed=seed),
        "mean_expression_correlation": metrics.mean_expression_correlation(
            first, second
        ),
        "detection_rate_correlation": metrics.detection_rate_correlation(first, second),
        "correlation_of_correlations": metrics.correlation_of_correlations(
            *(metrics.gene_correlations(side[:, :n]) for side in genes)
        ),
        "zero_fraction": metrics.zero_fraction(second),
    }


def _label_agreement(compared: Comparison, space: Space, seed: int) -> dict[str, Any]:
    training = compared.training, compared.control
    classifier = metrics.label_classifier(
        np.concatenate([space.components(cells.log_values) for cells in training]),
        np.concatenate([cells.labels for cells in training]),
        seed=seed,
    )
    value, ceiling = (
        metrics.label_agreement(
            classifier, space.components(cells.log_values), cells.labels
        )
        for cells in (compared.generated, compared.held_out)
    )
    return {
        "value": value.overall,
        "ceiling": ceiling.overall,
        "per_label": {
            label: {
                "value": value.per_label[label],
                "ceiling": ceiling.per_label[label],
            }
            for label in value.per_label
        },
    }


def _n_correlated(space: Space) -> int:
    return min(N_CORRELATED_GENES, len(space.genes))


def _cell_numbers(compared: Comparison) -> dict[str, Any]:
    labels, numbers = np.unique(compared.held_out.labels, return_counts=True)
    return {
        "held_out_split": compared.split,
        "held_out": len(compared.held_out),
        "generated": len(compared.generated),
        "control": len(compared.control),
        "training": len(compared.training),
        "per_label": dict(zip(labels, numbers, strict=True)) if compared.label else {},
    }


def _space_record(compared: Comparison, space: Space) -> dict[str, Any]:
    return {
        "library_size": compared.library_size,
        "values": "every cell, real or generated, scaled to the library size, log1p",
        "n_variable_genes": len(space.genes),
        "n_components": space.pca.n_components_,
        "learned_from": "real training cells",
    }


def _draw_figures(
    experiment: Experiment, compared: Comparison, space: Space, seed: int
) -> None:
    folder = experiment.evaluation_folder
    real, made = compared.held_out, compared.generated
    first, second = real.log_values, made.log_values
    plots.gene_figure(
        folder / "genes.png",
        (metrics.gene_means(first), metrics.gene_means(second)),
        (metrics.detection_rates(first), metrics.detection_rates(second)),
        (
            metrics.mean_expression_correlation(first, second),
            metrics.detection_rate_correlation(first, second),
        ),
    )
    genes = space.genes[: _n_correlated(space)]
    plots.correlation_figure(
        folder / "correlations.png",
        metrics.gene_correlations(first[:, genes]),
        metrics.gene_correlations(second[:, genes]),
        [compared.genes[gene] for gene in genes],
    )
    rng = np.random.default_rng(derive_seed(seed, "map"))
    mapped = [
        side.take(np.sort(rng.permutation(len(side))[:MOST_MAPPED_CELLS]))
        for side in (real, made)
    ]
    method = experiment.parameters.training.embedding
    plots.embedding_figure(
        folder / f"{method}.png",
        space.components(mapped[0].log_values),
        space.components(mapped[1].log_values),
        mapped[0].labels if compared.label else None,
        mapped[1].labels if compared.label else None,
        method=method,
        seed=seed,
        log_components=False,
        categories=experiment.manifest().label_vocabulary.categories,
        title=f"{experiment.name}: held-out and generated cells",
    )


def _table(document: dict[str, Any]) -> str:
    """Return the report as a small table."""
    cells = document["cells"]
    rows = dict(document["metrics"])
    for label, result in rows.get("label_agreement", {}).get("per_label", {}).items():
        rows[f"  of {label}"] = result
    width = max(map(len, rows))
    lines = [
        f"{document['experiment']}: {cells['generated']} generated cells against "
        f"{cells['held_out']} held-out ({cells['held_out_split']}) cells",
        f"    {'':{width}} {'generated':>9} {'real':>9}",
    ]
    for name, result in rows.items():
        value, ceiling = (
            "-" if result[side] is None else f"{result[side]:.4f}"
            for side in ("value", "ceiling")
        )
        lines.append(f"    {name:{width}} {value:>9} {ceiling:>9}")
    return "\n".join(lines)


def _plain(value: Any) -> Any:
    """Return JSON values: NumPy scalars as Python's, nan and infinity as null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
