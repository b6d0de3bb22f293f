"""Sampling with a KV cache, log-probabilities, masks (lines 6 and 7 of Algorithm 1).

Prompts are padded on the left, completions on the right. Which tokens count is known by position,
never by id: the end-of-text token and the pad token may share one. A completion ends with its first
end-of-text token, which counts; what stands behind it changes nothing.
Logits are divided by the temperature wherever they are used, so the policy that is sampled, the one
whose gradient is taken and the one whose KL is measured are the same.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rollout:
    """Completions of a batch of prompts."""

    tokens: Tensor
    """(B, P + N) int64: prompt, then completion."""
    attention_mask: Tensor
    """(B, P + N) int64: 0 at the prompt's padding and behind the completion's end."""
    completion_mask: Tensor
    """(B, N) bool: True up to and with the first end-of-text token."""

    @property
    def completions(self) -> Tensor:
        """(B, N) int64."""
        return self.tokens[:, -self.completion_mask.shape[1] :]

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """The completions as texts, special tokens left out: what stands behind the prompt's text.

        Prompt and completion are decoded together: alone, a completion loses its first space
        where the tokenizer is SentencePiece's.
        """

        def decode(tokens: Tensor, mask: Tensor) -> str:
            return str(tokenizer.decode(tokens[mask.bool()], skip_special_tokens=True,
                                        clean_up_tokenization_spaces=False))  # fmt: skip

        p = self.tokens.shape[1] - self.completion_mask.shape[1]
        rows = zip(self.tokens, self.attention_mask, strict=True)
        return [decode(ids, mask)[len(decode(ids[:p], mask[:p])) :] for ids, mask in rows]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask of the prompts, both (B, P), padded on the left."""
    batch = tokenizer(list(prompts), padding=True, padding_side="left", return_tensors="pt")
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a completion."""
    token = tokenizer.eos_token_id
    assert isinstance(token, int)  # load_policy refuses tokenizers without one
    return token


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompt_tokens: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    end: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    logits_drawn_from: list[Tensor] | None = None,
) -> Rollout:
    """y ~ π_θ(·|x), from the whole softmax: no top-k, no top-p (line 6).

    Args:
        prompt_tokens, prompt_mask: (B, P), padded on the left.
        end: id that ends a completion; it stands behind the end too.
        generator: on the model's device; its state alone decides what is drawn.
        logits_drawn_from: gets the logits, / temperature, of each completion token: (B, V) float32.

    Raises FloatingPointError where a logit is NaN or infinite.
    """
    tokens, mask = prompt_tokens, prompt_mask
    done = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)  # (B,)
    completion_mask = []
    cache = DynamicCache(config=model.config)
    step_tokens = tokens
    for _ in range(max_new_tokens):
        logits = forward_logits(model, step_tokens, mask, keep=1, cache=cache)[:, 0]  # (B, V)
        logits = _tempered(logits, temperature)
        if logits_drawn_from is not None:
            logits_drawn_from.append(logits)
        drawn = draw(logits, generator)  # (B, 1)
        step_tokens = drawn.masked_fill(done[:, None], end)
        completion_mask.append(~done)
        tokens = torch.cat([tokens, step_tokens], dim=1)
        mask = torch.cat([mask, (~done[:, None]).to(mask.dtype)], dim=1)
        done = done | (step_tokens[:, 0] == end)
        if done.all():
            break
    return Rollout(tokens, mask, torch.stack(completion_mask, dim=1))


BLOCK = 256  # words; near √V, where the two races of `draw` together are shortest


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each row's softmax: (B, V) -> (B, 1) int64.

    By two races, of the blocks of words and of the words in the block that won; together they need
    448 random numbers for 49,152 words. Policies that hardly differ draw the same token from the
    same random numbers, which pairs their rewards; the inverse of the distribution function would not.

    Raises FloatingPointError where a logit is NaN or infinite.
    """
    p = torch.softmax(logits, dim=-1)  # (B, V)
    p = F.pad(p, (0, -p.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # (B, blocks, BLOCK)
    masses = p.sum(dim=-1)  # (B, blocks)
    if not torch.isfinite(masses).all():
        raise FloatingPointError("the policy's logits are not finite")
    block = _race(masses, generator)  # (B, 1)
    words = p.take_along_dim(block[..., None], dim=1)[:, 0]  # (B, BLOCK)
    return block * BLOCK + _race(words, generator)


def _race(p: Tensor, generator: torch.Generator) -> Tensor:
    """argmax p_i / e_i, with e_i exponential: distributed as p (Gumbel-max). (B, K) -> (B, 1)."""
    u = torch.rand(p.shape, generator=generator, dtype=torch.float64, device=p.device)
    return (p / u.log_().neg_().float()).argmax(dim=-1, keepdim=True)


def completion_logits(model: PreTrainedModel, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """Logits that predicted each completion token, / temperature: (B, N, V) float32, with graph."""
    n = rollout.completion_mask.shape[1]
    # The last token predicts nothing that was drawn.
    logits = forward_logits(model, rollout.tokens[:, :-1], rollout.attention_mask[:, :-1], keep=n)
    return _tempered(logits, temperature)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """In float32; a division by 1 would copy all of a vocabulary's logits."""
    return logits.float() if temperature == 1 else logits.float() / temperature


def token_logprobs(logits: Tensor, rollout: Rollout) -> Tensor:
    """log π(y_n | x, y_<n) of each completion token: (B, N) nats; 0 behind the end.

    Args:
        logits: (B, N, V), as `completion_logits` gives them.
    """
    logprobs = -F.cross_entropy(
        logits.flatten(0, 1), rollout.completions.flatten(), reduction="none"
    )
    return logprobs.view_as(rollout.completions).masked_fill(~rollout.completion_mask, 0.0)


def logprob(model: PreTrainedModel, rollout: Rollout, temperature: float = 1.0) -> Tensor:
    """log π_θ(y|x), the sum over the completion's tokens: (B,) nats, with graph."""
    return token_logprobs(completion_logits(model, rollout, temperature), rollout).sum(dim=1)


def forward_logits(
    model: PreTrainedModel,
    tokens: Tensor,
    mask: Tensor,
    keep: int,
    cache: DynamicCache | None = None,
) -> Tensor:
    """Logits of the last `keep` positions: (B, keep, V).

    Args:
        tokens: (B, S); with a cache, only those it has not seen.
        mask: (B, all tokens up to now).

    Position ids come from the mask, so that padding on the left moves nothing. Models without
    position ids (ALiBi) read the mask themselves.
    """
    takes = inspect.signature(model.forward).parameters
    options: dict[str, Any] = {}
    if "position_ids" in takes:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        options["position_ids"] = positions[:, -tokens.shape[1] :]
    if "logits_to_keep" in takes:
        options["logits_to_keep"] = keep
    output = model(input_ids=tokens, attention_mask=mask, past_key_values=cache,
                   use_cache=cache is not None, **options)  # fmt: skip
    return output.logits[:, -keep:]
