"""The state of a run in progress, on disk every so many steps: a killed run goes on from there.

θ^m, θ_ema^m, Adam's moments, the random state, the steps' metrics so far. The newest whole one
counts; one that is damaged is named and passed over.
"""

import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from warp_core.errors import DamagedError, TrainingError
from warp_core.files import appearing, read_jsonl, verify, write_jsonl
from warp_core.interrupts import held_back
from warp_core.merge import all_finite
from warp_core.models import STEPS_FILE, set_weights, total_bytes, weights_of

STATE = "state.safetensors"


@dataclass
class State:
    """What a run changes as it goes."""

    policy: PreTrainedModel
    anchor: PreTrainedModel
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    good: Mapping[str, Tensor]
    """Weights before the last update, for a run that max_kl may end; else empty."""


class Checkpoint:
    """Of one run: a folder with the newest state, and the run's log of steps.

    Args:
        folder: holds `step_N`, one at a time.
        log: JSON lines, one a step, that the run writes.
        every: steps from one to the next; 0: only when interrupted.
    """

    def __init__(self, folder: Path, log: Path, every: int) -> None:
        self.folder, self.log, self.every = folder, log, every
        self.step = self.saved = 0
        self.random = torch.empty(0)  # behind `step`; sampling moves the generator's own on

    def restore(self, state: State) -> int:
        """Load the newest whole state; returns the step it stands behind, 0 without one."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.step = self.saved = 0
        rows: list[dict[str, Any]] = []
        for step in reversed(self._steps()):
            try:
                verify(self._path(step), STATE, STEPS_FILE)
            except DamagedError as error:
                warnings.warn(f"passed over, and computed anew: {error}", stacklevel=2)
                continue
            tensors = load_file(self._path(step) / STATE)
            set_weights(state.policy, _of("policy", tensors))
            set_weights(state.anchor, _of("anchor", tensors))
            adam: dict[int, dict[str, Tensor]] = {}
            for name, tensor in _of("adam", tensors).items():
                index, key = name.split(".")
                adam.setdefault(int(index), {})[key] = tensor
            state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": adam})
            state.generator.set_state(tensors["random"])
            state.good = {
                name: t.to(state.policy.device) for name, t in _of("good", tensors).items()
            }
            rows = read_jsonl(self._path(step) / STEPS_FILE)
            self.step = self.saved = step
            break
        write_jsonl(self.log, rows)
        return self.step

    def whole(self, step: int, state: State, last: bool) -> None:
        """A step is complete; its row is in the log. It is saved if it is time.

        Behind the last one it is not: the weights are about to be.
        """
        self.step, self.random = step, state.generator.get_state()
        if self.every and step % self.every == 0 and not last:
            self._save(state)

    @contextmanager
    def kept_if_interrupted(self, state: State) -> Iterator[None]:
        """Around a run's steps: Ctrl-C, or a step that failed, saves what `whole` was told last.

        Updates must be held back; after one that ruined the weights nothing is saved.
        """
        try:
            yield
        except (KeyboardInterrupt, TrainingError):
            with held_back():
                ruined = not all(map(all_finite, weights_of(state.policy).values()))
                if self.step > self.saved and not ruined:
                    self._save(state)
            raise

    def _save(self, state: State) -> None:
        """The state before stays until this one is whole on disk."""
        tensors = _prefixed("policy", weights_of(state.policy))
        tensors |= _prefixed("anchor", weights_of(state.anchor)) | _prefixed("good", state.good)
        tensors["random"] = self.random
        for index, moments in state.optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"adam.{index}", moments)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        with appearing(self._path(self.step), total_bytes(tensors)) as staging:
            save_file(tensors, staging / STATE)
            write_jsonl(staging / STEPS_FILE, read_jsonl(self.log))
        self.saved = self.step
        for other in self._steps():
            if other != self.step:
                shutil.rmtree(self._path(other))

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def _steps(self) -> list[int]:
        """Steps of which a state is there, oldest first."""
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _of(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()
            if name.startswith(f"{prefix}.")}  # fmt: skip
