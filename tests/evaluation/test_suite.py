"""What the suite makes of its families, and of covariates."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cellgan.evaluation.suite import (
    COSTS,
    FAMILIES,
    covariate_agreements,
    make_sides,
    median_bandwidths,
)
from tests.evaluation.corruptions import comparison
from tests.synthetic import make_cells


def test_bandwidths_are_multiples_of_the_median_distance():
    line = np.arange(3.0)[:, None]  # distances 1, 1, 2
    assert median_bandwidths(line) == (0.25, 0.5, 1.0, 2.0, 4.0)


def test_every_metric_has_one_name_and_a_whole_record():
    metrics = [metric for family in FAMILIES for metric in family.metrics]
    names = [metric.name for metric in metrics]
    assert len(set(names)) == len(names) > 35
    assert all(
        metric.meaning and not metric.meaning.endswith(".") for metric in metrics
    )


def test_progress_knows_the_cost_of_every_part():
    assert set(COSTS) == {"fit", *(family.name for family in FAMILIES)}


def test_covariates_are_confirmed_one_by_one_and_all_at_once():
    cells = make_cells(200)
    compared = comparison(cells, make_cells(120, seed=1), make_cells(120, seed=2))
    sides = make_sides(compared, compared.modalities["rna"], seed=0)
    assert covariate_agreements(compared, sides, 0) == {}
    # a covariate that is the label, and one that is its opposite half of the time
    same = dict(compared.labels)
    wrong = {side: of.copy() for side, of in compared.labels.items()}
    wrong["generated"][::2] = "another"
    covariates = {"same": same, "wrong": wrong}
    shares = covariate_agreements(
        dataclasses.replace(compared, covariates=covariates), sides, 0
    )
    found = {name: float(of["generated"][0]) for name, of in shares.items()}
    assert found["agreement_of_same"] > 0.9
    assert found["agreement_of_wrong"] == pytest.approx(
        0.5 * found["agreement_of_same"], abs=0.05
    )
    assert found["agreement_of_all_covariates"] == found["agreement_of_wrong"]
    assert shares["agreement_of_wrong"]["control"][0] > 0.9


def test_one_category_alone_is_no_agreement():
    cells = make_cells(200)
    compared = comparison(cells, make_cells(120, seed=1), make_cells(120, seed=2))
    one = {side: np.full(len(of), "only") for side, of in compared.labels.items()}
    compared = dataclasses.replace(compared, covariates={"donor": one})
    sides = make_sides(compared, compared.modalities["rna"], seed=0)
    shares = covariate_agreements(compared, sides, 0)
    assert np.isnan([of["generated"][0] for of in shares.values()]).all()
