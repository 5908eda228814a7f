"""From latent to counts as the reference: what follows its flow's end points."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.models.cfgen.velocity_reference import VelocityReference
from tests.models.latent.count_reference import CountReference
from tests.stored import stored_name

FILE = "cfgen.npz"
ADAPTIVE = stored_name(FILE, r"out/ode/(dopri5_[^_]+)")


def test_end_of_the_flow_is_decoded_as_by_the_reference(reference_dir: Path) -> None:
    assert (reference_dir / FILE).exists()
    flow = VelocityReference(reference_dir)
    autoencoder = CountReference(reference_dir, "ae_rna").autoencoder()
    library_size = np.exp(flow["in/dn_ode/log_size_factor_rna"]).ravel()

    decoded = autoencoder.decode(
        tf.constant(flow[f"out/ode/{ADAPTIVE}"]), {"rna": tf.constant(library_size)}
    )

    expected = flow["out/ode/mu_decoded_from_dopri5_endpoint"]
    np.testing.assert_allclose(decoded["rna"].mean, expected, rtol=1e-5, atol=1e-6)
