"""All studies together: what a colleague would want to be told first, and the four experiments."""

from collections.abc import Mapping, Sequence

import pandas as pd

from reports.text.verdicts import ALIKE, HOLDS, LITTLE, NONE, REFUTED, SMALL, UNKNOWN, Verdict
from reports.text.words import decimal, lowered, nats

USUAL = 5  # trainings of a comparison, where its sentence does not name them
FRONTS = "фронт четырёх слитых по 30 шагов"
LONG = "фронта LITI одного на 120"
WORTH = {
    HOLDS: f"**Слияние окупается**: {FRONTS} выше {LONG}",
    LITTLE: f"**Слияние окупается, но мало**: {FRONTS} чуть выше {LONG}",
    REFUTED: f"**Слияние проигрывает**: {FRONTS} ниже {LONG}",
    ALIKE: "**Слияние позволяет обучать параллельно, но не даёт больше награды, чем один запуск с тем же "
    f"числом шагов**: {FRONTS} неотличим от {LONG}",
    UNKNOWN: f"**Окупается ли слияние, по этим обучениям не сказать**: {FRONTS} против {LONG}",
    NONE: "**Окупается ли слияние, ещё не вычислено**: четыре слитых запуска и один вчетверо длиннее",
}
WHOLE = {
    HOLDS: "фронт WARP целиком (I = 4, M = 2) выше фронта LITI одного на 240",
    LITTLE: "фронт WARP целиком (I = 4, M = 2) чуть выше фронта LITI одного на 240",
    REFUTED: "фронт WARP целиком (I = 4, M = 2) ниже фронта LITI одного на 240",
    ALIKE: "фронт WARP целиком (I = 4, M = 2) неотличим от фронта LITI одного на 240",
    UNKNOWN: "окупается ли WARP целиком (I = 4, M = 2), не сказать",
    NONE: "окупается ли WARP целиком, ещё не вычислено",
}
ABOVE = {
    HOLDS: "**Фронт LITI лежит выше траектории того же запуска**, то есть его более ранних шагов с той же "
    "KL",
    LITTLE: "**Фронт LITI лежит чуть выше траектории того же запуска** при равной KL",
    REFUTED: "**Фронт LITI лежит ниже траектории того же запуска** при равной KL",
    ALIKE: "**Фронт LITI и траектория того же запуска неразличимы** при равной KL",
    UNKNOWN: "**Выше ли при равной KL фронт LITI траектории того же запуска, не сказать**",
    NONE: "**Лежит ли фронт LITI выше траектории того же запуска, ещё не вычислено**",
}
ORDINARY = {  # RL with a KL penalty to θ_sft, and nothing averaged
    HOLDS: "выше и обычного обучения, с KL-штрафом к SFT-модели",
    LITTLE: "чуть выше и обычного обучения, с KL-штрафом к SFT-модели",
    REFUTED: "но ниже обычного обучения, с KL-штрафом к SFT-модели",
    ALIKE: "от обычного обучения, с KL-штрафом к SFT-модели, неотличим",
    UNKNOWN: "выше ли он обычного обучения, с KL-штрафом к SFT-модели, не сказать",
    NONE: "выше ли он обычного обучения, с KL-штрафом к SFT-модели, ещё не вычислено",
}
BY_LERP = {
    HOLDS: "SLERP при равной KL выше LERP",
    LITTLE: "SLERP при равной KL чуть выше LERP",
    REFUTED: "SLERP при равной KL ниже LERP",
    ALIKE: "SLERP и LERP при равной KL неразличимы",
    UNKNOWN: "лучше ли SLERP, чем LERP, при равной KL, не сказать",
    NONE: "лучше ли SLERP, чем LERP, при равной KL, ещё не вычислено",
}
BY_ANCHOR = {
    HOLDS: "награда с якорем EMA при равной KL выше, чем с якорем SFT",
    LITTLE: "награда с якорем EMA при равной KL чуть выше, чем с якорем SFT",
    REFUTED: "награда с якорем EMA при равной KL ниже, чем с якорем SFT",
    ALIKE: "награды с якорями EMA и SFT в среднем неразличимы",
    UNKNOWN: "лучше ли якорь EMA, чем SFT, при равной KL, не сказать",
    NONE: "лучше ли якорь EMA, чем SFT, при равной KL, ещё не вычислено",
}
FOURTH = {
    HOLDS: "в его четвёртом эксперименте награда WARP-модели, как и там, ниже, чем у SFT-модели",
    LITTLE: "в его четвёртом эксперименте награда WARP-модели чуть ниже, чем у SFT-модели",
    REFUTED: "в его четвёртом эксперименте награда WARP-модели, вопреки исходному отчёту, выше, чем у "
    "SFT-модели",
    ALIKE: "в его четвёртом эксперименте награды WARP- и SFT-моделей неразличимы",
    UNKNOWN: "выросла ли награда в его четвёртом эксперименте, по этим обучениям не сказать",
    NONE: "растёт ли награда в его четвёртом эксперименте, ещё не вычислено",
}
LONGER = {
    HOLDS: "при T = 30 награда выше, чем при T = 10",
    LITTLE: "при T = 30 награда чуть выше, чем при T = 10",
    REFUTED: "при T = 30 награда ниже, чем при T = 10",
    ALIKE: "при T = 30 и T = 10 награда неразличима",
    UNKNOWN: "выше ли награда при T = 30, чем при T = 10, не сказать",
    NONE: "выше ли награда при T = 30, чем при T = 10, ещё не вычислено",
}
LONGEST = {
    HOLDS: "при T = 100 — выше, чем при T = 30",
    LITTLE: "при T = 100 — чуть выше, чем при T = 30",
    REFUTED: "при T = 100 — ниже, чем при T = 30",
    ALIKE: "при T = 100 и T = 30 неразличима",
    UNKNOWN: "выше ли при T = 100, чем при T = 30, не сказать",
    NONE: "при T = 100 ещё не вычислена",
}


def headline(found: Sequence[Verdict]) -> list[str]:
    """What a colleague would want to be told, in three sentences."""
    by_name = {v.comparison.name: v for v in found}
    on = by_name["long_run_goes_on"]
    liti, ordinary = (
        _said(by_name[name], by_word, along=True)
        for name, by_word in (
            ("liti_above_trajectory", ABOVE),
            ("liti_above_sft_trajectory", ORDINARY),
        )
    )
    worth, whole, lerp, anchor, fourth, longer, longest = (
        _said(by_name[name], by_word)
        for name, by_word in (
            ("four_against_one", WORTH),
            ("four_iterations_against_one", WHOLE),
            ("slerp_above_lerp_at_equal_kl", BY_LERP),
            ("ema_above_sft", BY_ANCHOR),
            ("fourth_is_worse", FOURTH),
            ("t30_gains", LONGER),
            ("t100_gains", LONGEST),
        )
    )
    further = ""
    if on.word == HOLDS:
        further = f"; при η = 1 награда одного больше ({_told(on)})"
    return [
        f"{worth}{further}; {whole}.",
        f"{liti}; {ordinary}; {lerp}; {anchor}.",
        "**В исходном отчёте слияние, судя по кривым, ничего не усредняло** (seed у запусков был один), а "
        "награда у всех моделей была одной с точностью до 10⁻⁵ и, видимо, не зависела от текста. "
        f"Здесь {fourth}; {longer}, {longest}.",
    ]


def _said(v: Verdict, by_word: Mapping[str, str], along: bool = False) -> str:
    """`along`: with how it changes along the curves, which has where it is another in it."""
    changes = _along(v) if along else ""
    return f"{by_word[v.word]} ({_told(v, unlike=not changes)}){changes}"


def _told(v: Verdict, unlike: bool = True) -> str:
    """Its effect, over which KLs, on how many trainings it rests if not on `USUAL`, the corrected p where
    that alone keeps it from being told, and, if `unlike`, where it is another."""
    if not v.between:
        return v.effect
    kls = f", KL\u00a0{v.kls}\u00a0ната" if v.kls else ""
    many = "" if v.n == f"{USUAL}" else f", {v.trainings}"
    return f"{v.effect}{kls}{many}{v.corrected}{v.unlike if unlike else ''}"


def _along(v: Verdict) -> str:
    """How a difference changes along the curves, means alone; empty where it is known at fewer than two
    KLs."""
    told = [(kl, there.effect_alone.partition(" [")[0]) for kl, there in v.along.items()]
    if len(told) < 2:
        return ""
    (first, begin), (last, end) = told[0], told[-1]
    return f": {begin} при KL {first} {nats(first)}, {end} при {last}"


ADVICE = {  # by the comparison, what came of it -> what it means for who trains
    "liti_above_trajectory": {
        HOLDS: "Если есть ресурсы на дополнительные шаги, лучше обучить дольше и вернуться интерполяцией, "
        "чем остановиться раньше: сама интерполяция почти ничего не стоит, платить приходится за шаги",
        LITTLE: "Обучить дальше и вернуться интерполяцией лишь чуть лучше, чем остановиться раньше",
        ALIKE: "Остановиться раньше или обучить дальше и вернуться интерполяцией — одно и то же",
        REFUTED: "Остановиться раньше лучше, чем обучить дальше и вернуться интерполяцией",
    },
    "four_against_one": {
        HOLDS: "Запуски стоит сливать и на одной машине: фронт выше, чем у одного запуска с тем же числом "
        "шагов",
        LITTLE: "Слитые запуски лишь чуть лучше одного запуска с тем же числом шагов",
        ALIKE: "До KL, которых слияние достигает, слитые запуски по награде заменяют один запуск с тем же "
        "числом шагов: на одной машине выигрыша нет, на нескольких обучение короче",
        REFUTED: "Один запуск с тем же числом шагов лучше слитых; слияние — для тех, у кого машин "
        "несколько, а времени мало",
    },
    "beyond_against_one": {
        HOLDS: "До больших KL слияние можно продлить, взяв η > 1, но там его фронт ниже, чем у длинного "
        "запуска",
        LITTLE: "До больших KL слияние можно продлить, взяв η > 1, но там его фронт чуть ниже, чем у "
        "длинного запуска",
        ALIKE: "До больших KL слияние можно продлить, взяв η > 1: его фронт там тот же, что у длинного "
        "запуска",
        REFUTED: "До больших KL слияние можно продлить, взяв η > 1, и там его фронт выше, чем у длинного "
        "запуска",
    },
    "slerp_above_lerp_at_equal_kl": {
        HOLDS: "Сливать стоит SLERP: LERP ниже и при η больше 1",
        LITTLE: "SLERP лишь чуть лучше, чем LERP с η больше 1",
        ALIKE: "Выбор между SLERP и LERP фронта не меняет (проверено при M = 4): под прямым углом LERP с η "
        "больше 1 лежит на том же фронте",
        REFUTED: "Сливать стоит LERP с η больше 1: SLERP ниже",
    },
    "second_iteration": {
        HOLDS: "Вторая итерация поднимает фронт, но и шагов вдвое больше",
        LITTLE: "Вторая итерация поднимает фронт, но мало, и шагов вдвое больше",
        ALIKE: "Вторая итерация фронта почти не меняет, а шагов вдвое больше",
        REFUTED: "Вторая итерация опускает фронт",
    },
    "second_iteration_for_its_steps": {
        HOLDS: "Шаги лучше разделить на две итерации: фронт выше, чем у стольких же шагов в одной",
        LITTLE: "Шаги чуть лучше разделить на две итерации, чем сделать столько же в одной",
        ALIKE: "Столько же шагов в одной итерации дают тот же фронт, что и в двух",
        REFUTED: "Шаги лучше сделать в одной итерации: фронт выше, чем у двух",
    },
    "ema_above_sft": {
        HOLDS: "Якорь EMA лучше якоря SFT и при равной KL",
        LITTLE: "Якорь EMA и при равной KL лишь чуть лучше якоря SFT",
        ALIKE: "С якорями EMA и SFT при одном β и равной KL награды в среднем неразличимы",
        REFUTED: "При равной KL якорь SFT лучше якоря EMA",
    },
    "less_diverse": {
        HOLDS: "За разнообразием надо следить отдельно от награды: с шага 15 до шага 120 различных пар "
        "слов стало меньше"
    },
    "judge_of_long_run": {
        HOLDS: "Второй судья растёт вместе с наградой (с шага 60 до шага 120), но обмана это не исключает: "
        "независим он не вполне, и высокой его оценка бывает и у выродившегося текста",
        REFUTED: "Дальше шага 60 награде верить нельзя: оценка второго судьи падает",
    },
}


def advice(found: Sequence[Verdict]) -> list[str]:
    """What that means for who trains, as a Markdown list; of what cannot be told, nothing."""
    by_name = {v.comparison.name: v for v in found}
    lines = []
    for name, by_word in ADVICE.items():
        v = by_name[name]
        if said := by_word.get(v.word):
            lines.append(f"- {said} ({_told(v)}; [@study_{v.study.name}]).")
    return lines or ["Ещё ничего: обучений мало."]


def counted(found: Sequence[Verdict]) -> str:
    """How many of the paper's claims, and of the others, hold, do not, cannot be told."""
    others = [v for v in found if v not in of_paper(found)]
    return (
        f"{tally_of_paper(found)}. Остальные: наши, исходного отчёта и других работ "
        f"({len(others)}): {_tally(others)}. Утверждения статьи по вердиктам (номера рисунков — её):"
    )


def tally_of_paper(found: Sequence[Verdict]) -> str:
    """«Утверждения статьи (23): подтверждено 14, …», without a full stop."""
    paper = of_paper(found)
    return f"Утверждения статьи ({len(paper)}): {_tally(paper)}"


def _tally(found: Sequence[Verdict]) -> str:
    n = {word: sum(v.word == word for v in found) for word in SAID}
    little = (
        f" (из них {n[LITTLE]} с интервалом в пределах ±{decimal(SMALL)} балла)"
        if n[LITTLE]
        else ""
    )
    told = [
        f"подтверждено {n[HOLDS] + n[LITTLE]}{little}",
        f"опровергнуто {n[REFUTED]}",
        f"неразличимо {n[ALIKE]}",
        f"нельзя сказать {n[UNKNOWN]}",
    ]
    return ", ".join([*told, *([f"ещё не вычислено {n[NONE]}"] if n[NONE] else [])])


def of_paper(found: Sequence[Verdict]) -> list[Verdict]:
    """Those that the paper makes."""
    return [v for v in found if v.comparison.source.startswith("статья")]


SAID = {
    REFUTED: "Опровергается",
    ALIKE: f"Не подтверждается: неразличимо (в пределах {decimal(SMALL)} балла)",
    UNKNOWN: "Нельзя сказать",
    LITTLE: f"Подтверждается, но мало (весь интервал в пределах ±{decimal(SMALL)} балла)",
    HOLDS: "Подтверждается",
    NONE: "Ещё не вычислено",
}


def sorted_out(found: Sequence[Verdict]) -> list[str]:
    """The paper's claims by what came of them, what did not hold first, as a Markdown list."""
    lines = []
    for word, name in SAID.items():
        of_word = [v for v in of_paper(found) if v.word == word]
        by_study: dict[str, list[str]] = {}
        for v in of_word:
            figure = v.comparison.source.removeprefix("статья, ")
            effect = f"{v.effect}{v.corrected}{v.unlike}; " if word != NONE else ""
            said = f"{lowered(v.comparison.claim)} ({effect}{figure})"
            by_study.setdefault(f"[@study_{v.study.name}]", []).append(said)
        said = "; ".join(f"{', '.join(each)} — {study}" for study, each in by_study.items())
        lines += [f"- **{name}** ({len(of_word)}): {said}."] if of_word else []
    return lines


def glossary() -> pd.DataFrame:
    """What the words of the first screen stand for."""
    words = {
        "запуск": "T шагов обучения с подкреплением, строки 4–10 алгоритма WARP",
        "обучение": "весь алгоритм от SFT-модели; обучения различаются значением seed (часть — ещё и "
        "коммитом и процессором), интервалы — ДИ по обучениям",
        "SFT-модель": "модель до обучения с подкреплением, начало всех запусков",
        "KL": "расхождение Кульбака — Лейблера с SFT-моделью, нат на ответ: как далеко ушла политика; в "
        "KL(π‖sft) ответы пишет политика π, в KL(sft‖π) — SFT-модель",
        "при равной KL": "сравниваются кривые награды по KL, а не отдельные политики",
        "балл": "единица шкалы от −4 до 4, по которой люди оценивали предложения из отзывов; в тех же "
        "баллах награда",
        "EMA": "экспоненциальное скользящее среднее весов политики",
        "якорь": "политика, за уход от которой берётся KL-штраф: EMA запуска, как в статье, или SFT-модель",
        "SLERP, LERP": "сферическое и обычное среднее векторов задач — того, что запуски изменили в весах",
        "LITI, η": "интерполяция к начальным весам; η — пройденная доля пути, при η > 1 — экстраполяция; "
        "между итерациями η одно на всё обучение, на фронте пробегает ряд значений",
        "фронт": "награда и KL политик при всех η; траектория — политик по шагам запуска",
        "T, M, I": "число шагов в запуске, запусков в слиянии, итераций",
        "λ": "вес второго запуска в слиянии двух",
        "β, μ, lr": "коэффициент при KL-штрафе; скорость EMA; скорость обучения (шаг Adam)",
        "бейзлайн, прогрев": "бейзлайн — средняя награда остальных ответов батча, которая вычитается из "
        "награды (leave-one-out); прогрев — линейный рост lr на первых шагах",
        "эксперимент, исследование": "эксперимент — настройка исходного отчёта, обученная для этой "
        "страницы один раз; исследование — вопрос, на который отвечают несколько обучений",
        "seed": "начальное значение генератора случайных чисел",
        "ДИ, p, п. п.": "доверительный интервал; вероятность получить такую же или большую разность, если "
        "на деле её нет; процентный пункт",
        "неразличимо, нельзя сказать": "p не меньше 0,05, и ДИ разности наград весь в пределах ±0,1 балла "
        "(неразличимо) или выходит за них (нельзя сказать); у других величин такого допуска нет",
        "основное сравнение, •": "одно из выбранных заранее, на которых держатся выводы; для него нужно "
        "пять обучений",
    }
    return pd.DataFrame(words.items(), columns=["Слово", "Что значит"])
