"""Weights of the original cfDiffusion and scDiffusion as the variables of ours.

The originals save one file of each network: ``model_seed=0_step=800000.pt`` of the
autoencoder, ``model800000.pt`` or ``ema_0.9999_800000.pt`` of the denoiser, and in
scDiffusion one of each classifier. None of them names genes or labels: genes are taken
in the order of ours, labels in the order of sorted names, in which the originals number
them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.manifest import RNA, DatasetManifest
from cellgan.errors import CheckpointError
from cellgan.models.cfdiffusion.classifier import NoisyClassifier, NoisyClassifiers
from cellgan.models.cfdiffusion.classifier_training import ClassifierStage
from cellgan.models.cfdiffusion.config import CfdiffusionConfig
from cellgan.models.cfdiffusion.networks import Denoiser
from cellgan.models.cfdiffusion.training import DiffusionStage
from cellgan.models.latent.autoencoder import AutoencoderStage
from cellgan.models.latent.networks import Mlp
from cellgan.models.torch_weights import (
    Array,
    Differences,
    Filled,
    Place,
    SavedModel,
    linear_places,
    matched,
    norm_places,
    require_names,
    require_none,
    some,
    used,
)

if TYPE_CHECKING:
    from cellgan.models.cfdiffusion.model import LatentDiffusion

Filling = list[tuple[keras.Variable, Array]]
MARKS = {
    "autoencoder": "encoder.network.",
    "diffusion": "reverse_layers.",
    "classifier": "emb_layers1.",
}
"""Stage -> how a name begins that only its files have."""
UNUSED_LAYER = "emb_layers3.1."
"""Of the classifier: the original makes it and never calls it."""
LATENT_UNITS = "none"
"""``latent_scale`` of the originals."""


def fill(
    model: LatentDiffusion,
    files: Sequence[SavedModel],
    parameters: ExperimentParameters,
    manifest: DatasetManifest,
) -> Filled:
    """Give a model the weights of the original.

    Parameters
    ----------
    model
        Built from `parameters` and `manifest`. It is changed only if all fits.
    files
        One of the autoencoder, and that of the denoiser if there is one; with it, if
        the model is steered, one of the classifier of each covariate, in the order in
        which the model has them.

    Raises
    ------
    CheckpointError
        If the files are not these, or of a model of other sizes: every weight of ours
        must be filled, and every one of theirs be used.
    """
    config = cast(CfdiffusionConfig, parameters.model)
    by_stage = _sorted_out(files)
    covariates = config.conditions(manifest)
    _check_numbers(by_stage, covariates if config.classifier is not None else ())
    stages = {stage.name: cast(Any, stage) for stage in model.stages()}
    (of_autoencoder,) = by_stage["autoencoder"]
    network = stages[AutoencoderStage.name].network
    filling = _autoencoder_filling(of_autoencoder, network, config, manifest)
    orders = {name: _sorted_codes(manifest, name) for name in covariates}
    for file in by_stage["diffusion"]:
        stage = stages[DiffusionStage.name]
        of_network = _denoiser_filling(file, stage.network, config, orders)
        filling += of_network
        # The file is of the last weights or of their average: cells are made with it.
        values = {id(variable): value for variable, value in of_network}
        for average, weight in zip(
            stage.average.variables, stage.network.variables, strict=True
        ):
            filling.append((average, values[id(weight)]))
    if by_stage["classifier"]:
        classifiers = stages[ClassifierStage.name].network
        filling += _classifier_filling(by_stage["classifier"], classifiers, orders)
    for variable, value in filling:
        variable.assign(value)
    notes = [
        f"{name}: categories by sorted name, as the original numbers them: "
        f"{', '.join(sorted(manifest.covariates[name].categories))}"
        for name in (covariates if by_stage["diffusion"] else ())
    ]
    filled = tuple(name for name in stages if by_stage[name])
    categories = {
        name: tuple(sorted(manifest.covariates[name].categories)) for name in covariates
    }
    return Filled(filled, categories, tuple(notes))


def _sorted_out(files: Sequence[SavedModel]) -> dict[str, list[SavedModel]]:
    """Return the files of each stage."""
    by_stage: dict[str, list[SavedModel]] = {stage: [] for stage in MARKS}
    for file in files:
        kinds = [
            stage
            for stage, mark in MARKS.items()
            if any(name.startswith(mark) for name in file.weights)
        ]
        if not kinds:
            msg = (
                f"{file.name}: neither an autoencoder nor a denoiser nor a classifier "
                f"of the original: it holds {some(file.weights) or 'no weights'}."
            )
            raise CheckpointError(msg)
        by_stage[kinds[0]].append(file)
    return by_stage


def _check_numbers(
    by_stage: Mapping[str, Sequence[SavedModel]], classified: Sequence[str]
) -> None:
    """Refuse missing files and second ones."""
    for stage in ("autoencoder", "diffusion"):
        if len(by_stage[stage]) > 1:
            first, second, *_ = by_stage[stage]
            msg = f"{second.name}: a second {stage}, after {first.name}. Give one."
            raise CheckpointError(msg)
    if not by_stage["autoencoder"]:
        named = next(itertools.chain(*by_stage.values())).name
        msg = f"{named}: without an autoencoder: give its file, too."
        raise CheckpointError(msg)
    n_classifiers = len(by_stage["classifier"])
    wanted = len(classified) if by_stage["diffusion"] else 0
    if n_classifiers not in (0, wanted) or (n_classifiers and not classified):
        msg = (
            f"{by_stage['classifier'][0].name}: {n_classifiers} classifiers given, but "
            f"the model has {wanted}"
            + (f" (of {', '.join(classified)}). " if wanted else ". ")
            + "Give one file for each, in this order, with the denoiser's; "
            'model.classifier must not be null ("classifier": {}).'
        )
        raise CheckpointError(msg)


def _autoencoder_filling(
    file: SavedModel, network: Any, config: CfdiffusionConfig, manifest: DatasetManifest
) -> Filling:
    weights, found = used(file.weights), Differences()
    ours = config.autoencoder
    found.add(
        "model.autoencoder.decoder",
        there="squared_error",
        here=ours.decoder,
    )
    encoder = _widths(weights, "encoder.network.")
    decoder = _widths(weights, "decoder.network.")
    found.add(
        "genes (input_ds.raw_input, input_ds.filtering.min_cells)",
        there=decoder[-1] if decoder else 0,
        here=len(manifest.features[RNA]),
    )
    found.add("model.autoencoder.layers", there=encoder[:-1], here=ours.layers)
    found.add("model.autoencoder.n_latent", there=encoder[-1], here=ours.n_latent)
    require_none(file.name, found.lines)
    places = [
        *_mlp_places("encoder.network", network.encoders[RNA], first=1),
        *_mlp_places("decoder.network", network.decoders[RNA], first=0),
    ]
    return matched(file.name, weights, places)


def _mlp_places(prefix: str, network: Mlp, *, first: int) -> Iterator[Place]:
    """Yield the places of an MLP.

    Parameters
    ----------
    first
        Position of the linear layer in the first block, after dropout if there is any;
        in all others it is 1.
    """
    *hidden, last = network.linears
    rows = zip(hidden, network.norms, network.slopes, strict=True)
    for index, (linear, norm, slope) in enumerate(rows):
        place = first if index == 0 else 1
        yield from linear_places((f"{prefix}.{index}.{place}",), linear)
        yield from norm_places(f"{prefix}.{index}.{place + 1}", norm)
        yield Place((f"{prefix}.{index}.{place + 2}.weight",), slope)
    yield from linear_places((f"{prefix}.{len(hidden)}",), last)


def _denoiser_filling(
    file: SavedModel,
    network: Denoiser,
    config: CfdiffusionConfig,
    orders: Mapping[str, Sequence[int]],
) -> Filling:
    weights, found = used(file.weights), Differences()
    found.add(
        "model.diffusion.latent_scale",
        there=LATENT_UNITS,
        here=config.diffusion.latent_scale,
    )
    widths = [
        len(weights[f"layers.{index}.fc.weight"])
        for index in itertools.takewhile(
            lambda index: f"layers.{index}.fc.weight" in weights, itertools.count()
        )
    ]
    found.add("model.diffusion.widths", there=widths, here=config.diffusion.widths)
    columns = weights.get("label_embedding.label_embed.0.weight", np.zeros((0, 0)))
    found.add(
        "categories (model.diffusion.condition_on, model.classifier)",
        there=columns.shape[1],
        here=sum(network.null_codes.values()),
    )
    require_none(file.name, found.lines)
    filling = matched(file.name, weights, _denoiser_places(network))
    if not network.null_codes:
        return filling
    starts = np.cumsum([0, *network.null_codes.values()])
    rows = np.concatenate(
        [
            start + np.asarray(orders[name])
            for start, name in zip(starts, network.null_codes, strict=False)
        ]
    )
    kernel = network.label_layers[0].kernel
    return [(of, value[rows] if of is kernel else value) for of, value in filling]


def _denoiser_places(network: Denoiser) -> Iterator[Place]:
    n_down = len(network.layers) - network.n_up
    names = [f"layers.{index}" for index in range(n_down)]
    names += [f"reverse_layers.{index}" for index in range(network.n_up)]
    for name, layer, norm in zip(names, network.layers, network.norms, strict=True):
        yield from linear_places((f"{name}.fc",), layer)
        yield from norm_places(f"{name}.norm", norm)
    for index, layer in enumerate(network.time_layers):
        yield from linear_places((f"time_embedding.time_embed.{2 * index}",), layer)
    for index, layer in enumerate(network.label_layers):
        yield from linear_places((f"label_embedding.label_embed.{2 * index}",), layer)
    kind = "emb_layer" if network.label_projection is None else "emb_time_layer"
    # The projections of all layers stand side by side in ours.
    widths = tuple(int(layer.kernel.shape[1]) for layer in network.layers)
    projections = {kind: network.time_projection}
    if network.label_projection is not None:
        projections["emb_label_layer"] = network.label_projection
    for of_block, layer in projections.items():
        theirs = tuple(f"{name}.{of_block}.1" for name in names)
        yield from linear_places(theirs, layer, widths)
    yield from linear_places(("out1",), network.head)
    yield from norm_places("norm_out", network.head_norm)
    yield from linear_places(("out2",), network.output_layer)


def _classifier_filling(
    files: Sequence[SavedModel],
    classifiers: NoisyClassifiers,
    orders: Mapping[str, Sequence[int]],
) -> Filling:
    filling: Filling = []
    for file, name, network in zip(
        files, classifiers.n_categories, classifiers.classifiers, strict=True
    ):
        weights = {
            key: of
            for key, of in used(file.weights).items()
            if not key.startswith(UNUSED_LAYER)
        }
        found = Differences()
        n_layers = len(network.layers)
        wanted = [f"fc{index}.weight" for index in range(1, n_layers + 1)]
        require_names(
            file.name, missing=[key for key in wanted if key not in weights], extra=[]
        )
        found.add(
            "model.classifier.widths",
            there=[len(weights[key]) for key in wanted],
            here=[int(layer.kernel.shape[1]) for layer in network.layers],
        )
        n_there = len(weights.get("out.weight", ()))
        n_here = classifiers.n_categories[name]
        found.add(f"categories of {name}", there=n_there, here=n_here)
        require_none(file.name, found.lines)
        rows = np.asarray(orders[name])
        last = network.output_layer
        for of, value in matched(file.name, weights, _classifier_places(network)):
            own = value[:, rows] if of is last.kernel else value
            filling.append((of, value[rows] if of is last.bias else own))
    return filling


def _classifier_places(network: NoisyClassifier) -> Iterator[Place]:
    for index, layer in enumerate(network.time_layers):
        yield from linear_places((f"time_embed.{2 * index}",), layer)
    for index, layer in enumerate(network.layers, start=1):
        yield from linear_places((f"fc{index}",), layer)
    for index, layer in enumerate(network.time_projections, start=1):
        yield from linear_places((f"emb_layers{index}.1",), layer)
    for index, norm in enumerate(network.norms, start=1):
        yield from norm_places(f"norm{index}", norm)
    yield from linear_places(("out",), network.output_layer)


def _widths(weights: Mapping[str, Array], prefix: str) -> list[int]:
    """Return the output width of each linear layer of an MLP, in order."""
    matrices = [
        (int(name.removeprefix(prefix).split(".")[0]), len(of))
        for name, of in weights.items()
        if name.startswith(prefix) and of.ndim == 2
    ]
    return [width for _, width in sorted(matrices)] or [0]


def _sorted_codes(manifest: DatasetManifest, covariate: str) -> list[int]:
    """Return the position of each of our categories among the sorted names."""
    ours = manifest.covariates[covariate].categories
    order = sorted(ours)
    return [order.index(name) for name in ours]
