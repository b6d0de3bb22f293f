"""All studies together: what a colleague would want to be told first, and the four experiments."""

from collections.abc import Sequence

from reports.text.studies import HOLDS, NONE, REFUTED, UNKNOWN, Verdict
from reports.text.words import lowered, number

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
        "**Слияние — способ обучать параллельно**: при равной KL фронт четырёх слитых запусков отличается "
        f"от фронта одного запуска вчетверо длиннее меньше чем на {number(SMALL, 0.1)} балла"
    )
    worth = {
        HOLDS: "**Слияние окупается**: при равной KL фронт четырёх слитых запусков выше фронта одного "
        "запуска вчетверо длиннее",
        REFUTED: "**Слияние проигрывает**: при равной KL фронт четырёх слитых запусков ниже фронта одного "
        "запуска вчетверо длиннее",
        UNKNOWN: "**Окупается ли слияние, по этим обучениям не сказать**: при равной KL фронт четырёх "
        "слитых запусков неотличим от фронта одного запуска вчетверо длиннее",
        NONE: "**Окупается ли слияние, пока неизвестно**: четыре слитых запуска против одного запуска "
        "вчетверо длиннее",
    }
    above = {
        HOLDS: "**Фронт даёт интерполяция к начальным весам (LITI)**: при равной KL он выше траектории "
        "того же запуска",
        REFUTED: "**Интерполяция к начальным весам (LITI) фронта не даёт**: при равной KL она ниже "
        "траектории того же запуска",
        UNKNOWN: "**Даёт ли фронт интерполяция к начальным весам (LITI), по этим обучениям не сказать**: "
        "разность с траекторией того же запуска при равной KL",
        NONE: "**Даёт ли фронт интерполяция к начальным весам (LITI), пока неизвестно**",
    }
    by_lerp = {
        HOLDS: "SLERP при равной KL выше LERP",
        REFUTED: "SLERP при равной KL ниже LERP",
        UNKNOWN: "SLERP и LERP при равной KL неразличимы",
        NONE: "неизвестно и то, лучше ли SLERP, чем LERP",
    }
    fourth = {
        HOLDS: "WARP-модель, как и там, хуже SFT-модели",
        REFUTED: "WARP-модель, вопреки ему, лучше SFT-модели",
        UNKNOWN: "лучше ли WARP-модель, чем SFT-модель, по этим обучениям не сказать",
        NONE: "хуже ли там WARP-модель, пока неизвестно",
    }
    more = {
        HOLDS: "T = 30 лучше, чем T = 10",
        REFUTED: "T = 30 хуже, чем T = 10",
        UNKNOWN: "T = 30 и T = 10 неразличимы",
        NONE: "лучше ли T = 30, чем T = 10, пока неизвестно",
    }
    return [
        f"{parallel if same and four.word == UNKNOWN else worth[four.word]} ({_told(four)}).",
        f"{above[liti.word]} ({_told(liti)}); {by_lerp[lerp.word]} ({_told(lerp)}).",
        f"**Четвёртый эксперимент исходного отчёта**: {fourth[seed.word]} ({_told(seed)}); "
        f"{more[longer.word]} ({_told(longer)}).",
    ]


def _told(v: Verdict) -> str:
    """Its effect and on how many trainings it rests."""
    return f"{v.effect}, обучений: {len(v.by_seed)}" if v.between else v.effect


def counted(found: Sequence[Verdict]) -> str:
    """How many of the claims hold, do not, cannot be told."""
    n = {word: sum(v.word == word for v in found) for word in (HOLDS, REFUTED, UNKNOWN, NONE)}
    return (
        f"Из {len(found)} утверждений подтверждаются {n[HOLDS]}, опровергнуты {n[REFUTED]}, не отличимы от "
        f"нуля разности у {n[UNKNOWN]}, мало обучений у {n[NONE]}. Утверждения самой статьи:"
    )


def of_paper(found: Sequence[Verdict]) -> list[Verdict]:
    """Those that the paper makes."""
    return [v for v in found if v.comparison.source.startswith("статья")]


def sorted_out(found: Sequence[Verdict]) -> list[str]:
    """The paper's claims by what came of them, as a Markdown list."""
    names = {
        HOLDS: "Подтверждается",
        REFUTED: "Не подтверждается: получилось обратное",
        UNKNOWN: "Неразличимо",
    }
    lines = []
    for word, name in names.items():
        of_word = [v for v in of_paper(found) if v.word == word]
        told = word in (HOLDS, REFUTED)  # the others are in the table
        said = "; ".join(
            f"{lowered(v.comparison.claim)} ({f'{v.effect}; ' if told else ''}"
            f"{v.comparison.source.removeprefix('статья, ')}; [@study_{v.study.name}])"
            for v in of_word
        )
        lines += [f"- **{name}** ({len(of_word)}): {said}."] if of_word else []
    few = sum(v.word == NONE for v in of_paper(found))
    return [*lines, *([f"- **Мало обучений** ({few}): [@summary:claims]."] if few else [])]
