"""All metrics of one comparison: values, intervals, ceilings, floors and scores.

Every metric is computed for five pairs with the same held-out cells on one side:
generated cells give its value, real training cells its ceiling, and three floors tell
what it cannot see. The score is ``(value - floor) / (ceiling - floor)``.

Genes drawn independently of each other, label by label, are the strictest floor: cells
as anyone can make them without a model. A metric that claims to see dependence is
scored from there, and earns trust. All others are checks, scored from a weaker floor:
they lower the overall score where they are low, and never raise it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import pdist
from tqdm import tqdm

from cellgan.data.manifest import RNA
from cellgan.evaluation.comparison.floors import floor_cells
from cellgan.evaluation.comparison.pairs import (
    Estimates,
    Frame,
    Pair,
    Side,
    make_pair,
    make_side,
    weighted_means,
)
from cellgan.evaluation.comparison.sides import Comparison, ModalityValues
from cellgan.evaluation.comparison.space import Floats, fit_space, log_expression
from cellgan.evaluation.metrics import (
    classifiers,
    distribution,
    genes,
    modalities,
    structure,
    support,
    use,
)
from cellgan.evaluation.metrics.catalogue import FLOORS, Metric
from cellgan.evaluation.report.document import GiveawayGene, MetricRecord
from cellgan.evaluation.scoring import metric_record
from cellgan.seeds import derive_seed

N_RESAMPLES = 100
"""Bootstrap resamples of a pooled number."""
N_LABEL_RESAMPLES = 50
"""Bootstrap resamples of the number of one label."""
COSTS = {
    **{"fit": 12.0, "distribution": 6.0, "support": 1.0, "classifiers": 0.3},
    **{"genes": 3.0, "structure": 1.5, "use": 1.0},
}
"""Seconds that each part of a pair takes, of 675 PBMC a side with all genes: what the
progress bar goes by."""
UNRESAMPLED = 0.4
"""A floor, which is not resampled, takes this part of `COSTS` (its classifiers
are fitted all the same)."""
BANDWIDTH_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
MOST_DISTANCES = 1000
"""Cells whose distances fix the kernel's bandwidths."""

BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}, about {remaining} left"

Key = tuple[str, str | None]
"""Metric, and the label it is of (None for all cells)."""
Results = dict[Key, Floats]


class Learned(NamedTuple):
    """Classifiers that several metrics of one pair ask."""

    judge: use.Judge
    """Of labels, learned from real training cells."""
    scores: classifiers.OutOfFold
    """Of both sides, by those who tell one from the other."""

    def of_label(self, pair: Pair, label: str) -> Learned:
        """Return the same of one label's cells: nothing is fitted again."""
        scores = classifiers.of_label(self.scores, pair, label)
        return self._replace(scores=scores)


@dataclasses.dataclass(frozen=True)
class Family:
    """Metrics that are computed together."""

    name: str
    metrics: tuple[Metric, ...]
    estimate: Callable[[Pair, Learned, Sequence[str]], Results]
    """(pair, what was learned for it, labels with enough cells) -> numbers."""


@dataclasses.dataclass(frozen=True)
class Sides:
    """The sides of one modality, in the form that metrics take."""

    frame: Frame
    held_out: Side
    generated: Side
    control: Side


@dataclasses.dataclass(frozen=True)
class Judged:
    """All results of one comparison."""

    main: Sides
    """Of the RNA, or of the only modality."""
    second: Sides | None
    """Of the second modality, if there is one."""
    records: list[MetricRecord]
    """Pooled ones first."""
    p_values: dict[str, float]
    giveaways: tuple[GiveawayGene, ...]
    seconds: dict[str, float]


def judge_cells(compared: Comparison, *, seed: int) -> Judged:
    """Compute every metric of a comparison.

    Parameters
    ----------
    compared
        Cells of all sides.
    seed
        Seed of floors, folds, forests and resamples.
    """
    seconds: dict[str, float] = {}
    sides = {
        name: make_sides(compared, modality, seed=seed, by_dispersion=name == RNA)
        for name, modality in _main_first(compared.modalities).items()
    }
    main = next(iter(sides))
    labels = [
        label
        for label, state in compared.label_states.items()
        if state.state == "compared"
    ]
    records: list[MetricRecord] = []
    giveaways: tuple[GiveawayGene, ...] = ()
    kinds = ("value", "ceiling", *FLOORS)
    total = len(sides) * sum(_cost(part, kind) for part in COSTS for kind in kinds)
    with tqdm(
        total=total, desc="evaluating", delay=2, smoothing=0.05, bar_format=BAR
    ) as bar:
        for name, of_modality in sides.items():
            results, found = _results(
                of_modality,
                _others(compared, name, of_modality, seed),
                labels,
                seconds,
                bar,
            )
            records += _records(name, of_modality, results, labels)
            giveaways = giveaways if name != main else found
    if len(sides) > 1:
        with timing(seconds, "modalities"):
            records += _cross_modal_records(compared, sides, seed)
    with timing(seconds, "use"):
        records += _covariate_records(compared, sides[main], main)
    pair = make_pair(sides[main].held_out, sides[main].generated, sides[main].frame, 0)
    with timing(seconds, "permutations"):
        p_values = {"mmd_squared": distribution.mmd_permutation_p(pair)}
    ordered = sorted(records, key=lambda record: record.label is not None)
    second = next((of for name, of in sides.items() if name != main), None)
    return Judged(sides[main], second, ordered, p_values, giveaways, seconds)


def _cost(part: str, kind: str) -> float:
    """Return the expected cost of a part of a pair."""
    return COSTS[part] * (UNRESAMPLED if kind in FLOORS and part != "fit" else 1.0)


def _main_first(modalities: Mapping[str, ModalityValues]) -> dict[str, ModalityValues]:
    """Return RNA before all others, in whatever order files have them."""
    names = sorted(modalities, key=lambda name: name != RNA)
    return {name: modalities[name] for name in names}


def make_sides(
    compared: Comparison,
    modality: ModalityValues,
    *,
    seed: int,
    by_dispersion: bool = True,
) -> Sides:
    """Learn the space of one modality and bring all sides into it.

    Parameters
    ----------
    by_dispersion
        How its features are chosen: see `space.most_variable_genes`.
    """
    logged = log_expression(modality.values["training"])
    space = fit_space(
        logged, seed=derive_seed(seed, "space"), by_dispersion=by_dispersion
    )
    training, held_out, generated, control = (
        make_side(modality.values[side], compared.labels[side], space)
        for side in ("training", "held_out", "generated", "control")
    )
    frame = Frame(
        training=training,
        space=space,
        gene_names=modality.names,
        bandwidths=median_bandwidths(held_out.components),
        are_counts=modality.are_counts,
        seed=seed,
    )
    return Sides(frame, held_out, generated, control)


def median_bandwidths(components: np.ndarray) -> tuple[float, ...]:
    """Return the median distance between real cells, times `BANDWIDTH_FACTORS`.

    Real cells alone set the scale, so values of different models are comparable. At
    most 1,000 cells, evenly spaced in the given order, are looked at.
    """
    step = -(-len(components) // MOST_DISTANCES)
    median = float(np.median(pdist(np.asarray(components[::step], np.float64))))
    return tuple(factor * median for factor in BANDWIDTH_FACTORS)


@contextlib.contextmanager
def timing(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the time that is spent inside to what `name` has taken."""
    started = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started


def _results(
    sides: Sides,
    others: Iterator[tuple[str, Side]],
    labels: Sequence[str],
    seconds: dict[str, float],
    bar: Any,
) -> tuple[dict[str, Results], tuple[classifiers.GiveawayGene, ...]]:
    """Return the numbers of every pair ("value", "ceiling", the floors), and genes."""
    with timing(seconds, "use"):
        judge = use.fit_judge(sides.frame)
    results: dict[str, Results] = {}
    giveaways: tuple[GiveawayGene, ...] = ()
    for kind, other in others:
        n_resamples = 0 if kind in FLOORS else N_RESAMPLES
        pair = make_pair(sides.held_out, other, sides.frame, n_resamples)
        with timing(seconds, "classifiers"):
            learned = Learned(judge, classifiers.fit_out_of_fold(pair))
        bar.update(_cost("fit", kind))
        if kind == "value":
            giveaways = classifiers.giveaway_genes(pair, learned.scores)
        results[kind] = {}
        for family in FAMILIES:
            with timing(seconds, family.name):
                results[kind] |= family.estimate(pair, learned, labels)
            bar.update(_cost(family.name, kind))
    return results, giveaways


def _others(
    compared: Comparison, modality: str, sides: Sides, seed: int
) -> Iterator[tuple[str, Side]]:
    """Yield what held-out cells are compared with; floors are made one at a time."""
    yield "value", sides.generated
    yield "ceiling", sides.control
    values = compared.modalities[modality].values
    for floor in FLOORS:
        made = floor_cells(
            floor,
            values["training"],
            compared.labels["training"],
            values["control"],
            compared.labels["control"],
            seed=derive_seed(seed, modality),
        )
        yield floor, make_side(made, compared.labels["control"], sides.frame.space)


def _n_label_resamples(pair: Pair) -> int:
    return min(len(pair.draws) - 1, N_LABEL_RESAMPLES)


def _family(
    name: str,
    metrics: tuple[Metric, ...],
    compute: Callable[[Pair, Learned], Estimates],
) -> Family:
    """Compute a family for all cells, and again for the cells of every label."""
    again = [metric.name for metric in metrics if metric.per_label]

    def estimate(pair: Pair, learned: Learned, labels: Sequence[str]) -> Results:
        everything = compute(pair, learned)
        results: Results = {(of, None): values for of, values in everything.items()}
        for label in labels if again else ():
            part = pair.of_label(label, _n_label_resamples(pair))
            if len(part.other):
                values = compute(part, learned.of_label(pair, label))
                results |= {(of, label): values[of] for of in again}
        return results

    return Family(name, metrics, estimate)


FAMILIES = (
    _family(
        "distribution",
        distribution.METRICS,
        lambda pair, _: distribution.distribution_metrics(pair),
    ),
    _family("support", support.METRICS, lambda pair, _: support.support_metrics(pair)),
    _family(
        "classifiers",
        classifiers.METRICS,
        lambda pair, learned: classifiers.auc_metrics(pair, learned.scores),
    ),
    _family("genes", genes.METRICS, lambda pair, _: genes.genes_metrics(pair)),
    _family(
        "structure",
        structure.METRICS,
        lambda pair, _: structure.structure_metrics(pair),
    ),
    _family(
        "use", use.METRICS, lambda pair, learned: use.use_metrics(pair, learned.judge)
    ),
)


def _records(
    modality: str, sides: Sides, results: Mapping[str, Results], labels: Sequence[str]
) -> list[MetricRecord]:
    records = []
    for family in FAMILIES:
        for metric in family.metrics:
            for label in (None, *labels):
                key = (metric.name, label)
                if key in results["value"]:
                    of_kinds = {kind: of.get(key) for kind, of in results.items()}
                    n = _n_cells(metric.name, sides, label)
                    space = _space(metric, sides.frame)
                    records.append(
                        metric_record(
                            metric,
                            family.name,
                            modality,
                            of_kinds,
                            label=label,
                            n=n,
                            space=space,
                        )
                    )
    return records


def _n_cells(name: str, sides: Sides, label: str | None) -> int:
    side = sides.generated
    n = len(side) if label is None else int((side.labels == label).sum())
    if name.startswith("wasserstein"):
        return min(n, distribution.MOST_TRANSPORTED)
    return n


def _space(metric: Metric, frame: Frame) -> str:
    if metric.space == "components":
        return f"{frame.space.n_components} components"
    if frame.are_counts or metric.space != "counts":
        return metric.space
    return "expression at the median library size"


def _cross_modal_records(
    compared: Comparison, sides: Mapping[str, Sides], seed: int
) -> list[MetricRecord]:
    """Return how the two modalities of a cell go together."""
    names = list(sides)[:2]
    first, second = (sides[name] for name in names)
    results: dict[str, Estimates] = {}
    others = [_others(compared, name, sides[name], seed) for name in names]
    for (kind, one), (_, two) in zip(*others, strict=True):
        n_resamples = 0 if kind in FLOORS else N_RESAMPLES
        results[kind] = modalities.cross_modal_metrics(
            make_pair(first.held_out, one, first.frame, n_resamples),
            make_pair(second.held_out, two, second.frame, n_resamples),
        )
    return [
        metric_record(
            metric,
            "modalities",
            "+".join(names),
            {kind: of[metric.name] for kind, of in results.items()},
            n=len(first.generated),
            space=metric.space,
        )
        for metric in modalities.METRICS
    ]


def covariate_agreements(
    compared: Comparison, sides: Sides, n_resamples: int
) -> dict[str, dict[str, Floats]]:
    """Return how far further covariates of cells are confirmed.

    Returns
    -------
    ``agreement_of_<covariate>``, and ``agreement_of_all_covariates``, label included,
    at once -> side -> share of cells ``(n_draws,)``. Nothing without further
    covariates; nan where training cells know one category alone.
    """
    columns = {"": compared.labels, **compared.covariates}
    if len(columns) == 1:
        return {}
    training = sides.frame.training.components
    recognisers = {
        name: use.fit_recogniser(training, of_sides["training"])
        for name, of_sides in columns.items()
    }
    shares: dict[str, dict[str, Floats]] = {}
    for side, cells in (("generated", sides.generated), ("control", sides.control)):
        pair = make_pair(sides.held_out, cells, sides.frame, n_resamples)
        agrees = {}
        for name, of_sides in columns.items():
            agrees[name] = recognisers[name].predict(cells.components) == of_sides[side]
            if len(recognisers[name].classes_) < 2:
                agrees[name] = np.full(len(agrees[name]), np.nan)
        agrees["all_covariates"] = np.prod(list(agrees.values()), axis=0, dtype=float)
        del agrees[""]
        for name, of_cells in agrees.items():
            shares.setdefault(f"agreement_of_{name}", {})[side] = weighted_means(
                pair.draws.other, of_cells
            )
    return shares


def _covariate_records(
    compared: Comparison, sides: Sides, modality: str
) -> list[MetricRecord]:
    """Return the records of `covariate_agreements`."""
    records = []
    shares = covariate_agreements(compared, sides, N_RESAMPLES)
    for name, of_side in shares.items():
        what = name.removeprefix("agreement_of_")
        asked = "label and covariates" if what == "all_covariates" else f'"{what}"'
        metric = Metric(
            name=name,
            title=f"agreement of {asked} (1 is best)",
            meaning=f"share of cells whose {asked} a classifier trained on real "
            "training cells confirms, as label_agreement",
            space="components",
            floor=None,
            sees=frozenset(),
        )
        estimates = {"value": of_side["generated"], "ceiling": of_side["control"]}
        records.append(
            metric_record(
                metric,
                "use",
                modality,
                estimates,
                n=len(sides.generated),
                space=_space(metric, sides.frame),
            )
        )
    return records
