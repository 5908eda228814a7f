"""Experiment folders with synthetic cells, as --process leaves them."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellgan.config.reading import parse_experiment
from cellgan.data.manifest import SPLITS, CovariateVocabulary, DatasetManifest
from cellgan.experiment import Experiment
from cellgan.files import write_json
from tests.synthetic import SyntheticCells, make_cells

LIBRARY_SIZE = 1000


def write_experiment(
    folder: Path,
    cells: SyntheticCells | None = None,
    *,
    n_test: int = 60,
    n_valid: int = 0,
    model: str = "cscGAN",
) -> Experiment:
    """Write processed.h5ad, manifest.json and parameters.json of an experiment."""
    cells = make_cells() if cells is None else cells
    adata = processed_cells(cells, n_test=n_test, n_valid=n_valid)
    folder.mkdir(parents=True)
    adata.write_h5ad(folder / "processed.h5ad")
    blocks = {
        "input_ds": {
            "raw_input": "synthetic.h5ad",
            "scale": f"normalize_per_cell_LS_{LIBRARY_SIZE}",
        },
        "model": {"type": model},
    }
    experiment = Experiment(folder, parse_experiment(blocks, "synthetic"))
    experiment.freeze("input_ds")
    write_json(experiment.manifest_file, manifest_of(adata).as_json())
    return experiment


def processed_cells(
    cells: SyntheticCells, *, n_test: int, n_valid: int
) -> anndata.AnnData:
    """Return counts with a random split, in the form of processed.h5ad."""
    n_cells, n_genes = cells.counts.shape
    split = np.full(n_cells, "train", dtype=object)
    order = np.random.default_rng(1).permutation(n_cells)
    split[order[:n_test]] = "test"
    split[order[n_test : n_test + n_valid]] = "valid"
    obs = pd.DataFrame(
        {"cluster": pd.Categorical(cells.labels), "split": pd.Categorical(split)},
        index=[f"cell_{cell}" for cell in range(n_cells)],
    )
    return anndata.AnnData(cells.counts, obs, var=gene_frame(n_genes))


def generated_cells(
    counts: sp.csr_matrix, labels: npt.NDArray[np.str_] | None
) -> anndata.AnnData:
    """Return cells in the form of a generated file, library-size-normalised."""
    totals = np.asarray(counts.sum(axis=1))
    values = sp.csr_matrix(counts.multiply(LIBRARY_SIZE / totals), dtype=np.float32)
    obs = pd.DataFrame(index=[f"generated_{cell}" for cell in range(values.shape[0])])
    if labels is not None:
        obs["cluster"] = pd.Categorical(labels)
    return anndata.AnnData(values, obs, var=gene_frame(values.shape[1]))


def write_generated(experiment: Experiment, cells: anndata.AnnData) -> Path:
    """Write cells where an experiment's generated cells are."""
    experiment.generated_file.parent.mkdir(exist_ok=True)
    cells.write_h5ad(experiment.generated_file)
    return experiment.generated_file


def gene_frame(n_genes: int) -> pd.DataFrame:
    """Return the names of the genes."""
    return pd.DataFrame(index=[f"gene_{gene}" for gene in range(n_genes)])


def manifest_of(adata: anndata.AnnData) -> DatasetManifest:
    """Return the manifest of processed cells."""
    categories = tuple(adata.obs["cluster"].cat.categories)
    numbers = pd.crosstab(adata.obs["split"], adata.obs["cluster"])
    numbers = numbers.reindex(index=SPLITS, columns=categories, fill_value=0)
    return DatasetManifest(
        features={"rna": tuple(adata.var_names)},
        covariates={"cluster": CovariateVocabulary(categories)},
        label="cluster",
        target_library_size=LIBRARY_SIZE,
        record_values="counts",
        split_sizes={split: int(numbers.loc[split].sum()) for split in SPLITS},
        cells_per_category={
            split: {"cluster": tuple(map(int, numbers.loc[split]))} for split in SPLITS
        },
        library_sizes={"rna": tuple(() for _ in categories)},
        shards={},
    )


def permuted_genes(counts: sp.csr_matrix, seed: int = 0) -> sp.csr_matrix:
    """Return cells whose genes are permuted independently: means stay, nothing else."""
    permuted = np.random.default_rng(seed).permuted(counts.toarray(), axis=0)
    return sp.csr_matrix(permuted)
