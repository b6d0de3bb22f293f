"""What a study compares: its comparisons, checked; differences by training seed, at equal KL; Holm.

The error between trainings is `warp_core.evaluate.between_trainings`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from warp_core.config import ConfigError, load_params
from warp_core.store.parameters import unknown_parameter
from warp_core.study import config_of, wanted
from warp_core.world.studies import Comparison, Point, Study

Row = Mapping[str, Any]
SCALES = {"repetition": 100, "distinct_pairs": 100}  # of a measure: shares are shown in percent
POINT = list(Point.model_fields)  # keys of a row that a comparison may name
# Points that two reward models may give θ_sft apart and still be one: trained by the same recipe on
# processors that round differently, they are 0.0001 apart (LOG.md, 2026-11-27).
SAME_REWARD = 0.01


def load_study(path: Path | str) -> Study:
    """A study of a file, checked; raises ConfigError with what cannot be computed or compared."""
    try:
        study = Study(**load_params(path))
        comparisons(study)
        _check_curves(study)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return study


def comparisons(study: Study) -> list[Comparison]:
    """Raises ConfigError where one compares what is not evaluated, or a thing with itself."""
    points = {point.model_dump_json(): point for _, point in wanted(study)}.values()
    compared = [Comparison(**each) for each in study.comparisons]
    mistakes = []
    for each in compared:
        where = f"comparison {each.name!r}"
        if each.ours == each.theirs and each.share == 1:
            mistakes.append(f"{where}: compares a thing with itself: {each.ours}")
        alone = 0  # sides that are a single policy
        for side in (each.ours, each.theirs):
            if unknown := _unknown(where, side):
                mistakes += unknown
                continue
            found = [point for point in points if fits(point.model_dump(), side)]
            arms, alone = {point.arm for point in found if point.arm}, alone + (len(found) == 1)
            if each.measure == "judge" and not all(config_of(study, a, 0).judge for a in arms):
                mistakes.append(f"{where}: measures what a judge says, and no `judge` is set")
            if not found or (each.at == "policy" and len(found) > 1):
                mistakes.append(f"{where}: {side} fits {len(found)} of the evaluated policies")
            if found and each.at == "equal_kl" and not arms:
                mistakes.append(f"{where}: {side} is θ_sft, which no KL above 0 has")
        if each.at == "equal_kl" and alone == 2:
            mistakes.append(
                f"{where}: at equal KL one side at least is a curve; both fit one policy"
            )
        if each.at == "equal_kl" and each.share != 1:
            mistakes.append(f"{where}: a share is of one policy, not of a curve at equal KL")
        if each.expected.startswith("not") and each.measure != "reward":
            mistakes.append(f"{where}: {each.expected} is of rewards, which alone have a margin")
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return compared


def _check_curves(study: Study) -> None:
    """Raises ConfigError where a curve goes through no policy, or has no label."""
    points, mistakes = [point.model_dump() for _, point in wanted(study)], []
    for each in study.curves:
        keys = {key: value for key, value in each.items() if key != "label"}
        where = f"curve {each.get('label')!r}"
        mistakes += (unknown := _unknown(where, keys))
        if not isinstance(each.get("label"), str):
            mistakes.append(f"{where}: a label is needed, a text: {keys}")
        if not unknown and not any(fits(point, keys) for point in points):
            mistakes.append(f"{where}: {keys} fits none of the evaluated policies")
    if mistakes:
        raise ConfigError("\n".join(mistakes))


def _unknown(where: str, keys: Mapping[str, Any]) -> list[str]:
    """What to say of those that no policy has."""
    unknown = sorted(keys.keys() - Point.model_fields.keys())
    return [f"{where}: {key}: {unknown_parameter(key, POINT)}" for key in unknown]


def differences(
    rows: Sequence[Row], comparison: Comparison, asked: Sequence[tuple[int | None, Point]]
) -> dict[int, float]:
    """ours − share · theirs by training seed, for the seeds that have all rows of both that are asked for.

    At equal KL it is `at_equal_kl` of the curves through the rows of each side.
    """
    if comparison.at == "equal_kl":
        curves = curves_of(rows, comparison, asked).items()
        return {seed: d for seed, pair in curves if (d := at_equal_kl(*pair)) is not None}
    measure, share = comparison.measure, comparison.share
    sides = _sides(rows, comparison, asked).items()
    return {s: value(a[0], measure) - share * value(b[0], measure) for s, (a, b, _) in sides}


def curves_of(
    rows: Sequence[Row], comparison: Comparison, asked: Sequence[tuple[int | None, Point]]
) -> dict[int, tuple["Curve", "Curve"]]:
    """Ours and theirs by training seed; empty where no curves are compared."""
    if comparison.at != "equal_kl":
        return {}
    sides, measure = _sides(rows, comparison, asked).items(), comparison.measure
    return {s: (curve_of(a, sft, measure), curve_of(b, sft, measure)) for s, (a, b, sft) in sides}


def _sides(
    rows: Sequence[Row], comparison: Comparison, asked: Sequence[tuple[int | None, Point]]
) -> dict[int, tuple[list[Row], list[Row], Row]]:
    """Rows of ours, of theirs and θ_sft's by training seed, where all are there and of one reward model."""

    def side(keys: Mapping[str, Any], seed: int) -> list[Row]:
        return [row for row in rows if row["seed"] in (seed, None) and fits(row, keys)]

    def complete(keys: Mapping[str, Any], seed: int) -> bool:
        fitting = [s for s, point in asked if s in (seed, None) and fits(point.model_dump(), keys)]
        return len(side(keys, seed)) == len(fitting) > 0

    sft = [row for row in rows if row["what"] == "sft"]
    keys = comparison.ours, comparison.theirs
    found: dict[int, tuple[list[Row], list[Row], Row]] = {}
    for seed in dict.fromkeys(row["seed"] for row in rows if row["seed"] is not None):
        if sft and all(complete(each, seed) for each in keys):
            ours, theirs = (side(each, seed) for each in keys)
            by_sft = [row["sft_reward"] for row in [*ours, *theirs, *sft]]
            if max(by_sft) - min(by_sft) <= SAME_REWARD:
                found[seed] = ours, theirs, sft[0]
    return found


def value(row: Row, measure: str) -> float:
    """A row's measure: the mean over prompts, or the figure itself. Of answers that are mostly empty the
    few pairs are no diversity: 0."""
    if measure == "distinct_pairs" and row["length"] < 1:
        return 0.0
    return row[measure]["mean"] if isinstance(row[measure], Mapping) else row[measure]


def scaled(row: Row, measure: str) -> float:
    """A row's measure as it is shown: shares in percent."""
    return value(row, measure) * SCALES.get(measure, 1)


def fits(row: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Whether a row, or a policy, has these values."""
    return all(row[key] == value for key, value in keys.items())


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for how many they are (Holm 1979), in their order."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, k in enumerate(sorted(range(len(ps)), key=lambda k: ps[k])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[k]))
        corrected[k] = largest
    return corrected


@dataclass(frozen=True)
class Curve:
    """Through θ_sft and the policies of one training, over √KL, in which it is straight between them: a KL
    grows as the square of how far weights are moved."""

    roots: Sequence[float]
    """√KL of each policy, ascending; without θ_sft, which is at 0."""
    values: Sequence[float]
    of_sft: float

    def at(self, roots: Any) -> Any:
        """Its values at these √KL."""
        return np.interp(roots, [0.0, *self.roots], [self.of_sft, *self.values])


GAINS = {"reward", "judge"}  # of which a front is made: more is better


def curve_of(policies: Sequence[Row], sft: Row, measure: str = "reward") -> Curve:
    """Of one training's policies. A trajectory may come back to a KL where it has been; what is a gain
    counts there as the largest of those with no larger KL, as in a front."""
    points = sorted((math.sqrt(max(value(r, "kl"), 0.0)), value(r, measure)) for r in policies)
    values = [each for _, each in points]
    if measure in GAINS:
        values = np.maximum.accumulate(values).tolist()
    return Curve([root for root, _ in points], values, value(sft, measure))


def common_roots(ours: Curve, theirs: Curve) -> tuple[float, float] | None:
    """The √KL between which both have policies, one policy being where it is; None where there are none."""
    low = max(curve.roots[0] for curve in (ours, theirs))
    high = min(curve.roots[-1] for curve in (ours, theirs))
    return (low, high) if low <= high and high > 0 else None


def at_equal_kl(ours: Curve, theirs: Curve) -> float | None:
    """Mean difference over the √KL that both have. None where they have none in common."""
    if (ends := common_roots(ours, theirs)) is None:
        return None
    at = np.linspace(*ends, 101)
    return float(np.mean(ours.at(at) - theirs.at(at)))
