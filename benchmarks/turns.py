"""Timing two or more things in turn, in one process: what the benchmarks share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

Task = Callable[[], None]


class Cost(NamedTuple):
    """Seconds of one turn."""

    wall: float
    cpu: float


def time_in_turn(
    tasks: Mapping[str, Task], n_repeats: int, *, warm: bool = True
) -> dict[str, Cost]:
    """Return the median costs, with `warm` after a turn that is not counted."""
    for task in tasks.values() if warm else ():
        task()
    turns: dict[str, list[Cost]] = {name: [] for name in tasks}
    for _ in range(n_repeats):
        for name, task in tasks.items():
            time.sleep(0.2)  # let the threads of the one before come to rest
            wall, cpu = time.perf_counter(), time.process_time()
            task()
            cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
            turns[name].append(cost)
    return {
        name: Cost(*(statistics.median(kind) for kind in zip(*costs, strict=True)))
        for name, costs in turns.items()
    }
