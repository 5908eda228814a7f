"""The sanity of the numbers on real cells, where genes have structure of many kinds."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from cellgan.evaluation import metrics
from tests.evaluation.folders import permuted_genes

pytestmark = [pytest.mark.slow, pytest.mark.realdata]

N_CELLS = 1000  # of each side; the standard error of an AUC is then 0.013


@pytest.fixture(scope="module")
def sides(data_dir):
    """Return the variable genes of PBMC: two halves, and one of them permuted."""
    cells = anndata.read_h5ad(data_dir / "pbmc3k_raw.h5ad")
    order = np.random.default_rng(0).permutation(cells.n_obs)
    first, second, others = np.split(order, [N_CELLS, 2 * N_CELLS])
    counts = {
        "training": cells.X[others],
        "real": cells.X[first],
        "other real": cells.X[second],
        "permuted": permuted_genes(cells.X[second]),
    }
    values = {name: metrics.log_expression(x, 10_000) for name, x in counts.items()}
    space = metrics.fit_space(values["training"], seed=0)
    return {name: space.variable_genes(x) for name, x in values.items()}


def test_real_cells_are_not_told_from_real_cells(sides):
    auc = metrics.classifier_auc(sides["real"], sides["other real"], seed=0)
    assert auc == pytest.approx(0.5, abs=0.08)


def test_cells_with_permuted_genes_are_told_from_real_cells(sides):
    assert metrics.classifier_auc(sides["real"], sides["permuted"], seed=0) > 0.9
