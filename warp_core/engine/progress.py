"""How far tasks that run in other processes have come: what they have logged, read as it grows."""

import json
import os
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from warp_core.store.files import read_jsonl
from warp_core.store.results import STEPS, Store, Task

SECONDS = 1.0  # between two looks
LONGEST_LINE = 10_000  # bytes, of a log


class Progress:
    """The tasks that are to be computed: which are done, which run now, how much of the work that is.

    Args:
        passed: names of those that a longer one passes, which are no work of their own.
    """

    def __init__(self, store: Store, tasks: Sequence[Task], passed: Container[str] = ()) -> None:
        self.store, self.tasks = store, tasks
        self.work = {
            task.name: task.steps or task.cost for task in tasks if task.name not in passed
        }
        self.total = sum(self.work.values())
        self.finished: list[Task] = []
        self.running: list[Task] = []
        self._logs = {task.name: store.log(task) for task in tasks if task.steps}

    def done(self) -> int:
        """Of `total`, in steps of training: of tasks that are finished, and those that are logged."""
        finished = {task.name for task in self.finished}
        logged = (steps_of(self._logs[task.name]) for task in list(self.running) if task.steps)
        return sum(self.work.get(name, 0) for name in finished) + sum(logged)

    def step(self, task: Task) -> int:
        """The last that it has logged; 0 where it logs none."""
        log = self._logs.get(task.name)
        return steps_of(log) if log else 0

    def place(self, task: Task) -> str:
        """A running task and where it is, for people; on which machine, if that is another one."""
        machine = self.store.machine(task)
        on = f" on {machine}" if machine not in ("", socket.gethostname()) else ""
        return f"{task.label}{on}" + (f" behind step {self.step(task)}" if task.steps else "")


def steps_of(log: Path) -> int:
    """Steps that have been logged, by the last whole line; 0 where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LONGEST_LINE))
            lines = file.read().split(b"\n")[-2:-1]  # what stands behind the last one is cut off
        return int(json.loads(lines[0])["step"]) if lines else 0
    except (OSError, ValueError, KeyError):  # not there any more; or another machine is writing it
        return 0


def seconds_a_step(store: Store) -> float | None:
    """Of the runs that a store has: the median of their medians; None where there is none."""
    logs = (read_jsonl(path) for path in store.folder.glob(f"run-*/{STEPS}"))
    known = [statistics.median(row["seconds"] for row in log) for log in logs if log]
    return statistics.median(known) if known else None


@contextmanager
def watched(progress: Progress, look: Callable[[Progress], None]) -> Iterator[None]:
    """Look every second from a thread of its own, and once more at the end.

    Where that fails, what is being computed is interrupted as by Ctrl-C, and the error raised.
    """
    ended, failed = threading.Event(), list[Exception]()

    def watch() -> None:
        last = False
        try:
            while not last:
                last = ended.wait(SECONDS)
                look(progress)
        except Exception as error:
            failed.append(error)
            if not last:
                os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if failed:
            raise failed[0]


def bar(name: str) -> Callable[[Progress], None]:
    """A bar of the work, in steps of training, and where each running task is, with its time left; lines
    of text where nobody watches.

    What logs no steps, an evaluation, is taken to go at the speed of the steps seen so far, so that the
    bar moves meanwhile and is full only at the end.
    """
    shown: list[tqdm] = []
    # Of a task: when it was first seen running, its step then; anew where it goes back to its checkpoint.
    seen: dict[str, tuple[float, int]] = {}
    speed = [0.0]  # steps a second of one running task, the last that was seen

    def look(progress: Progress) -> None:
        done, now = progress.done(), time.monotonic()
        if not shown:
            shown.append(tqdm(desc=name, total=progress.total, initial=done, mininterval=5))
        places, guessed = [], 0.0
        for task in list(progress.running):
            step = progress.step(task)
            began, first = seen.get(task.name, (now, step))
            if step <= first:
                began, first = seen[task.name] = (now if step < first else began), step
            passed, steps = now - began, step - first
            if task.steps and steps and passed:
                speed[0] = steps / passed
            work = progress.work.get(task.name, 0)
            at = step if task.steps else min(passed * speed[0], 0.95 * work)
            guessed += 0 if task.steps else at
            left = f", {_minutes((work - at) / speed[0])} left" if speed[0] and work else ""
            places.append(f"{progress.place(task)}{left}")
        line = shown[0]
        if places:
            line.set_description(" | ".join(places), refresh=False)
        line.update(
            max(0, done + int(guessed) - line.n)
        )  # a log goes just before its result is there
        if len(progress.finished) == len(progress.tasks):
            line.close()

    return look


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
