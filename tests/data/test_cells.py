"""Rows of AnnData as models take them."""

from __future__ import annotations

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgan.data.cells import batch_of_rows, cell_batch
from tests.manifests import make_manifest

COUNTS = np.array([[1, 3, 0], [0, 0, 0], [2, 0, 2]], np.int64)
OBS = pd.DataFrame({"cluster": ["T", "B", "T"]}, index=["a", "b", "c"])


@pytest.mark.parametrize("form", [sp.csr_matrix, np.asarray])
def test_rows_have_their_totals_and_codes(form):
    cells = anndata.AnnData(form(COUNTS), obs=OBS)
    batch = batch_of_rows({"rna": cells}, make_manifest(n_genes=3), slice(1, 3))

    np.testing.assert_array_equal(batch.features["rna"], COUNTS[1:])
    np.testing.assert_array_equal(batch.library_size["rna"], [0.0, 4.0])
    np.testing.assert_array_equal(batch.covariates["cluster"], [0, 1])


def test_rows_are_scaled_where_the_records_are_and_empty_cells_stay_empty():
    manifest = dataclasses.replace(
        make_manifest(n_genes=3, target_library_size=8), record_values="normalized"
    )
    batch = batch_of_rows({"rna": anndata.AnnData(COUNTS, obs=OBS)}, manifest, [0, 1])

    np.testing.assert_array_equal(batch.features["rna"], [[2, 6, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.library_size["rna"], [4.0, 0.0])


def test_covariates_that_are_not_named_may_have_any_values():
    cells = anndata.AnnData(COUNTS, obs=OBS.assign(cluster="unheard of"))
    batch = batch_of_rows({"rna": cells}, make_manifest(n_genes=3), slice(3), names=())

    assert batch.covariates == {}


def test_library_sizes_that_are_known_stand_for_the_totals():
    batch = cell_batch({"rna": COUNTS}, {}, {"rna": np.array([10.0, 20.0, 30.0])})

    np.testing.assert_array_equal(batch.library_size["rna"], [10.0, 20.0, 30.0])
