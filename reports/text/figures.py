"""One function a figure: saved data in, Axes out; labels in Russian, units on the axes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

COLORS = ("#1f5fa8", "#c2571a", "#2c8a57", "#8d3fa0", "#7a6a1f")
DASHES = ("-", "--", ":", "-.")
NAMES = {
    "objective": "Целевая функция $r_\\beta$, баллы",
    "reward": "Награда $r$, баллы",
    "kl_anchor": "KL к якорю, нат на ответ\n(оценка по ответам, бывает < 0)",
    "grad_norm": "Норма градиента",
}


def new_axes(width: float = 7.0, height: float = 4.0) -> Axes:
    """Axes of a new figure, in inches."""
    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.grid(alpha=0.3)
    return ax


def new_row(count: int, width: float = 12.0, height: float = 3.4) -> list[Axes]:
    """So many axes side by side in a new figure."""
    _, axes = plt.subplots(1, count, figsize=(width, height), layout="constrained", squeeze=False)
    for ax in axes[0]:
        ax.grid(alpha=0.3)
    return list(axes[0])


def training_curves(metrics: pd.DataFrame, ax: Axes, column: str = "objective") -> Axes:
    """A metric against the step t, a curve θ_{m_i} for each run m of each iteration i.

    Runs that coincide stay visible: later ones are thinner, dashed, and drawn on top.
    """
    runs = metrics[["iteration", "run"]].drop_duplicates().itertuples(index=False)
    for i, m in runs:
        rows = metrics[(metrics["iteration"] == i) & (metrics["run"] == m)]
        ax.plot(
            rows["step"],
            rows[column],
            label=f"$\\theta_{{{m}_{i}}}$",
            color=COLORS[(i - 1) % len(COLORS)],
            linestyle=DASHES[(m - 1) % len(DASHES)],
            linewidth=max(4.5 - 2 * (m - 1), 1.5),
            alpha=0.45 if m == 1 else 1.0,
            marker="o" if m == 1 else "x",
            markersize=5,
            zorder=2 + m,
        )
    ax.set(xlabel="Шаг обучения $t$", ylabel=NAMES[column])
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def runs_legend(ax: Axes) -> None:
    """Which curve of `training_curves` is which run, above the whole figure of these axes."""
    handles, labels = ax.get_legend_handles_labels()
    ax.figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=len(labels),
        title="запуск $m$ итерации $i$: $\\theta_{m_i}$",
        title_fontsize="small",
    )


def layer_angles(angles: Sequence[Mapping[str, Any]], ax: Axes) -> Axes:
    """Angle between the task vectors of runs 1 and 2 by transformer layer, a curve an iteration."""
    for i, groups in enumerate(angles, start=1):
        layers = [matrix for group, matrix in groups.items() if group.rsplit(".", 1)[-1].isdigit()]
        degrees = [np.nan if m[0][1] is None else m[0][1] for m in layers]
        ax.plot(
            degrees,
            "o-",
            color=COLORS[(i - 1) % len(COLORS)],
            markersize=4,
            label=f"итерация {i}",
            linewidth=2.2 if i == 1 else 1.4,
        )
    ax.axhline(90, color="gray", linewidth=1, linestyle=":")
    ax.set(
        xlabel="Номер слоя", ylabel="Угол между $\\delta_1$ и $\\delta_2$, градусы", ylim=(-5, 100)
    )
    ax.legend()
    return ax


def front(summary: Mapping[str, Any], ax: Axes) -> Axes:
    """The front over η in the plane of KL and reward, with standard errors, and the RL runs."""
    points = summary["front"]
    _errorbars(
        points,
        ax,
        label="$(1-\\eta)\\,\\theta_{sft}+\\eta\\,\\theta_{slerp}$",
        fmt="o-",
        color=COLORS[0],
    )
    for point in points:
        ax.annotate(
            f"$\\eta={point['eta']:g}$".replace(".", "{,}"),
            (point["kl"]["mean"], point["reward"]["mean"]),
            textcoords="offset points",
            xytext=(7, -13),
            fontsize="small",
        )
    markers = "s^vD*P"
    for k, point in enumerate(summary["front_runs"]):
        _errorbars(
            [point],
            ax,
            label=f"запуск {point['run']} последней итерации",
            fmt=markers[k % len(markers)],
            color=COLORS[(k + 1) % len(COLORS)],
            markersize=11 - 4 * (k % 2),
            markerfacecolor="none" if k % 2 == 0 else None,
        )
    ax.set(xlabel="KL$(\\pi_\\theta\\|\\pi_{sft})$, нат на ответ", ylabel="Средняя награда, баллы")
    ax.legend()
    return ax


def experiments_plane(
    summaries: Mapping[str, Mapping[str, Any]], label: Callable[[str], str], ax: Axes
) -> Axes:
    """WARP policies of several experiments in the plane of KL and reward; SFT as a band.

    Args:
        label: what the legend calls an experiment, from its name.
    """
    sft = next(iter(summaries.values()))["sft_reward"]
    ax.axhspan(
        sft["mean"] - sft["stderr"],
        sft["mean"] + sft["stderr"],
        color="gray",
        alpha=0.25,
        label="SFT-модель ± ошибка",
    )
    colors: dict[str, str] = {}  # a control has its experiment's colour and a hollow, larger mark
    for name, summary in summaries.items():
        control = name.endswith("_control")
        experiment = name.removesuffix("_control")
        color = colors.setdefault(experiment, COLORS[len(colors) % len(COLORS)])
        point = {"kl": summary["kl_warp_sft"], "reward": summary["warp_reward"]}
        _errorbars(
            [point],
            ax,
            label=f"эксперимент {label(name)}",
            fmt="s" if control else "o",
            color=color,
            markersize=13 if control else 6,
            markerfacecolor="none" if control else color,
        )
    ax.set_xscale("symlog", linthresh=1e-7)
    ax.set_xlim(left=0)
    ax.set(xlabel="KL(warp‖sft), нат на ответ (логарифм)", ylabel="Средняя награда, баллы")
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


def learning_curve(training: pd.DataFrame, held_out: pd.DataFrame, ax: Axes) -> Axes:
    """Loss of the reward model by step, and its held-out pairwise accuracy beside it."""
    smooth = training["loss"].rolling(10, min_periods=1).mean()
    ax.plot(training["step"], training["loss"], color=COLORS[0], alpha=0.25, linewidth=1)
    ax.plot(training["step"], smooth, color=COLORS[0], label="функция потерь, среднее по 10 шагам")
    ax.set(xlabel="Шаг обучения", ylabel="Функция потерь, нат")
    right = ax.twinx()
    right.plot(
        held_out["step"],
        held_out["accuracy"],
        "s-",
        color=COLORS[1],
        label="доля верных пар на отложенных",
    )
    right.set(ylabel="Доля верно упорядоченных пар", ylim=(0.45, 1.0))
    handles = [*ax.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
    ax.figure.legend(handles=handles, loc="outside upper center", ncols=2)
    return ax


def calibration(scores: np.ndarray, ratings: np.ndarray, ax: Axes, bins: int = 10) -> Axes:
    """Mean human rating by tenth of the predicted reward, with standard errors."""
    for part in np.array_split(np.argsort(scores), bins):
        ax.errorbar(
            scores[part].mean(),
            ratings[part].mean(),
            fmt="o",
            color=COLORS[0],
            capsize=3,
            yerr=ratings[part].std(ddof=1) / np.sqrt(len(part)),
        )
    ends = [min(scores.min(), -3), max(scores.max(), 3)]
    ax.plot(ends, ends, ":", color="gray", label="идеальная калибровка")
    ax.set(xlabel="Предсказанная награда, баллы", ylabel="Оценка людей, баллы (−4…4)")
    ax.legend()
    return ax


def growth(measured: Sequence[Mapping[str, Any]], axes: Sequence[Axes]) -> None:
    """Seconds of a training step against batch, new tokens and model size; runs side by side.

    Args:
        measured: rows of what (`batch_size`, `max_new_tokens`, `parameters`, `side_by_side`),
            value, seconds (of each round) and, of runs side by side, threads.
        axes: four of them.
    """
    labels = {
        "batch_size": "Ответов в батче $B$",
        "max_new_tokens": "Новых токенов $N$",
        "parameters": "Параметров политики, млн",
    }
    *panels, last = axes
    for ax, (what, label) in zip(panels, labels.items(), strict=True):
        rows = [row for row in measured if row["what"] == what]
        seconds = np.array([row["seconds"] for row in rows])  # (values, rounds)
        middle = np.median(seconds, axis=1)
        errors = [middle - seconds.min(axis=1), seconds.max(axis=1) - middle]
        x = [row["value"] for row in rows]
        ax.errorbar(x, middle, yerr=errors, fmt="o-", color=COLORS[0], capsize=3)
        ax.set(xlabel=label, ylabel="Секунд на шаг", xlim=(0, None), ylim=(0, None))
    rows = [row for row in measured if row["what"] == "side_by_side"]
    names = [f"{row['value']} × {row['threads']}" for row in rows]
    last.bar(names, [60 * r["value"] / np.median(r["seconds"]) for r in rows], color=COLORS[2])
    last.set(xlabel="Запусков × потоков", ylabel="Шагов в минуту")


def _errorbars(points: Sequence[Mapping[str, Any]], ax: Axes, **style: Any) -> None:
    column = {
        f"{k}_{s}": [p[k][s] for p in points] for k in ("kl", "reward") for s in ("mean", "stderr")
    }
    ax.errorbar(
        column["kl_mean"],
        column["reward_mean"],
        xerr=column["kl_stderr"],
        yerr=column["reward_stderr"],
        capsize=3,
        **style,
    )
