"""What the figures of studies show."""

from __future__ import annotations

import numpy as np

from cellgan.studies.figures import (
    MeanInterval,
    guidance_figure,
    influence_figure,
    integration_figure,
    strategy_figure,
)


def test_strategy_figure_orders_fractions_and_draws_their_intervals():
    scores = {
        "reduced": [MeanInterval(0.5, 0.4, 0.6), MeanInterval(0.1, 0.0, 0.2)],
        "augmented": [MeanInterval(0.8, 0.7, 0.9), MeanInterval(0.6, 0.5, 0.7)],
    }
    figure = strategy_figure([0.5, 0.01], scores, title="type A")
    axes = figure.axes[0]
    np.testing.assert_array_equal(axes.lines[0].get_xydata(), [[0.01, 0.1], [0.5, 0.5]])
    band = axes.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0.5, 0.9)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [*scores]


def test_legend_of_a_correction_is_in_natural_order():
    points = np.zeros((3, 2))
    batches = np.array(["lane 10", "lane 2", "lane 1"])
    labels = np.array(["T", "B", "T"])
    figure = integration_figure((points, points), batches, labels, "lane")
    legends = [axes.get_legend() for axes in figure.axes]
    texts = [[t.get_text() for t in legend.get_texts()] for legend in legends if legend]
    assert texts == [["lane 1", "lane 2", "lane 10"], ["B", "T"]]


def test_guidance_figure_has_a_line_for_real_cells_in_every_panel():
    figure = guidance_figure(
        [0.5, 1.0], {"fidelity": [3.0, 2.0, 1.0], "agreement": [0.1, 0.2, 0.9]}
    )

    curves = [axes.lines for axes in figure.axes]
    np.testing.assert_array_equal(curves[0][0].get_xydata(), [[0.5, 3], [1.0, 2]])
    assert [lines[1].get_ydata()[0] for lines in curves] == [1.0, 0.9]


def test_influence_figure_stacks_the_shares_of_heads():
    figure = influence_figure(
        {"T": {"base": 0.75, "donor": 0.25}}, {"donor": {"x": 0.4}}, "T cells"
    )

    left, right = figure.axes
    bars = [(bar.get_x(), bar.get_width()) for bar in left.patches]
    assert bars == [(0.0, 0.75), (0.75, 0.25)]
    assert [bar.get_width() for bar in right.patches] == [0.4]
