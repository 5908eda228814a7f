from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from cellgan.data.batches import CellBatch
from cellgan.models.gan import losses
from cellgan.models.gan.training import BatchReader
from cellgan.training.checkpoints import StageCheckpoint
from tests.models.gan.gan_reference import Reference
from tests.models.gan.gan_stages import (
    CRITIC_ITERS,
    N_GENES,
    SEED,
    assert_equal,
    changed,
    make_batch,
    make_batches,
    make_stage,
    values,
)

BOTH = pytest.mark.parametrize("model_type", ["scGAN", "cscGAN"])


def fold_in(seed: tf.Tensor, index: int) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(seed, index, alg="philox")


def is_running_statistic(path: str) -> bool:
    return "moving" in path


@BOTH
def test_first_step_updates_each_network_once_and_later_steps_the_critic_more(
    model_type,
):
    stage = make_stage(model_type)
    stage.first_step(make_batches(), SEED)
    counts = []
    for _ in range(3):
        counts.append(
            tuple(
                int(player.optimizer.iterations)
                for player in (stage.critic, stage.generator)
            )
        )
        stage.train_step(make_batches(), SEED)
    per_step = CRITIC_ITERS + 1
    assert counts == [(1, 1), (1 + per_step, 2), (1 + 2 * per_step, 3)]


def test_first_step_updates_the_running_statistics_once():
    stage = make_stage()
    norm = stage.generator.network.norms[0]
    stage.first_step(make_batches(), SEED)
    once = np.asarray(norm.moving_variance)
    # towards a batch variance v: 1 + 0.001 (v - 1), and v of a fresh layer is below 10
    assert np.all(np.abs(once - 1) < 0.01)
    assert np.all(once != 1)


def test_learning_rate_follows_completed_steps_in_both_networks():
    training = {
        "max_steps": 2,
        "learning_rate": {"alpha_0": 1e-2, "alpha_final": 1e-4},
    }
    stage = make_stage(training=training)
    rates = []
    for step in (stage.first_step, stage.train_step, stage.train_step):
        metrics = step(make_batches(), SEED)
        rates.append(float(metrics["learning_rate"]))
    np.testing.assert_allclose(rates, [1e-2, 1e-3, 1e-4], rtol=1e-5)
    # 1 + 2 (critic_iters + 1) critic updates later, the fourth step is due
    for player in (stage.critic, stage.generator):
        np.testing.assert_allclose(player.optimizer.learning_rate, 1e-5, rtol=1e-5)


def test_learning_rate_is_constant_without_decay():
    training = {"learning_rate": {"decay": False, "alpha_0": 0.25}}
    stage = make_stage(training=training)
    rates = [
        float(stage.train_step(make_batches(), SEED)["learning_rate"]) for _ in range(3)
    ]
    assert rates == [0.25, 0.25, 0.25]


@pytest.mark.parametrize("decay", [True, False])
def test_the_state_of_the_stage_holds_no_learning_rate(decay):
    stage = make_stage(training={"learning_rate": {"decay": decay}})
    paths = [v.path for part in stage.trackables().values() for v in part.variables]
    assert len(paths) > 0
    assert [path for path in paths if "learning_rate" in path] == []


@pytest.mark.slow
@pytest.mark.parametrize("decay", [True, False])
def test_a_stage_started_from_another_experiment_has_its_own_learning_rate(
    tmp_path, decay
):
    other = {"learning_rate": {"decay": decay, "alpha_0": 0.5}}
    source = make_stage(training=other)
    source.first_step(make_batches(), SEED)
    StageCheckpoint(source.trackables(), tmp_path / "other").save(1)
    before, moves = values(source.critic.network), {}
    for rate in (0.125, 0.25):
        own = {"learning_rate": {"decay": False, "alpha_0": rate}}
        stage = make_stage(training=own)
        checkpoint = StageCheckpoint(
            stage.trackables(), tmp_path / str(rate), start_from=tmp_path / "other"
        )
        assert checkpoint.restore_latest() == 1
        # one critic update, whose length is proportional to the rate
        metrics = stage.first_step(make_batches(), SEED)
        assert float(metrics["learning_rate"]) == rate
        after = values(stage.critic.network)
        moves[rate] = {path: after[path] - before[path] for path in before}
    for path, move in moves[0.25].items():
        assert np.any(move)
        np.testing.assert_allclose(move, 2 * moves[0.125][path], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "n_slots"), [("AMSGrad", 3), ("Adam", 2)], ids=str
)
def test_optimizers_are_those_of_the_parameters(algorithm, n_slots):
    settings = {"algorithm": algorithm, "beta1": 0.25, "beta2": 0.75}
    stage = make_stage(training={"optimizer": settings})
    for player in (stage.critic, stage.generator):
        optimizer = player.optimizer
        n_counters = 1  # the learning rate is a schedule, not a variable
        assert len(optimizer.variables) == n_counters + n_slots * len(player.weights)
        assert (optimizer.beta_1, optimizer.beta_2) == (0.25, 0.75)


def test_critic_update_changes_the_critic_alone():
    stage = make_stage()
    before = values(stage.generator.network), values(stage.critic.network)
    real, codes = stage.real_cells.read(make_batch())
    _, gradients, _ = stage.critic_gradients(real, codes, stage.draw(6, SEED))
    stage.critic.update(gradients)
    assert_equal(values(stage.generator.network), before[0])
    assert changed(values(stage.critic.network), before[1]) == set(before[1])


def test_generator_update_changes_the_generator_alone():
    stage = make_stage()
    before = values(stage.generator.network), values(stage.critic.network)
    _, gradients = stage.generator_gradients(stage.draw(6, SEED))
    stage.generator.update(gradients)
    assert_equal(values(stage.critic.network), before[1])
    learnt = {path for path in before[0] if not is_running_statistic(path)}
    assert changed(values(stage.generator.network), before[0]) == learnt


def test_generator_learns_from_the_updated_critic_on_the_noise_it_was_updated_with():
    stage, by_hand = make_stage(), make_stage()
    stage.train_step(make_batches(), SEED)
    for index, batch in enumerate(make_batches()):
        real, codes = by_hand.real_cells.read(batch)
        draws = by_hand.draw(6, fold_in(SEED, index))
        _, gradients, statistics = by_hand.critic_gradients(real, codes, draws)
        by_hand.critic.update(gradients)
        by_hand.generator.network.update_running_statistics(statistics)
    by_hand.generator.update(by_hand.generator_gradients(draws)[1])
    for name in ("generator", "critic"):
        found = values(getattr(stage, name).network)
        for path, value in values(getattr(by_hand, name).network).items():
            np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-6)


def test_running_statistics_come_from_cells_with_the_real_codes():
    stage = make_stage()
    generator = stage.generator.network
    rng = np.random.default_rng(0)
    for norm in generator.norms:
        norm.offset.assign(rng.normal(size=norm.offset.shape))
    real, codes = stage.real_cells.read(make_batch())
    draws = stage.draw(6, SEED)
    _, _, statistics = stage.critic_gradients(real, codes, draws)
    expected, other = (
        generator(draws.noise, which, training=True).statistics[1].mean
        for which in (codes, draws.codes)
    )
    np.testing.assert_allclose(statistics[1].mean, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected - other).max() > 0.1


@pytest.mark.parametrize("read_out", ["proj", "old_proj"])
def test_score_gradient_and_penalty_gradient_equal_automatic_differentiation(read_out):
    stage = make_stage(model={"critic_cond_type": read_out})
    critic = stage.critic.network
    real, codes = stage.real_cells.read(make_batch())

    def penalty(gradient: tf.Tensor) -> tf.Tensor:
        return losses.gradient_penalty(losses.slopes(gradient))

    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            inner.watch(real)
            scores = critic(real, codes)
        expected = inner.gradient(scores, real)
        expected_penalty = penalty(expected)
    with tf.GradientTape() as tape:
        found = critic.score_gradient(real, codes)
        found_penalty = penalty(found)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    # biases only move the kinks of the rectifiers: the slopes do not depend on them
    weights = [weight for weight in stage.critic.weights if "bias" not in weight.path]
    for ours, theirs in zip(
        tape.gradient(found_penalty, weights),
        outer.gradient(expected_penalty, weights),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_penalty_points_are_uniform_between_the_cells():
    # with slope u at a point u of the way, the mean of (u - 1)**2 is 1/3, its variance
    # 1/5 - 1/9; a normal u would give 2
    n_cells = 20000
    mixing = make_stage().draw(n_cells, SEED).mixing
    penalty = float(losses.gradient_penalty(mixing[:, 0]))
    assert abs(penalty - 1 / 3) < 5 * np.sqrt((1 / 5 - 1 / 9) / n_cells)


def test_noise_is_standard_normal():
    noise = make_stage().draw(20000, SEED).noise.numpy()
    assert np.all(np.abs(noise.mean(axis=0)) < 5 / np.sqrt(20000))
    assert np.all(np.abs(noise.var(axis=0) - 1) < 5 * np.sqrt(2 / 20000))


def test_generated_categories_have_the_shares_of_their_labels():
    n_cells = 20000
    codes = make_stage(trained=(10, 0, 30)).draw(n_cells, SEED).codes.numpy()
    counts = np.bincount(codes, minlength=3)
    assert counts[1] == 0
    standard_error = np.sqrt(0.25 * 0.75 * n_cells)
    assert abs(counts[0] - 0.25 * n_cells) < 5 * standard_error


def test_categories_without_training_cells_at_the_end_are_never_drawn():
    codes = make_stage(trained=(0, 7, 0)).draw(20000, SEED).codes.numpy()
    assert np.all(codes == 1)


def test_draws_differ_between_seeds_and_repeat_with_them():
    stage = make_stage()
    first, same, other = (
        stage.draw(50, tf.constant(seed)) for seed in ((1, 2), (1, 2), (1, 3))
    )
    assert_equal(same._asdict(), first._asdict())
    assert changed(other._asdict(), first._asdict()) == {"noise", "codes", "mixing"}


def test_counts_are_scaled_like_the_reference_scales_them(reference_dir: Path):
    reference = Reference(reference_dir, "float64")
    counts = reference["in/real_counts"]
    batch = CellBatch(
        {"rna": tf.constant(counts)},
        {"rna": tf.constant(counts.sum(axis=1))},
        {"cluster": tf.constant(reference["in/real_labels"], tf.int32)},
    )
    library_size = int(reference["config/output_LSN"])
    expression, _ = BatchReader("cluster", np.ones(3) / 3, library_size).read(batch)
    np.testing.assert_allclose(expression, reference["in/real_cells"], rtol=1e-12)


def test_scaled_records_are_used_as_they_are():
    batch = make_batch()
    expression, codes = BatchReader("cluster", np.ones(3) / 3, None).read(batch)
    np.testing.assert_array_equal(expression, batch.features["rna"])
    np.testing.assert_array_equal(codes, batch.covariates["cluster"])


@BOTH
def test_a_step_with_a_batch_of_one_cell_is_that_of_an_empty_cell(model_type):
    # normalised by its own statistics, the one cell is 0 in every layer of a fresh
    # generator, and a fresh critic scores such a cell 0
    stage = make_stage(model_type)
    batches = make_batches(n_cells=1)
    score = float(stage.critic.network(*stage.real_cells.read(batches[0]))[0])
    metrics = stage.first_step(batches, SEED)
    expected = stage.penalty_weight * metrics["Penalty"] - score
    np.testing.assert_allclose(metrics["critic_loss_1"], expected, rtol=1e-5)
    assert float(metrics["gradient_norm/generator"]) == 0
    for norm in stage.generator.network.norms:
        # 0.1 % of the way from 1 to a variance of 0
        np.testing.assert_allclose(norm.moving_variance, 0.999, rtol=1e-6)
    weights = values(stage.generator.network) | values(stage.critic.network)
    assert all(np.all(np.isfinite(value)) for value in weights.values())


@pytest.mark.slow
def test_cscgan_with_a_single_label_is_scgan():
    stages = [make_stage(kind, trained=(12,)) for kind in ("cscGAN", "scGAN")]
    found, expected = (
        stage.train_step(make_batches(n_labels=1), SEED) for stage in stages
    )
    # not gen_loss: what the critic's last bias adds to it is rounding
    for name in ("critic_loss_1", "Penalty", "gradient_norm/critic"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(
        found["gradient_norm/generator"], expected["gradient_norm/generator"], rtol=1e-4
    )
    assert np.all(stages[0].draw(100, SEED).codes.numpy() == 0)


@pytest.mark.parametrize("normalization", ["layernorm", "none"])
def test_generators_without_batch_statistics_train(normalization):
    stage = make_stage(model={"gen_cond_type": normalization})
    before = values(stage.generator.network)
    stage.train_step(make_batches(), SEED)
    after = values(stage.generator.network)
    assert {path.split("/")[1] for path in before} == {
        "layernorm": {"layer_1", "layer_2", "norm_1", "norm_2", "output"},
        "none": {"layer_1", "layer_2", "output"},
    }[normalization]
    assert changed(after, before) == set(before)


@pytest.mark.slow
def test_compiled_steps_are_traced_once():
    stage = make_stage()
    step = tf.function(stage.train_step)
    for index in range(3):
        step(make_batches(), tf.constant((index, 1)))
    assert step.experimental_get_tracing_count() == 1


def test_equal_seeds_make_equal_steps():
    first, same, other = (make_stage() for _ in range(3))
    for stage, seed in ((first, SEED), (same, SEED), (other, SEED + 1)):
        stage.train_step(make_batches(), seed)
    assert_equal(values(same.critic.network), values(first.critic.network))
    assert_equal(values(same.generator.network), values(first.generator.network))
    assert changed(values(other.critic.network), values(first.critic.network))


@pytest.mark.slow
@BOTH
def test_xla_and_graph_make_the_same_step(model_type):
    graph, xla = (
        make_stage(model_type, training={"jit": jit}) for jit in (False, True)
    )
    found, expected = (
        tf.function(stage.train_step)(make_batches(), SEED) for stage in (xla, graph)
    )
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    found, expected = values(xla.critic.network), values(graph.critic.network)
    for path, value in expected.items():
        np.testing.assert_allclose(found[path], value, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_keeps_weights_in_float32_and_losses_near_those_of_float32():
    stages = [
        make_stage(training={"precision": precision})
        for precision in ("float32", "bfloat16")
    ]
    expected, found = (stage.first_step(make_batches(), SEED) for stage in stages)
    network = stages[1].generator.network
    assert {weight.dtype for weight in network.weights} == {"float32"}
    for name in ("critic_loss_1", "Penalty"):
        # bfloat16 keeps 8 bits, so products are off by up to 0.4 %
        np.testing.assert_allclose(found[name], expected[name], rtol=0.05)
        assert float(found[name]) != float(expected[name])


def test_train_step_reports_the_losses_of_its_last_critic_update():
    stage = make_stage()
    metrics = stage.first_step(make_batches(), SEED)
    assert set(metrics) == {
        "gen_loss",
        "critic_loss_1",
        "Penalty",
        "learning_rate",
        "gradient_norm/critic",
        "gradient_norm/generator",
    }
    fresh = make_stage()
    real, codes = fresh.real_cells.read(make_batch())
    terms, gradients, _ = fresh.critic_gradients(
        real, codes, fresh.draw(6, fold_in(SEED, 0))
    )
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    np.testing.assert_allclose(metrics["critic_loss_1"], terms.loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["Penalty"], terms.penalty, rtol=1e-5)
    np.testing.assert_allclose(metrics["gradient_norm/critic"], norm, rtol=1e-5)


def test_validation_and_diagnostics_update_nothing():
    stage = make_stage()
    before = values(stage.generator.network) | values(stage.critic.network)
    stage.validate_step(make_batch(), SEED)
    stage.diagnostics(make_batch(), SEED)
    assert_equal(values(stage.generator.network) | values(stage.critic.network), before)
    assert int(stage.critic.optimizer.iterations) == 0


def test_validation_uses_the_running_statistics():
    stage = make_stage()
    expected = stage.validate_step(make_batch(), SEED)
    assert set(expected) == {"gen_loss", "critic_loss_1", "Penalty"}
    stage.generator.network.norms[0].moving_mean.assign(np.full(7, 3.0))
    found = stage.validate_step(make_batch(), SEED)
    assert float(found["gen_loss"]) != float(expected["gen_loss"])


def test_diagnostics_have_the_tags_of_the_reference():
    stage = make_stage()
    tensors = stage.diagnostics(make_batch(), SEED)
    weights = [*stage.critic.weights, *stage.generator.weights]
    for weight in weights:
        np.testing.assert_array_equal(tensors[f"{weight.path}/values"], weight)
        assert tensors[f"{weight.path}/gradients"].shape == weight.shape
    assert len(tensors) == 2 * len(weights) + 6
    assert tensors["single_cell_real/histogram"].shape == (N_GENES,)
    for kind in ("real", "fake"):
        cell = tensors[f"single_cell_{kind}/histogram"].numpy()
        np.testing.assert_allclose(cell.sum(), 1000, rtol=1e-5)
        np.testing.assert_allclose(tensors[f"single_cell_{kind}/mean"], cell.mean())
    assert tensors["Distance_fake"].shape == tensors["Distance_real"].shape == (6,)


def test_weights_have_readable_names():
    stage = make_stage()
    assert sorted(weight.path for weight in stage.critic.weights) == [
        "critic/layer_1/bias",
        "critic/layer_1/kernel",
        "critic/layer_2/bias",
        "critic/layer_2/kernel",
        "critic/output/projection",
        "critic/output/projection_bias",
    ]
    assert sorted(weight.path for weight in stage.generator.weights) == [
        "generator/layer_1/kernel",
        "generator/layer_2/kernel",
        "generator/norm_1/offset",
        "generator/norm_1/scale",
        "generator/norm_2/offset",
        "generator/norm_2/scale",
        "generator/output/bias",
        "generator/output/kernel",
    ]
