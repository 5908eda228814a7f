"""How TensorFlow is started: once, when it is needed, and quietly."""

from __future__ import annotations

import os
import sys


def load_tensorflow() -> None:
    """Import TensorFlow without its start-up messages.

    Some of them are written before any setting is looked at, so standard error goes
    nowhere during the import.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
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
