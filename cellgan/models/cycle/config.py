"""What the cycle autoencoder can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    ModelConfig,
    Width,
    known_covariates,
)
from cellgan.data.manifest import DatasetManifest
from cellgan.errors import ConfigError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CycleConfig(ModelConfig):
    """The cycle autoencoder: additive heads of covariates, counterfactual cells.

    The original program has classifiers as wide as the latents, a rate of 1e-4, and
    changes the last field alone (``targets`` ``"last"``).
    """

    STAGES = ("cycle",)
    TRAINING_KEYS = frozenset({"clip_norm"})
    TRAINING: ClassVar[Mapping[str, Any]] = {
        "max_steps": 5000,
        "batch_size": 128,
        "clip_norm": 10.0,
        "learning_rate": {"decay": False, "alpha_0": 1e-3},
        "optimizer": {
            "algorithm": "AdamW",
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 5e-4,
        },
    }
    GENERATION_KEYS = frozenset({"condition", "counts"})
    is_additive = True

    type: Literal["cycleAE"] = "cycleAE"
    fields: tuple[str, ...] | None = None
    """Covariates that have a head each: null for all of the data with two categories or
    more."""
    n_latent: Width = 128
    """Of every head."""
    classifier_width: Width = 128
    input_scale: Literal["log1p", "normalized", "stored"] = "log1p"
    """What heads add up to: the logarithm of 1 plus library-size-normalised counts;
    these without the logarithm; or the values of the records as they are."""
    field_scale: Annotated[float, Field(gt=0)] = 0.0159
    """Factor of what the head of a field adds; the base head has none."""
    targets: Literal["all", "last"] = "all"
    """Which fields of a cell training changes; ``"last"`` is what the original does."""
    unknown: str | None = "unknown"
    """Category that stands for "not known": never a target in training, and left out of
    the classifier's losses."""
    reconstruction_weight: Annotated[float, Field(ge=0)] = 1.0
    integration_weight: Annotated[float, Field(ge=0)] = 1.0
    target_weight: Annotated[float, Field(ge=0)] = 1.0
    base_weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Of the base head; that of the fields is ``training.optimizer.weight_decay``."""

    @model_validator(mode="after")
    def _check(self) -> CycleConfig:
        named = self.fields or ()
        for name in named:
            if named.count(name) > 1:
                msg = f'fields name "{name}" twice'
                raise ValueError(msg)
        if self.fields == ():
            msg = "fields are empty: name one at least, or give null for all covariates"
            raise ValueError(msg)
        return self

    @property
    def named_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """``fields``."""
        return {"fields": self.fields or ()}

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the fields that have heads.

        Raises
        ------
        ConfigError
            If a field that is named, or every covariate of the data, has one known
            category alone: there is nothing to change it to.
        """
        named = known_covariates(self.fields, manifest, "model.fields")
        found = []
        for name in named:
            if name == "base":
                msg = (
                    'model.fields: "base" is the name of the head that all cells '
                    "share. Rename this obs column in the raw file."
                )
                raise ConfigError(msg)
            known = self.known_codes(name, manifest)
            if len(known) > 1:
                found.append(name)
            elif self.fields is not None:
                (only,) = (manifest.covariates[name].categories[i] for i in known[:1])
                msg = (
                    f'model.fields: all cells have {name} "{only}", so there is '
                    "nothing to change it to. Leave it out, or add cells of another."
                )
                raise ConfigError(msg)
        if not found:
            msg = (
                "model.fields: no covariate of the data has two known categories "
                f"({', '.join(named)}). Name others in input_ds.covariates."
            )
            raise ConfigError(msg)
        return tuple(found)

    def check_training(self, training: Any, where: str) -> None:
        """Refuse other arithmetic and optimisers: first losses overflow in fewer bits.

        The update knows of categories that a batch does not have, and is AdamW.
        """
        only = {
            "precision": (training.precision, "float32"),
            "optimizer.algorithm": (training.optimizer.algorithm, "AdamW"),
        }
        for key, (found, expected) in only.items():
            if found != expected:
                msg = (
                    f'{where}: {key} is "{found}", but cycleAE is trained with '
                    f'"{expected}" alone. Leave it out.'
                )
                raise ConfigError(msg)

    def check_target(self, target: Mapping[str, str], where: str) -> None:
        """Refuse the category that stands for "not known"."""
        for name, category in target.items():
            if category == self.unknown:
                msg = (
                    f'{where}: {name} "{category}" stands for "not known" '
                    "(model.unknown), so no cell is edited to it. Name another."
                )
                raise ConfigError(msg)

    def known_codes(self, name: str, manifest: DatasetManifest) -> tuple[int, ...]:
        """Return the codes of a covariate that stand for something."""
        n_trained = manifest.cells_per_category["train"][name]
        return tuple(
            code
            for code, category in enumerate(manifest.covariates[name].categories)
            if category != self.unknown and n_trained[code]
        )
