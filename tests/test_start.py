from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cellgan import start

NAME = "TF_ENABLE_ONEDNN_OPTS"


@pytest.mark.parametrize(("given", "expected"), [({}, "1"), ({NAME: "0"}, "0")])
def test_products_are_those_of_onednn_unless_the_user_says_otherwise(
    monkeypatch, given, expected
):
    environment = dict(given)
    monkeypatch.setattr(start.os, "environ", environment)
    start.set_environment()
    assert environment[NAME] == expected


SCRIPT = """
import json, sys
from cellgan.start import KERAS_EXTRAS, load_tensorflow

load_tensorflow()
import keras
early = [name for name in KERAS_EXTRAS if name in sys.modules]
import matplotlib.pyplot, sklearn.linear_model
print(json.dumps([early, "sklearn" in sys.modules, keras.backend.backend()]))
"""


@pytest.mark.slow
def test_packages_of_keras_wrappers_are_imported_when_they_are_used() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert json.loads(answer.stdout) == [[], True, "tensorflow"]
