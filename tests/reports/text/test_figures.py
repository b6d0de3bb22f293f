"""Figures show what they are given."""

import numpy as np
import pandas as pd
import pytest
from invented import FRONT, SAME, front_point, metrics, summary

from reports.text import figures


def drawn(ax):
    ax.figure.canvas.draw()
    return ax


def legend(ax):
    return ax.get_legend_handles_labels()[1]


def test_training_curves_have_a_line_a_run():
    curves = pd.DataFrame(metrics(SAME)).assign(reward=1.0, kl_anchor=0.1, grad_norm=2.0)
    panels = figures.four_curves(curves)
    assert len(panels) == 4
    assert all(len(drawn(ax).lines) == 4 for ax in panels)
    names = [f"итерация {i}, запуск {m}" for i in (1, 2) for m in (1, 2)]
    assert [line.get_label() for line in panels[0].lines] == names
    shared, own = (figures.small_curves(curves, "1", seed) for seed in (True, False))
    assert (len(drawn(shared).lines), len(drawn(own).lines)) == (2, 4)


def test_labels_that_would_overlap_stand_apart_about_where_their_curves_end():
    assert figures.apart([3.0, 1.0, 1.2], 0.5) == pytest.approx([3.0, 0.85, 1.35])
    assert figures.apart([2.0, 0.0], 0.5) == [2.0, 0.0]
    placed = figures.apart([1.0, 1.0, 1.0, 1.1], 0.5)
    assert sorted(placed) == pytest.approx([0.275, 0.775, 1.275, 1.775])
    assert max(placed) == placed[3]


def test_a_front_is_drawn_with_its_runs_and_without():
    runs = [front_point("run", m, 12.0) for m in (1, 2)]
    warp = summary(kl=4.0)
    with_runs = figures.front(warp | {"front": FRONT, "front_runs": runs}, figures.new_axes())
    assert len(legend(drawn(with_runs))) == 4
    assert with_runs.get_xlim()[1] > 12.0  # which is beyond the front's end
    without = figures.front(warp | {"front": FRONT, "front_runs": []}, figures.new_axes())
    assert set(legend(drawn(without))) == {"фронт: SLERP, LITI с η", "WARP-модель"}
    assert "запуск" not in "".join(legend(without))


def test_experiments_show_their_trainings_and_where_this_one_is():
    arms = ["experiment_1", "experiment_4", "experiment_4_control"]
    about = {"sft_reward": 0.5, "kl": {"mean": 2.0}}
    rows = [about | {"arm": arm, "reward": {"mean": 1.0 + k}} for arm in arms for k in range(3)]
    here = {"experiment_4": summary(difference=0.7)}
    gain, _ = map(drawn, figures.by_experiment(rows, here))
    points = [y for line in gain.lines for y in line.get_ydata() if line.get_marker() in "so"]
    assert sorted(points) == sorted(3 * [0.5, 1.5, 2.5])
    (cross,) = [line for line in gain.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert cross.get_ydata()[0] == 0.7
    assert "0,70" in cross.get_gid()
    assert len(legend(gain)) == 4


def test_axes_have_decimal_commas_and_the_root_of_a_kl():
    ax = figures.new_axes()
    ax.plot([0, 25.0], [0.5, -1.5])
    figures.root_scale(ax)
    drawn(ax)
    labels = [label.get_text() for label in ax.get_xticklabels()]
    assert labels[0] == "0"
    assert set(labels) <= {str(x).replace(".", ",") for x in figures.KL_TICKS}
    assert any("," in label.get_text() for label in ax.get_yticklabels())
    places = [ax.transData.transform((x, 0))[0] for x in (0, 6.25, 25.0)]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1])


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
    loss, share = map(drawn, figures.learning_curve(training, curve))
    assert list(share.lines[0].get_ydata()) == [60.0, 80.0]
    assert len(loss.lines) == 2
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
    axes = figures.growth(measured)
    assert [ax.get_xlabel() for ax in axes] == [
        "Ответов в батче B",
        "Новых токенов N",
        "Параметров политики, млн",
        "Запусков × потоков",
    ]
    assert list(axes[0].containers[0].lines[0].get_ydata()) == [1.5, 1.5]
    assert [bar.get_height() for bar in axes[3].patches] == [30.0, 30.0, 40.0]
