"""The network that steers scDiffusion: labels of latents that noise was added to.

Its gradient, in the latent, of the logarithm of a label's probability moves sampling
towards the label; the denoiser then needs to know no labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import tensorflow as tf

from cellgan.layers import BatchStatistics, Linear, SizedLayer
from cellgan.layers.stacks import (
    all_unbiased,
    dense_stack,
    normalizations,
    update_norms,
)
from cellgan.layers.time_embedding import step_features
from cellgan.seeds import derive_seed

WIDTHS = (512, 512, 256)


class NoisyClassifier(SizedLayer):
    """Layers that are shifted by a projection of the step, and then normalised.

    Parameters
    ----------
    n_latent
        Width of the latents.
    n_categories
        Number of labels.
    widths
        Of the layers; the first is that of the embedding of the step too, and even.
    dropout
        Share of hidden units set to 0 in training.
    seed
        Of the initial weights: uniform within ``1 / sqrt(n_inputs)`` of 0.
    name
        Name of the layer, a part of its weights' paths.
    dtype
        Keras dtype policy.

    Notes
    -----
    The last layer is not shifted. The original has weights for it that nothing uses.

    References
    ----------
    Luo et al. (2024), scDiffusion: conditional generation of high-quality single-cell
    data using diffusion model, section 2.3. https://arxiv.org/abs/2401.03968
    """

    def __init__(
        self,
        n_latent: int,
        n_categories: int,
        *,
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.0,
        seed: int = 0,
        name: str = "noisy_classifier",
        dtype: str = "float32",
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self._seed = seed
        self._dropout = dropout
        width = widths[0]
        self._n_embedding = width
        self.time_layers = [self._linear(f"time_{i}", width, width) for i in (1, 2)]
        self.layers = [
            self._linear(f"layer_{index}", n_inputs, n_outputs)
            for index, (n_inputs, n_outputs) in enumerate(
                itertools.pairwise((n_latent, *widths)), start=1
            )
        ]
        self.time_projections = [
            self._linear(f"time_projection_{index}", width, n_outputs)
            for index, n_outputs in enumerate(widths[:-1], start=1)
        ]
        self.norms = normalizations("batchnorm", widths, dtype=dtype)
        self.output_layer = self._linear("output", widths[-1], n_categories)
        self.build()

    def _linear(self, name: str, n_inputs: int, n_outputs: int) -> Linear:
        seed = derive_seed(self._seed, self.name, name)
        dtype = self.dtype_policy.name
        return Linear.uniform(n_inputs, n_outputs, seed, name=name, dtype=dtype)

    def _make_weights(self) -> None:
        # Refuses a width that does not suit, before the first batch.
        step_features(tf.zeros((1,)), self._n_embedding)
        for layer in (
            *self.time_layers,
            *self.layers,
            *self.time_projections,
            *self.norms,
            self.output_layer,
        ):
            layer.build()

    def call(
        self,
        latent: tf.Tensor,
        step_index: tf.Tensor,
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tuple[BatchStatistics, ...]]:
        """Return the logits of labels, and the statistics that normalised the units.

        Parameters
        ----------
        latent
            With noise, ``(n_cells, n_latent)``.
        step_index
            Of the schedule that was trained on, ``(n_cells,)`` or ``(1,)``.
        training
            Normalise by the statistics of this batch, and drop units; otherwise by the
            running ones.
        seed
            Stateless seed, ``(2,)`` int32, of the units to drop; None drops none.

        Returns
        -------
        Logits ``(n_cells, n_categories)``, and the statistics of each layer, those of a
        batch with the unbiased variance.
        """
        first, second = self.time_layers
        features = step_features(step_index, self._n_embedding)
        embedded = tf.nn.silu(second(tf.nn.silu(first(features))))
        hidden, statistics = dense_stack(
            latent,
            self.layers,
            self.norms,
            lambda units, _: tf.nn.silu(units),
            shifts=[projection(embedded) for projection in self.time_projections],
            dropout=0.0 if seed is None else self._dropout,
            training=training,
            seed=seed,
        )
        if training:
            statistics = all_unbiased(statistics, hidden)
        return self.output_layer(hidden), tuple(statistics)

    def update_running_statistics(self, statistics: Sequence[BatchStatistics]) -> None:
        """Let the running statistics take one step towards those of a batch."""
        update_norms(self.norms, statistics)

    def slope(
        self, latent: tf.Tensor, step_index: tf.Tensor, scales: tf.Tensor
    ) -> tf.Tensor:
        """Return the gradient that labels pull latents by, ``(n_cells, n_latent)``.

        Parameters
        ----------
        latent, step_index
            As of a call.
        scales
            How strongly each label pulls, ``(n_cells, n_categories)``: the gradient is
            that of the sum of log-probabilities times these. Two labels with scales
            above 0 pull towards a mixture.

        References
        ----------
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis,
        section 4. https://arxiv.org/abs/2105.05233
        """
        with tf.GradientTape() as tape:
            tape.watch(latent)
            logits, _ = self(latent, step_index)
            pull = tf.reduce_sum(scales * tf.nn.log_softmax(logits))
        return tape.gradient(pull, latent)


class NoisyClassifiers(SizedLayer):
    """A classifier of noisy latents for each covariate.

    Parameters
    ----------
    n_latent
        Width of the latents.
    n_categories
        Number of categories of each covariate.
    widths, dropout, seed, dtype
        As of `NoisyClassifier`.
    """

    def __init__(
        self,
        n_latent: int,
        n_categories: Mapping[str, int],
        *,
        widths: Sequence[int] = WIDTHS,
        dropout: float = 0.0,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name="noisy_classifiers", dtype=dtype)
        self.n_categories = dict(n_categories)
        self.classifiers = [
            NoisyClassifier(
                n_latent,
                n,
                widths=widths,
                dropout=dropout,
                seed=derive_seed(seed, name),
                name=f"of_{name}",
                dtype=dtype,
            )
            for name, n in n_categories.items()
        ]
        self.build()

    def _make_weights(self) -> None:
        """Nothing of its own: every classifier has made its weights."""

    def call(
        self,
        latent: tf.Tensor,
        step_index: tf.Tensor,
        *,
        training: bool = False,
        seed: tf.Tensor | None = None,
    ) -> dict[str, tuple[tf.Tensor, tuple[BatchStatistics, ...]]]:
        """Return what the classifier of each covariate does."""
        return {
            name: classifier(latent, step_index, training=training, seed=seed)
            for name, classifier in self._by_covariate()
        }

    def update_running_statistics(
        self, statistics: Mapping[str, Sequence[BatchStatistics]]
    ) -> None:
        """Let the running statistics take one step towards those of a batch."""
        for name, classifier in self._by_covariate():
            classifier.update_running_statistics(statistics[name])

    def slope(
        self,
        latent: tf.Tensor,
        step_index: tf.Tensor,
        scales: Mapping[str, tf.Tensor],
    ) -> tf.Tensor:
        """Return the sum of the slopes by the covariates that have scales.

        Parameters
        ----------
        latent, step_index
            As of `NoisyClassifier.slope`.
        scales
            By covariate, as there.
        """
        slopes = [
            classifier.slope(latent, step_index, scales[name])
            for name, classifier in self._by_covariate()
            if name in scales
        ]
        return tf.add_n(slopes) if slopes else tf.zeros_like(latent)

    def _by_covariate(self) -> list[tuple[str, NoisyClassifier]]:
        return list(zip(self.n_categories, self.classifiers, strict=True))
