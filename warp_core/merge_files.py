"""SLERP (and LITI) from checkpoint files to a checkpoint, one group of tensors at a time.

    python -m warp_core.merge_files THETA_INIT RUN_1 RUN_2 … --out FOLDER [--eta 0.5]

1. a checkpoint is a folder of safetensors, in one file or in shards; the names and groups come from
   θ_init's headers alone;
2. the tensors of a group are read, merged by `merge.slerp`, and written at θ_init's offsets: memory
   holds M + 2 times the largest group (a transformer layer, or the embedding), never the model;
3. every other file of θ_init's folder (config, tokenizer) is copied, and the result appears whole.
"""

import argparse
import json
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, get_args

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from warp_core.merge import Granularity, MergeError, group_of, liti, slerp_with_angles

SUFFIX = ".safetensors"


def merge_files(
    theta_init: Path,
    thetas: Sequence[Path],
    out: Path,
    lam: float | None = None,
    granularity: Granularity = "layer",
    eta: float = 1.0,
) -> dict[str, Tensor]:
    """(1 − η)·θ_init + η·slerp(θ_init, θ^1 … θ^M) from folders to a new folder.

    Args:
        lam, granularity: as in `merge.slerp`; "model" needs M + 2 models in memory.
        eta: of LITI (line 13); 1 is the merge itself.

    Returns:
        The angles between the task vectors, as `merge.task_angles` gives them.

    Raises:
        MergeError: a folder has no safetensors, they do not fit together, `lam` or `eta` is not
            from 0 to 1, or `out` is there already.
    """
    for key, share in (("lam", lam), ("eta", eta)):
        if share is not None and not 0 <= share <= 1:
            raise MergeError(f"{key}: {share} given; a number from 0 to 1 is needed")
    if out.exists():
        raise MergeError(f"{out}: is there already; choose another folder, or delete it")
    angles: dict[str, Tensor] = {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        start = _open(theta_init, stack)
        runs = [_open(theta, stack) for theta in thetas]
        for m, run in enumerate(runs, start=1):
            if different := sorted(start.keys() ^ run.keys()):
                raise MergeError(f"θ^{m} and θ_init have different tensors: {different[:5]}")
        staging = Path(stack.enter_context(
            tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-")
        )) / "model"  # fmt: skip
        staging.mkdir()
        places = _copy_layout(theta_init, staging, stack)
        groups: dict[str, list[str]] = {}
        for name in start:
            groups.setdefault(group_of(name, granularity), []).append(name)
        for group, names in groups.items():
            init = {name: start[name].get_tensor(name) for name in names}
            ends = [{name: run[name].get_tensor(name) for name in names} for run in runs]
            merged, of_group = slerp_with_angles(init, ends, lam, granularity)
            angles[group] = of_group[group]
            for name, tensor in (merged if eta == 1 else liti(init, merged, eta)).items():
                file, offset = places[name]
                file.seek(offset)
                tensor.contiguous().view(-1).view(torch.uint8).numpy().tofile(file)
        for file, _ in places.values():
            file.flush()
        staging.rename(out)
    return angles


def _open(folder: Path, stack: ExitStack) -> dict[str, Any]:
    """Tensor name -> the open file that holds it."""
    tensors: dict[str, Any] = {}
    for file in _files(folder):
        try:
            opened = stack.enter_context(safe_open(file, framework="pt"))
        except SafetensorError as error:
            raise MergeError(f"{file}: is damaged, or no safetensors file: {error}") from None
        tensors |= dict.fromkeys(opened.keys(), opened)
    return tensors


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if not files:
        raise MergeError(f"{folder}: there is no {SUFFIX} file in it")
    return files


def _copy_layout(
    source: Path, target: Path, stack: ExitStack
) -> Mapping[str, tuple[BinaryIO, int]]:
    """Headers and all other files of a checkpoint; tensor name -> where its bytes belong."""
    places: dict[str, tuple[BinaryIO, int]] = {}
    for path in source.iterdir():
        if path.suffix != SUFFIX and path.is_file():
            shutil.copy(path, target)
    for path in _files(source):
        with path.open("rb") as original:
            prefix = original.read(8)
            header = original.read(struct.unpack("<Q", prefix)[0])
        file = stack.enter_context((target / path.name).open("wb"))
        file.write(prefix + header)
        for name, entry in json.loads(header).items():
            if name != "__metadata__":
                places[name] = (file, 8 + len(header) + entry["data_offsets"][0])
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
    except (MergeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    pairs = torch.cat(
        [a[*torch.triu_indices(len(a), len(a), 1)] for a in angles.values()]
    ).rad2deg()
    pairs = pairs[~pairs.isnan()]
    between = f", angles {pairs.min():.1f}° to {pairs.max():.1f}°" if len(pairs) else ""
    print(f"{options.out}: {len(options.thetas)} runs merged in {len(angles)} groups{between}, "
          f"{time.perf_counter() - start:.1f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
