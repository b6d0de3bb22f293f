"""Sentences and tables about the report's experiments together: the overview, ours beside the seed's.

A verdict is computed: it names a claim of the seed report and says what our numbers make of it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from warp_core.narrative import (
    QUANTITIES,
    SMALL_ANGLE,
    estimate_text,
    has_collapsed,
    has_moved,
    is_poorer,
    kl_text,
    mean_angle,
    movement,
    number,
    reward_change,
    reward_sentence,
)

Summaries = Mapping[str, Mapping[str, Any]]  # by the experiment's name

# What the seed report measured, in the order of SEED_COLUMNS.
SEED_FIGURES = {
    "experiment_1": (0.0438411, 0.0438411, 0.00000, 0.00000),
    "experiment_2": (0.0438411, 0.0438410, 0.02546, 0.02410),
    "experiment_3": (0.0438411, 0.0438404, 89.02149, 100.29043),
    "experiment_4": (0.0438413, 0.0438342, 33.56183, 30.76847),
}
SEED_COLUMNS = ("sft_reward", "warp_reward", "kl_sft_warp", "kl_warp_sft")


def label(name: str) -> str:
    """Short Russian name of an experiment of the report; any other name stays what it is."""
    short = name.removeprefix("experiment_")
    return f"{short.removesuffix('_control')}, контроль" if short.endswith("_control") else short


def overview(summaries: Summaries, reward_model: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences, as a Markdown list."""
    in_percent = {key: 100 * reward_model["accuracy"][key] for key in ("mean", "stderr")}
    lines = [
        f"Модель награды верно упорядочивает {estimate_text(in_percent)}\u00a0% отложенных "
        "пар, оценки в которых различаются больше чем на 0,5 балла."
    ]
    for name, s in summaries.items():
        if name in SEED_FIGURES:
            text = ("Текст выродился." if has_collapsed(s)
                    else "Текст стал заметно однообразнее." if is_poorer(s)
                    else "Текст не выродился.")  # fmt: skip
            lines.append(f"Эксперимент {label(name)}. {movement(s)} {reward_sentence(s)} {text}")
    return [f"- {line}" for line in lines]


def overview_table(summaries: Summaries) -> pd.DataFrame:
    """A row an experiment: the seed's four quantities."""
    rows = [(label(k), *(estimate_text(s[q]) for q in SEED_COLUMNS)) for k, s in summaries.items()]
    return pd.DataFrame(rows, columns=["Эксперимент", "Награда SFT", "Награда WARP",
                                       "KL(sft‖warp), нат", "KL(warp‖sft), нат"])  # fmt: skip


def seed_comparison(summaries: Summaries) -> pd.DataFrame:
    """Ours beside the seed report's figures, a row an experiment and quantity."""
    rows = [
        (f"{label(name)}. {QUANTITIES[key].split(',')[0]}",
         number(theirs, 1e-6 if "reward" in key else 1e-4), estimate_text(summaries[name][key]))
        for name, figures in SEED_FIGURES.items() if name in summaries
        for key, theirs in zip(SEED_COLUMNS, figures, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Эксперимент и величина", "Исходный отчёт", "У нас"])


def seed_verdicts(summaries: Summaries) -> list[str]:
    """Each claim of the seed report that the experiments at hand can check, and what they say."""
    s = {name.removeprefix("experiment_"): summaries[name] for name in SEED_FIGURES
         if name in summaries}  # fmt: skip
    kl = {k: v["kl_warp_sft"]["mean"] for k, v in s.items()}

    def moved_most(k: str) -> bool:
        return all(s[k][kind]["mean"] == max(v[kind]["mean"] for v in s.values())
                   for kind in ("kl_sft_warp", "kl_warp_sft"))  # fmt: skip

    def difference(k: str) -> str:
        return estimate_text(s[k]["reward_difference"])

    def angle(k: str) -> float:
        return max(mean_angle(groups) or 0.0 for groups in s[k]["angles"])

    claims: list[tuple[str, str, Callable[[], bool], Callable[[], str]]] = [
        ("1", "В первом эксперименте модель не меняется.",
         lambda: not has_moved(s["1"]), lambda: kl_text(s["1"])),
        ("12", "В первом и втором экспериментах запуски одной итерации проходят одинаково.",
         lambda: max(angle("1"), angle("2")) < SMALL_ANGLE,
         lambda: f"углы между векторами задач не больше {number(max(angle('1'), angle('2')), 1)}°"),
        ("12", "Без прогрева модель сдвигается дальше, чем с ним, но едва заметно.",
         lambda: 10 * kl["1"] < kl["2"] < 1, lambda: kl_text(s["2"])),
        ("1234", "При lr = 1e-3 модель уходит дальше всего.",
         lambda: moved_most("3"), lambda: kl_text(s["3"])),
        ("3", "При lr = 1e-3 награды первой итерации больше, чем второй.",
         lambda: s["3"]["training_reward"][0] > s["3"]["training_reward"][1],
         lambda: "средние по батчам итераций "
                 f"{' и '.join(number(r, 0.1) for r in s['3']['training_reward'])} балла"),
        ("234", "Четвёртый эксперимент лежит между вторым и третьим.",
         lambda: kl["2"] < kl["4"] < kl["3"], lambda: kl_text(s["4"])),
        ("4", "В четвёртом эксперименте WARP-модель хуже SFT-модели.",
         lambda: reward_change(s["4"]) < 0, lambda: f"разность наград {difference('4')} балла"),
        ("1234", "Награда WARP-модели нигде не отличается от награды SFT-модели и на тысячную балла.",
         lambda: all(abs(v["reward_difference"]["mean"]) < 1e-3 for v in s.values()),
         lambda: f"в третьем разность с SFT-моделью {difference('3')}, "
                 f"в четвёртом {difference('4')} балла"),
    ]  # fmt: skip
    return [
        f"**{'Совпадает' if agrees() else 'Расходится'}.** {claim} У нас: {ours()}."
        for needed, claim, agrees, ours in claims
        if s.keys() >= set(needed)
    ]


def control_verdicts(summaries: Summaries) -> list[str]:
    """What separate seeds change in an experiment: the angle between the runs, and the KL."""
    sentences, shared_angles = [], []
    pairs = [(name, name + "_control") for name in SEED_FIGURES if name + "_control" in summaries]
    for name, control in pairs:
        shared, own = summaries[name], summaries[control]
        angles = [mean_angle(s["angles"][0]) for s in (shared, own)]
        shared_angles.append(angles[0] or 0.0)
        texts = ["не определён" if a is None else f"{number(a, 1)}°" for a in angles]
        sentences.append(
            f"Эксперимент {label(name)}: средний угол между векторами задач первой итерации при общем "
            f"зерне – {texts[0]}, при своём у каждого запуска – {texts[1]}; KL(warp‖sft) – "
            f"{estimate_text(shared['kl_warp_sft'])} и {estimate_text(own['kl_warp_sft'])} нат на ответ."
        )
    if not pairs:
        return ["Контрольных экспериментов здесь нет."]
    if max(shared_angles) < SMALL_ANGLE:
        sentences.append(
            "При общем зерне запуски совпадают, потому что делают одни и те же вычисления, и большее "
            "T этого не меняет; со своими зёрнами они расходятся сразу, даже когда почти не движутся."
        )
    return sentences


def reproduction_table(meta: Mapping[str, Any], seconds: float) -> pd.DataFrame:
    """Versions, commit, device and time."""
    rows = [("Версия кода (git)", meta["commit"]), ("Python", meta["python"]),
            *meta["versions"].items(), ("Устройство", f"{meta['device']}, ядер: {meta['cores']}"),
            ("Время счёта: сумма по ноутбукам, которые шли по два", f"{seconds / 60:.0f} мин")]  # fmt: skip
    return pd.DataFrame(rows, columns=["Что", "Значение"])
