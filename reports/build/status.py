"""One line on where a build is: rewritten on a terminal, now and then a new one in a log."""

import shutil
import sys
import time

from warp_core.engine.progress import Progress

LINE_SECONDS = 30  # between two lines in a log


class Status:
    """What runs, how far it is, how long it takes."""

    def __init__(self) -> None:
        self.shown = time.monotonic() - LINE_SECONDS
        self.terminal = sys.stdout.isatty()
        self.start: tuple[float, int] | None = None  # of the pool: when, and what was done then

    def pool(self, progress: Progress) -> None:
        """The experiments: steps, tasks, what is being computed."""
        running = " | ".join(progress.place(task) for task in list(progress.running))
        done = progress.done()
        self.start = self.start or (time.monotonic(), done)
        began, before = self.start
        left = (time.monotonic() - began) * (progress.total - done) / max(done - before, 1)
        about = f" · about {minutes(left)} left" if done > before else ""
        self._show(
            f"experiments: {done} of {progress.total} steps' work, task "
            f"{len(progress.finished)} of {len(progress.tasks)}{about} · {running}"
        )

    def notebooks(self, names: list[str], done: int, of: int) -> None:
        """The notebooks that are being run."""
        self._show(f"notebooks: {done} of {of} · {' | '.join(names)}")

    def finished(self, what: str, seconds: float) -> None:
        """A line that stays."""
        self._print(f"{what}: done in {minutes(seconds)}", end="\n")

    def _show(self, line: str) -> None:
        now = time.monotonic()
        if self.terminal or now - self.shown >= LINE_SECONDS:
            self.shown = now
            self._print(line)

    def _print(self, line: str, end: str = "") -> None:
        if self.terminal:
            width = shutil.get_terminal_size().columns - 1  # what wraps could not be overwritten
            print(f"\r\033[K{line[:width]}", end=end, flush=True)
        else:
            print(line, flush=True)


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
