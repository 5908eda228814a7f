"""Values, errors and differences of mixtures; what the verdict may claim."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cellgan.composition import figures
from cellgan.composition.agreement import (
    canonical_correlations,
    latent_rows,
    linear_predictability,
    loading_rows,
    top_gene_overlap,
)
from cellgan.composition.statistics import (
    COMPONENTS,
    MEAN_PROFILE,
    TRAINED,
    Statistic,
    log2_ratio,
    resampled_medians,
    summarise,
)
from cellgan.composition.verdicts import mixture_verdict

MIXTURES = ("base", "control", "plus")


def rows_of(values: np.ndarray, *, n_replicates: int = 200) -> pd.DataFrame:
    """Return the summary of ``(n_mixtures, n_seeds, n_cells)``."""
    found = resampled_medians(values, n_replicates, 1)
    rows = pd.DataFrame(summarise(found, MIXTURES, "base", "control", 2))
    return rows.assign(model=TRAINED)


def cells_of(*seeds_of: tuple[float, ...], noise: float = 0.1) -> np.ndarray:
    """Return cells of one pattern, with what each mixture and seed adds."""
    pattern = np.random.default_rng(0).normal(0.5, noise, 301)
    return np.array([[pattern + added for added in seeds] for seeds in seeds_of])


SPREAD = cells_of((0.0, 0.02), (0.1, 0.14), (0.3, 0.36))


def test_value_is_the_mean_over_seeds_of_medians_over_cells() -> None:
    rows = rows_of(SPREAD).set_index("mixture")

    median = np.median(SPREAD[0, 0])
    np.testing.assert_allclose(rows["value"], median + np.array([0.01, 0.12, 0.33]))
    np.testing.assert_allclose(
        rows["sd_seeds"], np.array([0.02, 0.04, 0.06]) / np.sqrt(2)
    )
    np.testing.assert_allclose(rows["difference"], [0, 0.11, 0.32], atol=1e-12)
    np.testing.assert_allclose(rows["control_difference"], [-0.11, 0, 0.21], atol=1e-12)
    np.testing.assert_allclose(
        rows["log2_ratio"], np.log2(rows["value"] / rows["value"]["base"])
    )
    assert rows["log2_ratio"]["base"] == 0


def test_difference_is_paired_so_shared_cells_add_no_error() -> None:
    rows = rows_of(SPREAD).set_index("mixture")

    # All cells are shifted alike: resampling them leaves differences as they are.
    assert rows["difference_se_cells"].max() < 1e-12
    assert (rows["se_cells"] > 0.002).all()
    np.testing.assert_allclose(
        rows["difference_se"]["plus"], 0.04 / np.sqrt(2) / np.sqrt(2)
    )


def test_error_of_the_median_is_that_of_a_normal_sample() -> None:
    values = np.random.default_rng(3).normal(0.5, 0.1, (1, 1, 4000))
    found = resampled_medians(values, 400, 1)
    (row,) = summarise(found, ("base",), "base", None, 2)

    expected = np.sqrt(np.pi / 2) * 0.1 / np.sqrt(4000)
    assert row["se_cells"] == pytest.approx(expected, rel=0.25)
    assert np.isnan(row["sd_seeds"])
    assert row["se"] == row["se_cells"]


def test_cell_without_a_value_in_one_model_is_left_out_of_all() -> None:
    values = SPREAD.copy()
    values[1, 0, :40] = np.nan

    found = resampled_medians(values, 10, 1)

    assert (found.n_cells, found.n_undefined) == (261, 40)
    np.testing.assert_allclose(found.draws[0, 0, 0], np.median(values[0, 0, 40:]))


def test_ratio_to_nothing_or_of_another_sign_is_undefined() -> None:
    assert log2_ratio(0.5, np.array([0.2, 0.3])) == 1.0
    assert np.isnan(log2_ratio(0.5, np.array([0.0])))
    assert np.isnan(log2_ratio(-0.5, np.array([0.5])))


# Verdicts.


def said(values: np.ndarray, **simple: float) -> tuple[bool | None, str]:
    rows = rows_of(values)
    for model, value in simple.items():
        name = {"mean": MEAN_PROFILE, "pca": COMPONENTS}[model]
        rows = pd.concat([rows, rows[:3].assign(model=name, value=value, se=0.01)])
    found = mixture_verdict(rows, "e", "r2", "base", "control")
    return found.beats_control, " ".join(found.sentences)


def test_clear_lead_over_the_size_control_is_claimed() -> None:
    beats, words = said(cells_of((0.0, 0.01), (0.1, 0.11), (0.4, 0.42)))

    assert beats is True
    assert "the best mixture is plus" in words
    assert "It beats the size control control by" in words


@pytest.mark.parametrize(
    "plus",
    [
        pytest.param((0.10, 0.16), id="seeds differ by more"),
        pytest.param((0.09, 0.25), id="seeds disagree"),
        pytest.param((0.101, 0.111), id="by less than the control's seeds"),
    ],
)
def test_lead_within_the_spread_of_seeds_is_not_claimed(
    plus: tuple[float, float],
) -> None:
    beats, words = said(cells_of((0.0, 0.01), (0.1, 0.11), plus))

    assert beats is False
    assert "not enough to claim anything" in words


def test_best_of_many_mixtures_needs_a_larger_lead() -> None:
    values = cells_of((0.0, 0.01), (0.1, 0.11), (0.24, 0.26))
    rows = rows_of(values)
    many = [rows]
    for index in range(40):
        row = rows[rows["mixture"] == "base"].assign(mixture=f"other {index}")
        many.append(row)

    one = mixture_verdict(rows, "e", "r2", "base", "control")
    of_many = mixture_verdict(pd.concat(many), "e", "r2", "base", "control")

    assert (one.best, one.beats_control) == ("plus", True)
    assert (of_many.best, of_many.beats_control) == ("plus", False)
    assert "of the best of 42 with 2 seeds" in " ".join(of_many.sentences)


def test_lead_within_the_noise_of_cells_is_not_claimed() -> None:
    values = cells_of((0.0, 0.0), (0.1, 0.1), (0.1, 0.1))
    values[2] += np.random.default_rng(1).normal(0.06, 0.5, values.shape[2])

    beats, words = said(values)

    assert beats is False
    assert "not enough to claim anything" in words


def test_baseline_that_is_best_is_behind_the_control() -> None:
    beats, words = said(cells_of((0.0, 0.01), (0.1, 0.11), (-0.4, -0.42)))

    assert beats is False
    assert "the best mixture but for the size control is base" in words
    assert "as many more cells of the baseline's kind do as well or better" in words


def test_one_seed_claims_nothing() -> None:
    beats, words = said(cells_of((0.0,), (0.1,), (0.4,)))

    assert beats is None
    assert "One seed: how much trainings differ is not known" in words


def test_without_size_control_nothing_is_said_of_numbers() -> None:
    found = resampled_medians(SPREAD, 50, 1)
    rows = pd.DataFrame(summarise(found, MIXTURES, "base", None, 2))
    words = mixture_verdict(
        rows.assign(model=TRAINED), "e", "r2", "base", None
    ).sentences

    assert any("There is no size control" in sentence for sentence in words)


def test_model_that_a_mean_or_components_match_is_told() -> None:
    _, words = said(SPREAD, mean=0.83, pca=0.95)

    assert "no better than the mean of training cells of base (0.83" in words
    assert "worse than the principal components of base (0.95" in words
    assert "no better" not in said(SPREAD, mean=0.1)[1]


def test_small_values_are_good_where_lower_is_better() -> None:
    rows = rows_of(-cells_of((0.0, 0.01), (0.1, 0.11), (0.4, 0.42)))
    found = mixture_verdict(rows, "e", "nll", "base", "control")

    assert (found.best, found.beats_control) == ("plus", True)


def test_distances_have_draws_of_their_own() -> None:
    draws = np.random.default_rng(0).normal(1.0, 0.1, (3, 2, 101))
    draws[:, :, 0] = 1.0
    rows = summarise(Statistic(draws, 50, 0), MIXTURES, "base", "control", 1)

    assert [row["value"] for row in rows] == [1.0, 1.0, 1.0]
    assert "mean" not in rows[0]


# Latents and loadings.

RNG = np.random.default_rng(5)
LATENT = RNG.normal(size=(400, 3))
ROTATION = np.linalg.qr(RNG.normal(size=(3, 3)))[0]


def test_latent_that_is_turned_and_shifted_is_the_same() -> None:
    turned = LATENT @ ROTATION * 3 + 1

    assert linear_predictability(LATENT, turned) == pytest.approx(1.0)
    np.testing.assert_allclose(canonical_correlations(LATENT, turned), 1.0)


def test_half_of_a_latent_tells_half_of_it() -> None:
    other = np.column_stack([LATENT[:, :1], RNG.normal(size=(400, 1))])

    # One of two directions of equal variance is known; R2 on other cells is noisy.
    assert linear_predictability(LATENT, other) == pytest.approx(0.5, abs=0.1)
    first, second = canonical_correlations(LATENT, other)
    assert first == pytest.approx(1.0)
    assert second < 0.25


def test_constant_latent_is_undefined_and_few_cells_too() -> None:
    assert np.isnan(linear_predictability(LATENT, np.ones((400, 2))))
    assert np.isnan(linear_predictability(LATENT[:10], LATENT[:10]))
    assert not len(canonical_correlations(LATENT, np.ones((400, 2))))


def test_factors_are_matched_whatever_their_order_and_sign() -> None:
    loadings = RNG.normal(size=(200, 4))
    shuffled = loadings[:, [2, 0, 3, 1]] * [1, -1, 1, -1]

    np.testing.assert_allclose(top_gene_overlap(loadings, shuffled, 20), 1.0)
    by_chance = top_gene_overlap(loadings, RNG.normal(size=(200, 4)), 20)
    assert by_chance.mean() < 0.2


def test_models_are_compared_with_one_seed_or_of_one_mixture() -> None:
    latents = {
        ("base", 0): LATENT,
        ("base", 1): LATENT,
        ("plus", 0): LATENT,
        ("plus", 1): LATENT,
    }
    pairs = {
        (row["mixture"], row["seed"], row["other_mixture"], row["other_seed"])
        for row in latent_rows(latents, "e")
    }

    assert pairs == {
        ("base", 0, "base", 1),
        ("base", 1, "base", 0),
        ("plus", 0, "plus", 1),
        ("plus", 1, "plus", 0),
        *(("base", seed, "plus", seed) for seed in (0, 1)),
        *(("plus", seed, "base", seed) for seed in (0, 1)),
    }
    rows = list(loading_rows(latents))
    assert len(rows) == 4
    assert {row["overlap"] for row in rows} == {1.0}


# Figures.


def test_heat_map_says_the_numbers_of_the_table() -> None:
    rows = rows_of(SPREAD).assign(evaluation="e", metric="r2", group="")
    picture = figures.heat_map(rows, "r2", "base")

    assert picture.png.startswith(b"\x89PNG")
    values = rows.set_index("mixture")["value"]
    for mixture in MIXTURES:
        assert f"{mixture} {values[mixture]:.3g}"[:9] in picture.alt


def test_seeds_are_drawn_against_each_other_where_there_are_two(
    tmp_path: Path,
) -> None:
    del tmp_path
    cells = pd.DataFrame(
        {
            "mixture": "base",
            "seed": np.repeat([0, 1], 50),
            "evaluation": "e",
            "model": TRAINED,
            "r2": np.tile(np.linspace(0, 1, 50), 2),
        }
    )

    assert figures.seed_scatter(cells, "r2", [0]) is None
    picture = figures.seed_scatter(cells, "r2", [0, 1])
    assert picture is not None
    assert "correlation of seeds 1" in picture.alt
