"""Several devices and several workers give the weights of one device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cellgan.errors import ConfigError
from cellgan.training.distribution import (
    check_batch_size,
    cluster_resolver,
    distributed_batches,
    is_chief,
    make_strategy,
)
from cellgan.training.loop import Schedule
from tests.linear_stage import BATCH_SIZE, batches_from
from tests.training_run import STAGES, saved_variables, train

ROOT = Path(__file__).parents[2]
SCHEDULE = {
    "max_steps": 25,
    "progress_freq": 0,
    "validation_freq": 5,
    "summary_freq": 5,
    "save_freq": 10,
}
# TensorFlow's workers listen on every interface: a network of its own keeps them in
ISOLATED = [
    *("unshare", "--user", "--map-root-user", "--net"),
    *("sh", "-c", 'ip link set lo up && exec "$0" "$@"'),
]
TWO_WORKERS = """
import json, os, subprocess, sys
workers = ["127.0.0.1:2222", "127.0.0.1:2223"]
tasks = [{"type": "worker", "index": index} for index in range(2)]
running = [
    subprocess.Popen(
        [sys.executable, "-m", "tests.training_run", *sys.argv[1:]],
        env={
            **os.environ,
            "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task}),
        },
    )
    for task in tasks
]
sys.exit(max(abs(process.wait()) for process in running))
"""


def can_isolate():
    if not (shutil.which("unshare") and shutil.which("ip")):
        return False
    return subprocess.run([*ISOLATED, "true"], check=False).returncode == 0


def run_program(folder, kind, distribution, n_cpus, **schedule):
    plan = json.dumps(SCHEDULE | schedule)
    command = [sys.executable, "-m", "tests.training_run"]
    arguments = [folder, kind, distribution, str(n_cpus), plan]
    subprocess.run([*command, *arguments], cwd=ROOT, check=True)


def run_two_workers(folder, **schedule):
    arguments = [folder, "linear", "auto", "1", json.dumps(SCHEDULE | schedule)]
    command = [*ISOLATED, sys.executable, "-c", TWO_WORKERS, *arguments]
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)


def single_device_variables(folder):
    stage = STAGES["linear"]()
    train(folder, stage, Schedule(**SCHEDULE))
    return {str(n): value.numpy() for n, value in enumerate(saved_variables(stage))}


@pytest.fixture
def environment(monkeypatch):
    """An environment without TF_CONFIG or SLURM, to be filled by the test."""
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for name in ("PROCID", "STEP_NUM_TASKS", "STEP_NODELIST", "STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    return monkeypatch


@pytest.fixture
def slurm(environment):
    """The third of three tasks on two nodes, as srun shows it."""
    environment.setenv("SLURM_JOB_ID", "40007")
    environment.setenv("SLURM_PROCID", "2")
    environment.setenv("SLURM_STEP_NUM_TASKS", "3")
    environment.setenv("SLURM_STEP_NODELIST", "gpu[03,11]")
    environment.setenv("SLURM_STEP_TASKS_PER_NODE", "2,1")
    return environment


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("distribution", ["auto", "one_device"])
def test_one_task_trains_on_one_device_and_is_chief(distribution):
    strategy = make_strategy(distribution)
    assert strategy.num_replicas_in_sync == 1
    assert is_chief(strategy)


@pytest.mark.usefixtures("environment")
def test_mirrored_takes_the_cpu_without_a_gpu():
    strategy = make_strategy("mirrored")
    n_cpus = len(tf.config.list_logical_devices("CPU"))
    assert strategy.num_replicas_in_sync == n_cpus
    assert is_chief(strategy)


@pytest.mark.usefixtures("environment")
def test_several_workers_without_a_cluster_are_an_error():
    with pytest.raises(ConfigError, match="neither TF_CONFIG nor SLURM names any"):
        make_strategy("multi_worker")


@pytest.mark.parametrize(
    "text",
    [
        "not JSON",
        '{"cluster": {"worker": ["a:1", "b:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
    ],
)
def test_a_wrong_tf_config_is_an_error_with_an_example(environment, text):
    environment.setenv("TF_CONFIG", text)
    with pytest.raises(ConfigError, match=r'TF_CONFIG: expected .*"index": 0'):
        make_strategy("auto")


@pytest.mark.usefixtures("slurm")
def test_the_cluster_is_read_from_slurm():
    resolver = cluster_resolver()
    workers = ["gpu03:12007", "gpu03:12008", "gpu11:12007"]
    assert resolver.cluster_spec().as_dict() == {"worker": workers}
    assert (resolver.task_type, resolver.task_id) == ("worker", 2)
    assert resolver.num_accelerators()["GPU"] == 0


def test_tasks_that_srun_did_not_start_are_not_waited_for(environment):
    environment.setenv("SLURM_NTASKS", "4")
    environment.setenv("SLURM_STEP_NODELIST", "gpu03")
    assert make_strategy("auto").num_replicas_in_sync == 1


@pytest.mark.parametrize(
    ("jobs", "task_type", "task_id", "expected"),
    [
        (["worker"], "worker", 0, True),
        (["worker"], "worker", 1, False),
        (["chief", "worker"], "chief", 0, True),
        (["chief", "worker"], "worker", 0, False),
    ],
)
def test_one_task_of_a_cluster_is_chief(jobs, task_type, task_id, expected):
    class Strategy:
        cluster_resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({job: ["a:1", "b:1"] for job in jobs}),
            task_type=task_type,
            task_id=task_id,
        )

    assert is_chief(Strategy()) is expected


@pytest.mark.parametrize(
    ("batch_size", "n_replicas", "message"),
    [(10, 4, "10 cells .* by 4 replicas. Set it to 8 or 12"), (3, 4, "Set it to 4")],
)
def test_a_batch_that_cannot_be_shared_evenly_is_an_error(
    batch_size, n_replicas, message
):
    class Strategy:
        num_replicas_in_sync = n_replicas

    with pytest.raises(ConfigError, match=message):
        check_batch_size(batch_size, Strategy())


def test_batches_start_at_the_position():
    strategy = tf.distribute.get_strategy()
    batches = iter(distributed_batches(strategy, batches_from, 0))
    third = [next(batches) for _ in range(3)][2]
    late = next(iter(distributed_batches(strategy, batches_from, 2)))
    np.testing.assert_array_equal(late.features["rna"], third.features["rna"])
    assert late.features["rna"].shape[0] == BATCH_SIZE


@pytest.mark.slow
def test_two_devices_of_one_machine_equal_one_device(tmp_path):
    expected = single_device_variables(tmp_path / "one")
    folder = tmp_path / "two"
    folder.mkdir()
    run_program(folder, "linear", "mirrored", 2)
    found = np.load(folder / "variables-0.npz")
    assert set(found) == {f"{n}/{replica}" for n in expected for replica in range(2)}
    for number, weight in expected.items():
        np.testing.assert_array_equal(found[f"{number}/0"], found[f"{number}/1"])
        # sums in another order: some units in the last place of float32
        np.testing.assert_allclose(found[f"{number}/0"], weight, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["scGAN", "cscGAN", "autoencoder", "flow", "diffusion", "cycle", "vae"]
)
def test_stages_have_the_same_variables_on_two_devices(tmp_path, kind):
    run_program(tmp_path, kind, "mirrored", 2, max_steps=6)
    found = np.load(tmp_path / "variables-0.npz")
    numbers = {name.split("/")[0] for name in found}
    assert set(found) == {f"{n}/{replica}" for n in numbers for replica in range(2)}
    for number in numbers:
        np.testing.assert_array_equal(found[f"{number}/0"], found[f"{number}/1"])


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="no network namespaces here")
def test_two_workers_equal_one_device_and_resume(tmp_path):
    expected = single_device_variables(tmp_path / "one")
    folder = tmp_path / "two"
    folder.mkdir()
    run_two_workers(folder, max_steps=15)
    run_two_workers(folder)  # goes on from step 15
    first, second = (np.load(folder / f"variables-{task}.npz") for task in range(2))
    assert set(first) == {f"{number}/0" for number in expected}
    for number, weight in expected.items():
        np.testing.assert_array_equal(first[f"{number}/0"], second[f"{number}/0"])
        # sums in another order: some units in the last place of float32
        np.testing.assert_allclose(first[f"{number}/0"], weight, rtol=1e-6, atol=1e-6)
    lines = (folder / "job/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20, 25]
    assert len(list((folder / "job/linear/logs").iterdir())) == 2  # one per run


@pytest.mark.slow
@pytest.mark.skipif(not can_isolate(), reason="no network namespaces here")
def test_workers_that_restored_different_steps_stop(tmp_path):
    """The second worker sees another folder, which has no checkpoint."""
    folder, empty = tmp_path / "two", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    run_program(folder, "linear", "one_device", 1, max_steps=10)
    arguments = ["linear", "auto", "1", json.dumps(SCHEDULE)]
    program = TWO_WORKERS.replace(
        "*sys.argv[1:]]", "sys.argv[1 + task['index']], *sys.argv[3:]]"
    )
    command = [*ISOLATED, sys.executable, "-c", program, folder, empty, *arguments]
    result = subprocess.run(
        command, cwd=ROOT, check=False, timeout=120, capture_output=True, text=True
    )
    assert result.returncode != 0
    assert "this worker has the checkpoint of step 10, others have" in result.stderr
    assert "this worker has the checkpoint of step 0, others have" in result.stderr
