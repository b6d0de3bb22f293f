"""The one mechanism that names results: what decides a result has a digest, and it is kept under it.

A `Task` says how a result is made: a function, its plain arguments, and the results it reads. All
that the function is given decides the result, but for hints (where to find something, how often to
save), so nothing that decides it can be left out of its name. The result is a folder, STORE/NAME,
which appears whole; what is there is never computed again, whoever asks. Its small files stay; its
`weights/` can be dropped when nothing will read them, and are made again if something has to.
"""

import filecmp
import hashlib
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from filelock import Timeout

from warp_core.store.files import (
    SUMS,
    appearing,
    beside,
    read_jsonl,
    seal_json,
    sealed_json,
    sealed_jsonl,
    sweep,
    verify,
    write_text,
)
from warp_core.store.lease import held, holder
from warp_core.store.machine import code_of_the_method, describe_machine

WEIGHTS = "weights"
STEPS = "steps.jsonl"
CODE = "code"  # of the method, in a folder of work


@dataclass(frozen=True)
class Task:
    """How a result is made: `make(out, **inputs, **arguments, **hints)` fills the folder `out`.

    One that logs `steps` is also given `work`, a folder that outlives a kill, for its log and its
    checkpoints; it is removed once the result is there. One that has a `way` is also given `passing`:
    of each result on its way that is wanted too, its arguments, and a context in which it appears.
    """

    kind: str
    make: Callable[..., None]
    arguments: Mapping[str, Any]
    """Plain values that decide the result."""
    inputs: Mapping[str, "Task | list[Task]"] = field(default_factory=dict)
    """Results that are read; the function gets their folders, of those with weights the weights'."""
    hints: Mapping[str, Any] = field(default_factory=dict)
    """Plain values that do not decide the result."""
    label: str = ""
    """What people call it."""
    steps: int = 0
    """Lines that its log will have, where it logs."""
    way: str = ""
    """Names what decides its steps, but for how many they are: a longer one passes a shorter one."""
    cost: int = 1
    """About as much time as so many steps, where it has none."""
    size: int = 0
    """Bytes of its `weights/`, which can be dropped; 0: it has none."""
    scratch: int = 0
    """Bytes of its checkpoints."""

    @cached_property
    def decides(self) -> dict[str, Any]:
        """All that decides the result."""
        names = {
            key: [task.name for task in each] if isinstance(each, list) else each.name
            for key, each in self.inputs.items()
        }
        return {"kind": self.kind, **self.arguments, **names}

    @cached_property
    def name(self) -> str:
        """KIND-DIGEST, the result's folder in the store."""
        text = json.dumps(self.decides, sort_keys=True, ensure_ascii=False)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    @property
    def weights(self) -> bool:
        """Whether it has weights."""
        return self.size > 0

    @property
    def reads(self) -> list["Task"]:
        """The tasks whose results it reads."""
        each = (task if isinstance(task, list) else (task,) for task in self.inputs.values())
        return [task for tasks in each for task in tasks]


def with_all_they_read(tasks: Iterable[Task]) -> list[Task]:
    """These tasks, what they read, what that was made from, and so on; each once."""
    seen: dict[str, Task] = {}
    todo = list(tasks)
    while todo:
        if (task := todo.pop()).name not in seen:
            seen[task.name] = task
            todo += task.reads
    return list(seen.values())


class Store:
    """A folder of results by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, task: Task) -> Path:
        """Folder of its result, whether or not it is there."""
        return self.folder / task.name

    def weights(self, task: Task) -> Path:
        """Folder of its weights, which `from_pretrained` reads."""
        return self.path(task) / WEIGHTS

    def read(self, task: Task) -> Path:
        """The folder that others read: of the weights, if it has some."""
        return self.weights(task) if task.weights else self.path(task)

    def has(self, task: Task, weights: bool = False) -> bool:
        """Whether its result is there, and its weights too where they are asked for."""
        return self.path(task).is_dir() and (not weights or self.weights(task).is_dir())

    def rows(self, task: Task) -> list[dict[str, Any]]:
        """The steps of a run: all of them if it is done, else those logged so far."""
        if self.has(task):
            return sealed_jsonl(self.path(task) / STEPS, self.path(task))
        return read_jsonl(self.log(task))

    def origins(self, tasks: Iterable[Task]) -> dict[str, dict[str, Any]]:
        """Of these and of all that they were made from: with what, when there, each was made."""
        found: dict[str, dict[str, Any]] = {}
        for task in with_all_they_read(tasks):
            if self.has(task):
                origin = sealed_json(self.path(task) / "origin.json", self.path(task))
                found[task.name] = {key: origin[key] for key in origin.keys() - {"decides"}}
        return dict(sorted(found.items()))

    def seconds_behind(self, task: Task, kind: str) -> dict[str, float]:
        """What the steps of a kind of tasks behind a result took: `all` of them, the longest `chain`.

        Each is taken for its run's median, so that a machine that was stopped meanwhile does not count.
        """
        took: dict[str, float] = {}
        chains: dict[str, float] = {}

        def chain(task: Task) -> float:
            if task.name not in chains:
                if task.kind == kind and self.has(task):
                    seconds = [row["seconds"] for row in self.rows(task)]
                    took[task.name] = len(seconds) * statistics.median(seconds)
                behind = max(map(chain, task.reads), default=0.0)
                chains[task.name] = behind + took.get(task.name, 0.0)
            return chains[task.name]

        longest = chain(task)
        return {"all": sum(took.values()), "chain": longest}

    def log(self, task: Task) -> Path:
        """What a task logs while it is being computed."""
        return self._work(task) / STEPS

    def machine(self, task: Task) -> str:
        """The machine that is at work on it; empty if none is."""
        return holder(self.folder / "locks" / task.name)

    def make(self, task: Task, passing: Sequence[Task] = ()) -> None:
        """Compute the result if it or its weights are not there; one process at a time does.

        What it reads is made first where it is missing: another program may have dropped it, while this
        one waited for its turn, or while it was reading.

        Args:
            passing: tasks on its way, whose results are kept as it passes them.
        """
        while True:
            for each in task.reads:
                if not self.has(each, each.weights):
                    self.make(each)
            with self._locked(task.name):
                if self.has(task, task.weights):
                    return
                if self._is_readable(task):
                    try:
                        self._compute(task, passing)
                        return
                    except Exception:
                        if self._is_readable(task):
                            raise

    def _is_readable(self, task: Task) -> bool:
        """Whether all that it reads is there."""
        return all(self.has(each, each.weights) for each in task.reads)

    def _compute(self, task: Task, passing: Sequence[Task]) -> None:
        start = time.monotonic()
        folders: dict[str, Any] = {
            key: [self.read(one) for one in each] if isinstance(each, list) else self.read(each)
            for key, each in task.inputs.items()
        }
        code = self._begun_with(task) if task.steps else code_of_the_method()
        if task.steps:
            folders["work"] = self._work(task)
        if task.way:
            contexts = [partial(self._passed, each, start, code) for each in passing]
            folders["passing"] = [(p.arguments, c) for p, c in zip(passing, contexts, strict=True)]
        with self._appearing(task, start, code) as out:
            task.make(out, **folders, **task.arguments, **task.hints)
        shutil.rmtree(self._work(task), ignore_errors=True)

    @contextmanager
    def _appearing(self, task: Task, start: float, code: str) -> Iterator[Path]:
        """The folder to fill with a result, which then appears with what it was made by."""
        sweep(self.folder, f".{task.name}-*")
        with appearing(self.path(task), task.size) as out:
            yield out
            origin = describe_machine() | {"code": code, "seconds": time.monotonic() - start}
            seal_json(out / "origin.json", origin | {"decides": task.decides})

    @contextmanager
    def _passed(self, task: Task, start: float, code: str) -> Iterator[Path | None]:
        """`_appearing` for a result on the way of another; None where it is there already."""
        with self._locked(task.name):
            if self.has(task, task.weights):
                yield None
            else:
                with self._appearing(task, start, code) as out:
                    yield out
                shutil.rmtree(self._work(task), ignore_errors=True)

    def _begun_with(self, task: Task) -> str:
        """The code of the method by which its work began; that may not be today's."""
        note = self._work(task) / CODE
        if not note.is_file():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, code_of_the_method())
        return note.read_text()

    def begun_by_other_code(self) -> list[str]:
        """Names of tasks whose work has begun, and by other code than today's, or by unknown code."""
        works, code = (self.folder / "unfinished").glob("*"), code_of_the_method()
        notes = {work.name: work / CODE for work in works}
        return [n for n, note in notes.items() if not note.is_file() or note.read_text() != code]

    def forget(self, name: str) -> None:
        """Remove the work that has begun on a task, unless somebody is at it."""
        with suppress(Timeout), self._locked(name, 0):
            shutil.rmtree(self.folder / "unfinished" / name, ignore_errors=True)

    def tidy(self) -> None:
        """Remove what killed processes had begun, and checkpoints of what is done."""
        unfinished = {path.name for path in (self.folder / "unfinished").glob("*")}
        begun = {path.name[1:].rpartition("-")[0] for path in self.folder.glob(".*-*-*")}
        for name in unfinished | begun:
            with suppress(Timeout), self._locked(name, 0):  # else somebody is at work on it
                sweep(self.folder, f".{name}-*")
                if (self.folder / name / WEIGHTS).is_dir():
                    shutil.rmtree(self.folder / "unfinished" / name, ignore_errors=True)

    def drop(self, task: Task) -> None:
        """Remove weights that nothing here will read, unless a run folder shows them."""
        weights = self.weights(task)
        if not weights.is_dir():
            return
        with self._locked(task.name):  # another program may have dropped them meanwhile
            if weights.is_dir() and all(path.stat().st_nlink == 1 for path in weights.iterdir()):
                hidden = tempfile.mkdtemp(**beside(self.path(task)))
                weights.rename(Path(hidden) / WEIGHTS)
                # What is still being read stays until the next sweep.
                shutil.rmtree(hidden, ignore_errors=True)

    def show(self, task: Task, folder: Path) -> bool:
        """Its weights at a place where people look for them: hard links, or copies without them. False
        where they are not there.

        Raises DamagedError where they are not what was written; nothing need have read them since.
        """
        with self._locked(task.name):
            if there := self.has(task, weights=True):
                self._link(task, folder)
        return there

    def _link(self, task: Task, folder: Path) -> None:
        source = self.weights(task)
        files = list(source.iterdir())
        verify(source, *(path.name for path in files if path.name != SUMS))
        names = [path.name for path in files]
        if filecmp.cmpfiles(source, folder, names)[0] == names:  # one file, or a copy of it
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(**beside(folder)) as temporary:
            staging = Path(temporary) / folder.name
            staging.mkdir()
            for path in files:
                try:
                    os.link(path, staging / path.name)
                except OSError:
                    shutil.copy2(path, staging)
            if folder.exists():
                shutil.rmtree(folder)
            staging.rename(folder)

    def _locked(self, name: str, seconds: float = -1) -> AbstractContextManager[None]:
        """Held by one process, and by none when it has been killed."""
        return held(self.folder / "locks" / name, seconds)

    def _work(self, task: Task) -> Path:
        return self.folder / "unfinished" / task.name
