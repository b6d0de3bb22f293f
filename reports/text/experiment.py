"""Tables and sentences about one experiment, from what its run folder holds.

A conclusion is computed: it says what the numbers and their errors allow, and no more. What follows
from the experiment's construction alone (runs that share a seed are one run) is said as that.

`params` are the flat parameters of params.yaml, `summary` is summary.json, `metrics` are the rows
of metrics.jsonl, `angles` is the summary's: for each iteration, group -> M×M degrees.
"""

import html
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reports.text.words import estimate_text, number, percent, power_text

Rows = Sequence[Mapping[str, Any]]

MOVED_NATS = 0.01  # a smaller KL hardly is a movement: 1 % of a nat in a whole completion
STILL_NATS = 1e-4
FAR_NATS = 1.25  # a token that a completion may have
SMALL_ANGLE = 0.1  # degrees: below it two directions are one
ALMOST = 0.1  # of a curve's range: two curves closer than this almost coincide
REPETITION_COLLAPSED = 0.5  # share of a text's words that it had already used
DISTINCT_COLLAPSED = 0.5  # share of different completions
EMPTY_COLLAPSED = 0.5  # share of completions without a word
MOST = 0.5  # of a training batch: more equal or empty completions than that are told
# Against θ_sft's text: so many times more repetition, or such a part of its different pairs.
REPETITION_POORER, PAIRS_POORER = 2.0, 0.8
REPETITION_USUAL = 0.1  # less than that is no repetition to speak of

CONTROL = "_control"  # behind an experiment's name: the same with a seed for each run
ONE_TRAINING = "ошибка оценки, одно обучение"

QUANTITIES = {  # of summary.json: name and unit
    "sft_reward": ("Средняя награда SFT-модели", "баллы"),
    "warp_reward": ("Средняя награда WARP-модели", "баллы"),
    "reward_difference": ("Разность наград WARP − SFT (попарно)", "баллы"),
    "kl_sft_warp": ("KL(sft‖warp)", "нат на ответ"),
    "kl_warp_sft": ("KL(warp‖sft)", "нат на ответ"),
}
TEXT_SHARES = {  # of the summary's text: in the table, in a sentence
    "repetition": ("Повторённых слов, %", "повторённых слов"),
    "distinct": ("Различных ответов, %", "различных ответов"),
    "distinct_pairs": ("Различных пар соседних слов, %", "различных пар соседних слов"),
    "empty": ("Пустых ответов, %", "пустых ответов"),
}


# Tables


def results_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The four quantities and the paired difference: mean ± standard error, n."""
    rows = [
        (f"{name}, {unit}", estimate_text(summary[key]), summary[key]["n"])
        for key, (name, unit) in QUANTITIES.items()
    ]
    return pd.DataFrame(rows, columns=["Величина", "Среднее ± ст. ошибка", "n"])


def text_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """What the completions look like: length, repetition, diversity, of both policies."""
    sft, warp = summary["text"]["sft"], summary["text"]["warp"]
    rows = [("Слов в ответе", number(sft["words"], 1), number(warp["words"], 1))]
    for key, (name, _) in TEXT_SHARES.items():
        rows.append((name, percent(sft[key]), percent(warp[key])))
    return pd.DataFrame(rows, columns=["Свойство текста", "SFT", "WARP"])


def parameters_table(params: Mapping[str, Any]) -> pd.DataFrame:
    """The parameters that the reader wants to see, with the paper's letters."""
    rows = {
        "Итераций I": params["iterations"],
        "Запусков в итерации M": params["runs"],
        "Шагов в запуске T": params["steps"],
        "Коэффициент при KL, β": f"{params['beta']:g}",
        "Скорость EMA, μ": f"{params['mu']:g}",
        "Доля пути LITI, η": f"{params['eta']:g}",
        "Adam, lr": power_text(params["lr"]),
        "Линейный прогрев, шагов": params["warmup_steps"] or "нет",
        "Размер батча": params["batch_size"],
        "Новых токенов, не более": params["max_new_tokens"],
        "Бейзлайн": {"none": "нет", "loo": "leave-one-out"}[params["baseline"]],
        "Якорь": {"ema": "EMA политики", "sft": "SFT-модель"}[params["anchor"]],
        "Seed запусков": "один на всех" if params["shared_run_seed"] else "у каждого свой",
        "Точность обучения": params["precision"].replace("fp32", "float32"),
    }
    if params["max_kl"]:
        rows["Остановка запуска при KL к якорю больше, нат"] = f"{params['max_kl']:g}"
    texts = [(name, str(value).replace(".", ",")) for name, value in rows.items()]
    return pd.DataFrame(texts, columns=["Параметр", "Значение"])


def samples_html(samples: Rows, count: int = 5) -> str:
    """Completions of both policies side by side, as text: nothing in them becomes markup.

    Where both wrote the same, it stands once.
    """

    def cells(sample: Mapping[str, Any], whose: str) -> str:
        text = f"<b>{html.escape(sample['prompt'])}</b>{html.escape(sample[whose])}"
        if whose == "warp" and sample["warp"] == sample["sft"]:
            text = '<span lang="ru">тот же ответ</span>'
        reward = number(sample[f"{whose}_reward"], 0.1)
        return f'<td lang="en">{text}</td><td class="n">{reward}</td>'

    rows = "".join(f"<tr>{cells(s, 'sft')}{cells(s, 'warp')}</tr>\n" for s in samples[:count])
    names = ("SFT-модель", "Награда", "WARP-модель", "Награда")
    kinds = {"Награда": ' class="n"'}
    head = "".join(f'<th scope="col"{kinds.get(name, "")}>{name}</th>' for name in names)
    return f'<table class="samples"><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>'


def chosen_samples(samples: Rows, each: int = 2) -> Rows:
    """By a rule, failures too: where WARP's reward gained most, around the median, and lost most."""
    ordered = sorted(samples, key=lambda s: s["warp_reward"] - s["sft_reward"])
    middle = (len(ordered) - each) // 2
    return [*ordered[::-1][:each], *ordered[middle : middle + each], *ordered[:each]]


def all_alike(samples: Rows) -> bool:
    """Whether both policies wrote the same to every prompt."""
    return all(sample["sft"] == sample["warp"] for sample in samples)


# Angles between task vectors


def angle_rows(angles: Rows) -> pd.DataFrame:
    """Angles over all groups and pairs of runs, a row an iteration."""
    rows = []
    for i, groups in enumerate(angles, start=1):
        known = _known_angles(groups)
        shown = (min(known), sum(known) / len(known), max(known)) if known else ()
        texts = [number(angle, 1) for angle in shown] or ["—"] * 3
        rows.append((i, len(groups), *texts))
    return pd.DataFrame(
        rows,
        columns=["Итерация", "Групп тензоров", "Наименьший угол, °", "Средний, °", "Наибольший, °"],
    )


def _known_angles(groups: Mapping[str, Any]) -> list[float]:
    """Of all groups and pairs of runs, degrees; without those where a run did not move."""
    pairs = (m[a][b] for m in groups.values() for a in range(len(m)) for b in range(a))
    return [angle for angle in pairs if angle is not None]


def mean_angle(groups: Mapping[str, Any]) -> float | None:
    """Mean angle between runs over all groups and pairs, degrees; None where nothing moved."""
    known = _known_angles(groups)
    return sum(known) / len(known) if known else None


def runs_differ(angles: Rows) -> bool:
    """Whether the task vectors of any iteration have an angle between them to speak of."""
    return any((mean_angle(groups) or 0.0) > SMALL_ANGLE for groups in angles)


def angle_sentence(angles: Rows, shared_run_seed: bool) -> str:
    """What the angles mean for the merge."""
    known = [mean for mean in map(mean_angle, angles) if mean is not None]
    if not known:
        return "Угла нет: запуск один, или запуски не сдвинулись."
    if not runs_differ(angles):
        why = (
            "Seed у запусков общий, и вектор задачи у них один по построению"
            if shared_run_seed
            else "Векторы задач запусков совпадают по направлению"
        )
        return f"{why}: SLERP здесь равен обычному среднему, и слияние ничего не усредняет."
    ends = dict.fromkeys(f"{number(f(known), 1)}°" for f in (min, max))
    through = " по итерациям" if len(ends) > 1 else ""
    return (
        f"Средний угол по группам тензоров — {'–'.join(ends)}{through}; в статье углы близки к 90°."
    )


# Sentences


def label(name: str) -> str:
    """Short Russian name of an experiment of the report, «4, контроль»; any other stays what it is."""
    short = name.removeprefix("experiment_")
    return f"{short.removesuffix(CONTROL)}, контроль" if short.endswith(CONTROL) else short


def conclusion(summary: Mapping[str, Any], metrics: Rows, params: Mapping[str, Any]) -> list[str]:
    """Russian sentences: did it move, what the curves say, did the reward change, is it text."""
    return [
        movement(summary, params),
        *health(metrics, params),
        *_coincidence(metrics, params["shared_run_seed"]),
        reward_sentence(summary),
        text_sentence(summary),
        _next_step(summary, metrics, params),
    ]


def health(metrics: Rows, params: Mapping[str, Any]) -> list[str]:
    """A sentence for each run that max_kl ended, or most of whose answers were equal or empty; of runs
    that share a seed, for the first."""
    sentences = []
    shown = [row for row in metrics if row["run"] == 1 or not params["shared_run_seed"]]
    for (i, m), rows in sorted(_grouped(shown, "iteration", "run").items()):
        who = f"Запуск {m} итерации {i}"
        for stop in _stops(rows):
            updated = stop["step"] > 1
            left = (
                "взяты веса до последнего обновления" if updated else "ни одного обновления не было"
            )
            sentences.append(
                f"{who} остановлен на шаге {stop['step']}: KL к якорю "
                f"{number(stop['kl_anchor'])} ната больше max_kl = {number(params['max_kl'])}; "
                f"{left}."
            )
        for column, what in (("same", "одинаковы"), ("empty", "пусты")):
            bad = [row for row in rows if row[column] > MOST]
            if bad and params["batch_size"] > 1:
                sentences.append(
                    f"{who}: на шаге {bad[0]['step']} впервые больше половины ответов батча {what} "
                    f"({percent(bad[0][column])}\u00a0%), политика вырождается."
                )
    return sentences


def _grouped(metrics: Rows, *columns: str) -> dict[tuple[int, ...], Rows]:
    """The rows by what they hold in these columns."""
    groups = defaultdict(list)
    for row in metrics:
        groups[tuple(row[column] for column in columns)].append(row)
    return dict(groups)


def _stops(metrics: Rows) -> Rows:
    """The steps at which max_kl ended a run; the last of its T steps may be one."""
    return [row for row in metrics if row.get("stopped")]


def has_moved(summary: Mapping[str, Any]) -> bool:
    """Whether the KL says that the policy is another one than θ_sft."""
    return _larger_kl(summary) >= MOVED_NATS


def is_far(summary: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether the policy is so far from θ_sft that training has all but left it behind."""
    return _larger_kl(summary) > FAR_NATS * params["max_new_tokens"]


def _larger_kl(summary: Mapping[str, Any]) -> float:
    return max(summary["kl_sft_warp"]["mean"], summary["kl_warp_sft"]["mean"])


def has_collapsed(summary: Mapping[str, Any]) -> bool:
    """Whether the completions are repetitive, all the same, or empty, and θ_sft's are not."""
    sft, warp = summary["text"]["sft"], summary["text"]["warp"]
    return (
        warp["repetition"] > REPETITION_COLLAPSED >= sft["repetition"]
        or warp["distinct"] < DISTINCT_COLLAPSED <= sft["distinct"]
        or warp["empty"] > EMPTY_COLLAPSED >= sft["empty"]
    )


def is_poorer(summary: Mapping[str, Any]) -> bool:
    """Whether the completions repeat themselves or one another far more than θ_sft's."""
    sft, warp = summary["text"]["sft"], summary["text"]["warp"]
    return (
        warp["repetition"] > max(REPETITION_POORER * sft["repetition"], REPETITION_USUAL)
        or warp["distinct_pairs"] < PAIRS_POORER * sft["distinct_pairs"]
    )


def kl_text(summary: Mapping[str, Any]) -> str:
    """Both KLs of an experiment with their errors."""
    return (
        f"KL(sft‖warp) = {estimate_text(summary['kl_sft_warp'])}, "
        f"KL(warp‖sft) = {estimate_text(summary['kl_warp_sft'])} (нат на ответ)"
    )


def movement(summary: Mapping[str, Any], params: Mapping[str, Any]) -> str:
    """How far the policy is from θ_sft, in a sentence."""
    kl = _larger_kl(summary)
    if kl < STILL_NATS:
        how = "практически не сдвинулась"
    elif kl < MOVED_NATS:
        how = "сдвинулась едва заметно"
    elif is_far(summary, params):
        how = "ушла от SFT-модели очень далеко"
    else:
        how = "сдвинулась"
    return f"Модель {how}: {kl_text(summary)}."


def _coincidence(metrics: Rows, shared_run_seed: bool) -> list[str]:
    """What the curves of an iteration's runs say, and with one seed those of the iterations."""
    sentences = []
    if any(row["run"] > 1 for row in metrics):
        gap = _largest_gap(metrics, "iteration", "step")
        if shared_run_seed:
            sentences.append(
                "Seed у запусков общий, поэтому запуски одной итерации — один и тот же расчёт, и "
                "кривая у них одна: так устроен эксперимент, и о методе это ничего не говорит."
            )
        elif gap == 0:
            sentences.append(
                "Кривые запусков внутри каждой итерации совпали полностью, хотя seed у каждого "
                "свой: награда, похоже, не зависит от ответа."
            )
        else:
            sentences.append(
                "У каждого запуска свой seed, а значит, свои промпты и ответы, поэтому кривые "
                "внутри итерации различаются при любом lr (наибольшее расхождение, "
                f"баллы: {number(gap, gap)}). Разошлись ли веса запусков, показывает угол между "
                "векторами задач."
            )
    if shared_run_seed and any(row["iteration"] > 1 for row in metrics):
        of_one_run = [row for row in metrics if row["run"] == 1]
        gap = _largest_gap(of_one_run, "step")
        spread = _range([row for row in of_one_run if row["iteration"] == 1])
        how = "почти совпали" if gap <= ALMOST * spread else "различаются"
        sentences.append(
            f"Кривые разных итераций {how}: наибольшее расхождение {number(gap, gap)} при "
            f"размахе кривой {number(spread, spread)}, в баллах."
        )
    return sentences


def _largest_gap(metrics: Rows, *columns: str) -> float:
    """Between the objectives of rows that agree in these columns."""
    return max(map(_range, _grouped(metrics, *columns).values()))


def _range(metrics: Rows) -> float:
    """Greatest minus least objective."""
    return float(np.ptp([row["objective"] for row in metrics]))


def reward_sentence(summary: Mapping[str, Any]) -> str:
    """The paired difference; of other trainings its error says nothing, so nothing is concluded."""
    difference = estimate_text(summary["reward_difference"])
    if not summary["reward_difference"]["stderr"] and not summary["reward_difference"]["mean"]:
        return "Награда не изменилась: на каждом промпте она у обеих политик одна и та же."
    return f"Разность наград {difference} балла ({ONE_TRAINING})."


def text_sentence(summary: Mapping[str, Any]) -> str:
    """Whether the completions still are text, with the figures that say so."""
    sft, warp = summary["text"]["sft"], summary["text"]["warp"]
    facts = [f"слов в ответе {number(warp['words'], 1)} (у SFT-модели {number(sft['words'], 1)})"]
    for key, (_, name) in TEXT_SHARES.items():
        share, before = percent(warp[key]), percent(sft[key])
        if share != before:
            facts.append(f"{name} {share}\u00a0% (у SFT-модели {before}\u00a0%)")
    if has_collapsed(summary):
        verdict = "Текст выродился, награде здесь верить нельзя"
    elif is_poorer(summary):
        verdict = "Текст стал заметно однообразнее, награда говорит здесь не всё"
    else:
        verdict = "Вырождения и заметного однообразия в тексте не видно"
    return f"{verdict}: {', '.join(facts)}."


def _next_step(summary: Mapping[str, Any], metrics: Rows, params: Mapping[str, Any]) -> str:
    steps, warmup_steps = params["steps"], params["warmup_steps"]
    if has_collapsed(summary) or is_poorer(summary) or is_far(summary, params):
        return "lr слишком велик, его нужно уменьшить."
    if _stops(metrics):
        return "Обучение остановил max_kl; нужен меньший lr или больший предел."
    if not has_moved(summary) and warmup_steps > steps:
        return (
            "Прогрев длиннее запуска, lr дошёл лишь до "
            f"{number(100 * steps / warmup_steps, 10)}\u00a0% заданного; следующий шаг — тот же lr "
            "без прогрева."
        )
    if not has_moved(summary):
        return "lr слишком мал, чтобы за T шагов что-то выучить."
    return "Текст не выродился; о награде по одному обучению судить нельзя, нужно несколько."
