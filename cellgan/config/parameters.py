"""What a parameter file says, as frozen dataclasses with ranges in their types.

Keys keep the spelling of the original scGAN files, which load unchanged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import (
    Field,
    SerializeAsAny,
)
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    ModelConfig,
    NonNegative,
    Positive,
    PositiveFloat,
)
from cellgan.config.composition import Composition
from cellgan.config.input import InputParameters
from cellgan.config.training import TrainingParameters


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerationParameters:
    """What ``--generate`` makes when the command line does not say."""

    cells_no: (
        Literal["like-data"] | tuple[NonNegative, ...] | dict[str, NonNegative]
    ) = "like-data"
    """One number per label, numbers by label, or ``"like-data"``: as many cells of
    each label as were trained on."""
    seed: int = 0
    counts: bool = False
    """Turn library-size-normalised cells into integer counts."""
    condition: dict[str, str] = dataclasses.field(default_factory=dict)
    """Category, by covariate, of all cells; what is not named is drawn as it goes with
    the rest among the training cells."""
    guidance: dict[str, float] = dataclasses.field(default_factory=dict)
    """Guidance scale by covariate: 1 is plainly conditional, 0 ignores it, more is
    more typical. 1 where not named."""
    solver: Literal["euler", "midpoint", "heun", "rk4", "dopri5", "ddpm", "ddim"] = (
        "midpoint"
    )
    """How noise is followed to a cell: a flow by the first five, a diffusion by
    ``"ddpm"``, which draws every step, or ``"ddim"``, which draws none with `eta` 0."""
    n_steps: Positive = 10
    """Steps of every solver but ``"dopri5"``, which chooses its own."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of fresh noise in the steps of ``"ddim"``."""
    cache_interval: Positive = 1
    """The whole denoiser is computed in every so-manieth step, and its outer layers
    alone in between; 1 for all of it in every step."""
    cache_branch: NonNegative = 0
    """How far in the outer layers reach, from 0."""
    cache_spacing: Literal["even", "uneven"] = "even"
    """``"uneven"``: as many whole steps, most of them where there is little noise."""
    tolerance: PositiveFloat = 1e-3
    """Absolute and relative error that a step of ``"dopri5"`` may make."""
    library_size: Positive | Literal["modelled", "copied"] = "modelled"
    """Library size of RNA: a number for all cells; drawn from the log-normal of the
    training cells with the same covariates, or as the model has learned it; or that of
    one of these cells."""
    latents: Literal["posterior", "prior"] = "posterior"
    """Where LDVAE takes latents from: the posteriors of training cells with the
    covariates that are asked for, or the prior, which knows of no label."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationParameters:
    """How ``--evaluate`` compares generated with held-out cells."""

    max_cells: Annotated[int, Field(ge=10)] = 5000
    """Cells of each side that are compared, at most."""
    seed: int = 0
    """Seed of the cells that are drawn, of folds, forests and resamples."""


@dataclass(frozen=True, kw_only=True)
class ExperimentParameters:
    """One entry of ``experiments``."""

    input_ds: InputParameters
    training: TrainingParameters
    model: SerializeAsAny[ModelConfig]
    generation: GenerationParameters
    evaluation: EvaluationParameters = EvaluationParameters()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExpParam:
    """Settings shared by all experiments of a file."""

    experiments_dir: Annotated[str, Field(min_length=1)]
    GPU: tuple[NonNegative, ...] = (0,)
    """GPU ids; experiments run in parallel, one per id. Empty means the CPU."""


@dataclass(frozen=True, kw_only=True)
class StudyParameters:
    """An entry of ``experiments`` that has ``composition`` in place of ``input_ds``."""

    composition: Composition
    training: TrainingParameters
    model: SerializeAsAny[ModelConfig]
    generation: GenerationParameters
    evaluation: EvaluationParameters = EvaluationParameters()


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A whole parameter file."""

    exp_param: ExpParam
    experiments: Mapping[str, ExperimentParameters]
    studies: Mapping[str, StudyParameters] = dataclasses.field(default_factory=dict)
