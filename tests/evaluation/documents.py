"""A small report with all that a report can hold, for those who show it.

Two experiments: "pbmc" is usable and has two labels, one of them with characters that
HTML, Markdown, YAML and Matplotlib read as their own; "pbmc_copied" leaks training
cells, scores higher, and lacks all that can be lacking.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from cellgan.evaluation.report.document import ExperimentReport, Report

NASTY = 'CD4 <T> & "x$y$" | *B*'
GENE = "HLA<DRA> & $x$"

PNG = bytes.fromhex(  # 3 pixels wide, 2 high, black
    "89504e470d0a1a0a0000000d49484452000000030000000208020000001216f14d0000000b"
    "49444154789c6360c00400001400017dfe1eee0000000049454e44ae426082"
)

METRICS = (  # name, family, value, ceiling, independent, permuted, label means, floor
    ("mmd_squared", "distribution", 0.012, 0.0004, 0.09, 0.12, 0.31, "permuted"),
    ("energy_distance", "distribution", 1.25, 0.05, 4.0, 6.0, 12.0, "permuted"),
    ("precision", "support", 0.82, 0.95, 0.4, 0.1, 0.99, "permuted"),
    ("classifier_auc", "classifier", 0.912, 0.503, 0.97, 1.0, 1.0, "permuted"),
    ("variance_error", "genes", 0.2, 0.05, 0.1, 0.0, 3.0, "label_means"),
    ("effect_slope", "structure", 0.74, 1.01, 0.98, 0.0, 1.0, "permuted"),
)


def make_metric(entry: tuple, label: str | None = None) -> dict[str, Any]:
    name, family, value, ceiling, independent, permuted, label_means, floor = entry
    floors = {
        "independent": independent,
        "permuted": permuted,
        "label_means": label_means,
    }
    score = (value - floors[floor]) / (ceiling - floors[floor])
    return {
        "name": name,
        "title": f"{name.replace('_', ' ')} (0 < 1 & best)",
        "family": family,
        "modality": "rna",
        "label": label,
        "value": value,
        "low": 0.9 * value,
        "high": 1.1 * value,
        "ceiling": ceiling,
        "floors": floors,
        "floor": floor,
        "score": score,
        "score_low": score - 0.05,
        "score_high": score + 0.04,
        "earns": floor != "label_means",
        "no_score": None,
        "n": 300 if label is None else 120,
        "space": "components",
        "meaning": f"what {name} is & why <it> matters",
    }


def undefined_metric() -> dict[str, Any]:
    """A metric that could not be computed, and has no floor."""
    numbers = ("value", "low", "high", "ceiling", "score", "score_low", "score_high")
    entry = ("rare_label_f1", "use", 0.5, 1.0, 0.0, 0.0, 0.0, "permuted")
    return {
        **make_metric(entry),
        **dict.fromkeys(numbers),
        "floors": dict.fromkeys(("independent", "permuted", "label_means")),
        "floor": None,
        "no_score": "real cells cannot be told from the floor",
    }


def make_experiment() -> ExperimentReport:
    return TypeAdapter(ExperimentReport).validate_python(usable())


def make_copied() -> ExperimentReport:
    return TypeAdapter(ExperimentReport).validate_python(leaking())


def make_document() -> Report:
    return Report(
        schema=2,
        version="0.1.0",
        created="2026-11-21T10:00:00Z",
        experiments={"pbmc_copied": make_copied(), "pbmc": make_experiment()},
    )


def usable() -> dict[str, Any]:
    metrics = [make_metric(entry) for entry in METRICS] + [undefined_metric()]
    metrics += [make_metric(entry, NASTY) for entry in METRICS[:3]]
    scores = [metric["score"] for metric in metrics[: len(METRICS)]]
    return {
        "verdict": {
            "grade": "usable",
            "headline": "Usable for method tests; effects are too weak.",
            "findings": [
                f"Differences of {NASTY} from the others are 26 % too small.",
                "A classifier tells generated from real cells (AUC 0.912).",
            ],
        },
        "overall": sum(min(max(score, 0), 1) for score in scores) / len(scores),
        "metrics": metrics,
        "p_values": {"mmd_squared": 0.005},
        "memorisation": {
            "known": True,
            "leaks": False,
            "reasons": ["Generated cells are no nearer to training cells than others."],
            "caution": "Only one donor: a donor-level attack could not be tried.",
            "numbers": [
                {
                    "name": "exact_copies",
                    "title": "share of exact copies (0 is best)",
                    "value": 0.0,
                    "low": 0.0,
                    "high": 0.0,
                    "ceiling": 0.0,
                    "meaning": "share of generated cells that equal a training cell",
                },
                {
                    "name": "membership_auc",
                    "title": "membership AUC (0.5 is best)",
                    "value": 0.512,
                    "low": 0.48,
                    "high": None,
                    "ceiling": None,
                    "meaning": "AUC of an attack that tells training from other cells",
                },
            ],
        },
        "published": [
            {
                "protocol": "scGAN",
                "name": "mmd",
                "value": 0.05432,
                "ceiling": 0.0123,
                "settings": "three kernels, 50 components",
            }
        ],
        "giveaway_genes": [
            {
                "gene": gene,
                "importance": importance,
                "auc": auc,
                "real_mean": 1.5,
                "generated_mean": 2.5,
                "real_detected": 0.62,
                "generated_detected": 0.93,
            }
            for gene, importance, auc in (
                (GENE, 0.125, 0.81),
                ("MALAT1", 0.0625, 0.66),
                ("RPL13", 0.03, 0.6),
            )
        ],
        "labels": {
            NASTY: {"n": 120, "state": "compared"},
            "B": {"n": 9, "state": "too few"},
            "NK": {"n": 0, "state": "missing"},
        },
        "cells": {
            "held_out": 300,
            "generated": 300,
            "control": 300,
            "training": 1200,
            "in_files": {"held_out": 400, "generated": 5000, "training": 1500},
            "split": "test",
            "held_out_by": "donor",
        },
        "warnings": [f"Labels are not spelled alike: {NASTY}."],
        "guidance": [
            {"scale": 1.0, "mmd_squared": 0.012, "recall": 0.8, "seconds": 1.5},
            {"scale": None, "mmd_squared": 0.0004, "recall": 0.9, "seconds": None},
        ],
        "dropped": ["12 genes are in the real file alone and were left out."],
        "scale": "Both sides are counts; every cell is scaled to 10,000, then log1p.",
        "run": {
            "seed": 7,
            "seconds": {"distribution": 1.25, "pictures": 14.0},
            "versions": {"cellgan": "0.1.0", "numpy": "2.4.6"},
            "parameters": {
                "input_ds": {"raw_input": "pbmc3k_raw.h5ad"},
                "model": {"type": "cscGAN", "latent_dim": 32, "gen_layers": [128, 256]},
                "training": {
                    "max_steps": 3000,
                    "learning_rate": {"decay": True, "alpha_0": 0.001},
                    "checkpoint": None,
                },
            },
            "origin": {
                "file": "cells.h5ad",
                "model_type": "cscGAN",
                "step": 3000,
                "seed": 5,
                "scale": "counts",
            },
        },
    }


def leaking() -> dict[str, Any]:
    experiment = usable()
    memorisation = {
        "known": True,
        "leaks": True,
        "reasons": ["31 % of the generated cells equal a training cell."],
        "caution": None,
        "numbers": [],
    }
    return {
        **experiment,
        "verdict": {
            "grade": "leak",
            "headline": "Do not share: training cells are among the generated ones.",
            "findings": [],
        },
        "overall": 0.99,
        "metrics": [make_metric(METRICS[0])],
        "p_values": {},
        "memorisation": memorisation,
        "published": [],
        "giveaway_genes": [],
        "labels": {},
        "warnings": [],
        "guidance": [],
        "dropped": [],
        "run": {
            **experiment["run"],
            "parameters": None,
            "origin": {"file": "copies.h5ad"},
        },
    }
