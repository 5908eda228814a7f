"""The house follows its rules, and each rule sees the fault it is for."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.architecture import (
    closed_doors,
    cycles,
    deep_imports,
    heavy_imports,
    house,
    imports_between_studies,
    incomplete_families,
    mutable_state,
    prints,
    private_names,
    read_house,
    repeated_public_names,
    tensorflow_in_evaluation,
    unknown_rooms,
    unused_public_names,
    wrong_way_imports,
)

RULES = (
    unknown_rooms,
    wrong_way_imports,
    closed_doors,
    imports_between_studies,
    cycles,
    deep_imports,
    repeated_public_names,
    unused_public_names,
    heavy_imports,
    tensorflow_in_evaluation,
    prints,
    private_names,
    mutable_state,
    incomplete_families,
)


@pytest.fixture(scope="module")
def modules() -> dict[str, ast.Module]:
    return read_house()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_house_has_no(rule, modules) -> None:
    faults = rule(modules)

    assert "cellgan.models.base" in modules
    assert not faults, "\n".join(faults)


def test_study_that_imports_another_is_found() -> None:
    small = house(
        cellgan__studies__kit="",
        cellgan__studies__first="from cellgan.studies import kit",
        cellgan__studies__second="def run():\n    from cellgan.studies import first",
    )

    (fault,) = imports_between_studies(small)
    assert fault.startswith("cellgan.studies.second:2 imports cellgan.studies.first")


def test_unknown_room_is_told_where_to_register() -> None:
    faults = unknown_rooms(house(cellgan__telepathy=""))

    assert faults[0].startswith(
        "cellgan.telepathy: no room of this name. Add it to GROU"
    )


def test_new_module_of_a_known_package_needs_no_registration() -> None:
    assert not unknown_rooms(house(cellgan__models__new_family="", cellgan=""))


@pytest.mark.parametrize(
    "source",
    [
        "import cellgan.models.gan",
        "from cellgan.models import gan",
        "from cellgan.models.gan import Gan",
        "from ..models.gan import Gan",
        "def read():\n    from cellgan.models.gan import Gan",
        "if TYPE_CHECKING:\n    from cellgan.models.gan import Gan",
    ],
)
def test_import_against_the_direction_is_found(source: str) -> None:
    small = house(cellgan="", cellgan__data__records=source, cellgan__models__gan="")

    (fault,) = wrong_way_imports(small)
    assert "(data) imports cellgan.models.gan (families): imports go pure <-" in fault


def test_import_along_the_direction_is_allowed() -> None:
    small = house(
        cellgan__models__gan="import cellgan.data.records", cellgan__data__records=""
    )

    assert not wrong_way_imports(small)


@pytest.mark.parametrize(
    ("importer", "target"),
    [
        ("preprocessing__splits", "cellgan.data.transforms"),
        ("cellgan__evaluation__metrics__use", "cellgan.data.records"),
        ("cellgan__training__loop", "cellgan.models.gan"),
        ("cellgan__cli", "preprocessing"),
    ],
)
def test_import_through_a_closed_door_is_found(importer: str, target: str) -> None:
    small = house(**{importer: f"import {target}", target.replace(".", "__"): ""})

    assert not wrong_way_imports(small)
    assert f"imports {target}: " in closed_doors(small)[0]


@pytest.mark.parametrize(
    ("importer", "target"),
    [
        ("preprocessing__splits", "cellgan.data.records"),
        ("cellgan__evaluation__report__html", "cellgan.evaluation.metrics"),
        ("cellgan__training__loop", "cellgan.models.base"),
        ("cellgan__actions__process", "preprocessing"),
    ],
)
def test_import_through_an_open_door_is_allowed(importer: str, target: str) -> None:
    small = house(**{importer: f"import {target}", target.replace(".", "__"): ""})

    assert not closed_doors(small)


def test_cycle_inside_a_group_is_found() -> None:
    small = house(
        cellgan__data__manifest="import cellgan.experiment",
        cellgan__experiment="from cellgan.data.manifest import DatasetManifest",
    )

    (fault,) = cycles(small)
    assert {"cellgan.data.manifest", "cellgan.experiment"} <= set(fault.split())


@pytest.mark.parametrize(
    "source",
    [
        "import tensorflow as tf",
        "from sklearn.manifold import TSNE",
        "try:\n    import scanpy\nexcept ImportError:\n    pass",
        "class Box:\n    import anndata",
        "from cellgan.data.records import read",
        "from cellgan.data import records",
    ],
)
def test_heavy_library_loaded_by_a_light_room_is_found(source: str) -> None:
    small = house(
        cellgan="", cellgan__config=source, cellgan__data__records="import keras"
    )

    assert len(heavy_imports(small)) == 1


def test_heavy_library_loaded_by_the_parent_package_is_found() -> None:
    small = house(cellgan="import tensorflow", cellgan__seeds="")

    assert len(heavy_imports(small)) == 2


@pytest.mark.parametrize(
    "source",
    [
        "def read():\n    import scanpy",
        "if TYPE_CHECKING:\n    import anndata",
        "import numpy as np",
    ],
)
def test_import_that_loads_nothing_heavy_is_allowed(source: str) -> None:
    assert not heavy_imports(house(cellgan__config=source))


def test_tensorflow_in_evaluation_is_found_inside_a_function() -> None:
    small = house(cellgan__evaluation__plots="def draw():\n    import keras")

    assert len(tensorflow_in_evaluation(small)) == 1


def test_print_is_found_outside_the_command_line() -> None:
    small = house(cellgan__training__loop="print(1)", cellgan__cli="print(1)")

    assert prints(small) == [
        "cellgan.training.loop:1 prints: use logging.getLogger(__name__)."
    ]


@pytest.mark.parametrize(
    "source",
    [
        "from cellgan.data.records import _decode",
        "from cellgan.data import records\nrecords._decode()",
        "import cellgan.data.records\ncellgan.data.records._decode()",
    ],
)
def test_private_name_of_another_module_is_found(source: str) -> None:
    small = house(cellgan="", cellgan__data__batches=source, cellgan__data__records="")

    assert len(private_names(small)) == 1


def test_private_and_dunder_names_of_the_same_module_are_allowed() -> None:
    source = "from cellgan import __version__\nself._decode()\n_decode()"

    assert not private_names(house(cellgan="", cellgan__data__batches=source))


@pytest.mark.parametrize(
    "source",
    [
        "cache = {}",
        "cache: dict[str, int] = dict()",
        "_seen = set()",
        "names = [n for n in 'ab']",
        "counts = collections.defaultdict(int)",
        "STEP = 0\ndef f():\n    global STEP",
    ],
)
def test_module_level_state_is_found(source: str) -> None:
    assert len(mutable_state(house(cellgan__training__loop=source))) == 1


@pytest.mark.parametrize(
    "source",
    ["NAMES = ['a']", "__all__ = ['a']", "log = get()", "def f():\n    found = []"],
)
def test_constants_and_local_names_are_no_state(source: str) -> None:
    assert not mutable_state(house(cellgan__training__loop=source))


@pytest.fixture
def family(tmp_path: Path) -> tuple[dict[str, ast.Module], Path]:
    """A complete family called "new", and the folder its other files are in."""
    example = {"experiments": {"a": {"model": {"type": "new"}}}}
    files = {
        "tests/models/new/test_model.py": "load(reference_dir / 'new.npz')",
        "tests/reference/new.npz": "",
        "Misc/parameters/new.json": json.dumps(example),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    table = "MODEL_TYPES = {'new': ('cellgan.models.new', 'NewConfig', 'New')}"
    modules = house(
        cellgan__config__model_types=table,
        cellgan__models__new__config="class NewConfig: ...",
        cellgan__models__new__model="class New: ...",
    )
    return modules, tmp_path


def test_complete_family_is_accepted(family) -> None:
    assert not incomplete_families(*family)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "tests/models/new/test_model.py",
            "no tests in tests/models/new",
        ),
        ("tests/reference/new.npz", "its tests read no .npz of tests/reference"),
        ("Misc/parameters/new.json", "no example file in Misc/parameters"),
    ],
)
def test_family_without_a_file_is_found(family, missing: str, message: str) -> None:
    modules, folder = family
    (folder / missing).unlink()

    (fault,) = incomplete_families(modules, folder)

    assert message in fault


def test_family_without_its_class_is_found(family) -> None:
    modules, folder = family
    del modules["cellgan.models.new.model"]

    assert incomplete_families(modules, folder) == [
        "new: no class New in cellgan.models.new.model."
    ]


def test_public_name_of_two_modules_is_found() -> None:
    small = house(
        cellgan__a="def draw(): ...\ndef _own(): ...\ndef describe(): ...",
        cellgan__b="class draw: ...\ndef _own(): ...\ndef describe(): ...",
    )

    (fault,) = repeated_public_names(small)
    assert fault.startswith("draw is defined in cellgan.a and cellgan.b")


@pytest.mark.parametrize(
    "use",
    [
        "from cellgan.a import Draw\nDraw()",
        "a.Draw()",
        "TABLE = {'new': 'cellgan.a:Draw'}",
    ],
)
def test_public_name_that_is_mentioned_is_allowed(use: str, tmp_path: Path) -> None:
    small = house(cellgan__a="class Draw: ...", cellgan__b=use)

    assert not unused_public_names(small, tmp_path)


def test_public_name_that_nothing_uses_is_found(tmp_path: Path) -> None:
    source = '"""Draw is told of here."""\nclass Draw:\n    def again(self): ...'
    faults = unused_public_names(house(cellgan__a=source), tmp_path)

    assert [fault.partition(":")[2].split(":")[0] for fault in faults] == [
        "2 Draw",
        "3 again",
    ]


def test_long_chain_of_imports_is_found() -> None:
    small = house(a="import b", b="import c", c="def f():\n    import d", d="")

    (fault,) = deep_imports(small, 2)
    assert fault.startswith("c <- b <- a: 3 modules load each other, at most 2 may")
    assert not deep_imports(small, 3)
