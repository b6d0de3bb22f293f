"""What the studies say: verdicts, tables and figures from the rows of reports/studies/.

An interval is Student's, of 95 %, over training seeds, of differences paired by seed; the evaluation
prompts are the same for all, so it holds for these prompts. A claim is confirmed where p is below 0.05 and
the difference on its side of zero, and refuted where it is on the other; p is corrected for how many claims
there are, by Holm over the primary comparisons of all studies, by Benjamini and Hochberg over the others.
Otherwise it cannot be told. Rewards have a margin, that of the hypotheses in params/: two whose interval
lies within it are alike, what is told from zero there is little; «not less» is confirmed by an interval
above its lower end, and refuted by one below it.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from reports.text.experiment import REPETITION_COLLAPSED
from reports.text.statistics import (
    Curve,
    common_roots,
    comparisons,
    curves_of,
    differences,
    fits,
    holm,
    load_study,
    value,
)
from reports.text.words import NBSP, nats, number
from warp_core.evaluate import between_trainings
from warp_core.store.files import read_jsonl
from warp_core.study import digests, wanted
from warp_core.world.studies import Comparison, Study

Row = Mapping[str, Any]
ALPHA = 0.05  # corrected p of a comparison that is told from zero
# Of θ_sft's words an answer, and of its share of different pairs: below that the text is gone.
LEFT = 1 / 3
SMALL = 0.1  # points of reward: an interval within it is of no difference to speak of
# Trainings that a verdict needs, where the study asks for as many; of a primary comparison.
FEW, FEW_PRIMARY = 3, 5
HOLDS, LITTLE, REFUTED = "подтверждается", "подтверждается, но мало", "опровергается"
ALIKE, UNKNOWN, NONE = "неразличимо", "нельзя сказать", "ещё не вычислено"
UNITS = {  # of a measure: unit, places
    "reward": ("балла", 2),
    "judge": ("балла VADER", 2),
    "kl": ("ната", 2),
    "length": ("слова", 1),
    "repetition": ("п. п.", 1),
    "distinct_pairs": ("п. п.", 1),
}
SCALES = {"repetition": 100, "distinct_pairs": 100}  # of a measure: shares are shown in percent
ORDER = (  # of the report's studies
    "iterations", "liti", "merge", "anchor", "seed_report", "next_step", "text", "sensitivity",
)  # fmt: skip
MAIN = {  # comparisons that the report begins with, in a few words
    "four_iterations_against_one": "WARP (I = 4, M = 2) выше LITI одного, шагов поровну",
    "four_against_one": "4 слитых выше LITI одного, шагов поровну",
    "two_against_one": "2 слитых выше LITI одного, шагов поровну",
    "front_above_runs": "4 слитых выше одного из них (шагов ×4)",
    "second_iteration": "2-я итерация выше первой (шагов ×2)",
    "liti_above_trajectory": "LITI выше траектории того же запуска",
    "slerp_above_lerp": "SLERP выше LERP при λ = 0,5 *",
    "slerp_above_lerp_at_equal_kl": "SLERP выше LERP",
    "ema_above_sft": "Якорь EMA выше якоря SFT",
}
MARKS = {HOLDS: "✓", LITTLE: "✓", REFUTED: "✗", ALIKE: "≈", UNKNOWN: "?", NONE: "…"}
AT = 3, 6, 9, 12  # nats, at which curves are compared one by one


@dataclass(frozen=True)
class Verdict:
    """One comparison and what its trainings say."""

    study: Study
    comparison: Comparison
    by_seed: Mapping[int, float]
    between: Mapping[str, float]
    """`between_trainings` of them; empty where too few are there."""
    p: float
    """Corrected, of no difference; NaN where the claim is another."""
    of: float
    """How many trainings it asks for."""
    curves: Mapping[int, tuple[Curve, Curve]] = field(default_factory=dict)
    """By seed, where it is at equal KL."""

    @property
    def word(self) -> str:
        """In a word."""
        if not self.between:
            return NONE
        claimed = 1 if self.comparison.expected in ("more", "not_less") else -1
        worst, best = sorted(claimed * self.between[end] for end in ("low", "high"))
        if self.comparison.expected.startswith("not"):
            if worst > -SMALL:
                return HOLDS
            return REFUTED if best < -SMALL else UNKNOWN
        if self.p >= ALPHA:
            return ALIKE if self.is_small else UNKNOWN
        if claimed * self.between["mean"] < 0:
            return REFUTED
        return LITTLE if self.is_small else HOLDS

    @property
    def is_small(self) -> bool:
        """Whether it is of rewards and no difference to speak of, told from zero or not."""
        if not self.between or self.comparison.measure != "reward":
            return False
        return max(-self.between["low"], self.between["high"]) < SMALL

    @property
    def kls(self) -> str:
        """«1,3–11,3»: the nats that both curves have, mean over trainings; empty without curves."""
        found = [ends for pair in self.curves.values() if (ends := common_roots(*pair))]
        if not found:
            return ""
        ends = [number(end**2, 1) for end in np.mean(found, 0)]
        return "–".join(dict.fromkeys(ends))

    @property
    def where(self) -> str:
        """« в среднем по KL 1,3–11,3 ната», over which a difference is a mean; empty without curves."""
        over = "в среднем по KL" if "–" in self.kls else "при KL"
        return f" {over} {self.kls} ната" if self.kls else ""

    @property
    def along(self) -> dict[int, "Verdict"]:
        """The same at single KLs: those of `AT` at which all of its trainings have both curves."""
        if not self.between or not self.curves:
            return {}
        pairs = [self.curves[seed] for seed in self.by_seed]
        ends = [e for pair in pairs if (e := common_roots(*pair))]
        reached = [kl for kl in AT if all(low <= kl**0.5 <= high for low, high in ends)]
        return {
            kl: replace(
                self,
                between=between_trainings([float(a.at(kl**0.5) - b.at(kl**0.5)) for a, b in pairs]),
            )
            for kl in reached
        }

    @property
    def unlike(self) -> str:
        """«, но без поправки −0,17 [−0,28; −0,07] при KL 9»: where two that are alike on average are not,
        beyond the margin; empty where they are, and of another verdict."""
        if self.word != ALIKE:
            return ""
        told = [
            f"{there.effect_alone} при KL {kl}"
            for kl, there in self.along.items()
            if abs(there.between["mean"]) > SMALL
            and there.between["low"] * there.between["high"] > 0
        ]
        return f", но без поправки {', '.join(told)}" if told else ""

    @property
    def n(self) -> str:
        """«5», or «3 из 5» where some trainings are still missing."""
        missing = f" из {self.of:g}" if len(self.by_seed) < self.of else ""
        return f"{len(self.by_seed)}{missing}"

    @property
    def trainings(self) -> str:
        """«обучений: 5»."""
        return f"обучений: {self.n}"

    @property
    def effect(self) -> str:
        """«0,31 балла [0,12; 0,50]»; without enough trainings how many there are."""
        if not self.between:
            return self.trainings
        mean, low, high = self._numbers()
        unit = UNITS[self.comparison.measure][0]
        return f"{mean}{NBSP if unit else ''}{unit} [{low}; {high}]"

    @property
    def effect_alone(self) -> str:
        """The same without the unit of rewards, which is that of the tables; others keep theirs."""
        if not self.between or self.comparison.measure != "reward":
            return self.effect
        mean, low, high = self._numbers()
        return f"{mean} [{low}; {high}]"

    def _numbers(self) -> list[str]:
        measure = self.comparison.measure
        error = 10.0 ** (1 - UNITS[measure][1])
        ends = [self.between[key] * SCALES.get(measure, 1) for key in ("mean", "low", "high")]
        if 0 < max(map(abs, ends)) < error / 20:  # too small for these places, and perhaps not 0
            error = max(map(abs, ends))
        return [number(end, error) for end in ends]

    @property
    def sentence(self) -> str:
        """The verdict, the claim, and what it rests on."""
        word = "стороны неразличимы" if self.word == ALIKE else self.word
        said = f"**{word[0].upper()}{word[1:]}**: «{self.comparison.claim}»"
        if not self.between:
            return f"{said} ({self.effect})."
        equals = "" if self.p < 1e-3 else f"={NBSP}"
        p = "" if math.isnan(self.p) else f", p{NBSP}{equals}{self.p_text}"
        return f"{said}. Разность {self.effect}{self.where}, {self.trainings}{p}{self.unlike}."

    @property
    def p_text(self) -> str:
        """«< 0,001» or «0,034»; a dash without a verdict."""
        if not self.between or math.isnan(self.p):
            return "—"
        near = 1e-3 if abs(self.p - ALPHA) < 5e-4 else 1e-2  # 0,0498 is below 0,05
        return "<\u00a00,001" if self.p < 1e-3 else number(self.p, near)


def load_rows(study: Study) -> Sequence[Row]:
    """Those that have been computed, with the parameters that the study has now."""
    asked = set(digests(study))
    return [row for row in read_jsonl(study.path) if row["digest"] in asked]


def load_studies(folder: Path = Path("params")) -> list[Study]:
    """Those of the report, in its order; a study of yours is no part of it."""
    return [load_study(folder / f"study_{name}.yaml") for name in ORDER]


def family(study: Study) -> list[Study]:
    """The studies whose comparisons are corrected together with this one's: the report's, or it alone."""
    every = load_studies()
    return every if study in every else [study]


def verdicts(studies: Sequence[Study]) -> list[Verdict]:
    """Of all comparisons of these studies, together, since p is corrected for how many they are."""
    found = []
    for study in studies:
        rows, asked = load_rows(study), wanted(study)
        for comparison in comparisons(study):
            curves = curves_of(rows, comparison, asked)
            by_seed = differences(rows, comparison, asked)
            of = min(_trainings(asked, side) for side in (comparison.ours, comparison.theirs))
            needed = max(2, min(FEW_PRIMARY if comparison.primary else FEW, of))
            enough = len(by_seed) >= needed
            between = between_trainings([*by_seed.values()]) if enough else {}
            found.append(Verdict(study, comparison, by_seed, between, math.nan, of, curves))
    return [replace(v, p=p) for v, p in zip(found, _corrected(found), strict=True)]


def _corrected(found: Sequence[Verdict]) -> list[float]:
    """p of each: by Holm over the primary ones, what is missing among them; by Benjamini and Hochberg over
    the others that are there. NaN where «no difference» is not what a claim denies."""
    ps = [v.between.get("p", 1.0) for v in found]
    others = list[int]()
    for k, v in enumerate(found):
        if v.comparison.expected.startswith("not"):
            ps[k] = math.nan
        elif v.between and not v.comparison.primary:
            others.append(k)
    primary = [k for k, v in enumerate(found) if v.comparison.primary]
    for which, correct in ((primary, holm), (others, false_discovery_control)):
        if which:
            for k, p in zip(which, correct([ps[k] for k in which]), strict=True):
                ps[k] = float(p)
    return ps


def _trainings(asked: Sequence[tuple[int | None, Any]], keys: Mapping[str, Any]) -> float:
    """Of how many a side is wanted; θ_sft needs none."""
    seeds = {seed for seed, point in asked if fits(point.model_dump(), keys)}
    return math.inf if seeds == {None} else len(seeds)


# Tables


def claims_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """A row a claim: where it is from, what was expected before it was computed, what came."""
    columns = ["Утверждение", "Откуда", "Ожидалось", "Разность [95\u00a0% ДИ]", "При KL, нат"]
    return pd.DataFrame([_claim(v) for v in found], columns=[*columns, "Обучений", "p", "Вердикт"])


def _claim(v: Verdict) -> tuple[str, ...]:
    mark = "\u00a0•" if v.comparison.primary else ""
    said = v.comparison.claim + mark, v.comparison.source, v.comparison.hypothesis
    return *said, v.effect if v.between else "—", v.kls or "—", v.n, v.p_text, v.word


def profile_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """Differences at single KLs; a row a comparison at equal KL."""
    rows = []
    for v in found:
        if along := v.along:
            cells = (along[kl].effect_alone if kl in along else "—" for kl in AT)
            rows.append((v.comparison.claim, *cells))
    return pd.DataFrame(rows, columns=["Утверждение", *(f"При KL {kl} {nats(kl)}" for kl in AT)])


def policies_table(rows: Sequence[Row]) -> pd.DataFrame:
    """A row a policy: mean over trainings ± the error between them, and how many they are."""
    measures = {"reward": 2, "kl": 2, "judge": 2, "length": 1, "repetition": 1, "distinct_pairs": 1}
    names = ["Награда", "KL, нат", "VADER", "Слов", "Повторы, %", "Разных пар, %"]
    table = []
    for name, of_policy in grouped(rows, policy_name).items():
        cells = []
        for measure, places in measures.items():
            values = [scaled(row, measure) for row in of_policy if measure in row]
            cells.append(mean_text(values, places))
        n = sum(row["seed"] is not None for row in of_policy)
        table.append((name, *cells, n or "—"))
    return pd.DataFrame(table, columns=["Политика", *names, "Обучений"])


def scaled(row: Row, measure: str) -> float:
    """A row's measure as it is shown: shares in percent."""
    return value(row, measure) * SCALES.get(measure, 1)


def mean_text(values: Sequence[float], places: int) -> str:
    """«1,31 ± 0,08»: mean and standard error over trainings, with more places where the error would be
    0,00, and with none, «0 ± 0», where nothing moved."""
    if not values:
        return "—"
    mean, exact = float(np.mean(values)), 10.0 ** (1 - places)
    if len(values) == 1:
        return number(mean, exact)
    apart = min(values) < max(values)  # else a deviation is of rounding alone
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5 if apart else 0.0
    exact = exact if any(values) else 0.0
    while 0 < error < exact / 20:
        exact /= 10
    return f"{number(mean, exact)}\u00a0±\u00a0{number(error, exact)}"


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
        "Угол между векторами задач двух запусков, °", "около 90", angles, lambda a: 80 < a < 100, 1
    )
    add("Косинус их полных весов", "больше 0,999", cosines, lambda c: c > 0.999, 0.001)
    slerp = [_norm(r) / float(np.mean(_run_norms(r))) for r in two if r["what"] == "slerp"]
    add("Норма SLERP к средней норме запусков", "1", slerp, lambda x: abs(x - 1) < 0.05)
    lerp = [_norm(r) / _lerp_norm(r) for r in two if r["what"] == "lerp"]
    add("Норма LERP к формуле леммы", "1", lerp, lambda x: abs(x - 1) < 0.05)
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


# Rows


def grouped(rows: Sequence[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by key, in their order."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


ARMS = {  # of the studies of this project
    "ema": "якорь EMA", "sft": "якорь SFT", "sft_weak": "якорь SFT, β = 0.01", "free": "без штрафа",
    "long": "T = 120", "iterated": "I = 4, M = 2",
    "base": "μ = 0.05, β = 0.1", "mu_slow": "μ = 0.01", "mu_fast": "μ = 0.2",
    "beta_weak": "β = 0.05", "beta_strong": "β = 0.2", "eta_03": "η = 0.3 между итерациями",
    "eta_05": "η = 0.5 между итерациями", "eta_08": "η = 0.8 между итерациями",
    **{f"t{t}": f"T = {t}" for t in (10, 30, 100)},
    **{f"t{t}_warm": f"T = {t} с прогревом" for t in (10, 30, 100)},
    **{f"experiment_{k}": f"эксперимент {k}" for k in range(1, 5)},
    **{f"experiment_{k}_control": f"эксперимент {k}, контроль" for k in range(1, 5)},
    **dict.fromkeys(("five", "merged", "beyond", "single"), ""),  # told by what the policy is
}  # fmt: skip
WHAT = {"run": "запуск", "ema": "EMA-веса", "average": "среднее весов", "warp": "WARP"}


def policy_name(row: Row) -> str:
    """A policy in a few words: «якорь SFT: запуск, t = 30»; «SLERP 4, η = 0,5»."""
    if row["what"] == "sft":
        return "SFT-модель"
    merged = row["what"] in ("slerp", "lerp")
    name = f"{row['what'].upper()} {row['m']}" if merged else WHAT[row["what"]]
    if row["what"] in ("run", "ema") and row["m"] != 1:
        name += f" {row['m']}"
    details = [f"итерация {row['iteration']}"] if row["iteration"] not in (None, 1) else []
    details += [f"t = {row['t']}"] if isinstance(row["t"], int) else []
    details += [f"λ = {row['lam']:g}"] if row["lam"] is not None else []
    details += [f"η = {row['eta']:g}"] if row["eta"] not in (None, 1) else []
    arm = ARMS.get(row["arm"], row["arm"])
    return f"{arm}{': ' * bool(arm)}{', '.join([name, *details])}".replace(".", ",")


# Sentences


def lead(found: Sequence[Verdict]) -> list[str]:
    """What the primary comparisons of a study say, and those that the report begins with; all where it
    has neither."""
    main = [v for v in found if v.comparison.primary or v.comparison.name in MAIN]
    return [v.sentence for v in main or found]


def question(study: Study, rows: Sequence[Row]) -> str:
    """What is asked, and how much of it has been computed, on what."""
    if not rows:
        return f"{study.claim} Ещё не вычислено: строки получает `make study NAME={study.name}`."
    asked = len(wanted(study))
    devices, precisions = (
        ", ".join(sorted({row[key] for row in rows})) for key in ("device", "precision")
    )
    many, missing = f"Обучений: {len(study.seeds)}, политик: {asked}", ""
    if len(rows) < asked:
        many = f"Готово политик: {len(rows)} из {asked}"
        missing = f" Остальные вычисляет `make study NAME={study.name}`; показаны готовые."
    many += f"; у каждой {rows[0]['reward']['n']} отложенных промптов"
    return f"{study.claim} {many}; {devices}, {precisions.replace('fp32', 'float32')}.{missing}"


def further_tables(study: Study, rows: Sequence[Row]) -> dict[str, tuple[str, pd.DataFrame]]:
    """What one study has beside what all have: label -> caption, table; without those that are empty."""
    tables = {}
    if study.name == "merge":
        tables["lemmas"] = ("Леммы статьи на настоящих весах, по обучениям.", lemmas_table(rows))
    if study.name == "iterations":
        tables["cost"] = (
            "Цена обучения, минуты, медиана по обучениям: всего и самой долгой цепочки запусков, сколько "
            "длилось бы обучение на отдельных машинах. Измерено на двух ядрах, занятых двумя запусками.",
            cost_table(rows),
        )
    return {label: each for label, each in tables.items() if len(each[1])}


def remarks(study: Study, rows: Sequence[Row]) -> list[str]:
    """What else its rows say: what training costs, where the text is gone."""
    said = cost_sentence(rows) if study.name == "iterations" else []
    # The section of the experiments says it of theirs.
    return said + (collapse_sentence(rows) if study.name != "seed_report" else [])


def collapse_sentence(rows: Sequence[Row]) -> list[str]:
    """What reward and judge say of policies whose text is gone; nothing without any."""
    sft = next((row for row in rows if row["what"] == "sft"), None)
    trained = [row for row in rows if row["seed"] is not None]
    if sft is None:
        return []

    def fault(row: Row) -> str:
        if value(row, "length") < LEFT * value(sft, "length"):
            return "слов втрое меньше, чем у SFT-модели, или нет совсем"
        if value(row, "repetition") > REPETITION_COLLAPSED:
            return "больше половины слов — повторы"
        few = value(row, "distinct_pairs") < LEFT * value(sft, "distinct_pairs")
        return "втрое меньше различных пар слов" if few else ""

    gone = [row for row in trained if fault(row)]
    if not gone:
        return []
    how = [f"у {n} {said}" for said, n in Counter(map(fault, gone)).items()]
    said = {"reward": "награда", "judge": "оценка VADER"}
    judges = {k: name for k, name in said.items() if all(k in row for row in [sft, *gone])}
    told = []
    for measure, name in judges.items():
        ends = [number(f(value(row, measure) for row in gone), 0.1) for f in (min, max)]
        range_ = ends[0] if ends[0] == ends[1] else f"от {ends[0]} до {ends[1]}"
        told.append(f"{name} — {range_} (у SFT-модели {number(value(sft, measure), 0.1)})")
    fooled = [all(value(row, k) > value(sft, k) for k in judges) for row in gone]
    blind = ": выше, чем у SFT-модели, могут быть обе" if any(fooled) and len(judges) > 1 else ""
    many = "политики" if len(gone) % 10 == 1 and len(gone) % 100 != 11 else "политик"
    return [
        f"Текст выродился у {len(gone)} {many} из {len(trained)}: {', '.join(how)}. "
        f"Их {', '.join(told)}{blind}."
    ]


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
        f"Самый долгий из четырёх запусков, а столько длилось бы обучение на отдельных машинах, занимает "
        f"{number(merged, 1)} мин, один запуск вчетверо длиннее — {number(alone, 1)} мин (медианы по "
        "обучениям; [@study_iterations:cost])."
    ]


def cost_table(rows: Sequence[Row]) -> pd.DataFrame:
    """Minutes of training behind each end of a curve: of all runs, and of the longest chain, which is what
    as many machines as there are runs take."""
    table = []
    for name, of_policy in grouped(rows, policy_name).items():
        seconds = [row["seconds"] for row in of_policy if row["eta"] == 1.0]
        if seconds:
            all_, chain = (np.median([each[k] for each in seconds]) / 60 for k in ("all", "chain"))
            table.append((name, number(all_, 1), number(chain, 1), len(seconds)))
    columns = ["Политика", "Всего, мин", "На отдельных машинах, мин", "Обучений"]
    return pd.DataFrame(table, columns=columns)
