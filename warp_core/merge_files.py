"""SLERP (and LITI) from checkpoint files to a checkpoint, a piece of a tensor at a time.

    python -m warp_core.merge_files THETA_INIT RUN_1 RUN_2 … --out FOLDER [--eta 0.5]

1. a checkpoint is a folder of safetensors, in one file or in shards; the names and groups come from
   the headers alone;
2. of each group (a transformer layer, or a tensor outside them) the pieces are read twice: for the
   Gram matrix of the task vectors, then to be combined and written at θ_init's offsets. Two groups
   are at work at a time, and memory holds M + 1 pieces of each, whatever the model's size;
3. every other file of θ_init's folder (config, tokenizer) is copied, and the result appears whole.
"""

import argparse
import json
import mmap
import os
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Any, get_args

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from warp_core.errors import DamagedError, MergeError
from warp_core.files import SUMS, make_room, verify, writing
from warp_core.task_vectors import (
    PIECE,
    Array,
    Granularity,
    angles_of,
    combine_piece,
    gram_of_piece,
    group_of,
    slerp_coefficients,
)

SUFFIX = ".safetensors"
THREADS = 2  # the arithmetic of two keeps up with the memory
FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
INTEGERS = {"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8,
            "BOOL": np.bool_}  # fmt: skip
DTYPES = {name: np.dtype(each) for name, each in (FLOATS | INTEGERS).items()}


def merge_files(
    theta_init: Path,
    thetas: Sequence[Path],
    out: Path,
    lam: float | None = None,
    granularity: Granularity = "layer",
    eta: float = 1.0,
) -> dict[str, Array]:
    """(1 − η)·θ_init + η·slerp(θ_init, θ^1 … θ^M) from folders to a new folder.

    Args:
        lam: weight of the second of two; None: 1/M.
        granularity: what shares an angle: a transformer "layer", a "tensor", or the whole "model".
        eta: of LITI (line 13); 1 is the merge itself.

    Returns:
        The angles between the task vectors: group name -> (M, M) float64, radians.

    Raises:
        DamagedError: a folder has SHA256SUMS, and a file in it is not what was written.
        StorageError: the result has no room, or cannot be written there.
        MergeError: a folder has no safetensors, they do not fit together, `lam` or `eta` is not
            from 0 to 1, or `out` is there already.
    """
    for key, share in (("lam", lam), ("eta", eta)):
        if share is not None and not 0 <= share <= 1:
            raise MergeError(f"{key}: {share} given; a number from 0 to 1 is needed")
    if not thetas or (lam is not None and len(thetas) != 2):
        raise MergeError(
            f"{len(thetas)} runs given; at least one is needed, and two where lam is given"
        )
    if out.exists():
        raise MergeError(f"{out}: is there already; choose another folder, or delete it")
    size = sum(path.stat().st_size for path in theta_init.glob("*") if path.is_file())
    make_room(out, size)
    with writing(out, size), ExitStack() as stack:
        start, *runs = (_Checkpoint(folder) for folder in (theta_init, *thetas))
        for m, run in enumerate(runs, start=1):
            _same_tensors(start, run, m)
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(stack.enter_context(
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
        )) / "model"  # fmt: skip
        staging.mkdir()
        places = _copy_layout(theta_init, staging, stack)
        groups: dict[str, list[str]] = {}
        for name in start.tensors:
            groups.setdefault(group_of(name, granularity), []).append(name)

        def merge_group(group: str) -> Array:
            gram = np.zeros((len(runs), len(runs)))
            for name in groups[group]:
                for first, *ends in _pieces(name, start, runs):
                    gram += _checked_gram(name, start.tensors[name], first, ends)
            c = slerp_coefficients(gram, lam, group)
            for name in groups[group]:
                file, offset = places[name]
                for first, *ends in _pieces(name, start, runs):
                    merged = _merged(start.tensors[name], first, ends, c, eta)
                    offset += _write(file, offset, merged)
            return angles_of(gram)

        threads = stack.enter_context(ThreadPoolExecutor(THREADS))
        angles = dict(zip(groups, threads.map(merge_group, groups), strict=True))
        staging.rename(out)
    return angles


def _checked_gram(name: str, stored: "_Stored", first: Array, ends: Sequence[Array]) -> Array:
    if stored.dtype not in FLOATS:
        if any((first != end).any() for end in ends):
            raise MergeError(f"the integers of {name} differ between the checkpoints")
        return np.zeros((len(ends), len(ends)))
    gram = gram_of_piece(first, ends)
    if not np.isfinite(gram).all():  # no weight is NaN or infinite without it
        for m, piece in enumerate((first, *ends)):
            if not np.isfinite(piece).all():
                label = f"θ^{m}" if m else "θ_init"
                raise MergeError(f"{label} has NaN or infinite weights in: {name}")
        raise MergeError(f"the task vectors of {name} are too long for a norm in float64")
    return gram


def _merged(
    stored: "_Stored", first: Array, ends: Sequence[Array], c: Sequence[float], eta: float
) -> memoryview:
    """The bytes of a merged piece; rounded as it is stored at each of the two formulas."""
    merged = first
    if stored.dtype in FLOATS:
        merged = combine_piece(first, ends, c).astype(first.dtype, copy=False)
        if eta != 1:
            merged = combine_piece(first, [merged], [eta]).astype(first.dtype, copy=False)
    return merged.view(np.uint8).data


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies, and what it is."""

    map: mmap.mmap
    offset: int
    length: int  # bytes
    dtype: str
    shape: tuple[int, ...]


class _Checkpoint:
    """A folder of safetensors, read piece by piece from maps of the files, which copies nothing; each
    piece is unmapped behind its use, for it would count as the process's memory."""

    def __init__(self, folder: Path) -> None:
        verify(folder)
        self.tensors: dict[str, _Stored] = {}
        for path in _files(folder):
            try:
                with safe_open(path, framework="np"):  # its checks of the header
                    pass
            except SafetensorError as error:
                raise MergeError(f"{path}: is damaged, or no safetensors file: {error}") from None
            with path.open("rb") as file:
                header, data = _header(file)
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                if entry["dtype"] not in DTYPES:
                    raise MergeError(f"{path}: {name} is of type {entry['dtype']}; these can be "
                                     f"merged: {', '.join(DTYPES)}")  # fmt: skip
                self.tensors[name] = _Stored(content, data + begin, end - begin, entry["dtype"],
                                             tuple(entry["shape"]))  # fmt: skip

    def pieces(self, name: str) -> Iterator[Array]:
        """The tensor, flat, PIECE elements at a time; each holds until the next."""
        stored = self.tensors[name]
        dtype = DTYPES[stored.dtype]
        size, per_piece = dtype.itemsize, PIECE * dtype.itemsize
        page = stored.offset - stored.offset % mmap.PAGESIZE
        for begin in range(stored.offset, stored.offset + stored.length, per_piece):
            end = min(begin + per_piece, stored.offset + stored.length)
            yield np.frombuffer(stored.map, dtype, (end - begin) // size, begin)
            stored.map.madvise(mmap.MADV_DONTNEED, page, end - page)  # the system maps more at once


def _pieces(name: str, start: _Checkpoint, runs: Sequence[_Checkpoint]) -> Iterator[list[Array]]:
    """The same piece of every checkpoint, θ_init's first."""
    for pieces in zip(*(each.pieces(name) for each in (start, *runs)), strict=True):
        yield list(pieces)


def _write(file: FileIO, offset: int, data: memoryview) -> int:
    """Several threads may, at different places; returns the count of bytes."""
    rest = data
    while rest:
        rest = rest[os.pwrite(file.fileno(), rest, offset + len(data) - len(rest)) :]
    return len(data)


def _same_tensors(start: _Checkpoint, run: _Checkpoint, m: int) -> None:
    if different := sorted(start.tensors.keys() ^ run.tensors.keys()):
        raise MergeError(f"θ^{m} and θ_init have different tensors: {different[:5]}")
    for what in ("shape", "dtype"):
        unlike = [name for name, stored in start.tensors.items()
                  if getattr(stored, what) != getattr(run.tensors[name], what)]  # fmt: skip
        if unlike:
            raise MergeError(f"θ^{m} and θ_init have tensors of different {what}: {unlike[:5]}")


def _header(file: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Of a safetensors file: name -> dtype, shape, data_offsets; and where the data begins."""
    length = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise MergeError(f"{folder}: there is no {SUFFIX} file in it")
    return files


def _copy_layout(source: Path, target: Path, stack: ExitStack) -> Mapping[str, tuple[FileIO, int]]:
    """Headers and all other files of a checkpoint; tensor name -> where its bytes belong."""
    places: dict[str, tuple[FileIO, int]] = {}
    for path in source.iterdir():
        if path.suffix != SUFFIX and path.name != SUMS and path.is_file():
            shutil.copy(path, target)
    for path in _files(source):
        with path.open("rb") as original:
            header, data = _header(original)
            original.seek(0)
            head = original.read(data)
        file = stack.enter_context((target / path.name).open("wb", buffering=0))
        _write(file, 0, memoryview(head))
        places |= {name: (file, data + entry["data_offsets"][0]) for name, entry in header.items()}
    return places


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 merged, 1 refused."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("theta_init", type=Path)
    parser.add_argument("thetas", type=Path, nargs="+", metavar="run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lam", type=float, help="weight of the second of two; else 1/M each")
    parser.add_argument("--granularity", choices=get_args(Granularity), default="layer")
    parser.add_argument("--eta", type=float, default=1.0, help="LITI: 1 is the merge itself")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        angles = merge_files(**vars(options))
    except (MergeError, DamagedError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    upper = np.triu_indices(len(options.thetas), 1)
    pairs = np.rad2deg(np.concatenate([each[upper] for each in angles.values()]))
    pairs = pairs[~np.isnan(pairs)]
    between = f", angles {pairs.min():.1f}° to {pairs.max():.1f}°" if len(pairs) else ""
    print(f"{options.out}: {len(options.thetas)} runs merged in {len(angles)} groups{between}, "
          f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
