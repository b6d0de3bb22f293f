"""Rewards and KLs of policies, with their standard errors.

KL(p‖q) is in nats per completion: completions are sampled from p, at each of their tokens the
exact KL over the whole vocabulary is taken, and these are summed over the completion (the
Rao-Blackwellised estimate: never negative, far less noisy than the sampled log-ratio). The logits
are float32, the sum over the vocabulary float64: in float32 its rounding alone is 1e-6 nats.
Both policies of a pair answer the same prompts with the same random numbers, so equal policies give
equal completions, and the difference of their rewards is a paired one.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warp_core.config import WarpConfig
from warp_core.rollout import Rollout, completion_logits, encode_prompts, end_token, sample
from warp_core.train import Reward

BATCH = 64


@dataclass(frozen=True)
class Completions:
    """What a policy answered to the evaluation prompts."""

    rollouts: list[Rollout]
    texts: list[str]
    rewards: list[float]
    kls: list[float]
    """KL(policy‖reference) of each prompt, nats per completion; empty without a reference."""


@torch.no_grad()
def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    prompts: Sequence[str],
    config: WarpConfig,
    reference: PreTrainedModel | None = None,
) -> Completions:
    """One completion and its reward for each prompt; with a reference, the KL to it too."""
    rollouts: list[Rollout] = []
    kls: list[float] = []
    for start in range(0, len(prompts), BATCH):
        # A seed for each batch: how long one lasts must not change what the next one draws.
        generator = torch.Generator(model.device).manual_seed(config.seed + 1_000_003 * (start + 1))
        batch = encode_prompts(tokenizer, prompts[start : start + BATCH], model.device)
        logits: list[Tensor] | None = None if reference is None else []
        rollout = sample(model, *batch, config.max_new_tokens, end_token(tokenizer), generator,
                         config.temperature, logits)  # fmt: skip
        rollouts.append(rollout)
        if reference is not None and logits is not None:
            of_reference = completion_logits(reference, rollout, config.temperature)  # (B, N, V)
            kl = sequence_kl(torch.stack(logits, dim=1), of_reference, rollout.completion_mask)
            kls += _finite(kl.tolist())
    texts = [text for rollout in rollouts for text in rollout.texts(tokenizer)]
    rewards = reward([p + t for p, t in zip(prompts, texts, strict=True)])
    if not torch.isfinite(rewards).all():
        raise FloatingPointError("evaluation: a reward is not finite; look at the reward model")
    return Completions(rollouts, texts, rewards.tolist(), kls)


def sequence_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor) -> Tensor:
    """KL(p‖q) summed over each completion: (B,) nats, float64.

    Args:
        logits_p, logits_q: (B, N, V), of both policies along the same completions, drawn from p.
        mask: (B, N) bool, which tokens belong to the completion.
    """

    def token_kl(p: Tensor, q: Tensor) -> Tensor:  # (N, V) logits -> (N,)
        logp, logq = (torch.log_softmax(logits, dim=-1, dtype=torch.float64) for logits in (p, q))
        return (logp.exp() * (logp - logq)).sum(dim=-1)

    # One completion at a time: float64 of a whole batch would be gigabytes.
    kl = torch.stack([token_kl(p, q) for p, q in zip(logits_p, logits_q, strict=True)])  # (B, N)
    return kl.masked_fill(~mask, 0.0).sum(dim=1)


@torch.no_grad()
def policy_kl(
    p: PreTrainedModel, q: PreTrainedModel, of_p: Completions, config: WarpConfig
) -> list[float]:
    """KL(p‖q) of each evaluation prompt, nats per completion."""
    kls: list[float] = []
    for rollout in of_p.rollouts:
        logits_p = completion_logits(p, rollout, config.temperature)  # (B, N, V)
        logits_q = completion_logits(q, rollout, config.temperature)
        kls += _finite(sequence_kl(logits_p, logits_q, rollout.completion_mask).tolist())
    return kls


def _finite(kls: list[float]) -> list[float]:
    if not all(map(math.isfinite, kls)):
        raise FloatingPointError("evaluation: a KL is not finite; the policy's logits overflow")
    return kls


def evaluate_pair(
    sft: PreTrainedModel,
    warp: PreTrainedModel,
    of_sft: Completions,
    of_warp: Completions,
    config: WarpConfig,
) -> dict[str, Any]:
    """Rewards and KLs of two policies that answered the same prompts; of_warp with KLs to sft.

    Returns sft_reward, warp_reward, reward_difference (warp − sft, paired by prompt), kl_sft_warp
    and kl_warp_sft, each as `estimate` gives it, and the `text_statistics` of both.
    """
    return {
        "sft_reward": estimate(of_sft.rewards),
        "warp_reward": estimate(of_warp.rewards),
        "reward_difference": estimate(np.subtract(of_warp.rewards, of_sft.rewards)),
        "kl_sft_warp": estimate(policy_kl(sft, warp, of_sft, config)),
        "kl_warp_sft": estimate(of_warp.kls),
        "text": {"sft": text_statistics(of_sft.texts), "warp": text_statistics(of_warp.texts)},
    }


def front_summary(
    points: Sequence[Mapping[str, Any]], of_sft: Sequence[float]
) -> dict[str, list[dict[str, Any]]]:
    """The front and the RL runs beside it, from what each evaluation prompt gave.

    Args:
        points: a row an evaluated policy: its `eta` or its `run`, `rewards` and `kls` (KL(π‖sft),
            nats per completion), one for each evaluation prompt.
        of_sft: θ_sft's rewards on the same prompts.

    Returns:
        front: by η, each eta, reward, kl, gain (reward − θ_sft's, paired by prompt); front_runs: by
        run, each run and the same, and front_above: the front's reward at the run's KL, linear
        between its points, minus the run's, paired by prompt; null beyond the front's ends.
    """

    def described(point: Mapping[str, Any], name: str) -> dict[str, Any]:
        return {name: point[name], "reward": estimate(point["rewards"]),
                "kl": estimate(point["kls"]),
                "gain": estimate(np.subtract(point["rewards"], of_sft))}  # fmt: skip

    swept = sorted((p for p in points if "eta" in p), key=lambda p: p["eta"])
    runs = sorted((p for p in points if "run" in p), key=lambda p: p["run"])
    return {
        "front": [described(p, "eta") for p in swept],
        "front_runs": [described(p, "run") | {"front_above": _above(swept, p)} for p in runs],
    }


def _above(
    swept: Sequence[Mapping[str, Any]], run: Mapping[str, Any]
) -> dict[str, float | int] | None:
    kl = float(np.mean(run["kls"]))
    by_kl = sorted(swept, key=lambda p: float(np.mean(p["kls"])))
    for low, high in itertools.pairwise(by_kl):
        start, end = float(np.mean(low["kls"])), float(np.mean(high["kls"]))
        if start <= kl <= end:
            part = (kl - start) / (end - start) if end > start else 0.0
            of_front = np.multiply(low["rewards"], 1 - part) + np.multiply(high["rewards"], part)
            return estimate(of_front - np.array(run["rewards"]))
    return None


def estimate(values: Sequence[float] | np.ndarray) -> dict[str, float | int]:
    """Mean, its standard error (of independent values), and their number n ≥ 2."""
    n = len(values)
    return {"mean": float(np.mean(values)), "stderr": float(np.std(values, ddof=1) / math.sqrt(n)),
            "n": n}  # fmt: skip


def text_statistics(texts: Sequence[str]) -> dict[str, float]:
    """What a reward does not see of a collapse; all shares lie from 0 to 1.

    Returns:
        words: mean number of words; repetition: share of a text's words that it already used,
        mean over texts; distinct: share of different texts; distinct_pairs: share of different
        pairs of neighbouring words among all of them (distinct-2 of Li et al. 2016; 1 where there
        are none); empty: share of texts without a word.
    """
    words = [text.lower().split() for text in texts]
    pairs = [pair for w in words for pair in itertools.pairwise(w)]
    repetition = [1 - len(set(w)) / len(w) for w in words if w]
    return {
        "words": float(np.mean([len(w) for w in words])),
        "repetition": float(np.mean(repetition)) if repetition else 0.0,
        "distinct": len(set(texts)) / len(texts),
        "distinct_pairs": len(set(pairs)) / len(pairs) if pairs else 1.0,
        "empty": sum(not w for w in words) / len(words),
    }
