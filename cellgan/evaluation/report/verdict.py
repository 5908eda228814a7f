"""What the numbers say, in plain words: a grade, a headline, findings.

A finding names a defect and carries the number it rests on. Thresholds are on scores
(0: as bad as the floor, 1: as good as real cells) unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cellgan.evaluation.comparison.draws import FEWEST_PER_LABEL, DrawnLabel
from cellgan.evaluation.comparison.pairs import Side
from cellgan.evaluation.metrics.catalogue import Defect
from cellgan.evaluation.report.document import (
    Grade,
    MemorisationRecord,
    MetricRecord,
    Verdict,
)

CLOSE, USABLE = 0.9, 0.6
"""Overall scores from which generated cells are close to real ones, or usable."""
LOW = 0.6
"""A score below is a finding, if its interval does not reach `CLOSE`."""
LABELS_NAMED = 5
DIFFERENT_SIZE = 0.2
"""Relative difference of median library sizes that is worth a sentence."""
OUTSIDE = 0.05
"""Share of generated cells, beyond that of real ones, that lie nowhere near real."""
WEAK = 0.8
"""Log-fold changes below this part of what real cells reach are weak."""

Records = Mapping[str, MetricRecord]


def verdict(  # noqa: PLR0913  (one argument for each thing that is looked at)
    records: Sequence[MetricRecord],
    overall: float | None,
    *,
    held_out: Side,
    generated: Side,
    are_counts: bool,
    label_states: Mapping[str, DrawnLabel],
    memorisation: MemorisationRecord,
    warnings: Sequence[str] = (),
) -> Verdict:
    """Return grade, headline and findings of one comparison.

    Parameters
    ----------
    records
        All metric records.
    overall
        From `cellgan.evaluation.scoring.overall_score`; None where nothing has a score.
    held_out, generated
        The sides that were compared, of the first modality.
    are_counts
        Whether library sizes can be judged.
    label_states
        Label -> what became of it.
    memorisation
        The memorisation record.
    warnings
        What is probably a mistake of whoever made the files, in sentences.
    """
    by_modality = _by_modality(records)
    pooled = next(iter(by_modality.values()), {})
    found = dict(defects(pooled, held_out, generated, are_counts, label_states))
    for modality, of in list(by_modality.items())[1:]:
        for name, sentence in defects(
            of, held_out, generated, are_counts=False, label_states={}
        ):
            found[f"{modality} {name}"] = f"{modality.upper()}: {sentence}"
    leaks = [f"Memorised: {reason}" for reason in memorisation.reasons]
    findings = [*leaks, *warnings, *found.values(), *_weakest_labels(records)]
    if not findings:
        findings = ["No metric tells generated from real cells beyond chance"]
    findings += [*_unjudged_labels(label_states), *_unjudged_pairing(records)]
    if memorisation.leaks is None:
        findings.append(
            "Leaks were not looked for: it is not known which cells were trained on"
        )
    grade = _grade(overall, leaks=bool(memorisation.leaks), n_defects=len(found))
    headline = _headline(grade, overall, pooled)
    return Verdict(grade=grade, headline=headline, findings=findings)


def _by_modality(records: Sequence[MetricRecord]) -> dict[str, Records]:
    """Return the pooled metrics of every modality, those of the first one first."""
    found: dict[str, dict[str, MetricRecord]] = {}
    for record in records:
        if record.label is None:
            found.setdefault(record.modality, {})[record.name] = record
    return dict(found)


def defects(
    pooled: Records,
    held_out: Side,
    generated: Side,
    are_counts: bool,  # noqa: FBT001  (handed on by `verdict`)
    label_states: Mapping[str, DrawnLabel],
) -> Iterator[tuple[Defect | str, str]]:
    """Yield each defect that the numbers show, with a sentence."""
    missing = [name for name, of in label_states.items() if of.state == "missing"]
    if missing:
        named = ", ".join(missing[:LABELS_NAMED])
        more = f" and {len(missing) - LABELS_NAMED} more" * (
            len(missing) > LABELS_NAMED
        )
        yield "missing_label", f"No cells of {named}{more} were generated"
    if are_counts and _is_low(pooled, "library_size_ks"):
        yield from _library_sizes(held_out, generated)
    if _is_low(pooled, "gene_correlation_within_labels"):
        record = pooled["gene_correlation_within_labels"]
        yield (
            "dependence",
            f"Genes do not vary together within a label as they do in real cells: "
            f"agreement of correlations {record.value:.2f}, real cells reach "
            f"{record.ceiling:.2f}",
        )
    yield from _weak_effects(pooled)
    yield from _noise_cells(pooled)
    yield from _low_families(pooled)


def _is_low(pooled: Records, name: str) -> bool:
    """Tell whether a score is low beyond its interval."""
    record = pooled.get(name)
    if record is None or record.score is None:
        return False
    high = record.score_high
    return bool(record.score < LOW and (high is None or high < CLOSE))


def _library_sizes(held_out: Side, generated: Side) -> Iterator[tuple[Defect, str]]:
    real, made = (
        float(np.median(np.asarray(side.values.sum(axis=1, dtype=np.float64))))
        for side in (held_out, generated)
    )
    if abs(made / real - 1) > DIFFERENT_SIZE:
        sentence = (
            f"Library sizes are wrong: the median is {made:,.0f}, of real cells "
            f"{real:,.0f}"
        )
    else:
        sentence = "Library sizes are spread differently from those of real cells"
    yield "library_size", sentence


def _weak_effects(pooled: Records) -> Iterator[tuple[Defect, str]]:
    record = pooled.get("log_fold_change_slope")
    if record is None or record.value is None or record.ceiling is None:
        return
    high = record.high if record.high is not None else record.value
    if high < WEAK * record.ceiling:
        yield (
            "weak_effects",
            f"Differences between labels are too small: log-fold changes are "
            f"{record.value:.2f} of the real ones, real cells reach "
            f"{record.ceiling:.2f}",
        )


def _noise_cells(pooled: Records) -> Iterator[tuple[Defect, str]]:
    record = pooled.get("precision")
    if record is None or record.value is None or record.ceiling is None:
        return
    high = record.high if record.high is not None else record.value
    if high < record.ceiling - OUTSIDE:
        yield (
            "noise_cells",
            f"{1 - record.value:.0%} of the generated cells lie nowhere near a real "
            f"one (of real cells {1 - record.ceiling:.0%})",
        )


def _low_families(pooled: Records) -> Iterator[tuple[str, str]]:
    """Yield what low scores without a defect of their own say."""
    sentences = {
        "forest_auc_genes": "A classifier tells generated from real cells by their "
        "genes with an AUC of {value:.2f} (real from real {ceiling:.2f})",
        "recall": "Only {value:.0%} of the real cells have generated cells around them "
        "(real cells reach {ceiling:.0%})",
        "label_agreement": "Only {value:.0%} of the generated cells are recognised as "
        "the label they were made for (real cells {ceiling:.0%})",
        "zero_fraction_difference": "Zeros are wrong: the share of zeros of a gene is "
        "off by {value:.3f} on average (real cells {ceiling:.3f})",
        "variance_log_ratio": "Variances are wrong: genes differ by {value:.2f} "
        "doublings on average (real cells {ceiling:.2f})",
        "mean_log_ratio": "Mean expression is wrong: genes differ by {value:.2f} "
        "doublings on average (real cells {ceiling:.2f})",
        "marker_overlap_50": "Markers are not the same: {value:.0%} of the first 50 of "
        "a label are shared (real cells {ceiling:.0%})",
    }
    for name, sentence in sentences.items():
        if _is_low(pooled, name):
            yield (
                name,
                sentence.format(value=pooled[name].value, ceiling=pooled[name].ceiling),
            )


def _weakest_labels(records: Sequence[MetricRecord]) -> list[str]:
    """Return a sentence on the labels that score far below the others."""
    scores: dict[str, list[float]] = {}
    for record in records:
        if record.label is not None and record.score is not None:
            score = float(np.clip(record.score, 0, 1))
            scores.setdefault(record.label, []).append(score)
    means = {label: float(np.mean(of)) for label, of in scores.items()}
    if len(means) < 2:
        return []
    worst = min(means, key=lambda label: means[label])
    typical = float(np.median(list(means.values())))
    if means[worst] > typical - 0.2:
        return []
    return [
        f"{worst} is the weakest label: mean score {means[worst]:.2f}, of a typical "
        f"label {typical:.2f}"
    ]


def _unjudged_labels(label_states: Mapping[str, DrawnLabel]) -> Iterator[str]:
    """Say how many labels have too few cells to be judged."""
    few = {name: of.n for name, of in label_states.items() if of.state == "too few"}
    if few:
        named = [f"{name}: {n}" for name, n in list(few.items())[:LABELS_NAMED]]
        more = ", ..." * (len(few) > LABELS_NAMED)
        yield (
            f"{len(few)} of {len(label_states)} labels were not judged one by one: "
            f"{FEWEST_PER_LABEL} cells on either side are needed, there are fewer "
            f"({', '.join(named)}{more})"
        )


def _unjudged_pairing(records: Sequence[MetricRecord]) -> Iterator[str]:
    """Say so where nothing tells whose ATAC belongs to whose RNA."""
    scores = [of.score for of in records if of.family == "modalities"]
    if scores and all(score is None for score in scores):
        yield "The pairing of the modalities could not be judged on these data"


def _grade(overall: float | None, *, leaks: bool, n_defects: int) -> Grade:
    if leaks:
        return "leak"
    if overall is None or overall < USABLE:
        return "far"
    return "close" if overall >= CLOSE and not n_defects else "usable"


def _headline(grade: Grade, overall: float | None, pooled: Records) -> str:
    scored = "nothing could be scored"
    if overall is not None:
        scored = (
            f"overall score {overall:.2f} (1: as good as real cells, 0: as bad as "
            f"genes drawn independently)"
        )
    auc = pooled.get("forest_auc_genes")
    told = ""
    if auc is not None and auc.value is not None:
        value = auc.value
        told = f"; a classifier tells them from real cells with an AUC of {value:.2f}"
    texts = {
        "leak": "Training cells are copied: do not share these cells",
        "far": "Generated cells are far from real ones",
        "usable": "Generated cells are usable, with limits",
        "close": "Generated cells are close to real ones",
    }
    return f"{texts[grade]}: {scored}{told}."
