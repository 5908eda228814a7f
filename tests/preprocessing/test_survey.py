"""A survey tells what processing would write, and writes nothing."""

from __future__ import annotations

import dataclasses

import anndata as ad
import pytest

import preprocessing
from cellgan.config.reading import parse_experiment
from cellgan.experiment import Experiment
from preprocessing.survey import survey
from tests.preprocessing import raw_files


@pytest.fixture
def experiment(tmp_path):
    """An experiment that is not processed, with labels of its own."""
    raw = raw_files.h5ad_csr(raw_files.make_adata(120, 40), tmp_path)
    block = {
        "raw_input": str(raw),
        "clustering": {"key": "cell_type"},
        "split": {"valid_cells": 30, "test_cells": 10},
    }
    parameters = parse_experiment({"input_ds": block}, "test")
    return Experiment(tmp_path / "experiments" / "pbmc", parameters)


def test_a_survey_tells_the_manifest_and_the_values_of_processing(experiment):
    before = survey(experiment)
    assert not experiment.folder.exists()
    preprocessing.process(experiment)
    written = dataclasses.replace(experiment.manifest(), shards={})
    assert before.manifest == written
    assert before.manifest.split_sizes["test"] > 0
    assert before.n_values == ad.read_h5ad(experiment.processed_file).X.nnz


def test_a_survey_of_a_processed_experiment_reads_its_folder_alone(experiment):
    before = survey(experiment)
    preprocessing.process(experiment)
    gone = dataclasses.replace(experiment.parameters.input_ds, raw_input="gone.h5ad")
    parameters = dataclasses.replace(experiment.parameters, input_ds=gone)
    after = survey(dataclasses.replace(experiment, parameters=parameters))
    assert after == (experiment.manifest(), before.n_values)


def test_values_are_counted_in_records_where_there_is_no_processed_file(experiment):
    """As of the experiments of a composition study, which have none."""
    preprocessing.process(experiment)
    expected = ad.read_h5ad(experiment.processed_file).X.nnz
    experiment.processed_file.unlink()
    assert survey(experiment).n_values == expected
