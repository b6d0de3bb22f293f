"""The run folder's files: whole or not at all, and read back as they were written."""

import json
import math
import os

import pytest

from warp_core import warp
from warp_core.config import ConfigError, WarpConfig
from warp_core.runs import (
    append_jsonl,
    load_summaries,
    open_run,
    read_json,
    read_jsonl,
    write_json,
    write_jsonl,
    write_text,
)
from warp_core.train import TrainingError
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
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_opened_again_by_the_same_experiment_alone(tmp_path):
    params, identity = {"lr": 1e-6, "title": "Опыт", "run_dir": ""}, {"policy_sha256": "a"}
    open_run(params, tmp_path / "run", identity)
    open_run(params | {"title": "Иначе", "run_dir": "x"}, tmp_path / "run", identity)
    with pytest.raises(ConfigError, match=r"lr: 1e-06 there, 1\.0 asked for"):
        open_run(params | {"lr": 1.0}, tmp_path / "run", identity)
    with pytest.raises(ConfigError, match="policy_sha256: 'a' there, 'b' asked for"):
        open_run(params, tmp_path / "run", {"policy_sha256": "b"})


def test_summaries_are_those_of_the_finished_runs(tmp_path):
    write_json(tmp_path / "b" / "summary.json", {"x": 2})
    write_json(tmp_path / "a" / "summary.json", {"x": 1})
    (tmp_path / "unfinished").mkdir()
    named = load_summaries(tmp_path, ["b", "unfinished", "a"])
    assert list(named.items()) == [("b", {"x": 2}), ("a", {"x": 1})]
    with pytest.raises(FileNotFoundError, match=r"none of unfinished, c is finished"):
        load_summaries(tmp_path, ["unfinished", "c"])


def test_half_a_line_of_a_killed_run_does_not_hide_why_the_next_attempt_stopped(
    tiny_params, monkeypatch
):
    monkeypatch.setattr(warp.os, "sched_getaffinity", lambda _: {0})  # one run after the other

    def diverged(*_, **__):
        raise TrainingError("step 1: the loss is not finite")

    monkeypatch.setattr(warp, "train_run", diverged)
    config = WarpConfig(**tiny_params)
    log = config.folder / "steps" / "iteration_1_run_2.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text(json.dumps({"iteration": 1, "run": 2, "step": 1}) + '\n{"iteration": 1, "ru')
    with pytest.raises(TrainingError, match="iteration 1, run 1, step 1"):
        run_warp(config)
