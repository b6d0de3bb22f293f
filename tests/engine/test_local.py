"""Tasks side by side: their order, what is kept of them, processes that die, Ctrl-C, threads, progress."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from warp_core.engine.local import LocalEngine
from warp_core.engine.memory import visible_gpus
from warp_core.engine.needs import Needs
from warp_core.engine.progress import Progress, steps_of
from warp_core.engine.schedule import Schedule
from warp_core.store.errors import ConfigError, DiedError, Interrupted, TrainingError
from warp_core.store.files import append_jsonl, read_jsonl, write_text
from warp_core.store.results import Store, Task

engines = pytest.mark.parametrize("workers", [1, 2])


def make(out, what, size, reads, journal, fault, work=None):
    """Notes the call; the result is its name behind those that it has read."""
    threads = torch.get_num_threads()
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    append_jsonl(journal, {"what": what, "pid": os.getpid(), "threads": threads, "gpu": gpu})
    if work:
        work.mkdir(parents=True, exist_ok=True)
        for step in (1, 2):
            append_jsonl(work / "steps.jsonl", {"step": step})
    if fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raises":
        raise TrainingError("said so")
    if fault == "breaks":
        raise KeyError("said so")
    if fault == "kills":  # the other process, which has nothing to do
        other = next(row["pid"] for row in read_jsonl(journal) if row["pid"] != os.getpid())
        os.kill(other, signal.SIGKILL)
        time.sleep(2)  # until that is known
    if fault in ("waits", "goes on"):
        try:
            wait()
        except KeyboardInterrupt:
            append_jsonl(journal, {"what": f"{what} interrupted", "pid": os.getpid()})
            if fault == "waits":
                raise
            wait()
    text = "".join([*((folder / "text").read_text().strip() for folder in reads), what])
    if size:
        out = out / "weights"
        out.mkdir()
    (out / "text").write_text(text.ljust(size))


def wait(seconds=300):
    """Not at one stroke: Ray interrupts Python, and no call into the system."""
    for _ in range(10 * seconds):
        time.sleep(0.1)


def make_task(journal, what, *reads, size=0, fault="", steps=0, scratch=0):
    arguments, hints = {"what": what, "size": size}, {"journal": journal, "fault": fault}
    sizes = {"steps": steps, "size": size, "scratch": scratch}
    return Task("t", make, arguments, {"reads": list(reads)}, hints, f"task {what}", **sizes)


@pytest.fixture
def journal(tmp_path) -> Path:
    return tmp_path / "journal.jsonl"


@pytest.fixture
def task(journal):
    """A task: its name, what it reads, and what of it is special."""
    return partial(make_task, journal)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def calls(journal):
    return [row["what"] for row in read_jsonl(journal)]


def text_of(store, task):
    return (store.read(task) / "text").read_text().strip()


def unfinished(store):
    return [path.name for path in (store.folder / "unfinished").glob("*")]


# Order and errors


@engines
def test_each_task_comes_once_and_behind_what_it_reads(workers, task, store, journal):
    a, b = task("a", size=9), task("b")
    c, d = task("c", a, b), task("d", b, b)
    e = task("e", c, d, a)
    assert LocalEngine(workers).compute(store, [e, d]) == {}
    order = calls(journal)
    assert sorted(order) == ["a", "b", "c", "d", "e"]
    for reader in (c, d, e):
        for read in reader.reads:
            assert order.index(read.arguments["what"]) < order.index(reader.arguments["what"])
    assert text_of(store, e) == "abcbbdae"
    pids = {row["pid"] for row in read_jsonl(journal)}
    assert (os.getpid() in pids) == (workers == 1)
    assert LocalEngine(1).compute(store, [e, task("f", e)]) == {}
    assert calls(journal) == [*order, "f"]  # what is there is not computed


@engines
def test_an_error_takes_no_other_task_with_it_but_what_needs_it(workers, task, store, journal):
    raised, broken = task("raised", fault="raises"), task("broken", fault="breaks")
    needs, theirs = task("needs", raised, task("free")), task("theirs", broken)
    tasks = [raised, broken, needs, theirs, task("last", needs, theirs), task("a"), task("b")]
    errors = LocalEngine(workers).compute(store, tasks)
    assert sorted(calls(journal)) == ["a", "b", "broken", "free", "raised"]
    first, second = errors[raised.name], errors[broken.name]
    assert (type(first), str(first)) == (TrainingError, "task raised: said so")
    assert type(second) is KeyError
    assert errors[needs.name] is first
    assert errors[tasks[4].name] in (first, second)  # whichever came first
    assert errors[theirs.name] is second
    assert len(errors) == 5


def test_processes_that_are_killed_are_named_and_take_no_other_task_with_them(task, store, journal):
    """Of more tasks than workers: none waits in a dead one's queue."""
    killed = [task(what, fault="killed", steps=3) for what in "xy"]
    needs, others = task("needs", killed[0]), [task(what) for what in "abc"]
    errors = LocalEngine(2).compute(store, [*killed, needs, *others])
    assert errors.keys() == {t.name for t in [*killed, needs]}
    for each in killed:
        assert isinstance(errors[each.name], DiedError)
        said = str(errors[each.name])
        assert said.startswith(f"{each.label} behind step 2: its process died; killed, or out of")
    assert errors[needs.name] is errors[killed[0].name]
    assert [text_of(store, t) for t in others] == list("abc")
    mended = [task(what) for what in "xy"]
    assert [t.name for t in mended] == [t.name for t in killed]
    assert LocalEngine(1).compute(store, [*mended, task("needs", mended[0])]) == {}
    assert sorted(calls(journal)) == [*"abc", "needs", *"xxyy"]


def test_a_process_that_is_killed_while_it_has_nothing_to_do_is_replaced(task, store):
    a, b = task("a"), task("b")
    first = task("first", a, b, fault="kills")
    assert LocalEngine(2).compute(store, [first, task("c", first), task("d", first)]) == {}


# Ctrl-C


@engines
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reaches_all_that_run_and_says_where_they_stood(
    workers, number, task, store, journal
):
    waiting = [task(what, fault="waits", steps=3) for what in "abc"]
    begun = [t.arguments["what"] for t in waiting[:workers]]
    threading.Thread(target=interrupt, args=(journal, begun, number), daemon=True).start()
    at = ", ".join(f"task {what} behind step 2" for what in begun)
    with pytest.raises(Interrupted, match=f"stopped: {at}; all"):
        LocalEngine(workers).compute(store, waiting)
    assert sorted(calls(journal)) == sorted([*begun, *(f"{what} interrupted" for what in begun)])
    assert len(unfinished(store)) == workers


def test_a_second_ctrl_c_does_not_wait(task, store, journal):
    waiting, start = [task(what, fault="goes on") for what in "ab"], time.monotonic()
    for awaited in (["a", "b"], ["a interrupted", "b interrupted"]):
        threading.Thread(target=interrupt, args=(journal, awaited), daemon=True).start()
    with pytest.raises(Interrupted, match="stopped: task a, task b; all"):
        LocalEngine(2).compute(store, waiting)
    for row in read_jsonl(journal):
        while not gone(row["pid"]):
            assert time.monotonic() - start < 200
            time.sleep(0.05)


def gone(pid):
    """Ended, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def interrupt(journal, awaited, number=signal.SIGINT):
    """A signal to this process alone, once these have been called."""
    deadline = time.monotonic() + 150
    while time.monotonic() < deadline and not {*awaited} <= {*calls(journal)}:
        time.sleep(0.05)
    os.kill(os.getpid(), number)


def test_a_process_whose_parent_is_gone_before_it_can_ask_ends():
    """It had imported torch for seconds, and took the system's first process for its parent."""
    program = (
        "import time\nfrom warp_core.store.signals import end_with_parent\n"
        "end_with_parent({})\ntime.sleep({})"
    )
    start = time.monotonic()
    orphan = subprocess.run([sys.executable, "-c", program.format(2**22 + 1, 300)])
    assert (orphan.returncode, time.monotonic() - start < 200) == (1, True)
    child = subprocess.run([sys.executable, "-c", program.format(os.getpid(), 0.5)])
    assert child.returncode == 0


# Which weights stay


@engines
def test_weights_that_nothing_needs_are_dropped(workers, task, store, journal, tmp_path):
    """Two that are kept, one that a run folder shows, and the results themselves stay."""
    a, b, c = (task(what, size=5) for what in "abc")
    d, e = task("d", a, b, c, size=6), task("e", a)
    shown = tmp_path / "run" / "c"
    store.make(c)
    store.show(c, shown)
    assert LocalEngine(workers).compute(store, [d, e, task("alone", size=7)], [b, d]) == {}
    assert {t.arguments["what"] for t in (a, b, c, d) if store.has(t, weights=True)} == {*"bcd"}
    assert all(store.has(t) for t in (a, b, c, d, e, task("alone", size=7)))
    assert (shown / "text").read_text() == "c".ljust(5)
    assert text_of(store, e) == "ae"
    assert sorted(calls(journal)) == ["a", "alone", "b", "c", "d", "e"]


def test_dropped_weights_are_made_again_only_if_something_needs_them(task, store, journal):
    a = task("a", size=5)
    b = task("b", a, size=5)
    engine = LocalEngine(1)
    assert engine.compute(store, [b]) == {}
    assert not store.has(a, weights=True)
    assert not store.has(b, weights=True)
    assert engine.compute(store, [a, b]) == {}
    assert calls(journal) == ["a", "b"]  # nothing reads them
    assert engine.compute(store, [task("c", b)]) == {}
    assert calls(journal) == ["a", "b", "a", "b", "c"]
    assert engine.compute(store, [a, b], [a]) == {}
    assert calls(journal)[5:] == ["a"]  # to be kept
    assert [store.has(t, weights=True) for t in (a, b)] == [True, False]


def test_weights_that_a_killed_attempt_left_are_dropped_by_the_next(task, store):
    """It ended when all was computed, and nothing is to be computed any more."""
    a = task("a", size=5)
    b = task("b", a)
    for each in (a, b):
        store.make(each)
    assert LocalEngine(1).compute(store, [b]) == {}
    assert not store.has(a, weights=True)


def test_what_killed_processes_had_begun_is_removed_but_not_what_is_at_work(task, store):
    a, b, c = (task(what, size=5, steps=3) for what in "abc")
    store.make(a)
    for each in (a, b, c):
        (store.folder / f".{each.name}-abcd_123.tmp" / "weights").mkdir(parents=True)
        (store.folder / "unfinished" / each.name).mkdir(parents=True)
    with store._locked(c.name):
        LocalEngine(1).compute(store, [task("d")])
    hidden = [path.name for path in store.folder.glob(".*")]
    assert hidden == [f".{c.name}-abcd_123.tmp"]
    assert sorted(unfinished(store)) == sorted([b.name, c.name])  # b goes on from there


@pytest.mark.parametrize("keep", [False, True])
def test_room_is_the_peak_of_what_the_schedule_keeps(keep, task, store, monkeypatch):
    """Measured when a task has been made, before what it spent is dropped."""
    start = task("start", size=2000)
    a, b, c = (task(what, start, size=size) for what, size in (("a", 500), ("b", 700), ("c", 900)))
    d = task("d", start, a, b, b, size=800)  # as runs that share a seed are one
    e = task("e", d, size=300)
    wanted = [a, b, c, d, e, task("f", e), task("g", c)]
    kept = [start, e] if keep else []
    measured, whole = [], Store.make

    def measuring(store, task, passing=()):
        whole(store, task, passing)
        files = store.folder.glob("*/weights/text")
        measured.append(sum(file.stat().st_size for file in files))

    room = LocalEngine(1).room(store, wanted, kept)
    monkeypatch.setattr(Store, "make", measuring)
    assert LocalEngine(1).compute(store, wanted, kept) == {}
    assert room == max(measured) == 2000 + 500 + 700 + 900 + 800
    assert LocalEngine(1).room(store, wanted, kept) == 0
    checkpoints = [task("h", size=100, scratch=30), task("i", size=100, scratch=40)]
    assert LocalEngine(2).room(store, checkpoints, checkpoints) == 200 + 30 + 40
    assert LocalEngine(64).room(store, checkpoints, checkpoints) == 200 + 30 + 40  # of two alone
    assert LocalEngine(1).room(store, checkpoints, checkpoints) == 200 + 40


def test_room_counts_what_is_read_twice_once(task, store):
    """Two reads of one task free its bytes once."""
    a = task("a", size=1000)
    b = task("b", a, a, size=10)
    c = task("c", b, size=1500)
    assert LocalEngine(1).room(store, [c], [b, c]) == 1510


# Threads


def test_a_tasks_threads_do_not_depend_on_what_else_runs(task, store, journal, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 16)
        for workers, runs, side_by_side, threads in (
            (1, 8, 1, 16),
            (0, 8, 8, 2),
            (2, 8, 2, 8),
            (0, 1, 1, 16),  # four that share a seed are one
            (9, 3, 3, 5),
            (0, 64, 16, 1),
            (64, 64, 64, 1),
        ):
            engine = LocalEngine(workers, runs)
            assert (engine.workers, engine.threads) == (side_by_side, threads)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        for gpus, one_each in ((1, 1), (3, 3), (8, 4)):
            patch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
            assert LocalEngine(0, 4).workers == one_each
            assert LocalEngine(2, 4).workers == 2
    torch.set_num_threads(4)
    try:
        first = task("first")
        beside = [task("second", first), task("third", first)]
        here, two = LocalEngine(1), LocalEngine(2)
        torch.set_num_threads(3)
        assert here.compute(store, [task("here")]) == {}
        assert torch.get_num_threads() == 3
        assert two.compute(store, beside) == {}  # one alone, then two
    finally:
        torch.set_num_threads(1)
    assert [row["threads"] for row in read_jsonl(journal)] == [4, 2, 2, 2]


def test_each_process_has_a_gpu_of_its_own(task, store, journal, monkeypatch):
    """Whose names are those that this process sees; a process that dies leaves it to the next."""
    monkeypatch.setattr("warp_core.engine.local.visible_gpus", lambda: ["4", "GPU-7"])
    engine = LocalEngine()
    assert engine.workers == 2
    killed, beside = task("killed", fault="killed"), [task(what) for what in "abc"]
    assert len(engine.compute(store, [killed, *beside])) == 1
    rows = read_jsonl(journal)
    assert {row["gpu"] for row in rows} == {"4", "GPU-7"}
    by_process = {(row["pid"], row["gpu"]) for row in rows}
    assert len(by_process) == len({row["pid"] for row in rows})


def test_each_process_has_a_group_of_gpus(task, store, journal, monkeypatch):
    """Whole groups alone; memory is that of all of a group's."""
    monkeypatch.setattr("warp_core.engine.local.visible_gpus", lambda: list("abcde"))
    monkeypatch.setattr("warp_core.engine.memory.available_bytes", lambda: 10)
    engine = LocalEngine(needs=Needs(15, 2))
    assert (engine.shown, engine.workers) == (["a,b", "c,d"], 2)
    assert engine.compute(store, [task(what) for what in "xyz"]) == {}
    assert {row["gpu"] for row in read_jsonl(journal)} == {"a,b", "c,d"}
    with engine.reserved(2):
        pass
    said = "workers: 3 runs side by side want about 0.0 GB, .* workers: 2 fits"
    with pytest.raises(ConfigError, match=said), engine.reserved(3):
        pass


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match="gpus: 2 given; this machine has 0"):
        LocalEngine(needs=Needs(gpus=2)).check()
    monkeypatch.setattr("warp_core.engine.local.visible_gpus", lambda: list("ab"))
    with pytest.raises(ConfigError, match="gpus: 3 given; this machine has 2"):
        LocalEngine(needs=Needs(gpus=3)).check()


def test_gpus_that_can_be_seen(monkeypatch):
    assert visible_gpus() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7")
    assert visible_gpus() == ["3", "GPU-7"]


# Progress


@pytest.mark.parametrize("padding", [0, 9_000])
def test_steps_are_told_by_the_last_whole_line_of_a_log(tmp_path, padding):
    path = tmp_path / "log.jsonl"
    assert steps_of(path) == 0  # not there yet
    for k in range(1, 101):
        append_jsonl(path, {"step": k, "more": "x" * padding})
        assert steps_of(path) == k
    with path.open("a") as file:
        file.write('{"step": 1')  # a line that is being written
    assert steps_of(path) == 100
    with path.open("a") as file:
        file.write("01}\n")
    assert steps_of(path) == 101
    write_text(path, '{"step": 1}\n')  # a checkpoint cuts it back
    assert steps_of(path) == 1
    write_text(path, '{"st')
    assert steps_of(path) == 0
    write_text(path, "")
    assert steps_of(path) == 0
    path.write_bytes(b"\0" * 40 + b"\n")  # as a network file system may show another machine's line
    assert steps_of(path) == 0


def test_progress_counts_steps_that_are_done_and_those_that_are_logged(task, store):
    done, running, waits = (task(what, steps=10) for what in "abc")
    progress = Progress(store, [done, running, waits, task("d")])
    assert (progress.total, progress.done()) == (31, 0)
    progress.running.append(running)
    progress.finished.append(done)  # whose log is removed, or which stopped before its last step
    store.log(running).parent.mkdir(parents=True)
    for step in range(1, 5):
        append_jsonl(store.log(running), {"step": step})
    assert progress.done() == 14
    assert progress.place(running) == "task b behind step 4"
    assert progress.place(task("d")) == "task d"


def test_a_schedule_waits_for_what_is_needed_and_gives_up_what_failed(task, store):
    a, b = task("a"), task("b")
    c, d = task("c", a), task("d", b)
    schedule = Schedule(store, [c, d], [])
    assert [schedule.next(), schedule.next(), schedule.next()] == [a, b, None]
    error = KeyError("said so")
    schedule.finish(b, error)
    assert schedule.next() is None
    schedule.finish(a, None)
    assert [schedule.next(), schedule.next()] == [c, None]
    assert schedule.errors == {b.name: error, d.name: error}


# What a longer run keeps on its way


def keep_then_wait(out, work, passing, journal, **_):
    """Keeps what it passes, and ends behind what reads that."""
    for _, context in passing:
        with context() as folder:
            (folder / "text").write_text("short")
    deadline = time.monotonic() + 150
    while "reader" not in calls(journal) and time.monotonic() < deadline:
        time.sleep(0.05)
    append_jsonl(journal, {"what": "long"})
    (out / "text").write_text("long")


def on_one_way(journal):
    about = {"hints": {"journal": journal}, "way": "w"}
    return [Task("t", keep_then_wait, {"to": n}, steps=n, **about) for n in (1, 9)]


def test_what_is_kept_on_the_way_is_read_before_the_way_ends(task, store, journal, monkeypatch):
    monkeypatch.setattr("warp_core.engine.local.LOOK", 0.1)
    short, long = on_one_way(journal)
    told = []
    engine = LocalEngine(2, look=lambda progress: told.append(list(progress.finished)))
    assert engine.compute(store, [long, task("reader", short)]) == {}
    assert calls(journal) == ["reader", "long"]
    assert [each.name for each in told[-1]].count(short.name) == 1


def test_what_was_kept_again_on_the_way_is_dropped_again(task, store, journal):
    """By a run whose machine died behind it, and which began anew elsewhere."""
    about = {"hints": {"journal": journal}, "way": "w", "size": 5}
    short, long = (Task("t", keep_then_wait, {"to": n}, steps=n, **about) for n in (1, 9))
    reader = task("reader", short)
    schedule = Schedule(store, [long, reader], [])
    assert schedule.next() == long
    store.weights(short).mkdir(parents=True)
    assert schedule.arrived() == [short]
    assert schedule.next() == reader
    schedule.finish(reader, None)
    assert not store.has(short, weights=True)
    store.weights(short).mkdir()
    schedule.finish(long, None)
    assert not store.has(short, weights=True)


def test_what_was_kept_on_the_way_is_done(task, store, journal):
    short, long = on_one_way(journal)
    reader = task("reader", short)
    schedule = Schedule(store, [long, reader], [])
    assert [schedule.next(), schedule.next(), schedule.arrived()] == [long, None, []]
    (store.path(short)).mkdir(parents=True)
    assert schedule.arrived() == [short]
    assert schedule.arrived() == []
    assert [schedule.next(), schedule.next()] == [reader, None]
    assert schedule.finish(long, None) == [long]
    assert schedule.finish(reader, None) == [reader]
