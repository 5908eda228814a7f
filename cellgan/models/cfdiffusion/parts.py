"""What cfDiffusion is built of: networks and training stages, as parameters say."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.models.base import TrainingStage, resolve_jit, resolve_jit_of_parts
from cellgan.models.cfdiffusion.classifier import NoisyClassifiers
from cellgan.models.cfdiffusion.classifier_training import ClassifierStage
from cellgan.models.cfdiffusion.config import CfdiffusionConfig, LatentAutoencoderConfig
from cellgan.models.cfdiffusion.networks import Denoiser
from cellgan.models.cfdiffusion.training import DiffusionRecipe, DiffusionStage
from cellgan.models.latent.autoencoder import AutoencoderStage
from cellgan.models.latent.networks import CountAutoencoder, Modality
from cellgan.models.latent.stage import LatentScale
from cellgan.optimizers import WeightAverage, make_optimizer
from cellgan.sampling import NoiseSchedule, cosine_betas, linear_betas
from cellgan.seeds import derive_seed


@dataclasses.dataclass(frozen=True)
class DiffusionParts:
    """The parts that model and stages share, and how the others are made."""

    parameters: ExperimentParameters
    manifest: DatasetManifest
    config: CfdiffusionConfig
    autoencoder: CountAutoencoder
    scale: LatentScale
    schedule: NoiseSchedule
    classifiers: NoisyClassifiers | None
    jit: bool

    @classmethod
    def of(
        cls, parameters: ExperimentParameters, manifest: DatasetManifest
    ) -> DiffusionParts:
        """Build what model and stages share."""
        config = cast(CfdiffusionConfig, parameters.model)
        options, jit = _weight_options(parameters), parameters.training.jit
        autoencoder = build_latent_autoencoder(
            config.autoencoder,
            len(manifest.features[RNA]),
            jit=resolve_jit_of_parts(jit),
            **options,
        )
        classifiers = None
        if config.classifier is not None:
            classifiers = NoisyClassifiers(
                autoencoder.n_latent,
                _sizes(config, manifest),
                widths=config.classifier.widths,
                dropout=config.classifier.dropout,
                **options,
            )
        diffusion = config.diffusion
        betas = (
            cosine_betas(diffusion.n_steps)
            if diffusion.schedule == "cosine"
            else linear_betas(
                diffusion.n_steps, scaled=diffusion.schedule == "linear_scaled"
            )
        )
        return cls(
            parameters,
            manifest,
            config,
            autoencoder,
            LatentScale(autoencoder.n_latent),
            NoiseSchedule.of(betas),
            classifiers,
            resolve_jit(jit),
        )

    def make_denoiser(self) -> Denoiser:
        """Build a denoiser with its first weights, the same ones every time.

        It knows no covariates where classifiers steer it.
        """
        network = Denoiser(
            self.autoencoder.n_latent,
            _sizes(self.config, self.manifest) if self.classifiers is None else {},
            widths=self.config.diffusion.widths,
            **_weight_options(self.parameters),
        )
        for name in network.null_codes:
            n_cells = np.asarray(self.manifest.cells_per_category["train"][name])
            network.embed_as_nothing(name, np.flatnonzero(n_cells == 0))
        return network

    def make_stages(self) -> tuple[TrainingStage, ...]:
        """Build the stages, in the order of training."""
        stages: list[TrainingStage] = [
            AutoencoderStage(
                self.autoencoder,
                label=self.manifest.label,
                **self._options_of(AutoencoderStage.name),
            ),
            self._diffusion_stage(),
        ]
        if self.classifiers is not None:
            stages.append(
                ClassifierStage(
                    self._encode,
                    self.scale,
                    self.classifiers,
                    schedule=self.schedule,
                    n_steps=self.config.n_classified_steps,
                    **self._options_of(ClassifierStage.name),
                )
            )
        return tuple(stages)

    def _diffusion_stage(self) -> DiffusionStage:
        diffusion = self.config.diffusion
        network = self.make_denoiser()
        return DiffusionStage(
            self._encode,
            self.scale,
            network,
            WeightAverage(
                network.variables,
                diffusion.average_rate,
                has_warm_up=not self.config.reference_behaviour,
                jit=resolve_jit_of_parts(self.parameters.training.jit),
            ),
            schedule=self.schedule,
            recipe=DiffusionRecipe(
                diffusion.unconditional_share,
                diffusion.dropping,
                diffusion.latent_scale,
            ),
            **self._options_of(DiffusionStage.name),
        )

    def _options_of(self, stage: str) -> dict[str, Any]:
        """Return how a stage updates its network."""
        own = self.parameters.training.of_stage(stage)
        return {
            "optimizer": make_optimizer(own),
            "clip_norm": own.clip_norm,
            "jit": self.jit,
        }

    @property
    def _encode(self) -> Callable[..., Any]:
        return functools.partial(
            self.autoencoder.encode, batch_statistics=self.config.reference_behaviour
        )


def build_latent_autoencoder(
    config: LatentAutoencoderConfig, n_genes: int, *, seed: int, jit: bool, dtype: str
) -> CountAutoencoder:
    """Build the autoencoder of RNA whose latents have length 1."""
    rna = Modality(
        n_features=n_genes,
        widths=(*config.layers, config.n_latent),
        likelihood=config.decoder,
        transform="log1p_per_10000",
        activation="prelu",
        residual=config.residual,
    )
    return CountAutoencoder(
        {RNA: rna},
        dropout=config.dropout,
        on_sphere=True,
        seed=seed,
        jit=jit,
        dtype=dtype,
    )


def _sizes(config: CfdiffusionConfig, manifest: DatasetManifest) -> dict[str, int]:
    """Return the number of categories of every covariate that cells depend on."""
    return {
        name: len(manifest.covariates[name]) for name in config.conditions(manifest)
    }


def _weight_options(parameters: ExperimentParameters) -> dict[str, Any]:
    """Return the seed of first weights, and what layers compute in."""
    training = parameters.training
    is_half = training.precision == "bfloat16"
    return {
        "seed": derive_seed(training.seed, "weights"),
        "dtype": "mixed_bfloat16" if is_half else "float32",
    }
