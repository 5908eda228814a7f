"""Networks of the autoencoder of counts: cells to a latent, and back.

The latent is a function of the cell: nothing is drawn, and nothing keeps latents near
a prior. Features are counts, of one modality or several, of which each has an encoder,
a decoder and a likelihood of its own, or is decoded to its expression alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import keras
import tensorflow as tf

from cellgan.data.transforms import InputTransform, encoder_input
from cellgan.layers import BatchStatistics, Linear, SizedLayer
from cellgan.layers.likelihoods import (
    Bernoulli,
    CountDistribution,
    NegativeBinomial,
    Poisson,
)
from cellgan.layers.log_probabilities import negative_binomial_softmax_loss
from cellgan.layers.stacks import (
    all_unbiased,
    dense_stack,
    normalizations,
    update_norms,
)
from cellgan.seeds import derive_seed

Likelihood = Literal["negative_binomial", "poisson", "bernoulli", "squared_error"]
"""How a modality is told from its reconstruction: by minus the log-likelihood of its
counts, or by the squared error of what the encoder is given of them."""
Activation = Literal["elu", "prelu"]
INITIAL_SLOPE = 0.25
"""Of the negative side of a parametric ReLU, one for all units of a layer."""
SMALLEST_NORM = 1e-12
"""What latents of a smaller length are divided by, when they are put on the sphere."""


class Modality(NamedTuple):
    """What one modality is encoded by, and how its counts are distributed."""

    n_features: int
    widths: tuple[int, ...]
    """Hidden widths of the encoder, then that of its output; the decoder mirrors
    them."""
    likelihood: Likelihood
    transform: InputTransform = "log1p"
    """What the encoder is given of the counts."""
    weight: float = 1.0
    """Factor of its part in the loss."""
    activation: Activation = "elu"
    residual: bool = False
    """Whether hidden layers but the first add their input to their output."""


class Expression(NamedTuple):
    """A reconstruction without a likelihood: a draw of it is the expression itself."""

    log_expression: tf.Tensor
    """Of ``log(1 + x)``, ``(n_cells, n_features)``; what is negative stands for 0."""

    @property
    def mean(self) -> tf.Tensor:
        """The expression ``x``, on the scale of the encoder's input without log."""
        return tf.math.expm1(tf.nn.relu(self.log_expression))

    def sample(self, seed: tf.Tensor, first_cell: int | tf.Tensor = 0) -> tf.Tensor:
        """Return the mean: nothing is drawn."""
        del seed, first_cell
        return self.mean


class DecodedCells(NamedTuple):
    """What the autoencoder makes of cells."""

    latent: tf.Tensor
    """``(n_cells, n_latent)``."""
    logits: Mapping[str, tf.Tensor]
    """``[m]`` (n_cells, n_features): what the decoders return."""
    statistics: tuple[BatchStatistics, ...]
    """Of the units of each normalised layer, with the unbiased variance."""


class Mlp(SizedLayer):
    """Linear layers with batch normalisation, activation and dropout between them.

    Parameters
    ----------
    widths
        Of the input, of each hidden layer, and of the output.
    dropout
        Share of hidden units set to 0 in training.
    activation
        - ``"elu"``;
        - ``"prelu"``: a ReLU whose negative side has a trained slope, one per layer.
    residual
        Add the input of every hidden layer but the first to its output. Hidden widths
        must then be equal.
    seed
        Of the initial weights: uniform within ``1 / sqrt(n_inputs)`` of 0.
    name
        Name of the layer, a part of its weights' paths.
    dtype
        Keras dtype policy.
    """

    def __init__(
        self,
        widths: Sequence[int],
        *,
        dropout: float = 0.0,
        activation: Activation = "elu",
        residual: bool = False,
        seed: int = 0,
        name: str,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._widths = tuple(widths)
        self._dropout = dropout
        self._activation = activation
        self._residual = residual
        layers = range(1, len(widths))
        self.linears = [
            Linear.uniform(
                widths[index - 1],
                widths[index],
                derive_seed(seed, name, index),
                name=f"layer_{index}",
                dtype=dtype,
            )
            for index in layers
        ]
        self.norms = normalizations("batchnorm", widths[1:-1], dtype=dtype)

    def _make_weights(self) -> None:
        for layer in (*self.linears, *self.norms):
            layer.build()
        slope = keras.initializers.Constant(INITIAL_SLOPE)
        self.slopes = [
            self._weight(f"slope_{index}", (1,), slope)
            for index in range(1, len(self._widths) - 1)
            if self._activation == "prelu"
        ]

    def call(
        self,
        inputs: tf.Tensor,
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, list[BatchStatistics]]:
        """Map ``(n_cells, widths[0])`` to ``(n_cells, widths[-1])``.

        Parameters
        ----------
        inputs
            ``(n_cells, widths[0])``.
        training
            Normalise by the statistics of this batch, and drop units.
        seed
            Stateless seed, ``(2,)`` int32, of the units to drop; None with
            ``dropout=0``.

        Returns
        -------
        The output, and the statistics used, those of a batch with unbiased variance.
        """
        hidden, statistics = dense_stack(
            inputs,
            self.linears[:-1],
            self.norms,
            self._activate,
            residual=self._residual,
            dropout=self._dropout,
            training=training,
            seed=seed,
        )
        if training:
            statistics = all_unbiased(statistics, hidden)
        return self.linears[-1](hidden), statistics

    def _activate(self, units: tf.Tensor, index: int) -> tf.Tensor:
        if self._activation == "elu":
            return tf.nn.elu(units)
        return tf.nn.relu(units) - self.slopes[index] * tf.nn.relu(-units)


class CountAutoencoder(SizedLayer):
    """Encodes counts into a latent, and decodes it into distributions of counts.

    Parameters
    ----------
    modalities
        By name, in the order in which their latents are concatenated.
    n_joint
        Width of a latent of all modalities, which one more linear layer makes of their
        encoders' outputs and every decoder is given; its hidden layers are then one
        more. None concatenates one latent for each modality.
    n_categories
        Categories of which each has inverse dispersions of its own; None for one
        inverse dispersion per gene.
    dropout
        Share of hidden units set to 0 in training.
    on_sphere
        Divide every latent by its length.
    seed
        Of the initial weights.
    jit
        Compile likelihoods with XLA, on every device.
    dtype
        Keras dtype policy.

    Notes
    -----
    As in the original, the running variance follows the unbiased variance of batches,
    while batches are normalised by the biased one. Where the original generates with
    statistics of the batch at hand, `encode` and `decode` always use the running ones.

    References
    ----------
    Palma et al. (2025), Multi-Modal and Multi-Attribute Generation of Single Cells with
    CFGen, section 4. https://arxiv.org/abs/2407.11734
    Luo et al. (2024), scDiffusion: conditional generation of high-quality single-cell
    data using diffusion model, section 2.1 (squared error, latents on the sphere).
    https://arxiv.org/abs/2401.03968
    """

    def __init__(  # noqa: PLR0913  (what a model is made of, one by one)
        self,
        modalities: Mapping[str, Modality],
        *,
        n_joint: int | None = None,
        n_categories: int | None = None,
        dropout: float = 0.0,
        on_sphere: bool = False,
        seed: int = 0,
        jit: bool = True,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name="autoencoder", dtype=dtype)
        self.modalities = dict(modalities)
        self._jit = jit
        self._n_categories = n_categories
        self._on_sphere = on_sphere
        options: dict[str, Any] = {"dropout": dropout, "seed": seed, "dtype": dtype}
        styles: dict[str, dict[str, Any]] = {
            name: {"activation": each.activation, "residual": each.residual}
            for name, each in self.modalities.items()
        }
        self.encoders = {
            name: Mlp(
                (each.n_features, *each.widths),
                name=f"encoder_{name}",
                **styles[name],
                **options,
            )
            for name, each in self.modalities.items()
        }
        widths = [each.widths[-1] for each in self.modalities.values()]
        self.joint = (
            None
            if n_joint is None
            else Mlp((sum(widths), n_joint), name="encoder_joint", **options)
        )
        self.n_latent = sum(widths) if n_joint is None else n_joint
        """Width of the latent."""
        self._latent_widths = widths
        top = () if n_joint is None else (n_joint,)
        self.decoders = {
            name: Mlp(
                (*top, *reversed(each.widths), each.n_features),
                name=f"decoder_{name}",
                **styles[name],
                **options,
            )
            for name, each in self.modalities.items()
        }
        self.build()

    def _make_weights(self) -> None:
        for network in self._networks:
            network.build()
        rows = () if self._n_categories is None else (self._n_categories,)
        self.log_inverse_dispersion = {
            name: self._weight(
                f"log_inverse_dispersion_{name}",
                (*rows, each.n_features),
                "zeros",
            )
            for name, each in self.modalities.items()
            if each.likelihood == "negative_binomial"
        }

    @property
    def _networks(self) -> list[Mlp]:
        joint = [] if self.joint is None else [self.joint]
        return [*self.encoders.values(), *joint, *self.decoders.values()]

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> DecodedCells:
        """Encode and decode cells.

        Parameters
        ----------
        features
            ``[m]`` counts, ``(n_cells, n_features)``.
        training
            Normalise by the statistics of this batch, which the caller hands to
            `update_running_statistics`, and drop units.
        seed
            Stateless seed, ``(2,)`` int32, of the units to drop; None with
            ``dropout=0``.
        """
        options: dict[str, Any] = {"training": training, "seed": seed}
        latent, encoder_statistics = self._encode(features, **options)
        logits, decoder_statistics = self._decode(latent, **options)
        return DecodedCells(latent, logits, (*encoder_statistics, *decoder_statistics))

    def encode(
        self, features: Mapping[str, tf.Tensor], *, batch_statistics: bool = False
    ) -> tf.Tensor:
        """Return latents ``(n_cells, n_latent)`` of counts; each row's is its own.

        With `batch_statistics` it is not: cells are then normalised by the statistics
        of all that are encoded together.
        """
        return self._encode(features, training=batch_statistics, seed=None)[0]

    def decode(
        self,
        latent: tf.Tensor,
        library_size: Mapping[str, tf.Tensor],
        codes: tf.Tensor | None = None,
        *,
        batch_statistics: bool = False,
    ) -> Mapping[str, CountDistribution | Expression]:
        """Return the distributions of the counts of cells, or their expression.

        Parameters
        ----------
        latent
            ``(n_cells, n_latent)``.
        library_size
            ``[m]`` (n_cells,): expected total counts. Bernoulli modalities need none.
        codes
            Category of each cell, ``(n_cells,)``; None without categories.
        batch_statistics
            As of `encode`.
        """
        logits, _ = self._decode(latent, training=batch_statistics, seed=None)
        return {
            name: _distribution(
                each.likelihood,
                logits[name],
                library_size.get(name),
                self._inverse_dispersion(name, codes),
            )
            for name, each in self.modalities.items()
        }

    def reconstruction_losses(
        self,
        features: Mapping[str, tf.Tensor],
        library_size: Mapping[str, tf.Tensor],
        logits: Mapping[str, tf.Tensor],
        codes: tf.Tensor | None = None,
    ) -> dict[str, tf.Tensor]:
        """Return, by modality, how far cells are from their reconstruction.

        It is the mean over cells of minus the log-likelihood, summed over features, or
        the mean over cells and features of the squared error.

        Parameters
        ----------
        features
            ``[m]`` counts, ``(n_cells, n_features)``.
        library_size
            ``[m]`` (n_cells,): totals of `features`.
        logits
            Of their reconstruction.
        codes
            Category of each cell, ``(n_cells,)``; None without categories.
        """
        losses = {}
        for name, each in self.modalities.items():
            if each.likelihood == "squared_error":
                target = encoder_input(features[name], each.transform)
                losses[name] = tf.reduce_mean((logits[name] - target) ** 2)
                continue
            losses[name] = _likelihood_of(each.likelihood, jit=self._jit)(
                features[name],
                logits[name],
                library_size.get(name),
                self._inverse_dispersion(name, codes),
            )
        return losses

    def loss(self, reconstruction_losses: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the sum over modalities, each with its weight."""
        return tf.add_n(
            [
                each.weight * reconstruction_losses[name]
                for name, each in self.modalities.items()
            ]
        )

    def update_running_statistics(self, statistics: Sequence[BatchStatistics]) -> None:
        """Let the running statistics take one step towards those of a batch."""
        norms = [norm for network in self._networks for norm in network.norms]
        update_norms(norms, statistics)

    def _encode(
        self,
        features: Mapping[str, tf.Tensor],
        *,
        training: bool,
        seed: tf.Tensor | None,
    ) -> tuple[tf.Tensor, list[BatchStatistics]]:
        latents, statistics = [], []
        for index, (name, each) in enumerate(self.modalities.items()):
            latent, used = self.encoders[name](
                encoder_input(features[name], each.transform),
                training=training,
                seed=_fold_in(seed, index),
            )
            latents.append(latent)
            statistics += used
        latent = tf.concat(latents, axis=1)
        if self.joint is not None:
            latent, _ = self.joint(latent)
        return self.on_sphere(latent) if self._on_sphere else latent, statistics

    @staticmethod
    def on_sphere(latent: tf.Tensor) -> tf.Tensor:
        """Return latents ``(n_cells, n_latent)`` divided by their length."""
        return tf.math.l2_normalize(latent, axis=1, epsilon=SMALLEST_NORM**2)

    def _decode(
        self, latent: tf.Tensor, *, training: bool, seed: tf.Tensor | None
    ) -> tuple[dict[str, tf.Tensor], list[BatchStatistics]]:
        parts = (
            tf.split(latent, self._latent_widths, axis=1)
            if self.joint is None
            else [latent] * len(self.modalities)
        )
        logits, statistics = {}, []
        first = len(self.modalities)
        for index, (name, part) in enumerate(
            zip(self.modalities, parts, strict=True), start=first
        ):
            logits[name], used = self.decoders[name](
                part, training=training, seed=_fold_in(seed, index)
            )
            statistics += used
        return logits, statistics

    def _inverse_dispersion(
        self, name: str, codes: tf.Tensor | None
    ) -> tf.Tensor | None:
        """Return it by gene, or by cell and gene; None for other likelihoods."""
        if name not in self.log_inverse_dispersion:
            return None
        table = tf.exp(self.log_inverse_dispersion[name])
        if self._n_categories is None:
            return table
        return tf.matmul(
            tf.one_hot(codes, self._n_categories, dtype=table.dtype), table
        )


def _distribution(
    likelihood: Likelihood,
    logits: tf.Tensor,
    library_size: tf.Tensor | None,
    inverse_dispersion: tf.Tensor | None,
) -> CountDistribution | Expression:
    """Return the distribution that logits stand for.

    Means of counts are the library size, divided among the features by a softmax.
    """
    if likelihood == "squared_error":
        return Expression(logits)
    if likelihood == "bernoulli":
        return Bernoulli(logits)
    totals = tf.expand_dims(library_size, 1)
    if likelihood == "poisson":
        return Poisson(tf.nn.log_softmax(logits) + tf.math.log(totals))
    return NegativeBinomial(tf.nn.softmax(logits) * totals, inverse_dispersion)


@functools.cache
def _likelihood_of(likelihood: Likelihood, *, jit: bool) -> Callable[..., tf.Tensor]:
    """Return `_negative_log_likelihood`, compiled once for all networks.

    XLA makes it one pass over memory in place of some forty.
    """
    compute = functools.partial(_negative_log_likelihood, likelihood)
    compiled: Callable[..., tf.Tensor] = tf.function(
        compute, jit_compile=jit, autograph=False
    )
    return compiled


def _negative_log_likelihood(
    likelihood: Likelihood,
    counts: tf.Tensor,
    logits: tf.Tensor,
    library_size: tf.Tensor | None,
    inverse_dispersion: tf.Tensor | None,
) -> tf.Tensor:
    """Return the mean over cells of minus the log-likelihood."""
    if likelihood == "negative_binomial":
        return negative_binomial_softmax_loss(
            counts, logits, library_size, inverse_dispersion
        )
    distribution = _distribution(likelihood, logits, library_size, inverse_dispersion)
    log_prob = cast(CountDistribution, distribution).log_prob(counts)
    return -tf.reduce_mean(tf.reduce_sum(log_prob, axis=1))


def _fold_in(seed: tf.Tensor | None, data: int) -> tf.Tensor | None:
    if seed is None:
        return None
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")
