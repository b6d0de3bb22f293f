"""Tasks computed in the order of a schedule, whoever carries them out: errors, progress, Ctrl-C, room."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from warp_core.engine.needs import Needs
from warp_core.engine.progress import Progress, watched
from warp_core.engine.schedule import Schedule
from warp_core.store.errors import DiedError, Interrupted, MessageOnly
from warp_core.store.files import make_room
from warp_core.store.results import Store, Task
from warp_core.store.signals import terminated_as_interrupted

LOOK = 5.0  # seconds
Look = Callable[[Progress], None]
Ended = list[tuple[Task, BaseException | None]]


class Hands(Protocol):
    """They carry tasks out, as many at once as they are given."""

    def start(self, task: Task, passing: Sequence[Task]) -> None:
        """Begin with it, and keep what it passes."""
        ...

    def ended(self) -> Ended:
        """Those that have ended, and what they raised; waits for one, but no longer than `LOOK`."""
        ...

    def interrupt(self) -> None:
        """Ctrl-C for all that run; waits until they have ended."""
        ...

    def release(self) -> None:
        """End what still runs, at once."""
        ...


class Engine(ABC):
    """Computes tasks, so many side by side.

    Attributes:
        workers, threads: how many, and the threads of each, on which bits may depend. These follow from the
            machines, and from what memory is free where no number is given. An engine that asks machines
            knows both when it is `opened`.
    """

    workers = threads = 1

    def __init__(
        self,
        workers: int = 0,
        useful: int = 0,
        look: Look = lambda _: None,
        needs: Needs | None = None,
    ) -> None:
        """
        Args:
            workers: so many; 0: as many as there is room for, but no more than are `useful` (0: all are).
            look: called every second with the progress.
            needs: of each.
        """
        self.asked, self.useful, self.look, self.needs = workers, useful, look, needs or Needs()
        self.plan()

    def plan(self) -> None:
        """Of workers and threads, what can be known before it is opened."""
        return

    def check(self) -> None:
        """Raises ConfigError where what is asked for cannot be, as far as the engine knows before it is
        opened."""
        return

    @abstractmethod
    def opened(self, store: Store) -> AbstractContextManager[None]:
        """What it needs while it is used; ConfigError where there is no room for one, nothing created."""

    @abstractmethod
    def hands(self, store: Store, tasks: int) -> Hands:
        """For so many tasks, where they are fewer than workers."""

    def reserved(self, tasks: int) -> AbstractContextManager[None]:
        """Memory for so many side by side, where the engine has to see to that; else ConfigError."""
        return nullcontext()

    @contextmanager
    def resources(
        self, store: Store, wanted: Sequence[Task], keep: Sequence[Task]
    ) -> Iterator[None]:
        """Memory and disk for those that are missing, and machines that can do them; else ConfigError,
        StorageError."""
        tasks = len(Schedule(store, wanted, keep).tasks)
        if tasks:
            self.check()
        with self.opened(store), self.reserved(min(self.workers, tasks)):
            make_room(store.folder, self.room(store, wanted, keep))
            yield

    def room(self, store: Store, wanted: Sequence[Task], keep: Sequence[Task]) -> int:
        """Bytes of disk that computing them will want at its largest, if the first to begin ends first."""
        schedule, running = Schedule(store, wanted, keep), list[list[Task]]()
        there = peak = 0
        while True:
            while len(running) < self.workers and (task := schedule.next()):
                running.append([*schedule.passing(task), task])
                there += sum(each.size for each in running[-1])
            if not running:
                return peak
            peak = max(peak, there + sum(each[-1].scratch for each in running))
            spent = schedule.settle(running.pop(0))
            there -= sum(each.size for each in spent if each.name in schedule.names)

    def make(self, store: Store, wanted: Sequence[Task], keep: Sequence[Task]) -> None:
        """`compute`; raises what the first of the tasks that failed raised."""
        for error in self.compute(store, wanted, keep).values():
            raise error

    def compute(
        self, store: Store, wanted: Sequence[Task], keep: Sequence[Task] = ()
    ) -> dict[str, Exception]:
        """Make the wanted results that are not there, and whatever they need for it.

        Args:
            keep: tasks whose weights stay, and are wanted if the task is. Those of others are dropped
                as soon as nothing here will read them, unless a run folder shows them.

        Returns what tasks raised, by name; the others were computed, but for what needs such a one.
        Raises Interrupted on Ctrl-C or SIGTERM, when all have ended; a second one does not wait.
        """
        with self.opened(store), terminated_as_interrupted():
            store.tidy()
            schedule = Schedule(store, wanted, keep)
            schedule.drop_what_was_left(wanted)
            progress = Progress(store, schedule.tasks, schedule.passed)
            watch = watched(progress, self.look) if schedule.tasks else nullcontext()
            try:
                with watch:
                    self._carry_out(store, schedule, progress)
            except KeyboardInterrupt:
                at = ", ".join(map(progress.place, progress.running)) or "between two tasks"
                raise Interrupted(
                    f"stopped: {at}; all of it is kept, and the same command goes on from there"
                ) from None
            return schedule.errors

    def _carry_out(self, store: Store, schedule: Schedule, progress: Progress) -> None:
        hands = self.hands(store, len(schedule.tasks))
        try:
            while True:
                progress.finished += schedule.arrived()
                while len(progress.running) < self.workers and (task := schedule.next()):
                    progress.running.append(task)
                    hands.start(task, schedule.passing(task))
                if not progress.running:
                    return
                for task, error in hands.ended():
                    _finish(task, error, schedule, progress)
        except KeyboardInterrupt:
            hands.interrupt()
            raise
        finally:
            hands.release()


def _finish(
    task: Task, error: BaseException | None, schedule: Schedule, progress: Progress
) -> None:
    """An error whose message is for people says which task it was; Ctrl-C is not one of a task."""
    if error and not isinstance(error, Exception):
        raise error
    if isinstance(error, MessageOnly):
        place = progress.place(task) if isinstance(error, DiedError) else task.label
        error = type(error)(f"{place}: {error}")
    elif error:
        error.add_note(f"in: {task.label}")
    progress.running.remove(task)
    progress.finished += schedule.finish(task, error)


def made_here(store: Store, task: Task, passing: Sequence[Task]) -> Exception | None:
    """What making it in this process raised; Ctrl-C ends it."""
    try:
        store.make(task, passing)
    except Exception as error:
        return error
    return None


def make_in_process(folder: Path, task: Task, passing: Sequence[Task], threads: int) -> None:
    """Make it in a process of its own, which SIGTERM ends as Ctrl-C does."""
    with terminated_as_interrupted(), threads_set(threads):
        Store(folder).make(task, passing)


@contextmanager
def threads_set(count: int) -> Iterator[None]:
    """So many for torch, within it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
