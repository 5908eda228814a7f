"""How TensorFlow is started: once, when it is needed, and quietly."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

KERAS_EXTRAS = ("matplotlib", "sklearn")
"""What Keras imports, where it is there, for interfaces that we do not use."""


def set_environment() -> None:
    """Set what TensorFlow reads from the environment, unless the user has set it.

    Products of matrices are oneDNN's on every processor. TensorFlow chooses them only
    for those that have AVX512-VNNI; on others a product with a transposed matrix, which
    every step back through a layer is, takes two to three times as long without them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def load_tensorflow(*, whole_keras: bool = False) -> None:
    """Import TensorFlow as `set_environment` says, without its start-up messages.

    Some of them are written before any setting is looked at, so standard error goes
    nowhere during the import.

    Parameters
    ----------
    whole_keras
        With Keras' wrappers of scikit-learn and its galleries of pictures. Without
        them, neither scikit-learn nor Matplotlib is imported before it is used, which
        is a third of the time that TensorFlow takes.
    """
    if "tensorflow" in sys.modules:
        return
    set_environment()
    left_out = () if whole_keras else KERAS_EXTRAS
    with _without(left_out), _quiet():
        import tensorflow as tf  # noqa: PLC0415  (its messages come with the import)
    tf.get_logger().setLevel("ERROR")  # its warnings are for programmers


@contextlib.contextmanager
def _without(packages: Sequence[str]) -> Iterator[None]:
    """Let packages that are not imported yet be missing for a while."""
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
