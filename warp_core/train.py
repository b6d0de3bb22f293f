"""Lines 5 to 10 of Algorithm 1: one RL run.

Where it departs from the page: nothing but Adam's warm-up and, if asked for, a leave-one-out
baseline and a fixed SFT anchor. There is one gradient step for each batch, so no ratio and no trust
region; dropout is off throughout.
"""

import itertools
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from warp_core.checkpoint import Checkpoint, State
from warp_core.config import WarpConfig
from warp_core.errors import TrainingError
from warp_core.interrupts import held_back
from warp_core.merge import ema_update_
from warp_core.models import set_weights, weights_of
from warp_core.rollout import (
    encode_prompts,
    end_token,
    logprob,
    sample,
)
from warp_core.tape import Tape

Reward = Callable[[Sequence[str]], Tensor]  # texts -> (B,) float32


def train_run(
    policy: PreTrainedModel,
    anchor: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward: Reward,
    prompts: Sequence[str],
    config: WarpConfig,
    seed: int,
    on_step: Callable[[dict[str, Any]], None],
    checkpoint: Checkpoint | None = None,
) -> None:
    """Train `policy` in place for T steps; `anchor` follows it by EMA, or stays (`anchor: sft`).

    Args:
        policy: θ^m, at θ_init.
        anchor: what the KL is measured to: θ_ema^m, a copy of θ_init; or θ_sft.
        reward: r, from prompt + completion as one text.
        seed: of the sampling and of the order of the prompts.
        on_step: gets each step's metrics: step, objective (mean r_β), reward, kl_anchor (nats per
            completion, sampled), lr, grad_norm, tokens, same (`most_common`) and empty (share of
            completions without a word), seconds; stopped, where max_kl ended the run.
        checkpoint: where the run goes on from, and is kept every `checkpoint_every` steps.

    Raises:
        TrainingError: a logit, a reward, the loss, a gradient or a weight is not finite.
        KeyboardInterrupt: Ctrl-C; with a checkpoint, all whole steps are in it.
    """
    device = policy.device
    generator = torch.Generator(device).manual_seed(seed)
    batches = prompt_batches(prompts, config.batch_size, seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr, fused=True)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16")
    tape = Tape(policy)
    state = State(policy, anchor, optimizer, generator, good={})
    done, stopped = checkpoint.restore(state) if checkpoint else 0, False
    batches = itertools.islice(batches, done, None)
    with checkpoint.kept_if_interrupted(state) if checkpoint else nullcontext():
        for t in range(done + 1, config.steps + 1):  # line 5
            start = time.perf_counter()

            optimizer.zero_grad()  # before sampling, which can use the memory

            # line 6: y ~ π_θm(·|x)
            x = next(batches)
            tokens, mask = encode_prompts(tokenizer, x, device)  # (B, P)
            try:
                with autocast, tape.recording(tokens.shape[1] + config.max_new_tokens):
                    y = sample(policy, tokens, mask, config.max_new_tokens, end_token(tokenizer),
                               generator, config.temperature)  # fmt: skip
            except FloatingPointError as error:
                raise TrainingError(f"step {t}: {error}") from None

            # line 7: r_β(y) = r(x, y) − β·log(π_θm(y|x) / π_θema(y|x)), no gradient through it
            with autocast, torch.no_grad():
                logprobs_ema = logprob(anchor, y, config.temperature)  # (B,)
            with autocast, tape.replaying():
                logprobs = logprob(policy, y, config.temperature)  # (B,)
            kl = logprobs.detach() - logprobs_ema  # (B,)
            completions = y.texts(tokenizer)
            texts = [a + b for a, b in zip(x, completions, strict=True)]
            r = _finite("reward", reward(texts).to(device), t)
            r_beta = r - config.beta * kl  # (B,)

            # line 8: θ^m ← Opt(θ^m, r_β·∇ log π_θm(y|x))
            advantages = r_beta - loo_baseline(r_beta) if config.baseline == "loo" else r_beta
            loss = _finite("loss", -(advantages * logprobs).mean(), t)
            loss.backward()
            grad_norm = get_total_norm([p.grad for p in policy.parameters() if p.grad is not None])
            _finite("gradient", grad_norm, t)
            lr = warmed_up(config.lr, t, config.warmup_steps)
            row = {
                "step": t, "objective": r_beta.mean().item(), "reward": r.mean().item(),
                "kl_anchor": kl.mean().item(), "lr": lr, "grad_norm": grad_norm.item(),
                "tokens": int(y.completion_mask.sum()), "same": most_common(completions),
                "empty": sum(not text.strip() for text in completions) / len(completions),
            }  # fmt: skip
            with held_back():  # a step is whole, or was not begun
                if stopped := 0 < config.max_kl < row["kl_anchor"]:
                    on_step(row | {"stopped": True, "seconds": time.perf_counter() - start})
                    break
                if config.max_kl:
                    state.good = {name: w.clone() for name, w in weights_of(policy).items()}
                optimizer.param_groups[0]["lr"] = lr
                optimizer.step()
                _finite("weight norm", get_total_norm([p.detach() for p in policy.parameters()]), t)

                # line 9: θ_ema ← (1 − μ)·θ_ema + μ·θ
                if config.anchor == "ema":
                    ema_update_(weights_of(anchor), weights_of(policy), config.mu)

                on_step(row | {"seconds": time.perf_counter() - start})
                if checkpoint:
                    checkpoint.whole(t, state, last=t == config.steps)
    if stopped and state.good:  # at the first step nothing has been updated
        set_weights(policy, state.good)


def warmed_up(lr: float, step: int, warmup_steps: int) -> float:
    """lr at step t = 1, 2, …: linear from lr/W at the first step to lr at step W."""
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


def loo_baseline(r_beta: Tensor) -> Tensor:
    """Mean r_β of the other completions, for each one: (B,) -> (B,); unbiased (Kool et al. 2019)."""
    return (r_beta.sum() - r_beta) / (len(r_beta) - 1)


def most_common(texts: Sequence[str]) -> float:
    """Share of the texts that are the most frequent one: 1/B where all differ, 1 at a collapse."""
    return max(Counter(texts).values()) / len(texts)


def prompt_batches(prompts: Sequence[str], batch_size: int, seed: int) -> Iterator[list[str]]:
    """Endless batches: the prompts in a random order, all of them before one comes again."""
    rng = random.Random(seed)
    batch: list[str] = []
    while True:
        for prompt in rng.sample(prompts, len(prompts)):
            batch.append(prompt)
            if len(batch) == batch_size:
                yield batch
                batch = []


def _finite(what: str, value: Tensor, step: int) -> Tensor:
    if not torch.isfinite(value).all():
        bad = next(v for v in value.flatten().tolist() if not math.isfinite(v))
        raise TrainingError(
            f"step {step}: the {what} is not finite ({bad}). A smaller lr or a longer warm-up "
            "helps where training diverges; a reward that is not finite is the reward model's fault"
        )
    return value
