"""The network of latent diffusion: the noise in a latent, given step and labels."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from cellgan.layers import LayerNormalization, Linear, SizedLayer, normalized
from cellgan.layers.time_embedding import step_features
from cellgan.seeds import derive_seed

PAPER_WIDTHS = (512, 512, 256, 128)
Activate = Callable[..., tf.Tensor]
MOST_COMBINATIONS = 64
"""Of categories, whose gates are all computed for a batch, and then shared."""


class Denoised(NamedTuple):
    """What the network returns in one step of sampling."""

    noise: tf.Tensor
    """``(n_cells, n_latent)``: the predicted noise."""
    feature: tf.Tensor
    """``(n_branches, n_cells, width)``: what later steps may start from."""


class Modulation(NamedTuple):
    """What is done to the units of every layer in one step."""

    shifts: Sequence[tf.Tensor]
    """By layer, ``(1, n_cells, width)``, or a row that cells share."""
    gates: Sequence[tf.Tensor | None]
    """By layer, ``(n_branches, n_cells, width)``, or rows that cells share; None
    without covariates."""
    activate: Activate
    """`normalized_silu`, or the same compiled."""


def _mean_of_rows(units: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(units, axis=-1, keepdims=True)


def normalized_silu(
    units: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    gates: tf.Tensor | None = None,
    shifts: tf.Tensor | None = None,
    added: tf.Tensor | None = None,
    *,
    mean_of: Callable[[tf.Tensor], tf.Tensor] = _mean_of_rows,
) -> tf.Tensor:
    """Return ``silu(layer_norm(units * gates + shifts)) + added``.

    Parameters
    ----------
    units
        ``(n_branches, n_cells, width)``.
    scale, offset
        Of the normalisation, ``(width,)``.
    gates, shifts, added
        Of the same shape as `units`, or rows that cells share; None for none.
    mean_of
        ``(n_branches, n_cells, width) -> (n_branches, n_cells, 1)``.
    """
    units = units if gates is None else units * gates
    units = units if shifts is None else units + shifts
    mean = mean_of(units)
    variance = mean_of(tf.square(units - mean))
    activated = tf.nn.silu(normalized(units, mean, variance, scale, offset))
    return activated if added is None else activated + added


class Denoiser(SizedLayer):
    """Layers down to the last width and up again, with a connection at each width.

    Every layer is gated by a projection of the labels (a factor) and shifted by a
    projection of the step; both are the same for all cells of a label or step, so that
    `gates` and `shifts` need compute them only once for each.

    Parameters
    ----------
    n_latent
        Width of the latents.
    n_categories
        Number of categories of each covariate, without its null code. Without
        covariates nothing is gated: the network of scDiffusion.
    widths
        Of the layers on the way down, two or more; the way up mirrors them. The first
        is that of the embeddings too, and even.
    seed
        Of the initial weights: uniform within ``1 / sqrt(n_inputs)`` of 0.
    dtype
        Keras dtype policy.

    Raises
    ------
    ValueError
        If the widths do not suit.

    Notes
    -----
    As in the original, labels enter as minus their one-hot code, a left-out label as
    zeros, and there is no 1 beside the gate: where the projection of the labels is 0,
    a layer passes on its shift alone.

    References
    ----------
    Zhang et al. (2025), cfDiffusion: diffusion-based efficient generation of high
    quality scRNA-seq data with classifier-free guidance.
    https://doi.org/10.1093/bib/bbaf071
    """

    def __init__(
        self,
        n_latent: int,
        n_categories: Mapping[str, int],
        *,
        widths: Sequence[int] = PAPER_WIDTHS,
        seed: int = 0,
        dtype: str = "float32",
    ) -> None:
        super().__init__(name="denoiser", dtype=dtype)
        if len(widths) < 2:
            message = f"denoiser: widths {tuple(widths)}; there must be two or more."
            raise ValueError(message)
        self.n_latent = n_latent
        self.null_codes = dict(n_categories)
        self._seed = seed
        self._n_embedding = widths[0]
        down = list(itertools.pairwise((n_latent, *widths)))
        up = list(itertools.pairwise(reversed(widths)))
        self._widths = [n_outputs for _, n_outputs in (*down, *up)]
        self.n_up = len(up)
        """Layers on the way up; a feature cache may end before any of them."""

        width, total = widths[0], sum(self._widths)
        self.time_layers = [self._linear(f"time_{i}", width, width) for i in (1, 2)]
        self.time_projection = self._linear("time_projection", width, total)
        n_columns = sum(n_categories.values())
        self.label_layers = [
            self._linear(f"label_{i}", n_inputs, width)
            for i, n_inputs in ((1, n_columns), (2, width))
            if n_columns
        ]
        # The projections of all layers side by side: one product instead of many.
        self.label_projection = (
            self._linear("label_projection", width, total) if n_columns else None
        )
        names = [
            *(f"down_{index}" for index in range(1, len(down) + 1)),
            *(f"up_{index}" for index in range(1, len(up) + 1)),
        ]
        self.layers = [
            self._linear(name, n_inputs, n_outputs)
            for name, (n_inputs, n_outputs) in zip(names, (*down, *up), strict=True)
        ]
        self.norms = [
            LayerNormalization(n_outputs, name=f"{name}_norm", dtype=dtype)
            for name, n_outputs in zip(names, self._widths, strict=True)
        ]
        self.head = self._linear("head", width, 2 * widths[1])
        self.head_norm = LayerNormalization(
            2 * widths[1], name="head_norm", dtype=dtype
        )
        self.output_layer = self._linear("output", 2 * widths[1], n_latent)
        self.build()

    def _linear(self, name: str, n_inputs: int, n_outputs: int) -> Linear:
        seed = derive_seed(self._seed, "denoiser", name)
        dtype = self.dtype_policy.name
        return Linear.uniform(n_inputs, n_outputs, seed, name=name, dtype=dtype)

    def _make_weights(self) -> None:
        # Refuses a width that does not suit, before the first batch.
        step_features(tf.zeros((1,)), self._n_embedding)
        projections = [self.time_projection]
        if self.label_projection is not None:
            projections.append(self.label_projection)
        for layer in (
            *self.time_layers,
            *self.label_layers,
            *projections,
            *self.layers,
            *self.norms,
            self.head,
            self.head_norm,
            self.output_layer,
        ):
            layer.build()

    def embed_as_nothing(self, covariate: str, codes: npt.NDArray[np.integer]) -> None:
        """Let categories be like the null code: those that no training cell has."""
        if not len(codes):
            return
        before = itertools.takewhile(
            lambda item: item[0] != covariate, self.null_codes.items()
        )
        kernel = self.label_layers[0].kernel
        values = kernel.numpy()
        values[sum(n for _, n in before) + codes] = 0
        kernel.assign(values)

    def label_columns(self, covariate_codes: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return codes ``(n_rows,)`` as the network sees them, ``(n_rows, n_columns)``.

        Parameters
        ----------
        covariate_codes
            Codes of each covariate; others are not looked at.
        """
        # The one-hot row of the null code, one past the last column, is all zeros.
        columns = [
            tf.one_hot(covariate_codes[name], n, dtype=self.variable_dtype)
            for name, n in self.null_codes.items()
        ]
        return -tf.concat(columns, axis=1)

    def embed_labels(self, columns: tf.Tensor) -> tf.Tensor:
        """Return the embeddings of `label_columns`, ``(n_rows, widths[0])``."""
        return _embed(columns, self.label_layers)

    def embed_steps(self, step_index: tf.Tensor) -> tf.Tensor:
        """Return the embeddings of steps ``(n_steps,)``, ``(n_steps, widths[0])``."""
        features = step_features(step_index, self._n_embedding)
        return _embed(tf.cast(features, self.variable_dtype), self.time_layers)

    def gates(self, covariate_codes: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the factors of all layers side by side, ``(n_rows, n_units)``.

        Parameters
        ----------
        covariate_codes
            Codes of each covariate, ``(n_rows,)``; null codes stand for left out.

        Returns
        -------
        A single row of ones if the network knows no covariates.
        """
        if self.label_projection is None:
            return tf.ones((1, sum(self._widths)), self.variable_dtype)
        embedded = self.embed_labels(self.label_columns(covariate_codes))
        return self.label_projection(tf.nn.silu(embedded))

    def gates_of_cells(self, covariate_codes: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Return the same as `gates`, cheaper where many cells share few categories.

        Each combination of categories is embedded once. In a training step with 11
        categories and 128 cells that saves a third of all products.
        """
        sizes = {name: n + 1 for name, n in self.null_codes.items()}
        n_combinations = math.prod(sizes.values())
        if not sizes or n_combinations > MOST_COMBINATIONS:
            return self.gates(covariate_codes)
        rows = np.unravel_index(np.arange(n_combinations), tuple(sizes.values()))
        of_all = self.gates(
            {
                name: tf.constant(codes, tf.int32)
                for name, codes in zip(sizes, rows, strict=True)
            }
        )
        row = 0
        for name, size in sizes.items():
            row = row * size + covariate_codes[name]
        # A product with ones and zeros takes rows exactly, and so does its gradient.
        return tf.matmul(tf.one_hot(row, n_combinations, dtype=of_all.dtype), of_all)

    def shifts(self, step_index: tf.Tensor) -> tf.Tensor:
        """Return what is added to all layers side by side, ``(n_steps, n_units)``.

        Parameters
        ----------
        step_index
            Of the schedule that was trained on, ``(n_steps,)``.
        """
        return self.time_projection(tf.nn.silu(self.embed_steps(step_index)))

    def call(self, latent: tf.Tensor, shifts: tf.Tensor, gates: tf.Tensor) -> tf.Tensor:
        """Return the noise in latents, ``(n_cells, n_latent)``.

        Parameters
        ----------
        latent
            ``(n_cells, n_latent)``.
        shifts
            Of `shifts`, ``(n_cells, n_units)`` or a row that all cells share.
        gates
            Of `gates`, ``(n_cells, n_units)`` or a row that all cells share.
        """
        weights = tf.ones((1,), self.variable_dtype)
        by_layer = self.by_layer(gates[None])
        return self.denoise(latent, shifts, by_layer, weights).noise

    def by_layer(self, units: tf.Tensor) -> list[tf.Tensor]:
        """Return what stands side by side, gates or shifts, for each layer."""
        return tf.split(units, self._widths, axis=-1)

    def denoise(
        self,
        latent: tf.Tensor,
        shifts: tf.Tensor,
        gates: Sequence[tf.Tensor],
        weights: tf.Tensor,
        branch: int = 0,
        *,
        activate: Activate = normalized_silu,
    ) -> Denoised:
        """Return the weighted sum of the noise under several gates, and a feature.

        What comes before the first gate is computed once for all of them, and so is the
        output layer, of the sum.

        Parameters
        ----------
        latent
            ``(n_cells, n_latent)``.
        shifts
            Of `shifts`, ``(n_cells, n_units)`` or a row that all cells share.
        gates
            Of `gates`, ``(n_branches, n_cells, n_units)``, or rows that cells share,
            `by_layer`.
        weights
            ``(n_branches,)``, or those of each cell, ``(n_branches, n_cells)``; they
            add up to 1.
        branch
            Which connection a later step of `denoise_from` ends at, from 0, the
            outermost, to ``n_up - 1``, the innermost.
        activate
            `normalized_silu`, or the same compiled.
        """
        modulation = self._modulation(shifts, gates, activate)
        outputs = self._way_down(latent, modulation, self.n_up)
        feature = hidden = outputs.pop()
        for index in range(self.n_up):
            if index == self.n_up - 1 - branch:
                feature = hidden
            hidden = self._up(hidden, modulation, index, outputs.pop())
        return Denoised(self._output(hidden, weights, modulation.activate), feature)

    def denoise_from(
        self,
        feature: tf.Tensor,
        latent: tf.Tensor,
        shifts: tf.Tensor,
        gates: Sequence[tf.Tensor],
        weights: tf.Tensor,
        branch: int,
        *,
        activate: Activate = normalized_silu,
    ) -> tf.Tensor:
        """Return the same of `denoise`, with the inner layers as in an earlier step.

        Parameters
        ----------
        feature
            Of `denoise` with the same branch.
        latent, shifts, gates, weights, branch, activate
            As of `denoise`.

        References
        ----------
        Ma et al. (2024), DeepCache: Accelerating Diffusion Models for Free.
        https://arxiv.org/abs/2312.00858
        """
        modulation = self._modulation(shifts, gates, activate)
        outputs = self._way_down(latent, modulation, branch)
        hidden = feature
        for index in range(self.n_up - 1 - branch, self.n_up):
            hidden = self._up(hidden, modulation, index, outputs.pop())
        return self._output(hidden, weights, modulation.activate)

    def _modulation(
        self,
        shifts: tf.Tensor,
        gates: Sequence[tf.Tensor],
        activate: Activate,
    ) -> Modulation:
        n_layers = len(self._widths)
        return Modulation(
            [shift[None] for shift in self.by_layer(shifts)],
            [None] * n_layers if self.label_projection is None else gates,
            activate,
        )

    def _way_down(
        self, latent: tf.Tensor, modulation: Modulation, last: int
    ) -> list[tf.Tensor]:
        """Return the outputs of the layers on the way down, to number `last`."""
        hidden, outputs = latent[None], []
        for index in range(last + 1):
            hidden = self._layer(hidden, modulation, index)
            outputs.append(hidden)
        return outputs

    def _up(
        self, hidden: tf.Tensor, modulation: Modulation, index: int, added: tf.Tensor
    ) -> tf.Tensor:
        return self._layer(hidden, modulation, self.n_up + 1 + index, added)

    def _layer(
        self,
        hidden: tf.Tensor,
        modulation: Modulation,
        index: int,
        added: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Return one layer's output, ``(n_branches, n_cells, width)``."""
        units = _by_rows(self.layers[index], hidden)
        return modulation.activate(
            units,
            *self.norms[index].parameters,
            modulation.gates[index],
            modulation.shifts[index],
            added,
        )

    def _output(
        self, hidden: tf.Tensor, weights: tf.Tensor, activate: Activate
    ) -> tf.Tensor:
        units = activate(_by_rows(self.head, hidden), *self.head_norm.parameters)
        if units.shape[0] == 1:
            return self.output_layer(units[0])
        if weights.shape.rank == 1:
            weights = weights[:, None]
        return self.output_layer(tf.reduce_sum(weights[:, :, None] * units, axis=0))


def _mean_by_product(units: tf.Tensor) -> tf.Tensor:
    """Return the same, where XLA does not vectorise a sum over rows: on a CPU."""
    width = units.shape[-1]
    ones = tf.fill((width, 1), tf.constant(1 / width, units.dtype))
    means = tf.matmul(tf.reshape(units, (-1, width)), ones)
    return tf.reshape(means, (units.shape[0], -1, 1))


@functools.cache
def _compiled_silu() -> Activate:
    """Return `normalized_silu`, compiled once for all networks.

    XLA makes it three passes over memory in place of twelve, which take half as long as
    the products between them. With its gradient it is no faster than without XLA.
    """
    on_gpu = tf.config.list_physical_devices("GPU")
    compiled: Activate = tf.function(
        functools.partial(
            normalized_silu, mean_of=_mean_of_rows if on_gpu else _mean_by_product
        ),
        jit_compile=True,
        autograph=False,
    )
    return compiled


def _by_rows(layer: SizedLayer, units: tf.Tensor) -> tf.Tensor:
    """Apply a layer of matrices to the last of three axes, of static length."""
    rows = layer(tf.reshape(units, (-1, units.shape[-1])))
    return tf.reshape(rows, (units.shape[0], -1, rows.shape[-1]))


def _embed(features: tf.Tensor, layers: Sequence[Linear]) -> tf.Tensor:
    first, second = layers
    return second(tf.nn.silu(first(features)))


class GuidedDenoiser:
    """A denoiser in a run of sampling: what stays the same is computed once.

    Parameters
    ----------
    network
        Predicts the noise.
    step_index
        What the network is given as step, by position, ``(n_steps,)``.
    gates
        Of `Denoiser.gates`, ``(n_branches, n_cells, n_units)``.
    weights
        Of the branches, as of `Denoiser.denoise`.
    branch
        Of `Denoiser.denoise`, where a feature is taken.
    jit
        Compile what stands between products with XLA, on every device.
    """

    def __init__(
        self,
        network: Denoiser,
        step_index: tf.Tensor,
        gates: tf.Tensor,
        weights: tf.Tensor,
        branch: int = 0,
        *,
        jit: bool = True,
    ) -> None:
        self._network = network
        self._shifts = network.shifts(step_index)
        # Sliced here, and not anew in every step.
        self._rest = (network.by_layer(gates), weights, branch)
        self._activate = _compiled_silu() if jit else normalized_silu

    def whole(
        self, latent: tf.Tensor, position: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the noise ``(n_cells, n_latent)``, and a feature to start from."""
        shifts = self._shifts[position][None]
        return self._network.denoise(
            latent, shifts, *self._rest, activate=self._activate
        )

    def part(
        self, feature: tf.Tensor, latent: tf.Tensor, position: tf.Tensor
    ) -> tf.Tensor:
        """Return the noise ``(n_cells, n_latent)``, from a feature of `whole`."""
        shifts = self._shifts[position][None]
        return self._network.denoise_from(
            feature, latent, shifts, *self._rest, activate=self._activate
        )
