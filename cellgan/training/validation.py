"""What is looked at while a model trains: losses on held-out cells, and maps of them.

The validation split is read once and kept sparse. All workers of a distributed run
take part in generating; only the chief draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import tensorflow as tf
from sklearn.decomposition import PCA

from cellgan.data.batches import CellBatch, evaluation_batches
from cellgan.data.cells import cell_batch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.evaluation.figures import maps
from cellgan.evaluation.figures.canvas import save
from cellgan.models.base import GenerationRequest, GenerativeModel, TrainingStage
from cellgan.seeds import derive_seed
from cellgan.training.summaries import RunLog

if TYPE_CHECKING:
    from cellgan.experiment import Experiment

VALIDATION_BATCH = 256
PROJECTED_COMPONENTS = 50


@dataclasses.dataclass(frozen=True)
class ValidationCells:
    """The validation cells."""

    expression: sp.csr_matrix
    """Library-size-normalised RNA, ``(n_cells, n_genes)``."""
    codes: Mapping[str, npt.NDArray[np.int32]]
    """``[covariate]`` ``(n_cells,)``."""
    library_sizes: Mapping[str, npt.NDArray[np.float32]]
    """``[modality]`` ``(n_cells,)``."""
    latent: npt.NDArray[np.float32] | None
    """Of models that have an encoder."""

    def __len__(self) -> int:
        return int(self.expression.shape[0])


class Validation:
    """Compares a stage with the validation cells of its experiment.

    Parameters
    ----------
    model
        Model that `stage` is of. Cells are drawn and mapped when it is the last stage,
        the one that completes the model.
    is_chief
        Whether this process draws and logs.
    """

    def __init__(
        self,
        experiment: Experiment,
        manifest: DatasetManifest,
        model: GenerativeModel,
        stage: TrainingStage,
        run_log: RunLog,
        *,
        is_chief: bool,
    ) -> None:
        self._experiment = experiment
        self._manifest = manifest
        self._model = model
        self._stage = stage
        self._log = run_log
        self._is_chief = is_chief
        self._draws_cells = stage is model.stages()[-1]
        self._validate_step = tf.function(
            stage.validate_step, reduce_retracing=True, autograph=False
        )
        self._real: ValidationCells | None = None

    def __call__(self, step: int) -> None:
        """Log the losses of the validation cells; map them beside generated ones."""
        if not self._manifest.split_sizes["valid"]:
            return
        losses = self._losses()
        if self._draws_cells:
            self._map_cells(step)
        if losses and self._is_chief:  # last: done again, they would be there twice
            self._log.scalars(step, losses)

    def is_missing(self, step: int) -> bool:
        """Whether the cells of a step were to be mapped, and no map is there."""
        is_mapped = self._draws_cells and self._manifest.split_sizes["valid"] > 0
        return is_mapped and not self._map_file(step).exists()

    def _map_file(self, step: int) -> Path:
        return self._experiment.embedding_folder / f"step_{step}.png"

    def _batches(self) -> tf.data.Dataset:
        return evaluation_batches(
            self._experiment.records_folder,
            self._manifest,
            "valid",
            batch_size=VALIDATION_BATCH,
        )

    def _losses(self) -> dict[str, float]:
        """Return the mean of each loss over the validation cells."""
        root = derive_seed(self._experiment.parameters.training.seed, "validation")
        totals: dict[str, float] = {}
        n_cells = 0
        for index, batch in enumerate(self._batches()):
            n_batch = int(batch.features[RNA].shape[0])
            seed = tf.constant((root, index), tf.int32)
            for name, value in self._validate_step(batch, seed).items():
                totals[name] = totals.get(name, 0.0) + float(value) * n_batch
            n_cells += n_batch
        return {f"validation/{name}": value / n_cells for name, value in totals.items()}

    def _map_cells(self, step: int) -> None:
        real = self._real_cells()
        generated = self._model.generate(
            GenerationRequest(
                covariates=real.codes,
                n_cells=len(real),
                seed=derive_seed(self._experiment.parameters.training.seed, "map"),
                library_sizes=real.library_sizes,
                source=self._sources(real),
            )
        )
        if not self._is_chief:
            return
        values = generated.features[RNA].toarray()
        if generated.are_counts:
            values = _scaled(values, self._manifest.target_library_size)
        both = np.log1p(np.concatenate([real.expression.toarray(), values]))
        components = min(PROJECTED_COMPONENTS, *both.shape)
        points = PCA(components, random_state=0).fit_transform(both)
        shown = self._draw_map(step, self._map_file(step), points, "validation cells")
        names = self._names(self._manifest.label)
        self._log.projector(
            points,
            [*names, *(names if shown else np.full(len(real), "generated"))],
            ["real"] * len(real) + ["generated"] * len(real),
        )
        if generated.latent is not None and real.latent is not None:
            latents = np.concatenate([real.latent, generated.latent])
            self._draw_latents(step, latents)

    def _sources(self, real: ValidationCells) -> CellBatch | None:
        """Return the cells that a model starts from, if it does.

        For one that edits cells, each cell's neighbour in the records: edited to the
        categories of another cell they show what a model changes. For one that starts
        from cells alike, the cells themselves.
        """
        kind = self._experiment.parameters.model.source_cells
        if kind == "none":
            return None
        neighbours = np.roll(np.arange(len(real)), 1 if kind == "any" else 0)
        values = real.expression[neighbours].toarray()
        sizes = real.library_sizes[RNA][neighbours]
        if self._manifest.record_values == "counts":
            values *= (sizes / self._manifest.target_library_size)[:, None]
            if kind == "alike":
                values = np.rint(values)  # counts, which scaling has rounded
        codes = {name: own[neighbours] for name, own in real.codes.items()}
        return cell_batch({RNA: values}, codes, {RNA: sizes})

    def _draw_map(
        self, step: int, path: Path, points: npt.NDArray[np.float32], what: str
    ) -> bool:
        """Map points in one colour per label; return whether there were labels."""
        is_conditional = self._experiment.parameters.model.knows_labels(self._manifest)
        method = self._experiment.parameters.training.embedding
        names = self._names(self._manifest.label) if is_conditional else None
        figure = maps.embedding_figure(
            points[: len(points) // 2],
            points[len(points) // 2 :],
            names,
            names,
            method=method,
            seed=0,
            log_components=False,
            categories=self._manifest.label_vocabulary.categories,
            title=f"{self._experiment.name}, step {step}: {what}",
        )
        save(figure, path)
        self._log.image(step, maps.METHOD_TITLES[method], path)
        return is_conditional

    def _draw_latents(self, step: int, latents: npt.NDArray[np.float32]) -> None:
        """Map latents once, and draw the map for every covariate."""
        method = self._experiment.parameters.training.embedding
        coordinates = maps.embed(latents, method=method, seed=0, log_components=False)
        folder = self._experiment.embedding_folder
        conditions = self._experiment.parameters.model.conditions(self._manifest)
        for name in conditions or (None,):
            path = folder / f"latents_{name or 'all'}_step_{step}.png"
            figure = maps.map_figure(
                coordinates,
                len(latents) // 2,
                None if name is None else np.tile(self._names(name), 2),
                name=maps.METHOD_TITLES[method],
                categories=name and self._manifest.covariates[name].categories,
                title=f"{self._experiment.name}, step {step}: latents"
                + (f" by {name}" if name else ""),
            )
            save(figure, path)
            self._log.image(step, f"latents/{name or 'all'}", path)

    def _names(self, covariate: str) -> npt.NDArray[np.str_]:
        codes = self._real_cells().codes[covariate]
        return self._manifest.covariates[covariate].decode(codes)

    def _real_cells(self) -> ValidationCells:
        """Return the validation cells, read once and kept sparse."""
        if self._real is None:
            target = self._manifest.target_library_size
            is_scaled = self._manifest.record_values == "normalized"
            rows: list[sp.csr_matrix] = []
            latents: list[npt.NDArray[np.float32]] = []
            codes: dict[str, list[npt.NDArray[np.int32]]] = {}
            sizes: dict[str, list[npt.NDArray[np.float32]]] = {}
            for batch in self._batches():
                values = batch.features[RNA].numpy()
                rows.append(
                    sp.csr_matrix(values if is_scaled else _scaled(values, target))
                )
                found = self._model.latents(batch.features)
                latents += [] if found is None else [found]
                for name, of in batch.covariates.items():
                    codes.setdefault(name, []).append(of.numpy())
                for name, of in batch.library_size.items():
                    sizes.setdefault(name, []).append(of.numpy())
            self._real = ValidationCells(
                sp.vstack(rows, format="csr"),
                {name: np.concatenate(of) for name, of in codes.items()},
                {name: np.concatenate(of) for name, of in sizes.items()},
                np.concatenate(latents) if latents else None,
            )
        return self._real


def _scaled(
    counts: npt.NDArray[np.float32], target_library_size: float
) -> npt.NDArray[np.float32]:
    """Scale rows to the same sum; a row of zeros stays one."""
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1e-12)
    return counts * (target_library_size / totals).astype(np.float32)
