"""The line on where a build is."""

import os
import shutil
from pathlib import Path

import pytest

from reports.build import status
from warp_core.engine.progress import Progress
from warp_core.store.files import append_jsonl
from warp_core.store.results import Store, Task


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    return now


def test_in_a_log_it_counts_steps_tasks_and_time(
    now: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    run, other = (
        Task("run", print, {"seed": seed}, label=f"one, run {seed}", steps=20) for seed in (1, 2)
    )
    evaluation = Task("evaluation", print, {}, label="one, SFT evaluated", cost=3)
    progress = Progress(store, [run, other, evaluation])
    progress.running = [run, evaluation]
    store.log(run).parent.mkdir(parents=True)
    append_jsonl(store.log(run), {"step": 1})
    line = status.Status()
    line.pool(progress)  # what an earlier build had done takes no part in the speed
    for step in range(2, 11):
        append_jsonl(store.log(run), {"step": step})
    now[0] += 10
    line.pool(progress)  # too soon for a log
    now[0] += 80
    line.pool(progress)
    progress.finished, progress.running = [run, evaluation], [other]
    now[0] += 60
    line.pool(progress)
    line.finished("experiments", now[0] - 1000)
    now[0] += 30
    line.notebooks(["one", "two"], 2, 5)
    line.finished("one", 12.3)
    assert capsys.readouterr().out.splitlines() == [
        "experiments: 1 of 43 steps' work, task 0 of 3 · one, run 1 behind step 1 | one, SFT evaluated",
        # 9 steps in 90 s; 30 steps are left, and an evaluation that counts as three
        "experiments: 10 of 43 steps' work, task 0 of 3 · about 6 min left"
        " · one, run 1 behind step 10 | one, SFT evaluated",
        # 19 steps and the evaluation in 150 s; 20 steps are left
        "experiments: 23 of 43 steps' work, task 2 of 3 · about 2 min left · one, run 2 behind step 0",
        "experiments: done in 2 min",
        "notebooks: 2 of 5 · one | two",
        "one: done in 12 s",
    ]


def test_on_a_terminal_it_stays_one_line(
    now: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status.sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((31, 24)))
    line = status.Status()
    for done in (1, 2):
        line.notebooks(["experiment_1", "experiment_2"], done, 5)
    line.finished("experiment_1", 61)
    assert capsys.readouterr().out == (
        "\r\033[Knotebooks: 1 of 5 · experiment"
        "\r\033[Knotebooks: 2 of 5 · experiment"
        "\r\033[Kexperiment_1: done in 1 min\n"
    )
