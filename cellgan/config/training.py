"""The training block, and what of it differs between stages."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from pydantic import (
    Field,
    model_validator,
)
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    Moment,
    Positive,
    PositiveFloat,
    field_names,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LearningRateParameters:
    """How the rate changes over ``max_steps``, from `alpha_0` on."""

    decay: bool | Literal["linear"] = True
    """true: by the same factor at every step, to `alpha_final`; ``"linear"``: in a
    straight line to 0; false: not at all."""
    alpha_0: PositiveFloat = 1e-4
    alpha_final: PositiveFloat = 1e-5


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerParameters:
    """Optimiser of every network of a stage."""

    algorithm: Literal["AMSGrad", "Adam", "AdamW", "AdamL2"] = "AMSGrad"
    """``"AdamL2"`` adds `weight_decay` times the weights to the gradients."""
    beta1: Moment = 0.5
    beta2: Moment = 0.9
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment: with AdamW and AdamL2 of the
    bias-corrected one, otherwise of the uncorrected one."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of every weight, times the rate, that an update of AdamW takes away; with
    AdamL2, the factor of the weights in their gradients."""

    @model_validator(mode="after")
    def _decay_needs_adamw(self) -> OptimizerParameters:
        if self.weight_decay and self.algorithm not in ("AdamW", "AdamL2"):
            msg = (
                f"weight_decay is {self.weight_decay} but algorithm is "
                f'"{self.algorithm}", which has none: set algorithm to "AdamW"'
            )
            raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StageParameters:
    """What may differ between the stages of a model that is trained in several."""

    max_steps: Positive = 1_000_000
    batch_size: Positive = 128
    learning_rate: LearningRateParameters = LearningRateParameters()
    optimizer: OptimizerParameters = OptimizerParameters()
    clip_norm: PositiveFloat | None = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TrainingParameters:
    """How the model is trained; frozen at the first ``--train``.

    A frequency is in steps; 0 or less switches its action off. The trained model is
    saved after the last step in any case.
    """

    max_steps: Positive = 1_000_000
    learning_rate: LearningRateParameters = LearningRateParameters()
    optimizer: OptimizerParameters = OptimizerParameters()
    batch_size: Positive = 128
    critic_iters: Positive = 5
    """Critic updates before the one that goes with each generator update."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of all gradients of an update together; null leaves them."""
    stages: dict[str, StageParameters] = dataclasses.field(default_factory=dict)
    """By stage of the model, what differs from the keys above: `max_steps`,
    `batch_size`, `learning_rate`, `optimizer`, `clip_norm`."""
    checkpoint: str | None = None
    """Folder to start from (``<experiment>/job``) when this experiment has no
    checkpoint of its own."""
    progress_freq: int = 10
    validation_freq: int = 1000
    save_freq: int = 1000
    summary_freq: int = 50
    seed: int = 0
    """Root seed of weights, noise and the order of cells."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the networks; weights and losses stay float32."""
    jit: bool | Literal["auto"] = "auto"
    """Compile with XLA: ``"auto"`` does everything on a GPU and, on a CPU, what gains
    by it (likelihoods, updates that go number by number, what stands between products
    in sampling a diffusion, the small network of a flow); false compiles nothing."""
    steps_per_call: Positive = 10
    """Most steps run by one call of the compiled step; no effect on results."""
    data_source: Literal["auto", "memory", "disk"] = "auto"
    """Where batches are drawn from; ``"auto"`` takes memory when the cells fit."""
    distribution: Literal["auto", "one_device", "mirrored", "multi_worker"] = "auto"
    """``"mirrored"`` trains one experiment on all GPUs of ``exp_param.GPU``;
    ``"multi_worker"`` on all tasks of ``TF_CONFIG`` or SLURM, which ``"auto"`` does
    when there are several."""
    embedding: Literal["tsne", "umap"] = "tsne"
    """The map of real and generated cells drawn at ``validation_freq``."""

    @property
    def uses_all_gpus(self) -> bool:
        """Whether one experiment takes every GPU there is."""
        return self.distribution in ("mirrored", "multi_worker")

    def of_stage(self, name: str) -> TrainingParameters:
        """Return these parameters as one stage is trained with them."""
        if name not in self.stages:
            return self
        stage = self.stages[name]
        own = {key: getattr(stage, key) for key in field_names(StageParameters)}
        return dataclasses.replace(self, **own)
