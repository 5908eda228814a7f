"""Plugin of pytest: of the tests it collects, those that read the stored files."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    parity = [
        item for item in items if "reference_dir" in getattr(item, "fixturenames", ())
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in parity])
    items[:] = parity
