"""What a processed data set is: names, vocabularies, sizes.

The manifest is written last, so its presence means that the records are complete. It
stays with the trained model: generation needs nothing else of the data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cellgan.errors import DataError, did_you_mean

SCHEMA_VERSION = 2
FIRST_VERSION = 1
"""Without combinations and binary modalities; the label was the only covariate."""
SPLITS = ("train", "valid", "test")
RNA = "rna"
ATAC = "atac"
LIBRARY_SIZE_QUANTILES = 1001
"""At most this many quantiles of the library sizes are kept per category, and at most
this many cells' library sizes per combination of categories."""


@dataclasses.dataclass(frozen=True)
class CovariateVocabulary:
    """The categories of one covariate; the code of a category is its position."""

    categories: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.categories)

    def encode(self, values: Sequence[str]) -> npt.NDArray[np.int32]:
        """Return the codes of category names.

        Raises
        ------
        DataError
            If a value is no category; the known ones are listed.
        """
        codes = {category: code for code, category in enumerate(self.categories)}
        for value in values:
            if value not in codes:
                msg = (
                    f'"{value}" is not a known category.'
                    f"{did_you_mean(value, self.categories)}\n"
                    f"    Categories: {', '.join(self.categories)}."
                )
                raise DataError(msg)
        return np.array([codes[value] for value in values], dtype=np.int32)

    def decode(self, codes: npt.ArrayLike) -> npt.NDArray[np.str_]:
        """Return the category names of codes."""
        return np.asarray(self.categories)[np.asarray(codes)]


@dataclasses.dataclass(frozen=True)
class Combination:
    """Training cells that agree in all covariates: who they are, and how large.

    Everything about library sizes is empty for records of normalised values.
    """

    codes: Mapping[str, int]
    """covariate -> code."""
    n_cells: int
    """Number of training cells, at least 1."""
    log_mean: Mapping[str, float]
    """modality -> mean natural logarithm of the cells' library sizes."""
    log_sd: Mapping[str, float | None]
    """modality -> its sample standard deviation; None for a single cell."""
    library_sizes: Mapping[str, tuple[float, ...]]
    """modality -> library sizes of some of the cells (of all when there are few),
    evenly spaced and ascending by RNA library size. The same cells in the same
    order in every modality, so that RNA and ATAC sizes can be drawn together."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Combination:
        """Build a combination from its fields as JSON stores them."""
        return cls(
            codes=document["codes"],
            n_cells=document["n_cells"],
            log_mean=document["log_mean"],
            log_sd=document["log_sd"],
            library_sizes=_tuples(document["library_sizes"]),
        )


class LogMoments(NamedTuple):
    """Moments of the natural logarithms of some library sizes."""

    mean: float
    sd: float | None
    """Sample standard deviation (ddof 1); None of a single cell."""
    smallest: float
    largest: float


@dataclasses.dataclass(frozen=True)
class DatasetManifest:
    """What training and generation need to know of a processed data set."""

    features: Mapping[str, tuple[str, ...]]
    """Feature names by modality, in column order; ``features["rna"]`` are the genes,
    ``features["atac"]``, if there, the peaks."""
    covariates: Mapping[str, CovariateVocabulary]
    """The label first, then the others by name."""
    label: str
    """The covariate that cscGAN is conditioned on; a key of `covariates`."""
    target_library_size: int
    """Library size that expression is scaled to."""
    record_values: str
    """``"counts"``, or ``"normalized"`` when the records hold scaled values."""
    split_sizes: Mapping[str, int]
    """Number of cells of ``"train"``, ``"valid"`` and ``"test"``."""
    cells_per_category: Mapping[str, Mapping[str, tuple[int, ...]]]
    """split -> covariate -> number of cells of each category, in code order."""
    library_sizes: Mapping[str, tuple[tuple[float, ...], ...]]
    """modality -> for each label, evenly spaced quantiles (0 to 1) of the library
    sizes of its training cells: all of them, sorted, when there are few. Empty for a
    label without training cells, and for records of normalised values, whose library
    sizes are unknown."""
    shards: Mapping[str, int]
    """Record file -> number of cells in it."""
    combinations: tuple[Combination, ...] = ()
    """The combinations of covariates that training cells have, by codes: that of the
    label first, then those of the others in the order of `covariates`."""
    binary: tuple[str, ...] = ()
    """Modalities whose values are 0 or 1; their library size is the number of ones."""
    schema_version: int = SCHEMA_VERSION

    @property
    def label_vocabulary(self) -> CovariateVocabulary:
        """Vocabulary of the label."""
        return self.covariates[self.label]

    @property
    def label_ratios(self) -> npt.NDArray[np.float64]:
        """Share of each label among the training cells, in code order."""
        counts = np.asarray(self.cells_per_category["train"][self.label], np.float64)
        return counts / counts.sum()

    def as_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON values; `from_json` reads them back."""
        document = dataclasses.asdict(self)
        document["covariates"] = {
            name: list(vocabulary.categories)
            for name, vocabulary in self.covariates.items()
        }
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> DatasetManifest:
        """Build a manifest from `as_json`'s values.

        Raises
        ------
        DataError
            If the schema version is another one, or a field is missing.
        """
        version = document.get("schema_version")
        if version not in (FIRST_VERSION, SCHEMA_VERSION):
            msg = (
                f"schema version {version} found, expected {SCHEMA_VERSION}. "
                f"Run --process --overwrite with this version of cellgan: what was "
                f"trained goes, too."
            )
            raise DataError(msg)
        try:
            if version == FIRST_VERSION:
                document = _of_first_version(document)
            return cls(
                features=_tuples(document["features"]),
                covariates={
                    name: CovariateVocabulary(tuple(document["covariates"][name]))
                    for name in _label_first(document["covariates"], document["label"])
                },
                label=document["label"],
                target_library_size=document["target_library_size"],
                record_values=document["record_values"],
                split_sizes=document["split_sizes"],
                cells_per_category={
                    split: _tuples(counts)
                    for split, counts in document["cells_per_category"].items()
                },
                library_sizes={
                    modality: tuple(tuple(sizes) for sizes in by_label)
                    for modality, by_label in document["library_sizes"].items()
                },
                shards=document["shards"],
                combinations=tuple(
                    map(Combination.from_json, document["combinations"])
                ),
                binary=tuple(document["binary"]),
            )
        except KeyError as error:
            msg = f"the field {error} is missing. Run --process --overwrite."
            raise DataError(msg) from None


def _of_first_version(document: Mapping[str, Any]) -> dict[str, Any]:
    """Add what version 1 lacks. Moments are those of the quantiles it kept."""
    label = document["label"]
    n_cells = document["cells_per_category"]["train"][label]
    by_label = document["library_sizes"][RNA]
    combinations = []
    for code, (n, sizes) in enumerate(zip(n_cells, by_label, strict=True)):
        if n:
            known = {RNA: np.asarray(sizes)} if sizes else {}
            combination = _combination({label: code}, known, n)
            combinations.append(dataclasses.asdict(combination))
    return {**document, "combinations": combinations, "binary": []}


def read_manifest(path: Path) -> DatasetManifest:
    """Read a manifest file.

    Raises
    ------
    DataError
        If the file is missing (the data are not processed, or not completely), is
        damaged, or is of another schema version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{path}: no such file. Run --process first."
        raise DataError(msg) from None
    except (OSError, ValueError) as error:
        msg = f"{path}: cannot be read: {error}. Run --process --overwrite."
        raise DataError(msg) from None
    try:
        return DatasetManifest.from_json(document)
    except DataError as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from None


def library_size_quantiles(sizes: npt.ArrayLike) -> tuple[float, ...]:
    """Summarise library sizes by at most `LIBRARY_SIZE_QUANTILES` quantiles."""
    ordered = np.sort(np.asarray(sizes, dtype=np.float64))
    if len(ordered) > LIBRARY_SIZE_QUANTILES:
        ordered = np.quantile(ordered, np.linspace(0, 1, LIBRARY_SIZE_QUANTILES))
    return tuple(ordered.tolist())


def log_moments(library_sizes: npt.ArrayLike) -> LogMoments:
    """Return the moments of the logarithms of positive library sizes, at least one."""
    logarithms = np.log(np.asarray(library_sizes, dtype=np.float64))
    sd = float(logarithms.std(ddof=1)) if len(logarithms) > 1 else None
    smallest, largest = float(logarithms.min()), float(logarithms.max())
    return LogMoments(float(logarithms.mean()), sd, smallest, largest)


def find_combinations(
    codes: Mapping[str, npt.NDArray[np.integer[Any]]],
    library_sizes: Mapping[str, npt.NDArray[np.floating[Any]]],
) -> tuple[Combination, ...]:
    """Return the combinations of categories that some cells have, by codes.

    Parameters
    ----------
    codes
        ``[covariate]`` ``(n_cells,)``, at least one; combinations are in the order of
        the first covariate's codes, then of the second's, and so on.
    library_sizes
        ``[modality]`` ``(n_cells,)``, positive, RNA among them; empty if unknown.
    """
    distinct, combination_of, n_cells = np.unique(
        np.stack(list(codes.values()), axis=1),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    order = np.argsort(combination_of, kind="stable")
    groups = np.split(order, np.cumsum(n_cells)[:-1])
    return tuple(
        _combination(
            dict(zip(codes, row, strict=True)),
            {modality: sizes[cells] for modality, sizes in library_sizes.items()},
            len(cells),
        )
        for row, cells in zip(distinct.tolist(), groups, strict=True)
    )


def _combination(
    codes: Mapping[str, int],
    library_sizes: Mapping[str, npt.NDArray[np.floating[Any]]],
    n_cells: int,
) -> Combination:
    kept = np.zeros(0, np.int64)
    if library_sizes:
        ascending = np.argsort(library_sizes[RNA], kind="stable")
        n_kept = min(len(ascending), LIBRARY_SIZE_QUANTILES)
        spread = np.linspace(0, len(ascending) - 1, n_kept)
        kept = ascending[np.rint(spread).astype(np.int64)]
    moments = {name: log_moments(sizes) for name, sizes in library_sizes.items()}
    return Combination(
        codes=codes,
        n_cells=n_cells,
        log_mean={name: found.mean for name, found in moments.items()},
        log_sd={name: found.sd for name, found in moments.items()},
        library_sizes={
            name: tuple(sizes[kept].tolist()) for name, sizes in library_sizes.items()
        },
    )


def _label_first(names: Iterable[str], label: str) -> list[str]:
    return sorted(names, key=lambda name: (name != label, name))


def _tuples(lists: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(values) for name, values in lists.items()}
