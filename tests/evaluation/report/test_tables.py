"""``metrics.csv`` and the console's tables."""

from __future__ import annotations

import csv
import dataclasses
from types import SimpleNamespace

import pytest

from cellgan.evaluation.metrics.catalogue import FLOORS
from cellgan.evaluation.report import tables
from cellgan.evaluation.report.document import MetricRecord, write_report
from tests.evaluation.documents import METRICS, NASTY, make_document, make_experiment


@pytest.fixture
def document():
    return make_document()


@pytest.fixture
def experiment():
    return make_experiment()


def edit(experiment, index, **changes):
    """Change one metric of an experiment."""
    metrics = experiment.metrics
    metrics[index] = dataclasses.replace(metrics[index], **changes)


def test_the_small_report_is_one(tmp_path, document):
    write_report(tmp_path / "report.json", document)
    assert (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, tables.UNDEFINED),
        (float("nan"), tables.UNDEFINED),
        (float("inf"), tables.UNDEFINED),
        (0.0, "0.00"),
        (0.5, "0.500"),
        (-0.00123, "-0.00123"),
        (12.34, "12.3"),
        (123.4, "123"),
        (999.4, "999"),
        (999.7, "1000"),
        (-1234.5, "-1230"),
        (98765.4, "98800"),
        (1.5e7, "1.5e+07"),
        (0.00001234, "1.23e-05"),
        (120, "120"),
        (12345, "12345"),
    ],
)
def test_number_has_three_digits(value, text):
    assert tables.number(value) == text


def test_mean_score_clips_scores_and_leaves_out_undefined_ones():
    results = [SimpleNamespace(score=score) for score in (1.5, -2.0, 0.5, None)]
    assert tables.mean_score(results) == 0.5
    assert tables.mean_score(results[3:]) is None
    assert tables.mean_score([]) is None


def test_family_scores_are_means_of_pooled_metrics(experiment):
    for index, result in enumerate(experiment.metrics):
        score = 0.25 if result.label is None else 1.0
        edit(experiment, index, score=score)
    edit(experiment, 1, score=0.75)  # the second of "distribution"
    scores = tables.family_scores(experiment)
    assert list(scores)[:2] == ["distribution", "support"]
    assert (scores["distribution"], scores["support"]) == (0.5, 0.25)


def test_metrics_are_named_by_modality_only_where_there_are_several(experiment):
    result = experiment.metrics[0]
    assert tables.metric_name(result, experiment) == "mmd_squared"
    edit(experiment, 1, modality="atac")
    assert tables.metric_name(result, experiment) == "mmd_squared (rna)"
    assert tables.metric_title(result, experiment) == f"{result.title} (rna)"


def test_leaking_and_unscored_experiments_are_ranked_after_others(document):
    one = document.experiments["pbmc"]
    experiments = {
        "leaks": document.experiments["pbmc_copied"],
        "unscored": dataclasses.replace(one, overall=None),
        "poor": dataclasses.replace(one, overall=0.1),
        "good": dataclasses.replace(one, overall=0.9),
    }
    document = dataclasses.replace(document, experiments=experiments)
    order = [name for name, _ in tables.ranked(document)]
    assert order == ["good", "poor", "unscored", "leaks"]


def read_csv(tmp_path, document):
    path = tmp_path / "folder" / "metrics.csv"
    tables.write_csv(path, document)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_row_per_experiment_metric_and_label(tmp_path, document):
    rows = read_csv(tmp_path, document)
    pooled = [name for name, *_ in METRICS] + ["rare_label_f1"]
    assert [(row["experiment"], row["label"], row["name"]) for row in rows] == [
        ("pbmc_copied", "", "mmd_squared"),
        *(("pbmc", "", name) for name in pooled),
        *(("pbmc", NASTY, name) for name in pooled[:3]),
    ]


def test_csv_has_every_number_unrounded_and_nothing_where_undefined(tmp_path, document):
    edit(document.experiments["pbmc"], 0, value=0.123456789012)
    result = document.experiments["pbmc"].metrics[0]
    row, *_, undefined = read_csv(tmp_path, document)[1:8]
    assert float(row["value"]) == 0.123456789012
    assert [float(row[f"floor_{name}"]) for name in FLOORS] == [0.09, 0.12, 0.31]
    assert (row["floor"], row["n"]) == ("permuted", "300")
    for column in ("low", "high", "ceiling", "score", "score_low", "score_high"):
        assert float(row[column]) == getattr(result, column)
        assert undefined[column] == ""
    assert (undefined["floor"], undefined["floor_permuted"]) == ("", "")


def test_csv_columns_are_all_that_is_known_of_a_metric(tmp_path, document):
    known = {field.name for field in dataclasses.fields(MetricRecord)} - {"floors"}
    row = read_csv(tmp_path, document)[0]
    floors = {f"floor_{name}" for name in FLOORS}
    assert set(row) == known | floors | {"experiment"}


def test_leaderboard_has_a_line_per_experiment_best_first(document):
    _, header, first, second = tables.leaderboard_text(document).splitlines()
    assert " ".join(header.split()) == "experiment grade score weakest metric its score"
    assert first.split() == ["pbmc", "usable", "0.735", "classifier_auc", "0.177"]
    assert second.split() == ["pbmc_copied", "leak", "0.990", "mmd_squared", "0.903"]


def test_leaderboard_shows_a_dash_when_nothing_has_a_score(document):
    one = document.experiments["pbmc"]
    unscored = dataclasses.replace(one, metrics=one.metrics[6:7], overall=None)
    document = dataclasses.replace(document, experiments={"pbmc": unscored})
    assert tables.leaderboard_text(document).splitlines()[-1].split()[2:] == ["-"] * 3


def test_summary_shows_value_interval_ceiling_floor_and_score(experiment):
    first, header, row, *rest = tables.summary_text("pbmc", experiment).splitlines()
    last = rest[len(METRICS) - 1]
    assert first == (
        "pbmc: 300 generated against 300 held-out cells (the test split, held out by "
        "donor)"
    )
    assert header.split()[-1] == "score"
    assert " ".join(row.split()) == (
        "mmd_squared 0.0120 0.0108 to 0.0132 0.000400 0.120 p 0.903"
    )
    assert last.split() == ["rare_label_f1", *"-----"]


def test_summary_says_why_scores_are_missing_and_how_many_cells_were_used(experiment):
    text = " ".join(tables.summary_text("pbmc", experiment).split())
    why = "No score, real cells cannot be told from the floor: rare_label_f1."
    assert why in text
    assert "300 of 5,000 generated cells (4,700 not)" in text
    assert "1,500 of 1,500 training cells:" in text


@pytest.mark.parametrize(
    ("score", "text", "words"),
    [
        (1.3, "1", "as good as real"),
        (1.0, "1", "as good as real"),
        (0.996, "0.996", ""),
        (0.0, "0.00", ""),
        (-0.02, "0.00", ""),
        (-3.2, "< 0", "worse than the floor"),
        (None, tables.UNDEFINED, ""),
    ],
)
def test_scores_beyond_both_ends_are_not_shown_as_numbers(score, text, words):
    assert (tables.score_text(score), tables.score_words(score)) == (text, words)


def test_names_that_differ_at_their_ends_are_not_shortened_to_one(experiment):
    for index, modality in enumerate(("rna", "atac")):
        name = "nearest_neighbour_accuracy_generated"
        edit(experiment, index, name=name, modality=modality)
    lines = tables.summary_text("pbmc", experiment).splitlines()[2:4]
    assert len({line.split("  ")[2] for line in lines}) == 2


def test_held_out_cells_of_a_file_are_named_without_a_split(experiment):
    cells = dataclasses.replace(
        experiment.cells, split="a third of the file", held_out_by=None
    )
    assert tables.held_out_cells(cells) == "a third of the file"


def test_columns_of_numbers_end_together(experiment):
    lines = tables.summary_text("pbmc", experiment).splitlines()[1 : len(METRICS) + 3]
    assert len({len(line) for line in lines}) == 1


def test_console_tables_are_at_most_100_columns_wide(document):
    wide = make_experiment()
    numbers = {"value": -0.0001234567, "low": -0.000123, "high": -0.000123}
    for index in range(len(wide.metrics)):
        edit(wide, index, name=10 * "long_name_", **numbers)
    document.experiments["an experiment with quite a long name" * 3] = wide
    text = f"{tables.leaderboard_text(document)}\n{tables.summary_text('wide', wide)}"
    assert max(map(len, text.splitlines())) <= 100
