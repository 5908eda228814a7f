"""scGAN and cscGAN against the reference, number by number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.models.gan.gan_reference import Reference, all_outputs

FLOAT64, FLOAT32 = 1e-9, 1e-4
"""Relative to the largest value of the array."""
LEARNING_RATE = 1e-6
"""Schedules compute in float32, whatever the weights are."""


@pytest.fixture(scope="module", params=["float64", "float32"])
def reference(request: pytest.FixtureRequest, reference_dir: Path) -> Reference:
    return Reference(reference_dir, request.param)


@pytest.fixture(scope="module")
def outputs(reference: Reference) -> dict[str, np.ndarray]:
    return all_outputs(reference)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float(np.abs(found - expected).max() / (np.abs(expected).max() or 1))


def differing(
    outputs: dict[str, np.ndarray], expected: dict[str, np.ndarray], tolerance: float
) -> dict[str, float]:
    """Return the entries that differ by more than `tolerance`, and by how much."""
    differences = {
        key: largest_difference(outputs[key], value) for key, value in expected.items()
    }
    return {key: value for key, value in differences.items() if not value <= tolerance}


def test_outputs_cover_every_stored_entry(
    reference: Reference, outputs: dict[str, np.ndarray]
) -> None:
    shapes = {key: value.shape for key, value in outputs.items()}
    stored = {key: value.shape for key, value in reference.expected("out/").items()}
    assert shapes == stored


@pytest.mark.parametrize(
    "prefix",
    [
        "out/gen/cond_bn/train/",
        "out/gen/cond_bn/infer/",
        "out/gen/uncond/train/",
        "out/gen/uncond/infer/",
        "out/gen/cond_ln/",
        "out/gen/cond_none/",
        "out/cond/",
        "out/cond_proj/",
        "out/uncond/",
        "out/lsn/",
    ],
)
def test_outputs_equal_the_reference(
    reference: Reference, outputs: dict[str, np.ndarray], prefix: str
) -> None:
    expected = reference.expected(prefix)
    tolerance = {"float64": FLOAT64, "float32": FLOAT32}[reference.dtype]
    assert expected
    assert differing(outputs, expected, tolerance) == {}


@pytest.mark.parametrize("algorithm", ["amsgrad", "adam"])
def test_optimizer_follows_the_reference(
    reference: Reference, outputs: dict[str, np.ndarray], algorithm: str
) -> None:
    expected = reference.expected(f"out/optimiser/{algorithm}/")
    assert expected
    for key, value in expected.items():
        np.testing.assert_allclose(outputs[key], value, rtol=0, atol=1e-6, err_msg=key)


def test_learning_rate_follows_the_reference(
    reference: Reference, outputs: dict[str, np.ndarray]
) -> None:
    expected = reference["out/lr/values"]
    np.testing.assert_allclose(outputs["out/lr/values"], expected, rtol=LEARNING_RATE)
