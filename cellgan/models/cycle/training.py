"""How the cycle autoencoder is trained: to other categories and back again.

Cells go from their own categories to drawn ones, and from there back. The loss asks
that they come back as they were (reconstruction), that latents of both ways agree
(integration), and that a classifier sees the drawn categories in between (target). The
classifier learns from real cells in a step of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.layers.context_pool import SlotGradients, gradients_by_category
from cellgan.models.base import TrainingStage, weight_histograms
from cellgan.models.cycle.networks import (
    BASE,
    Cycle,
    CycleNetwork,
    FieldClassifier,
    Role,
    stacked,
    variables_of,
)
from cellgan.models.cycle.optimizer import CycleOptimizer
from cellgan.models.latent.stage import fold_in
from cellgan.optimizers import update_weights

Targets = Literal["all", "last"]


@dataclasses.dataclass(frozen=True)
class Fields:
    """The covariates that have heads, in order."""

    names: tuple[str, ...]
    known: tuple[npt.NDArray[np.int32], ...]
    """By field: codes of the categories that stand for something; others ("unknown")
    are never a target and count in no cross-entropy."""
    n_categories: tuple[int, ...]

    def positions(self, field: int) -> npt.NDArray[np.int32]:
        """Return each category's place among the known ones; -1 of the others."""
        places = np.full(self.n_categories[field], -1, np.int32)
        places[self.known[field]] = np.arange(len(self.known[field]), dtype=np.int32)
        return places


@dataclasses.dataclass(frozen=True)
class CycleRecipe:
    """What is asked of the heads."""

    targets: Targets
    """Draw new categories for all fields of a cell, or for the last field alone."""
    reconstruction: float = 1.0
    integration: float = 1.0
    target: float = 1.0


class CycleTerms(NamedTuple):
    """The loss of the heads and what it is made of."""

    total: tf.Tensor
    reconstruction: tf.Tensor
    integration: tf.Tensor
    """Mean squared difference of the latents of both ways, by head, base first."""
    target: tf.Tensor
    """Cross-entropy of the drawn categories, by field."""
    there: Cycle
    back: Cycle


class CycleGradients(NamedTuple):
    """Gradients of the heads."""

    dense: list[tf.Tensor]
    """Of base, encoders and decoders."""
    contexts: SlotGradients


def draw_targets(
    source: tf.Tensor, fields: Fields, seed: tf.Tensor, targets: Targets
) -> tf.Tensor:
    """Draw the categories that cells are taken to.

    Parameters
    ----------
    source
        Own categories, ``(n_cells, n_fields)`` int32.
    seed
        Stateless seed ``(2,)``.
    targets
        - ``"all"``: every field of a cell gets one of its other known categories, all
          of them equally likely;
        - ``"last"``: the last field alone, as in the original, whose loop over fields
          forgets what it drew before.

    Returns
    -------
    ``(n_cells, n_fields)`` int32.
    """
    columns = list(tf.unstack(source, axis=1))
    last = len(columns) - 1
    for field in range(last + 1) if targets == "all" else (last,):
        known = tf.constant(fields.known[field])
        place = tf.gather(fields.positions(field), columns[field])
        n_known = len(fields.known[field])
        n_others = tf.where(place >= 0, n_known - 1, n_known)
        uniform = tf.random.stateless_uniform(
            tf.shape(place), fold_in(seed, field), 0, 2**30, tf.int32, alg="philox"
        )
        # 2**30 is so many more that all others are equally likely, to 1e-6
        columns[field] = tf.gather(known, (place + 1 + uniform % n_others) % n_known)
    return tf.stack(columns, axis=1)


class CycleStage(TrainingStage):
    """Trains heads and classifier.

    Parameters
    ----------
    network, classifier
        Built.
    optimizer
        Of the heads; it keeps their weights from becoming negative.
    classifier_optimizer
        Built here.
    fields
        Covariates that heads are of.
    expression
        What the heads are given of a batch, ``(n_cells, n_genes)``.
    recipe
        Targets and weights of the terms.
    jit
        Compile losses and gradients with XLA.

    Notes
    -----
    The classifier is frozen in the update of the heads and learns after it, from the
    same real cells. It has read-outs for the fields of the heads only; the original's
    others never learn.

    References
    ----------
    The terms are those of the original program, which has no publication of its own.
    """

    name = "cycle"

    def __init__(  # noqa: PLR0913  (two networks, and how they are trained)
        self,
        network: CycleNetwork,
        classifier: FieldClassifier,
        optimizer: CycleOptimizer,
        classifier_optimizer: keras.Optimizer,
        fields: Fields,
        expression: Callable[[CellBatch], tf.Tensor],
        recipe: CycleRecipe,
        *,
        jit: bool,
    ) -> None:
        self.network = network
        self.classifier = classifier
        self.optimizer = optimizer
        self.classifier_optimizer = classifier_optimizer
        self.fields = fields
        self.recipe = recipe
        self._expression = expression
        self._is_static = jit
        classifier_optimizer.build(variables_of(classifier))
        self._gradients = tf.function(self.gradients, jit_compile=jit, autograph=False)
        self._classifier_gradients = tf.function(
            self.classifier_gradients, jit_compile=jit, autograph=False
        )

    def train_step(
        self, batches: tuple[CellBatch, ...], seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update the heads, then the classifier, from one batch."""
        (batch,) = batches
        expression, source = self.read(batch)
        target = draw_targets(source, self.fields, seed, self.recipe.targets)
        return self.update(expression, source, target)

    def update(
        self, expression: tf.Tensor, source: tf.Tensor, target: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Update heads and classifier once, with given targets."""
        terms, gradients = self._gradients(expression, source, target)
        update = self.optimizer.update(gradients.dense, gradients.contexts)
        losses, classifier_gradients = self._classifier_gradients(expression, source)
        update_weights(
            self.classifier_optimizer,
            variables_of(self.classifier),
            classifier_gradients,
        )
        return {
            **self._scalars(terms),
            **update,
            "classifier_loss": tf.reduce_mean(losses),
        }

    def validate_step(
        self, batch: CellBatch, seed: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Return the losses of one batch, and how much each head adds to its cells."""
        expression, source = self.read(batch)
        target = draw_targets(source, self.fields, seed, self.recipe.targets)
        terms = self.terms(expression, self.network.role(source), target)
        logits = self.classifier(expression)
        accuracy = {
            f"classifier_accuracy/{name}": _accuracy(logits[i], source[:, i], known)
            for i, (name, known) in enumerate(
                zip(self.fields.names, self.fields.known, strict=True)
            )
        }
        return {
            **self._scalars(terms),
            "classifier_loss": tf.reduce_mean(self.cross_entropies(expression, source)),
            **accuracy,
            **self.influence(expression, source),
        }

    def diagnostics(self, batch: CellBatch, seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
        """Return the influence of each head, weights, and gradients of the heads."""
        expression, source = self.read(batch)
        target = draw_targets(source, self.fields, seed, self.recipe.targets)
        _, gradients = self._gradients(expression, source, target)
        network = self.network
        return {
            **self.influence(expression, source),
            **weight_histograms(
                [network.base, network.encoders, network.decoders], gradients.dense
            ),
            f"{network.contexts.path}/values": tf.convert_to_tensor(network.contexts),
        }

    def trackables(self) -> Mapping[str, Any]:
        """Return both networks and both optimizers."""
        return {
            "network": self.network,
            "classifier": self.classifier,
            "optimizer": self.optimizer,
            "classifier_optimizer": self.classifier_optimizer,
        }

    def read(self, batch: CellBatch) -> tuple[tf.Tensor, tf.Tensor]:
        """Return expression, and codes ``(n_cells, n_fields)``."""
        return self._expression(batch), stacked(batch.covariates, self.fields.names)

    def influence(
        self, expression: tf.Tensor, source: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Return the share of each head in the norms of contributions, by tag."""
        role = self.network.role(source)
        parts = self.network.contributions(
            self.network.translate(expression, role, role)
        )
        norms = tf.reduce_mean(tf.norm(parts, axis=2), axis=1)
        shares = tf.math.divide_no_nan(norms, tf.reduce_sum(norms))
        return {
            f"influence/{name}": shares[i]
            for i, name in enumerate((BASE, *self.fields.names))
        }

    def terms(
        self, expression: tf.Tensor, source: Role, target_codes: tf.Tensor
    ) -> CycleTerms:
        """Return the losses of the heads."""
        target = self.network.role(target_codes)
        return self.terms_of_roles(expression, source, target, target_codes)

    def terms_of_roles(
        self,
        expression: tf.Tensor,
        source: Role,
        target: Role,
        target_codes: tf.Tensor,
    ) -> CycleTerms:
        """Return the losses of the heads, given the matrices of both roles."""
        there = self.network.translate(expression, source, target)
        back = self.network.translate(there.output, target, source)
        base = tf.reduce_mean(tf.square(there.base - back.base))
        difference = self.network.by_field(there.hidden - back.hidden)
        fields = tf.reduce_mean(tf.square(difference), axis=(0, 2))
        integration = tf.concat([base[None], fields], axis=0)
        reconstruction = tf.reduce_mean(tf.square(expression - back.output))
        target = self.cross_entropies(there.output, target_codes)
        total = (
            self.recipe.reconstruction * reconstruction
            + self.recipe.integration * tf.reduce_sum(integration)
            + self.recipe.target * tf.reduce_mean(target)
        )
        return CycleTerms(total, reconstruction, integration, target, there, back)

    def cross_entropies(self, expression: tf.Tensor, codes: tf.Tensor) -> tf.Tensor:
        """Return the classifier's mean cross-entropy of each field, ``(n_fields,)``.

        Cells whose category stands for nothing are left out.
        """
        losses = []
        for i, logits in enumerate(self.classifier(expression)):
            # twice as fast on a CPU as the same with codes
            loss = tf.nn.softmax_cross_entropy_with_logits(
                tf.one_hot(codes[:, i], self.fields.n_categories[i]), logits
            )
            if len(self.fields.known[i]) == self.fields.n_categories[i]:
                losses.append(tf.reduce_mean(loss))
                continue
            counts = tf.gather(self.fields.positions(i), codes[:, i]) >= 0
            counts = tf.cast(counts, loss.dtype)
            n_known = tf.reduce_sum(counts)
            losses.append(tf.math.divide_no_nan(tf.reduce_sum(loss * counts), n_known))
        return tf.stack(losses)

    def gradients(
        self, expression: tf.Tensor, source_codes: tf.Tensor, target_codes: tf.Tensor
    ) -> tuple[CycleTerms, CycleGradients]:
        """Return the losses of the heads and their gradients.

        Every weight is multiplied with several things; its gradient is one product of
        all of them with the slopes of the results.
        """
        network = self.network
        source, target = (
            network.role(codes, is_static=self._is_static)
            for codes in (source_codes, target_codes)
        )
        with tf.GradientTape() as tape:
            terms = self.terms_of_roles(expression, source, target, target_codes)
        there, back = terms.there, terms.back
        of_there, of_back = tape.gradient(terms.total, [there, back])
        dense = network.dense_gradients(
            tf.concat([expression, there.output], 0), (there, back), (of_there, of_back)
        )
        scale = network.field_scale
        contexts = gradients_by_category(
            tf.concat([there.encoded, there.hidden, back.encoded, back.hidden], 0),
            tf.concat(
                [
                    of_there.hidden,
                    scale * of_there.translated,
                    of_back.hidden,
                    scale * of_back.translated,
                ],
                0,
            ),
            tf.concat([source.codes, target.codes, target.codes, source.codes], 0),
            network.n_matrices,
            is_static=self._is_static,
        )
        return terms, CycleGradients(dense, contexts)

    def classifier_gradients(
        self, expression: tf.Tensor, codes: tf.Tensor
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """Return the classifier's losses of real cells, and its gradients."""
        with tf.GradientTape() as tape:
            losses = self.cross_entropies(expression, codes)
            loss = tf.reduce_mean(losses)
        return losses, tape.gradient(loss, variables_of(self.classifier))

    def _scalars(self, terms: CycleTerms) -> dict[str, tf.Tensor]:
        names = self.fields.names
        return {
            "loss": terms.total,
            "reconstruction": terms.reconstruction,
            "integration": tf.reduce_sum(terms.integration),
            "target": tf.reduce_mean(terms.target),
            **{
                f"integration/{name}": terms.integration[i]
                for i, name in enumerate((BASE, *names))
            },
            **{f"target/{name}": terms.target[i] for i, name in enumerate(names)},
        }


def _accuracy(
    logits: tf.Tensor, codes: tf.Tensor, known: Sequence[int] | npt.NDArray[np.int32]
) -> tf.Tensor:
    """Return the share of the cells with a known category that is recognised."""
    is_known = tf.reduce_any(codes[:, None] == tf.constant(known)[None], axis=1)
    is_right = is_known & (tf.argmax(logits, 1, tf.int32) == codes)
    n_right, n_known = (
        tf.reduce_sum(tf.cast(of, tf.float32)) for of in (is_right, is_known)
    )
    return tf.math.divide_no_nan(n_right, n_known)
