"""Weights that another program has trained, as the checkpoints of an experiment.

A checkpoint of PyTorch is a zip of tensors and one pickle. The pickle is read
without trust: tensors, arrays and plain containers are rebuilt, every other class or
function is replaced by a `Placeholder`, which keeps what it is given and does nothing.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import shutil
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from cellgan.config.model_types import weights_module
from cellgan.errors import CheckpointError, ConfigError
from cellgan.files import write_json
from cellgan.models import build_model
from cellgan.models.torch_weights import Filled, SavedModel
from cellgan.training.checkpoints import StageCheckpoint

if TYPE_CHECKING:
    import torch

    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

WEIGHTS, SETTINGS = "state_dict", "hyper_parameters"
MODULE_PARTS = ("_modules", "_parameters", "_buffers")
"""Where pickled modules of PyTorch keep what they hold; left out of paths."""
CONTAINERS = (set, frozenset, list, dict, tuple, bytearray, complex)
TORCHSCRIPT = "constants.pkl"
"""In archives that `torch.load` would hand to another reader."""
DAMAGED = (
    *(pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError),
    *(AttributeError, RuntimeError, OSError, AssertionError, OverflowError),
    *(ImportError, MemoryError, zipfile.BadZipFile),
)
"""What unpickling raises for files that are damaged, or made to mislead."""


class Placeholder:
    """Stands for an object of a class that is not loaded: what it was given, inert."""

    arguments: tuple[Any, ...]
    state: Any
    items: list[Any]

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Keep what a class or function would have been called with."""
        self = super().__new__(cls)
        self.arguments, self.state, self.items = (*arguments, options), None, []
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Placeholder:
        """Keep what it is called with; a pickle may call what a call returns."""
        return Placeholder(self, *arguments, **options)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items.append({key: value})

    def append(self, item: Any) -> None:
        """Keep an item, as pickle adds them to lists."""
        self.items.append(item)

    def extend(self, items: Any) -> None:
        """Keep items, as pickle adds them to lists."""
        self.items.extend(items)

    add = append


class TorchCheckpoint(NamedTuple):
    """What a checkpoint holds."""

    weights: Mapping[str, npt.NDArray[Any]]
    settings: Mapping[tuple[str, ...], Any]
    """The pickled hyperparameters: every number, text and array by its path."""
    unread: tuple[str, ...]
    """Classes and functions that the file names and that were not looked up."""


def import_weights(experiment: Experiment, family: str, files: Sequence[Path]) -> None:
    """Give a processed experiment the weights of an original.

    The stages that the files fill have a checkpoint of their last step then; the
    optimizers are fresh. Nothing is written unless all weights fit.

    Parameters
    ----------
    family
        Of the experiment's model, as a user names it.

    Raises
    ------
    ConfigError
        If PyTorch is not installed.
    CheckpointError
        If a file is no checkpoint, or is of another model than the experiment's.
    """
    manifest = experiment.manifest()
    saved = []
    for file in files:
        found = read_checkpoint(file)
        saved.append(SavedModel(str(file), found.weights, found.settings))
    model = build_model(experiment.parameters, manifest)
    original = weights_module(experiment.parameters.model.type)
    filled: Filled = original.fill(model, saved, experiment.parameters, manifest)
    for note in filled.notes:
        log.info("%s: %s", experiment.name, note)
    log.info(
        "%s: genes and peaks are taken in the order of this experiment, and inputs as "
        "it transforms them: the files do not name them",
        experiment.name,
    )
    steps = {
        name: experiment.parameters.training.of_stage(name).max_steps
        for name in filled.stages
    }
    write_json(
        experiment.imported_file,
        {
            "family": family,
            "files": [{"path": str(f), "sha256": sha256(f)} for f in files],
            "steps": steps,
            "categories": {name: list(of) for name, of in filled.categories.items()},
        },
    )
    experiment.freeze("model", "training")
    try:
        for stage in model.stages():
            if stage.name in steps:
                folder = experiment.checkpoints_folder(stage.name)
                StageCheckpoint(stage.trackables(), folder).save(steps[stage.name])
    except CheckpointError:
        for name in steps:
            shutil.rmtree(experiment.checkpoints_folder(name), ignore_errors=True)
        experiment.imported_file.unlink(missing_ok=True)
        raise
    log.info(
        "%s: %s filled from %s; checkpoints in %s",
        experiment.name,
        " and ".join(steps),
        ", ".join(map(str, files)),
        experiment.job_folder,
    )
    if len(steps) < len(model.stages()):
        log.info("%s: --train trains the other stages", experiment.name)


def read_checkpoint(path: Path) -> TorchCheckpoint:
    """Read weights by name, alone or with what Lightning keeps; nothing is run.

    Raises
    ------
    ConfigError
        If PyTorch is not installed.
    CheckpointError
        If the file is missing, damaged, or something else.
    """
    try:
        import torch  # noqa: PLC0415  (an extra, which nothing else needs)
    except ImportError:
        msg = (
            "--import-weights reads files of PyTorch, which is not installed. Install "
            "it, without CUDA: pip install 'torch>=2.5' --index-url "
            "https://download.pytorch.org/whl/cpu"
        )
        raise ConfigError(msg) from None
    if not path.is_file():
        msg = f"{path}: no such file."
        raise CheckpointError(msg)
    names: set[str] = set()
    try:
        _require_archive(path)
        with path.open("rb") as file:
            content = torch.load(
                file,
                map_location="cpu",
                pickle_module=_restricted_pickle(torch, names),
                weights_only=False,
            )
    except DAMAGED as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        msg = f"{path}: not a checkpoint of PyTorch, or damaged: {first}"
        raise CheckpointError(msg) from error
    settings: Any = None
    weights: Any = content if isinstance(content, dict) else {}
    is_alone = any(isinstance(of, torch.Tensor) for of in weights.values())
    if not is_alone:  # of PyTorch Lightning, which keeps more beside them
        weights, settings = weights.get(WEIGHTS), weights.get(SETTINGS)
    if not isinstance(weights, dict):
        msg = (
            f"{path}: no weights of PyTorch: neither tensors by name, nor a checkpoint "
            f'of PyTorch Lightning, which has them under "{WEIGHTS}".'
        )
        raise CheckpointError(msg)
    leaves = _leaves(settings, (), set())
    return TorchCheckpoint(
        {
            str(name): _as_array(of)
            for name, of in weights.items()
            if isinstance(of, torch.Tensor)
        },
        {path: _as_array(leaf) for path, leaf in leaves},
        tuple(sorted(names)),
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_archive(path: Path) -> None:
    """Refuse what `torch.load` would read in another way than ours."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            msg = "it is no zip archive, which PyTorch 1.6 and later write"
            raise ValueError(msg)
    with zipfile.ZipFile(path) as archive:
        if any(Path(name).name == TORCHSCRIPT for name in archive.namelist()):
            msg = "it is a TorchScript archive"
            raise ValueError(msg)


def _restricted_pickle(torch: Any, names: set[str]) -> types.ModuleType:
    """Return a pickle module that loads only what `_rebuilders` admits.

    Parameters
    ----------
    names
        Gets the name of everything that is replaced by a placeholder.
    """
    admitted = _rebuilders(torch)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in admitted:
                return admitted[module, name]
            names.add(f"{module}.{name}")
            return type("Unread", (Placeholder,), {})

    restricted = types.ModuleType("restricted_pickle")
    restricted.Unpickler = Unpickler  # type: ignore[attr-defined]
    return restricted


def _rebuilders(torch: Any) -> dict[tuple[str, str], Callable[..., Any]]:
    """Return what a pickle may call: containers, tensors and arrays.

    The functions are wrapped, because a pickle may set attributes of what it loads.
    """

    def tensor(*arguments: Any) -> torch.Tensor:
        return torch._utils._rebuild_tensor_v2(*arguments)

    def parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
        return data

    def array(_: Any, shape: Any, kind: Any) -> npt.NDArray[Any]:
        return np.ndarray(shape, np.dtype(kind))

    def scalar(kind: Any, value: bytes) -> Any:
        return np.frombuffer(value, np.dtype(kind))[0]

    def as_bytes(text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            msg = f"text encoded as {encoding}"
            raise ValueError(msg)
        return text.encode("latin1")

    admitted: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): tensor,
        ("torch._utils", "_rebuild_parameter"): parameter,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): as_bytes,
    }
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        admitted[core, "_reconstruct"] = array
        admitted[core, "scalar"] = scalar
    for module in ("builtins", "__builtin__"):
        admitted |= {(module, kind.__name__): kind for kind in CONTAINERS}
    return admitted


def _leaves(
    value: Any, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield what is in containers and placeholders, by the way to it."""
    if isinstance(value, Mapping | list | tuple | Placeholder):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, Mapping):
        for key, item in value.items():
            step = () if key in MODULE_PARTS else (str(key),)
            yield from _leaves(item, (*path, *step), seen)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, (*path, str(index)), seen)
    elif isinstance(value, Placeholder):
        # A state may be a pair, of attributes and slots.
        states = value.state if isinstance(value.state, tuple) else (value.state,)
        for part in (*states, value.arguments, value.items):
            yield from _leaves(part, path, seen)
    elif value is not None:
        yield path, value


def _as_array(value: Any) -> Any:
    """Return a tensor as an array, float32 if it has a decimal point."""
    if not hasattr(value, "detach"):
        return value
    value = value.detach()
    return (value.float() if value.is_floating_point() else value).numpy()
