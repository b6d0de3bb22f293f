"""The table and the conclusion of a front: the points over η and the RL runs beside them."""

import itertools
from collections.abc import Mapping
from typing import Any

import pandas as pd

from reports.text.experiment import ONE_TRAINING
from reports.text.words import estimate_text, eta_text


def front_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The points of the front and the RL runs: reward, its gain over θ_sft, KL, what a judge says if
    there is one, with errors."""
    named = [(eta_text(point["eta"]), point) for point in summary["front"]]
    named += [(f"запуск {point['run']}", point) for point in summary["front_runs"]]
    columns = {
        "reward": "Награда, баллы",
        "gain": "Прирост к SFT-модели (попарно), баллы",
        "kl": "KL(π‖sft), нат на ответ",
    }
    if all("judge" in point for _, point in named):
        columns["judge"] = "Оценка второго судьи"
    rows = [(name, *(estimate_text(p[key]) for key in columns), p["kl"]["n"]) for name, p in named]
    return pd.DataFrame(rows, columns=["Точка", *columns.values(), "n"])


def front_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The points as numbers, for who wants to draw them anew."""
    points = [*summary["front"], *summary["front_runs"]]
    return [
        {"eta": p.get("eta"), "run": p.get("run")}
        | {
            f"{k}_{s}": p[k][s]
            for k in ("kl", "reward", "judge")
            if k in p
            for s in ("mean", "stderr")
        }
        for p in points
    ]


def front_conclusion(summary: Mapping[str, Any]) -> list[str]:
    """Whether KL grows with η, what the reward does, and how the RL runs stand to the front.

    Where the experiment kept no weights of its runs, `front_runs` is empty and nothing is said of
    them.
    """
    front, runs = summary["front"], summary["front_runs"]
    end = front[-1]
    grows = all(a["kl"]["mean"] <= b["kl"]["mean"] for a, b in itertools.pairwise(front))
    sentences = [
        f"KL {'растёт с η' if grows else 'с η растёт не всюду'} и при {eta_text(end['eta'])} равна "
        f"{estimate_text(end['kl'])} (нат на ответ).",
        f"От SFT-модели до {eta_text(end['eta'])} награда меняется на "
        f"{estimate_text(end['gain'])} (баллы; {ONE_TRAINING}).",
    ]
    same = all(p["reward"] == runs[0]["reward"] and p["kl"] == runs[0]["kl"] for p in runs[1:])
    if same and len(runs) > 1:
        return [
            *sentences,
            "Точки запусков совпадают по построению: при общем seed это одна и та же политика, и "
            "слиянию здесь нечего усреднять.",
        ]
    for run in runs:
        above = run["front_above"]
        sentences.append(
            f"Запуск {run['run']}: награда фронта при той же KL минус его награда — "
            f"{estimate_text(above)} (баллы; {ONE_TRAINING})."
            if above
            else f"Запуск {run['run']}: его KL вне отрезка KL фронта, сравнить награды нельзя."
        )
    return sentences
