"""How much memory runs want, how much there is for them, and what running ones have still to take."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from filelock import FileLock
from transformers import PreTrainedConfig

from warp_core.store.errors import ConfigError
from warp_core.store.files import read_json, write_json

GB = 1e9
CGROUP = Path("/sys/fs/cgroup")


def needed_bytes(
    config: PreTrainedConfig,
    weights: int,
    batch_size: int,
    prompt_tokens: int,
    max_new_tokens: int,
    keeps_last: bool = False,
) -> int:
    """What a run wants at its largest: weights, anchor, gradient, Adam's two moments, activations.

    These are an estimate, made for Llama's blocks: 14 vectors of the hidden size and 4 of the
    feed-forward's for each token and layer, and 4 tensors of logits. `keeps_last`: of the weights
    before the last update, for `max_kl`.
    """
    sizes = config.get_text_config()
    hidden = sizes.hidden_size
    inner = getattr(sizes, "intermediate_size", None) or 4 * hidden
    tokens = batch_size * (prompt_tokens + max_new_tokens)
    blocks = tokens * sizes.num_hidden_layers * (14 * hidden + 4 * inner)
    logits = 4 * batch_size * max_new_tokens * sizes.vocab_size
    return 4 * ((5 + keeps_last) * weights + blocks + logits)


def available_bytes() -> int:
    """Memory that new tensors can have, on the GPU if there is one; a container's limit counts."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    available = psutil.virtual_memory().available
    for folder, limit, used, prefix in (
        ("", "memory.max", "memory.current", ""),  # cgroup v2
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),  # v1
    ):
        try:
            bound, now = (int((CGROUP / folder / name).read_text()) for name in (limit, used))
            stat = (CGROUP / folder / "memory.stat").read_text()
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        # Files that were read are counted as used, and give way at once.
        files = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", stat, re.MULTILINE)
        available = min(available, max(0, bound - now + sum(map(int, files))))
    return available


@contextmanager
def reserved(workers: int, each: int) -> Iterator[None]:
    """Memory for so many runs side by side, told to all processes of this user; once a process.

    Args:
        each: bytes that one wants.

    Raises ConfigError where they want more than there is, less what was asked for before and is not
    taken yet: two programs that start together must not both count the same bytes.
    """
    folder = Path(tempfile.gettempdir()) / f"warp-core-memory-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    mine = folder / f"{os.getpid()}.json"
    with FileLock(folder / ".lock"):
        there = max(0, available_bytes() - _outstanding(folder))
        if workers * each > there:
            fit, less = there // each, "a smaller batch_size or max_new_tokens helps"
            raise ConfigError(
                f"workers: {workers} runs side by side want about {workers * each / GB:.1f} GB, "
                f"{each / GB:.1f} GB each, and {there / GB:.1f} GB are available; "
                + (f"workers: {fit} fits" if fit else less)
            )
        started = psutil.Process().create_time()
        write_json(mine, {"bytes": workers * each, "started": started})
    try:
        yield
    finally:
        mine.unlink(missing_ok=True)


def _outstanding(folder: Path) -> int:
    """Bytes that live processes have reserved and do not hold yet; those of others are forgotten."""
    total = 0
    for path in folder.glob("*.json"):
        try:
            asked = read_json(path)
            process = psutil.Process(int(path.stem))
            if process.create_time() != asked["started"]:  # another one, with its number
                raise psutil.NoSuchProcess(process.pid)
            family = [process, *process.children(recursive=True)]
            held = sum(each.memory_info().rss for each in family)
            total += max(0, asked["bytes"] - held)
        except (psutil.Error, OSError, ValueError, KeyError):  # it has ended or was killed
            path.unlink(missing_ok=True)
    return total
