"""What summary.json and samples.jsonl say of an experiment, from what its policies answered."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from warp_core.evaluate import Completions, Estimate, estimate
from warp_core.world.texts import text_statistics


def before_and_after(
    sft: Completions, warp: Completions, from_sft: Sequence[float]
) -> dict[str, Any]:
    """θ_sft and the WARP policy on the same prompts.

    Args:
        from_sft: KL(θ_sft‖warp) of each prompt, nats per completion.

    Returns sft_reward, warp_reward, reward_difference (paired by prompt), kl_sft_warp, kl_warp_sft (nats
    per completion), each an `estimate`; text: `text_statistics` of both.
    """
    return {
        "sft_reward": estimate(sft.rewards),
        "warp_reward": estimate(warp.rewards),
        "reward_difference": estimate(np.subtract(warp.rewards, sft.rewards)),
        "kl_sft_warp": estimate(from_sft),
        "kl_warp_sft": estimate(warp.kls),
        "text": {"sft": text_statistics(sft.texts), "warp": text_statistics(warp.texts)},
    }


def samples(prompts: Sequence[str], sft: Completions, warp: Completions) -> list[dict[str, Any]]:
    """A row a prompt: prompt, sft, warp (completions), sft_reward, warp_reward."""
    columns = zip(prompts, sft.texts, warp.texts, sft.rewards, warp.rewards, strict=True)
    names = ("prompt", "sft", "warp", "sft_reward", "warp_reward")
    return [dict(zip(names, row, strict=True)) for row in columns]


def front_summary(points: Sequence[Mapping[str, Any]], of_sft: Sequence[float]) -> dict[str, Any]:
    """The front and the RL runs beside it, from what each evaluation prompt gave.

    Args:
        points: of each policy its `eta` or its `run`, and by prompt its `rewards` and `kls` to θ_sft, and
            what the `judge` says if there is one.
        of_sft: θ_sft's rewards on the same prompts.

    Returns:
        front: by η, each eta, reward, kl, judge, gain (reward − θ_sft's, paired by prompt); front_runs: by
        run the same, and front_above: the front's reward at the run's KL, linear between its points,
        minus the run's, paired by prompt; null beyond the front's ends.
    """

    def described(point: Mapping[str, Any], name: str) -> dict[str, Any]:
        gain, kl = estimate(np.subtract(point["rewards"], of_sft)), estimate(point["kls"])
        judge = {"judge": estimate(point["judge"])} if "judge" in point else {}
        of = {name: point[name], "reward": estimate(point["rewards"])}
        return of | {"kl": kl, **judge, "gain": gain}

    swept = sorted((p for p in points if "eta" in p), key=lambda p: p["eta"])
    runs = sorted((p for p in points if "run" in p), key=lambda p: p["run"])
    return {
        "front": [described(p, "eta") for p in swept],
        "front_runs": [described(p, "run") | {"front_above": _above(swept, p)} for p in runs],
    }


def _above(swept: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> Estimate | None:
    kl = float(np.mean(run["kls"]))
    by_kl = sorted(swept, key=lambda p: float(np.mean(p["kls"])))
    for low, high in itertools.pairwise(by_kl):
        start, end = float(np.mean(low["kls"])), float(np.mean(high["kls"]))
        if start <= kl <= end:
            part = (kl - start) / (end - start) if end > start else 0.0
            of_front = np.multiply(low["rewards"], 1 - part) + np.multiply(high["rewards"], part)
            return estimate(of_front - np.array(run["rewards"]))
    return None
