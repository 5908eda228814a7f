"""Weights of PyTorch's modules as the variables of ours.

PyTorch stores the matrix of a linear layer ``(n_outputs, n_inputs)``, ours is the other
way round. Nothing is assigned here: what fits is paired, what does not is an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt

from cellgan.errors import CheckpointError

Array = npt.NDArray[Any]
UNUSED = re.compile(r"(.*\.)?num_batches_tracked|node\..*")
"""Counters, and the copy of the network that the original's solver keeps."""


class SavedModel(NamedTuple):
    """What a file of the original holds."""

    name: str
    """Of the file, for messages."""
    weights: Mapping[str, Array]
    settings: Mapping[tuple[str, ...], Any]
    """Everything else, by where it was found."""


class Filled(NamedTuple):
    """What has been taken from the files."""

    stages: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]
    """Covariate -> its categories in the order of the file."""
    notes: tuple[str, ...]
    """What was assumed, for the user to check."""


class Place(NamedTuple):
    """One of our variables, and the weights that it consists of."""

    names: tuple[str, ...]
    """Joined along their first axis."""
    variable: keras.Variable

    n_rows: tuple[int, ...] | None = None
    """Outputs of each; None for equal shares."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape that each of the weights must have."""
        shape = tuple(self.variable.shape)
        total, *rest = shape[::-1] if self.variable.name == "kernel" else shape
        equal = (total // len(self.names),) * len(self.names)
        return {
            name: (n, *rest)
            for name, n in zip(self.names, self.n_rows or equal, strict=True)
        }

    def value(self, weights: Mapping[str, Array]) -> Array:
        """Return what the variable gets."""
        joined = np.concatenate([weights[name] for name in self.names])
        return joined.T if self.variable.name == "kernel" else joined


def linear_places(
    names: tuple[str, ...], layer: Any, n_rows: tuple[int, ...] | None = None
) -> Iterator[Place]:
    """Yield matrix and bias of a layer that stands for one or several of theirs."""
    yield Place(tuple(f"{name}.weight" for name in names), layer.kernel, n_rows)
    yield Place(tuple(f"{name}.bias" for name in names), layer.bias, n_rows)


def norm_places(name: str, layer: Any) -> Iterator[Place]:
    """Yield scale and offset of a normalisation, and its statistics if it has any."""
    yield Place((f"{name}.weight",), layer.scale)
    yield Place((f"{name}.bias",), layer.offset)
    if hasattr(layer, "moving_mean"):
        yield Place((f"{name}.running_mean",), layer.moving_mean)
        yield Place((f"{name}.running_var",), layer.moving_variance)


def matched(
    where: str, weights: Mapping[str, Array], places: Iterable[Place]
) -> list[tuple[keras.Variable, Array]]:
    """Return our variables with their values; nothing may be left on either side."""
    places = list(places)
    wanted = {name: place for place in places for name in place.names}
    require_names(
        where,
        missing=[name for name in wanted if name not in weights],
        extra=[name for name in weights if name not in wanted],
    )
    require_none(
        where,
        [
            f"{name}: {weights[name].shape} there, {place.shapes[name]} here"
            for name, place in wanted.items()
            if weights[name].shape != place.shapes[name]
        ],
    )
    require_finite(where, weights)
    return [(place.variable, place.value(weights)) for place in places]


class Differences:
    """Collects what is one thing in the file and another in the experiment."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, key: str, *, there: Any, here: Any) -> None:
        """Remember a parameter if its two values differ."""
        there, here = (json.loads(json.dumps(value)) for value in (there, here))
        if there != here:
            said = f"{key}: {json.dumps(there)} there, {json.dumps(here)} here"
            self.lines += [said] if said not in self.lines else []


def require_none(where: str, differences: Sequence[str]) -> None:
    """Refuse a file that differs in these lines."""
    if differences:
        msg = (
            f"{where}: of another model than this experiment's: "
            f"{'; '.join(differences[:8])}"
            f"{f' and {len(differences) - 8} more' if len(differences) > 8 else ''}.\n"
            "    Give the experiment the values of the file."
        )
        raise CheckpointError(msg)


def require_names(where: str, *, missing: list[str], extra: list[str]) -> None:
    """Refuse a file that lacks weights, or has more."""
    if missing or extra:
        found = [f"it lacks {some(missing)}"] if missing else []
        found += [f"{some(extra)} has no place here"] if extra else []
        msg = f"{where}: of another model than this experiment's: {'; '.join(found)}."
        raise CheckpointError(msg)


def require_finite(where: str, weights: Mapping[str, Array]) -> None:
    """Refuse weights that are not finite."""
    for name, of in weights.items():
        if not np.isfinite(of).all():
            msg = f"{where}: {name} is not finite: the training it comes from failed."
            raise CheckpointError(msg)


def some(names: Iterable[str]) -> str:
    """Return the first few of some names."""
    names = list(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"


def used(weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return what is not a counter or a copy."""
    return {name: of for name, of in weights.items() if not UNUSED.fullmatch(name)}


def below(prefix: str, weights: Mapping[str, Array]) -> dict[str, Array]:
    """Return the used weights under a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): of
        for name, of in used(weights).items()
        if name.startswith(prefix)
    }
