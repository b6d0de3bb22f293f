"""Files on a disk that is full, closed, or left by a process that was killed."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from warp_core import files, merge_files
from warp_core.config import WarpConfig
from warp_core.errors import StorageError
from warp_core.files import appearing, make_room, sweep, verify, write_bytes
from warp_core.models import load_policy, load_weights, save_policy
from warp_core.warp import run_warp

MB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MB of its own."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={3 * MB}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
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


def test_weights_that_do_not_fit_are_refused_before_they_are_written(small_disk, policy_folders):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    save_policy(model, tokenizer, small_disk / "first")
    theta = {"large": torch.zeros(MB)}  # 4 MB
    with pytest.raises(StorageError, match=rf"second: {4 * MB} bytes .* are needed"):
        save_policy(model, tokenizer, small_disk / "second", theta)
    assert [path.name for path in small_disk.iterdir()] == ["first"]
    verify(small_disk / "first")


def test_a_disk_that_fills_up_meanwhile_harms_nothing(small_disk, policy_folders, monkeypatch):
    """The room was there when it was asked for."""
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    save_policy(model, tokenizer, small_disk / "first")
    monkeypatch.setattr(files, "make_room", lambda *_: None)
    with pytest.raises(StorageError, match="bytes are free on its disk; make room"):
        save_policy(model, tokenizer, small_disk / "second", {"large": torch.zeros(MB)})
    assert [path.name for path in small_disk.iterdir()] == ["first"]
    verify(small_disk / "first")


def test_a_merge_of_files_that_does_not_fit_is_refused(small_disk, policy_folders, capsys):
    policy = str(policy_folders("gpt2"))
    (small_disk / "filler").write_bytes(bytes(int(2.99 * MB)))
    assert merge_files.main([policy, policy, "--out", str(small_disk / "out")]) == 1
    assert f"{small_disk / 'out'}: " in (said := capsys.readouterr().err)
    assert "are needed" in said
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_an_experiment_that_does_not_fit_is_refused_before_it_starts(small_disk, tiny_params):
    config = WarpConfig(**tiny_params | {"run_dir": str(small_disk / "run"), "iterations": 50})
    with pytest.raises(StorageError, match=r"run: \d+ bytes .* are needed"):
        run_warp(config)
    assert list(small_disk.iterdir()) == []


def test_an_experiment_whose_disk_fills_up_goes_on_once_there_is_room(
    small_disk, tiny_params, monkeypatch, tmp_path
):
    config = WarpConfig(**tiny_params | {"run_dir": str(small_disk / "run")})
    filler = small_disk / "filler"
    filler.write_bytes(bytes(int(2.8 * MB)))
    with monkeypatch.context() as patch:
        patch.setattr("warp_core.warp.make_room", lambda *_: None)
        with pytest.raises(StorageError, match="bytes"):
            run_warp(config)
    filler.unlink()
    run_warp(config)
    whole = config.model_copy(update={"run_dir": str(tmp_path / "whole")})
    assert run_warp(whole) == run_warp(config)
    ours, theirs = (load_weights(c.folder / "weights" / "warp") for c in (config, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(StorageError, match="cannot be written to; choose another folder"):
        make_room(tmp_path / "runs" / "one", 1)
    assert not (tmp_path / "runs").exists()


def test_a_read_only_file_system_is_named(small_disk, tiny_params):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    config = WarpConfig(**tiny_params | {"run_dir": str(small_disk / "run")})
    with pytest.raises(StorageError, match=r"run: .* cannot be written to; choose another folder"):
        run_warp(config)


def test_what_killed_writers_left_is_swept_away_and_nothing_else(tmp_path):
    script = f"""
import os, signal, sys
from pathlib import Path
from warp_core.files import appearing, write_bytes
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


def test_a_sealed_folder_is_checked_by_the_usual_tool(tmp_path):
    with appearing(tmp_path / "folder", 1) as staging:
        (staging / "a").write_text("a")
        (staging / "b").write_text("b")
    check = ["sha256sum", "--check", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=tmp_path / "folder").returncode == 0
    (tmp_path / "folder" / "b").write_text("c")
    assert subprocess.run(check, cwd=tmp_path / "folder", capture_output=True).returncode == 1
    with pytest.raises(
        files.DamagedError, match=r"b: is not what was written .*; delete the folder"
    ):
        verify(tmp_path / "folder")
