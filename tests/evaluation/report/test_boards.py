"""TensorBoard, read back by TensorBoard's own readers, all without TensorFlow."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.report.boards import hyperparameters, scalars, write_boards
from tests.evaluation.documents import PNG, make_copied, make_experiment

WRITE_AND_READ = """
import dataclasses, json, sys, types
from pathlib import Path

from cellgan.evaluation.report.boards import write_boards
from cellgan.evaluation.figures.canvas import Picture
from tests.evaluation.documents import PNG, make_document

logs = Path(sys.argv[1])
pictures = [Picture("map", "Map of <cells>", "57 % are generated", PNG)]
stale = dataclasses.replace(make_document().experiments["pbmc"], overall=0.111)
write_boards(logs / "pbmc/job/evaluation", "pbmc", stale, pictures)
for name, experiment in make_document().experiments.items():
    write_boards(logs / name / "job/evaluation", name, experiment, pictures)
loaded = [name for name in ("tensorflow", "keras") if name in sys.modules]

sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")  # its own stub
from google.protobuf import json_format
from tensorboard.backend.event_processing import data_provider
from tensorboard.backend.event_processing import plugin_event_multiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

runs = plugin_event_multiplexer.EventMultiplexer()
runs.AddRunsFromDirectory(str(logs))
runs.Reload()
provider = data_provider.MultiplexerDataProvider(runs, str(logs))
context = backend_context.Context(base_plugin.TBContext(data_provider=provider))
asked = RequestContext()
experiment = context.experiment_from_metadata(
    asked, "", True, context.hparams_metadata(asked, ""), []
)
request = api_pb2.ListSessionGroupsRequest(
    slice_size=10,
    allowed_statuses=[api_pb2.STATUS_SUCCESS],
    col_params=[api_pb2.ColParams(metric=m.name) for m in experiment.metric_infos],
)
groups = list_session_groups.Handler(asked, context, "", request).run()
run = "pbmc/job/evaluation"
(picture,) = runs.Tensors(run, "evaluation/map")
(text,) = runs.Tensors(run, "evaluation")
described = runs.SummaryMetadata(run, "evaluation/map")
names = runs.PluginRunToTagToContent("text")
print(json.dumps({
    "loaded": loaded,
    "runs": sorted(runs.Runs()),
    "hparams": sorted(info.name for info in experiment.hparam_infos),
    "metrics": sorted(info.name.tag for info in experiment.metric_infos),
    "rows": [json_format.MessageToDict(group) for group in groups.session_groups],
    "step": picture.step,
    "image": [part.hex() for part in picture.tensor_proto.string_val],
    "description": [described.display_name, described.summary_description],
    "text": text.tensor_proto.string_val[0].decode(),
    "text_runs": {name: list(tags) for name, tags in names.items()},
}))
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """What TensorBoard reads of two experiments, one of them written twice."""
    done = subprocess.run(
        [sys.executable, "-c", WRITE_AND_READ, tmp_path_factory.mktemp("experiments")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def row(read, name):
    (found,) = (row for row in read["rows"] if row["name"].startswith(f"{name}/"))
    return found


def test_writing_loads_no_tensorflow(read):
    assert read["loaded"] == []


def test_every_experiment_is_a_run(read):
    assert read["runs"] == ["pbmc/job/evaluation", "pbmc_copied/job/evaluation"]


def test_hparams_has_a_row_per_experiment_with_parameters(read):
    assert len(read["rows"]) == 2
    assert row(read, "pbmc")["hparams"] == {
        "model.type": "cscGAN",
        "model.latent_dim": 32.0,
        "model.gen_layers": "[128, 256]",
        "training.max_steps": 3000.0,
        "training.learning_rate.decay": True,
        "training.learning_rate.alpha_0": 0.001,
    }
    assert set(row(read, "pbmc")["hparams"]) == set(read["hparams"])


def test_hparams_columns_are_the_key_numbers(read):
    values = {
        metric["name"]["tag"]: metric["value"]
        for metric in row(read, "pbmc")["metricValues"]
    }
    assert values == pytest.approx(scalars(make_experiment()))
    assert set(values) == set(read["metrics"])


def test_writing_again_replaces_what_was_there(read):
    (session,) = row(read, "pbmc")["sessions"]
    overall = [
        metric["value"]
        for metric in session["metricValues"]
        if metric["name"]["tag"] == "overall score"
    ]
    assert overall == pytest.approx([make_experiment().overall])


def test_numbers_are_of_the_training_step_of_the_cells(read):
    metrics = row(read, "pbmc")["metricValues"]
    assert {metric["trainingStep"] for metric in metrics} == {3000}
    assert read["step"] == 3000
    unknown = row(read, "pbmc_copied")["metricValues"]
    assert {metric.get("trainingStep", 0) for metric in unknown} == {0}


def test_pictures_are_shown_with_title_and_text(read):
    width, height, png = (bytes.fromhex(part) for part in read["image"])
    assert (width, height, png) == (b"3", b"2", PNG)
    assert read["description"] == ["Map of <cells>", "57 % are generated"]


def test_text_tab_has_the_table_of_all_metrics(read):
    assert read["text"].startswith("### pbmc\n\n| metric |")
    assert "energy distance" in read["text"]
    assert read["text_runs"]["pbmc/job/evaluation"] == ["evaluation"]


def test_scalars_are_scores_and_the_first_value_of_every_family():
    experiment = make_experiment()
    found = scalars(experiment)
    families = ["distribution", "support", "classifier", "genes", "structure"]
    assert list(found) == [
        "overall score",
        *(f"score/{family}" for family in families),
        *("value/mmd_squared", "value/precision", "value/classifier_auc"),
        *("value/variance_error", "value/effect_slope"),
    ]
    assert found["value/mmd_squared"] == 0.012


def test_hyperparameters_leave_out_what_is_null():
    experiment = make_experiment()
    assert "training.checkpoint" not in hyperparameters(experiment)
    assert hyperparameters(make_copied()) == {}


def test_only_event_files_are_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "events.out.tfevents.1.old").write_text("old")
    pictures = [Picture("map", "Map", "57 %", PNG)]
    write_boards(tmp_path, "pbmc", make_experiment(), pictures)
    notes, events = sorted(path.name for path in tmp_path.iterdir())[::-1]
    assert notes == "notes.txt"
    assert events.startswith("events.out.tfevents.")
    assert not events.endswith(".1.old")
