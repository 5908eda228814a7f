"""Cells of a file that a trained model is to be given: its genes, and its columns."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cellgan.config.input import InputParameters
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import DataError
from preprocessing.annotations import as_text, require_column, writable_columns
from preprocessing.raw_counts import CountsPlace, choose_counts
from preprocessing.readers.open import open_raw_file

log = logging.getLogger(__name__)

SHOWN = 3
FEW_GENES = 0.8
"""Share of the model's genes below which cells are doubted."""


def read_new_cells(
    raw_input: str,
    manifest: DatasetManifest,
    parameters: InputParameters,
    columns: Sequence[str],
    *,
    fills_missing: bool = False,
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
    fills_missing
        Take genes that the file lacks for genes without counts, as long as it has some
        of the model's; otherwise it must have all.

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
        cells = choose_counts(place, raw, counts=parameters.counts)
    genes = pd.Index(manifest.features[RNA])
    at = cells.var.index.get_indexer(genes)
    _check_genes(genes, at >= 0, where, fills_missing=fills_missing)
    obs, _ = writable_columns(cells.obs)
    for name in columns:
        obs[name] = known_values(cells.obs[name], name, manifest, where)
    counts = _aligned(cells.rows.gather(), at)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes.astype(object)))


def _check_genes(
    genes: pd.Index, is_there: npt.NDArray[np.bool_], where: str, *, fills_missing: bool
) -> None:
    """Refuse a file without genes that are needed; doubt one with few."""
    missing = genes[~is_there]
    if not len(missing):
        return
    more = ", ..." if len(missing) > SHOWN else ""
    lacking = (
        f"{where}: {len(missing)} of the {len(genes)} genes of the model are missing "
        f"({', '.join(missing[:SHOWN])}{more})"
    )
    if not is_there.any() or not fills_missing:
        msg = (
            f"{lacking}. Give a file with "
            f"{'' if fills_missing else 'all '}genes of the training data, under the "
            "same names."
        )
        raise DataError(msg)
    if is_there.mean() >= FEW_GENES:
        log.info("%s: they count as genes without counts", lacking)
    else:
        log.warning(
            "%s: they count as genes without counts. With fewer than %d %% of the "
            "genes, do not rely on what is told of these cells",
            lacking,
            round(100 * FEW_GENES),
        )


def _aligned(counts: sp.csr_matrix, at: npt.NDArray[np.intp]) -> sp.csr_matrix:
    """Return columns of counts; zeros where there is none (-1)."""
    if (at >= 0).all():
        return counts[:, at].tocsr()
    empty = sp.csr_matrix((counts.shape[0], 1), dtype=counts.dtype)
    extended = sp.hstack([counts, empty], format="csc")
    return extended[:, np.where(at < 0, counts.shape[1], at)].tocsr()


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
