from __future__ import annotations

import json
import subprocess
import sys

import anndata
import numpy as np
import pytest
import scipy.sparse as sp

from cellgan.errors import DataError
from cellgan.evaluation import cells as cells_room
from cellgan.evaluation import evaluate, metrics, plots
from cellgan.evaluation.cells import read_comparison
from tests.evaluation.folders import (
    generated_cells,
    permuted_genes,
    write_experiment,
    write_generated,
)
from tests.synthetic import SyntheticCells, make_cells

METRICS = {
    "mmd_squared",
    "classifier_auc",
    "classifier_auc_components",
    "mean_expression_correlation",
    "detection_rate_correlation",
    "correlation_of_correlations",
    "zero_fraction",
}


@pytest.fixture(scope="module", autouse=True)
def _fast():
    """Grow small forests and draw no map: both have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "N_TREES", 30)
        patch.setattr(plots, "embed", lambda cells, **options: cells[:, :2])
        yield


def split_cells(n_generated: int = 150):
    """Return cells for an experiment, and others of the same truth as generated."""
    cells = make_cells(400 + n_generated)
    real = SyntheticCells(cells.counts[:400], cells.labels[:400])
    return real, SyntheticCells(cells.counts[400:], cells.labels[400:])


@pytest.fixture(scope="module")
def perfect(tmp_path_factory):
    """Return an experiment whose generated cells are real, and its report."""
    real, made = split_cells()
    experiment = write_experiment(
        tmp_path_factory.mktemp("perfect") / "pbmc", real, n_test=120
    )
    write_generated(experiment, generated_cells(made.counts, made.labels))
    return experiment, evaluate(experiment, seed=1)


def test_report_returns_what_it_writes(perfect):
    experiment, report = perfect
    stored = json.loads((experiment.evaluation_folder / "report.json").read_text())
    assert stored == report
    assert set(report["metrics"]) == METRICS | {"label_agreement"}


def test_report_writes_its_figures(perfect):
    experiment, _ = perfect
    names = sorted(file.name for file in experiment.evaluation_folder.iterdir())
    assert names == ["correlations.png", "genes.png", "report.json", "tsne.png"]


def test_report_records_numbers_of_cells_and_the_space(perfect):
    _, report = perfect
    cells = report["cells"]
    assert cells["held_out"] == cells["generated"] == sum(cells["per_label"].values())
    assert cells["held_out_split"] == "test"
    assert report["space"]["library_size"] == 1000
    assert report["space"]["n_components"] == 50
    assert len(report["metrics"]["mmd_squared"]["bandwidths"]) == 5


def test_perfect_generator_reaches_the_ceiling(perfect):
    _, report = perfect
    values = {name: result["value"] for name, result in report["metrics"].items()}
    ceilings = {name: result["ceiling"] for name, result in report["metrics"].items()}
    # about 110 cells a side: 5 standard errors of an AUC are 0.2
    assert values["classifier_auc"] == pytest.approx(0.5, abs=0.2)
    assert ceilings["classifier_auc"] == pytest.approx(0.5, abs=0.2)
    assert values["label_agreement"] == ceilings["label_agreement"] == 1.0
    assert abs(values["mmd_squared"]) < 0.01
    correlations = [name for name in METRICS if "correlation" in name]
    assert len(correlations) == 3
    assert all(values[name] > ceilings[name] - 0.05 > 0.8 for name in correlations)
    assert values["zero_fraction"] == pytest.approx(ceilings["zero_fraction"], abs=0.02)


def test_report_tells_permuted_genes(tmp_path):
    real, made = split_cells()
    experiment = write_experiment(tmp_path / "pbmc", real, n_test=120)
    permuted = permuted_genes(made.counts)
    write_generated(experiment, generated_cells(permuted, made.labels))
    results = evaluate(experiment)["metrics"]
    assert results["classifier_auc"]["value"] > 0.9
    assert results["classifier_auc_components"]["value"] > 0.9
    assert results["mmd_squared"]["value"] > 10 * abs(results["mmd_squared"]["ceiling"])
    assert results["label_agreement"]["value"] < 0.7
    assert results["correlation_of_correlations"]["value"] < 0.5
    assert results["mean_expression_correlation"]["value"] > 0.95


def test_report_works_without_labels(tmp_path):
    real, made = split_cells()
    experiment = write_experiment(tmp_path / "pbmc", real, n_test=60, model="scGAN")
    write_generated(experiment, generated_cells(made.counts, None))
    report = evaluate(experiment)
    assert set(report["metrics"]) == METRICS
    assert report["cells"]["generated"] == report["cells"]["held_out"] == 60
    assert report["cells"]["per_label"] == {}


def test_control_cells_are_not_told_by_overfitted_components(tmp_path):
    # 130 cells of pure noise and 50 components: those of the cells they are learned
    # from are far larger than those of any other cell.
    noise = sp.csr_matrix(np.random.default_rng(0).poisson(2.0, size=(240, 400)) * 1.0)
    cells = SyntheticCells(noise, np.full(240, "type A"))
    experiment = write_experiment(tmp_path / "pbmc", cells, n_test=60)
    write_generated(experiment, generated_cells(noise[:80], cells.labels[:80]))
    ceiling = evaluate(experiment)["metrics"]["classifier_auc_components"]["ceiling"]
    assert ceiling == pytest.approx(0.5, abs=0.25)  # 5 standard errors for 60 cells


@pytest.fixture
def experiment(tmp_path):
    """Return a processed experiment without generated cells."""
    return write_experiment(tmp_path / "pbmc")


def made_cells() -> anndata.AnnData:
    cells = make_cells(90, seed=0)
    return generated_cells(cells.counts, cells.labels)


def test_comparison_is_the_same_for_counts_scaled_values_and_shuffled_genes(
    experiment, tmp_path
):
    cells = make_cells(90)
    scaled = generated_cells(cells.counts, cells.labels)
    counts = scaled.copy()
    counts.X = cells.counts
    shuffled = scaled[:, np.random.default_rng(0).permutation(scaled.n_vars)].copy()
    compared = []
    for name, variant in {"s": scaled, "c": counts, "g": shuffled}.items():
        variant.write_h5ad(tmp_path / f"{name}.h5ad")
        compared.append(
            read_comparison(experiment, tmp_path / f"{name}.h5ad", seed=0).generated
        )
    first = compared[0].log_values.toarray()
    np.testing.assert_allclose(compared[1].log_values.toarray(), first, rtol=1e-5)
    np.testing.assert_array_equal(compared[2].log_values.toarray(), first)


def test_comparison_matches_numbers_of_every_label_and_keeps_sets_apart(
    experiment, monkeypatch
):
    monkeypatch.setattr(cells_room, "MOST_CELLS", 40)
    path = write_generated(experiment, made_cells())
    compared = read_comparison(experiment, path, seed=0)
    np.testing.assert_array_equal(
        np.unique_counts(compared.held_out.labels).counts,
        np.unique_counts(compared.generated.labels).counts,
    )
    assert 10 < len(compared.held_out) <= 40
    rows = [
        {row.tobytes() for row in cells.log_values.toarray()}
        for cells in (compared.training, compared.control, compared.held_out)
    ]
    assert rows[0].isdisjoint(rows[1])
    assert rows[2].isdisjoint(rows[0] | rows[1])


def test_comparison_takes_valid_cells_when_there_are_no_test_cells(tmp_path):
    experiment = write_experiment(tmp_path / "pbmc", n_test=0, n_valid=60)
    path = write_generated(experiment, made_cells())
    assert read_comparison(experiment, path, seed=0).split == "valid"


def test_comparison_drops_genes_that_only_one_file_has(experiment):
    cells = made_cells()
    cells.var_names = ["other", *cells.var_names[1:]]
    compared = read_comparison(experiment, write_generated(experiment, cells), seed=0)
    assert compared.genes == tuple(cells.var_names[1:])
    assert compared.generated.log_values.shape[1] == len(compared.genes)


def test_evaluation_asks_for_generate_when_there_are_no_generated_cells(experiment):
    with pytest.raises(DataError, match=r"cells\.h5ad: no such file.*--generate"):
        evaluate(experiment)


def test_evaluation_asks_for_held_out_cells_when_there_are_none(tmp_path):
    experiment = write_experiment(tmp_path / "pbmc", n_test=0)
    write_generated(experiment, made_cells())
    with pytest.raises(DataError, match=r"no held-out cells[\s\S]*test_cells"):
        evaluate(experiment)


def test_evaluation_asks_for_process_when_there_is_no_processed_file(experiment):
    write_generated(experiment, made_cells())
    experiment.processed_file.unlink()
    with pytest.raises(DataError, match=r"processed\.h5ad: no such file.*--process"):
        evaluate(experiment)


def test_evaluation_names_a_file_that_is_no_h5ad(experiment):
    path = write_generated(experiment, made_cells())
    path.write_bytes(b"not a file of cells")
    with pytest.raises(DataError, match=r"cells\.h5ad: cannot be read"):
        evaluate(experiment)


def test_evaluation_compares_gene_names_when_none_is_shared(experiment):
    cells = made_cells()
    cells.var_names = [str(gene) for gene in range(cells.n_vars)]
    write_generated(experiment, cells)
    with pytest.raises(DataError, match=r'0 of its 60 genes.*"0".*"gene_0"'):
        evaluate(experiment)


def test_evaluation_refuses_negative_values(experiment):
    cells = made_cells()
    cells.X.data *= -1
    write_generated(experiment, cells)
    with pytest.raises(DataError, match="negative or not finite"):
        evaluate(experiment)


def test_evaluation_refuses_too_few_cells_and_keeps_the_earlier_report(experiment):
    report = experiment.evaluation_folder / "report.json"
    report.parent.mkdir()
    report.write_text("earlier")
    write_generated(experiment, made_cells()[:5].copy())
    with pytest.raises(DataError, match=r"too few cells to compare .*10 of each"):
        evaluate(experiment)
    assert report.read_text() == "earlier"


@pytest.mark.slow
def test_evaluation_room_loads_neither_tensorflow_nor_pyplot():
    program = (
        "import sys, cellgan.evaluation; "
        "print([m for m in ('tensorflow', 'keras', 'matplotlib.pyplot') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
