"""What a run needs of the machine."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self


@dataclass(frozen=True)
class Needs:
    """Of one worker."""

    bytes: int = 0
    """Of memory."""
    gpus: int = 1
    """Where there are GPUs."""
    precision: Literal["fp32", "bf16"] = "fp32"

    @classmethod
    def of_all(cls, runs: Iterable[Self]) -> Self:
        """Of a worker that takes any of them."""
        every = [cls(), *runs]
        return cls(
            max(run.bytes for run in every),
            max(run.gpus for run in every),
            "bf16" if any(run.precision == "bf16" for run in every) else "fp32",
        )
