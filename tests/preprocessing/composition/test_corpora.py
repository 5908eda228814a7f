"""Corpora of a study: the same bytes anywhere, the right cells, and bad files."""

from __future__ import annotations

import gzip
import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellgan.cli import main
from cellgan.composition.study import Study
from cellgan.config.composition import VariableGenes
from cellgan.config.reading import load_parameters
from cellgan.config.sources import Filter, Quality, Source
from cellgan.data.shards import RECORD_FILES, read_shard
from cellgan.errors import CellganError, ConfigError, DataError
from cellgan.evaluation.metrics.reconstruction import (
    log_normalized,
    most_dispersed_genes,
)
from cellgan.experiment import Experiment
from preprocessing.composition import genes as study_genes
from preprocessing.composition.corpora import process_composition, summary
from preprocessing.composition.sources import (
    HUMAN_MITO_IDS,
    filter_mask,
    filter_source,
    mito_mask,
    open_source,
)
from tests.composition_studies import (
    composition,
    donors,
    write_parameters,
    write_source,
)
from tests.preprocessing.raw_files import zarr_v3
from tests.synthetic import make_cells


def process(folder: Path, block: dict[str, Any], *, overwrite: bool = False) -> Study:
    file = write_parameters(folder, block)
    study = Study(
        folder / "experiments" / "study", load_parameters(file).studies["study"]
    )
    process_composition(study, overwrite=overwrite)
    return study


def counts_of(study: Study, name: str) -> tuple[dict[str, np.ndarray], Experiment]:
    """Return every cell's counts by its name in the records."""
    experiment = Experiment.open(study.folder / name)
    manifest = experiment.manifest()
    found = {}
    for file in RECORD_FILES:
        cells = read_shard(experiment.records_folder / file, manifest)
        found |= dict(zip(cells.barcodes, cells.values.toarray(), strict=True))
    return found, experiment


def table_of(study: Study) -> pd.DataFrame:
    return pd.read_csv(study.cells_file)


def test_records_hold_the_planned_cells_with_their_counts(tmp_path: Path) -> None:
    block = composition(tmp_path)
    block["sources"]["blood"]["cells"] = 60
    block["valid_fraction"] = 0.1
    study = process(tmp_path, block)

    found, experiment = counts_of(study, "plus-seed0")
    table = table_of(study)
    planned = table[table["mixture"] == "plus"]
    assert set(found) == {f"{row.source}:{row.cell}" for row in planned.itertuples()}
    for source in ("blood", "marrow"):
        raw = ad.read_h5ad(tmp_path / f"{source}.h5ad")
        for name in planned["cell"][planned["source"] == source]:
            expected = raw[name].X.toarray()[0]
            np.testing.assert_array_equal(found[f"{source}:{name}"], expected)
    manifest = experiment.manifest()
    assert manifest.split_sizes == {"train": 126, "valid": 14, "test": 0}
    assert manifest.cells_per_category["train"]["source"] == (54, 72)


def test_no_cell_of_an_evaluation_set_is_trained_on(tmp_path: Path) -> None:
    study = process(tmp_path, composition(tmp_path))

    held_out = ad.read_h5ad(study.evaluation_file("blood"))
    raw = ad.read_h5ad(tmp_path / "blood.h5ad")[held_out.obs_names]
    np.testing.assert_array_equal(held_out.X.toarray(), raw.X.toarray())
    trained = table_of(study)
    assert len(trained) == 80 + 160 + 160
    assert not set(trained["cell"]) & set(held_out.obs_names)
    overlaps = [of["overlap"] for of in study.manifest()["corpora"].values()]
    nothing = {"cells": 0, "groups": 0}
    assert overlaps == [{"blood": nothing, "marrow": nothing}] * 3


def test_manifest_and_table_are_the_same_bytes_from_files_stored_otherwise(
    tmp_path: Path,
) -> None:
    written = []
    for name in ("dense", "zarr"):
        folder = tmp_path / name
        folder.mkdir()
        block = composition(folder)
        for source in ("blood", "marrow"):
            cells = ad.read_h5ad(folder / f"{source}.h5ad")
            if name == "zarr":
                (folder / source).mkdir()
                path = zarr_v3(cells, folder / source)
                block["sources"][source]["file"] = str(path)
            else:
                cells.X = cells.X.toarray()
                cells.write_h5ad(folder / f"{source}.h5ad", compression="gzip")
        study = process(folder, block)
        document = json.loads(study.manifest_file.read_text())
        for source in document["composition"]["sources"].values():
            source["file"] = ""  # as it is named differs
        written.append((document, study.cells_file.read_bytes()))

    assert written[0] == written[1]
    assert gzip.decompress(written[0][1]).startswith(b"mixture,seed,source,cell,slot,")


def test_same_parameters_give_the_same_bytes_again(tmp_path: Path) -> None:
    study = process(tmp_path, composition(tmp_path))
    before = [f.read_bytes() for f in (study.manifest_file, study.cells_file)]
    study.manifest_file.unlink()

    process(tmp_path, composition(tmp_path))

    assert [f.read_bytes() for f in (study.manifest_file, study.cells_file)] == before


def test_changing_one_mixture_writes_only_its_corpus_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    study = process(tmp_path, composition(tmp_path))
    study.report_folder.mkdir()
    for name in ("base", "control", "plus"):
        (study.folder / f"{name}-seed0" / "job").mkdir()
    block = composition(tmp_path)
    block["mixtures"]["plus"][1]["cells"] = 20
    with pytest.raises(ConfigError, match=r"mixtures of the composition differ"):
        process(tmp_path, block)

    process(tmp_path, block, overwrite=True)

    why = "replacing plus-seed0 and what was trained on them (composition.mixtures"
    assert why in caplog.text
    assert not study.report_folder.exists()
    kept = [
        name
        for name in ("base", "control", "plus")
        if (study.folder / f"{name}-seed0" / "job").exists()
    ]
    assert kept == ["base", "control"]


def test_missing_corpus_is_written_again_alone(tmp_path: Path) -> None:
    study = process(tmp_path, composition(tmp_path))
    times = {
        name: (study.folder / f"{name}-seed0" / "manifest.json").stat().st_mtime_ns
        for name in ("base", "control")
    }
    shutil.rmtree(study.folder / "plus-seed0")

    process(tmp_path, composition(tmp_path))

    assert (study.folder / "plus-seed0" / "manifest.json").exists()
    for name, time in times.items():
        file = study.folder / f"{name}-seed0" / "manifest.json"
        assert file.stat().st_mtime_ns == time


# Genes.


def genes_of(study: Study) -> tuple[str, ...]:
    return Experiment.open(study.folder / "base-seed0").manifest().features["rna"]


def other_genes(folder: Path, genes: list[str]) -> dict[str, Any]:
    block = composition(folder)
    write_source(folder / "marrow.h5ad", 1, genes=genes)
    return block


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("intersection", [f"gene_{number:02d}" for number in range(10, 40)]),
        ("union", [f"gene_{number:02d}" for number in range(50)]),
        (["gene_45", "gene_02", "gene_x"], ["gene_02", "gene_45", "gene_x"]),
    ],
)
def test_genes_are_by_rule_and_sorted(
    tmp_path: Path, rule: Any, expected: list[str]
) -> None:
    block = other_genes(tmp_path, [f"gene_{n:02d}" for n in reversed(range(10, 50))])
    block["genes"] = rule
    block["sources"]["blood"]["cells"] = 30
    study = process(tmp_path, block)

    assert genes_of(study) == tuple(expected)
    found, _ = counts_of(study, "plus-seed0")
    raw = {
        source: ad.read_h5ad(tmp_path / f"{source}.h5ad").to_df()
        for source in ("blood", "marrow")
    }
    for name, counts in found.items():
        source, _, cell = name.partition(":")
        aligned = raw[source].loc[cell].reindex(expected, fill_value=0)
        np.testing.assert_array_equal(counts, aligned.to_numpy())


def test_variable_genes_are_those_of_the_dense_computation(tmp_path: Path) -> None:
    counts = make_cells(200, 150, seed=3).counts
    path = tmp_path / "blood.h5ad"
    obs = pd.DataFrame(index=[f"cell_{n}" for n in range(200)])
    var = pd.DataFrame(index=[f"gene_{n:03d}" for n in range(150)])
    ad.AnnData(counts, obs, var).write_h5ad(path)
    expected = most_dispersed_genes(log_normalized(counts), 20)

    with open_source(Source(file=str(path)), "sources.blood", ()) as file:
        names = study_genes.gene_names(file)
        genes = np.array(sorted(names.names), dtype=object)
        chosen = study_genes.dispersed_genes(
            VariableGenes(source="blood", n=20),
            file,
            np.ones(200, bool),
            names.columns_in(genes),
            genes,
        )

    assert chosen.tolist() == var.index[expected].tolist()


@pytest.fixture
def warned(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], list[str]]:
    """Return what gives the warnings so far, whoever has set up logging before."""
    monkeypatch.setattr(logging.getLogger("preprocessing"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


def test_evaluation_cells_are_aligned_by_the_names_of_genes(
    tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    block = composition(tmp_path)
    names = [f"gene_{number:02d}" for number in range(40)]
    shuffled = [*names[39:10:-1], "extra", *names[:4]]  # without genes 4 to 10
    cells = write_source(tmp_path / "e.h5ad", 9, n_cells=90, genes=shuffled)
    external = {"file": str(tmp_path / "e.h5ad")}
    block["evaluations"] = {"e": {"external": external, "cells": 70}}

    study = process(tmp_path, block)

    found = ad.read_h5ad(study.evaluation_file("e"))
    aligned = cells.to_df().loc[found.obs_names].reindex(columns=names, fill_value=0)
    np.testing.assert_array_equal(found.X.toarray(), aligned.to_numpy())
    assert found.var_names.tolist() == names
    assert found.n_obs == 70
    assert study.manifest()["evaluations"]["e"]["genes"]["missing"] == 7
    assert not warned()  # 33 of 40 genes are there, more than 80 %


def test_few_genes_in_common_are_told(
    tmp_path: Path, warned: Callable[[], list[str]]
) -> None:
    block = composition(tmp_path)
    names = [f"gene_{number:02d}" for number in range(31)]
    write_source(tmp_path / "e.h5ad", 9, genes=[*names, "extra"])
    external = {"file": str(tmp_path / "e.h5ad")}
    block["evaluations"] = {"e": {"external": external}}

    document = process(tmp_path, block).manifest()

    (warning,) = warned()
    assert "only 31 of the study's 40 genes are in" in warning
    said = "evaluation e: 300 cells; 9 of the 40 genes are not in its file and count"
    assert said in summary(document)


def test_report_of_the_same_cells_is_kept(tmp_path: Path) -> None:
    study = process(tmp_path, composition(tmp_path))
    study.report_folder.mkdir()

    process(tmp_path, composition(tmp_path), overwrite=True)

    assert study.report_folder.exists()


def test_evaluation_without_a_gene_of_the_study_is_refused(tmp_path: Path) -> None:
    block = composition(tmp_path)
    write_source(tmp_path / "e.h5ad", 9, genes=[f"other_{n}" for n in range(40)])
    external = {"file": str(tmp_path / "e.h5ad")}
    block["evaluations"] = {"e": {"external": external}}

    with pytest.raises(CellganError, match="no cell is left"):
        process(tmp_path, block)


def named_source(folder: Path, **options: Any) -> Source:
    """Write four genes, two of which have one id, and one none."""
    path = folder / "named.h5ad"
    ad.AnnData(
        sp.csr_matrix(np.array([[1, 2, 4, 8], [0, 3, 0, 1]], np.float32)),
        obs=pd.DataFrame(index=["x", "y"]),
        var=pd.DataFrame(
            {"id": ["E1.4", "E2.1", "E1.9", "E3.2"]}, index=["a", "b", "c", "d"]
        ),
    ).write_h5ad(path)
    return Source(file=str(path), **options)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("sum", [[5, 2], [0, 3]]),
        ("first", [[1, 2], [0, 3]]),
        ("drop", [[0, 2], [0, 3]]),
    ],
)
def test_genes_of_one_id_are_treated_as_stated(
    tmp_path: Path, rule: str, expected: list[list[int]]
) -> None:
    source = named_source(
        tmp_path, gene_column="id", strip_version=True, duplicate_genes=rule
    )
    with open_source(source, "sources.a", ()) as file:
        names = study_genes.gene_names(file)
        column_of = names.columns_in(np.array(["E1", "E2"], dtype=object))
        blocks = file.cells.rows.map_blocks(
            lambda block: study_genes.to_columns(block, column_of, 2).toarray()
        )
        found = np.concatenate([values for _, values in blocks])

    np.testing.assert_array_equal(found, expected)
    assert names.n_repeated == 1


def test_repeated_gene_is_refused_where_it_is_to_be(tmp_path: Path) -> None:
    source = named_source(
        tmp_path, gene_column="id", strip_version=True, duplicate_genes="refuse"
    )
    with (
        open_source(source, "sources.a", ()) as file,
        pytest.raises(DataError, match='the gene "E1" is there twice'),
    ):
        study_genes.gene_names(file)


def test_table_translates_symbols_and_leaves_out_unknown_ones(tmp_path: Path) -> None:
    table = tmp_path / "genes.csv"
    table.write_text("symbol,id\na,G1\nb,G2\nd,G3\n")
    source = named_source(tmp_path, gene_table=str(table))
    with open_source(source, "sources.a", ()) as file:
        names = study_genes.gene_names(file)

    assert names.names.tolist() == ["G1", "G2", "", "G3"]
    assert names.n_unnamed == 1
    table.write_text("symbol,id\na,G1\na,G2\n")
    with pytest.raises(DataError, match='"a" has two ids'):
        study_genes.read_gene_table(source, "sources.a")


# Filters.


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("==", "a", [1, 0, 0, 0]),
        ("!=", "a", [0, 1, 1, 1]),
        ("in", ("a", "b"), [1, 1, 0, 0]),
        ("not in", ("a", "b"), [0, 0, 1, 1]),
        ("is null", None, [0, 0, 0, 1]),
        ("not null", None, [1, 1, 1, 0]),
    ],
)
def test_filter_of_text(
    tmp_path: Path, op: str, value: Any, expected: list[int]
) -> None:
    assert mask_of(tmp_path, Filter(column="text", op=op, value=value)) == expected


@pytest.mark.parametrize(
    ("op", "value", "expected"),
    [
        ("==", 2, [0, 1, 0, 0]),
        ("!=", 2, [1, 0, 1, 1]),
        ("in", (1, 3), [1, 0, 1, 0]),
        ("<", 2, [1, 0, 0, 0]),
        ("<=", 2, [1, 1, 0, 0]),
        (">", 1.5, [0, 1, 1, 0]),
        (">=", 2, [0, 1, 1, 0]),
    ],
)
def test_filter_of_numbers(
    tmp_path: Path, op: str, value: Any, expected: list[int]
) -> None:
    assert mask_of(tmp_path, Filter(column="number", op=op, value=value)) == expected


def mask_of(folder: Path, each: Filter) -> list[int]:
    path = folder / "filtered.h5ad"
    obs = pd.DataFrame(
        {"text": ["a", "b", "c", None], "number": [1.0, 2.0, 3.0, np.nan]},
        index=list("wxyz"),
    )
    ad.AnnData(np.ones((4, 2), np.float32), obs=obs).write_h5ad(path)
    with open_source(Source(file=str(path), filters=(each,)), "sources.a", ()) as file:
        return filter_mask(file, each).astype(int).tolist()


def test_text_is_not_compared_in_size(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'column "text" holds "a", which cannot be <'
    ):
        mask_of(tmp_path, Filter(column="text", op="<", value=2))


def quality_source(folder: Path, names: list[str], **columns: Any) -> Path:
    """Write cells with 10, 100 and 1,000 counts, the last gene with a tenth of each."""
    path = folder / "quality.h5ad"
    counts = np.array([[9, 0, 1], [60, 30, 10], [900, 1, 99]], np.float32)
    ad.AnnData(
        sp.csr_matrix(counts),
        obs=pd.DataFrame({"share": [0.5, 0.1, 0.0]}, index=["x", "y", "z"]),
        var=pd.DataFrame(columns, index=names),
    ).write_h5ad(path)
    return path


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        ({"min_counts": 100}, [0, 1, 1]),
        ({"min_counts": 10, "max_counts": 100}, [1, 1, 0]),
        ({"min_genes": 3}, [0, 1, 1]),
        ({"max_mito_fraction": 0.1}, [1, 1, 1]),
        ({"max_mito_fraction": 0.0999}, [0, 0, 1]),
        ({"max_mito_fraction": 0.2, "mito_genes": ("b",)}, [1, 0, 1]),
        ({"max_mito_fraction": 0.2, "mito_prefix": "b"}, [1, 0, 1]),
        ({"max_mito_fraction": 0.1, "mito_column": "share"}, [0, 1, 1]),
    ],
)
def test_quality_keeps_cells_within_its_limits(
    tmp_path: Path, quality: dict[str, Any], expected: list[int]
) -> None:
    path = quality_source(tmp_path, ["a", "b", "MT-CO1"])
    source = Source(file=str(path), qc=Quality(**quality))
    with open_source(source, "sources.a", ()) as file:
        result = filter_source(file, np.array([0, 1, 2]), 3)

    assert result.passed.astype(int).tolist() == expected
    assert result.left[-1][1] == sum(expected)


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["a", "b", "mt-Co1"], {}),
        (["ENSG1", "ENSG2", "ENSG3"], {"symbol": ["a", "b", "MT-CO1"]}),
        (["ENSG1", "ENSG2", "ENSG00000198804.2"], {}),
        (["a", "b", "c"], {"ids": ["ENSG1", "ENSG2", "ENSG00000198804"]}),
    ],
)
def test_mitochondrial_genes_are_found_by_symbol_and_by_ensembl_id(
    tmp_path: Path, names: list[str], columns: dict[str, Any]
) -> None:
    path = quality_source(tmp_path, names, **columns)
    source = Source(file=str(path), qc=Quality(max_mito_fraction=0.1))
    with open_source(source, "sources.a", ()) as file:
        mask = mito_mask(file)

    assert mask is not None
    assert mask.tolist() == [False, False, True]
    assert len(HUMAN_MITO_IDS) == 13


@pytest.mark.realdata
def test_built_in_ids_are_those_of_the_symbols(data_dir: Path) -> None:
    cells = ad.read_h5ad(data_dir / "pbmc3k_raw.h5ad", backed="r")
    is_mito = cells.var_names.str.startswith("MT-")

    assert set(cells.var["gene_ids"][is_mito]) == set(HUMAN_MITO_IDS)


# What cannot be done, in one line.


def no_common_genes(folder: Path, block: dict[str, Any]) -> None:
    write_source(folder / "marrow.h5ad", 1, genes=[f"other_{n}" for n in range(40)])


def too_large_a_budget(folder: Path, block: dict[str, Any]) -> None:
    block["sources"]["blood"]["cells"] = 200


def evaluation_donor(folder: Path, block: dict[str, Any]) -> None:
    block["sources"]["blood"]["group"] = "donor"
    write_source(folder / "e.h5ad", 5, donor=donors(300, 2))
    external = {"file": str(folder / "e.h5ad"), "group": "donor"}
    block["evaluations"] = {"e": {"external": external}}


def duplicate_cells(folder: Path, block: dict[str, Any]) -> None:
    cells = ad.read_h5ad(folder / "marrow.h5ad")
    cells.obs_names = ["twin", "twin", *cells.obs_names[2:]]
    cells.write_h5ad(folder / "marrow.h5ad")


def unknown_source(folder: Path, block: dict[str, Any]) -> None:
    block["mixtures"]["plus"][1]["source"] = "marow"


def unknown_column(folder: Path, block: dict[str, Any]) -> None:
    block["sources"]["blood"]["filters"] = [
        {"column": "doner", "op": "==", "value": "donor 1"}
    ]


def unknown_operator(folder: Path, block: dict[str, Any]) -> None:
    block["sources"]["blood"]["filters"] = [
        {"column": "donor", "op": "equals", "value": "donor 1"}
    ]


def no_mito_genes(folder: Path, block: dict[str, Any]) -> None:
    block["sources"]["blood"]["qc"] = {"max_mito_fraction": 0.1}


def row_numbers(folder: Path, block: dict[str, Any]) -> None:
    cells = write_source(folder / "e.h5ad", 5)
    cells.obs_names = [str(number) for number in range(cells.n_obs)]
    cells.write_h5ad(folder / "e.h5ad")
    block["exclude"] = "cells"
    block["evaluations"] = {"e": {"external": {"file": str(folder / "e.h5ad")}}}


def no_counts(folder: Path, block: dict[str, Any]) -> None:
    cells = ad.read_h5ad(folder / "marrow.h5ad")
    cells.X = cells.X.toarray()
    cells.X[250, 7] = 1.5
    cells.write_h5ad(folder / "marrow.h5ad")


def no_file(folder: Path, block: dict[str, Any]) -> None:
    (folder / "marrow.h5ad").unlink()


SLIPS = {
    no_common_genes: "the sources have no gene in common: ",
    too_large_a_budget: '200 cells of slot 1 of source "blood", after 200 of the slots '
    "before, but 240 are available",
    evaluation_donor: 'evaluations.e: "donor 0" is also trained on: 100 cells of '
    'source "blood"',
    duplicate_cells: 'marrow.h5ad: the cell "twin" is there twice',
    unknown_source: 'mixtures.plus: no source "marow". Did you mean "marrow"?',
    unknown_column: 'no obs column "doner" in ',
    unknown_operator: 'op is "equals" (column "donor")',
    no_mito_genes: "has no mitochondrial gene by its names",
    row_numbers: "names of e are mere row numbers",
    no_counts: 'no count: 1.5 in cell "marrow_250", gene "gene_07"',
    no_file: "marrow.h5ad: no such file",
}


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.__name__)
def test_slip_is_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slip: Any
) -> None:
    block = composition(tmp_path)
    slip(tmp_path, block)
    file = write_parameters(tmp_path, block)

    code = main(["--param", str(file), "--process"])

    said = capsys.readouterr().err
    assert (code, said.count("\n")) == (2, 1)
    assert SLIPS[slip] in said
    assert re.match(r"error: (study: |.*experiments\.study)", said)
    assert not (tmp_path / "experiments" / "study" / "composition.json").exists()


def test_experiment_of_a_study_is_no_raw_file(tmp_path: Path) -> None:
    study = process(tmp_path, composition(tmp_path))
    name = ["--param", str(study.experiments_file), "--experiment", "base-seed0"]

    assert main([*name, "--process"]) == 0  # is there already
    assert main([*name, "--process", "--overwrite"]) == 2
    assert (study.folder / "base-seed0" / "manifest.json").exists()
    with pytest.raises(CellganError, match="differ"):
        Experiment(
            study.folder / "plus-seed0",
            Experiment.open(study.folder / "base-seed0").parameters,
        ).check_frozen("input_ds")
