"""Processes of this machine, the next free one taking the next task; what if one of them dies."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor, process_executor

from warp_core.engine.memory import reserved
from warp_core.engine.progress import Progress, watched
from warp_core.store.errors import DiedError, Interrupted, MessageOnly
from warp_core.store.files import make_room
from warp_core.store.results import Store, Task, with_all_they_read
from warp_core.store.signals import end_with_parent, terminated_as_interrupted

Look = Callable[[Progress], None]


class LocalEngine:
    """So many tasks side by side, each with so many threads, whatever else runs.

    One worker is this process itself. Several are processes of their own, and one that dies takes no
    other with it.
    """

    def __init__(self, workers: int = 0, useful: int = 64, look: Look = lambda _: None) -> None:
        """So many workers; 0: one a core, on CUDA one; but no more than are useful.

        The threads follow from that and from the machine, not from what runs: bits may depend on them.
        `look` is called every second with the progress.
        """
        self.look = look
        cores = torch.get_num_threads()
        self.workers = min(workers or (1 if torch.cuda.is_available() else cores), useful)
        self.threads = max(1, cores // self.workers)

    @contextmanager
    def resources(
        self, each: int, store: Store, wanted: Sequence[Task], keep: Sequence[Task]
    ) -> Iterator[None]:
        """Memory (`each` a worker) and disk for it; ConfigError, StorageError if there is too little."""
        tasks = len(Schedule(store, wanted, keep).tasks)
        with reserved(min(self.workers, tasks), each):
            make_room(store.folder, self.room(store, wanted, keep))
            yield

    def room(self, store: Store, wanted: Sequence[Task], keep: Sequence[Task]) -> int:
        """Bytes of disk that computing them will want at its largest."""
        schedule = Schedule(store, wanted, keep)
        there = peak = 0
        while task := schedule.next():
            done = [*schedule.passing(task), task]
            there += sum(each.size for each in done)
            peak = max(peak, there)
            spent = schedule.settle(done)
            there -= sum(each.size for each in spent if each.name in schedule.names)
        return peak + self.workers * max((task.scratch for task in schedule.tasks), default=0)

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
        store.tidy()
        schedule = Schedule(store, wanted, keep)
        schedule.drop_what_was_left(wanted)
        progress = Progress(store, schedule.tasks, schedule.passed)
        run = self._here if self.workers == 1 else self._side_by_side
        watch = watched(progress, self.look) if schedule.tasks else nullcontext()
        try:
            with watch:
                run(store, schedule, progress)
        except KeyboardInterrupt:
            at = ", ".join(progress.place(task) for task in progress.running) or "between two tasks"
            raise Interrupted(
                f"stopped: {at}; all of it is kept, and the same command goes on from there"
            ) from None
        return schedule.errors

    def _here(self, store: Store, schedule: "Schedule", progress: Progress) -> None:
        while task := schedule.next():
            progress.running.append(task)
            error = None
            try:
                with _threads(self.threads):
                    store.make(task, schedule.passing(task))
            except Exception as raised:
                error = raised
            _finish(task, error, schedule, progress)

    def _side_by_side(self, store: Store, schedule: "Schedule", progress: Progress) -> None:
        free = [_Process() for _ in range(min(self.workers, len(schedule.tasks)))]
        busy: dict[Future[None], tuple[_Process, Task]] = {}
        try:
            while True:
                while free and (task := schedule.next()):
                    process = free.pop()
                    passing = schedule.passing(task)
                    call = process.submit(_make, store.folder, task, passing, self.threads)
                    busy[call] = process, task
                    progress.running.append(task)
                if not busy:
                    return
                for call in wait(busy, return_when=FIRST_COMPLETED).done:
                    process, task = busy.pop(call)
                    error = call.exception()
                    if isinstance(error, BrokenProcessPool):
                        error = DiedError(
                            f"{progress.place(task)}: its process died; killed, or out of memory? "
                            "The others are kept; the same command goes on from there"
                        )
                        process.end()
                        process = _Process()
                    free.append(process)
                    _finish(task, error, schedule, progress)
        except KeyboardInterrupt:
            for process, _ in busy.values():
                process.interrupt()
            wait(busy)
            raise
        finally:
            for process in [*free, *(process for process, _ in busy.values())]:
                process.end()


class Schedule:
    """Which tasks must be computed, in an order in which each comes behind what it reads.

    Of those that have one way, the longest is computed, and passes the others.
    """

    def __init__(self, store: Store, wanted: Sequence[Task], keep: Sequence[Task]) -> None:
        self.store, self.keep = store, {task.name for task in keep}
        self.errors: dict[str, Exception] = {}
        missing: dict[str, Task] = {}

        def need(task: Task, weights: bool) -> None:
            if task.name not in missing and not store.has(task, weights and task.weights):
                for each in task.reads:
                    need(each, weights=True)
                missing[task.name] = task

        for task in wanted:
            need(task, weights=task.name in self.keep)
        self.tasks = list(missing.values())
        self.names = missing.keys()
        self.waiting = list(self.tasks)
        self.done: set[str] = set()
        self.readers: dict[str, set[str]] = {}
        longest: dict[str, Task] = {}
        for task in sorted(self.tasks, key=lambda task: task.steps):
            longest[task.way or task.name] = task
        ways = [(task, longest[task.way or task.name]) for task in self.tasks]
        self.passed = {task.name: end for task, end in ways if end is not task}
        for task in self.tasks:
            for each in [task, *task.reads]:
                self.readers.setdefault(each.name, set()).add(task.name)

    def next(self) -> Task | None:
        """The first task that can be computed now; what needs a failed one never can."""
        for task in list(self.waiting):
            if task.name in self.done:  # another one has passed it
                self.waiting.remove(task)
                continue
            needs = [each.name for each in task.reads if each.name in self.names]
            needs += [self.passed[task.name].name] if task.name in self.passed else []
            failed = [self.errors[name] for name in needs if name in self.errors]
            if failed:
                self.waiting.remove(task)
                self.errors[task.name] = failed[0]
            elif self.done.issuperset(needs):
                self.waiting.remove(task)
                return task
        return None

    def passing(self, task: Task) -> list[Task]:
        """Those that are kept on the way of this one."""
        return [one for one in self.waiting if self.passed.get(one.name) is task]

    def finish(self, task: Task, error: Exception | None) -> list[Task]:
        """Note it, and drop the weights that nothing will read any more; returns what is done now."""
        passed = self.passing(task)
        for each in passed:  # what it did not keep is computed by itself
            del self.passed[each.name]
        done = [each for each in passed if self.store.has(each, each.weights)]
        if error:
            self.errors[task.name] = error
        else:
            done.append(task)
        for each in self.settle(done):
            self.store.drop(each)
        return done

    def settle(self, done: Sequence[Task]) -> list[Task]:
        """Note that these are done; returns those whose weights nothing needs any more."""
        self.done |= {task.name for task in done}
        return [each for task in done for each in self.spent(task)]

    def drop_what_was_left(self, wanted: Sequence[Task]) -> None:
        """Weights of an attempt that was killed before it could drop them."""
        for task in with_all_they_read(wanted):
            if task.name not in self.readers.keys() | self.keep:
                self.store.drop(task)

    def spent(self, task: Task) -> list[Task]:
        """Those whose weights nothing needs any more once this task is done."""
        spent = []
        for each in {each.name: each for each in [task, *task.reads]}.values():
            self.readers[each.name].discard(task.name)
            if each.weights and not self.readers[each.name] and each.name not in self.keep:
                spent.append(each)
        return spent


class _Process:
    """One process that takes one call at a time."""

    def __init__(self) -> None:
        self._executor = _executor()

    def submit(self, function: Callable[..., None], *arguments: object) -> Future[None]:
        try:
            return self._executor.submit(function, *arguments)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.end()
            self._executor = _executor()
            return self._executor.submit(function, *arguments)

    def interrupt(self) -> None:
        for worker in list(self._executor._processes.values()):
            os.kill(worker.pid, signal.SIGINT)

    def end(self) -> None:
        self._executor.shutdown(wait=False, kill_workers=True)


def _executor() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=1, initializer=_begin, initargs=(os.getpid(),))


def _begin(parent: int) -> None:
    """In a process of its own, before its first task."""
    end_with_parent(parent)
    # loky would end a process that has grown; ours keeps what it frees, for its next task.
    process_executor._USE_PSUTIL = False


def _make(folder: Path, task: Task, passing: Sequence[Task], threads: int) -> None:
    """In a process of its own."""
    with terminated_as_interrupted(), _threads(threads):
        Store(folder).make(task, passing)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _finish(
    task: Task, error: BaseException | None, schedule: Schedule, progress: Progress
) -> None:
    """An error whose message is for people says which task it was; Ctrl-C is not one of a task."""
    if error and not isinstance(error, Exception):
        raise error
    progress.running.remove(task)
    if isinstance(error, MessageOnly) and not isinstance(error, DiedError):
        error = type(error)(f"{task.label}: {error}")
    progress.finished += schedule.finish(task, error)
