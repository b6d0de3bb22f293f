"""Tables, figure and sentences of the performance section, from what `bench.py` measured."""

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from warp_core.narrative import number
from warp_core.plots import COLORS, new_row

Results = Mapping[str, Any]
PARTS = {  # of a step, in their order
    "prefill": "чтение промпта", "decode": "порождение ответа", "reward": "модель награды",
    "anchor": "лог-вероятности якоря", "forward": "прямой проход (произведения взяты из порождения)",
    "backward": "обратный проход", "update": "Adam, EMA, нормы", "rest": "остальное",
}  # fmt: skip
MODES = {"pair": "два запуска рядом", "alone": "один запуск"}
STEP_TARGETS = {"pair": 3.5, "alone": 2.0}  # times TRL's throughput in float32
FLOOR_TARGETS = {"step": 1.7, "decode": 2.5}  # times the floor
MERGE_TARGET, DIFFERENCE_TARGET = 8.0, 1e-6  # times mergekit's speed; between the weights
STREAM_MEMORY_MB, STREAM_TARGET = 1000, 2.0  # times merely reading and writing


def machine_text(results: Results) -> str:
    """What was measured on, and when."""
    machine = results["machine"]
    year, month, day = machine["date"].split("-")
    rounds = results["steps"]["rounds"]
    peaks = {key: median(row["peaks"][key] for row in rounds) for key in ("alone", "pair", "bf16")}
    where = machine["gpu"] or f"{machine['processor']} ({', '.join(machine['vector'])})"
    return (
        f"Измерено {day}.{month}.{year}: {where}, потоков: {machine['threads']}, torch "
        f"{machine['torch']}, Python {machine['python']}. Пик машины на квадратных матрицах: float32 "
        f"{peaks['alone']:.0f}\u00a0GFLOP/с одним процессом на всех ядрах, по {peaks['pair']:.0f} у "
        f"двух процессов рядом; bf16 {number(peaks['bf16'], 1)}."
    )


def run_steps(row: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that a step of one run costs: half the pair's time where two go side by side."""
    seconds = {"pair": max(answer["seconds"] for answer in row["pair"]) / 2,
               "alone": row["alone"]["seconds"]}  # fmt: skip
    return seconds | ({"trl": row["trl"]["seconds"]} if "trl" in row else {})


def speedups(results: Results, mode: str) -> list[float]:
    """TRL's seconds over ours, round by round; empty without TRL."""
    rows = [run_steps(row) for row in results["steps"]["rounds"]]
    return [row["trl"] / row[mode] for row in rows if "trl" in row]


def steps_table(results: Results) -> pd.DataFrame:
    """Seconds of a run's step, and how many times faster than TRL's it is."""
    rows = [run_steps(row) for row in results["steps"]["rounds"]]
    names = {"trl": "TRL RLOOTrainer, float32", "alone": "наш шаг, один запуск",
             "pair": "наш шаг, два запуска рядом"}  # fmt: skip
    table = []
    for key, name in names.items():
        if any(key in row for row in rows):
            ratios = [] if key == "trl" else speedups(results, key)
            table.append(
                (name, spread([row[key] for row in rows]), spread(ratios) if ratios else "–")
            )
    return pd.DataFrame(table, columns=["Что", "Секунд на шаг запуска: медиана (от – до)",
                                        "Быстрее TRL, раз: медиана (от – до)"])  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Median (least – greatest)."""
    texts = [
        f"{value:.2f}".replace(".", ",") for value in (median(values), min(values), max(values))
    ]
    return f"{texts[0]} ({texts[1]} – {texts[2]})"


def floor_rows(results: Results, mode: str) -> list[dict[str, Any]]:
    """By part of a step: operations, floor = operations / peak, measured (medians), their ratio."""
    operations, rounds = results["steps"]["operations"], results["steps"]["rounds"]
    runs = [[row["alone"]] if mode == "alone" else row["pair"] for row in rounds]
    answers = [(run, row["peaks"][mode]) for row, each in zip(rounds, runs, strict=True)
               for run in each]  # fmt: skip

    def part_row(part: str, count: float, seconds: Callable[[Any], float]) -> dict[str, Any]:
        measured = [(seconds(run), count / (peak * 1e9)) for run, peak in answers]
        return {
            "part": part, "gflop": count / 1e9, "floor": median(floor for _, floor in measured),
            "seconds": median(took for took, _ in measured),
            "ratio": median(took / floor for took, floor in measured) if count else None,
        }  # fmt: skip

    def rest(run: Mapping[str, Any]) -> float:
        return run["seconds"] - sum(run["parts"].values())

    rows = [part_row(part, operations.get(part, 0), lambda run, part=part: run["parts"].get(part, 0.0))
            for part in PARTS if part != "rest"]  # fmt: skip
    return [*rows, part_row("rest", 0, rest),
            part_row("step", sum(operations.values()), lambda run: run["seconds"])]  # fmt: skip


def floor_table(results: Results, mode: str) -> pd.DataFrame:
    """`floor_rows` for the reader."""

    def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
        counted = bool(row["gflop"])
        return (PARTS.get(row["part"], "весь шаг"), f"{row['gflop']:.0f}" if counted else "–",
                _short(row["floor"]) if counted else "–", _short(row["seconds"]),
                _short(row["ratio"]) if counted else "–")  # fmt: skip

    return pd.DataFrame(map(cells, floor_rows(results, mode)), columns=[
        "Часть шага", "Операций, GFLOP", "Предел, с", "Измерено, с", "Измерено / предел",
    ])  # fmt: skip


def merge_ratios(rounds: Sequence[Mapping[str, Any]], over: str, under: str) -> list[float]:
    """Seconds of one over another's, round by round."""
    return [row[over]["seconds"] / row[under]["seconds"] for row in rounds if over in row]


def merge_table(results: Results) -> pd.DataFrame:
    """SLERP from files to a file: seconds and peak memory of whole processes."""
    names = {
        "mergekit": "mergekit nuslerp",
        "ours": "наше слияние",
        "copying": "прочитать и записать",
    }
    stream = results["stream"]
    large = f"M = {stream['runs']}, {_short(stream['gigabytes'])} ГБ в шардах"
    cases = {"M = 2, 135M параметров": results["merge"]["rounds"], large: stream["rounds"]}
    rows = [
        (case, name, spread([row[key]["seconds"] for row in rounds]),
         f"{median(row[key]['memory_mb'] for row in rounds):.0f}")
        for case, rounds in cases.items() for key, name in names.items() if key in rounds[0]
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Веса", "Что", "Секунд: медиана (от – до)", "Память, МБ"])


def conclusion(results: Results) -> list[str]:
    """Each target of the project and what was measured; as a Markdown list."""
    merge, stream, lines = results["merge"], results["stream"], list[str]()

    def line(what: str, target: str, reached: bool) -> None:
        how = "достигнута" if reached else "не достигнута"
        lines.append(f"- {what}; цель – {target}: {how}.")

    def at_least(what: str, ratios: Sequence[float], target: float) -> None:
        line(f"{what} в {spread(ratios)} раза", f"не меньше {_short(target)}",
             median(ratios) >= target)  # fmt: skip

    for mode, target in STEP_TARGETS.items():
        if ratios := speedups(results, mode):
            at_least(f"{MODES[mode].capitalize()}: быстрее TRL (float32)", ratios, target)
    if speedups(results, "alone"):
        lines.append(_bf16(results))
    for mode, name in MODES.items():
        rows = {row["part"]: row for row in floor_rows(results, mode)}
        for part, target in FLOOR_TARGETS.items():
            what, ratio = PARTS.get(part, "весь шаг"), rows[part]["ratio"]
            line(f"{name.capitalize()}, {what}: {_short(ratio)} предела",
                 f"не больше {_short(target)}", ratio <= target)  # fmt: skip
    if ratios := merge_ratios(merge["rounds"], "mergekit", "ours"):
        at_least("Слияние: быстрее mergekit", ratios, MERGE_TARGET)
        line(f"Наибольшая разность весов с mergekit: {number(merge['difference'])}",
             f"меньше {number(DIFFERENCE_TARGET)}", merge["difference"] < DIFFERENCE_TARGET)  # fmt: skip
    memory = max(row["ours"]["memory_mb"] for row in stream["rounds"])
    line(f"Память слияния больших весов: {memory:.0f} МБ при слое в {stream['group_mb']:.0f} МБ",
         f"меньше {STREAM_MEMORY_MB} МБ", memory < STREAM_MEMORY_MB)  # fmt: skip
    for name, rounds in (("135M параметров", merge["rounds"]), ("больших весов", stream["rounds"])):
        ratios = merge_ratios(rounds, "ours", "copying")
        line(f"Слияние {name}: дольше одного лишь чтения и записи в {spread(ratios)} раза",
             f"не больше {_short(STREAM_TARGET)}", median(ratios) <= STREAM_TARGET)  # fmt: skip
    return lines


def _bf16(results: Results) -> str:
    """Of TRL's other precision: where the machine's bf16 is slow, how long its step would take."""
    rounds = results["steps"]["rounds"]
    half, full = (median(row["peaks"][kind] for row in rounds) for kind in ("bf16", "alone"))
    if half >= full:
        return "- TRL с bf16=True не измерялся."
    minutes = sum(results["steps"]["operations"].values()) / (half * 1e9) / 60
    return (f"- TRL с bf16=True не измерялся: при пике bf16 в {number(half, 1)}\u00a0GFLOP/с один его "
            f"шаг не короче {minutes:.0f}\u00a0мин.")  # fmt: skip


def _short(value: float) -> str:
    return f"{value:.1f}".replace(".", ",")


def growth_figure(results: Results) -> None:
    """Seconds a step against batch, new tokens, model size; and runs side by side."""
    labels = {"batch_size": "Ответов в батче $B$", "max_new_tokens": "Новых токенов $N$",
              "parameters": "Параметров политики, млн"}  # fmt: skip
    *panels, last = new_row(4, width=13)
    for ax, (what, label) in zip(panels, labels.items(), strict=True):
        rows = [row for row in results["growth"] if row["what"] == what]
        x = [row["value"] for row in rows]
        y = [median(row["seconds"]) for row in rows]
        errors = [[a - min(row["seconds"]) for a, row in zip(y, rows, strict=True)],
                  [max(row["seconds"]) - a for a, row in zip(y, rows, strict=True)]]  # fmt: skip
        ax.errorbar(x, y, yerr=errors, fmt="o-", color=COLORS[0], capsize=3)
        ax.set(xlabel=label, ylabel="Секунд на шаг", xlim=(0, None), ylim=(0, None))
    rows = [row for row in results["growth"] if row["what"] == "side_by_side"]
    names = [f"{row['value']} × {row['threads']}" for row in rows]
    speeds = [60 * row["value"] / median(row["seconds"]) for row in rows]
    last.bar(names, speeds, color=COLORS[2])
    last.set(xlabel="Запусков × потоков", ylabel="Шагов в минуту")
