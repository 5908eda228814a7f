"""Diffusion that classifiers of noisy latents steer: scDiffusion."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.errors import ConfigError
from cellgan.models.base import GenerationRequest, Mixture, SolverSettings
from cellgan.models.cfdiffusion.classifier import NoisyClassifiers
from cellgan.models.cfdiffusion.classifier_training import ClassifierStage
from cellgan.models.cfdiffusion.model import LatentDiffusion
from cellgan.models.latent import stage as latents
from cellgan.models.latent.stage import LATENT, LatentScale
from cellgan.optimizers import adamw
from cellgan.sampling import NoiseSchedule, linear_betas
from tests.models.cfdiffusion.diffusion_models import (
    CATEGORIES,
    N_LATENT,
    draw_codes,
    make_batch,
    make_model,
    randomized,
)
from tests.models.gan.gan_stages import assert_equal, changed, values

pytestmark = pytest.mark.slow

SEED = tf.constant((3, 4))
N_CELLS = 40
CODES = draw_codes(N_CELLS)
SCHEDULE = NoiseSchedule.of(linear_betas(50))
DDIM = SolverSettings("ddim", 8)
CLASSIFIER = {"classifier": {"widths": [8, 6], "dropout": 0.0}}


def make_stage(*, dropout: float = 0.0, n_steps: int = 25) -> ClassifierStage:
    """Make a stage whose cells are their own latents."""
    network = NoisyClassifiers(N_LATENT, CATEGORIES, widths=(16, 8), dropout=dropout)
    return ClassifierStage(
        lambda features: features["rna"],
        LatentScale(N_LATENT),
        network,
        adamw(1e-2, (0.9, 0.999), weight_decay=0.0),
        SCHEDULE,
        n_steps,
        clip_norm=None,
        jit=False,
    )


def separated_cells(n_cells: int = 200) -> CellBatch:
    """Make latents of which the first dimension is the cluster, the last the donor."""
    rng = np.random.default_rng(0)
    codes = draw_codes(n_cells)
    of_cells = rng.normal(0, 0.1, (n_cells, N_LATENT))
    of_cells[:, 0] += 3 * (codes["cluster"] - 1)
    of_cells[:, -1] += 3 * (2 * codes["donor"] - 1)
    return CellBatch(
        {LATENT: tf.constant(of_cells, tf.float32)},
        {},
        {name: tf.constant(of) for name, of in codes.items()},
    )


@pytest.fixture(scope="module", autouse=True)
def small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latents, "MOST_CELLS_PER_BLOCK", 16)
        yield


@pytest.fixture(scope="module")
def steered() -> LatentDiffusion:
    model = randomized(make_model(model=CLASSIFIER))
    rng = np.random.default_rng(1)
    network = model.generation_weights()["classifier"]["network"]
    for weight in network.trainable_variables:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return model


def generate(model: LatentDiffusion, **changes) -> np.ndarray:
    options = {"covariates": CODES, "solver": DDIM, "seed": 5, **changes}
    n_cells = options.pop("n_cells", N_CELLS)
    return model.generate(GenerationRequest(n_cells=n_cells, **options)).latent


# Training


def test_classifiers_learn_the_labels_of_noisy_latents():
    stage, cells = make_stage(), separated_cells()
    before = stage.validate_step(cells, SEED)
    for step in range(100):
        stage.train_step((cells,), tf.constant((step, 0)))
    after = stage.validate_step(cells, SEED)
    assert after["loss"] < 0.5 * before["loss"]
    assert after["accuracy/cluster"] > 0.85
    assert after["accuracy/donor"] > 0.85


def test_a_step_moves_all_weights_of_the_classifiers_and_nothing_else():
    stage, cells = make_stage(), separated_cells()
    before = values(stage.network)
    scale = values(stage.trackables()["scale"])
    stage.train_step((cells,), SEED)
    assert changed(values(stage.network), before) == before.keys()
    assert_equal(values(stage.trackables()["scale"]), scale)


def test_loss_is_the_cross_entropy_of_all_covariates():
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    logits = {"cluster": tf.math.log(shares), "donor": tf.zeros((2, 2), tf.float64)}
    codes = {"cluster": tf.constant([0, 1]), "donor": tf.constant([1, 1])}
    found = make_stage().losses(logits, codes)
    expected = -(np.log(0.7) + np.log(0.3)) / 2 + np.log(2)
    assert found["loss"].numpy() == pytest.approx(expected, rel=1e-12)
    assert found["accuracy/cluster"].numpy() == 0.5
    assert found["accuracy/donor"].numpy() == 0


def test_noise_is_of_the_cleanest_steps_alone():
    latent = tf.zeros((4000, N_LATENT))
    draws = make_stage(n_steps=7).draw(latent, SEED)
    assert set(draws.step_index.numpy()) == set(range(7))
    assert np.std(draws.noise) == pytest.approx(1, abs=5 / np.sqrt(2 * 16_000))


def test_dropout_is_of_training_alone():
    stage, cells = make_stage(dropout=0.5), separated_cells()
    latent, codes = cells.features[LATENT], cells.covariates
    draws = stage.draw(latent, SEED)
    other = draws._replace(dropout=tf.constant((8, 8)))
    first, second, again = (
        stage.gradients(latent, codes, some)[0]["loss"].numpy()
        for some in (draws, other, draws)
    )
    assert first == again != second
    assert (
        stage.validate_step(cells, SEED)["loss"]
        == (stage.validate_step(cells, SEED)["loss"])
    )


# Sampling


def test_steered_model_trains_a_third_stage(steered):
    assert [stage.name for stage in steered.stages()] == [
        "autoencoder",
        "diffusion",
        "classifier",
    ]
    assert list(steered.generation_weights()) == [
        "autoencoder",
        "diffusion",
        "classifier",
    ]


def test_scale_0_does_not_steer_and_other_scales_do(steered):
    still = generate(steered, guidance={"cluster": 0.0, "donor": 0.0})
    np.testing.assert_allclose(generate(steered, covariates={}), still, atol=1e-6)
    one, two = (generate(steered, guidance={"cluster": scale}) for scale in (1, 2))
    assert np.abs(one - still).max() > 1e-3
    assert np.abs(two - one).max() > 1e-3


def test_a_steered_cell_depends_on_its_own_covariates_alone(steered):
    other = CODES["donor"].copy()
    other[7] = 1 - other[7]
    found = generate(steered, covariates={**CODES, "donor": other})
    is_other = np.any(found != generate(steered), axis=1)
    assert np.flatnonzero(is_other).tolist() == [7]


def test_steps_that_the_classifiers_have_not_seen_are_not_steered():
    # At 50 steps, of which 8 are taken, only the last position is below 0.02 * 50.
    whole, last = (
        randomized(
            make_model(model={"classifier": {"widths": [8, 6], "noise_share": share}})
        )
        for share in (1.0, 0.02)
    )
    still = generate(last, guidance={"cluster": 0.0, "donor": 0.0})
    moved = [np.abs(generate(model) - still).mean() for model in (last, whole)]
    assert 0 < moved[0] < 0.5 * moved[1]


@pytest.mark.parametrize(("share", "code"), [(0.0, 0), (1.0, 2)])
def test_a_steered_mixture_of_one_category_is_that_category(steered, share, code):
    codes = {**CODES, "cluster": np.zeros(N_CELLS, np.int32)}
    mixture = Mixture(
        "cluster", np.full(N_CELLS, 2, np.int32), np.full(N_CELLS, share, np.float32)
    )
    alone = {**CODES, "cluster": np.full(N_CELLS, code, np.int32)}
    np.testing.assert_allclose(
        generate(steered, covariates=codes, mixture=mixture),
        generate(steered, covariates=alone),
        atol=1e-6,
    )


@pytest.mark.parametrize(
    ("diffusion", "message"),
    [
        ({"dropping": "independent"}, "diffusion.dropping is of a denoiser that knows"),
        ({"unconditional_share": 0.2}, "diffusion.unconditional_share is of a deno"),
        ({"condition_on": []}, "there is nothing to classify"),
    ],
)
def test_options_without_effect_are_refused(diffusion, message):
    with pytest.raises(ConfigError, match=message):
        make_model(diffusion=diffusion, model=CLASSIFIER)


def test_a_stage_that_is_not_trained_has_no_parameters():
    with pytest.raises(ConfigError, match="classifier"):
        make_model(training={"stages": {"classifier": {"max_steps": 5}}})


def test_real_cells_can_be_steered_from_some_noise(steered):
    cells = make_batch(N_CELLS)
    own = steered.latents(cells.features)
    near, far = (
        np.linalg.norm(generate(steered, source=cells, noise_step=step) - own, axis=1)
        for step in (0, 49)
    )
    assert near.mean() < far.mean()
