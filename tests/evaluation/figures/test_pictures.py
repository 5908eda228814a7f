"""Pictures: what is drawn, and whether their texts tell the numbers that are seen."""

from __future__ import annotations

import dataclasses
from unittest.mock import create_autospec

import numpy as np
import pytest
import scipy.sparse as sp
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats

from cellgan.evaluation.comparison.pairs import make_pair, make_side
from cellgan.evaluation.figures import cells as cell_pictures
from cellgan.evaluation.figures import genes as gene_pictures
from cellgan.evaluation.figures import markers as marker_pictures
from cellgan.evaluation.figures.cells import CellMap, NearestDistances
from cellgan.evaluation.figures.pictures import draw_pictures
from tests.evaluation.documents import NASTY, make_experiment
from tests.evaluation.sides import TYPES, draw_side, make_frame

ALWAYS = ["map", "labels", "markers", "genes", "sizes", "correlations"]
DISTANCES = NearestDistances(np.array([0.0, 1, 2, 30]), np.arange(1.0, 101))


@pytest.fixture(scope="module")
def frame():
    return make_frame()


@pytest.fixture(scope="module")
def pair(frame):
    return make_pair(draw_side(frame, 1, 120), draw_side(frame, 2, 120), frame, 0)


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    """Draw two components in place of a map, and few genes: both save seconds."""
    monkeypatch.setattr(gene_pictures, "N_CORRELATED_GENES", 12)
    monkeypatch.setattr(
        cell_pictures, "embed", lambda components, **options: components[:, :2]
    )


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    """Collect the figures that are saved, small: large ones take seconds."""
    save = Figure.savefig

    def save_small(figure, file, **options):
        save(figure, file, **{**options, "dpi": 20})

    savefig = create_autospec(Figure.savefig, side_effect=save_small)
    monkeypatch.setattr(Figure, "savefig", savefig)
    return lambda: [call.args[0] for call in savefig.call_args_list]


def with_other(pair, values, labels=None):
    """Return the pair with other generated cells."""
    frame = pair.frame
    labels = pair.real.labels if labels is None else labels
    return make_pair(
        pair.real, make_side(sp.csr_array(values), labels, frame.space), frame, 0
    )


def names(pictures):
    return [picture.name for picture in pictures]


def test_all_pictures_are_png_with_title_and_numbers(pair):
    genes = list(map(dataclasses.asdict, make_experiment().giveaway_genes))
    pictures = draw_pictures(pair, giveaway_genes=genes, distances=DISTANCES)
    assert names(pictures) == [*ALWAYS, "giveaway_genes", "distances"]
    for picture in pictures:
        assert picture.png.startswith(b"\x89PNG")
        assert picture.title
        assert any(character.isdigit() for character in picture.alt)
        assert "nan" not in picture.alt


def test_pictures_of_labels_are_left_out_without_labels(pair):
    frame = dataclasses.replace(pair.frame, training=unlabelled(pair.frame.training))
    sides = unlabelled(pair.real), unlabelled(pair.other)
    pictures = draw_pictures(make_pair(*sides, frame, 0))
    assert names(pictures) == ["map", "genes", "sizes", "correlations"]


def unlabelled(side):
    return dataclasses.replace(side, labels=np.full(len(side), ""))


def test_library_sizes_are_left_out_when_values_are_no_counts(pair):
    frame = dataclasses.replace(pair.frame, are_counts=False)
    picture = cell_pictures.size_picture(make_pair(pair.real, pair.other, frame, 0))
    assert "library size" not in picture.alt
    assert "genes detected in a cell: median" in picture.alt


def test_pictures_are_drawn_of_few_and_of_constant_cells(pair):
    few = np.flatnonzero(pair.real.labels == TYPES[0])[:3]
    zeros = make_side(
        sp.csr_array((3, 60), dtype=np.float32),
        pair.real.labels[few],
        pair.frame.space,
    )
    pictures = draw_pictures(make_pair(pair.real.take(few), zeros, pair.frame, 0))
    assert names(pictures) == [name for name in ALWAYS if name != "correlations"]


def test_pictures_are_drawn_when_a_label_was_never_generated(pair):
    kept = pair.other.take(np.flatnonzero(pair.other.labels != "type B"))
    pictures = draw_pictures(make_pair(pair.real, kept, pair.frame, 0))
    assert names(pictures) == ALWAYS
    n_real = int((pair.real.labels == "type B").sum())
    assert f"type B: {n_real} real and 0 generated cells;" in pictures[1].alt
    assert " % and none" in pictures[2].alt


def make_map(points, labels, n_real):
    points = np.asarray(points, np.float32)
    return CellMap(points, np.array(labels), np.arange(len(points)) < n_real, "tsne")


def test_map_tells_how_far_sides_mix():
    line = np.stack([np.arange(40.0), np.zeros(40)], axis=1)
    apart = make_map(np.concatenate([line, line + 1e4]), ["a"] * 80, 40)
    assert "generated cell, 100 % are generated" in cell_pictures.map_picture(apart).alt
    assert "would give 49 %" in cell_pictures.map_picture(apart).alt  # 39 of 79
    around = make_map(np.concatenate([line, line[:1] + 0.5]), ["a"] * 41, 40)
    assert "generated cell, 0 % are generated" in cell_pictures.map_picture(around).alt


def test_map_takes_at_most_1000_cells_a_side_and_always_the_same(frame):
    many = draw_side(frame, 3, 1500)
    pair = make_pair(many, many, frame, 0)
    first, again = (cell_pictures.map_cells(pair, "tsne") for _ in range(2))
    assert (first.is_real.sum(), (~first.is_real).sum()) == (1000, 1000)
    np.testing.assert_array_equal(first.points, again.points)
    assert len(np.unique(first.points[:1000], axis=0)) == 1000


def test_map_draws_each_side_in_its_colour(figures):
    points = np.random.default_rng(0).normal(size=(50, 2))
    cells = make_map(points, ["a"] * 50, 20)
    cell_pictures.map_picture(cells)
    (drawn,) = figures()[0].axes[0].collections
    places = [tuple(place) for place in np.asarray(drawn.get_offsets())]
    colours = dict(zip(places, drawn.get_facecolors(), strict=True))
    real, made = (
        np.array([colours[tuple(point)] for point in cells.points[of_side]])
        for of_side in (cells.is_real, ~cells.is_real)
    )
    assert (real[:, 2] > real[:, 0]).all()  # blue
    assert (made[:, 0] > made[:, 2]).all()  # red
    assert (len(real), len(made)) == (20, 30)


def test_label_maps_tell_next_to_which_real_cells_generated_ones_are():
    points = [[0, 0], [100, 0], [1, 0], [2, 0], [99, 0], [101, 0]]
    labels = ["a", "b", "a", "a", "a", "b"]
    alt = cell_pictures.label_maps(make_map(points, labels, 2)).alt
    assert "a: 1 real and 3 generated cells, 67 % of these next to a real" in alt
    assert "b: 1 real and 1 generated cells, 100 % of these" in alt


def test_label_maps_show_the_20_largest_labels_and_say_how_many_are_missing(figures):
    labels = [f"{code:02}" for code in range(25) for _ in range(code + 1)]
    points = np.random.default_rng(0).normal(size=(2 * len(labels), 2))
    picture = cell_pictures.label_maps(make_map(points, labels * 2, len(labels)))
    titles = [axes.get_title().splitlines()[:1] for axes in figures()[0].axes]
    assert titles[:20] == [[f"{code:02}"] for code in range(5, 25)]
    assert picture.alt.endswith("The 5 smallest labels are left out.")


def test_gene_moments_are_those_of_dense_values(pair):
    moments = gene_pictures.moments_of_side(pair.real)
    values = pair.real.values.toarray().astype(np.float64)
    np.testing.assert_allclose(moments.means, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.variances, values.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(moments.zeros, (values == 0).mean(axis=0), atol=1e-15)


def test_gene_curves_tell_ratios_of_moments_and_shares_of_zeros(pair):
    values = 2 * pair.real.values.toarray()
    values[:, 5] = 0
    alt = gene_pictures.gene_curves(with_other(pair, values)).alt
    assert "mean of generated cells is 2.00 times" in alt
    assert "variance 4.00 times" in alt
    zeros = 100 * (pair.real.values.toarray() == 0).mean()
    assert f"{zeros:.1f} % of all values of real cells are zero" in alt
    assert "0 genes are in no real cell and 1 in no generated one" in alt


def test_gene_curves_write_their_scales_as_numbers(pair, figures):
    gene_pictures.gene_curves(pair)
    (figure,) = figures()
    for axes in figure.axes:
        texts = [tick.get_text() for tick in axes.get_xticklabels()]
        assert "1" in texts
        assert not any("$" in text for text in texts)


def test_poisson_is_drawn_for_counts_alone(pair, figures):
    gene_pictures.gene_curves(pair)
    frame = dataclasses.replace(pair.frame, are_counts=False)
    gene_pictures.gene_curves(make_pair(pair.real, pair.other, frame, 0))
    legends = [
        [text.get_text() for text in figure.legends[0].get_texts()]
        for figure in figures()
    ]
    assert legends == [["real", "generated", "Poisson"], ["real", "generated"]]


def test_markers_are_the_genes_that_differ_between_labels(frame):
    markers = marker_pictures.find_markers(frame.training)
    assert list(markers) == list(TYPES)
    for code, genes in enumerate(markers.values()):  # ten of each type are raised
        assert len(genes) == marker_pictures.MARKERS_PER_LABEL
        assert set(genes) <= set(range(10 * code, 10 * (code + 1)))


def test_welch_scores_are_those_of_scipy(frame):
    side = frame.training
    codes = np.unique(side.labels, return_inverse=True)[1]
    scores = marker_pictures.welch_scores(side.log_values, codes)
    values = side.log_values.toarray().astype(np.float64)
    for code in range(len(TYPES)):
        inside, outside = values[codes == code], values[codes != code]
        expected = stats.ttest_ind(inside, outside, equal_var=False)
        np.testing.assert_allclose(scores[code], expected.statistic, rtol=1e-5)


def test_a_gene_is_the_marker_of_the_label_it_scores_highest_for(frame):
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 20)
    values = rng.poisson(1.0, (60, 8)).astype(np.float32)
    values[:20, 0] += 30
    values[20:40, :2] += 15  # gene 0 is high in b too, higher in a
    logged = sp.csr_array(np.log1p(values))
    side = dataclasses.replace(frame.training, log_values=logged, labels=labels)
    markers = marker_pictures.find_markers(side)
    assert markers["a"][0] == 0
    assert markers["b"][0] == 1
    assert 0 not in markers["b"]


def test_labels_of_few_training_cells_have_no_markers(frame):
    labels = frame.training.labels.copy()
    labels[:4] = "rare"
    side = dataclasses.replace(frame.training, labels=labels)
    assert list(marker_pictures.find_markers(side)) == list(TYPES)
    alike = dataclasses.replace(frame.training, labels=np.full(len(labels), "one"))
    assert marker_pictures.find_markers(alike) == {}


def test_marker_picture_draws_shares_and_means_of_both_sides(pair, figures):
    real = pair.real.values.toarray()
    picture = marker_pictures.marker_picture(with_other(pair, np.zeros_like(real)))
    (figure,) = figures()
    genes = np.concatenate(
        list(marker_pictures.find_markers(pair.frame.training).values())
    )
    rows = pair.real.labels == "type B"
    shares = (real[rows][:, genes] > 0).mean(axis=0)
    drawn, empty = (axes.collections[0] for axes in figure.axes[:2])
    of_label = np.asarray(drawn.get_offsets())[:, 0] == TYPES.index("type B")
    np.testing.assert_allclose(drawn.get_sizes()[of_label], 90 * shares)
    assert empty.get_sizes().max() == 0
    means = pair.real.log_values[rows][:, genes].toarray().mean(axis=0)
    np.testing.assert_allclose(drawn.get_array()[of_label], means, rtol=1e-5)
    own = slice(4, 8)
    assert f"): {100 * shares[own].mean():.0f} % and 0 %" in picture.alt


def test_sizes_tell_medians_and_spread(pair):
    alt = cell_pictures.size_picture(with_other(pair, 3 * pair.real.values)).alt
    totals = pair.real.values.toarray().sum(axis=1)
    low, median, high = np.quantile(totals, (0.05, 0.5, 0.95))
    assert f"median {median:.0f} in real and {3 * median:.0f} in generated" in alt
    assert f"{low:.0f} to {high:.0f} and {3 * low:.0f} to {3 * high:.0f};" in alt


def test_correlations_tell_their_size_and_difference(pair):
    picture = gene_pictures.correlation_picture(with_other(pair, pair.real.values))
    assert picture.alt.endswith("the mean difference is 0.000.")
    rng = np.random.default_rng(0)
    shuffled = rng.permuted(pair.real.values.toarray(), axis=0)
    alt = gene_pictures.correlation_picture(with_other(pair, shuffled)).alt
    real = np.corrcoef(pair.real.genes[:, :12], rowvar=False)
    size = np.abs(real[np.triu_indices(len(real), 1)]).mean()
    assert f"Their mean size is {size:.3f} in real" in alt


def test_giveaway_genes_are_drawn_by_importance(figures):
    genes = list(map(dataclasses.asdict, make_experiment().giveaway_genes))
    picture = gene_pictures.giveaway_picture(genes[::-1])
    bars = figures()[0].axes[0].patches
    assert [bar.get_width() for bar in bars] == [0.125, 0.0625, 0.03]
    assert picture.alt.index("MALAT1") < picture.alt.index("RPL13")
    assert "found in 62 % of real and 93 % of generated cells" in picture.alt


def test_distances_tell_medians_near_cells_and_copies():
    alt = cell_pictures.distance_picture(DISTANCES).alt
    assert "median 1.5 for 4 generated and 50.5 for 100 held-out" in alt
    assert "75 % of the generated cells are nearer than the nearest 5 %" in alt
    assert "1 are at no distance at all" in alt


def test_distances_are_drawn_as_shares_with_far_cells_in_the_last_bar(figures):
    made = np.repeat([1.0, 100.0], [995, 5])  # ends at the 99th percentile, 1
    cell_pictures.distance_picture(NearestDistances(made, np.linspace(0, 0.9, 100)))
    steps = [patch.get_data().values for patch in figures()[0].axes[0].patches]
    assert [round(heights.sum(), 9) for heights in steps] == [1.0] * 4
    assert steps[-1][-1] == 1.0


def test_exact_copies_alone_are_drawn():
    zeros = NearestDistances(np.zeros(5), np.zeros(5))
    assert "5 are at no distance at all" in cell_pictures.distance_picture(zeros).alt


@pytest.mark.slow
def test_labels_and_genes_are_shown_as_they_are_when_they_have_dollar_signs(
    pair, figures
):
    labels = {"type A": NASTY, "type B": "$x^{$", "type C": "$C$"}
    renamed = [
        dataclasses.replace(side, labels=np.array([labels[of] for of in side.labels]))
        for side in (pair.real, pair.other, pair.frame.training)
    ]
    frame = dataclasses.replace(
        pair.frame,
        training=renamed[2],
        gene_names=tuple(f"$g_{{{gene}$ & $y$" for gene in range(60)),
    )
    draw_pictures(
        make_pair(*renamed[:2], frame, 0),
        giveaway_genes=list(map(dataclasses.asdict, make_experiment().giveaway_genes)),
    )
    texts = [text for figure in figures() for text in figure.findobj(Text)]
    with_dollars = [text for text in texts if "$" in text.get_text()]
    assert len(with_dollars) > 100
    assert not any(text.get_parse_math() for text in with_dollars)


@pytest.mark.slow
def test_pictures_of_two_modalities_say_which_they_show(pair):
    drawn = draw_pictures(pair, peaks=pair, modality="rna")
    assert [of.name for of in drawn[-2:]] == ["atac_map", "atac_open_shares"]
    assert all(of.title.startswith("RNA: ") for of in drawn[:-2])
    assert all(of.title.startswith("ATAC: ") for of in drawn[-2:])
    assert len({of.name for of in drawn}) == len(drawn)


def test_pictures_of_one_modality_do_not_name_it(pair):
    assert not any(":" in of.title for of in draw_pictures(pair))


def test_open_shares_are_told_as_numbers(pair):
    text = gene_pictures.open_share_picture(pair).alt
    real, made = (
        (side.values.toarray() > 0).mean() for side in (pair.real, pair.other)
    )
    assert f"mean {real:.4f} in real and {made:.4f} in generated cells" in text
