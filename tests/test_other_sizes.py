"""No size or name of the stored files stands in a test that reads them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARITY = ("-p", "tests.other_sizes.parity_alone", "-m", "", "-n", "0", "-q", "-rp")


def run(*arguments: str | Path, **environment: str) -> str:
    """Run Python and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-1000:]}"
    return done.stdout


@pytest.mark.slow
def test_parity_tests_pass_on_files_of_other_sizes(tmp_path: Path) -> None:
    files = [
        file
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if "reference_dir" in file.read_text()
    ]
    run("tests.other_sizes.write", tmp_path)

    collected = run("pytest", *PARITY, "--collect-only", *files)
    printed = run("pytest", *PARITY, *files, CELLGAN_REFERENCE_DIR=str(tmp_path))

    tests = set(re.findall(r"^(tests/\S+?::\w+)", collected, re.MULTILINE))
    passed = set(re.findall(r"^PASSED (tests/\S+?::\w+)", printed, re.MULTILINE))
    assert len(tests) > 100
    assert passed == tests
