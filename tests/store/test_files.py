"""Files: whole or not at all, read back as written; on a disk that is full, closed, or left by a kill."""

import gc
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from warp_core import merge
from warp_core.config import WarpConfig
from warp_core.store import files
from warp_core.store.errors import DamagedError, StorageError
from warp_core.store.files import (
    SUMS,
    appearing,
    append_jsonl,
    make_room,
    read_json,
    read_jsonl,
    seal_json,
    seal_jsonl,
    sealed_json,
    sealed_jsonl,
    sweep,
    verify,
    write_bytes,
    write_json,
    write_jsonl,
    write_text,
)
from warp_core.warp import run_warp
from warp_core.world.models import save_policy

MB = 2**20
# Everything that str.splitlines takes for the end of a line, and more that a model may write.
TEXTS = [
    "a\nb",
    "a\r\nb",
    "\x0b\x0c\x1c\x1d\x1e",
    "\x85",
    "\u2028\u2029",
    "\ufffd",
    "«кино» 🎬",
    '"\\',
    "",
    "\0",
]


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


@pytest.mark.parametrize("missing", [True, False])
def test_a_damaged_part_of_a_folder_names_the_folder_it_cannot_be_made_again_without(
    missing, tmp_path
):
    path, folder = tmp_path / "result" / "rows.jsonl", tmp_path / "result"
    seal_jsonl(path, [{"x": 1}])
    assert sealed_jsonl(path, folder) == [{"x": 1}]
    path.unlink() if missing else path.write_text("")
    for read in (sealed_jsonl, sealed_json):
        with pytest.raises(DamagedError, match=rf"rows\.jsonl: is .*; delete the folder {folder},"):
            read(path, folder)


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


# A disk that is full or closed


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={3 * MB}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    gc.collect()  # weights that an error still holds are maps of files on it
    subprocess.run(["umount", str(folder)], check=True)


def test_a_file_that_does_not_fit_is_refused_and_the_old_one_stays(small_disk):
    path = small_disk / "results" / "file"
    write_bytes(path, b"old")
    with pytest.raises(
        StorageError, match=rf"{path}: {4 * MB} bytes .* needed, \d+ bytes are free"
    ):
        write_bytes(path, bytes(4 * MB))
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def policies():
    """One that fits on the small disk, and one that does not, of its weights' size in bytes."""
    tokenizer = tiny.make_tokenizer()
    small, large = (tiny.make_policy("gpt2", len(tokenizer), n_embd=n) for n in (16, 256))
    return (small, tokenizer), (large, tokenizer), 4 * large.num_parameters()


def test_weights_that_do_not_fit_are_refused_before_they_are_written(small_disk, policies):
    small, large, size = policies
    assert size > 3 * MB
    save_policy(*small, small_disk / "first")
    with pytest.raises(StorageError, match=rf"second: {size} bytes .* are needed"):
        save_policy(*large, small_disk / "second")
    assert [path.name for path in small_disk.iterdir()] == ["first"]
    verify(small_disk / "first")


def test_a_disk_that_fills_up_meanwhile_harms_nothing(small_disk, policies, monkeypatch):
    """The room was there when it was asked for."""
    small, large, _ = policies
    save_policy(*small, small_disk / "first")
    monkeypatch.setattr(files, "make_room", lambda *_: None)
    with pytest.raises(StorageError, match="bytes are free on its disk; make room"):
        save_policy(*large, small_disk / "second")
    assert [path.name for path in small_disk.iterdir()] == ["first"]
    verify(small_disk / "first")


def test_a_merge_that_does_not_fit_is_refused(small_disk, policy_folders, capsys):
    policy = str(policy_folders("gpt2"))
    (small_disk / "filler").write_bytes(bytes(int(2.99 * MB)))
    assert merge.main([policy, policy, "--out", str(small_disk / "out")]) == 1
    assert f"{small_disk / 'out'}: " in (said := capsys.readouterr().err)
    assert "are needed" in said
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_an_experiment_that_does_not_fit_is_refused_before_it_starts(small_disk, tiny_params):
    config = WarpConfig(**tiny_params | {"run_dir": str(small_disk / "run"), "iterations": 50})
    with pytest.raises(StorageError, match=r"store: \d+ bytes .* are needed"):
        run_warp(config)
    assert list(small_disk.iterdir()) == []


def test_an_experiment_whose_disk_fills_up_goes_on_once_there_is_room(
    small_disk, tiny_params, monkeypatch, tmp_path
):
    config = WarpConfig(**tiny_params | {"run_dir": str(small_disk / "run")})
    filler = small_disk / "filler"
    filler.write_bytes(bytes(int(2.8 * MB)))
    with monkeypatch.context() as patch:  # the room was there when it was asked for
        patch.setattr("warp_core.engine.driver.make_room", lambda *_: None)
        with pytest.raises(StorageError, match="bytes"):
            run_warp(config)
    assert (small_disk / "run" / "params.yaml").is_file()
    assert not (small_disk / "run" / "summary.json").exists()
    filler.unlink()
    whole = config.model_copy(update={"run_dir": str(tmp_path / "whole")})
    assert run_warp(whole) == run_warp(config)
    ours, theirs = (load_file(c.folder / "weights/warp/model.safetensors") for c in (config, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(StorageError, match="cannot be written to; choose another folder"):
        make_room(tmp_path / "runs" / "one", 1)
    assert not (tmp_path / "runs").exists()


def test_a_read_only_file_system_is_named(small_disk, tiny_params):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    config = WarpConfig(**tiny_params | {"run_dir": str(small_disk / "run")})
    with pytest.raises(
        StorageError, match=r"store: .* cannot be written to; choose another folder"
    ):
        run_warp(config)


# What a killed process left


def test_what_killed_writers_left_is_swept_away_and_nothing_else(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from warp_core.store.files import appearing
with appearing(Path({str(tmp_path)!r}) / "run" / "run_1", 0) as staging:
    (staging / "model").write_bytes(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", script])
    kept = [tmp_path / "run" / name for name in (".lock", ".keep-this", "run_2")]
    for path in kept:
        path.write_text("")
    assert len(list((tmp_path / "run").iterdir())) == 4
    sweep(tmp_path / "run")
    assert sorted((tmp_path / "run").iterdir()) == sorted(kept)


def test_of_one_name_nothing_else_is_swept_away(tmp_path):
    swept = ".run-abcd1234.tmp"
    others = [".run_2-abcd1234.tmp", ".a-run-abcd1234.tmp", ".run-settings"]  # of other programs
    kept = ["run", "deeper", *others]
    for name in (swept, *kept):
        (tmp_path / name).mkdir()
    (tmp_path / "deeper" / swept).mkdir()
    sweep(tmp_path, ".run-*")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "deeper", ".run-settings"}
    assert (tmp_path / "deeper" / swept).is_dir()


def test_a_folder_appears_whole_or_not_at_all_and_replaces_what_was_there(tmp_path):
    folder = tmp_path / "folder"

    def write(content, stopped=False):
        with appearing(folder, 1) as staging:
            (staging / content).write_text(content)
            assert not (folder / content).exists()
            if stopped:
                raise KeyboardInterrupt

    for content, there in (("old", []), ("new", ["folder"])):
        with pytest.raises(KeyboardInterrupt):
            write(content, stopped=True)
        assert [path.name for path in tmp_path.iterdir()] == there
        write(content)
    assert {path.name for path in folder.iterdir()} == {"new", SUMS}
    verify(folder, "new")


def test_a_sealed_folder_is_checked_by_the_usual_tool(tmp_path):
    with appearing(tmp_path / "folder", 1) as staging:
        (staging / "a").write_text("a")
        (staging / "b").write_text("b")
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path / "folder").returncode == 0
    (tmp_path / "folder" / "b").write_text("c")
    assert subprocess.run(check, cwd=tmp_path / "folder", capture_output=True).returncode == 1
    with pytest.raises(DamagedError, match=r"b: is not what was written .*; delete the folder"):
        verify(tmp_path / "folder")


def test_the_folders_in_a_sealed_folder_are_sealed_too(tmp_path):
    with appearing(tmp_path / "result", 1) as staging:
        (staging / "weights").mkdir()
        (staging / "weights" / "model").write_text("w")
        (staging / "row").write_text("r")
    verify(tmp_path / "result", "row")
    verify(tmp_path / "result" / "weights", "model")
    (tmp_path / "result" / "weights" / "model").unlink()
    with pytest.raises(DamagedError, match=r"model: is missing; delete the folder \S+/weights,"):
        verify(tmp_path / "result" / "weights")
