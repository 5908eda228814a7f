"""cfDiffusion: cells by guided diffusion in the latents of an autoencoder.

The autoencoder gives every cell a latent of length 1. A network learns the noise in
latents that noise was added to, with and without the covariates of cells. A cell is
made by taking noise away step by step, and decoding the latent that is left.

References
----------
Zhang et al. (2025), cfDiffusion: diffusion-based efficient generation of high quality
scRNA-seq data with classifier-free guidance. https://doi.org/10.1093/bib/bbaf071
Luo et al. (2024), scDiffusion: conditional generation of high-quality single-cell data
using diffusion model. https://arxiv.org/abs/2401.03968
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import ConfigError, SamplingError
from cellgan.layers import scale_to_library_size
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
    resolve_jit_of_parts,
)
from cellgan.models.cfdiffusion.classifier import NoisyClassifiers
from cellgan.models.cfdiffusion.classifier_training import ClassifierStage
from cellgan.models.cfdiffusion.config import CfdiffusionConfig
from cellgan.models.cfdiffusion.networks import Denoiser, GuidedDenoiser
from cellgan.models.cfdiffusion.parts import DiffusionParts
from cellgan.models.cfdiffusion.training import DiffusionStage
from cellgan.models.latent.autoencoder import AutoencoderStage
from cellgan.models.latent.networks import CountAutoencoder
from cellgan.models.latent.stage import (
    LATENT,
    LatentScale,
    block_size,
    cells_of_block,
    fold_in,
    joined_cells,
    padded_tensors,
    reconstruct_by,
)
from cellgan.sampling import (
    NoiseSchedule,
    Sampler,
    add_noise,
    branch_codes,
    even_full_steps,
    nested_branches,
    spaced_steps,
    uneven_full_steps,
)
from cellgan.sampling.noise_schedules import CENTRE
from cellgan.seeds import derive_seed

Rows = npt.NDArray[np.float32]


class LatentDiffusion(ReconstructingModel):
    """cfDiffusion: an autoencoder, and diffusion in its latents.

    Parameters
    ----------
    autoencoder, scale, network
        What cells are made with; `network` gets the weights to generate with.
    schedule
        Of the noise, all steps.
    config
        Of the family.
    solver
        How noise is followed when a request does not say.
    target_library_size
        Of expression that a model without counts makes.
    make_stages
        Called when the stages are first asked for.
    classifiers
        That steer a network without covariates; None if it knows them.
    jit
        Compile sampling as a whole with XLA. For networks of these widths it does not
        pay on a CPU, unlike for those of flows.
    jit_parts
        Compile what stands between products.
    """

    def __init__(  # noqa: PLR0913  (what cells are made with, and how)
        self,
        autoencoder: CountAutoencoder,
        scale: LatentScale,
        network: Denoiser,
        schedule: NoiseSchedule,
        config: CfdiffusionConfig,
        solver: SolverSettings,
        make_stages: Callable[[], tuple[TrainingStage, ...]],
        *,
        classifiers: NoisyClassifiers | None,
        target_library_size: float,
        jit: bool,
        jit_parts: bool,
    ) -> None:
        self._autoencoder = autoencoder
        self._scale = scale
        self._network = network
        self._schedule = schedule
        self._config = config
        self._solver = solver
        self._make_stages = make_stages
        self._classifiers = classifiers
        self._target_library_size = target_library_size
        self._strategy = tf.distribute.get_strategy()
        self._jit = jit
        self._jit_parts = jit_parts
        self._samplers: dict[Any, Callable[..., tf.Tensor]] = {}
        self._decode_block = tf.function(self._decode, autograph=False)
        self._encode = tf.function(
            functools.partial(
                autoencoder.encode, batch_statistics=config.reference_behaviour
            ),
            reduce_retracing=True,
            autograph=False,
        )
        self._gates = tf.function(network.gates, reduce_retracing=True, autograph=False)
        n_features = sum(m.n_features for m in autoencoder.modalities.values())
        self._block_size = block_size(n_features)

    def stages(self) -> tuple[TrainingStage, ...]:
        """Return autoencoder, diffusion and classifiers, made at the first call."""
        return self._stages

    def generation_weights(self) -> Mapping[str, Mapping[str, Any]]:
        """Return all networks, of the denoiser the weights to generate with."""
        part = "average" if self._uses_average else "network"
        weights: dict[str, Mapping[str, Any]] = {
            AutoencoderStage.name: {"network": self._autoencoder},
            DiffusionStage.name: {part: self._network, "scale": self._scale},
        }
        if self._classifiers is not None:
            weights[ClassifierStage.name] = {"network": self._classifiers}
        return weights

    def generate(self, request: GenerationRequest) -> GeneratedCells:
        """Make the cells of a request; with a source, from its cells with noise.

        Raises
        ------
        SamplingError
            If a latent is not finite.
        """
        self._take_trained_weights()
        settings = request.solver or self._solver
        first = self._first_position(request, settings)
        sample = self._sampler(settings, first)
        codes, weights = self._conditions(request)
        pulls = self._pulls(request)
        root = tf.constant((derive_seed(request.seed, "noise"), 0), tf.int32)
        pieces = []
        for block in blocks_of(request, self._block_size):
            of_weights = _by_branch(block, weights)
            seed = fold_in(root, tf.constant(block.number, tf.int64))
            start = self._start(request, block)
            of_pulls = {name: block.padded(of) for name, of in pulls.items()}
            of_codes = {name: _by_branch(block, of) for name, of in codes.items()}
            gates = self._gates_of_block(of_codes)
            latent = sample(start, gates, of_weights, of_pulls, seed)
            if not np.all(np.isfinite(latent)):
                message = (
                    "latents became infinite or nan on the way. Lower the guidance "
                    "scales, take more steps, or train the model further."
                )
                raise SamplingError(message)
            sizes = padded_tensors(request.library_sizes or {}, block)
            made = self._decode_block(
                latent,
                sizes,
                tf.constant((derive_seed(request.seed, "counts"), 0), tf.int32),
                tf.constant(block.number * self._block_size, tf.int64),
            )
            pieces.append(cells_of_block(made, block))
        return joined_cells(pieces, are_counts=self._config.makes_counts)

    def latents(self, features: Mapping[str, tf.Tensor]) -> Rows:
        """Return the latents of cells, in the units of the autoencoder."""
        latents: Rows = self._encode(features).numpy()
        return latents

    def reconstruct(
        self, cells: CellBatch, *, n_samples: int = 0, seed: int = 0
    ) -> Reconstruction:
        """Encode and decode cells; nothing is drawn, latents have no spread.

        A decoder of expression has no likelihood; one of counts has that of the counts
        given latent and library size.
        """
        del n_samples, seed
        return reconstruct_by(
            self._autoencoder,
            cells,
            self.latents(cells.features),
            batch_statistics=self._config.reference_behaviour,
        )

    @property
    def _uses_average(self) -> bool:
        uses_it = self._config.diffusion.use_average
        return uses_it and not self._config.reference_behaviour

    @functools.cached_property
    def _stages(self) -> tuple[TrainingStage, ...]:
        with self._strategy.scope():
            return self._make_stages()

    def _take_trained_weights(self) -> None:
        """While the model is trained, generate with the weights as they now are."""
        if "_stages" not in self.__dict__:
            return
        stage = cast(DiffusionStage, self._stages[1])
        source = stage.average if self._uses_average else stage.network
        for weight, trained in zip(
            self._network.variables, source.variables, strict=True
        ):
            weight.assign(trained)

    def _start(self, request: GenerationRequest, block: Block) -> tf.Tensor:
        """Return the scaled latents of the source; zeros without one."""
        if request.source is None:
            return tf.zeros((self._block_size, self._network.n_latent))
        features = padded_tensors(request.source.features, block)
        return self._scale(self._encode(features))

    def _first_position(
        self, request: GenerationRequest, settings: SolverSettings
    ) -> int | None:
        """Return the position that sampling starts at; None from noise alone."""
        if request.source is None:
            return None
        last = len(self._schedule) - 1
        wanted = last if request.noise_step is None else request.noise_step
        taken = self.sampler(settings)[0].schedule.original_steps
        return max(0, int(np.searchsorted(taken, wanted, side="right")) - 1)

    def _gates_of_block(self, codes: Mapping[str, npt.NDArray[np.int32]]) -> tf.Tensor:
        """Return the gates of cells in each branch, ``(n_branches, n_cells, n_units)``.

        Without covariates it is a single row of ones, which no layer looks at. Each
        cell's are computed, equal or not, so that they are in its own row of a product
        of fixed size: a product of fewer rows is rounded differently.
        """
        of_rows = {name: tf.constant(of.ravel()) for name, of in codes.items()}
        gates = self._gates(of_rows)
        shape = next((of.shape for of in codes.values()), (1, 1))
        return tf.reshape(gates, (*shape, -1))

    def _conditions(
        self, request: GenerationRequest
    ) -> tuple[dict[str, npt.NDArray[np.int32]], Rows]:
        """Return codes and weights of cells by branch, ``(n_branches, n_cells)``.

        Of mixed categories, each has the branches of guidance, with its share.
        """
        null_codes, n_cells = self._network.null_codes, request.n_cells
        scales = {
            name: 1.0
            if self._config.reference_behaviour
            else request.guidance.get(name, 1.0)
            for name in null_codes
        }
        branches = nested_branches(scales, request.covariates, null_codes)
        sides, shares = [request.covariates], np.ones((1, n_cells), np.float32)
        mixture = request.mixture
        if mixture is not None and null_codes:
            sides.append({**sides[0], mixture.covariate: mixture.codes})
            shares = np.stack([1 - mixture.shares, mixture.shares])
        weights = np.stack([branch.weight * shares for branch in branches])
        weights = weights.astype(np.float32).reshape(-1, n_cells)
        rows = [
            branch_codes(branch, side, null_codes, n_cells)
            for branch in branches
            for side in sides
        ]
        codes = {name: np.stack([row[name] for row in rows]) for name in null_codes}
        return codes, weights

    def _pulls(self, request: GenerationRequest) -> dict[str, Rows]:
        """Return how strongly each category pulls each cell, by covariate.

        Of mixed categories, each pulls with its share.
        """
        if self._classifiers is None:
            return {}
        mixture, pulls = request.mixture, {}
        for name, n in self._classifiers.n_categories.items():
            if name not in request.covariates:
                continue
            rows = np.eye(n, dtype=np.float32)
            pull = rows[np.asarray(request.covariates[name])]
            if mixture is not None and mixture.covariate == name:
                shares = mixture.shares[:, None]
                pull = (1 - shares) * pull + shares * rows[mixture.codes]
            pulls[name] = np.float32(request.guidance.get(name, 1.0)) * pull
        return pulls

    def _sampler(
        self, settings: SolverSettings, first: int | None
    ) -> Callable[..., tf.Tensor]:
        """Return the compiled ``(latents, gates, weights, pulls, seed) -> latents``."""
        key = (settings, first)
        if key not in self._samplers:
            shape = (self._block_size, self._network.n_latent)
            sampler, step_index = self.sampler(settings)

            def sample(
                start: tf.Tensor,
                gates: tf.Tensor,
                weights: tf.Tensor,
                pulls: Mapping[str, tf.Tensor],
                seed: tf.Tensor,
            ) -> tf.Tensor:
                def noise_of(position: tf.Tensor) -> tf.Tensor:
                    own = fold_in(seed, position + 1)
                    return tf.random.stateless_normal(shape, own, alg="philox")

                network = GuidedDenoiser(
                    self._network,
                    tf.constant(step_index),
                    gates,
                    weights,
                    settings.cache_branch,
                    jit=self._jit_parts,
                )
                noise = tf.random.stateless_normal(
                    shape, fold_in(seed, 0), alg="philox"
                )
                if first is not None:
                    position = tf.constant(first)
                    noise = add_noise(sampler.schedule, start, noise, position)
                slope_of = self._slope(tf.constant(step_index, tf.int32), pulls)
                return sampler.sample(
                    network, noise, noise_of, slope_of=slope_of, first=first
                )

            self._samplers[key] = tf.function(
                sample, jit_compile=self._jit, autograph=False
            )
        return self._samplers[key]

    def _slope(
        self, step_index: tf.Tensor, pulls: Mapping[str, tf.Tensor]
    ) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None:
        """Return ``(noisy, position) -> slope`` of the classifiers; None without."""
        if self._classifiers is None or not pulls:
            return None
        classifiers, n_steps = self._classifiers, self._config.n_classified_steps

        def slope(noisy: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
            step = step_index[position]
            return tf.cond(
                step < n_steps,
                lambda: classifiers.slope(noisy, step[None], pulls),
                lambda: tf.zeros_like(noisy),
            )

        return slope

    def sampler(
        self, settings: SolverSettings
    ) -> tuple[Sampler, npt.NDArray[np.int64]]:
        """Return how noise is followed, and what the network is given as steps."""
        n_steps, interval = settings.n_steps, settings.cache_interval
        schedule = self._schedule.respaced(
            spaced_steps(len(self._schedule), (n_steps,))
        )
        full_steps = None
        if interval > 1 and settings.cache_spacing == "even":
            full_steps = even_full_steps(n_steps, interval)
        elif interval > 1:
            # The centre is that of 1000 steps, at the same noise.
            centre = max(1, round(CENTRE * n_steps / len(self._schedule)))
            full_steps = uneven_full_steps(n_steps, interval, centre=centre)
        sampler = Sampler(
            schedule,
            "ddim" if settings.name == "ddim" else "ddpm",
            settings.eta,
            self._config.diffusion.variance,
            full_steps,
        )
        is_mapped = not self._config.reference_behaviour
        steps = schedule.original_steps if is_mapped else np.arange(n_steps)
        return sampler, steps

    def _decode(
        self,
        scaled: tf.Tensor,
        sizes: Mapping[str, tf.Tensor],
        seed: tf.Tensor,
        first_cell: tf.Tensor,
    ) -> dict[str, tf.Tensor | DrawnCounts]:
        latent = self._scale.restore(scaled)
        if self._config.diffusion.project_to_sphere:
            latent = self._autoencoder.on_sphere(latent)
        decoded = self._autoencoder.decode(
            latent, sizes, batch_statistics=self._config.reference_behaviour
        )
        cells = decoded[RNA].sample(fold_in(seed, 0), first_cell)
        if not self._config.makes_counts:
            cells = scale_to_library_size(cells, self._target_library_size)
        return {RNA: cells, LATENT: latent}

    @classmethod
    def from_parameters(
        cls, parameters: ExperimentParameters, manifest: DatasetManifest
    ) -> Self:
        """Build the model of one experiment.

        Raises
        ------
        ConfigError
            If the data have another modality than RNA.
        """
        if set(manifest.features) != {RNA}:
            message = (
                f"model.type cfDiffusion makes RNA alone, but the data have "
                f"{', '.join(manifest.features)}. CFGen makes RNA and ATAC."
            )
            raise ConfigError(message)
        parts = DiffusionParts.of(parameters, manifest)
        return cls(
            parts.autoencoder,
            parts.scale,
            parts.make_denoiser(),
            parts.schedule,
            parts.config,
            SolverSettings.of(parameters.generation),
            parts.make_stages,
            classifiers=parts.classifiers,
            target_library_size=manifest.target_library_size,
            jit=parts.jit,
            jit_parts=resolve_jit_of_parts(parameters.training.jit),
        )


def _by_branch(block: Block, of_cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the part of a block of ``(n_branches, n_cells)``, padded to its size."""
    return np.stack([block.padded(of_branch) for of_branch in of_cells])
