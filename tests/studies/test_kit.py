"""What studies share."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from cellgan.errors import DataError
from cellgan.studies.kit import change_category, set_aside, writing


def test_cells_get_a_category_and_keep_their_own_and_their_numbers_beside():
    obs = pd.DataFrame({"n_counts": [7, 9], "donor": ["x", "y"]})
    set_aside(obs, ("n_counts", "n_genes"))
    change_category(obs, obs["donor"], "y", ["x", "y"])

    assert obs["donor"].tolist() == ["y", "y"]
    assert obs["donor"].cat.categories.tolist() == ["x", "y"]
    assert obs["original_donor"].tolist() == ["x", "y"]
    assert obs["original_n_counts"].tolist() == [7, 9]
    assert set(obs) == {"donor", "original_donor", "original_n_counts"}


def fill(path: Path) -> None:
    path.write_text("half")
    raise OSError(28, "No space left on device")


def test_file_that_cannot_be_written_is_told_and_the_earlier_one_stays(tmp_path):
    path = tmp_path / "cells.h5ad"
    path.write_text("earlier")
    message = r"cells.h5ad: cannot be written: No space"
    with pytest.raises(DataError, match=message), writing(path) as temporary:
        fill(temporary)

    assert path.read_text() == "earlier"
    assert [file.name for file in tmp_path.iterdir()] == ["cells.h5ad"]
