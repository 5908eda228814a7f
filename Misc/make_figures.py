"""Make the figures of the README from a trained and evaluated experiment.

    python Misc/make_figures.py experiments/pbmc
    python Misc/make_figures.py experiments/kang_cfgen
    python Misc/make_figures.py experiments/pbmc3k_ldvae
    python Misc/make_figures.py experiments/blood

Copies the maps and the marker genes that `--train` and `--evaluate` drew, and draws the
losses from ``job/metrics.jsonl``, into Misc/figures. Of an experiment with a guidance
sweep, or with loadings of a linear decoder, copies that figure alone; of a composition
study, its heat map.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from matplotlib.figure import Figure

from cellgan.evaluation.figures.canvas import save
from cellgan.experiment import Experiment

FIGURES = Path(__file__).parent / "figures"
CURVES = {
    "critic_loss_1": "critic loss",
    "validation/critic_loss_1": "critic loss, validation cells",
    "Penalty": "gradient penalty",
}


def main() -> None:
    """Make all figures of one experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, help="folder of the experiment")
    folder = parser.parse_args().experiment
    FIGURES.mkdir(exist_ok=True)
    if (folder / "composition.json").exists():
        heat_map = folder / "report" / "figures" / "heat_map.png"
        shutil.copyfile(heat_map, FIGURES / "composition.png")
        return
    experiment = Experiment.open(folder)
    embedded = experiment.embedded_file
    alone = {
        "guidance.png": experiment.guidance_file.with_suffix(".png"),
        "loadings.png": embedded.with_name(f"{embedded.stem}_loadings.png"),
    }
    for name, source in alone.items():
        if source.exists():
            shutil.copyfile(source, FIGURES / name)
            return
    last = experiment.parameters.training.max_steps
    copies = {
        "map_in_training.png": experiment.embedding_folder / f"step_{last}.png",
        "map.png": experiment.evaluation_folder / "figures" / "map.png",
        "markers.png": experiment.evaluation_folder / "figures" / "markers.png",
    }
    for name, source in copies.items():
        shutil.copyfile(source, FIGURES / name)
    draw_losses(experiment, FIGURES / "losses.png")


def draw_losses(experiment: Experiment, path: Path) -> None:
    """Draw the losses of a run against its steps."""
    lines = experiment.metrics_file.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot()
    for tag, name in CURVES.items():
        points = [(row["step"], row[tag]) for row in rows if tag in row]
        axes.plot(*zip(*points, strict=True), label=name)
    axes.axhline(0, color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel="step", title=f"{experiment.name}: losses")
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    main()
