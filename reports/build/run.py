"""Run the notebooks that are not done: before them, in one pool, all that they will show.

1. the stage `first` (the reward model), a notebook at a time, with all cores;
2. `experiments`: one pool computes them all; their notebooks then find the results and show them;
3. `last`: what shows all of it.
Each notebook runs in a papermill process of its own, two side by side in the later stages, and is kept
as RUNS/ID/executed.ipynb, with fingerprints of its parameters, its sources and the results it read.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

import nbformat
import psutil

from reports.build.faults import ReportError
from reports.build.page import INSERTED
from reports.build.plan import Project, Section, read_notebook
from reports.build.status import Status

NOTEBOOK = Path(__file__).with_name("notebook.py")
POLL_SECONDS = 0.5
SAVING_SECONDS = 60  # that an interrupted notebook has to save what it computes


@dataclass(frozen=True)
class Running:
    """A notebook in a papermill process of its own."""

    section: Section
    child: subprocess.Popen[bytes]
    log: IO[bytes]
    given: list[str]  # fingerprint of what it began with, but for the results
    began: float


def run_sections(project: Project, engine: str = "local") -> None:
    """Run what is not done; the experiments where `engine` says.

    Raises ReportError with the cell and its error if one fails; what the run folders hold stays.
    """
    status = Status()
    _run_notebooks(project.stage("first"), status, side_by_side=1)
    experiments = [section for section in project.stage("experiments") if not section.is_done()]
    if experiments:
        from reports.build import pool  # torch, which a build with nothing to do need not wait for

        start = time.monotonic()
        pool.compute(project, experiments, status.pool, engine)
        status.finished("experiments", time.monotonic() - start)
    _run_notebooks([*project.stage("experiments"), *project.stage("last")], status, side_by_side=2)


def _run_notebooks(sections: Sequence[Section], status: Status, side_by_side: int) -> None:
    waiting, running = list(sections), list[Running]()
    try:
        while waiting or running:
            for section in list(waiting):
                if len(running) < side_by_side and _may_start(section, waiting, running):
                    waiting.remove(section)
                    if not section.is_done():  # asked anew: it may read what has just been written
                        running.append(_start(section))
            if running:
                time.sleep(POLL_SECONDS)
                done = len(sections) - len(waiting) - len(running)
                status.notebooks([one.section.id for one in running], done, len(sections))
            for one in [one for one in running if one.child.poll() is not None]:
                running.remove(one)
                _finish(one)
                status.finished(one.section.id, time.monotonic() - one.began)
    finally:
        for one in running:  # Ctrl-C, or another one failed
            _interrupt(one.child)
        for one in running:
            _end(one.child)


def _may_start(section: Section, waiting: list[Section], running: list[Running]) -> bool:
    """What shows all of it comes behind everything."""
    unfinished = [*waiting, *(one.section for one in running)]
    if section.stage == "last" and any(other.stage != "last" for other in unfinished):
        return False
    return not {other.id for other in unfinished}.intersection(section.after)


def _start(section: Section) -> Running:
    executing = _executing(section)
    executing.parent.mkdir(parents=True, exist_ok=True)
    executing.unlink(missing_ok=True)
    papermill = [sys.executable, str(NOTEBOOK), str(os.getpid())]
    papermill += [str(section.notebook), str(executing)]
    options = ["--cwd", str(section.root), "-k", "python3", "-l", "python", "--no-progress-bar"]
    command = [*papermill, *options]
    command += [part for file in section.files for part in ("-f", str(file))]
    command += [part for pair in section.folders.items() for part in ("-r", *pair)]
    log = tempfile.TemporaryFile()  # noqa: SIM115 (`_finish` closes it)
    # Its own session: Ctrl-C reaches this process alone, which then stops the others in order.
    child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    return Running(section, child, log, section.fingerprint()[:-1], time.monotonic())


def _finish(one: Running) -> None:
    executing = _executing(one.section)
    with one.log as log:
        if one.child.returncode:
            log.seek(0)
            _explain(one.section, executing, log.read().decode(errors="replace"))
    notebook = read_notebook(executing)
    notebook.metadata["warp_report"] = [*one.given, one.section.fingerprint()[-1]]
    nbformat.write(notebook, executing)
    executing.replace(one.section.executed)


def _executing(section: Section) -> Path:
    return section.executed.with_name("executing.ipynb")


def _interrupt(child: subprocess.Popen[bytes]) -> None:
    """Ctrl-C for the notebook's kernel, whose runs then save what they have."""
    if child.poll() is None:
        with suppress(psutil.Error):  # it has just ended
            for process in psutil.Process(child.pid).children():
                process.send_signal(signal.SIGINT)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Wait for it; papermill, interrupted, kills the kernel and the processes that it has."""
    for patience, signal_number in ((SAVING_SECONDS, signal.SIGINT), (20, signal.SIGKILL)):
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            child.send_signal(signal_number)
    child.wait()


def _explain(section: Section, executing: Path, log: str) -> NoReturn:
    """Say which cell failed and how; a kernel may also have died without a word."""
    lines = [f"\n{section.place} failed"]
    cells = read_notebook(executing).cells if executing.is_file() else []
    cells = [cell for cell in cells if not INSERTED & set(cell.metadata.get("tags", []))]
    errors = [
        (number, cell.source, output)
        for number, cell in enumerate(cells, 1)
        for output in cell.get("outputs", [])
        if output.output_type == "error"
    ]
    for number, source, error in errors[:1]:
        lines += [
            f"in cell {number} of {len(cells)}:",
            *(f"    {line}" for line in source.splitlines()[:3]),
            re.sub(r"\x1b\[[0-9;]*m", "", f"{error.ename}: {error.evalue}"),
        ]
    if not errors:
        lines += ["without an error of its own; papermill said:", log.strip()[-2000:]]
    if executing.is_file():
        lines.append(f"The notebook as far as it got: {executing.relative_to(section.root)}")
    lines.append("All that was done is kept; the same command goes on from there.")
    raise ReportError("\n".join(lines))
