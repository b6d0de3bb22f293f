"""Tables of the reward model: its held-out quality, and what it scores low and high."""

from collections.abc import Mapping
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
