"""The velocity network, the flow and its guidance, alone and against the reference."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.models.cfgen.networks import VelocityNet
from cellgan.optimizers import adamw, update_weights
from cellgan.sampling import (
    branch_codes,
    checked_solver,
    conditional_path,
    drop_covariates,
    guidance_branches,
    pair_noise,
    straight_path,
)
from tests.models.cfgen.velocity_reference import VelocityReference
from tests.stored import stored_config, stored_name, stored_names

N_CATEGORIES = {"cell_type": 5, "site": 3}
TIME = tf.constant(0.3)
FILE = "cfgen.npz"
CASES = [case for case in stored_config(FILE)["cases"] if case.startswith("dn_")]
PATHS = stored_names(FILE, r"out/fm/((?:no)?ot_sigma[^/]+)/x_t")
STEPPED = stored_names(FILE, r"out/fm/step_grad/embeddings/(.+)")
"""Covariates that condition the stored training step, on the first path."""
FIXED_STEPS = stored_names(FILE, r"out/ode/((?:euler|midpoint|rk4)_\d+)_steps")
ADAPTIVE = stored_name(FILE, r"out/ode/(dopri5_[^_]+)")
ADAPTIVE_ENDS = [
    key
    for key in stored_names(FILE, r"out/ode/((?:reference_float64|dopri5)_.+)")
    if not key.endswith("evaluations")
]


@pytest.fixture(scope="module")
def reference(reference_dir):
    return VelocityReference(reference_dir)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_network(**options) -> VelocityNet:
    """Return a network all of whose weights matter."""
    options = {"width": 16, "n_embedding": 12, "n_blocks": 2} | options
    ranges = options.pop("log_library_sizes", {"rna": (6.0, 9.0)})
    network = VelocityNet(4, N_CATEGORIES, ranges, **options)
    for index, weight in enumerate(network.trainable_variables):
        weight.assign(weight + 0.3 * draw(*weight.shape, seed=index))
    return network


def cells(n_cells: int = 6) -> dict:
    generator = np.random.default_rng(9)
    return {
        "latent": tf.constant(draw(n_cells, 4)),
        "codes": {
            name: generator.integers(0, n, n_cells).astype(np.int32)
            for name, n in N_CATEGORIES.items()
        },
        "log_library_size": {
            "rna": tf.constant(generator.uniform(6, 9, n_cells).astype(np.float32))
        },
    }


def relative_difference(found, expected) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


# Parity


def velocities(reference: VelocityReference, case: str) -> dict[str, np.ndarray]:
    network = reference.network(case)
    latent = tf.constant(reference[f"in/{case}/x"])
    time = tf.constant(reference["in/common/t"])
    return {
        key: network(
            latent, time, reference.condition(network, case, *kept(reference, key))
        )
        for key in reference.below(f"out/{case}/")
    }


def kept(reference: VelocityReference, key: str) -> tuple[str, ...]:
    """Return the covariates that a stored velocity is conditioned on."""
    if key == "v_sum_of_all_covariates":
        return reference.covariates
    return tuple(name for name in reference.covariates if key == f"v_{name}")


@pytest.mark.parametrize("case", CASES)
def test_velocity_equals_the_reference(reference, case):
    expected = reference.below(f"out/{case}/")
    assert expected
    for key, found in velocities(reference, case).items():
        assert relative_difference(found, expected[key]) < 1e-5, key


def reference_path(reference: VelocityReference, path: str):
    """Return our path, its cells in the order of the reference's rows."""
    latents, start, noise, time = (
        tf.constant(reference[f"in/fm/{name}"]) for name in ("x1", "x0", "eps", "t")
    )
    kind, _, sigma = path.partition("_sigma")
    if kind == "noot":
        return conditional_path(latents, noise, time, float(sigma))
    order = reference["out/fm/ot_assignment_x0_to_x1"]
    paired = tf.gather(pair_noise(latents, start), order)
    moved = tf.gather(latents, order)
    return straight_path(moved, paired, time, float(sigma), noise)


@pytest.mark.parametrize("path", PATHS)
def test_velocities_and_losses_on_paths_equal_the_reference(reference, path):
    network = reference.network("dn_main")
    point = reference_path(reference, path)
    time = tf.constant(reference["in/fm/t"])
    stored = reference.below(f"out/fm/{path}/")
    for key in ("v_uncond", *(f"v_{name}" for name in reference.covariates)):
        condition = reference.condition(network, "dn_main", *kept(reference, key))
        found = network(point.latent, time, condition)
        # The reference's points differ from ours by rounding, and velocities with them.
        assert relative_difference(found, stored[key]) < 1e-4
        loss = tf.reduce_mean(tf.square(found - point.velocity))
        expected = stored[key.replace("v_", "loss_")]
        np.testing.assert_allclose(loss, expected, rtol=1e-4)


def train_once(reference: VelocityReference, path: str, conditions: tuple[str, ...]):
    """Make the reference's step; return loss, gradient norm, gradients and weights."""
    network = reference.network("dn_main")
    point = reference_path(reference, path)
    time = tf.constant(reference["in/fm/t"])
    with tf.GradientTape() as tape:
        condition = reference.condition(network, "dn_main", *conditions)
        velocity = network(point.latent, time, condition, training=True)
        loss = tf.reduce_mean(tf.square(velocity - point.velocity))
    weights = network.trainable_variables
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    optimizer = adamw(1e-4, (0.9, 0.999), weight_decay=1e-6)
    optimizer.build(weights)
    norm = update_weights(optimizer, weights, gradients, clip_norm=1.0)["gradient_norm"]
    paths = [weight.path.removeprefix("velocity_net/") for weight in weights]
    return (
        float(loss),
        float(norm),
        dict(zip(paths, map(np.asarray, gradients), strict=True)),
        dict(zip(paths, map(np.asarray, weights), strict=True)),
    )


def test_training_step_equals_the_reference(reference):
    loss, norm, gradients, updated = train_once(reference, PATHS[0], STEPPED)
    np.testing.assert_allclose(loss, reference["out/fm/step_loss"], rtol=1e-4)
    expected_norm = reference["out/fm/step_grad_norm_before_clip"]
    np.testing.assert_allclose(norm, expected_norm, rtol=1e-4)

    expected = reference.in_our_names(reference.below("out/fm/step_grad/"))
    unused = {
        f"covariate_{index}/table"
        for index, name in enumerate(reference.covariates)
        if name not in STEPPED
    }
    assert gradients.keys() - expected.keys() == unused
    assert not any(np.any(gradients[path]) for path in unused)
    for path, value in expected.items():
        assert relative_difference(gradients[path], value) < 1e-4, path

    after = reference.in_our_names(reference.below("out/fm/after_one_adamw_step/"))
    assert after.keys() == updated.keys()
    differences = np.concatenate(
        [np.abs(updated[path] - value).ravel() for path, value in after.items()]
    )
    # Entries whose gradient is nearly 0 may move the other way: one learning rate.
    assert np.quantile(differences, 0.99) < 1e-6
    assert differences.max() < 1e-4


def guided(reference: VelocityReference, case: str, scales: dict[str, float], **others):
    """Return conditions, rows and weights of guided generation.

    Codes of some covariates may be others than the stored ones.
    """
    network = reference.network(case)
    codes = {k: v.numpy() for k, v in reference.codes(*reference.covariates).items()}
    codes |= others
    n_cells = len(next(iter(codes.values())))
    branches = guidance_branches(scales, codes, network.null_codes)
    conditions = [
        network.condition(
            branch_codes(branch, codes, network.null_codes, n_cells),
            reference.log_library_sizes(case),
        )
        for branch in branches
    ]
    weights = [branch.weight for branch in branches]
    return network, tf.stack(conditions), weights


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("two_attributes", "weights_two"),
        ("one_attribute", "weights_one"),
        ("unconditional", None),
    ],
)
def test_guided_velocity_equals_the_reference(reference, name, key):
    settings = reference.config["cases"]["guidance"]
    scales = settings[key] if key else {}
    network, conditions, weights = guided(reference, "dn_main", scales)
    latent = tf.constant(reference["in/dn_main/x"])
    found = network.weighted(latent, settings["t"], conditions, weights)
    expected = reference[f"out/guidance/{name}/v"]
    assert relative_difference(found, expected) < 1e-5


def integrate(reference, start, others=None, **options):
    scales = reference.config["cases"]["ode"]["guidance"]
    network, conditions, weights = guided(reference, "dn_ode", scales, **(others or {}))
    solver = checked_solver(
        lambda latent, time, conditions: network.weighted(
            latent, time, conditions, weights
        ),
        **options,
    )
    return solver(tf.constant(start, tf.float32), conditions).numpy()


@pytest.mark.parametrize(
    ("name", "jit"), [(FIXED_STEPS[0], True), *((name, False) for name in FIXED_STEPS)]
)
def test_fixed_step_end_points_equal_the_reference(reference, name, jit):
    solver, _, n_steps = name.partition("_")
    options = {"solver": solver, "n_steps": int(n_steps), "jit": jit}
    found = integrate(reference, reference["in/ode/z0"], **options)
    expected = reference[f"out/ode/{name}_steps"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_adaptive_end_point_is_near_that_of_the_reference(reference):
    tolerance = reference.config["cases"]["ode"]["rtol"]
    end = integrate(
        reference, reference["in/ode/z0"], solver="dopri5", tolerance=tolerance
    )
    # The reference's own adaptive solver is 1.2e-3 away from its float64 end point.
    for key in ADAPTIVE_ENDS:
        expected = reference[f"out/ode/{key}"]
        np.testing.assert_allclose(end, expected, rtol=0, atol=5e-3, err_msg=key)


@pytest.mark.slow
def test_inversion_and_correction_to_another_batch_equal_the_reference(reference):
    ode = reference.config["cases"]["ode"]
    options = {"solver": "dopri5", "tolerance": ode["rtol"]}
    end = reference[f"out/ode/{ADAPTIVE}"]
    start = integrate(reference, end, **options, reverse=True)
    np.testing.assert_allclose(start, reference["in/ode/z0"], rtol=0, atol=5e-3)
    expected = reference["out/ode/inverted_from_dopri5_endpoint"]
    np.testing.assert_allclose(start, expected, rtol=0, atol=5e-3)

    target = {"batch": np.full(len(start), ode["target_batch"], np.int32)}
    corrected = integrate(reference, start, target, **options)
    expected = reference["out/ode/corrected_to_last_batch"]
    np.testing.assert_allclose(corrected, expected, rtol=0, atol=5e-3)


# Behaviour


@pytest.mark.parametrize("normalization", ["none", "layernorm", "batchnorm"])
def test_cells_do_not_see_each_other_and_their_order_does_not_matter(normalization):
    network, given = make_network(normalization=normalization), cells()
    condition = network.condition(given["codes"], given["log_library_size"])
    together = network(given["latent"], TIME, condition)
    order = [3, 0, 5]
    some = network(tf.gather(given["latent"], order), TIME, tf.gather(condition, order))
    np.testing.assert_allclose(some, tf.gather(together, order), rtol=0, atol=1e-5)
    alone = network(given["latent"][3:4], TIME, condition[3:4])
    np.testing.assert_allclose(alone, together[3:4], rtol=0, atol=1e-5)


def test_generated_cells_do_not_depend_on_their_companions():
    network, given = make_network(normalization="batchnorm"), cells()
    condition = network.condition(given["codes"], given["log_library_size"])
    solver = checked_solver(network, solver="euler", n_steps=20)
    before = [weight.numpy().copy() for weight in network.weights]
    together = solver(given["latent"], condition)
    parts = [
        solver(given["latent"][i : i + 2], condition[i : i + 2]) for i in (0, 2, 4)
    ]
    np.testing.assert_allclose(tf.concat(parts, 0), together, rtol=0, atol=1e-4)
    for weight, value in zip(network.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_shared_time_equals_a_time_of_each_cell():
    network, given = make_network(), cells()
    condition = network.condition(given["codes"], given["log_library_size"])
    shared = network(given["latent"], TIME, condition)
    of_each = network(given["latent"], tf.fill((6,), 0.3), condition)
    np.testing.assert_allclose(shared, of_each, rtol=0, atol=1e-5)


def test_null_code_equals_a_network_without_the_covariate():
    network, given = make_network(), cells()
    null = {name: tf.fill((6,), code) for name, code in network.null_codes.items()}
    without = VelocityNet(
        4, {}, {"rna": (6.0, 9.0)}, width=16, n_embedding=12, n_blocks=2
    )
    by_path = {weight.path: weight for weight in network.weights}
    for weight in without.weights:
        weight.assign(by_path[weight.path])
    conditions = [
        network.condition(null, given["log_library_size"]),
        without.condition({}, given["log_library_size"]),
    ]
    found = [network(given["latent"], TIME, condition) for condition in conditions]
    np.testing.assert_array_equal(*conditions)
    np.testing.assert_array_equal(*found)
    conditional = network.condition(given["codes"], given["log_library_size"])
    assert relative_difference(
        network(given["latent"], TIME, conditional), found[0]
    ) > (0.01)


def test_network_without_covariates_and_library_sizes_makes_velocities():
    network = VelocityNet(4, {}, {}, width=16, n_embedding=12, n_blocks=2)
    condition = network.condition({}, {})
    np.testing.assert_array_equal(condition, np.zeros((1, 12)))
    assert network(tf.constant(draw(6, 4)), TIME, condition).shape == (6, 4)


@pytest.mark.parametrize(
    "scales",
    [
        {},
        {"cell_type": 0.0, "site": 0.0},
        {"cell_type": 1.0},
        {"cell_type": 1.0, "site": 2.5},
        {"site": -0.5},
    ],
)
@pytest.mark.parametrize("normalization", ["none", "layernorm", "batchnorm"])
def test_guided_velocity_is_the_formula_of_separate_velocities(scales, normalization):
    network, given = make_network(normalization=normalization), cells()
    latent, time, null = given["latent"], TIME, network.null_codes

    def velocity(*kept: str) -> np.ndarray:
        codes = {
            name: given["codes"][name] if name in kept else np.full(6, null[name])
            for name in null
        }
        condition = network.condition(codes, given["log_library_size"])
        return network(latent, time, condition).numpy()

    differences = [w * (velocity(name) - velocity()) for name, w in scales.items()]
    expected = velocity() + sum(differences)

    branches = guidance_branches(scales, given["codes"], null)
    weights = [branch.weight for branch in branches]
    conditions = tf.stack(
        [
            network.condition(
                branch_codes(branch, given["codes"], null, 6),
                given["log_library_size"],
            )
            for branch in branches
        ]
    )
    found = network.weighted(latent, time, conditions, weights)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


def test_guided_velocity_of_shared_conditions_equals_that_of_each_cell():
    network, given = make_network(log_library_sizes={}), cells(40)
    null = network.null_codes
    branches = guidance_branches({"cell_type": 1.0, "site": 2.5}, given["codes"], null)
    weights = [branch.weight for branch in branches]
    conditions = tf.stack(
        [
            network.condition(branch_codes(branch, given["codes"], null, 40), {})
            for branch in branches
        ]
    )
    expected = network.weighted(given["latent"], TIME, conditions, weights)
    distinct, rows = np.unique(
        conditions.numpy().reshape(-1, conditions.shape[-1]),
        axis=0,
        return_inverse=True,
    )
    rows = rows.reshape(len(branches), -1)
    found = network.weighted(
        given["latent"], TIME, tf.constant(distinct), weights, rows
    )
    assert len(distinct) <= 1 + 5 + 3
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_untrained_velocity_ignores_time_and_condition():
    network, given = VelocityNet(4, N_CATEGORIES, {}, seed=3), cells()
    conditions = [
        network.condition(given["codes"], {}),
        network.condition(
            {"cell_type": tf.fill((6,), 5), "site": tf.zeros((6,), tf.int32)}, {}
        ),
    ]
    first = network(given["latent"], TIME, conditions[0])
    np.testing.assert_array_equal(
        first, network(given["latent"], 3 * TIME, conditions[1])
    )
    assert np.abs(first).max() > 0.1


def test_initial_weights_have_the_variance_of_their_inputs_and_repeat_by_seed():
    first, second, other = (
        VelocityNet(50, N_CATEGORIES, {"rna": (1.0, 2.0)}, seed=seed)
        for seed in (1, 1, 2)
    )
    for weight, same, unlike in zip(
        first.weights, second.weights, other.weights, strict=True
    ):
        np.testing.assert_array_equal(weight, same)
        is_random = "kernel" in weight.path and "second" not in weight.path
        is_random |= "table" in weight.path
        assert bool(np.any(weight)) == is_random, weight.path
        assert np.array_equal(weight, unlike) != is_random, weight.path
    kernels = [w for w in first.weights if "kernel" in w.path and np.any(w)]
    values = [np.asarray(w) for w in kernels]
    assert len({v.tobytes()[:64] for v in values}) == len(values) == 10
    for value in values:
        # truncated normals have less kurtosis than normals, so this bound is wide
        bound = 5 * np.sqrt(2 / value.size)
        assert abs(value.var() * len(value) - 1) < bound


def test_default_network_has_the_number_of_parameters_of_the_reference():
    # The large network of the reference at 50 latents, without attribute tables.
    assert VelocityNet(50, {}, {}).count_params() == 71_066


def test_dropout_acts_in_training_only_and_repeats_by_seed():
    network, given = make_network(dropout=0.5), cells()
    condition = network.condition(given["codes"], given["log_library_size"])
    arguments = given["latent"], TIME, condition
    seeds = [tf.constant([1, 2]), tf.constant([1, 2]), tf.constant([1, 3])]
    first, same, other = (
        network(*arguments, training=True, seed=seed).numpy() for seed in seeds
    )
    np.testing.assert_array_equal(first, same)
    assert relative_difference(other, first) > 0.01
    np.testing.assert_array_equal(network(*arguments), make_network()(*arguments))
    with pytest.raises(ValueError, match="training with dropout needs a seed"):
        network(*arguments, training=True)


def test_batch_normalization_returns_statistics_that_update_the_running_ones():
    network, given = make_network(normalization="batchnorm"), cells()
    condition = network.condition(given["codes"], given["log_library_size"])
    _, statistics = network.with_statistics(given["latent"], TIME, condition)
    assert len(statistics) == len(network.norms) == 5
    hidden = given["latent"].numpy() @ network.input_layer.kernel.numpy()
    hidden += network.input_layer.bias.numpy()
    np.testing.assert_allclose(statistics[0].mean, hidden.mean(axis=0), atol=1e-5)
    before = network.norms[0].moving_mean.numpy()
    network.update_running_statistics(statistics)
    moved = network.norms[0].moving_mean.numpy() - before
    assert np.all(np.sign(moved) == np.sign(statistics[0].mean))


def test_dropped_covariates_get_no_gradient():
    network = make_network()
    codes = {name: tf.zeros((64,), tf.int32) for name in N_CATEGORIES}
    null = drop_covariates(codes, network.null_codes, tf.constant([5, 6]), 1.0)
    with tf.GradientTape() as tape:
        condition = network.condition(null, {"rna": tf.fill((64,), 7.0)})
        velocity = network(tf.constant(draw(64, 4)), tf.fill((64,), 0.5), condition)
        total = tf.reduce_sum(tf.square(velocity))
    tables = [embedding.table.value for embedding in network.embeddings]
    assert not any(np.any(gradient) for gradient in tape.gradient(total, tables))


def test_library_sizes_that_are_all_the_same_cannot_be_embedded():
    with pytest.raises(ValueError, match="log library sizes of rna: from 7"):
        VelocityNet(4, {}, {"rna": (7.0, 7.0)})


def test_width_of_embedding_is_checked_when_the_network_is_built():
    with pytest.raises(ValueError, match="width 7; it must be even"):
        VelocityNet(4, {}, {}, n_embedding=7)
