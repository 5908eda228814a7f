"""Training cells that a model starts from when a request names none of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from cellgan.data.batches import CellBatch, cells_in_order
from cellgan.data.cells import cell_batch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.generation.integer_counts import uniform
from cellgan.seeds import derive_seed

CELLS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class SourceCells:
    """Cells to start from, in the order of a request; those drawn twice are kept once.

    The dense size of a request is never in memory.
    """

    values: sp.csr_matrix
    """RNA of different cells, ``(n_different, n_genes)`` float32, as in the records."""
    library_size: npt.NDArray[np.float32]
    codes: Mapping[str, npt.NDArray[np.int32]]
    rows: npt.NDArray[np.int64]
    """Which of them each cell of the request starts from."""

    def piece(self, cells: slice) -> CellBatch:
        """Return the sources of some consecutive cells of the request."""
        rows = self.rows[cells]
        return cell_batch(
            {RNA: self.values[rows]},
            {name: codes[rows] for name, codes in self.codes.items()},
            {RNA: self.library_size[rows]},
        )


def draw_sources(
    folder: Path,
    manifest: DatasetManifest,
    n_cells: int,
    *,
    seed: int,
    wanted: Mapping[str, npt.NDArray[np.int32]] | None = None,
) -> SourceCells:
    """Draw training cells, all equally likely, each as often as it falls.

    Parameters
    ----------
    folder
        Of the records.
    n_cells
        Of a request; the first ones are the same in a longer request.
    seed
        Of the request.
    wanted
        Codes ``(n_cells,)`` by covariate, that of the label among them: a cell starts
        from one that agrees in all of them; if there is none, in the label; if there
        is none either, from any. None to start from any.

    Raises
    ------
    DataError
        If the records are not there.
    """
    n_train = manifest.split_sizes["train"]
    draws = uniform(derive_seed(seed, "source cells"), 0, n_cells)
    if wanted is None:
        drawn = np.minimum((draws * n_train).astype(np.int64), n_train - 1)
    else:
        drawn = _alike(folder, manifest, wanted, draws)
    different, rows = np.unique(drawn, return_inverse=True)
    values: list[sp.csr_matrix] = [
        sp.csr_matrix((0, len(manifest.features[RNA])), dtype=np.float32)
    ]
    sizes: list[npt.NDArray[np.float32]] = []
    codes: dict[str, list[npt.NDArray[np.int32]]] = {
        name: [] for name in manifest.covariates
    }
    first = 0
    batches = cells_in_order(folder, manifest, "train", batch_size=CELLS_AT_ONCE)
    for batch in batches:
        n_batch = int(batch.library_size[RNA].shape[0])
        here = different[(different >= first) & (different < first + n_batch)] - first
        first += n_batch
        values.append(sp.csr_matrix(batch.features[RNA].numpy()[here]))
        sizes.append(batch.library_size[RNA].numpy()[here])
        for name, parts in codes.items():
            parts.append(batch.covariates[name].numpy()[here])
    return SourceCells(
        sp.vstack(values, format="csr"),
        np.concatenate(sizes),
        {name: np.concatenate(parts) for name, parts in codes.items()},
        rows.reshape(-1),
    )


def _alike(
    folder: Path,
    manifest: DatasetManifest,
    wanted: Mapping[str, npt.NDArray[np.int32]],
    draws: npt.NDArray[np.float64],
) -> npt.NDArray[np.int64]:
    """Return the training cell that each cell starts from, by uniform draws."""
    names = list(wanted)
    batches = cells_in_order(folder, manifest, "train", batch_size=CELLS_AT_ONCE)
    known = np.concatenate(
        [
            np.stack([batch.covariates[name].numpy() for name in names], axis=1)
            for batch in batches
        ]
    )
    table = np.stack([wanted[name] for name in names], axis=1)
    kinds, kind_of = np.unique(table, axis=0, return_inverse=True)
    kind_of = kind_of.reshape(-1)
    label = names.index(manifest.label)
    drawn = np.zeros(len(draws), np.int64)
    for index, kind in enumerate(kinds):
        alike = np.flatnonzero((known == kind).all(axis=1))
        if not len(alike):
            alike = np.flatnonzero(known[:, label] == kind[label])
        if not len(alike):
            alike = np.arange(len(known))
        mine = kind_of == index
        places = (draws[mine] * len(alike)).astype(np.int64)
        drawn[mine] = alike[np.minimum(places, len(alike) - 1)]
    return drawn
