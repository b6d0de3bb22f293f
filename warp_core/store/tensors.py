"""Weights read piece by piece, in memory or in files of safetensors, and written at their offsets.

A folder's index says which of its files count; without one it is `model.safetensors`, or the only
file there is. NumPy alone is used, for a merge of files should not wait for torch to be imported.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from warp_core.store.errors import MergeError
from warp_core.store.files import SUMS, verify

if TYPE_CHECKING:
    from torch import Tensor

    Weights = Mapping[str, Tensor]
Array = np.ndarray[Any, np.dtype[Any]]

SUFFIX, INDEX = ".safetensors", "model.safetensors.index.json"
PIECE = 1 << 18  # elements of a tensor that are read at a time
_TYPES = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U8": np.uint8, "BOOL": np.bool_},
}
DTYPES = {name: np.dtype(each) for name, each in _TYPES.items()}
# The first number in a name, standing alone between dots, is the index of its block:
# model.layers.3.mlp.up_proj.weight, transformer.h.0.attn.c_attn.weight, encoder.block.7.…
_BLOCK = re.compile(r"^(.*?\.\d+)\.")


class Readers:
    """θ_init and each θ^m, read side by side.

    Args:
        tied: names that stand for another one's tensor, which alone is read.

    Raises MergeError, naming the tensors, where they cannot be merged.
    """

    def __init__(
        self, sources: Sequence[WeightFiles] | Sequence[WeightTensors], tied: Mapping[str, str]
    ) -> None:
        self.sources, self.tied = sources, tied
        start, *ends = sources
        self.m = len(ends)
        self.names = [name for name in start.shapes if name not in tied]
        for m, end in enumerate(ends, start=1):
            if different := sorted({*self.names} ^ (end.shapes.keys() - tied)):
                raise MergeError(f"θ^{m} and θ_init have different tensors: {_some(different)}")
            shapes = [name for name in self.names if start.shapes[name] != end.shapes[name]]
            types = [n for n in self.names if not _alike(start.dtypes[n], end.dtypes[n])]
            for what, unlike in (("shapes", shapes), ("types", types)):
                if unlike:
                    of = f"θ^{m} and θ_init have tensors of different {what}"
                    raise MergeError(f"{of}: {_some(unlike)}")

    def pieces(self, name: str) -> Iterator[tuple[Array, ...]]:
        """The same piece of every one, θ_init's first."""
        return zip(*(source.pieces(name) for source in self.sources), strict=True)


def in_memory(theta_init: Weights, thetas: Sequence[Weights]) -> Readers:
    """Names that hold the same memory in every one of the weights are tied."""
    seen: dict[tuple[object, ...], str] = {}
    tied = {}
    every = [theta_init, *thetas]
    if any(".lora_A." in name for theta in every for name in theta):
        raise MergeError(
            "these are factors of LoRA, whose SLERP is another operation than that of their products: "
            "merge_files merges the adapters' folders"
        )
    for name in theta_init:
        if all(name in theta for theta in every):  # else `Readers` says it
            # Memory, shape and type, for a view of a tensor is not the tensor.
            tensors = [theta[name] for theta in every]
            key = tuple((t.data_ptr() or name, t.shape, t.stride(), t.dtype) for t in tensors)
            if (first := seen.setdefault(key, name)) != name:
                tied[name] = first
    return Readers([WeightTensors(theta) for theta in every], tied)


def in_files(theta_init: Path, thetas: Sequence[Path]) -> Readers:
    """Tied weights are those that not all have, and that are copies of a tensor that all have.

    Some programs write them under each of their names, others under one.
    """
    sources = [WeightFiles(folder) for folder in (theta_init, *thetas)]
    common = set.intersection(*(set(source.shapes) for source in sources))
    tied = {}
    for name in set.union(*(set(source.shapes) for source in sources)) - common:
        having = [source for source in sources if name in source.shapes]
        twins = (each for each in sorted(common) if all(s.equal(name, each) for s in having))
        if twin := next(twins, None):
            tied[name] = twin
    return Readers(sources, tied)


class WeightFiles:
    """The tensors of a folder, read from maps of its files, which copies nothing.

    Each piece is unmapped behind its use, for it would count as the process's memory.
    Raises MergeError where a file is missing or no safetensors; DamagedError where one is not what
    was written.
    """

    def __init__(self, folder: Path) -> None:
        verify(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self._places: dict[str, tuple[mmap.mmap, int, int]] = {}  # with the first and last byte
        for path in weight_files(folder):
            try:
                with safe_open(path, framework="np"):  # its checks of the header
                    pass
            except (SafetensorError, OSError) as error:
                raise MergeError(f"{path}: is damaged, or no safetensors file: {error}") from None
            with path.open("rb") as file:
                header, data = _header(file)
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            for name, entry in header.items():
                if (dtype := entry["dtype"]) not in DTYPES:
                    known = f"these can be merged: {', '.join(DTYPES)}"
                    raise MergeError(f"{path}: {name} is of type {dtype}; {known}")
                begin, end = entry["data_offsets"]
                self._places[name] = content, data + begin, data + end
                self.shapes[name], self.dtypes[name] = tuple(entry["shape"]), DTYPES[dtype]

    def pieces(self, name: str) -> Iterator[Array]:
        """The tensor, flat, PIECE elements at a time; each holds until the next."""
        (content, first, stop), dtype = self._places[name], self.dtypes[name]
        page = first - first % mmap.PAGESIZE
        for begin in range(first, stop, PIECE * dtype.itemsize):
            end = min(begin + PIECE * dtype.itemsize, stop)
            yield np.frombuffer(content, dtype, (end - begin) // dtype.itemsize, begin)
            # From the tensor's beginning, since the system maps more at once.
            content.madvise(mmap.MADV_DONTNEED, page, end - page)

    def equal(self, name: str, other: str) -> bool:
        """Whether two tensors are copies of each other."""
        if (self.shapes[name], self.dtypes[name]) != (self.shapes[other], self.dtypes[other]):
            return False
        pairs = zip(self.pieces(name), self.pieces(other), strict=True)
        return all(np.array_equal(a, b) for a, b in pairs)


class WeightTensors:
    """Weights in memory, read in the same pieces."""

    def __init__(self, theta: Weights) -> None:
        self.theta = theta
        self.shapes = {name: tuple(tensor.shape) for name, tensor in theta.items()}
        self.dtypes = {name: _array(tensor.flatten()[:0]).dtype for name, tensor in theta.items()}

    def pieces(self, name: str) -> Iterator[Array]:
        array = _array(self.theta[name].flatten())
        return (array[k : k + PIECE] for k in range(0, len(array), PIECE))


def _array(flat: Tensor) -> Array:
    """On the CPU, of a type that NumPy knows."""
    bf16 = str(flat.dtype) == "torch.bfloat16"
    return (flat.float() if bf16 else flat).detach().cpu().numpy()


class NewWeightTensors:
    """Weights like others in memory, from pieces; names that are tied share their tensor."""

    def __init__(self, like: Weights, tied: Mapping[str, str]) -> None:
        self.like, self.tied = like, tied
        new = {name: tensor.flatten() for name, tensor in like.items() if name not in tied}
        self.arrays = {name: np.empty(len(t), _array(t[:0]).dtype) for name, t in new.items()}

    def write(self, name: str, start: int, piece: Array) -> None:
        """Elements of a tensor from `start` on."""
        self.arrays[name][start : start + len(piece)] = piece

    def theta(self) -> dict[str, Tensor]:
        """What has been written."""
        import torch

        new = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        new = {name: new[name].to(self.like[name]).view(self.like[name].shape) for name in new}
        return {name: new[self.tied.get(name, name)] for name in self.like}


class NewWeightFiles(ExitStack):
    """Weights written into a new folder with the names, types and files of another one.

    Everything else that lies there (config, tokenizer, index) is copied, but for what says what it is.
    """

    def __init__(self, like: Path, folder: Path, tied: Mapping[str, str]) -> None:
        super().__init__()
        self._places: dict[str, tuple[FileIO, int, np.dtype[Any]]] = {}
        for path in other_files(like):
            shutil.copy(path, folder)
        for path in weight_files(like):
            with path.open("rb") as original:
                header, data = _header(original)
                original.seek(0)
                head = original.read(data)
            file = self.enter_context((folder / path.name).open("wb", buffering=0))
            _write(file, 0, memoryview(head))
            for name, entry in header.items():
                begin = data + entry["data_offsets"][0]
                self._places[name] = file, begin, DTYPES[entry["dtype"]]
        self._names = {name: [name] for name in self._places if name not in tied}
        for name in self._places.keys() & tied.keys():
            self._names[tied[name]].append(name)

    def write(self, name: str, start: int, piece: Array) -> None:
        """Elements of a tensor from `start` on; several threads may, at different places."""
        for each in self._names[name]:
            file, begin, dtype = self._places[each]
            data = np.ascontiguousarray(piece, dtype).view(np.uint8).data
            _write(file, begin + start * dtype.itemsize, data)


def size_of(folder: Path) -> int:
    """Bytes of what `NewWeightFiles` makes of it."""
    return sum(path.stat().st_size for path in [*weight_files(folder), *other_files(folder)])


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights; raises MergeError where that cannot be told."""
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
            inside = all(Path(name).name == name for name in names)
        except (ValueError, KeyError, TypeError, AttributeError):
            inside = False
        if not inside:
            raise MergeError(f"{folder / INDEX}: is no index of files in its folder")
        return [folder / name for name in names]
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if (whole := folder / f"model{SUFFIX}") in files:
        return [whole]
    if not files:
        raise MergeError(f"{folder}: there is no {SUFFIX} file in it")
    if len(files) > 1:
        raise MergeError(f"{folder}: has {len(files)} {SUFFIX} files and no {INDEX}")
    return files


def other_files(folder: Path) -> list[Path]:
    """Those that hold no weights: config, tokenizer, index; without the checksums and the card."""
    files = [path for path in folder.iterdir() if path.is_file()]
    return [
        path for path in files if path.suffix != SUFFIX and path.name not in (SUMS, "README.md")
    ]


def _header(file: IO[bytes]) -> tuple[dict[str, Any], int]:
    """Of a safetensors file: name -> dtype, shape, data_offsets; and where the data begins."""
    length = struct.unpack("<Q", file.read(8))[0]
    header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _write(file: FileIO, offset: int, data: memoryview) -> None:
    rest = data
    while rest:
        rest = rest[os.pwrite(file.fileno(), rest, offset + len(data) - len(rest)) :]


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether its elements are weights: bfloat16 is of a kind of its own."""
    return dtype.kind not in "biu"


def _alike(a: np.dtype[Any], b: np.dtype[Any]) -> bool:
    return a == b or (is_float(a) and is_float(b))


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def block_of(name: str) -> str:
    """The transformer block that a tensor belongs to, by its name; outside the blocks itself."""
    block = _BLOCK.match(name)
    return block.group(1) if block else name


def in_order(name: str) -> list[tuple[int, str]]:
    """Sorts names so that layer 2 stands before layer 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split(".")]
