"""The contract of every family: a model has stages, and generates cells.

A family is mathematics only. Stages are trained by the one loop of
`cellgan.training.loop`; files, names and AnnData belong to other rooms.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import tensorflow as tf

if TYPE_CHECKING:
    from cellgan.config.parameters import GenerationParameters
    from cellgan.data.batches import CellBatch


@dataclasses.dataclass(frozen=True)
class SolverSettings:
    """How noise is followed to latents."""

    name: str = "midpoint"
    n_steps: int = 10
    """Of solvers with fixed steps."""
    tolerance: float = 1e-3
    """Absolute and relative, of solvers that choose their steps."""
    eta: float = 0.0
    """Share of fresh noise in the steps of DDIM."""
    cache_interval: int = 1
    """Of steps in which a whole denoiser is computed; 1 for all."""
    cache_branch: int = 0
    """How far in the layers reach that are computed in the other steps."""
    cache_spacing: Literal["even", "uneven"] = "even"
    """Of the steps in which all is computed."""

    @classmethod
    def of(cls, parameters: GenerationParameters) -> SolverSettings:
        """Return the solver that parameters name."""
        return cls(
            parameters.solver,
            parameters.n_steps,
            parameters.tolerance,
            parameters.eta,
            parameters.cache_interval,
            parameters.cache_branch,
            parameters.cache_spacing,
        )


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A second category that cells have a share of, for models that mix categories."""

    covariate: str
    codes: npt.NDArray[np.int32]
    """Second category of each cell, ``(n_cells,)``."""
    shares: npt.NDArray[np.float32]
    """From 0, the first category alone, to 1, the second alone, ``(n_cells,)``."""


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """Which cells to make.

    Cell ``first_cell + k`` of the whole request gets row ``k`` of `covariates`. What a
    cell looks like depends on (model, seed, its index, its covariates) alone, so a
    request may be cut into consecutive pieces of any sizes. A solver that chooses its
    steps chooses them for the cells of a block together: within its tolerance, they
    depend on each other.
    """

    covariates: Mapping[str, npt.NDArray[np.int32]]
    """Codes ``(n_cells,)`` by covariate. An unconditional model ignores the values."""
    n_cells: int
    seed: int
    first_cell: int = 0
    source: CellBatch | None = None
    """Cells to start from, for models that edit cells; None for those that draw."""
    library_sizes: Mapping[str, npt.NDArray[np.float32]] | None = None
    """Library sizes ``(n_cells,)`` by modality, for models that make counts."""
    guidance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Guidance scale by covariate, 1 where not named; for models that have it."""
    solver: SolverSettings | None = None
    """How to solve what a model integrates; None for its default."""
    mixture: Mixture | None = None
    """A second category of the cells; None for none."""
    noise_step: int | None = None
    """With `source`, the step of the noise that a diffusion adds to it; None for the
    last, after which nothing of it is left."""


@dataclasses.dataclass(frozen=True)
class GeneratedCells:
    """Generated cells by modality; names and files are added by `generation`."""

    features: Mapping[str, sp.csr_matrix]
    """``(n_cells, n_features)`` float32, non-negative."""
    are_counts: bool
    """Whether values are integer counts; otherwise library-size-normalised."""
    latent: npt.NDArray[np.float32] | None = None
    """``(n_cells, n_latent)``, of models that have latents."""


def sparse_rows(values: npt.NDArray[np.float32]) -> sp.csr_matrix:
    """Return a dense matrix as a sparse one, four times as fast as SciPy does."""
    n_rows, n_columns = values.shape
    positions = np.flatnonzero(values != 0)
    starts = np.searchsorted(positions, np.arange(n_rows + 1) * n_columns)
    columns = (positions % n_columns).astype(np.int32)
    kept = np.ravel(values)[positions].astype(np.float32, copy=False)
    return sp.csr_matrix((kept, columns, starts.astype(np.int32)), values.shape)


class Block(NamedTuple):
    """Cells that are made together, some of which a request may not ask for."""

    number: int
    in_request: slice
    """The wanted ones, as rows of the request."""
    in_block: slice
    """The same as rows of the block."""
    size: int

    def padded(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the values of a request's cells for this block.

        Cells that are not asked for get those of the nearest one that is.
        """
        wanted = values[self.in_request]
        if not len(wanted):
            return np.zeros((self.size, *values.shape[1:]), values.dtype)
        place = np.arange(self.size) - self.in_block.start
        padded: npt.NDArray[Any] = wanted[np.clip(place, 0, len(wanted) - 1)]
        return padded


def blocks_of(request: GenerationRequest, size: int) -> Iterator[Block]:
    """Cut all cells there could be into blocks; yield those that a request touches.

    Whatever is asked for, a cell is computed in the same block with the same shapes, so
    it depends on its index alone.
    """
    first, end = request.first_cell, request.first_cell + request.n_cells
    for index in range(first // size, -(-end // size)):
        start, stop = max(first, index * size), min(end, (index + 1) * size)
        yield Block(
            index,
            slice(start - first, stop - first),
            slice(start - index * size, stop - index * size),
            size,
        )


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

    def initialize(self, cells: Callable[[], Iterable[CellBatch]]) -> None:
        """Set the initial weights that depend on the training cells.

        Called once, before step 0. `cells` is that of `prepare`.
        """
        del cells

    def prepare(self, cells: Callable[[], Iterable[CellBatch]]) -> CellBatch | None:
        """Compute once what to train on in place of the training cells.

        Called before the first step of every run, so it must be a function of the
        cells and of earlier stages alone.

        Parameters
        ----------
        cells
            Gives all training cells, in an order of their own that is always the same.

        Returns
        -------
        One row per cell; None to train on the cells themselves.
        """
        del cells
        return None

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

    def latents(
        self, features: Mapping[str, tf.Tensor]
    ) -> npt.NDArray[np.float32] | None:
        """Return latents ``(n_cells, n_latent)`` of counts; None without an encoder."""
        del features
        return None


@dataclasses.dataclass(frozen=True)
class EditedCells:
    """Cells that were taken to other categories, and what they are the sum of."""

    values: npt.NDArray[np.float32]
    """``(n_cells, n_genes)``, on the scale that the model was trained on."""
    contributions: Mapping[str, npt.NDArray[np.float32]]
    """By head, ``(n_cells, n_genes)``: they sum to `values`."""


@dataclasses.dataclass(frozen=True)
class Loadings:
    """What the heads of an additive model weigh genes by."""

    base: npt.NDArray[np.float32]
    """``(n_genes, n_latent)``."""
    categories: Mapping[str, npt.NDArray[np.float32]]
    """By field, ``(n_categories, n_genes, n_latent)``: what a unit of each dimension of
    a cell adds to every gene if the cell is, and stays, of a category."""


class AdditiveModel(GenerativeModel):
    """A model that edits cells: what it returns is the sum of what its heads add."""

    scale: str
    """Of `EditedCells.values`, in words."""

    @abc.abstractmethod
    def heads(self) -> tuple[str, ...]:
        """Return the names of the heads: the base, then the fields in order."""

    @abc.abstractmethod
    def expression(self, cells: CellBatch) -> npt.NDArray[np.float32]:
        """Return cells ``(n_cells, n_genes)`` on the scale of `EditedCells.values`."""

    @abc.abstractmethod
    def edit(
        self, cells: CellBatch, target: Mapping[str, npt.NDArray[np.int32]]
    ) -> EditedCells:
        """Take cells to other categories.

        Parameters
        ----------
        cells
            With the codes of all fields.
        target
            Codes ``(n_cells,)`` by field; fields that are not named stay.
        """

    @abc.abstractmethod
    def category_means(self, cells: CellBatch) -> Mapping[str, npt.NDArray[np.float32]]:
        """Return what a field's head adds to cells on average, were all of a category.

        Returns
        -------
        By field, ``(n_categories, n_genes)``.
        """

    @abc.abstractmethod
    def loadings(self) -> Loadings:
        """Return what the heads weigh genes by."""


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """What a model makes of given cells when it encodes and decodes them."""

    latent: npt.NDArray[np.float32]
    """``(n_cells, n_latent)``; of a random latent, its mean."""
    expression: npt.NDArray[np.float32]
    """Shares of genes ``(n_cells, n_genes)``, rows sum to 1."""
    negative_log_likelihood: npt.NDArray[np.float32] | None = None
    """Of the cells' counts, summed over genes, ``(n_cells,)``; None without one."""
    elbo: npt.NDArray[np.float32] | None = None
    """Lower bound of the cells' log-likelihood, ``(n_cells,)``; None without one."""


class ReconstructingModel(GenerativeModel):
    """A model that encodes cells and decodes them again."""

    @abc.abstractmethod
    def reconstruct(
        self, cells: CellBatch, *, n_samples: int = 0, seed: int = 0
    ) -> Reconstruction:
        """Encode and decode cells.

        Parameters
        ----------
        cells
            Counts, with the codes of the model's covariates.
        n_samples
            Draws of a random latent whose expression is averaged; 0 decodes its mean.
        seed
            Of the draws.
        """

    def posterior_predictive(
        self, cells: CellBatch, *, seed: int = 0, first_cell: int = 0
    ) -> sp.csr_matrix | None:
        """Return counts ``(n_cells, n_genes)`` as they might have come out instead.

        Latent, library size and counts are drawn anew; None if nothing is random.

        Parameters
        ----------
        seed, first_cell
            As of `GenerationRequest`.
        """
        del cells, seed, first_cell
        return None

    def gene_loadings(self) -> npt.NDArray[np.float32] | None:
        """Return what latent dimensions add to genes, ``(n_genes, n_latent)``.

        None if the decoder is not linear.
        """
        return None


def resolve_jit(jit: bool | Literal["auto"]) -> bool:  # noqa: FBT001
    """Return whether to compile with XLA; ``"auto"`` does on a GPU."""
    if jit == "auto":
        return bool(tf.config.list_physical_devices("GPU"))
    return jit


def resolve_jit_of_parts(jit: bool | Literal["auto"]) -> bool:  # noqa: FBT001
    """Return whether to compile what goes number by number; ``"auto"`` does anywhere.

    Such are likelihoods, updates, and what stands between products: XLA makes one pass
    over memory of many, on a CPU too.
    """
    return jit is not False


def resolve_jit_of_small(jit: bool | Literal["auto"]) -> bool:  # noqa: FBT001
    """Return whether to compile a small network; ``"auto"`` does on a CPU too.

    Where there are many small operations XLA pays on any device, but on a CPU it cannot
    compile for a second replica.
    """
    is_alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
    return resolve_jit(jit) or (jit == "auto" and is_alone)


def weight_histograms(
    weights: Sequence[keras.Variable], gradients: Sequence[tf.Tensor]
) -> dict[str, tf.Tensor]:
    """Return weights and their gradients by the tags of their histograms."""
    tensors = {}
    for weight, gradient in zip(weights, gradients, strict=True):
        tensors[f"{weight.path}/values"] = tf.convert_to_tensor(weight)
        tensors[f"{weight.path}/gradients"] = gradient
    return tensors
