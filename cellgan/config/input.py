"""The input_ds block: the raw file, and how it is processed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    model_validator,
)
from pydantic.dataclasses import dataclass

from cellgan.config.base import (
    STRICT,
    NonNegative,
    PositiveFloat,
)

BUILTIN_PREFIX = "builtin:"


BUILTIN_DATASETS = ("pbmc68k_reduced",)


H5MU = ".h5mu"


SCALE_PATTERN = re.compile(r"normalize_per_cell_LS_([1-9][0-9]*)")


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
