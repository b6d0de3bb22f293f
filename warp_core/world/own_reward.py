"""A reward of the user's own: a function in a Python file, `python:FILE:FUNCTION`.

It is the user's code, and is run as such: in this process and its workers, with all rights that
they have. The file stands alone: it is copied to the store, and its content names what it scored.
"""

import hashlib
import importlib.util
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warp_core.store.errors import RewardError
from warp_core.world.prompts import Prompt
from warp_core.world.scorer import PYTHON

SLOW = 30.0  # seconds a call


class OwnReward:
    """r: texts (prompt + completion) or conversations -> (B,) float32.

    Args:
        path: of the file, which is run.
        function: takes a list of texts, or of conversations (lists of role and content) where the
            prompts are conversations; returns a number for each.
        name: what errors call it.

    Raises RewardError where there is no such function, and, when called, where it fails or gives other
    than one finite number for each.
    """

    def __init__(self, path: Path, function: str, name: str) -> None:
        self.name = name
        self.digest = hashlib.sha256(path.read_bytes() + function.encode()).hexdigest()
        spec = importlib.util.spec_from_file_location(f"own_reward_{self.digest[:16]}", path)
        if spec is None or spec.loader is None:
            raise RewardError(f"{path}: its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # whatever code raises
            raise RewardError(f"{path}: raises {error!r:.300}") from error
        if not callable(getattr(module, function, None)):
            raise RewardError(f"{path}: has no function {function!r}")
        self._function: Callable[[list[Prompt]], Any] = getattr(module, function)

    def __call__(self, scored: Sequence[Prompt]) -> Tensor:
        start = time.monotonic()
        try:
            given = self._function(list(scored))
            rewards = torch.as_tensor(given, dtype=torch.float32).detach().cpu()
        except Exception as error:
            raise RewardError(f"the reward {self.name} fails: {error!r:.300}") from error
        if rewards.shape != (len(scored),):
            raise RewardError(
                f"the reward {self.name} gives {tuple(rewards.shape)} numbers for {len(scored)} "
                "completions; one for each is needed"
            )
        if not torch.isfinite(rewards).all():
            bad = int((~torch.isfinite(rewards)).nonzero()[0])
            raise RewardError(
                f"the reward {self.name} gives {rewards[bad].item()} for {scored[bad]!r:.200}"
            )
        if (seconds := time.monotonic() - start) > SLOW:
            warnings.warn(
                f"the reward {self.name} took {seconds:.0f} s for {len(scored)} completions",
                stacklevel=2,
            )
        return rewards


def place_of(spec: str) -> tuple[Path, str]:
    """File and function of `python:FILE:FUNCTION`; raises RewardError where it is not that."""
    file, _, function = spec.removeprefix(PYTHON).rpartition(":")
    if not (file and function.isidentifier()):
        raise RewardError("it is not of the form python:FILE:FUNCTION")
    if not Path(file).is_file():
        raise RewardError("there is no such file")
    return Path(file), function
