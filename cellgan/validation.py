"""What is looked at while a model trains: losses on held-out cells, and maps of them.

The validation split is read once and kept sparse. All workers of a distributed run
take part in generating; only the chief draws.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import tensorflow as tf
from sklearn.decomposition import PCA

from cellgan.batches import evaluation_batches
from cellgan.evaluation import plots
from cellgan.experiment import Experiment
from cellgan.manifest import RNA, DatasetManifest
from cellgan.models.base import GenerationRequest, GenerativeModel, TrainingStage
from cellgan.seeds import derive_seed
from cellgan.summaries import RunLog

VALIDATION_BATCH = 256
PROJECTED_COMPONENTS = 50


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
        self._validate_step = tf.function(stage.validate_step, reduce_retracing=True)
        self._real: tuple[sp.csr_matrix, npt.NDArray[np.int32]] | None = None

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
        real, codes = self._real_cells()
        label = self._manifest.label
        request = GenerationRequest(
            covariates={label: codes},
            n_cells=len(codes),
            seed=derive_seed(self._experiment.parameters.training.seed, "map"),
        )
        generated = self._model.generate(request).features[RNA]
        if not self._is_chief:
            return
        both = np.log1p(np.concatenate([real.toarray(), generated]))
        components = min(PROJECTED_COMPONENTS, *both.shape)
        points = PCA(components, random_state=0).fit_transform(both)
        vocabulary = self._manifest.label_vocabulary
        names = vocabulary.decode(codes)
        is_conditional = self._experiment.parameters.model.is_conditional
        method = self._experiment.parameters.training.embedding
        path = self._map_file(step)
        plots.embedding_figure(
            path,
            points[: len(codes)],
            points[len(codes) :],
            names if is_conditional else None,
            names if is_conditional else None,
            method=method,
            seed=0,
            log_components=False,
            categories=vocabulary.categories,
            title=f"{self._experiment.name}, step {step}: validation cells",
        )
        self._log.image(step, plots.METHOD_TITLES[method], path)
        shown = names if is_conditional else np.full(len(codes), "generated")
        self._log.projector(
            points,
            [*names, *shown],
            ["real"] * len(codes) + ["generated"] * len(codes),
        )

    def _real_cells(self) -> tuple[sp.csr_matrix, npt.NDArray[np.int32]]:
        """Return the validation cells, library-size-normalised, and their labels."""
        if self._real is None:
            target = float(self._manifest.target_library_size)
            is_scaled = self._manifest.record_values == "normalized"
            rows, codes = [], []
            for batch in self._batches():
                values = batch.features[RNA].numpy()
                totals = values.sum(axis=1, keepdims=True)
                rows.append(
                    sp.csr_matrix(values if is_scaled else values * (target / totals))
                )
                codes.append(batch.covariates[self._manifest.label].numpy())
            self._real = sp.vstack(rows, format="csr"), np.concatenate(codes)
        return self._real
