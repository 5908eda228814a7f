"""The experiment folder: frozen parameters, atomic writes, folders of the reference."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from cellgan.config.parameters import ExperimentParameters
from cellgan.config.reading import parse_experiment
from cellgan.errors import ConfigError, DataError
from cellgan.experiment import Experiment, reference_manifest
from cellgan.files import remove_leftovers, replacing

PREPROCESSED = {
    "total_count": 100,
    "genes_no": 4,
    "train_count": 70,
    "valid_count": 20,
    "test_count": 10,
    "train_cells_per_cluster": {"0": 40, "10": 5, "2": 27},
    "valid_cells_per_cluster": {"0": 10, "10": 1, "2": 7},
    "test_cells_per_cluster": {"0": 5, "2": 5},
    "split_seed": 0,
    "scale": {"scaling": "normalize_per_cell_LS", "scale_value": 100},
    "clusters_no": 3,
    "clusters_ratios": {"0": 0.55, "10": 0.06, "2": 0.39},
}


@pytest.fixture
def parameters() -> ExperimentParameters:
    return parse_experiment({"input_ds": {"raw_input": "raw.h5ad"}}, "test")


@pytest.fixture
def experiment(tmp_path: Path, parameters: ExperimentParameters) -> Experiment:
    experiment = Experiment(tmp_path / "pbmc", parameters)
    experiment.folder.mkdir()
    experiment.freeze("input_ds", "model", "training")
    return experiment


def with_training(experiment: Experiment, **changes: object) -> Experiment:
    training = dataclasses.replace(experiment.parameters.training, **changes)
    parameters = dataclasses.replace(experiment.parameters, training=training)
    return Experiment(experiment.folder, parameters)


def test_unchanged_parameters_agree_with_the_frozen_ones(
    experiment: Experiment,
) -> None:
    experiment.check_frozen("input_ds", "model", "training")

    assert Experiment.open(experiment.folder).parameters == experiment.parameters


def test_changed_parameters_are_listed_with_old_and_new_value(
    experiment: Experiment,
) -> None:
    changed = with_training(experiment, batch_size=64, max_steps=7)

    with pytest.raises(
        ConfigError,
        match=r"(?s)training\.batch_size: 128 then, 64 now.*max_steps: 1000000 then, 7",
    ):
        changed.check_frozen("input_ds", "model", "training")


def test_block_that_is_not_stored_yet_is_not_checked(
    tmp_path: Path, parameters: ExperimentParameters
) -> None:
    experiment = Experiment(tmp_path, parameters)
    experiment.freeze("input_ds")
    with_training(experiment, batch_size=64).check_frozen("input_ds", "training")

    assert set(experiment.stored_parameters()) == {"input_ds"}


def test_frequencies_may_change_between_runs(experiment: Experiment) -> None:
    changed = with_training(experiment, save_freq=10, progress_freq=0)
    changed.check_frozen("training")

    assert changed.parameters != experiment.parameters


def test_frozen_value_that_was_frozen_stays_when_the_same_is_frozen_again(
    experiment: Experiment,
) -> None:
    before = experiment.parameters_file.read_bytes()
    experiment.freeze("input_ds", "model", "training")

    assert experiment.parameters_file.read_bytes() == before


@pytest.mark.parametrize(
    ("folder", "message"),
    [(".", "it has no parameters.json"), ("other", "no such folder")],
)
def test_opening_another_folder_is_refused(
    tmp_path: Path, folder: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Experiment.open(tmp_path / folder)


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")  # noqa: EM101

    with pytest.raises(OSError, match="disk full"):
        write_half()

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_swaps_a_whole_folder(tmp_path: Path) -> None:
    path = tmp_path / "cells.zarr"
    path.mkdir()
    (path / "old").touch()
    with replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()

    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_works_over_what_a_killed_process_of_the_same_number_left(
    tmp_path: Path,
) -> None:
    leftover = tmp_path / f".pbmc.{os.getpid()}.tmp"
    (leftover / "TF_records").mkdir(parents=True)
    with replacing(tmp_path / "pbmc") as temporary:
        temporary.mkdir()

    assert [path.name for path in tmp_path.iterdir()] == ["pbmc"]
    assert list((tmp_path / "pbmc").iterdir()) == []


def test_leftovers_of_killed_processes_are_removed_and_nothing_else(
    tmp_path: Path,
) -> None:
    (tmp_path / ".pbmc.123.tmp").mkdir()
    (tmp_path / ".pbmc.456.tmp").touch()
    (tmp_path / ".pbmc2.123.tmp").mkdir()
    (tmp_path / "pbmc").mkdir()
    remove_leftovers(tmp_path / "pbmc")

    assert {path.name for path in tmp_path.iterdir()} == {"pbmc", ".pbmc2.123.tmp"}


def test_manifest_of_a_reference_folder_counts_realised_cells(
    experiment: Experiment,
) -> None:
    experiment.records_folder.mkdir()
    stored = {**experiment.stored_parameters(), "preprocessed": PREPROCESSED}
    experiment.parameters_file.write_text(json.dumps(stored))

    manifest = experiment.manifest()

    assert experiment.is_processed
    assert manifest.label_vocabulary.categories == ("0", "2", "10")
    assert manifest.split_sizes == {"train": 72, "valid": 18, "test": 10}
    assert manifest.cells_per_category["train"]["cluster"] == (40, 27, 5)
    assert manifest.features["rna"] == ("0", "1", "2", "3")
    assert (manifest.record_values, manifest.target_library_size) == ("normalized", 100)
    assert [
        (combination.codes["cluster"], combination.n_cells, combination.log_mean)
        for combination in manifest.combinations
    ] == [(0, 40, {}), (1, 27, {}), (2, 5, {})]


def test_combinations_of_a_reference_folder_have_training_cells() -> None:
    numbers = {**PREPROCESSED["train_cells_per_cluster"], "2": 0}
    block = {**PREPROCESSED, "train_cells_per_cluster": numbers}

    manifest = reference_manifest(block, "parameters.json")

    codes = [combination.codes["cluster"] for combination in manifest.combinations]
    assert codes == [0, 2]


def test_manifest_of_a_reference_folder_names_what_is_missing() -> None:
    block = {key: value for key, value in PREPROCESSED.items() if key != "genes_no"}

    with pytest.raises(DataError, match=r"preprocessed: 'genes_no' is missing"):
        reference_manifest(block, "parameters.json")


def test_processed_file_holds_modalities_when_there_are_two(tmp_path: Path) -> None:
    blocks = ({"raw_input": "a.h5mu"}, {"raw_input": "a.h5mu", "atac": {}})

    files = [
        Experiment(tmp_path, parse_experiment({"input_ds": block}, "test"))
        for block in blocks
    ]

    names = [experiment.processed_file.name for experiment in files]
    assert names == ["processed.h5ad", "processed.h5mu"]


def test_unprocessed_experiment_says_what_to_run(experiment: Experiment) -> None:
    assert not experiment.is_processed
    with pytest.raises(DataError, match=r"manifest\.json: no such file\. Run --proc"):
        experiment.manifest()
