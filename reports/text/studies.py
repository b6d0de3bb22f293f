"""What a study's section shows beside verdicts and policies: the question, the lemmas, what training
costs."""

from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd

from reports.text.policies import ARMS, by_policy, collapse_sentence, grouped, mean_text
from reports.text.statistics import Row, fits, value
from reports.text.words import decimal, number
from warp_core.study import wanted
from warp_core.world.studies import Study

NEAR = 9  # nats, which runs with either anchor come to
SEEN = {  # by study: policies whose mean reward and KL its section states, in words and by their keys
    "iterations": (
        "При η = 1",
        {
            "слияние четырёх запусков": {"arm": "merged", "what": "slerp", "m": 4, "eta": 1.0},
            "один запуск на 120 шагов": {"arm": "single", "t": 120, "eta": 1.0},
            "четыре итерации по два запуска": {"arm": "iterated", "iteration": 4, "eta": 1.0},
            "один запуск на 240 шагов": {"arm": "single", "t": 240, "eta": 1.0},
        },
    ),
    "liti": (
        "LITI запуска на 120 шагов",
        {
            f"η = {decimal(eta)}": {"arm": "ema", "what": "run", "t": 120, "eta": eta}
            for eta in (0.3, 0.7, 1.0)
        },
    ),
    "merge": (
        "Слияние двух запусков с λ = 0,5",
        {
            name: {"what": what, "m": 2, "lam": 0.5, "eta": 1.0}
            for name, what in (
                ("SLERP", "slerp"),
                ("LERP (под прямым углом в √2 раз короче)", "lerp"),
            )
        },
    ),
    "next_step": (
        "WARP-модель без прогрева",
        {f"T = {t}": {"arm": f"t{t}", "what": "warp"} for t in (10, 30, 100)},
    ),
    "sensitivity": (
        "Слияние двух запусков при η = 1",
        {
            ARMS["sensitivity"][arm].replace(".", ","): {
                "arm": arm,
                "what": "slerp",
                "iteration": 1,
                "eta": 1.0,
            }
            for arm in ("base", "mu_slow", "mu_fast", "beta_weak", "beta_strong")
        },
    ),
}


def question(study: Study, rows: Sequence[Row]) -> str:
    """What is asked, and how much of it has been computed, on what."""
    if not rows:
        return f"{study.claim} Ещё не вычислено: строки получает `make study NAME={study.name}`."
    asked = wanted(study)
    devices, precisions = (
        ", ".join(sorted({row[key] for row in rows})) for key in ("device", "precision")
    )
    of_policies = Counter(point.model_dump_json() for seed, point in asked if seed is not None)
    ends = dict.fromkeys(str(f(of_policies.values())) for f in (min, max))
    many, missing = f"Обучений: {'–'.join(ends)}", ""
    if len(rows) < len(asked):
        many = f"Строк (политика одного обучения): {len(rows)} из {len(asked)}"
        missing = f" Остальные вычисляет `make study NAME={study.name}`; показаны готовые."
    many += f"; отложенных промптов: {rows[0]['reward']['n']}"
    return f"{study.claim} {many}; {devices}, {precisions.replace('fp32', 'float32')}.{missing}"


def further_tables(study: Study, rows: Sequence[Row]) -> dict[str, tuple[str, pd.DataFrame]]:
    """What one study has beside what all have: label -> caption, table; without those that are empty."""
    tables = {}
    if study.name == "merge":
        caption = (
            "Леммы статьи на настоящих весах: по обучениям, у слияний двух запусков — ещё и по λ."
        )
        tables["lemmas"] = (caption, lemmas_table(rows))
    if study.name == "iterations":
        several = len({row["device"] for row in rows}) > 1
        unlike_machines = ", на разных процессорах: времена сравнимы приблизительно" * several
        tables["cost"] = (
            "Время обучения, мин (медиана по обучениям): суммарное и у самой долгой цепочки запусков — "
            "столько длилось бы обучение на отдельных машинах. Измерено на двух ядрах, занятых двумя "
            f"запусками{unlike_machines}.",
            cost_table(rows),
        )
    return {label: each for label, each in tables.items() if len(each[1])}


def remarks(study: Study, rows: Sequence[Row]) -> list[str]:
    """What else its rows say: where policies stand, what training costs, where the text is gone."""
    of_study = {"iterations": cost_sentence, "anchor": anchor_sentence}.get(study.name)
    said = seen_sentence(study.name, rows) + (of_study(rows) if of_study else [])
    # The section of the experiments says it of theirs.
    return said + (collapse_sentence(rows) if study.name != "seed_report" else [])


def seen_sentence(name: str, rows: Sequence[Row]) -> list[str]:
    """Mean reward and KL of its policies in `SEEN`, those of fewer than two trainings left out; nothing
    without two of them."""
    if name not in SEEN:
        return []
    (whose, policies), said = SEEN[name], []
    for policy, keys in policies.items():
        found = [row for row in rows if fits(row, keys)]
        if len(found) > 1:
            reward, kl = (
                mean_text([value(row, measure) for row in found], places)
                for measure, places in (("reward", 2), ("kl", 1))
            )
            said.append(f"{policy} — награда {reward} балла, KL {kl} ната")
    if len(said) < 2:
        return []
    return [f"{whose}: {'; '.join(said)} (средние по обучениям ± стандартная ошибка)."]


def cost_sentence(rows: Sequence[Row]) -> list[str]:
    """How long four runs train on machines of their own, and one of as many steps; none without both."""

    def minutes(**keys: Any) -> float | None:
        chains = [row["seconds"]["chain"] for row in rows if fits(row, keys)]
        return float(np.median(chains)) / 60 if chains else None

    merged = minutes(arm="merged", what="slerp", m=4, eta=1.0)
    alone = minutes(arm="single", what="run", t=120, eta=1.0)
    if merged is None or alone is None:
        return []
    return [
        f"На отдельных машинах обучение четырёх запусков заняло бы {number(merged, 1)} мин (столько длится "
        f"самый долгий), один запуск вчетверо длиннее занимает {number(alone, 1)} мин (медианы по "
        "обучениям; [@study_iterations:cost])."
    ]


def anchor_sentence(rows: Sequence[Row]) -> list[str]:
    """How far runs with either anchor get, and behind how many steps each has its best policy that is not
    beyond `NEAR`; none without both."""

    def ends(values: Sequence[float]) -> str:
        return "–".join(dict.fromkeys(f"{f(values):.0f}" for f in (min, max)))

    far, steps = dict[str, str](), dict[str, str]()
    for arm in ("ema", "sft"):
        runs = [row for row in rows if fits(row, {"arm": arm, "what": "run"})]
        trainings = [*grouped(runs, itemgetter("seed")).values()]
        near = [[row for row in run if value(row, "kl") <= NEAR] for run in trainings]
        if not runs or not all(near):
            return []
        far[arm] = ends([max(value(row, "kl") for row in run) for run in trainings])
        steps[arm] = ends([max(run, key=lambda row: value(row, "reward"))["t"] for run in near])
    unlike = ""
    if steps["ema"] != steps["sft"]:
        unlike = (
            f" При KL {NEAR} нат поэтому сравнивается разное число шагов: лучшая политика с KL не "
            f"больше {NEAR} нат у первого — после {steps['ema']}, у второго — после "
            f"{steps['sft']} (по обучениям)."
        )
    reach = f"до KL {far['ema']} нат, с якорем SFT — до {far['sft']}"
    return [f"С якорем EMA запуск уходит {reach}.{unlike}"]


def cost_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Minutes of training behind each end of a curve: of all runs, and of the longest chain, which is what
    as many machines as there are runs take."""
    table = []
    for name, of_policy in by_policy(rows).items():
        seconds = [row["seconds"] for row in of_policy if row["eta"] == 1.0]
        if seconds:
            all_, chain = (np.median([each[k] for each in seconds]) / 60 for k in ("all", "chain"))
            table.append((name, number(all_, 1), number(chain, 1), len(seconds)))
    columns = ["Политика", "Всего, мин", "На отдельных машинах, мин", "Обучений"]
    return pd.DataFrame(table, columns=columns)


def lemmas_table(rows: Sequence[Row]) -> pd.DataFrame:
    """The paper's lemmas on real weights: what they say, and what was measured over trainings."""
    two = [r for r in rows if r["what"] in ("slerp", "lerp") and r["m"] == 2 and moved(r)]
    table = []

    def add(
        name: str,
        said: str,
        values: Sequence[float],
        holds: Callable[[float], bool],
        error: float = 0.1,
    ) -> None:
        if values:
            ends = dict.fromkeys(number(f(values), error) for f in (min, max))
            right = f"{sum(map(holds, values))} из {len(values)}"
            table.append((name, said, "–".join(ends), right))

    pairs = [row["geometry"] for row in two if row["what"] == "slerp" and row["lam"] is None]
    angles, cosines = [pair["angle"][1] for pair in pairs], [pair["cosine"] for pair in pairs]
    add(
        "Угол между векторами задач двух запусков, °",
        "около 90 (±10)",
        angles,
        lambda a: 80 < a < 100,
        1,
    )
    add("Косинус их полных весов", "больше 0,999", cosines, lambda c: c > 0.999, 0.001)
    slerp = [_norm(r) / float(np.mean(_run_norms(r))) for r in two if r["what"] == "slerp"]
    add("Норма SLERP к средней норме запусков", "1 (±0,05)", slerp, lambda x: abs(x - 1) < 0.05)
    lerp = [_norm(r) / _lerp_norm(r) for r in two if r["what"] == "lerp"]
    add("Норма LERP к формуле леммы", "1 (±0,05)", lerp, lambda x: abs(x - 1) < 0.05)
    bound = [value(r, "kl") / k for r in two if r["what"] == "lerp" and (k := _mixed_kl(r, rows))]
    add("KL(LERP) к средней KL запусков", "не больше 1", bound, lambda x: x <= 1)
    return pd.DataFrame(table, columns=["Величина", "По статье", "Измерено", "Верно"])


def moved(row: Row) -> bool:
    """Whether it tells of the angles between runs: they have none where they are where they began."""
    return bool(row.get("geometry") and row["geometry"]["angle"])


def _norm(row: Row) -> float:
    return float(np.sqrt(row["geometry"]["gram"][-1][-1]))


def _run_norms(row: Row) -> list[float]:
    gram = np.array(row["geometry"]["gram"])
    return np.sqrt(gram.diagonal())[:-1].tolist()


def _lerp_norm(row: Row) -> float:
    """l·√(1 − 2(1 − cos Ω)(λ − λ²)), with the runs' mean norm as l."""
    gram, lam = np.array(row["geometry"]["gram"]), 0.5 if row["lam"] is None else row["lam"]
    norms = _run_norms(row)
    cos = gram[0, 1] / (norms[0] * norms[1])
    return float(np.mean(norms) * np.sqrt(1 - 2 * (1 - cos) * (lam - lam**2)))


def _mixed_kl(row: Row, rows: Sequence[Row]) -> float | None:
    """The KLs of the two runs, weighed as the merge weighs them."""
    alike = {"what": "run", "seed": row["seed"], "arm": row["arm"], "eta": 1}
    kl = {r["m"]: value(r, "kl") for r in rows if fits(r, alike)}
    lam = 0.5 if row["lam"] is None else row["lam"]
    return (1 - lam) * kl[1] + lam * kl[2] if {1, 2} <= kl.keys() else None
