"""The model card, read as a reader of Markdown and YAML does."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from cellgan.config.reading import as_json, load_parameters
from cellgan.evaluation.report.model_card import flat, metrics_table, model_card
from cellgan.evaluation.report.tables import UNDEFINED
from tests.evaluation.documents import (
    METRICS,
    NASTY,
    make_copied,
    make_experiment,
)

ROOT = Path(__file__).resolve().parents[3]


def render(markdown: str) -> str:
    return MarkdownIt().enable("table").render(markdown)


def shown(markdown: str) -> str:
    """Return the text that a reader sees."""
    return html.unescape(re.sub("<[^>]*>", "", render(markdown)))


def headings(markdown: str) -> list[str]:
    return re.findall("<h2>(.*)</h2>", render(markdown.partition("\n---\n")[2]))


@pytest.fixture
def card():
    return model_card("pbmc <1>", make_experiment())


def test_front_matter_names_library_and_tags(card):
    _, front, _ = card.split("---\n", 2)
    found = yaml.safe_load(front)
    assert found == {
        "library_name": "cellgan",
        "tags": ["biology", "single-cell", "synthetic-data", "rna", "cscGAN"],
    }


def test_front_matter_splits_joint_modalities_and_leaves_out_an_unknown_model():
    experiment = make_copied()
    metrics = experiment.metrics
    metrics[0] = dataclasses.replace(metrics[0], modality="rna+atac")
    _, front, _ = model_card("x", experiment).split("---\n", 2)
    assert yaml.safe_load(front)["tags"][3:] == ["atac", "rna"]


def test_text_is_shown_as_it_is(card):
    text = shown(card)
    assert "pbmc <1>" in text
    assert f"Differences of {NASTY} from the others are 26 % too small." in text
    assert f"{NASTY}\n120\ncompared" in text


def test_sections_come_in_the_order_of_questions(card):
    assert headings(card) == [
        "Data",
        "Training",
        "Intended use and limits",
        "Metrics",
        "Memorisation",
        "How to reproduce",
        "Citation",
    ]


def test_a_leak_is_said_first():
    card = model_card("pbmc", make_copied())
    assert headings(card)[0] == "Warning: training cells leak"
    assert "Memorisation" not in headings(card)
    first = card.partition("## Data")[0]
    assert "31 % of the generated cells equal a training cell." in first
    assert "Not to be shared" in card


def test_unknown_training_cells_are_no_clean_bill():
    experiment = make_experiment()
    unknown = dataclasses.replace(experiment.memorisation, known=False)
    experiment = dataclasses.replace(experiment, memorisation=unknown)
    section = model_card("pbmc", experiment).partition("## Memorisation")[2]
    assert section.strip().startswith("It is not known which cells were trained on")


def test_metrics_table_has_value_interval_ceiling_floor_and_score():
    rows = metrics_table(make_experiment()).splitlines()
    assert len(rows) == 2 + len(METRICS) + 1
    cells = [cell.strip() for cell in rows[2].strip("|").split(" | ")]
    numbers = ["0.0120", "0.0108 to 0.0132", "0.000400", "0.120", "permuted"]
    assert cells[1:] == [*numbers, "0.903", "300"]
    last = [cell.strip() for cell in rows[-1].split("|")][2:-2]
    why = "no score: real cells cannot be told from the floor"
    assert last == [*[UNDEFINED] * 4, "", why]


def test_metrics_without_a_score_are_named_among_the_limits(card):
    limits = card.partition("limits")[2].partition("## Metrics")[0]
    assert "Without a score, so not judged: rare\\_label\\_f1 (real cells " in limits


def test_training_parameters_are_listed_as_they_are(card):
    training = shown(card.partition("## Training")[2].partition("##")[0])
    assert "training.learning_rate.alpha_0\n0.001" in training
    assert "model.gen_layers\n[128, 256]" in training
    assert 'model_type\n"cscGAN"' in training


def test_parameters_of_the_card_make_the_same_experiment_again(tmp_path):
    parameters = load_parameters(ROOT / "parameters.json").experiments["pbmc"]
    experiment = make_experiment()
    run = dataclasses.replace(experiment.run, parameters=as_json(parameters))
    card = model_card("pbmc", dataclasses.replace(experiment, run=run))
    file = tmp_path / "parameters.json"
    file.write_text(re.findall("```json\n(.*?)```", card, re.S)[0])
    assert load_parameters(file).experiments["pbmc"] == parameters


def test_card_says_what_was_asked_for_beside_the_parameters():
    experiment = make_experiment()
    asked = {"cells_no": [3, 0], "request": '{"counts": true}'}
    experiment.run.origin.update(asked)
    section = model_card("x", experiment).partition("## How to reproduce")[2]
    asked = section.partition("`--generate` was asked for ")[2]
    assert "cells_no` `[3, 0]`, `seed` `5`, `request` " in asked
    assert "counts" in asked


def test_a_card_without_parameters_says_so():
    section = model_card("x", make_copied()).partition("## How to reproduce")[2]
    assert "How the cells were made is not known." in section


@pytest.mark.parametrize("text", ["a`b", "``", "a|b", "<T> & $x$", "back\\slash"])
def test_code_shows_any_value(text):
    experiment = make_experiment()
    experiment.run.origin["file"] = text
    training = model_card("x", experiment).partition("## Training")[2]
    assert f"file\n{json.dumps(text)}\n" in shown(training.partition("## Int")[0])


def test_flat_joins_keys_of_nested_blocks():
    block = {"a": {"b": {"c": 1}, "d": []}, "e": None}
    assert flat(block) == {"a.b.c": 1, "a.d": [], "e": None}
