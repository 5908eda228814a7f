from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgan.config.reading import parse_experiment
from cellgan.errors import ConfigError, DataError, TrainingError
from cellgan.experiment import Experiment
from cellgan.files import write_json
from cellgan.studies import augmentation
from cellgan.studies.augmentation import mean_and_interval, measure_augmentation
from tests.evaluation.folders import (
    generated_cells,
    manifest_of,
    write_experiment,
)
from tests.synthetic import SyntheticCells

RARE = "rare/type"


def draw_cells(labels: np.ndarray, seed: int) -> sp.csr_matrix:
    """Draw counts in which the rare label differs a little in half of the genes."""
    rates = np.where(
        (labels == RARE)[:, None] & (np.arange(60) % 2 == 0)[None, :], 3.0, 1.5
    )
    counts = np.random.default_rng(seed).poisson(rates)
    return sp.csr_matrix(counts, dtype=np.float32)


def real_cells() -> SyntheticCells:
    labels = np.random.default_rng(0).permutation(
        np.repeat([RARE, "other"], [120, 280])
    )
    return SyntheticCells(draw_cells(labels, 1), labels)


class Rooms:
    """Stand in for preprocessing, training and generation; the generator is perfect."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.trained: list[str] = []
        self.requests: list[Mapping[str, int]] = []
        self.fail_at: str | None = None
        self.gene_order = np.arange(60)

    def write_dataset(self, experiment: Experiment, cells: anndata.AnnData) -> None:
        self.written.append(experiment.name)
        experiment.folder.mkdir(parents=True)
        cells.write_h5ad(experiment.processed_file)
        experiment.freeze("input_ds")
        write_json(experiment.manifest_file, manifest_of(cells).as_json())

    def train(self, experiment: Experiment) -> None:
        if experiment.name == self.fail_at:
            msg = "critic_loss became nan"
            raise TrainingError(msg)
        self.trained.append(experiment.name)
        experiment.freeze("model", "training")

    def generate(
        self, experiment: Experiment, numbers: Mapping[str, int], seed: int
    ) -> anndata.AnnData:
        self.requests.append(numbers)
        labels = np.repeat(list(numbers), list(numbers.values()))
        cells = generated_cells(draw_cells(labels, seed), labels)
        return cells[:, self.gene_order].copy()

    def augment(self, experiment, label=RARE, fractions=(0.05,), seeds=(0,)):
        return measure_augmentation(
            experiment,
            label,
            fractions,
            seeds,
            write_dataset=self.write_dataset,
            train=self.train,
            generate=self.generate,
        )


@pytest.fixture
def _fast_score(monkeypatch):
    """Score by the share of the label among the training cells: no forest is grown."""

    def share(training, held_out, *, label, seed):
        values = training.log_values
        last_cell = values[[-1]] @ np.arange(values.shape[1])  # knows genes apart
        return float((training.labels == label).mean() + 1e-6 * last_cell[0])

    monkeypatch.setattr(augmentation, "held_out_f1", share)


@pytest.fixture
def experiment(tmp_path):
    return write_experiment(tmp_path / "pbmc", real_cells(), n_test=150)


@pytest.fixture
def rooms():
    return Rooms()


def names_of(experiment: Experiment) -> list[str]:
    return sorted(path.name for path in experiment.augmentation_folder.iterdir())


@pytest.mark.usefixtures("_fast_score")
def test_augmentation_makes_one_experiment_per_fraction_and_seed(experiment, rooms):
    rooms.augment(experiment, fractions=(0.5, 0.1), seeds=(0, 1))
    folders = [
        f"rare_type_fraction_{fraction}_seed_{seed}"
        for fraction in ("0.1", "0.5")
        for seed in (0, 1)
    ]
    files = ["rare_type.csv", "rare_type.json", "rare_type.png"]
    assert names_of(experiment) == sorted([*files, *folders])
    assert sorted(rooms.trained) == folders


@pytest.mark.usefixtures("_fast_score")
def test_derived_experiment_lacks_the_removed_training_cells_only(experiment, rooms):
    report = rooms.augment(experiment, fractions=(0.1,))
    parent = anndata.read_h5ad(experiment.processed_file)
    derived = Experiment.open(
        experiment.augmentation_folder / "rare_type_fraction_0.1_seed_0"
    )
    cut = anndata.read_h5ad(derived.processed_file)
    gone = parent[~parent.obs_names.isin(cut.obs_names)].obs
    run = report["runs"][0]
    n_rare = report["n_training_of_label"]
    assert run["n_kept"] == round(0.1 * n_rare)
    assert len(gone) == run["n_added"] == n_rare - run["n_kept"]
    assert set(gone["cluster"]) == {RARE}
    assert set(gone["split"]) == {"train"}
    assert cut.obs_names.isin(parent.obs_names).all()
    np.testing.assert_array_equal(cut.X.toarray(), parent[cut.obs_names].X.toarray())


@pytest.mark.usefixtures("_fast_score")
def test_derived_experiment_keeps_categories_without_cells(experiment, rooms):
    parent = anndata.read_h5ad(experiment.processed_file)
    categories = ["train", "valid", "test"]  # no cell is valid
    parent.obs["split"] = pd.Categorical(parent.obs["split"], categories)
    parent.write_h5ad(experiment.processed_file)
    rooms.augment(experiment)
    derived = experiment.augmentation_folder / "rare_type_fraction_0.05_seed_0"
    cut = anndata.read_h5ad(derived / "processed.h5ad")
    assert list(cut.obs["split"].cat.categories) == categories


@pytest.mark.usefixtures("_fast_score")
def test_derived_experiment_has_its_own_seed_and_no_start_checkpoint(experiment, rooms):
    training = dataclasses.replace(
        experiment.parameters.training, seed=5, checkpoint="other/job"
    )
    parameters = dataclasses.replace(experiment.parameters, training=training)
    rooms.augment(Experiment(experiment.folder, parameters), seeds=(2,))
    derived = Experiment.open(
        experiment.augmentation_folder / "rare_type_fraction_0.05_seed_2"
    )
    assert derived.parameters.training.seed == 7
    assert derived.parameters.training.checkpoint is None


def test_good_cells_help_and_repeated_ones_do_not(experiment, rooms):
    runs = rooms.augment(experiment, fractions=(0.05,), seeds=(0, 1))["runs"]
    assert all(run["augmented"] > run["reduced"] + 0.3 for run in runs)
    assert all(run["augmented"] > run["upsampled"] + 0.2 for run in runs)
    assert all(abs(run["full"] - run["augmented"]) < 0.15 for run in runs)


@pytest.mark.usefixtures("_fast_score")
def test_as_many_cells_are_generated_as_were_taken_away(experiment, rooms):
    run = rooms.augment(experiment)["runs"][0]
    assert rooms.requests == [{RARE: run["n_added"]}]


@pytest.mark.usefixtures("_fast_score")
def test_generated_genes_are_matched_by_name(experiment, rooms, tmp_path):
    other = write_experiment(tmp_path / "again", real_cells(), n_test=150)
    first = rooms.augment(experiment)["runs"]
    rooms.gene_order = rooms.gene_order[::-1]
    assert rooms.augment(other)["runs"] == first


@pytest.mark.usefixtures("_fast_score")
def test_report_holds_runs_and_intervals_and_the_table_the_same(experiment, rooms):
    report = rooms.augment(experiment, fractions=(0.5, 0.1), seeds=(0, 1, 2))
    folder = experiment.augmentation_folder
    assert json.loads((folder / "rare_type.json").read_text()) == report
    with (folder / "rare_type.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["augmented"]) for row in rows] == [
        run["augmented"] for run in report["runs"]
    ]
    (entry,) = [
        entry
        for entry in report["summary"]
        if entry["strategy"] == "reduced" and entry["fraction"] == 0.1
    ]
    values = [run["reduced"] for run in report["runs"] if run["fraction"] == 0.1]
    assert len(values) == 3
    assert entry["mean"] == pytest.approx(np.mean(values))
    assert entry["low"] <= entry["mean"] <= entry["high"]


@pytest.mark.usefixtures("_fast_score")
def test_finished_runs_are_not_run_again(experiment, rooms):
    first = rooms.augment(experiment, fractions=(0.1,))
    again = Rooms()
    assert again.augment(experiment, fractions=(0.1,)) == first
    assert (again.written, again.trained, again.requests) == ([], [], [])


@pytest.mark.usefixtures("_fast_score")
def test_augmentation_goes_on_where_it_failed(experiment, rooms):
    rooms.fail_at = "rare_type_fraction_0.1_seed_1"
    with pytest.raises(TrainingError, match="nan"):
        rooms.augment(experiment, fractions=(0.1,), seeds=(0, 1))
    rooms.fail_at = None
    report = rooms.augment(experiment, fractions=(0.1,), seeds=(0, 1))
    assert rooms.trained == [f"rare_type_fraction_0.1_seed_{seed}" for seed in (0, 1)]
    assert rooms.written == rooms.trained  # data once each
    assert len(report["runs"]) == 2


@pytest.mark.usefixtures("_fast_score")
def test_runs_of_other_parameters_are_not_taken_for_these(experiment, rooms):
    rooms.augment(experiment)
    training = dataclasses.replace(experiment.parameters.training, max_steps=7)
    parameters = dataclasses.replace(experiment.parameters, training=training)
    rooms.augment(Experiment(experiment.folder, parameters))
    assert len(rooms.trained) == 2


@pytest.mark.usefixtures("_fast_score")
def test_a_few_cells_are_kept_however_small_the_fraction(experiment, rooms):
    assert rooms.augment(experiment, fractions=(1e-6,))["runs"][0]["n_kept"] == 3


@pytest.mark.usefixtures("_fast_score")
def test_smaller_fraction_keeps_some_of_the_cells_of_a_larger(experiment, rooms):
    rooms.augment(experiment, fractions=(0.5, 0.1))
    names = [
        set(
            anndata.read_h5ad(
                experiment.augmentation_folder
                / f"rare_type_fraction_{fraction}_seed_0"
                / "processed.h5ad"
            ).obs_names
        )
        for fraction in (0.1, 0.5)
    ]
    assert names[0] < names[1]


@pytest.mark.usefixtures("_fast_score")
def test_labels_that_differ_in_punctuation_get_folders_of_their_own(tmp_path, rooms):
    cells = real_cells()
    labels = np.where(cells.labels == RARE, "B/cell", "B cell")
    experiment = write_experiment(
        tmp_path / "pbmc", SyntheticCells(cells.counts, labels), n_test=150
    )
    rooms.augment(experiment, label="B/cell")
    rooms.augment(experiment, label="B cell")
    assert len(set(rooms.trained)) == 2


def test_unknown_label_is_answered_with_the_nearest(experiment, rooms):
    with pytest.raises(ConfigError, match=r'"rare type" is no value.*"rare/type"\?'):
        rooms.augment(experiment, label="rare type")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_fraction_outside_0_and_1_is_refused(experiment, rooms, fraction):
    with pytest.raises(ConfigError, match=r"--fractions: .* between 0 and 1"):
        rooms.augment(experiment, fractions=(0.5, fraction))
    assert rooms.written == []


def test_no_seed_is_refused(experiment, rooms):
    with pytest.raises(ConfigError, match="--seeds: 0 repeats"):
        rooms.augment(experiment, seeds=())


def test_unconditional_model_is_refused_before_anything_is_written(tmp_path, rooms):
    experiment = write_experiment(tmp_path / "p", real_cells(), model="scGAN")
    with pytest.raises(ConfigError, match=r"model\.type is scGAN.*of a label"):
        rooms.augment(experiment)
    assert not experiment.augmentation_folder.exists()


def test_label_without_held_out_cells_is_answered_with_advice(tmp_path, rooms):
    experiment = write_experiment(tmp_path / "p", real_cells(), n_test=0)
    with pytest.raises(DataError, match=r'no held-out cell is "rare/type"[\s\S]*Raise'):
        rooms.augment(experiment)


@pytest.mark.usefixtures("_fast_score")
def test_valid_cells_are_held_out_when_no_test_cell_has_the_label(tmp_path, rooms):
    experiment = write_experiment(tmp_path / "p", real_cells(), n_test=0, n_valid=150)
    assert rooms.augment(experiment)["held_out_split"] == "valid"


def test_label_of_too_few_training_cells_is_refused(tmp_path, rooms):
    cells = real_cells()
    n_test = 395
    experiment = write_experiment(tmp_path / "p", cells, n_test=n_test)
    with pytest.raises(DataError, match=r'training cells are "rare/type", more than 3'):
        rooms.augment(experiment)


def test_experiment_that_is_not_processed_is_refused(experiment, rooms):
    experiment.processed_file.unlink()
    with pytest.raises(DataError, match="Run --process first"):
        rooms.augment(experiment)


def test_mean_and_interval_are_those_of_student():
    # 0.1 / sqrt(3) times the 97.5 % quantile for 2 degrees of freedom, 4.302653
    estimate = mean_and_interval([0.5, 0.6, 0.7])
    assert estimate == pytest.approx((0.6, 0.6 - 0.248414, 0.6 + 0.248414), abs=1e-6)


def test_interval_of_one_value_is_unknown():
    mean, *ends = mean_and_interval([0.5])
    assert mean == 0.5
    assert np.isnan(ends).all()


def test_augmentation_of_two_modalities_is_refused(experiment, rooms):
    block = {"input_ds": {"raw_input": "a.h5mu", "atac": {}}}
    both = Experiment(experiment.folder, parse_experiment(block, "test"))
    with pytest.raises(ConfigError, match=r"RNA alone. Use an exp.* input_ds.atac"):
        rooms.augment(both)
