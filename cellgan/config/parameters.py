"""What a parameter file says, as frozen dataclasses with ranges in their types.

Keys keep the spelling of the original scGAN files, which load unchanged.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    SerializeAsAny,
    model_validator,
)
from pydantic.dataclasses import dataclass

from cellgan.config.base import STRICT, ModelConfig
from cellgan.config.composition import Composition

BUILTIN_PREFIX = "builtin:"
BUILTIN_DATASETS = ("pbmc68k_reduced",)
H5MU = ".h5mu"
SCALE_PATTERN = re.compile(r"normalize_per_cell_LS_([1-9][0-9]*)")

NonNegative = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Moment = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClusteringParameters:
    """Where the label comes from: a clustering, or an obs column."""

    res: PositiveFloat | None = 0.15
    """Resolution; null takes the labels of the obs column `key`."""
    key: str | None = None
    """obs column that holds the labels, ``"cluster"`` when `res` is null."""
    method: Literal["louvain", "leiden"] = "louvain"

    @model_validator(mode="before")
    @classmethod
    def _key_alone_means_no_clustering(cls, values: Any) -> Any:
        given = dict(values if isinstance(values, dict) else values.kwargs or {})
        if given.get("key") is not None:
            given.setdefault("res", None)
        return given

    @model_validator(mode="after")
    def _one_source(self) -> ClusteringParameters:
        if self.res is not None and self.key is not None:
            msg = (
                f'res is {self.res} and key is "{self.key}": set res to null to use '
                f"the labels of that obs column, or key to null to cluster"
            )
            raise ValueError(msg)
        return self

    @property
    def label(self) -> str:
        """Name of the covariate that models are conditioned on."""
        return self.key or "cluster"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FilteringParameters:
    """Least expression of cells and genes that are kept; cells are filtered first."""

    min_cells: NonNegative = 3
    min_genes: NonNegative = 10


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SplitParameters:
    """How cells are divided into train, valid and test."""

    balanced_split: bool = True
    """Draw the same share of every label; otherwise draw from all cells at once."""
    split_seed: int | Literal["default"] = "default"
    test_cells: NonNegative = 0
    valid_cells: NonNegative = 2000
    by: str | None = None
    """obs column whose whole categories are held out, for example a donor. The
    categories of `test_values` and `valid_values` go there entirely, and the numbers
    `test_cells` and `valid_cells` are drawn from the rest."""
    test_values: tuple[str, ...] = ()
    valid_values: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _values_need_a_column(self) -> SplitParameters:
        held_out = (*self.test_values, *self.valid_values)
        if self.by is None and held_out:
            msg = 'test_values and valid_values need "by", the obs column they are of'
            raise ValueError(msg)
        if self.by is not None and not held_out:
            msg = f'by is "{self.by}" but test_values and valid_values are empty'
            raise ValueError(msg)
        twice = sorted(set(self.test_values) & set(self.valid_values))
        if twice:
            msg = f'"{twice[0]}" is in both test_values and valid_values'
            raise ValueError(msg)
        return self

    @property
    def seed(self) -> int:
        """`split_seed` as a number; ``"default"`` is 0."""
        return 0 if self.split_seed == "default" else self.split_seed


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AtacParameters:
    """Chromatin accessibility of the cells whose RNA is in the raw file."""

    raw_input: Annotated[str, Field(min_length=1)] | None = None
    """An .h5ad of the same cells, in any order; null: the modality "atac" of the .h5mu
    that holds the RNA. Beside chunks: a pattern of ``.npz`` matrices, one per chunk
    with its cells in the same order, or an .h5ad whose cells are named as those of
    chunks are (file and row, such as ``counts_1-0``)."""
    layer: str = "auto"
    """Where its counts are, as for RNA."""
    min_cells: NonNegative = 5
    """Peaks that are open in fewer cells go; those open in none go in any case."""
    values: Literal["counts", "binary"] = "counts"
    """``"binary"`` keeps whether a peak is open, and the library size is the number of
    open peaks."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ChunkParameters:
    """Cells in several ``.npz`` matrices (CSR, cells x genes) with a table each.

    ``raw_input`` is then a pattern such as ``"data/counts_*.npz"``.
    """

    metadata: Annotated[str, Field(min_length=1)]
    """Pattern of the tables, one per matrix in the same natural order: pickled pandas
    tables (nothing else is let in), ``.parquet``, ``.csv`` or ``.tsv``."""
    genes: Annotated[str, Field(min_length=1)] | None = None
    """Text file of gene names, one a line; null numbers them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class InputParameters:
    """The raw file and how it is processed; frozen at ``--process``."""

    raw_input: Annotated[str, Field(min_length=1)]
    """Path of the raw file or folder, or ``"builtin:pbmc68k_reduced"``."""
    counts: bool = True
    """Whether values must be non-negative integers. With false, non-negative values
    that are not integers (for example ambient-corrected counts) are accepted."""
    layer: str = "auto"
    """Where counts are: ``"X"``, ``"raw"``, the name of a layer, or ``"auto"``: the
    first of X, raw and the layer ``"counts"`` that holds counts."""
    clustering: ClusteringParameters = ClusteringParameters()
    covariates: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """obs columns that cells carry besides the label, which may be among them."""
    filtering: FilteringParameters = FilteringParameters()
    scale: str = "normalize_per_cell_LS_20000"
    split: SplitParameters = SplitParameters()
    record_values: Literal["counts", "normalized"] = "counts"
    """What the records hold; ``"normalized"`` is the form of the original scGAN."""
    atac: AtacParameters | None = None
    """Null means RNA alone."""
    chunks: ChunkParameters | None = None
    """Null means that `raw_input` is one file or folder."""
    missing: Literal["refuse", "drop", "unknown"] = "refuse"
    """What becomes of a cell without a value in a column that is used: processing
    stops, the cell is left out, or its value is ``"unknown"``."""

    @model_validator(mode="after")
    def _check(self) -> InputParameters:
        if not SCALE_PATTERN.fullmatch(self.scale):
            msg = (
                f'scale is "{self.scale}", expected "normalize_per_cell_LS_" and a '
                f"positive integer, for example normalize_per_cell_LS_20000"
            )
            raise ValueError(msg)
        name = self.raw_input.removeprefix(BUILTIN_PREFIX)
        if name != self.raw_input and name not in BUILTIN_DATASETS:
            known = ", ".join(BUILTIN_PREFIX + known for known in BUILTIN_DATASETS)
            msg = f'raw_input is "{self.raw_input}"; embedded data sets are: {known}'
            raise ValueError(msg)
        for covariate in self.covariates:
            if self.covariates.count(covariate) > 1:
                msg = f'covariates name "{covariate}" twice'
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_atac(self) -> InputParameters:
        if self.atac is None:
            return self
        if self.record_values == "normalized":
            msg = (
                'record_values is "normalized", the form of the original scGAN, which '
                'has no place for atac. Set it to "counts", or leave atac out'
            )
            raise ValueError(msg)
        if self.atac.raw_input is None and not self.raw_input.lower().endswith(H5MU):
            msg = (
                f"atac.raw_input is null, so raw_input must be an {H5MU} file with the "
                f'modalities "rna" and "atac"; it is "{self.raw_input}". Or name an '
                f".h5ad of the ATAC counts in atac.raw_input"
            )
            raise ValueError(msg)
        suffixes = (".h5ad",) if self.chunks is None else (".h5ad", ".npz")
        if self.atac.raw_input and not self.atac.raw_input.lower().endswith(suffixes):
            others = "" if self.chunks is None else " or a pattern of .npz chunks"
            msg = (
                f'atac.raw_input is "{self.atac.raw_input}", expected an .h5ad file'
                f"{others}"
            )
            raise ValueError(msg)
        return self

    @property
    def other_covariates(self) -> tuple[str, ...]:
        """`covariates` without the label, by name."""
        return tuple(sorted({*self.covariates} - {self.clustering.label}))

    @property
    def target_library_size(self) -> int:
        """The integer at the end of `scale`."""
        return int(self.scale.rsplit("_", 1)[1])


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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GenerationParameters:
    """What ``--generate`` makes when the command line does not say."""

    cells_no: (
        Literal["like-data"] | tuple[NonNegative, ...] | dict[str, NonNegative]
    ) = "like-data"
    """One number per label, numbers by label, or ``"like-data"``: as many cells of
    each label as were trained on."""
    seed: int = 0
    counts: bool = False
    """Turn library-size-normalised cells into integer counts."""
    condition: dict[str, str] = dataclasses.field(default_factory=dict)
    """Category, by covariate, of all cells; what is not named is drawn as it goes with
    the rest among the training cells."""
    guidance: dict[str, float] = dataclasses.field(default_factory=dict)
    """Guidance scale by covariate: 1 is plainly conditional, 0 ignores it, more is
    more typical. 1 where not named."""
    solver: Literal["euler", "midpoint", "heun", "rk4", "dopri5", "ddpm", "ddim"] = (
        "midpoint"
    )
    """How noise is followed to a cell: a flow by the first five, a diffusion by
    ``"ddpm"``, which draws every step, or ``"ddim"``, which draws none with `eta` 0."""
    n_steps: Positive = 10
    """Steps of every solver but ``"dopri5"``, which chooses its own."""
    eta: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of fresh noise in the steps of ``"ddim"``."""
    cache_interval: Positive = 1
    """The whole denoiser is computed in every so-manieth step, and its outer layers
    alone in between; 1 for all of it in every step."""
    cache_branch: NonNegative = 0
    """How far in the outer layers reach, from 0."""
    cache_spacing: Literal["even", "uneven"] = "even"
    """``"uneven"``: as many whole steps, most of them where there is little noise."""
    tolerance: PositiveFloat = 1e-3
    """Absolute and relative error that a step of ``"dopri5"`` may make."""
    library_size: Positive | Literal["modelled", "copied"] = "modelled"
    """Library size of RNA: a number for all cells; drawn from the log-normal of the
    training cells with the same covariates, or as the model has learned it; or that of
    one of these cells."""
    latents: Literal["posterior", "prior"] = "posterior"
    """Where LDVAE takes latents from: the posteriors of training cells with the
    covariates that are asked for, or the prior, which knows of no label."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationParameters:
    """How ``--evaluate`` compares generated with held-out cells."""

    max_cells: Annotated[int, Field(ge=10)] = 5000
    """Cells of each side that are compared, at most."""
    seed: int = 0
    """Seed of the cells that are drawn, of folds, forests and resamples."""


@dataclass(frozen=True, kw_only=True)
class ExperimentParameters:
    """One entry of ``experiments``."""

    input_ds: InputParameters
    training: TrainingParameters
    model: SerializeAsAny[ModelConfig]
    generation: GenerationParameters
    evaluation: EvaluationParameters = EvaluationParameters()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ExpParam:
    """Settings shared by all experiments of a file."""

    experiments_dir: Annotated[str, Field(min_length=1)]
    GPU: tuple[NonNegative, ...] = (0,)
    """GPU ids; experiments run in parallel, one per id. Empty means the CPU."""


@dataclass(frozen=True, kw_only=True)
class StudyParameters:
    """An entry of ``experiments`` that has ``composition`` in place of ``input_ds``."""

    composition: Composition
    training: TrainingParameters
    model: SerializeAsAny[ModelConfig]
    generation: GenerationParameters
    evaluation: EvaluationParameters = EvaluationParameters()


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A whole parameter file."""

    exp_param: ExpParam
    experiments: Mapping[str, ExperimentParameters]
    studies: Mapping[str, StudyParameters] = dataclasses.field(default_factory=dict)


def field_names(record: type) -> tuple[str, ...]:
    """Return the keys of a record."""
    return tuple(field.name for field in dataclasses.fields(record))
