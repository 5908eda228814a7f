"""CFGen: counts by flow matching in the latents of a count autoencoder.

The autoencoder gives every cell a latent. A network learns the velocity that carries
noise to latents, without a covariate and with each of them alone; guidance adds these
up. A cell is made by following the velocity, decoding the latent with a library size,
and drawing counts.

References
----------
Palma et al. (2025), Multi-Modal and Multi-Attribute Generation of Single Cells with
CFGen. https://arxiv.org/abs/2407.11734
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, cast

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import DatasetManifest
from cellgan.layers.count_draws import DrawnCounts
from cellgan.models.base import (
    Block,
    GeneratedCells,
    GenerationRequest,
    ReconstructingModel,
    Reconstruction,
    SolverSettings,
    TrainingStage,
    blocks_of,
    resolve_jit,
    resolve_jit_of_parts,
    resolve_jit_of_small,
    weight_histograms,
)
from cellgan.models.cfgen.config import CfgenConfig
from cellgan.models.cfgen.networks import VelocityNet
from cellgan.models.latent.autoencoder import AutoencoderStage, build_autoencoder
from cellgan.models.latent.networks import CountAutoencoder
from cellgan.models.latent.stage import (
    LATENT,
    LatentScale,
    LatentStage,
    block_size,
    cells_of_block,
    fold_in,
    joined_cells,
    padded_tensors,
    reconstruct_by,
)
from cellgan.optimizers import make_optimizer
from cellgan.sampling import (
    Branch,
    branch_codes,
    checked_solver,
    conditional_path,
    draw_times,
    drop_covariates,
    guidance_branches,
    pair_noise,
    straight_path,
)
from cellgan.sampling.flow import CheckedSolver
from cellgan.seeds import derive_seed


class FlowDraws(NamedTuple):
    """What is random in one update of the flow."""

    noise: tf.Tensor
    """Standard normal, ``(n_cells, n_latent)``."""
    jitter: tf.Tensor
    """The same, around straight paths."""
    time: tf.Tensor
    """Uniform in 0 to 1, ``(n_cells,)``."""
    codes: Mapping[str, tf.Tensor]
    """Covariates, those that are dropped with their null code."""


@dataclasses.dataclass(frozen=True)
class FlowRecipe:
    """How the velocity is learned."""

    path: Literal["lipman", "transport"]
    sigma: float
    stratified_times: bool
    unconditional_share: float
    dropping: Literal["per_cell", "per_batch"]
    standardize: bool


class FlowStage(LatentStage):
    """Trains a velocity network on latents that are computed once.

    Parameters
    ----------
    autoencoder
        Trained; its weights stay as they are.
    scale
        Of the latents; fitted when they are computed.
    network
        Built.
    optimizer
        Built here.
    recipe
        Paths, times and the dropping of covariates.
    clip_norm
        Largest norm of all gradients together; None leaves them.
    jit
        Compile losses and gradients with XLA. For a network as small as this one it
        pays on a CPU too.

    Notes
    -----
    The original encodes every batch anew, draws one covariate for a whole batch (here
    with ``"per_batch"``), and leaves labels and library sizes behind when optimal
    transport reorders the latents; here the noise is reordered.
    """

    name = "flow"

    def __init__(
        self,
        autoencoder: CountAutoencoder,
        scale: LatentScale,
        network: VelocityNet,
        optimizer: keras.Optimizer,
        recipe: FlowRecipe,
        *,
        clip_norm: float | None,
        jit: bool,
    ) -> None:
        super().__init__(
            autoencoder.encode, scale, network, optimizer, clip_norm=clip_norm
        )
        self.recipe = recipe
        self._gradients = tf.function(self.gradients, jit_compile=jit, autograph=False)

    def fit_scale(self, latents: npt.NDArray[np.float32]) -> None:
        """Standardise latents, unless the recipe leaves them."""
        if self.recipe.standardize:
            self._scale.fit(latents)

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the weights once, from a batch that holds latents."""
        (batch,) = batches
        latents = batch.features[LATENT]
        draws = self.draw(batch, latents, seed)
        loss, gradients, statistics = self._gradients(
            latents, batch.library_size, draws, seed
        )
        update = self.update_network(gradients)
        self.network.update_running_statistics(statistics)
        return {"loss": loss, **update}

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the loss of one batch of cells."""
        latents = self.latents_of(batch)
        draws = self.draw(batch, latents, seed)
        condition = self.network.condition(draws.codes, _logs(batch.library_size))
        point = self.path_point(latents, draws)
        velocity = self.network(point.latent, draws.time, condition)
        return {"loss": tf.reduce_mean((velocity - point.velocity) ** 2)}

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return latents, weights and their gradients."""
        latents = self.latents_of(batch)
        draws = self.draw(batch, latents, seed)
        _, gradients, _ = self._gradients(latents, batch.library_size, draws, seed)
        return {
            "latent": latents,
            **weight_histograms(self.network.trainable_variables, gradients),
        }

    def draw(self, batch: CellBatch, latents: tf.Tensor, seed: tf.Tensor) -> FlowDraws:
        """Draw what one update needs; latents are paired here if they are to be."""
        seeds = [fold_in(seed, index) for index in range(4)]
        shape = tf.shape(latents)
        noise = tf.random.stateless_normal(shape, seeds[0], alg="philox")
        if self.recipe.path == "transport":
            noise = pair_noise(latents, noise)
        jitter = tf.random.stateless_normal(shape, seeds[1], alg="philox")
        time = draw_times(shape[0], seeds[2], stratified=self.recipe.stratified_times)
        codes = {name: batch.covariates[name] for name in self.network.null_codes}
        if codes:
            codes = drop_covariates(
                codes,
                self.network.null_codes,
                seeds[3],
                self.recipe.unconditional_share,
                "cell" if self.recipe.dropping == "per_cell" else "batch",
            )
        return FlowDraws(noise, jitter, time, codes)

    def path_point(self, latents: tf.Tensor, draws: FlowDraws) -> Any:
        """Return where the paths to the latents are at the drawn times."""
        sigma = self.recipe.sigma
        if self.recipe.path == "transport":
            return straight_path(latents, draws.noise, draws.time, sigma, draws.jitter)
        return conditional_path(latents, draws.noise, draws.time, sigma)

    def gradients(
        self,
        latents: tf.Tensor,
        library_size: Mapping[str, tf.Tensor],
        draws: FlowDraws,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, list[tf.Tensor], tuple[Any, ...]]:
        """Return loss, gradients, and the statistics that units were normalised by."""
        point = self.path_point(latents, draws)
        with tf.GradientTape() as tape:
            condition = self.network.condition(draws.codes, _logs(library_size))
            velocity, statistics = self.network.with_statistics(
                point.latent, draws.time, condition, training=True, seed=seed
            )
            loss = tf.reduce_mean((velocity - point.velocity) ** 2)
        # Of covariates without a part in this batch.
        gradients = tape.gradient(
            loss,
            self.network.trainable_variables,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return loss, gradients, statistics


class LatentFlow(ReconstructingModel):
    """CFGen: a count autoencoder and a flow in its latents.

    Parameters
    ----------
    autoencoder, scale, network
        What cells are made with.
    label
        Covariate that dispersions depend on; None if they do not.
    make_stages
        Called when the stages are first asked for.
    jit
        Compile solvers, or the velocity they follow, by XLA. It pays on a CPU too,
        where it halves their time for a second of compiling, unlike for the large
        networks of training.
    """

    def __init__(
        self,
        autoencoder: CountAutoencoder,
        scale: LatentScale,
        network: VelocityNet,
        make_stages: Callable[[], tuple[TrainingStage, ...]],
        *,
        label: str | None,
        jit: bool,
    ) -> None:
        self._autoencoder = autoencoder
        self._scale = scale
        self._network = network
        self._label = label
        self._make_stages = make_stages
        self._strategy = tf.distribute.get_strategy()
        self._jit = jit
        self._solvers: dict[Any, CheckedSolver] = {}
        self._decode_block = tf.function(self._decode, autograph=False)
        self._encode = tf.function(
            autoencoder.encode, reduce_retracing=True, autograph=False
        )
        self._condition = tf.function(
            network.condition, reduce_retracing=True, autograph=False
        )
        self._draw_noise = tf.function(self._noise, autograph=False)
        n_features = sum(m.n_features for m in autoencoder.modalities.values())
        self._block_size = block_size(n_features)

    def stages(self) -> tuple[TrainingStage, ...]:
        """Return autoencoder and flow, made at the first call."""
        return self._stages

    def generation_weights(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the networks of both stages, and the scale between them."""
        return {
            AutoencoderStage.name: {"network": self._autoencoder},
            FlowStage.name: {"network": self._network, "scale": self._scale},
        }

    def generate(self, request: GenerationRequest) -> GeneratedCells:
        """Make the cells of a request; with a source, move its cells to new covariates.

        Source cells are taken back to noise with their own covariates, and from there
        to latents with the requested ones.

        Raises
        ------
        SamplingError
            If the solver has no result.
        """
        branches = self._branches(request.guidance, request.covariates)
        forward = self._solver(branches, request.solver, reverse=False)
        categories = self._embedded_categories()
        pieces = []
        for block in blocks_of(request, self._block_size):
            start = self._start(request, block, categories)
            codes = padded_tensors(request.covariates, block, np.int32)
            sizes = padded_tensors(request.library_sizes or {}, block)
            conditions = self._conditions(branches, codes, sizes, categories)
            latent = forward(start, *conditions)
            made = self._decode_block(
                latent,
                sizes,
                codes.get(self._label) if self._label else None,
                tf.constant((derive_seed(request.seed, "counts"), 0), tf.int32),
                tf.constant(block.number * self._block_size, tf.int64),
            )
            pieces.append(cells_of_block(made, block))
        return joined_cells(pieces, are_counts=True)

    def latents(self, features: Mapping[str, tf.Tensor]) -> npt.NDArray[np.float32]:
        """Return the latents of counts, in the units of the autoencoder."""
        latents: npt.NDArray[np.float32] = self._encode(features).numpy()
        return latents

    def reconstruct(
        self, cells: CellBatch, *, n_samples: int = 0, seed: int = 0
    ) -> Reconstruction:
        """Encode and decode the RNA of cells; nothing is drawn, latents have no spread.

        The likelihood is that of the counts given latent and library size.
        """
        del n_samples, seed
        codes = cells.covariates[self._label] if self._label else None
        latent = self.latents(cells.features)
        return reconstruct_by(self._autoencoder, cells, latent, codes)

    @functools.cached_property
    def _stages(self) -> tuple[TrainingStage, ...]:
        with self._strategy.scope():
            return self._make_stages()

    def _start(
        self, request: GenerationRequest, block: Block, categories: tf.Tensor | None
    ) -> tf.Tensor:
        """Return noise: drawn, or what source cells come from."""
        if request.source is None:
            seed = tf.constant((derive_seed(request.seed, "noise"), 0), tf.int32)
            return self._draw_noise(seed, tf.constant(block.number, tf.int64))
        source = request.source
        features = padded_tensors(source.features, block)
        sizes = padded_tensors(source.library_size, block)
        of_source = {k: np.asarray(v) for k, v in source.covariates.items()}
        branches = self._branches(request.guidance, of_source)
        backward = self._solver(branches, request.solver, reverse=True)
        codes = padded_tensors(of_source, block, np.int32)
        latent = self._scale(self._encode(features))
        conditions = self._conditions(branches, codes, sizes, categories)
        return backward(latent, *conditions)

    def _noise(self, seed: tf.Tensor, block_number: tf.Tensor) -> tf.Tensor:
        shape = (self._block_size, self._network.n_latent)
        own = fold_in(seed, block_number)
        return tf.random.stateless_normal(shape, own, alg="philox")

    def _branches(
        self, scales: Mapping[str, float], codes: Mapping[str, npt.NDArray[Any]]
    ) -> tuple[Branch, ...]:
        null_codes = self._network.null_codes
        of_all = {name: scales.get(name, 1.0) for name in null_codes}
        return guidance_branches(of_all, codes, null_codes)

    def _conditions(
        self,
        branches: Sequence[Branch],
        codes: Mapping[str, tf.Tensor],
        sizes: Mapping[str, tf.Tensor],
        categories: tf.Tensor | None,
    ) -> tuple[tf.Tensor, ...]:
        """Return the condition embeddings that `VelocityNet.weighted` takes.

        Where library sizes are no part of them, `_embedded_categories` and the row of
        each cell in each branch: time is then joined to each category once.
        """
        null_codes = self._network.null_codes
        by_branch = [
            branch_codes(branch, codes, null_codes, self._block_size)
            for branch in branches
        ]
        if categories is None:
            logs = _logs(sizes)
            return (tf.stack([self._condition(own, logs) for own in by_branch]),)
        rows = np.zeros((len(branches), self._block_size), np.int32)
        for row, own in zip(rows, by_branch, strict=True):
            for name, null in null_codes.items():
                first = self._first_row(name)
                row += np.where(own[name] == null, 0, first + own[name])
        return categories, tf.constant(rows)

    def _embedded_categories(self) -> tf.Tensor | None:
        """Return the embedding of no covariate, row 0, then of every category alone.

        None if an embedding is of a library size too, which every cell has its own of.
        """
        if self._network.uses_library_size:
            return None
        null_codes = self._network.null_codes
        columns = {}
        for name, null in null_codes.items():
            column = np.full(1 + sum(null_codes.values()), null, np.int32)
            first = self._first_row(name)
            column[first : first + null] = np.arange(null)
            columns[name] = tf.constant(column)
        return self._condition(columns, {})

    def _first_row(self, covariate: str) -> int:
        """Return the row of a covariate's first category."""
        names = list(self._network.null_codes)
        before = names[: names.index(covariate)]
        return 1 + sum(self._network.null_codes[name] for name in before)

    def _solver(
        self,
        branches: Sequence[Branch],
        settings: SolverSettings | None,
        *,
        reverse: bool,
    ) -> CheckedSolver:
        settings = settings or SolverSettings()
        weights = tuple(branch.weight for branch in branches)
        key = (weights, settings, reverse)
        if key not in self._solvers:

            def velocity(
                latent: tf.Tensor, time: tf.Tensor, *conditions: tf.Tensor
            ) -> tf.Tensor:
                embedded, *rows = conditions
                return self._network.weighted(latent, time, embedded, weights, *rows)

            self._solvers[key] = checked_solver(
                velocity,
                solver=cast(Any, settings.name),
                n_steps=settings.n_steps,
                tolerance=settings.tolerance,
                reverse=reverse,
                jit=self._jit,
            )
        return self._solvers[key]

    def _decode(
        self,
        standardized: tf.Tensor,
        sizes: Mapping[str, tf.Tensor],
        codes: tf.Tensor | None,
        seed: tf.Tensor,
        first_cell: tf.Tensor,
    ) -> dict[str, tf.Tensor | DrawnCounts]:
        latent = self._scale.restore(standardized)
        decoded = self._autoencoder.decode(latent, sizes, codes)
        counts = {
            name: distribution.sample(fold_in(seed, index), first_cell)
            for index, (name, distribution) in enumerate(decoded.items())
        }
        return {**counts, LATENT: latent}

    @classmethod
    def from_parameters(
        cls, parameters: ExperimentParameters, manifest: DatasetManifest
    ) -> Self:
        """Build the model of one experiment."""
        model = cast(CfgenConfig, parameters.model)
        training, flow = parameters.training, model.flow
        seed = derive_seed(training.seed, "weights")
        dtype = "mixed_bfloat16" if training.precision == "bfloat16" else "float32"
        jit = resolve_jit(training.jit)
        by_label = model.autoencoder.inverse_dispersion == "gene-label"
        label = manifest.label if by_label else None
        autoencoder = build_autoencoder(
            model.autoencoder,
            manifest,
            seed=seed,
            jit=resolve_jit_of_parts(training.jit),
            dtype=dtype,
        )
        network = VelocityNet(
            autoencoder.n_latent,
            {
                name: len(manifest.covariates[name])
                for name in model.conditions(manifest)
            },
            log_ranges(manifest, flow.log_library_sizes)
            if flow.use_library_size
            else {},
            width=flow.width,
            n_embedding=flow.embedding_width,
            n_blocks=flow.n_blocks,
            normalization=flow.normalization,
            dropout=flow.dropout,
            largest_angle=flow.time_frequency,
            seed=seed,
            dtype=dtype,
        )
        for name in model.conditions(manifest):
            n_cells = np.asarray(manifest.cells_per_category["train"][name])
            network.embed_as_nothing(name, np.flatnonzero(n_cells == 0))
        scale = LatentScale(autoencoder.n_latent)

        def make_stages() -> tuple[TrainingStage, ...]:
            of_stage = {name: training.of_stage(name) for name in model.stages}
            return (
                AutoencoderStage(
                    autoencoder,
                    make_optimizer(of_stage[AutoencoderStage.name]),
                    label=manifest.label,
                    clip_norm=of_stage[AutoencoderStage.name].clip_norm,
                    jit=jit,
                ),
                FlowStage(
                    autoencoder,
                    scale,
                    network,
                    make_optimizer(of_stage[FlowStage.name]),
                    FlowRecipe(
                        flow.path,
                        flow.sigma,
                        flow.stratified_times,
                        flow.unconditional_share,
                        flow.dropping,
                        flow.standardize_latents,
                    ),
                    clip_norm=of_stage[FlowStage.name].clip_norm,
                    jit=resolve_jit_of_small(training.jit),
                ),
            )

        return cls(
            autoencoder,
            scale,
            network,
            make_stages,
            label=label,
            jit=resolve_jit_of_parts(training.jit),
        )


def log_ranges(
    manifest: DatasetManifest, given: Mapping[Any, tuple[float, float]] | None
) -> dict[str, tuple[float, float]]:
    """Return smallest and largest log library sizes: given, or of training cells."""
    ranges = {}
    for modality, by_label in manifest.library_sizes.items():
        if modality in manifest.binary:
            continue
        if given is not None and modality in given:
            ranges[modality] = given[modality]
        else:
            sizes = np.concatenate([np.asarray(of) for of in by_label])
            ranges[modality] = (float(np.log(sizes.min())), float(np.log(sizes.max())))
    return ranges


def _logs(sizes: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {name: tf.math.log(of) for name, of in sizes.items()}
