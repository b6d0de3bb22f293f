"""One of our runs, a step at a time: what `steps.py` starts, talks to and times.

Reads a JSON line, does what it says, answers with one:
    {"do": "peak", "threads": 1, "precision": "bf16"} -> {"gflops": …}, of square products
    {"do": "step", "threads": 1} -> {"seconds": …, "tokens": …, "parts": {part: seconds}}
The answer to the first step has the operations of each part too. The end of the input ends it.
"""

import copy
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from warp_core import rollout, train
from warp_core.config import WarpConfig
from warp_core.engine.tape import taped
from warp_core.world.models import load_policy
from warp_core.world.reward import load_reward

SIDES, PRODUCTS = (256, 2048), 5
SLOW = 10.0  # billions of operations a second; some processors emulate bfloat16 slower than that


def peak(threads: int, precision: str) -> float:
    """Billions of operations a second in square products: the median of a few, large ones unless slow."""
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gflops = 0.0
    for side in SIDES:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        took = []
        for _ in range(PRODUCTS):
            start = time.perf_counter()
            (a @ b)[0, 0].item()
            took.append(time.perf_counter() - start)
        gflops = 2 * side**3 / statistics.median(took) / 1e9
        if gflops < SLOW:
            break
    return gflops


class Parts:
    """Seconds and operations of the parts of a step, by wrapping the functions that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.operations: dict[str, float] = defaultdict(int)
        self.counter: FlopCounterMode | None = FlopCounterMode(display=False)  # of the first step

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

    def step(self, run: train.Run) -> dict[str, Any]:
        """One step; decoding is what prefill leaves of sampling."""
        self.seconds.clear()
        with self.counter or nullcontext():
            start = time.perf_counter()
            row = run.step()
            seconds = time.perf_counter() - start
        counted = {"operations": self.operations} if self.counter else {}
        self.counter = None
        for parts in (self.seconds, *counted.values()):
            parts["decode"] = parts.pop("sample") - parts["prefill"]
        return {"seconds": seconds, "tokens": row["tokens"], "parts": self.seconds} | counted


def watch(parts: Parts, policy: torch.nn.Module) -> None:
    """From here on, every step leaves the seconds of what it calls in `parts`."""
    forward = rollout.forward_logits

    def first_of_sampling(model: Any, tokens: Any, mask: Any, keep: int, cache: Any = None) -> Any:
        prefill = cache is not None and tokens.shape == mask.shape
        with parts.timed("prefill") if prefill else nullcontext():
            return forward(model, tokens, mask, keep, cache)

    rollout.forward_logits = first_of_sampling
    train.sample = parts.wrap(train.sample, lambda *_: "sample")
    train.logprob = parts.wrap(
        train.logprob, lambda model, *_: "forward" if model is policy else "anchor"
    )
    update = (train, "ema_update_"), (train, "get_total_norm"), (torch.optim.Adam, "step")
    for place, name in update:
        setattr(place, name, parts.wrap(getattr(place, name), lambda *_: "update"))
    torch.Tensor.backward = parts.wrap(torch.Tensor.backward, lambda *_: "backward")


def serve(settings: Mapping[str, Any]) -> None:
    """Steps of one run, each when it is asked for."""
    config = WarpConfig(**settings["config"])
    prompts = json.loads(Path(settings["prompts"]).read_text(encoding="utf-8"))
    policy, tokenizer = load_policy(config.policy)
    parts = Parts()
    reward = parts.wrap(
        load_reward(str(config.reward_model), config.positive_label), lambda *_: "reward"
    )
    watch(parts, policy)
    anchor = copy.deepcopy(policy)
    run = train.Run(policy, anchor, tokenizer, reward, prompts, config, config.seed)
    _say({"ready": True})
    with taped(policy, config.max_new_tokens):
        for line in sys.stdin:
            asked = json.loads(line)
            if asked.pop("do") == "peak":
                _say({"gflops": peak(**asked)})
            else:
                torch.set_num_threads(asked["threads"])
                _say(parts.step(run))


def _say(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
