"""Sentences and tables about the experiments together: the overview, ours beside the seed's.

A verdict is computed: it names a claim of the seed report and says what our numbers make of it. Of
what our construction decides (runs that share a seed coincide) there is none.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from reports.text.experiment import (
    QUANTITIES,
    has_collapsed,
    has_moved,
    is_poorer,
    kl_text,
    mean_angle,
    movement,
    reward_sentence,
    runs_differ,
)
from reports.text.words import estimate_text, number
from warp_core.store.files import sealed_json

Summaries = Mapping[str, Mapping[str, Any]]  # by the experiment's name

# What the seed report measured, in the order of SEED_COLUMNS.
SEED_FIGURES = {
    "experiment_1": (0.0438411, 0.0438411, 0.00000, 0.00000),
    "experiment_2": (0.0438411, 0.0438410, 0.02546, 0.02410),
    "experiment_3": (0.0438411, 0.0438404, 89.02149, 100.29043),
    "experiment_4": (0.0438413, 0.0438342, 33.56183, 30.76847),
}
SEED_COLUMNS = ("sft_reward", "warp_reward", "kl_sft_warp", "kl_warp_sft")
CONTROL = "_control"  # behind an experiment's name: the same with a seed for each run


def load_summaries(runs_dir: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """summary.json of those of the named runs that are finished, in the order of the names."""
    paths = {name: runs_dir / name / "summary.json" for name in names}
    found = {name: sealed_json(path) for name, path in paths.items() if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"{runs_dir}: none of {', '.join(paths)} is finished in it; run the experiments first"
        )
    return found


def task_seconds(runs_dir: Path, names: Iterable[str]) -> float:
    """What the tasks behind the named runs took, each counted once."""
    paths = (runs_dir / name / "origins.json" for name in names)
    origins = [sealed_json(path) for path in paths if path.is_file()]
    each = {task: about["seconds"] for one in origins for task, about in one.items()}
    return sum(each.values())


def label(name: str) -> str:
    """Short Russian name of an experiment of the report; any other name stays what it is."""
    short = name.removeprefix("experiment_")
    return f"{short.removesuffix(CONTROL)}, контроль" if short.endswith(CONTROL) else short


def overview(summaries: Summaries, reward_model: Mapping[str, Any]) -> list[str]:
    """The result in a few sentences, as a Markdown list; of the controls, those that moved."""
    in_percent = {key: 100 * reward_model["accuracy"][key] for key in ("mean", "stderr")}
    lines = [
        f"Модель награды верно упорядочивает {estimate_text(in_percent)}\u00a0% отложенных "
        "пар, оценки в которых различаются больше чем на 0,5 балла."
    ]
    for name, s in summaries.items():
        if has_collapsed(s):
            text = "Текст выродился."
        elif is_poorer(s):
            text = "Текст стал заметно однообразнее."
        else:
            text = "Текст не выродился."
        said = f"{movement(s)} {reward_sentence(s)} {text}"
        if name in SEED_FIGURES:
            lines.append(f"Эксперимент {label(name)}. {said}")
        elif name.removesuffix(CONTROL) in SEED_FIGURES and has_moved(s):
            lines.append(f"Эксперимент {label(name)} (своё зерно у каждого запуска). {said}")
    return [f"- {line}" for line in lines]


def overview_table(summaries: Summaries) -> pd.DataFrame:
    """A row an experiment: the seed's four quantities."""
    names = ("Награда SFT", "Награда WARP", "KL(sft‖warp), нат", "KL(warp‖sft), нат")
    rows = [(label(k), *(estimate_text(s[q]) for q in SEED_COLUMNS)) for k, s in summaries.items()]
    return pd.DataFrame(rows, columns=["Эксперимент", *names])


def seed_comparison(summaries: Summaries) -> pd.DataFrame:
    """Ours beside the seed report's figures, a row an experiment and quantity."""
    rows = []
    for name, figures in SEED_FIGURES.items():
        if name not in summaries:
            continue
        for key, theirs in zip(SEED_COLUMNS, figures, strict=True):
            quantity = f"{label(name)}. {QUANTITIES[key][0]}"
            places = 1e-6 if "reward" in key else 1e-4  # as many as the seed report has
            rows.append((quantity, number(theirs, places), estimate_text(summaries[name][key])))
    return pd.DataFrame(rows, columns=["Эксперимент и величина", "Исходный отчёт", "У нас"])


def seed_verdicts(summaries: Summaries) -> list[str]:
    """Each claim of the seed report that the experiments at hand can check, and what they say."""
    s = {name: summaries[name] for name in SEED_FIGURES if name in summaries}
    first, second, third, fourth = SEED_FIGURES
    control = summaries.get(first + CONTROL)
    kl = {name: one["kl_warp_sft"]["mean"] for name, one in s.items()}
    gain = {name: estimate_text(one["reward_difference"]) for name, one in s.items()}
    verdicts: list[str] = []

    def verdict(claim: str, agrees: bool, ours: str) -> None:
        how = "Совпадает" if agrees else "Расходится"
        verdicts.append(f"**{how}.** {claim} У нас: {ours}.")

    if first in s:
        verdict(
            "В первом эксперименте модель не меняется.", not has_moved(s[first]), kl_text(s[first])
        )
    if control:
        verdict(
            "Запуски одной итерации проходят одинаково, потому что T мало.",
            not runs_differ(control["angles"]),
            "при том же T, но своём зерне у каждого запуска средний угол между векторами задач – "
            f"{_angle_text(control)}; при общем зерне запуски совпадают при любом T, потому что "
            "это один и тот же расчёт",
        )
    if {first, second} <= s.keys():
        verdict(
            "Без прогрева модель сдвигается дальше, чем с ним, но меньше чем на нат.",
            kl[first] < kl[second] < 1,
            kl_text(s[second]),
        )
    if SEED_FIGURES.keys() <= s.keys():
        verdict(
            "При lr = 1e-3 модель уходит дальше всего.",
            all(
                s[third][kind]["mean"] == max(one[kind]["mean"] for one in s.values())
                for kind in ("kl_sft_warp", "kl_warp_sft")
            ),
            kl_text(s[third]),
        )
    if third in s:
        rewards = s[third]["training_reward"]
        verdict(
            "При lr = 1e-3 награды первой итерации больше, чем второй.",
            rewards[0] > rewards[1],
            f"средние по батчам итераций {' и '.join(number(r, 0.1) for r in rewards)} балла",
        )
    if {second, third, fourth} <= s.keys():
        verdict(
            "Четвёртый эксперимент лежит между вторым и третьим.",
            kl[second] < kl[fourth] < kl[third],
            kl_text(s[fourth]),
        )
    if SEED_FIGURES.keys() <= s.keys():
        verdict(
            "Награда WARP-модели нигде не отличается от награды SFT-модели и на тысячную балла.",
            all(abs(one["reward_difference"]["mean"]) < 1e-3 for one in s.values()),
            f"в третьем разность с SFT-моделью {gain[third]}, в четвёртом {gain[fourth]} балла",
        )
    return verdicts


def _angle_text(summary: Mapping[str, Any]) -> str:
    """Mean angle between the task vectors of the first iteration."""
    angle = mean_angle(summary["angles"][0])
    return "не определён" if angle is None else f"{number(angle, 1)}°"


def control_verdicts(summaries: Summaries) -> list[str]:
    """What a seed for each run changes in an experiment: angle between the runs, KL, reward."""
    pairs = [
        (name, summaries[name], summaries[name + CONTROL])
        for name in SEED_FIGURES
        if {name, name + CONTROL} <= summaries.keys()
    ]
    if not pairs:
        return ["Контрольных экспериментов здесь нет."]
    sentences = []
    if not any(runs_differ(shared["angles"]) for _, shared, _ in pairs):
        sentences.append(
            "При общем зерне запуски одной итерации – один и тот же расчёт: угол между векторами "
            "задач равен нулю по построению, при любых T и lr, и SLERP ничего не усредняет. "
            "Контроль повторяет эксперимент, но зерно у каждого запуска своё."
        )
    for name, shared, own in pairs:
        kls = [estimate_text(s["kl_warp_sft"]) for s in (shared, own)]
        gains = [estimate_text(s["reward_difference"]) for s in (shared, own)]
        sentences.append(
            f"Эксперимент {label(name)}: у запусков со своими зёрнами средний угол между векторами "
            f"задач первой итерации – {_angle_text(own)}. KL(warp‖sft) при общем зерне – {kls[0]}, "
            f"при своих – {kls[1]} нат на ответ; разность наград WARP − SFT – {gains[0]} и "
            f"{gains[1]} балла (ошибка оценки, одно обучение)."
        )
    return sentences


def reproduction_table(meta: Mapping[str, Any], seconds: float) -> pd.DataFrame:
    """Versions, commit, device and time."""
    rows = [
        ("Версия кода (git)", meta["commit"]),
        ("Python", meta["python"]),
        *meta["versions"].items(),
        ("Устройство", f"{meta['device']}, ядер: {meta['cores']}"),
        ("Время счёта, сумма по экспериментам и модели награды", f"{seconds / 60:.0f} мин"),
    ]
    return pd.DataFrame(rows, columns=["Что", "Значение"])
