"""Requests for cells -> a trained model -> AnnData, in memory or on disk.

Needs only ``parameters.json``, ``manifest.json`` and ``job/`` of an experiment. Cells
are made in pieces, so the dense size of a request is never in memory; a cell is a
function of (model, seed, its position in the request) alone, so the pieces do not show.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from tqdm import tqdm

import cellgan
from cellgan import checkpoints, models
from cellgan.cell_files import write_cells
from cellgan.cell_requests import (
    LIKE_DATA,
    CellsRequest,
    check_library_sizes,
    check_save_path,
    label_codes,
    parse_cells_no,
)
from cellgan.config import as_json
from cellgan.experiment import Experiment
from cellgan.integer_counts import to_counts
from cellgan.manifest import RNA, DatasetManifest
from cellgan.models.base import GenerationRequest, GenerativeModel

log = logging.getLogger(__name__)

MOST_VALUES = 2**23
"""Values of a dense piece, at most: 32 MB as float32."""
MOST_CELLS = 4096
"""Cells of a piece, at most."""


class Request(NamedTuple):
    """A checked request."""

    numbers: tuple[int, ...]
    """Cells per label, in code order; one number for an unconditional model."""
    seed: int
    counts: bool
    """Whether normalised expression is to be turned into integer counts."""


class Piece(NamedTuple):
    """Consecutive cells of a request."""

    expression: sp.csr_matrix
    """``(n_cells, n_genes)``, float32."""
    are_counts: bool


@dataclasses.dataclass(frozen=True, repr=False)
class TrainedModel:
    """A model with the weights of one checkpoint, ready to generate."""

    experiment: Experiment
    manifest: DatasetManifest
    model: GenerativeModel
    step: int
    """Completed training steps of the weights."""

    def __repr__(self) -> str:
        labels = ", ".join(self.labels) if self.labels else "none"
        kind, folder = self.experiment.parameters.model.type, self.experiment.folder
        return (
            f"{kind} of {folder}, step {self.step}: {len(self.genes)} genes; "
            f"labels: {labels}"
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that cells can be asked for, in order; none if unconditional."""
        categories = self.manifest.label_vocabulary.categories
        return categories if self._is_conditional else ()

    @property
    def genes(self) -> tuple[str, ...]:
        """Gene names, in the order of the generated columns."""
        return self.manifest.features[RNA]

    @classmethod
    def load(cls, folder: str | Path, *, step: int | None = None) -> TrainedModel:
        """Load the model of an experiment folder.

        Parameters
        ----------
        folder
            Experiment folder. Neither its records nor its processed file are needed.
        step
            Checkpoint to load, in completed steps of the last stage; the newest by
            default. Earlier stages always take their newest.

        Raises
        ------
        DataError
            If the folder is missing, or is not that of a processed experiment.
        CheckpointError
            If it holds no complete checkpoint, or not the one of `step`.
        """
        experiment = Experiment.open(folder)
        manifest = experiment.manifest()
        model = models.build_model(experiment.parameters, manifest)
        weights = model.generation_weights()
        last = list(weights)[-1]
        restored = {
            stage: checkpoints.restore_weights(
                experiment.checkpoints_folder(stage),
                trackables,
                step=step if stage == last else None,
            )
            for stage, trackables in weights.items()
        }
        return cls(experiment, manifest, model, restored[last])

    def generate(
        self,
        cells_no: CellsRequest = LIKE_DATA,
        *,
        seed: int = 0,
        counts: bool = False,
    ) -> anndata.AnnData:
        """Generate cells.

        Parameters
        ----------
        cells_no
            Numbers in the order of the labels, numbers by label, or ``"like-data"``:
            see `cellgan.cell_requests.parse_cells_no`.
        seed
            The same seed gives the same cells, on the same kind of device.
        counts
            Return integer counts, with library sizes drawn from the training cells of
            each label, in place of library-size-normalised expression.

        Returns
        -------
        Cells in the order of their labels. ``X`` is sparse float32, ``obs`` holds the
        label (conditional models), ``uns["cellgan"]`` where the cells come from.

        Raises
        ------
        ConfigError
            If `cells_no` does not fit the model, or library sizes are unknown.
        """
        request = self._request(cells_no, seed, counts=counts)
        pieces = list(self._pieces(request))
        cells = self._frame(request, are_counts=pieces[0].are_counts)
        cells.X = sp.vstack([piece.expression for piece in pieces], format="csr")
        return cells

    def write(
        self,
        path: str | Path | None = None,
        cells_no: CellsRequest = LIKE_DATA,
        *,
        seed: int = 0,
        counts: bool = False,
    ) -> Path:
        """Generate cells into a file, in pieces: see `generate`.

        Parameters
        ----------
        path
            Ends in ``.h5ad``, ``.zarr`` or ``.mtx`` (a folder as 10x writes it);
            ``generated/cells.h5ad`` of the experiment by default. An existing file of
            the same format is replaced when all is written.
        cells_no, seed, counts
            As in `generate`.

        Returns
        -------
        Where the cells are.

        Raises
        ------
        ConfigError
            As `generate`, or if the path names no known format.
        DataError
            If the file cannot be written.
        """
        path = check_save_path(path or self.experiment.generated_file)
        request = self._request(cells_no, seed, counts=counts)
        started = time.perf_counter()
        pieces = self._pieces(request)
        first = next(pieces)
        cells = self._frame(request, are_counts=first.are_counts)
        every_piece = itertools.chain([first], pieces)
        write_cells(path, cells, (piece.expression for piece in every_piece))
        seconds = time.perf_counter() - started
        log.info(
            "%s, step %d: %d cells x %d genes, %s, in %.1f s (%.0f cells/s): %s",
            self.experiment.name,
            self.step,
            cells.n_obs,
            cells.n_vars,
            cells.uns["cellgan"]["scale"],
            seconds,
            cells.n_obs / seconds,
            path,
        )
        return path

    @property
    def _is_conditional(self) -> bool:
        return self.experiment.parameters.model.is_conditional

    def _request(self, cells_no: CellsRequest, seed: int, *, counts: bool) -> Request:
        numbers = parse_cells_no(
            cells_no,
            self.manifest,
            is_conditional=self._is_conditional,
            where="cells_no",
        )
        if counts:
            check_library_sizes(numbers, self.manifest, where="counts")
        return Request(numbers, seed, counts)

    def _pieces(self, request: Request) -> Iterator[Piece]:
        """Make the cells of a request, a piece at a time."""
        codes = label_codes(request.numbers)
        size = piece_size(len(self.manifest.features[RNA]))
        with tqdm(total=len(codes), unit=" cells", delay=2, unit_scale=True) as bar:
            for first in range(0, len(codes), size):
                piece = self._piece(request, first, codes[first : first + size])
                yield piece
                bar.update(piece.expression.shape[0])

    def _piece(
        self, request: Request, first: int, codes: npt.NDArray[np.int32]
    ) -> Piece:
        generated = self.model.generate(
            GenerationRequest(
                covariates={self.manifest.label: codes},
                n_cells=len(codes),
                seed=request.seed,
                first_cell=first,
            )
        )
        expression = generated.features[RNA]
        if request.counts and not generated.are_counts:
            expression = to_counts(
                expression,
                codes if self._is_conditional else None,
                self.manifest,
                seed=request.seed,
                first_cell=first,
            )
        are_counts = request.counts or generated.are_counts
        return Piece(sp.csr_matrix(expression, dtype=np.float32), are_counts)

    def _frame(self, request: Request, *, are_counts: bool) -> anndata.AnnData:
        """Return names, labels and provenance of a request's cells, without ``X``."""
        names = [f"generated_{cell}" for cell in range(sum(request.numbers))]
        obs = pd.DataFrame(index=pd.Index(names, dtype=object))
        if self._is_conditional:
            obs[self.manifest.label] = pd.Categorical.from_codes(
                label_codes(request.numbers),
                list(self.manifest.label_vocabulary.categories),
            )
        genes = pd.Index(list(self.manifest.features[RNA]), dtype=object)
        provenance = self._provenance(request, are_counts=are_counts)
        return anndata.AnnData(
            obs=obs, var=pd.DataFrame(index=genes), uns={"cellgan": provenance}
        )

    def _provenance(self, request: Request, *, are_counts: bool) -> dict[str, Any]:
        parameters = self.experiment.parameters
        return {
            "parameters": json.dumps(as_json(parameters), sort_keys=True),
            "model_type": parameters.model.type,
            "step": self.step,
            "seed": request.seed,
            "cells_no": np.array(request.numbers, dtype=np.int64),
            "scale": self._scale(request, are_counts=are_counts),
            "are_counts": are_counts,
            "versions": versions(),
        }

    def _scale(self, request: Request, *, are_counts: bool) -> str:
        """Say in words what the values are."""
        if request.counts:
            of_label = " of the cell's label" if self._is_conditional else ""
            return f"counts, library sizes drawn from the training cells{of_label}"
        if are_counts:
            return "counts"
        size = self.manifest.target_library_size
        if self.experiment.parameters.model.output_LSN is None:
            return (
                f"trained on library sizes normalised to {size}, not rescaled, no log"
            )
        return f"library-size-normalised to {size}, no log"


def piece_size(n_genes: int) -> int:
    """Return how many cells to make at once.

    A power of two, so that a piece holds whole batches of the model.
    """
    size = MOST_CELLS
    while size > 1 and size * n_genes > MOST_VALUES:
        size //= 2
    return size


def versions() -> Mapping[str, str]:
    """Return the versions of what has a part in the generated values."""
    return {
        "cellgan": cellgan.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "anndata": metadata.version("anndata"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
