"""Processes of this machine, the next free one taking the next task; what if one of them dies."""

import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext

import torch
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor, process_executor

from warp_core.engine.driver import (
    LOOK,
    Ended,
    Engine,
    Hands,
    made_here,
    make_in_process,
    threads_set,
)
from warp_core.engine.memory import fitting, reserved, visible_gpus
from warp_core.engine.precision import check_precision
from warp_core.store.errors import ConfigError, DiedError
from warp_core.store.results import Store, Task
from warp_core.store.signals import end_with_parent

DIED = (
    "its process died; killed, or out of memory? The others are kept; the same command goes on from "
    "there"
)


class LocalEngine(Engine):
    """So many tasks side by side, each with so many threads, whatever else runs; each with GPUs of its
    own, where there are some.

    One worker is this process itself. Several are processes of their own, and one that dies takes no
    other with it.
    """

    def plan(self) -> None:
        """Room is for as many as have GPUs, else for one a core; where all are useful, for as many as have
        memory."""
        there, cores = visible_gpus(), torch.get_num_threads()
        self.shown = [
            ",".join(some) for some in zip(*[iter(there)] * self.needs.gpus, strict=False)
        ]
        self.memory = self.needs.bytes, len(self.shown) or 1, self.needs.gpus
        self.workers = self.asked or len(self.shown) or cores
        if self.useful:
            self.workers = min(self.workers, self.useful)
        elif not self.asked:
            self.workers = min(self.workers, fitting(*self.memory))
        self.threads = max(1, cores // self.workers)

    def check(self) -> None:
        """Of GPUs and precision."""
        if self.needs.gpus > max(1, there := len(visible_gpus())):
            raise ConfigError(f"gpus: {self.needs.gpus} given; this machine has {there}")
        check_precision(self.needs.precision)

    def opened(self, store: Store) -> AbstractContextManager[None]:
        return nullcontext()

    def reserved(self, tasks: int) -> AbstractContextManager[None]:
        return reserved(tasks, *self.memory)

    def hands(self, store: Store, tasks: int) -> Hands:
        if self.workers == 1:
            return _Here(store, self.threads)
        return _Processes(store, self.threads, min(self.workers, tasks), self.shown)


class _Here:
    """This process."""

    def __init__(self, store: Store, threads: int) -> None:
        self.store, self.threads, self.done = store, threads, Ended()

    def start(self, task: Task, passing: Sequence[Task]) -> None:
        with threads_set(self.threads):
            self.done.append((task, made_here(self.store, task, passing)))

    def ended(self) -> Ended:
        done, self.done = self.done, Ended()
        return done

    def interrupt(self) -> None:
        pass

    def release(self) -> None:
        pass


class _Processes:
    """So many processes; the k-th has the k-th of the GPUs, or of their groups, to itself."""

    def __init__(self, store: Store, threads: int, count: int, gpus: Sequence[str]) -> None:
        self.folder, self.threads = store.folder, threads
        shown = [
            {"CUDA_VISIBLE_DEVICES": gpus[k % len(gpus)]} if gpus else {} for k in range(count)
        ]
        self.free = [_Process(each) for each in reversed(shown)]
        self.busy: dict[Future[None], tuple[_Process, Task]] = {}

    def start(self, task: Task, passing: Sequence[Task]) -> None:
        process = self.free.pop()
        call = process.submit(make_in_process, self.folder, task, passing, self.threads)
        self.busy[call] = process, task

    def ended(self) -> Ended:
        ended = Ended()
        for call in wait(self.busy, LOOK, return_when=FIRST_COMPLETED).done:
            process, task = self.busy.pop(call)
            error = call.exception()
            if isinstance(error, BrokenProcessPool):
                error = DiedError(DIED)
                process.end()
                process = _Process(process.shown)
            self.free.append(process)
            ended.append((task, error))
        return ended

    def interrupt(self) -> None:
        for process, _ in self.busy.values():
            process.interrupt()
        wait(self.busy)

    def release(self) -> None:
        for process in [*self.free, *(process for process, _ in self.busy.values())]:
            process.end()


class _Process:
    """One process that takes one call at a time, and is shown these variables."""

    def __init__(self, shown: dict[str, str]) -> None:
        self.shown = shown
        self._executor = _executor(shown)

    def submit(self, function: Callable[..., None], *arguments: object) -> Future[None]:
        try:
            return self._executor.submit(function, *arguments)
        except BrokenProcessPool:  # it died while it had nothing to do
            self.end()
            self._executor = _executor(self.shown)
            return self._executor.submit(function, *arguments)

    def interrupt(self) -> None:
        for worker in list(self._executor._processes.values()):
            os.kill(worker.pid, signal.SIGINT)

    def end(self) -> None:
        self._executor.shutdown(wait=False, kill_workers=True)


def _executor(shown: dict[str, str]) -> ProcessPoolExecutor:
    begin = {"initializer": _begin, "initargs": (os.getpid(),)}
    return ProcessPoolExecutor(max_workers=1, env=shown, **begin)


def _begin(parent: int) -> None:
    """In a process of its own, before its first task."""
    end_with_parent(parent)
    # loky would end a process that has grown; ours keeps what it frees, for its next task.
    process_executor._USE_PSUTIL = False
