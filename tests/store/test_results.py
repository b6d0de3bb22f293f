"""Results by name: what decides it, computed once, whoever asks; killed, dropped, shown, damaged."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from warp_core.store import results
from warp_core.store.errors import DamagedError
from warp_core.store.files import (
    append_jsonl,
    seal_text,
    sealed_json,
    sealed_text,
    verify,
    write_text,
)
from warp_core.store.results import STEPS, WEIGHTS, Store, Task


def write(out, text="", count=0, a=None, **others):
    """Weights and a small file, out of all that it is given; notes in `log` that it was called."""
    if log := others.pop("log", None):
        append_jsonl(Path(log), {"text": text})
    (out / WEIGHTS).mkdir()
    inputs = [folder.name for folder in (a if isinstance(a, list) else [a] if a else [])]
    write_text(out / WEIGHTS / "model", f"{text} {count} {inputs} " * 20)
    write_text(out / "small", text)


def note(out, **given):
    """Writes down what it is given."""
    write_text(out / "given.json", json.dumps(given, default=str))


def fail(out, work=None, **_):
    (out / "half").write_text("half")
    if work:
        append_jsonl(work / STEPS, {"step": 1})
    raise ValueError("said so")


FIRST = Task("first", write, {"text": "x"}, size=1)
TASK = Task("kind", write, {"text": "hello", "count": 3}, {"a": FIRST}, size=1)
OTHER = replace(FIRST, arguments={"text": "y"})


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture
def calls(tmp_path):
    """How often `write` was called with it as hint."""

    def count():
        return len((tmp_path / "calls").read_text().splitlines())

    return {"log": str(tmp_path / "calls")}, count


def made(store, *tasks):
    for task in tasks:
        store.make(task)


def in_store(store):
    """Names of what lies there, the hidden too."""
    return sorted(path.name for path in store.folder.iterdir() if path.name != "locks")


# Names


DECIDING = [
    {"kind": "other"},
    {"arguments": {"text": "hello", "count": 4}},
    {"arguments": {"text": "hello ", "count": 3}},
    {"arguments": {"text": "hello", "count": "3"}},
    {"arguments": {"text": "hello", "counts": 3}},
    {"arguments": {"text": "hello"}},
    {"arguments": {"text": "hello", "count": 3, "more": None}},
    {"arguments": {"text": "hello", "count": {"deep": [1, {"er": 2}]}}},
    {"inputs": {}},
    {"inputs": {"b": FIRST}},
    {"inputs": {"a": OTHER}},
    {"inputs": {"a": FIRST, "b": FIRST}},
    {"inputs": {"a": [FIRST]}},
    {"inputs": {"a": [FIRST, OTHER]}},
    {"inputs": {"a": [OTHER, FIRST]}},
    {"inputs": {"a": [FIRST, FIRST]}},
]


def test_whatever_decides_a_result_is_in_its_name():
    names = {replace(TASK, **changes).name for changes in [{}, *DECIDING]}
    assert len(names) == 1 + len(DECIDING)


def test_what_decides_an_input_is_in_the_name_of_all_that_come_of_it():
    def last(count):
        first = replace(FIRST, arguments={"text": "x", "count": count})
        return Task("last", write, {}, {"a": [Task("middle", write, {}, {"a": first}), OTHER]})

    assert last(1).name == last(1).name
    assert last(1).name != last(2).name


@pytest.mark.parametrize(
    "changes",
    [
        {"arguments": {"count": 3, "text": "hello"}},
        {"hints": {"checkpoint_every": 5}},
        {"label": "what people call it"},
        {"steps": 7},
        {"size": 99},
        {"scratch": 99},
        {"inputs": {"a": replace(FIRST, hints={"spec": "here"}, label="label")}},
    ],
)
def test_what_does_not_decide_it_is_not(changes):
    assert replace(TASK, **changes).name == TASK.name


def test_a_name_says_what_kind_of_result_it_is_and_is_a_plain_one():
    kind, _, digest = TASK.name.rpartition("-")
    assert kind == "kind"
    assert len(digest) == 24
    assert set(digest) <= set("0123456789abcdef")


# Made once


def test_a_function_is_given_the_folders_the_arguments_and_the_hints(store):
    plain = Task("plain", note, {})
    inputs = {"one": FIRST, "more": [OTHER, plain], "none": []}
    task = Task("kind", note, {"x": 1.5}, inputs, {"hint": "h"}, steps=1)
    made(store, FIRST, OTHER, plain, task)
    folders = {name: str(store.path(each)) for name, each in (("one", FIRST), ("two", OTHER))}
    assert json.loads(sealed_text(store.path(task) / "given.json")) == {
        "one": f"{folders['one']}/{WEIGHTS}",
        "more": [f"{folders['two']}/{WEIGHTS}", str(store.path(plain))],
        "none": [],
        "x": 1.5,
        "hint": "h",
        "work": str(store.log(task).parent),
    }


def test_what_is_there_is_not_computed_again_whoever_asks(store, calls):
    hint, count = calls
    task = replace(TASK, hints=hint)
    assert not store.has(task)
    made(store, FIRST, task)
    assert store.has(task, weights=True)
    for again in (task, replace(task, label="another experiment's", steps=3)):
        Store(store.folder).make(again)
    assert count() == 1


def test_a_result_says_what_decided_it_and_what_it_was_made_with(store):
    made(store, FIRST, TASK)
    origin = sealed_json(store.path(TASK) / "origin.json")
    decides = {"kind": "kind", "text": "hello", "count": 3, "a": FIRST.name}
    assert origin["decides"] == decides
    assert origin["code"] == results.describe_machine()["code"]
    assert origin["seconds"] >= 0
    found = store.origins([TASK, Task("absent", write, {})])
    assert found.keys() == {TASK.name, FIRST.name}
    assert found[TASK.name] == {key: origin[key] for key in origin if key != "decides"}


def test_a_maker_that_fails_leaves_nothing_but_its_log_and_the_next_one_makes_it(store):
    failing = replace(FIRST, make=fail, steps=2)
    (store.log(failing).parent).mkdir(parents=True)
    with pytest.raises(ValueError, match="said so"):
        store.make(failing)
    assert not store.has(FIRST)
    assert in_store(store) == ["unfinished"]
    assert store.rows(failing) == [{"step": 1}]
    store.make(FIRST)
    assert in_store(store) == [FIRST.name, "unfinished"]
    assert not store.log(FIRST).parent.exists()


def test_the_rows_of_a_run_are_those_logged_so_far_then_those_of_its_result(store):
    def logs(out, work):
        append_jsonl(out / STEPS, {"step": 1})

    run = Task("run", logs, {}, steps=1)
    assert store.rows(run) == []
    store.log(run).parent.mkdir(parents=True)
    store.log(run).write_text('{"step": 1, "of": "the attempt before"}\n{"st')  # killed there
    assert store.rows(run) == [{"step": 1, "of": "the attempt before"}]
    store.make(run)
    assert store.rows(run) == [{"step": 1}]


# Other processes

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from warp_core.store import results
from warp_core.store.files import append_jsonl
from warp_core.store.results import Store, Task, WEIGHTS

results.describe_machine = dict  # which would import torch

def work(out, **_):
    append_jsonl(Path(sys.argv[1]) / "calls", {"process": os.getpid()})
    (out / WEIGHTS).mkdir()
    (out / WEIGHTS / "model").write_text("half")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(float(sys.argv[2]))
    (out / WEIGHTS / "model").write_text("whole")

task = Task("first", work, {"text": "x"}, size=1)
Store(Path(sys.argv[1]) / "store").make(task)
print((Store(Path(sys.argv[1]) / "store").weights(task) / "model").read_text())
"""


def asking(folder, how):
    command = [sys.executable, "-c", SCRIPT, str(folder), how]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_killed_maker_leaves_nothing_that_counts_and_the_next_one_makes_it(store, tmp_path):
    killed = asking(tmp_path, "killed")
    assert killed.wait() == -signal.SIGKILL
    assert not store.has(FIRST)
    assert len(in_store(store)) == 1  # what it had begun, hidden
    store.make(FIRST)
    assert in_store(store) == [FIRST.name]
    verify(store.weights(FIRST), "model")
    assert "half" not in (store.weights(FIRST) / "model").read_text()


def test_two_processes_that_ask_at_once_compute_it_once(tmp_path):
    processes = [asking(tmp_path, "1") for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["whole\n"] * 2
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def test_different_results_are_made_side_by_side(store, tmp_path):
    process = asking(tmp_path, "300")
    try:
        while not (tmp_path / "calls").exists():
            assert process.poll() is None
            time.sleep(0.02)
        store.make(OTHER)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()


# Weights that are dropped


def test_dropped_weights_are_made_again_with_the_same_bits_and_the_rest_stays(store, calls):
    hint, count = calls
    task = replace(FIRST, hints=hint)
    store.make(task)
    before = (store.weights(task) / "model").read_bytes()
    store.drop(task)
    assert not store.weights(task).exists()
    assert store.has(task)
    assert not store.has(task, weights=True)
    assert sealed_text(store.path(task) / "small") == "x"
    assert in_store(store) == [task.name]
    store.make(task)
    assert (store.weights(task) / "model").read_bytes() == before
    verify(store.weights(task), "model")
    assert count() == 2


def test_a_result_without_weights_or_that_is_not_there_has_nothing_to_drop(store):
    plain = Task("plain", note, {})
    store.make(plain)
    store.drop(plain)
    store.drop(OTHER)
    assert store.has(plain)
    assert in_store(store) == [plain.name]


def test_weights_that_another_program_drops_meanwhile_are_nothing_to_drop(store, monkeypatch):
    store.make(FIRST)
    locked = store._locked

    def late(name, seconds=-1):
        Store(store.folder).drop(FIRST)
        return locked(name, seconds)

    monkeypatch.setattr(store, "_locked", late)
    store.drop(FIRST)
    assert store.has(FIRST)
    assert not store.has(FIRST, weights=True)


def test_what_is_read_may_be_dropped_while_its_reader_waits(store, monkeypatch):
    dropped, locked = [], store._locked

    def late(name, seconds=-1):
        if name == TASK.name and not dropped:
            dropped.append(name)
            Store(store.folder).drop(FIRST)
        return locked(name, seconds)

    monkeypatch.setattr(store, "_locked", late)
    store.make(TASK)
    assert dropped
    assert store.has(TASK, weights=True)


def test_what_is_read_may_be_dropped_while_it_is_read(store):
    dropped = []

    def read(out, a, **_):
        if not dropped:
            dropped.append(a)
            Store(store.folder).drop(FIRST)
        write(out, (a / "model").read_text())

    reader = Task("b", read, {}, {"a": FIRST}, size=10)
    store.make(reader)
    assert dropped
    assert store.has(reader, weights=True)


# Work that other code began


def half(out, work, stops):
    append_jsonl(work / STEPS, {"step": 1})
    if stops:
        raise ValueError("said so")
    seal_text(out / STEPS, (work / STEPS).read_text())


def test_a_result_says_which_code_began_it(store, monkeypatch):
    task = Task("run", half, {}, hints={"stops": True}, steps=2)
    with pytest.raises(ValueError, match="said so"):
        store.make(task)
    assert store.begun_by_other_code() == []
    before = results.code_of_the_method()
    monkeypatch.setattr(results, "code_of_the_method", lambda: "later")
    assert store.begun_by_other_code() == [task.name]
    store.make(replace(task, hints={"stops": False}))
    assert sealed_json(store.path(task) / "origin.json")["code"] == before


def test_work_of_other_code_is_forgotten_unless_somebody_is_at_it(store):
    task = Task("run", half, {}, hints={"stops": True}, steps=2)
    with pytest.raises(ValueError, match="said so"):
        store.make(task)
    with store._locked(task.name):
        Store(store.folder).forget(task.name)
    assert store.log(task).is_file()
    store.forget(task.name)
    assert not store.log(task).exists()


# Weights that a run folder shows


def test_shown_weights_are_the_same_files_and_survive_a_drop(store, tmp_path):
    place = tmp_path / "run" / "weights" / "warp"
    store.make(FIRST)
    store.show(FIRST, place)
    assert (place / "model").samefile(store.weights(FIRST) / "model")
    verify(place, "model")
    store.drop(FIRST)
    assert store.has(FIRST, weights=True)
    for path in place.iterdir():
        path.unlink()
    store.drop(FIRST)
    assert not store.has(FIRST, weights=True)


def test_where_no_links_are_possible_copies_are_shown_and_survive_a_drop(
    store, tmp_path, monkeypatch
):
    def impossible(*_, **__):
        raise OSError("no links on this file system")

    monkeypatch.setattr(os, "link", impossible)
    place = tmp_path / "run" / "weights" / "warp"
    store.make(FIRST)
    store.show(FIRST, place)
    copied = (place / "model").stat()
    assert not (place / "model").samefile(store.weights(FIRST) / "model")
    store.show(FIRST, place)
    assert (place / "model").stat() == copied  # nothing was copied again
    store.drop(FIRST)
    assert not store.has(FIRST, weights=True)
    verify(place, "model")


def test_a_shown_folder_is_whole_whenever_it_is_stopped(store, tmp_path, monkeypatch):
    place = tmp_path / "run" / "weights" / "warp"
    store.make(FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.show(FIRST, place)
    assert not place.exists()
    assert list(place.parent.iterdir()) == []
    store.show(FIRST, place)
    verify(place, "model")


# Damage


@pytest.mark.parametrize("links", [True, False])
def test_a_damaged_weight_is_named_and_once_deleted_made_again_and_shown(
    store, tmp_path, monkeypatch, links
):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    place = tmp_path / "run" / "weights" / "warp"
    store.make(FIRST)
    store.show(FIRST, place)
    before = (store.weights(FIRST) / "model").read_bytes()
    (store.weights(FIRST) / "model").write_bytes(b"?" + before[1:])
    with pytest.raises(DamagedError, match=f"delete the folder {store.weights(FIRST)}, and"):
        verify(store.weights(FIRST), "model")
    for path in store.weights(FIRST).iterdir():
        path.unlink()
    store.weights(FIRST).rmdir()
    assert not store.has(FIRST, weights=True)
    store.make(FIRST)
    store.show(FIRST, place)
    assert (place / "model").read_bytes() == before
    assert (place / "model").samefile(store.weights(FIRST) / "model") == links
    verify(place, "model")


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("{}"), Path.unlink])
def test_damage_to_what_a_result_tells_names_the_whole_result(store, spoil):
    """For it cannot be made again in part."""

    def logs(out, work):
        append_jsonl(out / STEPS, {"step": 1})

    run = Task("run", logs, {}, steps=1)
    for file, ask in (
        (STEPS, lambda: store.rows(run)),
        ("origin.json", lambda: store.origins([run])),
    ):
        store.make(run)
        before = ask()
        spoil(store.path(run) / file)
        with pytest.raises(DamagedError) as caught:
            ask()
        fault, advice = str(caught.value).split("; ")
        assert fault.startswith(f"{store.path(run) / file}: is ")
        assert advice.startswith(f"delete the folder {store.path(run)}, and the command")
        for path in store.path(run).iterdir():
            path.unlink()
        store.path(run).rmdir()
        store.make(run)
        assert len(ask()) == len(before) == 1


# What others left


def test_what_killed_processes_left_is_tidied_away_and_what_is_being_made_is_not(store, tmp_path):
    run = Task("run", write, {"text": "r"}, size=1, steps=5)
    interrupted = Task("run", write, {"text": "other"}, size=1, steps=5)
    made(store, FIRST, run)
    for task in (run, interrupted):  # of the first the result came, and then it was killed
        store.log(task).parent.mkdir(parents=True)
        append_jsonl(store.log(task), {"step": 1})
    for name in (f".{FIRST.name}-abcd1234.tmp", f".{OTHER.name}-abcd1234.tmp"):
        (store.folder / name / WEIGHTS).mkdir(parents=True)
    (store.folder / "own-notes").mkdir()
    kept = {FIRST.name, run.name, "unfinished", "own-notes"}
    with store._locked(OTHER.name):
        store.tidy()
        assert set(in_store(store)) == kept | {f".{OTHER.name}-abcd1234.tmp"}
    assert not store.log(run).parent.exists()
    assert store.rows(interrupted) == [{"step": 1}]
    store.tidy()
    assert set(in_store(store)) == kept
    verify(store.weights(FIRST), "model")


def test_what_is_read_is_made_first_if_another_program_has_dropped_it(store):
    store.make(TASK)
    store.drop(FIRST)
    again = replace(TASK, arguments={"text": "again"})
    store.make(again)
    assert store.has(FIRST, weights=True)
    assert store.has(again, weights=True)
