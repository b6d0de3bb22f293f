"""Where a build is: which sections, which steps, how long is left."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reports.build import Section

LINE_SECONDS = 30  # between two lines in a log


class Status:
    """One line on where the build is: rewritten on a terminal, now and then a new one in a log."""

    def __init__(self, sections: list[Section], lanes: int) -> None:
        self.sections, self.lanes = sections, lanes
        self.todo = [section for section in sections if not section.is_done()]
        self.running: dict[str, tuple[Section, float, float]] = {}  # when it began, part done then
        self.measured = self.estimated = 0.0  # minutes of what has finished in this build
        self.shown = 0.0
        self.terminal = sys.stdout.isatty()

    def start(self, section: Section) -> None:
        self.todo = [other for other in self.todo if other.id != section.id]
        done, total = section.steps()
        self.running[section.id] = section, time.monotonic(), done / total if total else 0.0
        self.shown = 0.0
        self.tick()

    def finish(self, section: Section) -> None:
        _, start, before = self.running.pop(section.id)
        took = (time.monotonic() - start) / 60
        if before < 1:
            self.measured += took
            self.estimated += section.minutes * (1 - before)
        self._show(f"{self._place(section)}: done in {_minutes(took)}", end="\n")

    def tick(self) -> None:
        now = time.monotonic()
        if not self.running or (
            not self.terminal and self.shown and now - self.shown < LINE_SECONDS
        ):
            return
        self.shown = now
        scale = self.measured / self.estimated if self.estimated else 1.0
        left = [scale * section.minutes for section in self.todo]
        lines = []
        for section, start, before in self.running.values():
            done, total = section.steps()
            took, mine = (now - start) / 60, section.minutes * scale
            training = total > 0 and before < 1
            left.append(mine * (1 - (done / total if training else min(1.0, took / mine))))
            steps = f"step {done} of {total} · " if training else ""
            lines.append(f"{self._place(section)}: {steps}{_minutes(took)} so far")
        # Lanes are full but for the end, when the longest section decides.
        minutes = max(sum(left) / self.lanes, *left)
        self._show(f"{' | '.join(lines)} · about {_minutes(minutes)} left")

    def _place(self, section: Section) -> str:
        return f"[{1 + self.sections.index(section)}/{len(self.sections)}] {section.id}"

    def _show(self, line: str, end: str = "") -> None:
        if self.terminal:
            print(f"\r\033[K{line}", end=end, flush=True)
        else:
            print(line, flush=True)


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f} min" if minutes >= 1 else f"{60 * minutes:.0f} s"
