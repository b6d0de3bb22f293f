"""Whether this machine multiplies bfloat16 faster than float32: some are hundreds of times slower."""

import time

import torch

from warp_core.store.errors import ConfigError

ROWS, WIDTH, ROUNDS = 384, 1024, 5


def bf16_ratio() -> float:
    """Time of a linear layer in bfloat16 over that in float32, the best of interleaved rounds."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pairs = [
        [torch.ones(rows, WIDTH, dtype=kind, device=device) for rows in (ROWS, WIDTH)]
        for kind in (torch.bfloat16, torch.float32)
    ]
    best = [float("inf"), float("inf")]
    for _ in range(ROUNDS):
        for which, (x, weight) in enumerate(pairs):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight).sum().item()  # waits for a GPU
            best[which] = min(best[which], time.perf_counter() - start)
    return best[0] / best[1]


def check_precision(precision: str) -> None:
    """Raises ConfigError where bf16 is asked for and is slower here."""
    if precision == "bf16" and (ratio := bf16_ratio()) > 1:
        raise ConfigError(
            f"precision: 'bf16' given; this machine multiplies it {ratio:.1f} times slower than "
            "float32: use fp32 here"
        )
