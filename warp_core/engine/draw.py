"""A token drawn from each row's softmax by two short races: a matter of speed alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from warp_core.store.errors import EvaluationError

BLOCK = 256  # words; near √V, where the two races together are shortest


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token of each row's softmax: (B, V) -> (B, 1) int64.

    By two races, of the blocks of words and of the words in the block that won; together they need
    448 random numbers for 49,152 words. Policies that hardly differ draw the same token from the
    same random numbers, which pairs their rewards; the inverse of the distribution function would not.

    Raises EvaluationError where a logit is NaN or infinite.
    """
    p = torch.softmax(logits, dim=-1)  # (B, V)
    p = F.pad(p, (0, -p.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))  # (B, blocks, BLOCK)
    masses = p.sum(dim=-1)  # (B, blocks)
    if not torch.isfinite(masses).all():
        raise EvaluationError("the policy's logits are not finite")
    block = _race(masses, generator)  # (B, 1)
    words = p.take_along_dim(block[..., None], dim=1)[:, 0]  # (B, BLOCK)
    return block * BLOCK + _race(words, generator)


def _race(p: Tensor, generator: torch.Generator) -> Tensor:
    """argmax p_i / e_i, with e_i exponential: distributed as p (Gumbel-max). (B, K) -> (B, 1)."""
    u = torch.rand(p.shape, generator=generator, dtype=torch.float64, device=p.device)
    return (p / u.log_().neg_().float()).argmax(dim=-1, keepdim=True)
