"""Where a build is: which section, which step, how long is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.build import Section

LINE_SECONDS = 30  # between two lines in a log


class Status:
    """One line on where the build is: rewritten on a terminal, now and then a new one in a log."""

    def __init__(self, sections: list[Section]) -> None:
        self.sections = sections
        self.todo = [section for section in sections if not section.is_done()]
        self.measured = self.estimated = 0.0  # minutes of what has finished in this build
        self.terminal = sys.stdout.isatty()

    @contextmanager
    def section(self, section: Section) -> Iterator[None]:
        self.current, self.start, self.shown = section, time.monotonic(), 0.0
        self.todo = [other for other in self.todo if other is not section]
        done, total = section.steps()
        self.before = done / total if total else 0.0  # the part that an earlier build did
        self.tick()
        yield
        took = (time.monotonic() - self.start) / 60
        if self.before < 1:
            self.measured += took
            self.estimated += section.minutes * (1 - self.before)
        self._show(f"done in {_minutes(took)}", end="\n")

    def tick(self) -> None:
        now = time.monotonic()
        if not self.terminal and self.shown and now - self.shown < LINE_SECONDS:
            return
        self.shown = now
        done, total = self.current.steps()
        took = (now - self.start) / 60
        scale = self.measured / self.estimated if self.estimated else 1.0
        mine = self.current.minutes * scale
        training = total > 0 and self.before < 1
        part = done / total if training else min(1.0, took / mine)
        left = scale * sum(section.minutes for section in self.todo) + mine * (1 - part)
        steps = f"step {done} of {total} · " if training else ""
        self._show(f"{steps}{_minutes(took)} so far · about {_minutes(left)} left")

    def _show(self, text: str, end: str = "") -> None:
        line = f"[{1 + self.sections.index(self.current)}/{len(self.sections)}] {self.current.id}: "
        if self.terminal:
            print(f"\r\033[K{line}{text}", end=end, flush=True)
        else:
            print(f"{line}{text}", flush=True)


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
