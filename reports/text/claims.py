"""All studies together: what a colleague would want to be told first, and the four experiments."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from reports.text.statistics import value
from reports.text.studies import HOLDS, NONE, REFUTED, UNKNOWN, Row, Verdict, grouped, mean_text
from reports.text.words import estimate_text, number

SMALL = 0.15  # points: an interval within it is said to be no difference to speak of


def headline(found: Sequence[Verdict]) -> list[str]:
    """What a colleague would want to be told, in three sentences."""
    by_name = {v.comparison.name: v for v in found}
    four, liti = by_name["four_against_one"], by_name["liti_above_trajectory"]
    lerp, seed, longer = (
        by_name[name] for name in ("slerp_above_lerp_at_equal_kl", "fourth_is_worse", "t30_gains")
    )
    same = four.between and max(-four.between["low"], four.between["high"]) < SMALL
    parallel = (
        "Слияние — способ обучать параллельно: при равной KL фронт четырёх слитых запусков отличается от "
        f"фронта одного запуска вчетверо длиннее меньше чем на {number(SMALL, 0.1)} балла"
    )
    worth = {
        HOLDS: "Слияние окупается: при равной KL фронт четырёх слитых запусков выше фронта одного запуска "
        "вчетверо длиннее",
        REFUTED: "Слияние проигрывает: при равной KL фронт четырёх слитых запусков ниже фронта одного "
        "запуска вчетверо длиннее",
        UNKNOWN: "Выше ли при равной KL фронт четырёх слитых запусков, чем фронт одного запуска вчетверо "
        "длиннее, по этим обучениям не сказать",
        NONE: "Фронт четырёх слитых запусков рядом с фронтом одного запуска вчетверо длиннее",
    }
    above = {
        HOLDS: "Фронт даёт интерполяция к начальным весам: при равной KL он выше траектории "
        "того же запуска",
        REFUTED: "Интерполяция к начальным весам при равной KL ниже траектории того же запуска",
        UNKNOWN: "Выше ли при равной KL интерполяция к начальным весам, чем траектория того же запуска, "
        "по этим обучениям не сказать",
        NONE: "Интерполяция к начальным весам рядом с траекторией того же запуска",
    }
    by_lerp = {
        HOLDS: "SLERP при равной KL выше LERP",
        REFUTED: "SLERP при равной KL ниже LERP",
        UNKNOWN: "какое слияние лучше при равной KL, SLERP или LERP, по этим обучениям не сказать",
        NONE: "SLERP рядом с LERP",
    }
    fourth = {
        HOLDS: "как и там, WARP-модель хуже SFT-модели",
        REFUTED: "вопреки ему WARP-модель лучше SFT-модели",
        UNKNOWN: "лучше ли WARP-модель, чем SFT-модель, по этим обучениям не сказать",
        NONE: "WARP-модель рядом с SFT-моделью",
    }
    more = {
        HOLDS: "большее T помогает",
        REFUTED: "большее T вредит",
        UNKNOWN: "помогает ли большее T, по этим обучениям не сказать",
        NONE: "большее T",
    }
    return [
        f"{parallel if same and four.word == UNKNOWN else worth[four.word]} ({_told(four)}).",
        f"{above[liti.word]} ({_told(liti)}); {by_lerp[lerp.word]} ({_told(lerp)}).",
        f"В четвёртом эксперименте исходного отчёта {fourth[seed.word]} ({_told(seed)}), и "
        f"{more[longer.word]}: T = 30 против T = 10 — {_told(longer)}.",
    ]


def _told(v: Verdict) -> str:
    return f"{v.effect}, обучений: {len(v.by_seed)}" if v.between else NONE


def experiments_table(
    rows: Sequence[Row], summaries: Mapping[str, Mapping[str, Any]], label: Callable[[str], str]
) -> pd.DataFrame:
    """The experiments between trainings, and where the training of this report falls among them."""
    sft = {row["what"]: value(row, "reward") for row in rows}.get("sft", 0.0)
    table = []
    for name, of_arm in grouped(
        [row for row in rows if row["arm"]], lambda row: row["arm"]
    ).items():
        gains = [value(row, "reward") - sft for row in of_arm]
        cells = [
            mean_text(gains, 2),
            mean_text([value(row, "kl") for row in of_arm], 2),
            str(len(gains)),
        ]
        here, place = "—", "—"
        if name in summaries:
            one = summaries[name]["reward_difference"]
            here = estimate_text(one)
            place = f"выше {sum(gain < one['mean'] for gain in gains)} из {len(gains)}"
        table.append((label(name), *cells, here, place))
    columns = ["Эксперимент", "Прирост награды по обучениям", "KL(warp‖sft), нат", "Обучений"]
    return pd.DataFrame(table, columns=[*columns, "Прирост в этом обучении", "Его место"])
