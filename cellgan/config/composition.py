"""What a ``composition`` block says: which cells of which files are trained on.

A study is an entry of ``experiments`` that has ``composition`` in place of
``input_ds``. Sources say which cells there are to draw from, mixtures which of them
make a corpus, evaluations what every model is judged on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from cellgan.config.base import STRICT, NonNegative, Positive
from cellgan.config.sources import DaskReader, Name, Source
from cellgan.errors import did_you_mean

METRICS = ("r2", "correlation", "r2_all_genes", "nll", "elbo")
"""Of models that reconstruct; of others, distances of distributions."""


Share = Annotated[float, Field(gt=0, le=1)]
RESERVED = ("report", "evaluations")
"""Folders of a study that no model has."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Part:
    """Cells of a source in a mixture.

    Without a number they are as many as the source's `cells`, or all there are.
    """

    source: Name
    slot: NonNegative = 0
    """A source's eligible cells are in one order per seed; slot j is the j-th block of
    it. The same slot is the same cells in every mixture, another one is disjoint."""
    cells: Positive | Literal["all"] | None = None
    fraction: Share | None = None
    """Of the source's eligible cells."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Share of the mixture's `total_cells`, relative to the other weights."""

    @model_validator(mode="after")
    def _one_number(self) -> Part:
        if sum(n is not None for n in (self.cells, self.fraction, self.weight)) > 1:
            msg = f'give one of cells, fraction and weight (source "{self.source}")'
            raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MixtureBlock:
    """What a corpus is put together from; a list of parts is short for one."""

    parts: tuple[Part, ...]
    total_cells: Positive | None = None
    """What weights are shares of."""
    size_match: bool = False
    """Shrink every part to the smallest."""

    @model_validator(mode="after")
    def _check(self) -> MixtureBlock:
        if not self.parts:
            msg = "there are no parts"
            raise ValueError(msg)
        weighted = [part.weight is not None for part in self.parts]
        if any(weighted) and not (all(weighted) and self.total_cells):
            msg = "weights are shares of total_cells: give it, and every part a weight"
            raise ValueError(msg)
        if self.total_cells and not all(weighted):
            msg = "total_cells is what weights are shares of: give every part a weight"
            raise ValueError(msg)
        places = [(part.source, part.slot) for part in self.parts]
        for source, slot in places:
            if places.count((source, slot)) > 1:
                msg = f'slot {slot} of source "{source}" is there twice'
                raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluationSet:
    """Cells that all models are judged on: some of a source, or of another file."""

    source: Name | None = None
    """A source of the study; cells that are drawn from it are trained on by nobody."""
    groups: tuple[Name, ...] = ()
    """With `source`: hold out all cells of these groups."""
    external: Source | None = None
    """Another file, described as a source is."""
    cells: Positive | None = None
    """At most so many, drawn by the study's seed; null for all (of a source without
    `groups`, a number is needed)."""
    group_by: Name | None = None
    """Column of obs, such as a cell type, whose values get rows of their own."""
    genes: Positive | Literal["all"] | tuple[Name, ...] = 1000
    """Genes that cells are compared on: the most variable ones of these cells, all, or
    a list."""

    @model_validator(mode="after")
    def _check(self) -> EvaluationSet:
        if (self.source is None) == (self.external is None):
            msg = "give one of source and external"
            raise ValueError(msg)
        if self.source is not None and not self.groups and self.cells is None:
            msg = "of a source, say which to hold out: groups, or a number of cells"
            raise ValueError(msg)
        if self.groups and self.source is None:
            msg = "groups are of a source: give source, or a filter in external"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class VariableGenes:
    """The most variable genes of one source, among those that all sources have."""

    source: Name
    n: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Budget:
    """How long every model is trained; one of the three. None: ``training.max_steps``.

    Where it is `equal`, all mixtures are trained for as many updates, whatever their
    size.
    """

    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the baseline's corpus; with `equal` false over each one's own."""
    steps: Positive | None = None
    cells_seen: Positive | None = None
    equal: bool = True

    @model_validator(mode="after")
    def _check(self) -> Budget:
        given = [n is not None for n in (self.epochs, self.steps, self.cells_seen)]
        if sum(given) != 1:
            msg = "give one of epochs, steps and cells_seen"
            raise ValueError(msg)
        if not self.equal and self.epochs is None:
            msg = "equal is false, which only epochs can be: steps are the same for all"
            raise ValueError(msg)
        return self


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Composition:
    """A study of what training cells make a better model."""

    sources: dict[str, Source]
    mixtures: dict[str, MixtureBlock]
    baseline: Name
    """Mixture that all others are compared with."""
    size_control: Name | None = None
    """Mixture that has more cells of the baseline's kind: what others must beat for
    their cells, and not their number, to have helped."""
    evaluations: dict[str, EvaluationSet]
    genes: Literal["intersection", "union"] | tuple[Name, ...] | VariableGenes = (
        "intersection"
    )
    """``"union"`` fills with zeros what a source lacks, as a list does; in the order of
    their names in any case."""
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] = (0,)
    seed_scope: Literal["both", "data", "training"] = "both"
    """What differs between seeds: the cells drawn, the training, or both."""
    exclude: Literal["refuse", "cells", "groups"] = "refuse"
    """What becomes of a training cell that is in an evaluation set, or whose group is:
    processing stops; ``"cells"``: such cells are left out, groups may be shared;
    ``"groups"``: cells of such groups are left out, too."""
    label: Name = "source"
    """Column that models are conditioned on, of every source; ``"source"`` is the
    source's name."""
    covariates: tuple[Name, ...] = ()
    """Further such columns."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Of every part, not trained on but watched in training."""
    scale: str = "normalize_per_cell_LS_10000"
    """As ``input_ds.scale``."""
    budget: Budget | None = None
    metrics: Annotated[tuple[Name, ...], Field(min_length=1)] = METRICS
    n_samples: NonNegative = 0
    """Draws of the latent whose expression is averaged; 0 decodes its mean."""
    replicates: Positive = 1000
    """Bootstrap resamples of the intervals."""
    min_cells: Positive = 20
    """Groups of `group_by` with fewer cells get no row."""
    dask: DaskReader | None = None
    """Null reads one block of cells after the other in this process."""

    @model_validator(mode="after")
    def _check(self) -> Composition:
        for what, names in (
            ("mixtures", self.mixtures),
            ("sources", self.sources),
            ("evaluations", self.evaluations),
        ):
            _check_names(names, what)
        for name, mixture in self.mixtures.items():
            for part in mixture.parts:
                _known(part.source, self.sources, "source", f"mixtures.{name}")
        for name, evaluation in self.evaluations.items():
            if evaluation.source is not None:
                where = f"evaluations.{name}"
                _known(evaluation.source, self.sources, "source", where)
                has_group = self.sources[evaluation.source].group is not None
                if evaluation.groups and not has_group:
                    msg = (
                        f'{where}: groups are named, but source "{evaluation.source}" '
                        "has no group column"
                    )
                    raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _check_choices(self) -> Composition:
        _known(self.baseline, self.mixtures, "mixture", "baseline")
        if self.size_control is not None:
            _known(self.size_control, self.mixtures, "mixture", "size_control")
        if isinstance(self.genes, VariableGenes):
            _known(self.genes.source, self.sources, "source", "genes")
        for metric in self.metrics:
            _known(metric, METRICS, "metric", "metrics")
        if len(set(self.seeds)) < len(self.seeds):
            msg = f"seeds name one twice: {', '.join(map(str, self.seeds))}"
            raise ValueError(msg)
        return self


def _known(name: str, known: Iterable[str], what: str, where: str) -> None:
    names = tuple(known)
    if name not in names:
        msg = (
            f'{where}: no {what} "{name}".{did_you_mean(name, names)} '
            f"There are: {', '.join(names)}"
        )
        raise ValueError(msg)


def _check_names(names: Iterable[str], what: str) -> None:
    if not names:
        msg = f"{what} are empty"
        raise ValueError(msg)
    for name in names:
        if not re.fullmatch(r"\w[\w .+-]*", name) or name in RESERVED:
            msg = (
                f'{what}: "{name}" cannot be a name. Use letters, digits, "_", "-", '
                f'"+", "." and spaces; {" and ".join(RESERVED)} are folders of ours'
            )
            raise ValueError(msg)


def written_out(block: Any) -> Any:
    """Return a block of JSON with every mixture written out: a list is its parts."""
    if not isinstance(block, dict) or not isinstance(block.get("mixtures"), dict):
        return block
    mixtures = {
        name: {"parts": of} if isinstance(of, list) else of
        for name, of in block["mixtures"].items()
    }
    return {**block, "mixtures": mixtures}
