"""Requests that are cut into pieces."""

from __future__ import annotations

import numpy as np

from cellgan.data.cells import cell_batch
from cellgan.generation.pieces import request_rows, row_slices
from cellgan.models.base import GenerationRequest, Mixture


def test_slices_are_consecutive_and_the_last_one_is_short():
    assert list(row_slices(7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]


def test_all_that_is_said_of_cells_is_cut_with_them():
    ten = np.arange(10)
    request = GenerationRequest(
        covariates={"donor": ten},
        n_cells=10,
        seed=5,
        first_cell=100,
        source=cell_batch({"rna": ten[:, None]}, {"donor": ten}),
        library_sizes={"rna": ten + 0.5},
        guidance={"donor": 2.0},
        mixture=Mixture("donor", ten + 1, ten / 10),
    )
    part = request_rows(request, slice(4, 6))

    assert (part.first_cell, part.n_cells, part.seed) == (104, 2, 5)
    assert part.guidance == {"donor": 2.0}
    np.testing.assert_array_equal(part.covariates["donor"], [4, 5])
    np.testing.assert_array_equal(part.source.features["rna"], [[4], [5]])
    np.testing.assert_array_equal(part.source.library_size["rna"], [4, 5])
    np.testing.assert_array_equal(part.source.covariates["donor"], [4, 5])
    np.testing.assert_array_equal(part.library_sizes["rna"], [4.5, 5.5])
    np.testing.assert_array_equal(part.mixture.codes, [5, 6])
    np.testing.assert_array_equal(part.mixture.shares, [0.4, 0.5])
