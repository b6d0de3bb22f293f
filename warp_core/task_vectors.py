"""The arithmetic of SLERP on task vectors δ_m = θ^m − θ_init, a piece of a tensor at a time.

On NumPy arrays, for a merge of files should not wait for torch to be imported; `merge` has it for
weights in memory, `merge_files` for checkpoints. SLERP acts on the task vectors, not on the weights
themselves, whose cosine is above 0.999 (there SLERP is LERP):
1. each group of tensors has an M × M Gram matrix of its task vectors, accumulated in float64;
2. every step of the recursion slerp_m = slerp(slerp_{m−1}, θ^m, λ = 1/m) is a linear combination of
   the δ's, so the Gram matrix alone gives its coefficients c, and the angles too;
3. θ_slerp = θ_init + Σ_m c_m · δ_m.
A group is one transformer layer, all tensors of its block together; each tensor outside the blocks
is a group of its own. (The paper says "layer by layer"; what belongs to a layer is our reading.)
"""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from warp_core.errors import MergeError

Array = np.ndarray[Any, np.dtype[Any]]
Granularity = Literal["layer", "tensor", "model"]

PARALLEL = 1e-6  # radians: sin(λΩ)/sin Ω differs from its limit λ by less than Ω²
OPPOSITE = 1e-6  # radians short of π
PIECE = 1 << 18  # elements of a tensor that are merged at a time
# The first number in a name, standing alone between dots, is the index of its block:
# model.layers.3.mlp.up_proj.weight, transformer.h.0.attn.c_attn.weight, encoder.block.7.…
_BLOCK = re.compile(r"^(.*?\.\d+)\.")


def group_of(name: str, granularity: Granularity) -> str:
    """Group whose angle a tensor shares: its transformer block, or itself, or the whole model."""
    if granularity == "model":
        return "model"
    block = _BLOCK.match(name) if granularity == "layer" else None
    return block.group(1) if block else name


@np.errstate(invalid="ignore")  # NaN and infinity are for the caller to see
def gram_of_piece(start: Array, ends: Sequence[Array]) -> Array:
    """δ_i·δ_j over a piece of a tensor: (M, M) float64, which does not lose what a small lr has moved.

    Args:
        start, ends: θ_init's and each θ^m's, (at most PIECE,).
    """
    deltas = np.empty((len(ends), len(start)))
    for delta, end in zip(deltas, ends, strict=True):
        np.subtract(end, start, out=delta, dtype=np.float64)
    gram = np.empty((len(ends), len(ends)))
    for i, delta in enumerate(deltas):
        gram[i, : i + 1] = gram[: i + 1, i] = np.vecdot(deltas[: i + 1], delta)
    return gram


def combine_piece(start: Array, ends: Sequence[Array], coefficients: Sequence[float]) -> Array:
    """θ_init + Σ_m c_m·(θ^m − θ_init) as a new array, in float32 at least."""
    total = start.astype(np.promote_types(start.dtype, np.float32))
    first = total.copy()
    for c, end in zip(coefficients, ends, strict=True):
        delta = np.subtract(end, first, dtype=total.dtype)
        delta *= c
        total += delta
    return total


def angles_of(gram: Array) -> Array:
    """(M, M) radians, from the Gram matrix of the δ's; NaN where a δ is zero."""
    norms = np.sqrt(gram.diagonal())
    with np.errstate(invalid="ignore"):
        angles = np.arccos((gram / np.outer(norms, norms)).clip(-1, 1))
    np.fill_diagonal(angles, 0.0)
    angles[norms == 0] = angles[:, norms == 0] = np.nan
    return angles


def slerp_coefficients(gram: Array, lam: float | None = None, group: str = "") -> list[float]:
    """c with slerp = Σ_m c_m·δ_m, from the Gram matrix of the δ's alone (Eq. 26).

    Args:
        gram: (M, M) float64, δ_i·δ_j.
        lam: weight of the second of two; None: 1/m at step m of the recursion.
        group: named in errors.
    """
    lerp_coefficients(lam, len(gram))  # refuses a lam that weighs nothing
    c = np.zeros(len(gram))
    c[0] = 1.0
    for m in range(1, len(gram)):
        lam_m = 1 / (m + 1) if lam is None else lam
        # a = slerp of the first m, b = δ_{m+1}
        aa, ab, bb = float(c @ gram @ c), float(gram[m] @ c), float(gram[m, m])
        weight_a, weight_b = _slerp_pair(aa, ab, bb, lam_m, f"{group!r}, run {m + 1}")
        c *= weight_a
        c[m] = weight_b
    return c.tolist()


def lerp_coefficients(lam: float | None, m: int) -> list[float]:
    """1/M each, or 1 − λ and λ."""
    if lam is None:
        return [1 / m] * m
    if m != 2:
        raise MergeError(f"lam weighs the second of two; there are {m} sets of weights")
    return [1 - lam, lam]


def _slerp_pair(aa: float, ab: float, bb: float, lam: float, where: str) -> tuple[float, float]:
    """sin((1−λ)Ω)/sin Ω and sin(λΩ)/sin Ω of two vectors with these inner products."""
    norms = math.sqrt(max(aa, 0.0)) * math.sqrt(max(bb, 0.0))
    if norms == 0.0:
        return 1 - lam, lam
    cos = max(-1.0, min(1.0, ab / norms))
    omega = math.acos(cos)
    if omega < PARALLEL:
        return 1 - lam, lam
    if math.pi - omega < OPPOSITE:
        raise MergeError(
            f"group {where}: its task vector is exactly opposite to the merge of those before it: "
            "no shortest arc joins them; use lerp, another granularity, or other seeds for the runs"
        )
    return math.sin((1 - lam) * omega) / math.sin(omega), math.sin(lam * omega) / math.sin(omega)
