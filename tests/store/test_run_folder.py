"""The run folder: whose it is, who works in it, what it has taken; and those of an older version."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from warp_core.config import WarpConfig
from warp_core.store import run_folder
from warp_core.store.errors import BusyError, ConfigError, DamagedError, Interrupted
from warp_core.store.files import appearing, seal_json, seal_text, sealed_json
from warp_core.store.parameters import RunParameters
from warp_core.store.run_folder import computed_once, open_run, project_root, seconds_of
from warp_core.warp import run_front, run_warp


class Some(RunParameters):
    name: str = "run"
    lr: float = 1e-4
    title: str = ""
    workers: str = "0"
    checkpoint_every: str = "25"
    gpus: str = "1"
    keep_weights: str = "all"
    tracker: str = ""


PARAMS, IDENTITY = {"lr": 1e-6, "title": "Опыт", "run_dir": ""}, {"policy_sha256": "a"}


def opened(params, run_dir, identity):
    with open_run(Some(**params), run_dir, identity):
        pass


def state(folder):
    """Every file below it: its content, and when it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# Whose it is


def test_a_folder_is_opened_again_by_the_same_experiment_alone(tmp_path):
    opened(PARAMS, tmp_path / "run", IDENTITY)
    for key in (
        "title",
        "run_dir",
        "workers",
        "gpus",
        "checkpoint_every",
        "keep_weights",
        "tracker",
    ):
        opened(PARAMS | {key: "other"}, tmp_path / "run", IDENTITY)
    with pytest.raises(ConfigError, match=r"lr: 1e-06 there, 1\.0 asked for"):
        opened(PARAMS | {"lr": 1.0}, tmp_path / "run", IDENTITY)
    with pytest.raises(ConfigError, match="policy_sha256: 'a' there, 'b' asked for"):
        opened(PARAMS, tmp_path / "run", {"policy_sha256": "b"})


def test_a_parameter_that_came_later_has_its_default_in_an_earlier_folder(tmp_path):
    run = tmp_path / "run"
    opened(PARAMS, run, IDENTITY)
    earlier = "title: Опыт\nrun_dir: ''\n"  # before there was an lr
    seal_text(run / "params.yaml", earlier)
    opened({"title": "Опыт", "lr": 1e-4}, run, IDENTITY)
    with pytest.raises(ConfigError, match=r"lr: 0\.0001 there, 1e-06 asked for"):
        opened(PARAMS, run, IDENTITY)
    assert (run / "params.yaml").read_text() == earlier


@pytest.mark.parametrize("name", ["params.yaml", "meta.json"])
def test_what_says_what_a_folder_holds_must_be_whole(tmp_path, name):
    opened(PARAMS, tmp_path / "run", IDENTITY)
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedError, match=f"{name}: is not what was written .* delete all of"):
        opened(PARAMS, tmp_path / "run", IDENTITY)


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "weights"])
def test_results_without_parameters_are_anothers(tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"is another run's folder \(it has no params\.yaml\)"):
        opened(PARAMS, tmp_path / "run", IDENTITY)
    assert list((tmp_path / "run").iterdir()) == [tmp_path / "run" / name]


@pytest.fixture
def older(tmp_path):
    """A run folder as it was before results had names, beside what its experiments shared."""
    run = tmp_path / "runs" / "old"
    seal_json(run / "meta.json", {"commit": "2d9677d", "identity": IDENTITY})
    seal_text(run / "params.yaml", "lr: 1.0e-06\n")
    seal_json(run / "summary.json", {"sft_reward": {"mean": 0.5, "stderr": 0.1, "n": 8}})
    with appearing(run / "weights" / "warp", 1) as weights:
        (weights / "model.safetensors").write_text("weights")
    (run / "steps").mkdir()
    (run / "steps" / "iteration_1_run_1.jsonl").write_text('{"step": 1}\n')
    seal_json(tmp_path / "runs" / "sft" / "0123" / "completions.json", [])
    return run


def test_a_folder_of_an_older_version_is_refused_and_nothing_in_it_is_touched(
    older, make_tiny_params
):
    before = state(older.parent)
    config = WarpConfig(**make_tiny_params(run_dir=str(older)))
    for call in (
        lambda: opened(PARAMS, older, IDENTITY),
        lambda: run_warp(config),
        lambda: run_front(config),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value) == (
            f"run_dir: {str(older)!r} was made by an older version, which this one does not "
            "continue; its summary.json and weights stay readable: move the folder away (and the "
            "folder sft beside it), or choose another run_dir"
        )
        assert state(older.parent) == before
    assert {path.name for path in older.parent.iterdir()} == {"old", "sft"}


def test_the_project_is_found_from_any_folder_in_it(monkeypatch):
    root = Path(__file__).parent.parent.parent
    for folder in (root, root / "notebooks", root / "reports" / "text"):
        monkeypatch.chdir(folder)
        assert project_root() == root
    monkeypatch.chdir("/")
    with pytest.raises(FileNotFoundError, match="is not inside a clone of the project"):
        project_root()


# Computed once


@pytest.fixture
def compute(tmp_path):
    """Computes a summary with a table beside it; notes when it did, and when it asked for room."""
    done = []

    @contextmanager
    def resources(meanwhile):
        done.append(("room", "folder there" if (tmp_path / "run").exists() else "no folder"))
        meanwhile()
        yield

    def results():
        done.append("computed")
        seal_text(tmp_path / "run" / "table.txt", "1 2 3")
        seal_json(tmp_path / "run" / "summary.json", {"x": 1})
        return {"x": 1}

    def call(params=PARAMS, meanwhile=lambda: None):
        done.clear()
        names = ["summary.json", "table.txt"]
        about = Some(**params), tmp_path / "run", IDENTITY, names, resources(meanwhile)
        return computed_once(*about, results), list(done)

    return call


def test_what_is_there_is_not_computed_again(compute, tmp_path):
    assert compute() == ({"x": 1}, [("room", "no folder"), "computed"])
    before = state(tmp_path)
    assert compute() == ({"x": 1}, [])
    assert state(tmp_path) == before
    with pytest.raises(ConfigError, match="holds another experiment"):
        compute(PARAMS | {"lr": 1.0})


def test_what_another_process_has_computed_meanwhile_is_not_computed_again(compute, tmp_path):
    def other():
        with open_run(Some(**PARAMS), tmp_path / "run", IDENTITY):
            seal_text(tmp_path / "run" / "table.txt", "theirs")
            seal_json(tmp_path / "run" / "summary.json", {"x": "theirs"})

    assert compute(meanwhile=other) == ({"x": "theirs"}, [("room", "no folder")])


@pytest.mark.parametrize("name", ["summary.json", "table.txt"])
def test_a_result_that_is_missing_is_computed_and_one_that_is_spoilt_is_named(
    name, compute, tmp_path
):
    compute()
    path = tmp_path / "run" / name
    path.write_text("{}")
    with pytest.raises(DamagedError, match=f"{name}: is not what was written .* delete it"):
        compute()
    path.unlink()
    assert compute() == ({"x": 1}, [("room", "folder there"), "computed"])


# Who works in it


def test_the_time_of_all_attempts_is_added_up(tmp_path):
    assert seconds_of(tmp_path / "run") == 0
    for attempts in (1, 2):
        with open_run(Some(), tmp_path / "run", {}):
            time.sleep(0.2)
        assert 0.2 * attempts <= seconds_of(tmp_path / "run") < 0.2 * attempts + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_with_what_to_do_and_its_time_counts(number, tmp_path):
    def work():
        time.sleep(0.1)
        signal.raise_signal(number)
        time.sleep(5)

    with pytest.raises(Interrupted) as caught, open_run(Some(), tmp_path / "run", {}):
        work()
    assert str(caught.value) == (
        f"{tmp_path / 'run'}: stopped; all that was done is kept, and the same command goes on "
        "from there"
    )
    assert 0.1 <= seconds_of(tmp_path / "run") < 2
    opened({}, tmp_path / "run", {})


def test_an_interruption_that_says_more_is_left_as_it_is(tmp_path):
    with (
        pytest.raises(Interrupted, match=r"^stopped: run 2$"),
        open_run(Some(), tmp_path / "run", {}),
    ):
        raise Interrupted("stopped: run 2")


def test_what_killed_processes_had_begun_to_write_is_removed(tmp_path):
    opened({}, tmp_path / "run", {})
    weights = tmp_path / "run" / "weights"
    (weights / ".warp-abcd1234.tmp" / "warp").mkdir(parents=True)
    (weights / "iteration_1" / ".run_1-abcd1234.tmp").mkdir(parents=True)
    others = [tmp_path / "run" / name / ".a-abcd1234.tmp" for name in ("store", "another_run")]
    others.append(tmp_path / "run" / ".app-settings")
    for path in others:
        path.mkdir(parents=True)
    opened({}, tmp_path / "run", {})
    assert list(weights.iterdir()) == [weights / "iteration_1"]
    assert list((weights / "iteration_1").iterdir()) == []
    assert all(path.is_dir() for path in others)


HOLD = """
import sys, time
from pathlib import Path
from warp_core.store import run_folder
from warp_core.store.parameters import RunParameters
run_folder.describe_machine = dict  # which would import torch
with run_folder.open_run(RunParameters(), Path(sys.argv[1]), {}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_one_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "PATIENCE", 0.1)
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    child = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="another process is at work in it"):
        opened({}, tmp_path / "run", {})
    child.kill()
    child.communicate()
    opened({}, tmp_path / "run", {})


def test_a_folder_says_what_it_was_made_with(tmp_path):
    opened(PARAMS, tmp_path / "run", IDENTITY)
    meta = sealed_json(tmp_path / "run" / "meta.json")
    assert meta == run_folder.describe_machine() | {"layout": 2, "identity": IDENTITY}


def test_who_waited_for_a_folder_that_became_anothers_meanwhile_is_refused(tmp_path, monkeypatch):
    """Between the check and the lock another program has the folder to itself."""
    first, room = [True], run_folder.make_room

    def late(*about):
        room(*about)
        if first.pop():
            first.append(False)
            opened({"lr": 1.0}, tmp_path / "run", {})

    monkeypatch.setattr(run_folder, "make_room", late)
    with pytest.raises(ConfigError, match="holds another experiment"):
        opened({"lr": 2.0}, tmp_path / "run", {})
