"""Weights of the original CFGen as the variables of ours.

The original saves two files: the encoder, and the flow, which carries the encoder too.
Their linear layers are stored ``(n_outputs, n_inputs)``, their projections of the
condition block by block. Latents of RNA and ATAC lie side by side, there in the order
of the data and in the encoder of its settings, here in that of their names. A file
names neither genes nor categories: genes are taken in the order of ours, categories in
the order of sorted names unless the file has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import keras
import numpy as np

from cellgan.config.parameters import ExperimentParameters
from cellgan.data.manifest import ATAC, RNA, DatasetManifest
from cellgan.errors import CheckpointError
from cellgan.layers.time_embedding import LARGEST_ANGLE
from cellgan.models.cfgen.config import CfgenConfig
from cellgan.models.cfgen.model import FlowStage, LatentFlow, log_ranges
from cellgan.models.cfgen.networks import VelocityNet
from cellgan.models.latent.autoencoder import AutoencoderStage
from cellgan.models.latent.networks import CountAutoencoder, Mlp
from cellgan.models.torch_weights import (
    Array,
    Differences,
    Filled,
    Place,
    SavedModel,
    below,
    linear_places,
    matched,
    norm_places,
    require_finite,
    require_names,
    require_none,
    some,
    used,
)

FLOW, ENCODER = "denoising_model.", "encoder_model."
STATISTICS = ("running_mean", "running_var")
TABLES = ("feature_embeddings", "embeddings")
"""Where the tables of covariates are, in the pickled settings or the weights."""


def fill(
    model: LatentFlow,
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
        One of the encoder, one of the flow, or one of each. The flow's own copy of the
        encoder is what the original generates with, so it goes before the other.

    Raises
    ------
    CheckpointError
        If the files are not these, or of a model of other sizes: every weight of ours
        must be filled, and every one of theirs be used.
    """
    of_flow, of_encoder = _sorted_out(files)
    config = cast(CfgenConfig, parameters.model)
    by_label = config.autoencoder.inverse_dispersion == "gene-label"
    needed = {manifest.label} if by_label else set()
    if of_flow is not None:
        needed |= set(config.conditions(manifest))
    categories = {
        name: _category_order(name, files, manifest) for name in sorted(needed)
    }
    name, weights, notes = _encoder_of(of_flow, of_encoder)
    parts = model.generation_weights()
    autoencoder = parts[AutoencoderStage.name]["network"]
    require_none(name, _autoencoder_differences(weights, files, config, manifest))
    weights = _in_our_order(weights, _modality_order(weights), [*manifest.features])
    filling = matched(name, weights, _autoencoder_places(autoencoder))
    if by_label:
        theta = autoencoder.log_inverse_dispersion[RNA]
        filling = [
            (of, value[_rows(manifest, manifest.label, categories)])
            if of is theta
            else (of, value)
            for of, value in filling
        ]
    if of_flow is not None:
        network = parts[FlowStage.name]["network"]
        filling += _flow_filling(of_flow, network, config, manifest, categories)
    for variable, value in filling:
        variable.assign(value)
    stages = [AutoencoderStage.name] + ([FlowStage.name] if of_flow else [])
    notes += [_order_note(of, order, files) for of, order in categories.items()]
    return Filled(tuple(stages), categories, tuple(notes))


def _sorted_out(
    files: Sequence[SavedModel],
) -> tuple[SavedModel | None, SavedModel | None]:
    """Return the file of the flow and that of the encoder."""
    flows, encoders = [], []
    for file in files:
        if any(name.startswith(FLOW) for name in file.weights):
            flows.append(file)
        elif any(name.startswith("encoder.") for name in file.weights):
            encoders.append(file)
        else:
            msg = (
                f"{file.name}: neither an encoder nor a flow of the original CFGen: "
                f"it holds {some(file.weights) or 'no weights'}."
            )
            raise CheckpointError(msg)
    for kind, found in (("flow", flows), ("encoder", encoders)):
        if len(found) > 1:
            msg = f"{found[1].name}: a second {kind}, after {found[0].name}. Give one."
            raise CheckpointError(msg)
    return next(iter(flows), None), next(iter(encoders), None)


def _encoder_of(
    flow: SavedModel | None, encoder: SavedModel | None
) -> tuple[str, dict[str, Array], list[str]]:
    """Return the encoder's weights, and the file that they are of.

    Old versions of Lightning let the running statistics of the frozen encoder move
    while the flow was trained; its other weights are the same in both files.
    """
    inside = below(ENCODER, flow.weights) if flow is not None else {}
    if encoder is None and flow is not None and not inside:
        msg = f"{flow.name}: a flow without its encoder: give the encoder's file."
        raise CheckpointError(msg)
    if encoder is not None and (flow is None or not inside):
        return encoder.name, used(encoder.weights), []
    flow = cast(SavedModel, flow)
    if encoder is None:
        return flow.name, inside, []
    alone = used(encoder.weights)
    differing = [
        name
        for name in sorted(alone.keys() & inside.keys())
        if not np.array_equal(alone[name], inside[name])
    ]
    trained = [name for name in differing if not name.endswith(STATISTICS)]
    if trained:
        msg = (
            f"{flow.name}: its flow was trained with another encoder than "
            f"{encoder.name}: {trained[0]} differs ({len(trained)} weights). Leave "
            f"that file out: the flow's holds its encoder."
        )
        raise CheckpointError(msg)
    notes = [
        "the running statistics of the encoder moved while the flow was trained; "
        "taken as the flow's file has them"
    ]
    return flow.name, inside, notes if differing else []


def _autoencoder_differences(
    weights: Mapping[str, Array],
    files: Sequence[SavedModel],
    config: CfgenConfig,
    manifest: DatasetManifest,
) -> list[str]:
    """Return what differs in size or kind, by the parameter that sets it."""
    ours, found = config.autoencoder, Differences()
    there = {name.split(".")[1] for name in weights if name.startswith("encoder.")}
    found.add(
        "modalities (input_ds.atac)",
        there=sorted(there),
        here=sorted(manifest.features),
    )
    hidden = {RNA: ours.rna_layers, ATAC: ours.atac_layers}
    n_least = {RNA: "input_ds.filtering.min_cells", ATAC: "input_ds.atac.min_cells"}
    for modality in sorted(there & set(manifest.features)):
        encoder = _widths(weights, f"encoder.{modality}.net")
        decoder = _widths(weights, f"decoder.{modality}.net")
        kind = {RNA: "genes", ATAC: "peaks"}[modality]
        found.add(
            f"{kind} (input_ds.raw_input, {n_least[modality]})",
            there=decoder[-1] if decoder else 0,
            here=len(manifest.features[modality]),
        )
        layers = f"model.autoencoder.{modality}_layers"
        found.add(layers, there=encoder[:-1], here=hidden[modality])
        found.add("model.autoencoder.n_latent", there=encoder[-1], here=ours.n_latent)
    is_joint = any(name.startswith("encoder_joint.") for name in weights)
    joint = ours.joint_latent and len(manifest.features) > 1
    found.add("model.autoencoder.joint_latent", there=is_joint, here=joint)
    by_label = "theta" in weights and weights["theta"].ndim == 2
    kind = "gene-label" if by_label else "gene"
    found.add(
        "model.autoencoder.inverse_dispersion",
        there=kind,
        here=ours.inverse_dispersion,
    )
    if by_label:
        n_rows, n_labels = len(weights["theta"]), len(manifest.label_vocabulary)
        found.add(f"categories of {manifest.label}", there=n_rows, here=n_labels)
        for name in ("theta_covariate", "conditioning_covariate"):
            covariate = _setting(files, name) or manifest.label
            found.add("input_ds.clustering.key", there=covariate, here=manifest.label)
    is_binary = _setting(files, "is_binarized")
    if ATAC in manifest.features and is_binary is not None:
        kinds = {True: "binary", False: "counts"}
        of_ours = kinds[ATAC in manifest.binary]
        found.add("input_ds.atac.values", there=kinds[bool(is_binary)], here=of_ours)
    return found.lines


def _flow_filling(
    file: SavedModel,
    network: VelocityNet,
    config: CfgenConfig,
    manifest: DatasetManifest,
    categories: Mapping[str, tuple[str, ...]],
) -> list[tuple[keras.Variable, Array]]:
    """Return our variables of the flow with their values."""
    weights, tables = below(FLOW, file.weights), _tables(file)
    if _setting([file], "guided_conditioning") is False:
        msg = (
            f"{file.name}: trained with guided_conditioning false: it knows no "
            f"velocity without covariates, which guidance starts from. No parameter "
            f"makes up for that."
        )
        raise CheckpointError(msg)
    if _setting([file], "conditional") is False:  # the tables have no part in it
        tables = {}
    found = _flow_differences(weights, file, config, manifest)
    found.add(
        "model.flow.condition_on (of the label and input_ds.covariates)",
        there=sorted(tables),
        here=sorted(network.null_codes),
    )
    for name in sorted(tables.keys() & network.null_codes.keys()):
        n_rows = len(tables[name])
        n_ours = network.null_codes[name]
        found.add(f"categories of {name}", there=n_rows, here=n_ours)
    require_none(file.name, found.lines)
    known = (FLOW, ENCODER, *(f"{holder}." for holder in TABLES))
    strangers = [name for name in used(file.weights) if not name.startswith(known)]
    require_names(file.name, missing=[], extra=strangers)
    if len(manifest.features) > 1 and not config.autoencoder.joint_latent:
        named = [_setting([file], "modality_list", place) for place in ("0", "1")]
        theirs = (RNA, ATAC) if None in named else named
        weights = _in_our_order(weights, theirs, [*manifest.features])
    filling = matched(file.name, weights, _velocity_places(network, weights))
    for name, embedding in zip(network.null_codes, network.embeddings, strict=True):
        table = tables[name][_rows(manifest, name, categories)]
        if table.shape != tuple(embedding.table.shape):
            require_none(
                file.name,
                [f"table of {name}: {table.shape} there, {embedding.table.shape} here"],
            )
        require_finite(file.name, {f"the table of {name}": table})
        filling.append((embedding.table, table))
    return filling


def _in_our_order(
    weights: Mapping[str, Array], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, Array]:
    """Return weights for the latents of both modalities side by side in our order.

    Both latents have the same width.
    """
    ordered = dict(weights)
    if [*theirs] == [*ours]:
        return ordered
    last = max(_numbers(weights, r"net_out\.(\d+)\."), default=0)
    for name, axis in (
        ("encoder_joint.net.0.weight", 1),
        ("net_in.weight", 1),
        (f"net_out.{last}.weight", 0),
        (f"net_out.{last}.bias", 0),
    ):
        if name in weights:
            of = weights[name]
            ordered[name] = np.roll(of, of.shape[axis] // 2, axis)
    return ordered


def _modality_order(weights: Mapping[str, Array]) -> tuple[str, ...]:
    """Return the modalities as the original's encoder goes through them."""
    names = [name.split(".")[1] for name in weights if name.startswith("encoder.")]
    return tuple(dict.fromkeys(names))


def _flow_differences(
    weights: Mapping[str, Array],
    file: SavedModel,
    config: CfgenConfig,
    manifest: DatasetManifest,
) -> Differences:
    ours, found = config.flow, Differences()
    found.add("model.flow.width", there=_n_rows(weights, "net_in."), here=ours.width)
    n_embedding = _n_rows(weights, "time_embedder.")
    found.add(
        "model.flow.embedding_width", there=n_embedding, here=ours.embedding_width
    )
    n_blocks = len(_numbers(weights, r"blocks\.(\d+)\."))
    found.add("model.flow.n_blocks", there=n_blocks, here=ours.n_blocks)
    kind = _normalization(weights)
    found.add("model.flow.normalization", there=kind, here=ours.normalization)
    uses_sizes = any(name.startswith("size_factor_embedder.") for name in weights)
    found.add(
        "model.flow.use_library_size", there=uses_sizes, here=ours.use_library_size
    )
    found.add(
        "model.flow.time_frequency", there=LARGEST_ANGLE, here=ours.time_frequency
    )
    found.add(
        "model.flow.standardize_latents", there=False, here=ours.standardize_latents
    )
    if uses_sizes and ours.use_library_size:
        used = log_ranges(manifest, ours.log_library_sizes)
        there = _log_library_sizes(file, used)
        if there is None and ours.log_library_sizes is None:
            found.lines.append(
                "model.flow.log_library_sizes: not in the file, and null here; set the "
                "least and largest log total of the cells the flow was trained on"
            )
        elif there is not None and not _are_close(there, used):
            found.add("model.flow.log_library_sizes", there=there, here=used)
    return found


def _log_library_sizes(
    file: SavedModel, modalities: Mapping[str, Any]
) -> dict[str, list[float]] | None:
    """Return the range that log library sizes were scaled by, of each modality."""
    ranges = {}
    for modality in modalities:
        ends = [
            _setting([file], f"size_factor_{end}", modality) for end in ("min", "max")
        ]
        if None in ends:
            return None
        ranges[modality] = [float(np.squeeze(end)) for end in ends]
    return ranges


def _are_close(
    there: Mapping[str, Sequence[float]], here: Mapping[str, Sequence[float]]
) -> bool:
    # Angles are 1000 times as large.
    return all(np.allclose(there[name], here[name], rtol=0, atol=1e-6) for name in here)


def _autoencoder_places(network: CountAutoencoder) -> list[Place]:
    places = [
        place
        for modality in network.modalities
        for kind, networks in (
            ("encoder", network.encoders),
            ("decoder", network.decoders),
        )
        for place in _mlp_places(f"{kind}.{modality}.net", networks[modality])
    ]
    if network.joint is not None:
        places += _mlp_places("encoder_joint.net", network.joint)
    places += [
        Place(("theta",), table) for table in network.log_inverse_dispersion.values()
    ]
    return places


def _mlp_places(prefix: str, network: Mlp) -> Iterator[Place]:
    *hidden, last = [f"{prefix}.{index}" for index in range(len(network.linears))]
    for name, layer in zip([f"{h}.0" for h in hidden], network.linears, strict=False):
        yield from linear_places((name,), layer)
    yield from linear_places((last,), network.linears[-1])
    for name, layer in zip(hidden, network.norms, strict=True):
        yield from norm_places(f"{name}.1", layer)


def _velocity_places(
    network: VelocityNet, weights: Mapping[str, Array]
) -> Iterator[Place]:
    # Norm, activation and dropout are counted in the numbers of layers.
    first = 2 if network.norms else 1
    second = max([first, *_numbers(weights, r"blocks\.\d+\.net2\.(\d+)\.")])
    n_blocks = len(network.first_layers)
    linears: dict[tuple[str, ...], Any] = {
        ("net_in",): network.input_layer,
        (f"net_out.{first}",): network.output_layer,
        tuple(f"blocks.{i}.cond_proj.1" for i in range(n_blocks)): network.projection,
    }
    for kind, layers in (
        ("time_embedder", network.time_layers),
        ("size_factor_embedder", network.library_size_layers),
    ):
        linears |= {(f"{kind}.{2 * i}",): layer for i, layer in enumerate(layers)}
    for i in range(n_blocks):
        linears[(f"blocks.{i}.net1.{first}",)] = network.first_layers[i]
        linears[(f"blocks.{i}.net2.{second}",)] = network.second_layers[i]
    for names, layer in linears.items():
        yield from linear_places(names, layer)
    nets = [f"blocks.{i}.{net}" for i in range(n_blocks) for net in ("net1", "net2")]
    for name, norm in zip([*nets, "net_out"], network.norms, strict=False):
        yield from norm_places(f"{name}.0", norm)


def _tables(file: SavedModel) -> dict[str, Array]:
    """Return the table of each covariate, ``(n_categories, n_embedding)``."""
    tables = {}
    for path, leaf in file.settings.items():
        holder = next((i for i, key in enumerate(path) if key in TABLES), None)
        if holder is None or np.ndim(leaf) != 2 or holder + 1 == len(path):
            continue
        tables[path[holder + 1]] = np.asarray(leaf)
    for name, weight in file.weights.items():
        holder_name, _, rest = name.partition(".")
        if holder_name in TABLES:
            tables[rest.removesuffix(".weight").removesuffix(".embeddings")] = weight
    return tables


def _category_order(
    covariate: str, files: Sequence[SavedModel], manifest: DatasetManifest
) -> tuple[str, ...]:
    """Return the categories of a covariate in the order of the files."""
    ours = manifest.covariates[covariate].categories
    named = _named_categories(covariate, files)
    if not named:
        return tuple(sorted(ours))
    if sorted(named) != sorted(ours):
        differing = sorted({*named} ^ {*ours})
        msg = (
            f"{files[0].name}: other categories of {covariate} than in this experiment:"
            f" {', '.join(differing)}."
        )
        raise CheckpointError(msg)
    return named


def _named_categories(covariate: str, files: Sequence[SavedModel]) -> tuple[str, ...]:
    """Return what ``id2cov`` of the original says, if a file holds it."""
    codes = {
        path[-1]: int(leaf)
        for file in files
        for path, leaf in file.settings.items()
        if path[-3:-1] == ("id2cov", covariate)
    }
    return tuple(sorted(codes, key=lambda name: codes[name]))


def _rows(
    manifest: DatasetManifest, covariate: str, order: Mapping[str, tuple[str, ...]]
) -> list[int]:
    """Return the row in the file of each of our codes."""
    ours = manifest.covariates[covariate].categories
    return [order[covariate].index(category) for category in ours]


def _order_note(
    covariate: str, order: Sequence[str], files: Sequence[SavedModel]
) -> str:
    if _named_categories(covariate, files):
        return f"{covariate}: categories by the names in the file"
    listed = ", ".join(order)
    note = f"{covariate}: categories by sorted name, as the original has them: {listed}"
    if all(name.isdecimal() for name in order) and sorted(order, key=int) != [*order]:
        note += " (if they were numbers, not text, there, the order is another one)"
    return note


def _setting(files: Sequence[SavedModel], *names: str) -> Any:
    """Return a setting by the end of its path, of all modalities or of one."""
    for file in files:
        for length in range(len(names), 0, -1):
            for path, leaf in file.settings.items():
                if path[-length:] == names[:length]:
                    return leaf
    return None


def _numbers(weights: Mapping[str, Array], pattern: str) -> list[int]:
    """Return the distinct numbers in names that begin like a pattern, in order."""
    matches = (re.match(pattern, name) for name in weights)
    return sorted({int(match[1]) for match in matches if match})


def _widths(weights: Mapping[str, Array], prefix: str) -> list[int]:
    """Return the output width of each layer of a net."""
    numbers = _numbers(weights, rf"{re.escape(prefix)}\.(\d+)\.")
    return [_n_rows(weights, f"{prefix}.{number}.") for number in numbers]


def _n_rows(weights: Mapping[str, Array], prefix: str) -> int:
    """Return the first size of the first weight under a prefix; all have the same."""
    return next((len(of) for name, of in weights.items() if name.startswith(prefix)), 0)


def _normalization(weights: Mapping[str, Array]) -> str:
    if "net_out.0.running_mean" in weights:
        return "batchnorm"
    return "layernorm" if any(n.startswith("net_out.0.") for n in weights) else "none"
