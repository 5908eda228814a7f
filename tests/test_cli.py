"""The command line: every flag, pairs of flags, exit codes, what is not imported."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cellgan.actions import actions
from cellgan.actions.train import Train
from cellgan.cli import main
from cellgan.config.reading import as_used, parse_experiment
from cellgan.errors import LEAK
from cellgan.evaluation import evaluate
from cellgan.experiment import Experiment

ROOT = Path(__file__).parents[1]


@pytest.fixture
def parameter_file(tmp_path: Path) -> Path:
    path = tmp_path / "parameters.json"
    block = {
        "input_ds": {
            "raw_input": "builtin:pbmc68k_reduced",
            "split": {"valid_cells": 70},
        }
    }
    document = {
        "exp_param": {"experiments_dir": str(tmp_path / "experiments"), "GPU": []},
        "experiments": {"one": block, "two": block},
    }
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """Record the actions that the command line runs, in order, and their options."""
    calls: list[tuple[str, str, dict[str, Any]]] = []

    def record(name: str, experiment: Experiment, options: Any) -> int:
        calls.append((name, experiment.name, vars(options)))
        return LEAK if name == "evaluate" and options.fail_on_leak else 0

    for action in actions():
        kind = type(action)
        monkeypatch.setattr(kind, "ability", None)
        monkeypatch.setattr(kind, "needs_training", False)
        monkeypatch.setattr(kind, "prepare", lambda _self, _one, options: options)
        monkeypatch.setattr(
            kind, "run", lambda self, one, options: record(self.name, one, options)
        )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    return calls


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_actions_run_in_order_whatever_the_order_of_flags(
    parameter_file: Path, called: list[Any]
) -> None:
    code = run(
        *("--evaluate", "--train", "--generate", "--process"),
        *("--param", parameter_file, "--experiment", "two"),
    )

    assert code == 0
    assert [(verb, name) for verb, name, _ in called] == [
        ("process", "two"),
        ("train", "two"),
        ("generate", "two"),
        ("evaluate", "two"),
    ]


def test_options_reach_their_action(
    parameter_file: Path, called: list[Any], tmp_path: Path
) -> None:
    run(
        *("--param", parameter_file, "--experiment", "one", "--generate"),
        *("--cells_no", 10, 0, 5, "--seed", 3, "--counts"),
        *("--save_path", tmp_path / "cells.zarr", "--library-size", 900),
        *("--condition", "cell_type=B cell", "donor=1=2"),
        *("--guidance", "cell_type=2", "donor=0.5", "--n-steps", 7),
        *("--solver", "dopri5", "--tolerance", "0.01", "--cache-interval", 5),
    )

    options = called[0][2]
    assert {name: of for name, of in options.items() if of not in (None, False)} == {
        "param": parameter_file,
        "experiment": ["one"],
        "generate": True,
        "cells_no": ["10", "0", "5"],
        "seed": 3,
        "counts": True,
        "save_path": tmp_path / "cells.zarr",
        "library_size": "900",
        "condition": ["cell_type=B cell", "donor=1=2"],
        "guidance": ["cell_type=2", "donor=0.5"],
        "solver": "dopri5",
        "n_steps": 7,
        "tolerance": 0.01,
        "cache_interval": 5,
    }


@pytest.mark.parametrize(
    ("verb", "flags"),
    [
        (("process", "{file}", "--overwrite"), ("--process", "--overwrite")),
        (("correct", "{file}", "a=1", "b=2"), ("--correct", "a=1", "b=2")),
        (
            ("correct", "{file}", "--seed", "1", "a=1"),
            ("--correct", "a=1", "--seed", "1"),
        ),
        (("interpolate", "{file}", "A", "B"), ("--interpolate", "A", "B")),
        (
            ("augment", "{file}", "B cell", "--fractions", "0.1"),
            ("--augment", "B cell", "--fractions", "0.1"),
        ),
        (
            ("import-weights", "{file}", "cfgen", "a.ckpt"),
            ("--import-weights", "cfgen", "a.ckpt"),
        ),
        (("guidance-sweep", "{file}"), ("--guidance-sweep",)),
    ],
)
def test_a_verb_is_the_flag_of_its_action(
    parameter_file: Path, called: list[Any], verb: tuple[str], flags: tuple[str]
) -> None:
    one = ("--experiment", "one")
    run(*(word.format(file=parameter_file) for word in verb), *one)
    run(*flags, "--param", parameter_file, *one)

    assert len(called) == 2
    assert called[0] == called[1]


def test_evaluation_looks_at_what_was_just_saved(
    parameter_file: Path, called: list[Any], tmp_path: Path
) -> None:
    run(
        *("--param", parameter_file, "--experiment", "one"),
        *("--generate", "--evaluate", "--save_path", tmp_path / "cells.h5ad"),
    )

    assert [(name, options["save_path"]) for name, _, options in called] == [
        ("generate", tmp_path / "cells.h5ad"),
        ("evaluate", tmp_path / "cells.h5ad"),
    ]


def test_leak_is_an_exit_code_when_asked_for(
    parameter_file: Path, called: list[Any]
) -> None:
    command = ("--param", parameter_file, "--experiment", "one", "--evaluate")

    assert run(*command) == 0
    assert run(*command, "--fail-on-leak") == 3
    assert len(called) == 2


@pytest.mark.parametrize(
    "files",
    [
        ("--evaluate", "--generated", "b.h5ad", "c.h5ad"),
        ("evaluate", "b.h5ad", "c.h5ad"),
    ],
    ids=["flags", "verb"],
)
def test_files_of_others_are_evaluated_without_a_parameter_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: tuple[str]
) -> None:
    calls = []

    def record(*positional: Any, **named: Any) -> list[Any]:
        calls.append((positional, named))
        return []

    monkeypatch.setattr(evaluate, "evaluate_files", record)
    monkeypatch.setattr(evaluate, "leaking", list)
    options = ("--label", "cell_type", "--report", tmp_path, "--seed", 3)
    assert run(*files, "--real", "a.h5ad", *options) == 0

    assert calls == [
        (
            (Path("a.h5ad"), [Path("b.h5ad"), Path("c.h5ad")], tmp_path),
            {"label": "cell_type", "seed": 3, "must_know_training": False},
        )
    ]


def test_model_path_needs_no_parameter_file(
    parameter_file: Path, called: list[Any], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    block = json.loads(parameter_file.read_text())["experiments"]["one"]
    (folder / "parameters.json").write_text(json.dumps(block))

    assert run("--generate", "--model_path", folder) == 0
    assert run("generate", folder) == 0
    assert [call[:2] for call in called] == [("generate", "model")] * 2


def test_print_config_prints_defaults_too(
    parameter_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run("--param", parameter_file, "--print-config")

    document = json.loads(capsys.readouterr().out)
    assert code == 0
    assert document["two"]["training"]["critic_iters"] == 5
    assert document["two"]["model"]["output_LSN"] == 20000


def test_print_config_shows_training_settings_where_they_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = {
        "input_ds": {"raw_input": "a.h5ad"},
        "model": {"type": "CFGen"},
        "training": {"stages": {"flow": {"max_steps": 7}}},
    }
    file = tmp_path / "flow.json"
    file.write_text(
        json.dumps({"exp_param": {"experiments_dir": "."}, "experiments": {"a": block}})
    )
    assert run("--param", file, "--print-config") == 0

    printed = json.loads(capsys.readouterr().out)["a"]
    training = printed["training"]
    assert "max_steps" not in training
    assert training["stages"]["flow"]["max_steps"] == 7
    assert training["stages"]["autoencoder"]["max_steps"] == 3000
    again = parse_experiment({**block, "training": training}, "again")
    assert as_used(again) == printed


WRONG = {
    "nothing to do": ([], r"nothing to do"),
    "no parameter file": (["--process"], r"--param is missing"),
    "file that is not there": (["--param", "x.json", "--train"], r"x\.json: no such"),
    "option of another action": (
        ["--param", "{file}", "--train", "--counts"],
        r"--counts goes with --generate",
    ),
    "unknown experiment": (
        ["--param", "{file}", "--train", "--experiment", "tow"],
        r'no experiment "tow"\. Did you mean "two"',
    ),
    "one file for two experiments": (
        ["--param", "{file}", "--generate", "--save_path", "a.h5ad"],
        r"choose\s+one with --experiment",
    ),
    "fractions without a label": (
        ["--param", "{file}", "--fractions", "0.1", "--train"],
        r"--fractions goes with --augment, which is not given",
    ),
    "model folder for training": (
        ["--model_path", "x", "--train"],
        r"--model_path goes with --generate, --counterfactual or --embed",
    ),
    "model folder that is not there": (
        ["--model_path", "nowhere", "--generate"],
        r"nowhere: not an experiment folder: no such folder",
    ),
    "seed 0 of nothing": (
        ["--param", "{file}", "--train", "--seed", "0"],
        r"--seed goes with --generate",
    ),
    "pair without a value": (
        ["--param", "{file}", "--generate", "--condition", "donor"],
        r'--condition: "donor" is no pair',
    ),
    "covariate twice": (
        ["--param", "{file}", "--generate", "--condition", "a=1", "a=2"],
        r'--condition: "a" is given twice',
    ),
    "scale that is no number": (
        ["--param", "{file}", "--generate", "--guidance", "a=much"],
        r'--guidance: the scale of a is "much"',
    ),
    "solver of nothing": (
        ["--param", "{file}", "--train", "--solver", "euler"],
        r"--solver goes with --generate or --guidance-sweep or --correct",
    ),
    "two files in one path": (
        ["--param", "{file}", "--generate", "--correct", "a=1", "--save_path", "x"],
        r"--save_path would be of --generate and of --correct",
    ),
    "label without fractions": (
        ["--param", "{file}", "--augment", "a"],
        r"--augment LABEL and --fractions F \[F \.\.\.\] go together",
    ),
    "verb without its words": (
        ["interpolate", "{file}", "A"],
        r"interpolate: behind the parameter file, expected FROM TO, found A",
    ),
    "verb without a file": (["train"], r"train: the parameter file is missing"),
    "verb without its file": (["correct", "a=1"], r"a=1 found, expected the parameter"),
    "wrong verb": (
        ["proces", "{file}"],
        r'no action "proces"\. Did you mean "process"',
    ),
    "option of another verb": (
        ["process", "{file}", "--cells_no", "5"],
        r"process: --cells_no is no option of it; it goes with generate, interpolate",
    ),
    "option of no verb": (
        ["process", "{file}", "--overwite"],
        r'no option "--overwite"\. Did you mean "--overwrite"',
    ),
    "folder for a verb that needs the file": (
        ["train", "{folder}"],
        r"is a folder\. Give the parameter file; a folder does for generate",
    ),
    "experiment of a folder": (
        ["generate", "{folder}", "--experiment", "one"],
        r"--experiment chooses from a parameter file",
    ),
    "parameters among generated cells": (
        ["evaluate", "{file}", "--real", "a.h5ad"],
        r"is a parameter file, but with --real",
    ),
    "weights of no file": (
        ["--param", "{file}", "--import-weights", "cfgen"],
        r"--import-weights takes a family and files",
    ),
    "weights and training": (
        ["--param", "{file}", "--train", "--import-weights", "cfgen", "a.ckpt"],
        r"--import-weights goes with --param alone",
    ),
    "weights of two experiments": (
        ["--param", "{file}", "--import-weights", "cfgen", "a.ckpt"],
        r"--import-weights fills one experiment",
    ),
    "weights without a parameter file": (
        ["--import-weights", "cfgen", "a.ckpt"],
        r"--param is missing",
    ),
    "estimate with an action": (
        ["--param", "{file}", "--estimate", "--train"],
        r"--estimate only tells",
    ),
    "model folder with augmentation": (
        ["--model_path", "x", "--generate", "--augment", "a", "--fractions", "0.1"],
        r"--model_path goes with --generate, --counterfactual or --embed",
    ),
    "evaluating another format": (
        [
            *("--param", "{file}", "--experiment", "one", "--generate", "--evaluate"),
            *("--save_path", "cells.zarr"),
        ],
        r"cells\.zarr cannot be evaluated",
    ),
    "real cells alone": (
        ["--evaluate", "--real", "a.h5ad"],
        r"takes both --real FILE.*--generated FILE",
    ),
    "files and a parameter file": (
        [
            *("--param", "{file}", "--evaluate", "--real", "a.h5ad"),
            *("--generated", "b.h5ad"),
        ],
        r"--real and --generated go with --evaluate alone",
    ),
    "label of an experiment": (
        ["--param", "{file}", "--evaluate", "--label", "x"],
        r"--label goes with --evaluate --real",
    ),
    "leak without evaluation": (
        ["--param", "{file}", "--train", "--fail-on-leak"],
        r"--fail-on-leak goes with --evaluate",
    ),
    "overwriting nothing": (
        ["--param", "{file}", "--train", "--overwrite"],
        r"--overwrite goes with --process",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_option_is_one_clear_message(
    parameter_file: Path,
    called: list[Any],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    places = {"file": parameter_file, "folder": parameter_file.parent}
    code = run(*(text.format(**places) for text in arguments))

    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert re.search(message, error)
    assert called == []
    assert not (parameter_file.parent / "experiments").exists()


def test_unknown_flag_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run("--trian")
    assert "--trian" in capsys.readouterr().err


def test_bug_keeps_its_traceback(
    parameter_file: Path, called: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")  # noqa: EM101

    monkeypatch.setattr(Train, "run", broken)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run("--param", parameter_file, "--experiment", "one", "--train")


@pytest.mark.slow
def test_several_experiments_run_in_processes_of_their_own(
    parameter_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(parameter_file.read_text())
    document["experiments"]["one"]["input_ds"]["raw_input"] = "missing.h5ad"
    parameter_file.write_text(json.dumps(document))

    code = run("--param", parameter_file, "--process")

    output = capfd.readouterr().out
    assert code == 2
    assert "[one] error: " in output
    assert "missing.h5ad" in output
    assert "1 of 2 experiments succeeded; failed: one" in output
    assert (parameter_file.parent / "experiments/two/manifest.json").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--param", "parameters.json", "--print-config"], ["--param", "x"]],
)
def test_quick_answers_import_nothing_heavy(arguments: list[str]) -> None:
    heavy = ("tensorflow", "keras", "scanpy", "anndata", "sklearn", "matplotlib")
    program = (
        "import sys\nfrom cellgan.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines()[-1] == "[]"
