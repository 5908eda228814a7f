"""The sanity of the numbers on real cells, where genes have structure of many kinds."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from cellgan.evaluation.comparison.pairs import make_pair
from cellgan.evaluation.comparison.sides import compare_files
from cellgan.evaluation.metrics import classifiers
from cellgan.evaluation.metrics.modalities import cross_modal_metrics
from cellgan.evaluation.suite import make_sides
from tests.evaluation.corruptions import as_it_is, comparison
from tests.evaluation.folders import permuted_genes
from tests.synthetic import SyntheticCells

pytestmark = [pytest.mark.slow, pytest.mark.realdata]


def permuted(cells: SyntheticCells) -> SyntheticCells:
    return SyntheticCells(permuted_genes(cells.counts), cells.labels)


@pytest.fixture(scope="module")
def parts(data_dir):
    """Return PBMC: half to train on, a quarter held out, a quarter as generated."""
    cells = anndata.read_h5ad(data_dir / "pbmc3k_raw.h5ad")
    labels = np.asarray(cells.obs["cell_type"].astype(str))
    order = np.random.default_rng(0).permutation(cells.n_obs)
    cuts = [cells.n_obs // 2, 3 * cells.n_obs // 4]
    return [
        SyntheticCells(cells.X[rows], labels[rows]) for rows in np.split(order, cuts)
    ]


def aucs(parts, spoil) -> dict[str, float]:
    training, held_out, generated = parts
    compared = comparison(training, held_out, spoil(generated))
    sides = make_sides(compared, compared.modalities["rna"], seed=0)
    pair = make_pair(sides.held_out, sides.generated, sides.frame, 0)
    found = classifiers.auc_metrics(pair, classifiers.fit_out_of_fold(pair))
    return {name: float(draws[0]) for name, draws in found.items()}


def test_real_cells_are_not_told_from_real_cells(parts):
    # about 600 cells a side: the standard error of an AUC is 0.016
    assert all(abs(auc - 0.5) < 0.08 for auc in aucs(parts, as_it_is).values())


def test_cells_with_permuted_genes_are_told_from_real_cells(parts):
    found = aucs(parts, permuted)
    assert found["forest_auc_genes"] > 0.9
    assert found["forest_auc_components"] > 0.9


def link(data_dir):
    """Return RNA and ATAC of the same cells, in the spaces of a report."""
    path = data_dir / "a549_scicar_multiome_raw.h5mu"
    compared = compare_files(path, path)
    return [
        make_sides(compared, compared.modalities[name], seed=0, by_dispersion=is_rna)
        for name, is_rna in (("rna", True), ("atac", False))
    ]


def test_atac_that_belongs_to_other_cells_is_seen(data_dir):
    """Half of the cells keep their ATAC, then none; real cells are the ceiling."""
    rna, atac = link(data_dir)
    rng = np.random.default_rng(0)
    own = np.arange(len(atac.control))
    half = own.copy()
    half[::2] = rng.permutation(half[::2])
    found = {}
    for name, rows in {"own": own, "half": half, "none": rng.permutation(own)}.items():
        first = make_pair(rna.held_out, rna.control, rna.frame, 50)
        second = make_pair(atac.held_out, atac.control.take(rows), atac.frame, 50)
        found[name] = cross_modal_metrics(first, second)
    for metric in ("cross_modal_matching", "cross_modal_correlation"):
        own, half, none = (found[name][metric][0] for name in ("own", "half", "none"))
        error = found["own"][metric].std()
        assert abs(own - none) > 5 * error
        assert abs(half - none) > 2.5 * error
        assert abs(own - half) > 2.5 * error
        assert (own - half) * (half - none) > 0
    assert found["none"]["cross_modal_matching"][0] == pytest.approx(0.5, abs=0.03)
