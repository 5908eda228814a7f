"""The cycle autoencoder equals the original's stored run, to 1e-5."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.models.cycle import optimizer as cycle_updates
from tests.models.cycle.cycle_reference import CycleReference, losses_by_name


@pytest.fixture(scope="module")
def reference(reference_dir) -> CycleReference:
    return CycleReference(reference_dir / "cycle_autoencoder.npz")


@pytest.fixture(scope="module")
def stage(reference):
    return reference.stage()


def assert_close(found, expected, tolerance: float = 1e-5) -> None:
    """Compare to a share of the largest value."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-30)
    )


def terms_of(stage, reference, target: str = "target_ids"):
    source = stage.network.role(tf.constant(reference.codes("source_ids")))
    target = tf.constant(reference.codes(target))
    return stage.terms(tf.constant(reference["in/x"]), source, target)


@pytest.fixture(scope="module")
def terms(stage, reference):
    return terms_of(stage, reference)


@pytest.mark.parametrize("cycle", ["cycle1", "cycle2"])
def test_outputs_hidden_states_and_contributions(stage, reference, terms, cycle):
    found = {"cycle1": terms.there, "cycle2": terms.back}[cycle]
    assert_close(found.output, reference[f"out/{cycle}/output"])
    of_fields = np.transpose(stage.network.by_field(found.hidden), (1, 0, 2))
    hidden = np.concatenate([found.base[None], of_fields], axis=0)
    parts = stage.network.contributions(found).numpy()
    norms = np.linalg.norm(parts, axis=2).mean(axis=1)
    expected = reference.by_head(f"out/{cycle}/hidden")
    contributions = reference.by_head(f"out/{cycle}/contribution")
    for head in range(len(expected)):
        assert_close(hidden[head], expected[head])
        assert_close(parts[head], contributions[head])
    np.testing.assert_allclose(
        norms, reference.by_head(f"out/{cycle}/contribution_l2_mean"), rtol=1e-5
    )


def losses_of(terms, reference, prefix: str) -> dict[str, tuple[float, float]]:
    """Return found and stored losses by name."""
    found = losses_by_name(terms, reference.names, reference.config["head_order"])
    return {
        name: (float(value), float(reference[f"{prefix}/loss/{name}"]))
        for name, value in found.items()
    }


def test_losses(reference, terms):
    for name, (found, expected) in losses_of(terms, reference, "out").items():
        assert found == pytest.approx(expected, rel=1e-5), name


def test_losses_and_gradient_with_the_targets_that_the_original_draws(stage, reference):
    targets = "target_ids_original_sampler"
    terms = terms_of(stage, reference, targets)
    prefix = "out_original_sampler"
    assert_close(terms.there.output, reference[f"{prefix}/cycle1/output"])
    assert_close(terms.back.output, reference[f"{prefix}/cycle2/output"])
    for name, (found, expected) in losses_of(terms, reference, prefix).items():
        assert found == pytest.approx(expected, rel=1e-5), name
    _, gradients = stage.gradients(
        tf.constant(reference["in/x"]),
        tf.constant(reference.codes("source_ids")),
        tf.constant(reference.codes(targets)),
    )
    norm = tf.linalg.global_norm([*gradients.dense, gradients.contexts.values])
    assert float(norm) == pytest.approx(
        float(reference[f"{prefix}/grad_global_norm"]), rel=1e-5
    )


@pytest.mark.parametrize("jit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_gradients_of_heads(reference, jit):
    stage = reference.stage(jit=jit)
    _, gradients = stage._gradients(
        tf.constant(reference["in/x"]),
        tf.constant(reference.codes("source_ids")),
        tf.constant(reference.codes("target_ids")),
    )
    expected = reference.heads("out/grad")
    names = ("base", "encoders", "decoders")
    for name, found in zip(names, gradients.dense, strict=True):
        assert_close(found, expected[name])
    codes = gradients.contexts.categories.numpy()
    assert codes.tolist() == list(range(sum(reference.sizes)))
    assert_close(gradients.contexts.values, expected["contexts"])


def test_logits_losses_and_gradients_of_the_classifier(stage, reference, terms):
    expression = tf.constant(reference["in/x"])
    codes = tf.constant(reference.codes("source_ids"))
    for kind, cells in (("real", expression), ("translated", terms.there.output)):
        for name, logits in zip(reference.names, stage.classifier(cells), strict=True):
            assert_close(logits, reference[f"out/classifier_logits_{kind}/{name}"])
    losses, gradients = stage.classifier_gradients(expression, codes)
    for name, loss in zip(reference.names, losses, strict=True):
        expected = float(reference[f"out/loss/classifier/{name}"])
        assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(tf.reduce_mean(losses)) == pytest.approx(
        float(reference["out/loss/classifier_mean"]), rel=1e-5
    )
    expected = reference.classifier("out/classifier_grad")
    for found, stored in zip(gradients, expected, strict=True):
        assert_close(found, stored)


@pytest.mark.parametrize(
    ("jit", "n_at_once"),
    [
        (False, 2),
        pytest.param(False, 100, marks=pytest.mark.slow),
        pytest.param(True, 100, marks=pytest.mark.slow),
    ],
)
def test_two_updates(reference, monkeypatch, jit, n_at_once):
    stage = reference.stage(jit=jit)
    n_values = stage.network.n_latent**2
    monkeypatch.setattr(cycle_updates, "VALUES_AT_ONCE", n_at_once * n_values)
    update = tf.function(stage.update)
    steps = {
        "step1": ("in/x_step1", "step1_source_ids", "step1_target_ids"),
        "step2": ("in/x", "source_ids", "target_ids"),
    }
    before = _untouched(stage, reference)
    for step, (cells, source, target) in steps.items():
        metrics = update(
            tf.constant(reference[cells]),
            tf.constant(reference.codes(source)),
            tf.constant(reference.codes(target)),
        )
        for name, key in (
            ("loss", "loss_total"),
            ("classifier_loss", "loss_classifier"),
            ("gradient_norm", "grad_global_norm"),
        ):
            expected = float(reference[f"out/{step}/{key}"])
            assert float(metrics[name]) == pytest.approx(expected, rel=2e-5), name
        for name, expected in reference.heads(f"out/{step}/weights").items():
            found = getattr(stage.network, name).numpy()
            assert found.min() >= 0
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        network = stage.classifier
        found = [*network.shared.weights, *network.heads.weights]
        expected = reference.classifier(f"out/{step}/weights")
        for weight, stored in zip(found, expected, strict=True):
            np.testing.assert_allclose(weight, stored, rtol=0, atol=1e-5)
        if step == "step1":
            np.testing.assert_equal(_untouched(stage, reference), before)


def _untouched(stage, reference) -> dict[str, np.ndarray]:
    """Return the matrices that step 1 does not touch."""
    return {
        name: stage.network.contexts[reference.place_of(name)].numpy()
        for name in reference.config["untouched_in_step1"]
    }
