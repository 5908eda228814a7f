"""Which library size every cell of a request gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from cellgan.data.manifest import RNA, Combination, DatasetManifest
from cellgan.errors import ConfigError
from cellgan.generation.allotment import FEW_CELLS, matching_combinations
from cellgan.generation.integer_counts import uniform
from cellgan.seeds import derive_seed


def draw_library_sizes(
    codes: Mapping[str, npt.NDArray[np.int32]],
    manifest: DatasetManifest,
    how: str | int,
    *,
    seed: int,
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the library sizes of every cell, ``(n_cells,)`` by modality.

    Parameters
    ----------
    codes
        All covariates of every cell.
    how
        - ``"modelled"``: log-normal, with mean and standard deviation of the logarithm
          of the training cells of the same combination. Those of few cells are drawn
          towards those of their label; modalities correlate as in the label's cells
        - ``"copied"``: those of a training cell of the same combination
        - a number: that of RNA, for all cells; other modalities as with
          ``"modelled"``
    seed
        Seed of the request. The sizes of cell ``i`` depend on it, on ``i`` and on the
        cell's covariates.

    Raises
    ------
    ConfigError
        If the library sizes of the training cells are unknown, or `how` is none of
        these.
    """
    is_number = isinstance(how, int | np.integer) and how >= 1
    if not is_number and how not in ("modelled", "copied"):
        msg = (
            f"generation.library_size: {how!r} found, expected a number from 1 on, "
            '"modelled" or "copied".'
        )
        raise ConfigError(msg)
    if not any(c.library_sizes.get(RNA) for c in manifest.combinations):
        msg = (
            "generation.library_size: the library sizes of the training cells are "
            "unknown: their records hold normalised values. Process the data with "
            'input_ds.record_values "counts".'
        )
        raise ConfigError(msg)
    n_cells = len(codes[manifest.label])
    modalities = list(manifest.features)
    draws = np.stack(
        [
            uniform(derive_seed(seed, "library size", modality), 0, n_cells)
            for modality in modalities
        ]
    )
    sizes = np.empty((len(modalities), n_cells), np.float32)
    names = list(manifest.covariates)
    table = np.stack([codes[name] for name in names], axis=1)
    distinct, which = np.unique(table, axis=0, return_inverse=True)
    which = which.ravel()
    for index, row in enumerate(distinct):
        cells = which == index
        combination = dict(zip(names, row.tolist(), strict=True))
        draw = _copied if how == "copied" else _modelled
        sizes[:, cells] = draw(combination, manifest, modalities, draws[:, cells])
    sizes = np.maximum(sizes, 1.0)
    by_modality = dict(zip(modalities, sizes, strict=True))
    if is_number:
        by_modality[RNA] = np.full(n_cells, how, np.float32)
    return by_modality


def _copied(
    codes: Mapping[str, int],
    manifest: DatasetManifest,
    modalities: Sequence[str],
    draws: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    own = matching_combinations(codes, manifest) or _of_label(codes, manifest)
    weights = np.concatenate(
        [
            np.full(len(c.library_sizes[RNA]), c.n_cells / len(c.library_sizes[RNA]))
            for c in own
        ]
    )
    upper = np.cumsum(weights)
    chosen = np.searchsorted(upper, draws[0] * upper[-1], side="right")
    chosen = np.minimum(chosen, len(weights) - 1)
    return np.stack(
        [
            np.concatenate([c.library_sizes[modality] for c in own])[chosen]
            for modality in modalities
        ]
    )


def _modelled(
    codes: Mapping[str, int],
    manifest: DatasetManifest,
    modalities: Sequence[str],
    draws: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    own, label = matching_combinations(codes, manifest), _of_label(codes, manifest)
    n_own = own[0].n_cells if own else 0
    weight = n_own / (n_own + FEW_CELLS)
    normal = _correlated(ndtri(np.clip(draws, 1e-12, 1 - 1e-12)), label, modalities)
    sizes = np.empty_like(draws)
    for row, modality in enumerate(modalities):
        mean, sd = pooled_moments(label, modality)
        if own:
            own_sd = own[0].log_sd[modality]
            mean = weight * own[0].log_mean[modality] + (1 - weight) * mean
            sd = weight * (sd if own_sd is None else own_sd) + (1 - weight) * sd
        sizes[row] = np.exp(mean + sd * normal[row])
    return sizes


def _of_label(codes: Mapping[str, int], manifest: DatasetManifest) -> list[Combination]:
    label = {manifest.label: codes[manifest.label]}
    return matching_combinations(label, manifest) or list(manifest.combinations)


def pooled_moments(
    combinations: Sequence[Combination], modality: str
) -> tuple[float, float]:
    """Return mean and standard deviation of the log library sizes of all their cells.

    The standard deviation is the sample one; 0 for a single cell.
    """
    n = np.array([c.n_cells for c in combinations], np.float64)
    means = np.array([c.log_mean[modality] for c in combinations])
    sds = np.array([c.log_sd[modality] or 0.0 for c in combinations])
    mean = float((n * means).sum() / n.sum())
    squares = ((n - 1) * sds**2 + n * (means - mean) ** 2).sum()
    return mean, float(np.sqrt(squares / max(n.sum() - 1, 1)))


def _correlated(
    normal: npt.NDArray[np.float64],
    combinations: Sequence[Combination],
    modalities: Sequence[str],
) -> npt.NDArray[np.float64]:
    """Give independent normal numbers the correlation of the log library sizes."""
    if len(modalities) < 2:
        return normal
    sizes = np.log(
        [
            np.concatenate([c.library_sizes[modality] for c in combinations])
            for modality in modalities
        ]
    )
    if sizes.shape[1] < FEW_CELLS or np.ptp(sizes, axis=1).min() == 0:
        return normal
    correlation = np.clip(np.corrcoef(sizes), -0.999, 0.999)
    np.fill_diagonal(correlation, 1.0)
    return np.linalg.cholesky(correlation) @ normal
