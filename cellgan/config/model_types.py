"""The model types one can name in ``model.type``: which family each is of.

A family is a package of `cellgan.models`. Its ``config.py`` has the configuration,
which needs no TensorFlow; its ``model.py`` has the model. Either is imported when it is
asked for, never before.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from cellgan.config.base import ModelConfig
from cellgan.errors import ConfigError

DEFAULT_TYPE = "cscGAN"
MODEL_TYPES: Mapping[str, tuple[str, str, str]] = {
    "scGAN": ("cellgan.models.gan", "GanConfig", "Gan"),
    "cscGAN": ("cellgan.models.gan", "GanConfig", "Gan"),
    "CFGen": ("cellgan.models.cfgen", "CfgenConfig", "LatentFlow"),
    "cfDiffusion": (
        "cellgan.models.cfdiffusion",
        "CfdiffusionConfig",
        "LatentDiffusion",
    ),
    "cycleAE": ("cellgan.models.cycle", "CycleConfig", "CycleAutoencoder"),
    "LDVAE": ("cellgan.models.ldvae", "LinearVaeConfig", "LinearVae"),
}
"""Name -> family, its configuration, its model."""


def config_class(model_type: str) -> type[ModelConfig]:
    """Return what a model type is configured by."""
    package, name, _ = MODEL_TYPES[model_type]
    found: type[ModelConfig] = getattr(
        importlib.import_module(f"{package}.config"), name
    )
    return found


def model_class(model_type: str) -> Any:
    """Return the class of a model type; this imports TensorFlow."""
    package, _, name = MODEL_TYPES[model_type]
    return getattr(importlib.import_module(f"{package}.model"), name)


def weights_module(model_type: str) -> Any:
    """Return what reads the weights that a family's original program trained."""
    return importlib.import_module(f"{MODEL_TYPES[model_type][0]}.weights")


def family_of(model_type: str) -> str:
    """Return the name of a model type's family, that of its package."""
    return MODEL_TYPES[model_type][0].rpartition(".")[2]


def types_with(ability: str) -> list[str]:
    """Return the model types that have an ability, a flag of `ModelConfig`."""
    return [name for name in MODEL_TYPES if getattr(config_class(name), ability)]


def require_ability(model: ModelConfig, ability: str, where: str, lack: str) -> None:
    """Refuse a model that lacks an ability.

    Parameters
    ----------
    ability
        A flag of `ModelConfig`.
    where
        The option, for messages.
    lack
        What such a model is or does not do: ``"has no encoder of cells"``.

    Raises
    ------
    ConfigError
        Naming the model types that have it.
    """
    if not getattr(model, ability):
        msg = (
            f'{where}: the model type "{model.type}" {lack}. Model types for it: '
            f"{', '.join(types_with(ability))}."
        )
        raise ConfigError(msg)
