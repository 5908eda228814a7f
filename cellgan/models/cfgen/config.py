"""What CFGen can be told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    LogRange,
    ModelConfig,
    Share,
    Width,
    Widths,
    known_covariates,
)
from cellgan.data.manifest import DatasetManifest
from cellgan.errors import ConfigError


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
    imports_weights = True

    type: Literal["CFGen"] = "CFGen"
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    flow: FlowConfig = FlowConfig()

    @property
    def named_conditions(self) -> Mapping[str, tuple[str, ...]]:
        """``flow.condition_on``."""
        return {"flow.condition_on": self.flow.condition_on or ()}

    def conditions(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return ``flow.condition_on``, or all covariates of the data."""
        return known_covariates(
            self.flow.condition_on, manifest, "model.flow.condition_on"
        )

    def needed_columns(self, manifest: DatasetManifest) -> tuple[str, ...]:
        """Return the label, if dispersions depend on it."""
        by_label = self.autoencoder.inverse_dispersion == "gene-label"
        return (manifest.label,) if by_label else ()

    @property
    def makes_counts(self) -> bool:
        """Whether cells come as integer counts."""
        return True

    def settled(self, input_ds: Any, where: str) -> CfgenConfig:
        """Refuse what is said of ATAC where there is none."""
        if input_ds.atac is not None:
            return self
        untouched = AutoencoderConfig()
        said = {
            f"autoencoder.{key}": getattr(self.autoencoder, key)
            for key in ("atac_layers", "atac_weight")
            if getattr(self.autoencoder, key) != getattr(untouched, key)
        }
        if "atac" in (self.flow.log_library_sizes or {}):
            said["flow.log_library_sizes"] = self.flow.log_library_sizes
        for key, value in said.items():
            msg = (
                f"{where}.model.{key} is {json.dumps(value)}, but input_ds.atac is "
                "null: there is no ATAC. Leave it out, or say in input_ds.atac where "
                "ATAC is."
            )
            raise ConfigError(msg)
        return self
