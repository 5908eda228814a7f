"""What one can ask of an experiment: one file per action, and the table of them.

An action says in its file how it is asked for, of which model types it is, what it
refuses, and what it does. The parser, its help, the refusals and the queue are made
from the table. These files import what an action needs when it runs: reading them, to
print help or to refuse a slip, loads no library.
"""

from __future__ import annotations

import functools
import importlib

from cellgan.actions.base import Action

NAMES = (
    "estimate",
    "process",
    "import-weights",
    "train",
    "generate",
    "guidance-sweep",
    "evaluate",
    "correct",
    "interpolate",
    "counterfactual",
    "embed",
    "influence",
    "augment",
)
"""In the order in which they run; ``a-b`` is the `ACTION` of ``a_b.py``."""


@functools.cache
def actions() -> tuple[Action, ...]:
    """Return all actions, in the order in which they run."""
    modules = (f"cellgan.actions.{name.replace('-', '_')}" for name in NAMES)
    return tuple(importlib.import_module(module).ACTION for module in modules)
