"""The state of a run in progress, on disk every so many steps: a killed run goes on from there.

The newest whole state counts; one that is damaged is named and passed over. Beside it lies the log
of the run's steps, a line each.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from warp_core.store.errors import DamagedError, StorageError, TrainingError
from warp_core.store.files import appearing, append_jsonl, read_jsonl, sweep, verify, write_jsonl
from warp_core.store.signals import held_back

STATE, STEPS = "state.safetensors", "steps.jsonl"
State = Mapping[str, Any]  # tensors by name, in dictionaries in dictionaries


class Checkpoint:
    """Of one run: its log of steps, and the newest state, in a folder of its own.

    Args:
        folder: holds `steps.jsonl` and `step_N`, one at a time.
        steps: of the whole run; behind its last one a state is saved only when interrupted, for the
            result is about to be.
        every: steps from one state to the next; 0: only when interrupted.
    """

    def __init__(self, folder: Path, steps: int, every: int) -> None:
        self.folder, self.steps, self.every = folder, steps, every
        self.log = folder / STEPS
        self.t = self.saved = 0

    def restore(self) -> State | None:
        """The newest whole state, whose step is `t` then; the log is cut back to it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sweep(self.folder)
        for step in reversed(self._steps()):
            try:
                verify(self._path(step), STATE, STEPS)
            except DamagedError as error:
                warnings.warn(f"passed over, and computed anew: {error}", stacklevel=2)
                continue
            write_jsonl(self.log, read_jsonl(self._path(step) / STEPS))
            self.t = self.saved = step
            # Not mapped: a network file system cannot remove what is.
            return _nested(load_file(self._path(step) / STATE, backend="pread"))
        write_jsonl(self.log, [])
        return None

    def rows(self) -> list[dict[str, Any]]:
        """All steps so far."""
        return read_jsonl(self.log)

    def append(self, row: Mapping[str, Any]) -> None:
        """One more row in the log."""
        append_jsonl(self.log, row)

    @contextmanager
    def step(self, row: Mapping[str, Any], state: Callable[[], State]) -> Iterator[None]:
        """Around what changes the state: Ctrl-C waits for it; then its row is logged, and the state
        saved if it is time."""
        with held_back():
            yield
            self.append(row)
            self.t += 1
            if self.every and self.t % self.every == 0 and self.t < self.steps:
                self.save(state())

    @contextmanager
    def kept_if_interrupted(self, state: Callable[[], State | None]) -> Iterator[None]:
        """Around a run's steps and its result: Ctrl-C, or one that failed, saves what is whole.

        Args:
            state: behind the last whole step; None where an update has ruined it.
        """
        try:
            yield
        except (KeyboardInterrupt, TrainingError, StorageError) as error:
            with held_back(), suppress(StorageError):
                if self.t > self.saved and (whole := state()) is not None:
                    self.save(whole)
            if isinstance(error, TrainingError) and self.saved:
                error.args = (f"{error}. The state behind step {self.saved} is kept",)
            raise

    def save(self, state: State) -> None:
        """The state before stays until this one is whole on disk."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in _flat(state)}
        size = sum(tensor.nbytes for tensor in tensors.values())
        with appearing(self._path(self.t), size) as staging:
            save_file(tensors, staging / STATE)
            write_jsonl(staging / STEPS, self.rows())
        self.saved = self.t
        for other in self._steps():
            if other != self.t:
                shutil.rmtree(self._path(other), ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def _steps(self) -> list[int]:
        """Steps of which a state is there, oldest first."""
        return sorted(int(path.name.removeprefix("step_")) for path in self.folder.glob("step_*"))


def _flat(state: State, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names joined by a slash, which no name of a tensor has."""
    for name, each in state.items():
        if isinstance(each, Mapping):
            yield from _flat(each, f"{prefix}{name}/")
        else:
            yield prefix + name, each


def _nested(tensors: Mapping[str, Tensor]) -> State:
    state: dict[str, Any] = {}
    for name, tensor in tensors.items():
        *path, last = name.split("/")
        place = state
        for part in path:
            place = place.setdefault(part, {})
        place[last] = tensor
    return state
