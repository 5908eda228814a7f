"""Real and generated cells read from their files and brought to one scale.

Labels decide which rows are drawn before any expression is read, so files much larger
than memory can be compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.errors import DataError
from cellgan.evaluation import metrics
from cellgan.evaluation.metrics import Labels
from cellgan.experiment import Experiment
from cellgan.seeds import derive_seed

FEWEST_CELLS = 10
"""Fewer cells than this on either side are not worth a comparison."""
MOST_CELLS = 5000
"""At most this many cells of each side are compared."""
MOST_TRAINING_CELLS = 10_000
"""At most this many training cells teach the space and the label classifier."""

Rows = npt.NDArray[np.intp]


@dataclasses.dataclass(frozen=True)
class Cells:
    """Cells on the scale of the comparison."""

    log_values: sp.csr_array
    """log1p of expression at one library size, ``(n_cells, n_genes)``."""
    labels: Labels
    """Label of every cell; all ``""`` when the generated ones have none."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> Cells:
        """Return the cells of these rows."""
        return Cells(self.log_values[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything a report compares, and where it is from."""

    training: Cells
    """Real cells that the space is learned from."""
    held_out: Cells
    generated: Cells
    """As many of each label as `held_out` has."""
    control: Cells
    """Other training cells, as many of each label (at most about half of what there
    are): what a perfect generator would make."""
    genes: tuple[str, ...]
    """Names of the genes that both files have, in the order of the real one's."""
    split: str
    """The split that `held_out` is of."""
    label: str | None
    """The covariate compared; None when generated cells have no label."""
    library_size: float
    """The library size that every cell is scaled to."""
    origin: Mapping[str, Any]
    """What the generated file says of itself."""


def read_comparison(experiment: Experiment, path: Path, *, seed: int) -> Comparison:
    """Read real cells of an experiment, and generated ones from a file.

    Parameters
    ----------
    experiment
        A processed experiment.
    path
        ``.h5ad`` file of generated cells: counts or expression, without logarithm.
        Genes are matched by name.
    seed
        Seed of the cells that are drawn.

    Raises
    ------
    DataError
        If a file is missing or unreadable, there are too few cells to compare, or the
        files have no gene in common.
    """
    manifest = experiment.manifest()
    size = float(manifest.target_library_size)
    if not path.exists():
        msg = f"{path}: no such file of generated cells. Run --generate first."
        raise DataError(msg)
    with open_cells(experiment.processed_file) as real, open_cells(path) as made:
        label = manifest.label if manifest.label in made.obs else None
        split, rows = _draw_rows(experiment, real, made, label, seed)
        _check_numbers(experiment, path, rows)
        ours, theirs = _shared_genes(real, made, path)
        cells = {
            name: Cells(
                _read(real, of_split, ours, size), cell_labels(real, label)[of_split]
            )
            for name, of_split in rows.items()
            if name != "generated"
        }
        drawn = rows["generated"]
        cells["generated"] = Cells(
            _read(made, drawn, theirs, size), cell_labels(made, label)[drawn]
        )
        return Comparison(
            **cells,
            genes=tuple(real.var_names[ours]),
            split=split,
            label=label,
            library_size=size,
            origin=_origin(made, path),
        )


@contextlib.contextmanager
def open_cells(path: Path) -> Iterator[anndata.AnnData]:
    """Open an ``.h5ad`` file without reading its expression.

    Raises
    ------
    DataError
        If the file is missing or cannot be read.
    """
    if not path.exists():
        msg = f"{path}: no such file. Run --process first."
        raise DataError(msg)
    try:
        cells = anndata.read_h5ad(path, backed="r")
    except (OSError, KeyError, ValueError) as error:
        msg = f"{path}: cannot be read as .h5ad: {error}."
        raise DataError(msg) from error
    try:
        yield cells
    finally:
        cells.file.close()


def held_out_split(cells: anndata.AnnData, experiment: Experiment) -> str:
    """Return the split that cells are tested on: test, or valid when that is empty.

    Raises
    ------
    DataError
        If both are empty.
    """
    present = set(cells.obs["split"])
    for split in ("test", "valid"):
        if split in present:
            return split
    msg = (
        f"{experiment.processed_file}: no held-out cells: the test and valid splits "
        f"are empty.\n    Set input_ds.split.test_cells (or valid_cells) and run "
        f"--process again."
    )
    raise DataError(msg)


def cell_labels(cells: anndata.AnnData, label: str | None) -> Labels:
    """Return every cell's label as text; ``""`` for all when `label` is None."""
    if label is None:
        return np.full(cells.n_obs, "", dtype=np.str_)
    return np.asarray(cells.obs[label].astype(str), dtype=np.str_)


def _draw_rows(
    experiment: Experiment,
    real: anndata.AnnData,
    made: anndata.AnnData,
    label: str | None,
    seed: int,
) -> tuple[str, dict[str, Rows]]:
    """Return the held-out split, and which rows of either file to read."""
    labels = cell_labels(real, label)
    split = held_out_split(real, experiment)
    held_out, training = (
        np.flatnonzero(real.obs["split"] == name) for name in (split, "train")
    )
    drawn, generated = metrics.draw_per_label(
        (labels[held_out], cell_labels(made, label)), max_cells=MOST_CELLS, seed=seed
    )
    held_out = held_out[drawn]
    # Principal components follow the noise of the very cells they are learned from:
    # a random forest would tell these from held-out cells, so the control has others.
    rng = np.random.default_rng(derive_seed(seed, "control"))
    half = np.sort(rng.permutation(training)[: len(training) // 2])
    drawn, _ = metrics.draw_per_label(
        (labels[half], labels[held_out]), max_cells=MOST_CELLS, seed=seed
    )
    control = half[drawn]
    others = np.setdiff1d(training, control)
    (drawn,) = metrics.draw_per_label(
        (labels[others],), max_cells=MOST_TRAINING_CELLS, seed=seed
    )
    return split, {
        "training": others[drawn],
        "control": control,
        "held_out": held_out,
        "generated": generated,
    }


def _check_numbers(experiment: Experiment, path: Path, rows: dict[str, Rows]) -> None:
    for name, drawn in rows.items():
        if len(drawn) < FEWEST_CELLS:
            numbers = ", ".join(f"{len(of)} {key}" for key, of in rows.items())
            msg = (
                f"{experiment.name}: too few cells to compare ({name}): of the labels "
                f"that both files have there are {numbers}; {FEWEST_CELLS} of each are "
                f"needed.\n    Generate more cells into {path}, or process again "
                f"with more test or valid cells."
            )
            raise DataError(msg)


def _shared_genes(
    real: anndata.AnnData, made: anndata.AnnData, path: Path
) -> tuple[Rows, Rows]:
    """Return the columns of the genes that both have, in the real ones' order."""
    if not made.var_names.is_unique:
        twice = made.var_names[made.var_names.duplicated()][0]
        msg = f'{path}: the gene "{twice}" is there twice. Give every gene one name.'
        raise DataError(msg)
    theirs = made.var_names.get_indexer(real.var_names)
    ours = np.flatnonzero(theirs >= 0)
    if len(ours) < 2:
        msg = (
            f"{path}: {len(ours)} of its {made.n_vars} genes are among the "
            f"{real.n_vars} of the experiment: its first is "
            f'"{made.var_names[0]}", the experiment\'s "{real.var_names[0]}".\n'
            f"    Generated and real cells must name genes alike."
        )
        raise DataError(msg)
    return ours, theirs[ours]


def _read(
    cells: anndata.AnnData, rows: Rows, columns: Rows, library_size: float
) -> sp.csr_array:
    """Read rows and scale them by all their genes; return the wanted columns."""
    values = sp.csr_array(cells[rows].X)
    if not np.isfinite(values.data).all() or (values.data < 0).any():
        msg = (
            f"{cells.filename}: holds values that are negative or not finite.\n"
            f"    Counts or library-size-normalised expression are expected."
        )
        raise DataError(msg)
    return metrics.log_expression(values, library_size)[:, columns]


def _origin(made: anndata.AnnData, path: Path) -> dict[str, Any]:
    """Return where generated cells come from, as far as their file says."""
    said = made.uns.get("cellgan", {})
    keys = ("model_type", "step", "seed", "scale")
    return {"file": path.name, **{key: said[key] for key in keys if key in said}}
