"""Policies as curves: over the plane of KL and reward, with their trainings.

Thin lines and pale dots are trainings, marks their means. A method has one colour and one mark in all
figures.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reports.text.figures import above, new_axes, root_scale
from reports.text.policies import by_policy, grouped, policy_name
from reports.text.statistics import Row, fits, scaled, value
from reports.text.svg import BLACK, COLORS, WHITE, tells
from reports.text.words import decimal, number
from warp_core.world.studies import Study

BLUE, RED, GREEN, PURPLE, OCHRE, SKY, GREY = COLORS
AXES = {
    "reward": "Награда, баллы",
    "judge": "Оценка второго судьи",
    "kl": "KL(π‖sft), нат на ответ",
    "length": "Слов в ответе",
    "repetition": "Повторённых слов, %",
    "distinct_pairs": "Различных пар слов, %",
}
THIN = "Тонкие линии — отдельные обучения, знаки — средние по ним; в скобках число обучений."
Keys = Mapping[str, Any]
PALE: dict[str, Any] = {"linestyle": "", "alpha": 0.35, "markersize": 4}


@dataclass
class Shown:
    """A figure that `show.figure` takes."""

    panels: list[Axes]
    label: str
    caption: str
    data: list[dict[str, Any]] = field(default_factory=list)


def style_of(keys: Keys) -> dict[str, Any]:
    """Colour, mark and line of a method; `keys` are those of its rows."""
    what, arm = keys.get("what", "warp"), keys.get("arm", "")
    style: dict[str, Any] = {"linestyle": "-"}
    match what:
        case "slerp":
            style |= {"color": SKY, "marker": "P"} if keys.get("iteration", 1) > 1 else {}
            style = {"color": BLUE, "marker": "o"} | style
            hollow = keys.get("m") == 2
        case "lerp":
            style |= {"color": RED, "marker": "s"}
            hollow = keys.get("m") == 2
        case "average":
            style |= {"color": OCHRE, "marker": "*"}
            hollow = False
        case "run" if "t" in keys and keys.get("eta") != 1.0:  # its LITI
            style |= {"color": PURPLE, "marker": "D"}
            hollow = keys["t"] == 60
        case "run" | "ema":
            anchored = arm.startswith("sft") or arm == "free"
            style |= (
                {"color": OCHRE, "marker": "v"} if anchored else {"color": GREEN, "marker": "^"}
            )
            style |= {"color": GREY, "marker": "X"} if arm == "free" else {}
            style |= {"marker": "*", "markersize": 9} if what == "ema" else {}
            hollow = arm == "sft_weak"
        case _:
            style |= {"color": BLUE, "marker": "o"}
            hollow = False
    style |= {"markerfacecolor": WHITE, "linestyle": (0, (4, 2))} if hollow else {}
    return {"markersize": 6} | style


def curve(
    ax: Axes,
    rows: Sequence[Row],
    x: Callable[[Row], float],
    y: Callable[[Row], float],
    label: str = "",
    start: tuple[float, float] | None = None,
    shift: float = 1.0,
    **style: Any,
) -> None:
    """A method: a thin line a training, a mark for each policy's mean over trainings, which tells it.

    They are joined as the training went, then by η: a trajectory may come back to a KL.

    Args:
        start: where all of its lines begin.
        shift: how many times further right it is drawn, so that marks do not hide each other.
    """

    def way(row: Row) -> tuple[float, float, float]:
        return row["t"] if isinstance(row["t"], int) else 0, row["eta"] or 1.0, x(row)

    begin, rows = [] if start is None else [start], sorted(rows, key=way)
    for of_seed in grouped(rows, lambda row: row["seed"]).values():
        points = [(x(row) * shift, y(row)) for row in of_seed]
        points = [*begin, *points] if len(points) > 1 else points
        ax.plot(*zip(*points, strict=True), "-", color=style["color"], alpha=0.28, linewidth=0.9)
    marks = [
        (*(float(np.mean([f(row) for row in each])) for f in (x, y)), len(each), name)
        for name, each in by_policy(rows).items()
    ]
    if not marks:
        return
    line = {key: style[key] for key in ("color", "linestyle")}
    path = [*begin, *((a * shift, b) for a, b, *_ in marks)]
    if len(marks) > 1:
        ax.plot(*zip(*path, strict=True), linewidth=1.8, **line)
    mark = {key: value for key, value in style.items() if key != "linestyle"}
    for a, b, n, name in marks:
        (drawn,) = ax.plot(a * shift, b, linestyle="", zorder=3, **mark)
        tells(drawn, f"{name}: {number(b, 0.1)} при {decimal(round(a, 2))} (обучений: {n})")
    ax.plot([], [], linewidth=1.8 if len(marks) > 1 else 0, label=label, **style)


def trainings(ax: Axes, values: Mapping[float, Sequence[float]], **style: Any) -> None:
    """A pale mark for each training's value."""
    for x, of_x in values.items():
        ax.plot([x] * len(of_x), of_x, **style | PALE)


def means(
    ax: Axes,
    values: Mapping[float, Sequence[float]],
    told: Callable[[float], str],
    label: str = "",
    **style: Any,
) -> None:
    """Means over trainings, joined in the style's line; a mark tells what it is, and its points."""
    middle = {x: float(np.mean(of_x)) for x, of_x in values.items()}
    ax.plot([*middle], [*middle.values()], label=label, **style)
    for x, y in middle.items():
        (drawn,) = ax.plot(x, y, **{**style, "linestyle": ""})
        tells(drawn, f"{told(x)}: {number(y, 0.1)} балла")


def plane(
    study: Study,
    rows: Sequence[Row],
    ax: Axes | None = None,
    measure: str = "reward",
    curves: Sequence[Keys] | None = None,
    legend: bool = True,
    styles: Iterable[dict[str, Any]] = (),
) -> Axes:
    """The study's curves in the plane of KL and a measure; all of them begin at θ_sft.

    Args:
        curves: others than the study's. styles: others than their methods', in turn.
    """
    ax = ax or new_axes(440, 330)
    sft = sft_of(rows)
    start = value(sft, "kl"), scaled(sft, measure)
    turn = itertools.cycle(styles)
    for each in study.curves if curves is None else curves:
        keys, chosen = of_curve(each, rows)
        n = len({row["seed"] for row in chosen})
        axes = (lambda row: value(row, "kl")), (lambda row: scaled(row, measure))
        begin = start if len({policy_name(row) for row in chosen}) > 1 else None
        curve(ax, chosen, *axes, f"{each['label']} ({n})", begin, **next(turn, style_of(keys)))
    as_plane(ax, start, measure)
    if legend:
        above(ax, columns=2 if len(ax.get_legend_handles_labels()[1]) > 5 else 1)
    return ax


def sft_of(rows: Sequence[Row]) -> Row:
    """θ_sft's row."""
    return next(row for row in rows if row["what"] == "sft")


def of_curve(each: Keys, rows: Sequence[Row]) -> tuple[Keys, list[Row]]:
    """A curve's keys without its label, and its rows."""
    keys = {key: value for key, value in each.items() if key != "label"}
    return keys, [row for row in rows if fits(row, keys)]


def as_plane(ax: Axes, start: tuple[float, float], measure: str = "reward") -> None:
    """The axes of KL and a measure, once all is drawn; θ_sft is at the start."""
    (drawn,) = ax.plot(*start, "+", color=BLACK, markersize=11, label="SFT-модель", zorder=4)
    tells(drawn, f"SFT-модель: {number(start[1], 0.1)}")
    root_scale(ax)
    ax.set_ylabel(AXES[measure])


def data_of(rows: Sequence[Row], *measures: str) -> list[dict[str, Any]]:
    """The rows behind a figure: what each is, and what was measured with its error."""
    keys = ("seed", "arm", "what", "iteration", "m", "t", "lam", "eta")
    table = []
    for row in rows:
        cells = {key: row[key] for key in keys}
        for measure in measures:
            if measure in row:
                cells[measure] = value(row, measure)
                if isinstance(row[measure], Mapping):
                    cells[f"{measure}_stderr"] = row[measure]["stderr"]
        table.append(cells)
    return table
