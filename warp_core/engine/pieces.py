"""Weights that lie as tensors, merged in NumPy a piece at a time: a matter of speed and memory."""

from collections.abc import Callable, Sequence

import numpy as np

from warp_core.store.errors import MergeError
from warp_core.store.tensors import Array, Readers, is_float


class Dense:
    """θ_init and θ^1 … θ^M, tensor by tensor; `write` gets what is merged: the tensor's name, its
    first element, the elements."""

    def __init__(self, readers: Readers, write: Callable[[str, int, Array], None]) -> None:
        self.readers, self.write = readers, write
        self.names, self.m = readers.names, readers.m

    def add_gram(self, name: str, gram: Array) -> None:
        """δ_i·δ_j of a tensor, added to `gram` (M, M)."""
        for first, *others in self.readers.pieces(name):
            gram += checked_gram(name, first, others)

    def merge(self, name: str, c: Sequence[float], eta: float) -> None:
        """Write (1 − η)·θ_init + η·(θ_init + Σ_m c_m·δ_m) of a tensor; the merge as it is stored."""
        start = 0
        for first, *others in self.readers.pieces(name):
            merged = first
            if is_float(first.dtype):
                merged = combine_piece(first, others, c).astype(first.dtype, copy=False)
                if eta != 1:
                    merged = combine_piece(first, [merged], [eta])
            self.write(name, start, merged)
            start += len(first)


def checked_gram(name: str, first: Array, others: Sequence[Array]) -> Array:
    """`gram_of_piece`; raises MergeError where weights are not finite, or integers differ."""
    if not is_float(first.dtype):
        if any((first != other).any() for other in others):
            raise MergeError(f"the integers of {name} differ between the weights")
        return np.zeros((len(others), len(others)))
    gram = gram_of_piece(first, others)
    if not np.isfinite(gram).all():  # no weight is NaN or infinite without it
        for m, piece in enumerate((first, *others)):
            if not np.isfinite(piece).all():
                label = f"θ^{m}" if m else "θ_init"
                raise MergeError(f"{label} has NaN or infinite weights in: {name}")
        raise MergeError(f"the task vectors of {name} are too long for a norm in float64")
    return gram


@np.errstate(invalid="ignore")  # NaN and infinity are for the caller to see
def gram_of_piece(start: Array, ends: Sequence[Array]) -> Array:
    """δ_i·δ_j over a piece of θ_init and of each θ^m: (M, M) float64, for δ's of a small lr."""
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
