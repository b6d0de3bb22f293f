"""Policies of the studies, from their rows: what they are called, what was measured, whose text is gone."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.text.experiment import REPETITION_COLLAPSED
from reports.text.statistics import Row, scaled, value
from reports.text.words import estimate_text, number

# Of θ_sft's words an answer, and of its share of different pairs: below that the text is gone.
LEFT = 1 / 3
ARMS = {  # of this project's studies; an arm of another is called by its name
    "anchor": {
        "ema": "якорь EMA", "sft": "якорь SFT", "sft_weak": "якорь SFT, β = 0.01", "free": "без штрафа",
    },
    "iterations": {"merged": "", "beyond": "", "single": "", "iterated": "I = 4, M = 2"},
    "liti": {"ema": "якорь EMA", "sft": "якорь SFT"},
    "merge": {"five": "", "long": "T = 120"},
    "next_step": {
        f"t{t}{arm}": f"T = {t}{name}"
        for t in (10, 30, 100)
        for arm, name in (("", ""), ("_warm", " с прогревом"))
    },
    "seed_report": {
        f"experiment_{k}{arm}": f"эксперимент {k}{name}"
        for k in range(1, 5)
        for arm, name in (("", ""), ("_control", ", контроль"))
    },
    "sensitivity": {
        "base": "μ = 0.05, β = 0.1", "mu_slow": "μ = 0.01", "mu_fast": "μ = 0.2",
        "beta_weak": "β = 0.05", "beta_strong": "β = 0.2", "eta_03": "η = 0.3 между итерациями",
        "eta_05": "η = 0.5 между итерациями", "eta_08": "η = 0.8 между итерациями",
    },
    "text": {"merged": "", "single": ""},
}  # fmt: skip
WHAT = {
    "run": "запуск",
    "ema": "EMA-веса",
    "average": "среднее весов контрольных точек",
    "warp": "WARP",
}


def policy_name(row: Row) -> str:
    """A policy in a few words: «якорь SFT: запуск, t = 30»; «SLERP 4, η = 0,5»."""
    if row["what"] == "sft":
        return "SFT-модель"
    merged = row["what"] in ("slerp", "lerp")
    name = f"{row['what'].upper()} {row['m']}" if merged else WHAT[row["what"]]
    if row["what"] in ("run", "ema") and row["m"] != 1:
        name += f" {row['m']}"
    details = [f"итерация {row['iteration']}"] if row["iteration"] not in (None, 1) else []
    details += [f"t = {row['t']}"] if isinstance(row["t"], int) else []
    details += [f"λ = {row['lam']:g}"] if row["lam"] not in (None, 0.5) else []
    details += [f"η = {row['eta']:g}"] if row["eta"] not in (None, 1) else []
    arm = ARMS.get(row["study"], {}).get(row["arm"], row["arm"])
    return f"{arm}{': ' * bool(arm)}{', '.join([name, *details])}".replace(".", ",")


def grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by key, in their order."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def by_policy(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by what their policy is called. Two merged at λ = 1/2 may stand in a study a second time, as
    two merged with equal weights: once is enough."""

    def but_for_lam(row: Row) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("seed", "arm", "what", "iteration", "m", "eta"))

    merged = ("slerp", "lerp")
    equal = {but_for_lam(row) for row in rows if row["what"] in merged and row["lam"] is None}
    once = [row for row in rows if row["lam"] != 0.5 or but_for_lam(row) not in equal]
    return grouped(once, policy_name)


def policies_table(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a policy: mean over trainings ± the error between them, and how many they are."""
    measures = {"reward": 2, "kl": 2, "judge": 2, "length": 1, "repetition": 1, "distinct_pairs": 1}
    names = ["Награда", "KL, нат", "Второй судья", "Слов", "Повторы, %", "Различных пар слов, %"]
    table = []
    for name, of_policy in by_policy(rows).items():
        cells = []
        for measure, places in measures.items():
            values = [scaled(row, measure) for row in of_policy if measure in row]
            cells.append(mean_text(values, places))
        n = sum(row["seed"] is not None for row in of_policy)
        table.append((name, *cells, n or "—"))
    return pd.DataFrame(table, columns=["Политика", *names, "Обучений"])


def mean_text(values: Sequence[float], places: int) -> str:
    """«1,31 ± 0,08»: mean and standard error between trainings, as powers of ten where the error would
    be 0,00, and «0 ± 0» where nothing moved."""
    if not values:
        return "—"
    mean, exact = float(np.mean(values)), 10.0 ** (1 - places)
    if len(values) == 1:
        return number(mean, exact)
    apart = min(values) < max(values)  # else a deviation is of rounding alone
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if apart else 0.0
    if 0 < error < exact / 20:
        return estimate_text({"mean": mean, "stderr": error})
    exact = exact if any(values) else 0.0
    return f"{number(mean, exact)}\u00a0±\u00a0{number(error, exact)}"


def collapse_sentence(rows: Sequence[Row]) -> list[str]:
    """What reward and judge say of policies whose text is gone; nothing without any."""
    sft = next((row for row in rows if row["what"] == "sft"), None)
    trained = [row for row in rows if row["seed"] is not None]
    if sft is None:
        return []
    faults = [_fault(row, sft) for row in trained]
    gone = [row for row, fault in zip(trained, faults, strict=True) if fault]
    if not gone:
        return []
    how = [f"у {n} — {fault}" for fault, n in Counter(filter(None, faults)).items()]
    names = {"reward": ("награда", " балла"), "judge": ("оценка второго судьи", "")}
    judges = {k: name for k, name in names.items() if all(k in row for row in [sft, *gone])}
    told = []
    for measure, (name, unit) in judges.items():
        ends = [number(f(value(row, measure) for row in gone), 0.1) for f in (min, max)]
        range_ = ends[0] if ends[0] == ends[1] else f"от {ends[0]} до {ends[1]}"
        told.append(f"{name} — {range_}{unit} (у SFT-модели {number(value(sft, measure), 0.1)})")
    fooled = [all(value(row, k) > value(sft, k) for k in judges) for row in gone]
    blind = "; бывает, что обе выше, чем у SFT-модели" if any(fooled) and len(judges) > 1 else ""
    many = "политики" if len(gone) % 10 == 1 and len(gone) % 100 != 11 else "политик"
    return [
        f"Текст выродился у {len(gone)} {many} из {len(trained)}: {', '.join(how)}. "
        f"При этом {', '.join(told)}{blind}."
    ]


def _fault(row: Row, sft: Row) -> str:
    """What a text that is gone has become; empty where it is not."""
    if value(row, "length") < LEFT * value(sft, "length"):
        return "слов более чем втрое меньше, чем у SFT-модели, или нет совсем"
    if value(row, "repetition") > REPETITION_COLLAPSED >= value(sft, "repetition"):
        return "больше половины слов повторяется"
    few = value(row, "distinct_pairs") < LEFT * value(sft, "distinct_pairs")
    return "доля различных пар слов более чем втрое меньше" if few else ""
