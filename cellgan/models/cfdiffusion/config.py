"""What cfDiffusion and scDiffusion can be told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    ModelConfig,
    Share,
    Width,
    Widths,
    known_covariates,
)
from cellgan.data.manifest import DatasetManifest
from cellgan.errors import ConfigError


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LatentAutoencoderConfig:
    """The autoencoder whose latents diffuse; it is given log counts per 10,000.

    The paper's: ``n_latent`` 128, ``layers`` [1024, 1024, 1024], decoder
    ``"squared_error"``.
    """

    n_latent: Width = 32
    layers: Widths = (512, 256)
    """Hidden widths of the encoder; the decoder's are these, reversed."""
    decoder: Literal["negative_binomial", "squared_error"] = "negative_binomial"
    """``"negative_binomial"`` makes counts; ``"squared_error"`` makes normalised
    expression, without the zeros that counts have by chance."""
    residual: bool = False
    """Add the input of every hidden layer but the first to its output."""
    dropout: Share = 0.0
    """Share of hidden units set to 0 in training."""

    @model_validator(mode="after")
    def _equal_widths(self) -> LatentAutoencoderConfig:
        if self.residual and len(set(self.layers)) > 1:
            msg = (
                f"residual is true but layers are {list(self.layers)}: make them equal"
            )
            raise ValueError(msg)
        return self


def _even_first(widths: tuple[int, ...]) -> tuple[int, ...]:
    if len(widths) < 2 or widths[0] % 2:
        msg = f"widths are {list(widths)}: give two or more, the first even"
        raise ValueError(msg)
    return widths


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DiffusionConfig:
    """Diffusion of latents, and how it is conditioned.

    The paper's: ``widths`` [512, 512, 256, 128], dropping ``"independent"``,
    ``latent_scale`` ``"none"``, no ``project_to_sphere``.
    """

    widths: Annotated[Widths, AfterValidator(_even_first)] = (256, 256, 128, 64)
    """Of the denoiser on its way down; it mirrors them on the way up."""
    condition_on: tuple[str, ...] | None = None
    """Covariates that cells can be asked for by: null for all of the data, the empty
    list for an unconditional model."""
    n_steps: Annotated[int, Field(ge=2)] = 1000
    """Steps from a latent to noise, of which generation may take fewer."""
    schedule: Literal["linear", "linear_scaled", "cosine"] = "linear"
    """Of the noise; ``"linear_scaled"`` ends in the same noise for any `n_steps`."""
    variance: Literal["fixed_large", "fixed_small"] = "fixed_large"
    """Of a drawn step: beta, or that of the posterior."""
    unconditional_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of cells that a covariate is left out of in training."""
    dropping: Literal["independent", "joint"] = "joint"
    """Whether covariates are left out one by one, or all of a cell as well."""
    latent_scale: Literal["none", "sqrt_width", "standardized"] = "standardized"
    """Units that latents diffuse in: their own, of length 1 and so far smaller than the
    noise; times the root of their width; or of mean 0 and variance 1 each."""
    project_to_sphere: bool = True
    """Give generated latents the length 1 that those of cells have."""
    average_rate: Share = 0.9999
    """Share of the old moving average of weights that a training step keeps."""
    use_average: bool = True
    """Generate with the moving average, not with the last weights."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClassifierConfig:
    """Classifiers of noisy latents, one for each covariate, as of scDiffusion.

    The paper's are these; it trains them 400,000 steps at a rate of 3e-4.
    """

    widths: Annotated[Widths, AfterValidator(_even_first)] = (512, 512, 256)
    dropout: Share = 0.1
    """Share of hidden units set to 0 in training."""
    noise_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the steps of noise, from the cleanest on, at which they are trained and
    steer: in noisier latents there is no label to be seen."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CfdiffusionConfig(ModelConfig):
    """cfDiffusion: an autoencoder, and guided diffusion in its latents.

    The paper trains with batches of 128: the autoencoder 800,000 steps at a rate of
    5e-4 with weight decay 0.01, the diffusion 800,000 at 1e-4, falling to 0, with
    1e-4, and neither clips gradients.
    """

    STAGES = ("autoencoder", "diffusion", "classifier")
    TRAINING_KEYS = frozenset({"clip_norm"})
    TRAINING: ClassVar[Mapping[str, Any]] = {
        "batch_size": 128,
        "clip_norm": 1.0,
        "optimizer": {"algorithm": "AdamW", "beta1": 0.9, "beta2": 0.999},
        "stages": {
            "autoencoder": {
                "max_steps": 2000,
                "learning_rate": {"decay": True, "alpha_0": 2e-3, "alpha_final": 2e-4},
                "optimizer": {"weight_decay": 1e-4},
            },
            "diffusion": {
                "max_steps": 10_000,
                "learning_rate": {"decay": "linear", "alpha_0": 1e-3},
                "optimizer": {"weight_decay": 1e-4},
            },
            "classifier": {
                "max_steps": 3000,
                "learning_rate": {"decay": "linear", "alpha_0": 1e-3},
            },
        },
    }
    GENERATION_KEYS = frozenset(
        {
            "condition",
            "counts",
            "guidance",
            "solver",
            "n_steps",
            "eta",
            "cache_interval",
            "cache_branch",
            "cache_spacing",
            "library_size",
        }
    )
    GENERATION: ClassVar[Mapping[str, Any]] = {"solver": "ddpm", "n_steps": 100}
    SOLVERS = ("ddpm", "ddim")
    mixes_labels = True
    has_encoder = True
    imports_weights = True

    type: Literal["cfDiffusion"] = "cfDiffusion"
    autoencoder: LatentAutoencoderConfig = LatentAutoencoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    classifier: ClassifierConfig | None = None
    """Null: the denoiser knows the covariates. With classifiers it does not, and their
    gradients steer it: scDiffusion."""
    reference_behaviour: bool = False
    """Do what the released cfDiffusion does, to compare with it: guidance without
    effect, fewer steps numbered from 0, the last weights, and autoencoders that
    normalise by the statistics of the cells at hand."""

    @model_validator(mode="after")
    def _one_way_of_guidance(self) -> CfdiffusionConfig:
        if self.classifier is not None:
            for key in ("unconditional_share", "dropping"):
                value = getattr(self.diffusion, key)
                if value != getattr(DiffusionConfig, key):
                    msg = (
                        f"diffusion.{key} is of a denoiser that knows the covariates; "
                        "with a classifier it knows none: leave it out"
                    )
                    raise ValueError(msg)
            if self.diffusion.condition_on == ():
                msg = (
                    "diffusion.condition_on is empty: there is nothing to classify; "
                    "leave classifier out"
                )
                raise ValueError(msg)
        return self

    @property
    def n_classified_steps(self) -> int:
        """How many steps of noise, from the cleanest on, the classifiers know."""
        share = 0.0 if self.classifier is None else self.classifier.noise_share
        return round(share * self.diffusion.n_steps)

    @property
    def stages(self) -> tuple[str, ...]:
        """Autoencoder and diffusion, and the classifier if there is one."""
        return self.STAGES if self.classifier is not None else self.STAGES[:2]

    @property
    def named_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """``diffusion.condition_on``."""
        return {"diffusion.condition_on": self.diffusion.condition_on or ()}

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return ``diffusion.condition_on``, or all covariates of the data."""
        return known_covariates(
            self.diffusion.condition_on, manifest, "model.diffusion.condition_on"
        )

    @property
    def makes_counts(self) -> bool:
        """Whether cells come as integer counts."""
        return self.autoencoder.decoder == "negative_binomial"

    def check_generation(self, generation: Any, where: str) -> None:
        """Refuse steps, caches and library sizes that there are not."""
        super().check_generation(generation, where)
        n_steps, n_branches = self.diffusion.n_steps, len(self.diffusion.widths) - 1
        problem = None
        if generation.n_steps > n_steps:
            problem = (
                f"n_steps is {generation.n_steps}, but the model diffuses in {n_steps} "
                f"steps (model.diffusion.n_steps). Give at most as many."
            )
        elif generation.cache_branch >= n_branches:
            problem = (
                f"cache_branch is {generation.cache_branch}, but the denoiser has "
                f"{n_branches} connections. Give 0 to {n_branches - 1}."
            )
        elif generation.cache_interval == 1 and (
            generation.cache_branch or generation.cache_spacing != "even"
        ):
            problem = (
                "cache_branch and cache_spacing have no effect with cache_interval 1. "
                "Give an interval from 2 on."
            )
        elif generation.eta and generation.solver != "ddim":
            problem = f"eta is {generation.eta}, which only the solver ddim has."
        elif generation.library_size != "modelled" and not self.makes_counts:
            problem = (
                "library_size is given, but cells are not counts. Leave it out, or set "
                'model.autoencoder.decoder to "negative_binomial".'
            )
        if problem:
            msg = f"{where}: {problem}"
            raise ConfigError(msg)

    def check_noise_step(self, step: int, where: str) -> None:
        """Refuse a step that the diffusion does not have."""
        n_steps = self.diffusion.n_steps
        if not 0 <= step < n_steps:
            msg = (
                f"{where}: {step} found, but the model diffuses in {n_steps} steps "
                f"(model.diffusion.n_steps). Give 0 to {n_steps - 1}."
            )
            raise ConfigError(msg)
