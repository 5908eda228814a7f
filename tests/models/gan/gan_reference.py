"""Our values for every entry of the reference outputs of scGAN and cscGAN."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cellgan.layers import scale_to_library_size
from cellgan.models.gan import losses
from cellgan.models.gan.networks import Critic, Generator
from cellgan.models.gan.training import BatchReader, GanDraws, GanStage, Player
from cellgan.optimizers import GeometricDecay, adam

READ_OUTS = {"cond": "per_category", "cond_proj": "projection", "uncond": "plain"}
OUR_NAMES = {
    "offset": "offset",
    "scale": "scale",
    "moving_mean": "moving_mean",
    "moving_var": "moving_variance",
    "proj_weights": "projection",
    "proj_bias": "projection_bias",
}


class Reference:
    """The stored arrays, cast to one type."""

    def __init__(self, folder: Path, dtype: str) -> None:
        with np.load(folder / "scgan.npz") as stored:
            self.arrays = {
                key: _cast(stored[key], dtype)
                for key in stored.files
                if not key.startswith("out/split")
            }
        self.dtype = dtype

    def __getitem__(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def expected(self, prefix: str) -> dict[str, np.ndarray]:
        return {k: v for k, v in self.arrays.items() if k.startswith(prefix)}

    @property
    def draws(self) -> GanDraws:
        return GanDraws(
            tf.constant(self["in/z"]),
            tf.constant(self["in/fake_labels"], tf.int32),
            tf.constant(self["in/alpha"]),
        )

    @property
    def real(self) -> tuple[tf.Tensor, tf.Tensor]:
        return (
            tf.constant(self["in/real_cells"]),
            tf.constant(self["in/real_labels"], tf.int32),
        )

    def generator(self, norm: str) -> Generator:
        """Build it with norm "cond_bn", "cond_ln", "cond_none" or "bn"."""
        kinds = {"bn": "batchnorm", "ln": "layernorm", "none": "none"}
        widths = (
            int(self["config/latent_dim"]),
            *self["config/gen_layers"].tolist(),
            int(self["config/genes_no"]),
        )
        generator = Generator(
            widths,
            int(self["config/clusters_no"]) if norm.startswith("cond_") else None,
            normalization=kinds[norm.removeprefix("cond_")],
            library_size=float(self["config/output_LSN"]),
            dtype=self.dtype,
        )
        self._load(generator, f"{norm}_")
        return generator

    def critic(self, version: str) -> Critic:
        widths = (int(self["config/genes_no"]), *self["config/critic_layers"].tolist())
        critic = Critic(
            widths,
            None if version == "uncond" else int(self["config/clusters_no"]),
            read_out=READ_OUTS[version],
            dtype=self.dtype,
        )
        self._load(critic, "bn_")
        return critic

    def stage(self, version: str) -> GanStage:
        """Build version "cond", "cond_proj" or "uncond" with the stored weights."""
        generator = self.generator("bn" if version == "uncond" else "cond_bn")
        rate = float(self["in/lr/alpha_0"])
        return GanStage(
            Player(generator, self.optimizer(rate)),
            Player(self.critic(version), self.optimizer(rate)),
            BatchReader("cluster", self["in/clusters_ratios"][0], None),
            penalty_weight=float(self["config/lambd"]),
            critic_iters=5,
            jit=False,
        )

    def optimizer(self, rate: float, *, amsgrad: bool = True) -> keras.Optimizer:
        moments = float(self["in/optimiser/beta1"]), float(self["in/optimiser/beta2"])
        return adam(rate, moments, amsgrad=amsgrad)

    def _load(self, network: keras.layers.Layer, norm: str) -> None:
        stored = {
            self.our_path(key.removeprefix("weights/"), norm): value
            for key, value in self.expected("weights/").items()
        }
        for weight in network.weights:
            weight.assign(stored[weight.path])

    @staticmethod
    def our_path(key: str, norm: str) -> str:
        """Return the path of our variable for a stored key.

        The stored file has weights of all normalisations side by side: those of others
        than `norm` get a path that no variable has.
        """
        network, layer, name = key.replace("gen/", "generator/").split("/")
        if name in ("kernel", "bias"):
            return f"{network}/{layer}/{name}"
        if layer == "proj":
            return f"{network}/output/{OUR_NAMES[name]}"
        shared = name.removeprefix("bn_")
        if shared.startswith("moving_"):
            return f"{network}/{layer.replace('layer', 'norm')}/{OUR_NAMES[shared]}"
        if name.startswith(norm):
            own = OUR_NAMES[name.removeprefix(norm)]
            return f"{network}/{layer.replace('layer', 'norm')}/{own}"
        return f"other/{key}"

    def trained(self, version: str) -> dict[str, str]:
        """Return the path of our variable -> stored key, for a version's weights."""
        norm = "bn_" if version == "uncond" else "cond_bn_"
        keys = [key.removeprefix("weights/") for key in self.expected("weights/")]
        return {self.our_path(key, norm): key for key in keys}


def version_outputs(reference: Reference, version: str) -> dict[str, np.ndarray]:
    """Losses, gradients and one update of "cond", "cond_proj" or "uncond"."""
    stage = reference.stage(version)
    inputs, _ = stage.critic_inputs(*reference.real, reference.draws, training=True)
    critic = stage.critic.network
    terms, critic_gradients, _ = stage.critic_gradients(
        *reference.real, reference.draws
    )
    loss, generator_gradients = stage.generator_gradients(reference.draws)
    score_gradient = critic.score_gradient(inputs.between, inputs.real_codes)
    values = {
        "score_real": terms.real_scores[:, None],
        "score_fake": terms.fake_scores[:, None],
        "score_interp": critic(inputs.between, inputs.real_codes)[:, None],
        "interpolates": inputs.between,
        "interp_grad": score_gradient,
        "slopes": losses.slopes(score_gradient),
        "gradient_penalty": terms.penalty,
        "wasserstein": losses.wasserstein_distance(
            terms.real_scores, terms.fake_scores
        ),
        "critic_loss": terms.loss,
        "gen_loss": loss,
    }
    keys = reference.trained(version)
    for player, kind, gradients in (
        (stage.critic, "grad_critic", critic_gradients),
        (stage.generator, "grad_gen", generator_gradients),
    ):
        player.update(gradients)
        for weight, gradient in zip(player.weights, gradients, strict=True):
            values[f"{kind}/{keys[weight.path]}"] = gradient
            values[f"after_one_step/{keys[weight.path]}"] = weight.numpy()
    if version != "cond":
        # Its gradient is zero by symmetry, so rounding decides where it would go.
        del values["after_one_step/critic/output/bias"]
    return _named(f"out/{version}", values)


def generator_outputs(reference: Reference, norm: str) -> dict[str, np.ndarray]:
    """Cells and running statistics of a batch-normalised generator."""
    generator = reference.generator(norm)
    noise, codes, _ = reference.draws
    _, real_codes = reference.real
    fake = generator(noise, codes, training=True)
    partner = generator(noise, real_codes, training=True)
    in_use = generator(noise, codes, training=False)
    values = {
        "train/cells": fake.cells,
        "train/pre_lsn": fake.unscaled,
        "infer/cells": in_use.cells,
        "infer/pre_lsn": in_use.unscaled,
    }
    for index, used in enumerate(fake.statistics, start=1):
        values[f"train/layer_{index}/batch_mean"] = used.mean
        values[f"train/layer_{index}/batch_var"] = used.variance

    def store_running(suffix: str) -> None:
        for index, layer in enumerate(generator.norms, start=1):
            name = f"train/layer_{index}/moving"
            values[f"{name}_mean_{suffix}"] = layer.moving_mean.numpy()
            values[f"{name}_var_{suffix}"] = layer.moving_variance.numpy()

    generator.update_running_statistics(fake.statistics)
    store_running("after_1")
    generator.update_running_statistics(partner.statistics)
    store_running("after_2")
    if norm == "cond_bn":
        values["train/cells_with_real_labels"] = partner.cells
        generator = reference.generator(norm)
        stage = reference.stage("cond")
        _, _, statistics = stage.critic_gradients(*reference.real, reference.draws)
        generator.update_running_statistics(statistics)
        store_running("real_tower_only")
    return _named(f"out/gen/{'uncond' if norm == 'bn' else norm}", values)


def other_generator_outputs(reference: Reference, norm: str) -> dict[str, np.ndarray]:
    """Cells of a generator without batch normalisation."""
    noise, codes, _ = reference.draws
    generated = reference.generator(norm)(noise, codes, training=True)
    return _named(f"out/gen/{norm}", {"cells": generated.cells})


def optimizer_outputs(reference: Reference, algorithm: str) -> dict[str, np.ndarray]:
    """Weights and moments after each update of "amsgrad" or "adam"."""
    weight = keras.Variable(reference["in/optimiser/param"], dtype=reference.dtype)
    optimizer = reference.optimizer(0.0, amsgrad=algorithm == "amsgrad")
    optimizer.build([weight])
    trace = []
    for gradient, rate in zip(
        reference["in/optimiser/grads"], reference["in/optimiser/lr"], strict=True
    ):
        optimizer.learning_rate = float(rate)
        optimizer.apply([tf.constant(gradient)], [weight])
        state = [variable.numpy() for variable in optimizer.variables[2:]]
        trace.append([weight.numpy(), *state])
    arrays = [np.stack(values) for values in zip(*trace, strict=True)]
    names = ["param", "m", "v", "vhat"] if algorithm == "amsgrad" else ["param"]
    return {
        f"out/optimiser/{algorithm}/{name}": array
        for name, array in zip(names, arrays, strict=False)
    }


def scalar_outputs(reference: Reference) -> dict[str, np.ndarray]:
    """Learning rates and scaling to a library size."""
    schedule = GeometricDecay(
        *(float(reference[f"in/lr/alpha_{end}"]) for end in ("0", "final")),
        max_steps=int(reference["in/lr/max_steps"]),
    )
    scaled = scale_to_library_size(
        tf.constant(reference["in/lsn/x"]), float(reference["config/output_LSN"])
    )
    return {
        "out/lr/values": schedule(reference["in/lr/steps"]).numpy(),
        "out/lsn/y": scaled.numpy(),
    }


def all_outputs(reference: Reference) -> dict[str, np.ndarray]:
    """Our value for every stored output."""
    outputs = scalar_outputs(reference)
    for version in READ_OUTS:
        outputs |= version_outputs(reference, version)
    for norm in ("cond_bn", "bn"):
        outputs |= generator_outputs(reference, norm)
    for norm in ("cond_ln", "cond_none"):
        outputs |= other_generator_outputs(reference, norm)
    for algorithm in ("amsgrad", "adam"):
        outputs |= optimizer_outputs(reference, algorithm)
    return outputs


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
    return array.astype(dtype) if array.dtype.kind == "f" else array


def _named(prefix: str, values: dict[str, object]) -> dict[str, np.ndarray]:
    return {f"{prefix}/{key}": np.asarray(value) for key, value in values.items()}
