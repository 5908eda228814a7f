"""The stored run of the original cycle autoencoder, and our stage with its weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cellgan.config.training import (
    LearningRateParameters,
    OptimizerParameters,
    TrainingParameters,
)
from cellgan.models.cycle.networks import CycleNetwork, FieldClassifier
from cellgan.models.cycle.optimizer import CycleOptimizer
from cellgan.models.cycle.training import CycleRecipe, CycleStage, CycleTerms, Fields
from cellgan.optimizers import make_optimizer


class CycleReference:
    """The stored arrays, by the names of the original, in our layout."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as stored:
            self.arrays = {key: stored[key] for key in stored.files}
        self.config: dict[str, Any] = json.loads(str(self.arrays.pop("config")))
        fields = self.config["fields"]
        self.names = tuple(field["name"] for field in fields)
        self.sizes = tuple(field["cardinality"] for field in fields)

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def codes(self, kind: str) -> np.ndarray:
        """Return the categories of all fields, ``(n_cells, n_fields)``."""
        columns = [self.arrays[f"in/{kind}/{name}"] for name in self.names]
        return np.stack(columns, axis=1).astype(np.int32)

    def by_head(self, prefix: str) -> np.ndarray:
        """Return values of all heads, base first."""
        return np.stack(
            [self.arrays[f"{prefix}/{head}"] for head in self.config["head_order"]]
        )

    def heads(self, prefix: str) -> dict[str, np.ndarray]:
        """Return base, encoders, decoders and matrices as our network holds them.

        A matrix without an entry has no gradient: 0.
        """
        k = self.config["latent_dim"]
        matrices = [
            self.arrays.get(f"{prefix}/field/{name}/context/{c}/W", np.zeros((k, k))).T
            for name, size in zip(self.names, self.sizes, strict=True)
            for c in range(size)
        ]
        encoders, decoders = (
            [self.arrays[f"{prefix}/field/{name}/{part}/W"].T for name in self.names]
            for part in ("encoder", "decoder")
        )
        return {
            "base": self.arrays[f"{prefix}/base/W"].T,
            "encoders": np.stack(encoders, axis=1),
            "decoders": np.stack(decoders),
            "contexts": np.stack(matrices),
        }

    def classifier(self, prefix: str) -> list[np.ndarray]:
        """Return kernel and bias of both layers as our classifier holds them."""
        heads = [f"{prefix}/classifier/head/{name}" for name in self.names]
        return [
            self.arrays[f"{prefix}/classifier/shared/W"].T,
            self.arrays[f"{prefix}/classifier/shared/b"],
            np.concatenate([self.arrays[f"{head}/W"].T for head in heads], axis=1),
            np.concatenate([self.arrays[f"{head}/b"] for head in heads]),
        ]

    def place_of(self, weight: str) -> int:
        """Return where the matrix of a name such as field/f/context/c/W is."""
        _, name, _, category, _ = weight.split("/")
        field = self.names.index(name)
        return sum(self.sizes[:field]) + int(category)

    def stage(self, *, jit: bool = False) -> CycleStage:
        """Return a stage with the weights that the run began with."""
        config = self.config
        network = CycleNetwork(
            config["genes"],
            config["latent_dim"],
            self.sizes,
            field_scale=config["field_scale"],
            seed=1,
        )
        for name, value in self.heads("weights").items():
            getattr(network, name).assign(value)
        classifier = FieldClassifier(
            config["genes"], config["classifier_latent_dim"], self.sizes, seed=1
        )
        weights = [*classifier.shared.weights, *classifier.heads.weights]
        for weight, value in zip(weights, self.classifier("weights"), strict=True):
            weight.assign(value)
        known = tuple(np.arange(size, dtype=np.int32) for size in self.sizes)
        adamw = config["adamw"]
        return CycleStage(
            network,
            classifier,
            CycleOptimizer(
                network,
                training(config, adamw["betas"], adamw["weight_decay_fields"]),
                base_weight_decay=adamw["weight_decay_base"],
                clip_norm=config["clip_global_norm"],
                jit=jit,
            ),
            make_optimizer(training(config, config["adam_classifier"]["betas"], 0.0)),
            Fields(self.names, known, self.sizes),
            lambda batch: batch.features["rna"],
            CycleRecipe("all"),
            jit=jit,
        )


def losses_by_name(
    terms: CycleTerms, names: Sequence[str], heads: Sequence[str]
) -> dict[str, tf.Tensor]:
    """Return losses by the names of the original."""
    return {
        "reconstruction": terms.reconstruction,
        "integration_total": tf.reduce_sum(terms.integration),
        "target_mean": tf.reduce_mean(terms.target),
        "total": terms.total,
        **{f"integration/{head}": terms.integration[i] for i, head in enumerate(heads)},
        **{f"target/{name}": terms.target[i] for i, name in enumerate(names)},
    }


def training(config, betas, weight_decay) -> TrainingParameters:
    """Return the optimizer of the run, at its constant rate."""
    return TrainingParameters(
        max_steps=10,
        learning_rate=LearningRateParameters(
            decay=False, alpha_0=config["learning_rate"]
        ),
        optimizer=OptimizerParameters(
            algorithm="AdamW",
            beta1=betas[0],
            beta2=betas[1],
            weight_decay=weight_decay,
        ),
    )
