"""EMA, LERP, SLERP, LITI and the angles between task vectors: pure functions of weights in memory.

Weights are `Mapping[str, Tensor]`, in and out. The paper's equations (arXiv 2406.16768): EMA (line
9), SLERP (line 12) with its recursion for M > 2 (Eq. 26), LITI (line 13). SLERP's arithmetic, and
what shares an angle, is in `task_vectors`; it runs on the CPU.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from warp_core.task_vectors import (
    PIECE,
    Array,
    Granularity,
    MergeError,
    angles_of,
    combine_piece,
    gram_of_piece,
    group_of,
    lerp_coefficients,
    slerp_coefficients,
)

Weights = Mapping[str, Tensor]


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
    c = lerp_coefficients(lam, len(thetas))
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
    return merged, _angles(grams)


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
    return _angles(grams)


def _angles(grams: Mapping[str, Array]) -> dict[str, Tensor]:
    return {group: torch.from_numpy(angles_of(gram)) for group, gram in grams.items()}


def _grams(
    theta_init: Weights, thetas: Sequence[Weights], granularity: Granularity
) -> tuple[dict[str, Array], dict[str, str]]:
    """First pass over the tensors: group -> (M, M) float64 Gram matrix; tensor name -> group."""
    _check(theta_init, thetas)
    if granularity not in ("layer", "tensor", "model"):
        raise MergeError(f"granularity {granularity!r} is not one of 'layer', 'tensor', 'model'")
    m = len(thetas)
    first_of = _tied(theta_init, thetas)
    groups = {name: group_of(first, granularity) for name, first in first_of.items()}
    grams = {group: np.zeros((m, m)) for group in groups.values()}
    for name, tensor in theta_init.items():
        if not tensor.is_floating_point() or first_of[name] != name:
            continue
        start, *ends = (_array(theta[name]) for theta in (theta_init, *thetas))
        for k in range(0, len(start), PIECE):
            pieces = [end[k : k + PIECE] for end in ends]
            grams[groups[name]] += gram_of_piece(start[k : k + PIECE], pieces)
    return grams, groups


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
            start, *ends = (_array(theta[name]) for theta in (theta_init, *thetas))
            combined = torch.from_numpy(combine_piece(start, ends, coefficients[name]))
            merged[name] = combined.to(tensor).view(tensor.shape)
    return merged


def _array(tensor: Tensor) -> Array:
    """(elements,), on the CPU, of a type that NumPy knows."""
    flat = tensor.detach().flatten().cpu()
    return (flat.float() if flat.dtype == torch.bfloat16 else flat).numpy()


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
