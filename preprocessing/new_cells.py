"""Cells of a file that a trained model is to be given: its genes, and its columns."""

from __future__ import annotations

from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd

from cellgan.config import InputParameters
from cellgan.errors import DataError
from cellgan.manifest import RNA, DatasetManifest
from preprocessing.annotations import as_text, require_column, writable_columns
from preprocessing.raw_counts import CountsPlace, choose_counts
from preprocessing.readers import open_raw_file

SHOWN = 3


def read_new_cells(
    raw_input: str,
    manifest: DatasetManifest,
    parameters: InputParameters,
    columns: Sequence[str],
) -> ad.AnnData:
    """Read counts of the genes that a model knows, in its order.

    Parameters
    ----------
    raw_input
        File of any format that is read raw.
    parameters
        Of the data that the model was trained on: where counts are, and whether they
        must be integers.
    columns
        obs columns that must be there: categoricals of text in the result. Every value
        must be one that the model was trained on.

    Raises
    ------
    ConfigError, DataError
        If the file cannot be read, lacks genes or columns, or a cell has no value or
        one that the model does not know.
    """
    where = f"--input {raw_input}"
    with open_raw_file(raw_input, tuple(columns)) as raw:
        for column in columns:
            require_column(raw.obs, column, where)
        place = CountsPlace(raw_input, parameters.layer, "input_ds", "gene")
        found = choose_counts(place, raw, counts=parameters.counts)
    genes = pd.Index(manifest.features[RNA])
    at = found.var.index.get_indexer(genes)
    missing = genes[at < 0]
    if len(missing):
        more = ", ..." if len(missing) > SHOWN else ""
        msg = (
            f"{where}: {len(missing)} of the {len(genes)} genes of the model are "
            f"missing ({', '.join(missing[:SHOWN])}{more}). Give a file with all genes "
            f"of the training data, under the same names."
        )
        raise DataError(msg)
    obs, _ = writable_columns(found.obs)
    for name in columns:
        obs[name] = known_values(found.obs[name], name, manifest, where)
    counts = found.counts[:, at].tocsr()
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes.astype(object)))


def known_values(
    column: pd.Series, name: str, manifest: DatasetManifest, where: str
) -> pd.Categorical:
    """Return a column as a categorical of the model's categories.

    Raises
    ------
    DataError
        If a cell has no value, or one that no training cell had.
    """
    texts = np.array([text.strip() for text in as_text(column)], dtype=object)
    n_missing = int((texts == "").sum())
    if n_missing:
        msg = (
            f'{where}: obs column "{name}": {n_missing} of {len(texts)} cells have no '
            "value. Give them one that the model knows, or leave them out of the file."
        )
        raise DataError(msg)
    vocabulary = manifest.covariates[name]
    n_trained = manifest.cells_per_category["train"][name]
    trained = [
        category
        for category, n_cells in zip(vocabulary.categories, n_trained, strict=True)
        if n_cells
    ]
    unseen = sorted(set(texts) - set(trained))
    if unseen:
        n_cells = int(np.isin(texts, unseen).sum())
        msg = (
            f'{where}: obs column "{name}": {n_cells} cells have "{unseen[0]}", which '
            f"no training cell has. Known: {', '.join(trained)}. Leave these cells "
            "out, or train with such cells."
        )
        raise DataError(msg)
    return pd.Categorical(texts, categories=list(vocabulary.categories))
