"""The model types one can name in ``model.type``, and what each can be told.

`MODEL_TYPES` is a literal table: name -> (configuration, "module:Class"). The class is
imported when a model is built, never before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.data.manifest import DatasetManifest
from cellgan.errors import ConfigError, did_you_mean

STRICT = ConfigDict(extra="forbid", strict=True)
Width = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]


def _rising(ends: tuple[float, float]) -> tuple[float, float]:
    if not ends[0] < ends[1]:
        msg = "the first number must be the smaller one"
        raise ValueError(msg)
    return ends


LogRange = Annotated[tuple[float, float], AfterValidator(_rising)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelConfig:
    """What every family says of itself."""

    type: str

    STAGES: ClassVar[tuple[str, ...]]
    """Names of its training stages, in order."""
    TRAINING: ClassVar[Mapping[str, Any]] = {}
    """Values of the ``training`` block that a family starts from; the file's go over
    them, key by key."""
    TRAINING_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys of the ``training`` block that only some families have."""
    GENERATION_KEYS: ClassVar[frozenset[str]] = frozenset()
    """Keys of the ``generation`` block that only some families have."""
    GENERATION: ClassVar[Mapping[str, Any]] = {}
    """Values of the ``generation`` block that a family starts from, as `TRAINING`."""
    SOLVERS: ClassVar[tuple[str, ...]] = ()
    """Values of ``generation.solver`` that the family knows."""
    has_latents: ClassVar[bool] = False
    """Whether real cells can be taken to the noise they come from, and back."""
    mixes_labels: ClassVar[bool] = False
    """Whether cells between two labels can be asked for."""
    is_additive: ClassVar[bool] = False
    """Whether cells are made by editing others, as a sum of what each covariate
    adds."""
    has_encoder: ClassVar[bool] = False
    """Whether real cells can be given latents."""
    draws_library_sizes: ClassVar[bool] = False
    """Whether library sizes are part of what the model has learned."""

    @property
    def source_cells(self) -> Literal["none", "any", "alike"]:
        """Training cells that generated ones start from: any, or of their kind."""
        return "any" if self.is_additive else "none"

    def as_asked(self, latents: str) -> ModelConfig:
        """Return what these parameters are where latents come from somewhere else.

        Parameters
        ----------
        latents
            ``generation.latents``.
        """
        del latents
        return self

    def remarks(self, training: Any, n_cells: int) -> tuple[str, ...]:
        """Return what a user should know of a training before it begins.

        Parameters
        ----------
        training
            `cellgan.config.parameters.TrainingParameters` of the last stage.
        n_cells
            Training cells.
        """
        del training, n_cells
        return ()

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the covariates that cells can be asked for by.

        Raises
        ------
        ConfigError
            If the parameters name one that the data do not have.
        """
        return (manifest.label,)

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages that these parameters train, in order."""
        return self.STAGES

    def check_encoder(self, where: str) -> None:
        """Refuse a model without an encoder of cells.

        Raises
        ------
        ConfigError
            Naming those that have one.
        """
        if not self.has_encoder:
            those = [name for name, (of, _) in MODEL_TYPES.items() if of.has_encoder]
            msg = (
                f'{where}: the model type "{self.type}" has no encoder of cells, only '
                f"{', '.join(those)} have."
            )
            raise ConfigError(msg)

    def needed_columns(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the covariates that cells must have to be encoded and decoded."""
        del manifest
        return ()

    @property
    def named_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """Covariates that the parameters name, by key of the ``model`` block."""
        return {}

    def knows_labels(self, manifest: DatasetManifest) -> bool:
        """Return whether cells of a chosen label can be asked for."""
        return manifest.label in self.conditions(manifest)

    @property
    def makes_counts(self) -> bool:
        """Whether cells come as integer counts."""
        return False

    def check_training(self, training: Any, where: str) -> None:
        """Refuse values of the ``training`` block that do not suit this model.

        Parameters
        ----------
        training
            `cellgan.config.parameters.TrainingParameters` of one of its stages.
        where
            File and block, for messages.

        Raises
        ------
        ConfigError
            Saying which.
        """
        del training, where

    def check_target(self, target: Mapping[str, str], where: str) -> None:
        """Refuse categories that cells cannot be edited to.

        Parameters
        ----------
        target
            Category by covariate, both known.
        where
            The option, for messages.

        Raises
        ------
        ConfigError
            Saying which.
        """
        del target, where

    def check_noise_step(self, step: int, where: str) -> None:
        """Refuse a step of noise that the model does not have.

        Raises
        ------
        ConfigError
            Saying why; of a model that is no diffusion always.
        """
        del step
        msg = f'{where}: the model type "{self.type}" has no steps of noise.'
        raise ConfigError(msg)

    def check_generation(self, generation: Any, where: str) -> None:
        """Refuse values of the ``generation`` block that do not suit this model.

        Parameters
        ----------
        generation
            `cellgan.config.parameters.GenerationParameters`.
        where
            File and block, or the command line, for messages.

        Raises
        ------
        ConfigError
            Saying which.
        """
        if self.SOLVERS and generation.solver not in self.SOLVERS:
            msg = (
                f'{where}: solver is "{generation.solver}", which the model type '
                f'"{self.type}" does not know. Solvers: {", ".join(self.SOLVERS)}.'
            )
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GanConfig(ModelConfig):
    """scGAN and cscGAN: Wasserstein GAN with gradient penalty.

    cscGAN is conditioned on the label (cluster or cell type). scGAN is not: it accepts
    the two ``*_cond_type`` keys, which every parameter file of the reference carries,
    and neither has a part in it.
    """

    STAGES = ("gan",)
    TRAINING_KEYS = frozenset({"critic_iters"})
    GENERATION_KEYS = frozenset({"counts"})

    type: Literal["scGAN", "cscGAN"] = "cscGAN"
    latent_dim: Width = 128
    output_LSN: Width | Literal["scale"] | None = "scale"
    """Library size of generated cells; ``"scale"`` takes that of ``input_ds.scale``,
    null leaves the last layer unscaled."""
    critic_layers: Widths = (1024, 512, 256)
    gen_layers: Widths = (256, 512, 1024)
    critic_cond_type: Literal["proj", "old_proj"] = "proj"
    """``"proj"``: a linear read-out per label, what the reference runs by this name;
    ``"old_proj"``: Miyato and Koyama's projection with one shared read-out."""
    gen_cond_type: Literal["batchnorm", "layernorm", "none"] = "batchnorm"
    """Which normalisation carries the label; ``"none"`` normalises nothing and the
    generator ignores the label."""
    lambd: Annotated[float, Field(ge=0)] = 10.0
    """Weight of the gradient penalty."""

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the label, or nothing for scGAN."""
        return (manifest.label,) if self.type == "cscGAN" else ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AutoencoderConfig:
    """A deterministic autoencoder of counts: what the flow's latents come from."""

    n_latent: Width = 50
    """Width of the latent, of each modality when there is one for each."""
    rna_layers: Widths = (512, 256)
    """Hidden widths of the RNA encoder; the decoder's are these, reversed."""
    atac_layers: Widths = (1024, 512)
    """Hidden widths of the ATAC encoder."""
    joint_latent: bool = True
    """With RNA and ATAC: one latent of both; otherwise one each, side by side."""
    input_transform: Literal["log1p", "proportions", "log1p_proportions", "none"] = (
        "log1p"
    )
    """What encoders are given of the counts; binary ATAC is given as it is. ``"none"``
    is what some versions of the original give the RNA encoder of multiome models."""
    inverse_dispersion: Literal["gene", "gene-label"] = "gene"
    """Whether a gene's dispersion is the same for all labels."""
    dropout: Share = 0.0
    atac_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the ATAC likelihood beside that of RNA; tens of thousands of peaks
    outweigh the genes."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FlowConfig:
    """Flow matching of latents, and how it is conditioned."""

    width: Width = 64
    embedding_width: Annotated[int, Field(ge=4, multiple_of=2)] = 100
    """Width of the embeddings of time, covariates and library size."""
    n_blocks: Width = 3
    normalization: Literal["none", "layernorm", "batchnorm"] = "none"
    dropout: Share = 0.0
    condition_on: tuple[str, ...] | None = None
    """Covariates that cells can be asked for by: null for all of the data, the empty
    list for an unconditional model."""
    unconditional_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of cells that are trained on without any covariate."""
    dropping: Literal["per_cell", "per_batch"] = "per_cell"
    """Whether each cell keeps another covariate, or a whole batch the same one."""
    use_library_size: bool = False
    """Whether the latent may depend on the library size."""
    log_library_sizes: dict[Literal["rna", "atac"], LogRange] | None = None
    """With `use_library_size`: by modality, the smallest and largest log library size,
    between which it is scaled; null takes those of the training cells."""
    path: Literal["lipman", "transport"] = "lipman"
    """``"transport"`` pairs noise with the cells of a batch by optimal transport and
    goes straight from one to the other."""
    sigma: Annotated[float, Field(ge=0, lt=1)] = 1e-4
    stratified_times: bool = True
    time_frequency: Annotated[float, Field(gt=0)] = 1000.0
    """Largest angle of the time embedding, in radians over the whole path."""
    standardize_latents: bool = True
    """Scale latents to mean 0 and variance 1 in every dimension."""

    @model_validator(mode="after")
    def _check(self) -> FlowConfig:
        if self.log_library_sizes is not None and not self.use_library_size:
            msg = "log_library_sizes does nothing without use_library_size: true"
            raise ValueError(msg)
        named = self.condition_on or ()
        for name in named:
            if named.count(name) > 1:
                msg = f'condition_on names "{name}" twice'
                raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CfgenConfig(ModelConfig):
    """CFGen: a count autoencoder, and flow matching in its latents."""

    STAGES = ("autoencoder", "flow")
    TRAINING_KEYS = frozenset({"clip_norm"})
    TRAINING: ClassVar[Mapping[str, Any]] = {
        "batch_size": 256,
        "clip_norm": 1.0,
        "optimizer": {"algorithm": "AdamW", "beta1": 0.9, "beta2": 0.999},
        "stages": {
            "autoencoder": {
                "max_steps": 3000,
                "learning_rate": {"decay": False, "alpha_0": 1e-3},
                "optimizer": {"weight_decay": 1e-5},
            },
            "flow": {
                "max_steps": 20_000,
                "learning_rate": {"decay": False, "alpha_0": 1e-4},
                "optimizer": {"weight_decay": 1e-6},
            },
        },
    }
    GENERATION_KEYS = frozenset(
        {"condition", "guidance", "solver", "n_steps", "tolerance", "library_size"}
    )
    SOLVERS = ("euler", "midpoint", "heun", "rk4", "dopri5")
    has_latents = True
    has_encoder = True

    type: Literal["CFGen"] = "CFGen"
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    flow: FlowConfig = FlowConfig()

    @property
    def named_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """``flow.condition_on``."""
        return {"flow.condition_on": self.flow.condition_on or ()}

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return ``flow.condition_on``, or all covariates of the data."""
        return _conditions(self.flow.condition_on, manifest, "model.flow.condition_on")

    def needed_columns(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the label, if dispersions depend on it."""
        by_label = self.autoencoder.inverse_dispersion == "gene-label"
        return (manifest.label,) if by_label else ()

    @property
    def makes_counts(self) -> bool:
        """Whether cells come as integer counts."""
        return True


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
        return _conditions(
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
        named = _conditions(self.fields, manifest, "model.fields")
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KlConfig:
    """The weight of the latent's divergence from its prior, which rises at first."""

    unit: Literal["epochs", "steps", "share"] = "epochs"
    """What `length` counts: epochs, in which the weight rises from one to the next;
    steps; or the share of all steps of the training."""
    length: Annotated[float, Field(ge=0)] = 400.0
    """Of the rise; 0 for none."""
    smallest: Annotated[float, Field(ge=0)] = 0.0
    largest: Annotated[float, Field(ge=0)] = 1.0

    @model_validator(mode="after")
    def _check(self) -> KlConfig:
        if self.unit == "share" and self.length > 1:
            msg = (
                f'length is {self.length:g} and unit is "share": the rise cannot be '
                "longer than the training. Give 0 to 1, or another unit"
            )
            raise ValueError(msg)
        if self.smallest > self.largest:
            msg = f"smallest is {self.smallest:g} but largest is {self.largest:g}"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LinearVaeConfig(ModelConfig):
    """LDVAE: a variational autoencoder of counts with a linear decoder.

    The original trains at most 400 epochs and at most 8 million cells (so that data of
    more than 20,000 cells get fewer epochs), with batches of 128 at a rate of 1e-3.
    """

    STAGES = ("vae",)
    TRAINING_KEYS = frozenset({"clip_norm"})
    TRAINING: ClassVar[Mapping[str, Any]] = {
        "max_steps": 8000,
        "batch_size": 128,
        "learning_rate": {"decay": False, "alpha_0": 1e-3},
        "optimizer": {
            "algorithm": "AdamL2",
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 0.01,
            "weight_decay": 1e-6,
        },
    }
    GENERATION_KEYS = frozenset({"condition", "latents", "library_size"})
    has_encoder = True
    draws_library_sizes = True

    type: Literal["LDVAE"] = "LDVAE"
    n_latent: Width = 10
    n_hidden: Width = 128
    """Units of every hidden layer of the encoders."""
    n_layers: Width = 1
    """Hidden layers of the latent's encoder; that of the library size has one."""
    dropout: Share = 0.1
    likelihood: Literal["negative_binomial", "zero_inflated", "poisson"] = (
        "negative_binomial"
    )
    """Of the counts; ``"zero_inflated"`` is a negative binomial with more zeros."""
    inverse_dispersion: Literal["gene", "gene-batch", "gene-label"] = "gene"
    """Whether a gene's dispersion is the same for all batches, or all labels."""
    batch_key: str | None = None
    """Covariate of technical batches, which the decoder and the prior of the library
    size know; null for none."""
    latent_distribution: Literal["normal", "logistic_normal"] = "normal"
    """With ``"logistic_normal"`` the decoder is given shares, the softmax of a normal
    latent."""
    observed_library: bool = False
    """Take a cell's total for its library size, in place of an encoder of it. More
    robust where cells are of very different kinds."""
    batch_norm: bool = True
    """Of encoders and decoder; that of the decoder also gives each gene its level."""
    running_variance: Literal["unbiased", "biased"] = "unbiased"
    """Which variance of a batch the running one follows: ``"unbiased"`` is that of the
    original, ``"biased"`` that of Keras' layer. Batches are always normalised by the
    biased one."""
    decoder_bias: bool = False
    initial_genes: Literal["random", "cells"] = "random"
    """What levels and dispersions of genes start from: ``"random"`` is what the
    original does, which takes thousands of steps to find them; ``"cells"`` takes
    those of the training cells."""
    kl: KlConfig = KlConfig()

    @model_validator(mode="after")
    def _batches_have_a_key(self) -> LinearVaeConfig:
        if self.inverse_dispersion == "gene-batch" and self.batch_key is None:
            msg = (
                'inverse_dispersion is "gene-batch", but batch_key is null: name the '
                "covariate of the batches"
            )
            raise ValueError(msg)
        return self

    @property
    def named_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """``batch_key``."""
        return {"batch_key": () if self.batch_key is None else (self.batch_key,)}

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return all covariates: cells start from training cells that have them."""
        self.batch_covariate(manifest)
        return tuple(manifest.covariates)

    def batch_covariate(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the covariate of batches, if there is one.

        Raises
        ------
        ConfigError
            If the data do not have it.
        """
        named = () if self.batch_key is None else (self.batch_key,)
        return _conditions(named, manifest, "model.batch_key")

    def needed_columns(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return those of batches and dispersions."""
        by_label = self.inverse_dispersion == "gene-label"
        label = (manifest.label,) if by_label else ()
        return tuple(dict.fromkeys((*label, *self.batch_covariate(manifest))))

    @property
    def makes_counts(self) -> bool:
        """Cells come as integer counts."""
        return True

    @property
    def source_cells(self) -> Literal["none", "any", "alike"]:
        """Training cells of the kind that is asked for."""
        return "alike"

    def as_asked(self, latents: str) -> ModelConfig:
        """Return parameters of which only what the decoder knows can be asked for."""
        if latents != "prior":
            return self
        own = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return PriorVaeConfig(**own)

    def kl_weight(self, step: int, training: Any, n_cells: int) -> float:
        """Return the weight of the latent's divergence in a step, from 0."""
        kl = self.kl
        done: float = step
        length = kl.length * (training.max_steps if kl.unit == "share" else 1)
        if kl.unit == "epochs":
            done = step * training.batch_size // n_cells
        progress = min(done / length, 1.0) if length else 1.0
        return kl.smallest + (kl.largest - kl.smallest) * progress

    def remarks(self, training: Any, n_cells: int) -> tuple[str, ...]:
        """Return the weight of the divergence at the end, if it is not the largest."""
        last = self.kl_weight(training.max_steps - 1, training, n_cells)
        if last >= self.kl.largest:
            return ()
        return (
            f"the weight of the latent's divergence (model.kl) ends at {last:.2f}, "
            f"below its largest {self.kl.largest:g}: its rise over {self.kl.length:g} "
            f"{self.kl.unit} is longer than the training",
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PriorVaeConfig(LinearVaeConfig):
    """LDVAE whose latents are drawn from the prior, which knows no covariates."""

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the covariate of batches, if there is one."""
        return self.batch_covariate(manifest)

    @property
    def source_cells(self) -> Literal["none", "any", "alike"]:
        """No cells."""
        return "none"


def _conditions(
    named: tuple[str, ...] | None, manifest: DatasetManifest, key: str
) -> tuple[str, ...]:
    """Return the named covariates, or all of the data; refuse unknown ones."""
    if named is None:
        return tuple(manifest.covariates)
    for name in named:
        if name not in manifest.covariates:
            msg = (
                f'{key}: the data have no covariate "{name}".'
                f"{did_you_mean(name, manifest.covariates)}\n    Covariates: "
                f"{', '.join(manifest.covariates)} (input_ds.covariates)."
            )
            raise ConfigError(msg)
    return named


AnyModelConfig = (
    GanConfig | CfgenConfig | CfdiffusionConfig | CycleConfig | LinearVaeConfig
)

MODEL_TYPES: Mapping[str, tuple[type[ModelConfig], str]] = {
    "scGAN": (GanConfig, "cellgan.models.gan.model:Gan"),
    "cscGAN": (GanConfig, "cellgan.models.gan.model:Gan"),
    "CFGen": (CfgenConfig, "cellgan.models.cfgen.model:LatentFlow"),
    "cfDiffusion": (
        CfdiffusionConfig,
        "cellgan.models.cfdiffusion.model:LatentDiffusion",
    ),
    "cycleAE": (CycleConfig, "cellgan.models.cycle.model:CycleAutoencoder"),
    "LDVAE": (LinearVaeConfig, "cellgan.models.ldvae.model:LinearVae"),
}
