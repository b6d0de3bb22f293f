"""Verdicts of the studies' comparisons.

An interval is Student's, of 95 %, over training seeds, of differences paired by seed; the evaluation
prompts are the same for all, so it holds for these prompts. A claim is confirmed where p is below 0.05 and
the difference on its side of zero, and refuted where it is on the other; p is corrected for how many claims
there are, by Holm over the primary comparisons of all studies, by Benjamini and Hochberg over the others.
Otherwise it cannot be told. Rewards have a margin, that of the hypotheses in params/: two whose interval
lies within it are alike, what is told from zero there is little; «not less» is confirmed by an interval
above its lower end, and refuted by one below it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from reports.text.statistics import (
    SCALES,
    Curve,
    Row,
    common_roots,
    comparisons,
    curves_of,
    differences,
    fits,
    holm,
    load_study,
)
from reports.text.words import NBSP, nats, number
from warp_core.evaluate import between_trainings
from warp_core.store.files import read_jsonl
from warp_core.study import digests, wanted
from warp_core.world.studies import Comparison, Study

ALPHA = 0.05  # corrected p of a comparison that is told from zero
SMALL = 0.1  # points of reward: an interval within it is of no difference to speak of
# Trainings that a verdict needs, where the study asks for as many; of a primary comparison.
FEW, FEW_PRIMARY = 3, 5
HOLDS, LITTLE, REFUTED = "подтверждается", "подтверждается, но мало", "опровергается"
ALIKE, UNKNOWN, NONE = "неразличимо", "нельзя сказать", "ещё не вычислено"
UNITS = {  # of a measure: unit, places
    "reward": ("балла", 2),
    "judge": ("по шкале судьи", 2),
    "kl": ("ната", 2),
    "length": ("слова", 1),
    "repetition": ("п. п.", 1),
    "distinct_pairs": ("п. п.", 1),
}
ORDER = (  # of the report's studies
    "iterations", "liti", "merge", "anchor", "seed_report", "next_step", "text", "sensitivity",
)  # fmt: skip
MAIN = {  # comparisons that the report begins with, in a few words
    "four_iterations_against_one": "WARP (I = 4) выше LITI одного, шагов поровну",
    "four_against_one": "4 слитых выше LITI одного, шагов поровну",
    "two_against_one": "2 слитых выше LITI одного, шагов поровну",
    "front_above_runs": "4 слитых (шагов ×4) выше LITI одного из них",
    "second_iteration": "2-я итерация (шагов ×2) выше 1-й",
    "liti_above_trajectory": "LITI выше траектории того же запуска",
    "slerp_above_lerp": "SLERP выше LERP при λ = 0,5 *",
    "slerp_above_lerp_at_equal_kl": "SLERP выше LERP",
    "ema_above_sft": "Якорь EMA выше SFT",
}
MARKS = {HOLDS: "✓", LITTLE: "✓", REFUTED: "✗", ALIKE: "≈", UNKNOWN: "?", NONE: "…"}
AT = 3, 6, 9, 12, 18  # nats, at which curves are compared one by one


@dataclass(frozen=True)
class Verdict:
    """One comparison and what its trainings say."""

    study: Study
    comparison: Comparison
    by_seed: Mapping[int, float]
    between: Mapping[str, float]
    """`between_trainings` of them; empty where too few are there."""
    p: float
    """Corrected, of no difference; NaN where the claim is another, or none is made."""
    of: float
    """How many trainings it asks for."""
    curves: Mapping[int, tuple[Curve, Curve]] = field(default_factory=dict)
    """By seed, where it is at equal KL."""

    @property
    def word(self) -> str:
        """In a word."""
        if not self.between:
            return NONE
        worst, best = sorted(self._claimed * self.between[end] for end in ("low", "high"))
        if self.comparison.expected.startswith("not"):
            if worst > -SMALL:
                return HOLDS
            return REFUTED if best < -SMALL else UNKNOWN
        if self.p >= ALPHA:
            return ALIKE if self.is_small else UNKNOWN
        if self._claimed * self.between["mean"] < 0:
            return REFUTED
        return LITTLE if self.is_small else HOLDS

    @property
    def _claimed(self) -> int:
        """The sign of a difference that speaks for the claim."""
        return 1 if self.comparison.expected in ("more", "not_less") else -1

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
                p=math.nan,
            )
            for kl in reached
        }

    @property
    def unlike(self) -> str:
        """«, но при KL 9 нат −0,17 [−0,28; −0,07]»: where two that are alike on average are not, beyond
        the margin, or nothing is left of a difference; else empty, and of another verdict."""
        told = [
            f"при KL\u00a0{kl} {nats(kl)} {there.effect_alone}"
            for kl, there in self.along.items()
            if self._is_unlike(there.between)
        ]
        return f", но {', '.join(told)}" if told else ""

    def _is_unlike(self, there: Mapping[str, float]) -> bool:
        if self.word in (HOLDS, LITTLE):
            least = -SMALL if self.comparison.expected.startswith("not") else 0.0
            return self._claimed * there["mean"] <= least
        apart = abs(there["mean"]) > SMALL and there["low"] * there["high"] > 0
        return self.word == ALIKE and apart

    @property
    def corrected(self) -> str:
        """«, p с поправкой 0,056», of an interval without zero that cannot be told from it all the same."""
        if self.word != UNKNOWN or math.isnan(self.p):
            return ""
        is_apart = self.between["low"] * self.between["high"] > 0
        return f", p с поправкой{NBSP}{self.p_text}" if is_apart else ""

    @property
    def word_where(self) -> str:
        """The word, and where it is another: what a table has of it."""
        return f"{self.word}{self.unlike}"

    @property
    def n(self) -> str:
        """«5», or «3 из 5» where some trainings are still missing."""
        return f"{len(self.by_seed)}{f' из {self.of:g}' if self.is_partial else ''}"

    @property
    def is_partial(self) -> bool:
        """Whether some of its trainings are still missing."""
        return len(self.by_seed) < self.of

    @property
    def trainings(self) -> str:
        """«обучений: 5», or «готово обучений: 3 из 5», and in how many curves have no KL in common."""
        apart = sum(seed not in self.by_seed for seed in self.curves)
        said = f"{'готово ' if self.is_partial else ''}обучений: {self.n}"
        return f"{said}, без общей KL: {apart}" if apart else said

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
        numbers = [self.between[key] for key in ("mean", "low", "high")]
        if self.comparison.measure != "reward" or math.isnan(self.p):
            return self.told(numbers)
        # An end this near the margin would be written as the margin.
        rounding = 10.0 ** -UNITS["reward"][1] / 2
        at_margin = any(abs(abs(end) - SMALL) < rounding for end in numbers[1:])
        return self.told(numbers, further=int(at_margin))

    def told(self, values: Sequence[float], further: int = 0) -> list[str]:
        """Values of the measure in its unit, with its places, or `further` ones; with more where all are
        too small."""
        measure = self.comparison.measure
        error = 10.0 ** (1 - UNITS[measure][1] - further)
        scaled = [value * SCALES.get(measure, 1) for value in values]
        if 0 < max(map(abs, scaled), default=0) < error / 20:  # and perhaps not 0
            error = max(map(abs, scaled))
        return [number(value, error) for value in scaled]

    @property
    def sentence(self) -> str:
        """The verdict, the claim, and what it rests on."""
        word = "не подтверждается (неразличимо)" if self.word == ALIKE else self.word
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


def of_studies(studies: Sequence[Study]) -> list[Verdict]:
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
    primary = [k for k, v in enumerate(found) if v.comparison.primary and not math.isnan(ps[k])]
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
    columns = ["Утверждение", "Откуда", "Ожидание", "Разность [95\u00a0% ДИ]", "При KL, нат"]
    return pd.DataFrame([_claim(v) for v in found], columns=[*columns, "Обучений", "p", "Вердикт"])


def _claim(v: Verdict) -> tuple[str, ...]:
    mark = "\u00a0•" if v.comparison.primary else ""
    said = v.comparison.claim + mark, v.comparison.source, v.comparison.hypothesis
    return *said, v.effect if v.between else "—", v.kls or "—", v.n, v.p_text, v.word_where


def profile_table(found: Sequence[Verdict]) -> pd.DataFrame:
    """Differences at single KLs; a row a comparison at equal KL."""
    rows = []
    for v in found:
        if along := v.along:
            cells = (along[kl].effect_alone if kl in along else "—" for kl in AT)
            rows.append((v.comparison.claim, *cells))
    return pd.DataFrame(rows, columns=["Утверждение", *(f"При KL {kl} {nats(kl)}" for kl in AT)])


def lead(found: Sequence[Verdict]) -> list[str]:
    """What the primary comparisons of a study say, and those that the report begins with; all where it
    has neither."""
    main = [v for v in found if v.comparison.primary or v.comparison.name in MAIN]
    return [v.sentence for v in main or found]
