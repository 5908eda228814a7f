"""scGAN and cscGAN: a Wasserstein GAN with gradient penalty for expression.

A generator maps noise to cells whose values sum to a fixed library size. cscGAN gives
the generator and its critic each cell's category, scGAN does not.

References
----------
Marouf et al. (2020), Realistic in silico generation and augmentation of single-cell
RNA-seq data using generative adversarial networks.
https://doi.org/10.1038/s41467-019-14018-z
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.layers import ReadOutKind
from cellgan.models.base import (
    GeneratedCells,
    GenerationRequest,
    GenerativeModel,
    TrainingStage,
    blocks_of,
    resolve_jit,
    sparse_rows,
)
from cellgan.models.gan.config import GanConfig
from cellgan.models.gan.networks import Critic, Generator
from cellgan.models.gan.training import BatchReader, GanStage, Player
from cellgan.optimizers import make_optimizer
from cellgan.seeds import derive_seed

logger = logging.getLogger(__name__)

_READ_OUTS: Mapping[str, ReadOutKind] = {
    "proj": "per_category",
    "old_proj": "projection",
}

CELLS_PER_BLOCK = 256
"""Cells are generated in blocks of this size, whatever is asked for, so that a cell's
noise and the shapes it is computed with depend on its index alone."""


class Gan(GenerativeModel):
    """scGAN, or cscGAN when `generator` has categories.

    Parameters
    ----------
    generator
        The network that cells are made with.
    label
        Covariate that a request gives codes of.
    make_stage
        Called when the stage is first asked for: generation needs neither critic nor
        optimizers.
    jit
        Compile with XLA.
    """

    def __init__(
        self,
        generator: Generator,
        label: str,
        make_stage: Callable[[Generator], GanStage],
        *,
        jit: bool,
    ) -> None:
        self._generator = generator
        self._label = label
        self._make_stage = make_stage
        self._strategy = tf.distribute.get_strategy()
        self._generate_block = tf.function(
            self._block, jit_compile=jit, autograph=False
        )

    def stages(self) -> tuple[TrainingStage, ...]:
        """Return the one stage, made at the first call."""
        return (self._stage,)

    def generation_weights(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the generator alone."""
        return {GanStage.name: {"generator": self._generator}}

    def generate(self, request: GenerationRequest) -> GeneratedCells:
        """Make the cells of a request, normalised by the running statistics."""
        codes = request.covariates.get(
            self._label, np.zeros(request.n_cells, dtype=np.int32)
        )
        seed = tf.constant((derive_seed(request.seed, "noise"), 0), tf.int32)
        pieces = []
        for block in blocks_of(request, CELLS_PER_BLOCK):
            cells = self._generate_block(
                tf.constant(block.padded(codes)),
                _fold_in(seed, tf.constant(block.number, tf.int64)),
            )
            pieces.append(cells.numpy()[block.in_block])
        n_genes = self._generator.last.kernel.shape[1]
        empty = np.zeros((0, n_genes), dtype=np.float32)
        rows = [sparse_rows(of) for of in (empty, *pieces)]
        features = sp.vstack(rows, format="csr")
        return GeneratedCells({RNA: features}, are_counts=False)

    @functools.cached_property
    def _stage(self) -> GanStage:
        with self._strategy.scope():
            return self._make_stage(self._generator)

    def _block(self, codes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        shape = (CELLS_PER_BLOCK, self._generator.n_latent)
        noise = tf.random.stateless_normal(
            shape, seed, dtype=self._generator.variable_dtype, alg="philox"
        )
        return self._generator(noise, codes, training=False).cells

    @classmethod
    def from_parameters(
        cls, parameters: ExperimentParameters, manifest: DatasetManifest
    ) -> Self:
        """Build the model of one experiment."""
        model = cast(GanConfig, parameters.model)
        training = parameters.training.of_stage(GanStage.name)
        n_genes = len(manifest.features[RNA])
        is_conditional = model.type == "cscGAN"
        n_categories = len(manifest.label_vocabulary) if is_conditional else None
        library_size = (
            manifest.target_library_size
            if model.output_LSN == "scale"
            else model.output_LSN
        )
        seed = derive_seed(training.seed, "weights")
        dtype = "mixed_bfloat16" if training.precision == "bfloat16" else "float32"
        jit = resolve_jit(training.jit)
        generator = Generator(
            (model.latent_dim, *model.gen_layers, n_genes),
            n_categories,
            normalization=model.gen_cond_type if is_conditional else "batchnorm",
            library_size=library_size,
            seed=seed,
            dtype=dtype,
        )
        read_out = _READ_OUTS[model.critic_cond_type] if is_conditional else "plain"

        def make_stage(generator: Generator) -> GanStage:
            if jit:
                logger.info("losses and gradients are compiled with XLA")
            critic = Critic(
                (n_genes, *model.critic_layers),
                n_categories,
                read_out=read_out,
                seed=seed,
                dtype=dtype,
            )
            return GanStage(
                Player(generator, make_optimizer(training, 1)),
                Player(critic, make_optimizer(training, training.critic_iters + 1)),
                _real_cells(manifest),
                penalty_weight=model.lambd,
                critic_iters=training.critic_iters,
                jit=jit,
            )

        return cls(generator, manifest.label, make_stage, jit=jit)


def _fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def _real_cells(manifest: DatasetManifest) -> BatchReader:
    is_scaled = manifest.record_values == "normalized"
    return BatchReader(
        label=manifest.label,
        ratios=manifest.label_ratios,
        library_size=None if is_scaled else manifest.target_library_size,
    )
