from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellgan.models.base import GenerationRequest
from cellgan.models.gan.model import CELLS_PER_BLOCK, Gan
from cellgan.models.gan.networks import Generator
from tests.models.gan.gan_stages import N_GENES, changed, make_gan, make_stage, values

N_CELLS = 2 * CELLS_PER_BLOCK + 40
CODES = np.arange(N_CELLS, dtype=np.int32) % 3


@pytest.fixture(scope="module")
def gan() -> Gan:
    """Make a cscGAN whose labels and running statistics matter."""
    gan = make_gan(model={"gen_layers": [40, 40]})
    generator = gan.generation_weights()["gan"]["generator"]
    rng = np.random.default_rng(0)
    for norm in generator.norms:
        for weight in norm.weights:
            weight.assign(weight + rng.uniform(0.1, 1.0, weight.shape))
    generator.last.bias.assign(np.full(N_GENES, 9.0))
    return gan


@pytest.fixture(scope="module")
def whole(gan: Gan) -> np.ndarray:
    return generate(gan, 0, N_CELLS)


def generate(gan: Gan, first: int, end: int, seed: int = 5) -> np.ndarray:
    request = GenerationRequest({"cluster": CODES[first:end]}, end - first, seed, first)
    generated = gan.generate(request)
    assert not generated.are_counts
    return generated.features["rna"].toarray()


def test_generated_cells_sum_to_the_library_size(whole: np.ndarray):
    assert whole.shape == (N_CELLS, N_GENES)
    assert whole.dtype == np.float32
    assert whole.min() >= 0
    np.testing.assert_allclose(whole.sum(axis=1), 1000, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(cuts=st.lists(st.integers(0, N_CELLS), max_size=4))
def test_cells_are_equal_bit_for_bit_however_a_request_is_cut(gan, whole, cuts):
    ends = [0, *sorted(cuts), N_CELLS]
    pieces = [generate(gan, first, end) for first, end in itertools.pairwise(ends)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_cell_depends_on_its_own_label_alone(gan: Gan, whole: np.ndarray):
    other = CODES.copy()
    other[7] = (other[7] + 1) % 3
    request = GenerationRequest({"cluster": other}, N_CELLS, 5)
    found = gan.generate(request).features["rna"].toarray()
    differs = np.any(found != whole, axis=1)
    assert np.flatnonzero(differs).tolist() == [7]


def test_cells_differ_from_each_other_and_between_seeds(gan: Gan, whole: np.ndarray):
    assert len(np.unique(whole, axis=0)) == N_CELLS
    other = generate(gan, 0, N_CELLS, seed=6)
    assert not np.any(np.all(other == whole, axis=1))


def test_generation_is_compiled_once(gan: Gan, whole: np.ndarray):
    del whole
    generate(gan, 100, 1500 % N_CELLS)
    assert gan._generate_block.experimental_get_tracing_count() == 1


def test_generation_uses_the_running_statistics():
    gan = make_gan()
    before = generate(gan, 0, 3)
    generator = gan.generation_weights()["gan"]["generator"]
    generator.norms[1].moving_variance.assign(np.full(8, 4.0))
    assert not np.array_equal(generate(gan, 0, 3), before)


def test_scgan_ignores_labels_and_needs_none():
    gan = make_gan("scGAN")
    with_labels = generate(gan, 0, 9)
    without = gan.generate(GenerationRequest({}, 9, 5)).features["rna"].toarray()
    np.testing.assert_array_equal(without, with_labels)


def test_unscaled_models_generate_cells_of_different_sums():
    sums = generate(make_gan(model={"output_LSN": None}), 0, 9).sum(axis=1)
    assert np.ptp(sums) > 0


def test_generation_makes_neither_critic_nor_optimizers():
    def refuse(generator: Generator):
        msg = "the stage was made"
        raise AssertionError(msg)

    generator = Generator((4, 5, N_GENES), 3, library_size=10)
    gan = Gan(generator, "cluster", refuse, jit=False)
    assert list(gan.generation_weights()) == ["gan"]
    assert len(generate(gan, 0, 3)) == 3


def test_stages_are_the_same_objects_at_every_call():
    gan = make_gan()
    (stage,) = gan.stages()
    assert gan.stages() == (stage,)
    generator = gan.generation_weights()[stage.name]["generator"]
    assert stage.trackables()["generator"] is generator


def test_trackables_hold_every_weight_and_slot_and_no_seed_generator():
    trackables = make_stage().trackables()
    n_weights = {"generator": 8 + 4, "critic": 6}
    for name, total in n_weights.items():
        n_trained = len(trackables[name].trainable_variables)
        assert len(trackables[name].variables) == total
        slots = trackables[f"{name}_optimizer"].variables
        assert len(slots) == 1 + 3 * n_trained
    variables = [v for part in trackables.values() for v in part.variables]
    assert all(isinstance(variable, keras.Variable) for variable in variables)
    assert not any("seed" in variable.path for variable in variables)


def test_initial_weights_follow_the_seed():
    first, same, other = (
        values(make_stage(training={"seed": seed}).critic.network) for seed in (1, 1, 2)
    )
    assert changed(same, first) == set()
    kernels = {
        path for path in first if "kernel" in path or path.endswith("projection")
    }
    assert changed(other, first) == kernels


def test_initial_weights_have_the_limits_of_the_reference():
    model = {"gen_layers": [400], "critic_layers": [500]}
    stage = make_stage(model=model)
    weights = values(stage.generator.network) | values(stage.critic.network)
    n_labels = 3
    limits = {
        "generator/layer_1/kernel": np.sqrt(6 / (5 + 400)),
        "generator/output/kernel": 2 * np.sqrt(2.6 / ((400 + N_GENES) / 2)),
        "critic/layer_1/kernel": 2 * np.sqrt(2.6 / ((500 + N_GENES) / 2)),
        "critic/output/projection": np.sqrt(6 / (n_labels * (500 + 1))),
    }
    for path, limit in limits.items():
        largest = np.abs(weights[path]).max()
        assert 0.98 * limit < largest <= limit * (1 + 1e-6), path
    constants = {"scale": 1, "moving_variance": 1}
    for path in weights.keys() - limits.keys():
        assert np.all(weights[path] == constants.get(path.split("/")[-1], 0)), path
