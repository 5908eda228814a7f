"""LDVAE: a variational autoencoder of counts with a linear decoder.

Every latent dimension has one loading per gene, so that what it stands for can be read.
Cells are made from latents of the prior, or of the posteriors of other cells.

References
----------
Svensson et al. (2020), Interpretable factor models of single-cell RNA-seq via
variational autoencoders. https://doi.org/10.1093/bioinformatics/btaa169
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import tensorflow as tf

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import ConfigError
from cellgan.layers.count_draws import DrawnCounts
from cellgan.layers.likelihoods import CountDistribution
from cellgan.models.base import (
    Block,
    GeneratedCells,
    GenerationRequest,
    ReconstructingModel,
    Reconstruction,
    TrainingStage,
    blocks_of,
    resolve_jit_of_parts,
    resolve_jit_of_small,
)
from cellgan.models.latent.stage import (
    LATENT,
    block_size,
    cells_of_block,
    fold_in,
    joined_cells,
    padded_tensors,
)
from cellgan.models.ldvae.config import LinearVaeConfig
from cellgan.models.ldvae.networks import (
    Decoded,
    Encoded,
    VaeNetwork,
    normal_log_density,
)
from cellgan.models.ldvae.training import (
    Noise,
    VaeLoss,
    VaeStage,
    WarmUp,
    library_prior,
    observed_log_library,
)
from cellgan.optimizers import make_optimizer
from cellgan.seeds import derive_seed

SIMPLEX_DRAWS = 1000
"""Draws of a logistic normal latent whose mean it is told by."""


class LinearVae(ReconstructingModel):
    """The linearly decoded variational autoencoder.

    Parameters
    ----------
    loss
        Of the network.
    make_stage
        Called when the stage is first asked for.
    is_logistic
        Whether the decoder is given the softmax of latents.
    jit
        Compile what cells are reconstructed by with XLA.
    """

    def __init__(
        self,
        loss: VaeLoss,
        make_stage: Callable[[VaeLoss], VaeStage],
        *,
        is_logistic: bool,
        jit: bool,
    ) -> None:
        self._loss = loss
        self._network = loss.network
        self._is_logistic = is_logistic
        self._make_stage = make_stage
        self._strategy = tf.distribute.get_strategy()
        self._block_size = block_size(self._network.n_genes)
        self._latent_means = tf.function(
            self._means, reduce_retracing=True, autograph=False
        )
        self._made = tf.function(self._make, autograph=False)
        options: dict[str, Any] = {"jit_compile": jit, "autograph": False}
        self._at_mean = tf.function(self._reconstruct_mean, **options)
        self._at_draw = tf.function(self._reconstruct_draw, **options)

    def stages(self) -> tuple[TrainingStage, ...]:
        """Return the one stage, made at the first call."""
        return (self._stage,)

    def generation_weights(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the network."""
        return {VaeStage.name: {"network": self._network}}

    def generate(self, request: GenerationRequest) -> GeneratedCells:
        """Make the cells of a request.

        With a source, a latent is drawn from the posterior of the cell's source, and so
        is the library size unless the request names one (or the source's total, where
        the model observes it). Without, both are drawn from the prior.
        """
        seeds = {
            name: tf.constant((derive_seed(request.seed, name), 0), tf.int32)
            for name in ("noise", "counts")
        }
        pieces = []
        for block in blocks_of(request, self._block_size):
            source = None
            if request.source is not None:
                source = _padded(request.source, block)
            sizes = (request.library_sizes or {}).get(RNA)
            made = self._made(
                source,
                padded_tensors(request.covariates, block, np.int32),
                None if sizes is None else tf.constant(block.padded(sizes)),
                seeds["noise"],
                seeds["counts"],
                tf.constant(block.number, tf.int64),
            )
            pieces.append(cells_of_block(made, block))
        return joined_cells(pieces, are_counts=True)

    def latents(self, features: Mapping[str, tf.Tensor]) -> npt.NDArray[np.float32]:
        """Return the means of the latents of counts; of shares, with softmax."""
        latents: npt.NDArray[np.float32] = self._latent_means(features[RNA]).numpy()
        return latents

    def gene_loadings(self) -> npt.NDArray[np.float32]:
        """Return what a unit of a latent dimension adds to the logits of genes.

        Returns
        -------
        ``(n_genes, n_latent)``, with the batch normalisation folded in.
        """
        loadings: npt.NDArray[np.float32] = self._network.decoder.loadings().numpy()
        return loadings

    def reconstruct(
        self, cells: CellBatch, *, n_samples: int = 0, seed: int = 0
    ) -> Reconstruction:
        """Encode and decode cells.

        Notes
        -----
        With ``n_samples=0``, `negative_log_likelihood` is that of the counts given the
        means of latent and log library size, and `elbo` is estimated with one draw.
        With draws it is that of the counts themselves, estimated by importance
        sampling: never above minus `elbo` but for rounding, and the closer the more
        draws (the original takes 1,000).
        """
        n_cells = int(cells.features[RNA].shape[0])
        whole = GenerationRequest({}, n_cells, seed)
        pieces = [
            tuple(
                of[block.in_block] for of in self._block(cells, block, n_samples, seed)
            )
            for block in blocks_of(whole, self._block_size)
        ]
        latent, expression, negative_log_likelihood, elbo = (
            np.concatenate(of) for of in zip(*pieces, strict=True)
        )
        return Reconstruction(latent, expression, negative_log_likelihood, elbo)

    def posterior_predictive(
        self, cells: CellBatch, *, seed: int = 0, first_cell: int = 0
    ) -> sp.csr_matrix:
        """Return counts ``(n_cells, n_genes)`` drawn at draws of cells' posteriors."""
        n_cells = int(cells.features[RNA].shape[0])
        made = self.generate(
            GenerationRequest(
                covariates={k: np.asarray(v) for k, v in cells.covariates.items()},
                n_cells=n_cells,
                seed=seed,
                first_cell=first_cell,
                source=cells,
            )
        )
        return made.features[RNA]

    def _block(
        self, cells: CellBatch, block: Block, n_samples: int, seed: int
    ) -> tuple[npt.NDArray[np.float32], ...]:
        """Reconstruct the cells of a block."""
        padded = _padded(cells, block)
        root = tf.constant(
            (derive_seed(seed, "reconstruction"), block.number), tf.int32
        )
        latent, shares, loss = (of.numpy() for of in self._at_mean(padded))
        sums = np.zeros_like(shares, dtype=np.float64)
        elbos, log_weights = [], []
        for index in range(max(n_samples, 1)):
            drawn = self._at_draw(padded, fold_in(root, index))
            sums += drawn[0].numpy()
            elbos.append(drawn[1].numpy())
            log_weights.append(drawn[2].numpy())
        if n_samples:
            shares = (sums / n_samples).astype(np.float32)
            logs = np.logaddexp.reduce(np.asarray(log_weights, np.float64), axis=0)
            loss = (math.log(n_samples) - logs).astype(np.float32)
        return latent, shares, loss, np.mean(elbos, axis=0, dtype=np.float32)

    def _means(self, counts: tf.Tensor) -> tf.Tensor:
        latent = self._network.encode(counts).latent
        if not self._is_logistic:
            return latent.mean
        shape = (SIMPLEX_DRAWS, 1, self._network.n_latent)
        noise = tf.random.stateless_normal(shape, (0, 0), alg="philox")
        deviation = tf.sqrt(latent.variance)
        return tf.reduce_mean(tf.nn.softmax(latent.mean + deviation * noise), axis=0)

    def _distribution(
        self, decoded: Decoded, log_library: tf.Tensor, cells: CellBatch
    ) -> CountDistribution:
        codes = self._loss.dispersions(cells.covariates)
        return self._network.distribution(decoded, log_library, codes)

    def _reconstruct_mean(self, cells: CellBatch) -> tuple[tf.Tensor, ...]:
        """Return latents, shares, and minus the log-likelihood at the means."""
        encoded, counts = self._encoded(cells)
        batches = self._loss.batches(cells.covariates)
        decoded = self._network.decode(encoded.latent.mean, batches)
        log_library = (
            observed_log_library(cells)
            if encoded.log_library is None
            else encoded.log_library.mean
        )
        distribution = self._distribution(decoded, log_library, cells)
        loss = -tf.reduce_sum(distribution.log_prob(counts), axis=1)
        return self._means(counts), tf.nn.softmax(decoded.logits), loss

    def _reconstruct_draw(
        self, cells: CellBatch, seed: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Return shares, the bound and the log importance weight of one draw."""
        encoded, counts = self._encoded(cells)
        noise = Noise.draw(tf.shape(counts)[0], self._network.n_latent, seed)
        latent = encoded.latent.draw(noise.latent)
        batches = self._loss.batches(cells.covariates)
        decoded = self._network.decode(latent, batches)
        divergence = encoded.latent.divergence()
        weight = normal_log_density(latent, 0.0, 1.0)
        weight -= encoded.latent.log_density(latent)
        if encoded.log_library is None:
            log_library = observed_log_library(cells)
        else:
            log_library = encoded.log_library.draw(noise.log_library)
            priors = self._loss.library_priors(cells.covariates)
            divergence += encoded.log_library.divergence(*priors)
            weight += normal_log_density(log_library, *priors)
            weight -= encoded.log_library.log_density(log_library)
        distribution = self._distribution(decoded, log_library, cells)
        log_prob = tf.reduce_sum(distribution.log_prob(counts), axis=1)
        return tf.nn.softmax(decoded.logits), log_prob - divergence, log_prob + weight

    def _encoded(self, cells: CellBatch) -> tuple[Encoded, tf.Tensor]:
        counts = cells.features[RNA]
        return self._network.encode(counts), counts

    def _make(
        self,
        source: CellBatch | None,
        covariates: Mapping[str, tf.Tensor],
        library_size: tf.Tensor | None,
        noise_seed: tf.Tensor,
        counts_seed: tf.Tensor,
        block_number: tf.Tensor,
    ) -> dict[str, tf.Tensor | DrawnCounts]:
        """Return counts and latents of a block."""
        own = fold_in(noise_seed, block_number)
        noise = Noise.draw(self._block_size, self._network.n_latent, own)
        if source is None:
            latent = noise.latent
            mean, variance = self._loss.library_priors(covariates)
            log_library = mean + tf.sqrt(variance) * noise.log_library
        else:
            encoded, _ = self._encoded(source)
            latent = encoded.latent.draw(noise.latent)
            log_library = (
                observed_log_library(source)
                if encoded.log_library is None
                else encoded.log_library.draw(noise.log_library)
            )
        if library_size is not None:
            log_library = tf.math.log(library_size)[:, tf.newaxis]
        decoded = self._network.decode(latent, self._loss.batches(covariates))
        codes = self._loss.dispersions(covariates)
        distribution = self._network.distribution(decoded, log_library, codes)
        first_cell = block_number * self._block_size
        counts = distribution.sample(counts_seed, first_cell)
        return {RNA: counts, LATENT: self._network.simplex(latent)}

    @functools.cached_property
    def _stage(self) -> VaeStage:
        with self._strategy.scope():
            return self._make_stage(self._loss)

    @classmethod
    def from_parameters(
        cls, parameters: ExperimentParameters, manifest: DatasetManifest
    ) -> Self:
        """Build the model of one experiment.

        Raises
        ------
        ConfigError
            If the data have another modality than RNA, or lack the batch covariate.
        """
        if set(manifest.features) != {RNA}:
            msg = (
                f"model.type LDVAE is of RNA alone, but the data have "
                f"{', '.join(manifest.features)}. CFGen makes RNA and ATAC."
            )
            raise ConfigError(msg)
        model = cast(LinearVaeConfig, parameters.model)
        training = parameters.training.of_stage(VaeStage.name)
        (batch_key,) = model.batch_covariate(manifest) or (None,)
        dispersion_key = {
            "gene": None,
            "gene-batch": batch_key,
            "gene-label": manifest.label,
        }[model.inverse_dispersion]

        def n_categories(name: str | None) -> int:
            return 0 if name is None else len(manifest.covariates[name])

        n_batches = n_categories(batch_key)
        network = VaeNetwork(
            len(manifest.features[RNA]),
            n_latent=model.n_latent,
            n_hidden=model.n_hidden,
            n_layers=model.n_layers,
            n_batches=n_batches if n_batches > 1 else 0,
            n_dispersions=n_categories(dispersion_key),
            likelihood=model.likelihood,
            latent_distribution=model.latent_distribution,
            observes_library=model.observed_library,
            dropout=model.dropout,
            use_batch_norm=model.batch_norm,
            use_bias=model.decoder_bias,
            keeps_unbiased=model.running_variance == "unbiased",
            seed=derive_seed(training.seed, "weights"),
            dtype="mixed_bfloat16" if training.precision == "bfloat16" else "float32",
        )
        loss = VaeLoss(
            network,
            library_prior(manifest, batch_key),
            batch_key=batch_key,
            dispersion_key=dispersion_key,
        )
        warm_up = WarmUp(
            model.kl.unit,
            model.kl.length,
            model.kl.smallest,
            model.kl.largest,
            n_cells=manifest.split_sizes["train"],
            batch_size=training.batch_size,
            max_steps=training.max_steps,
        )

        def make_stage(loss: VaeLoss) -> VaeStage:
            return VaeStage(
                loss,
                make_optimizer(training),
                warm_up,
                starts_from_cells=model.initial_genes == "cells",
                clip_norm=training.clip_norm,
                jit=resolve_jit_of_small(training.jit),
            )

        return cls(
            loss,
            make_stage,
            is_logistic=model.latent_distribution == "logistic_normal",
            jit=resolve_jit_of_parts(training.jit),
        )


def _padded(cells: CellBatch, block: Block) -> CellBatch:
    """Return the cells of a block."""
    return CellBatch(
        *(
            {
                name: tf.constant(block.padded(np.asarray(of)))
                for name, of in each.items()
            }
            for each in cells
        )
    )
