from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.models.cfdiffusion.networks import Denoiser
from cellgan.models.cfdiffusion.training import (
    DiffusionDraws,
    DiffusionRecipe,
    DiffusionStage,
)
from cellgan.models.latent.stage import LATENT, LatentScale
from cellgan.optimizers import LinearDecay, WeightAverage, adamw
from cellgan.sampling import NoiseSchedule, linear_betas
from tests.models.cfdiffusion.diffusion_reference import (
    DiffusionReference,
    assert_close,
)
from tests.models.gan.gan_stages import assert_equal, changed, values

pytestmark = pytest.mark.slow

CASES = ["single", "multi"]
SEED = tf.constant((3, 4))
N_LATENT = 4
CATEGORIES = {"cluster": 3, "donor": 2}
SCHEDULE = NoiseSchedule.of(linear_betas(1000))
RECIPE = DiffusionRecipe(0.1, "joint", "none")


@pytest.fixture(scope="module")
def reference(reference_dir) -> DiffusionReference:
    return DiffusionReference(reference_dir)


def make_stage(
    network: Denoiser | None = None,
    recipe: DiffusionRecipe = RECIPE,
    *,
    rate: float = 0.9999,
    has_warm_up: bool = False,
    schedule: LinearDecay | float = 1e-3,
    weight_decay: float = 1e-4,
    noise: NoiseSchedule = SCHEDULE,
) -> DiffusionStage:
    """Make a stage whose cells are their own latents."""
    network = network or Denoiser(N_LATENT, CATEGORIES, widths=(8, 6, 4))
    return DiffusionStage(
        lambda features: features["rna"],
        LatentScale(network.n_latent),
        network,
        WeightAverage(network.variables, rate, has_warm_up=has_warm_up, jit=True),
        adamw(schedule, (0.9, 0.999), weight_decay=weight_decay),
        noise,
        recipe,
        clip_norm=None,
        jit=False,
    )


# As the original


class StoredSteps:
    """The stored steps of a case, for our stage."""

    def __init__(self, reference: DiffusionReference, case: str) -> None:
        settings = reference.config["adamw_denoiser"]
        total = settings["anneal_total_in_fixture"]
        self.stage = make_stage(
            reference.denoiser(case),
            rate=settings["ema"],
            schedule=LinearDecay(settings["lr"], total),
            weight_decay=settings["wd"],
            noise=NoiseSchedule.of(linear_betas(reference.config["diffusion"]["T"])),
        )
        stored = reference.below(f"in/loss/{case}/")
        codes = reference.codes(case, stored["y"])
        null_codes = self.stage.network.null_codes
        first = np.cumsum([0, *null_codes.values()])
        self.steps = []
        for index, latents in enumerate(stored["x0"]):
            mask = stored["drop_mask"][index]
            shown = {}
            for start, (name, of_cells) in zip(first, codes.items(), strict=False):
                own = mask[np.arange(len(mask)), start + of_cells.numpy()] == 1
                shown[name] = tf.where(own, null_codes[name], of_cells)
            draws = DiffusionDraws(
                tf.constant(stored["noise_float64"][index], tf.float32),
                tf.constant(stored["t"][index], tf.int32),
                shown,
            )
            self.steps.append((tf.constant(latents), draws))


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_original(reference, case):
    stored = StoredSteps(reference, case)
    latents, draws = stored.steps[0]
    out = f"out/loss/{case}"
    losses = stored.stage.losses(latents, draws)
    assert_close(losses, reference[f"{out}/per_sample_step0"])
    _, gradients = stored.stage.gradients(latents, draws)
    weights = stored.stage.network.trainable_variables
    ours = {w.path: g for w, g in zip(weights, gradients, strict=True)}
    theirs = reference.denoiser_values(f"{out}/grad_step0/")
    assert theirs
    for path, expected in theirs.items():
        assert_close(ours[path], expected)


@pytest.mark.parametrize("case", CASES)
def test_steps_and_their_average_are_those_of_the_original(reference, case):
    stored = StoredSteps(reference, case)
    metrics = [stored.stage.update(*step) for step in stored.steps]
    out = f"out/loss/{case}"
    assert_close([of["loss"] for of in metrics], reference[f"{out}/mean_loss_per_step"])
    rates = [float(of["learning_rate"]) for of in metrics]
    settings = reference.config["adamw_denoiser"]
    done = (
        np.maximum(np.arange(len(rates)) - 1, 0) / settings["anneal_total_in_fixture"]
    )
    np.testing.assert_allclose(rates, settings["lr"] * (1 - done), rtol=1e-6)
    network, before = stored.stage.network, reference.denoiser(case)
    average = dict(
        zip(
            [weight.path for weight in network.variables],
            stored.stage.average.variables,
            strict=True,
        )
    )
    initial = {weight.path: weight for weight in before.weights}
    now = {weight.path: weight for weight in network.weights}
    for kind, ours in (("after", now), ("ema_after", average)):
        theirs = reference.denoiser_values(f"{out}/{kind}{len(rates)}/")
        assert theirs
        for path, expected in theirs.items():
            np.testing.assert_allclose(ours[path], expected, rtol=0, atol=2e-7)
            assert not np.array_equal(initial[path], now[path])


# Of its own


def cells(n_cells: int = 30, seed: int = 0) -> CellBatch:
    """Return cells that are latents of length 1."""
    rng = np.random.default_rng(seed)
    latents = rng.normal(size=(n_cells, N_LATENT)).astype(np.float32) + 1
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    return CellBatch(
        {"rna": tf.constant(latents)},
        {"rna": tf.ones((n_cells,))},
        {
            name: tf.constant(rng.integers(0, n, n_cells), tf.int32)
            for name, n in CATEGORIES.items()
        },
    )


def latent_batch(n_cells: int = 30, seed: int = 0) -> CellBatch:
    batch = cells(n_cells, seed)
    return batch._replace(features={LATENT: batch.features["rna"]})


@pytest.mark.parametrize(
    ("latent_scale", "mean", "deviation"),
    [
        ("none", lambda x: 0, lambda x: 1),
        ("sqrt_width", lambda x: 0, lambda x: 1 / np.sqrt(N_LATENT)),
        ("standardized", lambda x: x.mean(axis=0), lambda x: x.std(axis=0)),
    ],
)
def test_prepared_latents_are_in_the_units_asked_for(latent_scale, mean, deviation):
    stage = make_stage(recipe=DiffusionRecipe(0.1, "joint", latent_scale))
    x = cells().features["rna"].numpy()
    prepared = stage.prepare(lambda: [cells()])
    expected = (x - mean(x)) / deviation(x)
    np.testing.assert_allclose(prepared.features[LATENT], expected, atol=1e-5)
    restored = stage.trackables()["scale"].restore(prepared.features[LATENT])
    np.testing.assert_allclose(restored, x, atol=1e-5)
    assert_equal(
        prepared.covariates, {k: v.numpy() for k, v in cells().covariates.items()}
    )


def test_draws_are_uniform_steps_and_standard_normal_noise():
    stage, batch = make_stage(), latent_batch(4000)
    draws = stage.draw(batch, batch.features[LATENT], SEED)
    steps = draws.step_index.numpy()
    assert steps.min() >= 0
    assert steps.max() <= 999
    assert np.ptp(steps) > 980
    error = 1000 / np.sqrt(12 * len(steps))
    assert abs(steps.mean() - 499.5) < 5 * error
    noise = draws.noise.numpy()
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=5 / np.sqrt(8000))
    assert abs(np.corrcoef(steps, noise[:, 0])[0, 1]) < 5 / np.sqrt(4000)


@pytest.mark.parametrize(
    ("dropping", "none", "both"),
    [("independent", 0.04, 0.64), ("joint", 0.2 + 0.8 * 0.04, 0.8 * 0.64)],
)
def test_covariates_are_left_out_as_often_as_asked_for(dropping, none, both):
    n_cells = 8000
    stage = make_stage(recipe=DiffusionRecipe(0.2, dropping, "none"))
    batch = latent_batch(n_cells)
    codes = stage.draw(batch, batch.features[LATENT], SEED).codes
    is_kept = np.stack(
        [codes[name].numpy() == batch.covariates[name].numpy() for name in CATEGORIES]
    )
    is_null = np.stack([codes[name].numpy() == n for name, n in CATEGORIES.items()])
    assert np.all(is_kept ^ is_null)
    error = 5 * np.sqrt(0.25 / n_cells)
    assert is_null.all(axis=0).mean() == pytest.approx(none, abs=error)
    assert is_kept.all(axis=0).mean() == pytest.approx(both, abs=error)


def test_a_single_covariate_is_left_out_once_not_twice():
    network = Denoiser(N_LATENT, {"cluster": 3}, widths=(8, 6, 4))
    stage = make_stage(network, DiffusionRecipe(0.2, "joint", "none"))
    batch = latent_batch(8000)
    codes = stage.draw(batch, batch.features[LATENT], SEED).codes["cluster"]
    error = 5 * np.sqrt(0.16 / 8000)
    assert np.mean(codes == 3) == pytest.approx(0.2, abs=error)


def test_a_step_moves_every_weight_and_its_average():
    stage = make_stage(rate=0.9)
    before = values(stage.network)
    metrics = stage.train_step((latent_batch(),), SEED)
    assert set(metrics) == {"loss", "learning_rate"}
    assert changed(values(stage.network), before) == before.keys()
    for now, was, own in zip(
        stage.average.variables, before.values(), stage.network.variables, strict=True
    ):
        np.testing.assert_allclose(now, 0.9 * was + 0.1 * own.numpy(), atol=1e-7)


def test_average_follows_the_weights_from_the_start_with_warm_up():
    stage = make_stage(has_warm_up=True)
    before = values(stage.network)
    stage.train_step((latent_batch(),), SEED)
    for now, was, own in zip(
        stage.average.variables, before.values(), stage.network.variables, strict=True
    ):
        np.testing.assert_allclose(now, 0.1 * was + 0.9 * own.numpy(), atol=1e-7)


def test_validation_of_cells_is_that_of_their_latents_and_changes_nothing():
    stage = make_stage(recipe=DiffusionRecipe(0.1, "joint", "standardized"))
    prepared = tf.nest.map_structure(tf.constant, stage.prepare(lambda: [cells()]))
    before = values(stage.network)
    found, expected = (
        stage.validate_step(batch, SEED)["loss"] for batch in (cells(), prepared)
    )
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    assert_equal(values(stage.network), before)


def test_loss_of_a_network_that_finds_no_noise_is_that_of_the_noise():
    stage, batch = make_stage(), latent_batch(2000)
    for weight in stage.network.output_layer.weights:
        weight.assign(tf.zeros_like(weight))
    loss = float(stage.validate_step(batch, SEED)["loss"])
    assert loss == pytest.approx(1, abs=5 * np.sqrt(2 / (2000 * N_LATENT)))


@pytest.mark.slow
def test_training_lowers_the_loss():
    stage = make_stage(schedule=1e-2)
    step, batch = tf.function(stage.train_step), latent_batch(64)
    before = float(stage.validate_step(batch, SEED)["loss"])
    for index in range(300):
        step((batch,), tf.constant((1, index)))
    # Of 1 for no noise found; latents of length 1 hide most of what is left.
    assert float(stage.validate_step(batch, SEED)["loss"]) < 0.5 < before


def test_diagnostics_have_a_gradient_for_every_weight():
    stage = make_stage()
    tensors = stage.diagnostics(latent_batch(), SEED)
    gradients = {k: of.numpy() for k, of in tensors.items() if k.endswith("/gradients")}
    assert len(gradients) == len(stage.network.trainable_variables)
    assert [name for name, of in gradients.items() if not np.any(of)] == []
