"""From files of cells to a report: what is written, and what is not when it fails."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest

from cellgan.cli import main
from cellgan.errors import ConfigError, DataError
from cellgan.evaluation import evaluate as report
from cellgan.evaluation import suite
from cellgan.evaluation.evaluate import (
    evaluate,
    evaluate_files,
    guidance_rows,
    leaderboard,
    leaking,
    without_thread_warnings,
)
from cellgan.evaluation.figures import cells as cell_pictures
from cellgan.evaluation.metrics import classifiers, published
from cellgan.evaluation.report.document import read_report
from tests.evaluation.folders import (
    generated_cells,
    permuted_genes,
    processed_cells,
    write_experiment,
    write_generated,
)
from tests.evaluation.sides import population
from tests.synthetic import SyntheticCells

FILES = {"figures", "metrics.csv", "report.html", "report.json"}


@pytest.fixture(scope="module", autouse=True)
def _fast():
    """Resample seldom, grow small forests and draw no map: all have their own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "N_RESAMPLES", 10)
        patch.setattr(suite, "N_LABEL_RESAMPLES", 5)
        patch.setattr(classifiers, "N_TREES", 10)
        patch.setattr(published, "N_TREES", 60)
        patch.setattr(
            cell_pictures, "embed", lambda cells, **options: cells[:, :2], raising=False
        )
        yield


def cells(first: int, last: int) -> SyntheticCells:
    """Return some cells of one population."""
    everything = population()
    return SyntheticCells(everything.counts[first:last], everything.labels[first:last])


def experiment_in(folder, made: SyntheticCells):
    """Write an experiment with 400 training, 200 test and some generated cells."""
    experiment = write_experiment(folder, cells(0, 600), n_test=200)
    write_generated(experiment, generated_cells(made.counts, made.labels))
    return experiment


@pytest.fixture(scope="module")
def perfect(tmp_path_factory):
    """Return an experiment whose generated cells are real, and its report."""
    folder = tmp_path_factory.mktemp("perfect") / "experiments" / "perfect"
    experiment = experiment_in(folder, cells(600, 900))
    return experiment, evaluate(experiment)


@pytest.fixture(scope="module")
def copied(perfect):
    """Return an experiment beside it whose generated cells are training cells."""
    experiment, _ = perfect
    other = experiment.folder.with_name("copied")
    processed = processed_cells(cells(0, 600), n_test=200, n_valid=0)
    training = processed[processed.obs["split"] == "train"]
    made = SyntheticCells(
        training.X[:300], np.asarray(training.obs["cluster"][:300], dtype=str)
    )
    experiment = experiment_in(other, made)
    return experiment, evaluate(experiment)


def entry_of(document):
    (entry,) = document.experiments.values()
    return entry


def pooled(document):
    rows = entry_of(document).metrics
    return {row.name: row for row in rows if row.label is None}


def test_report_returns_what_it_writes(perfect):
    experiment, document = perfect
    assert read_report(experiment.evaluation_folder / "report.json") == document


def test_every_file_is_there(perfect):
    experiment, _ = perfect
    assert {file.name for file in experiment.evaluation_folder.iterdir()} == FILES
    assert experiment.model_card_file.exists()
    assert list((experiment.job_folder / "evaluation").glob("events.out.tfevents.*"))


def test_figures_have_texts_that_say_what_is_to_be_seen(perfect):
    experiment, _ = perfect
    folder = experiment.evaluation_folder / "figures"
    texts = json.loads((folder / "pictures.json").read_text())
    assert len(texts) >= 6
    assert {text["file"] for text in texts} == {f.name for f in folder.glob("*.png")}
    assert all(len(text["alt"]) > 40 for text in texts)


def test_real_cells_are_close_to_the_ceiling(perfect):
    _, document = perfect
    assert entry_of(document).overall > 0.85
    assert entry_of(document).verdict.grade in ("close", "usable")
    assert pooled(document)["label_agreement"].value > 0.95


def test_report_says_how_many_cells_of_what_were_compared(perfect):
    _, document = perfect
    numbers = entry_of(document).cells
    assert numbers.held_out == numbers.generated == numbers.control
    assert numbers.split == "test"
    labels = entry_of(document).labels
    assert sum(label.n for label in labels.values()) == numbers.held_out
    assert {label.state for label in labels.values()} == {"compared"}


def test_every_label_has_numbers_of_its_own(perfect):
    _, document = perfect
    rows = entry_of(document).metrics
    names = {row.name for row in rows if row.label == "type B"}
    assert {"mmd_squared", "precision", "forest_auc_genes", "label_agreement"} <= names


def test_normalised_cells_leave_library_sizes_unjudged(perfect):
    _, document = perfect
    assert pooled(document)["library_size_ks"].value is None
    assert "library sizes are not judged" in entry_of(document).scale


@pytest.mark.slow
def test_copies_of_training_cells_are_a_leak(copied):
    experiment, document = copied
    assert leaking(document) == [experiment.name]
    assert entry_of(document).verdict.grade == "leak"


def test_honest_cells_are_no_leak(perfect):
    assert leaking(perfect[1]) == []


def test_experiments_on_the_same_data_share_a_leaderboard(perfect, copied, tmp_path):
    experiments = [perfect[0], copied[0]]
    document = leaderboard(experiments, tmp_path / "all")
    assert list(document.experiments) == ["perfect", "copied"]
    assert {file.name for file in (tmp_path / "all").iterdir()} == FILES
    page = (tmp_path / "all" / "report.html").read_text()
    assert "perfect" in page
    assert "copied" in page


def test_one_report_makes_no_leaderboard(perfect, tmp_path):
    assert leaderboard([perfect[0]], tmp_path / "all") is None
    assert not (tmp_path / "all").exists()


@pytest.mark.slow
def test_files_of_others_are_judged_side_by_side(tmp_path):
    real, good, bad = (tmp_path / f"{name}.h5ad" for name in ("real", "good", "bad"))
    processed_cells(cells(0, 600), n_test=200, n_valid=0).write_h5ad(real)
    made = cells(600, 900)
    for path, counts in ((good, made.counts), (bad, permuted_genes(made.counts))):
        adata = generated_cells(counts, made.labels)
        adata.X = counts
        adata.write_h5ad(path)
    document = evaluate_files(real, [good, bad], tmp_path / "evaluation")
    scores = {name: said.overall for name, said in document.experiments.items()}
    assert scores["good"] > 0.85 > scores["bad"] + 0.3
    assert {file.name for file in (tmp_path / "evaluation").iterdir()} == FILES


@pytest.mark.slow
def test_unknown_training_cells_leave_memorisation_open(tmp_path, caplog):
    caplog.set_level("INFO")
    real = tmp_path / "real.h5ad"
    adata = processed_cells(cells(0, 600), n_test=200, n_valid=0)
    del adata.obs["split"]
    adata.write_h5ad(real)
    document = evaluate_files(real, [real], tmp_path / "evaluation")
    found = entry_of(document).memorisation
    assert not found.known
    assert found.leaks is None
    assert 'an obs column "split"' in found.caution
    said = " ".join(message for _, _, message in caplog.record_tuples)
    assert "leaks were not looked for: the real file does not say which" in said


def test_leaks_that_cannot_be_looked_for_are_refused_before_anything_else(
    tmp_path, capsys
):
    real = tmp_path / "real.h5ad"
    adata = processed_cells(cells(0, 600), n_test=200, n_valid=0)
    del adata.obs["split"]
    adata.write_h5ad(real)
    files = ["--real", str(real), "--generated", str(real)]
    folder = tmp_path / "evaluation"
    options = ["--report", str(folder), "--fail-on-leak"]
    assert main(["--evaluate", *files, *options]) == 2
    assert 'Add an obs column "split"' in capsys.readouterr().err
    assert not folder.exists()


def test_files_of_one_name_are_told_by_their_folders(tmp_path):
    with pytest.raises(ConfigError, match="two files have the same name"):
        evaluate_files(tmp_path / "r", [tmp_path / "a", tmp_path / "a"], tmp_path)


@pytest.mark.slow
def test_cells_without_labels_are_compared(tmp_path):
    experiment = write_experiment(
        tmp_path / "pbmc", cells(0, 300), n_test=100, model="scGAN"
    )
    write_generated(experiment, generated_cells(cells(600, 700).counts, None))
    document = evaluate(experiment)
    assert pooled(document)["mmd_squared"].value is not None
    assert pooled(document)["label_agreement"].value is None
    assert entry_of(document).labels == {}


def test_refused_cells_leave_the_earlier_report(tmp_path):
    experiment = experiment_in(tmp_path / "pbmc", cells(600, 605))
    report = experiment.evaluation_folder / "report.json"
    report.parent.mkdir()
    report.write_text("earlier")
    with pytest.raises(DataError, match="too few cells to compare"):
        evaluate(experiment)
    assert report.read_text() == "earlier"
    assert not experiment.model_card_file.exists()


def test_failed_evaluation_leaves_no_report_on_other_cells(tmp_path, monkeypatch):
    experiment = experiment_in(tmp_path / "pbmc", cells(600, 700))
    folder = experiment.evaluation_folder
    folder.mkdir()
    for name in ("report.json", "report.html", "metrics.csv", "notes.txt"):
        (folder / name).write_text("earlier")
    experiment.model_card_file.write_text("earlier")

    def fail(*_arguments, **_options):
        raise MemoryError

    monkeypatch.setattr(report, "_judge", fail)
    with pytest.raises(MemoryError):
        evaluate(experiment)
    assert [file.name for file in folder.iterdir()] == ["notes.txt"]
    assert not experiment.model_card_file.exists()


def test_labels_have_the_floor_of_genes_independent_within_them(perfect):
    _, document = perfect
    for name in ("wasserstein_2", "mmd_squared"):
        rows = [row for row in entry_of(document).metrics if row.name == name]
        labels = {row.label for row in rows} - {None}
        assert labels == set(entry_of(document).labels)
        for row in rows:
            assert row.floors["independent"] is not None
            assert row.ceiling is not None


def test_damaged_report_is_refused_with_advice(tmp_path):
    path = tmp_path / "report.json"
    path.write_text('{"schema": 0}')
    with pytest.raises(DataError, match=r"not a report of this version.*--evaluate"):
        read_report(path)


@pytest.mark.slow
def test_evaluation_loads_neither_tensorflow_nor_pyplot(tmp_path):
    real = tmp_path / "real.h5ad"
    processed_cells(cells(0, 400), n_test=150, n_valid=0).write_h5ad(real)
    program = (
        "import sys; from pathlib import Path; "
        "from cellgan.evaluation.evaluate import evaluate_files; "
        f"evaluate_files(Path({str(real)!r}), [Path({str(real)!r})], "
        f"Path({str(tmp_path / 'evaluation')!r})); "
        "print([m for m in ('tensorflow', 'keras', 'torch', 'matplotlib.pyplot') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_table_of_a_guidance_sweep_is_read_as_numbers(tmp_path):
    file = tmp_path / "guidance_sweep.csv"
    file.write_text("scale,recall,seconds\n0.5,0.8,2\nreal,0.9,\n", encoding="utf-8")
    assert guidance_rows(file) == [
        {"scale": 0.5, "recall": 0.8, "seconds": 2.0},
        {"scale": None, "recall": 0.9, "seconds": None},
    ]


def test_only_the_warning_of_lost_filters_is_not_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *it, **_: shown.append(it[0]))
    with without_thread_warnings(), warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("`sklearn.utils.parallel.delayed` should be used", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(message) for message in shown] == ["something else"]
