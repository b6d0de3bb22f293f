"""The figures of a study, from its rows; and those of all studies that the report begins with."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reports.text.curves import (
    AXES,
    BLUE,
    GREEN,
    GREY,
    OCHRE,
    PURPLE,
    RED,
    SKY,
    THIN,
    Keys,
    Shown,
    as_plane,
    curve,
    data_of,
    means,
    of_curve,
    plane,
    sft_of,
    style_of,
    trainings,
)
from reports.text.figures import above, new_axes, root_scale
from reports.text.policies import WHAT, grouped, policy_name
from reports.text.series import AT_KL, BY_STEPS, above_front, at_one_kl, between_two
from reports.text.statistics import Row, fits, scaled, value
from reports.text.studies import moved
from reports.text.svg import BLACK, COLORS, QUIET, WHITE, tells
from reports.text.words import decimal, number
from warp_core.study import config_of
from warp_core.world.studies import Study

# What each study shows


def figures_of(study: Study, rows: Sequence[Row]) -> list[Shown]:
    """Its figures, one that answers its question first; none without rows of trainings and of θ_sft."""
    if {row["seed"] is None for row in rows} != {True, False}:
        return []
    of_study = {
        "iterations": _iterations, "liti": _liti, "merge": _merge, "anchor": _anchor,
        "next_step": _next_step, "text": _text, "sensitivity": _sensitivity,
        "seed_report": _seed_report,
    }  # fmt: skip
    shown = of_study.get(study.name, _any)(study, rows)
    return [each for each in shown if each.panels]


def _any(study: Study, rows: Sequence[Row]) -> list[Shown]:
    """Of a study of one's own: its curves, or all policies by arm and kind, each in a style of its own."""
    caption = f"{study.title}: награда и KL к SFT-модели. {THIN}"
    kinds = dict.fromkeys((row["arm"], row["what"]) for row in rows if row["arm"])
    every = [
        {"label": f"{arm}: {WHAT.get(what, what.upper())}", "arm": arm, "what": what}
        for arm, what in kinds
    ]
    styles = [
        {"color": color, "marker": mark, "linestyle": "-", "markersize": 6}
        for mark, color in itertools.product("osD^vP*X", COLORS)
    ]
    ax = plane(study, rows, curves=study.curves or every, styles=styles)
    return [Shown([ax], "plane", caption, data_of(rows, "kl", "reward"))]


def _seed_report(study: Study, rows: Sequence[Row]) -> list[Shown]:
    return []  # `figures.by_experiment` shows it beside the experiments of the report


def _with_beyond(rows: Sequence[Row]) -> list[Row]:
    """The merge beyond η = 1 as a part of its front; an arm of its own, so that comparisons of the front
    end at 1."""
    return [{**row, "arm": "merged"} if row["arm"] == "beyond" else row for row in rows]


def _iterations(study: Study, rows: Sequence[Row]) -> list[Shown]:
    rows = _with_beyond(rows)
    shown = _merged_and_long(study, rows), _by_iteration(study, rows), _compute(rows)
    return [each for each in shown if each]


def _merged_and_long(study: Study, rows: Sequence[Row]) -> Shown:
    """Fronts of merged runs and of one run of as many steps, and how far they lie from the longest's."""
    chosen = [c for c in study.curves if c["arm"] == "merged" or c.get("t") in (60, 120)]
    sft, fronts = sft_of(rows), [of_curve(each, rows) for each in chosen]
    long = next((front for keys, front in fronts if keys.get("t") == 120), [])
    others = [(style_of(keys), front) for keys, front in fronts if front is not long]
    caption = (
        "Фронты слитых запусков (LITI с η от 0,3 до 1, у четырёх до 1,5) и одного запуска, у которого "
        f"столько же шагов обучения, сколько у них вместе. {THIN}"
    )
    panels = [plane(study, rows, new_axes(380, 330), curves=chosen)]
    if long:
        panels.append(over_front(others, long, sft, "одного запуска, T = 120"))
        caption += OVER.format("фронта одного запуска на 120 шагов")
    return Shown(panels, "plane", caption, data_of(rows, "kl", "reward"))


def _by_iteration(study: Study, rows: Sequence[Row]) -> Shown | None:
    """Fronts behind each iteration, and of one run of as many steps as four of them have."""
    if not any(row["arm"] == "iterated" for row in rows):
        return None
    sft, ax = sft_of(rows), new_axes(380, 330)
    start, iterated = (value(sft, "kl"), value(sft, "reward")), []
    for i, color, mark in zip((1, 2, 3, 4), (BLUE, SKY, GREY, BLACK), "oPsv", strict=True):
        keys = {"arm": "iterated" if i > 1 else "merged", "what": "slerp", "iteration": i, "m": 2}
        front = [row for row in rows if fits(row, keys)]
        style = {"color": color, "marker": mark, "linestyle": "-", "markersize": 6}
        style |= {"linestyle": (0, (4, 2)), "markerfacecolor": WHITE} if i == 2 else {}
        _kl_reward(ax, front, f"итерация {i}", start, style)
        iterated.append((style, front))
    long = []
    for each in (c for c in study.curves if c.get("t") == 240):
        keys, long = of_curve(each, rows)
        _kl_reward(ax, long, each["label"], start, style_of(keys))
    as_plane(ax, start)
    above(ax, columns=1)
    eta = decimal(config_of(study, "iterated", study.seeds[0]).eta)
    caption = (
        f"Фронты после 1–4 итераций по два слитых запуска (η между ними {eta}) и фронт одного запуска на "
        f"240 шагов — столько же, сколько в четырёх итерациях по два запуска. {THIN}"
    )
    panels = [ax]
    if long:
        panels.append(over_front(iterated, long, sft, "одного запуска, T = 240"))
        caption += OVER.format("фронта одного запуска на 240 шагов")
    return Shown(panels, "iterations", caption, data_of(rows, "kl", "reward"))


def _kl_reward(
    ax: Axes, rows: Sequence[Row], label: str, start: tuple[float, float], style: Keys
) -> None:
    n = len({row["seed"] for row in rows})
    axes = (lambda row: value(row, "kl")), (lambda row: value(row, "reward"))
    if rows:
        curve(ax, rows, *axes, f"{label} ({n})", start, **style)


OVER = (
    " Справа — на сколько остальные выше {} (нуль) в том же обучении при той же KL; знаки сравниваются с "
    "отрезками между его точками, поэтому разность там чуть завышена: фронт вогнут."
)


def over_front(
    methods: Sequence[tuple[Keys, Sequence[Row]]], front: Sequence[Row], sft: Row, whose: str
) -> Axes:
    """How far methods are above a front at the same KL, training by training; what lies beyond the front's
    end is left out.

    Args:
        methods: style and rows of each.
        whose: front, in the genitive.
    """
    ax = new_axes(380, 330)
    for style, rows in methods:
        axes = (lambda row: value(row, "kl")), (lambda row: row["over"])
        over = above_front(rows, front, sft)
        curve(ax, over, *axes, "", (value(sft, "kl"), 0.0), **style)
    ax.axhline(0, color=PURPLE if front[0]["what"] == "run" else BLUE, linewidth=1.2)
    root_scale(ax)
    ax.set_ylabel(f"Выше фронта {whose}, баллы")
    return ax


def _compute(rows: Sequence[Row]) -> Shown | None:
    """Reward at one KL over the steps of training of all runs."""
    if not (data := at_one_kl(rows, sft_of(rows))):
        return None
    ax = new_axes(440, 300)
    for label, of_method in grouped(data, itemgetter("method")).items():
        rewards = _rewards(of_method, "steps")
        keys, unit, steps = BY_STEPS[label]
        style = style_of({**keys, unit: max(rewards) // steps})  # as its front of most steps
        trainings(ax, rewards, **style)
        means(ax, rewards, lambda at, label=label: f"{label}, шагов {at}", label, **style)
    ax.set_xticks(sorted({row["steps"] for row in data}))
    ax.set(
        xlabel="Шагов обучения во всех запусках вместе",
        ylabel=f"Награда при KL {AT_KL:g} ната, баллы",
    )
    above(ax, columns=1)
    caption = (
        f"Награда при KL {AT_KL:g} ната в зависимости от числа шагов обучения во всех запусках вместе "
        "(шаг — 16 ответов до 24 токенов). Бледные знаки — обучения, которые до этой KL дошли, яркие — "
        "средние; у слитых запусков время на отдельных машинах примерно в M раз меньше."
    )
    return Shown([ax], "compute", caption, data)


def _liti(study: Study, rows: Sequence[Row]) -> list[Shown]:
    caption = f"Фронт LITI одного запуска и траектории запусков с якорем EMA и с якорем SFT. {THIN}"
    shown = [Shown([plane(study, rows)], "plane", caption, data_of(rows, "kl", "reward"))]
    front = [r for r in rows if r["arm"] == "ema" and r["what"] == "run" and r["t"] == 120]
    sft, panels = sft_of(rows), list[Axes]()
    for measure in ("kl", "reward"):
        ax = new_axes(330, 240)
        style = {"color": PURPLE, "marker": "D", "markersize": 5, "linestyle": "-"}
        start = 0.0, value(sft, measure)
        curve(
            ax,
            front,
            lambda row: row["eta"],
            lambda row, m=measure: value(row, m),
            "",
            start,
            **style,
        )
        ends = [value(row, measure) for row in front if row["eta"] == 1.0]
        if ends:
            chord = [value(sft, measure), float(np.mean(ends))]
            ax.plot([0, 1], chord, ":", color=QUIET, linewidth=1.5)
        ax.set(xlabel="η", ylabel=AXES[measure])
        panels.append(ax)
    caption = (
        "KL и награда вдоль LITI одного запуска (T = 120), η от 0 до 1,5. Пунктир — хорда между концами "
        "при η = 0 и 1; по статье KL лежит под ней, а награда — над ней."
    )
    return [*shown, Shown(panels, "eta", caption, data_of([sft, *front], "kl", "reward"))]


def _merge(study: Study, rows: Sequence[Row]) -> list[Shown]:
    shown = _angles(rows), _over_lambda(rows), _by_merged(rows)
    return [each for each in shown if each]


def _angles(rows: Sequence[Row]) -> Shown | None:
    """Between task vectors of merged runs, by how many they are."""
    geometric = [r for r in rows if r["what"] == "slerp" and r["lam"] is None and moved(r)]
    if not geometric:
        return None
    ax, data, middle = new_axes(440, 240), [], np.mean([row["seed"] for row in geometric])
    for row in geometric:
        low, mean, high = row["geometry"]["angle"]
        x = row["m"] + 0.07 * (row["seed"] - middle)
        ax.plot([x, x], [low, high], "-", color=BLUE, alpha=0.35, linewidth=1.5)
        (drawn,) = ax.plot(x, mean, "o", color=BLUE, markersize=4.5)
        tells(drawn, f"M = {row['m']}, seed {row['seed']}: {number(mean, 1)}°")
        angles = {"angle_min": low, "angle_mean": mean, "angle_max": high}
        data.append({"m": row["m"], "seed": row["seed"]} | angles)
    ax.axhline(90, color=QUIET, linestyle=":", linewidth=1)
    ms = sorted({row["m"] for row in geometric})
    ax.set_xticks(ms, [str(m) for m in ms])
    floor, *_, ceiling = sorted(end for row in geometric for end in row["geometry"]["angle"])
    ax.set(xlabel="Слито запусков M", ylabel="Угол, градусы", ylim=(floor - 5, ceiling + 2))
    caption = (
        "Углы между векторами задач запусков: точка — среднее по парам запусков и группам тензоров, "
        "черта — от наименьшего до наибольшего; рядом стоят обучения с разными seed. Пунктир — 90°."
    )
    return Shown([ax], "angles", caption, data)


def _by_merged(rows: Sequence[Row]) -> Shown:
    """Fronts by how many runs are merged, LERP's of four, and the runs themselves."""
    colors, marks = (PURPLE, BLUE, SKY, BLUE, GREY), "DoPo*"
    sft, ax = sft_of(rows), new_axes(380, 330)
    start, fronts = (value(sft, "kl"), value(sft, "reward")), dict[Any, tuple[Keys, list[Row]]]()
    of_five = [row for row in rows if row["arm"] == "five" and row["lam"] is None]
    runs = [row for row in of_five if row["what"] == "run" and row["eta"] == 1.0]
    for row in runs:
        style = {"color": GREEN, "alpha": 0.45, "markersize": 5}
        (drawn,) = ax.plot(value(row, "kl"), value(row, "reward"), "^", **style)
        told = f"запуск {row['m']}, seed {row['seed']}: {number(value(row, 'reward'), 0.1)}"
        tells(drawn, told)
    if runs:
        n = len({row["seed"] for row in runs})
        ax.plot([], [], "^", color=GREEN, label=f"сами запуски ({n})", markersize=5)
    for m, color, mark in zip((1, 2, 3, 4, 5), colors, marks, strict=True):
        keys = {"what": "run" if m == 1 else "slerp", "m": m}
        front = [row for row in of_five if fits(row, keys)]
        style = {"color": color, "marker": mark, "linestyle": "-", "markersize": 6}
        style |= {"markerfacecolor": WHITE, "linestyle": (0, (4, 2))} if m == 2 else {}
        if len({row["eta"] for row in front}) > 1:
            name = "LITI первого запуска" if m == 1 else f"SLERP {m} запусков"
            _kl_reward(ax, front, name, start, style)
            fronts[m] = style, front
    if four := [row for row in rows if fits(row, {"what": "lerp", "m": 4})]:
        fronts["lerp"] = style_of({"what": "lerp", "m": 4}), four
        _kl_reward(ax, four, "LERP 4 запусков, η до 2", start, fronts["lerp"][0])
    as_plane(ax, start)
    above(ax, columns=2)
    caption = f"Фронты SLERP с разным числом слитых запусков M, LERP четырёх и сами запуски. {THIN}"
    panels = [ax]
    if 4 in fronts:
        _, of_four = fronts.pop(4)
        panels.append(over_front([*fronts.values()], of_four, sft, "SLERP 4 запусков"))
        caption += OVER.format("фронта SLERP четырёх запусков")
    return Shown(panels, "plane", caption, data_of(rows, "kl", "reward"))


def _over_lambda(rows: Sequence[Row]) -> Shown | None:
    """Reward between two runs, SLERP beside LERP, and their difference paired by training."""
    of_two = [row for row in rows if row["arm"] == "five" and row["eta"] == 1.0]
    data = between_two(of_two)
    if len({row["what"] for row in data}) < 2:
        return None
    top, below = new_axes(330, 260), new_axes(330, 260)
    for what, of_merge in grouped(data, itemgetter("what")).items():
        style, name = style_of({"what": what}), what.upper()
        by_seed = grouped(of_merge, itemgetter("seed"))
        for of_seed in by_seed.values():
            line = [(row["lam"], row["reward"]) for row in of_seed]
            top.plot(*zip(*line, strict=True), color=style["color"], alpha=0.28, linewidth=0.9)
        label = f"{name} ({len(by_seed)})"
        rewards = _rewards(of_merge, "lam")
        means(top, rewards, lambda lam, name=name: f"{name}, λ = {decimal(lam)}", label, **style)
    below.axhline(0, color=QUIET, linewidth=1)
    paired = _rewards([row for row in data if "slerp_over_lerp" in row], "lam", "slerp_over_lerp")
    apart: dict[str, Any] = {"color": BLUE, "marker": "D", "linestyle": "", "markersize": 7}
    trainings(below, paired, **apart | {"marker": "o"})
    means(below, paired, lambda lam: f"λ = {decimal(lam)}: разность", **apart)
    top.set(xlabel="λ", ylabel=AXES["reward"], xticks=[0, 0.25, 0.5, 0.75, 1])
    below.set(xlabel="λ", ylabel="SLERP − LERP, баллы", xlim=(0, 1), xticks=[0, 0.25, 0.5, 0.75, 1])
    above(top, columns=2)
    caption = (
        "Слева — награда между двумя запусками (λ = 0 и 1 — сами запуски): SLERP и LERP. Справа — их "
        "разность внутри каждого обучения: точки — обучения, ромб — среднее. KL у SLERP и LERP при одном λ "
        "разная."
    )
    return Shown([top, below], "lambda", caption, data)


def _rewards(rows: Sequence[Row], key: str, measure: str = "reward") -> dict[Any, list[float]]:
    """By the key, ascending, the values of all trainings."""
    by_key = sorted(grouped(rows, itemgetter(key)).items())
    return {at: [row[measure] for row in each] for at, each in by_key}


def _anchor(study: Study, rows: Sequence[Row]) -> list[Shown]:
    sft, over_steps = sft_of(rows), new_axes(380, 330)
    runs = [c for c in study.curves if c["what"] == "run"]
    for each in runs:
        keys, chosen = of_curve(each, rows)
        start = 0.0, value(sft, "reward")
        axes = (lambda row: row["t"]), (lambda row: value(row, "reward"))
        curve(over_steps, chosen, *axes, each["label"], start, **style_of(keys))
    over_steps.set(xlabel="Шаг обучения t", ylabel=AXES["reward"])
    above(over_steps, columns=1)
    caption = (
        "Награда по шагам (слева) и по KL к SFT-модели (справа): KL-штраф к EMA политики, к SFT-модели "
        f"с двумя β, без штрафа; звёзды — EMA-веса запусков. {THIN}"
    )
    panels = [over_steps, plane(study, rows, new_axes(380, 330))]
    return [Shown(panels, "plane", caption, data_of(rows, "kl", "reward"))]


def _next_step(study: Study, rows: Sequence[Row]) -> list[Shown]:
    sft = sft_of(rows)
    warp = [row for row in rows if row["what"] == "warp"]
    panels = []
    for measure in ("reward", "kl", "distinct_pairs"):
        ax = new_axes(280, 240)
        for warm, style in (
            (False, {"color": BLUE, "marker": "o"}),
            (True, {"color": RED, "marker": "s"}),
        ):
            chosen = [row for row in warp if row["arm"].endswith("_warm") == warm]
            x = {row["arm"]: int(row["arm"].removesuffix("_warm")[1:]) for row in chosen}
            label = "с прогревом до 10⁻⁴" if warm else "без прогрева"
            lines = {"linestyle": (0, (4, 2)) if warm else "-", "markersize": 5}
            shift = 1.04 if warm else 0.96
            of_arm, of_measure = _by_arm(x), _scaled(measure)
            curve(ax, chosen, of_arm, of_measure, label, None, shift, **style, **lines)
        ax.axhline(scaled(sft, measure), color=QUIET, linestyle=":", linewidth=1)
        ax.set_xscale("log")
        ax.set_xticks([10, 30, 100], ["10", "30", "100"])
        ax.minorticks_off()
        ax.set(xlabel="T, шагов в запуске", ylabel=AXES[measure], xlim=(8, 125))
        panels.append(ax)
    above(panels[0], columns=1)
    caption = (
        "То, что предложил исходный отчёт: больше T и линейный прогрев до 10⁻⁴ за 10 шагов (при T = 10 — "
        "весь запуск); I = M = 2, без бейзлайна. Награда, KL и разнообразие WARP-модели; пунктир — "
        "SFT-модель. Тонкие линии — отдельные обучения, знаки — средние по ним."
    )
    return [
        Shown(panels, "steps", caption, data_of([sft, *warp], "reward", "kl", "distinct_pairs"))
    ]


def _by_arm(x: Mapping[str, int]) -> Callable[[Row], float]:
    return lambda row: x[row["arm"]]


def _scaled(measure: str) -> Callable[[Row], float]:
    return lambda row: scaled(row, measure)


def _text(study: Study, rows: Sequence[Row]) -> list[Shown]:
    measures = ("judge", "distinct_pairs", "length")
    panels = [plane(study, rows, new_axes(280, 250), each, legend=False) for each in measures]
    above(panels[0], columns=1)
    caption = (
        "Что меняется с ростом KL, кроме награды: оценка второго судьи (VADER, от −1 до 1), разнообразие "
        f"и длина ответов. {THIN}"
    )
    return [Shown(panels, "text", caption, data_of(rows, "kl", *measures, "repetition"))]


def _sensitivity(study: Study, rows: Sequence[Row]) -> list[Shown]:
    groups = {
        "скорость EMA μ": ("mu_slow", "base", "mu_fast"),
        "коэффициент при KL β": ("beta_weak", "base", "beta_strong"),
        "η между итерациями": ("eta_03", "eta_05", "eta_08"),
    }
    labels = {curve["arm"]: curve["label"] for curve in study.curves}
    labels |= {"eta_03": "η = 0,3", "eta_05": "η = 0,5", "eta_08": "η = 0,8"}
    sft, panels = sft_of(rows), list[Axes]()
    start = value(sft, "kl"), value(sft, "reward")
    for title, arms in groups.items():
        ax = new_axes(280, 270)
        for k, arm in enumerate(arms):
            color, mark = ((OCHRE, "v"), (BLUE, "o"), (RED, "s"))[k]
            style = {"color": color, "marker": mark, "markersize": 5, "linestyle": "-"}
            chosen = [row for row in rows if row["arm"] == arm]
            _kl_reward(ax, chosen, labels[arm], start, style)
        if ax.get_legend_handles_labels()[1]:
            as_plane(ax, start)
            above(ax, columns=1, title=title, alignment="left")
            panels.append(ax)
    caption = f"Фронты двух слитых запусков при разных μ, β и η между итерациями. {THIN}"
    return [Shown(panels, "plane", caption, data_of(rows, "kl", "reward"))]


# What the report begins with


def pareto(studies: Mapping[str, Sequence[Row]]) -> Shown | None:
    """The plane of KL and reward: θ_sft, the trajectory and the LITI of one long run, the front of four
    merged runs; of the studies' rows by name. None without any."""
    of_long, of_merged = studies.get("liti", ()), _with_beyond(studies.get("iterations", ()))
    of_both = [*of_merged, *of_long]
    methods = {
        "SLERP 4 запусков по 30 шагов, LITI": (
            of_merged,
            {"arm": "merged", "what": "slerp", "m": 4},
        ),
        "один запуск, 120 шагов, LITI": (of_merged, {"arm": "single", "what": "run", "t": 120}),
        "траектория одного запуска, 120 шагов": (
            of_long,
            {"arm": "ema", "what": "run", "eta": 1.0},
        ),
    }
    found = {
        label: ([row for row in rows if fits(row, keys)], keys)
        for label, (rows, keys) in methods.items()
    }
    if {row["seed"] is None for row in of_both} != {True, False}:
        return None
    sft = sft_of(of_both)
    ax, start = new_axes(440, 330), (value(sft, "kl"), value(sft, "reward"))
    for label, (rows, keys) in found.items():
        _kl_reward(ax, rows, label, start, style_of(keys))
    as_plane(ax, start)
    above(ax, columns=1)
    caption = (
        "Награда и KL к SFT-модели при равном числе шагов обучения: фронты LITI четырёх слитых запусков и "
        "одного запуска вчетверо длиннее (знаки слева направо — η до 1, у слияния до 1,5) и траектория "
        "такого запуска. "
        f"{THIN}"
    )
    every = [row for rows, _ in found.values() for row in rows]
    return Shown([ax], "plane", caption, data_of([sft, *every], "kl", "reward"))


def agreement(studies: Mapping[str, Sequence[Row]]) -> Shown | None:
    """The second judge's score against the reward: a dot a policy of the studies. None without any."""
    judged = [row for of in studies.values() for row in of if "judge" in row]
    # Once where two studies have it.
    rows = {(value(row, "reward"), value(row, "kl")): row for row in judged}
    if len(rows) < 3:
        return None
    ax = new_axes(330, 270)
    points = [(value(row, "reward"), value(row, "judge")) for row in rows.values()]
    for row, (reward, judge) in zip(rows.values(), points, strict=True):
        (drawn,) = ax.plot(reward, judge, "o", color=BLUE, alpha=0.4, markersize=4)
        said = (
            f"{policy_name(row)}: награда {number(reward, 0.1)}, второй судья {number(judge, 0.1)}"
        )
        if row["seed"] is None:  # of hundreds of dots θ_sft's alone is reached by keyboard
            tells(drawn, said)
    ax.set(xlabel=AXES["reward"], ylabel=AXES["judge"])
    caption = f"корреляция {number(float(np.corrcoef(np.array(points).T)[0, 1]), 0.1)}"
    return Shown([ax], "agreement", caption, data_of([*rows.values()], "reward", "judge"))
