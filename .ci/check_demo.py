"""Check what `make demo` has made: python .ci/check_demo.py experiments/pbmc."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import anndata
import numpy as np

LEAST_AGREEMENT = 0.65
"""Guessing labels gives 0.2, real cells 0.8."""


def main() -> None:
    """Compare the demo's files with the cells it was trained on."""
    folder = Path(sys.argv[1])
    label = json.loads((folder / "manifest.json").read_text())["label"]
    real = anndata.read_h5ad(folder / "processed.h5ad")
    real = real[real.obs["split"] == "train"]
    made = anndata.read_h5ad(folder / "generated" / "cells.h5ad")
    report = json.loads((folder / "evaluation" / "report.json").read_text())
    (entry,) = report["experiments"].values()
    pooled = {row["name"]: row for row in entry["metrics"] if row["label"] is None}

    wanted = real.obs[label].value_counts().to_dict()
    _require(made.obs[label].value_counts().to_dict() == wanted, "numbers per label")
    _require(list(made.var_names) == list(real.var_names), "gene names")
    _require(made.obs_names.is_unique, "unique cell names")
    _require(bool(np.isfinite(made.X.data).all() and made.X.nnz), "finite expression")
    scores = [row["score"] for row in pooled.values() if row["score"] is not None]
    _require(len(scores) > 25 and all(map(math.isfinite, scores)), "scores")
    _require(entry["memorisation"]["known"], "memorisation checked")
    _require(not entry["memorisation"]["leaks"], "no training cell copied")
    page = (folder / "evaluation" / "report.html").read_text()
    _require(entry["verdict"]["headline"].split(":")[0] in page, "verdict on the page")
    agreement = pooled["label_agreement"]["value"]
    _require(agreement > LEAST_AGREEMENT, f"label agreement {agreement:.2f}")
    events = list(folder.glob("job/*/logs/events*"))
    _require(any(file.stat().st_size > 0 for file in events), "TensorBoard events")
    _require(any(folder.glob("job/*/checkpoints/*")), "a checkpoint")


def _require(holds: bool, what: str) -> None:  # noqa: FBT001
    sys.stdout.write(f"{'ok' if holds else 'WRONG'}: {what}\n")
    if not holds:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
