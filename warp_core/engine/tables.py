"""Tables of results, in files of a row a line: what they lack is computed, and what has a row is not.

A table goes from machine to machine; the results behind its rows need not.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from warp_core.engine.choice import engine_of
from warp_core.engine.driver import Engine, Look
from warp_core.engine.needs import Needs
from warp_core.engine.progress import Progress, bar, seconds_a_step
from warp_core.engine.schedule import Schedule
from warp_core.store.errors import BusyError, ConfigError
from warp_core.store.files import read_jsonl, write_jsonl
from warp_core.store.results import Store, Task

VERSION = 2  # of the rows
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A row to be: what names it, the tasks that it needs, and what it says of their results."""

    digest: str
    turn: int
    """Entries of a lower one are computed first, in all tables."""
    tasks: Sequence[Task]
    row: Callable[[Store], Mapping[str, Any]]
    keep: Sequence[Task]
    """Tasks whose weights stay."""
    needs: Needs
    """Of a worker."""


@dataclass
class Table:
    """The rows of a file that are there, and entries for those that are not; raises ConfigError where
    there are others."""

    path: Path
    digests: Sequence[str]
    """Of all its rows, in their order."""
    entries: list[Entry] = field(default_factory=list)
    rows: dict[str, Row] = field(init=False)

    def __post_init__(self) -> None:
        """Rows by digest."""
        move = f"{self.path}: move it away, or take it back from git; nothing in it was touched"
        try:
            rows = read_jsonl(self.path)
            if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
                raise ValueError("it ends within a line")
            self.rows = {row["digest"]: row for row in rows if row["version"] == VERSION}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{move}; it is damaged: {error!r}") from None
        if len(self.rows) != len(rows):
            raise ConfigError(f"{move}; it has rows of another version, or a row twice")
        if strange := self.rows.keys() - {*self.digests}:
            row = json.dumps(self.rows[min(strange)], ensure_ascii=False)
            raise ConfigError(
                f"{move}; {len(strange)} of its rows are not asked for now: {row:.200} …"
            )

    @property
    def missing(self) -> list[Entry]:
        """Those without a row."""
        return [entry for entry in self.entries if entry.digest not in self.rows]

    def in_order(self) -> list[Row]:
        """The rows that are there, in the order of the file."""
        return [self.rows[digest] for digest in self.digests if digest in self.rows]

    def fill(self, store: Store, finished: set[str] | None = None) -> None:
        """Write the rows whose results are there; of those alone that have something finished."""
        new = {}
        for entry in self.missing:
            told = finished is None or not finished.isdisjoint(task.name for task in entry.tasks)
            if told and all(store.has(task) for task in entry.tasks):
                new[entry.digest] = {"version": VERSION, "digest": entry.digest, **entry.row(store)}
        if new:
            self.rows |= new
            write_jsonl(self.path, self.in_order())


def complete(tables: Sequence[Table], store: Store, name: str, engine: str = "local") -> None:
    """Compute the rows that are missing, in one pool: what tables share is computed once.

    Raises BusyError, what an engine's `resources` and `compute` raise, and at the end what a task
    raised; all else has its row then.
    """
    shown, (missing, wanted, keep) = bar(name), _asked(tables)

    def look(progress: Progress) -> None:
        finished = {task.name for task in list(progress.finished)}
        for table in tables:
            table.fill(store, finished)
        shown(progress)

    errors: dict[str, Exception] = {}
    try:
        with FileLock(store.folder.with_name(f".{name}.lock"), timeout=0):
            for table in tables:
                table.fill(store)  # by others, or before a kill
            if wanted:
                pool = _pool(engine, missing, look)
                with pool.resources(store, wanted, keep):
                    errors = pool.compute(store, wanted, keep)
                for table in tables:
                    table.fill(store)
    except Timeout:
        raise BusyError(f"{name}: another program computes them; let it end first") from None
    for error in errors.values():
        raise error


def forecast(tables: Sequence[Table], store: Store, engine: str = "local") -> str:
    """What would be computed, and how long that takes by what has been computed here."""
    missing, wanted, keep = _asked(tables)
    schedule = Schedule(store, wanted, keep)
    progress = Progress(store, schedule.tasks, schedule.passed)
    lines = [f"{t.path}: {len(t.missing)} of {len(t.digests)} rows are missing" for t in tables]
    kinds = [task.kind for task in schedule.tasks if task.name not in schedule.passed]
    lines.append(", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)))
    pool = _pool(engine, missing)
    with pool.opened(store):
        room = pool.room(store, wanted, keep) / 1e9
    side = f"{pool.workers} side by side, {room:.0f} GB of disk"
    lines.append(f"as much work as {progress.total} steps of training, {side}")
    if seconds := seconds_a_step(store):
        hours = progress.total * seconds / pool.workers / 3600
        lines.append(f"about {hours:.1f} h, at {seconds:.1f} s a step as in the results here")
    else:
        lines.append("how long that takes is not known: nothing has been trained here yet")
    return "\n".join(lines)


def _pool(engine: str, missing: Sequence[Entry], look: Look = lambda _: None) -> Engine:
    return engine_of(engine, Needs.of_all(entry.needs for entry in missing), look=look)


def _asked(tables: Sequence[Table]) -> tuple[list[Entry], list[Task], list[Task]]:
    """The missing entries in their turns, the tasks they want, and those that they keep."""
    missing = sorted((entry for t in tables for entry in t.missing), key=lambda entry: entry.turn)
    wanted = [task for entry in missing for task in entry.tasks]
    return missing, wanted, [task for entry in missing for task in entry.keep]
