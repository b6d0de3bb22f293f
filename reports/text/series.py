"""What figures of the studies show beyond a row's own values: how far above a front, between two runs, at
one KL over the steps of training."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from reports.text.policies import grouped
from reports.text.statistics import Row, curve_of, fits, value

AT_KL = 4.0  # nats, at which rewards are set against the steps behind them
BY_STEPS = {  # a method's policies; what their fronts differ by, and steps of training a unit of it
    "SLERP запусков с одного начала": ({"arm": "merged", "what": "slerp"}, "m", 30),
    "итерации по два запуска": ({"arm": "iterated", "what": "slerp"}, "iteration", 60),
    "один запуск": ({"arm": "single", "what": "run"}, "t", 1),
}


def above_front(rows: Sequence[Row], front: Sequence[Row], sft: Row) -> list[Row]:
    """The rows whose KL their training's front reaches, with `over`: how far above it they are there."""
    fronts = {s: curve_of(each, sft) for s, each in grouped(front, itemgetter("seed")).items()}
    found = []
    for row in rows:
        root, of_seed = value(row, "kl") ** 0.5, fronts.get(row["seed"])
        if of_seed and root <= of_seed.roots[-1]:
            found.append({**row, "over": value(row, "reward") - float(of_seed.at(root))})
    return found


def at_one_kl(rows: Sequence[Row], sft: Row) -> list[dict[str, Any]]:
    """Reward at `AT_KL` by method, steps of training of all runs together, and training; of the fronts
    that get there."""
    found = []
    for method, (keys, key, steps) in BY_STEPS.items():
        of_method = [row for row in rows if fits(row, keys)]
        for (seed, units), front in grouped(of_method, itemgetter("seed", key)).items():
            of_front = curve_of(front, sft)
            if of_front.roots[-1] >= AT_KL**0.5:
                reward = float(of_front.at(AT_KL**0.5))
                of_seed = {"method": method, "seed": seed, "steps": steps * units}
                found.append(of_seed | {"reward": reward})
    return found


def between_two(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Reward and KL over λ from run 1 (λ = 0) to run 2 by merge and training; of SLERP also how far it
    lies above LERP."""
    runs = [row for row in rows if row["what"] == "run" and row["m"] in (1, 2)]
    lerps = {(row["seed"], row["lam"]): row for row in rows if row["what"] == "lerp"}
    found = []
    for what in ("slerp", "lerp"):
        merged = [row for row in rows if row["what"] == what and row["lam"] is not None]
        seeds = {row["seed"] for row in merged}
        ends = [{**row, "lam": row["m"] - 1.0} for row in runs if row["seed"] in seeds]
        for row in sorted([*ends, *merged], key=itemgetter("seed", "lam")):
            cells = {"what": what, "seed": row["seed"], "lam": row["lam"]}
            cells |= {measure: value(row, measure) for measure in ("kl", "reward")}
            other = lerps.get((row["seed"], row["lam"]))
            if what == "slerp" and other:
                cells["slerp_over_lerp"] = value(row, "reward") - value(other, "reward")
            found.append(cells)
    return found
