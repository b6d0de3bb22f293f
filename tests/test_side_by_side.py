"""Runs side by side: memory asked for before the start, and processes that die."""

import os
import signal
from pathlib import Path

import pytest
import torch

from warp_core import side_by_side, warp
from warp_core.config import WarpConfig
from warp_core.errors import ConfigError, TrainingError
from warp_core.files import append_jsonl, read_jsonl
from warp_core.models import load_policy, load_weights
from warp_core.side_by_side import Died, needed_bytes, run_all
from warp_core.warp import run_warp, workers_of


def note(folder: Path, what: str) -> None:
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "raised":
        raise ValueError("said so")
    (folder / what).write_text(str(os.getpid()))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_call_raises_takes_no_other_with_it(tmp_path, workers):
    names = ["a", "raised", "b"]
    errors = run_all(note, [(tmp_path, name) for name in names], workers)
    assert [type(error) for error in errors] == [type(None), ValueError, type(None)]
    pids = [(tmp_path / name).read_text() for name in "ab"]
    assert (pids[0] == str(os.getpid())) == (workers == 1)


def test_a_process_that_is_killed_takes_no_other_with_it(tmp_path):
    errors = run_all(note, [(tmp_path, name) for name in ("killed", "a", "b")], 3)
    assert [type(error) for error in errors] == [Died, type(None), type(None)]
    assert (tmp_path / "a").is_file()
    assert (tmp_path / "b").is_file()


TRAIN_ONE = warp._train_one


def killed_in_run_2(config, run_dir, iteration, run, threads):
    if run == 2:
        append_jsonl(warp._log_path(run_dir, iteration, run), {"iteration": 1, "run": 2, "step": 1})
        os.kill(os.getpid(), signal.SIGKILL)
    TRAIN_ONE(config, run_dir, iteration, run, threads)


def test_a_run_that_is_killed_is_named_the_other_is_kept_and_both_end_as_ever(
    make_tiny_params, policy_folders, tmp_path, monkeypatch
):
    params = make_tiny_params(policy=str(policy_folders("gpt2")), iterations=1)
    config, whole = (
        WarpConfig(**params | {"run_dir": str(tmp_path / name), "workers": workers})
        for name, workers in (("a", 2), ("b", 1))
    )
    try:
        torch.set_num_threads(2)
        with monkeypatch.context() as patch:
            (config.folder / "steps").mkdir(parents=True)
            patch.setattr(warp, "_train_one", killed_in_run_2)
            with pytest.raises(TrainingError, match=r"iteration 1, run 2, behind step 1: .* died"):
                run_warp(config)
        runs = config.folder / "weights" / "iteration_1"
        assert [path.name for path in runs.iterdir()] == ["run_1"]
        kept = (runs / "run_1" / "model.safetensors").stat().st_mtime_ns
        assert {row["run"] for row in read_jsonl(config.folder / "metrics.jsonl")} == {1, 2}
        run_warp(config)
        assert (runs / "run_1" / "model.safetensors").stat().st_mtime_ns == kept
        run_warp(whole)
    finally:
        torch.set_num_threads(1)
    for path in ("iteration_1/run_2", "warp"):
        torch.testing.assert_close(
            load_weights(config.folder / "weights" / path),
            load_weights(whole.folder / "weights" / path), rtol=0, atol=0,
        )  # fmt: skip


# Memory


def test_more_runs_than_memory_holds_are_refused_with_the_numbers(tiny_params, monkeypatch):
    config = WarpConfig(**tiny_params | {"workers": 2})
    world = warp.World(config)
    asked = (world.sft, config, world.prompt_tokens)
    each = needed_bytes(*asked)
    for there, advice in ((1.5 * each, "workers: 1 fits"), (0.5 * each, "wants less")):
        monkeypatch.setattr(side_by_side, "available_bytes", lambda there=there: int(there))
        with pytest.raises(ConfigError, match="workers: 2 runs side by side want about") as caught:
            run_warp(config)
        assert advice in str(caught.value)
        assert not config.folder.exists()
    monkeypatch.setattr(side_by_side, "available_bytes", lambda: 2 * each)
    side_by_side.refuse_too_many(*asked, workers=2)


def test_the_default_experiments_need_is_the_one_that_was_measured():
    """4.2 GB on two cores (LOG.md, 2026-11-23): 135M parameters, prompts of 16 tokens."""
    model, _ = load_policy("asset:smollm2-135m-instruct")
    assert needed_bytes(model, WarpConfig(), 16) == pytest.approx(4.2e9, rel=0.1)


def test_workers_are_the_cores_but_no_more_than_runs_that_differ(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert workers_of(WarpConfig(runs=8)) == 4
    assert workers_of(WarpConfig(runs=3)) == 3
    assert workers_of(WarpConfig(runs=3, workers=2)) == 2
    assert workers_of(WarpConfig(runs=3, workers=9)) == 3
    assert workers_of(WarpConfig(runs=3, shared_run_seed=True)) == 1
    monkeypatch.setattr(warp, "best_device", lambda: torch.device("cuda"))
    assert workers_of(WarpConfig(runs=3)) == 1
    assert workers_of(WarpConfig(runs=3, workers=2)) == 2
