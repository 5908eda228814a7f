"""The contract of every family: a model has stages, and generates cells.

A family is mathematics only. Stages are trained by the one loop of
`cellgan.training`; files, names and AnnData belong to other rooms.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.batches import CellBatch


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """Which cells to make.

    Cell ``first_cell + k`` of the whole request gets row ``k`` of `covariates`. What a
    cell looks like depends on (model, seed, its index, its covariates) alone, so a
    request may be cut into consecutive pieces of any sizes.
    """

    covariates: Mapping[str, npt.NDArray[np.int32]]
    """Codes ``(n_cells,)`` by covariate. An unconditional model ignores the values."""
    n_cells: int
    seed: int
    first_cell: int = 0
    source: CellBatch | None = None
    """Cells to start from, for models that edit cells; None for those that draw."""


@dataclasses.dataclass(frozen=True)
class GeneratedCells:
    """Generated cells by modality; names and files are added by `generation`."""

    features: Mapping[str, npt.NDArray[np.float32]]
    """``(n_cells, n_features)``, non-negative."""
    are_counts: bool
    """Whether values are integer counts; otherwise library-size-normalised."""


class TrainingStage(abc.ABC):
    """One optimisation problem: the weights, the losses and one step.

    Every method is called inside a compiled function and, when training is
    distributed, once per replica with that replica's share of the batch. Losses are
    therefore divided by the global batch (the Keras optimizer sums gradients over
    replicas), and no method may branch in Python on tensor values.
    """

    name: str
    batches_per_step: int = 1
    """How many batches one step draws; a GAN step draws ``critic_iters + 1``."""

    @abc.abstractmethod
    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights once; return scalars to log, by TensorBoard tag.

        Parameters
        ----------
        batches
            `batches_per_step` batches.
        seed
            Stateless seed ``(2,)`` int32, different at every step and replica.
        """

    def first_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Do what step 0 does; the same as `train_step` unless overridden."""
        return self.train_step(batches, seed)

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the losses of one batch as scalars, without any update."""
        del batch, seed
        return {}

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return tensors worth a look, without any update: activations, gradients.

        Scalars are logged as scalars, all others as histograms.
        """
        del batch, seed
        return {}

    @abc.abstractmethod
    def trackables(self) -> Mapping[str, Any]:
        """Return everything a resumed run needs, built, by name.

        Each part lists its weights or states as ``variables``, as Keras layers and
        optimizers do.
        """


class GenerativeModel(abc.ABC):
    """One family of models, built for one data set."""

    @abc.abstractmethod
    def stages(self) -> tuple[TrainingStage, ...]:
        """Return the stages in training order; the same objects at every call."""

    @abc.abstractmethod
    def generation_weights(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what `generate` needs: stage name -> the part of its trackables.

        Stages are in training order; the last is the one whose step names the model.
        """

    @abc.abstractmethod
    def generate(self, request: GenerationRequest) -> GeneratedCells:
        """Make the cells of a request."""
