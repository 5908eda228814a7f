"""What users install and start: quick answers, one version, pins that work anywhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import cellgan
from tests.architecture import HEAVY, imports, read_house

ROOT = Path(__file__).resolve().parents[1]
PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def settings() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def canonical(requirement: str) -> str:
    """Return a requirement's name, normalised as package indexes do."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def run_and_list_modules(*arguments: str) -> tuple[int, str, set[str]]:
    """Run main.py; return exit code, its output and the libraries it has loaded."""
    program = (
        "import atexit, json, sys, runpy\n"
        f"sys.argv = ['main.py', *{list(arguments)!r}]\n"
        "atexit.register(lambda: print('\\n' + json.dumps(list(sys.modules))))\n"
        "runpy.run_path('main.py', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    output, _, modules = done.stdout.rstrip().rpartition("\n")
    loaded = {name.split(".")[0] for name in json.loads(modules)}
    return done.returncode, output + done.stderr, loaded


def test_help_answers_without_a_heavy_library() -> None:
    code, output, loaded = run_and_list_modules("--help")

    assert (code, "--process" in output, "cellgan" in loaded) == (0, True, True)
    assert not loaded & HEAVY


def test_wrong_parameter_is_answered_without_a_heavy_library(tmp_path: Path) -> None:
    document = json.loads((ROOT / "parameters.json").read_text())
    document["experiments"]["pbmc"]["training"]["critic_iter"] = 5
    parameters = tmp_path / "parameters.json"
    parameters.write_text(json.dumps(document))

    code, output, loaded = run_and_list_modules(
        "--param", str(parameters), "--process", "--train"
    )

    assert (code, 'Did you mean "critic_iters"?' in output) == (2, True)
    assert not loaded & HEAVY


def test_every_template_and_asset_of_a_report_is_package_data() -> None:
    folder = ROOT / "cellgan" / "evaluation" / "report"
    patterns = settings()["tool"]["setuptools"]["package-data"][
        "cellgan.evaluation.report"
    ]

    packaged = {file for pattern in patterns for file in folder.glob(pattern)}
    files = {file for file in folder.rglob("*.*") if "__pycache__" not in file.parts}
    assert {file for file in files if file.suffix != ".py"} == packaged


def test_templates_are_loaded_only_when_a_report_is_written() -> None:
    program = (
        "import sys; from cellgan.evaluation.report import html, model_card; "
        "print('jinja2' in sys.modules); "
        "html.render('metrics.md.j2', report=type('None', (), {'metrics': []})); "
        "print('jinja2' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.split() == ["False", "True"]


def test_console_command_is_main() -> None:
    from cellgan import cli

    assert settings()["project"]["scripts"] == {"cellgan": "cellgan.cli:main"}
    assert callable(cli.main)


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()

    assert settings()["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "cellgan.__version__"
    }
    assert re.findall(r"^version: (.+)$", citation, re.M) == [cellgan.__version__]


def test_citation_names_the_five_families_and_the_study() -> None:
    citation = (ROOT / "CITATION.cff").read_text()

    repositories = re.findall(r"repository-code: \S+/(\S+)", citation)
    assert repositories == [
        "scGAN",
        "cfDiffusion",
        "CFGen",
        "scRNA-seq_Context_Conditional_Autoencoder",
        "scvi-tools",
        "scFM-datamix",
    ]


def test_pins_are_exact_versions_without_host_or_path() -> None:
    wrong = [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[\w.]+", pin)]

    assert PINS
    assert not wrong


def test_every_imported_library_is_a_requirement() -> None:
    package_of = {"ot": "pot", "sklearn": "scikit-learn", "umap": "umap-learn"}
    ours = {"cellgan", "preprocessing", *sys.stdlib_module_names}
    modules = read_house()

    found = {
        library.target.split(".")[0]
        for module in modules
        for library in imports(module, modules)
    }
    project = settings()["project"]
    extras = project["optional-dependencies"]
    optional = [*extras["import"], *extras["atlas"]]
    required = map(canonical, [*project["dependencies"], *optional])
    needed = {canonical(package_of.get(name, name)) for name in found - ours}
    assert "tensorflow" in needed
    assert not needed - set(required)


@pytest.mark.parametrize("extra", [None, "test"])
def test_every_requirement_is_pinned(extra: str | None) -> None:
    project = settings()["project"]
    required = project["optional-dependencies"].get(extra, project["dependencies"])

    pinned = {canonical(pin) for pin in PINS}
    assert {canonical(requirement) for requirement in required} <= pinned


@pytest.mark.parametrize(
    "file",
    [
        "Makefile",
        "dockerfile/Dockerfile",
        ".ci/run",
        "constraints.txt",
        "pyproject.toml",
    ],
)
def test_no_package_index_is_named(file: str) -> None:
    text = (ROOT / file).read_text()

    assert not re.search(r"pypi|pythonhosted|index-url|find-links|trusted-host", text)


def test_image_context_holds_what_the_dockerfile_copies() -> None:
    dockerfile = (ROOT / "dockerfile" / "Dockerfile").read_text()
    ignore = (ROOT / ".dockerignore").read_text().splitlines()

    copied = [
        name
        for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.M)
        for name in line.split()
    ]
    kept = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore
    assert {name.split("/")[0] for name in copied} == kept
    assert [name for name in copied if not (ROOT / name).exists()] == []
