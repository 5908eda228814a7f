"""The context-conditioned cycle autoencoder: cells as sums of what covariates add.

Every covariate has a linear, non-negative head, and all share a base head. A cell is
edited by exchanging the matrices of its categories: the counterfactual cell has the
other categories and keeps what they do not explain.

References
----------
The architecture is that of the open program "scRNA-seq Context Conditional
Autoencoder", which has no publication.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.data.transforms import normalize_library_size
from cellgan.errors import ConfigError
from cellgan.layers import scale_to_library_size
from cellgan.models.base import (
    AdditiveModel,
    EditedCells,
    GeneratedCells,
    GenerationRequest,
    Loadings,
    TrainingStage,
    blocks_of,
    resolve_jit,
    resolve_jit_of_parts,
    sparse_rows,
)
from cellgan.models.cycle.config import CycleConfig
from cellgan.models.cycle.networks import (
    BASE,
    CycleNetwork,
    FieldClassifier,
    stacked,
)
from cellgan.models.cycle.optimizer import CycleOptimizer
from cellgan.models.cycle.training import CycleRecipe, CycleStage, Fields
from cellgan.models.latent.stage import block_size
from cellgan.optimizers import make_optimizer
from cellgan.seeds import derive_seed


class CycleScale:
    """Between batches, expression as heads see it, and normalised expression.

    Parameters
    ----------
    kind
        ``"log1p"``, ``"normalized"`` or ``"stored"``, see `CycleConfig`.
    library_size
        That cells are normalised to.
    is_normalized
        Whether batches hold normalised values already.
    """

    def __init__(self, kind: str, library_size: int, *, is_normalized: bool) -> None:
        self._is_logged = kind == "log1p"
        self._is_scaled = kind != "stored" and not is_normalized
        self._library_size = library_size
        normalized = f"library-size-normalised to {library_size}"
        self.words = {
            "log1p": f"log(1 + x) of expression {normalized}",
            "normalized": f"expression {normalized}, no log",
            "stored": f"{normalized}, no log" if is_normalized else "counts, as stored",
        }[kind]

    def expression(self, batch: CellBatch) -> tf.Tensor:
        """Return what heads are given, ``(n_cells, n_genes)``."""
        values = batch.features[RNA]
        if self._is_scaled:
            total = batch.library_size[RNA]
            values = normalize_library_size(values, total, self._library_size)
        return tf.math.log1p(values) if self._is_logged else values

    def normalized(self, expression: tf.Tensor) -> tf.Tensor:
        """Return what heads give as expression normalised by library size, no log."""
        values = expression
        if self._is_logged:
            # exp(x) - 1, divided by exp(largest): what follows scales cells in any case
            largest = tf.reduce_max(expression, axis=1, keepdims=True)
            values = tf.exp(expression - largest) - tf.exp(-largest)
        return scale_to_library_size(values, self._library_size)


class CycleAutoencoder(AdditiveModel):
    """Additive heads of covariates.

    Parameters
    ----------
    network
        The heads.
    fields
        Covariates that heads are of.
    scale
        Of what heads are given.
    make_stage
        Called when the stage is first asked for.
    """

    def __init__(
        self,
        network: CycleNetwork,
        fields: Fields,
        scale: CycleScale,
        make_stage: Callable[[CycleNetwork], CycleStage],
    ) -> None:
        self._network = network
        self._fields = fields
        self._scale = scale
        self.scale = scale.words
        self._make_stage = make_stage
        self._strategy = tf.distribute.get_strategy()
        self._edit = tf.function(self._edited, autograph=False)

    def stages(self) -> tuple[TrainingStage, ...]:
        """Return the one stage, made at the first call."""
        return (self._stage,)

    def generation_weights(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the heads."""
        return {CycleStage.name: {"network": self._network}}

    def generate(self, request: GenerationRequest) -> GeneratedCells:
        """Edit the source cells of a request: normalised expression, no log.

        Raises
        ------
        ValueError
            If a request has no source cells.
        """
        if request.source is None:
            msg = "the cycle autoencoder edits cells: give a request source cells"
            raise ValueError(msg)
        target = {name: request.covariates[name] for name in self._fields.names}
        edited = self.edit(request.source, target, keep_parts=False)
        values = self._scale.normalized(tf.constant(edited.values)).numpy()
        return GeneratedCells({RNA: sparse_rows(values)}, are_counts=False)

    def heads(self) -> tuple[str, ...]:
        """Return the base and the fields."""
        return (BASE, *self._fields.names)

    def expression(self, cells: CellBatch) -> npt.NDArray[np.float32]:
        """Return cells on the scale of the heads."""
        found: npt.NDArray[np.float32] = self._scale.expression(cells).numpy()
        return found

    def edit(
        self,
        cells: CellBatch,
        target: Mapping[str, npt.NDArray[np.int32]],
        *,
        keep_parts: bool = True,
    ) -> EditedCells:
        """Take cells to other categories, in blocks that are padded to one size.

        Parameters
        ----------
        keep_parts
            Return contributions as well.
        """
        n_genes, names = self._network.n_genes, self._fields.names
        expression = np.asarray(self.expression(cells))
        source = {name: np.asarray(cells.covariates[name]) for name in names}
        codes = [
            stacked(of, names).numpy() for of in (source, {**source, **dict(target)})
        ]
        n_cells = len(expression)
        values = np.zeros((n_cells, n_genes), np.float32)
        n_heads = len(names) + 1 if keep_parts else 0
        parts = np.zeros((n_heads, n_cells, n_genes), np.float32)
        whole = GenerationRequest({}, n_cells, 0)
        for block in blocks_of(whole, block_size(n_genes)):
            arguments = [block.padded(of) for of in (expression, *codes)]
            output, added = self._edit(*map(tf.constant, arguments), keep_parts)
            values[block.in_request] = output.numpy()[block.in_block]
            if keep_parts:
                parts[:, block.in_request] = added.numpy()[:, block.in_block]
        return EditedCells(values, dict(zip(self.heads(), parts, strict=False)))

    def category_means(self, cells: CellBatch) -> Mapping[str, npt.NDArray[np.float32]]:
        """Return mean contributions, from the mean latents: heads are linear."""
        network, names = self._network, self._fields.names
        role = network.role(stacked(cells.covariates, names))
        expression = self._scale.expression(cells)
        hidden = network.by_field(network.translate(expression, role, role).hidden)
        mean = tf.reduce_mean(hidden, axis=0)
        means = {}
        for i, name in enumerate(names):
            first, n = network.starts[i], network.n_categories[i]
            matrices = network.contexts[first : first + n]
            latents = tf.einsum("k,ckm->cm", mean[i], matrices)
            means[name] = (
                network.field_scale * tf.matmul(latents, network.decoders[i])
            ).numpy()
        return means

    def loadings(self) -> Loadings:
        """Return loadings: of a category, with its matrix in both roles."""
        network = self._network
        categories = {}
        for i, name in enumerate(self._fields.names):
            first, n = network.starts[i], network.n_categories[i]
            matrices = network.contexts[first : first + n]
            both = tf.einsum("ckl,clm->ckm", matrices, matrices)
            scaled = network.field_scale * network.decoders[i]
            categories[name] = tf.einsum("ckm,mg->cgk", both, scaled).numpy()
        return Loadings(network.base.numpy(), categories)

    @functools.cached_property
    def _stage(self) -> CycleStage:
        with self._strategy.scope():
            return self._make_stage(self._network)

    def _edited(
        self,
        expression: tf.Tensor,
        source: tf.Tensor,
        target: tf.Tensor,
        keep_parts: bool,  # noqa: FBT001  (a constant of the compiled function)
    ) -> tuple[tf.Tensor, tf.Tensor]:
        network = self._network
        cycle = network.translate(
            expression, network.role(source), network.role(target)
        )
        parts = network.contributions(cycle) if keep_parts else tf.zeros((0, 0, 0))
        return cycle.output, parts

    @classmethod
    def from_parameters(
        cls, parameters: ExperimentParameters, manifest: DatasetManifest
    ) -> Self:
        """Build the model of one experiment.

        Raises
        ------
        ConfigError
            If the data have another modality than RNA, or a field cannot have a head.
        """
        if set(manifest.features) != {RNA}:
            msg = (
                f"model.type cycleAE edits RNA alone, but the data have "
                f"{', '.join(manifest.features)}. CFGen makes RNA and ATAC."
            )
            raise ConfigError(msg)
        model = cast(CycleConfig, parameters.model)
        training = parameters.training.of_stage(CycleStage.name)
        fields = fields_of(model, manifest)
        scale = CycleScale(
            model.input_scale,
            manifest.target_library_size,
            is_normalized=manifest.record_values == "normalized",
        )
        seed = derive_seed(training.seed, "cycle")
        network = CycleNetwork(
            len(manifest.features[RNA]),
            model.n_latent,
            fields.n_categories,
            field_scale=model.field_scale,
            seed=derive_seed(seed, "heads"),
        )

        settings = dataclasses.replace(training.optimizer, weight_decay=0.0)
        without_decay = dataclasses.replace(training, optimizer=settings)

        def make_stage(network: CycleNetwork) -> CycleStage:
            classifier = FieldClassifier(
                network.n_genes,
                model.classifier_width,
                fields.n_categories,
                seed=derive_seed(seed, "classifier"),
            )
            return CycleStage(
                network,
                classifier,
                CycleOptimizer(
                    network,
                    training,
                    base_weight_decay=model.base_weight_decay,
                    clip_norm=training.clip_norm,
                    jit=resolve_jit_of_parts(training.jit),
                ),
                make_optimizer(without_decay),
                fields,
                scale.expression,
                CycleRecipe(
                    model.targets,
                    model.reconstruction_weight,
                    model.integration_weight,
                    model.target_weight,
                ),
                jit=resolve_jit(training.jit),
            )

        return cls(network, fields, scale, make_stage)


def fields_of(model: CycleConfig, manifest: DatasetManifest) -> Fields:
    """Return the fields that have heads."""
    names = model.conditions(manifest)
    return Fields(
        names,
        tuple(np.array(model.known_codes(name, manifest), np.int32) for name in names),
        tuple(len(manifest.covariates[name]) for name in names),
    )
