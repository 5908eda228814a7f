"""TensorBoard, ``metrics.jsonl``; read back through the real TensorBoard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from cellgan.training.summaries import RunLog, histogram

PLUGIN = "data/plugin"


def make_log(folder, **options):
    logs = folder / "job/gan/logs"
    metrics_file = folder / "job/metrics.jsonl"
    return RunLog(folder.name, "gan", logs, metrics_file, **options)


def log_steps(folder, start, steps, value):
    with make_log(folder) as log:
        log.begin(start, 100)
        for step in steps:
            log.scalars(step, {"gen_loss": value + step, "learning_rate": 0.5})
            cells = {
                "single_cell_fake/mean": tf.constant(2.0),
                "single_cell_fake/histogram": tf.constant([[0.0, 1.0], [1.0, 1.0]]),
            }
            log.tensors(step, cells)


def metrics(folder):
    text = (folder / "job/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    """Two runs: pbmc resumed at step 20 after it had logged to 40, and brain."""
    folder = tmp_path_factory.mktemp("experiments")
    log_steps(folder / "pbmc", 0, (10, 20, 30, 40), 0.0)
    time.sleep(1.1)  # TensorBoard reads files in the order of the second in their names
    log_steps(folder / "pbmc", 20, (30,), 1000.0)
    log_steps(folder / "brain", 0, (10,), 0.0)
    picture = folder / "step_10.png"
    pixels = np.zeros((6, 8, 3), np.uint8)
    tf.io.write_file(str(picture), tf.io.encode_png(pixels))
    with make_log(folder / "brain") as log:
        log.begin(10, 100)
        log.image(10, "TSNE", picture)
        log.projector(np.array([[9.0, 9.0]]), ["old"], ["real"])
        points = np.array([[1.5, 2.0], [3.0, 4.25]])
        log.projector(points, ["B cell", "T cell"], ["real", "generated"])
    return folder


def start_tensorboard(folder, load_fast):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", folder]
    command += ["--host", "127.0.0.1", "--port", "0", "--load_fast", load_fast]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for_runs(address, n_runs):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"{address}/data/runs") as answer:
            if len(json.load(answer)) == n_runs:
                return
        time.sleep(0.1)
    pytest.fail("TensorBoard did not find the runs")


@pytest.fixture(scope="module", params=["false"])
def tensorboard(request, experiments):
    """A function that asks a real TensorBoard, for text."""
    process = start_tensorboard(experiments, request.param)
    try:
        found = next(
            re.finditer(rb"http://127\S+:\d+", b"".join(lines_until_url(process)))
        )
        address = found[0].decode()
        wait_for_runs(address, 2)

        def ask(path, **query):
            url = f"{address}/{path}"
            data = f"?{urllib.parse.urlencode(query)}" if query else ""
            with urllib.request.urlopen(url + data) as answer:
                return answer.read()

        yield ask
    finally:
        process.kill()
        process.communicate()


def lines_until_url(process):
    for line in process.stdout:
        yield line
        if b"http://" in line:
            return


@pytest.mark.slow
def test_tensorboard_shows_every_run_of_an_experiments_folder(tensorboard):
    runs = json.loads(tensorboard("data/runs"))
    assert set(runs) == {"pbmc/job/gan/logs", "brain/job/gan/logs"}


def test_tensorboard_shows_scalars_under_their_tags(tensorboard):
    tags = json.loads(tensorboard(f"{PLUGIN}/scalars/tags"))["pbmc/job/gan/logs"]
    assert set(tags) == {"gen_loss", "learning_rate", "single_cell_fake/mean"}


def test_tensorboard_drops_what_an_interrupted_run_logged_too_far(tensorboard):
    query = {"run": "pbmc/job/gan/logs", "tag": "gen_loss"}
    points = json.loads(tensorboard(f"{PLUGIN}/scalars/scalars", **query))
    assert [point[1:] for point in points] == [[10, 10.0], [20, 20.0], [30, 1030.0]]


def test_tensorboard_shows_histograms(tensorboard):
    query = {"run": "pbmc/job/gan/logs", "tag": "single_cell_fake/histogram"}
    steps = json.loads(tensorboard(f"{PLUGIN}/histograms/histograms", **query))
    buckets = np.array(steps[0][2])
    assert steps[0][1] == 10
    np.testing.assert_array_equal(buckets[[0, -1], 2], [1, 3])
    np.testing.assert_array_equal(buckets[1:-1, 2], np.zeros(len(buckets) - 2))


def test_tensorboard_shows_images(tensorboard):
    query = {"run": "brain/job/gan/logs", "tag": "TSNE", "sample": 0}
    (image,) = json.loads(tensorboard(f"{PLUGIN}/images/images", **query))
    png = tensorboard(f"{PLUGIN}/images/individualImage?{image['query']}")
    assert image["step"] == 10
    assert tf.io.decode_png(png).shape == (6, 8, 3)


def test_tensorboard_shows_the_last_cells_in_the_projector(tensorboard):
    run = "brain/job/gan/logs"
    config = json.loads(tensorboard(f"{PLUGIN}/projector/info", run=run))
    name = config["embeddings"][0]["tensorName"]
    assert config["embeddings"][0]["tensorShape"] == [2, 2]
    tensor = tensorboard(f"{PLUGIN}/projector/tensor", run=run, name=name)
    np.testing.assert_array_equal(
        np.frombuffer(tensor, np.float32), [1.5, 2.0, 3.0, 4.25]
    )
    cells = tensorboard(f"{PLUGIN}/projector/metadata", run=run, name=name)
    assert cells.decode() == "label\tkind\nB cell\treal\nT cell\tgenerated\n"


def test_projector_has_one_row_per_cell_when_labels_have_tabs_and_line_breaks(tmp_path):
    labels = ["B\tcell", "T\r\n \tcell", "NK\u2028cell"]
    with make_log(tmp_path) as log:
        log.projector(np.ones((3, 2)), labels, ["real"] * 3)
    cells = tmp_path / "job/gan/logs/projector_cells.tsv"
    rows = ["label\tkind", "B cell\treal", "T cell\treal", "NK cell\treal"]
    assert cells.read_text(encoding="utf-8").splitlines() == rows


def test_metrics_file_has_a_line_per_summary_without_those_beyond_a_resume(
    experiments,
):
    lines = metrics(experiments / "pbmc")
    assert [(line["step"], line["gen_loss"]) for line in lines] == [
        (10, 10.0),
        (20, 20.0),
        (30, 1030.0),
    ]
    assert {line["stage"] for line in lines} == {"gan"}
    assert all(0 <= time.time() - line["time"] < 3600 for line in lines)


def test_metrics_of_other_stages_survive_a_resume(tmp_path):
    file = tmp_path / "job/metrics.jsonl"
    file.parent.mkdir()
    file.write_text('{"step": 90, "stage": "autoencoder"}\n')
    log_steps(tmp_path, 0, (10,), 0.0)
    assert [line["stage"] for line in metrics(tmp_path)] == ["autoencoder", "gan"]


def test_a_metrics_line_cut_by_a_kill_is_dropped(tmp_path):
    log_steps(tmp_path, 0, (10,), 0.0)
    with (tmp_path / "job/metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "sta')
    log_steps(tmp_path, 20, (30,), 0.0)
    assert [line["step"] for line in metrics(tmp_path)] == [10, 30]


@pytest.mark.parametrize("n_bytes_lost", [1, 5, 40])
def test_an_event_cut_by_a_kill_does_not_hide_later_ones(tmp_path, n_bytes_lost):
    log_steps(tmp_path, 0, (10,), 0.0)
    (events,) = (tmp_path / "job/gan/logs").iterdir()
    events.write_bytes(events.read_bytes()[:-n_bytes_lost])
    with make_log(tmp_path) as log:
        log.begin(10, 100)
    steps = [
        tf.compat.v1.Event.FromString(record.numpy()).step
        for record in tf.data.TFRecordDataset(str(events))
    ]
    assert steps[-1] == 10
    assert len(steps) == 4  # the file's version, two scalars, the first tensor


def test_only_the_chief_writes(tmp_path):
    with make_log(tmp_path, is_chief=False) as log:
        log.begin(0, 10)
        log.scalars(1, {"gen_loss": 1.0})
        log.tensors(1, {"kernel/values": tf.ones((3,))})
        log.projector(np.ones((1, 2)), ["a"], ["real"])
    assert list(tmp_path.iterdir()) == []


def test_histogram_counts_every_value_once():
    values = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    counts, edges = np.histogram(values.astype(np.float64), bins=30)
    result = histogram(tf.constant(values)).numpy()
    np.testing.assert_allclose(result[:, 0], edges[:-1], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(result[:, 1], edges[1:], rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(result[:, 2], counts)


def test_histogram_of_equal_values_has_them_in_one_bucket():
    result = histogram(tf.zeros((7,))).numpy()
    assert result[:, 2].max() == 7
    assert result[:, 2].sum() == 7
