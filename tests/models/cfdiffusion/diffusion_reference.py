"""The reference's autoencoder and denoisers, as ours with the stored weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from cellgan.layers import SizedLayer
from cellgan.models.cfdiffusion.networks import Denoiser
from cellgan.models.latent.networks import CountAutoencoder, Modality

FILE = "cfdiffusion.npz"
TOLERANCE = 2e-4
"""Of the largest value of an array: what the original's own arithmetic differs by."""
OF_NORM = {
    "scale": "weight",
    "offset": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
OF_LINEAR = {"kernel": "weight", "bias": "bias"}
RNA = "rna"


class DiffusionReference:
    """The stored arrays."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / FILE) as stored:
            self.arrays = dict(stored)
        self.config = json.loads(str(self.arrays.pop("config")))

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays under a prefix, by the rest of their key."""
        return {
            key.removeprefix(prefix): value
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    # The autoencoder

    def autoencoder(self) -> CountAutoencoder:
        sizes = self.config["ae"]
        network = CountAutoencoder(
            {
                RNA: Modality(
                    sizes["n_genes"],
                    (*sizes["hidden"], sizes["latent"]),
                    "squared_error",
                    transform="none",
                    activation="prelu",
                )
            },
            on_sphere=True,
        )
        assign(network, self.autoencoder_values("weights/ae/"))
        return network

    def autoencoder_values(self, prefix: str) -> dict[str, np.ndarray]:
        """Return stored values by the path in our network."""
        stored, ours = self.below(prefix), {}
        for key, value in stored.items():
            coder, layer, *position, name = (
                key.replace("network.", "").replace("/", ".").split(".")
            )
            is_linear = not position or value.ndim > 1
            kind = "layer" if is_linear else self._kind(stored, key)
            path = f"autoencoder/{coder}_{RNA}/{kind}_{int(layer) + 1}"
            if kind == "slope":
                ours[path] = value
            else:
                ours[f"{path}/{our_name(kind, name)}"] = value.T
        return ours

    @staticmethod
    def _kind(stored: dict[str, np.ndarray], key: str) -> str:
        """Tell a normalisation, a slope and a linear layer's bias apart."""
        layer, _, name = key.rpartition(".")
        if name.startswith("running"):
            return "norm"
        if f"{layer}.bias" not in stored:
            return "slope"
        return "norm" if f"{layer}.running_mean" in stored else "layer"

    # The denoisers

    def n_categories(self, case: str) -> dict[str, int]:
        """Return the categories of each condition, named by its position."""
        numbers = {
            "single": self.config["num_classes"],
            "multi": self.config["num_classes_multi"],
            "scdiffusion_base": [],
        }[case]
        return {f"condition_{index}": n for index, n in enumerate(numbers)}

    def denoiser(self, case: str) -> Denoiser:
        sizes = self.config["denoiser"]
        network = Denoiser(
            sizes["input_dim"], self.n_categories(case), widths=tuple(sizes["hidden"])
        )
        assign(network, self.denoiser_values(f"weights/denoiser_{case}/"))
        return network

    def denoiser_values(self, prefix: str) -> dict[str, np.ndarray]:
        """Return stored values, whole or in part, by the path in our network."""
        ours: dict[str, np.ndarray] = {}
        projections: dict[str, dict[tuple[str, int], np.ndarray]] = {}
        for key, value in self.below(prefix).items():
            layer, _, name = key.rpartition(".")
            parts = layer.split(".")
            if parts[0] in ("layers", "reverse_layers") and "emb" in parts[2]:
                kind = "label" if "label" in parts[2] else "time"
                projections.setdefault(f"{kind}_projection/{name}", {})[
                    parts[0], int(parts[1])
                ] = value
                continue
            kind = "norm" if "norm" in layer else "layer"
            ours[f"denoiser/{our_layer(parts)}/{our_name(kind, name)}"] = value.T
        for path, of_block in projections.items():
            # Ours has the projections of all blocks side by side, in order of use.
            layer, _, name = path.partition("/")
            joined = np.concatenate([of_block[key] for key in sorted(of_block)])
            ours[f"denoiser/{layer}/{our_name('layer', name)}"] = joined.T
        return ours

    def codes(self, case: str, y: np.ndarray) -> dict[str, tf.Tensor]:
        """Return stored labels as codes of our covariates."""
        columns = y.reshape(len(y), -1).T
        return {
            name: tf.constant(column, tf.int32)
            for name, column in zip(self.n_categories(case), columns, strict=True)
        }

    def null(self, case: str, n_cells: int) -> dict[str, tf.Tensor]:
        return {
            name: tf.fill((n_cells,), n) for name, n in self.n_categories(case).items()
        }


def assign(network: SizedLayer, stored: dict[str, np.ndarray]) -> None:
    """Give a network stored values; every weight gets one, and none is left."""
    for weight in network.weights:
        weight.assign(stored.pop(weight.path))
    assert not stored


def our_name(kind: str, name: str) -> str:
    names = OF_NORM if kind == "norm" else OF_LINEAR
    return next(ours for ours, theirs in names.items() if theirs == name)


def our_layer(parts: list[str]) -> str:
    if parts[0] in ("time_embedding", "label_embedding"):
        return f"{parts[0].partition('_')[0]}_{int(parts[2]) // 2 + 1}"
    if parts[0] in ("layers", "reverse_layers"):
        way = "down" if parts[0] == "layers" else "up"
        suffix = "_norm" if parts[2] == "norm" else ""
        return f"{way}_{int(parts[1]) + 1}{suffix}"
    return {"out1": "head", "norm_out": "head_norm", "out2": "output"}[parts[0]]


def assert_close(
    found: tf.Tensor, expected: np.ndarray, tolerance: float = TOLERANCE
) -> None:
    """Compare with a tolerance that is relative to the largest expected value."""
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)


def strided_steps(n_steps: int, n_kept: int) -> np.ndarray:
    """Return every so many-th step, as the original respaces for DDIM."""
    strides = range(1, n_steps)
    stride = next(i for i in strides if len(range(0, n_steps, i)) == n_kept)
    return np.arange(0, n_steps, stride)
