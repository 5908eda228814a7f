"""Manifests of data sets that were never made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from cellgan.data.manifest import Combination, CovariateVocabulary, DatasetManifest


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
        combinations=tuple(
            make_combination({"cluster": code}, n_cells, {"rna": tuple(sizes)})
            for code, (n_cells, sizes) in enumerate(
                zip(trained, library_sizes, strict=True)
            )
            if n_cells
        ),
    )


def make_combination(
    codes: Mapping[str, int],
    n_cells: int,
    library_sizes: Mapping[str, Sequence[float]],
) -> Combination:
    """Make a combination whose moments are those of the library sizes given."""
    logs = {name: np.log(sizes) for name, sizes in library_sizes.items() if len(sizes)}
    return Combination(
        codes=dict(codes),
        n_cells=n_cells,
        log_mean={name: float(of.mean()) for name, of in logs.items()},
        log_sd={
            name: float(of.std(ddof=1)) if len(of) > 1 else None
            for name, of in logs.items()
        },
        library_sizes={name: tuple(sizes) for name, sizes in library_sizes.items()},
    )
