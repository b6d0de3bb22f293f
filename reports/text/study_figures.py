"""The figures of a study: its curves over KL, and its differences with their intervals."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from reports.text.figures import COLORS, new_axes
from reports.text.statistics import fits, value
from reports.text.studies import Row, Verdict, grouped, policy_name
from warp_core.world.studies import Study

# Okabe and Ito's, which the colour-blind tell apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", "#7a6a1f")
MARKERS = "osD^vP*X"
AXES = {
    "kl": "KL(π‖sft), нат на ответ (корневая шкала)",
    "reward": "Награда, баллы",
    "judge": "Оценка VADER (−1…1)",
}


def plane(study: Study, rows: Sequence[Row], ax: Axes, measure: str = "reward") -> Axes:
    """The study's curves in the plane of KL and reward: thin lines are trainings, marks their means."""
    sft = next(row for row in rows if row["what"] == "sft")
    for k, curve in enumerate(study.curves):
        keys = {key: each for key, each in curve.items() if key != "label"}
        chosen = [row for row in rows if fits(row, keys)]
        color, marker = PALETTE[k % len(PALETTE)], MARKERS[k % len(MARKERS)]
        for _, of_seed in grouped(chosen, lambda row: row["seed"]).items():
            points = sorted((value(row, "kl"), value(row, measure)) for row in of_seed)
            points = (
                [(value(sft, "kl"), value(sft, measure)), *points] if len(points) > 1 else points
            )
            ax.plot(*zip(*points, strict=True), "-", color=color, alpha=0.25, linewidth=1)
        means = [
            tuple(np.mean([value(row, m) for row in each]) for m in ("kl", measure))
            for each in grouped(chosen, policy_name).values()
        ]
        if means:
            n = len({row["seed"] for row in chosen})
            label = f"{curve['label']} (обучений: {n})"
            style = {"color": color, "marker": marker, "markersize": 6, "label": label}
            ax.plot(
                *zip(*sorted(means), strict=True), linewidth=2 if len(means) > 1 else 0, **style
            )
    ax.plot(value(sft, "kl"), value(sft, measure), "k+", markersize=11, label="SFT-модель")
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set_xlim(left=0)
    ax.set(xlabel=AXES["kl"], ylabel=AXES[measure])
    ax.legend(fontsize="small")
    return ax


def forest(found: Sequence[Verdict]) -> Axes | None:
    """Differences of rewards with their intervals over trainings, a row a claim; dots are trainings."""
    shown = [v for v in found if v.between and v.comparison.measure == "reward"]
    if not shown:
        return None
    ax = new_axes(9, 0.9 + 0.62 * len(shown))
    for k, v in enumerate(reversed(shown)):
        color = COLORS[0] if v.comparison.primary else "#666666"
        ax.plot(
            [*v.by_seed.values()], [k] * len(v.by_seed), "o", color=color, alpha=0.3, markersize=4
        )
        ax.plot([v.between["low"], v.between["high"]], [k, k], "-", color=color, linewidth=2)
        ax.plot(v.between["mean"], k, "D", color=color, markersize=6)
    ax.axvline(0, color="black", linewidth=1)
    names = [_wrapped(v.comparison.claim) for v in reversed(shown)]
    ax.set_yticks(range(len(shown)), names, fontsize="small")
    ax.set(
        xlabel="Разность наград, баллы (черта — 95 % ДИ по обучениям)",
        ylim=(-0.6, len(shown) - 0.4),
    )
    return ax


def _wrapped(text: str, width: int = 46) -> str:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}"
    return "\n".join(line.strip() for line in lines)
