"""Every action refuses what it cannot do before TensorFlow or AnnData is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cellgan.actions import actions
from cellgan.config.model_types import MODEL_TYPES, config_class
from tests.evaluation.folders import write_experiment

ROOT = Path(__file__).parents[2]
HEAVY = ("tensorflow", "keras", "anndata", "scanpy", "sklearn", "matplotlib")
PROGRAM = f"""
import contextlib, io, json, sys, time
from cellgan.cli import main
answers = []
for command in json.load(sys.stdin):
    started, error = time.perf_counter(), io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(command)
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    answers.append([code, error.getvalue(), time.perf_counter() - started, loaded])
print(json.dumps(answers))
"""
# What no experiment can do, whatever its model type.
WRONG = {
    "process": ["--process"],
    "train": ["--train"],
    "generate": ["--generate", "--condition", "planet=mars"],
    "guidance-sweep": ["--guidance-sweep", "--n-steps", "0"],
    "evaluate": ["--evaluate"],
    "correct": ["--correct", "planet=mars"],
    "interpolate": ["--interpolate", "type A", "type Z"],
    "counterfactual": ["--counterfactual", "planet=mars"],
    "embed": ["--embed", "--condition", "planet=mars"],
    "influence": ["--influence"],
    "augment": ["--augment", "type Z", "--fractions", "0.1"],
    "import-weights": ["--import-weights", "nobody", "a.ckpt"],
    "estimate": ["--estimate"],
}
# Nothing in the words is wrong: refused for the scale, which differs from the stored.
CHANGED = {"process", "train", "evaluate", "influence", "estimate"}
COMMANDS = [(action, kind) for action in WRONG for kind in MODEL_TYPES]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list]:
    """What each action answers to an experiment of each model type."""
    folder = tmp_path_factory.mktemp("refusals")
    blocks = {"stored": {}, "changed": {}}
    for kind in MODEL_TYPES:
        experiment = write_experiment(folder / "experiments" / kind, model=kind)
        block = json.loads(experiment.parameters_file.read_text())
        input_ds = {**block["input_ds"], "scale": "normalize_per_cell_LS_77"}
        blocks["stored"][kind] = {
            "input_ds": block["input_ds"],
            "model": {"type": kind},
        }
        blocks["changed"][kind] = {"input_ds": input_ds, "model": {"type": kind}}
    exp_param = {"experiments_dir": str(folder / "experiments"), "GPU": []}
    for name, experiments in blocks.items():
        document = {"exp_param": exp_param, "experiments": experiments}
        (folder / f"{name}.json").write_text(json.dumps(document))
    commands = []
    for action, kind in COMMANDS:
        file = folder / f"{'changed' if action in CHANGED else 'stored'}.json"
        commands.append(
            ["--param", str(file), "--experiment", kind, *WRONG[action]],
        )
    answer = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(COMMANDS, json.loads(answer.stdout.splitlines()[-1]), strict=True))


def test_every_action_is_asked_for_something_it_cannot_do() -> None:
    assert set(WRONG) == {action.name for action in actions()}


@pytest.mark.parametrize(("action", "kind"), COMMANDS)
def test_refusal_loads_no_library(answers, action: str, kind: str) -> None:
    code, error, seconds, loaded = answers[action, kind]

    assert code == 2, error
    assert error.startswith("error: ")
    assert len(error.splitlines()) <= 8, error
    assert loaded == []
    assert seconds < 10  # in which TensorFlow cannot be imported on a busy machine


@pytest.mark.parametrize("action", [each for each in actions() if each.ability])
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_model_type_without_the_ability_is_refused_by_it(
    answers, action, kind: str
) -> None:
    ability, lack = action.ability
    is_able = getattr(config_class(kind), ability)

    assert (lack in answers[action.name, kind][1]) == (not is_able)
