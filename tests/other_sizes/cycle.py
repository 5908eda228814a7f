"""The cycle autoencoder of other sizes, with a field more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tests.models.cycle.cycle_reference import CycleReference
from tests.models.cycle.test_parity import losses_by_name
from tests.other_sizes.arrays import (
    Arrays,
    Shapes,
    below_places,
    drawn,
    in_their_names,
    prefixed,
    save,
)

N_CELLS = 17
FIELDS = {"donor": 2, "assay": 4, "sex": 3}
CONFIG = {
    "genes": 23,
    "latent_dim": 4,
    "classifier_latent_dim": 6,
    "fields": [{"name": k, "cardinality": n} for k, n in FIELDS.items()],
    "batch": N_CELLS,
    "field_scale": 0.03,
    "learning_rate": 0.02,
    "adamw": {
        "betas": [0.8, 0.99],
        "eps": 1e-8,
        "weight_decay_base": 2e-4,
        "weight_decay_fields": 1e-3,
    },
    "adam_classifier": {"betas": [0.85, 0.995], "eps": 1e-8, "weight_decay": 0.0},
    "clip_global_norm": 7.0,
    "head_order": ["base", *FIELDS],
    "untouched_in_step1": ["field/assay/context/2/W", "field/assay/context/3/W"],
}


def head_shapes() -> Shapes:
    n_genes, k = CONFIG["genes"], CONFIG["latent_dim"]
    shapes = {"base/W": (k, n_genes)}
    for name, n in FIELDS.items():
        shapes[f"field/{name}/encoder/W"] = (k, n_genes)
        shapes[f"field/{name}/decoder/W"] = (n_genes, k)
        shapes |= {f"field/{name}/context/{c}/W": (k, k) for c in range(n)}
    return shapes


def classifier_shapes() -> Shapes:
    n_genes, width = CONFIG["genes"], CONFIG["classifier_latent_dim"]
    shapes = {"classifier/shared/W": (width, n_genes), "classifier/shared/b": (width,)}
    for name, n in FIELDS.items():
        shapes[f"classifier/head/{name}/W"] = (n, width)
        shapes[f"classifier/head/{name}/b"] = (n,)
    return shapes


def inputs() -> Arrays:
    """Draw cells, their categories, and other ones; step 1 has two of the assays."""
    rng = np.random.default_rng(3)
    arrays = {
        name: rng.poisson(2.0, (N_CELLS, CONFIG["genes"])).astype(np.float32)
        for name in ("x", "x_step1")
    }
    for name, n in FIELDS.items():
        n_step1 = 2 if name == "assay" else n
        for prefix, n_used in (("", n), ("step1_", n_step1)):
            source = rng.permutation(np.arange(N_CELLS) % n_used)
            arrays[f"{prefix}source_ids/{name}"] = source
            arrays[f"{prefix}target_ids/{name}"] = (source + 1) % n_used
        drawn_last = "target_ids" if name == "sex" else "source_ids"
        arrays[f"target_ids_original_sampler/{name}"] = arrays[f"{drawn_last}/{name}"]
    return arrays


def write_cycle(folder: Path) -> None:
    path = folder / "cycle_autoencoder.npz"
    weights = drawn(head_shapes() | classifier_shapes())
    weights = {
        k: np.abs(array) if "classifier" not in k else array
        for k, array in weights.items()
    }
    arrays = prefixed("weights/", weights) | prefixed("in/", inputs())
    save(path, arrays, CONFIG)
    save(path, arrays | outputs(CycleReference(path)), CONFIG)


def outputs(reference: CycleReference) -> Arrays:
    results = classifier_outputs(reference) | update_outputs(reference)
    for prefix, target in (
        ("out", "target_ids"),
        ("out_original_sampler", "target_ids_original_sampler"),
    ):
        results |= prefixed(f"{prefix}/", cycle_outputs(reference, target))
    return {key: np.asarray(value) for key, value in results.items()}


def stored_heads(reference: CycleReference, values: Mapping[str, Any]) -> Arrays:
    translate = below_places(reference.arrays, reference.heads)
    return in_their_names(head_shapes(), translate, values)


def stored_classifier(reference: CycleReference, values: Iterable[Any]) -> Arrays:
    def numbered(prefix: str) -> Arrays:
        return dict(enumerate(reference.classifier(prefix)))

    translate = below_places(reference.arrays, numbered)
    return in_their_names(classifier_shapes(), translate, dict(enumerate(values)))


def cells_of(
    reference: CycleReference, cells: str, source: str, target: str
) -> tuple[tf.Tensor, ...]:
    codes = (reference.codes(name) for name in (source, target))
    return tuple(map(tf.constant, (reference[f"in/{cells}"], *codes)))


def cycle_outputs(reference: CycleReference, target: str) -> Arrays:
    """Return what comes of the cells on their ways there and back."""
    stage, heads = reference.stage(), reference.config["head_order"]
    x, source, codes = cells_of(reference, "x", "source_ids", target)
    terms = stage.terms(x, stage.network.role(source), codes)
    _, (dense, contexts) = stage.gradients(x, source, codes)
    gradients = dict(zip(("base", "encoders", "decoders"), dense, strict=True))
    gradients["contexts"] = contexts.values
    results = prefixed("loss/", losses_by_name(terms, reference.names, heads))
    results |= prefixed("grad/", stored_heads(reference, gradients))
    results["grad_global_norm"] = tf.linalg.global_norm([*gradients.values()])
    logits = stage.classifier(terms.there.output)
    field_values = dict(zip(reference.names, logits, strict=True))
    results |= prefixed("classifier_logits_translated/", field_values)
    for cycle, made in (("cycle1", terms.there), ("cycle2", terms.back)):
        results[f"{cycle}/output"] = made.output
        parts = stage.network.contributions(made).numpy()
        hidden = np.transpose(stage.network.by_field(made.hidden), (1, 0, 2))
        for kind, values in (
            ("hidden", [made.base, *hidden]),
            ("contribution", parts),
            ("contribution_l2_mean", np.linalg.norm(parts, axis=2).mean(axis=1)),
        ):
            head_values = dict(zip(heads, values, strict=True))
            results |= prefixed(f"{cycle}/{kind}/", head_values)
    return results


def classifier_outputs(reference: CycleReference) -> Arrays:
    stage, names = reference.stage(), reference.names
    x, source, _ = cells_of(reference, "x", "source_ids", "target_ids")
    losses, gradients = stage.classifier_gradients(x, source)
    logits = dict(zip(names, stage.classifier(x), strict=True))
    return {
        **prefixed("out/classifier_logits_real/", logits),
        **prefixed("out/loss/classifier/", dict(zip(names, losses, strict=True))),
        "out/loss/classifier_mean": tf.reduce_mean(losses),
        **prefixed("out/classifier_grad/", stored_classifier(reference, gradients)),
    }


def update_outputs(reference: CycleReference) -> Arrays:
    stage, results = reference.stage(), {}
    for step, cells, prefix in (("step1", "x_step1", "step1_"), ("step2", "x", "")):
        codes = f"{prefix}source_ids", f"{prefix}target_ids"
        metrics = stage.update(*cells_of(reference, cells, *codes))
        heads = {k: getattr(stage.network, k) for k in reference.heads("weights")}
        layers = [*stage.classifier.shared.weights, *stage.classifier.heads.weights]
        step_values = {
            "loss_total": metrics["loss"],
            "loss_classifier": metrics["classifier_loss"],
            "grad_global_norm": metrics["gradient_norm"],
            **prefixed("weights/", stored_heads(reference, heads)),
            **prefixed("weights/", stored_classifier(reference, layers)),
        }
        results |= prefixed(f"out/{step}/", step_values)
    return results
