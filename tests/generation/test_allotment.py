"""Every cell of a request gets covariates and a library size, whatever is left open."""

from __future__ import annotations

import dataclasses
import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from cellgan.data.manifest import CovariateVocabulary
from cellgan.errors import ConfigError
from cellgan.generation.allotment import (
    FEW_CELLS,
    apportion,
    assign_covariates,
    check_condition,
    check_guidance,
    doubts,
    read_requests,
    request_parts,
)
from cellgan.generation.library_sizes import draw_library_sizes, pooled_moments
from cellgan.generation.requests import LIKE_DATA
from cellgan.models.cfgen.config import CfgenConfig, FlowConfig
from cellgan.models.gan.config import GanConfig
from tests.manifests import make_combination, make_manifest

# Cells by (label, donor): B has 30 of donor 1 and 10 of donor 2, T only donor 2.
TABLE = {(0, 0): 30, (0, 1): 10, (1, 1): 60}
SIZES = {(0, 0): (100.0, 300.0), (0, 1): (1000.0, 3000.0), (1, 1): (500.0, 700.0)}


def manifest_of(table=TABLE, sizes=SIZES):
    manifest = make_manifest(labels=("B", "T"), trained=(40, 60))
    trained = {
        "cluster": tuple(manifest.cells_per_category["train"]["cluster"]),
        "donor": (30, 70, 0),
    }
    return dataclasses.replace(
        manifest,
        covariates={
            **manifest.covariates,
            "donor": CovariateVocabulary(("1", "2", "3")),
        },
        cells_per_category={"train": trained, "valid": {}, "test": {}},
        combinations=tuple(
            make_combination(
                {"cluster": label, "donor": donor}, n, {"rna": sizes[label, donor]}
            )
            for (label, donor), n in table.items()
        ),
    )


MANIFEST = manifest_of()
CFGEN = CfgenConfig()


def assigned(requests):
    codes = assign_covariates(requests, MANIFEST)
    return list(zip(codes["cluster"].tolist(), codes["donor"].tolist(), strict=True))


def parts(cells_no=LIKE_DATA, model=CFGEN, **given_):
    return request_parts(cells_no, MANIFEST, model, **({"condition": {}} | given_))


def test_open_covariates_have_the_shares_of_the_training_cells():
    assert assigned([({"cluster": 0}, 8)]) == [(0, 0)] * 6 + [(0, 1)] * 2


def test_like_data_is_the_composition_of_the_training_cells():
    expected = itertools.chain(*([key] * n for key, n in TABLE.items()))
    assert assigned(parts()) == list(expected)


def test_unseen_combination_keeps_what_was_named():
    assert assigned([({"cluster": 1, "donor": 0}, 3)]) == [(1, 0)] * 3


def test_condition_divides_one_number_among_the_labels_it_goes_with():
    found = parts(["7"], condition={"donor": "2"})
    assert assigned(found) == [(0, 1)] + [(1, 1)] * 6


def test_condition_with_like_data_takes_the_training_cells_that_meet_it():
    assert sum(n for _, n in parts(condition={"donor": "2"})) == 70
    assert assigned(parts(condition={"cluster": "B", "donor": "2"})) == [(0, 1)] * 10


def test_numbers_by_label_go_with_a_condition_on_another_covariate():
    found = assigned(parts({"B": 2, "T": 1}, condition={"donor": "1"}))
    assert found == [(0, 0), (0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"condition": {"dnor": "1"}}, 'no covariate "dnor". Did you mean "donor"'),
        ({"condition": {"donor": "4"}}, 'donor: "4" is not a known category'),
        ({"condition": {"donor": "3"}}, 'no training cell has donor "3"'),
        (
            {"condition": {"cluster": "T", "donor": "1"}},
            'no training cell has cluster "T", donor "1" together',
        ),
        (
            {"cells_no": (1, 2), "condition": {"cluster": "T"}},
            "numbers by label contradict --condition",
        ),
        (
            {"condition": {"donor": "1"}, "model": GanConfig()},
            'not conditioned on "donor"',
        ),
        (
            {
                "condition": {"donor": "1"},
                "model": CfgenConfig(flow=FlowConfig(condition_on=("cluster",))),
            },
            "It is conditioned on: cluster",
        ),
        ({"requests": "x.csv", "condition": {"donor": "1"}}, "give the file alone"),
    ],
)
def test_contradictions_are_refused(given_, message):
    with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
        parts(**given_)


def test_unknown_covariate_of_the_model_is_named():
    model = CfgenConfig(flow=FlowConfig(condition_on=("donr",)))
    with pytest.raises(ConfigError, match=r'condition_on: the data have no.*"donr"'):
        model.conditions(MANIFEST)


def test_unconditional_model_takes_one_number():
    model = CfgenConfig(flow=FlowConfig(condition_on=()))
    assert parts(["5"], model) == [({}, 5)]
    assert assigned([({}, 10)]) == [(0, 0)] * 3 + [(0, 1)] + [(1, 1)] * 6


def test_model_of_another_covariate_takes_one_number_and_no_labels():
    model = CfgenConfig(flow=FlowConfig(condition_on=("donor",)))
    assert parts(["5"], model) == [({}, 5)]
    assert parts(LIKE_DATA, model) == [({}, 100)]
    assert parts(LIKE_DATA, model, condition={"donor": "2"}) == [({"donor": 1}, 70)]
    assert parts(["7"], model, condition={"donor": "2"}) == [({"donor": 1}, 7)]
    for given_ in ({}, {"condition": {"donor": "2"}}):
        with pytest.raises(ConfigError):
            parts({"B": 5}, model, **given_)


@given(
    n=st.integers(0, 500),
    weights=st.lists(st.integers(1, 1000), min_size=1, max_size=30),
)
def test_apportioned_numbers_add_up_and_are_shares_to_whole_things(n, weights):
    numbers = apportion(n, weights)
    shares = n * np.array(weights) / sum(weights)
    assert numbers.sum() == n
    assert np.all(np.abs(numbers - shares) < 1)


def test_requests_are_read_from_a_table(tmp_path):
    file = tmp_path / "wanted.csv"
    file.write_text("cluster,donor,n_cells\nB,2,5\n,1,3\n", encoding="utf-8")
    assert read_requests(file, MANIFEST) == [
        ({"cluster": 0, "donor": 1}, 5),
        ({"donor": 0}, 3),
    ]


def test_field_of_spaces_leaves_a_covariate_open(tmp_path):
    file = tmp_path / "wanted.csv"
    file.write_text("cluster,donor,n_cells\n , 1 ,2\n", encoding="utf-8")
    assert read_requests(file, MANIFEST) == [({"donor": 0}, 2)]


def test_tab_separated_table_is_read(tmp_path):
    file = tmp_path / "wanted.tsv"
    file.write_text("donor\tn_cells\n1\t4\n", encoding="utf-8")
    assert read_requests(file, MANIFEST) == [({"donor": 0}, 4)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster\nB\n", 'needs a header with "n_cells"'),
        ("cluster,n_cells\nB,many\n", 'line 2: n_cells is "many"'),
        ("cluster,n_cells\nX,1\n", 'line 2: cluster: "X" is not a known category'),
        ("cell,n_cells\nB,1\n", 'line 2: no covariate "cell"'),
        ("cluster,n_cells\nB,0\n", "no cells at all"),
        ("cluster,n_cells\nB,5,x\n", "line 2 has more fields than the header"),
        ("cluster,cluster,n_cells\nB,T,5\n", "a column is there twice: cluster"),
        ("", "columns found: none"),
    ],
)
def test_wrong_table_names_the_line(tmp_path, text, message):
    file = tmp_path / "wanted.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        read_requests(file, MANIFEST)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.csv: cannot be read"):
        read_requests(tmp_path / "none.csv", MANIFEST)


def test_cells_that_few_or_none_were_like_are_told():
    parts_ = [({"cluster": 0, "donor": 1}, 5), ({"cluster": 1, "donor": 0}, 5)]
    (none,) = doubts(parts_, MANIFEST, {})
    assert none.startswith("no training cells are cluster T, donor 1: what is made is")
    few = manifest_of({**TABLE, (1, 0): 3}, {**SIZES, (1, 0): (5.0, 6.0)})
    assert doubts(parts_, few, {})[0].startswith("only 3 training cells are cluster T")
    assert doubts([(parts_[1][0], 0)], MANIFEST, {"donor": 0.0}) == [
        "guidance of donor is 0: cells carry the donor that was asked for, and do not "
        "follow it"
    ]


@pytest.mark.parametrize("scale", [-0.5, float("nan"), float("inf")])
def test_impossible_guidance_is_refused(scale):
    with pytest.raises(ConfigError, match="the scale of donor is"):
        check_guidance({"donor": scale}, ("donor",))


def test_guidance_for_an_unknown_covariate_is_refused():
    with pytest.raises(ConfigError, match='not conditioned on "sex"'):
        check_guidance({"sex": 1.0}, ("donor",))


def test_category_codes_are_those_of_the_vocabulary():
    assert check_condition({"donor": "2", "cluster": "T"}, MANIFEST) == {
        "donor": 1,
        "cluster": 1,
    }


# Library sizes


def codes_of(label, donor, n):
    return {
        "cluster": np.full(n, label, np.int32),
        "donor": np.full(n, donor, np.int32),
    }


def sizes_of(label, donor, n=4000, how="modelled", manifest=MANIFEST):
    return draw_library_sizes(codes_of(label, donor, n), manifest, how, seed=3)["rna"]


def test_modelled_sizes_have_the_moments_of_their_combination():
    manifest = manifest_of(table={(0, 0): 30, (1, 1): 60}, sizes=SIZES)
    logs = np.log(sizes_of(0, 0, manifest=manifest))
    mean, sd = pooled_moments(manifest.combinations[:1], "rna")
    assert logs.mean() == pytest.approx(mean, abs=5 * sd / np.sqrt(len(logs)))
    assert logs.std() == pytest.approx(sd, rel=5 / np.sqrt(2 * len(logs)))


def test_few_cells_are_drawn_towards_their_label():
    own = np.log(SIZES[0, 1]).mean()
    of_label, _ = pooled_moments(MANIFEST.combinations[:2], "rna")
    expected = (10 * own + FEW_CELLS * of_label) / (10 + FEW_CELLS)
    assert np.log(sizes_of(0, 1)).mean() == pytest.approx(expected, abs=0.1)


def test_unseen_combination_takes_the_sizes_of_its_label():
    assert set(sizes_of(1, 0, how="copied").tolist()) == {500.0, 700.0}


def test_pooled_moments_are_those_of_all_cells():
    first, second = np.random.default_rng(0).lognormal(5, 1, (2, 50))
    combinations = [
        make_combination({"a": 0}, 50, {"rna": first}),
        make_combination({"a": 1}, 50, {"rna": second * 4}),
    ]
    logs = np.log(np.concatenate([first, second * 4]))
    found = pooled_moments(combinations, "rna")
    assert found == pytest.approx((logs.mean(), logs.std(ddof=1)))


def test_copied_sizes_are_those_of_training_cells_in_their_shares():
    sizes = sizes_of(0, 0, how="copied")
    assert set(sizes.tolist()) == {100.0, 300.0}
    assert (sizes == 100).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(4000))


def test_number_is_the_size_of_all_cells():
    assert sizes_of(0, 0, n=7, how=1234).tolist() == [1234.0] * 7


def test_size_of_a_cell_depends_on_its_place_and_seed_alone():
    whole = sizes_of(0, 0, n=9)
    assert sizes_of(0, 0, n=5).tolist() == whole[:5].tolist()
    again = draw_library_sizes(codes_of(0, 0, 9), MANIFEST, "modelled", seed=4)
    assert np.all(again["rna"] != whole)


def test_copied_sizes_of_two_modalities_are_of_the_same_cell():
    pairs = {(10.0, 70.0), (20.0, 40.0), (30.0, 60.0)}
    rna, atac = zip(*sorted(pairs), strict=True)
    manifest = dataclasses.replace(
        make_manifest(labels=("B",), trained=(3,)),
        features={"rna": ("g",), "atac": ("p",)},
        combinations=(make_combination({"cluster": 0}, 3, {"rna": rna, "atac": atac}),),
    )
    codes = {"cluster": np.zeros(50, np.int32)}
    found = draw_library_sizes(codes, manifest, "copied", seed=0)
    assert set(zip(*(of.tolist() for of in found.values()), strict=True)) == pairs


def test_modelled_sizes_of_two_modalities_correlate_as_in_the_data():
    rng = np.random.default_rng(1)
    rna = rng.lognormal(6, 0.5, 400)
    atac = rna * rng.lognormal(0, 0.2, 400)
    manifest = dataclasses.replace(
        make_manifest(labels=("B",), trained=(400,)),
        features={"rna": ("g",), "atac": ("p",)},
        combinations=(
            make_combination({"cluster": 0}, 400, {"rna": rna, "atac": atac}),
        ),
    )
    codes = {"cluster": np.zeros(5000, np.int32)}
    found = draw_library_sizes(codes, manifest, "modelled", seed=0)
    correlation = np.corrcoef(np.log(found["rna"]), np.log(found["atac"]))[0, 1]
    expected = np.corrcoef(np.log(rna), np.log(atac))[0, 1]
    assert correlation == pytest.approx(expected, abs=0.02)


def test_unknown_sizes_are_refused():
    manifest = dataclasses.replace(
        MANIFEST,
        combinations=(make_combination({"cluster": 0, "donor": 0}, 4, {}),),
    )
    with pytest.raises(ConfigError, match="library sizes of the training cells are un"):
        sizes_of(0, 0, manifest=manifest)
