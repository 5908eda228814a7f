"""What parameter records are made of, and what every family says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
)
from pydantic.dataclasses import dataclass

from cellgan.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from cellgan.data.manifest import DatasetManifest

STRICT = ConfigDict(extra="forbid", strict=True)
NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Moment = Annotated[float, Field(ge=0, lt=1)]
Width = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        msg = "the first number must be the smaller one"
        raise ValueError(msg)
    return ends


LogRange = Annotated[tuple[float, float], AfterValidator(_rising)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """What every family says of itself."""

    type: str

    STAGES: ClassVar[tuple[str, ...]]
    """Names of its training stages, in order."""
    TRAINING: ClassVar[Mapping[str, Any]] = {}
    """Values of the ``training`` block that a family starts from; the file's go over
    them, key by key."""
    TRAINING_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys of the ``training`` block that only some families have."""
    GENERATION_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys of the ``generation`` block that only some families have."""
    GENERATION: ClassVar[Mapping[str, Any]] = {}
    """Values of the ``generation`` block that a family starts from, as `TRAINING`."""
    SOLVERS: ClassVar[tuple[str, ...]] = ()
    """Values of ``generation.solver`` that the family knows."""
    has_latents: ClassVar[bool] = False
    """Whether real cells can be taken to the noise they come from, and back."""
    mixes_labels: ClassVar[bool] = False
    """Whether cells between two labels can be asked for."""
    is_additive: ClassVar[bool] = False
    """Whether cells are made by editing others, as a sum of what each covariate
    adds."""
    has_encoder: ClassVar[bool] = False
    """Whether real cells can be given latents."""
    imports_weights: ClassVar[bool] = False
    """Whether the family's ``weights.py`` reads what the original program trained."""
    draws_library_sizes: ClassVar[bool] = False
    """Whether library sizes are part of what the model has learned."""

    @property
    def source_cells(self) -> Literal["none", "any", "alike"]:
        """Training cells that generated ones start from: any, or of their kind."""
        return "any" if self.is_additive else "none"

    def as_asked(self, latents: str) -> ModelConfig:
        """Return what these parameters are where latents come from somewhere else.

        Parameters
        ----------
        latents
            ``generation.latents``.
        """
        del latents
        return self

    def remarks(self, training: Any, n_cells: int) -> tuple[str, ...]:
        """Return what a user should know of a training before it begins.

        Parameters
        ----------
        training
            `cellgan.config.training.TrainingParameters` of the last stage.
        n_cells
            Training cells.
        """
        del training, n_cells
        return ()

    def settled(self, input_ds: Any, where: str) -> ModelConfig:
        """Return these parameters with what follows from the data settled.

        Parameters
        ----------
        input_ds
            `cellgan.config.input.InputParameters`.
        where
            File and experiment, for messages.

        Raises
        ------
        ConfigError
            If the parameters do not suit such data.
        """
        del input_ds, where
        return self

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the covariates that cells can be asked for by.

        Raises
        ------
        ConfigError
            If the parameters name one that the data do not have.
        """
        return (manifest.label,)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that these parameters train, in order."""
        return self.STAGES

    def needed_columns(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the covariates that cells must have to be encoded and decoded."""
        del manifest
        return ()

    @property
    def named_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """Covariates that the parameters name, by key of the ``model`` block."""
        return {}

    def knows_labels(self, manifest: DatasetManifest) -> bool:
        """Return whether cells of a chosen label can be asked for."""
        return manifest.label in self.conditions(manifest)

    @property
    def makes_counts(self) -> bool:
        """Whether cells come as integer counts."""
        return False

    @property
    def rescales_cells(self) -> bool:
        """Whether cells that are no counts have the target library size."""
        return True

    def check_training(self, training: Any, where: str) -> None:
        """Refuse values of the ``training`` block that do not suit this model.

        Parameters
        ----------
        training
            `cellgan.config.training.TrainingParameters` of one of its stages.
        where
            File and block, for messages.

        Raises
        ------
        ConfigError
            Saying which.
        """
        del training, where

    def check_target(self, target: Mapping[str, str], where: str) -> None:
        """Refuse categories that cells cannot be edited to.

        Parameters
        ----------
        target
            Category by covariate, both known.
        where
            The option, for messages.

        Raises
        ------
        ConfigError
            Saying which.
        """
        del target, where

    def check_noise_step(self, step: int, where: str) -> None:
        """Refuse a step of noise that the model does not have.

        Raises
        ------
        ConfigError
            Saying why; of a model that is no diffusion always.
        """
        del step
        msg = f'{where}: the model type "{self.type}" has no steps of noise.'
        raise ConfigError(msg)

    def check_generation(self, generation: Any, where: str) -> None:
        """Refuse values of the ``generation`` block that do not suit this model.

        Parameters
        ----------
        generation
            `cellgan.config.parameters.GenerationParameters`.
        where
            File and block, or the command line, for messages.

        Raises
        ------
        ConfigError
            Saying which.
        """
        if self.SOLVERS and generation.solver not in self.SOLVERS:
            msg = (
                f'{where}: solver is "{generation.solver}", which the model type '
                f'"{self.type}" does not know. Solvers: {", ".join(self.SOLVERS)}.'
            )
            raise ConfigError(msg)


def known_covariates(
    named: tuple[str, ...] | None, manifest: DatasetManifest, key: str
) -> tuple[str, ...]:
    """Return the named covariates, or all of the data; refuse unknown ones."""
    if named is None:
        return tuple(manifest.covariates)
    for name in named:
        if name not in manifest.covariates:
            msg = (
                f'{key}: the data have no covariate "{name}".'
                f"{did_you_mean(name, manifest.covariates)}\n    Covariates: "
                f"{', '.join(manifest.covariates)} (input_ds.covariates)."
            )
            raise ConfigError(msg)
    return named


def field_names(record: type) -> tuple[str, ...]:
    """Return the keys of a record."""
    return tuple(field.name for field in dataclasses.fields(record))
