"""Sampling with a KV cache, log-probabilities, masks (lines 6 and 7 of Algorithm 1).

Prompts are padded on the left, completions on the right. Which tokens count is known by position,
never by id: the end-of-text token and the pad token may share one. A completion ends with its first
stop token, which counts. Logits are divided by the temperature wherever they are used: the
policy that is sampled is the one whose gradient is taken and whose KL is measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from warp_core.engine.draw import draw
from warp_core.world.models import Policy, forward_logits

PLAIN = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch of prompts."""

    tokens: Tensor
    """(B, P + N) int64: prompt, then completion."""
    attention_mask: Tensor
    """(B, P + N) int64: 0 at the prompt's padding and behind the completion's end."""
    completion_mask: Tensor
    """(B, N) bool: True up to and with the first stop token."""

    @property
    def completions(self) -> Tensor:
        """(B, N) int64."""
        return self.tokens[:, -self.completion_mask.shape[1] :]

    def split(self, size: int) -> "list[Rollout]":
        """Its completions, so many at a time."""
        mine = self.tokens, self.attention_mask, self.completion_mask
        return [Rollout(*p) for p in zip(*(each.split(size) for each in mine), strict=True)]

    def ended(self, stops: Sequence[int]) -> Tensor:
        """(B,) bool: whether a completion has come to its stop token."""
        last = self.completion_mask.sum(dim=1, keepdim=True) - 1  # (B, 1)
        ids = torch.tensor(stops, device=last.device)
        return torch.isin(self.completions.gather(1, last)[:, 0], ids)

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The completions as texts, without special tokens: what stands behind the prompt's text.

        Decoded alone, a completion loses its first space where the tokenizer is SentencePiece's.
        """

        def decode(tokens: Tensor, mask: Tensor) -> str:
            return str(tokenizer.decode(tokens[mask.bool()], **PLAIN))

        p = self.tokens.shape[1] - self.completion_mask.shape[1]
        rows = zip(self.tokens, self.attention_mask, strict=True)
        return [decode(ids, mask)[len(decode(ids[:p], mask[:p])) :] for ids, mask in rows]


@torch.no_grad()
def sample(
    model: Policy,
    prompt_tokens: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    stops: Sequence[int],
    generator: torch.Generator,
    temperature: float = 1.0,
    logits_drawn_from: list[Tensor] | None = None,
    k: int = 1,
) -> Rollout:
    """y ~ π_θ(·|x), from the whole softmax: no top-k, no top-p (line 6).

    Args:
        prompt_tokens, prompt_mask: (B, P), padded on the left.
        stops: ids that end a completion; the first one stands behind the end too.
        generator: its state alone decides what is drawn.
        logits_drawn_from: gets the logits of each completion token: (B, V) float32, / temperature.
        k: completions of each prompt, one behind the other; B is the prompts' number times k.

    Raises EvaluationError where a logit is not finite.
    """
    tokens, mask = prompt_tokens, prompt_mask
    done = torch.zeros(k * len(tokens), dtype=torch.bool, device=tokens.device)  # (B,)
    completion_mask = []
    ends = torch.tensor(stops, device=tokens.device)
    cache = DynamicCache(config=model.config)
    step_tokens = tokens
    for n in range(max_new_tokens):
        logits = forward_logits(model, step_tokens, mask, keep=1, cache=cache)[:, 0]  # (B, V)
        if n == 0 and k > 1:  # a prompt's own pass is shared
            tokens, mask, logits = (x.repeat_interleave(k, dim=0) for x in (tokens, mask, logits))
            cache.batch_repeat_interleave(k)
        logits = _tempered(logits, temperature)
        if logits_drawn_from is not None:
            logits_drawn_from.append(logits)
        drawn = draw(logits, generator)  # (B, 1)
        step_tokens = drawn.masked_fill(done[:, None], stops[0])
        completion_mask.append(~done)
        tokens = torch.cat([tokens, step_tokens], dim=1)
        mask = torch.cat([mask, (~done[:, None]).to(mask.dtype)], dim=1)
        done = done | torch.isin(step_tokens[:, 0], ends)
        if done.all():
            break
    return Rollout(tokens, mask, torch.stack(completion_mask, dim=1))


def completion_logits(model: Policy, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Logits that predicted each completion token, / temperature: (B, N, V) float32, with graph."""
    n = rollout.completion_mask.shape[1]
    # The last token predicts nothing that was drawn.
    logits = forward_logits(model, rollout.tokens[:, :-1], rollout.attention_mask[:, :-1], keep=n)
    return _tempered(logits, temperature)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """In float32; a division by 1 would copy all of a vocabulary's logits."""
    return logits.float() if temperature == 1 else logits.float() / temperature


def token_logprobs(logits: Tensor, rollout: Rollout) -> Tensor:
    """log π(y_n | x, y_<n) of the `completion_logits` (B, N, V): (B, N) nats; 0 behind the end."""
    y = rollout.completions  # (B, N)
    logprobs = -F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
    return logprobs.view_as(y).masked_fill(~rollout.completion_mask, 0.0)


def logprob(model: Policy, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """log π_θ(y|x), the sum over the completion's tokens: (B,) nats, with graph."""
    return token_logprobs(completion_logits(model, rollout, temperature), rollout).sum(dim=1)
