"""Lines 4 to 10 of Algorithm 1: one RL run, asked for a step at a time.

Whoever asks loops, saves, logs, stops and shows; a run knows nothing of files. Where it departs from
the page, if asked for: warm-up, a leave-one-out baseline, a fixed SFT anchor, clipping, a penalty for no
stop token, bf16. There is one gradient step for each batch, so no ratio, no trust region; dropout is off.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from transformers import PreTrainedTokenizerBase

from warp_core.config import Training
from warp_core.merge import ema_update_
from warp_core.rollout import logprob, sample
from warp_core.store.errors import RewardError, TrainingError
from warp_core.world.models import (
    Policy,
    encode_prompts,
    recomputed,
    set_weights,
    stop_tokens,
    weights_of,
)
from warp_core.world.prompts import Prompt, prompt_batches, with_completion
from warp_core.world.reward import Reward

ROUNDING = {"fp32": 1e-3, "bf16": 0.1}  # nats a token, more than was ever seen


class Run:
    """θ^m on its way from θ_init; `policy` is trained in place, `anchor` follows it by EMA.

    Args:
        policy: θ^m, at θ_init.
        anchor: what the KL is measured to: θ_ema^m, a copy of θ_init; or θ_sft, which stays.
        reward: r, from prompt + completion as one text, or as a conversation.
        seed: of the sampling and of the order of the prompts.
        theta_ema: weights that follow by EMA; None: the anchor's, if it is no θ_sft.
    """

    def __init__(
        self,
        policy: Policy,
        anchor: Policy,
        tokenizer: PreTrainedTokenizerBase,
        reward: Reward,
        prompts: Sequence[Prompt],
        training: Training,
        seed: int,
        theta_ema: dict[str, Tensor] | None = None,
    ) -> None:
        self.policy, self.anchor = policy, anchor  # line 4
        self.tokenizer, self.reward, self.training = tokenizer, reward, training
        self.theta_ema = weights_of(anchor) if training.anchor == "ema" else theta_ema or {}
        self.t = 0  # whole steps so far
        self.whole = True  # not within an update: after one that failed, the weights are of no step
        self.before: dict[str, Tensor] = {}  # weights before the last update, for `max_kl`
        prompts_of_a_step = training.batch_size // training.completions_per_prompt
        self._batches = prompt_batches(prompts, prompts_of_a_step, seed)
        self._generator = torch.Generator(policy.device).manual_seed(seed)
        self._random = self._generator.get_state()  # behind the last whole step
        self._optimizer = torch.optim.Adam(policy.parameters(), lr=training.lr, fused=True)
        half = training.precision == "bf16"
        self._autocast = torch.autocast(policy.device.type, torch.bfloat16, enabled=half)

    def step(self) -> dict[str, Any]:
        """Lines 6 to 9; returns what `gradient` does."""
        row = self.gradient()
        self.update()
        return row

    def gradient(self) -> dict[str, Any]:
        """Lines 6 to 8 up to the gradient; no weight is changed.

        Returns the step's metrics: step, objective (mean r_β), reward, kl_anchor (nats per completion,
        sampled), lr, grad_norm (before clipping), tokens, and the shares of completions without a stop
        token (unfinished), that are the most frequent one (same: 1/B where all differ), and empty.

        Raises TrainingError where a logit, a reward, the loss or the gradient is not finite.
        """
        t, c = self.t + 1, self.training
        self._optimizer.zero_grad()  # before sampling, which can use the memory

        # line 6: y ~ π_θm(·|x)
        x, k = next(self._batches), c.completions_per_prompt
        batch = encode_prompts(self.tokenizer, x, self.policy.device)  # (B / k, P), (B / k, P)
        until = c.max_new_tokens, stop_tokens(self.policy, self.tokenizer)
        try:
            with self._autocast:
                y = sample(self.policy, *batch, *until, self._generator, c.temperature, k=k)
        except FloatingPointError as error:
            raise TrainingError(f"step {t}: {error}") from None

        # line 7: r_β(y) = r(x, y) − β·log(π_θm(y|x) / π_θema(y|x)), no gradient through it
        size = c.micro_batch or c.batch_size
        parts, whole = y.split(size), size >= c.batch_size
        with self._autocast, torch.no_grad():
            logprobs_ema = torch.cat([logprob(self.anchor, p, c.temperature) for p in parts])
        with self._graph(), torch.set_grad_enabled(whole):
            logprobs = torch.cat([logprob(self.policy, p, c.temperature) for p in parts])  # (B,)
        kl = logprobs.detach() - logprobs_ema  # (B,)
        far, rounding = kl.abs().max().item(), ROUNDING[c.precision] * c.max_new_tokens
        if t == 1 and c.anchor == "ema" and far > rounding:
            raise TrainingError(
                f"step 1: the KL to the anchor is {far:.2g} nats for a completion, and not 0 as that to a "
                "copy: the policy gives other log-probabilities each time it is asked"
            )
        completions = y.texts(self.tokenizer)
        repeated = [prompt for prompt in x for _ in range(k)]
        texts = [with_completion(a, b) for a, b in zip(repeated, completions, strict=True)]
        try:
            r = _finite("reward", self.reward(texts).to(kl.device), t)
        except RewardError as error:
            raise RewardError(f"step {t}: {error}") from None
        unfinished = ~y.ended(until[1])  # (B,)
        r_beta = r - c.missing_eos_penalty * unfinished - c.beta * kl  # (B,)

        # line 8: r_β·∇ log π_θm(y|x), with r_β less its baseline if there is one
        advantages = r_beta - loo_baseline(r_beta, k) if c.baseline == "loo" else r_beta
        for part, a, known in zip(parts, advantages.split(size), logprobs.split(size), strict=True):
            with self._graph():
                of_part = known if whole else logprob(self.policy, part, c.temperature)
            loss = _finite("loss", -(a * of_part).mean(), t)
            (loss if whole else loss * len(a) / len(advantages)).backward()
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        grad_norm = _finite("gradient", get_total_norm(gradients), t)
        if c.max_grad_norm:
            clip_grads_with_norm_(self.policy.parameters(), c.max_grad_norm, grad_norm)
        return {
            "step": t,
            "objective": r_beta.mean().item(),
            "reward": r.mean().item(),
            "kl_anchor": kl.mean().item(),
            "lr": warmed_up(c.lr, t, c.warmup_steps),
            "grad_norm": grad_norm.item(),
            "tokens": int(y.completion_mask.sum()),
            "unfinished": unfinished.float().mean().item(),
            "same": max(Counter(completions).values()) / len(completions),
            "empty": sum(not text.strip() for text in completions) / len(completions),
        }

    @contextmanager
    def _graph(self) -> Iterator[None]:
        """Around a pass of the policy that gets its gradient."""
        again = self.training.gradient_checkpointing
        with self._autocast, recomputed(self.policy) if again else nullcontext():
            yield

    def update(self) -> None:
        """Lines 8, 9: the step is whole then; raises TrainingError where a weight is not finite."""
        t, c = self.t + 1, self.training
        if c.max_kl:
            self.before = {name: w.clone() for name, w in weights_of(self.policy).items()}
        self.whole = False
        # line 8: θ^m ← Opt(θ^m, …)
        self._optimizer.param_groups[0]["lr"] = warmed_up(c.lr, t, c.warmup_steps)
        self._optimizer.step()
        _finite("weight norm", get_total_norm([p.detach() for p in self.policy.parameters()]), t)

        # line 9: θ_ema ← (1 − μ)·θ_ema + μ·θ
        if self.theta_ema:
            ema_update_(self.theta_ema, weights_of(self.policy), c.mu)
        self._random = self._generator.get_state()
        self.t, self.whole = t, True

    def undo(self) -> None:
        """Back to the weights before the last update, which `max_kl` lets a run keep."""
        if self.before:  # at the first step nothing has been updated
            set_weights(self.policy, self.before)

    def state(self) -> dict[str, Any]:
        """All that a run changes as it goes, what a checkpoint holds; the tensors themselves."""
        adam = {str(index): each for index, each in self._optimizer.state_dict()["state"].items()}
        weights = {"policy": weights_of(self.policy), "ema": self.theta_ema}
        counts = {"random": self._random, "t": torch.tensor(self.t)}
        return weights | {"before": self.before, "adam": adam} | counts

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, bit for bit; the run must be at its start."""
        if state["random"].shape != self._random.shape:
            raise TrainingError(
                "begun on another kind of device, its random numbers cannot go on here"
            )
        set_weights(self.policy, state["policy"])
        for name, tensor in state.get("ema", {}).items():
            self.theta_ema[name].copy_(tensor)
        before, theta = state.get("before", {}), weights_of(self.policy)
        self.before = {name: tensor.to(theta[name].device) for name, tensor in before.items()}
        adam = {int(index): each for index, each in state.get("adam", {}).items()}
        self._optimizer.load_state_dict(self._optimizer.state_dict() | {"state": adam})
        self._random, self.t = state["random"], int(state["t"])
        self._generator.set_state(self._random)
        self._batches = itertools.islice(self._batches, self.t, None)


def warmed_up(lr: float, step: int, warmup_steps: int) -> float:
    """lr at step t = 1, 2, …: linear from lr/W at the first step to lr at step W."""
    return lr * min(1.0, step / warmup_steps) if warmup_steps else lr


def loo_baseline(r_beta: Tensor, k: int = 1) -> Tensor:
    """Mean r_β of the other completions, of the same prompt if it has k > 1 (RLOO, Ahmadian et al. 2024),
    else of the batch: (B,) -> (B,); unbiased (Kool et al. 2019)."""
    groups = r_beta.view(-1, k) if k > 1 else r_beta[None]  # (prompts, k) or (1, B)
    return ((groups.sum(dim=1, keepdim=True) - groups) / (groups.shape[1] - 1)).view_as(r_beta)


def _finite(what: str, value: Tensor, step: int) -> Tensor:
    if not torch.isfinite(value).all():
        bad = next(v for v in value.flatten().tolist() if not math.isfinite(v))
        raise TrainingError(
            f"step {step}: the {what} is not finite ({bad}). A smaller lr or a longer warm-up "
            "helps where training diverges; a reward that is not finite is the reward model's fault"
        )
    return value
