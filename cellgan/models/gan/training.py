"""How scGAN and cscGAN are trained: the game of a critic and a generator.

The critic learns to score real cells above generated ones while the slope of its score
stays near 1 (a Wasserstein GAN with gradient penalty), and the generator to raise the
scores of its cells. All cells here are library-size-normalised expression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.data.manifest import RNA
from cellgan.data.transforms import normalize_library_size
from cellgan.layers import BatchStatistics
from cellgan.models.base import TrainingStage, weight_histograms
from cellgan.models.gan import losses
from cellgan.optimizers import update_weights


class Player:
    """One of the two networks and its optimizer, both built."""

    def __init__(self, network: keras.layers.Layer, optimizer: keras.Optimizer) -> None:
        self.network = network
        self.optimizer = optimizer
        optimizer.build(network.trainable_variables)

    @property
    def weights(self) -> list[keras.Variable]:
        """The trainable variables."""
        return list(self.network.trainable_variables)

    def update(self, gradients: Sequence[tf.Tensor]) -> None:
        """Apply this replica's gradients; the optimizer sums them over replicas."""
        update_weights(self.optimizer, self.network.trainable_variables, gradients)


@dataclasses.dataclass(frozen=True)
class BatchReader:
    """How a batch becomes expression and codes."""

    label: str
    """Covariate that a conditional model is conditioned on."""
    ratios: npt.NDArray[np.float64]
    """Share of each category among the training cells, in code order."""
    library_size: int | None
    """What counts are scaled to; None when batches hold scaled values."""

    def read(self, batch: CellBatch) -> tuple[tf.Tensor, tf.Tensor]:
        """Return expression ``(n_cells, n_genes)`` and codes ``(n_cells,)``."""
        expression = batch.features[RNA]
        if self.library_size is not None:
            expression = normalize_library_size(
                expression, batch.library_size[RNA], self.library_size
            )
        return expression, batch.covariates[self.label]


class GanDraws(NamedTuple):
    """What is random in one update."""

    noise: tf.Tensor
    """Standard normal, ``(n_cells, n_latent)``."""
    codes: tf.Tensor
    """Categories of generated cells, ``(n_cells,)`` int32."""
    mixing: tf.Tensor
    """Uniform in 0 to 1, ``(n_cells, 1)``."""


class CriticInputs(NamedTuple):
    """The cells that the critic is asked about in one update."""

    real: tf.Tensor
    real_codes: tf.Tensor
    fake: tf.Tensor
    fake_codes: tf.Tensor
    between: tf.Tensor
    """Points between real cells and cells generated with their codes."""


class CriticTerms(NamedTuple):
    """The critic's loss and what it is made of."""

    loss: tf.Tensor
    penalty: tf.Tensor
    real_scores: tf.Tensor
    fake_scores: tf.Tensor


class GanStage(TrainingStage):
    """The game of critic and generator.

    Parameters
    ----------
    generator, critic
        The networks with their optimizers.
    real_cells
        How to read a batch.
    penalty_weight
        Factor of the gradient penalty.
    critic_iters
        Critic updates before the one that goes with each generator update.
    jit
        Compile losses and gradients with XLA.

    Notes
    -----
    The reference makes the generator's gradient from a mixture of the critic before and
    after the update they share. Here the critic is updated first, and the generator's
    gradient is that of the updated critic, for the same noise and codes.

    In the reference two passes of the generator race to update the running statistics.
    The one that was seen to win, with the codes of the real cells, is used here.
    """

    name = "gan"

    def __init__(
        self,
        generator: Player,
        critic: Player,
        real_cells: BatchReader,
        *,
        penalty_weight: float,
        critic_iters: int,
        jit: bool,
    ) -> None:
        self.batches_per_step = critic_iters + 1
        self.generator = generator
        self.critic = critic
        self.real_cells = real_cells
        self.penalty_weight = penalty_weight
        self._critic_gradients = tf.function(
            self.critic_gradients, jit_compile=jit, autograph=False
        )
        self._generator_gradients = tf.function(
            self.generator_gradients, jit_compile=jit, autograph=False
        )

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the critic with every batch, then the generator once."""
        learning_rate = self.generator.optimizer.learning_rate
        # Unrolled: gradients of replicas cannot be summed inside a loop of the graph.
        for index, batch in enumerate(batches):
            real, codes = self.real_cells.read(batch)
            draws = self.draw(tf.shape(codes)[0], _fold_in(seed, index))
            terms, gradients, statistics = self._critic_gradients(real, codes, draws)
            self.critic.update(gradients)
            self.generator.network.update_running_statistics(statistics)
        loss, generator_gradients = self._generator_gradients(draws)
        self.generator.update(generator_gradients)
        return {
            **_loss_scalars(terms, loss),
            "learning_rate": tf.convert_to_tensor(learning_rate),
            "gradient_norm/critic": tf.linalg.global_norm(gradients),
            "gradient_norm/generator": tf.linalg.global_norm(generator_gradients),
        }

    def first_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the critic once and the generator once, as the reference does."""
        return self.train_step(batches[:1], seed)

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the losses of one batch, cells generated as they will be in use."""
        real, codes = self.real_cells.read(batch)
        draws = self.draw(tf.shape(codes)[0], seed)
        inputs, _ = self.critic_inputs(real, codes, draws, training=False)
        terms = self.critic_terms(inputs)
        return _loss_scalars(terms, losses.generator_loss(terms.fake_scores))

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return what the reference shows: a cell, scores, weights and gradients."""
        real, codes = self.real_cells.read(batch)
        draws = self.draw(tf.shape(codes)[0], seed)
        fake = self.generator.network(draws.noise, draws.codes, training=True).cells
        terms, critic_gradients, _ = self._critic_gradients(real, codes, draws)
        _, generator_gradients = self._generator_gradients(draws)
        return {
            "single_cell_fake/mean": tf.reduce_mean(fake[0]),
            "single_cell_fake/histogram": fake[0],
            "single_cell_real/mean": tf.reduce_mean(real[0]),
            "single_cell_real/histogram": real[0],
            "Distance_fake": terms.fake_scores,
            "Distance_real": terms.real_scores,
            **weight_histograms(self.critic.weights, critic_gradients),
            **weight_histograms(self.generator.weights, generator_gradients),
        }

    def trackables(self) -> Mapping[str, Any]:
        """Return both networks and both optimizers."""
        return {
            "generator": self.generator.network,
            "critic": self.critic.network,
            "generator_optimizer": self.generator.optimizer,
            "critic_optimizer": self.critic.optimizer,
        }

    def draw(self, n_cells: tf.Tensor, seed: tf.Tensor) -> GanDraws:
        """Draw what one update needs; categories fall as among the training cells."""
        generator = self.generator.network
        dtype = generator.variable_dtype
        share = tf.random.stateless_uniform(
            (n_cells, 1), _fold_in(seed, 1), alg="philox"
        )
        boundaries = np.cumsum(self.real_cells.ratios)[:-1].astype(np.float32)
        return GanDraws(
            noise=tf.random.stateless_normal(
                (n_cells, generator.n_latent),
                _fold_in(seed, 0),
                dtype=dtype,
                alg="philox",
            ),
            codes=tf.reduce_sum(tf.cast(share >= boundaries, tf.int32), axis=1),
            mixing=tf.random.stateless_uniform(
                (n_cells, 1), _fold_in(seed, 2), dtype=dtype, alg="philox"
            ),
        )

    def critic_inputs(
        self, real: tf.Tensor, codes: tf.Tensor, draws: GanDraws, *, training: bool
    ) -> tuple[CriticInputs, tuple[BatchStatistics, ...]]:
        """Generate the cells of one critic update.

        Returns
        -------
        The inputs, and the generator's statistics for the codes of the real cells.
        """
        generator = self.generator.network
        fake = generator(draws.noise, draws.codes, training=training)
        partner = (
            generator(draws.noise, codes, training=training)
            if generator.uses_codes
            else fake
        )
        between = losses.interpolate(real, partner.cells, draws.mixing)
        inputs = CriticInputs(real, codes, fake.cells, draws.codes, between)
        return inputs, partner.statistics

    def critic_terms(self, inputs: CriticInputs) -> CriticTerms:
        """Return the critic's loss."""
        critic = self.critic.network
        # One pass over both: twice the rows take less than twice as long to multiply.
        scores = critic(
            tf.concat([inputs.real, inputs.fake], axis=0),
            tf.concat([inputs.real_codes, inputs.fake_codes], axis=0),
        )
        real_scores, fake_scores = tf.split(scores, 2)
        slopes = losses.slopes(critic.score_gradient(inputs.between, inputs.real_codes))
        penalty = losses.gradient_penalty(slopes)
        distance = losses.wasserstein_distance(real_scores, fake_scores)
        loss = distance + self.penalty_weight * penalty
        return CriticTerms(loss, penalty, real_scores, fake_scores)

    def critic_gradients(
        self, real: tf.Tensor, codes: tf.Tensor, draws: GanDraws
    ) -> tuple[CriticTerms, list[tf.Tensor], tuple[BatchStatistics, ...]]:
        """Return the critic's loss, its gradients and `critic_inputs`' statistics."""
        inputs, statistics = self.critic_inputs(real, codes, draws, training=True)
        with tf.GradientTape() as tape:
            terms = self.critic_terms(inputs)
        return terms, tape.gradient(terms.loss, self.critic.weights), statistics

    def generator_gradients(self, draws: GanDraws) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return the generator's loss and its gradients."""
        generator, critic = self.generator.network, self.critic.network
        with tf.GradientTape() as tape:
            fake = generator(draws.noise, draws.codes, training=True)
            loss = losses.generator_loss(critic(fake.cells, draws.codes))
        return loss, tape.gradient(loss, self.generator.weights)


def _fold_in(seed: tf.Tensor, data: int | tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, data, alg="philox")


def _loss_scalars(
    terms: CriticTerms, generator_loss: tf.Tensor
) -> dict[str, tf.Tensor]:
    return {
        "gen_loss": generator_loss,
        "critic_loss_1": terms.loss,
        "Penalty": terms.penalty,
    }
