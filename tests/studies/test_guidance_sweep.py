"""The sweep: the same cells at several guidance scales, compared with held-out ones."""

from __future__ import annotations

import csv

import pytest

from cellgan.config.reading import parse_experiment
from cellgan.errors import ConfigError
from cellgan.experiment import Experiment
from cellgan.models.base import SolverSettings
from cellgan.studies.checks import check_guided
from cellgan.studies.guidance_sweep import (
    MEASURES,
    compare_scales,
    describe,
)
from tests.evaluation.folders import write_experiment


@pytest.fixture(scope="module")
def rows(trained_flow: Experiment) -> list[dict[str, str]]:
    """Return the table of two scales."""
    path = compare_scales(
        trained_flow, scales=(0.0, 2.0), seed=0, solver=SolverSettings()
    )
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_table_has_a_row_for_each_scale_and_one_of_real_cells(rows):
    assert [row["scale"] for row in rows] == ["0", "2", "real"]
    further = ["agreement_of_batch", "agreement_of_all_covariates"]
    assert list(rows[0]) == ["scale", *MEASURES, *further, "seconds"]
    assert all(row[name] for row in rows for name in MEASURES)
    assert [bool(row["seconds"]) for row in rows] == [True, True, False]


@pytest.mark.slow
def test_guided_cells_are_more_often_of_the_type_that_was_asked_for(rows):
    agreement = [float(row["label_agreement"]) for row in rows]
    # two types: chance without guidance
    assert agreement[0] < 0.75
    assert agreement[1] > agreement[0] + 0.2
    assert agreement[2] > 0.9
    both = [float(row["agreement_of_all_covariates"]) for row in rows]
    assert both[1] > 0.8 * both[2]


@pytest.mark.slow
def test_sweep_leaves_its_table_and_figure_alone(rows, trained_flow):
    del rows
    folder = trained_flow.guidance_file.parent
    names = {path.name for path in folder.iterdir() if "guidance" in path.name}
    assert names == {"guidance_sweep.csv", "guidance_sweep.png"}
    assert not list(trained_flow.folder.glob("tmp*"))


@pytest.mark.slow
def test_no_temporary_file_is_logged(trained_flow, caplog):
    caplog.set_level("INFO")
    compare_scales(trained_flow, scales=(1.0,), seed=0, solver=SolverSettings())
    assert str(trained_flow.guidance_file) in caplog.text
    assert "cells.h5" not in caplog.text


def test_a_model_without_guidance_is_refused(tmp_path):
    experiment = write_experiment(tmp_path / "gan")
    with pytest.raises(ConfigError, match='type "cscGAN" has no guidance'):
        check_guided(experiment)


def test_an_unconditional_model_is_refused(tmp_path):
    folder = write_experiment(tmp_path / "flow", model="CFGen").folder
    block = {
        "input_ds": {"raw_input": "synthetic.h5ad"},
        "model": {"type": "CFGen", "flow": {"condition_on": []}},
    }
    experiment = Experiment(folder, parse_experiment(block, "test"))
    with pytest.raises(ConfigError, match='"CFGen", without a covariate, has no guid'):
        check_guided(experiment)


def test_covariates_that_guide_are_those_of_the_model(tmp_path):
    experiment = write_experiment(tmp_path / "flow", model="CFGen")
    assert check_guided(experiment) == ("cluster",)


def test_table_is_told_in_lines():
    first = {"scale": "0", **dict.fromkeys(MEASURES, 0.25), "seconds": 1.0}
    last = {"scale": "real", **dict.fromkeys(MEASURES, 0.5)}
    lines = describe([first, last]).splitlines()
    assert lines[1].split() == ["0", *["0.250"] * len(MEASURES), "1.000"]
    assert lines[2].split() == ["real", *["0.500"] * len(MEASURES)]
