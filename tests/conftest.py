"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellgan.start import set_environment
from tests.stored import reference_folder

set_environment()
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder of the stored outputs of the reference implementations."""
    return reference_folder()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real count matrices; tests that need it are marked realdata."""
    folder = os.environ.get("CELLGAN_DATA_DIR")
    if folder is None:
        pytest.skip("CELLGAN_DATA_DIR is not set: no real count matrices here")
    return Path(folder)


@pytest.fixture(scope="session")
def trained_flow(tmp_path_factory):
    """Experiment of a small CFGen of two batches; takes a while to train."""
    from tests.trained_flow import train_flow  # TensorFlow, where it is needed

    return train_flow(tmp_path_factory.mktemp("flow"))
