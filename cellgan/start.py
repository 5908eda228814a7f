"""How TensorFlow is started: once, when it is needed, and quietly."""

from __future__ import annotations

import os
import sys


def set_environment() -> None:
    """Set what TensorFlow reads from the environment, unless the user has set it.

    Products of matrices are oneDNN's on every processor. TensorFlow chooses them only
    for those that have AVX512-VNNI; on others a product with a transposed matrix, which
    every step back through a layer is, takes two to three times as long without them.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")


def load_tensorflow() -> None:
    """Import TensorFlow as `set_environment` says, without its start-up messages.

    Some of them are written before any setting is looked at, so standard error goes
    nowhere during the import.
    """
    if "tensorflow" in sys.modules:
        return
    set_environment()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow as tf  # noqa: PLC0415  (its messages come with the import)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)
    tf.get_logger().setLevel("ERROR")  # its warnings are for programmers
