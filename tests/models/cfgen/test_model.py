from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgan.data.batches import CellBatch
from cellgan.errors import SamplingError
from cellgan.models.base import Block, GenerationRequest, SolverSettings
from cellgan.models.cfgen import model as latent_flow
from cellgan.models.cfgen.model import LatentFlow
from cellgan.models.latent import stage as latents
from cellgan.models.latent.stage import LATENT, LatentScale
from tests.models.cfgen.flow_models import (
    CATEGORIES,
    N_GENES,
    N_LATENT,
    N_PEAKS,
    SEED,
    draw_codes,
    make_batch,
    make_model,
    randomized,
    stages_of,
)
from tests.models.gan.gan_stages import assert_equal, changed, values

BLOCK = 16
N_CELLS = 3 * BLOCK + 5
SIZES = np.linspace(50, 400, N_CELLS).astype(np.float32)
CODES = draw_codes(N_CELLS)
EULER = SolverSettings("euler", 2)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Make cells in blocks of 16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "MOST_CELLS_PER_BLOCK", BLOCK)
        yield


@pytest.fixture(scope="module")
def model(small_blocks) -> LatentFlow:
    """Make a model whose velocities depend on covariates and library size."""
    return randomized(make_model(flow={"use_library_size": True}))


@pytest.fixture(scope="module")
def whole(model: LatentFlow) -> dict[str, np.ndarray]:
    return generate(model)


def generate(
    model: LatentFlow, first: int = 0, end: int = N_CELLS, **changes
) -> dict[str, np.ndarray]:
    """Make cells; return counts by modality, and latents."""
    request = GenerationRequest(
        covariates={name: of[first:end] for name, of in CODES.items()},
        n_cells=end - first,
        seed=5,
        first_cell=first,
        library_sizes={"rna": SIZES[first:end], "atac": SIZES[first:end] / 10},
        guidance={"cluster": 1.5},
    )
    made = model.generate(dataclasses.replace(request, **changes))
    assert made.are_counts
    dense = {name: of.toarray() for name, of in made.features.items()}
    return {**dense, LATENT: made.latent}


def differing_rows(found, expected) -> dict[str, list[int]]:
    return {
        name: np.flatnonzero(np.any(of != expected[name], axis=1)).tolist()
        for name, of in found.items()
    }


# What a cell depends on


def test_generated_cells_are_whole_numbers_and_latents(whole):
    assert whole["rna"].shape == (N_CELLS, N_GENES)
    assert whole["rna"].dtype == np.float32
    assert whole["rna"].min() >= 0
    assert np.all(whole["rna"] % 1 == 0)
    assert whole[LATENT].shape == (N_CELLS, N_LATENT)


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, N_CELLS - 1), max_size=4, unique=True))
def test_cells_are_equal_bit_for_bit_however_a_request_is_cut(model, whole, cuts):
    ends = [0, *sorted(cuts), N_CELLS]
    pieces = [generate(model, first, end) for first, end in itertools.pairwise(ends)]
    joined = {name: np.concatenate([p[name] for p in pieces]) for name in whole}
    assert_equal(joined, whole)


@pytest.mark.parametrize(
    "solver",
    [
        "euler",
        "midpoint",
        pytest.param("heun", marks=pytest.mark.slow),
        pytest.param("rk4", marks=pytest.mark.slow),
    ],
)
def test_solvers_of_fixed_steps_give_a_cell_alone_the_same_latent(model, solver):
    settings_ = SolverSettings(solver, 2)
    together = generate(model, solver=settings_)
    alone = generate(model, 20, 21, solver=settings_)
    assert_equal(alone, {name: of[20:21] for name, of in together.items()})


@pytest.mark.slow
def test_adaptive_solver_ends_where_many_fixed_steps_do(model):
    found = generate(model, solver=SolverSettings("dopri5", tolerance=1e-6))
    expected = generate(model, solver=SolverSettings("rk4", 100))
    np.testing.assert_allclose(found[LATENT], expected[LATENT], atol=1e-3)


@pytest.mark.parametrize("name", ["cluster", "donor"])
def test_a_cell_depends_on_its_own_covariates_alone(model, whole, name):
    other = CODES[name].copy()
    other[7] = (other[7] + 1) % CATEGORIES[name]
    found = differing_rows(generate(model, covariates={**CODES, name: other}), whole)
    assert found[LATENT] == [7]
    assert set(found["rna"]) <= {7}


def test_a_cell_depends_on_its_own_library_size_alone(model, whole):
    other = SIZES.copy()
    other[9] *= 3
    found = generate(model, library_sizes={"rna": other})
    assert differing_rows(found, whole) == {"rna": [9], LATENT: [9]}


@pytest.mark.slow
def test_latents_know_no_library_size_unless_it_is_embedded():
    plain = randomized(make_model())
    first, second = generate(plain), generate(plain, library_sizes={"rna": SIZES * 2})
    np.testing.assert_array_equal(first[LATENT], second[LATENT])


def test_cells_of_one_request_differ_and_so_do_those_of_other_seeds(model):
    alike = {
        "covariates": {name: np.zeros_like(of) for name, of in CODES.items()},
        "library_sizes": {"rna": np.full(N_CELLS, 900, np.float32)},
    }
    cells, others = generate(model, **alike), generate(model, **alike, seed=6)
    for name, of in cells.items():
        both = np.concatenate([of, others[name]])
        assert len(np.unique(both, axis=0)) == 2 * N_CELLS


def test_counts_are_drawn_for_each_cell():
    same = randomized(make_model())
    deviation = same.generation_weights()["flow"]["scale"].deviation
    deviation.assign(tf.zeros_like(deviation))
    cells = generate(same, library_sizes={"rna": np.full(N_CELLS, 900, np.float32)})
    assert len(np.unique(cells[LATENT], axis=0)) == 1
    assert len(np.unique(cells["rna"], axis=0)) == N_CELLS


def test_generating_changes_no_weight(model):
    parts = [of for part in model.generation_weights().values() for of in part.values()]
    before = [values(part) for part in parts]
    generate(model)
    for part, of_part in zip(parts, before, strict=True):
        assert_equal(values(part), of_part)


def test_a_solver_is_compiled_once_for_equal_settings(model, whole, monkeypatch):
    del whole

    def refuse(*args, **kwargs):
        msg = "compiled again"
        raise AssertionError(msg)

    monkeypatch.setattr(latent_flow, "checked_solver", refuse)
    generate(model, 30, 37)
    with pytest.raises(AssertionError, match="compiled again"):
        generate(model, guidance={"cluster": 1.25})


# Guidance


def latents_by_hand(
    model: LatentFlow, scales: dict[str, float], codes=CODES
) -> np.ndarray:
    """Two Euler steps from the model's noise, branch by branch."""
    _, flow = stages_of(model)
    network, scale = flow.network, model.generation_weights()["flow"]["scale"]
    null = {
        name: np.full(N_CELLS, n, np.int32) for name, n in network.null_codes.items()
    }
    logs = {"rna": tf.math.log(SIZES)}

    def velocity(latent, time, shown):
        condition = network.condition(
            {k: tf.constant(v) for k, v in {**null, **shown}.items()}, logs
        )
        return network(latent, tf.constant(time), condition)

    latent = noise_of(model)
    for time in (0.0, 0.5):
        unconditional = velocity(latent, time, {})
        change = unconditional
        for name, of in scales.items():
            guided = velocity(latent, time, {name: codes[name]})
            change += of * (guided - unconditional)
        latent += 0.5 * change
    return scale.restore(latent).numpy()


def noise_of(model: LatentFlow) -> tf.Tensor:
    """Return what the cells start from: where they end without a velocity."""
    parts = model.generation_weights()["flow"]
    layer = parts["network"].output_layer
    kept = [weight.numpy().copy() for weight in layer.weights]
    for weight in layer.weights:
        weight.assign(tf.zeros_like(weight))
    still = parts["scale"](tf.constant(generate(model)[LATENT]))
    for weight, value in zip(layer.weights, kept, strict=True):
        weight.assign(value)
    return still


@pytest.mark.parametrize(
    "scales",
    [
        pytest.param({"cluster": 1.0}, marks=pytest.mark.slow),
        pytest.param({"cluster": 1.0, "donor": 1.0}, marks=pytest.mark.slow),
        {"donor": 2.5},
        {},
    ],
)
def test_guidance_adds_up_what_each_covariate_changes(model, scales):
    guidance = {"cluster": 0.0, "donor": 0.0, **scales}
    found = generate(model, guidance=guidance, solver=EULER)[LATENT]
    np.testing.assert_allclose(found, latents_by_hand(model, scales), atol=1e-5)


@pytest.mark.slow
def test_guidance_without_library_sizes_is_the_same_sum():
    plain, scales = randomized(make_model()), {"cluster": 2.0, "donor": 0.5}
    found = generate(plain, guidance=scales, solver=EULER)[LATENT]
    np.testing.assert_allclose(found, latents_by_hand(plain, scales), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("use_library_size", [True, False])
def test_covariates_that_the_model_does_not_know_have_no_part(use_library_size):
    flow = {"condition_on": ["donor"], "use_library_size": use_library_size}
    of_donors = randomized(make_model(flow=flow))
    expected = generate(of_donors, covariates={"donor": CODES["donor"]}, guidance={})
    assert_equal(generate(of_donors, guidance={}), expected)


@pytest.mark.slow
def test_noise_is_standard_normal(model):
    n_cells = 640
    still = randomized(make_model())
    layer = still.generation_weights()["flow"]["network"].output_layer
    for weight in layer.weights:
        weight.assign(tf.zeros_like(weight))
    made = still.generate(
        GenerationRequest(
            draw_codes(n_cells),
            n_cells,
            seed=1,
            library_sizes={"rna": np.full(n_cells, 9, np.float32)},
        )
    )
    scale = still.generation_weights()["flow"]["scale"]
    noise = scale(tf.constant(made.latent)).numpy()
    error = 1 / np.sqrt(n_cells)
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 * error)
    np.testing.assert_allclose(
        np.cov(noise.T), np.eye(N_LATENT), atol=5 * 2**0.5 * error
    )


def test_guidance_of_zero_is_the_unconditional_model_bit_for_bit(model):
    none = generate(model, guidance={"cluster": 0.0, "donor": 0.0})
    without = generate(model, covariates={}, guidance={})
    assert_equal(none, without)


def test_a_covariate_that_is_not_asked_for_is_left_out(model):
    one = {"cluster": CODES["cluster"]}
    found = generate(model, covariates=one, guidance={}, solver=EULER)[LATENT]
    expected = latents_by_hand(model, {"cluster": 1.0})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_covariates_have_a_scale_of_one_unless_named(model):
    assert_equal(
        generate(model), generate(model, guidance={"cluster": 1.5, "donor": 1})
    )


@pytest.mark.slow
def test_unconditional_model_takes_covariates_and_ignores_them():
    unconditional = randomized(make_model(flow={"condition_on": []}))
    _, stage = stages_of(unconditional)
    assert_equal(
        generate(unconditional, guidance={}),
        generate(unconditional, guidance={}, covariates={}),
    )
    before = values(stage.network)
    stage.train_step((latent_batch(),), SEED)
    moved = changed(values(stage.network), before)
    assert moved == before.keys()


def test_latents_that_are_not_finite_are_an_error():
    broken = randomized(make_model())
    network = broken.generation_weights()["flow"]["network"]
    network.output_layer.bias.assign(np.full(N_LATENT, np.nan))
    with pytest.raises(SamplingError, match="latents became infinite or nan"):
        generate(broken)


# Counts


@pytest.mark.slow
def test_totals_are_the_library_sizes_on_average():
    n_cells = 600
    sizes = np.tile(np.float32([40, 300]), n_cells // 2)
    made = randomized(make_model()).generate(
        GenerationRequest(
            draw_codes(n_cells), n_cells, seed=2, library_sizes={"rna": sizes}
        )
    )
    totals = made.features["rna"].sum(axis=1).A1
    for size in (40, 300):
        of_size = totals[sizes == size]
        error = of_size.std() / np.sqrt(len(of_size))
        assert of_size.mean() == pytest.approx(size, abs=5 * error)
        assert error < 0.08 * size


@pytest.mark.slow
def test_dispersion_by_label_is_that_of_the_requested_label():
    by_label = randomized(
        make_model(
            autoencoder={"inverse_dispersion": "gene-label"}, flow={"condition_on": []}
        )
    )
    autoencoder = by_label.generation_weights()["autoencoder"]["network"]
    log_theta = np.full((3, N_GENES), 18.0)
    log_theta[0] = 0.0
    autoencoder.log_inverse_dispersion["rna"].assign(log_theta)
    n_cells, size = 900, 100.0
    codes = np.arange(n_cells, dtype=np.int32) % 3
    made = by_label.generate(
        GenerationRequest(
            {"cluster": codes, "donor": codes * 0},
            n_cells,
            seed=2,
            library_sizes={"rna": np.full(n_cells, size, np.float32)},
        )
    )
    means = autoencoder.decode(
        tf.constant(made.latent), {"rna": tf.fill((n_cells,), size)}, codes
    )["rna"].mean.numpy()
    extra = np.array(
        [np.sum(means[codes == code] ** 2, axis=1).mean() for code in range(3)]
    )
    expected = size + extra * [1, 0, 0]
    totals = made.features["rna"].sum(axis=1).A1
    found = np.array([totals[codes == code].var(ddof=1) for code in range(3)])
    # the standard error of a variance, for the kurtosis of counts of this dispersion
    error = expected * np.sqrt((2 + 4) / (n_cells / 3))
    assert np.all(np.abs(found - expected) < 5 * error)
    assert expected[0] > 10 * expected[1]


@pytest.mark.parametrize(
    ("joint", "binary"),
    [
        (True, True),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_two_modalities_are_made_of_one_latent(joint, binary):
    both = randomized(
        make_model(
            atac=True,
            binary=binary,
            autoencoder={"joint_latent": joint},
            flow={"use_library_size": True},
        )
    )
    made = generate(both)
    assert made["atac"].shape == (N_CELLS, N_PEAKS)
    assert made[LATENT].shape == (N_CELLS, N_LATENT * (1 if joint else 2))
    sizes = {"rna": tf.constant(SIZES), "atac": tf.constant(SIZES / 10)}
    autoencoder = both.generation_weights()["autoencoder"]["network"]
    decoded = autoencoder.decode(tf.constant(made[LATENT]), sizes)["atac"]
    mean = decoded.mean.numpy()
    variance = mean * (1 - mean) if binary else mean
    error = float(np.sqrt(variance.sum()))
    assert made["atac"].sum() == pytest.approx(float(mean.sum()), abs=5 * error)
    assert set(np.unique(made["atac"])) <= ({0, 1} if binary else set(range(100)))
    if not binary:
        np.testing.assert_allclose(mean.sum(axis=1), SIZES / 10, rtol=1e-5)


@pytest.mark.slow
def test_two_modalities_train_and_prepare():
    both = make_model(atac=True, autoencoder={"joint_latent": False})
    first, second = stages_of(both)
    batch = make_batch(atac=True)
    before = values(first.network)
    first.train_step((batch,), SEED)
    assert changed(values(first.network), before) == before.keys()
    prepared = second.prepare(lambda: [batch])
    assert prepared.features[LATENT].shape == (20, 2 * N_LATENT)
    assert set(prepared.library_size) == {"rna", "atac"}


# Latents


def test_scale_standardizes_and_restores():
    rng = np.random.default_rng(0)
    latents = rng.normal([3, -1], [0.1, 20], (500, 2)).astype(np.float32)
    scale = LatentScale(2)
    np.testing.assert_array_equal(scale(tf.constant(latents)), latents)
    scale.fit(latents)
    scaled = scale(tf.constant(latents)).numpy()
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(scale.restore(scaled), latents, rtol=1e-5, atol=1e-5)


def test_scale_leaves_the_width_of_a_constant_dimension():
    latents = np.float32([[0.1, 1], [0.1, 3]])
    scale = LatentScale(2)
    scale.fit(latents)
    np.testing.assert_allclose(
        scale(tf.constant(latents)), [[0, -1], [0, 1]], atol=1e-6
    )
    assert scale.deviation.numpy().tolist() == [1, 1]


def cells_in_batches(*ends: int) -> list[CellBatch]:
    cells = make_batch(20)
    return [
        tf.nest.map_structure(lambda of, a=a, b=b: of[a:b], cells)
        for a, b in itertools.pairwise((0, *ends, 20))
    ]


def test_prepared_latents_are_those_of_the_cells_standardized():
    model = make_model()
    _, stage = stages_of(model)
    cells = make_batch(20)
    prepared = stage.prepare(lambda: cells_in_batches(8, 16))
    latents = model.latents(cells.features)
    expected = (latents - latents.mean(axis=0)) / latents.std(axis=0)
    np.testing.assert_allclose(
        prepared.features[LATENT], expected, rtol=1e-3, atol=1e-4
    )
    assert_equal(
        prepared.covariates, {k: v.numpy() for k, v in cells.covariates.items()}
    )
    np.testing.assert_array_equal(
        prepared.library_size["rna"], cells.library_size["rna"]
    )


@pytest.mark.slow
def test_prepare_is_a_function_of_the_cells_alone():
    fresh, used = (stages_of(make_model())[1] for _ in range(2))
    used.prepare(lambda: [make_batch(20, seed=1)])
    used.train_step((latent_batch(),), SEED)
    first, second = (
        stage.prepare(lambda: cells_in_batches(8)) for stage in (fresh, used)
    )
    assert_equal(second.features, first.features)
    assert_equal(
        values(used.trackables()["scale"]), values(fresh.trackables()["scale"])
    )


def test_latents_stay_as_they_are_without_standardizing():
    model = make_model(flow={"standardize_latents": False})
    _, stage = stages_of(model)
    cells = make_batch(20)
    prepared = stage.prepare(lambda: [cells])
    expected = model.latents(cells.features)
    np.testing.assert_allclose(prepared.features[LATENT], expected, rtol=1e-6)


# Training


def latent_batch(n_cells: int = 20, seed: int = 0) -> CellBatch:
    """Return what a stage trains on: latents far from the noise."""
    cells = make_batch(n_cells, seed)
    latents = np.random.default_rng(seed).normal(4.0, 2.0, (n_cells, N_LATENT))
    return cells._replace(features={LATENT: tf.constant(latents, tf.float32)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "flow",
    [{}, {"use_library_size": True}, {"normalization": "batchnorm", "dropout": 0.2}],
)
def test_training_the_flow_moves_all_its_weights_and_no_others(flow):
    model = randomized(make_model(flow=flow))
    _, stage = stages_of(model)
    autoencoder = model.generation_weights()["autoencoder"]["network"]
    frozen, before = values(autoencoder), values(stage.network)
    stage.prepare(lambda: [make_batch()])
    metrics = stage.train_step((latent_batch(),), SEED)
    assert set(metrics) == {"loss", "learning_rate", "gradient_norm"}
    assert_equal(values(autoencoder), frozen)
    assert changed(values(stage.network), before) == before.keys()


def test_every_velocity_weight_has_a_gradient():
    _, stage = stages_of(randomized(make_model(flow={"use_library_size": True})))
    tensors = stage.diagnostics(latent_batch(), SEED)
    gradients = {k: of.numpy() for k, of in tensors.items() if k.endswith("/gradients")}
    assert len(gradients) == len(stage.network.trainable_variables)
    still = [name for name, of in gradients.items() if not np.any(of)]
    assert still == []


def test_loss_is_the_squared_velocity_of_a_network_that_stands_still():
    _, stage = stages_of(make_model(flow={"sigma": 0.25}))
    for weight in stage.network.output_layer.weights:
        weight.assign(tf.zeros_like(weight))
    batch = latent_batch()
    latents = batch.features[LATENT].numpy()
    draws = stage.draw(batch, batch.features[LATENT], SEED)
    expected = np.mean((latents - 0.75 * draws.noise.numpy()) ** 2)
    assert float(stage.validate_step(batch, SEED)["loss"]) == pytest.approx(expected)
    found = stage.train_step((batch,), SEED)["loss"]
    assert float(found) == pytest.approx(expected)


@pytest.mark.slow
def test_training_lowers_the_loss():
    training = {"learning_rate": {"alpha_0": 1e-2}, "clip_norm": 100.0}
    _, stage = stages_of(make_model(training=training))
    step = tf.function(stage.train_step)
    batch = latent_batch(64)
    before = float(stage.validate_step(batch, SEED)["loss"])
    for index in range(150):
        step((batch,), tf.constant((1, index)))
    # the velocity from noise to N(4, 2) has mean square 4^2 + 2^2 + 1
    assert before == pytest.approx(21, rel=0.3)
    assert float(stage.validate_step(batch, SEED)["loss"]) < 0.5 * before


def test_validation_of_cells_is_that_of_their_latents():
    _, stage = stages_of(randomized(make_model(flow={"use_library_size": True})))
    cells = make_batch()
    prepared = stage.prepare(lambda: [cells])
    before = values(stage.network)
    of_latents = tf.nest.map_structure(tf.constant, prepared)
    found, expected = (
        stage.validate_step(b, SEED)["loss"] for b in (cells, of_latents)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert_equal(values(stage.network), before)


def test_transport_reorders_the_noise_and_nothing_else():
    plain, paired = (
        stages_of(make_model(flow={"path": path, "sigma": 0.0}))[1]
        for path in ("lipman", "transport")
    )
    batch = latent_batch()
    latents = batch.features[LATENT]
    drawn, ordered = (stage.draw(batch, latents, SEED) for stage in (plain, paired))
    for name, codes in drawn.codes.items():
        np.testing.assert_array_equal(ordered.codes[name], codes)
    np.testing.assert_array_equal(ordered.time, drawn.time)
    noise, again = drawn.noise.numpy(), ordered.noise.numpy()
    np.testing.assert_array_equal(np.sort(again, axis=0), np.sort(noise, axis=0))
    distances = [np.sum((of - latents.numpy()) ** 2) for of in (again, noise)]
    assert distances[0] < distances[1]
    point = paired.path_point(latents, ordered)
    np.testing.assert_allclose(point.velocity, latents - again, rtol=1e-5, atol=1e-6)
    end = point.latent + (1 - ordered.time[:, None]) * point.velocity
    np.testing.assert_allclose(end, latents, rtol=1e-4, atol=1e-5)


def kept_covariates(dropping: str, n_draws: int = 300) -> list[set[tuple[str, ...]]]:
    """Return, by draw, which covariates its cells keep."""
    _, stage = stages_of(
        make_model(flow={"dropping": dropping, "unconditional_share": 0.4})
    )
    batch = latent_batch(8)
    draw = tf.function(
        lambda seed: stage.draw(batch, batch.features[LATENT], seed).codes
    )
    found = []
    for index in range(n_draws):
        codes = draw(tf.constant((9, index)))
        kept = [
            codes[name].numpy() == batch.covariates[name].numpy() for name in CATEGORIES
        ]
        null = [codes[name].numpy() == n for name, n in CATEGORIES.items()]
        assert np.all(np.logical_xor(kept, null))
        found.append({tuple(row) for row in np.transpose(kept).tolist()})
    return found


def test_dropping_per_batch_keeps_one_covariate_for_all_cells_or_none():
    found = kept_covariates("per_batch")
    assert all(len(of_batch) == 1 for of_batch in found)
    shares = {
        kept: np.mean([of_batch == {kept} for of_batch in found])
        for kept in ((True, False), (False, True), (False, False))
    }
    assert sum(shares.values()) == pytest.approx(1)
    errors = 5 * np.sqrt(np.array([0.3 * 0.7, 0.3 * 0.7, 0.4 * 0.6]) / len(found))
    assert np.all(np.abs(np.subtract(list(shares.values()), [0.3, 0.3, 0.4])) < errors)


def test_dropping_per_cell_mixes_the_cells_of_a_batch():
    found = kept_covariates("per_cell", 20)
    assert set.union(*found) == {(True, False), (False, True), (False, False)}
    assert max(map(len, found)) == 3


# There and back


@pytest.fixture(scope="module")
def there_and_back(model: LatentFlow):
    """Return source cells, their latents, and a function that moves them."""
    cells = make_batch(N_CELLS)
    rows = {k: v.numpy() for k, v in cells.covariates.items()}
    sizes = {k: v.numpy() for k, v in cells.library_size.items()}

    def move(seed=0, **codes):
        return generate(
            model,
            covariates={**rows, **codes},
            source=cells,
            library_sizes=sizes,
            solver=SolverSettings("rk4", 20),
            seed=seed,
        )

    return rows, model.latents(cells.features), move


@pytest.mark.slow
def test_same_covariates_give_a_cell_its_latent_back(there_and_back):
    _, latents, move = there_and_back
    np.testing.assert_allclose(move()[LATENT], latents, atol=1e-2)


def test_another_covariate_moves_the_cells_that_did_not_have_it(there_and_back):
    rows, latents, move = there_and_back
    moved = move(donor=np.ones(N_CELLS, np.int32))[LATENT]
    distance = np.linalg.norm(moved - latents, axis=1)
    assert distance[rows["donor"] == 1].max() < 1e-2
    assert distance[rows["donor"] == 0].min() > 3e-2  # three times the tolerance above


def test_seed_of_moved_cells_is_that_of_their_counts_alone(there_and_back):
    _, _, move = there_and_back
    first, second = move(seed=1), move(seed=2)
    np.testing.assert_array_equal(first[LATENT], second[LATENT])
    assert not np.array_equal(first["rna"], second["rna"])


def test_category_without_training_cells_is_like_no_category():
    model = make_model(donor_cells=(60, 0))
    network = model.generation_weights()["flow"]["network"]
    tables = [embedding.table.numpy() for embedding in network.embeddings]
    assert np.all(tables[1][1] == 0)
    assert np.all(tables[0] != 0)
    assert np.all(tables[1][0] != 0)


def test_cells_that_are_not_asked_for_get_the_values_of_the_nearest_that_is():
    block = Block(2, slice(1, 3), slice(2, 4), 6)
    values = np.array([7, 8, 9, 10])
    np.testing.assert_array_equal(block.padded(values), [8, 8, 8, 9, 9, 9])
