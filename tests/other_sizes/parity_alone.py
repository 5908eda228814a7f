"""Plugin of pytest: of the tests it collects, those that read the stored files."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    alone = [of for of in items if "reference_dir" in getattr(of, "fixturenames", ())]
    config.hook.pytest_deselected(items=[of for of in items if of not in alone])
    items[:] = alone
