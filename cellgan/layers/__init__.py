"""The layers that networks are built of. They take plain numbers.

With the dtype policy ``"mixed_bfloat16"`` a `Linear` multiplies in bfloat16; weights
and everything else stay float32.
"""

from __future__ import annotations

from cellgan.layers.conditioning import (
    BatchNormalization,
    BatchStatistics,
    LayerNormalization,
    ReadOut,
    ReadOutKind,
    normalized,
    one_hot,
    unbiased,
)
from cellgan.layers.linear import (
    Linear,
    glorot_uniform,
    he_normal,
    scale_to_library_size,
)
from cellgan.layers.sized import SizedLayer

__all__ = [
    "BatchNormalization",
    "BatchStatistics",
    "LayerNormalization",
    "Linear",
    "ReadOut",
    "ReadOutKind",
    "SizedLayer",
    "glorot_uniform",
    "he_normal",
    "normalized",
    "one_hot",
    "scale_to_library_size",
    "unbiased",
]
