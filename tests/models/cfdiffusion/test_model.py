from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgan.errors import ConfigError, SamplingError
from cellgan.models.base import GenerationRequest, Mixture, SolverSettings
from cellgan.models.cfdiffusion.model import LatentDiffusion
from cellgan.models.latent import stage as latents
from cellgan.models.latent.stage import LATENT, fold_in
from cellgan.sampling import add_noise
from cellgan.seeds import derive_seed
from tests.models.cfdiffusion.diffusion_models import (
    CATEGORIES,
    N_GENES,
    N_LATENT,
    diffusion_manifest,
    draw_codes,
    make_batch,
    make_model,
    randomized,
    stages_of,
)
from tests.models.gan.gan_stages import assert_equal, changed, values

pytestmark = pytest.mark.slow

BLOCK = 16
N_CELLS = 3 * BLOCK + 5
SIZES = np.linspace(50, 400, N_CELLS).astype(np.float32)
CODES = draw_codes(N_CELLS)
SEED = tf.constant((3, 4))
DDPM = SolverSettings("ddpm", 8)
DDIM = SolverSettings("ddim", 8)


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    """Make cells in blocks of 16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "MOST_CELLS_PER_BLOCK", BLOCK)
        yield


@pytest.fixture(scope="module")
def model(small_blocks) -> LatentDiffusion:
    return randomized(make_model())


@pytest.fixture(scope="module")
def whole(model: LatentDiffusion) -> dict[str, np.ndarray]:
    return generate(model)


def generate(
    model: LatentDiffusion, first: int = 0, end: int = N_CELLS, **changes
) -> dict[str, np.ndarray]:
    """Make cells; return their values, and latents."""
    request = GenerationRequest(
        covariates={name: of[first:end] for name, of in CODES.items()},
        n_cells=end - first,
        seed=5,
        first_cell=first,
        library_sizes={"rna": SIZES[first:end]},
        guidance={"cluster": 1.5},
    )
    made = model.generate(dataclasses.replace(request, **changes))
    dense = {name: of.toarray() for name, of in made.features.items()}
    return {**dense, LATENT: made.latent}


def differing_rows(found, expected, name: str = LATENT) -> list[int]:
    is_other = np.any(found[name] != expected[name], axis=1)
    return np.flatnonzero(is_other).tolist()


def network_of(model: LatentDiffusion):
    parts = model.generation_weights()["diffusion"]
    (network,) = (of for name, of in parts.items() if name != "scale")
    return network


# What a cell depends on


def test_cells_are_normalised_expression_and_latents_of_length_1(whole):
    assert whole["rna"].shape == (N_CELLS, N_GENES)
    assert whole["rna"].dtype == np.float32
    assert whole["rna"].min() == 0
    target = diffusion_manifest().target_library_size
    np.testing.assert_allclose(whole["rna"].sum(axis=1), target, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(whole[LATENT], axis=1), 1, rtol=1e-5)


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
        DDPM,
        DDIM,
        dataclasses.replace(DDIM, eta=0.5),
        dataclasses.replace(DDPM, cache_interval=3, cache_branch=1),
        dataclasses.replace(DDIM, cache_interval=2, cache_spacing="uneven"),
    ],
)
def test_solvers_give_a_cell_alone_the_same_latent(model, solver):
    together = generate(model, solver=solver)
    alone = generate(model, 20, 21, solver=solver)
    assert_equal(alone, {name: of[20:21] for name, of in together.items()})


@pytest.mark.parametrize("name", ["cluster", "donor"])
def test_a_cell_depends_on_its_own_covariates_alone(model, whole, name):
    other = CODES[name].copy()
    other[7] = (other[7] + 1) % CATEGORIES[name]
    found = generate(model, covariates={**CODES, name: other})
    assert differing_rows(found, whole) == [7]
    assert differing_rows(found, whole, "rna") == [7]


def test_cells_of_one_request_differ_and_so_do_those_of_other_seeds(model):
    alike = {"covariates": {name: np.zeros_like(of) for name, of in CODES.items()}}
    cells, others = generate(model, **alike), generate(model, **alike, seed=6)
    both = np.concatenate([cells[LATENT], others[LATENT]])
    assert len(np.unique(both, axis=0)) == 2 * N_CELLS


def test_labels_do_not_share_noise():
    # The original restarts its generator for every label.
    still = randomized(make_model(diffusion={"project_to_sphere": False}))
    layer = network_of(still).output_layer
    for weight in layer.weights:
        weight.assign(tf.zeros_like(weight))
    cells = generate(still)[LATENT]
    assert len(np.unique(cells, axis=0)) == N_CELLS


def test_generating_changes_no_weight(model):
    parts = [of for part in model.generation_weights().values() for of in part.values()]
    before = [values(part) for part in parts]
    generate(model)
    for part, of_part in zip(parts, before, strict=True):
        assert_equal(values(part), of_part)


def test_a_sampler_is_compiled_once_for_equal_settings(model, whole, monkeypatch):
    del whole

    def refuse(*args, **kwargs):
        msg = "compiled again"
        raise AssertionError(msg)

    monkeypatch.setattr(LatentDiffusion, "sampler", refuse)
    generate(model, 30, 37)
    generate(model, guidance={"cluster": 2.5})
    with pytest.raises(AssertionError, match="compiled again"):
        generate(model, solver=SolverSettings("ddpm", 3))


# Guidance


def latents_by_hand(model: LatentDiffusion, predict, solver=DDIM) -> np.ndarray:
    """Eight steps from the model's noise, with predictions by ``predict``."""
    network, parts = network_of(model), model.generation_weights()["diffusion"]
    sampler, steps = model.sampler(solver)

    class Naive:
        def whole(self, latent, position):
            step = tf.constant([steps[int(position)]])

            def noise(**shown):
                null = {
                    name: tf.fill((len(latent),), n) for name, n in CATEGORIES.items()
                }
                codes = {**null, **shown}
                return network(latent, network.shifts(step), network.gates(codes))

            return predict(noise), latent

    found = sampler.sample(
        Naive(), noise_of(0), lambda position: noise_of(int(position) + 1)
    )
    found = parts["scale"].restore(found)
    return tf.math.l2_normalize(found, axis=1).numpy()


def noise_of(number: int) -> tf.Tensor:
    """Return what all cells start from, 0, or get at a position, from 1 on."""
    root = tf.constant((derive_seed(5, "noise"), 0), tf.int32)
    blocks = [
        tf.random.stateless_normal(
            (BLOCK, N_LATENT),
            fold_in(fold_in(root, tf.constant(block, tf.int64)), number),
            alg="philox",
        )
        for block in range(4)
    ]
    return tf.concat(blocks, axis=0)[:N_CELLS]


@pytest.mark.parametrize(
    ("scales", "predict"),
    [
        ({"cluster": 1.0, "donor": 1.0}, lambda noise: noise(**CODES)),
        ({"cluster": 0.0, "donor": 0.0}, lambda noise: noise()),
        (
            {"cluster": 1.5, "donor": 1.5},
            lambda noise: 1.5 * noise(**CODES) - 0.5 * noise(),
        ),
        (
            {"cluster": 2.0, "donor": 0.5},
            lambda noise: (
                0.5 * noise(**CODES)
                + 1.5 * noise(cluster=CODES["cluster"])
                - 1.0 * noise()
            ),
        ),
        (
            {"cluster": 0.0, "donor": 3.0},
            lambda noise: 3.0 * noise(donor=CODES["donor"]) - 2.0 * noise(),
        ),
    ],
    ids=["conditional", "none", "paper", "two_scales", "one"],
)
def test_guidance_is_the_sum_of_its_branches(model, scales, predict):
    found = generate(model, guidance=scales, solver=DDIM)[LATENT]
    np.testing.assert_allclose(found, latents_by_hand(model, predict), atol=1e-4)


def test_drawn_steps_have_noise_of_their_own(model):
    found = generate(model, guidance={}, solver=DDPM)[LATENT]
    expected = latents_by_hand(model, lambda noise: noise(**CODES), DDPM)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_covariate_that_is_not_asked_for_is_left_out(model):
    one = {"cluster": CODES["cluster"]}
    found = generate(model, covariates=one, guidance={}, solver=DDIM)[LATENT]
    expected = latents_by_hand(model, lambda noise: noise(cluster=CODES["cluster"]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_covariates_that_the_model_does_not_know_have_no_part():
    of_donors = randomized(make_model(diffusion={"condition_on": ["donor"]}))
    expected = generate(of_donors, covariates={"donor": CODES["donor"]}, guidance={})
    assert_equal(generate(of_donors, guidance={}), expected)


def test_unconditional_model_takes_covariates_and_ignores_them():
    unconditional = randomized(make_model(diffusion={"condition_on": []}))
    assert_equal(
        generate(unconditional, guidance={}),
        generate(unconditional, guidance={}, covariates={}),
    )
    _, stage = stages_of(unconditional)
    before = values(stage.network)
    stage.train_step((latent_batch(),), SEED)
    assert changed(values(stage.network), before) == before.keys()


def test_a_plainly_conditional_request_runs_single_rows(model, monkeypatch):
    seen = []
    conditions = LatentDiffusion._conditions

    def recorded(self, request):
        found = conditions(self, request)
        seen.append(len(found[1]))
        return found

    monkeypatch.setattr(LatentDiffusion, "_conditions", recorded)
    generate(model, guidance={})
    generate(model, guidance={"cluster": 2.0, "donor": 2.0})
    generate(model, guidance={"cluster": 2.0})
    assert seen == [1, 2, 3]


# Between categories


def mixed(model: LatentDiffusion, share: float, **changes) -> np.ndarray:
    """Return latents between the first and the last cluster."""
    codes = {**CODES, "cluster": np.zeros(N_CELLS, np.int32)}
    mixture = Mixture(
        "cluster", np.full(N_CELLS, 2, np.int32), np.full(N_CELLS, share, np.float32)
    )
    options = {"covariates": codes, "mixture": mixture, "solver": DDIM, **changes}
    return generate(model, **options)[LATENT]


@pytest.mark.parametrize(("share", "code"), [(0.0, 0), (1.0, 2)])
def test_a_mixture_of_one_category_is_that_category(model, share, code):
    codes = {**CODES, "cluster": np.full(N_CELLS, code, np.int32)}
    expected = generate(model, covariates=codes, solver=DDIM)[LATENT]
    np.testing.assert_allclose(mixed(model, share), expected, atol=1e-5)


def test_a_mixture_adds_up_the_noise_of_both_categories(model):
    first, second = (np.full(N_CELLS, code, np.int32) for code in (0, 2))
    found = mixed(model, 0.3, guidance={})
    expected = latents_by_hand(
        model,
        lambda noise: (
            0.7 * noise(cluster=first, donor=CODES["donor"])
            + 0.3 * noise(cluster=second, donor=CODES["donor"])
        ),
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_cells_with_little_noise_come_back_and_with_all_of_it_do_not(model):
    cells = make_batch(N_CELLS)
    own = model.latents(cells.features)
    solver = SolverSettings("ddim", 50)
    distances = [
        np.linalg.norm(
            generate(model, source=cells, noise_step=step, solver=solver)[LATENT] - own,
            axis=1,
        ).mean()
        for step in (0, 10, None)
    ]
    assert distances[0] < 0.1
    assert distances[0] < distances[1] < distances[2]


# Options


def test_cache_of_interval_1_is_no_cache_bit_for_bit(model, whole):
    solver = dataclasses.replace(DDPM, cache_interval=1, cache_branch=2)
    assert_equal(generate(model, solver=solver), whole)


def test_cache_changes_latents_and_little_at_that(model, whole):
    cached = generate(model, solver=dataclasses.replace(DDPM, cache_interval=2))
    difference = np.abs(cached[LATENT] - whole[LATENT])
    assert 0 < difference.mean() < 0.5 * np.abs(whole[LATENT]).mean()


def test_latents_keep_their_length_unless_projected():
    plain = randomized(make_model(diffusion={"project_to_sphere": False}))
    found = generate(plain)[LATENT]
    lengths = np.linalg.norm(found, axis=1)
    assert lengths.std() > 0.01
    projected = generate(randomized(make_model()))[LATENT]
    np.testing.assert_allclose(found / lengths[:, None], projected, atol=1e-5)


def test_counts_are_whole_numbers_with_the_library_sizes_on_average():
    counting = randomized(make_model(autoencoder={"decoder": "negative_binomial"}))
    n_cells = 600
    sizes = np.tile(np.float32([40, 300]), n_cells // 2)
    made = counting.generate(
        GenerationRequest(
            draw_codes(n_cells), n_cells, seed=2, library_sizes={"rna": sizes}
        )
    )
    assert made.are_counts
    counts = made.features["rna"].toarray()
    assert np.all(counts % 1 == 0)
    assert counts.min() == 0
    for size in (40, 300):
        totals = counts[sizes == size].sum(axis=1)
        error = totals.std() / np.sqrt(len(totals))
        assert totals.mean() == pytest.approx(size, abs=5 * error)


def test_released_behaviour_ignores_guidance_and_numbers_steps_from_0():
    released = randomized(make_model(model={"reference_behaviour": True}))
    plain = generate(released, guidance={})
    assert_equal(generate(released, guidance={"cluster": 3.0}), plain)
    assert released.sampler(DDPM)[1].tolist() == list(range(8))
    mapped = make_model().sampler(DDPM)[1].tolist()
    assert (mapped[0], mapped[-1]) == (0, 49)


def test_released_behaviour_encodes_by_the_statistics_of_the_cells_at_hand():
    for is_released in (True, False):
        some = randomized(make_model(model={"reference_behaviour": is_released}))
        features = make_batch(20).features
        together = some.latents(features)
        alone = some.latents({"rna": features["rna"][:5]})
        is_equal = np.allclose(alone, together[:5], atol=1e-5)
        assert is_equal is not is_released


def test_latents_that_are_not_finite_are_an_error():
    broken = randomized(make_model())
    network_of(broken).output_layer.bias.assign(np.full(N_LATENT, np.nan))
    with pytest.raises(SamplingError, match="latents became infinite or nan"):
        generate(broken)


def test_other_modalities_than_rna_are_refused():
    manifest = diffusion_manifest()
    both = dataclasses.replace(
        manifest, features={**manifest.features, "atac": ("peak1",)}
    )
    with pytest.raises(ConfigError, match=r"cfDiffusion makes RNA alone, .* rna, atac"):
        make_model(manifest=both)


# Training


def latent_batch(n_cells: int = 20, seed: int = 0):
    cells = make_batch(n_cells, seed)
    of_cells = np.random.default_rng(seed).normal(0.5, 1.0, (n_cells, N_LATENT))
    return cells._replace(features={LATENT: tf.constant(of_cells, tf.float32)})


def test_prepared_latents_are_those_of_the_cells_standardized():
    some = make_model()
    _, stage = stages_of(some)
    cells = make_batch(20)
    prepared = stage.prepare(lambda: [cells])
    found = some.latents(cells.features)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    expected = (found - found.mean(axis=0)) / found.std(axis=0)
    np.testing.assert_allclose(prepared.features[LATENT], expected, atol=1e-3)


def test_training_the_diffusion_leaves_the_autoencoder_as_it_is():
    some = make_model()
    _, stage = stages_of(some)
    autoencoder = some.generation_weights()["autoencoder"]["network"]
    frozen = values(autoencoder)
    stage.prepare(lambda: [make_batch()])
    stage.train_step((latent_batch(),), SEED)
    assert_equal(values(autoencoder), frozen)


@pytest.mark.parametrize(
    ("blocks", "part"),
    [
        ({}, "average"),
        ({"diffusion": {"use_average": False}}, "network"),
        ({"model": {"reference_behaviour": True}}, "network"),
    ],
)
def test_cells_are_made_with_the_weights_of_the_stage_as_they_are(blocks, part):
    some = make_model(**blocks)
    weights = some.generation_weights()["diffusion"]
    assert set(weights) == {part, "scale"}
    _, stage = stages_of(some)
    stage.train_step((latent_batch(),), SEED)
    generate(some, 0, 3)
    trained = stage.trackables()[part].variables
    for own, of_stage in zip(weights[part].variables, trained, strict=True):
        np.testing.assert_array_equal(own, of_stage)


@pytest.mark.slow
def test_a_diffusion_that_is_trained_makes_what_it_was_trained_on():
    # Two categories, two far points of the sphere.
    some = make_model(
        diffusion={
            "condition_on": ["donor"],
            "widths": [32, 32, 16],
            "latent_scale": "none",
            "average_rate": 0.95,
            "n_steps": 1000,
        },
        training={"stages": {"diffusion": {"max_steps": 500}}},
        generation={"n_steps": 50},
    )
    _, stage = stages_of(some)
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 2, 256).astype(np.int32)
    points = np.float32([[1, 0, 0, 0], [0, 0, -1, 0]])
    batch = latent_batch(256)._replace(
        features={LATENT: tf.constant(points[codes])},
        covariates={"donor": tf.constant(codes)},
    )
    step = tf.function(stage.train_step)
    for index in range(500):
        step((batch,), tf.constant((1, index)))
    found = generate(some, guidance={"donor": 1.5})[LATENT]
    cosine = np.sum(found * points[CODES["donor"]], axis=1)
    assert np.mean(cosine > 0.8) > 0.9
    noisy = add_noise(stage.schedule, points, tf.ones((2, 4)), tf.constant([0, 999]))
    assert np.all(np.abs(noisy[0] - points[0]) < 0.02)
