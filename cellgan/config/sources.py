"""Files that cells of a composition study are drawn from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.config.base import STRICT, NonNegative, Positive
from cellgan.errors import did_you_mean

Name = Annotated[str, Field(min_length=1)]


OPERATORS = ("==", "!=", "in", "not in", "<", "<=", ">", ">=", "is null", "not null")


LISTS = ("in", "not in")


ORDERS = ("<", "<=", ">", ">=")


Value = str | bool | int | float | tuple[str | bool | int | float, ...] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Filter:
    """A condition on a column of obs that cells must meet."""

    column: Name
    op: str
    """One of `OPERATORS`. A missing value meets ``"is null"``, ``"!="`` and ``"not
    in"``, and nothing else."""
    value: Value = None

    @model_validator(mode="after")
    def _check(self) -> Filter:
        if self.op not in OPERATORS:
            msg = (
                f'op is "{self.op}" (column "{self.column}").'
                f"{did_you_mean(self.op, OPERATORS)} Operators: {', '.join(OPERATORS)}"
            )
            raise ValueError(msg)
        is_list, is_none = isinstance(self.value, tuple), self.value is None
        if self.op in ("is null", "not null"):
            wrong = "" if is_none else "no value"
        elif self.op in LISTS:
            wrong = "" if is_list else "a list of values"
        elif self.op in ORDERS:
            is_number = isinstance(self.value, int | float) and self.value is not True
            wrong = "" if is_number else "a number"
        else:
            wrong = "a single value" if is_list or is_none else ""
        if wrong:
            msg = f'op "{self.op}" of column "{self.column}" takes {wrong}'
            raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Quality:
    """Which cells are good enough, on all genes of their own file."""

    min_counts: NonNegative = 1
    """Least total counts."""
    max_counts: Positive | None = None
    min_genes: NonNegative = 1
    max_mito_fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    """Largest share of mitochondrial counts; null looks for none."""
    mito_prefix: Name | None = None
    """What names of mitochondrial genes begin with."""
    mito_genes: tuple[Name, ...] = ()
    """Their names or ids. With neither: names that begin with ``MT-`` or ``mt-`` in any
    column of var, or the Ensembl ids of human mitochondrial genes."""
    mito_column: Name | None = None
    """Column of obs that holds the share; no genes are looked at then."""

    @model_validator(mode="after")
    def _check(self) -> Quality:
        ways = (self.mito_prefix, self.mito_genes or None, self.mito_column)
        if sum(way is not None for way in ways) > 1:
            msg = "give one of mito_prefix, mito_genes and mito_column"
            raise ValueError(msg)
        if self.max_mito_fraction is None and any(ways):
            msg = "mitochondrial genes are named, but max_mito_fraction is null"
            raise ValueError(msg)
        if self.max_counts is not None and self.max_counts < self.min_counts:
            msg = f"max_counts {self.max_counts} is below min_counts {self.min_counts}"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Stratify:
    """A column whose values every slot has in the same numbers or shares."""

    by: Name
    how: Literal["proportional", "equal"] = "proportional"
    """``"proportional"``: as all eligible cells; ``"equal"``: as many of each value, as
    long as there are some."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Source:
    """A file of raw counts, and which of its cells may be used."""

    file: Name
    layer: str = "auto"
    """``"X"``, ``"raw"`` or a layer; ``"auto"``: the first of X, raw and ``"counts"``
    that holds counts."""
    gene_column: Name | None = None
    """Column of var with the ids that sources are matched by; null: names of genes."""
    gene_table: Name | None = None
    """Table (.csv, .tsv) whose first column is looked up, and the second taken, as
    symbol and id; a gene that is not in it is left out."""
    strip_version: bool = False
    """Cut ids at the first dot: ENSG00000139618.15 is ENSG00000139618."""
    duplicate_genes: Literal["sum", "first", "drop", "refuse"] = "sum"
    """What becomes of several genes of one id: their counts are added, the first
    stands, none of them does, or processing stops."""
    cell_column: Name | None = None
    """Column of obs with names of cells; null: those of rows."""
    group: Name | None = None
    """Column of obs with who a cell is of, such as a donor."""
    filters: tuple[Filter, ...] = ()
    qc: Quality = Quality()
    stratify: Stratify | None = None
    cells: Positive | None = None
    """Cells of a slot; null: as many as the largest part asks for."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DaskReader:
    """Read sources by Dask: a cluster of this machine, or one that runs already."""

    scheduler: Name = "local"
    """``"local"``; the address of a scheduler, ``tcp://...``; or the path of the file
    that a scheduler writes (``dask scheduler --scheduler-file``), as on SLURM."""
    workers: Positive = 2
    """Of a local cluster."""
    cells_at_once: Positive = 2**13
    """Cells of a task."""
