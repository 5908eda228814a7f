"""What studies can be asked of a model: checked before one is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cellgan.errors import ConfigError, did_you_mean
from cellgan.generation.allotment import (
    check_condition,
    check_guidance,
)

if TYPE_CHECKING:
    from cellgan.experiment import Experiment


def check_correction(
    experiment: Experiment, target: Mapping[str, str]
) -> dict[str, int]:
    """Return the codes of a target's categories.

    Raises
    ------
    ConfigError
        If there is no such category, or the model does not know the covariate.
    """
    model, manifest = experiment.parameters.model, experiment.manifest()
    codes = check_condition(target, manifest, "--correct")
    check_guidance(dict.fromkeys(codes, 1.0), model.conditions(manifest), "--correct")
    return codes


def check_counterfactual(
    experiment: Experiment, target: Mapping[str, str]
) -> dict[str, int]:
    """Return the codes of a target's categories.

    Raises
    ------
    ConfigError
        If there is no such category, or no head of the covariate.
    """
    model, manifest = experiment.parameters.model, experiment.manifest()
    where, conditions = "--counterfactual", model.conditions(manifest)
    codes = check_condition(target, manifest, where)
    check_guidance(dict.fromkeys(codes, 1.0), conditions, where)
    model.check_target(target, where)
    return codes


@dataclasses.dataclass(frozen=True)
class InterpolationRequest:
    """Which cells to make between two labels."""

    ends: tuple[str, str]
    """Labels at weight 0 and at weight 1."""
    weights: tuple[float, ...]
    """From 0 to 1."""
    n_cells: int
    """Cells of each weight."""
    noise_step: int | None = None
    """Start from training cells of the first label, with the noise of this step; None
    starts from noise alone."""
    seed: int = 0


def check_interpolation(
    experiment: Experiment, request: InterpolationRequest
) -> tuple[int, int]:
    """Return the codes of the two labels.

    Raises
    ------
    ConfigError
        If there is no such label, or a number is out of its range.
    """
    model, manifest = experiment.parameters.model, experiment.manifest()
    where = "--interpolate"
    if manifest.label not in model.conditions(manifest):
        msg = (
            f"{where}: this model cannot mix labels: it is not conditioned on "
            f'"{manifest.label}".'
        )
        raise ConfigError(msg)
    codes = [
        check_condition({manifest.label: name}, manifest, where)[manifest.label]
        for name in request.ends
    ]
    bad = [weight for weight in request.weights if not 0 <= weight <= 1]
    if bad:
        msg = f"--weights: {bad[0]:g} found, expected numbers from 0 to 1."
        raise ConfigError(msg)
    if request.noise_step is not None:
        model.check_noise_step(request.noise_step, "--init-step")
    return codes[0], codes[1]


def check_guided(experiment: Experiment) -> tuple[str, ...]:
    """Return the covariates that the model is guided by.

    Raises
    ------
    ConfigError
        If it has no guidance, or is not conditioned on anything.
    """
    model = experiment.parameters.model
    conditions = model.conditions(experiment.manifest())
    if "guidance" not in model.GENERATION_KEYS or not conditions:
        msg = (
            f'--guidance-sweep: the model type "{model.type}"'
            f"{'' if conditions else ', without a covariate,'} has no guidance."
        )
        raise ConfigError(msg)
    return conditions


def check_embedding(experiment: Experiment, condition: Mapping[str, str]) -> None:
    """Refuse to decode cells as of a category that makes no difference.

    Raises
    ------
    ConfigError
        Naming the covariates that do.
    """
    model, manifest = experiment.parameters.model, experiment.manifest()
    check_condition(condition, manifest)
    that_count = model.needed_columns(manifest)
    for name in condition:
        if name not in that_count:
            msg = (
                f'--condition: the model decodes cells alike, whatever their "{name}" '
                f"is. Covariates that count: {', '.join(that_count) or 'none'}."
            )
            raise ConfigError(msg)


def check_augmentation(
    experiment: Experiment, label: str, fractions: Sequence[float], n_seeds: int
) -> None:
    """Refuse a label, fractions, or a model that cannot be augmented.

    Raises
    ------
    ConfigError
        Saying which.
    """
    manifest = experiment.manifest()
    categories = manifest.label_vocabulary.categories
    if label not in categories:
        msg = (
            f'--augment: "{label}" is no value of "{manifest.label}".'
            f"{did_you_mean(label, categories)}\n"
            f"    Values: {', '.join(categories)}."
        )
        raise ConfigError(msg)
    wrong = [fraction for fraction in fractions if not 0 < fraction < 1]
    if wrong or not fractions:
        found = f"{wrong[0]:g} found" if wrong else "none found"
        msg = (
            f"--fractions: {found}, expected numbers between 0 and 1: the share of the "
            f"training cells that is kept, for example 0.05."
        )
        raise ConfigError(msg)
    if n_seeds < 1:
        msg = f"--seeds: {n_seeds} repeats found, expected 1 or more."
        raise ConfigError(msg)
    if not experiment.parameters.model.knows_labels(manifest):
        msg = (
            f"{experiment.name}: model.type is {experiment.parameters.model.type}, "
            f"which cannot be asked for cells of a label."
        )
        raise ConfigError(msg)
    if experiment.parameters.input_ds.atac is not None:
        msg = (
            f"{experiment.name}: --augment trains classifiers on RNA alone. Use an "
            f"experiment without input_ds.atac."
        )
        raise ConfigError(msg)
