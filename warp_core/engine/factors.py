"""LoRA adapters merged exactly, in factor form: δ = B·A is never made as a matrix.

Inner products are exact from the factors, ⟨B₁A₁, B₂A₂⟩ = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), and so is a merge,
[c₁B₁ … c_MB_M]·[A₁; …; A_M], whose rank is the sum of the ranks. SLERP of the factors A and B
themselves is another operation.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from warp_core.store.adapter import CONFIG, Adapter, Pair, is_adapter, write_adapter
from warp_core.store.errors import MergeError
from warp_core.store.tensors import Array, WeightFiles, other_files


class Factors:
    """θ_init, a body or an adapter on it, and the adapters θ^1 … θ^M, matrix by matrix.

    Raises MergeError where they do not belong together.
    """

    def __init__(self, theta_init: Path, thetas: Sequence[Path]) -> None:
        if odd := [folder for folder in thetas if not is_adapter(folder)]:
            raise MergeError(f"{odd[0]}: is no adapter, and others are; merge one kind at a time")
        self.thetas = [Adapter(folder) for folder in thetas]
        self.m, first = len(thetas), self.thetas[0]
        for m, theta in enumerate(self.thetas, start=1):
            bodies = [each.config.get("base_model_name_or_path") for each in (theta, first)]
            if bodies[0] != bodies[1]:
                raise MergeError(f"θ^{m} is an adapter of {bodies[0]!r}, θ^1 of {bodies[1]!r}")
            if theta.sizes() != first.sizes():
                raise MergeError(f"θ^{m} and θ^1 adapt different matrices: {_unlike(theta, first)}")
            if theta.rank != first.rank:
                raise MergeError(f"θ^{m} has rank {theta.rank}, θ^1 rank {first.rank}")
        empty = {
            name: (np.zeros((len(b), 0), np.float32), np.zeros((0, a.shape[1]), np.float32))
            for name, (b, a) in first.pairs.items()
        }
        if is_adapter(theta_init):
            start = Adapter(theta_init)
            if start.sizes() != first.sizes():
                raise MergeError(
                    f"θ^1 and θ_init adapt different matrices: {_unlike(first, start)}"
                )
            self.start, self.start_rank = start.pairs, start.rank
        else:
            _check_body(theta_init, first)
            self.start, self.start_rank = empty, 0
        self.names = list(first.pairs)
        self.alpha: float | None = None  # the merge's, where its factors are θ^1's as they are
        self._merged: dict[str, Pair] = {}
        self.size = sum(  # at most
            4 * (len(b) + a.shape[1]) * (self.start_rank + 2 * self.m * first.rank)
            for b, a in first.pairs.values()
        ) + sum(path.stat().st_size for path in other_files(first.folder))

    def deltas(self, name: str) -> list[Pair]:
        """Factors of δ_m = θ^m − θ_init; θ^m often begins with θ_init's own factors."""
        b0, a0 = self.start[name]
        rank, deltas = self.start_rank, list[Pair]()
        for b, a in (theta.pairs[name] for theta in self.thetas):
            begins = np.array_equal(b[:, :rank], b0) and np.array_equal(a[:rank], a0)
            both = np.concatenate([b, -b0], axis=1), np.concatenate([a, a0])
            deltas.append((b[:, rank:], a[rank:]) if begins else both)
        return deltas

    def add_gram(self, name: str, gram: Array) -> None:
        """δ_i·δ_j of a matrix, added to `gram` (M, M)."""
        deltas = [(b.astype(np.float64), a.astype(np.float64)) for b, a in self.deltas(name)]
        for i, (b_i, a_i) in enumerate(deltas):
            for j, (b_j, a_j) in enumerate(deltas[: i + 1]):
                product = float(np.vdot(b_i.T @ b_j, a_i @ a_j.T))
                gram[i, j] += product
                gram[j, i] += product if i != j else 0.0
        if not np.isfinite(gram).all():
            raise MergeError(f"an adapter has NaN or infinite weights in: {name}")

    def merge(self, name: str, c: Sequence[float], eta: float) -> None:
        """Note the factors of θ_init + η·Σ_m c_m·δ_m of a matrix.

        Of one adapter on the body they stay as they are: η is in the adapter's `lora_alpha`, one number.
        """
        b0, a0 = self.start[name]
        deltas = self.deltas(name)
        if self.m == 1 and not self.start_rank:
            (self._merged[name],), self.alpha = deltas, c[0] * eta * deltas[0][0].shape[1]
            return
        bs = [b * np.float32(eta * each) for each, (b, _) in zip(c, deltas, strict=True)]
        self._merged[name] = (
            np.concatenate([b0, *bs], axis=1),
            np.concatenate([a0, *(a for _, a in deltas)]),
        )

    def write(self, folder: Path) -> None:
        """What `merge` noted, as a peft folder, with the tokenizer of θ^1."""
        like = self.thetas[0]
        for path in other_files(like.folder):
            if path.name != CONFIG:
                shutil.copy(path, folder)
        write_adapter(folder, self._merged, like.config, self.alpha)


def _check_body(body: Path, adapter: Adapter) -> None:
    """Raises MergeError where an adapter cannot be one of this body, by the sizes of its matrices."""
    shapes, known = WeightFiles(body).shapes, 0
    for name, (out, inner) in adapter.sizes().items():
        shape = shapes.get(f"{name}.weight", ())
        known += bool(shape)
        if shape and shape not in ((out, inner), (inner, out)):
            raise MergeError(f"{adapter.folder}: is no adapter of {body}: {name} is {shape} there")
    if not known:
        raise MergeError(f"{adapter.folder}: is no adapter of {body}: it has none of its matrices")


def _unlike(one: Adapter, other: Adapter) -> str:
    names = sorted(dict(one.sizes().items() ^ other.sizes().items()))
    return ", ".join(names[:5])
