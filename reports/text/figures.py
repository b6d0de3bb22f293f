"""One function a figure: saved data in, Axes out; labels in Russian, units on the axes.

Sizes are in units that are about a pixel on a page; small, so that they can be read on a phone.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from scipy.optimize import isotonic_regression

from reports.text.svg import BLACK, COLORS, QUIET, STYLE, WHITE, tells
from reports.text.words import decimal, estimate_text, eta_text, number

DASHES = ("-", (0, (4, 2)), ":", "-.")
MARKERS = "os^Dv"
NAMES = {
    "objective": "Целевая функция, баллы",
    "reward": "Награда, баллы",
    "kl_anchor": "KL к якорю, нат на ответ",
    "grad_norm": "Норма градиента",
}
KL_TICKS = (0, 0.5, 1, 2, 3, 5, 10, 15, 20, 30, 50, 100, 200, 500)


def new_axes(width: float = 440.0, height: float = 290.0) -> Axes:
    """Axes of a new figure, in units."""
    mpl.rcParams.update(STYLE)  # artists look there when they are made, which is later
    ax = Figure(figsize=(width / 72, height / 72), layout="constrained").subplots()
    with_commas(ax)
    return ax


def figure_of(ax: Axes) -> Figure:
    """The figure that `new_axes` made them in."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def with_commas(ax: Axes) -> None:
    """Decimal commas on both axes."""
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: decimal(value)))


def root_scale(ax: Axes) -> None:
    """A KL grows as the square of how far weights are moved: its root is the axis.

    For a figure whose marks are all drawn.
    """
    most = ax.dataLim.x1
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ticks = [x for x in KL_TICKS if x <= 1.05 * most]
    chosen = ticks[:1]
    for x in ticks[1:]:  # those that leave room for their numbers
        if np.sqrt(x) - np.sqrt(chosen[-1]) > 0.09 * np.sqrt(most):
            chosen.append(x)
    ax.xaxis.set_major_locator(FixedLocator(chosen))
    ax.xaxis.set_minor_locator(NullLocator())
    with_commas(ax)
    ax.set_xlim(-0.0005 * most, 1.06 * most)
    ax.set_xlabel("KL(π‖sft), нат на ответ, √-шкала")


def above(ax: Axes, columns: int = 2, **more: Any) -> None:
    """The legend above the axes, outside of them."""
    handles, labels = ax.get_legend_handles_labels()
    place = {"loc": "outside upper left", "ncols": columns, "borderaxespad": 0.2}
    ax.figure.legend(handles, labels, handlelength=1.8, columnspacing=1.2, **place, **more)


def png(figure: Figure) -> bytes:
    """A picture of it for places that take no SVG, 1200 pixels wide; the same bytes each time."""
    file = io.BytesIO()
    dpi = 1200 / figure.get_figwidth()
    figure.savefig(file, format="png", dpi=dpi, facecolor=WHITE, metadata={"Software": None})
    return file.getvalue()


def training_curves(metrics: pd.DataFrame, ax: Axes, column: str = "objective") -> Axes:
    """A metric against the step t, a curve for each run m of each iteration i.

    Runs that coincide stay visible: the first is wide and pale, later ones thin and on top.
    """
    runs = metrics[["iteration", "run"]].drop_duplicates().itertuples(index=False)
    for i, m in runs:
        rows = metrics[(metrics["iteration"] == i) & (metrics["run"] == m)]
        ax.plot(
            rows["step"],
            rows[column],
            label=f"итерация {i}, запуск {m}",
            color=COLORS[(i - 1) % len(COLORS)],
            linestyle=DASHES[(m - 1) % len(DASHES)],
            linewidth=4.0 if m == 1 else 1.5,
            alpha=0.4 if m == 1 else 1.0,
            marker=MARKERS[(m - 1) % len(MARKERS)],
            markersize=5 if m == 1 else 3,
            zorder=2 + m,
        )
    ax.set(xlabel="Шаг обучения t", ylabel=NAMES[column])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def four_curves(metrics: pd.DataFrame) -> list[Axes]:
    """Objective, reward, KL to the anchor and gradient norm, each in its panel."""
    axes = [training_curves(metrics, new_axes(330, 230), column) for column in NAMES]
    above(axes[0])
    return axes


def small_curves(metrics: pd.DataFrame, title: str, shared_run_seed: bool) -> Axes:
    """The objective of an experiment in a small panel; runs that share a seed are one curve."""
    ax = new_axes(250, 190)
    shown = metrics.loc[metrics["run"] == 1] if shared_run_seed else metrics
    pairs = shown[["iteration", "run"]].drop_duplicates().itertuples(index=False)
    ends: list[tuple[str, str, float]] = []
    for i, m in pairs:
        rows = shown.loc[(shown["iteration"] == i) & (shown["run"] == m)]
        style = {"color": COLORS[(i - 1) % len(COLORS)], "linestyle": DASHES[(m - 1) % len(DASHES)]}
        marker = {"marker": MARKERS[(i - 1) % len(MARKERS)], "markersize": 3.5}
        ax.plot(rows["step"], rows["objective"], linewidth=1.6, **style, **marker)
        said = f"i = {i}" if shared_run_seed else f"i = {i}, m = {m}"
        ends.append((said, style["color"], rows["objective"].iloc[-1]))
    last = max(metrics["step"].tolist())
    ax.margins(y=0.2)  # for the labels
    low, high = ax.get_ylim()
    place = {"textcoords": "offset points", "xytext": (5, 0), "va": "center", "fontsize": 9}
    heights = apart([height for *_, height in ends], 0.09 * (high - low))
    for (said, color, _), height in zip(ends, heights, strict=True):
        ax.annotate(said, (last, height), color=color, **place)
    ax.set_title(title, loc="left")
    ax.set(
        xlabel="Шаг t", ylabel="Целевая функция, баллы", xlim=(0.5, 1.25 * metrics["step"].max())
    )
    ax.xaxis.set_major_locator(FixedLocator(sorted({1, last // 2, last})))
    return ax


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights of labels: those given, moved as little as keeps them apart by the gap."""
    order, gaps = np.argsort(heights), gap * np.arange(len(heights))
    placed = np.empty(len(heights))
    placed[order] = isotonic_regression(np.asarray(heights)[order] - gaps).x + gaps
    return placed.tolist()


def layer_angles(angles: Sequence[Mapping[str, Any]], ax: Axes) -> Axes:
    """Angle between the task vectors of runs 1 and 2 by transformer layer, a curve an iteration."""
    lowest = 80.0
    for i, groups in enumerate(angles, start=1):
        layers = [matrix for group, matrix in groups.items() if group.rsplit(".", 1)[-1].isdigit()]
        degrees = [np.nan if m[0][1] is None else m[0][1] for m in layers]
        lowest = np.nanmin([lowest, *degrees])
        ax.plot(
            degrees,
            color=COLORS[(i - 1) % len(COLORS)],
            marker=MARKERS[(i - 1) % len(MARKERS)],
            markersize=3.5,
            label=f"итерация {i}",
            linewidth=2.2 if i == 1 else 1.4,
        )
    ax.axhline(90, color=QUIET, linewidth=1, linestyle=":")
    ax.set(xlabel="Номер слоя", ylabel="Угол между δ₁ и δ₂, градусы", ylim=(lowest - 5, 95))
    above(ax)
    return ax


def front(summary: Mapping[str, Any], ax: Axes) -> Axes:
    """The front over η in the plane of KL and reward, with standard errors, the RL runs, and WARP."""
    points = summary["front"]
    means = [(p["kl"]["mean"], p["reward"]["mean"]) for p in points]
    ax.plot(*zip(*means, strict=True), "-", color=COLORS[0], label="фронт: SLERP, LITI с η")
    for point in points:
        _with_errors(ax, point, eta_text(point["eta"]), color=COLORS[0], marker="o", markersize=5)
    for k, point in enumerate(summary["front_runs"]):
        name = f"запуск {point['run']} последней итерации"
        style = {"color": COLORS[2], "marker": "^v<>"[k % 4], "markersize": 8, "label": name}
        _with_errors(ax, point, name, markerfacecolor=WHITE, **style)
    warp = {"kl": summary["kl_warp_sft"], "reward": summary["warp_reward"]}
    style = {"color": COLORS[3], "marker": "*", "markersize": 11, "label": "WARP-модель"}
    _with_errors(ax, warp, "WARP-модель", **style)
    root_scale(ax)
    ax.set_ylabel("Средняя награда, баллы")
    above(ax, columns=1)
    return ax


def _with_errors(ax: Axes, point: Mapping[str, Any], name: str, **style: Any) -> None:
    """A policy by its KL and reward, with the standard errors of both."""
    kl, reward = point["kl"], point["reward"]
    bars = {"xerr": kl["stderr"], "yerr": reward["stderr"], "linestyle": "", "elinewidth": 1}
    drawn = ax.errorbar(kl["mean"], reward["mean"], **bars, **style)
    tells(drawn.lines[0], f"{name}: награда {estimate_text(reward)}, KL {estimate_text(kl)}")


def learning_curve(training: pd.DataFrame, held_out: pd.DataFrame) -> list[Axes]:
    """Loss of the reward model by step, and its held-out pairwise accuracy."""
    loss, right = new_axes(300, 210), new_axes(300, 210)
    smooth = training["loss"].rolling(10, min_periods=1).mean()
    loss.plot(training["step"], training["loss"], color=COLORS[0], alpha=0.25, linewidth=1)
    loss.plot(training["step"], smooth, color=COLORS[0])
    loss.set(xlabel="Шаг обучения", ylabel="Функция потерь, нат")
    share = 100 * held_out["accuracy"]
    right.plot(held_out["step"], share, "s-", color=COLORS[1], markersize=5)
    right.set(xlabel="Шаг обучения", ylabel="Верных пар, %", ylim=(45, 100))
    return [loss, right]


def calibration(scores: np.ndarray, ratings: np.ndarray, ax: Axes, bins: int = 10) -> Axes:
    """Mean human rating by tenth of the predicted reward, with standard errors."""
    for row in calibration_rows(scores, ratings, bins):
        x, y, error = row["reward"], row["rating"], row["rating_stderr"]
        drawn = ax.errorbar(x, y, yerr=error, fmt="o", color=COLORS[0], markersize=5)
        said = f"награда {number(x, 0.1)}, оценка людей {number(y, 0.1)} ± {number(error, 0.1)}"
        tells(drawn.lines[0], said)
    ends = [min(scores.min(), -3), max(scores.max(), 3)]
    ax.plot(ends, ends, ":", color=QUIET, label="награда равна оценке людей")
    ax.set(xlabel="Предсказанная награда, баллы", ylabel="Оценка людей, баллы")
    ax.legend(loc="lower right")
    return ax


def calibration_rows(
    scores: np.ndarray, ratings: np.ndarray, bins: int = 10
) -> list[dict[str, float]]:
    """By tenth of the predicted reward: mean reward, mean rating and its standard error, n."""
    parts = np.array_split(np.argsort(scores), bins)
    return [
        {
            "reward": float(scores[part].mean()),
            "rating": float(ratings[part].mean()),
            "rating_stderr": float(ratings[part].std(ddof=1) / np.sqrt(len(part))),
            "n": len(part),
        }
        for part in parts
    ]


def growth(measured: Sequence[Mapping[str, Any]]) -> list[Axes]:
    """Seconds of a training step against batch, new tokens and model size; runs side by side.

    Args:
        measured: rows of what (`batch_size`, `max_new_tokens`, `parameters`, `side_by_side`),
            value, seconds (of each round) and, of runs side by side, threads.
    """
    labels = {
        "batch_size": "Ответов в батче B",
        "max_new_tokens": "Новых токенов N",
        "parameters": "Параметров политики, млн",
    }
    axes = []
    for what, label in labels.items():
        ax = new_axes(250, 190)
        rows = [row for row in measured if row["what"] == what]
        seconds = np.array([row["seconds"] for row in rows])  # (values, rounds)
        middle = np.median(seconds, axis=1)
        errors = [middle - seconds.min(axis=1), seconds.max(axis=1) - middle]
        x = [row["value"] for row in rows]
        ax.errorbar(x, middle, yerr=errors, fmt="o-", color=COLORS[0], markersize=4)
        ax.set(xlabel=label, ylabel="Время шага, с", xlim=(0, None), ylim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.append(ax)
    ax = new_axes(250, 190)
    rows = [row for row in measured if row["what"] == "side_by_side"]
    names = [f"{row['value']} × {row['threads']}" for row in rows]
    heights = [60 * row["value"] / np.median(row["seconds"]) for row in rows]
    ax.bar(range(len(rows)), heights, color=COLORS[2], width=0.6)
    ax.set_xticks(range(len(rows)), names)
    ax.grid(axis="x", visible=False)
    ax.set(xlabel="Запусков × потоков", ylabel="Шагов в минуту")
    return [*axes, ax]


def by_experiment(
    rows: Sequence[Mapping[str, Any]], here: Mapping[str, Mapping[str, Any]]
) -> list[Axes]:
    """Gain in reward and KL of the four experiments: a dot a training, with one seed for its runs or
    one for each; a cross is the training of this report.

    Args:
        rows: of the study of the seed report.
        here: summaries by the experiment's name.
    """
    gain, kl = new_axes(330, 270), new_axes(330, 270)
    for own, (color, marker) in enumerate((("#555555", "s"), (COLORS[0], "o"))):
        for k in range(1, 5):
            name = f"experiment_{k}{'_control' if own else ''}"
            x = k + (0.16 if own else -0.16)
            of_arm = [row for row in rows if row["arm"] == name]
            style = {"color": color, "marker": marker, "linestyle": "", "markersize": 5}
            label = ("seed у каждого свой" if own else "один seed на оба") * (k == 1)
            for ax, values in (
                (gain, [row["reward"]["mean"] - row["sft_reward"] for row in of_arm]),
                (kl, [row["kl"]["mean"] for row in of_arm]),
            ):
                spread = x + 0.05 * (np.arange(len(values)) % 3 - 1)
                ax.plot(
                    spread, values, alpha=0.55, label=label if rows and label else None, **style
                )
            if name in here:
                one = here[name]
                for ax, key in ((gain, "reward_difference"), (kl, "kl_warp_sft")):
                    mean, error = one[key]["mean"], one[key]["stderr"]
                    cross = "+" if own else "x"
                    drawn = ax.errorbar(x, mean, error, fmt=cross, color=BLACK, markersize=8)
                    said = f"эксперимент {k}{', контроль' * own}, этот отчёт"
                    tells(drawn.lines[0], f"{said}: {estimate_text(one[key])}")
    gain.axhline(0, color=QUIET, linewidth=1)
    gain.set_ylabel("Прирост награды, баллы")
    kl.set_yscale("symlog", linthresh=1e-6, linscale=0.5)
    kl.set_yticks([0, 1e-6, 1e-4, 1e-2, 1, 100], ["0", "10⁻⁶", "10⁻⁴", "0,01", "1", "100"])
    kl.yaxis.set_minor_locator(NullLocator())
    kl.set_ylabel("KL(warp‖sft), нат на ответ")
    for ax in (gain, kl):
        ax.set(xlabel="Эксперимент", xlim=(0.5, 4.5))
        ax.set_xticks([1, 2, 3, 4], ["1", "2", "3", "4"])
        ax.grid(axis="x", visible=False)
    for cross, name in (("x", "этот отчёт, один"), ("+", "этот отчёт, свои")):
        gain.plot([], [], cross, color=BLACK, markersize=8, label=name)
    above(gain, columns=2)
    return [gain, kl]
