"""The model types one can name in ``model.type``, and what each can be told.

`MODEL_TYPES` is a literal table: name -> (configuration, "module:Class"). The class is
imported when a model is built, never before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.errors import ConfigError, did_you_mean
from cellgan.manifest import DatasetManifest

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
    makes_counts: ClassVar[bool] = False
    """Whether cells come as integer counts."""
    has_latents: ClassVar[bool] = False
    """Whether real cells can be taken to the noise they come from, and back."""

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the covariates that cells can be asked for by.

        Raises
        ------
        ConfigError
            If the parameters name one that the data do not have.
        """
        return (manifest.label,)

    def knows_labels(self, manifest: DatasetManifest) -> bool:
        """Return whether cells of a chosen label can be asked for."""
        return manifest.label in self.conditions(manifest)


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
    input_transform: Literal["log1p", "proportions", "log1p_proportions"] = "log1p"
    """What encoders are given of the counts; binary ATAC is given as it is."""
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
    makes_counts = True
    has_latents = True

    type: Literal["CFGen"] = "CFGen"
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    flow: FlowConfig = FlowConfig()

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return ``flow.condition_on``, or all covariates of the data."""
        named = self.flow.condition_on
        if named is None:
            return tuple(manifest.covariates)
        for name in named:
            if name not in manifest.covariates:
                msg = (
                    f'model.flow.condition_on: the data have no covariate "{name}".'
                    f"{did_you_mean(name, manifest.covariates)}\n    Covariates: "
                    f"{', '.join(manifest.covariates)} (input_ds.covariates)."
                )
                raise ConfigError(msg)
        return named


AnyModelConfig = GanConfig | CfgenConfig

MODEL_TYPES: Mapping[str, tuple[type[ModelConfig], str]] = {
    "scGAN": (GanConfig, "cellgan.models.gan:Gan"),
    "cscGAN": (GanConfig, "cellgan.models.gan:Gan"),
    "CFGen": (CfgenConfig, "cellgan.models.latent_flow:LatentFlow"),
}
