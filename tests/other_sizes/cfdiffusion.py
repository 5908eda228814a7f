"""cfDiffusion and scDiffusion of other sizes: networks, steps, runs and metrics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from cellgan.evaluation.metrics import published
from cellgan.layers.time_embedding import step_features
from cellgan.models.cfdiffusion.networks import GuidedDenoiser
from cellgan.sampling import diffusion as steps_of
from cellgan.sampling import noise_schedules as tables
from cellgan.sampling.diffusion import Sampler
from cellgan.sampling.noise_schedules import NoiseSchedule, linear_betas
from tests.models.cfdiffusion.diffusion_reference import (
    RNA,
    DiffusionReference,
    strided_steps,
)
from tests.models.cfdiffusion.test_classifier import classifier_of
from tests.models.cfdiffusion.test_networks import ONE, inputs_of
from tests.models.cfdiffusion.test_parity import Chain
from tests.models.cfdiffusion.test_training import StoredSteps
from tests.models.latent import test_expression_autoencoder as expression
from tests.other_sizes.arrays import (
    Arrays,
    Shapes,
    below_places,
    drawn,
    in_their_names,
    linear,
    norm,
    normal,
    prefixed,
    save,
)
from tests.sampling.test_noise_schedules import TABLES

FILE = "cfdiffusion.npz"
N_CELLS, N_LATENT, N_GENES, T, N_STEPS, INTERVAL = 5, 8, 37, 120, 25, 3
WIDTHS, LAYERS = [24, 14, 10], [20, 20]
CLASSIFIER = [12, 9, 7]
"""As many as the original always has."""
STRENGTHS, SAMPLING_STRENGTH, SCALE = (0.8, 1.5), 0.8, 3
LONG_CACHES = {
    "uniform7": tables.even_full_steps,
    "nonuniform7": tables.uneven_full_steps,
}
RATE, DECAY = 3e-4, 0.02
CASES = {"single": [4], "multi": [2, 6]}
CONFIG = {
    "latent": N_LATENT,
    "hidden": WIDTHS,
    "num_classes": CASES["single"],
    "num_classes_multi": CASES["multi"],
    "n_steps": N_STEPS,
    "cache_interval": INTERVAL,
    "guidance_w": STRENGTHS,
    "guidance_in_sampling": SAMPLING_STRENGTH,
    "ae": {
        "n_genes": N_GENES,
        "hidden": LAYERS,
        "latent": N_LATENT,
        "optimizer": f"AdamW lr {RATE} wd {DECAY}",
    },
    "denoiser": {"input_dim": N_LATENT, "hidden": WIDTHS},
    "classifier": {"hidden": CLASSIFIER, "classes": CASES["single"][0]},
    "diffusion": {"T": T},
    "adamw_denoiser": {
        "lr": 2e-4,
        "wd": 5e-4,
        "ema": 0.999,
        "anneal_total_in_fixture": 7,
    },
}
WHOLE = NoiseSchedule.of(linear_betas(T))
SHORT = WHOLE.respaced(tables.spaced_steps(T, (N_STEPS,)))


def autoencoder_shapes() -> Shapes:
    shapes: dict[str, tuple[int, ...]] = {}
    ends = {"encoder": (N_GENES, N_LATENT), "decoder": (N_LATENT, N_GENES)}
    for coder, (first, last) in ends.items():
        for index, (n_in, n_out) in enumerate(pairwise((first, *LAYERS))):
            at = 0 if coder == "decoder" and not index else 1  # after a dropout
            place = f"{coder}/network.{index}"
            shapes |= linear(f"{place}.{at}", n_in, n_out)
            shapes |= norm(f"{place}.{at + 1}", n_out)
            shapes[f"{place}.{at + 2}.weight"] = (1,)
        shapes |= linear(f"{coder}/network.{len(LAYERS)}", LAYERS[-1], last)
    return shapes


def denoiser_shapes(numbers: list[int]) -> Shapes:
    width, n_columns = WIDTHS[0], sum(numbers)
    time = "time_embedding.time_embed"
    shapes = linear(f"{time}.0", width, width) | linear(f"{time}.2", width, width)
    if numbers:
        label = "label_embedding.label_embed"
        shapes |= linear(f"{label}.0", n_columns, width)
        shapes |= linear(f"{label}.2", width, width)
    embeddings = ("emb_time_layer", "emb_label_layer") if numbers else ("emb_layer",)
    ways = {"layers": (N_LATENT, *WIDTHS), "reverse_layers": WIDTHS[::-1]}
    for way, widths in ways.items():
        for index, (n_in, n_out) in enumerate(pairwise(widths)):
            place = f"{way}.{index}"
            shapes |= linear(f"{place}.fc", n_in, n_out)
            shapes |= norm(f"{place}.norm", n_out, ("weight", "bias"))
            for name in embeddings:
                shapes |= linear(f"{place}.{name}.1", width, n_out)
    head = 2 * WIDTHS[1]
    shapes |= linear("out1", width, head) | norm("norm_out", head, ("weight", "bias"))
    return shapes | linear("out2", head, N_LATENT)


def classifier_shapes() -> Shapes:
    width = CLASSIFIER[0]
    shapes = linear("time_embed.0", width, width) | linear("time_embed.2", width, width)
    for index, (n_in, n_out) in enumerate(pairwise((N_LATENT, *CLASSIFIER)), start=1):
        shapes |= linear(f"fc{index}", n_in, n_out) | norm(f"norm{index}", n_out)
        shapes |= linear(f"emb_layers{index}.1", width, n_out)
    return shapes | linear("out", CLASSIFIER[-1], CONFIG["classifier"]["classes"])


def write_cfdiffusion(folder: Path) -> None:
    path = folder / FILE
    arrays = schedule_tables() | single_steps() | metric_arrays() | inputs()
    for name, shapes in {
        "ae": autoencoder_shapes(),
        "classifier": classifier_shapes(),
        "denoiser_scdiffusion_base": denoiser_shapes([]),
        **{f"denoiser_{case}": denoiser_shapes(n) for case, n in CASES.items()},
    }.items():
        arrays |= prefixed(f"weights/{name}/", drawn(shapes))
    save(path, arrays, CONFIG)
    reference = DiffusionReference(folder)
    results = (
        autoencoder_outputs(reference)
        | classifier_outputs(reference)
        | long_runs(reference)
    )
    for case in CASES:
        results |= prefixed(f"out/denoiser_{case}/", denoiser_outputs(reference, case))
        results |= prefixed(
            f"out/denoiser_{case}/cache/", cache_outputs(reference, case)
        )
        results |= prefixed(f"out/loss/{case}/", loss_outputs(reference, case))
        results |= prefixed(f"out/sample/{case}/", respaced_runs(reference, case))
    save(path, arrays | {k: np.asarray(v) for k, v in results.items()}, CONFIG)


def labels(case: str, n_cells: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns = [rng.integers(0, n, n_cells) for n in CASES[case]]
    return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)


def inputs() -> Arrays:
    rng = np.random.default_rng(50)
    expressed = np.float32(rng.gamma(0.5, 2.0, (4, 26, N_GENES)))
    arrays = {"in/ae/x": expressed[0], "in/ae/train_batches": expressed[1:]}
    n_updates, rows = 4, (N_CELLS, N_LATENT)
    for case, numbers in CASES.items():
        arrays |= prefixed(
            f"in/denoiser_{case}/",
            {
                "x": normal(51, *rows),
                "t": rng.integers(0, T, N_CELLS),
                "y": labels(case, N_CELLS, 52),
                "cache/x_full": normal(53, *rows),
                "cache/t_full": np.array(90),
                "cache/x_partial": normal(54, 3, *rows),
                "cache/t_partial": np.array([89, 88, 87]),
            },
        )
        latents = normal(55, n_updates, *rows)
        mask = rng.uniform(size=(n_updates, N_CELLS, sum(numbers))) < 0.3
        arrays |= prefixed(
            f"in/loss/{case}/",
            {
                "x0": latents / np.linalg.norm(latents, axis=-1, keepdims=True),
                "t": rng.integers(0, T, (n_updates, N_CELLS)),
                "noise_float64": normal(56, n_updates, *rows).astype(np.float64),
                "drop_mask": mask.astype(np.float32),
                "y": labels(case, N_CELLS, 57),
            },
        )
    runs = {
        "single": N_STEPS,
        "multi": N_STEPS,
        f"T{T}": T,
        "classifier_guided": N_STEPS,
    }
    for seed, (run, n_steps) in enumerate(runs.items(), start=58):
        n_cells = 3 if run == f"T{T}" else N_CELLS
        run_arrays = {
            "init": normal(seed, n_cells, N_LATENT),
            "noise_by_executed_step": normal(70 + seed, n_steps, n_cells, N_LATENT),
            "y": labels("multi" if run == "multi" else "single", n_cells, seed),
        }
        arrays |= prefixed(f"in/sample/{run}/", run_arrays)
    classifier_outputs = {
        "x": normal(65, *rows),
        "t": rng.integers(0, T, N_CELLS),
        "y": labels("single", N_CELLS, 66),
        "y_second": labels("single", N_CELLS, 67),
    }
    return arrays | prefixed("in/classifier/", classifier_outputs)


def schedule_tables() -> Arrays:
    def respaced(steps: np.ndarray) -> NoiseSchedule:
        return WHOLE.respaced(steps)

    schedules = {
        f"linear{T}": WHOLE,
        f"respaced_{N_STEPS}": SHORT,
        "respaced_6-7-8-9": respaced(tables.spaced_steps(T, (6, 7, 8, 9))),
        "respaced_ddim30": respaced(strided_steps(T, 30)),
    }
    results: dict[str, Any] = {
        "cosine90/betas": tables.cosine_betas(90),
        "linear60_unscaled/betas": linear_betas(60),
        "linear60_scaled_by_1000_over_T/betas": linear_betas(60, scaled=True),
    }
    for name, schedule in schedules.items():
        results[f"{name}/timestep_map"] = schedule.original_steps
        results |= {
            f"{name}/{k}": getattr(schedule, table) for k, table in TABLES.items()
        }
        log_noise = np.log(1 - schedule.kept)
        results[f"{name}/log_one_minus_alphas_cumprod"] = log_noise
    results = prefixed("out/diffusion/", results)
    for n_steps, interval in ((T, 4), (T, 7), (80, 3)):
        steps = tables.even_full_steps(n_steps, interval)
        results[f"out/cache/uniform/T{n_steps}_interval{interval}"] = steps
        for centre in (20, 45):
            key = f"T{n_steps}_interval{interval}_center{centre}_pow1.5/full_steps"
            steps = tables.uneven_full_steps(n_steps, interval, centre=centre)
            results[f"out/cache/nonuniform/{key}"] = steps
    flags = {f"T{N_STEPS}_uniform{INTERVAL}": (SHORT, tables.even_full_steps, INTERVAL)}
    flags |= {
        f"T{T}_{name}": (WHOLE, choose, 7) for name, choose in LONG_CACHES.items()
    }
    for name, (schedule, choose, interval) in flags.items():
        n_steps = len(schedule)
        sampler = Sampler(schedule, full_steps=choose(n_steps, interval))
        results[f"out/sample/exec_full_flags_{name}"] = sampler.is_full(n_steps - 1)[
            ::-1
        ]
    return results


def single_steps() -> Arrays:
    """Make single steps of the diffusion."""
    rows = (N_CELLS, N_LATENT)
    entries = {
        name: tf.constant(normal(seed, N_CELLS, n))
        for seed, (name, n) in enumerate(
            {
                "x0": N_LATENT,
                "noise": N_LATENT,
                "model_output": N_LATENT,
                "model_output_learned": 2 * N_LATENT,
                "step_noise": N_LATENT,
            }.items(),
            start=80,
        )
    }
    t = entries["t"] = tf.constant([0, 1, 40, T // 2, T - 2])
    noisy = steps_of.add_noise(WHOLE, entries["x0"], entries["noise"], t)
    posterior, ones = steps_of.posterior(WHOLE, entries["x0"], noisy, t), tf.ones(rows)
    results: dict[str, Any] = {
        "q_sample": noisy,
        "q_posterior/mean": posterior.mean,
        "q_posterior/variance": posterior.variance * ones,
        "q_posterior/log_variance_clipped": posterior.log_variance * ones,
    }
    for variance in ("fixed_large", "fixed_small", "learned_range"):
        suffix = "_learned" if variance == "learned_range" else ""
        output = entries[f"model_output{suffix}"]
        step = steps_of.interpret(WHOLE, output, noisy, t, variance=variance)
        results |= prefixed(
            f"p_mean_variance/eps/{variance}/noclip/",
            {
                "pred_xstart": step.latent,
                "mean": step.cleaner.mean,
                "variance": step.cleaner.variance * ones,
                "log_variance": step.cleaner.log_variance * ones,
            },
        )
    step, noise = (
        steps_of.interpret(WHOLE, entries["model_output"], noisy, t),
        entries["step_noise"],
    )
    results["ddpm_step/nw0.5/sample"] = steps_of.ddpm_step(step.cleaner, noise, t)
    for eta in (0.0, 0.6):
        made = steps_of.ddim_step(
            WHOLE, step.latent, noisy, t, eta=eta, noise=noise if eta else None
        )
        results[f"ddim_step/eta{eta}/sample"] = made
    return prefixed("in/diffusion/", entries) | prefixed("out/diffusion/", results)


def autoencoder_outputs(reference: DiffusionReference) -> Arrays:
    def theirs(network) -> Arrays:
        values = {weight.path: weight.numpy() for weight in network.weights}
        translate = below_places(
            reference.arrays, lambda prefix: reference.autoencoder_values(f"{prefix}/")
        )
        return in_their_names(autoencoder_shapes(), translate, values)

    x, results = tf.constant(reference["in/ae/x"]), {}
    for mode, batch_statistics in (("eval", False), ("batchstats", True)):
        network, options = (
            reference.autoencoder(),
            {"batch_statistics": batch_statistics},
        )
        latent = network.encode({RNA: x}, **options)
        decoded = network.decode(latent, {}, **options)[RNA]
        made = {RNA: decoded.log_expression}
        values = {
            "latent": latent,
            "recon_linear": decoded.log_expression,
            "decoded_relu": tf.math.log1p(decoded.mean),
            "mse": network.reconstruction_losses({RNA: x}, {}, made)[RNA],
        }
        results |= prefixed(f"out/ae/{mode}/", values)
    network.update_running_statistics(network({RNA: x}, training=True).statistics)
    running = {k: array for k, array in theirs(network).items() if "running" in k}
    results |= prefixed("out/ae/batchstats/running_after/", running)
    stage = expression.make_stage(reference.autoencoder(), RATE, DECAY)
    losses = [
        stage.train_step((expression.batch_of(x),), tf.constant((0, 0)))["loss"]
        for x in reference["in/ae/train_batches"]
    ]
    after = prefixed("out/ae/train/after/", theirs(stage.network))
    return results | after | {"out/ae/train/losses": np.array(losses)}


def denoiser_outputs(reference: DiffusionReference, case: str) -> Arrays:
    network, latent, shifts, codes = inputs_of(reference, case)
    null = reference.null(case, N_CELLS)
    steps = tf.constant(reference[f"in/denoiser_{case}/t"])
    results: dict[str, Any] = {
        "sinusoid": step_features(steps, WIDTHS[0]),
        "time_emb": network.embed_steps(steps),
    }
    for kind, shown in (("cond", codes), ("null", null)):
        columns = network.label_columns(shown)
        results[f"label_input_{kind}"] = columns
        results[f"label_emb_{kind}"] = network.embed_labels(columns)
        results[kind] = network(latent, shifts, network.gates(shown))
    for index, name in enumerate(codes):
        gates = network.gates({**codes, name: null[name]})
        results[f"drop_condition_{index}"] = network(latent, shifts, gates)
    for strength in STRENGTHS:
        guided = (1 + strength) * results["cond"] - strength * results["null"]
        results[f"guided_w{strength}"] = guided
    released = ("first_half", "second_half", f"guided_w{STRENGTHS[0]}")
    return results | {f"as_released/{name}": results["cond"] for name in released}


def cache_outputs(reference: DiffusionReference, case: str) -> Arrays:
    stored = reference.below(f"in/denoiser_{case}/cache/")
    network, _, _, codes = inputs_of(reference, case)
    both = [
        network.by_layer(network.gates(shown)[None])
        for shown in (codes, reference.null(case, N_CELLS))
    ]
    partial = list(zip(stored["x_partial"], stored["t_partial"], strict=True))

    def shifts(step) -> tf.Tensor:
        return network.shifts(tf.reshape(tf.constant(step), (1,)))

    def whole(x, step, branch: int = 0) -> list:
        return [network.denoise(x, shifts(step), gates, ONE, branch) for gates in both]

    def joined(of_both) -> tf.Tensor:
        return tf.concat(list(of_both), axis=0)

    results = {
        "no_cache": tf.stack(
            [joined(step.noise for step in whole(*at)) for at in partial]
        )
    }
    for branch in range(network.n_up):
        made = whole(stored["x_full"], stored["t_full"], branch)
        results[f"branch{branch}/full"] = joined(full.noise for full in made)
        results[f"branch{branch}/feature"] = joined(full.feature[0] for full in made)
        results[f"branch{branch}/partial"] = tf.stack(
            [
                joined(
                    network.denoise_from(
                        full.feature, x, shifts(step), gates, ONE, branch
                    )
                    for full, gates in zip(made, both, strict=True)
                )
                for x, step in partial
            ]
        )
    return results


def loss_outputs(reference: DiffusionReference, case: str) -> Arrays:
    some = {
        *("label_embedding.label_embed.0.weight", "layers.0.fc.weight"),
        *("layers.0.norm.bias", "reverse_layers.0.norm.weight", "out2.weight"),
    }

    def theirs(values, weights) -> Arrays:
        named = {
            w.path: np.asarray(array) for w, array in zip(weights, values, strict=True)
        }
        translate = below_places(
            reference.arrays, lambda prefix: reference.denoiser_values(f"{prefix}/")
        )
        translated = in_their_names(denoiser_shapes(CASES[case]), translate, named)
        return {name: array for name, array in translated.items() if name in some}

    stored = StoredSteps(reference, case)
    stage, first = stored.stage, stored.steps[0]
    _, gradients = stage.gradients(*first)
    weights = stage.network.trainable_variables
    results = {
        "per_sample_step0": stage.losses(*first),
        **prefixed("grad_step0/", theirs(gradients, weights)),
    }
    losses = [stage.update(*step)["loss"] for step in stored.steps]
    results["mean_loss_per_step"] = np.array(losses)
    variables, n_updates = stage.network.variables, len(losses)
    results |= prefixed(f"after{n_updates}/", theirs(variables, variables))
    average = theirs(stage.average.variables, variables)
    return results | prefixed(f"ema_after{n_updates}/", average)


def respaced_runs(reference: DiffusionReference, case: str) -> Arrays:
    chain, results = Chain(reference, case, case), {}
    mapped, unmapped = SHORT.original_steps, np.arange(N_STEPS)
    guided = {"scale": 1 + SAMPLING_STRENGTH}
    intended, released = (
        f"{kind}_respaced{N_STEPS}" for kind in ("intended", "as_released")
    )
    cached = Sampler(SHORT, full_steps=tables.even_full_steps(N_STEPS, INTERVAL))
    variants = {"no_cache": (Sampler(SHORT), 0)}
    for branch in range(chain.network.n_up):
        variants[f"cache{INTERVAL}_branch{branch}"] = (cached, branch)
    for variant, (sampler, branch) in variants.items():
        latents, clean = chain.trajectory(sampler, mapped, branch=branch, **guided)
        end = chain.end(sampler, unmapped, branch=branch)
        results[f"{intended}/{variant}/trajectory"] = latents
        results[f"{intended}/{variant}/pred_x0"] = clean
        results[f"{released}/{variant}/final"] = end
    latents, _ = chain.trajectory(Sampler(SHORT, "ddim"), mapped, **guided)
    return results | {f"{intended}/ddim_eta0_no_cache/trajectory": latents}


def long_runs(reference: DiffusionReference) -> Arrays:
    chain, results = Chain(reference, f"T{T}", "single"), {}
    intended, steps = f"intended_w{SAMPLING_STRENGTH}", WHOLE.original_steps
    for cache in ("no_cache", *LONG_CACHES):
        choose = LONG_CACHES.get(cache)
        sampler = Sampler(WHOLE, full_steps=choose and choose(T, 7))
        latents, _ = chain.trajectory(sampler, steps)
        results[f"as_released/{cache}/final"] = latents[-1]
        some = tf.gather(latents, [10, 70])
        results[f"as_released/{cache}/x_at_executed_step_11_71"] = some
        end = chain.end(sampler, steps, scale=1 + SAMPLING_STRENGTH)
        results[f"{intended}/{cache}/final"] = end
    latent = results[f"{intended}/no_cache/final"]
    decoded = reference.autoencoder().decode(latent, {})[RNA]
    results[f"{intended}/no_cache/decoded_eval"] = tf.math.log1p(decoded.mean)
    return prefixed(f"out/sample/T{T}/", results)


def classifier_outputs(reference: DiffusionReference) -> Arrays:
    network = classifier_of(reference)
    base = reference.denoiser("scdiffusion_base")
    x, t, y, y_second = (
        tf.constant(reference[f"in/classifier/{name}"])
        for name in ("x", "t", "y", "y_second")
    )
    n_classes = CONFIG["classifier"]["classes"]
    one, other = tf.one_hot(y, n_classes), tf.one_hot(y_second, n_classes)
    mixed = SCALE * (0.6 * one + 0.4 * other)
    results = {
        "classifier/logits_eval": network(x, t, training=False)[0],
        "classifier/logits_batchstats": network(x, t, training=True)[0],
        f"classifier/grad_scale{SCALE}": network.slope(x, t, SCALE * one),
        "classifier/grad_interpolation_weights_6_4": network.slope(x, t, mixed),
        "denoiser_scdiffusion_base/eps": base(x, base.shifts(t), base.gates({})),
    }
    stored = reference.below("in/sample/classifier_guided/")
    sampler, steps = Sampler(SHORT), tf.constant(SHORT.original_steps)
    guided = GuidedDenoiser(base, steps, base.gates({})[None], ONE)
    scales = SCALE * tf.one_hot(stored["y"], n_classes)
    for variant, n_pulled in (("guide_below_half", N_STEPS // 2), ("no_guidance", 0)):
        latent, seen = tf.constant(stored["init"]), []
        for index, noise in enumerate(stored["noise_by_executed_step"]):
            position, slope = tf.constant(N_STEPS - 1 - index), None
            if position < n_pulled:
                slope = network.slope(latent, steps[position][None], scales)
            output, _ = guided.whole(latent, position)
            latent = sampler.step(output, latent, position, noise, slope).cleaner.mean
            seen.append(latent)
        run = f"respaced{N_STEPS}_{variant}"
        results[f"sample/classifier_guided/{run}/trajectory"] = tf.stack(seen)
    return prefixed("out/", results)


def metric_arrays(n_columns: int = 15, n_joint: int = 12) -> Arrays:
    rng = np.random.default_rng(90)
    means = rng.gamma(1.0, 1.0, N_GENES)
    real, generated = (
        np.float32(np.log1p(rng.poisson(factor * means, (n_cells, N_GENES))))
        for n_cells, factor in ((81, 1.0), (64, 1.2))
    )
    agreement = published.mean_agreement(real.mean(axis=0), generated.mean(axis=0))
    columns = real[:, :n_columns], generated[:, :n_columns]
    joint = published.joint_components(real, generated, n_joint)
    accuracy, auc = published.neighbour_votes(real, generated)
    split = published.split_cells(*joint, test_size=0.25, seed=1)
    forest = published.forest_scores(split, seed=1, max_depth=5)
    results = {
        "scc": agreement["SCC"],
        "pcc": agreement["PCC"],
        "wasserstein_of_gene_means": agreement["Wasserstein of gene means"],
        f"mmd_on_first_{n_columns}_columns": published.five_kernel_mmd(*columns),
        "mmd_smallest_bandwidth": published.smallest_bandwidth(*columns),
        f"mmd_on_{n_joint}_joint_principal_components": published.five_kernel_mmd(
            *joint
        ),
        "knn5_accuracy": accuracy,
        "knn5_auc": auc,
        f"rf_auc_on_{n_joint}_joint_pcs": forest.auc,
        "rf_oob": forest.out_of_bag,
    }
    entries = {"real": real, "generated": generated}
    return prefixed("in/metrics/", entries) | prefixed("out/metrics/", results)
