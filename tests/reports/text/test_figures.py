"""Figures show what they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from invented import FRONT, SAME, front_point, metrics, summary

from reports.text import figures


@pytest.fixture(autouse=True)
def _closed_afterwards():
    yield
    plt.close("all")


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_training_curves_have_a_line_a_run():
    ax = figures.training_curves(pd.DataFrame(metrics(SAME)), figures.new_axes())
    figures.runs_legend(ax)
    assert len(drawn(ax).lines) == 4
    assert [line.get_label() for line in ax.lines] == [
        f"$\\theta_{{{m}_{i}}}$" for i in (1, 2) for m in (1, 2)
    ]


def test_a_front_is_drawn_with_its_runs_and_without():
    runs = [front_point("run", m, 12.0) for m in (1, 2)]
    with_runs = figures.front({"front": FRONT, "front_runs": runs}, figures.new_axes())
    assert len(legend(drawn(with_runs))) == 3
    without = figures.front({"front": FRONT, "front_runs": []}, figures.new_axes())
    assert len(legend(drawn(without))) == 1
    assert "запуск" not in "".join(legend(without))


def test_a_control_has_its_experiments_colour():
    names = ["experiment_1", "experiment_4", "experiment_4_control"]
    summaries = {name: summary() for name in names}
    ax = figures.experiments_plane(summaries, str.upper, figures.new_axes())
    assert legend(drawn(ax))[1:] == [f"эксперимент {name.upper()}" for name in names]
    colors = [container.lines[0].get_color() for container in ax.containers]
    assert colors[0] != colors[1] == colors[2]


def test_angles_are_drawn_by_layer():
    matrix = [[0.0, 85.0], [85.0, 0.0]]
    still = [[0.0, None], [None, 0.0]]
    angles = [{"layers.0": matrix, "layers.1": still, "embedding": matrix}] * 2
    ax = drawn(figures.layer_angles(angles, figures.new_axes()))
    first = ax.lines[0].get_ydata()
    assert first[0] == 85.0
    assert np.isnan(first[1])
    assert legend(ax) == ["итерация 1", "итерация 2"]


def test_the_reward_models_figures_are_drawn():
    training = pd.DataFrame({"step": range(20), "loss": np.linspace(1, 0.5, 20)})
    curve = pd.DataFrame({"step": [5, 10], "accuracy": [0.6, 0.8]})
    drawn(figures.learning_curve(training, curve, figures.new_axes()))
    scores = np.linspace(-2, 2, 40)
    ax = drawn(figures.calibration(scores, scores / 2, figures.new_axes()))
    assert len(ax.containers) == 10


def test_the_growth_figure_has_a_panel_for_each_thing_that_grows():
    things = {"batch_size": (4, 8), "max_new_tokens": (12, 24), "parameters": (30, 135)}
    measured = [
        {"what": what, "value": value, "seconds": [1.0, 2.0, 1.5]}
        for what, values in things.items()
        for value in values
    ]
    measured += [
        {"what": "side_by_side", "value": n, "threads": t, "seconds": [n + 1.0]}
        for n, t in ((1, 1), (1, 2), (2, 1))
    ]
    axes = figures.new_row(4)
    figures.growth(measured, axes)
    assert [ax.get_xlabel() for ax in axes] == [
        "Ответов в батче $B$",
        "Новых токенов $N$",
        "Параметров политики, млн",
        "Запусков × потоков",
    ]
    assert list(axes[0].containers[0].lines[0].get_ydata()) == [1.5, 1.5]
    assert [bar.get_height() for bar in axes[3].patches] == [30.0, 30.0, 40.0]
