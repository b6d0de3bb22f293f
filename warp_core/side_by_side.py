"""The runs of an iteration side by side: how many fit into memory, and what if one of them dies."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from typing import Any

import psutil
import torch
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor
from transformers import PreTrainedModel

from warp_core.config import WarpConfig
from warp_core.errors import ConfigError
from warp_core.interrupts import end_with_parent, terminated_as_interrupted

GB = 1e9


class Died(RuntimeError):
    """A process ended without a word: killed, or out of memory."""


def run_all(
    function: Callable[..., None], arguments: Sequence[tuple[Any, ...]], workers: int
) -> list[Exception | None]:
    """Call the function with each of the arguments, so many at a time; what each call raised.

    One worker is this process itself. Several are processes of their own, and one that dies takes no
    other with it: the others go on to their end.

    Ctrl-C (and SIGTERM) reaches every call as a KeyboardInterrupt, and is raised here when all have
    ended; a second one does not wait for them.
    """
    if workers == 1:
        return [_caught(function, each) for each in arguments]
    executors = [ProcessPoolExecutor(max_workers=1, initializer=end_with_parent)
                 for _ in range(workers)]  # fmt: skip
    calls: list[Future[None]] = []
    try:
        calls = [executors[i % workers].submit(_interruptible, function, each)
                 for i, each in enumerate(arguments)]  # fmt: skip
        return [_died(call.exception()) for call in calls]
    except KeyboardInterrupt:
        for call in calls:
            call.cancel()
        for worker in [worker for executor in executors for worker in executor._processes.values()]:
            os.kill(worker.pid, signal.SIGINT)
        wait(call for call in calls if not call.cancelled())
        raise
    finally:
        for executor in executors:
            executor.shutdown(wait=False, kill_workers=True)


def _interruptible(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    with terminated_as_interrupted():
        function(*arguments)


def _caught(function: Callable[..., None], arguments: tuple[Any, ...]) -> Exception | None:
    try:
        function(*arguments)
    except Exception as error:
        return error
    return None


def _died(error: BaseException | None) -> Exception | None:
    if isinstance(error, BrokenProcessPool):
        return Died("its process died; killed, or out of memory?")
    if error is None or isinstance(error, Exception):
        return error
    raise error


def needed_bytes(policy: PreTrainedModel, config: WarpConfig, prompt_tokens: int) -> int:
    """What a run wants at its largest: weights, anchor, gradient, Adam's two moments, activations.

    The activations are an estimate, made for Llama's blocks: 14 vectors of the hidden size and 4 of
    the feed-forward's for each token and layer, and 4 tensors of logits.
    """
    sizes = policy.config.get_text_config()
    hidden = sizes.hidden_size
    inner = getattr(sizes, "intermediate_size", None) or 4 * hidden
    tokens = config.batch_size * (prompt_tokens + config.max_new_tokens)
    blocks = tokens * sizes.num_hidden_layers * (14 * hidden + 4 * inner)
    logits = 4 * config.batch_size * config.max_new_tokens * sizes.vocab_size
    weights = sum(p.numel() for p in policy.parameters())
    return 4 * (5 * weights + blocks + logits)


def available_bytes() -> int:
    """Memory that new tensors can have, on the GPU if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    return psutil.virtual_memory().available


def refuse_too_many(
    policy: PreTrainedModel, config: WarpConfig, prompt_tokens: int, workers: int
) -> None:
    """Raises ConfigError where so many runs side by side want more memory than there is."""
    each, there = needed_bytes(policy, config, prompt_tokens), available_bytes()
    if workers * each <= there:
        return
    fit = there // each
    advice = f"workers: {fit} fits" if fit else "a smaller batch_size or max_new_tokens wants less"
    raise ConfigError(
        f"workers: {workers} runs side by side want about {workers * each / GB:.1f} GB, "
        f"{each / GB:.1f} GB each, and {there / GB:.1f} GB are available; {advice}"
    )
