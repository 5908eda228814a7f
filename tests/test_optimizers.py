from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from cellgan.config.training import (
    LearningRateParameters,
    OptimizerParameters,
    TrainingParameters,
)
from cellgan.optimizers import (
    Adam,
    AdamL2,
    AdamW,
    GeometricDecay,
    LinearDecay,
    WeightAverage,
    adam,
    adam_l2,
    adamw,
    make_optimizer,
    update_weights,
)

MOMENTS = (0.5, 0.9)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_decay_reaches_both_ends_and_their_geometric_mean_halfway():
    schedule = GeometricDecay(1e-3, 1e-5, max_steps=100)
    rates = schedule(np.array([0, 50, 100]))
    np.testing.assert_allclose(rates, [1e-3, 1e-4, 1e-5], rtol=1e-5)


def test_decay_gives_all_updates_of_a_step_the_same_rate():
    # one update in step 0, then three in each of the steps 1 and 2
    schedule = GeometricDecay(1.0, 0.5, max_steps=1, updates_per_step=3)
    rates = [float(schedule(updates)) for updates in range(7)]
    assert rates == [1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_decay_between_equal_rates_is_that_rate_exactly():
    schedule = GeometricDecay(0.3, 0.3, max_steps=7, updates_per_step=2)
    assert set(np.asarray(schedule(np.arange(50)))) == {np.float32(0.3)}


def test_decay_is_rebuilt_from_its_configuration():
    schedule = GeometricDecay(1e-3, 1e-5, max_steps=7, updates_per_step=3)
    rebuilt = GeometricDecay.from_config(schedule.get_config())
    assert float(rebuilt(5)) == float(schedule(5))


@pytest.mark.parametrize("amsgrad", [True, False])
def test_adam_equals_the_one_of_keras(amsgrad):
    ours = adam(0.1, MOMENTS, amsgrad=amsgrad)
    theirs = keras.optimizers.Adam(0.1, *MOMENTS, epsilon=1e-8, amsgrad=amsgrad)
    weights = [keras.Variable(draw(3, 4)) for _ in range(2)]
    for optimizer, weight in zip((ours, theirs), weights, strict=True):
        for step in range(5):
            optimizer.apply([tf.constant(draw(3, 4, seed=step))], [weight])
    np.testing.assert_allclose(*map(np.asarray, weights), rtol=1e-5, atol=1e-6)
    for mine, other in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_amsgrad_steps_stay_small_after_a_large_gradient():
    steps = {}
    for amsgrad in (True, False):
        optimizer, weight = adam(0.1, MOMENTS, amsgrad=amsgrad), keras.Variable([0.0])
        for gradient in [100.0] + [0.1] * 30:
            before = float(weight[0])
            optimizer.apply([tf.constant([gradient])], [weight])
        steps[amsgrad] = abs(float(weight[0]) - before)
    # v-hat stays at 0.1 * 100**2; without it, v has forgotten all but 4 % of that
    np.testing.assert_allclose(steps[True], 0.1 * 0.1 / np.sqrt(1000), rtol=0.1)
    assert steps[False] > 3 * steps[True]


def test_adam_treats_sparse_gradients_as_dense_ones():
    rows = tf.IndexedSlices(tf.ones((2, 2)), tf.constant([1, 1]), tf.constant([3, 2]))
    dense = tf.constant([[0.0, 0.0], [2.0, 2.0], [0.0, 0.0]])
    moved = []
    for gradient in (rows, dense):
        optimizer, weight = adam(0.1, MOMENTS, amsgrad=True), keras.Variable(draw(3, 2))
        for _ in range(2):
            optimizer.apply([gradient], [weight])
        moved.append(weight.numpy())
    np.testing.assert_allclose(*moved, rtol=1e-6)


@pytest.mark.parametrize("size", [1.0, 1e-8])
def test_adamw_makes_the_first_two_updates_of_pytorch(size):
    # with gradients as small as epsilon, it matters which root epsilon is added to
    rate, decay, (beta1, beta2), epsilon = 0.1, 0.25, (0.9, 0.999), 1e-8
    weight = keras.Variable(draw(3, 4))
    expected = weight.numpy().astype(np.float64)
    optimizer = adamw(rate, (beta1, beta2), weight_decay=decay)
    first, second = np.zeros((2, 3, 4))
    for step in (1, 2):
        gradient = draw(3, 4, seed=step) * np.float32(size)
        optimizer.apply([tf.constant(gradient)], [weight])
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient.astype(np.float64) ** 2
        expected *= 1 - rate * decay
        root = np.sqrt(second / (1 - beta2**step))
        expected -= rate * (first / (1 - beta1**step)) / (root + epsilon)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-8, 0.01])
def test_adam_with_an_l2_penalty_makes_the_first_two_updates_of_pytorch(epsilon):
    rate, decay, (beta1, beta2) = 0.1, 0.25, (0.9, 0.999)
    weight = keras.Variable(draw(3, 4))
    expected = weight.numpy().astype(np.float64)
    optimizer = adam_l2(rate, (beta1, beta2), weight_decay=decay, epsilon=epsilon)
    first, second = np.zeros((2, 3, 4))
    for step in (1, 2):
        gradient = draw(3, 4, seed=step)
        optimizer.apply([tf.constant(gradient)], [weight])
        whole = gradient + decay * expected
        first = beta1 * first + (1 - beta1) * whole
        second = beta2 * second + (1 - beta2) * whole**2
        root = np.sqrt(second / (1 - beta2**step))
        expected -= rate * (first / (1 - beta1**step)) / (root + epsilon)
        np.testing.assert_allclose(weight.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_epsilon_is_that_of_the_parameters():
    for algorithm in ("Adam", "AMSGrad", "AdamW", "AdamL2"):
        settings = OptimizerParameters(algorithm=algorithm, epsilon=0.01)
        optimizer = make_optimizer(TrainingParameters(optimizer=settings))
        assert optimizer.epsilon == 0.01


def test_decay_of_adamw_is_independent_of_the_gradient():
    weight = keras.Variable([2.0, -4.0])
    adamw(0.1, MOMENTS, weight_decay=0.5).apply([tf.zeros(2)], [weight])
    np.testing.assert_allclose(weight.numpy(), [1.9, -3.8], rtol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "kind", "amsgrad"),
    [
        ("AdamW", AdamW, False),
        ("AdamL2", AdamL2, False),
        ("AMSGrad", Adam, True),
        ("Adam", Adam, False),
    ],
)
def test_parameters_choose_the_optimizer(algorithm, kind, amsgrad):
    settings = OptimizerParameters(algorithm=algorithm, beta1=0.3, beta2=0.7)
    optimizer = make_optimizer(TrainingParameters(optimizer=settings))
    assert type(optimizer) is kind
    assert optimizer.amsgrad is amsgrad
    assert (optimizer.beta_1, optimizer.beta_2) == (0.3, 0.7)


def test_parameters_give_adamw_its_decay():
    settings = OptimizerParameters(algorithm="AdamW", weight_decay=0.5)
    optimizer = make_optimizer(TrainingParameters(optimizer=settings))
    assert optimizer.weight_decay == 0.5


@pytest.mark.parametrize(
    ("clip_norm", "moved", "norms"),
    [(None, (3, 4), []), (1.0, (0.6, 0.8), [5]), (9.0, (3, 4), [5])],
)
def test_all_gradients_are_clipped_together_by_their_norm(clip_norm, moved, norms):
    weights = [keras.Variable([0.0]), keras.Variable([0.0])]
    gradients = [tf.constant([3.0]), tf.constant([4.0])]
    optimizer = keras.optimizers.SGD(1.0)
    update = update_weights(optimizer, weights, gradients, clip_norm=clip_norm)
    assert [of for name, of in update.items() if name != "learning_rate"] == norms
    found = [-float(weight[0]) for weight in weights]
    assert found == pytest.approx(moved)


TWO_REPLICAS = """
    import json

    import keras
    import tensorflow as tf

    from cellgan.optimizers import update_weights

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = []
    for clip_norm in (None, 2.5):
        with strategy.scope():
            weight = keras.Variable([0.0, 0.0])
            optimizer = keras.optimizers.SGD(1.0)
            optimizer.build([weight])

        @tf.function
        def update():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradient = tf.constant([[6.0, 0.0], [0.0, 8.0]])[replica]
            update = update_weights(
                optimizer, [weight], [gradient], clip_norm=clip_norm
            )
            return update.get("gradient_norm", tf.constant(0.0))

        norms = strategy.experimental_local_results(strategy.run(update))
        values = strategy.experimental_local_results(weight.value)
        found.append(
            [[float(n) for n in norms], [(-v.numpy()).tolist() for v in values]]
        )
    print(json.dumps(found))
"""


@pytest.mark.slow
def test_replicas_move_by_the_clipped_mean_of_their_gradients():
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_REPLICAS)],
        capture_output=True,
        text=True,
        check=True,
    )
    whole, clipped = json.loads(run.stdout.splitlines()[-1])
    # the mean of (6, 0) and (0, 8) is (3, 4), of norm 5
    assert whole[1] == [[3, 4], [3, 4]]
    assert clipped[0] == [5, 5]
    np.testing.assert_allclose(clipped[1], [[1.5, 2], [1.5, 2]], rtol=1e-6)


def test_linear_decay_falls_to_zero_one_update_late():
    rates = [float(LinearDecay(1.0, 10)(updates)) for updates in (0, 1, 2, 6, 11, 30)]
    np.testing.assert_allclose(rates, [1, 1, 0.9, 0.5, 0, 0], atol=1e-6)


def test_linear_decay_is_made_where_parameters_say_so():
    rate = LearningRateParameters(decay="linear", alpha_0=0.5)
    training = TrainingParameters(learning_rate=rate, max_steps=4)
    optimizer = make_optimizer(training)
    optimizer.build([])
    assert float(optimizer.learning_rate) == 0.5
    optimizer.iterations.assign(3)
    assert float(optimizer.learning_rate) == 0.25


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize(
    ("has_warm_up", "rates"),
    [(False, [0.5, 0.5, 0.5]), (True, [1 / 10, 2 / 11, 3 / 12])],
)
def test_average_is_the_weighted_sum_of_weights_so_far(has_warm_up, rates, jit):
    weight = keras.Variable([0.0, 8.0])
    average = WeightAverage([weight], 0.5, has_warm_up=has_warm_up, jit=jit)
    expected = np.array([0.0, 8.0])
    for step, rate in enumerate(rates):
        weight.assign([step + 1.0, 0.0])
        average.update(tf.constant(step))
        expected = rate * expected + (1 - rate) * np.array([step + 1.0, 0.0])
    np.testing.assert_allclose(average.variables[0], expected, rtol=1e-6)


def test_average_follows_weights_under_a_strategy():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        weight = keras.Variable([4.0])
        average = WeightAverage([weight], 0.5, has_warm_up=False, jit=True)
        weight.assign([8.0])
    strategy.run(tf.function(average.update), (tf.constant(0),))
    assert float(average.variables[0][0]) == 6.0


def test_average_is_a_state_of_its_own():
    weight = keras.Variable([1.0])
    average = WeightAverage([weight], 0.9, has_warm_up=False, jit=True)
    weight.assign([5.0])
    assert float(average.variables[0][0]) == 1.0
