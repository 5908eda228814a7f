"""How much each covariate contributes to cells, and to which genes.

Everything is asked of held-out cells in their own categories: the contributions are
those that `--counterfactual` would write for cells that stay as they are.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd

from cellgan.data.cells import batch_of_rows, name_frame
from cellgan.data.manifest import RNA
from cellgan.evaluation.figures.canvas import save
from cellgan.files import replacing
from cellgan.generation.files import read_processed
from cellgan.generation.trained_model import TrainedModel, provenance
from cellgan.models.base import AdditiveModel
from cellgan.studies.figures import influence_figure

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

N_TOP_GENES = 50
ALL_CELLS = "all cells"


class Contributions(NamedTuple):
    """What heads add to some cells."""

    norms: pd.DataFrame
    """L2 norm of what each head adds to each cell: cells x heads."""
    genes: Mapping[str, Floats]
    """By field, ``(n_categories, n_genes)``: what its head adds on average, were all
    cells of the category."""


def measure_influence(experiment: Experiment) -> Path:
    """Write how much each head contributes, and the genes it contributes to.

    Returns
    -------
    The folder: ``heads.csv``, ``labels.csv``, ``categories.csv`` (norms and shares),
    ``top_genes.csv``, ``category_genes.csv`` (genes x categories), ``loadings.h5ad``
    (genes x latent dimensions, of the base and of every category) and
    ``influence.png``.

    Raises
    ------
    ConfigError
        If the model has no heads.
    CheckpointError, DataError
        If the experiment is not trained, or its processed cells are gone.
    """
    trained = TrainedModel.load(experiment.folder)
    cells, split = _held_out(read_processed(experiment)[RNA])
    model = cast(AdditiveModel, trained.model)
    added = contributions(trained, cells)
    manifest, fields = trained.manifest, model.heads()[1:]
    obs = cells.obs.astype(dict.fromkeys({manifest.label, *fields}, str))
    heads = shares({ALL_CELLS: added.norms})
    by_label = shares(
        {
            str(label): added.norms[(obs[manifest.label] == label).to_numpy()]
            for label in manifest.label_vocabulary.categories
        }
    )
    by_category = pd.concat(
        [
            _of_field(
                name,
                {
                    category: added.norms[(obs[name] == category).to_numpy()]
                    for category in manifest.covariates[name].categories
                },
            )
            for name in fields
        ]
    )
    effects = {name: _above_others(added.genes[name]) for name in fields}
    with replacing(experiment.influence_folder) as folder:
        folder.mkdir()
        heads.drop(columns="label").to_csv(folder / "heads.csv", index=False)
        by_label.to_csv(folder / "labels.csv", index=False)
        by_category.to_csv(folder / "categories.csv", index=False)
        categories = {name: manifest.covariates[name].categories for name in fields}
        _write_top_genes(folder / "top_genes.csv", trained.genes, categories, effects)
        _gene_table(trained.genes, categories, added.genes).to_csv(
            folder / "category_genes.csv"
        )
        _loadings(trained, categories).write_h5ad(folder / "loadings.h5ad")
        figure = influence_figure(
            _nested(pd.concat([heads, by_label]), "label", "head"),
            _nested(by_category, "field", "category"),
            f"{experiment.name}, step {trained.step}: {len(cells)} {split} cells",
        )
        save(figure, folder / "influence.png")
    log.info(
        "%s, step %d: contributions to %d %s cells\n%s\n%s",
        experiment.name,
        trained.step,
        len(cells),
        split,
        "\n".join(
            f"    {row.head:{max(map(len, heads['head']))}}  {row.share:6.1%}  mean "
            f"norm {row.mean_norm:.4g}"
            for row in heads.itertuples()
        ),
        experiment.influence_folder,
    )
    return experiment.influence_folder


def contributions(trained: TrainedModel, cells: anndata.AnnData) -> Contributions:
    """Return what heads add to cells that stay as they are, computed in pieces."""
    model = cast(AdditiveModel, trained.model)
    norms: list[pd.DataFrame] = []
    totals: dict[str, Any] = dict.fromkeys(model.heads()[1:], 0.0)
    for rows in trained.row_slices(cells.n_obs):
        batch = batch_of_rows({RNA: cells}, trained.manifest, rows)
        parts = model.edit(batch, {}).contributions
        norms.append(
            pd.DataFrame(
                {head: np.linalg.norm(part, axis=1) for head, part in parts.items()},
                index=cells.obs_names[rows],
            )
        )
        share = (rows.stop - rows.start) / cells.n_obs
        for name, means in model.category_means(batch).items():
            totals[name] = totals[name] + share * means.astype(np.float64)
    return Contributions(
        pd.concat(norms),
        {name: means.astype(np.float32) for name, means in totals.items()},
    )


def shares(groups: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return norms of groups of cells: one row per group and head; empty ones go.

    Parameters
    ----------
    groups
        Norms, cells x heads, by the name of the group.

    Returns
    -------
    ``label``, ``head``, ``n_cells``, ``mean_norm``, ``min_norm``, ``max_norm``, and
    ``share``: of the head's mean norm in the sum of those of all heads.
    """
    rows = []
    for label, norms in groups.items():
        if not len(norms):
            continue
        means = norms.mean()
        total = means.sum()
        rows += [
            {
                "label": label,
                "head": head,
                "n_cells": len(norms),
                "mean_norm": means[head],
                "min_norm": norms[head].min(),
                "max_norm": norms[head].max(),
                "share": means[head] / total if total else 0.0,
            }
            for head in norms
        ]
    return pd.DataFrame(rows)


def _of_field(name: str, groups: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of a field's own head, by category."""
    table = shares(groups)
    own = table[table["head"] == name].drop(columns="head")
    own = own.rename(columns={"label": "category"})
    own.insert(0, "field", name)
    return own


def _held_out(cells: anndata.AnnData) -> tuple[anndata.AnnData, str]:
    """Return the test cells; those of validation or training where there are none."""
    split = cells.obs["split"].astype(str).to_numpy()
    name = next(name for name in ("test", "valid", "train") if (split == name).any())
    return cells[split == name], name


def _above_others(means: Floats) -> Floats:
    """Return what a category adds above the mean of the others, per gene."""
    n_others = len(means) - 1
    others = (means.sum(axis=0, keepdims=True) - means) / n_others
    difference: Floats = means - others
    return difference


def _write_top_genes(
    path: Path,
    genes: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    effects: Mapping[str, Floats],
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("field", "category", "rank", "gene", "effect"))
        for name, names in categories.items():
            for category, effect in zip(names, effects[name], strict=True):
                order = np.argsort(-effect, kind="stable")[:N_TOP_GENES]
                table.writerows(
                    (name, category, rank, genes[gene], f"{effect[gene]:.6g}")
                    for rank, gene in enumerate(order, start=1)
                )


def _gene_table(
    genes: Sequence[str],
    categories: Mapping[str, Sequence[str]],
    means: Mapping[str, Floats],
) -> pd.DataFrame:
    return pd.DataFrame(
        {
            f"{name}={category}": means[name][code]
            for name, names in categories.items()
            for code, category in enumerate(names)
        },
        index=pd.Index(genes, name="gene"),
    )


def _loadings(
    trained: TrainedModel, categories: Mapping[str, Iterable[str]]
) -> anndata.AnnData:
    """Return the loadings of base and categories, by gene."""
    loadings = cast(AdditiveModel, trained.model).loadings()
    table = anndata.AnnData(obs=name_frame(trained.genes))
    table.obsm["base"] = loadings.base
    for name, names in categories.items():
        for code, category in enumerate(names):
            key = f"{name}={category}".replace("/", "_")  # a "/" makes a folder
            table.obsm[key] = loadings.categories[name][code]
    table.uns["cellgan"] = provenance(trained.experiment.parameters, trained.step)
    return table


def _nested(table: pd.DataFrame, outer: str, inner: str) -> dict[str, dict[str, float]]:
    nested: dict[str, dict[str, float]] = {}
    for first, second, share in zip(
        table[outer], table[inner], table["share"], strict=True
    ):
        nested.setdefault(first, {})[second] = float(share)
    return nested
