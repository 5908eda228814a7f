"""Two devices that share a batch update the cycle autoencoder as one would."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import sys
    from pathlib import Path

    import numpy as np
    import tensorflow as tf

    from tests.models.cycle.cycle_reference import CycleReference

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    reference = CycleReference(Path(sys.argv[1]))
    with strategy.scope():
        stage = reference.stage()

    @tf.function
    def update(*shared):
        def of_replica():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            own = [tf.split(of, 2)[0] for of in shared]
            other = [tf.split(of, 2)[1] for of in shared]
            mine = [tf.where(replica == 0, *pair) for pair in zip(own, other)]
            return stage.update(*mine)["gradient_norm"]

        return strategy.experimental_local_results(strategy.run(of_replica))

    for step, cells, prefix in (
        ("step1", "in/x_step1", "step1_"), ("step2", "in/x", "")
    ):
        batch = (
            reference[cells],
            reference.codes(f"{prefix}source_ids"),
            reference.codes(f"{prefix}target_ids"),
        )
        # each cell twice: the same means, and two shares of any number of cells
        norms = update(*(tf.repeat(of, 2, axis=0) for of in batch))
        stored = reference[f"out/{step}/grad_global_norm"]
        np.testing.assert_allclose([norm.numpy() for norm in norms], stored, rtol=2e-5)
        for name, expected in reference.heads(f"out/{step}/weights").items():
            weight = getattr(stage.network, name)
            for value in strategy.experimental_local_results(weight.value):
                np.testing.assert_allclose(value.numpy(), expected, atol=1e-5, rtol=0)
        print(step, "is that of one device")
"""


@pytest.mark.slow
def test_two_devices_make_the_updates_of_the_original(reference_dir):
    path = reference_dir / "cycle_autoencoder.npz"
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), path],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split("\n")[:2] == [
        "step1 is that of one device",
        "step2 is that of one device",
    ]
