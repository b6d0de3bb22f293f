"""How much memory runs want, how much there is for them, and what running ones have still to take."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from filelock import FileLock
from transformers import PreTrainedConfig

from warp_core.store.errors import ConfigError
from warp_core.store.files import read_json, write_json

GB = 1e9
PROCESS = 500_000_000  # bytes: Python, torch and transformers
LOGITS = 1 << 28  # of so many at a time two policies are compared
CGROUP, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@dataclass(frozen=True)
class Sizes:
    """What decides how much memory a run wants, and the evaluation behind it."""

    config: PreTrainedConfig
    """Of the policy."""
    weights: int
    """Of the policy, or of the body that is frozen."""
    prompt_tokens: int
    max_new_tokens: int
    batch_size: int
    micro_batch: int = 0
    trained: int = 0
    """Weights of the adapters that are trained; 0: all of the policy's are."""
    adapters: int = 0
    """Of those that lie frozen on the body."""
    rewards: int = 0
    """Weights of the reward models."""
    copies: int = 0
    """Of what is trained, beside weights, anchor and moments: of a fixed anchor, for `max_kl`."""
    recomputed: bool = False
    """Whether the gradient computes each layer's inside again."""
    evaluated: int = 64
    """Completions of the evaluation that are sampled at once."""


def needed_bytes(s: Sizes) -> int:
    """What a worker wants at its largest: while it samples, while it takes the gradient, or later
    while it evaluates.

    Weights, anchor and Adam's moments stay. What a layer keeps for the gradient is an estimate, made
    for Llama's blocks: 14 vectors of the hidden size and 4 of the feed-forward's a token.
    """
    sizes = s.config.get_text_config()
    hidden, layers = sizes.hidden_size, sizes.num_hidden_layers
    inner = getattr(sizes, "intermediate_size", None) or 4 * hidden
    heads = getattr(sizes, "num_attention_heads", 1)
    of_head = getattr(sizes, "head_dim", None) or hidden // heads
    kept = 2 * (getattr(sizes, "num_key_value_heads", None) or heads) * of_head  # keys and values
    length, micro = (
        s.prompt_tokens + s.max_new_tokens,
        min(s.micro_batch or s.batch_size, s.batch_size),
    )

    trained = s.trained or s.weights
    fixed = (4 + s.copies) * trained + (s.weights + s.adapters if s.trained else 0) + s.rewards
    cache = length * kept * (layers + 1)  # one layer's is copied as it grows
    sampling = s.batch_size * (cache + 3 * sizes.vocab_size)

    tokens, of_layer = micro * length, 14 * hidden + 4 * inner
    blocks = tokens * (layers * hidden + of_layer if s.recomputed else layers * of_layer)
    gradient = trained + blocks + 4 * micro * s.max_new_tokens * sizes.vocab_size

    logits = s.evaluated * s.max_new_tokens * sizes.vocab_size
    compared = 2 * min(logits, max(LOGITS, s.max_new_tokens * sizes.vocab_size))
    policies = s.weights + (s.adapters + s.trained if s.trained else s.weights) + s.rewards
    evaluating = policies + s.evaluated * cache + logits + compared
    return PROCESS + 4 * max(fixed + max(sampling, gradient), evaluating)


def available_bytes() -> int:
    """Memory that new tensors can have, on the GPU if there is one, what torch keeps there for them
    too; the limits of a container or of a batch system's job count."""
    if torch.cuda.is_available():
        kept = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + kept
    available = psutil.virtual_memory().available
    for folder, limit, used, prefix in (
        *((CGROUP / group, "memory.max", "memory.current", "") for group in _own_groups("")),  # v2
        *(
            (CGROUP / "memory" / group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            for group in _own_groups("memory")
        ),
    ):
        try:
            bound, now = (int((folder / name).read_text()) for name in (limit, used))
            stat = (folder / "memory.stat").read_text()
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        # Files that were read are counted as used, and give way at once.
        files = re.findall(rf"^{prefix}(?:in)?active_file (\d+)$", stat, re.MULTILINE)
        available = min(available, max(0, bound - now + sum(map(int, files))))
    return available


def _own_groups(controller: str) -> list[Path]:
    """This process's cgroup and those around it, below the controller's folder; "": of version 2."""
    with suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                own = Path(path.lstrip("/"))
                return [own, *own.parents]
    return [Path()]  # a container's own folder is all that it sees


def visible_gpus() -> list[str]:
    """Names of this machine's GPUs, as CUDA_VISIBLE_DEVICES takes them; none without CUDA."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return [name for name in named if name] or [str(k) for k in range(torch.cuda.device_count())]


def fitting(each: int, places: int = 1, gpus: int = 1) -> int:
    """How many runs side by side have memory, at least one a place, which has so many GPUs."""
    return max(1, gpus * _free(_reservations()) // each) * places if each else sys.maxsize


@contextmanager
def reserved(workers: int, each: int, places: int = 1, gpus: int = 1) -> Iterator[None]:
    """Memory for so many runs side by side, told to all processes of this user; once a process.

    Args:
        each: bytes that one wants.
        places: among which they are spread, of equal memory.
        gpus: of each place, where there are GPUs.

    Raises ConfigError where they want more than there is, less what was asked for before and is not
    taken yet: two programs that start together must not both count the same bytes.
    """
    folder = _reservations()
    folder.mkdir(mode=0o700, exist_ok=True)
    mine = folder / f"{os.getpid()}.json"
    with FileLock(folder / ".lock"):
        of_place = _free(folder) * gpus
        fit, there = of_place // each * places if each else workers, of_place * places
        if workers > fit:
            less = "a smaller batch_size or max_new_tokens helps"
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


def _reservations() -> Path:
    return Path(tempfile.gettempdir()) / f"warp-core-memory-{os.getuid()}"


def _free(folder: Path) -> int:
    """Bytes that nobody holds or has reserved; what a GPU has free says that itself."""
    reserved_there = 0 if torch.cuda.is_available() else _outstanding(folder)
    return max(0, available_bytes() - reserved_there)


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
            held = sum(map(_resident, family))
            total += max(0, asked["bytes"] - held)
        except (psutil.Error, OSError, ValueError, KeyError):  # it has ended or was killed
            path.unlink(missing_ok=True)
    return total


def _resident(process: psutil.Process) -> int:
    """Bytes that it holds; none where it has just ended."""
    with suppress(psutil.NoSuchProcess):
        return process.memory_info().rss
    return 0
