"""The bar of what is computed: the time left of each run, and an evaluation that moves it."""

import pytest

from warp_core.engine import progress
from warp_core.engine.progress import Progress
from warp_core.store.files import append_jsonl
from warp_core.store.results import Store, Task


class Line:
    """In tqdm's place."""

    made: list["Line"] = []  # noqa: RUF012

    def __init__(self, desc: str, total: int, initial: int, mininterval: float) -> None:
        self.n, self.total, self.said, self.closed = initial, total, desc, False
        self.made.append(self)

    def set_description(self, said: str, refresh: bool) -> None:
        self.said = said

    def update(self, by: int) -> None:
        self.n += by

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def now(monkeypatch):
    """The time, to be set."""
    now = [1000.0]
    Line.made.clear()
    monkeypatch.setattr(progress, "tqdm", Line)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_is_left_by_run_and_an_evaluation_moves_the_bar(now, tmp_path):
    store = Store(tmp_path)
    run = Task("run", print, {"seed": 1}, label="one, run 1", steps=20)
    evaluation = Task("evaluation", print, {}, label="one, WARP evaluated", cost=10)
    work = Progress(store, [run, evaluation])
    work.running = [run]
    store.log(run).parent.mkdir(parents=True)
    look = progress.bar("one")
    look(work)
    (line,) = Line.made
    assert (line.n, line.total, line.said) == (0, 30, "one, run 1 behind step 0")
    for step in range(1, 6):
        append_jsonl(store.log(run), {"step": step})
    now[0] += 100
    look(work)  # 20 s a step
    assert (line.n, line.said) == (5, "one, run 1 behind step 5, 5 min left")
    work.finished, work.running = [run], [evaluation]
    look(work)
    now[0] += 100
    look(work)
    assert (line.n, line.said) == (25, "one, WARP evaluated, 2 min left")
    now[0] += 1000
    look(work)
    assert line.n == 29  # not full before it is done
    assert not line.closed
    work.finished, work.running = [run, evaluation], []
    look(work)
    assert line.n == 30
    assert line.closed


def test_a_run_that_goes_back_to_its_checkpoint_has_time_left_by_the_steps_from_there(
    now, tmp_path
):
    store = Store(tmp_path)
    run = Task("run", print, {}, label="one, run 1", steps=20)
    work, log = Progress(store, [run]), store.log(run)
    work.running = [run]
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 9}\n')  # of a process that was killed there
    look = progress.bar("one")
    look(work)
    now[0] += 50
    log.write_text('{"step": 5}\n')
    look(work)
    assert Line.made[0].said == "one, run 1 behind step 5"
    now[0] += 100
    log.write_text('{"step": 10}\n')
    look(work)
    assert Line.made[0].said == "one, run 1 behind step 10, 3 min left"


def test_a_task_that_another_machine_computes_is_said_to_be_there(tmp_path):
    store = Store(tmp_path)
    task = Task("run", print, {}, label="one, run 1", steps=20)
    progress, marker = Progress(store, [task]), tmp_path / "locks" / f"{task.name}.lease"
    marker.parent.mkdir()
    marker.write_text("filelock/2\npid=7\nhost=node-b\nmode=lease\ntoken=0f\nduration=30.0\n")
    assert progress.place(task) == "one, run 1 on node-b behind step 0"
    with store._locked(Task("other", print, {}).name):
        assert progress.place(Task("other", print, {}, label="other")) == "other"
