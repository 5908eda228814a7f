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
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack, cast

import anndata
import keras
import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf
from tqdm import tqdm

import cellgan
from cellgan import models
from cellgan.config.base import ModelConfig
from cellgan.config.reading import as_json
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import DataError
from cellgan.experiment import Experiment
from cellgan.generation.allotment import (
    Codes,
    assign_covariates,
    check_guidance,
    draw_library_sizes,
    request_parts,
)
from cellgan.generation.files import write_cells
from cellgan.generation.integer_counts import to_counts
from cellgan.generation.requests import (
    LIKE_DATA,
    CellsRequest,
    check_library_sizes,
    check_save_path,
)
from cellgan.generation.sources import SourceCells, draw_sources
from cellgan.models.base import (
    GenerationRequest,
    GenerativeModel,
    SolverSettings,
    sparse_rows,
)
from cellgan.training import checkpoints

if TYPE_CHECKING:
    from mudata import MuData

log = logging.getLogger(__name__)

FEATURE_NAMES = {"rna": "genes", "atac": "peaks"}
DRAWN = "drawn from the model"
EDITED = "training cells, drawn at random and edited"
FROM_POSTERIORS = "drawn from posteriors of training cells with the same covariates"
"""Where generated cells come from."""
MOST_VALUES = 2**23
"""Values of a dense piece, at most: 32 MB as float32."""
MOST_CELLS = 4096
"""Cells of a piece, at most."""


class Request(NamedTuple):
    """A checked request."""

    numbers: tuple[int, ...]
    """Cells per label, in code order; one number for an unconditional model."""
    codes: Codes
    """All covariates of every cell."""
    seed: int
    counts: bool
    """Whether normalised expression is to be turned into integer counts."""
    library_sizes: Mapping[str, npt.NDArray[np.float32]] | None
    """Of every cell by modality, for models that make counts."""
    guidance: Mapping[str, float]
    solver: SolverSettings | None
    said: Mapping[str, Any]
    """What was asked for, as plain values."""
    model: ModelConfig
    """Whose conditions can be asked for."""
    sources: SourceCells | None = None
    """Of every cell, for models that start from cells."""

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return sum(self.numbers)

    def between(self, first: int, end: int) -> GenerationRequest:
        """Return what a model is asked for, of some consecutive cells."""
        sizes = self.library_sizes
        return GenerationRequest(
            covariates={name: of[first:end] for name, of in self.codes.items()},
            n_cells=min(end, self.n_cells) - first,
            seed=self.seed,
            first_cell=first,
            library_sizes=sizes and {name: of[first:end] for name, of in sizes.items()},
            guidance=self.guidance,
            solver=self.solver,
            source=self.sources.between(first, end) if self.sources else None,
        )


class Piece(NamedTuple):
    """Consecutive cells of a request."""

    features: Mapping[str, sp.csr_matrix]
    """``(n_cells, n_features)`` float32, by modality."""
    are_counts: bool


class Wishes(TypedDict, total=False):
    """What a request may say beside numbers and seed."""

    counts: bool
    """Return integer counts from a model of normalised expression, with library sizes
    drawn from the training cells of each label."""
    condition: Mapping[str, str]
    """Category, by covariate, of all cells."""
    requests: str | Path | None
    """File of requests, in place of numbers: see `wanted_cells.read_requests`."""
    guidance: Mapping[str, float]
    """Guidance scale by covariate: 1, the default, is plainly conditional."""
    latents: str
    """``"posterior"`` or ``"prior"``, see `GenerationParameters`."""
    library_size: int | str
    """See `cellgan.generation.allotment.draw_library_sizes`."""
    solver: SolverSettings | None


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
        return categories if self._knows_labels else ()

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
        **wishes: Unpack[Wishes],
    ) -> anndata.AnnData | MuData:
        """Generate cells.

        Parameters
        ----------
        cells_no
            Numbers in the order of the labels, numbers by label, or ``"like-data"``:
            see `cellgan.generation.requests.parse_cells_no`.
        seed
            The same seed gives the same cells, on the same kind of device.
        wishes
            See `Wishes`.

        Returns
        -------
        Cells in the order of their labels: an AnnData, or with RNA and ATAC a MuData.
        ``X`` is sparse float32, ``obs`` holds the covariates that the model is
        conditioned on, ``uns["cellgan"]`` where the cells come from.

        Raises
        ------
        ConfigError
            If the request does not fit the model, or library sizes are unknown.
        """
        request = self._request(cells_no, seed, wishes)
        pieces = list(self._pieces(request))
        frames = self._frames(request, are_counts=pieces[0].are_counts)
        for modality, cells in frames.items():
            cells.X = sp.vstack([p.features[modality] for p in pieces], format="csr")
        return joined(frames)

    def write(
        self,
        path: str | Path | None = None,
        cells_no: CellsRequest = LIKE_DATA,
        *,
        seed: int = 0,
        quiet: bool = False,
        **wishes: Unpack[Wishes],
    ) -> Path:
        """Generate cells into a file, in pieces: see `generate`.

        Parameters
        ----------
        path
            Ends in ``.h5ad``, ``.zarr`` or ``.mtx`` (a folder as 10x writes it), with
            RNA and ATAC in ``.h5mu``; in ``generated/`` of the experiment by default.
            An existing file of the same format is replaced when all is written.
        cells_no, seed, wishes
            As in `generate`.
        quiet
            Whether nothing is logged, as of files that do not stay.

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
        path = check_save_path(
            path or self.experiment.generated_file, modalities=self.manifest.features
        )
        request = self._request(cells_no, seed, wishes)
        started = time.perf_counter()
        pieces = self._pieces(request)
        first = next(pieces)
        frames = self._frames(request, are_counts=first.are_counts)
        every_piece = itertools.chain([first], pieces)
        write_cells(path, frames, (piece.features for piece in every_piece))
        seconds = time.perf_counter() - started
        if quiet:
            return path
        log.info(
            "%s, step %d: %d cells x %s, %s, in %.1f s (%.0f cells/s): %s",
            self.experiment.name,
            self.step,
            request.n_cells,
            " + ".join(
                f"{cells.n_vars} {FEATURE_NAMES[modality]}"
                for modality, cells in frames.items()
            ),
            frames[RNA].uns["cellgan"]["scale"],
            seconds,
            request.n_cells / seconds,
            path,
        )
        return path

    @property
    def _knows_labels(self) -> bool:
        return self.experiment.parameters.model.knows_labels(self.manifest)

    @property
    def _conditions(self) -> tuple[str, ...]:
        return self.experiment.parameters.model.conditions(self.manifest)

    def _request(self, cells_no: CellsRequest, seed: int, wishes: Wishes) -> Request:
        model = self.experiment.parameters.model.as_asked(
            wishes.get("latents", "posterior")
        )
        parts = request_parts(
            cells_no,
            self.manifest,
            model,
            condition=wishes.get("condition", {}),
            requests=wishes.get("requests"),
        )
        codes = assign_covariates(parts, self.manifest)
        numbers = np.bincount(
            codes[self.manifest.label], minlength=len(self.manifest.label_vocabulary)
        ).tolist()
        counts = wishes.get("counts", False)
        if counts and not model.makes_counts:
            check_library_sizes(numbers, self.manifest, where="counts")
        sizes = None
        if model.makes_counts:
            how = wishes.get("library_size", "modelled")
            if how != "modelled" or not model.draws_library_sizes:
                sizes = draw_library_sizes(codes, self.manifest, how, seed=seed)
        guidance = dict(wishes.get("guidance", {}))
        check_guidance(guidance, self._conditions)
        sources = None
        if model.source_cells != "none":
            folder = self.experiment.records_folder
            if not folder.is_dir():
                prior = ', or ask for --latents "prior", which starts from none'
                msg = (
                    f"{folder}: no such folder. Cells start from training cells, which "
                    "are in there: copy the experiment's folder whole"
                    f"{prior if model.source_cells == 'alike' else ''}."
                )
                raise DataError(msg)
            folder, n_cells = self.experiment.records_folder, sum(numbers)
            wanted = codes if model.source_cells == "alike" else None
            sources = draw_sources(
                folder, self.manifest, n_cells, seed=seed, wanted=wanted
            )
        knows_labels = model.knows_labels(self.manifest)
        return Request(
            numbers=tuple(numbers if knows_labels else [sum(numbers)]),
            codes=codes,
            seed=seed,
            counts=counts and not model.makes_counts,
            library_sizes=sizes,
            guidance=guidance,
            solver=wishes.get("solver"),
            said=_plain(wishes),
            model=model,
            sources=sources,
        )

    def _pieces(self, request: Request) -> Iterator[Piece]:
        """Make the cells of a request, a piece at a time."""
        size = piece_size(sum(map(len, self.manifest.features.values())))
        total = request.n_cells
        with tqdm(total=total, unit=" cells", delay=2, unit_scale=True) as bar:
            for first in range(0, total, size):
                yield self._piece(request, first, first + size)
                bar.update(min(size, total - first))

    def _piece(self, request: Request, first: int, end: int) -> Piece:
        generated = self.model.generate(request.between(first, end))
        features = dict(generated.features)
        if request.counts and not generated.are_counts:
            codes = request.codes[self.manifest.label][first:end]
            counts = to_counts(
                features[RNA].toarray(),
                codes if self._knows_labels else None,
                self.manifest,
                seed=request.seed,
                first_cell=first,
            )
            features[RNA] = sparse_rows(counts)
        return Piece(features, request.counts or generated.are_counts)

    def _frames(
        self, request: Request, *, are_counts: bool
    ) -> dict[str, anndata.AnnData]:
        """Return names, covariates and provenance of a request's cells, without X."""
        names = [f"generated_{cell}" for cell in range(request.n_cells)]
        obs = pd.DataFrame(index=pd.Index(names, dtype=object))
        for name in request.model.conditions(self.manifest):
            obs[name] = pd.Categorical.from_codes(
                request.codes[name], list(self.manifest.covariates[name].categories)
            )
        provenance = self._provenance(request, are_counts=are_counts)
        return {
            modality: anndata.AnnData(
                obs=obs.copy(),
                var=pd.DataFrame(index=pd.Index(list(features), dtype=object)),
                uns={"cellgan": provenance},
            )
            for modality, features in self.manifest.features.items()
        }

    def _provenance(self, request: Request, *, are_counts: bool) -> dict[str, Any]:
        parameters = self.experiment.parameters
        return {
            "parameters": json.dumps(as_json(parameters), sort_keys=True),
            "model_type": parameters.model.type,
            "step": self.step,
            "seed": request.seed,
            "cells_no": np.array(request.numbers, dtype=np.int64),
            "request": json.dumps(request.said, sort_keys=True),
            "scale": self._scale(request, are_counts=are_counts),
            "source": {"none": DRAWN, "any": EDITED, "alike": FROM_POSTERIORS}[
                request.model.source_cells
            ],
            "are_counts": are_counts,
            "versions": versions(),
        }

    def _scale(self, request: Request, *, are_counts: bool) -> str:
        """Say in words what the values are."""
        if request.counts:
            of_label = " of the cell's label" if self._knows_labels else ""
            return f"counts, library sizes drawn from the training cells{of_label}"
        if are_counts:
            return "counts"
        size = self.manifest.target_library_size
        model = self.experiment.parameters.model
        if not model.rescales_cells:
            return (
                f"trained on library sizes normalised to {size}, not rescaled, no log"
            )
        return f"library-size-normalised to {size}, no log"


def _plain(wishes: Wishes) -> dict[str, Any]:
    """Return wishes as what JSON can hold, those that are none left out."""
    said = {name: of for name, of in wishes.items() if of}
    if solver := wishes.get("solver"):
        said["solver"] = dataclasses.asdict(solver)
    if requests := wishes.get("requests"):
        said["requests"] = str(requests)
    for name in ("condition", "guidance"):
        if name in said:
            said[name] = dict(cast(Any, said[name]))
    return said


def joined(frames: Mapping[str, anndata.AnnData]) -> anndata.AnnData | MuData:
    """Return the cells of one modality as they are, those of several as a MuData."""
    if len(frames) == 1:
        return next(iter(frames.values()))
    import mudata  # noqa: PLC0415  (slow, and seldom needed)

    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(dict(frames))


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
