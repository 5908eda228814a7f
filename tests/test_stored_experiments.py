"""Experiments that an earlier edition trained load, resume and make the same cells.

They are in ``tests/reference/experiments``, written by `tests.store_experiments`. Only
what outlives any rearrangement is used of cellgan: its command line and `cellgan.load`.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

import cellgan
from tests import store_experiments
from tests.store_experiments import (
    EXPECTED,
    FOLDER,
    MACHINE,
    REQUESTS,
    STEPS,
    Arrays,
    arrays_of,
    make,
    read_cells,
    run,
    write_raw_cells,
)

SLOW = {
    *(("CFGen", "corrected"), ("CFGen", "sized"), ("LDVAE", "embedded")),
    *(("cfDiffusion", "ddpm"), ("cfDiffusion", "interpolated")),
}
MADE = [
    pytest.param(name, request, marks=pytest.mark.slow)
    if (name, request) in SLOW
    else (name, request)
    for name, requests in REQUESTS.items()
    for request in requests
]
CLOSE = 1e-5
"""Relative to a number, or to the largest of its array."""
FEW = 0.01
"""Share of numbers, such as counts on the edge, that another machine may change."""

ALIKE = 0.1
"""Size of the error of what another machine trains, relative to the weights'."""


def assert_same(actual: Arrays, expected: Arrays, *, exact: bool) -> None:
    """Compare bit by bit, or numbers closely where their last bits may differ."""
    assert actual.keys() == expected.keys()
    for key, values in expected.items():
        assert actual[key].dtype.kind == values.dtype.kind, key
        if exact or values.dtype.kind != "f":
            np.testing.assert_array_equal(actual[key], values, err_msg=key, strict=True)
            continue
        assert actual[key].shape == values.shape, key
        largest = np.abs(values).max(initial=0.0)
        near = np.isclose(actual[key], values, rtol=CLOSE, atol=CLOSE * largest)
        assert np.count_nonzero(~near) <= FEW * near.size, key


def assert_trained_alike(actual: Arrays, expected: Arrays, *, exact: bool) -> None:
    """Compare checkpoints bit by bit, or each part of them as a whole.

    Where a loss does not depend on a weight, as on a bias before a normalisation, its
    gradient is rounding alone, of which Adam makes steps as large as any other.
    """
    if exact:
        assert_same(actual, expected, exact=True)
        return
    assert actual.keys() == expected.keys()
    for part in {key.partition("/")[0] for key in expected}:
        mine, others = (numbers_of(part, arrays) for arrays in (actual, expected))
        error = np.linalg.norm(mine - others)
        assert error <= ALIKE * np.linalg.norm(others), part


def numbers_of(part: str, variables: Arrays) -> np.ndarray:
    """Return all floats of a part of a checkpoint."""
    keys = [key for key in sorted(variables) if key.startswith(f"{part}/")]
    floats = [variables[key] for key in keys if variables[key].dtype.kind == "f"]
    return np.concatenate([np.zeros(0), *map(np.ravel, floats)])


NUMBERS = np.linspace(1.0, 2.0, 200, dtype=np.float32)
ONE_COUNT = np.where(np.arange(200) == 7, 1, 0).astype(np.float32)


@pytest.mark.parametrize(
    ("changed", "exact"),
    [
        (NUMBERS * np.float32(1 + 5e-6), False),
        (NUMBERS + 2 * ONE_COUNT, False),
        (NUMBERS.copy(), True),
    ],
)
def test_comparison_lets_pass_what_rounding_explains(changed, exact):
    assert_same({"X": changed}, {"X": NUMBERS}, exact=exact)


@pytest.mark.parametrize(
    ("changed", "exact"),
    [
        (np.nextafter(NUMBERS, 2 * ONE_COUNT), True),
        (NUMBERS.astype(np.float64), True),
        (NUMBERS * np.float32(1 + 5e-5), False),
        (NUMBERS + np.arange(200) // 197, False),
        (NUMBERS[:-1], False),
        (NUMBERS.astype(str), False),
    ],
)
def test_comparison_refuses_what_rounding_does_not_explain(changed, exact):
    with pytest.raises(AssertionError, match="X"):
        assert_same({"X": changed}, {"X": NUMBERS}, exact=exact)


@pytest.mark.parametrize("exact", [True, False])
def test_comparison_refuses_other_text_and_other_places(exact):
    names = {"obs_names": np.array(["a", "b"])}
    with pytest.raises(AssertionError, match="obs_names"):
        assert_same({"obs_names": np.array(["a", "c"])}, names, exact=exact)
    with pytest.raises(AssertionError, match="obs_names"):
        assert_same({}, names, exact=exact)


@pytest.mark.parametrize(("factor", "exact"), [(1.0, True), (1.05, False)])
def test_checkpoints_are_alike_up_to_what_rounding_explains(factor, exact):
    saved = {"net/0/": NUMBERS, "net/1/": NUMBERS[:3], "steps/0/": np.array(4)}
    trained = saved | {"net/0/": np.float32(factor) * NUMBERS}
    assert_trained_alike(trained, saved, exact=exact)


@pytest.mark.parametrize(("factor", "exact"), [(1 + 2e-7, True), (1.2, False)])
def test_checkpoints_of_another_training_are_not_alike(factor, exact):
    saved = {"net/0/": NUMBERS, "net/1/": NUMBERS[:3], "steps/0/": np.array(4)}
    trained = saved | {"net/0/": np.float32(factor) * NUMBERS}
    with pytest.raises(AssertionError, match="net"):
        assert_trained_alike(trained, saved, exact=exact)


@pytest.fixture(scope="module")
def exact() -> bool:
    """Whether this machine rounds as the one that has stored the experiments."""
    stored = json.loads((FOLDER / MACHINE).read_text())
    return stored == store_experiments.machine()


@pytest.fixture(scope="module")
def expected() -> Arrays:
    with np.load(FOLDER / EXPECTED) as arrays:
        return dict(arrays)


@pytest.fixture
def stored(tmp_path, monkeypatch) -> Path:
    """The working folder: a copy of all stored experiments."""
    folder = tmp_path / "experiments"
    shutil.copytree(FOLDER, folder)
    monkeypatch.chdir(folder)
    return folder


def cells_of(expected: Arrays, name: str, request: str) -> Arrays:
    prefix = f"{name}/{request}/"
    return {
        key.removeprefix(prefix): values
        for key, values in expected.items()
        if key.startswith(prefix)
    }


def weights_of(folder: Path, name: str) -> dict[str, Arrays]:
    """Return every variable of every checkpoint of an experiment."""
    return {
        str(path.relative_to(folder)): variables_of(path)
        for path in sorted((folder / name).glob("job/*/checkpoints/model-*"))
    }


def variables_of(path: Path) -> Arrays:
    reader = tf.train.load_checkpoint(str(path / "model"))
    keys = reader.get_variable_to_shape_map()
    return {key: np.asarray(reader.get_tensor(key)) for key in keys if key[0] != "_"}


def records_of(folder: Path, name: str) -> dict[str, bytes]:
    return {
        path.name: gzip.decompress(path.read_bytes())
        for path in sorted((folder / name / "TF_records").iterdir())
    }


def document_of(path: Path) -> object:
    """Return a JSON file, its numbers to six digits."""
    return json.loads(path.read_text(), parse_float=lambda word: f"{float(word):.6g}")


def forget_steps(experiment: Path, steps: Iterable[int]) -> None:
    for step in steps:
        for path in experiment.glob(f"job/*/checkpoints/model-{step}"):
            shutil.rmtree(path)


@pytest.mark.parametrize(("name", "request_name"), MADE)
def test_stored_model_makes_the_same_cells(stored, expected, exact, name, request_name):
    cells = make(name, request_name)
    assert_same(cells, cells_of(expected, name, request_name), exact=exact)


@pytest.mark.parametrize(
    ("name", "request_name", "wishes"),
    [
        ("scGAN", "counts", {"cells_no": (8,), "counts": True}),
        ("cscGAN", "normalized", {"cells_no": (3, 2, 4)}),
        ("cycleAE", "edited", {"cells_no": (3, 2, 4), "condition": {"batch": "new"}}),
        ("LDVAE", "prior", {"cells_no": (8,), "latents": "prior"}),
    ],
)
def test_loaded_model_makes_the_same_cells(
    stored, expected, exact, name, request_name, wishes
):
    model = cellgan.load(stored / name)
    assert model.step == STEPS[-1]
    cells = arrays_of(model.generate(seed=0, **wishes))
    assert_same(cells, cells_of(expected, name, request_name), exact=exact)


@pytest.mark.parametrize("name", ["cscGAN", "CFGen_multiome"])
def test_processing_writes_the_stored_files(stored, name):
    shutil.rmtree(stored / name)
    write_raw_cells()
    run(name, "--process")
    assert records_of(stored, name) == records_of(FOLDER, name)
    for file in ("manifest.json", "fields.json", "vocabulary.json"):
        assert document_of(stored / name / file) == document_of(FOLDER / name / file)
    (file,) = (path.name for path in (FOLDER / name).glob("processed.*"))
    cells = read_cells(stored / name / file)
    assert_same(cells, read_cells(FOLDER / name / file), exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("first_step", [0, *STEPS[:-1]])
@pytest.mark.parametrize("name", REQUESTS)
def test_training_from_a_step_ends_with_the_stored_weights(
    stored, exact, name, first_step
):
    forget_steps(stored / name, [step for step in STEPS if step > first_step])
    run(name, "--train")
    trained, expected = (weights_of(folder, name) for folder in (stored, FOLDER))
    assert trained.keys() == expected.keys()
    for checkpoint, variables in expected.items():
        assert_trained_alike(trained[checkpoint], variables, exact=exact)
