"""What a study compares: its comparisons, checked; differences by training seed, at equal KL; Holm.

The error between trainings is `warp_core.evaluate.between_trainings`.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from warp_core.config import ConfigError, load_params
from warp_core.store.parameters import unknown_parameter
from warp_core.study import config_of, wanted
from warp_core.world.studies import Comparison, Point, Study

Row = Mapping[str, Any]
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
        for side in (each.ours, each.theirs):
            if unknown := _unknown(where, side):
                mistakes += unknown
                continue
            found = [point for point in points if fits(point.model_dump(), side)]
            arms = {point.arm for point in found if point.arm}
            if each.measure == "judge" and not all(config_of(study, a, 0).judge for a in arms):
                mistakes.append(f"{where}: measures what a judge says, and no `judge` is set")
            if not found or (each.at == "policy" and len(found) > 1):
                mistakes.append(f"{where}: {side} fits {len(found)} of the evaluated policies")
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

    At equal KL it is `at_equal_kl` of the curves through the rows of each side and θ_sft.
    """

    def side(keys: Mapping[str, Any], seed: int) -> list[Row]:
        return [row for row in rows if row["seed"] in (seed, None) and fits(row, keys)]

    def complete(keys: Mapping[str, Any], seed: int) -> bool:
        fitting = [s for s, point in asked if s in (seed, None) and fits(point.model_dump(), keys)]
        return len(side(keys, seed)) == len(fitting) > 0

    measure, sft = comparison.measure, [row for row in rows if row["what"] == "sft"]
    found: dict[int, float] = {}
    for seed in dict.fromkeys(row["seed"] for row in rows if row["seed"] is not None):
        ours, theirs = side(comparison.ours, seed), side(comparison.theirs, seed)
        sides = comparison.ours, comparison.theirs
        if not (sft and all(complete(keys, seed) for keys in sides)):
            continue
        by_sft = [row["sft_reward"] for row in [*ours, *theirs, *sft]]
        if max(by_sft) - min(by_sft) > SAME_REWARD:
            continue
        if comparison.at == "policy":
            found[seed] = value(ours[0], measure) - comparison.share * value(theirs[0], measure)
        else:
            a, b = ([(value(r, "kl"), value(r, measure)) for r in each] for each in (ours, theirs))
            difference = at_equal_kl(a, b, value(sft[0], measure))
            found |= {} if difference is None else {seed: difference}
    return found


def value(row: Row, measure: str) -> float:
    """A row's measure: the mean over prompts, or the figure itself."""
    return row[measure]["mean"] if isinstance(row[measure], Mapping) else row[measure]


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


Curve = Sequence[tuple[float, float]]  # (KL to θ_sft, value) of policies


def at_equal_kl(ours: Curve, theirs: Curve, of_sft: float) -> float | None:
    """Mean difference of two curves over the KLs that both have; None where one has no KL above 0.

    A KL grows as the square of how far weights are moved, so curves are straight between their points,
    and averaged, in √KL. Both begin at θ_sft, (0, `of_sft`). A side of one policy is met at its KL.
    """
    points = [sorted((math.sqrt(max(kl, 0.0)), value) for kl, value in c) for c in (ours, theirs)]
    high = min(curve[-1][0] for curve in points)
    low = min(max(curve[0][0] for curve in points), high)
    if high <= 0:
        return None
    at = np.linspace(low, high, 101)
    lines = [np.array([(0.0, of_sft), *curve]).T for curve in points]
    a, b = (np.interp(at, distance, value) for distance, value in lines)
    return float(np.mean(a - b))
