"""Tables and sentences of the performance section, from what `reports/bench` measured."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from reports.text.words import number

Results = Mapping[str, Any]
PARTS = {  # of a step, in their order
    "prefill": "чтение промпта",
    "decode": "генерация ответа",
    "reward": "модель награды",
    "anchor": "лог-вероятности якоря",
    "forward": "прямой проход (матричные произведения сохранены при генерации)",
    "backward": "обратный проход",
    "update": "Adam, EMA, нормы",
    "rest": "остальное",
}
PRECISIONS = {"fp32": "float32", "bf16": "bf16"}
MODES = {"pair": "два запуска одновременно", "alone": "один запуск"}
PEERS = {"pair": "двух запусков TRL одновременно", "alone": "одного запуска TRL"}
STEP_TARGET = 2.0  # times TRL's speed, of one run in float32
FLOOR_TARGETS = {"step": 1.7, "decode": 2.5}  # times the floor
MERGE_TARGET, DIFFERENCE_TARGET = 8.0, 1e-6  # times mergekit's speed, of the policy; of weights
LARGE_MEMORY_MB, COPYING_TARGET = 150, 2.0  # of M = 4; times merely reading and writing


def machine_text(results: Results) -> str:
    """What was measured on, and when."""
    machine, peaks = results["machine"], results["steps"]["peaks"]
    year, month, day = machine["date"].split("-")
    where = machine["gpu"] or f"{machine['processor']} ({', '.join(machine['vector'])})"
    rounds = results["steps"]["rounds"]["fp32"]
    alone, beside = (median(row["peaks"][mode] for row in rounds) for mode in ("alone", "pair"))
    return (
        f"Измерено {day}.{month}.{year}: {where}, потоков: {machine['threads']}, torch "
        f"{machine['torch']}, Python {machine['python']}. Пиковая производительность: "
        f"float32 {alone:.0f}\u00a0Гфлоп/с одним процессом на всех ядрах, по "
        f"{beside:.0f} у двух процессов рядом; bf16 — {peaks['bf16']:.0f}\u00a0Гфлоп/с."
    )


def run_seconds(answers: Sequence[Mapping[str, Any]]) -> float:
    """That a step of one run costs: half the time of the slower where two go side by side."""
    return max(answer["seconds"] for answer in answers) / len(answers)


def speedups(results: Results, mode: str, precision: str = "fp32") -> list[float]:
    """TRL's seconds over ours, both so many side by side, round by round; empty without TRL."""
    return [
        run_seconds(row["trl"][mode]) / run_seconds(row["ours"][mode])
        for row in results["steps"]["rounds"][precision]
        if "trl" in row
    ]


def steps_table(results: Results) -> pd.DataFrame:
    """Seconds of a run's step, TRL's and ours under the same conditions."""
    rows = []
    for precision, rounds in results["steps"]["rounds"].items():
        for mode, name in MODES.items():
            took = {
                who: spread([run_seconds(row[who][mode]) for row in rounds])
                for who in ("trl", "ours")
                if who in rounds[0]
            }
            ratios = speedups(results, mode, precision)
            rows.append(
                (
                    f"{name}, {PRECISIONS[precision]}",
                    took.get("trl", "—"),
                    took["ours"],
                    spread(ratios) if ratios else "—",
                )
            )
    return pd.DataFrame(
        rows, columns=["Режим", "TRL, с на шаг запуска", "мы, с", "Быстрее TRL, раз"]
    )


def spread(values: Sequence[float]) -> str:
    """Median (least – greatest)."""
    texts = [
        f"{value:.2f}".replace(".", ",") for value in (median(values), min(values), max(values))
    ]
    return f"{texts[0]} ({texts[1]}–{texts[2]})"


def floor_rows(results: Results, mode: str) -> list[dict[str, Any]]:
    """By part of a step: operations, floor = operations / peak, measured (medians), their ratio.

    In float32.
    """
    operations, rounds = results["steps"]["operations"], results["steps"]["rounds"]["fp32"]
    answers = [(run, row["peaks"][mode]) for row in rounds for run in row["ours"][mode]]

    def part_row(part: str, count: float, seconds: Callable[[Any], float]) -> dict[str, Any]:
        measured = [(seconds(run), count / (peak * 1e9)) for run, peak in answers]
        return {
            "part": part,
            "gflop": count / 1e9,
            "floor": median(floor for _, floor in measured),
            "seconds": median(took for took, _ in measured),
            "ratio": median(took / floor for took, floor in measured) if count else None,
        }

    def rest(run: Mapping[str, Any]) -> float:
        return run["seconds"] - sum(run["parts"].values())

    rows = [
        part_row(part, operations.get(part, 0), lambda run, part=part: run["parts"].get(part, 0.0))
        for part in PARTS
        if part != "rest"
    ]
    return [
        *rows,
        part_row("rest", 0, rest),
        part_row("step", sum(operations.values()), lambda run: run["seconds"]),
    ]


def floor_table(results: Results, mode: str) -> pd.DataFrame:
    """`floor_rows` for the reader."""

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        counted = bool(row["gflop"])
        return (
            PARTS.get(row["part"], "весь шаг"),
            f"{row['gflop']:.0f}" if counted else "—",
            _short(row["floor"]) if counted else "—",
            _short(row["seconds"]),
            _short(row["ratio"]) if counted else "—",
        )

    return pd.DataFrame(
        map(cells, floor_rows(results, mode)),
        columns=[
            "Часть шага",
            "Операций, Гфлоп",
            "Нижняя граница, с",
            "Измерено, с",
            "Измерено / граница",
        ],
    )


def case_name(case: Mapping[str, Any]) -> str:
    """Of a merge: how many runs of what size."""
    size = case["gigabytes"]
    return f"M = {case['runs']}, " + (
        "старт программы" if size < 0.001 else f"{number(size, 0.1)} ГБ"
    )


def merge_ratios(case: Mapping[str, Any], over: str, under: str) -> list[float]:
    """Seconds of one over another's, round by round; empty where one of them is missing."""
    rows = [row for row in case["rounds"] if over in row]
    return [row[over]["seconds"] / row[under]["seconds"] for row in rows]


def merge_table(results: Results) -> pd.DataFrame:
    """SLERP from files to files: seconds and peak memory of whole processes."""
    names = {
        "mergekit": "mergekit nuslerp",
        "ours": "наше слияние",
        "copying": "прочитать и записать",
    }
    rows = [
        (
            case_name(case),
            name,
            spread([row[key]["seconds"] for row in case["rounds"]]),
            f"{median(row[key]['memory_mb'] for row in case['rounds']):.0f}",
        )
        for case in results["merge"].values()
        for key, name in names.items()
        if key in case["rounds"][0]
    ]
    return pd.DataFrame(
        rows, columns=["Веса", "Что", "Секунд: медиана (от–до)", "Память, МБ: медиана"]
    )


def resume_table(results: Results) -> pd.DataFrame:
    """KL to the EMA anchor at each step, run through and resumed."""
    rows = [
        (f"{name}, {how}", *(_nats(kl) for kl in results["resume"][who][key]))
        for who, name in (("trl", "TRL"), ("ours", "мы"))
        if who in results["resume"]
        for key, how in (("straight", "без остановки"), ("resumed", "продолжено после шага 2"))
    ]
    steps = range(1, len(rows[0]))
    return pd.DataFrame(rows, columns=["KL к якорю, нат на ответ", *(f"шаг {t}" for t in steps)])


def conclusion(results: Results) -> list[str]:
    """What was measured, and whether the project's targets were reached; as a Markdown list."""
    steps, merge, lines = results["steps"], results["merge"], list[str]()

    def line(what: str, target: str, reached: bool) -> None:
        how = "достигнута" if reached else "не достигнута"
        lines.append(f"- {what}; цель — {target}: {how}.")

    def faster(what: str, peer: str, ratios: Sequence[float], target: float | None) -> None:
        times = ratios if median(ratios) >= 1 else [1 / ratio for ratio in ratios]
        how = "быстрее" if times is ratios else "медленнее"
        said = f"{what}: {how} {peer} в {spread(times)} раза"
        if target is None:
            lines.append(f"- {said}.")
        else:
            line(said, f"быстрее в {_short(target)} раза", median(ratios) >= target)

    for precision in steps["rounds"]:
        for mode, name in MODES.items():
            if ratios := speedups(results, mode, precision):
                target = STEP_TARGET if (precision, mode) == ("fp32", "alone") else None
                what = f"{name.capitalize()}, {PRECISIONS[precision]}"
                faster(what, PEERS[mode], ratios, target)
    if "bf16" not in steps["rounds"]:
        slow, full = (number(steps["peaks"][key], 1) for key in ("bf16", "fp32"))
        lines.append(
            f"- bf16 не сравнивался: умножение матриц в нём здесь не быстрее, чем во float32 ({slow} и "
            f"{full} Гфлоп/с)."
        )
    for mode, name in MODES.items():
        rows = {row["part"]: row for row in floor_rows(results, mode)}
        for part, target in FLOOR_TARGETS.items():
            what, ratio = PARTS.get(part, "весь шаг"), rows[part]["ratio"]
            line(
                f"{name.capitalize()}, {what}: в {_short(ratio)} раза дольше нижней границы",
                f"не больше чем в {_short(target)} раза",
                ratio <= target,
            )
    for case, target in ((merge["policy_2"], MERGE_TARGET), (merge["large_2"], None)):
        if ratios := merge_ratios(case, "mergekit", "ours"):
            what = f"Слияние {case_name(case)}"
            faster(what, "mergekit", ratios, target)
            rest = _without_start(case, merge["tiny_2"])
            lines.append(
                f"- {what}, без времени старта обеих программ: быстрее в {_short(rest)} раза."
            )
            apart = number(case["difference"])
            line(
                f"{what}: веса отличаются от mergekit не больше чем на {apart}",
                f"меньше {number(DIFFERENCE_TARGET)}",
                case["difference"] < DIFFERENCE_TARGET,
            )
    memory = max(row["ours"]["memory_mb"] for row in merge["large_4"]["rounds"])
    line(
        f"Память слияния {case_name(merge['large_4'])}: не больше {memory:.0f} МБ ни в одном раунде",
        f"меньше {LARGE_MEMORY_MB} МБ",
        memory < LARGE_MEMORY_MB,
    )
    for case in (merge[key] for key in ("policy_2", "large_2", "large_4")):
        ratios = merge_ratios(case, "ours", "copying")
        line(
            f"Слияние {case_name(case)}: дольше чтения и записи в {spread(ratios)} раза",
            f"не больше {_short(COPYING_TARGET)}",
            median(ratios) <= COPYING_TARGET,
        )
    for who, name in (("trl", "Обучение TRL"), ("ours", "Наше обучение")):
        if kl := results["resume"].get(who):
            same = (
                "все шаги те же бит в бит" if kl["straight"] == kl["resumed"] else "шаги разошлись"
            )
            third = {how: _nats(by_step[2]) for how, by_step in kl.items()}
            lines.append(
                f"- {name}, продолженное после шага 2: KL к якорю на шаге 3 — {third['resumed']} "
                f"ната на ответ, без остановки — {third['straight']}; {same}."
            )
    return lines


def _without_start(case: Mapping[str, Any], start: Mapping[str, Any]) -> float:
    """mergekit's median seconds over ours, each less what its start takes."""

    def seconds(who: str) -> float:
        medians = [median(row[who]["seconds"] for row in each["rounds"]) for each in (case, start)]
        return medians[0] - medians[1]

    return seconds("mergekit") / seconds("ours")


def _nats(kl: float) -> str:
    return number(round(kl, 2) + 0.0, 0.1)  # no −0,00


def _short(value: float) -> str:
    return f"{value:.1f}".replace(".", ",")
