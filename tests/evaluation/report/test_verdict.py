"""Verdicts name what is wrong, with its number, and nothing else."""

from __future__ import annotations

import dataclasses
import math

import pytest

from cellgan.evaluation.comparison.draws import DrawnLabel
from cellgan.evaluation.report.document import MemorisationRecord, MetricRecord
from cellgan.evaluation.report.verdict import verdict
from tests.evaluation.sides import draw_side, make_frame

NOTHING = MemorisationRecord(
    known=True, leaks=False, reasons=[], caution=None, numbers=[]
)


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.fixture(scope="module")
def real(frame):
    return draw_side(frame, seed=1)


def record(
    name: str, score: float, *, value: float = 0.5, ceiling: float = 1.0, **more
):
    numbers = {
        **{"value": value, "low": value - 0.01, "high": value + 0.01},
        **{"ceiling": ceiling, "floors": {}, "floor": None, "earns": True},
        **{"score": score, "score_low": score - 0.05, "score_high": score + 0.05},
        **{"no_score": None, "n": 100},
    }
    words = {"title": name, "family": "distribution", "modality": "rna", "label": None}
    words |= {"space": "components", "meaning": name}
    return MetricRecord(**{"name": name, **numbers, **words, **more})


def judge(
    real,
    records=(),
    *,
    overall=0.95,
    made=None,
    memory=NOTHING,
    labels=None,
    warnings=(),
):
    return verdict(
        list(records),
        overall,
        held_out=real,
        generated=made or real,
        are_counts=True,
        label_states=labels or {},
        memorisation=memory,
        warnings=warnings,
    )


def test_cells_without_fault_are_close(real):
    said = judge(real, [record("library_size_ks", 1.0)])
    assert said.grade == "close"
    assert said.findings == ["No metric tells generated from real cells beyond chance"]


@pytest.mark.parametrize(
    ("overall", "grade"), [(0.91, "close"), (0.7, "usable"), (0.3, "far")]
)
def test_grade_follows_the_overall_score(real, overall, grade):
    assert judge(real, overall=overall).grade == grade


def test_nothing_scored_is_far(real):
    said = judge(real, overall=None)
    assert said.grade == "far"
    assert "nothing could be scored" in said.headline


def test_leak_outranks_every_score(real):
    memory = dataclasses.replace(NOTHING, leaks=True, reasons=["12 % are exact copies"])
    said = judge(real, memory=memory, overall=0.99)
    assert said.grade == "leak"
    assert said.findings[0] == "Memorised: 12 % are exact copies"


def test_missing_labels_are_named(real):
    labels = {
        "B cell": DrawnLabel(20, "missing"),
        "NK": DrawnLabel(50, "compared"),
    }
    said = judge(real, labels=labels)
    assert said.findings == ["No cells of B cell were generated"]
    assert said.grade == "usable"


def test_wrong_library_sizes_are_told_with_both_medians(real):
    halved = dataclasses.replace(real, values=real.values * 0.5)
    said = judge(real, [record("library_size_ks", 0.1)], made=halved)
    median = sorted(real.values.sum(axis=1))[len(real) // 2]
    assert len(said.findings) == 1
    assert "Library sizes are wrong" in said.findings[0]
    assert f"real cells {median:,.0f}" in said.findings[0]


def test_low_score_whose_interval_reaches_real_cells_is_no_finding(real):
    unsure = record("library_size_ks", 0.5, score_high=1.1)
    assert "No metric" in judge(real, [unsure]).findings[0]


def test_weak_effects_are_told_by_the_slope(real):
    slope = record("log_fold_change_slope", 0.5, value=0.5, ceiling=0.98)
    (finding,) = judge(real, [slope]).findings
    assert (
        "log-fold changes are 0.50 of the real ones, real cells reach 0.98" in finding
    )


def test_cells_outside_are_told_as_a_share(real):
    precision = record("precision", 0.7, value=0.75, ceiling=0.95)
    (finding,) = judge(real, [precision]).findings
    assert "25% of the generated cells lie nowhere near" in finding
    assert "of real cells 5%" in finding


def test_weakest_label_is_named(real):
    records = [
        record("mmd_squared", score, label=label)
        for label, score in {"a": 0.9, "b": 0.85, "c": 0.2}.items()
    ]
    (finding,) = judge(real, records).findings
    assert finding.startswith("c is the weakest label: mean score 0.20")


def test_labels_with_too_few_cells_are_counted(real):
    labels = {
        **{f"t{i}": DrawnLabel(i, "too few") for i in range(6)},
        "NK": DrawnLabel(50, "compared"),
    }
    (finding,) = judge(real, labels=labels).findings[1:]
    assert finding.startswith("6 of 7 labels were not judged one by one: 20 cells")
    assert "(t0: 0, t1: 1, t2: 2, t3: 3, t4: 4, ...)" in finding


def test_pairing_without_a_score_was_not_judged(real):
    pairing = record("cross_modal_matching", math.nan, family="modalities")
    told = "The pairing of the modalities could not be judged on these data"
    assert told in judge(real, [pairing]).findings
    scored = record("cross_modal_correlation", 0.9, family="modalities")
    assert told not in judge(real, [pairing, scored]).findings


def test_leaks_that_could_not_be_looked_for_are_no_clean_bill(real):
    memory = dataclasses.replace(NOTHING, known=False, leaks=None)
    said = judge(real, memory=memory)
    assert said.grade == "close"
    assert said.findings[-1].startswith("Leaks were not looked for")


def test_warnings_are_findings(real):
    assert judge(real, warnings=("Labels differ",)).findings == ["Labels differ"]


def test_findings_of_a_second_modality_name_it(real):
    good = record("precision", 1.0, value=0.95, ceiling=0.95)
    bad = record("precision", 0.5, value=0.5, ceiling=0.95, modality="atac")
    (finding,) = judge(real, [good, bad]).findings
    assert finding.startswith("ATAC: 50% of the generated cells lie nowhere near")


def test_every_finding_begins_with_a_capital_or_a_number(real):
    labels = {"B": DrawnLabel(2, "missing"), "T": DrawnLabel(2, "too few")}
    names = ("library_size_ks", "gene_correlation_within_labels", "forest_auc_genes")
    names += ("recall", "label_agreement", "zero_fraction_difference", "mean_log_ratio")
    names += ("variance_log_ratio", "marker_overlap_50", "log_fold_change_slope")
    found = judge(real, [record(name, 0.1) for name in names], labels=labels)
    assert len(found.findings) == len(names) + 2
    assert all(of[0].isupper() or of[0].isdigit() for of in found.findings)
