"""The queue of experiments over GPUs."""

from __future__ import annotations

import subprocess
import threading
from typing import Any

import pytest

import cellgan
from cellgan import queue
from cellgan.errors import ConfigError


class FakeProcess:
    """Stands for a started process; ends when all expected ones run at once."""

    def __init__(self, together: threading.Barrier) -> None:
        self._together = together
        self.stdout: tuple[str, ...] = ("working\n",)

    def __enter__(self) -> None:
        self._together.wait(timeout=30)

    def __exit__(self, *_: object) -> None:
        self.returncode = 0


def test_codes_are_those_of_each_command() -> None:
    codes = queue.run_queue({"good": ["--version"], "bad": ["--nonsense"]}, ["-1"])

    assert codes == {"good": 0, "bad": 2}


def test_output_is_passed_on_behind_the_name(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="cellgan"):
        queue.run_queue({"pbmc": ["--version"]}, ["-1"])

    assert [record.getMessage() for record in caplog.records] == [
        f"[pbmc] cellgan {cellgan.__version__}"
    ]


def test_as_many_run_at_once_as_there_are_gpus_each_on_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = threading.Barrier(2)
    gpus: list[str] = []

    def start(_: Any, env: dict[str, str], **__: Any) -> FakeProcess:
        gpus.append(env["CUDA_VISIBLE_DEVICES"])
        return FakeProcess(together)

    monkeypatch.setattr(subprocess, "Popen", start)
    commands = {name: ["--version"] for name in "abcd"}

    codes = queue.run_queue(commands, ["4", "7"])

    assert codes == dict.fromkeys("abcd", 0)
    assert sorted(gpus[:2]) == ["4", "7"]
    assert sorted(gpus[2:]) == ["4", "7"]


def test_gpu_is_returned_when_starting_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: Any, **__: Any) -> FakeProcess:
        raise OSError("no memory to start a process")  # noqa: EM101

    monkeypatch.setattr(subprocess, "Popen", start)

    with pytest.raises(OSError, match="no memory to start"):
        queue.run_queue({"a": [], "b": []}, ["0"])


@pytest.mark.parametrize(
    ("given", "ids", "expected"),
    [
        (None, (0, 2), ["0", "2"]),
        (None, (), ["-1"]),
        ("3", (0,), ["3"]),
        ("4,GPU-7a", (1, 0), ["GPU-7a", "4"]),
        ("-1", (0,), ["-1"]),
        ("", (0, 1), ["-1"]),
    ],
)
def test_gpu_ids_are_places_among_the_visible_ones(
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    ids: tuple[int, ...],
    expected: list[str],
) -> None:
    environment = {} if given is None else {queue.VISIBLE_GPUS: given}
    monkeypatch.setattr(queue.os, "environ", environment)

    assert queue.visible_gpus(ids) == expected


def test_gpu_that_is_not_visible_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(queue.VISIBLE_GPUS, "3,4")

    with pytest.raises(ConfigError, match=r"GPU: id 2 found, but CUDA_.* is 3,4"):
        queue.visible_gpus((0, 2))
