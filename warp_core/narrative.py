"""Tables and sentences about one experiment, front or reward model, in Russian.

A conclusion is computed: it says what the numbers and their errors allow, and no more.
"""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from warp_core.config import WarpConfig

MOVED_NATS = 0.01  # a smaller KL hardly is a movement: 1 % of a nat in a whole completion
STILL_NATS = 1e-4
FAR_NATS = 30.0  # more than a nat a token of a completion of 24
SIGNIFICANT = 2.0  # standard errors
SMALL_ANGLE = 0.1  # degrees: below it two directions are one
ALMOST = 0.1  # of a curve's range: two curves closer than this almost coincide
REPETITION_COLLAPSED = 0.5  # share of a text's words that it had already used
DISTINCT_COLLAPSED = 0.5  # share of different completions
EMPTY_COLLAPSED = 0.5  # share of completions without a word
MOST = 0.5  # of a training batch: more equal or empty completions than that are told
# Against θ_sft's text: so many times more repetition, or so much smaller a share of different pairs.
REPETITION_POORER, PAIRS_POORER = 2.0, 0.8
REPETITION_USUAL = 0.1  # less than that is no repetition to speak of

SMALLEST = 1e-4  # a smaller number or error is written with a power of ten
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
PLUS_MINUS = "\u00a0±\u00a0"  # with no-break spaces

QUANTITIES = {
    "sft_reward": "Средняя награда SFT-модели, баллы",
    "warp_reward": "Средняя награда WARP-модели, баллы",
    "reward_difference": "Разность наград WARP − SFT (попарно), баллы",
    "kl_sft_warp": "KL(sft‖warp), нат на ответ",
    "kl_warp_sft": "KL(warp‖sft), нат на ответ",
}


def number(value: float, error: float | None = None) -> str:
    """A number with as many places as its error allows (two digits of it); decimal comma."""
    if error is None and 0 < abs(value) < SMALLEST:
        exponent = math.floor(math.log10(abs(value)))
        return f"{number(value / 10**exponent, 1)}·10{str(exponent).translate(SUPERSCRIPTS)}"
    if error is None:
        places = 2 if abs(value) >= 1 else 4
    elif error == 0 or not math.isfinite(error):
        places = 0 if value == 0 else 4
    else:
        places = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{places}f}".replace("-", "−").replace(".", ",")


def percent(share: float) -> str:
    """A share from 0 to 1 in percent, without the sign."""
    return number(100 * share, 1)


def estimate_text(estimate: Mapping[str, float]) -> str:
    """«1,86 ± 0,15» or «(1,81 ± 0,17)·10⁻⁶»: mean and standard error."""
    mean, error = estimate["mean"], estimate["stderr"]
    if 0 < error < SMALLEST and mean:
        exponent = math.floor(math.log10(abs(mean)))
        mean, error = mean / 10**exponent, error / 10**exponent
        power = str(exponent).translate(SUPERSCRIPTS)
        return f"({number(mean, error)}{PLUS_MINUS}{number(error, error)})·10{power}"
    return f"{number(mean, error)}{PLUS_MINUS}{number(error, error)}"


def results_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The four quantities and the paired difference: mean ± standard error, n."""
    rows = [
        (name, estimate_text(summary[key]), summary[key]["n"]) for key, name in QUANTITIES.items()
    ]
    return pd.DataFrame(rows, columns=["Величина", "Среднее ± ст. ошибка", "n"])


def text_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """What the completions look like: length, repetition, diversity, of both policies."""
    sft, warp = summary["text"]["sft"], summary["text"]["warp"]
    shares = {"repetition": "Повторённых слов, %", "distinct": "Различных ответов, %",
              "distinct_pairs": "Различных пар соседних слов, %", "empty": "Пустых ответов, %"}  # fmt: skip
    rows = [("Слов в ответе", number(sft["words"], 1), number(warp["words"], 1))]
    rows += [(name, percent(sft[key]), percent(warp[key])) for key, name in shares.items()]
    return pd.DataFrame(rows, columns=["Свойство текста", "SFT", "WARP"])


def parameters_table(config: WarpConfig) -> pd.DataFrame:
    """The parameters that the reader wants to see, with the paper's letters."""
    c = config
    rows = [
        ("Итераций I", c.iterations), ("Запусков в итерации M", c.runs),
        ("Шагов в запуске T", c.steps), ("Вес KL β", f"{c.beta:g}"), ("Скорость якоря μ", f"{c.mu:g}"),
        ("LITI η", f"{c.eta:g}"), ("Adam, lr", np.format_float_scientific(c.lr, trim="-", exp_digits=1)),
        ("Линейный прогрев, шагов", c.warmup_steps or "нет"), ("Размер батча", c.batch_size),
        ("Новых токенов, не более", c.max_new_tokens),
        ("Базовая линия", {"none": "нет", "loo": "leave-one-out"}[c.baseline]),
        ("Якорь", {"ema": "EMA политики", "sft": "SFT-модель"}[c.anchor]),
        ("Зерно запусков", "одно на всех" if c.shared_run_seed else "у каждого своё"),
        ("Точность обучения", c.precision),
        *([("Остановка запуска при KL к якорю больше, нат", f"{c.max_kl:g}")] if c.max_kl else []),
    ]  # fmt: skip
    return pd.DataFrame(
        [(k, str(v).replace(".", ",")) for k, v in rows], columns=["Параметр", "Значение"]
    )


def samples_html(samples: Sequence[Mapping[str, Any]], count: int = 5) -> str:
    """Completions of both policies side by side, as text: nothing in them becomes markup."""

    def cell(prompt: str, completion: str, reward: float) -> str:
        return (f"<td><b>{html.escape(prompt)}</b>{html.escape(completion)}</td>"
                f"<td>{number(reward, 0.1)}</td>")  # fmt: skip

    rows = "".join(
        f"<tr>{cell(s['prompt'], s['sft'], s['sft_reward'])}"
        f"{cell(s['prompt'], s['warp'], s['warp_reward'])}</tr>\n"
        for s in samples[:count]
    )
    head = "<th>SFT-модель</th><th>Награда</th><th>WARP-модель</th><th>Награда</th>"
    return f'<table class="samples"><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table>'


def angle_rows(angles: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Angles between task vectors over all groups and pairs of runs, a row an iteration."""
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


def conclusion(summary: Mapping[str, Any], metrics: pd.DataFrame, config: WarpConfig) -> list[str]:
    """Russian sentences: did it move, did the curves coincide, did the reward change, is it text."""
    return [
        movement(summary), *health(metrics, config), *_coincidence(metrics, config),
        reward_sentence(summary), _collapse(summary),
        _next_step(summary, config, _stopped(metrics, config)),
    ]  # fmt: skip


def health(metrics: pd.DataFrame, config: WarpConfig) -> list[str]:
    """A sentence for each run that max_kl ended, or that answered most prompts alike or not at all."""
    sentences, runs = [], dict[tuple[int, int], list[dict[str, Any]]]()
    for row in metrics.to_dict("records"):
        runs.setdefault((row["iteration"], row["run"]), []).append(row)
    for (i, m), rows in sorted(runs.items()):
        if rows[-1].get("stopped") is True:
            kl, limit = number(rows[-1]["kl_anchor"]), number(config.max_kl)
            sentences.append(
                f"Запуск {m} итерации {i} остановлен на шаге {rows[-1]['step']}: KL к якорю {kl} нат "
                f"больше max_kl = {limit}; взяты веса до последнего обновления."
            )
        for column, what in (("same", "ответы одинаковы"), ("empty", "ответы пусты")):
            bad = [row for row in rows if row[column] > MOST]
            if bad and config.batch_size > 1:
                share = percent(bad[0][column])
                sentences.append(f"Запуск {m} итерации {i}: с шага {bad[0]['step']} {what} у "
                                 f"{share}\u00a0% батча, политика вырождается.")  # fmt: skip
    return sentences


def _stopped(metrics: pd.DataFrame, config: WarpConfig) -> bool:
    """Whether max_kl ended a run."""
    return len(metrics) < config.iterations * config.runs * config.steps


def has_moved(summary: Mapping[str, Any]) -> bool:
    """Whether the KL says that the policy is another one than θ_sft."""
    return _larger_kl(summary) >= MOVED_NATS


def _larger_kl(summary: Mapping[str, Any]) -> float:
    return max(summary["kl_sft_warp"]["mean"], summary["kl_warp_sft"]["mean"])


def has_collapsed(summary: Mapping[str, Any]) -> bool:
    """Whether the completions are repetitive, all the same, or empty."""
    text = summary["text"]["warp"]
    return (
        text["repetition"] > REPETITION_COLLAPSED
        or text["distinct"] < DISTINCT_COLLAPSED
        or text["empty"] > EMPTY_COLLAPSED
    )


def is_poorer(summary: Mapping[str, Any]) -> bool:
    """Whether the completions repeat themselves or one another far more than θ_sft's."""
    sft, warp = summary["text"]["sft"], summary["text"]["warp"]
    return (
        warp["repetition"] > max(REPETITION_POORER * sft["repetition"], REPETITION_USUAL)
        or warp["distinct_pairs"] < PAIRS_POORER * sft["distinct_pairs"]
    )


def reward_change(summary: Mapping[str, Any]) -> int:
    """1 or −1 where the paired difference is beyond two standard errors, else 0."""
    difference = summary["reward_difference"]
    if abs(difference["mean"]) <= SIGNIFICANT * difference["stderr"]:
        return 0
    return 1 if difference["mean"] > 0 else -1


def kl_text(summary: Mapping[str, Any]) -> str:
    """Both KLs of an experiment with their errors."""
    return (f"KL(sft‖warp) = {estimate_text(summary['kl_sft_warp'])}, "
            f"KL(warp‖sft) = {estimate_text(summary['kl_warp_sft'])} нат на ответ")  # fmt: skip


def movement(summary: Mapping[str, Any]) -> str:
    """How far the policy is from θ_sft, in a sentence."""
    kl = _larger_kl(summary)
    if kl < STILL_NATS:
        how = "практически не сдвинулась"
    elif kl < MOVED_NATS:
        how = "сдвинулась едва заметно"
    elif kl > FAR_NATS:
        how = "ушла от SFT-модели очень далеко"
    else:
        how = "сдвинулась"
    return f"Модель {how}: {kl_text(summary)}."


def _coincidence(metrics: pd.DataFrame, config: WarpConfig) -> list[str]:
    if _stopped(metrics, config):
        return []
    curves = metrics.sort_values(["iteration", "run", "step"])["objective"].to_numpy()
    curves = curves.reshape(config.iterations, config.runs, config.steps)  # (I, M, T)
    sentences = []
    if config.runs > 1:
        gap = float(np.ptp(curves, axis=1).max())
        if config.shared_run_seed:
            sentences.append(
                "Зерно у запусков одно, поэтому это один и тот же расчёт: он выполнен один раз и записан "
                "для каждого из них, кривые внутри итерации совпадают полностью."
            )
        elif gap == 0:
            sentences.append("Кривые запусков внутри каждой итерации совпали полностью.")
        else:
            sentences.append(
                "Кривые запусков внутри итерации различаются, наибольшее расхождение "
                f"{number(gap, gap)} балла: у каждого запуска своё зерно."
            )
    if config.iterations > 1 and config.shared_run_seed:
        gap = float(np.ptp(curves[:, 0], axis=0).max())
        spread = float(np.ptp(curves[0, 0]))
        how = "почти совпали" if gap <= ALMOST * spread else "различаются"
        sentences.append(
            f"Кривые разных итераций {how}: наибольшее расхождение {number(gap, gap)} балла при размахе "
            f"{number(spread, spread)} балла вдоль кривой."
        )
    return sentences


def reward_sentence(summary: Mapping[str, Any]) -> str:
    """Whether the reward changed by more than two errors of the paired difference."""
    difference = estimate_text(summary["reward_difference"])
    direction = reward_change(summary)
    if not summary["reward_difference"]["stderr"] and not summary["reward_difference"]["mean"]:
        return "Награда не изменилась: на каждом промпте она у обеих политик одна и та же."
    if direction == 0:
        return f"Награда не изменилась в пределах двух ошибок: разность {difference} балла."
    verb = "выросла" if direction > 0 else "упала"
    return f"Награда {verb} больше чем на две ошибки: разность {difference} балла."


def _collapse(summary: Mapping[str, Any]) -> str:
    sft, warp = summary["text"]["sft"], summary["text"]["warp"]
    shares = {"repetition": "повторённых слов", "distinct": "различных ответов",
              "distinct_pairs": "различных пар соседних слов"}  # fmt: skip
    facts = ", ".join([
        f"слов в ответе {number(warp['words'], 1)} (у SFT-модели {number(sft['words'], 1)})",
        *(f"{name} {percent(warp[key])}\u00a0% (у SFT-модели {percent(sft[key])}\u00a0%)"
          for key, name in shares.items()),
    ])  # fmt: skip
    if has_collapsed(summary):
        return f"Текст выродился, награде здесь верить нельзя: {facts}."
    if is_poorer(summary):
        return f"Текст стал заметно однообразнее, награда говорит здесь не всё: {facts}."
    return f"Текст не выродился: {facts}."


def _next_step(summary: Mapping[str, Any], config: WarpConfig, stopped: bool) -> str:
    if has_collapsed(summary) or is_poorer(summary) or _larger_kl(summary) > FAR_NATS:
        return "Вывод: шаг слишком велик, lr нужно уменьшить."
    if stopped:
        return "Вывод: обучение остановил max_kl; нужен меньший lr или больший предел."
    if not has_moved(summary) and config.warmup_steps > config.steps:
        part = number(100 * config.steps / config.warmup_steps, 10)
        return (f"Вывод: прогрев длиннее запуска, lr дошёл лишь до {part}\u00a0% заданного; "
                "следующий шаг – тот же lr без прогрева.")  # fmt: skip
    if not has_moved(summary):
        return "Вывод: шаг слишком мал, чтобы за T шагов что-то выучить; нужен больший lr."
    if reward_change(summary) == 0:
        return "Вывод: сдвиг есть, но на награде он не виден; нужен больший шаг или больше шагов."
    if reward_change(summary) < 0:
        return "Вывод: сдвиг есть, но в худшую сторону; нужно менять шаг или снижать шум градиента."
    return "Вывод: обучение идёт, текст цел; следующий шаг – больше T с прогревом до этого lr."


def mean_angle(groups: Mapping[str, Any]) -> float | None:
    """Mean angle between runs over all groups and pairs, degrees; None where nothing moved."""
    known = _known_angles(groups)
    return sum(known) / len(known) if known else None


def runs_differ(angles: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the task vectors of any iteration have an angle between them to speak of."""
    return any((mean_angle(groups) or 0.0) > SMALL_ANGLE for groups in angles)


def angle_sentence(angles: Sequence[Mapping[str, Any]]) -> str:
    """What the angles mean for the merge."""
    means = [mean_angle(groups) for groups in angles]
    known = [m for m in means if m is not None]
    if not known:
        return "Угла нет: запуск один, или запуски не сдвинулись."
    if not runs_differ(angles):
        return (
            "Векторы задач запусков совпадают по направлению: SLERP здесь равен обычному среднему, "
            "и слияние ничего не усредняет."
        )
    return (
        f"Средний угол по группам тензоров – от {number(min(known), 1)}° до {number(max(known), 1)}° "
        "по итерациям; в статье углы близки к 90°."
    )


def eta_text(eta: float) -> str:
    """«η = 0,5», which does not break over lines."""
    return f"η\u00a0=\u00a0{eta:g}".replace(".", ",")


def front_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """The points of the front and the RL runs: reward, its gain over θ_sft, and KL, with errors."""
    rows = [(eta_text(p["eta"]), p) for p in summary["front"]]
    rows += [(f"запуск {p['run']}", p) for p in summary["front_runs"]]
    return pd.DataFrame(
        [(name, *(estimate_text(p[key]) for key in ("reward", "gain", "kl")), p["kl"]["n"])
         for name, p in rows],
        columns=["Точка", "Награда, баллы", "Прирост к SFT-модели (попарно), баллы",
                 "KL(π‖sft), нат на ответ", "n"],
    )  # fmt: skip


def front_conclusion(summary: Mapping[str, Any]) -> list[str]:
    """Which η pays, whether KL grows with η, and how the RL runs stand to the front."""
    front, runs = summary["front"], summary["front_runs"]
    best = max(front, key=lambda p: p["reward"]["mean"])
    end = front[-1]
    grows = all(a["kl"]["mean"] <= b["kl"]["mean"] for a, b in itertools.pairwise(front))
    sentences = [
        f"KL {'растёт с η' if grows else 'с η растёт не всюду'} и при {eta_text(end['eta'])} равна "
        f"{estimate_text(end['kl'])} нат на ответ. Наибольшая средняя награда "
        f"{estimate_text(best['reward'])} – при {eta_text(best['eta'])}.",
        f"От SFT-модели до {eta_text(end['eta'])} награда меняется на {estimate_text(end['gain'])} балла"
        f"{_doubt(end['gain'])}.",
    ]
    same = all(p["reward"] == runs[0]["reward"] and p["kl"] == runs[0]["kl"] for p in runs[1:])
    if same and len(runs) > 1:
        return [*sentences, "Точки запусков совпадают друг с другом: при общем зерне это одна и та же "
                "политика, и слияние здесь ничего не усредняет."]  # fmt: skip
    for run in runs:
        above = run["front_above"]
        sentences.append(
            f"Запуск {run['run']}: награда фронта при том же KL минус его награда – "
            f"{estimate_text(above)} балла{_doubt(above)}."
            if above
            else f"Запуск {run['run']}: его KL лежит за концами фронта, сравнить награды нельзя."
        )
    return sentences


def _doubt(difference: Mapping[str, float]) -> str:
    sure = abs(difference["mean"]) > SIGNIFICANT * difference["stderr"]
    return "" if sure else ", это в пределах двух ошибок"


def reward_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Held-out quality of the reward model."""
    names = {
        "accuracy": "Доля верных пар (оценки различаются больше чем на 0,5 балла)",
        "accuracy_all_pairs": "Доля верных пар (все пары)",
        "correlation": "Корреляция с оценками людей", "rmse": "Среднеквадратичная ошибка, баллы",
    }  # fmt: skip
    rows = [(name, estimate_text(summary[k]), summary[k]["n"]) for k, name in names.items()]
    return pd.DataFrame(rows, columns=["Величина", "Значение ± ст. ошибка", "n"])


def reward_examples(held_out: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """The held-out texts of lowest, middle and highest score."""
    ordered = held_out.sort_values("score")
    middle = len(ordered) // 2
    rows = pd.concat([ordered[:count], ordered[middle : middle + count], ordered[-count:]])
    return pd.DataFrame({
        "Предложение": rows["text"],
        "Оценка людей": [number(v, 0.1) for v in rows["rating"]],
        "Награда": [number(v, 0.1) for v in rows["score"]],
    })  # fmt: skip


def table_html(table: pd.DataFrame) -> str:
    """The table as HTML; what its cells hold is shown as text."""
    return table.to_html(index=False, border=0, escape=True)
