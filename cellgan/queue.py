"""Several experiments of one file: a queue over the listed GPUs.

Every experiment runs in a fresh process that sees one GPU (or none), so a GPU is never
shared and a failing experiment cannot harm another. Pure: neither TensorFlow nor
AnnData is loaded here.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from cellgan.errors import LEAK, ConfigError

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

IN_QUEUE = "CELLGAN_QUEUE"
"""Environment variable that tells a process its GPU has been chosen already."""
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
CPU = "-1"
OnEnd = Callable[[str, int], None]
"""Told the name and the exit code of each process that has ended."""


def visible_gpus(gpus: Sequence[int]) -> list[str]:
    """Return what to write into ``CUDA_VISIBLE_DEVICES`` for each GPU id.

    Where that variable is set already, for example by SLURM, an id is the position in
    it, so a job keeps to what it was given. No GPU means the CPU.

    Raises
    ------
    ConfigError
        If there is no GPU of that id among the visible ones.
    """
    given = os.environ.get(VISIBLE_GPUS)
    if not gpus or given in ("", CPU):
        return [CPU]
    if given is None:
        return [str(gpu) for gpu in gpus]
    visible = given.split(",")
    for gpu in gpus:
        if gpu >= len(visible):
            msg = (
                f"exp_param.GPU: id {gpu} found, but {VISIBLE_GPUS} is {given}: ids "
                f"here are 0 to {len(visible) - 1}."
            )
            raise ConfigError(msg)
    return [visible[gpu] for gpu in gpus]


def gpu_groups(experiments: Sequence[Experiment], gpus: Sequence[int]) -> list[str]:
    """Return the GPUs of each process of a queue; one with all if an experiment asks.

    Raises
    ------
    ConfigError
        As `visible_gpus`.
    """
    groups = visible_gpus(gpus)
    if any(each.parameters.training.uses_all_gpus for each in experiments):
        return [",".join(groups)]
    return groups


def run_experiments(
    experiments: Sequence[Experiment], gpus: Sequence[int], arguments: Sequence[str]
) -> int:
    """Run the same command for several experiments, each in a process of its own.

    Returns
    -------
    Exit code: 0 when all succeeded, 1 when one met a bug, else 2 when one met something
    a user can put right, else `LEAK`. The failed ones are named at the end.
    """
    commands = {
        each.name: [*arguments, "--experiment", each.name] for each in experiments
    }
    codes = run_queue(commands, gpu_groups(experiments, gpus))
    failed = [name for name, code in codes.items() if code]
    log.info(
        "%d of %d experiments succeeded%s",
        len(codes) - len(failed),
        len(codes),
        f"; failed: {', '.join(failed)}" if failed else "",
    )
    if any(code not in {2, LEAK} for code in codes.values() if code):
        return 1
    return min((code for code in codes.values() if code), default=0)


def run_queue(
    commands: Mapping[str, Sequence[str]],
    gpus: Sequence[str],
    on_end: OnEnd = lambda _name, _code: None,
) -> dict[str, int]:
    """Run one command line per experiment, as many at a time as there are GPU groups.

    Parameters
    ----------
    commands
        Arguments of ``python -m cellgan.cli`` by experiment name, in order.
    gpus
        ``CUDA_VISIBLE_DEVICES`` of each parallel process: ``("0", "1")`` runs two at a
        time, ``("-1",)`` one at a time on the CPU.

    Returns
    -------
    Exit code by experiment name. The output of each is passed on line by line, behind
    the experiment's name.
    """
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in gpus:
        free.put(gpu)
    running: list[subprocess.Popen[str]] = []
    lock = threading.Lock()

    def run(name: str) -> int:
        gpu = free.get()
        try:
            with lock:
                process = _start(commands[name], gpu)
                running.append(process)
            with process:
                for line in process.stdout or ():
                    log.info("[%s] %s", name, line.rstrip())
            on_end(name, process.returncode)
            return process.returncode
        finally:
            free.put(gpu)

    with ThreadPoolExecutor(max_workers=len(gpus)) as pool:
        futures = {name: pool.submit(run, name) for name in commands}
        try:
            codes = {name: future.result() for name, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with lock:
                for process in running:
                    process.terminate()
            raise
    return codes


def _start(arguments: Sequence[str], gpu: str) -> subprocess.Popen[str]:
    package_root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [package_root, os.environ.get("PYTHONPATH")])
        ),
        VISIBLE_GPUS: gpu,
        IN_QUEUE: "1",
        "PYTHONUNBUFFERED": "1",
        "TQDM_DISABLE": "1",  # bars of several processes would overwrite each other
    }
    return subprocess.Popen(
        [sys.executable, "-m", "cellgan.cli", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
