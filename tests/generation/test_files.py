"""Processed cells that are gone or damaged are one clear line for every command."""

from __future__ import annotations

import pytest

from cellgan.config.reading import parse_experiment
from cellgan.errors import DataError
from cellgan.experiment import Experiment
from cellgan.generation.files import OR_INPUT, read_processed


@pytest.fixture(params=["processed.h5ad", "processed.h5mu"])
def experiment(tmp_path, request):
    given = {"input_ds": {"raw_input": "raw.h5ad"}}
    if request.param.endswith("mu"):
        given["input_ds"]["atac"] = {"raw_input": "atac.h5ad"}
    experiment = Experiment(tmp_path, parse_experiment(given, "test"))
    assert experiment.processed_file.name == request.param
    return experiment


def test_missing_cells_name_what_makes_them(experiment):
    name = experiment.processed_file.name
    with pytest.raises(
        DataError, match=rf"{name}: no such file. Run --process first\.$"
    ):
        read_processed(experiment)
    with pytest.raises(DataError, match=r"first, or give cells with --input FILE\.$"):
        read_processed(experiment, otherwise=OR_INPUT)


def test_damaged_cells_are_told_from_missing_ones(experiment):
    experiment.processed_file.write_bytes(b"\x89HDF")
    with pytest.raises(DataError, match=r"cannot be read: .* Run --process again\.$"):
        read_processed(experiment)
