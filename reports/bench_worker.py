"""One of our runs, a step at a time: what `bench.py` starts, talks to and times.

Reads a JSON line, does what it says, answers with one:
    {"do": "peak", "threads": 1}   -> {"gflops": …}, of square float32 products (or of `dtype`)
    {"do": "step", "threads": 1}   -> {"seconds": …, "tokens": …, "parts": {part: seconds}}
The answer to the first step has the operations of each part too. The end of the input ends it.
"""

import copy
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from warp_core import rollout, train
from warp_core.config import WarpConfig
from warp_core.models import load_policy
from warp_core.reward import load_reward

SIDE, PRODUCTS = 2048, 5


def peak(threads: int, dtype: str = "float32") -> float:
    """Billions of operations a second in square products: the median of a few."""
    torch.set_num_threads(threads)
    side = SIDE if dtype == "float32" else SIDE // 2
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
    took = []
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        (a @ b)[0, 0].item()
        took.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(took) / 1e9


class Parts:
    """Seconds and operations of the parts of a step, by wrapping the functions that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, int] = defaultdict(int)
        self.counter: FlopCounterMode | None = None

    @contextmanager
    def timed(self, part: str) -> Any:
        before = self.counter.get_total_flops() if self.counter else 0
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start
            if self.counter:
                self.operations[part] += self.counter.get_total_flops() - before

    def wrap(self, function: Callable[..., Any], part: Callable[..., str]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            with self.timed(part(*args)):
                return function(*args, **options)

        return wrapped

    def take(self) -> dict[str, float]:
        """The seconds since the last call; decoding is what prefill leaves of sampling."""
        seconds = dict(self.seconds)
        self.seconds.clear()
        seconds["decode"] = seconds.pop("sample") - seconds["prefill"]
        return seconds

    def counted(self) -> dict[str, int]:
        """The operations of the first step, in the same parts."""
        return {part: count for part, count in self.operations.items() if part != "sample"} | {
            "decode": self.operations["sample"] - self.operations["prefill"]
        }


def watch(parts: Parts, policy: torch.nn.Module) -> None:
    """From here on, every step of `train_run` leaves its seconds in `parts`."""
    forward = rollout.forward_logits

    def first_of_sampling(model: Any, tokens: Any, mask: Any, keep: int, cache: Any = None) -> Any:
        if cache is None or tokens.shape != mask.shape:
            return forward(model, tokens, mask, keep, cache)
        with parts.timed("prefill"):
            return forward(model, tokens, mask, keep, cache)

    rollout.forward_logits = first_of_sampling
    train.sample = parts.wrap(train.sample, lambda *_: "sample")
    train.logprob = parts.wrap(
        train.logprob, lambda model, *_: "forward" if model is policy else "anchor"
    )
    train.ema_update_ = parts.wrap(train.ema_update_, lambda *_: "update")
    train.get_total_norm = parts.wrap(train.get_total_norm, lambda *_: "update")
    torch.optim.Adam.step = parts.wrap(torch.optim.Adam.step, lambda *_: "update")
    torch.Tensor.backward = parts.wrap(torch.Tensor.backward, lambda *_: "backward")


def serve(settings: Mapping[str, Any]) -> None:
    """Steps of one run, each when it is asked for."""
    config = WarpConfig(**settings["config"])
    prompts = json.loads(Path(settings["prompts"]).read_text(encoding="utf-8"))
    policy, tokenizer = load_policy(config.policy)
    reward = load_reward(config.reward_model, config.positive_label)
    parts = Parts()
    watch(parts, policy)

    def wait() -> None:
        """Answer what is asked until it is a step."""
        for line in sys.stdin:
            asked = json.loads(line)
            if asked.pop("do") == "step":
                torch.set_num_threads(asked["threads"])
                return
            _say({"gflops": peak(**asked)})
        raise SystemExit

    def on_step(row: dict[str, Any]) -> None:
        seconds = parts.take()
        answer = {"seconds": row["seconds"], "tokens": row["tokens"], "parts": seconds}
        if parts.counter:
            parts.counter.__exit__(None, None, None)
            answer |= {"operations": parts.counted()}
            parts.counter = None
        _say(answer)
        wait()

    _say({"ready": True})
    wait()
    parts.counter = FlopCounterMode(display=False)
    parts.counter.__enter__()
    train.train_run(policy, copy.deepcopy(policy), tokenizer,
                    parts.wrap(reward, lambda *_: "reward"), prompts, config, config.seed,
                    on_step)  # fmt: skip


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
