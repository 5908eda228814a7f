from __future__ import annotations

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
