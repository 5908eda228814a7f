"""CFGen of other sizes: autoencoders, velocity networks, flow and its distances."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cellgan.data.transforms import encoder_input
from cellgan.evaluation.comparison.space import log_expression
from cellgan.evaluation.metrics import published
from cellgan.layers.time_embedding import sinusoidal_features
from cellgan.sampling import pair_noise, stratified_times
from tests.evaluation.metrics.test_distribution import value
from tests.evaluation.metrics.test_published import OF_PAPER
from tests.models.cfgen import test_networks as velocity
from tests.models.cfgen.velocity_reference import VelocityReference
from tests.models.latent.count_reference import (
    TRANSFORMS,
    CountReference,
    outputs_in_use,
    outputs_of_a_step,
)
from tests.other_sizes.arrays import (
    NORM,
    Arrays,
    Shapes,
    drawn,
    in_their_names,
    linear,
    norm,
    normal,
    prefixed,
    save,
)

N_CELLS, N_LATENT, N_EMBEDDING, WIDTH, N_BLOCKS = 17, 7, 10, 18, 2
N_CATEGORIES = {"cell_type": 5, "batch": 1}
SIGMAS = [0.001, 0.2]
FILE = "cfgen.npz"


def autoencoder(
    n_cat: int | None = None,
    joint: list[int] | None = None,
    transform: str = "log_gexp",
    **modalities: tuple[int, list[int]],
) -> dict[str, Any]:
    return {
        "in_dim": {m: n for m, (n, _) in modalities.items()},
        "encoder_kwargs": {m: {"dims": dims} for m, (_, dims) in modalities.items()},
        "is_binarized": joint is not None,
        "encoder_multimodal_joint_layers": joint and {"dims": joint},
        "n_cat": n_cat,
        "covariate_specific_theta": n_cat is not None,
        "normalization_type": transform,
    }


def velocity_net(
    *modalities: str,
    in_dim: int = N_LATENT,
    normalization: str = "none",
    sized: bool = True,
    binarized: bool = False,
) -> dict[str, Any]:
    extremes = {"min": 2.5, "max": 8.0}
    return {
        "in_dim": in_dim,
        "hidden_dim": WIDTH,
        "n_blocks": N_BLOCKS,
        "embedding_dim": N_EMBEDDING,
        "normalization": normalization,
        "embed_size_factor": sized,
        "is_binarized": binarized,
        "modality_list": list(modalities),
        "covariates": list(N_CATEGORIES),
        **{
            f"log_size_factor_{end}": at if binarized else dict.fromkeys(modalities, at)
            for end, at in extremes.items()
        },
    }


AUTOENCODERS = {
    "ae_rna": autoencoder(rna=(33, [14, N_LATENT])),
    "ae_rna_theta_per_category": autoencoder(4, rna=(29, [13, 9, 5])),
    "ae_multi_separate_poisson": autoencoder(
        rna=(22, [11, 10, 9, 4]), atac=(27, [9, 3]), transform="proportions"
    ),
    "ae_multi_joint_bernoulli": autoencoder(
        rna=(22, [10, 4]), atac=(19, [12, 8, 5]), joint=[9]
    ),
}
VELOCITIES = {
    "dn_main": velocity_net("rna"),
    "dn_ode": velocity_net("rna"),
    "dn_layernorm_nosf": velocity_net("rna", normalization="layer", sized=False),
    "dn_batchnorm": velocity_net("rna", normalization="batch"),
    "dn_unguided": velocity_net("rna"),
    "dn_two_modalities": velocity_net("rna", "atac", in_dim=9),
    "dn_binarized": velocity_net("rna", "atac", binarized=True),
}
CONFIG = {
    "cases": {
        **AUTOENCODERS,
        **VELOCITIES,
        "fm": {"sigmas": SIGMAS},
        "guidance": {
            "weights_two": {"cell_type": 1.4, "batch": 0.6},
            "weights_one": {"cell_type": 0.7},
            "t": 0.6,
        },
        "ode": {
            "guidance": {"cell_type": 1.3, "batch": 0.8},
            "rtol": 1e-6,
            "target_batch": N_CATEGORIES["batch"] - 1,
        },
    }
}


def mlp(name: str, dims: list[int]) -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    for index, (n_in, n_out) in enumerate(pairwise(dims[:-1])):
        shapes |= linear(f"{name}.net.{index}.0", n_in, n_out)
        shapes |= norm(f"{name}.net.{index}.1", n_out)
    return shapes | linear(f"{name}.net.{len(dims) - 2}", *dims[-2:])


def autoencoder_shapes(sizes: dict[str, Any]) -> Shapes:
    rows = (sizes["n_cat"],) if sizes["covariate_specific_theta"] else ()
    joint = (sizes["encoder_multimodal_joint_layers"] or {"dims": []})["dims"]
    shapes = {"theta": (*rows, sizes["in_dim"]["rna"])}
    ends = 0
    for m, n in sizes["in_dim"].items():
        dims = [n, *sizes["encoder_kwargs"][m]["dims"]]
        ends += dims[-1]
        shapes |= mlp(f"encoder.{m}", dims)
        shapes |= mlp(f"decoder.{m}", [*joint[-1:], *dims[::-1]])
    return shapes | (mlp("encoder_joint", [ends, *joint]) if joint else {})


def velocity_shapes(sizes: dict[str, Any]) -> Shapes:
    width, n = sizes["hidden_dim"], sizes["embedding_dim"]
    has_norm = sizes["normalization"] != "none"
    parts = NORM if sizes["normalization"] == "batch" else NORM[:2]
    embedders = [
        "time_embedder",
        *["size_factor_embedder"] * sizes["embed_size_factor"],
    ]
    shapes: dict[str, tuple[int, ...]] = {}
    for embedder in embedders:
        shapes |= linear(f"{embedder}.0", n, n) | linear(f"{embedder}.2", n, n)

    def normed(name: str, n_out: int) -> Shapes:
        own = norm(f"{name}.0", width, parts) if has_norm else {}
        return own | linear(f"{name}.{1 + has_norm}", width, n_out)

    shapes |= linear("net_in", sizes["in_dim"], width)
    for block in range(sizes["n_blocks"]):
        for name in ("net1", "net2"):
            shapes |= normed(f"blocks.{block}.{name}", width)
        shapes |= linear(f"blocks.{block}.cond_proj.1", n, width)
    return shapes | normed("net_out", sizes["in_dim"])


def write_cfgen(folder: Path) -> None:
    arrays = loader_arrays() | metric_arrays() | pipeline_arrays()
    tables = {f"embeddings/{k}": (n, N_EMBEDDING) for k, n in N_CATEGORIES.items()}
    arrays |= prefixed("weights/", drawn(tables))
    for case, sizes in AUTOENCODERS.items():
        weights = drawn(autoencoder_shapes(sizes))
        arrays |= prefixed(f"weights/{case}/", weights) | cells_of(case, sizes)
    arrays |= inputs_of_velocities()
    save(folder / FILE, arrays, CONFIG)
    for case in AUTOENCODERS:
        reference = CountReference(folder, case)
        results = outputs_in_use(reference) | outputs_of_a_step(reference)
        arrays |= prefixed(f"out/{case}/", results)
    reference = VelocityReference(folder)
    for outputs in (
        velocity_outputs,
        path_outputs,
        step_outputs,
        guidance_outputs,
        end_points,
    ):
        reference.arrays |= {k: np.asarray(v) for k, v in outputs(reference).items()}
    arrays |= reference.arrays
    decoder = CountReference(folder, "ae_rna").autoencoder()
    sizes = {"rna": tf.constant(np.exp(arrays["in/dn_ode/log_size_factor_rna"][:, 0]))}
    decoded = decoder.decode(tf.constant(arrays["out/ode/dopri5_1e-6"]), sizes)
    arrays["out/ode/mu_decoded_from_dopri5_endpoint"] = decoded["rna"].mean.numpy()
    save(folder / FILE, arrays, CONFIG)


def cells_of(case: str, sizes: dict[str, Any]) -> Arrays:
    rng = np.random.default_rng(12)
    arrays = {}
    for m, n in sizes["in_dim"].items():
        is_binary = m == "atac" and sizes["is_binarized"]
        counts = rng.poisson(2.0, (N_CELLS, n)).clip(max=1 if is_binary else None)
        transform = "none" if is_binary else TRANSFORMS[sizes["normalization_type"]]
        arrays[f"X_{m}"] = counts.astype(np.float32)
        arrays[f"X_norm_{m}"] = encoder_input(arrays[f"X_{m}"], transform)
    if sizes["n_cat"]:
        arrays["y"] = np.arange(N_CELLS) % sizes["n_cat"]
    return prefixed(f"in/{case}/", arrays)


def inputs_of_velocities() -> Arrays:
    rng = np.random.default_rng(13)
    time = rng.uniform(size=N_CELLS).astype(np.float32)
    codes = {f"cat_{k}": rng.integers(0, n, N_CELLS) for k, n in N_CATEGORIES.items()}
    arrays = prefixed("in/common/", {"t": time, **codes})
    arrays["out/common/sinusoidal_t"] = sinusoidal_features(time, N_EMBEDDING).numpy()
    for seed, (case, sizes) in enumerate(VELOCITIES.items()):
        case_arrays = {"x": normal(20 + seed, N_CELLS, sizes["in_dim"])}
        names = [f"_{m}" for m in sizes["modality_list"]]
        for name in [""] if sizes["is_binarized"] else names:
            drawn_sizes = rng.uniform(3, 6, (N_CELLS, 1)).astype(np.float32)
            case_arrays[f"log_size_factor{name}"] = drawn_sizes
        arrays |= prefixed(f"in/{case}/", case_arrays)
        weights = drawn(velocity_shapes(sizes), seed=30 + seed)
        arrays |= prefixed(f"weights/{case}/", weights)
    flow_arrays = {
        n: normal(s, N_CELLS, N_LATENT) for s, n in enumerate(("x1", "eps", "x0"))
    }
    arrays |= prefixed("in/fm/", flow_arrays | {"t": time[::-1].copy()})
    arrays["in/ode/z0"] = normal(40, N_CELLS, N_LATENT)
    for n, offset in ((N_CELLS, 0.03), (9, 0.1)):
        times = stratified_times(n, tf.constant(offset * n, tf.float32))
        arrays[f"out/fm/stratified_times_B{n}_t0_{offset:.6f}"] = times.numpy()
    return arrays


def velocity_outputs(reference: VelocityReference) -> Arrays:
    results: dict[str, Any] = {}
    for case in VELOCITIES:
        guided = ("v_uncond", *(f"v_{name}" for name in N_CATEGORIES))
        keys = ("v_sum_of_all_covariates",) if case == "dn_unguided" else guided
        reference.arrays |= {f"out/{case}/{key}": np.empty(0) for key in keys}
        results |= prefixed(f"out/{case}/", velocity.velocities(reference, case))
    return results


def path_outputs(reference: VelocityReference) -> Arrays:
    latents, start = reference["in/fm/x1"], reference["in/fm/x0"]
    paired = pair_noise(latents, start).numpy()
    cell, row = np.nonzero(np.all(paired[:, None] == start[None], axis=2))
    plan, order = np.zeros((N_CELLS, N_CELLS)), np.empty(N_CELLS, int)
    plan[row, cell], order[row] = 1 / N_CELLS, cell
    reference.arrays["out/fm/ot_assignment_x0_to_x1"] = order
    cost = np.square(latents - paired).sum(axis=1).mean()
    results: dict[str, Any] = {
        "ot_plan": plan,
        "ot_cost_mean_squared_distance": cost,
    }
    network = reference.network("dn_main")
    time = tf.constant(reference["in/fm/t"])
    for path in (f"{kind}_sigma{s}" for kind in ("noot", "ot") for s in SIGMAS):
        point = velocity.reference_path(reference, path)
        results |= {f"{path}/x_t": point.latent, f"{path}/u_t": point.velocity}
        for kept in ((), *((name,) for name in N_CATEGORIES)):
            condition = reference.condition(network, "dn_main", *kept)
            point_velocity = network(point.latent, time, condition)
            name = "".join(kept) or "uncond"
            results[f"{path}/v_{name}"] = point_velocity
            loss = tf.reduce_mean(tf.square(point_velocity - point.velocity))
            results[f"{path}/loss_{name}"] = loss
    return prefixed("out/fm/", results)


def step_outputs(reference: VelocityReference) -> Arrays:
    """Make the step on the first path, of cells conditioned on their batch."""
    path, kept = f"noot_sigma{SIGMAS[0]}", ("batch",)
    loss, size, gradients, updated = velocity.train_once(reference, path, kept)
    shapes = velocity_shapes(VELOCITIES["dn_main"])
    shapes |= {f"embeddings/{k}": (n, N_EMBEDDING) for k, n in N_CATEGORIES.items()}
    gradients = in_their_names(shapes, reference.in_our_names, gradients)
    updated = in_their_names(shapes, reference.in_our_names, updated)
    del gradients["embeddings/cell_type"]
    return {
        "out/fm/step_loss": loss,
        "out/fm/step_grad_norm_before_clip": size,
        **prefixed("out/fm/step_grad/", gradients),
        **prefixed("out/fm/after_one_adamw_step/", updated),
    }


def guidance_outputs(reference: VelocityReference) -> Arrays:
    settings = CONFIG["cases"]["guidance"]
    latent, results = tf.constant(reference["in/dn_main/x"]), {}
    for name, key in (
        ("two_attributes", "weights_two"),
        ("one_attribute", "weights_one"),
        ("unconditional", None),
    ):
        scales = settings[key] if key else {}
        network, conditions, weights = velocity.guided(reference, "dn_main", scales)
        made = network.weighted(latent, settings["t"], conditions, weights)
        results[f"out/guidance/{name}/v"] = made
    return results


def end_points(reference: VelocityReference) -> Arrays:
    ode, start = CONFIG["cases"]["ode"], reference["in/ode/z0"]
    options = {"solver": "dopri5", "tolerance": ode["rtol"]}
    results = {
        f"{solver}_{n}_steps": velocity.integrate(
            reference, start, solver=solver, n_steps=n
        )
        for solver, n in (("euler", 7), ("euler", 21), ("midpoint", 9), ("rk4", 6))
    }
    end = velocity.integrate(reference, start, **options)
    for name in ("dopri5_1e-6", "dopri5_1e-6_tspan50", "reference_float64_1e-8"):
        results[name] = end
    results["dopri5_1e-6_rhs_evaluations"] = np.array(0)
    inverse = velocity.integrate(reference, end, **options, reverse=True)
    results["inverted_from_dopri5_endpoint"] = inverse
    target = {"batch": np.full(N_CELLS, ode["target_batch"], np.int32)}
    corrected = velocity.integrate(reference, inverse, target, **options)
    return prefixed("out/ode/", results | {"corrected_to_last_batch": corrected})


def loader_arrays(n_cells: int = 31, n_genes: int = 26) -> Arrays:
    rng = np.random.default_rng(14)
    rates = rng.gamma(4.0, 0.5, (n_cells, 1))
    counts = rng.poisson(np.repeat(rates, n_genes, axis=1)).astype(np.float32)
    counts[:, 0] += 1
    sizes = np.log(counts.sum(axis=1))
    entries: dict[str, Any] = {"X_counts": counts}
    results = {
        f"X_norm_{k}": encoder_input(counts, transform)
        for k, transform in TRANSFORMS.items()
    }
    results |= {
        f"log_size_factor_{end}": getattr(sizes, end)() for end in ("min", "max")
    }
    for name, categories in (("cell_type", ["B", "a"]), ("batch", list("pqrs"))):
        codes = rng.permutation(np.arange(n_cells) % len(categories))
        parts = [sizes[codes == code] for code in range(len(categories))]
        entries[name] = np.array(categories)[codes]
        results[f"codes_{name}"] = codes
        results[f"log_size_factor_mean_{name}"] = [part.mean() for part in parts]
        results[f"log_size_factor_sd_{name}"] = [part.std(ddof=1) for part in parts]
    return prefixed("in/loader/", entries) | prefixed("out/loader/", results)


def metric_arrays(n_first: int = 81, n_second: int = 64) -> Arrays:
    first, second = normal(15, n_first, 8), 1.2 * normal(16, n_second, 8) + 0.3
    numbers = published.cfgen_distances(first, second)
    results = {stored: numbers[name] for stored, name in OF_PAPER.items()}
    for name in ("precision", "recall", "density", "coverage"):
        results[f"prdc_k5_{name}"] = numbers[name]
    results["knn5_macro_f1_real_vs_fake"] = numbers["kNN macro F1"]
    n, widths = min(n_first, n_second), (0.5, 2.0, 20.0)
    for width in widths:
        results[f"rbf_mmd2_biased_sigma_{width}"] = np.nan  # nothing reads it
    unbiased = value("mmd_squared", first[:n], second[:n], bandwidths=widths)
    results["rbf_mmd2_unbiased"] = len(widths) * unbiased
    entries = {"A": first, "B": second}
    return prefixed("in/metrics/", entries) | prefixed("out/metrics/", results)


def pipeline_arrays(
    n_genes: int = 45, n_chosen: int = 20, n_components: int = 6
) -> Arrays:
    rng = np.random.default_rng(17)
    types, entries, chosen = ["u0", "u1", "u2", "u3"], {}, {}
    means = rng.gamma(1.0, 3.0, (len(types), n_genes))
    is_chosen = rng.permutation(np.arange(n_genes) < n_chosen)
    for side, n_cells, shift in (("real", 130, 1.0), ("generated", 110, 1.3)):
        codes = rng.permutation(np.arange(n_cells) % len(types))
        counts = rng.poisson(shift * means[codes]).astype(np.float32)
        entries[f"X_{side}"], entries[f"labels_{side}"] = counts, np.array(types)[codes]
        chosen[side] = (
            log_expression(counts)[:, is_chosen].toarray(),
            entries[f"labels_{side}"],
        )
    parts = [
        tuple(values[labels == label] for values, labels in chosen.values())
        for label in types
    ]
    numbers = published.cfgen_numbers(chosen["real"][0], parts, n_components)
    results = {
        "highly_variable": is_chosen,
        "per_type_labels": np.array(types),
        "X_pca_real": np.zeros((130, n_components)),  # its width alone is read
        **{f"mean/{stored}_PCA": numbers[name] for stored, name in OF_PAPER.items()},
    }
    return prefixed("in/pipeline/", entries) | prefixed("out/pipeline/", results)
