"""Parameter files, read and checked before anything is touched.

Every key is known here, or it is an error that names the nearest one; types, ranges and
consistency are checked before any folder is made.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import (
    TypeAdapter,
    ValidationError,
)

from cellgan.config.base import ModelConfig, field_names
from cellgan.config.composition import Composition, written_out
from cellgan.config.input import InputParameters
from cellgan.config.model_types import DEFAULT_TYPE, MODEL_TYPES, config_class
from cellgan.config.parameters import (
    EvaluationParameters,
    ExperimentParameters,
    ExpParam,
    GenerationParameters,
    Parameters,
    StudyParameters,
)
from cellgan.config.training import StageParameters, TrainingParameters
from cellgan.errors import ConfigError, did_you_mean


def load_parameters(path: str | Path) -> Parameters:
    """Read and check a parameter file.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not JSON, or holds an unknown key or a wrong
        value. Several problems are listed in one message.
    """
    path = Path(path)
    document = read_json(path)
    check_keys(document, ("exp_param", "experiments"), path.name, required=True)
    exp_param = _parse(ExpParam, document["exp_param"], f"{path.name}: exp_param")
    entries = document["experiments"]
    where = f"{path.name}: experiments"
    if not isinstance(entries, dict) or not entries:
        msg = f"{where}: expected an object with one entry per experiment."
        raise ConfigError(msg)
    experiments, studies = {}, {}
    for name, block in entries.items():
        if not re.fullmatch(r"[\w][\w .+-]*", name):
            msg = (
                f'{where}: "{name}" cannot be a folder name. Use letters, digits, '
                f'"_", "-", "." and spaces.'
            )
            raise ConfigError(msg)
        if isinstance(block, dict) and "composition" in block:
            studies[name] = parse_study(block, f"{where}.{name}")
        else:
            experiments[name] = parse_experiment(block, f"{where}.{name}")
    return Parameters(exp_param, experiments, studies)


def parse_study(block: Mapping[str, Any], where: str) -> StudyParameters:
    """Check the blocks of a composition study; `where` names them in messages.

    What the model and its training are told is checked as that of an experiment with
    the study's label and covariates.
    """
    check_keys(block, field_names(StudyParameters), where)
    written = written_out(block["composition"])
    composition = _parse(Composition, written, f"{where}.composition")
    rest = {key: of for key, of in block.items() if key != "composition"}
    input_ds = {
        "raw_input": "composition",
        "clustering": {"res": None, "key": composition.label},
        "covariates": list(composition.covariates),
        "scale": composition.scale,
    }
    as_one = parse_experiment({**rest, "input_ds": input_ds}, where)
    return StudyParameters(
        composition=composition,
        training=as_one.training,
        model=as_one.model,
        generation=as_one.generation,
        evaluation=as_one.evaluation,
    )


def parse_experiment(block: Any, where: str) -> ExperimentParameters:
    """Check one experiment's blocks; `where` names them in messages."""
    names = [field.name for field in dataclasses.fields(ExperimentParameters)]
    check_keys(block, (*names, "preprocessed"), where, required=("input_ds",))
    model_block = block.get("model", {})
    if not isinstance(model_block, dict):
        msg = f"{where}.model: expected an object, found {json.dumps(model_block)}."
        raise ConfigError(msg)
    model_type = model_block.get("type", DEFAULT_TYPE)
    if model_type not in MODEL_TYPES:
        msg = (
            f"{where}.model: type is {json.dumps(model_type)}."
            f"{did_you_mean(str(model_type), MODEL_TYPES)}\n"
            f"    Model types: {', '.join(MODEL_TYPES)}."
        )
        raise ConfigError(msg)
    family = config_class(model_type)
    generation = block.get("generation", {})
    if isinstance(generation, dict):
        generation = _laid_over(family.GENERATION, generation)
    model = _parse(family, model_block, f"{where}.model")
    parameters = ExperimentParameters(
        input_ds=_parse(InputParameters, block["input_ds"], f"{where}.input_ds"),
        training=_parse_training(block.get("training", {}), model, where),
        model=model,
        generation=_parse(GenerationParameters, generation, f"{where}.generation"),
        evaluation=_parse(
            EvaluationParameters, block.get("evaluation", {}), f"{where}.evaluation"
        ),
    )
    records: dict[str, Any] = {
        "training": parameters.training,
        "generation": parameters.generation,
    }
    for name, stage in parameters.training.stages.items():
        records[f"training.stages.{name}"] = stage
    for name, record in records.items():
        _refuse_keys_of_others(record, name, parameters.model, where)
    if parameters.model.makes_counts and (
        parameters.input_ds.record_values == "normalized"
    ):
        msg = (
            f'{where}.input_ds: record_values is "normalized", but {model_type} learns '
            'from counts. Set it to "counts", or leave it out.'
        )
        raise ConfigError(msg)
    for name in family.STAGES:
        parameters.model.check_training(
            parameters.training.of_stage(name), f"{where}.training"
        )
    parameters.model.check_generation(parameters.generation, f"{where}.generation")
    _check_covariates(parameters, where)
    model = model.settled(parameters.input_ds, where)
    return dataclasses.replace(parameters, model=model)


def _check_covariates(parameters: ExperimentParameters, where: str) -> None:
    """Refuse conditions and guidance by what are not going to be covariates."""
    source = parameters.input_ds
    known = (source.clustering.label, *source.covariates)
    named: dict[str, Iterable[str]] = {
        **{f"model.{key}": of for key, of in parameters.model.named_conditions.items()},
        "generation.condition": parameters.generation.condition,
        "generation.guidance": parameters.generation.guidance,
    }
    for key, names in named.items():
        for name in names:
            if name not in known:
                msg = (
                    f'{where}.{key}: no covariate "{name}".{did_you_mean(name, known)}'
                    f"\n    Covariates: {', '.join(known)} (clustering.key and "
                    "covariates of input_ds)."
                )
                raise ConfigError(msg)


def _parse_training(block: Any, model: ModelConfig, where: str) -> TrainingParameters:
    """Lay the file's values over those of the family, and a stage's over both."""
    where = f"{where}.training"
    if not isinstance(block, dict):
        msg = f"{where}: expected an object, found {json.dumps(block)[:60]}."
        raise ConfigError(msg)
    given, ours = dict(block), dict(model.TRAINING)
    given_stages, our_stages = given.pop("stages", {}), ours.pop("stages", {})
    check_keys(given_stages, model.stages, f"{where}.stages")
    training = _parse(TrainingParameters, _laid_over(ours, given), where)
    keys = field_names(StageParameters)
    stages = {}
    for name in model.stages:
        if name in given_stages or name in our_stages:
            own = given_stages.get(name, {})
            check_keys(own, keys, f"{where}.stages.{name}")
            merged = _laid_over(ours, our_stages.get(name, {}))
            merged = _laid_over(merged, {k: v for k, v in given.items() if k in keys})
            merged = _laid_over(merged, own)
            stages[name] = _parse(StageParameters, merged, f"{where}.stages.{name}")
    return dataclasses.replace(training, stages=stages)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` instead of its own, key by key."""
    merged = dict(below)
    for key, value in above.items():
        is_block = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if is_block else value
    return merged


def _refuse_keys_of_others(
    parameters: Any, block: str, model: ModelConfig, where: str
) -> None:
    """Refuse a changed key that has a meaning for other families only."""
    attribute = f"{block.partition('.')[0].upper()}_KEYS"
    keys_of = {name: getattr(config_class(name), attribute) for name in MODEL_TYPES}
    of_some = frozenset().union(*keys_of.values())
    untouched = type(parameters)()
    of_others = of_some - getattr(model, attribute)
    for key in sorted(of_others & {*field_names(type(parameters))}):
        if getattr(parameters, key) != getattr(untouched, key):
            owners = [name for name, keys in keys_of.items() if key in keys]
            msg = (
                f"{where}.{block}: {key} has no meaning for the model type "
                f'"{model.type}", only for {", ".join(owners)}. Leave it out.'
            )
            raise ConfigError(msg)


def with_generation(
    parameters: ExperimentParameters, given: Mapping[str, Any]
) -> ExperimentParameters:
    """Return parameters with some keys of ``generation`` from the command line.

    Raises
    ------
    ConfigError
        As `parse_experiment`, naming the option.
    """
    block = {**as_json(parameters.generation), **given}
    keys = "|".join(field_names(GenerationParameters))
    try:
        generation = _parse(GenerationParameters, block, "command line")
        _refuse_keys_of_others(
            generation, "generation", parameters.model, "command line"
        )
        parameters.model.check_generation(generation, "command line")
    except ConfigError as error:
        named = re.sub(
            rf"command line(?:: |\.(?:generation: )?)({keys})",
            lambda of: f"--{of[1].replace('_', '-')}",
            str(error),
        )
        raise ConfigError(named) from None
    chooses_steps = generation.solver == "dopri5"
    for key in ("n_steps",) if chooses_steps else ("tolerance",):
        if key in given:
            msg = (
                f"--{key.replace('_', '-')} has no effect on the solver "
                f"{generation.solver}, which "
                + ("chooses its steps." if chooses_steps else "has fixed steps.")
            )
            raise ConfigError(msg)
    return dataclasses.replace(parameters, generation=generation)


def as_used(parameters: ExperimentParameters | StudyParameters) -> Any:
    """Return parameters as plain JSON values, training settings where they count.

    Of a model that is trained in stages, those are each stage's own; such keys of the
    ``training`` block itself are left out.
    """
    document, training = as_json(parameters), parameters.training
    if len(parameters.model.STAGES) > 1 or training.stages:
        keys = field_names(StageParameters)
        document["training"] = {
            key: of for key, of in document["training"].items() if key not in keys
        }
        document["training"]["stages"] = {
            name: {key: as_json(training.of_stage(name))[key] for key in keys}
            for name in parameters.model.STAGES
        }
    return document


def as_json(parameters: Any) -> Any:
    """Return a parameter record, defaults included, as plain JSON values."""
    return json.loads(TypeAdapter(type(parameters)).dump_json(parameters))


def read_json(path: Path) -> Any:
    """Read a JSON file; a key given twice, or text that is not JSON, is an error."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"{path}: no such file."
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}."
        raise ConfigError(msg) from None
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        msg = (
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: "
            f"{error.msg}."
        )
        raise ConfigError(msg) from None
    except ConfigError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from None


def check_keys(
    block: Any,
    known: Sequence[str],
    where: str,
    *,
    required: bool | Sequence[str] = (),
) -> None:
    """Refuse a block that is no object, has unknown keys or lacks required ones."""
    if not isinstance(block, dict):
        msg = f"{where}: expected an object, found {json.dumps(block)[:60]}."
        raise ConfigError(msg)
    for key in block:
        if key not in known:
            raise ConfigError(_unknown_key(where, key, known))
    needed = known if required is True else (required or ())
    for key in needed:
        if key not in block:
            msg = f'{where}: "{key}" is missing.'
            raise ConfigError(msg)


def _parse(record: type, block: Any, where: str) -> Any:
    if not isinstance(block, dict):
        msg = f"{where}: expected an object, found {json.dumps(block)[:60]}."
        raise ConfigError(msg)
    try:
        return TypeAdapter(record).validate_json(json.dumps(block))
    except ValidationError as error:
        problems = _describe(error, record, where)
        raise ConfigError("\n".join(problems)) from None


def _describe(error: ValidationError, record: type, where: str) -> list[str]:
    """One line per key: where, what was found, what is expected."""
    lines: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        keys, owner = _locate(problem["loc"], record)
        place = ".".join([where, *keys])
        if problem["type"] == "unexpected_keyword_argument":
            known = [field.name for field in dataclasses.fields(owner)]
            parent = ".".join([where, *keys[:-1]])
            lines[place] = [_unknown_key(parent, keys[-1], known)]
        elif problem["type"] == "missing":
            lines[place] = [
                f'{".".join([where, *keys[:-1]])}: "{keys[-1]}" is missing.'
            ]
        elif problem["type"] == "value_error":
            lines[place] = [f"{place}: {problem['ctx']['error']}."]
        elif problem["type"] != "too_short" or place not in lines:
            expected = problem["msg"].removeprefix("Input should be ")
            lines.setdefault(
                place, [f"{place}: {json.dumps(problem['input'])[:60]} found, expected"]
            ).append(expected)
    return [
        entry[0] if len(entry) == 1 else f"{entry[0]} {' or '.join(entry[1:])}."
        for entry in lines.values()
    ]


def _locate(location: Sequence[str | int], record: type) -> tuple[list[str], Any]:
    """Split pydantic's location into our keys and the record that owns the last.

    Locations go on with the names of union members, which are no keys of the file.
    """
    keys: list[str] = []
    owner: Any = record
    current: Any = record
    for part in location:
        inside = typing.get_args(current) if typing.get_origin(current) else ()
        if dataclasses.is_dataclass(current):
            owner = current
            keys.append(str(part))
            current = _kind_at(current, str(part))
        elif typing.get_origin(current) in (dict, tuple) and any(
            map(dataclasses.is_dataclass, inside)
        ):
            keys.append(str(part))
            current = next(filter(dataclasses.is_dataclass, inside))
    return keys, owner


def _kind_at(owner: Any, key: str) -> Any:
    """Return what a key of a record holds: a record or several, perhaps or null."""
    annotation = typing.get_type_hints(owner).get(key)
    if isinstance(annotation, types.UnionType):
        kinds = [kind for kind in annotation.__args__ if kind is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else None
    return annotation


def _unknown_key(where: str, key: str, known: Sequence[str]) -> str:
    return (
        f'{where}: unknown key "{key}".{did_you_mean(key, known)}\n'
        f"    Keys allowed here: {', '.join(sorted(known))}."
    )


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block: dict[str, Any] = {}
    for key, value in pairs:
        if key in block:
            msg = f'the key "{key}" is given twice in one object.'
            raise ConfigError(msg)
        block[key] = value
    return block
