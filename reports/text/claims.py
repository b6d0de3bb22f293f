"""All studies together: what a colleague would want to be told first, and the four experiments."""

from collections.abc import Mapping, Sequence

from reports.text.studies import ALIKE, HOLDS, NONE, REFUTED, SMALL, UNKNOWN, Verdict
from reports.text.words import lowered, number

FRONTS = "при равной KL фронт четырёх слитых запусков"
WORTH = {
    HOLDS: f"**Слияние окупается**: {FRONTS} выше фронта одного запуска вчетверо длиннее",
    REFUTED: f"**Слияние проигрывает**: {FRONTS} ниже фронта одного запуска вчетверо длиннее",
    ALIKE: f"**Слияние — способ обучать параллельно**: {FRONTS} отличается от фронта одного запуска "
    f"вчетверо длиннее меньше чем на {number(SMALL, 0.1)} балла",
    UNKNOWN: f"**Окупается ли слияние, по этим обучениям не сказать**: {FRONTS} против фронта одного "
    "запуска вчетверо длиннее",
    NONE: "**Окупается ли слияние, пока неизвестно**: четыре слитых запуска против одного запуска вчетверо "
    "длиннее",
}
ABOVE = {
    HOLDS: "**Фронт LITI лежит выше траектории того же запуска** при равной KL",
    REFUTED: "**Фронт LITI лежит ниже траектории того же запуска** при равной KL",
    ALIKE: "**Фронт LITI и траектория того же запуска неразличимы** при равной KL",
    UNKNOWN: "**Выше ли при равной KL фронт LITI траектории того же запуска, не сказать**",
    NONE: "**Лежит ли фронт LITI выше траектории того же запуска, пока неизвестно**",
}
BY_LERP = {
    HOLDS: "SLERP при равной KL выше LERP",
    REFUTED: "SLERP при равной KL ниже LERP",
    ALIKE: "SLERP и LERP при равной KL неразличимы",
    UNKNOWN: "лучше ли SLERP, чем LERP, при равной KL, не сказать",
    NONE: "лучше ли SLERP, чем LERP, при равной KL, пока неизвестно",
}
FOURTH = {
    HOLDS: "награда WARP-модели, как и там, ниже, чем у SFT-модели",
    REFUTED: "награда WARP-модели, вопреки ему, выше, чем у SFT-модели",
    ALIKE: "награды WARP- и SFT-моделей неразличимы",
    UNKNOWN: "выше ли награда WARP-модели, чем SFT-модели, по этим обучениям не сказать",
    NONE: "ниже ли награда WARP-модели, чем у SFT-модели, пока неизвестно",
}
LONGER = {
    HOLDS: "при T = 30 она выше, чем при T = 10",
    REFUTED: "при T = 30 она ниже, чем при T = 10",
    ALIKE: "при T = 30 и T = 10 она неразличима",
    UNKNOWN: "выше ли она при T = 30, чем при T = 10, не сказать",
    NONE: "выше ли она при T = 30, чем при T = 10, пока неизвестно",
}


def headline(found: Sequence[Verdict]) -> list[str]:
    """What a colleague would want to be told, in three sentences."""
    by_name = {v.comparison.name: v for v in found}
    four = by_name["four_against_one"]
    though = " (хотя и отличается)" if four.in_effect != four.word else ""
    liti, lerp, fourth, longer = (
        _said(by_name[name], by_word)
        for name, by_word in (
            ("liti_above_trajectory", ABOVE),
            ("slerp_above_lerp_at_equal_kl", BY_LERP),
            ("fourth_is_worse", FOURTH),
            ("t30_gains", LONGER),
        )
    )
    return [
        f"{WORTH[four.in_effect]}{though} ({_told(four)}).",
        f"{liti}; {lerp}.",
        "**В исходном отчёте слияние ничего не усредняло** (seed у запусков, судя по совпавшим кривым, был "
        f"один), а награда не зависела от текста. Здесь в его четвёртом эксперименте {fourth}; {longer}.",
    ]


def _said(v: Verdict, by_word: Mapping[str, str]) -> str:
    return f"{by_word[v.word]} ({_told(v)})"


def _told(v: Verdict) -> str:
    """Its effect and on how many trainings it rests."""
    return f"{v.effect}, {v.trainings}" if v.between else v.effect


ADVICE = {  # by the comparison, what came of it -> what it means for who trains
    "liti_above_trajectory": {
        HOLDS: "Обучить дальше, чем нужно, и вернуться интерполяцией лучше, чем остановиться раньше, и "
        "ничего не стоит",
        ALIKE: "Остановиться раньше или обучить дальше и вернуться интерполяцией — одно и то же",
        REFUTED: "Остановиться раньше лучше, чем обучить дальше и вернуться интерполяцией",
    },
    "four_against_one": {
        HOLDS: "Запуски стоит сливать и на одной машине: фронт выше, чем у одного запуска с тем же числом "
        "шагов",
        ALIKE: "Слитые запуски заменяют один запуск с тем же числом шагов: на одной машине выигрыша нет, "
        "на нескольких обучение короче в M раз",
        REFUTED: "Один запуск с тем же числом шагов лучше слитых; слияние — для тех, у кого машин "
        "несколько, а времени мало",
    },
    "slerp_above_lerp_at_equal_kl": {
        HOLDS: "Сливать стоит SLERP: LERP ниже и при η больше 1",
        ALIKE: "SLERP или LERP — дело вкуса: LERP с η больше 1 лежит на том же фронте",
        REFUTED: "Сливать стоит LERP с η больше 1: SLERP ниже",
    },
    "second_iteration": {
        HOLDS: "Вторая итерация поднимает фронт",
        ALIKE: "Вторая итерация фронта почти не меняет",
        REFUTED: "Вторая итерация опускает фронт",
    },
    "ema_above_sft": {
        HOLDS: "Якорь EMA лучше якоря SFT и при равной KL",
        ALIKE: "При равной KL всё равно, к чему отсчитывать штраф, к EMA или к SFT-модели: якорь решает "
        "лишь, как далеко уйдёт запуск",
        REFUTED: "При равной KL якорь SFT лучше якоря EMA",
    },
}


def advice(found: Sequence[Verdict]) -> list[str]:
    """What that means for who trains, as a Markdown list; of what cannot be told, nothing."""
    by_name = {v.comparison.name: v for v in found}
    lines = []
    for name, by_word in ADVICE.items():
        v = by_name[name]
        if said := by_word.get(v.in_effect):
            lines.append(f"- {said} ({_told(v)}; [@study_{v.study.name}]).")
    return lines or ["Пока ничего: обучений мало."]


def counted(found: Sequence[Verdict]) -> str:
    """How many of the claims hold, do not, cannot be told."""
    words = {HOLDS: "подтверждено", REFUTED: "опровергнуто", ALIKE: "неразличимы стороны у"}
    words |= {UNKNOWN: "нельзя сказать о", NONE: "мало обучений у"}
    n = {word: sum(v.word == word for v in found) for word in words}
    said = ", ".join(f"{name} {n[word]}" for word, name in words.items() if n[word])
    return f"Из {len(found)} утверждений {said}. Утверждения самой статьи:"


def of_paper(found: Sequence[Verdict]) -> list[Verdict]:
    """Those that the paper makes."""
    return [v for v in found if v.comparison.source.startswith("статья")]


def sorted_out(found: Sequence[Verdict]) -> list[str]:
    """The paper's claims by what came of them, as a Markdown list."""
    names = {
        HOLDS: "Подтверждается",
        REFUTED: "Опровергается: получилось обратное",
        ALIKE: f"Неразличимо: разность меньше {number(SMALL, 0.1)} балла",
        UNKNOWN: "Нельзя сказать",
    }
    lines = []
    for word, name in names.items():
        of_word = [v for v in of_paper(found) if v.word == word]
        told = word != UNKNOWN  # those are in the table
        said = "; ".join(
            f"{lowered(v.comparison.claim)} ({f'{v.effect}; ' if told else ''}"
            f"{v.comparison.source.removeprefix('статья, ')}; [@study_{v.study.name}])"
            for v in of_word
        )
        lines += [f"- **{name}** ({len(of_word)}): {said}."] if of_word else []
    few = sum(v.word == NONE for v in of_paper(found))
    return [*lines, *([f"- **Мало обучений** ({few}): [@summary:claims]."] if few else [])]
