"""Random weights by the names of the originals, and our arrays under these names."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
NORM = ("weight", "bias", "running_mean", "running_var")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def linear(name: str, n_in: int, n_out: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a layer of PyTorch."""
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm(name: str, n: int, parts: tuple[str, ...] = NORM) -> Shapes:
    """Return the shapes of a normalisation of PyTorch."""
    return {f"{name}.{part}": (n,) for part in parts}


def drawn(shapes: Shapes, seed: int = 0) -> Arrays:
    """Draw weights: variances and scales about 1, the others about 0."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        last = name.replace("/", ".").split(".")[-1]
        is_scale = last.endswith(("scale", "gamma", "var"))
        if is_scale or (last == "weight" and len(shape) == 1):
            values = rng.uniform(0.7, 1.3, shape)
        else:
            values = rng.normal(size=shape) / np.sqrt(shape[-1])
        arrays[name] = values.astype(np.float32)
    return arrays


def in_their_names(
    shapes: Shapes, in_our_names: Callable[[Arrays], Arrays], ours: Mapping[str, Any]
) -> Arrays:
    """Undo the translation of a reference: put our arrays where theirs were taken from.

    Theirs that have no part in ours are left out.
    """
    positions, first = {}, 0
    for name, shape in shapes.items():
        n_values = int(np.prod(shape))
        positions[name] = np.arange(first, first + n_values).reshape(shape)
        first += n_values
    values = np.full(first, np.nan, np.float32)
    for path, places in in_our_names(positions).items():
        if path in ours:
            values[places] = np.asarray(ours[path])
    theirs = {name: values[places] for name, places in positions.items()}
    return {name: array for name, array in theirs.items() if not np.isnan(array).any()}


def below_places(
    stored: Arrays, translate: Callable[[str], Arrays]
) -> Callable[[Arrays], Arrays]:
    """Make a reference's translation of what it stores below a prefix one of arrays."""

    def in_our_names(arrays: Arrays) -> Arrays:
        stored.update(prefixed("places/", arrays))
        ours = translate("places")
        for name in arrays:
            del stored[f"places/{name}"]
        return ours

    return in_our_names


def prefixed(prefix: str, arrays: Mapping[str, Any]) -> Arrays:
    return {f"{prefix}{name}": np.asarray(value) for name, value in arrays.items()}


def save(path: Path, arrays: Mapping[str, Any], config: Any = None) -> None:
    text = {} if config is None else {"config": json.dumps(config)}
    np.savez(path, **arrays, **text)
