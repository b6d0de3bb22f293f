"""EMA (line 9), SLERP (line 12, Eq. 26), LITI (line 13), LERP, and the angles of task vectors.

Weights are `Mapping[str, Tensor]`, in and out, or lie in files, whatever their size:

    python -m warp_core.merge THETA_INIT RUN_1 RUN_2 … --out FOLDER [--eta 0.5]

All of it acts on task vectors δ_m = θ^m − θ_init (the cosine of whole weights is above 0.999, where
SLERP is LERP), in two passes over the tensors of a group that shares an angle:
1. the M × M Gram matrix of the δ's, accumulated in float64;
2. θ_init + Σ_m c_m·δ_m. Every step of the recursion slerp_m = slerp(slerp_{m−1}, θ^m, λ = 1/m) is a
   linear combination of the δ's, so the Gram matrix alone gives its coefficients c, and the angles.
A group is one transformer layer, all tensors of its block together, or a tensor outside the blocks.
(The paper says "layer by layer".) NumPy does it, on the CPU: the command does not wait for torch.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from warp_core.engine.factors import Factors
from warp_core.engine.pieces import Dense
from warp_core.store import tensors
from warp_core.store.adapter import is_adapter
from warp_core.store.errors import DamagedError, MergeError
from warp_core.store.files import appearing, write_text
from warp_core.store.tensors import Array
from warp_core.world.card import CARD, merge_card

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Mapping[str, Tensor]

Granularity = Literal["layer", "tensor", "model"]
Method = Literal["slerp", "lerp"]
Coefficients = Callable[[Array, str], Sequence[float]]  # Gram matrix, group's name -> c (M,)

PARALLEL = 1e-6  # radians: sin(λΩ)/sin Ω differs from its limit λ by less than Ω²
OPPOSITE = 1e-6  # radians short of π
THREADS = 2  # the arithmetic of two keeps up with the memory


def ema_update_(theta_ema: Weights, theta: Weights, mu: float) -> None:
    """θ_ema ← (1 − μ)·θ_ema + μ·θ, in place (line 9). Integer tensors are copied."""
    for name, tensor in theta.items():
        if tensor.is_floating_point():
            theta_ema[name].detach().lerp_(tensor.detach(), mu)
        else:
            theta_ema[name].copy_(tensor)


def lerp(
    theta_init: Weights, thetas: Sequence[Weights], lam: float | None = None
) -> dict[str, Tensor]:
    """θ_init + Σ_m λ_m·(θ^m − θ_init): 1/M each, or 1 − `lam` and `lam`. MergeError as `slerp`."""
    return _in_memory(theta_init, thetas, _coefficients("lerp", lam, len(thetas)))[0]


def slerp(
    theta_init: Weights,
    thetas: Sequence[Weights],
    lam: float | None = None,
    granularity: Granularity = "layer",
) -> dict[str, Tensor]:
    """SLERP of the task vectors, added to θ_init; for M > 2 the recursion of Eq. 26.

    Parallel task vectors are interpolated linearly, which is the limit; so is one that is zero.

    Args:
        thetas: M ≥ 1 of them; M = 1 gives θ¹. Their order counts where M > 2.
        lam: λ of the second of two; None: 1/m at step m of the recursion.
        granularity: what shares an angle.

    Raises MergeError where names, shapes or integers differ, a weight is not finite, two task vectors
    of a group are exactly opposite, or `lam` is given and M ≠ 2.
    """
    return _in_memory(theta_init, thetas, _coefficients("slerp", lam, len(thetas)), granularity)[0]


def liti(theta_init: Weights, theta_slerp: Weights, eta: float) -> dict[str, Tensor]:
    """(1 − η)·θ_init + η·θ_slerp (line 13, and the front with θ_sft as θ_init)."""
    return _in_memory(theta_init, [theta_slerp], lambda gram, group: [eta])[0]


def task_angles(
    theta_init: Weights, thetas: Sequence[Weights], granularity: Granularity = "layer"
) -> dict[str, Tensor]:
    """Angles between the task vectors: group name -> (M, M) float64, radians; NaN where one is zero."""
    import torch

    lerp_coefficients(None, len(thetas))
    grams = _in_memory(theta_init, thetas, None, granularity)[1]
    return {group: torch.from_numpy(angles_of(gram)) for group, gram in grams.items()}


def merge_files(
    theta_init: Path,
    thetas: Sequence[Path],
    out: Path,
    lam: float | None = None,
    granularity: Granularity = "layer",
    eta: float = 1.0,
    method: Method = "slerp",
) -> dict[str, Array]:
    """(1 − η)·θ_init + η·slerp(θ_init, θ^1 … θ^M) from folders to a new one, as θ_init is stored.

    With one θ it is LITI; an η beyond 1 goes on along the line. Returns the angles: group name ->
    (M, M) float64, radians.

    Raises:
        MergeError: as `slerp`; or a folder has no weights, `out` is there, `lam` is no share, η < 0.
        DamagedError: a file is not what SHA256SUMS beside it says.
        StorageError: the result has no room, or cannot be written there.
    """
    if lam is not None and not 0 <= lam <= 1:
        raise MergeError(f"lam: {lam} given; a number from 0 to 1 is needed")
    if not 0 <= eta < math.inf:
        raise MergeError(f"eta: {eta} given; a number from 0 on is needed")
    coefficients = _coefficients(method, lam, len(thetas))
    if out.exists():
        raise MergeError(f"{out}: is there already; choose another folder, or delete it")
    if any(map(is_adapter, thetas)):
        factors = Factors(theta_init, thetas)
        with appearing(out, factors.size, seal=False) as folder:
            grams = _two_passes(factors, granularity, coefficients, eta)
            factors.write(folder)
    else:
        readers = tensors.in_files(theta_init, thetas)
        with (
            appearing(out, tensors.size_of(theta_init), seal=False) as folder,
            tensors.NewWeightFiles(theta_init, folder, readers.tied) as new,
        ):
            grams = _two_passes(Dense(readers, new.write), granularity, coefficients, eta)
    return {group: angles_of(gram) for group, gram in grams.items()}


def _in_memory(
    theta_init: Weights,
    thetas: Sequence[Weights],
    coefficients: Coefficients | None,
    granularity: Granularity = "layer",
) -> tuple[dict[str, Tensor], dict[str, Array]]:
    readers = tensors.in_memory(theta_init, thetas)
    new = tensors.NewWeightTensors(theta_init, readers.tied)
    grams = _two_passes(Dense(readers, new.write), granularity, coefficients)
    return new.theta() if coefficients else {}, grams


def _two_passes(
    weights: Dense | Factors,
    granularity: Granularity,
    coefficients: Coefficients | None,
    eta: float = 1.0,
) -> dict[str, Array]:
    """The one driver; returns the (M, M) Gram matrix of each group.

    Args:
        coefficients: c of a group, from its Gram matrix; None: there is no second pass.
        eta: of LITI, from θ_init to the merge as it is stored.
    """
    if granularity not in get_args(Granularity):
        raise MergeError(f"granularity {granularity!r} is not one of 'layer', 'tensor', 'model'")
    groups: dict[str, list[str]] = {}
    for name in weights.names:
        groups.setdefault(group_of(name, granularity), []).append(name)

    def merge_group(group: str) -> Array:
        gram = np.zeros((weights.m, weights.m))  # which is that of empty tensors
        for name in groups[group]:
            weights.add_gram(name, gram)
        if coefficients:
            c, then = coefficients(gram, group), eta
            if weights.m == 1:  # then SLERP is that θ
                c, then = [eta] if eta != 1 else c, 1.0
            for name in groups[group]:
                weights.merge(name, c, then)
        return gram

    with ThreadPoolExecutor(THREADS) as threads:
        grams = dict(zip(groups, threads.map(merge_group, groups), strict=True))
    return {group: grams[group] for group in sorted(grams, key=tensors.in_order)}


def group_of(name: str, granularity: Granularity) -> str:
    """Group whose angle a tensor shares: its transformer block, or itself, or the whole model."""
    return {"layer": tensors.block_of(name), "tensor": name, "model": "model"}[granularity]


def angles_of(gram: Array) -> Array:
    """(M, M) radians, from the Gram matrix of the δ's; NaN where a δ is zero."""
    norms = np.sqrt(gram.diagonal())
    with np.errstate(invalid="ignore"):
        angles = np.arccos((gram / np.outer(norms, norms)).clip(-1, 1))
    np.fill_diagonal(angles, 0.0)
    angles[norms == 0] = angles[:, norms == 0] = np.nan
    return angles


def _coefficients(method: Method, lam: float | None, m: int) -> Coefficients:
    c = lerp_coefficients(lam, m)  # refuses a lam that weighs nothing, and no weights at all
    if method == "lerp":
        return lambda gram, group: c
    return lambda gram, group: slerp_coefficients(gram, lam, group)


def slerp_coefficients(gram: Array, lam: float | None = None, group: str = "") -> list[float]:
    """c (M,) with slerp = Σ_m c_m·δ_m, from the (M, M) Gram matrix of the δ's alone (Eq. 26).

    λ is 1/m at step m of the recursion, or `lam`. Errors name the group.
    """
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
    """1/M each, or 1 − λ and λ; raises MergeError where there is nothing to weigh."""
    if m < 1:
        raise MergeError("no weights to merge: M must be at least 1")
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
            f"group {where}: its task vector is exactly opposite to the merge of those before it: no "
            "shortest arc joins them; use lerp, another granularity, or other seeds for the runs"
        )
    return math.sin((1 - lam) * omega) / math.sin(omega), math.sin(lam * omega) / math.sin(omega)


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 merged, 1 refused."""
    what = "(1 − η)·θ_init + η·slerp(θ_init, runs), from checkpoint folders to a new one"
    parser = argparse.ArgumentParser(prog="python -m warp_core.merge", description=what)
    parser.add_argument("theta_init", type=Path)
    parser.add_argument("thetas", type=Path, nargs="+", metavar="run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lam", type=float, help="λ of the second of two; else 1/m at step m")
    parser.add_argument("--granularity", choices=get_args(Granularity), default="layer")
    parser.add_argument("--eta", type=float, default=1.0, help="LITI: 1 is the merge itself")
    parser.add_argument("--method", choices=get_args(Method), default="slerp")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        angles = merge_files(**vars(options))
        how = {key: value for key, value in vars(options).items() if key != "out"}
        write_text(options.out / CARD, merge_card(**how))
    except (MergeError, DamagedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    upper = np.triu_indices(len(options.thetas), 1)
    pairs = np.rad2deg(np.concatenate([each[upper] for each in angles.values()]))
    pairs = pairs[~np.isnan(pairs)]
    between = f", angles {pairs.min():.1f}° to {pairs.max():.1f}°" if len(pairs) else ""
    what = f"{options.out}: {len(options.thetas)} runs merged in {len(angles)} groups{between}"
    print(f"{what}, {time.perf_counter() - start:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
