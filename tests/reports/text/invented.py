"""Results of an experiment that nobody ran, for the sentences that are made of them."""

from typing import Any


def estimate(mean: float, stderr: float = 0.1, n: int = 16) -> dict[str, float | int]:
    return {"mean": mean, "stderr": stderr, "n": n}


def summary(
    kl: float = 5.0,
    difference: float = 1.0,
    repetition: float = 0.05,
    distinct: float = 1.0,
    empty: float = 0.0,
    pairs: float = 0.9,
    angle: float | None = 0.0,
    training: tuple[float, ...] = (1.0, 0.5),
    before: float = 0.05,
) -> dict[str, Any]:
    """What summary.json holds of an experiment with two runs; `before` is θ_sft's repetition."""
    sft = {
        "words": 15.0,
        "repetition": before,
        "distinct": 1.0,
        "distinct_pairs": 0.9,
        "empty": 0.0,
    }
    warp = {"repetition": repetition, "distinct": distinct, "distinct_pairs": pairs, "empty": empty}
    return {
        "sft_reward": estimate(0.0),
        "warp_reward": estimate(difference),
        "reward_difference": estimate(difference),
        "kl_sft_warp": estimate(kl),
        "kl_warp_sft": estimate(kl),
        "text": {"sft": sft, "warp": sft | warp},
        "angles": [{"layers.0": [[0.0, angle], [angle, 0.0]]}],
        "training_reward": list(training),
    }


def metrics(curves: dict[tuple[int, int], list[float]]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl from {(iteration, run): objectives}."""
    return [
        {"iteration": i, "run": m, "step": t, "objective": value, "same": 0.1, "empty": 0.0}
        for (i, m), values in curves.items()
        for t, value in enumerate(values, start=1)
    ]


SAME = {(i, m): [0.0, 1.0, 2.0] for i in (1, 2) for m in (1, 2)}
PARAMS = {  # those of params.yaml that the sentences look at
    "steps": 3,
    "warmup_steps": 0,
    "batch_size": 16,
    "max_new_tokens": 24,
    "max_kl": 0.0,
    "shared_run_seed": True,
}
OWN_SEEDS = PARAMS | {"shared_run_seed": False}


def front_point(key: str, value: float, kl: float, **more: Any) -> dict[str, Any]:
    """A point of `front` (key: eta) or of `front_runs` (key: run)."""
    gain = {"reward": estimate(kl / 10), "gain": estimate(kl / 10, 0.02)}
    return {key: value, "kl": estimate(kl)} | gain | more


FRONT = [front_point("eta", eta, 10 * eta) for eta in (0.0, 0.5, 1.0)]
