from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom

from cellgan.data.batches import CellBatch
from cellgan.models.latent.autoencoder import AutoencoderStage, CountMoments
from cellgan.models.latent.networks import CountAutoencoder, Modality
from cellgan.optimizers import adam
from tests.models.cfgen.flow_models import SEED, make_batch, make_model, stages_of
from tests.models.gan.gan_stages import assert_equal, changed, values
from tests.synthetic import make_cells

N_CELLS, N_GENES = 200, 24


def synthetic_batch() -> CellBatch:
    cells = make_cells(N_CELLS, N_GENES)
    counts = cells.counts.toarray()
    codes = np.unique(cells.labels, return_inverse=True)[1].astype(np.int32)
    return CellBatch(
        {"rna": tf.constant(counts)},
        {"rna": tf.constant(counts.sum(axis=1))},
        {"cluster": tf.constant(codes)},
    )


def make_stage(optimizer: keras.Optimizer, clip_norm=None) -> AutoencoderStage:
    rna = Modality(N_GENES, (16, 4), "negative_binomial")
    network = CountAutoencoder({"rna": rna})
    return AutoencoderStage(
        network, optimizer, label="cluster", clip_norm=clip_norm, jit=False
    )


def loss_without_latents(batch: CellBatch) -> float:
    """Best loss of one share and one dispersion per gene, the same for all cells."""
    counts, sizes = batch.features["rna"].numpy(), batch.library_size["rna"].numpy()
    total = 0.0
    for gene in counts.T:
        mean = sizes * gene.sum() / sizes.sum()

        def loss(log_theta, gene=gene, mean=mean):
            theta = np.exp(log_theta)
            return -nbinom.logpmf(gene, theta, theta / (theta + mean)).sum()

        total += minimize_scalar(loss, bounds=(-5, 10), method="bounded").fun
    return total / len(counts)


def negative_binomial_cells(thetas, n_cells=4000):
    """Counts of two labels with other means; ``thetas`` (2, n_genes)."""
    rng = np.random.default_rng(0)
    codes = np.arange(n_cells) % 2
    sizes = rng.uniform(0.5, 2.0, n_cells)
    means = np.array([5.0, 20.0])[codes, np.newaxis] * sizes[:, np.newaxis]
    return rng.poisson(rng.gamma(thetas[codes], means / thetas[codes])), sizes, codes


def moments_of(counts, sizes, codes, n_batches=3) -> CountMoments:
    moments = CountMoments()
    for rows in np.array_split(np.arange(len(codes)), n_batches):
        moments.add(counts[rows], sizes[rows], codes[rows])
    return moments


def test_moments_tell_the_dispersion_around_the_means_of_labels():
    thetas = np.tile([0.5, 2.0, 8.0], (2, 1))
    found = moments_of(*negative_binomial_cells(thetas)).inverse_dispersions(None)
    np.testing.assert_allclose(found, thetas[0], rtol=0.15)


def test_moments_tell_the_dispersion_of_each_label():
    thetas = np.array([[0.5, 4.0], [4.0, 0.5]])
    moments = moments_of(*negative_binomial_cells(thetas))
    found = moments.inverse_dispersions(3)
    np.testing.assert_allclose(found[:2], thetas, rtol=0.15)
    of_all = moments.inverse_dispersions(None)
    np.testing.assert_array_equal(found[2], of_all)  # a label without cells


def test_moments_of_few_counts_stay_near_one():
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.003, size=(1000, 200))
    counts[0] += 1
    sizes, codes = np.ones(1000), np.zeros(1000, int)
    found = moments_of(counts, sizes, codes).inverse_dispersions(None)
    assert 0.3 < found.min() < found.max() < 3


def test_training_starts_from_the_moments_of_the_cells():
    stage, batch = (
        make_stage(adam(1e-3, (0.9, 0.999), amsgrad=False)),
        synthetic_batch(),
    )
    before = values(stage.network)
    stage.initialize(lambda: [batch])
    (path,) = changed(values(stage.network), before)
    assert "dispersion" in path
    assert np.ptp(stage.network.log_inverse_dispersion["rna"].numpy()) > 0.1


@pytest.fixture(scope="module")
def losses() -> list[float]:
    """Validation losses before training, and after every 100 steps."""
    stage, batch = (
        make_stage(adam(5e-3, (0.9, 0.999), amsgrad=False)),
        synthetic_batch(),
    )
    step, validate = tf.function(stage.train_step), tf.function(stage.validate_step)
    found = [float(validate(batch, SEED)["loss"])]
    for _ in range(3):
        for _ in range(100):
            step((batch,), SEED)
        found.append(float(validate(batch, SEED)["loss"]))
    return found


@pytest.mark.slow
def test_loss_decreases_in_training(losses):
    assert losses == sorted(losses, reverse=True)


@pytest.mark.slow
def test_latents_explain_more_than_one_distribution_per_gene(losses):
    # 3 separable clusters: knowing them is worth far more than 1 nat per cell
    assert losses[-1] < loss_without_latents(synthetic_batch()) - 1


@pytest.mark.parametrize(("clip_norm", "expected"), [(0.5, 0.5), (1e6, None)])
def test_gradients_are_clipped_together_to_the_norm(clip_norm, expected):
    stage = make_stage(keras.optimizers.SGD(1.0), clip_norm)
    before = [weight.numpy().copy() for weight in stage.network.trainable_variables]
    norm = float(stage.train_step((synthetic_batch(),), SEED)["gradient_norm"])
    moves = [
        np.sum((weight.numpy() - old) ** 2)
        for weight, old in zip(stage.network.trainable_variables, before, strict=True)
    ]
    assert norm > 5
    assert np.sqrt(np.sum(moves)) == pytest.approx(expected or norm, rel=1e-4)


def test_a_step_moves_every_weight_and_the_running_statistics():
    stage, _ = stages_of(make_model())
    before = values(stage.network)
    stage.train_step((make_batch(),), SEED)
    assert changed(values(stage.network), before) == before.keys()


def test_validation_and_diagnostics_change_nothing():
    stage, _ = stages_of(make_model())
    before = values(stage.network)
    stage.validate_step(make_batch(), SEED)
    tags = stage.diagnostics(make_batch(), SEED)
    assert_equal(values(stage.network), before)
    assert len(tags) == 1 + 2 * len(stage.network.trainable_variables)


def test_validation_uses_the_running_statistics():
    stage, _ = stages_of(make_model())
    batch = make_batch()
    whole = float(stage.validate_step(batch, SEED)["loss"])
    rows = [
        float(stage.validate_step(one_cell(batch, row), SEED)["loss"])
        for row in range(len(batch.features["rna"]))
    ]
    # statistics of a batch of one cell would make all its units zero
    assert np.mean(rows) == pytest.approx(whole, rel=1e-5)
    assert np.ptp(rows) > 1


def one_cell(batch: CellBatch, row: int) -> CellBatch:
    return tf.nest.map_structure(lambda of: of[row : row + 1], batch)


def test_encoder_in_use_treats_each_cell_by_itself():
    stage, _ = stages_of(make_model())
    stage.train_step((make_batch(),), SEED)
    network, features = stage.network, make_batch(seed=1).features
    before = values(network)
    whole = network.encode(features).numpy()
    part = network.encode({"rna": features["rna"][3:5]}).numpy()
    np.testing.assert_allclose(part, whole[3:5], rtol=1e-5, atol=1e-6)
    assert_equal(values(network), before)


def test_dispersion_of_a_label_learns_from_its_cells_alone():
    stage, _ = stages_of(make_model(autoencoder={"inverse_dispersion": "gene-label"}))
    batch = make_batch()
    codes = tf.zeros_like(batch.covariates["cluster"]) + 1
    batch = batch._replace(covariates={**batch.covariates, "cluster": codes})
    _, gradients, _ = stage.gradients(batch, SEED)
    paths = [weight.path for weight in stage.network.trainable_variables]
    (index,) = [i for i, path in enumerate(paths) if "dispersion" in path]
    moved = np.any(gradients[index].numpy() != 0, axis=1)
    assert moved.tolist() == [False, True, False]


def test_loss_is_the_weighted_sum_of_the_modalities():
    stage, _ = stages_of(make_model(atac=True, autoencoder={"atac_weight": 0.25}))
    found = stage.validate_step(make_batch(atac=True), SEED)
    rna, atac = (found[f"negative_log_likelihood/{m}"] for m in ("rna", "atac"))
    assert float(found["loss"]) == pytest.approx(float(rna + 0.25 * atac), rel=1e-6)
