"""The families of models, built by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellgan.config.model_types import model_class

if TYPE_CHECKING:
    from cellgan.config.parameters import ExperimentParameters
    from cellgan.data.manifest import DatasetManifest
    from cellgan.models.base import GenerativeModel


def build_model(
    parameters: ExperimentParameters, manifest: DatasetManifest
) -> GenerativeModel:
    """Build the model that ``model.type`` names, for one data set.

    The family's module, and TensorFlow with it, is imported here and not before. Build
    a model, and make the first call of its `stages`, under the scope of the
    distribution strategy.
    """
    family = model_class(parameters.model.type)
    model: GenerativeModel = family.from_parameters(parameters, manifest)
    return model
