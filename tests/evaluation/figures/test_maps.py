from __future__ import annotations

from unittest.mock import create_autospec

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.spatial.distance import pdist
from sklearn.metrics import silhouette_score

from cellgan.evaluation.figures import genes, maps
from cellgan.evaluation.figures.canvas import save
from tests.synthetic import make_cells


@pytest.fixture(scope="module")
def halves():
    """Return two halves of synthetic cells and their labels."""
    cells = make_cells(160)
    return (
        (cells.counts[:80], cells.counts[80:]),
        (cells.labels[:80], cells.labels[80:]),
    )


def fast_embedding(monkeypatch) -> None:
    """Draw the first two values of every cell in place of a map that takes seconds."""
    monkeypatch.setattr(maps, "embed", lambda cells, **options: cells[:, :2])


@pytest.mark.parametrize(
    ("name", "start"), [("maps/map.png", b"\x89PNG"), ("map.jpg", b"\xff\xd8\xff")]
)
def test_figure_is_saved_whole_in_the_format_of_its_name(
    tmp_path, monkeypatch, halves, name, start
):
    fast_embedding(monkeypatch)
    path = tmp_path / name
    save(maps.embedding_figure(*halves[0], *halves[1], seed=0), path)
    assert path.read_bytes().startswith(start)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_embedding_figure_leaves_pyplot_and_backend_alone(
    tmp_path, monkeypatch, halves
):
    fast_embedding(monkeypatch)
    before = (mpl.rcParams["backend"], plt.get_fignums())
    save(maps.embedding_figure(*halves[0], *halves[1], seed=0), tmp_path / "map.png")
    assert (mpl.rcParams["backend"], plt.get_fignums()) == before


def test_embedding_is_the_same_for_the_same_seed(halves):
    cells = np.vstack([side.toarray() for side in halves[0]])
    first, again = (
        maps.embed(cells, method="tsne", seed=1, log_components=False) for _ in range(2)
    )
    np.testing.assert_array_equal(first, again)


@pytest.mark.slow
def test_umap_separates_the_clusters(halves):
    cells = np.vstack([side.toarray() for side in halves[0]])
    coordinates = maps.embed(cells, method="umap", seed=0, log_components=True)
    assert silhouette_score(coordinates, np.concatenate(halves[1])) > 0.5


@pytest.mark.parametrize("log_components", [True, False])
@pytest.mark.parametrize("method", ["tsne", "umap"])
@pytest.mark.parametrize("n_cells", [1, 2, 3])
def test_embedding_is_the_principal_components_when_cells_are_very_few(
    n_cells, method, log_components
):
    cells = np.random.default_rng(0).poisson(2.0, (n_cells, 5)).astype(np.float32)
    points = maps.embed(cells, method=method, seed=0, log_components=log_components)
    values = np.log1p(cells) if log_components else cells
    # two components hold all of three cells: the map turns them, and loses nothing
    assert points.shape == (n_cells, 2)
    assert points.dtype == np.float32
    np.testing.assert_allclose(pdist(points), pdist(values), rtol=1e-4)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-5)


def test_embedding_pads_with_zeros_when_there_is_one_gene():
    cells = np.array([[1.0], [3.0], [8.0]], np.float32)
    points = maps.embed(cells, method="tsne", seed=0, log_components=False)
    np.testing.assert_allclose(np.abs(points), [[3, 0], [1, 0], [4, 0]], atol=1e-5)


@pytest.mark.parametrize(
    "method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)]
)
def test_embedding_maps_the_fewest_cells_that_both_methods_take(method):
    cells = np.random.default_rng(0).poisson(2.0, (4, 5)).astype(np.float32)
    points = maps.embed(cells, method=method, seed=0, log_components=True)
    assert points.shape == (4, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("n_labels", [3, 10, 20, 35])
def test_embedding_figure_gives_each_label_one_colour_for_both_sides(
    monkeypatch, n_labels
):
    fast_embedding(monkeypatch)
    labels = np.array([f"type {code:02}" for code in range(n_labels)])
    cells = np.random.default_rng(0).normal(size=(n_labels, 2))
    figure = maps.embedding_figure(cells, cells, labels, labels[::-1], seed=0)
    real, generated = figure.axes[0].collections
    colours = real.get_facecolors()[:, :3]
    rings = generated.get_edgecolors()[:, :3]
    np.testing.assert_array_equal(colours, rings[::-1])
    assert len(np.unique(colours, axis=0)) == n_labels
    assert len(generated.get_facecolors()) == 0


def test_embedding_figure_keeps_colours_when_a_label_is_absent(monkeypatch):
    fast_embedding(monkeypatch)
    cells, labels = np.zeros((1, 2)), np.array(["c"])
    figures = (
        maps.embedding_figure(
            cells, cells, labels, labels, seed=0, categories=categories
        )
        for categories in (["a", "b", "c"], ["c"])
    )
    among_three, alone = (
        tuple(figure.axes[0].collections[0].get_facecolors()[0]) for figure in figures
    )
    assert among_three != alone


def test_embedding_figure_names_every_label_and_both_sides_in_the_legend(
    monkeypatch, halves
):
    fast_embedding(monkeypatch)
    cells, labels = halves
    figure = maps.embedding_figure(*cells, *labels, seed=0)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["real", "generated", "type A", "type B", "type C"]


def test_embedding_figure_is_blue_and_red_without_labels(monkeypatch, halves):
    fast_embedding(monkeypatch)
    figure = maps.embedding_figure(*halves[0], seed=0)
    real, generated = figure.axes[0].collections
    red, _, blue, _ = real.get_facecolors()[0]
    assert blue > red
    red, _, blue, _ = generated.get_edgecolors()[0]
    assert red > blue


@pytest.fixture
def mapped(monkeypatch) -> list[np.ndarray]:
    """Collect what t-SNE is given, in place of running it."""
    given: list[np.ndarray] = []

    class Recorder:
        def __init__(self, **options: object) -> None:
            pass

        def fit_transform(self, cells: np.ndarray) -> np.ndarray:
            given.append(cells)
            return cells[:, :2]

    monkeypatch.setattr(maps, "TSNE", Recorder)
    return given


def test_embedding_maps_50_components_of_log_values(mapped, halves):
    cells = halves[0][0].toarray()
    maps.embed(cells, method="tsne", seed=0, log_components=True)
    logged = np.log1p(cells) - np.log1p(cells).mean(axis=0)
    lengths = np.linalg.svd(logged, compute_uv=False)[:50]
    np.testing.assert_allclose(np.linalg.norm(mapped[0], axis=0), lengths, rtol=1e-2)


def test_embedding_maps_values_as_they_are_when_told(mapped, halves):
    cells = halves[0][0].toarray()
    maps.embed(cells, method="tsne", seed=0, log_components=False)
    np.testing.assert_array_equal(mapped[0], cells)


def test_correlation_figure_has_generated_lower_left_and_real_upper_right():
    real = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
    axes = genes.correlation_figure(real, -real, ["x", "y", "z"]).axes[0]
    shown = np.asarray(axes.images[0].get_array())
    names = [text.get_text() for text in axes.get_yticklabels()]
    order = ["xyz".index(name) for name in names]
    arranged = real[np.ix_(order, order)]
    upper, lower = np.triu_indices(3, 1), np.tril_indices(3, -1)
    np.testing.assert_array_equal(shown[upper], arranged[upper])
    np.testing.assert_array_equal(shown[lower], -arranged[lower])
    assert axes.images[0].origin == "upper"


NOT_MATHEMATICS = ("CD4$^{hi$", "$x^2$ and $y$")


def draw_embedding(text):
    cells, labels = np.eye(2), np.array([text, "other"])
    return maps.embedding_figure(cells, cells, labels, labels, seed=0, title=text)


def draw_correlations(text):
    return genes.correlation_figure(np.eye(2), np.eye(2), [text, "other"])


@pytest.mark.parametrize("text", NOT_MATHEMATICS)
@pytest.mark.parametrize("draw", [draw_embedding, draw_correlations])
def test_figure_shows_text_as_it_is_when_it_has_dollar_signs(
    monkeypatch, tmp_path, draw, text
):
    fast_embedding(monkeypatch)
    savefig = create_autospec(Figure.savefig, side_effect=Figure.savefig)
    monkeypatch.setattr(Figure, "savefig", savefig)
    save(draw(text), tmp_path / "figure.png")
    figure = savefig.call_args.args[0]
    shown = [found for found in figure.findobj(Text) if found.get_text() == text]
    assert len(shown) >= 2  # title and legend, or the ticks of both axes
    assert not any(found.get_parse_math() for found in shown)


def test_figure_is_not_left_half_written_when_saving_fails(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(b"earlier")
    with pytest.raises(ValueError, match="not supported"):
        save(Figure(), path.with_suffix(".docx"))
    assert [file.name for file in tmp_path.iterdir()] == ["figure.png"]
    assert path.read_bytes() == b"earlier"
