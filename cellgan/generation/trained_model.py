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
import pandas as pd
import scipy.sparse as sp
import tensorflow as tf

import cellgan
from cellgan import models
from cellgan.config.base import ModelConfig
from cellgan.config.parameters import ExperimentParameters
from cellgan.config.reading import as_json
from cellgan.data.cells import name_frame
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import DataError
from cellgan.experiment import Experiment
from cellgan.generation.allotment import (
    assign_covariates,
    check_guidance,
    request_parts,
)
from cellgan.generation.files import write_cells
from cellgan.generation.integer_counts import to_counts
from cellgan.generation.library_sizes import draw_library_sizes
from cellgan.generation.pieces import piece_size, request_rows, row_slices
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


class Request(NamedTuple):
    """A checked request."""

    numbers: tuple[int, ...]
    """Cells per label, in code order; one number for an unconditional model."""
    cells: GenerationRequest
    """Of all cells, without those to start from."""
    counts: bool
    """Whether normalised expression is to be turned into integer counts."""
    wishes: Mapping[str, Any]
    """What was asked for, as plain values."""
    model: ModelConfig
    """Whose conditions can be asked for."""
    sources: SourceCells | None = None
    """Of every cell, for models that start from cells."""

    def piece(self, rows: slice) -> GenerationRequest:
        """Return what a model is asked for, of some consecutive cells."""
        source = self.sources.piece(rows) if self.sources else None
        return dataclasses.replace(request_rows(self.cells, rows), source=source)


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
    """File of requests, in place of numbers: see `allotment.read_requests`."""
    guidance: Mapping[str, float]
    """Guidance scale by covariate: 1, the default, is plainly conditional."""
    latents: str
    """``"posterior"`` or ``"prior"``, see `GenerationParameters`."""
    library_size: int | str
    """See `cellgan.generation.library_sizes.draw_library_sizes`."""
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
            request.cells.n_cells,
            " + ".join(
                f"{cells.n_vars} {FEATURE_NAMES[modality]}"
                for modality, cells in frames.items()
            ),
            frames[RNA].uns["cellgan"]["scale"],
            seconds,
            request.cells.n_cells / seconds,
            path,
        )
        return path

    def row_slices(self, n_cells: int, *, task: str | None = None) -> Iterator[slice]:
        """Yield the rows of one piece of cells after the other: see `row_slices`."""
        size = piece_size(sum(map(len, self.manifest.features.values())))
        return row_slices(n_cells, size, task=task)

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
            cells=GenerationRequest(
                covariates=codes,
                n_cells=sum(numbers),
                seed=seed,
                library_sizes=sizes,
                guidance=guidance,
                solver=wishes.get("solver"),
            ),
            counts=counts and not model.makes_counts,
            wishes=_plain(wishes),
            model=model,
            sources=sources,
        )

    def _pieces(self, request: Request) -> Iterator[Piece]:
        """Make the cells of a request, a piece at a time."""
        for rows in self.row_slices(request.cells.n_cells, task=""):
            yield self._piece(request.piece(rows), counts=request.counts)

    def _piece(self, request: GenerationRequest, *, counts: bool) -> Piece:
        generated = self.model.generate(request)
        features = dict(generated.features)
        if counts and not generated.are_counts:
            codes = request.covariates[self.manifest.label]
            integers = to_counts(
                features[RNA].toarray(),
                codes if self._knows_labels else None,
                self.manifest,
                seed=request.seed,
                first_cell=request.first_cell,
            )
            features[RNA] = sparse_rows(integers)
        return Piece(features, counts or generated.are_counts)

    def _frames(
        self, request: Request, *, are_counts: bool
    ) -> dict[str, anndata.AnnData]:
        """Return names, covariates and provenance of a request's cells, without X."""
        n_cells = request.cells.n_cells
        obs = name_frame(f"generated_{cell}" for cell in range(n_cells))
        for name in request.model.conditions(self.manifest):
            obs[name] = pd.Categorical.from_codes(
                request.cells.covariates[name],
                list(self.manifest.covariates[name].categories),
            )
        record = self._provenance(request, are_counts=are_counts)
        return {
            modality: anndata.AnnData(
                obs=obs.copy(),
                var=name_frame(features),
                uns={"cellgan": record},
            )
            for modality, features in self.manifest.features.items()
        }

    def _provenance(self, request: Request, *, are_counts: bool) -> dict[str, Any]:
        parameters = self.experiment.parameters
        return provenance(
            parameters,
            self.step,
            model_type=parameters.model.type,
            seed=request.cells.seed,
            cells_no=np.array(request.numbers, dtype=np.int64),
            request=json.dumps(request.wishes, sort_keys=True),
            scale=self._scale(request, are_counts=are_counts),
            source={"none": DRAWN, "any": EDITED, "alike": FROM_POSTERIORS}[
                request.model.source_cells
            ],
            are_counts=are_counts,
        )

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
    plain = {name: value for name, value in wishes.items() if value}
    if solver := wishes.get("solver"):
        plain["solver"] = dataclasses.asdict(solver)
    if requests := wishes.get("requests"):
        plain["requests"] = str(requests)
    for name in ("condition", "guidance"):
        if name in plain:
            plain[name] = dict(cast(Any, plain[name]))
    return plain


def joined(frames: Mapping[str, anndata.AnnData]) -> anndata.AnnData | MuData:
    """Return the cells of one modality as they are, those of several as a MuData."""
    if len(frames) == 1:
        return next(iter(frames.values()))
    import mudata  # noqa: PLC0415  (slow, and seldom needed)

    with mudata.set_options(pull_on_update=False):
        return mudata.MuData(dict(frames))


def provenance(
    parameters: ExperimentParameters, step: int, **details: Any
) -> dict[str, Any]:
    """Return where cells come from, for ``uns["cellgan"]``.

    Parameters
    ----------
    step
        Of the weights.
    details
        What else is to be said.
    """
    return {
        "parameters": json.dumps(as_json(parameters), sort_keys=True),
        "step": step,
        **details,
        "versions": _versions(),
    }


def _versions() -> Mapping[str, str]:
    """Return the versions of what has a part in the generated values."""
    return {
        "cellgan": cellgan.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "anndata": metadata.version("anndata"),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
