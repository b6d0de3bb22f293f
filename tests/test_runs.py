"""The run folder's files: whole or not at all, and read back as they were written."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from warp_core import runs, warp
from warp_core.config import WarpConfig
from warp_core.errors import BusyError, ConfigError, DamagedError, StorageError, TrainingError
from warp_core.files import (
    SUMS,
    append_jsonl,
    read_json,
    read_jsonl,
    seal_json,
    sealed_json,
    write_json,
    write_jsonl,
    write_text,
)
from warp_core.runs import load_summaries, open_run, seconds_of
from warp_core.warp import run_warp

# Everything that str.splitlines takes for the end of a line, and more that a model may write.
TEXTS = ["a\nb", "a\r\nb", "\x0b\x0c\x1c\x1d\x1e", "\x85", "\u2028\u2029", "\ufffd", "«кино» 🎬",
         '"\\', "", "\0"]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_from_json_lines(tmp_path, text):
    rows = [{"prompt": text, "n": 1}, {"prompt": "next", "n": 2}]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    assert read_jsonl(tmp_path / "samples.jsonl") == rows
    append_jsonl(tmp_path / "steps.jsonl", rows[0])
    append_jsonl(tmp_path / "steps.jsonl", rows[1])
    assert read_jsonl(tmp_path / "steps.jsonl") == rows


def test_a_line_that_was_cut_off_is_no_row(tmp_path):
    for step in (1, 2):
        append_jsonl(tmp_path / "steps.jsonl", {"step": step})
    whole = (tmp_path / "steps.jsonl").read_text()
    (tmp_path / "steps.jsonl").write_text(whole[:-4])
    assert read_jsonl(tmp_path / "steps.jsonl") == [{"step": 1}]


def test_no_file_has_no_rows(tmp_path):
    assert read_jsonl(tmp_path / "absent.jsonl") == []


def test_an_appended_row_is_there_at_once(tmp_path):
    append_jsonl(tmp_path / "steps.jsonl", {"step": 1})
    assert read_jsonl(tmp_path / "steps.jsonl") == [{"step": 1}]


def test_a_sealed_file_is_whole_whenever_its_writer_is_killed(tmp_path, monkeypatch):
    """Stopped behind each of the renames that replacing a sealed file takes."""
    path, replace = tmp_path / "summary.json", Path.replace
    for stop in range(1, 4):
        seal_json(path, {"x": "old"})
        with monkeypatch.context() as patch:
            renames = []

            def rename(source, target, stop=stop, renames=renames):
                replace(source, target)
                renames.append(target)
                if len(renames) == stop:
                    raise KeyboardInterrupt

            patch.setattr(Path, "replace", rename)
            with pytest.raises(KeyboardInterrupt):
                seal_json(path, {"x": "new"})
        assert sealed_json(path) == {"x": "old" if stop == 1 else "new"}
    seal_json(path, {"x": "last"})
    assert len((tmp_path / SUMS).read_text().splitlines()) == 1


@pytest.mark.parametrize("spoil", [lambda b: b[:-1], lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_a_sealed_file_that_was_changed_is_named(tmp_path, spoil):
    seal_json(tmp_path / "summary.json", {"x": 1})
    path = tmp_path / "summary.json"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DamagedError, match=r"summary\.json: is not what was written .* delete it"):
        sealed_json(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_json_is_strict_and_a_refused_write_keeps_the_old_file(tmp_path, bad):
    write_json(tmp_path / "summary.json", {"mean": 1.0})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "summary.json", {"mean": bad})
    assert read_json(tmp_path / "summary.json") == {"mean": 1.0}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_write_that_fails_keeps_the_old_file_and_leaves_no_rest(tmp_path, monkeypatch):
    write_text(tmp_path / "file", "old")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(StorageError, match=r"file: 3 bytes .* needed"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def opened(params, run_dir, identity):
    with open_run(params, run_dir, identity):
        pass


def test_a_folder_is_opened_again_by_the_same_experiment_alone(tmp_path):
    params, identity = {"lr": 1e-6, "title": "Опыт", "run_dir": ""}, {"policy_sha256": "a"}
    opened(params, tmp_path / "run", identity)
    opened(params | {"title": "Иначе", "run_dir": "x"}, tmp_path / "run", identity)
    with pytest.raises(ConfigError, match=r"lr: 1e-06 there, 1\.0 asked for"):
        opened(params | {"lr": 1.0}, tmp_path / "run", identity)
    with pytest.raises(ConfigError, match="policy_sha256: 'a' there, 'b' asked for"):
        opened(params, tmp_path / "run", {"policy_sha256": "b"})


@pytest.mark.parametrize("name", ["params.yaml", "meta.json"])
def test_what_says_what_a_folder_holds_must_be_whole(tmp_path, name):
    opened({"lr": 1e-6}, tmp_path / "run", {"policy_sha256": "a"})
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DamagedError, match=f"{name}: is not what was written .* delete all of"):
        opened({"lr": 1e-6}, tmp_path / "run", {"policy_sha256": "a"})


def test_the_time_of_all_attempts_is_added_up(tmp_path):
    for attempts in (1, 2):
        with open_run({}, tmp_path / "run", {}):
            time.sleep(0.2)
        assert 0.2 * attempts <= seconds_of(tmp_path / "run") < 0.2 * attempts + 1


HOLD = """
import sys, time
from pathlib import Path
from warp_core.runs import open_run
with open_run({}, Path(sys.argv[1]), {}):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_one_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PATIENCE", 0.1)
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], text=True,
                             stdout=subprocess.PIPE)  # fmt: skip
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match="another process is at work in it"):
        opened({}, tmp_path / "run", {})
    child.kill()
    child.wait()
    opened({}, tmp_path / "run", {})


def test_summaries_are_those_of_the_finished_runs(tmp_path):
    seal_json(tmp_path / "b" / "summary.json", {"x": 2})
    seal_json(tmp_path / "a" / "summary.json", {"x": 1})
    (tmp_path / "unfinished").mkdir()
    named = load_summaries(tmp_path, ["b", "unfinished", "a"])
    assert list(named.items()) == [("b", {"x": 2}), ("a", {"x": 1})]
    with pytest.raises(FileNotFoundError, match=r"none of unfinished, c is finished"):
        load_summaries(tmp_path, ["unfinished", "c"])


def test_half_a_line_of_a_killed_run_does_not_hide_why_the_next_attempt_stopped(
    tiny_params, monkeypatch
):
    def diverged(*_, **__):
        raise TrainingError("step 1: the loss is not finite")

    monkeypatch.setattr(warp, "train_run", diverged)
    config = WarpConfig(**tiny_params)
    log = config.folder / "steps" / "iteration_1_run_2.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"iteration": 1, "run": 2, "step": 1}) + '\n{"iteration": 1, "ru')
    with pytest.raises(TrainingError, match="iteration 1, run 1, step 1"):
        run_warp(config)
