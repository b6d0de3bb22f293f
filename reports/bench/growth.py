"""Seconds of a step of ours against batch, new tokens and model size; and runs side by side."""

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from reports.bench.checkpoints import random_llama
from reports.bench.config import BenchConfig
from reports.bench.steps import together, worker

SIZES = {"30M": (320, 10, 5, 5, 864), "360M": (960, 32, 15, 5, 2560)}  # see `random_llama`


def measure_growth(config: BenchConfig, folder: Path, prompts: Path) -> list[dict[str, Any]]:
    """Seconds of three steps of one run with all cores, changing one thing at a time.

    The benchmark's own setting is measured once and stands in every curve.
    """
    import torch

    cores = torch.get_num_threads()
    half = max(1, cores // 2)

    def steps(threads: int = cores, workers: int = 1, **changes: Any) -> list[float]:
        with ExitStack() as stack:
            made = (worker(config, folder, prompts, seed, **changes) for seed in range(workers))
            processes = [stack.enter_context(process) for process in made]
            for process in processes:
                process.answer()
            rounds = [together(processes, do="step", threads=threads) for _ in range(4)][1:]
        took = [max(answer["seconds"] for answer in one) for one in rounds]
        print(f"growth: {workers} x {threads} {changes}: {took}", flush=True)
        return took

    usual = steps()
    paths = [random_policy(folder, name) for name in SIZES]
    curves = {
        "batch_size": {config.batch_size: usual}
        | {value: steps(batch_size=value) for value in (4, 8, 32)},
        "max_new_tokens": {config.max_new_tokens: usual}
        | {value: steps(max_new_tokens=value) for value in (12, 48)},
        "parameters": {parameters_of(folder / "policy"): usual}
        | {parameters_of(path): steps(policy=str(path)) for path in paths},
    }
    rows: list[dict[str, Any]] = [
        {"what": what, "value": value, "seconds": took}
        for what, curve in curves.items()
        for value, took in sorted(curve.items())
    ]
    beside = {(1, half): steps(half), (1, cores): usual, (2, half): steps(half, workers=2)}
    return rows + [
        {"what": "side_by_side", "value": workers, "threads": threads, "seconds": took}
        for (workers, threads), took in beside.items()
    ]


def parameters_of(folder: Path) -> int:
    """Parameters of a checkpoint, millions."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return round(sum(math.prod(shape) for shape in shapes) / 1e6)


def random_policy(folder: Path, name: str) -> Path:
    """A policy of another size, with the benchmark's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    path = random_llama(folder / name, SIZES[name], vocab_size=len(tokenizer), **ends)
    tokenizer.save_pretrained(path)
    return path
