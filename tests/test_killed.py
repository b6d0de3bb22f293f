"""An experiment that is killed, at any moment, and then run again ends with the same bits.

The process is a fork of this one, which kills itself (SIGKILL) at a call of some function; the
moments lie in the rollout, the gradient, the update, the writing of checkpoints and results, the
merge, the evaluation, what the run folder shows, the dropping of weights, and the front.
"""

import importlib
import itertools
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from warp_core.config import WarpConfig
from warp_core.store import files
from warp_core.store.errors import ConfigError, DamagedError, Interrupted
from warp_core.store.files import read_jsonl, seal_json, sealed_json
from warp_core.warp import Experiment, run_front, run_warp

ETAS = [0.0, 0.3]
# A function, and at which of its calls: the n-th, or the first with such arguments.
LINES_6_TO_9 = [
    ("warp_core.train.sample", 1),
    ("warp_core.train.sample", 5),
    ("warp_core.train.logprob", 4),
    ("torch.Tensor.backward", 6),
    ("torch.optim.Adam.step", 6),
    ("warp_core.train.ema_update_", 3),
    ("warp_core.store.checkpoint.append_jsonl", 2),
]
CHECKPOINT = [
    ("warp_core.store.checkpoint.save_file", 1),
    ("warp_core.store.checkpoint.save_file", 2),
    ("warp_core.store.files._digest", r"step_1-.*steps\.jsonl"),
    ("warp_core.store.files._to_disk", r"step_2-.*state"),
    ("pathlib.Path.rename", r"\.step_2-"),
    ("shutil.rmtree", r"/step_1'"),  # the one before
]
RESULTS = [
    ("transformers.modeling_utils.safe_save_file", 1),  # θ_sft
    ("transformers.modeling_utils.safe_save_file", 3),  # a run
    ("warp_core.store.files._write_sums", r"\.run-.*origin\.json"),
    ("warp_core.store.files._to_disk", r"\.run-.*model\.safetensors"),
    ("pathlib.Path.rename", r"\.run-"),
    ("shutil.rmtree", r"unfinished/run-"),
]
MERGE = [
    ("warp_core.engine.pieces.combine_piece", 40),
    ("warp_core.store.tensors._write", 50),
    ("pathlib.Path.rename", r"\.weights-"),
]
EVALUATION = [
    ("warp_core.folders.complete", 2),
    ("warp_core.folders.policy_kl", 1),
    ("warp_core.folders.save_file", 2),
    ("pathlib.Path.rename", r"\.evaluation-"),
]
RUN_FOLDER = [
    ("warp_core.warp.seal_jsonl", 1),
    ("warp_core.warp.seal_jsonl", 2),
    ("warp_core.warp.seal_json", 1),
    ("pathlib.Path.replace", r"summary\.json"),
    ("warp_core.store.results.os.link", 3),
    ("pathlib.Path.rename", r"weights/iteration_1/\.run_2-"),
]
FRONT = [
    ("warp_core.folders.complete", 3),
    ("pathlib.Path.rename", r"merged-\w+/weights'"),  # its weights are dropped
    ("shutil.rmtree", r"\.merged-[\w.-]+',\), \{'ign"),
    ("warp_core.warp.front_summary", 1),
]
MOMENTS = [*LINES_6_TO_9, *CHECKPOINT, *RESULTS, *MERGE, *EVALUATION, *RUN_FOLDER, *FRONT]
DROPPING = [
    ("warp_core.store.results.Store.drop", r"kind='run'"),
    ("pathlib.Path.rename", r"run-\w+/weights'"),
    ("shutil.rmtree", r"\.run-[\w.-]+',\), \{'ign"),
    ("warp_core.folders.policy_kl", 1),
]


@pytest.fixture(scope="module", autouse=True)
def no_waiting_for_the_disk():
    """What a process that is killed has written is in the system's memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def make_undisturbed(tmp_path_factory, make_tiny_params):
    """So many iterations of two runs of three steps, a checkpoint at each, and the front."""

    def made(iterations):
        folder = tmp_path_factory.mktemp("undisturbed") / "runs" / "run"
        small = {"iterations": iterations, "steps": 3, "checkpoint_every": 1}
        config = WarpConfig(**make_tiny_params(run_dir=str(folder), **small))
        finish(config)
        return config

    return made


@pytest.fixture(scope="module")
def undisturbed(make_undisturbed) -> WarpConfig:
    return make_undisturbed(iterations=1)


def finish(config: WarpConfig) -> None:
    run_warp(config)
    run_front(config, etas=ETAS)


def killed_at(config: WarpConfig, moment: str, call: int | str) -> None:
    """Run it in a fork that ends at that call; asserts that it came to it."""
    child = os.fork()
    if child == 0:
        try:
            at_call(moment, call, lambda: os.kill(os.getpid(), signal.SIGKILL), setattr)
            finish(config)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{moment}: there was no call {call}"


def at_call(moment: str, call: int | str, do, setattr_) -> None:
    """Do something at that call of the function, before it."""
    holder, name = resolved(moment.rsplit(".", 1)[0]), moment.rsplit(".", 1)[1]
    original, calls = getattr(holder, name), itertools.count(1)

    def watched(*args, **options):
        n = next(calls)
        if n == call if isinstance(call, int) else re.search(call, str((args, options))):
            do()
        return original(*args, **options)

    setattr_(holder, name, watched)


def resolved(path: str):
    """A module, or what is in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        holder, name = path.rsplit(".", 1)
        return getattr(resolved(holder), name)


def content(config: WarpConfig):
    """Weights, numbers and texts of an experiment; not its times."""
    weights = {
        path.parent.relative_to(config.folder).as_posix(): load_file(path)
        for path in config.folder.rglob("model.safetensors")
    }
    rows = read_jsonl(config.folder / "metrics.jsonl")
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    names = ("summary.json", "samples.jsonl", "front.jsonl")
    return weights, rows, [(config.folder / name).read_bytes() for name in names]


def expect_same(ours: WarpConfig, theirs: WarpConfig) -> None:
    (weights, *others), (wanted, *those) = content(ours), content(theirs)
    assert weights.keys() == wanted.keys()
    for name in wanted:
        assert all(torch.equal(weights[name][key], wanted[name][key]) for key in wanted[name]), name
    assert others == those


def elsewhere(config: WarpConfig, tmp_path: Path, **changes) -> WarpConfig:
    return config.model_copy(update={"run_dir": str(tmp_path / "runs" / "run")} | changes)


def store_of(config: WarpConfig) -> Path:
    return config.folder.parent / "store"


def unfinished(config: WarpConfig, name: str) -> list[Path]:
    return sorted((store_of(config) / "unfinished").rglob(name))


def expect_nothing_begun(config: WarpConfig) -> None:
    hidden = {path.name for path in config.folder.parent.rglob(".*")}
    assert hidden <= {".lock"}
    assert not unfinished(config, "*")


@pytest.mark.parametrize(("moment", "call"), MOMENTS)
def test_killed_and_run_again_it_ends_with_the_same_bits(moment, call, undisturbed, tmp_path):
    config = elsewhere(undisturbed, tmp_path)
    killed_at(config, moment, call)
    finish(config)
    expect_same(config, undisturbed)
    expect_nothing_begun(config)


@pytest.mark.parametrize(("moment", "call"), DROPPING)
def test_killed_while_weights_are_dropped_it_ends_with_the_same_result(
    moment, call, undisturbed, tmp_path
):
    config = elsewhere(undisturbed, tmp_path, keep_weights="result")
    killed_at(config, moment, call)
    finish(config)
    expect_result(config, undisturbed)
    assert len(list(store_of(config).glob("*/weights"))) == 4  # θ_sft, r, θ_slerp, WARP


def expect_result(config: WarpConfig, theirs: WarpConfig) -> None:
    """The numbers, but for the runs beside the front; the weights of the result alone."""
    (weights, rows, (_, samples, _)), (wanted, *those) = content(config), content(theirs)
    assert weights.keys() == {"weights/warp", f"weights/iteration_{config.iterations}/slerp"}
    for name, theta in weights.items():
        assert all(torch.equal(theta[key], wanted[name][key]) for key in theta)
    assert (rows, samples) == (those[0], those[1][1])
    ours, full = (sealed_json(each.folder / "summary.json") for each in (config, theirs))
    assert ours == full | {"front_runs": []}
    expect_nothing_begun(config)


@pytest.mark.parametrize("keep", ["all", "result"])
def test_killed_in_the_second_iteration_it_trains_nothing_of_the_first_again(
    keep, make_undisturbed, tmp_path
):
    theirs = make_undisturbed(iterations=2)
    config = elsewhere(theirs, tmp_path, keep_weights=keep)
    killed_at(config, "torch.Tensor.backward", 11)
    logs = list(store_of(config).glob("run-*/steps.jsonl"))
    assert len(logs) == 3
    before = {log: log.stat().st_mtime_ns for log in logs}
    finish(config)
    assert {log: log.stat().st_mtime_ns for log in logs} == before
    expect_same(config, theirs) if keep == "all" else expect_result(config, theirs)
    expect_nothing_begun(config)


def test_killed_again_and_again_it_gets_to_the_end(undisturbed, tmp_path):
    """Each attempt gets one step further than the one before."""
    config = elsewhere(undisturbed, tmp_path)
    for step in range(1, 4):
        killed_at(config, "torch.Tensor.backward", 2)
        store = store_of(config)
        logs = [*store.glob("unfinished/*/steps.jsonl"), *store.glob("run-*/steps.jsonl")]
        assert sum(len(read_jsonl(log)) for log in logs) == step
    finish(config)
    expect_same(config, undisturbed)


# Signals


def interrupted_at(config, moment, call, number, monkeypatch, said) -> None:
    """Its message, when the signal comes at that call."""
    with monkeypatch.context() as patch:
        at_call(moment, call, lambda: signal.raise_signal(number), patch.setattr)
        with pytest.raises(Interrupted, match=said):
            run_warp(config)


@pytest.mark.parametrize(
    ("number", "moment", "call", "step"),
    [
        (signal.SIGINT, "warp_core.train.sample", 3, 2),
        (signal.SIGTERM, "warp_core.train.sample", 3, 2),
        (signal.SIGTERM, "torch.optim.Adam.step", 2, 2),
        (signal.SIGINT, "torch.optim.Adam.step", 3, 3),
        (signal.SIGINT, "warp_core.folders.write_policy", 1, 3),
    ],
)
def test_a_signal_ends_with_a_checkpoint_and_says_how_to_go_on(
    number, moment, call, step, undisturbed, tmp_path, monkeypatch
):
    """An update under way is made whole first, the last one too."""
    config = elsewhere(undisturbed, tmp_path, checkpoint_every=0)
    said = f"stopped: tiny, iteration 1, run 1 behind step {step}; all of it is kept"
    interrupted_at(config, moment, call, number, monkeypatch, said)
    assert [path.name for path in unfinished(config, "step_*")] == [f"step_{step}"]
    finish(config)
    expect_same(config, undisturbed)


@pytest.mark.parametrize(
    ("moment", "call"),
    [
        ("warp_core.store.checkpoint.append_jsonl", "stopped"),
        ("warp_core.train.set_weights", 1),
        ("warp_core.folders.write_policy", 1),
        ("warp_core.train.sample", 2),
    ],
)
def test_a_signal_while_a_run_is_stopped_by_max_kl_saves_no_weights_that_have_gone_back(
    moment, call, undisturbed, tmp_path, monkeypatch
):
    one = {"max_kl": 1e-3, "runs": 1, "checkpoint_every": 0, "mu": 0.0}
    whole = elsewhere(undisturbed, tmp_path / "whole", **one)
    finish(whole)
    rows = read_jsonl(whole.folder / "metrics.jsonl")
    assert [row.get("stopped") for row in rows] == [None, True]
    config = elsewhere(undisturbed, tmp_path, **one)
    interrupted_at(config, moment, call, signal.SIGINT, monkeypatch, "all of it is kept")
    assert [path.name for path in unfinished(config, "step_*")] == ["step_1"]
    finish(config)
    expect_same(config, whole)


def test_a_checkpoint_has_the_anchor_and_goes_on_with_it(undisturbed, tmp_path):
    """An EMA that began anew at the policy would have no KL to it in the next step."""
    config = elsewhere(undisturbed, tmp_path)
    killed_at(config, "warp_core.train.sample", 3)
    (state,) = unfinished(config, "state.safetensors")
    tensors = load_file(state)
    names = {name.split("/", 1)[1] for name in tensors if name.startswith("policy/")}
    pairs = [(tensors[f"policy/{name}"], tensors[f"ema/{name}"]) for name in names]
    assert any(not torch.equal(policy, anchor) for policy, anchor in pairs)
    assert any(name.startswith("adam/") for name in tensors)
    run_warp(config)
    rows = read_jsonl(config.folder / "metrics.jsonl")
    assert rows[2]["kl_anchor"] != 0
    wanted = read_jsonl(undisturbed.folder / "metrics.jsonl")
    assert [row["kl_anchor"] for row in rows] == [row["kl_anchor"] for row in wanted]


# Damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (flip, "state.safetensors"),
        (Path.unlink, "state.safetensors"),
        (cut, "steps.jsonl"),
        (Path.unlink, files.SUMS),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over(spoil, name, undisturbed, tmp_path):
    config = elsewhere(undisturbed, tmp_path)
    killed_at(config, "warp_core.train.sample", 3)
    (path,) = [path for path in unfinished(config, name) if path.parent.name.startswith("step_")]
    spoil(path)
    named = r"(state.safetensors|steps.jsonl)" if name == files.SUMS else name
    with pytest.warns(UserWarning, match=f"passed over, and computed anew: .*{named}.*: is "):
        finish(config)
    expect_same(config, undisturbed)


def copied(undisturbed: WarpConfig, tmp_path: Path) -> WarpConfig:
    """With its store, links and all."""
    command = ["cp", "-a", str(undisturbed.folder.parent), str(tmp_path / "runs")]
    subprocess.run(command, check=True)
    return elsewhere(undisturbed, tmp_path)


def said_of_damage(config: WarpConfig) -> re.Match[str] | None:
    """What an error tells to delete; None where there is none."""
    try:
        finish(config)
    except (DamagedError, ConfigError) as error:
        return re.search(r"delete (it|all of (\S+)|the folder (\S+)),", str(error))
    return None


BOTH_WAYS, GONE = (flip, cut), (Path.unlink, Path.unlink)


@pytest.mark.parametrize(
    ("kind", "name", "spoilings"),
    [
        ("run", "weights/model.safetensors", BOTH_WAYS),
        ("run", "weights/model.safetensors", GONE),
        ("run", "steps.jsonl", BOTH_WAYS),
        ("run", "origin.json", BOTH_WAYS),
        ("merged", "weights/model.safetensors", BOTH_WAYS),
        ("merged", "angles.json", (flip,)),  # of θ_slerp; LITI has none that are read
        ("evaluation", "answers.jsonl", BOTH_WAYS),
        ("evaluation", "rollouts.safetensors", BOTH_WAYS),
        ("evaluation", "answers.jsonl", GONE),
    ],
)
def test_damaged_results_of_the_store_are_named_and_made_again_once_deleted(
    kind, name, spoilings, undisturbed, tmp_path
):
    """Two at once; weights, too, that nothing reads any more."""
    config = copied(undisturbed, tmp_path)
    store = store_of(config)
    (config.folder / "summary.json").unlink()
    e = Experiment(config)
    thetas, theta_slerp, warp = e.iterations[-1]
    results = {"run": thetas, "merged": [theta_slerp, warp], "evaluation": e.wanted()[-2:]}
    damaged = {
        store / task.name: spoil for task, spoil in zip(results[kind], spoilings, strict=False)
    }
    for folder, spoil in damaged.items():
        spoil(folder / name)
    deleted = []
    while told := said_of_damage(config):
        deleted.append(path := Path(told[2] or told[3]))
        shutil.rmtree(path)
    assert all(any(path.is_relative_to(folder) for path in deleted) for folder in damaged)
    expect_same(config, undisturbed)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (flip, "summary.json"),
        (cut, "summary.json"),
        (flip, "metrics.jsonl"),
        (cut, "samples.jsonl"),
        (flip, "front.jsonl"),
    ],
)
def test_damaged_results_are_named_and_made_again_once_deleted(spoil, name, undisturbed, tmp_path):
    config = copied(undisturbed, tmp_path)
    spoil(config.folder / name)
    read = run_front if name == "front.jsonl" else run_warp
    with pytest.raises(DamagedError, match=f"{name}: is not what was written"):
        read(config)
    (config.folder / name).unlink()
    finish(config)
    expect_same(config, undisturbed)


def test_a_damaged_policy_or_reward_model_is_refused(undisturbed, tmp_path):
    policy = shutil.copytree(undisturbed.folder / "weights" / "warp", tmp_path / "policy")
    flip(policy / "model.safetensors")
    config = elsewhere(undisturbed, tmp_path, policy=str(policy))
    with pytest.raises(ConfigError, match=r"policy: .* is not what was written"):
        run_warp(config)
    assert not (tmp_path / "runs").exists()


def test_a_summary_that_somebody_edited_is_refused(undisturbed, tmp_path):
    config = copied(undisturbed, tmp_path)
    path = config.folder / "summary.json"
    summary = sealed_json(path)
    summary["warp_reward"]["mean"] += 1
    files.write_json(path, summary)
    with pytest.raises(DamagedError, match=r"summary\.json"):
        run_warp(config)
    seal_json(path, summary)  # on purpose, with its checksum, it is
    assert run_warp(config) == summary
