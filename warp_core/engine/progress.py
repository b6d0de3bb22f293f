"""How far tasks that run in other processes have come: what they have logged, counted as it grows."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from warp_core.store.results import Store, Task

SECONDS = 1.0  # between two looks


class Progress:
    """The tasks that are to be computed: which are done, which run now, how many steps that is."""

    def __init__(self, store: Store, tasks: Sequence[Task]) -> None:
        self.tasks = tasks
        self.total = sum(task.steps for task in tasks)
        self.finished: list[Task] = []
        self.running: list[Task] = []
        self._logs = {task.name: LineCount(store.log(task)) for task in tasks if task.steps}

    def steps(self) -> int:
        """Training steps done: of tasks that are finished, and those that others have logged."""
        finished = {task.name: task.steps for task in self.finished}
        return sum(finished.get(name) or log.count() for name, log in self._logs.items())

    def place(self, task: Task) -> str:
        """A running task and where it is, for people."""
        log = self._logs.get(task.name)
        return f"{task.label} behind step {log.count()}" if log else task.label


class LineCount:
    """Whole lines of a file that grows; only what is new is read."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines, self.offset, self.file = path, 0, 0, 0

    def count(self) -> int:
        """How many there are by now."""
        try:
            with self.path.open("rb") as file:
                there = os.fstat(file.fileno())
                if there.st_ino != self.file or there.st_size < self.offset:  # it was begun anew
                    self.file, self.lines, self.offset = there.st_ino, 0, 0
                file.seek(self.offset)
                new = file.read()
        except OSError:  # not there, or not there any more
            return self.lines
        whole = new[: new.rfind(b"\n") + 1]
        self.lines += whole.count(b"\n")
        self.offset += len(whole)
        return self.lines


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
        line.update(done - line.n)
        if len(progress.finished) == len(progress.tasks):
            line.close()

    return look
