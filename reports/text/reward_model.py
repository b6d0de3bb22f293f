"""Tables of the reward model: its held-out quality, and what it scores low and high."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reports.text.words import estimate_text, number

QUALITIES = {
    "accuracy": "Доля верных пар (оценки различаются больше чем на 0,5 балла)",
    "accuracy_all_pairs": "Доля верных пар (все пары)",
    "correlation": "Корреляция с оценками людей",
    "rmse": "Среднеквадратичная ошибка, баллы",
}


def reward_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Held-out quality of the reward model: mean ± standard error, n."""
    rows = [
        (name, estimate_text(summary[key]), summary[key]["n"]) for key, name in QUALITIES.items()
    ]
    return pd.DataFrame(rows, columns=["Величина", "Значение ± ст. ошибка", "n"])


def quality_sentence(summary: Mapping[str, Any]) -> str:
    """How often the order of two sentences is people's."""
    share = {key: 100 * summary["accuracy"][key] for key in ("mean", "stderr")}
    return (
        f"Модель награды верно упорядочивает {estimate_text(share)}\u00a0% отложенных пар, оценки в "
        "которых различаются больше чем на 0,5 балла."
    )


def calibration_sentence(rows: Sequence[Mapping[str, float]]) -> str:
    """How far the reward is from people's ratings in its upper half, and what its growth there is worth,
    from `calibration_rows`."""
    upper = rows[len(rows) // 2 :]
    over = [row["reward"] - row["rating"] for row in upper]
    low, high = number(min(over), 1), number(max(over), 1)
    how = (
        f"завышает оценку людей на {low}–{high}"
        if min(over) > 0
        else f"отличается от оценки людей на {low}…{high}"
    )
    growth, worth = (number(upper[-1][key] - upper[0][key], 0.1) for key in ("reward", "rating"))
    return (
        f"На предложениях с наградой выше медианной модель {how} балла; от шестого дециля к "
        f"десятому награда растёт на {growth}, а оценка людей — на {worth} балла."
    )


def reward_examples(held_out: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """The held-out texts of lowest, middle and highest score; so many of each."""
    ordered = held_out.sort_values("score")
    middle = len(ordered) // 2
    rows = pd.concat([ordered[:count], ordered[middle : middle + count], ordered[-count:]])
    return pd.DataFrame(
        {
            "Предложение": rows["text"],
            "Оценка людей": [number(value, 0.1) for value in rows["rating"]],
            "Награда": [number(value, 0.1) for value in rows["score"]],
        }
    )
