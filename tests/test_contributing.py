"""CONTRIBUTING.md is followed to the letter: its family and its action run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.test_end_to_end import write_inputs

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^ *```python (\S+\.py)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def follow(section: str, folder: Path) -> list[str]:
    """Write a section's files into a copy of the package; return what they are.

    Lines for a file that is there go into the first table of strings in it.
    """
    document = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = document.partition(f"## {section}\n")[2].partition("\n## ")[0]
    for package in ("cellgan", "preprocessing"):
        shutil.copytree(ROOT / package, folder / package)
    files = FENCE.findall(text)
    for name, code in files:
        file = folder / name
        if file.exists():
            (line,) = code.strip().splitlines()
            table = re.compile(r"^(?=    \"\w+\"[,:])", re.MULTILINE)
            file.write_text(table.sub(f"    {line}\n", file.read_text(), count=1))
        else:
            file.parent.mkdir(exist_ok=True)
            file.write_text(textwrap.dedent(code))
    return [name for name, _ in files]


def cellgan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cellgan.cli", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_family_of_the_document_is_its_folder_and_one_line(tmp_path: Path) -> None:
    files = follow("Add a family", tmp_path)
    assert [name for name in files if "mean_model" not in name] == [
        "cellgan/config/model_types.py"
    ]
    param = write_inputs(tmp_path, one={})
    document = json.loads(param.read_text())
    block = document["experiments"]["one"]
    block["model"] = {"type": "meanModel"}
    rate = {"decay": False, "alpha_0": 0.1}
    block["training"] = {"max_steps": 60, "summary_freq": 10, "learning_rate": rate}
    param.write_text(json.dumps(document))

    done = cellgan(tmp_path, "--param", str(param), "--process", "--train")
    assert done.returncode == 0, done.stderr
    done = cellgan(tmp_path, "generate", str(param), "--cells_no", "30")
    assert done.returncode == 0, done.stderr
    assert "30 cells x" in done.stdout
    refused = cellgan(tmp_path, "embed", str(param))
    assert refused.returncode == 2
    assert '"meanModel" has no encoder of cells' in refused.stderr
    lines = (tmp_path / "experiments/one/job/metrics.jsonl").read_text().splitlines()
    losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
    assert losses[-1] < 0.75 * losses[0]


def test_action_of_the_document_is_its_file_and_one_line(tmp_path: Path) -> None:
    files = follow("Add an action", tmp_path)
    assert files == ["cellgan/actions/__init__.py", "cellgan/actions/head.py"]
    shutil.copytree(ROOT / "tests/reference/experiments/scGAN", tmp_path / "one")
    parameters = json.loads((tmp_path / "one/parameters.json").read_text())
    block = {key: parameters[key] for key in ("input_ds", "model")}
    param = tmp_path / "parameters.json"
    param.write_text(
        json.dumps(
            {
                "exp_param": {"experiments_dir": str(tmp_path), "GPU": []},
                "experiments": {"one": block},
            }
        )
    )

    assert "tell the names of the first genes" in cellgan(tmp_path, "--help").stdout
    done = cellgan(tmp_path, "head", str(param), "--n-genes", "2")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"one: \S+, \S+\n", done.stdout)
    done = cellgan(tmp_path, "--param", str(param), "--head", "--n-genes", "0")
    assert done.returncode == 2
    assert "--n-genes: 0 found. Give 1 to" in done.stderr
    done = cellgan(tmp_path, "--param", str(param), "--train", "--n-genes", "3")
    assert "--n-genes goes with --head, which is not given" in done.stderr
