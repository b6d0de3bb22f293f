"""A run's steps, one after the other: logged, saved, stopped; what is left of them if interrupted."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from warp_core.store.checkpoint import Checkpoint
from warp_core.store.errors import TrainingError


class Steps(Protocol):
    """What is asked for its steps one at a time: `warp_core.train.Run`."""

    t: int
    whole: bool

    def gradient(self) -> dict[str, Any]: ...
    def update(self) -> None: ...
    def undo(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


def to_the_end(
    run: Steps,
    checkpoint: Checkpoint,
    max_kl: float,
    passed: Callable[[int], None] = lambda t: None,
    log: Callable[[Mapping[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Lines 5 to 10, from the last checkpoint on; returns the rows of all steps, with their seconds.

    A batch whose KL to the anchor is above `max_kl` (0: none is) ends the run with the weights before
    its last update, which are those of every later t too. Ctrl-C saves all whole steps. `passed` is told
    every t that the run stands at, the last one too, `log` every row, of steps before the checkpoint too.
    """
    if state := checkpoint.restore():
        try:
            run.restore(state)
        except TrainingError as error:
            raise TrainingError(
                f"{checkpoint.folder}: {error}; go on there, or delete it"
            ) from None
    state = None  # most of it is a copy
    for row in checkpoint.rows():
        log(row)
    beyond: dict[str, Any] = {}
    with checkpoint.kept_if_interrupted(lambda: run.state() if run.whole else None):
        while run.t < checkpoint.steps:
            passed(run.t)
            start = time.perf_counter()
            row = run.gradient()
            if 0 < max_kl < row["kl_anchor"]:
                beyond = row | {"stopped": True, "seconds": time.perf_counter() - start}
                if checkpoint.t > checkpoint.saved:
                    checkpoint.save(run.state())
                break
            with checkpoint.step(row, run.state):
                run.update()
                row["seconds"] = time.perf_counter() - start
            log(row)
        else:
            passed(run.t)
    if beyond:  # out of there: no state may be saved that has gone back
        checkpoint.append(beyond)
        log(beyond)
        run.undo()
        for t in range(run.t + 1, checkpoint.steps + 1):
            passed(t)
    return checkpoint.rows()
