"""Networks of the count autoencoder."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.data.transforms import encoder_input
from cellgan.layers.likelihoods import Bernoulli, NegativeBinomial, Poisson
from cellgan.models.latent.networks import CountAutoencoder, Mlp, Modality
from tests.models.latent.count_reference import (
    TRANSFORMS,
    CountReference,
    outputs_in_use,
    outputs_of_a_step,
)
from tests.stored import stored_config

CASES = [case for case in stored_config("cfgen.npz")["cases"] if case.startswith("ae_")]
TOLERANCE = 1e-5
NO_GRADIENT = 1e-5
"""Largest gradient that is zero but for rounding, of biases that a batch normalisation
takes away again; other gradients are 1e-3 and more."""
LEARNING_RATE = 1e-3
"""How far Adam moves a weight in one step, up or down."""
RNA = Modality(7, (6, 5, 3), "negative_binomial")
ATAC = Modality(9, (8, 4), "bernoulli", "none")


@pytest.fixture(scope="module", params=CASES)
def reference(request, reference_dir) -> CountReference:
    return CountReference(reference_dir, request.param)


@pytest.fixture(scope="module")
def in_use(reference) -> dict[str, np.ndarray]:
    return outputs_in_use(reference)


@pytest.fixture(scope="module")
def step(reference) -> dict[str, np.ndarray]:
    return outputs_of_a_step(reference)


def counts(n_cells: int = 12, seed: int = 0) -> dict[str, tf.Tensor]:
    rng = np.random.default_rng(seed)
    return {
        "rna": tf.constant(rng.poisson(2.0, (n_cells, 7)), tf.float32),
        "atac": tf.constant(rng.integers(0, 2, (n_cells, 9)), tf.float32),
    }


def totals(features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {m: tf.reduce_sum(values, axis=1) for m, values in features.items()}


def test_outputs_cover_every_stored_entry(reference, in_use, step):
    ours = {key: value.shape for key, value in (in_use | step).items()}
    stored = {key: value.shape for key, value in reference.below("out/").items()}
    assert ours == stored


def test_outputs_in_use_equal_the_reference(reference, in_use):
    for key, value in in_use.items():
        expected = reference.arrays[f"out/{key}"]
        # Latents and logits near 0 are sums of larger numbers.
        scale = np.abs(expected).max() if key.startswith(("z_", "logits_")) else 0
        np.testing.assert_allclose(
            value, expected, rtol=TOLERANCE, atol=1e-6 * scale, err_msg=key
        )


def test_gradients_of_a_step_equal_the_reference(reference, step):
    for key in ("train_loss", "train_grad_norm_before_clip"):
        np.testing.assert_allclose(
            step[key], reference.arrays[f"out/{key}"], rtol=TOLERANCE
        )
    for key, expected in reference.below("out/train_grad/").items():
        np.testing.assert_allclose(
            step[f"train_grad/{key}"],
            expected,
            rtol=0,
            atol=max(TOLERANCE * np.abs(expected).max(), NO_GRADIENT),
            err_msg=key,
        )


def test_weights_after_a_step_equal_the_reference(reference, step):
    gradients = reference.below("out/train_grad/")
    differences = []
    for key, gradient in gradients.items():
        expected = reference.arrays[f"out/after_one_adamw_step/{key}"]
        difference = np.abs(step[f"after_one_adamw_step/{key}"] - expected)
        assert difference.max() < 2.001 * LEARNING_RATE, key
        differences.append(difference[np.abs(gradient) > NO_GRADIENT])
    # Adam divides a gradient by itself: rounding decides where it is nearly nothing.
    differences = np.concatenate(differences)
    assert np.mean(differences < 1e-6) > 0.99


def test_running_statistics_after_a_step_equal_the_reference(reference, step):
    stored = {
        key: value
        for key, value in reference.below("out/after_one_adamw_step/").items()
        if "running" in key
    }
    paths = [weight.path for weight in reference.autoencoder().weights]
    running = {reference.their_name(path) for path in paths if "moving" in path}
    assert stored.keys() == running
    for key, expected in stored.items():
        np.testing.assert_allclose(
            step[f"after_one_adamw_step/{key}"],
            expected,
            rtol=TOLERANCE,
            atol=1e-6,
            err_msg=key,
        )


def test_inputs_of_the_encoder_equal_the_reference(reference):
    for m, features in reference.features.items():
        is_binary = reference.autoencoder().modalities[m].transform == "none"
        transform = (
            "none" if is_binary else TRANSFORMS[reference.config["normalization_type"]]
        )
        np.testing.assert_allclose(
            encoder_input(features, transform),
            reference.arrays[f"in/X_norm_{m}"],
            rtol=TOLERANCE,
        )


@pytest.mark.parametrize("theirs", TRANSFORMS)
def test_transforms_equal_the_loader_of_the_reference(reference_dir, theirs):
    with np.load(reference_dir / "cfgen.npz") as stored:
        features = tf.constant(stored["in/loader/X_counts"], tf.float32)
        expected = stored[f"out/loader/X_norm_{theirs}"]
    values = encoder_input(features, TRANSFORMS[theirs])
    np.testing.assert_allclose(values, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("transform", [*TRANSFORMS.values(), "none"])
def test_cell_without_counts_is_encoded_from_zeros(transform):
    assert not np.any(encoder_input(tf.zeros((2, 3)), transform))


def test_widths_are_mirrored_and_a_joint_latent_adds_a_layer():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC}, n_joint=2)
    shapes = {weight.path: tuple(weight.shape) for weight in network.weights}
    kernels = [shape for path, shape in shapes.items() if path.endswith("kernel")]
    assert kernels == [
        *[(7, 6), (6, 5), (5, 3)],
        *[(9, 8), (8, 4)],
        (7, 2),
        *[(2, 3), (3, 5), (5, 6), (6, 7)],
        *[(2, 4), (4, 8), (8, 9)],
    ]
    assert network.n_latent == 2


def test_separate_latents_lie_side_by_side_and_reach_only_their_decoder():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC})
    features = counts()
    latent = network.encode(features)
    changed = latent + tf.constant([[0.0] * 3 + [1.0] * 4])
    before = network.decode(latent, totals(features))
    after = network.decode(changed, totals(features))
    assert latent.shape == (12, network.n_latent) == (12, 7)
    np.testing.assert_array_equal(before["rna"].mean, after["rna"].mean)
    assert np.all(before["atac"].mean.numpy() != after["atac"].mean.numpy())


def test_default_size_has_the_number_of_parameters_of_the_reference():
    modality = Modality(2000, (512, 256, 50), "negative_binomial")
    network = CountAutoencoder({"rna": modality})
    sizes = [np.prod(weight.shape) for weight in network.trainable_variables]
    assert sum(sizes) == 2_344_402


def test_initial_weights_are_uniform_within_the_root_of_the_inputs():
    mlp = Mlp((100, 400, 3), seed=5, name="encoder")
    mlp.build()
    for linear, n_inputs in zip(mlp.linears, (100, 400), strict=True):
        for weight in (linear.kernel, linear.bias):
            assert np.abs(weight).max() <= n_inputs**-0.5
    kernel = np.asarray(mlp.linears[0].kernel)
    # 5 standard errors of the variance limit**2 / 3 of 40,000 uniform numbers
    np.testing.assert_allclose(kernel.var(), 0.01 / 3, rtol=5 * np.sqrt(0.8 / 40_000))


def test_initial_weights_are_a_function_of_the_seed_and_differ_between_layers():
    networks = [CountAutoencoder({"rna": RNA, "atac": ATAC}, seed=s) for s in (1, 1, 2)]
    first, same, other = [
        [w.numpy() for w in network.trainable_variables if np.ptp(w) > 0]
        for network in networks
    ]
    assert len(first) == 20
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert len({round(float(w.flat[0]), 6) for w in first}) == 20


@pytest.mark.parametrize(
    ("likelihood", "kind"),
    [
        ("negative_binomial", NegativeBinomial),
        ("poisson", Poisson),
        ("bernoulli", Bernoulli),
    ],
)
def test_decoder_gives_the_distribution_of_its_likelihood(likelihood, kind):
    network = CountAutoencoder({"rna": RNA._replace(likelihood=likelihood)})
    features = {"rna": counts()["rna"]}
    (distribution,) = network.decode(
        network.encode(features), totals(features)
    ).values()
    assert isinstance(distribution, kind)


@pytest.mark.parametrize("likelihood", ["negative_binomial", "poisson"])
def test_means_of_counts_sum_to_the_library_size(likelihood):
    network = CountAutoencoder({"rna": RNA._replace(likelihood=likelihood)})
    library_size = tf.constant([1.0, 1e4, 1e7])
    decoded = network.decode(tf.ones((3, 3)), {"rna": library_size})
    np.testing.assert_allclose(
        tf.reduce_sum(decoded["rna"].mean, axis=1), library_size, rtol=1e-5
    )


def test_inverse_dispersion_is_that_of_the_category():
    network = CountAutoencoder({"rna": RNA}, n_categories=3)
    decoded = network.decode(
        tf.ones((4, 3)), {"rna": tf.ones(4)}, tf.constant([2, 0, 1, 2])
    )
    table = np.exp(network.log_inverse_dispersion["rna"])
    np.testing.assert_allclose(
        decoded["rna"].inverse_dispersion, table[[2, 0, 1, 2]], rtol=1e-6
    )


def test_loss_is_the_weighted_sum_over_modalities():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC._replace(weight=0.25)})
    terms = {"rna": tf.constant(3.0), "atac": tf.constant(8.0)}
    assert float(network.loss(terms)) == 5.0


def test_negative_log_likelihood_is_that_of_the_distributions():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC})
    features = counts()
    sizes = totals(features)
    terms = network.reconstruction_losses(features, sizes, network(features).logits)
    decoded = network.decode(network.encode(features), sizes)
    for m, distribution in decoded.items():
        expected = -np.sum(distribution.log_prob(features[m])) / 12
        np.testing.assert_allclose(terms[m], expected, rtol=1e-5)


def test_permuting_cells_permutes_latents_and_distributions():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC}, n_joint=2)
    features, order = counts(), np.random.default_rng(1).permutation(12)
    permuted = {m: tf.gather(values, order) for m, values in features.items()}
    latent = network.encode(features)
    np.testing.assert_allclose(
        network.encode(permuted), latent.numpy()[order], rtol=1e-5, atol=1e-6
    )
    means = network.decode(latent, totals(features))["rna"].mean.numpy()
    np.testing.assert_allclose(
        network.decode(network.encode(permuted), totals(permuted))["rna"].mean,
        means[order],
        rtol=1e-5,
    )


def test_latent_in_use_does_not_depend_on_other_cells_nor_change_a_weight():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC})
    features = counts()
    before = [weight.numpy() for weight in network.weights]
    together = network.encode(features)
    alone = network.encode({m: values[:1] for m, values in features.items()})
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-5, atol=1e-6)
    for weight, value in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_cell_without_counts_has_finite_gradients():
    modalities = {
        "rna": RNA,
        "atac": ATAC._replace(likelihood="poisson", transform="proportions"),
    }
    network = CountAutoencoder(modalities)
    features = {m: values * [[0.0], [1.0]] for m, values in counts(2).items()}
    with tf.GradientTape() as tape:
        cells = network(features, training=True)
        terms = network.reconstruction_losses(features, totals(features), cells.logits)
        loss = network.loss(terms)
    gradients = tape.gradient(loss, network.trainable_variables)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_dropout_follows_the_seed_and_is_off_in_use():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC}, dropout=0.5)
    features = counts()

    def logits(seed: int, *, training: bool) -> np.ndarray:
        cells = network(features, training=training, seed=tf.constant([seed, 0]))
        return cells.logits["atac"].numpy()

    np.testing.assert_array_equal(logits(1, training=True), logits(1, training=True))
    assert np.all(logits(1, training=True) != logits(2, training=True))
    np.testing.assert_array_equal(logits(1, training=False), logits(2, training=False))


def test_dropout_sets_its_share_of_units_to_zero_and_scales_the_others():
    mlp = Mlp((4, 50, 1), dropout=0.2, name="encoder")
    mlp.build()
    weights = [np.zeros((4, 50)), np.zeros(50), np.full((50, 1), 1 / 50), [0.0]]
    for variable, value in zip(
        [w for linear in mlp.linears for w in (linear.kernel, linear.bias)],
        weights,
        strict=True,
    ):
        variable.assign(value)
    mlp.norms[0].offset.assign(np.ones(50))
    outputs, _ = mlp(tf.zeros((400, 4)), training=True, seed=tf.constant([3, 4]))
    # Of 20,000 units, each 0 or 1.25; 5 standard errors
    np.testing.assert_allclose(
        np.mean(outputs), 1.0, atol=5 * 1.25 * np.sqrt(0.16 / 20_000)
    )
    kept = np.asarray(outputs) * 50 / 1.25
    np.testing.assert_allclose(kept, np.rint(kept), atol=1e-3)


@pytest.mark.slow
def test_step_compiled_with_xla_equals_the_eager_one():
    network = CountAutoencoder({"rna": RNA, "atac": ATAC}, n_joint=2, n_categories=2)
    features, codes = counts(), tf.constant([0, 1] * 6)

    def gradients(features: dict[str, tf.Tensor]) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            cells = network(features, training=True)
            terms = network.reconstruction_losses(
                features, totals(features), cells.logits, codes
            )
            loss = network.loss(terms)
        return tape.gradient(loss, network.trainable_variables)

    compiled = tf.function(gradients, jit_compile=True)(features)
    for ours, expected in zip(compiled, gradients(features), strict=True):
        # Gradients of biases before a normalisation are zero up to rounding.
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
