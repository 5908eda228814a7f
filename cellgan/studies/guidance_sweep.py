"""What guidance costs and gives: fidelity, agreement, diversity and time by its scale.

The same cells are asked for with one scale after the other and compared with held-out
cells as the report compares them. Stronger guidance makes cells more typical of what
was asked for, and less varied; where the best balance lies differs from data to data.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cellgan.data.manifest import RNA
from cellgan.evaluation.comparison.pairs import make_pair
from cellgan.evaluation.comparison.sides import Comparison, compare_experiment
from cellgan.evaluation.figures.canvas import save
from cellgan.evaluation.metrics import distribution, support, use
from cellgan.evaluation.suite import covariate_agreements, make_sides
from cellgan.generation.trained_model import TrainedModel, Wishes
from cellgan.models.base import SolverSettings
from cellgan.studies.checks import check_guided
from cellgan.studies.figures import guidance_figure
from cellgan.studies.kit import write_table

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

log = logging.getLogger(__name__)

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
MEASURES = {
    "mmd_squared": "fidelity: MMD^2 (0 is best)",
    "wasserstein_2": "fidelity: 2-Wasserstein distance (small is best)",
    "label_agreement": "agreement: the label (1 is best)",
    "recall": "diversity: recall (1 is best)",
    "coverage": "diversity: coverage (1 is best)",
}


def compare_scales(
    experiment: Experiment,
    *,
    scales: Sequence[float] = SCALES,
    seed: int,
    library_size: int | str = "modelled",
    solver: SolverSettings,
) -> Path:
    """Generate and compare cells at several guidance scales, the same one everywhere.

    Parameters
    ----------
    experiment
        Processed and trained; its model is conditioned on something.
    scales
        Guidance scales. As many cells of each combination are made as were trained on.
    seed
        Of the generated cells: the same noise for all scales.
    library_size
        As of `cellgan.generation.trained_model.Wishes`.
    solver
        How the flow is followed.

    Returns
    -------
    The table, ``generated/guidance_sweep.csv``; beside it a figure. Its last row,
    ``real``, holds training cells against held-out ones.

    Raises
    ------
    ConfigError
        If the model has no guidance.
    """
    conditions = check_guided(experiment)
    trained = TrainedModel.load(experiment.folder)
    rows: list[dict[str, float | str]] = []
    compared = None
    with tempfile.TemporaryDirectory(dir=experiment.folder) as folder:
        for scale in scales:
            path = Path(folder) / f"cells{experiment.generated_file.suffix}"
            wishes = Wishes(
                guidance=dict.fromkeys(conditions, float(scale)),
                library_size=library_size,
                solver=solver,
            )
            trained.generate(one_cell(trained), **wishes)  # compiles
            started = time.perf_counter()
            trained.write(path, seed=seed, quiet=True, **wishes)
            seconds = time.perf_counter() - started
            compared = compare_experiment(experiment, path, seed=seed)
            numbers = measures(compared, "generated", seed)
            rows.append({"scale": f"{scale:g}", **numbers, "seconds": seconds})
    if compared is not None:
        rows.append({"scale": "real", **measures(compared, "control", seed)})
    table = experiment.guidance_file
    write_table(table, rows)
    figure = guidance_figure(
        [float(row["scale"]) for row in rows[:-1]],
        {
            title_of(name): [float(row[name]) for row in rows]
            for name in rows[0]
            if name not in {"scale", "seconds"}
        },
    )
    save(figure, table.with_suffix(".png"))
    log.info("%s: guidance by scale\n%s\n%s", experiment.name, describe(rows), table)
    return table


def one_cell(trained: TrainedModel) -> list[int]:
    """Return the numbers by label that ask for a single cell."""
    manifest = trained.manifest
    trained_on = manifest.cells_per_category["train"][manifest.label]
    numbers = [0] * max(len(trained.labels), 1)
    numbers[int(np.argmax(trained_on)) if trained.labels else 0] = 1
    return numbers


def title_of(measure: str) -> str:
    """Return what a column says, in words."""
    what = measure.removeprefix("agreement_of_").replace("_", " ")
    return MEASURES.get(measure, f"agreement: {what} (1 is best)")


def describe(rows: Sequence[dict[str, float | str]]) -> str:
    """Return the rows as a table of a few lines."""
    widths = {name: max(len(name), 8) for name in rows[0]}
    lines = ["  ".join(f"{name:>{width}}" for name, width in widths.items())]
    lines += [
        "  ".join(
            f"{value:>{width}.3f}"
            if isinstance(value := row.get(name, ""), float)
            else f"{value:>{width}}"
            for name, width in widths.items()
        )
        for row in rows
    ]
    return "\n".join(f"    {line}" for line in lines)


def measures(compared: Comparison, side: str, seed: int) -> dict[str, float]:
    """Return the values of `MEASURES` of one side, as the report has them.

    With further covariates, also how far each, and all with the label, are confirmed.
    """
    sides = make_sides(compared, compared.modalities[RNA], seed=seed)
    other = sides.generated if side == "generated" else sides.control
    pair = make_pair(sides.held_out, other, sides.frame, 0)
    judge = use.fit_judge(sides.frame)
    numbers = {
        **distribution.distribution_metrics(pair),
        **support.support_metrics(pair),
        **use.use_metrics(pair, judge),
    }
    shares = covariate_agreements(compared, sides, 0)
    draws = {name: numbers[name] for name in MEASURES}
    draws |= {name: by_side[side] for name, by_side in shares.items()}
    return {name: float(np.asarray(values)[0]) for name, values in draws.items()}
