"""The reference's velocity networks, as ours with the stored weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

from cellgan.models.cfgen.networks import VelocityNet

NORMALIZATIONS = {"none": "none", "layer": "layernorm", "batch": "batchnorm"}
OF_NORM = {
    "weight": "scale",
    "bias": "offset",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


class VelocityReference:
    """The stored arrays of the flow, and networks made of them."""

    def __init__(self, folder: Path) -> None:
        with np.load(folder / "cfgen.npz") as stored:
            self.arrays = dict(stored)
        self.config = json.loads(str(self.arrays.pop("config")))
        self.cases = {
            case: sizes
            for case, sizes in self.config["cases"].items()
            if case.startswith("dn_")
        }

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def below(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays under a prefix, by the rest of their key."""
        return {
            key.removeprefix(prefix): value
            for key, value in self.arrays.items()
            if key.startswith(prefix)
        }

    def modalities(self, case: str) -> dict[str, str]:
        """Return the key of the log size factors of each embedded modality."""
        sizes = self.cases[case]
        if not sizes["embed_size_factor"]:
            return {}
        if sizes["is_binarized"]:
            return {"rna": f"in/{case}/log_size_factor"}
        return {m: f"in/{case}/log_size_factor_{m}" for m in sizes["modality_list"]}

    def network(self, case: str) -> VelocityNet:
        sizes = self.cases[case]
        smallest, largest = (sizes[f"log_size_factor_{end}"] for end in ("min", "max"))
        if sizes["is_binarized"]:
            smallest, largest = {"rna": smallest}, {"rna": largest}
        network = VelocityNet(
            sizes["in_dim"],
            {name: len(self[f"weights/embeddings/{name}"]) for name in self.covariates},
            {m: (smallest[m], largest[m]) for m in self.modalities(case)},
            width=sizes["hidden_dim"],
            n_embedding=sizes["embedding_dim"],
            n_blocks=sizes["n_blocks"],
            normalization=NORMALIZATIONS[sizes["normalization"]],
        )
        stored = self.in_our_names(
            self.below(f"weights/{case}/")
            | {
                f"embeddings/{name}": self[f"weights/embeddings/{name}"]
                for name in self.covariates
            }
        )
        for weight in network.weights:
            weight.assign(stored.pop(weight.path.removeprefix("velocity_net/")))
        assert not stored
        return network

    @property
    def covariates(self) -> tuple[str, ...]:
        return tuple(self.cases["dn_main"]["covariates"])

    def codes(self, *kept: str) -> dict[str, tf.Tensor]:
        """Return the common codes; those of covariates that are not kept are null."""
        codes = {}
        for name in self.covariates:
            of_cells = self[f"in/common/cat_{name}"]
            null = np.full_like(of_cells, len(self[f"weights/embeddings/{name}"]))
            codes[name] = tf.constant(of_cells if name in kept else null, tf.int32)
        return codes

    def log_library_sizes(self, case: str) -> dict[str, tf.Tensor]:
        return {
            modality: tf.constant(self[key][:, 0])
            for modality, key in self.modalities(case).items()
        }

    def condition(self, network: VelocityNet, case: str, *kept: str) -> tf.Tensor:
        return network.condition(self.codes(*kept), self.log_library_sizes(case))

    def in_our_names(self, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return arrays that are shaped like weights, by the path in our network."""
        ours, projections = {}, {}
        for key, value in stored.items():
            layer, _, name = key.rpartition(".")
            if key.startswith("embeddings/"):
                index = self.covariates.index(key.removeprefix("embeddings/"))
                ours[f"covariate_{index}/table"] = value
            elif "cond_proj" in layer:
                projections[name, int(layer.split(".")[1])] = value
            elif _is_norm(layer, stored):
                ours[f"{_norm(layer, stored)}/{OF_NORM[name]}"] = value
            else:
                ours[f"{_linear(layer)}/{_of_linear(name)}"] = _transposed(value)
        # Ours has the projections of all blocks side by side.
        for name in ("weight", "bias"):
            parts = [v for (n, _), v in sorted(projections.items()) if n == name]
            joined = np.concatenate(parts)
            ours[f"projection/{_of_linear(name)}"] = _transposed(joined)
        return ours


def _transposed(value: np.ndarray) -> np.ndarray:
    return value.T


def _of_linear(name: str) -> str:
    return {"weight": "kernel", "bias": "bias"}[name]


def _is_norm(layer: str, stored: dict[str, np.ndarray]) -> bool:
    return f"{layer}.weight" in stored and stored[f"{layer}.weight"].ndim == 1


def _norm(layer: str, stored: dict[str, np.ndarray]) -> str:
    parts = layer.split(".")
    if parts[0] == "net_out":
        blocks = {key.split(".")[1] for key in stored if key.startswith("blocks.")}
        return f"norm_{2 * len(blocks) + 1}"
    return f"norm_{2 * int(parts[1]) + int(parts[2].removeprefix('net'))}"


def _linear(layer: str) -> str:
    parts = layer.split(".")
    if parts[0] == "net_in":
        return "input"
    if parts[0] == "net_out":
        return "output"
    if parts[0] == "blocks":
        position = {"net1": "first", "net2": "second"}[parts[2]]
        return f"block_{int(parts[1]) + 1}_{position}"
    kind = {"time_embedder": "time", "size_factor_embedder": "library_size"}[parts[0]]
    return f"{kind}_{int(parts[1]) // 2 + 1}"
