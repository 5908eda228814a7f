"""The families of models, built by name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cellgan.config.model_types import MODEL_TYPES
from cellgan.config.parameters import ExperimentParameters
from cellgan.data.manifest import DatasetManifest

if TYPE_CHECKING:
    from cellgan.models.base import GenerativeModel


def build_model(
    parameters: ExperimentParameters, manifest: DatasetManifest
) -> GenerativeModel:
    """Build the model that ``model.type`` names, for one data set.

    The family's module, and TensorFlow with it, is imported here and not before. Build
    a model, and make the first call of its `stages`, under the scope of the
    distribution strategy.
    """
    module, name = MODEL_TYPES[parameters.model.type][1].split(":")
    family = getattr(importlib.import_module(module), name)
    model: GenerativeModel = family.from_parameters(parameters, manifest)
    return model
