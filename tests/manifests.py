"""Manifests of data sets that were never made."""

from __future__ import annotations

from collections.abc import Sequence

from cellgan.manifest import CovariateVocabulary, DatasetManifest


def make_manifest(
    labels: Sequence[str] = ("B", "T"),
    trained: Sequence[int] = (30, 70),
    n_genes: int = 6,
    library_sizes: Sequence[Sequence[float]] | None = None,
    target_library_size: int = 1000,
) -> DatasetManifest:
    """Make a manifest whose records hold counts; labels are of ``cluster``.

    Library sizes of label ``k`` are spread from ``500 (k + 1)`` to ``600 (k + 1)``
    unless given.
    """
    if library_sizes is None:
        library_sizes = [(500.0 * k, 600.0 * k) for k in range(1, len(labels) + 1)]
    none = (0,) * len(labels)
    return DatasetManifest(
        features={"rna": tuple(f"gene{gene}" for gene in range(n_genes))},
        covariates={"cluster": CovariateVocabulary(tuple(labels))},
        label="cluster",
        target_library_size=target_library_size,
        record_values="counts",
        split_sizes={"train": sum(trained), "valid": 0, "test": 0},
        cells_per_category={
            "train": {"cluster": tuple(trained)},
            "valid": {"cluster": none},
            "test": {"cluster": none},
        },
        library_sizes={"rna": tuple(map(tuple, library_sizes))},
        shards={},
    )
