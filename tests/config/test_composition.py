"""What a composition block may say, and what is answered when it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cellgan.config.composition import Part
from cellgan.config.reading import as_json, load_parameters
from cellgan.config.sources import Filter
from cellgan.errors import ConfigError
from tests.composition_studies import write_parameters

BLOCK: dict[str, Any] = {
    "sources": {"blood": {"file": "blood.h5ad", "group": "donor"}},
    "mixtures": {"base": [{"source": "blood", "cells": 10}]},
    "baseline": "base",
    "evaluations": {"held out": {"source": "blood", "groups": ["donor 1"]}},
}


def load(folder: Path, **changes: Any) -> Any:
    file = write_parameters(folder, {**BLOCK, **changes})
    return load_parameters(file).studies["study"]


def test_list_of_parts_is_short_for_a_mixture(tmp_path: Path) -> None:
    written = {"base": {"parts": [{"source": "blood", "cells": 10}]}}

    assert load(tmp_path) == load(tmp_path, mixtures=written)
    assert load(tmp_path).composition.mixtures["base"].parts == (
        Part(source="blood", cells=10),
    )


def test_study_is_no_experiment_and_reads_back(tmp_path: Path) -> None:
    study = load(tmp_path)

    assert not load_parameters(tmp_path / "parameters.json").experiments
    assert as_json(study)["composition"]["exclude"] == "refuse"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mixtures": {"base": [{"source": "blod"}]}},
            r'mixtures.base: no source "blod". Did you mean "blood"\? There are: blood',
        ),
        ({"baseline": "bse"}, 'baseline: no mixture "bse". Did you mean "base"'),
        ({"size_control": "more"}, 'size_control: no mixture "more"'),
        ({"metrics": ["r3"]}, 'metrics: no metric "r3". There are: r2, correlation'),
        ({"seeds": [1, 1]}, "seeds name one twice: 1, 1"),
        ({"mixtures": {}}, "mixtures are empty"),
        (
            {"mixtures": {"base": [{"source": "blood"}, {"source": "blood"}]}},
            'slot 0 of source "blood" is there twice',
        ),
        (
            {"mixtures": {"base": [{"source": "blood", "cels": 3}]}},
            r'mixtures.base.parts.0: unknown key "cels". Did you mean "cells"',
        ),
        (
            {"mixtures": {"base": [{"source": "blood", "weight": 1.0}]}},
            "weights are shares of total_cells",
        ),
        (
            {"mixtures": {"base": [{"source": "blood", "cells": 1, "fraction": 0.5}]}},
            "give one of cells, fraction and weight",
        ),
        ({"mixtures": {"report": [{"source": "blood"}]}}, '"report" cannot be a name'),
        ({"evaluations": {"e": {"source": "blood"}}}, "say which to hold out"),
        ({"evaluations": {"e": {}}}, "give one of source and external"),
        (
            {"sources": {"blood": {"file": "blood.h5ad"}}},
            'groups are named, but source "blood" has no group column',
        ),
        ({"budget": {"steps": 5, "epochs": 2}}, "give one of epochs, steps and cells"),
        ({"budget": {"steps": 5, "equal": False}}, "which only epochs can be"),
        (
            {"sources": {"blood": {"file": "b", "group": "d", "qc": {"min_count": 1}}}},
            r'sources.blood.qc: unknown key "min_count". Did you mean "min_counts"',
        ),
        (
            {
                "sources": {
                    "blood": {"file": "b", "group": "d", "qc": {"mito_prefix": "mt"}}
                }
            },
            "mitochondrial genes are named, but max_mito_fraction is null",
        ),
    ],
)
def test_slip_is_answered_with_its_place(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **changes)


@pytest.mark.parametrize(
    ("op", "value", "message"),
    [
        ("=", 1, r'op is "=" \(column "x"\).*Operators: ==, !='),
        ("<", "a", 'op "<" of column "x" takes a number'),
        (">=", True, 'op ">=" of column "x" takes a number'),
        ("in", "a", 'op "in" of column "x" takes a list of values'),
        ("==", ("a",), 'op "==" of column "x" takes a single value'),
        ("==", None, 'op "==" of column "x" takes a single value'),
        ("is null", "a", 'op "is null" of column "x" takes no value'),
    ],
)
def test_filter_with_a_value_of_another_kind_is_refused(
    op: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Filter(column="x", op=op, value=value)


def test_what_the_model_is_told_is_checked_as_for_any_experiment(
    tmp_path: Path,
) -> None:
    file = write_parameters(tmp_path, BLOCK, training={"critic_iters": 3})

    with pytest.raises(ConfigError, match="critic_iters has no meaning for"):
        load_parameters(file)
