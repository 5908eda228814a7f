"""What LDVAE can be told."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    ModelConfig,
    Share,
    Width,
    known_covariates,
)
from cellgan.data.manifest import DatasetManifest


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
        return known_covariates(named, manifest, "model.batch_key")

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
