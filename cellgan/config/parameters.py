"""What a parameter file says, checked before anything is touched.

`load_parameters` reads a ``parameters.json`` into frozen dataclasses. Every key is
known here, or it is an error that names the nearest one; types, ranges and consistency
are checked before any folder is made. Keys keep the spelling of the original scGAN
files, which load unchanged.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from cellgan.config.composition import Composition, written_out
from cellgan.config.model_types import (
    MODEL_TYPES,
    STRICT,
    AnyModelConfig,
    CfgenConfig,
    GanConfig,
    ModelConfig,
)
from cellgan.errors import ConfigError, did_you_mean

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
    that holds the RNA."""
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
        if self.chunks is not None:
            msg = "chunks are given with atac: cells in chunks have RNA alone"
            raise ValueError(msg)
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
        if self.atac.raw_input and not self.atac.raw_input.lower().endswith(".h5ad"):
            msg = f'atac.raw_input is "{self.atac.raw_input}", expected an .h5ad file'
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
        own = {key: getattr(stage, key) for key in _keys(StageParameters)}
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
    model: AnyModelConfig
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
    model: AnyModelConfig
    generation: GenerationParameters
    evaluation: EvaluationParameters = EvaluationParameters()


@dataclasses.dataclass(frozen=True)
class Parameters:
    """A whole parameter file."""

    exp_param: ExpParam
    experiments: Mapping[str, ExperimentParameters]
    studies: Mapping[str, StudyParameters] = dataclasses.field(default_factory=dict)


def load_parameters(path: str | Path) -> Parameters:
    """Read and check a parameter file.

    Raises
    ------
    ConfigError
        If the file cannot be read, is not JSON, or holds an unknown key or a wrong
        value. Several problems are listed in one message.
    """
    path = Path(path)
    document = read_json(path)
    check_keys(document, ("exp_param", "experiments"), path.name, required=True)
    exp_param = _parse(ExpParam, document["exp_param"], f"{path.name}: exp_param")
    entries = document["experiments"]
    where = f"{path.name}: experiments"
    if not isinstance(entries, dict) or not entries:
        msg = f"{where}: expected an object with one entry per experiment."
        raise ConfigError(msg)
    experiments, studies = {}, {}
    for name, block in entries.items():
        if not re.fullmatch(r"[\w][\w .+-]*", name):
            msg = (
                f'{where}: "{name}" cannot be a folder name. Use letters, digits, '
                f'"_", "-", "." and spaces.'
            )
            raise ConfigError(msg)
        if isinstance(block, dict) and "composition" in block:
            studies[name] = parse_study(block, f"{where}.{name}")
        else:
            experiments[name] = parse_experiment(block, f"{where}.{name}")
    return Parameters(exp_param, experiments, studies)


def parse_study(block: Mapping[str, Any], where: str) -> StudyParameters:
    """Check the blocks of a composition study; `where` names them in messages.

    What the model and its training are told is checked as that of an experiment with
    the study's label and covariates.
    """
    check_keys(block, _keys(StudyParameters), where)
    written = written_out(block["composition"])
    composition = _parse(Composition, written, f"{where}.composition")
    rest = {key: of for key, of in block.items() if key != "composition"}
    input_ds = {
        "raw_input": "composition",
        "clustering": {"res": None, "key": composition.label},
        "covariates": list(composition.covariates),
        "scale": composition.scale,
    }
    as_one = parse_experiment({**rest, "input_ds": input_ds}, where)
    return StudyParameters(
        composition=composition,
        training=as_one.training,
        model=as_one.model,
        generation=as_one.generation,
        evaluation=as_one.evaluation,
    )


def parse_experiment(block: Any, where: str) -> ExperimentParameters:
    """Check one experiment's blocks; `where` names them in messages."""
    names = [field.name for field in dataclasses.fields(ExperimentParameters)]
    check_keys(block, (*names, "preprocessed"), where, required=("input_ds",))
    model_block = block.get("model", {})
    if not isinstance(model_block, dict):
        msg = f"{where}.model: expected an object, found {json.dumps(model_block)}."
        raise ConfigError(msg)
    model_type = model_block.get("type", "cscGAN")
    if model_type not in MODEL_TYPES:
        msg = (
            f"{where}.model: type is {json.dumps(model_type)}."
            f"{did_you_mean(str(model_type), MODEL_TYPES)}\n"
            f"    Model types: {', '.join(MODEL_TYPES)}."
        )
        raise ConfigError(msg)
    family = MODEL_TYPES[model_type][0]
    generation = block.get("generation", {})
    if isinstance(generation, dict):
        generation = _laid_over(family.GENERATION, generation)
    model = _parse(family, model_block, f"{where}.model")
    parameters = ExperimentParameters(
        input_ds=_parse(InputParameters, block["input_ds"], f"{where}.input_ds"),
        training=_parse_training(block.get("training", {}), model, where),
        model=model,
        generation=_parse(GenerationParameters, generation, f"{where}.generation"),
        evaluation=_parse(
            EvaluationParameters, block.get("evaluation", {}), f"{where}.evaluation"
        ),
    )
    records: dict[str, Any] = {
        "training": parameters.training,
        "generation": parameters.generation,
    }
    for name, stage in parameters.training.stages.items():
        records[f"training.stages.{name}"] = stage
    for name, record in records.items():
        _refuse_keys_of_others(record, name, parameters.model, where)
    if parameters.model.makes_counts and (
        parameters.input_ds.record_values == "normalized"
    ):
        msg = (
            f'{where}.input_ds: record_values is "normalized", but {model_type} learns '
            'from counts. Set it to "counts", or leave it out.'
        )
        raise ConfigError(msg)
    for name in family.STAGES:
        parameters.model.check_training(
            parameters.training.of_stage(name), f"{where}.training"
        )
    parameters.model.check_generation(parameters.generation, f"{where}.generation")
    _check_covariates(parameters, where)
    _check_atac_keys(parameters, where)
    return _resolve_library_size(parameters, where)


def _check_atac_keys(parameters: ExperimentParameters, where: str) -> None:
    """Refuse what is said of ATAC where there is none."""
    model = parameters.model
    if parameters.input_ds.atac is not None or not isinstance(model, CfgenConfig):
        return
    ours, untouched = model.autoencoder, type(model.autoencoder)()
    given = {
        f"autoencoder.{key}": getattr(ours, key)
        for key in ("atac_layers", "atac_weight")
        if getattr(ours, key) != getattr(untouched, key)
    }
    if "atac" in (model.flow.log_library_sizes or {}):
        given["flow.log_library_sizes"] = model.flow.log_library_sizes
    for key, value in given.items():
        msg = (
            f"{where}.model.{key} is {json.dumps(value)}, but input_ds.atac is null: "
            f"there is no ATAC. Leave it out, or say in input_ds.atac where ATAC is."
        )
        raise ConfigError(msg)


def _check_covariates(parameters: ExperimentParameters, where: str) -> None:
    """Refuse conditions and guidance by what are not going to be covariates."""
    source = parameters.input_ds
    known = (source.clustering.label, *source.covariates)
    named: dict[str, Iterable[str]] = {
        **{f"model.{key}": of for key, of in parameters.model.named_conditions.items()},
        "generation.condition": parameters.generation.condition,
        "generation.guidance": parameters.generation.guidance,
    }
    for key, names in named.items():
        for name in names:
            if name not in known:
                msg = (
                    f'{where}.{key}: no covariate "{name}".{did_you_mean(name, known)}'
                    f"\n    Covariates: {', '.join(known)} (clustering.key and "
                    "covariates of input_ds)."
                )
                raise ConfigError(msg)


def _parse_training(block: Any, model: ModelConfig, where: str) -> TrainingParameters:
    """Lay the file's values over those of the family, and a stage's over both."""
    where = f"{where}.training"
    if not isinstance(block, dict):
        msg = f"{where}: expected an object, found {json.dumps(block)[:60]}."
        raise ConfigError(msg)
    given, ours = dict(block), dict(model.TRAINING)
    given_stages, our_stages = given.pop("stages", {}), ours.pop("stages", {})
    check_keys(given_stages, model.stages, f"{where}.stages")
    training = _parse(TrainingParameters, _laid_over(ours, given), where)
    keys = _keys(StageParameters)
    stages = {}
    for name in model.stages:
        if name in given_stages or name in our_stages:
            own = given_stages.get(name, {})
            check_keys(own, keys, f"{where}.stages.{name}")
            merged = _laid_over(ours, our_stages.get(name, {}))
            merged = _laid_over(merged, {k: v for k, v in given.items() if k in keys})
            merged = _laid_over(merged, own)
            stages[name] = _parse(StageParameters, merged, f"{where}.stages.{name}")
    return dataclasses.replace(training, stages=stages)


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return `below` with the values of `above` instead of its own, key by key."""
    merged = dict(below)
    for key, value in above.items():
        is_block = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _laid_over(merged[key], value) if is_block else value
    return merged


def _refuse_keys_of_others(
    parameters: Any, block: str, model: ModelConfig, where: str
) -> None:
    """Refuse a changed key that has a meaning for other families only."""
    attribute = f"{block.partition('.')[0].upper()}_KEYS"
    families = {family for family, _ in MODEL_TYPES.values()}
    of_some = frozenset().union(*(getattr(family, attribute) for family in families))
    untouched = type(parameters)()
    of_others = of_some - getattr(model, attribute)
    for key in sorted(of_others & {*_keys(type(parameters))}):
        if getattr(parameters, key) != getattr(untouched, key):
            types = [
                name
                for name, (family, _) in MODEL_TYPES.items()
                if key in getattr(family, attribute)
            ]
            msg = (
                f"{where}.{block}: {key} has no meaning for the model type "
                f'"{model.type}", only for {", ".join(types)}. Leave it out.'
            )
            raise ConfigError(msg)


def _keys(record: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record))


def with_generation(
    parameters: ExperimentParameters, given: Mapping[str, Any]
) -> ExperimentParameters:
    """Return parameters with some keys of ``generation`` from the command line.

    Raises
    ------
    ConfigError
        As `parse_experiment`, naming the option.
    """
    block = {**as_json(parameters.generation), **given}
    keys = "|".join(_keys(GenerationParameters))
    try:
        generation = _parse(GenerationParameters, block, "command line")
        _refuse_keys_of_others(
            generation, "generation", parameters.model, "command line"
        )
        parameters.model.check_generation(generation, "command line")
    except ConfigError as error:
        named = re.sub(
            rf"command line(?:: |\.(?:generation: )?)({keys})",
            lambda of: f"--{of[1].replace('_', '-')}",
            str(error),
        )
        raise ConfigError(named) from None
    chooses_steps = generation.solver == "dopri5"
    for key in ("n_steps",) if chooses_steps else ("tolerance",):
        if key in given:
            msg = (
                f"--{key.replace('_', '-')} has no effect on the solver "
                f"{generation.solver}, which "
                + ("chooses its steps." if chooses_steps else "has fixed steps.")
            )
            raise ConfigError(msg)
    return dataclasses.replace(parameters, generation=generation)


def as_used(parameters: ExperimentParameters | StudyParameters) -> Any:
    """Return parameters as plain JSON values, training settings where they count.

    Of a model that is trained in stages, those are each stage's own; such keys of the
    ``training`` block itself are left out.
    """
    document, training = as_json(parameters), parameters.training
    if len(parameters.model.STAGES) > 1 or training.stages:
        keys = _keys(StageParameters)
        document["training"] = {
            key: of for key, of in document["training"].items() if key not in keys
        }
        document["training"]["stages"] = {
            name: {key: as_json(training.of_stage(name))[key] for key in keys}
            for name in parameters.model.STAGES
        }
    return document


def as_json(parameters: Any) -> Any:
    """Return a parameter record, defaults included, as plain JSON values."""
    return json.loads(TypeAdapter(type(parameters)).dump_json(parameters))


def read_json(path: Path) -> Any:
    """Read a JSON file; a key given twice, or text that is not JSON, is an error."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        msg = f"{path}: no such file."
        raise ConfigError(msg) from None
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{path}: cannot be read: {error}."
        raise ConfigError(msg) from None
    try:
        return json.loads(text, object_pairs_hook=_refuse_duplicates)
    except json.JSONDecodeError as error:
        msg = (
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: "
            f"{error.msg}."
        )
        raise ConfigError(msg) from None
    except ConfigError as error:
        msg = f"{path}: {error}"
        raise ConfigError(msg) from None


def check_keys(
    block: Any,
    known: Sequence[str],
    where: str,
    *,
    required: bool | Sequence[str] = (),
) -> None:
    """Refuse a block that is no object, has unknown keys or lacks required ones."""
    if not isinstance(block, dict):
        msg = f"{where}: expected an object, found {json.dumps(block)[:60]}."
        raise ConfigError(msg)
    for key in block:
        if key not in known:
            raise ConfigError(_unknown_key(where, key, known))
    needed = known if required is True else (required or ())
    for key in needed:
        if key not in block:
            msg = f'{where}: "{key}" is missing.'
            raise ConfigError(msg)


def _resolve_library_size(
    experiment: ExperimentParameters, where: str
) -> ExperimentParameters:
    """Give ``output_LSN`` its number, and refuse one that disagrees with ``scale``."""
    scale = experiment.input_ds.target_library_size
    if not isinstance(experiment.model, GanConfig):
        return experiment
    output = experiment.model.output_LSN
    if output == "scale":
        model = dataclasses.replace(experiment.model, output_LSN=scale)
        return dataclasses.replace(experiment, model=model)
    if output is not None and output != scale:
        msg = (
            f"{where}.model: output_LSN is {output} but input_ds.scale is "
            f'"{experiment.input_ds.scale}"; the critic would tell the two apart by '
            f"their totals.\n    Set output_LSN to {scale}, or leave it out."
        )
        raise ConfigError(msg)
    return experiment


def _parse(record: type, block: Any, where: str) -> Any:
    if not isinstance(block, dict):
        msg = f"{where}: expected an object, found {json.dumps(block)[:60]}."
        raise ConfigError(msg)
    try:
        return TypeAdapter(record).validate_json(json.dumps(block))
    except ValidationError as error:
        problems = _describe(error, record, where)
        raise ConfigError("\n".join(problems)) from None


def _describe(error: ValidationError, record: type, where: str) -> list[str]:
    """One line per key: where, what was found, what is expected."""
    lines: dict[str, list[str]] = {}
    for problem in error.errors(include_url=False):
        keys, owner = _locate(problem["loc"], record)
        place = ".".join([where, *keys])
        if problem["type"] == "unexpected_keyword_argument":
            known = [field.name for field in dataclasses.fields(owner)]
            parent = ".".join([where, *keys[:-1]])
            lines[place] = [_unknown_key(parent, keys[-1], known)]
        elif problem["type"] == "missing":
            lines[place] = [
                f'{".".join([where, *keys[:-1]])}: "{keys[-1]}" is missing.'
            ]
        elif problem["type"] == "value_error":
            lines[place] = [f"{place}: {problem['ctx']['error']}."]
        elif problem["type"] != "too_short" or place not in lines:
            expected = problem["msg"].removeprefix("Input should be ")
            lines.setdefault(
                place, [f"{place}: {json.dumps(problem['input'])[:60]} found, expected"]
            ).append(expected)
    return [
        entry[0] if len(entry) == 1 else f"{entry[0]} {' or '.join(entry[1:])}."
        for entry in lines.values()
    ]


def _locate(location: Sequence[str | int], record: type) -> tuple[list[str], Any]:
    """Split pydantic's location into our keys and the record that owns the last.

    Locations go on with the names of union members, which are no keys of the file.
    """
    keys: list[str] = []
    owner: Any = record
    current: Any = record
    for part in location:
        inside = typing.get_args(current) if typing.get_origin(current) else ()
        if dataclasses.is_dataclass(current):
            owner = current
            keys.append(str(part))
            current = _kind_at(current, str(part))
        elif typing.get_origin(current) in (dict, tuple) and any(
            map(dataclasses.is_dataclass, inside)
        ):
            keys.append(str(part))
            current = next(filter(dataclasses.is_dataclass, inside))
    return keys, owner


def _kind_at(owner: Any, key: str) -> Any:
    """Return what a key of a record holds: a record or several, perhaps or null."""
    annotation = typing.get_type_hints(owner).get(key)
    if isinstance(annotation, types.UnionType):
        kinds = [kind for kind in annotation.__args__ if kind is not types.NoneType]
        return kinds[0] if len(kinds) == 1 else None
    return annotation


def _unknown_key(where: str, key: str, known: Sequence[str]) -> str:
    return (
        f'{where}: unknown key "{key}".{did_you_mean(key, known)}\n'
        f"    Keys allowed here: {', '.join(sorted(known))}."
    )


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    block: dict[str, Any] = {}
    for key, value in pairs:
        if key in block:
            msg = f'the key "{key}" is given twice in one object.'
            raise ConfigError(msg)
        block[key] = value
    return block
