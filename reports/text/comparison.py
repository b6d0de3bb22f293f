"""Sentences and tables about the experiments together: the overview, ours beside the seed's.

A verdict is computed: it names a claim of the seed report and says what our numbers make of it. Of
what our construction decides (runs that share a seed coincide) there is none.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from reports.text.experiment import (
    CONTROL,
    has_collapsed,
    has_moved,
    kl_text,
    label,
    mean_angle,
    runs_differ,
)
from reports.text.policies import mean_text
from reports.text.statistics import value
from reports.text.verdicts import Verdict
from reports.text.words import estimate_text, lowered, number, percent, power_text
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


def load_summaries(runs_dir: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """summary.json of those of the named runs that are finished, in the order of the names."""
    paths = {name: runs_dir / name / "summary.json" for name in names}
    found = {name: sealed_json(path) for name, path in paths.items() if path.is_file()}
    if not found:
        raise FileNotFoundError(
            f"{runs_dir}: none of {', '.join(paths)} is finished in it; run the experiments first"
        )
    return found


def origins(runs_dir: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What made each of the tasks behind the named runs: commit, seconds, …; each of them once."""
    paths = (runs_dir / name / "origins.json" for name in names)
    of_runs = [sealed_json(path) for path in paths if path.is_file()]
    return {task: about for one in of_runs for task, about in one.items()}


def experiments_table(
    summaries: Summaries, params: Mapping[str, Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """A row an experiment: what differs, what came here, and what came of other trainings.

    Args:
        params: of params.yaml, by name. rows: of the study of the seed report.
    """
    table = []
    for name, one in summaries.items():
        of = params[name]
        cells = [
            label(name),
            power_text(of["lr"]),
            str(of["warmup_steps"] or "нет"),
            "один" if of["shared_run_seed"] else "свои",
            _gain_over_trainings(rows, name),
            *(estimate_text(one[key]) for key in ("reward_difference", "kl_warp_sft")),
            _angle_text(one),
            percent(one["text"]["warp"]["distinct_pairs"]),
        ]
        table.append(cells)
    columns = ["№", "lr", "Прогрев", "Seed", "Прирост по обучениям (их число)"]
    columns += ["Прирост, одно обучение", "KL(warp‖sft)", "Угол", "Различных пар слов, %"]
    return pd.DataFrame(table, columns=columns)


def _gain_over_trainings(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """«0,97 ± 0,02 (5)»: mean, its error between trainings, and how many they are; a dash for one."""
    gains = _gains(rows, name)
    return f"{mean_text(gains, 2)} ({len(gains)})" if len(gains) > 1 else "—"


def _gains(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [value(row, "reward") - row["sft_reward"] for row in rows if row["arm"] == name]


def place_sentence(summaries: Summaries, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where the gains of the trainings at hand lie among the study's, of experiments that move; nothing
    without any."""
    said = []
    for name, one in summaries.items():
        gains, here = _gains(rows, name), one["reward_difference"]["mean"]
        if len(gains) > 1 and has_moved(one):
            ends = min(gains), max(gains)
            where = (
                "ниже всех" if here < ends[0] else "выше всех" if here > ends[1] else "среди них"
            )
            numbers = [number(each, 0.1) for each in (here, *ends)]
            said.append(
                f"{label(name)} — {where} ({numbers[0]}; у них от {numbers[1]} до {numbers[2]})"
            )
    if not said:
        return []
    return [
        f"Где прирост одного обучения среди нескольких: эксперимент {'; '.join(said)}. Seed у этих "
        "обучений один, так что и место их — один случай, а не несколько."
    ]


def seed_comparison(summaries: Summaries) -> pd.DataFrame:
    """Ours beside the seed report's figures, a row an experiment."""
    rows = []
    for name, (sft, warp, *kls) in SEED_FIGURES.items():
        if name not in summaries:
            continue
        one = summaries[name]
        cells = [number(warp - sft, 1e-6), estimate_text(one["reward_difference"])]
        for key, theirs in zip(SEED_COLUMNS[2:], kls, strict=True):
            cells += [number(theirs, 1e-4), estimate_text(one[key])]
        rows.append((label(name), *cells))
    names = ("Награда WARP − SFT, баллы", "KL(sft‖warp), нат", "KL(warp‖sft), нат")
    columns = [f"{name}: {whose}" for name in names for whose in ("исходный отчёт", "у нас")]
    return pd.DataFrame(rows, columns=["Эксперимент", *columns])


def questions(
    summaries: Summaries, found: Sequence[Verdict], rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The seed report's questions, its answers and ours, as a Markdown list; `rows` are of the study of
    the seed report."""
    by_name = {v.comparison.name: v for v in found}
    control = summaries.get("experiment_1_control")
    angle = ""
    if control:
        angle = f", а угол между векторами задач — {_angle_text(control)} (одно обучение)"
    third, fourth = (summaries.get(f"experiment_{k}") for k in (3, 4))
    lines = [
        "**Почему кривые двух запусков совпадают?** Исходный отчёт: T слишком мало. Наш ответ: у запусков "
        "исходного отчёта, судя по кривым, был общий seed, и это один и тот же расчёт при любом T. Со "
        f"своим seed у каждого кривые различаются при том же T{angle} ([@experiments:curves], "
        "[@experiments:table])."
    ]
    here = ""  # what the trainings at hand say of the fourth experiment
    if third and fourth:
        here = f"в одном обучении прирост {estimate_text(fourth['reward_difference'])} балла; "
        poor = ", где текст выродился," if has_collapsed(third) else ""
        told = [
            f"{estimate_text(one['reward_difference'])} балла в одном обучении (± ошибка оценки)"
            for one in (fourth, third)
        ]
        of_third, of_fourth = (_gains(rows, f"experiment_{k}") for k in (3, 4))
        if min(len(of_third), len(of_fourth)) > 1:
            ends = [number(f(of_third), 0.1) for f in (min, max)]
            told = [
                f"{mean_text(of_fourth, 2)} балла (обучений: {len(of_fourth)})",
                f"от {ends[0]} до {ends[1]}, в среднем {mean_text(of_third, 2)} балла (обучений: "
                f"{len(of_third)})",
            ]
        lines.append(
            "**Почему награда не меняется, даже при KL в десятки нат?** Исходный отчёт: слишком велик lr. "
            "Наш ответ: его награда, судя по тому, что у всех моделей она одна с точностью до 10⁻⁵, не "
            "зависела от текста. С наградой, которая от него зависит, прирост в четвёртом эксперименте — "
            f"{told[0]}, в третьем{poor} — {told[1]} ([@experiments:table])."
        )
    second, far = summaries.get("experiment_2"), ""
    if second and fourth and fourth["kl_warp_sft"]["mean"] > 100 * second["kl_warp_sft"]["mean"]:
        far = "; заметно сдвигает модель только больший lr ([@experiments:table])"
    sft, warp, *_ = SEED_FIGURES["experiment_4"]
    fell = number(sft - warp, 1e-6)
    asked = {
        "t30_gains": "T = 30 против 10",
        "t100_gains": "T = 100 против 30",
        "t100_diversity": "разнообразие при T = 100",
        "warmup_at_t30": "прогрев при T = 30",
    }
    lines += [
        "**Мал ли lr в первых двух экспериментах, или дело в прогреве?** Исходный отчёт: возможно и то и "
        f"другое. Наш ответ: {_answer(by_name['warmup_slows'])} ([@study_seed_report]){far}.",
        "**Становится ли WARP-модель хуже?** Исходный отчёт: в четвёртом эксперименте просела "
        f"(на {fell}). Наш ответ: "
        f"{_answer(by_name['fourth_is_worse'], here)}.",
        "**Помогут ли большее T и прогрев до 10⁻⁴?** Исходный отчёт: это следующий шаг. Наш ответ: "
        f"{'; '.join(_answer(by_name[name], f'{what}: ') for name, what in asked.items())} "
        "([@study_next_step]).",
    ]
    return [f"- {line}" for line in lines]


def _answer(v: Verdict, before: str = "") -> str:
    """What the trainings say; `before` stands before it where they say nothing yet."""
    if not v.between:
        return f"{before}по нескольким обучениям ещё не вычислено ({v.effect})"
    said = f"{v.word}, {v.effect}{v.corrected}, {v.trainings}"
    return f"«{lowered(v.comparison.claim)}» — {said}"


def seed_verdicts(summaries: Summaries) -> pd.DataFrame:
    """Each claim of the seed report that the experiments at hand can check, and what they say."""
    s = {name: summaries[name] for name in SEED_FIGURES if name in summaries}
    first, second, third, fourth = SEED_FIGURES
    control = summaries.get(first + CONTROL)
    kl = {name: one["kl_warp_sft"]["mean"] for name, one in s.items()}
    gain = {name: estimate_text(one["reward_difference"]) for name, one in s.items()}
    warp_kl = {name: estimate_text(one["kl_warp_sft"]) for name, one in s.items()}
    verdicts: list[tuple[str, str, str]] = []

    def verdict(claim: str, agrees: bool, ours: str) -> None:
        verdicts.append((claim, ours, "совпадает" if agrees else "расходится"))

    if first in s:
        verdict(
            "В первом эксперименте модель не меняется", not has_moved(s[first]), kl_text(s[first])
        )
    if control:
        verdict(
            "Запуски одной итерации проходят одинаково, потому что T мало",
            not runs_differ(control["angles"]),
            "при том же T, но своём seed у каждого запуска средний угол между векторами задач — "
            f"{_angle_text(control)}",
        )
    if {first, second} <= s.keys():
        verdict(
            "Без прогрева модель сдвигается дальше, чем с ним, но меньше чем на нат",
            kl[first] < kl[second] < 1,
            f"KL(warp‖sft) = {warp_kl[second]} против {warp_kl[first]} с прогревом (нат на ответ)",
        )
    if SEED_FIGURES.keys() <= s.keys():
        verdict(
            "При lr = 10⁻³ модель уходит дальше всего",
            all(
                s[third][kind]["mean"] == max(one[kind]["mean"] for one in s.values())
                for kind in ("kl_sft_warp", "kl_warp_sft")
            ),
            f"KL(sft‖warp) = {estimate_text(s[third]['kl_sft_warp'])} против "
            f"{estimate_text(s[fourth]['kl_sft_warp'])} в четвёртом, KL(warp‖sft) = {warp_kl[third]} "
            f"против {warp_kl[fourth]} (нат на ответ)",
        )
    if third in s:
        rewards = s[third]["training_reward"]
        verdict(
            "При lr = 10⁻³ награды первой итерации больше, чем второй",
            rewards[0] > rewards[1],
            f"средние по батчам итераций, баллы: {' и '.join(number(r, 0.1) for r in rewards)}",
        )
    if {second, third, fourth} <= s.keys():
        verdict(
            "Четвёртый эксперимент лежит между вторым и третьим",
            kl[second] < kl[fourth] < kl[third],
            f"KL(warp‖sft) = {warp_kl[fourth]}, между {warp_kl[second]} и {warp_kl[third]} (нат на ответ)",
        )
    if SEED_FIGURES.keys() <= s.keys():
        verdict(
            "Награда WARP-модели нигде не отличается от награды SFT-модели даже на 0,001",
            all(abs(one["reward_difference"]["mean"]) < 1e-3 for one in s.values()),
            f"разность с SFT-моделью, баллы: в третьем {gain[third]}, в четвёртом {gain[fourth]}",
        )
    return pd.DataFrame(verdicts, columns=["Утверждал исходный отчёт", "У нас", "В одном обучении"])


def _angle_text(summary: Mapping[str, Any]) -> str:
    """Mean angle between the task vectors of the first iteration."""
    angle = mean_angle(summary["angles"][0])
    return "не определён" if angle is None else f"{number(angle, 1)}°"


def control_verdicts(summaries: Summaries) -> list[str]:
    """What a seed for each run changes: the angle between the runs."""
    pairs = [
        (name, summaries[name], summaries[name + CONTROL])
        for name in SEED_FIGURES
        if {name, name + CONTROL} <= summaries.keys()
    ]
    if not pairs:
        return ["Эксперимента вместе с его контролем здесь нет."]
    angles = ", ".join(f"{_angle_text(own)} (эксперимент {label(name)})" for name, _, own in pairs)
    sentences = [
        f"Со своими seed средний угол между векторами задач первой итерации — {angles}: SLERP усредняет "
        "два разных сдвига весов."
    ]
    if not any(runs_differ(shared["angles"]) for _, shared, _ in pairs):
        sentences.insert(
            0,
            "При общем seed запуски одной итерации — один и тот же расчёт: угол между векторами "
            "задач равен нулю по построению, при любых T и lr, и SLERP ничего не усредняет.",
        )
    return [" ".join(sentences)]


def reproduction_table(
    meta: Mapping[str, Any], origins: Collection[Mapping[str, Any]], seconds: float
) -> pd.DataFrame:
    """Versions, commits, device and time; the seconds are those of the origins and further ones."""
    seconds += sum(origin["seconds"] for origin in origins)
    rows = [
        ("Версия кода (git)", ", ".join(sorted({origin["commit"] for origin in origins}))),
        ("Python", meta["python"]),
        *meta["versions"].items(),
        ("Устройство", f"{meta['device']}, ядер: {meta['cores']}"),
        ("Время счёта, сумма по экспериментам и модели награды", f"{seconds / 60:.0f} мин"),
    ]
    return pd.DataFrame(rows, columns=["Что", "Значение"])
