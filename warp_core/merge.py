"""EMA, LERP, SLERP, LITI and the angles between task vectors: pure functions of weights.

Weights are `Mapping[str, Tensor]`, in and out. The paper's equations (arXiv 2406.16768): EMA (line
9), SLERP (line 12) with its recursion for M > 2 (Eq. 26), LITI (line 13).

SLERP acts on the task vectors δ_m = θ^m − θ_init, not on the weights themselves, whose cosine is
above 0.999 (there SLERP is LERP):
1. each group of tensors has an M × M Gram matrix of its task vectors, accumulated in float64;
2. every step of the recursion slerp_m = slerp(slerp_{m−1}, θ^m, λ = 1/m) is a linear combination of
   the δ's, so the Gram matrix alone gives its coefficients c, and the angles too;
3. θ_slerp = θ_init + Σ_m c_m · δ_m.
A group is one transformer layer, all tensors of its block together; each tensor outside the blocks
is a group of its own. (The paper says "layer by layer"; what belongs to a layer is our reading.)
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Granularity = Literal["layer", "tensor", "model"]

PARALLEL = 1e-6  # radians: sin(λΩ)/sin Ω differs from its limit λ by less than Ω²
OPPOSITE = 1e-6  # radians short of π
PIECE = 1 << 18  # elements of a tensor that are taken to float64 at a time
# The first number in a name, standing alone between dots, is the index of its block:
# model.layers.3.mlp.up_proj.weight, transformer.h.0.attn.c_attn.weight, encoder.block.7.…
_BLOCK = re.compile(r"^(.*?\.\d+)\.")


class MergeError(ValueError):
    """Weights that cannot be merged; the message names the tensors or the group."""


@torch.no_grad()
def ema_update_(theta_ema: Weights, theta: Weights, mu: float) -> None:
    """θ_ema ← (1 − μ)·θ_ema + μ·θ, in place (line 9). Integer tensors are copied."""
    for name, tensor in theta.items():
        if tensor.is_floating_point():
            theta_ema[name].lerp_(tensor, mu)
        else:
            theta_ema[name].copy_(tensor)


def lerp(
    theta_init: Weights, thetas: Sequence[Weights], lam: float | None = None
) -> dict[str, Tensor]:
    """θ_init + Σ_m λ_m·(θ^m − θ_init).

    Args:
        lam: weight of the second of two, the first has 1 − λ; None: 1/M each.

    Raises:
        MergeError: the weights do not fit together, or `lam` is given and M ≠ 2.
    """
    _check(theta_init, thetas)
    c = _given_or_equal(lam, len(thetas))
    return _combine(theta_init, thetas, dict.fromkeys(theta_init, c))


def slerp(
    theta_init: Weights,
    thetas: Sequence[Weights],
    lam: float | None = None,
    granularity: Granularity = "layer",
) -> dict[str, Tensor]:
    """SLERP of the task vectors, added to θ_init; for M > 2 the recursion of Eq. 26.

    Args:
        thetas: M ≥ 1 of them; M = 1 gives θ¹.
        lam: weight of the second of two, None: 1/M.
        granularity: what shares an angle: a transformer "layer", a "tensor", or the whole "model".

    Raises:
        MergeError: names, shapes or types differ, a weight is NaN or infinite, two task vectors of
            a group are exactly opposite, or `lam` is given and M ≠ 2.

    Parallel or zero task vectors have no angle; they are interpolated linearly, which is the limit.
    """
    return slerp_with_angles(theta_init, thetas, lam, granularity)[0]


def slerp_with_angles(
    theta_init: Weights,
    thetas: Sequence[Weights],
    lam: float | None = None,
    granularity: Granularity = "layer",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What `slerp` and `task_angles` give, from one pass over the weights for both."""
    grams, groups = _grams(theta_init, thetas, granularity)
    c = {group: slerp_coefficients(gram, lam, group) for group, gram in grams.items()}
    merged = _combine(theta_init, thetas, {name: c[group] for name, group in groups.items()})
    return merged, {group: angles_of(gram) for group, gram in grams.items()}


def liti(theta_init: Weights, theta_slerp: Weights, eta: float) -> dict[str, Tensor]:
    """(1 − η)·θ_init + η·θ_slerp (line 13, and the front with θ_sft as θ_init)."""
    _check(theta_init, [theta_slerp])
    return _combine(theta_init, [theta_slerp], {name: [eta] for name in theta_init})


def task_angles(
    theta_init: Weights, thetas: Sequence[Weights], granularity: Granularity = "layer"
) -> dict[str, Tensor]:
    """Angles between the task vectors: group name -> (M, M) float64, radians.

    NaN where a task vector is zero: it has no direction. Raises MergeError as `slerp` does.
    """
    grams, _ = _grams(theta_init, thetas, granularity)
    return {group: angles_of(gram) for group, gram in grams.items()}


def angles_of(gram: Tensor) -> Tensor:
    """(M, M) radians, from the Gram matrix of the δ's; NaN where a δ is zero."""
    norms = gram.diagonal().sqrt()
    angles = torch.acos((gram / torch.outer(norms, norms)).clamp(-1, 1))
    angles.fill_diagonal_(0.0)
    angles[norms == 0] = angles[:, norms == 0] = math.nan
    return angles


def slerp_coefficients(gram: Tensor, lam: float | None = None, group: str = "") -> list[float]:
    """c with slerp = Σ_m c_m·δ_m, from the Gram matrix of the δ's alone (Eq. 26).

    Args:
        gram: (M, M) float64, δ_i·δ_j.
        lam: weight of the second of two; None: 1/m at step m of the recursion.
        group: named in errors.
    """
    _given_or_equal(lam, len(gram))  # refuses a lam that weighs nothing
    c = torch.zeros(len(gram), dtype=torch.float64)
    c[0] = 1.0
    for m in range(1, len(gram)):
        lam_m = 1 / (m + 1) if lam is None else lam
        # a = slerp of the first m, b = δ_{m+1}
        aa, ab, bb = (c @ gram @ c).item(), (gram[m] @ c).item(), gram[m, m].item()
        weight_a, weight_b = _slerp_pair(aa, ab, bb, lam_m, f"{group!r}, run {m + 1}")
        c *= weight_a
        c[m] = weight_b
    return c.tolist()


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


def gram_scratch(m: int, length: int, device: torch.device | None = None) -> Tensor:
    """What `gram_of_piece` computes in, for tensors of this length: new memory costs more than sums."""
    return torch.empty(m + 1, min(PIECE, length), dtype=torch.float64, device=device)


def gram_of_piece(start: Tensor, ends: Sequence[Tensor], scratch: Tensor) -> Tensor:
    """δ_i·δ_j over a piece of a tensor: (M, M) float64, which does not lose what a small lr has moved.

    Args:
        start, ends: θ_init's and each θ^m's, (at most PIECE,).
    """
    first, *deltas = scratch[:, : len(start)]
    first.copy_(start)
    for delta, end in zip(deltas, ends, strict=True):
        delta.copy_(end).sub_(first)
    delta_rows = scratch[1:, : len(start)]
    return delta_rows @ delta_rows.T


def combine_piece(start: Tensor, ends: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """θ_init + Σ_m c_m·(θ^m − θ_init), of tensors or pieces of them; in float32 at least."""
    first = start.to(torch.promote_types(start.dtype, torch.float32))
    total = first.clone()
    for c, end in zip(coefficients, ends, strict=True):
        total.add_(end.to(first.dtype) - first, alpha=c)
    return total.to(start.dtype)


@torch.no_grad()
def _grams(
    theta_init: Weights, thetas: Sequence[Weights], granularity: Granularity
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """First pass over the tensors: group -> (M, M) float64 Gram matrix; tensor name -> group."""
    _check(theta_init, thetas)
    if granularity not in ("layer", "tensor", "model"):
        raise MergeError(f"granularity {granularity!r} is not one of 'layer', 'tensor', 'model'")
    m = len(thetas)
    first_of = _tied(theta_init, thetas)
    groups = {name: group_of(first, granularity) for name, first in first_of.items()}
    grams = {group: torch.zeros(m, m, dtype=torch.float64) for group in groups.values()}
    for name, tensor in theta_init.items():
        if not tensor.is_floating_point() or first_of[name] != name:
            continue
        start, ends = tensor.flatten(), [theta[name].flatten() for theta in thetas]
        scratch = gram_scratch(m, len(start), start.device)
        for k in range(0, len(start), PIECE):
            pieces = [end[k : k + PIECE] for end in ends]
            grams[groups[name]] += gram_of_piece(start[k : k + PIECE], pieces, scratch).cpu()
    return grams, groups


@torch.no_grad()
def _combine(
    theta_init: Weights, thetas: Sequence[Weights], coefficients: Mapping[str, Sequence[float]]
) -> dict[str, Tensor]:
    """Second pass: θ_init + Σ_m c_m·(θ^m − θ_init), c by tensor name; dtype and ties are kept."""
    first_of = _tied(theta_init, thetas)
    merged: dict[str, Tensor] = {}
    for name, tensor in theta_init.items():
        if first_of[name] != name:
            merged[name] = merged[first_of[name]]
        elif not tensor.is_floating_point():
            merged[name] = tensor.clone()
        else:
            merged[name] = combine_piece(tensor, [theta[name] for theta in thetas],
                                         coefficients[name])  # fmt: skip
    return merged


def group_of(name: str, granularity: Granularity) -> str:
    """Group whose angle a tensor shares: its transformer block, or itself, or the whole model."""
    if granularity == "model":
        return "model"
    block = _BLOCK.match(name) if granularity == "layer" else None
    return block.group(1) if block else name


def _tied(theta_init: Weights, thetas: Sequence[Weights]) -> dict[str, str]:
    """Name -> the first name that holds the same memory, in every one of the weights."""
    seen: dict[tuple[object, ...], str] = {}
    first_of = {}
    for name in theta_init:
        # Memory, shape and type, for a view of a tensor is not the tensor.
        key = tuple(
            (
                theta[name].data_ptr() or name,
                theta[name].shape,
                theta[name].stride(),
                theta[name].dtype,
            )
            for theta in (theta_init, *thetas)
        )
        first_of[name] = seen.setdefault(key, name)
    return first_of


def _given_or_equal(lam: float | None, m: int) -> list[float]:
    if lam is None:
        return [1 / m] * m
    if m != 2:
        raise MergeError(f"lam weighs the second of two; there are {m} sets of weights")
    return [1 - lam, lam]


def _check(theta_init: Weights, thetas: Sequence[Weights]) -> None:
    """Refuse what cannot be merged, naming the tensors."""
    if not thetas:
        raise MergeError("no weights to merge: M must be at least 1")
    for m, theta in enumerate(thetas, start=1):
        if different := sorted(theta_init.keys() ^ theta.keys()):
            raise MergeError(f"θ^{m} and θ_init have different tensors: {_some(different)}")
        shapes = [n for n, t in theta_init.items() if t.shape != theta[n].shape]
        if shapes:
            raise MergeError(f"θ^{m} and θ_init have tensors of different shapes: {_some(shapes)}")
        types = [n for n, t in theta_init.items() if t.dtype != theta[n].dtype]
        if types:
            raise MergeError(f"θ^{m} and θ_init have tensors of different types: {_some(types)}")
        integers = [n for n, t in theta_init.items()
                    if not t.is_floating_point() and not torch.equal(t, theta[n])]  # fmt: skip
        if integers:
            raise MergeError(f"θ^{m} and θ_init have different integer tensors: {_some(integers)}")
    for label, theta in [("θ_init", theta_init), *((f"θ^{m}", t) for m, t in enumerate(thetas, 1))]:
        bad = [n for n, t in theta.items() if t.is_floating_point() and not all_finite(t)]
        if bad:
            raise MergeError(f"{label} has NaN or infinite weights in: {_some(bad)}")


def all_finite(tensor: Tensor) -> bool:
    """Without a tensor of flags as long as the weights."""
    return not tensor.numel() or bool(torch.isfinite(torch.stack(tensor.aminmax())).all())


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
