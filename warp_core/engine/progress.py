"""How far tasks that run in other processes have come: what they have logged, read as it grows."""

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from warp_core.store.results import Store, Task

SECONDS = 1.0  # between two looks
LONGEST_LINE = 10_000  # bytes, of a log


class Progress:
    """The tasks that are to be computed: which are done, which run now, how many steps that is."""

    def __init__(self, store: Store, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.total = sum(task.steps for task in tasks)
        self.finished: list[Task] = []
        self.running: list[Task] = []
        self._logs = {task.name: store.log(task) for task in tasks if task.steps}

    def steps(self) -> int:
        """Training steps done: of tasks that are finished, and those that others have logged."""
        finished = {task.name: task.steps for task in self.finished}
        return sum(finished.get(name) or steps_of(log) for name, log in self._logs.items())

    def place(self, task: Task) -> str:
        """A running task and where it is, for people."""
        log = self._logs.get(task.name)
        return f"{task.label} behind step {steps_of(log)}" if log else task.label


def steps_of(log: Path) -> int:
    """Steps that have been logged, by the last whole line; 0 where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST_LINE))
            lines = file.read().split(b"\n")[-2:-1]  # what stands behind the last one is cut off
        return int(json.loads(lines[0])["step"]) if lines else 0
    except OSError:  # not there, or not there any more
        return 0


@contextmanager
def watched(progress: Progress, look: Callable[[Progress], None]) -> Iterator[None]:
    """Look every second from a thread of its own, and once more at the end."""
    ended = threading.Event()

    def watch() -> None:
        while True:
            last = ended.wait(SECONDS)
            look(progress)
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def bar(name: str) -> Callable[[Progress], None]:
    """A bar of training steps, and what runs; lines of text where nobody watches."""
    shown: list[tqdm] = []

    def look(progress: Progress) -> None:
        done, total = len(progress.finished), len(progress.tasks)
        if progress.total:  # steps are what takes the time
            done, total = progress.steps(), progress.total
        if not shown:
            shown.append(tqdm(desc=name, total=total, initial=done, mininterval=5))
        line = shown[0]
        if progress.running:
            line.set_description(progress.running[0].label, refresh=False)
        line.update(max(0, done - line.n))  # a log goes just before its result is there
        if len(progress.finished) == len(progress.tasks):
            line.close()

    return look
