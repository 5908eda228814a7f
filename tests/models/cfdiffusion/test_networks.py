from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.layers.time_embedding import step_features
from cellgan.models.cfdiffusion import networks as denoiser
from cellgan.models.cfdiffusion.networks import Denoiser, GuidedDenoiser
from tests.models.cfdiffusion.diffusion_reference import (
    DiffusionReference,
    assert_close,
)
from tests.stored import stored_names

CASES = ["single", "multi"]
FILE = "cfdiffusion.npz"
BRANCHES = [
    int(branch)
    for branch in stored_names(FILE, r"out/denoiser_single/cache/branch(\d+)/full")
]
STRENGTHS = stored_names(FILE, r"out/denoiser_single/guided_w(.+)")
RELEASED = stored_names(FILE, r"out/denoiser_single/as_released/(.+)")
ONE = tf.ones((1,))


@pytest.fixture(scope="module")
def reference(reference_dir) -> DiffusionReference:
    return DiffusionReference(reference_dir)


def inputs_of(reference: DiffusionReference, case: str):
    """Return the network of a case, its latents, shifts and codes."""
    network = reference.denoiser(case)
    latent, steps, y = (reference[f"in/denoiser_{case}/{name}"] for name in "xty")
    shifts = network.shifts(tf.constant(steps))
    return network, tf.constant(latent), shifts, reference.codes(case, y)


# As the original


@pytest.mark.parametrize("case", CASES)
def test_embeddings_of_steps_are_those_of_the_original(reference, case):
    network, _, _, _ = inputs_of(reference, case)
    steps = tf.constant(reference[f"in/denoiser_{case}/t"])
    out = f"out/denoiser_{case}"
    width = reference.config["hidden"][0]
    assert_close(step_features(steps, width), reference[f"{out}/sinusoid"])
    assert_close(network.embed_steps(steps), reference[f"{out}/time_emb"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["cond", "null"])
def test_embeddings_of_labels_are_those_of_the_original(reference, case, kind):
    network, latent, _, codes = inputs_of(reference, case)
    if kind == "null":
        codes = reference.null(case, len(latent))
    out = f"out/denoiser_{case}"
    columns = network.label_columns(codes)
    np.testing.assert_array_equal(columns, reference[f"{out}/label_input_{kind}"])
    embedded = network.embed_labels(columns)
    assert_close(embedded, reference[f"{out}/label_emb_{kind}"])


@pytest.mark.parametrize("case", CASES)
def test_noise_with_and_without_labels_is_that_of_the_original(reference, case):
    network, latent, shifts, codes = inputs_of(reference, case)
    null = reference.null(case, len(latent))
    out = f"out/denoiser_{case}"
    for shown, expected in ((codes, "cond"), (null, "null")):
        found = network(latent, shifts, network.gates(shown))
        assert_close(found, reference[f"{out}/{expected}"])


def test_noise_with_one_label_left_out_is_that_of_the_original(reference):
    network, latent, shifts, codes = inputs_of(reference, "multi")
    null = reference.null("multi", len(latent))
    for index, name in enumerate(codes):
        found = network(latent, shifts, network.gates({**codes, name: null[name]}))
        assert_close(found, reference[f"out/denoiser_multi/drop_condition_{index}"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_guided_noise_is_that_of_the_original(reference, case, strength):
    network, latent, shifts, codes = inputs_of(reference, case)
    both = (codes, reference.null(case, len(latent)))
    gates = network.by_layer(tf.stack([network.gates(shown) for shown in both]))
    scale = 1 + float(strength)
    found = network.denoise(latent, shifts, gates, tf.constant([scale, 1 - scale]))
    expected = reference[f"out/denoiser_{case}/guided_w{strength}"]
    assert_close(found.noise, expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", RELEASED)
def test_released_guidance_is_the_conditional_network(reference, case, name):
    network, latent, shifts, codes = inputs_of(reference, case)
    found = network(latent, shifts, network.gates(codes))
    assert_close(found, reference[f"out/denoiser_{case}/as_released/{name}"])


def test_network_without_labels_is_that_of_scdiffusion(reference):
    network = reference.denoiser("scdiffusion_base")
    latent, steps = (tf.constant(reference[f"in/classifier/{name}"]) for name in "xt")
    found = network(latent, network.shifts(steps), network.gates({}))
    assert_close(found, reference["out/denoiser_scdiffusion_base/eps"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("branch", BRANCHES)
def test_cached_steps_are_those_of_the_original(reference, case, branch):
    network, _, _, codes = inputs_of(reference, case)
    stored = f"in/denoiser_{case}/cache"
    out = f"out/denoiser_{case}/cache"
    null = reference.null(case, len(reference[f"{stored}/x_full"]))
    both = [network.by_layer(network.gates(shown)[None]) for shown in (codes, null)]

    def shifts(step):
        return network.shifts(tf.reshape(tf.constant(step), (1,)))

    def run(x, step):
        made = [network.denoise(x, shifts(step), of, ONE, branch) for of in both]
        return (
            tf.concat([of.noise for of in made], axis=0),
            [of.feature for of in made],
        )

    full, features = run(reference[f"{stored}/x_full"], reference[f"{stored}/t_full"])
    assert_close(full, reference[f"{out}/branch{branch}/full"])
    joined = tf.concat([of[0] for of in features], axis=0)
    assert_close(joined, reference[f"{out}/branch{branch}/feature"])
    steps = list(
        zip(
            reference[f"{stored}/x_partial"],
            reference[f"{stored}/t_partial"],
            strict=True,
        )
    )
    partial = [
        tf.concat(
            [
                network.denoise_from(feature, x, shifts(step), of, ONE, branch)
                for feature, of in zip(features, both, strict=True)
            ],
            axis=0,
        )
        for x, step in steps
    ]
    assert_close(tf.stack(partial), reference[f"{out}/branch{branch}/partial"])
    whole = tf.stack([run(x, step)[0] for x, step in steps])
    assert_close(whole, reference[f"{out}/no_cache"])


# Of its own


@pytest.mark.parametrize(
    ("n_categories", "n_parameters"),
    [
        ({"a": 2, "b": 2}, 5_132_544),
        ({"a": 17}, 5_139_200),
        ({}, 3_488_384),
    ],
)
def test_paper_sizes_have_the_number_of_parameters_of_the_original(
    n_categories, n_parameters
):
    network = Denoiser(128, n_categories)
    assert sum(np.prod(w.shape) for w in network.trainable_variables) == n_parameters


def test_feature_of_the_same_step_gives_the_same_noise():
    network = Denoiser(4, {"a": 3}, widths=(8, 6, 4), seed=1)
    latent = tf.random.stateless_normal((5, 4), (1, 2))
    shifts = network.shifts(tf.constant([7]))
    codes = [tf.constant([0, 1, 2, 3, 3]), tf.fill((5,), 3)]
    gates = network.by_layer(tf.stack([network.gates({"a": of}) for of in codes]))
    weights = tf.constant([1.5, -0.5])
    for branch in range(network.n_up):
        noise, feature = network.denoise(latent, shifts, gates, weights, branch)
        again = network.denoise_from(feature, latent, shifts, gates, weights, branch)
        np.testing.assert_allclose(again, noise, atol=1e-6)


def test_initial_weights_are_a_function_of_the_seed():
    first, same, other = (
        Denoiser(4, {"a": 3}, widths=(8, 6), seed=seed) for seed in (1, 1, 2)
    )
    is_drawn = ["norm" not in weight.path for weight in first.weights]
    pairs = list(zip(first.weights, same.weights, other.weights, is_drawn, strict=True))
    assert all(np.array_equal(a, b) for a, b, _, _ in pairs)
    assert not any(np.array_equal(a, c) for a, _, c, drawn in pairs if drawn)


def test_cells_do_not_depend_on_each_other():
    network = Denoiser(4, {"a": 3}, widths=(8, 6, 4), seed=1)
    latent = tf.random.stateless_normal((5, 4), (1, 2))
    shifts = network.shifts(tf.constant([0, 999, 5, 3, 2]))
    gates = network.gates({"a": tf.constant([0, 1, 2, 3, 3])})
    whole = network(latent, shifts, gates)
    alone = network(latent[2:3], shifts[2:3], gates[2:3])
    np.testing.assert_allclose(alone, whole[2:3], atol=1e-6)


@pytest.mark.parametrize(
    ("widths", "message"), [((7, 4), "width 7; it must be even"), ((8,), "two or more")]
)
def test_widths_that_do_not_suit_are_refused(widths, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(4, {"a": 3}, widths=widths)


def test_category_without_training_cells_is_like_no_category():
    network = Denoiser(4, {"cluster": 3, "donor": 2}, widths=(8, 6))
    network.embed_as_nothing("donor", np.array([1]))
    codes = {"cluster": tf.constant([1, 1, 1]), "donor": tf.constant([0, 1, 2])}
    gates = network.gates(codes).numpy()
    np.testing.assert_array_equal(gates[1], gates[2])
    assert np.any(gates[0] != gates[1])


@pytest.mark.parametrize("branch", [0, 1])
def test_compiled_steps_are_those_that_are_not(branch):
    network = Denoiser(4, {"a": 3}, widths=(8, 6, 4), seed=1)
    latent = 3 + tf.random.stateless_normal((5, 4), (1, 2))
    codes = [tf.constant([0, 1, 2, 3, 3]), tf.fill((5,), 3)]
    gates = tf.stack([network.gates({"a": of}) for of in codes])
    plain, compiled = (
        GuidedDenoiser(
            network, [5, 900], gates, tf.constant([1.5, -0.5]), branch, jit=jit
        )
        for jit in (False, True)
    )
    noise, feature = plain.whole(latent, tf.constant(1))
    found = compiled.whole(latent, tf.constant(1))
    np.testing.assert_allclose(found[0], noise, atol=1e-5)
    np.testing.assert_allclose(found[1], feature, atol=1e-5)
    np.testing.assert_allclose(
        compiled.part(feature, latent, tf.constant(0)),
        plain.part(feature, latent, tf.constant(0)),
        atol=1e-5,
    )


def test_units_are_gated_shifted_normalised_activated_and_added_to():
    rng = np.random.default_rng(0)
    units, gates, added = rng.normal(1, 2, (3, 2, 5, 8)).astype(np.float32)
    shifts = rng.normal(size=(1, 5, 8)).astype(np.float32)
    scale, offset = rng.normal(1, 1, (2, 8)).astype(np.float32)
    rows = units.astype(float) * gates + shifts
    centred = rows - rows.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    activated = centred / spread * scale + offset
    expected = activated / (1 + np.exp(-activated)) + added
    found = denoiser.normalized_silu(units, scale, offset, gates, shifts, added)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("most", [6, 5])
def test_gates_of_cells_are_those_of_their_categories(monkeypatch, most):
    monkeypatch.setattr(denoiser, "MOST_COMBINATIONS", most)
    network = Denoiser(4, {"a": 2, "b": 1}, widths=(8, 6), seed=1)
    codes = {"a": tf.constant([0, 1, 2, 2, 0]), "b": tf.constant([1, 0, 0, 1, 1])}
    found, expected = network.gates_of_cells(codes), network.gates(codes)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert len(np.unique(found.numpy().round(6), axis=0)) == 4
