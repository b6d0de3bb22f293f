"""Rewards and KLs of policies, and their standard errors.

KL(p‖q) is in nats per completion: at each token of completions sampled from p the exact KL over the
whole vocabulary, summed over the completion (the Rao-Blackwellised estimate: never negative, far less
noisy than the sampled log-ratio), in float64, for float32's rounding alone is 1e-6 nats. Policies
answer the same prompts with the same random numbers, so differences of rewards are paired.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from warp_core.engine.memory import LOGITS
from warp_core.rollout import Rollout, completion_logits, sample
from warp_core.store.errors import EvaluationError
from warp_core.world.models import Policy, encode_prompts, stop_tokens
from warp_core.world.prompts import Prompt, with_completion
from warp_core.world.reward import Reward

BATCH = 64
Estimate = dict[str, float | int]


@dataclass(frozen=True)
class Completions:
    """What a policy answered to the evaluation prompts, one completion each."""

    rollouts: list[Rollout]
    texts: list[str]
    rewards: list[float]
    kls: list[float]
    """KL(policy‖reference) of each prompt, nats per completion."""


@torch.no_grad()
def complete(
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    prompts: Sequence[Prompt],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    reference: Policy | None = None,
) -> Completions:
    """One completion of each prompt, its reward, and the KL to the reference (None: itself, so 0).

    Policies that are compared get one seed. Raises EvaluationError where something is not finite.
    """
    rollouts: list[Rollout] = []
    kls: list[float] = []
    for start in range(0, len(prompts), BATCH):
        # A seed for each batch: how long one lasts must not change what the next one draws.
        generator = torch.Generator(policy.device).manual_seed(seed + 1_000_003 * (start + 1))
        batch = encode_prompts(tokenizer, prompts[start : start + BATCH], policy.device)
        logits = None if reference is None else list[Tensor]()
        stops = stop_tokens(policy, tokenizer)
        y = sample(policy, *batch, max_new_tokens, stops, generator, temperature, logits)
        rollouts.append(y)
        kl = torch.zeros(len(y.tokens))  # (B,)
        if reference is not None and logits is not None:
            parts, size = _parts(y, policy)
            of_policy = (
                torch.stack([each[k : k + size] for each in logits], dim=1)  # (b, N, V)
                for k in range(0, len(kl), size)
            )
            pairs = zip(of_policy, parts, strict=True)
            kl = torch.cat([_kl(p, reference, part, temperature) for p, part in pairs])
        kls += _finite("KL", kl)
    texts = [text for y in rollouts for text in y.texts(tokenizer)]
    rewards = reward([with_completion(p, t) for p, t in zip(prompts, texts, strict=True)])
    return Completions(rollouts, texts, _finite("reward", rewards), kls)


def sequence_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor) -> Tensor:
    """KL(p‖q) summed over each completion: (B,) nats, float64.

    Args:
        logits_p, logits_q: (B, N, V), along the same completions, drawn from p.
        mask: (B, N) bool, which tokens belong to the completion.
    """

    def token_kl(p: Tensor, q: Tensor) -> Tensor:  # (N, V) logits -> (N,)
        logp, logq = (torch.log_softmax(logits, dim=-1, dtype=torch.float64) for logits in (p, q))
        terms = logp.exp() * (logp - logq)
        return terms.masked_fill_(logp == -math.inf, 0.0).sum(dim=-1)  # 0·log 0 = 0

    # One completion at a time: float64 of a whole batch would be gigabytes.
    kl = torch.stack([token_kl(p, q) for p, q in zip(logits_p, logits_q, strict=True)])  # (B, N)
    return kl.masked_fill(~mask, 0.0).sum(dim=1)


@torch.no_grad()
def policy_kl(p: Policy, q: Policy, of_p: Sequence[Rollout], temperature: float) -> list[float]:
    """KL(p‖q) along each completion of p, nats; raises EvaluationError where one is not finite."""
    parts = [part for y in of_p for part in _parts(y, p)[0]]
    kls = [_kl(completion_logits(p, y, temperature), q, y, temperature) for y in parts]
    return _finite("KL", torch.cat(kls))


def _kl(logits_p: Tensor, q: Policy, y: Rollout, temperature: float) -> Tensor:
    return sequence_kl(logits_p, completion_logits(q, y, temperature), y.completion_mask)


def _parts(y: Rollout, policy: Policy) -> tuple[list[Rollout], int]:
    """So many completions at a time that their logits have room, and how many."""
    of_one = y.completion_mask.shape[1] * policy.config.get_text_config().vocab_size
    size = max(1, LOGITS // of_one)
    return y.split(size), size


def _finite(what: str, values: Tensor) -> list[float]:
    if not torch.isfinite(values).all():
        raise EvaluationError(f"a {what} is not finite: logits overflow, or the reward model fails")
    return values.tolist()


def estimate(values: Sequence[float] | np.ndarray) -> Estimate:
    """Mean, its standard error (of independent values), and their number n ≥ 2."""
    n, stderr = len(values), np.std(values, ddof=1) / math.sqrt(len(values))
    return {"mean": float(np.mean(values)), "stderr": float(stderr), "n": n}


def between_trainings(values: Sequence[float]) -> dict[str, float]:
    """Mean of a value by training seed, its 95 % interval (Student's t) and the p of a mean of 0.

    Returns mean, low, high, p, n; raises EvaluationError for fewer than two trainings.
    """
    n = len(values)
    if n < 2:
        raise EvaluationError("one training has no error between trainings; two or more are needed")
    mean, stderr = float(np.mean(values)), float(np.std(values, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf(0.975, n - 1)) * stderr
    t = mean / stderr if stderr else math.copysign(math.inf, mean) if mean else 0.0
    p = float(2 * stats.t.sf(abs(t), n - 1))
    return {"mean": mean, "low": mean - half, "high": mean + half, "p": p, "n": n}
