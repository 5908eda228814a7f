"""What a processed data set is: names, vocabularies, sizes.

The manifest is written last, so its presence means that the records are complete. It
stays with the trained model: generation needs nothing else of the data.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cellgan.errors import DataError, did_you_mean

SCHEMA_VERSION = 1
SPLITS = ("train", "valid", "test")
RNA = "rna"
LIBRARY_SIZE_QUANTILES = 1001
"""At most this many quantiles of the library sizes are kept per category."""


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
class DatasetManifest:
    """What training and generation need to know of a processed data set."""

    features: Mapping[str, tuple[str, ...]]
    """Feature names by modality, in column order; ``features["rna"]`` are the genes."""
    covariates: Mapping[str, CovariateVocabulary]
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
        if version != SCHEMA_VERSION:
            msg = (
                f"schema version {version} found, expected {SCHEMA_VERSION}. "
                f"Run --process again with this version of cellgan."
            )
            raise DataError(msg)
        try:
            return cls(
                features=_tuples(document["features"]),
                covariates={
                    name: CovariateVocabulary(tuple(categories))
                    for name, categories in document["covariates"].items()
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
            )
        except KeyError as error:
            msg = f"the field {error} is missing. Run --process again."
            raise DataError(msg) from None


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
        msg = f"{path}: cannot be read: {error}. Run --process again."
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


def _tuples(lists: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    return {name: tuple(values) for name, values in lists.items()}
