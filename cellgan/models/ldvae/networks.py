"""Networks of the linearly decoded variational autoencoder.

Encoders see log counts and give normal distributions: of the latent, and of the log
library size. The decoder is one linear layer, so that each latent dimension has one
loading per gene. Neither encoder sees the batch a cell is of; the decoder does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.layers import (
    BatchNormalization,
    BatchStatistics,
    Linear,
    SizedLayer,
    unbiased,
)
from cellgan.layers.likelihoods import (
    CountDistribution,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
)
from cellgan.layers.stacks import dense_stack, normalizations, update_norms
from cellgan.seeds import derive_seed

VAE_EPSILON = 1e-3
"""Added to variances in batch normalisation, as in scvi-tools."""
VAE_DECAY = 0.99
"""Share of the old running statistics that an update keeps."""
SMALLEST_VARIANCE = 1e-4
"""Added to variances of posteriors."""
LARGEST_LOG_VARIANCE = 60.0
LARGEST_LOG_LIBRARY = 20.0
"""Both are limits that no cell comes near (5e8 counts): beyond them numbers would
overflow, and one outlier would end a training."""

CountLikelihood = Literal["negative_binomial", "zero_inflated", "poisson"]
LatentDistribution = Literal["normal", "logistic_normal"]


class Posterior(NamedTuple):
    """Independent normal distributions, ``(n_cells, n_dimensions)``."""

    mean: tf.Tensor
    variance: tf.Tensor

    def draw(self, noise: tf.Tensor) -> tf.Tensor:
        """Return draws; `noise` is standard normal, of the same shape."""
        return self.mean + tf.sqrt(self.variance) * noise

    def divergence(
        self, mean: tf.Tensor | float = 0.0, variance: tf.Tensor | float = 1.0
    ) -> tf.Tensor:
        """Return the divergence from normal priors, summed over dimensions."""
        ratio = self.variance / variance
        distance = (self.mean - mean) ** 2 / variance
        each = ratio + distance - 1 - tf.math.log(ratio)
        return 0.5 * tf.reduce_sum(each, axis=1)

    def log_density(self, values: tf.Tensor) -> tf.Tensor:
        """Return log-densities of values, summed over dimensions."""
        return normal_log_density(values, self.mean, self.variance)


def normal_log_density(
    values: tf.Tensor, mean: tf.Tensor | float, variance: tf.Tensor | float
) -> tf.Tensor:
    """Return log-densities of independent normals, summed over dimensions."""
    squares = (values - mean) ** 2 / variance
    logs = tf.math.log(2 * math.pi * tf.convert_to_tensor(variance, values.dtype))
    return -0.5 * tf.reduce_sum(squares + logs, axis=1)


class Encoder(SizedLayer):
    """Hidden layers, and a normal distribution on top.

    A hidden layer is linear, batch-normalised, a ReLU, and dropout.

    Parameters
    ----------
    widths
        Of the input, of each hidden layer, and of the distribution.
    dropout
        Share of hidden units set to 0 in training.
    use_batch_norm
        Whether hidden layers are normalised.
    seed
        Of the initial weights: uniform within ``1 / sqrt(n_inputs)`` of 0.
    name
        Name of the layer.
    dtype
        Keras dtype policy.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        dropout: float,
        use_batch_norm: bool,
        seed: int,
        name: str,
        dtype: str,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._dropout = dropout

        def linear(n_inputs: int, n_outputs: int, part: str) -> Linear:
            own = derive_seed(seed, name, part)
            return Linear.uniform(n_inputs, n_outputs, own, name=part, dtype=dtype)

        hidden = list(itertools.pairwise(widths[:-1]))
        self.linears = [
            linear(n_inputs, n_outputs, f"layer_{index}")
            for index, (n_inputs, n_outputs) in enumerate(hidden, 1)
        ]
        self.norms = normalizations(
            "batchnorm" if use_batch_norm else "none",
            widths[1:-1],
            epsilon=VAE_EPSILON,
            dtype=dtype,
        )
        self.mean = linear(widths[-2], widths[-1], "mean")
        self.log_variance = linear(widths[-2], widths[-1], "log_variance")

    def _make_weights(self) -> None:
        for layer in (*self.linears, *self.norms, self.mean, self.log_variance):
            layer.build()

    def call(
        self,
        inputs: tf.Tensor,
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[Posterior, list[BatchStatistics]]:
        """Encode ``(n_cells, widths[0])``.

        Parameters
        ----------
        inputs
            Log counts.
        training
            Normalise by the statistics of this batch, and drop units.
        seed
            Stateless seed, ``(2,)`` int32, of the units to drop; None with
            ``dropout=0``.

        Returns
        -------
        The distributions, and the statistics used (with the biased variance).
        """
        hidden, statistics = self.hidden(inputs, training=training, seed=seed)
        logs = tf.minimum(self.log_variance(hidden), LARGEST_LOG_VARIANCE)
        variance = tf.exp(logs) + SMALLEST_VARIANCE
        return Posterior(self.mean(hidden), variance), statistics

    def hidden(
        self, inputs: tf.Tensor, *, training: bool, seed: tf.Tensor | None
    ) -> tuple[tf.Tensor, list[BatchStatistics]]:
        """Return the last hidden layer, and the statistics used."""
        return dense_stack(
            inputs,
            self.linears,
            self.norms,
            lambda units, _: tf.nn.relu(units),
            dropout=self._dropout,
            training=training,
            seed=seed,
        )


class LinearDecoder(SizedLayer):
    """One linear layer, batch-normalised: latents and batches to logits of genes.

    Parameters
    ----------
    n_latent, n_batches, n_genes
        Widths; `n_batches` is 0 where the batch has no part.
    use_bias
        Whether there is a bias beside the offset of the normalisation.
    use_batch_norm
        Whether logits are normalised.
    seed
        Of the initial weights.
    name
        Name of the layer.

    Notes
    -----
    Mean and variance of ``u A`` over a batch follow from mean and covariance of the
    few numbers ``u``: nothing of the size of the batch's counts is normalised, the
    columns of ``A`` are. Computed in float32 under every dtype policy.
    """

    def __init__(
        self,
        n_latent: int,
        n_batches: int,
        n_genes: int,
        *,
        use_bias: bool,
        use_batch_norm: bool,
        seed: int,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.n_latent = n_latent
        n_inputs = n_latent + n_batches
        self._shape = (n_inputs, n_genes)
        self._use_bias = use_bias
        limit = 1 / math.sqrt(n_inputs)
        self._initializers = {
            part: keras.initializers.RandomUniform(
                -limit, limit, seed=derive_seed(seed, name, part)
            )
            for part in ("kernel", "bias")
        }
        self.norm = (
            BatchNormalization(n_genes, epsilon=VAE_EPSILON, name="norm")
            if use_batch_norm
            else None
        )

    def _make_weights(self) -> None:
        made = self._initializers
        self.kernel = self._weight("kernel", self._shape, made["kernel"])
        self.bias = (
            self._weight("bias", self._shape[1:], made["bias"])
            if self._use_bias
            else None
        )
        if self.norm is not None:
            self.norm.build()

    def call(
        self, inputs: tf.Tensor, *, training: bool = False
    ) -> tuple[tf.Tensor, list[BatchStatistics]]:
        """Map ``(n_cells, n_latent + n_batches)`` to logits; return statistics too."""
        bias = 0.0 if self.bias is None else tf.convert_to_tensor(self.bias)
        if self.norm is None:
            return tf.matmul(inputs, self.kernel) + bias, []
        if not training:
            gain = self.gain()
            shift = self.norm.offset + (bias - self.norm.moving_mean) * gain
            used = BatchStatistics(
                tf.convert_to_tensor(self.norm.moving_mean),
                tf.convert_to_tensor(self.norm.moving_variance),
            )
            return tf.matmul(inputs, self.kernel * gain) + shift, [used]
        center = tf.reduce_mean(inputs, axis=0, keepdims=True)
        centered = inputs - center
        n_cells = tf.cast(tf.shape(inputs)[0], inputs.dtype)
        covariance = tf.matmul(centered, centered, transpose_a=True) / n_cells
        kernel = tf.convert_to_tensor(self.kernel)
        variance = tf.reduce_sum(kernel * tf.matmul(covariance, kernel), axis=0)
        gain = self.norm.scale * tf.math.rsqrt(variance + VAE_EPSILON)
        logits = tf.matmul(centered, kernel * gain) + self.norm.offset
        mean = tf.matmul(center, kernel)[0] + bias
        return logits, [BatchStatistics(mean, variance)]

    def start_from(self, levels: npt.NDArray[np.floating[Any]]) -> None:
        """Let the mean logits of genes be `levels`, where there is a weight for it."""
        if self.norm is not None:
            self.norm.offset.assign(levels)
        elif self.bias is not None:
            self.bias.assign(levels)

    def gain(self) -> tf.Tensor:
        """Return what the normalisation multiplies the logits of each gene by."""
        if self.norm is None:
            return tf.ones(self._shape[1:])
        root = tf.math.rsqrt(self.norm.moving_variance + VAE_EPSILON)
        return self.norm.scale * root

    def loadings(self) -> tf.Tensor:
        """Return what a unit of each latent dimension adds to the logits of genes.

        Returns
        -------
        ``(n_genes, n_latent)``, with the normalisation as it is after training.
        """
        return tf.transpose(self.kernel[: self.n_latent] * self.gain())


class Encoded(NamedTuple):
    """What encoders make of cells."""

    latent: Posterior
    log_library: Posterior | None
    """``(n_cells, 1)``; None where the library size is observed."""
    statistics: list[BatchStatistics]


class Decoded(NamedTuple):
    """What decoders make of latents."""

    logits: tf.Tensor
    """Of the shares of genes, ``(n_cells, n_genes)``."""
    zero_logits: tf.Tensor | None
    """Of zeros beside those of the negative binomial; None without them."""
    statistics: list[BatchStatistics]


class VaeNetwork(SizedLayer):
    """Encoders, decoders and dispersions of the linearly decoded VAE.

    Parameters
    ----------
    n_genes, n_latent, n_hidden, n_layers
        Widths, and hidden layers of the latent's encoder; that of the library size
        always has one.
    n_batches
        Batches that the decoder knows; 0 for none.
    n_dispersions
        Categories of which each has dispersions of its own; 0 for one of each gene.
    likelihood
        Of the counts. Only ``"zero_inflated"`` has a decoder of zeros.
    latent_distribution
        With ``"logistic_normal"`` the decoder is given the softmax of the latent.
    observes_library
        Whether the library size is the cell's total, and has no encoder.
    dropout
        Share of hidden units set to 0 in training.
    use_batch_norm, use_bias
        Of all networks; of the decoders.
    keeps_unbiased
        Whether running variances follow the unbiased variance of batches.
    seed
        Of the initial weights.
    dtype
        Keras dtype policy of the encoders.

    Notes
    -----
    The original's learned library size can end a training on cells of very different
    kinds, when one draw overflows. Here log variances and log library sizes end at
    `LARGEST_LOG_VARIANCE` and `LARGEST_LOG_LIBRARY`, which change no loss below them,
    while divergences keep their gradients; likelihoods are finite for any counts. The
    decoder of zeros is built for ``"zero_inflated"`` alone; the original always has it.

    References
    ----------
    Svensson et al. (2020), Interpretable factor models of single-cell RNA-seq via
    variational autoencoders. https://doi.org/10.1093/bioinformatics/btaa169
    Lopez et al. (2018), Deep generative modeling for single-cell transcriptomics.
    https://doi.org/10.1038/s41592-018-0229-2
    """

    def __init__(  # noqa: PLR0913  (what a model is made of, one by one)
        self,
        n_genes: int,
        *,
        n_latent: int,
        n_hidden: int,
        n_layers: int,
        n_batches: int = 0,
        n_dispersions: int = 0,
        likelihood: CountLikelihood = "negative_binomial",
        latent_distribution: LatentDistribution = "normal",
        observes_library: bool = False,
        dropout: float = 0.0,
        use_batch_norm: bool = True,
        use_bias: bool = False,
        keeps_unbiased: bool = True,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name="vae", dtype=dtype)
        self.n_genes, self.n_latent, self.n_batches = n_genes, n_latent, n_batches
        self.likelihood = likelihood
        self.observes_library = observes_library
        self._n_dispersions = n_dispersions
        self._is_logistic = latent_distribution == "logistic_normal"
        self._keeps_unbiased = keeps_unbiased
        self._dispersion_seed = derive_seed(seed, "inverse dispersion")

        def encoder(n_layers: int, n_outputs: int, name: str) -> Encoder:
            return Encoder(
                (n_genes, *[n_hidden] * n_layers, n_outputs),
                dropout=dropout,
                use_batch_norm=use_batch_norm,
                seed=seed,
                name=name,
                dtype=dtype,
            )

        def decoder(name: str) -> LinearDecoder:
            return LinearDecoder(
                n_latent,
                n_batches,
                n_genes,
                use_bias=use_bias,
                use_batch_norm=use_batch_norm,
                seed=seed,
                name=name,
            )

        self.encoder = encoder(n_layers, n_latent, "encoder")
        self.library_encoder = (
            None if observes_library else encoder(1, 1, "library_encoder")
        )
        self.decoder = decoder("decoder")
        self.zero_decoder = (
            decoder("zero_decoder") if likelihood == "zero_inflated" else None
        )
        self.build()

    def _make_weights(self) -> None:
        for part in self._parts:
            part.build()
        rows = (self._n_dispersions,) if self._n_dispersions else ()
        self.log_inverse_dispersion = (
            None
            if self.likelihood == "poisson"
            else self._weight(
                "log_inverse_dispersion",
                (*rows, self.n_genes),
                keras.initializers.RandomNormal(0.0, 1.0, seed=self._dispersion_seed),
            )
        )

    @property
    def _parts(self) -> list[Encoder | LinearDecoder]:
        parts = (self.encoder, self.library_encoder, self.decoder, self.zero_decoder)
        return [part for part in parts if part is not None]

    def encode(
        self,
        counts: tf.Tensor,
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> Encoded:
        """Encode counts ``(n_cells, n_genes)``.

        Parameters
        ----------
        training
            Normalise by the statistics of this batch, which the caller hands to
            `update_running_statistics`, and drop units.
        seed
            Stateless seed, ``(2,)`` int32, of the units to drop; None with
            ``dropout=0``.
        """
        logs = tf.math.log1p(counts)
        seeds = [
            None
            if seed is None
            else tf.random.experimental.stateless_fold_in(seed, part, alg="philox")
            for part in range(2)
        ]
        latent, statistics = self.encoder(logs, training=training, seed=seeds[0])
        if self.library_encoder is None:
            return Encoded(latent, None, statistics)
        library, of_library = self.library_encoder(
            logs, training=training, seed=seeds[1]
        )
        return Encoded(latent, library, [*statistics, *of_library])

    def decode(
        self, latent: tf.Tensor, batches: tf.Tensor | None, *, training: bool = False
    ) -> Decoded:
        """Decode latents.

        Parameters
        ----------
        latent
            ``(n_cells, n_latent)``: draws or means of a posterior.
        batches
            Codes ``(n_cells,)``; None without batches.
        training
            As of `encode`.
        """
        inputs = self.simplex(latent)
        if self.n_batches:
            rows = tf.one_hot(batches, self.n_batches, dtype=inputs.dtype)
            inputs = tf.concat([inputs, rows], axis=1)
        logits, statistics = self.decoder(inputs, training=training)
        if self.zero_decoder is None:
            return Decoded(logits, None, statistics)
        zero_logits, of_zeros = self.zero_decoder(inputs, training=training)
        return Decoded(logits, zero_logits, [*statistics, *of_zeros])

    def simplex(self, latent: tf.Tensor) -> tf.Tensor:
        """Return what the decoder is given of latents: their softmax, or themselves."""
        return tf.nn.softmax(latent) if self._is_logistic else latent

    def inverse_dispersion(self, codes: tf.Tensor | None) -> tf.Tensor | None:
        """Return it by gene, or by cell and gene; None of Poisson counts.

        Parameters
        ----------
        codes
            Category of each cell, ``(n_cells,)``; None without categories.
        """
        if self.log_inverse_dispersion is None:
            return None
        table = tf.exp(self.log_inverse_dispersion)
        if not self._n_dispersions:
            return table
        rows = tf.one_hot(codes, self._n_dispersions, dtype=table.dtype)
        return tf.matmul(rows, table)

    def distribution(
        self, decoded: Decoded, log_library: tf.Tensor, codes: tf.Tensor | None
    ) -> CountDistribution:
        """Return the distributions of counts.

        Parameters
        ----------
        log_library
            Logarithm of the library size, ``(n_cells, 1)``.
        codes
            As of `inverse_dispersion`.
        """
        limited = tf.minimum(log_library, LARGEST_LOG_LIBRARY)
        if self.likelihood == "poisson":
            return Poisson(tf.nn.log_softmax(decoded.logits) + limited)
        mean = tf.exp(limited) * tf.nn.softmax(decoded.logits)
        theta = self.inverse_dispersion(codes)
        if decoded.zero_logits is None:
            return NegativeBinomial(mean, theta)
        return ZeroInflatedNegativeBinomial(mean, theta, decoded.zero_logits)

    def update_running_statistics(
        self, statistics: Sequence[BatchStatistics], n_cells: tf.Tensor
    ) -> None:
        """Let the running statistics take one step towards those of a batch."""
        norms = [*self.encoder.norms]
        if self.library_encoder is not None:
            norms += self.library_encoder.norms
        norms += [
            part.norm
            for part in (self.decoder, self.zero_decoder)
            if part is not None and part.norm is not None
        ]
        if self._keeps_unbiased:
            statistics = [unbiased(used, n_cells) for used in statistics]
        update_norms(norms, statistics, VAE_DECAY)
