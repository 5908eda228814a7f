from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import keras
    import tensorflow as tf

    from cellgan.models.gan.networks import Critic
    from cellgan.models.gan.training import Player

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        player = Player(Critic((2, 2)), keras.optimizers.SGD(1.0))
        before = [weight.numpy() for weight in player.weights]

    @tf.function
    def update():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        value = 1.0 + 2.0 * tf.cast(replica, tf.float32)
        player.update([tf.fill(weight.shape, value) for weight in player.weights])

    strategy.run(update)
    for weight, old in zip(player.weights, before, strict=True):
        for value in strategy.experimental_local_results(weight.value):
            print((old - value.numpy()).round(5).ravel().tolist())
"""


@pytest.mark.slow
def test_player_moves_by_the_mean_gradient_of_its_replicas():
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        capture_output=True,
        text=True,
        check=True,
    )
    # gradients are 1 and 3 on the two replicas
    moves = [
        number
        for line in run.stdout.split("\n")
        for number in line.strip("[]").split(", ")
    ]
    n_weights = 2 * 2 + 2 + 2 + 1
    assert [float(move) for move in moves if move] == [2.0] * (2 * n_weights)
