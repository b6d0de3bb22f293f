"""An experiment that is killed, at any moment, and then run again ends with the same bits.

The process is a fork of this one, which kills itself (SIGKILL) at the n-th call of a function; the
moments lie in the rollout, the gradient, the update, the writing of checkpoints and weights, the
merge, the evaluation and the front.
"""

import importlib
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from warp_core import files, warp
from warp_core.config import WarpConfig
from warp_core.errors import Interrupted
from warp_core.files import read_jsonl, seal_json, sealed_json
from warp_core.models import load_weights
from warp_core.warp import run_front, run_warp

ETAS = [0.0, 0.5, 1.0]
MOMENTS = [
    # line 6 to 9
    ("warp_core.train.sample", 1), ("warp_core.train.sample", 5), ("warp_core.train.logprob", 4),
    ("torch.Tensor.backward", 2), ("torch.Tensor.backward", 11), ("torch.optim.Adam.step", 1),
    ("torch.optim.Adam.step", 6), ("warp_core.train.ema_update_", 3), ("warp_core.warp.append_jsonl", 2),
    # a checkpoint: its tensors, its checksums, its names on disk, the end of the one before
    ("warp_core.checkpoint.save_file", 1), ("warp_core.checkpoint.save_file", 2),
    ("warp_core.files._digest", 2), ("warp_core.files._to_disk", 3), ("warp_core.files._to_disk", 9),
    ("warp_core.files._to_disk", 17), ("warp_core.checkpoint.shutil.rmtree", 1),
    # the weights of a run, the merge
    ("warp_core.models.save_file", 1), ("warp_core.models.save_file", 2),
    ("warp_core.warp.slerp_with_angles", 1), ("warp_core.warp.slerp_with_angles", 2),
    ("warp_core.warp.liti", 2), ("warp_core.warp.load_weights", 3),
    # the evaluation, its files
    ("warp_core.warp.complete", 2), ("warp_core.warp.evaluate_pair", 1),
    ("warp_core.warp.seal_jsonl", 3), ("warp_core.warp.seal_json", 1), ("warp_core.files.os.fsync", 60),
    # the front
    ("warp_core.warp.complete", 3), ("warp_core.warp.front_summary", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, make_tiny_params) -> WarpConfig:
    """Runs 1 and 2 of three steps, a checkpoint at each, and the front."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    config = WarpConfig(**make_tiny_params(run_dir=str(folder), steps=3, checkpoint_every=1))
    run_warp(config)
    run_front(config, etas=ETAS)
    return config


def killed_at(config: WarpConfig, moment: str, call: int) -> None:
    """Run it in a fork that ends at that call; asserts that it came to it."""
    child = os.fork()
    if child == 0:
        try:
            holder_name, name = moment.rsplit(".", 1)
            holder = resolved(holder_name)
            original, calls = getattr(holder, name), []

            def deadly(*args, **options):
                calls.append(1)
                if len(calls) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args, **options)

            setattr(holder, name, deadly)
            run_warp(config)
            run_front(config, etas=ETAS)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"{moment} was not called {call} times"


def resolved(path: str):
    """A module, or what is in one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        holder, name = path.rsplit(".", 1)
        return getattr(resolved(holder), name)


def content(config: WarpConfig):
    """Weights, numbers and texts of an experiment; not its times."""
    weights = {path.parent.relative_to(config.folder).as_posix(): load_weights(path.parent)
               for path in config.folder.rglob("model.safetensors")}  # fmt: skip
    rows = [{k: v for k, v in row.items() if k != "seconds"}
            for row in read_jsonl(config.folder / "metrics.jsonl")]  # fmt: skip
    texts = [(config.folder / name).read_bytes()
             for name in ("summary.json", "samples.jsonl", "front.jsonl")]  # fmt: skip
    return weights, rows, texts


def expect_same(ours: WarpConfig, theirs: WarpConfig) -> None:
    (weights, *others), (wanted, *those) = content(ours), content(theirs)
    assert weights.keys() == wanted.keys()
    for name in wanted:
        assert all(torch.equal(weights[name][key], wanted[name][key]) for key in wanted[name]), name
    assert others == those


@pytest.mark.parametrize(("moment", "call"), MOMENTS)
def test_killed_and_run_again_it_ends_with_the_same_bits(moment, call, undisturbed, tmp_path):
    config = undisturbed.model_copy(update={"run_dir": str(tmp_path / "run")})
    killed_at(config, moment, call)
    run_warp(config)
    run_front(config, etas=ETAS)
    expect_same(config, undisturbed)
    assert not (config.folder / "checkpoints").exists()
    hidden = [path.name for path in config.folder.rglob(".*")]
    assert hidden in ([], [".lock"])  # nothing that was begun is left


def test_killed_again_and_again_it_gets_to_the_end(undisturbed, tmp_path):
    """Each attempt gets one step further than the one before."""
    config = undisturbed.model_copy(update={"run_dir": str(tmp_path / "run")})
    for step in range(1, 4):
        killed_at(config, "torch.Tensor.backward", 2)
        assert len(read_jsonl(config.folder / "steps" / "iteration_1_run_1.jsonl")) == step
    run_warp(config)
    run_front(config, etas=ETAS)
    expect_same(config, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("moment", "call", "step"),
    [
        ("warp_core.train.sample", 3, 2),
        ("torch.optim.Adam.step", 2, 2),
        ("torch.optim.Adam.step", 3, 3),
    ],
)
def test_a_signal_ends_with_a_checkpoint_and_says_how_to_go_on(
    number, moment, call, step, undisturbed, tmp_path, monkeypatch
):
    """An update under way is made whole first, the last one too."""
    run_dir = tmp_path / "run"
    config = undisturbed.model_copy(update={"run_dir": str(run_dir), "checkpoint_every": 0})
    holder, name = resolved(moment.rsplit(".", 1)[0]), moment.rsplit(".", 1)[1]
    original, calls = getattr(holder, name), []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == call:
            signal.raise_signal(number)
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, interrupted)
        with pytest.raises(
            Interrupted, match=f"run 1 behind step {step}, run 2 behind step 0; all "
        ):
            run_warp(config)
    states = [path.name for path in (run_dir / "checkpoints").rglob("step_*")]
    assert states == [f"step_{step}"]
    run_warp(config)
    run_front(config, etas=ETAS)
    expect_same(config, undisturbed)


def test_a_checkpoint_has_the_anchor_and_goes_on_with_it(undisturbed, tmp_path):
    """An EMA that began anew at the policy would have no KL to it in the next step."""
    config = undisturbed.model_copy(update={"run_dir": str(tmp_path / "run")})
    killed_at(config, "warp_core.train.sample", 3)
    (state,) = (config.folder / "checkpoints").rglob("state.safetensors")
    tensors = warp.load_file(state)
    names = {name.split(".", 1)[1] for name in tensors if name.startswith("policy.")}
    moved = [name for name in names if not torch.equal(tensors[f"policy.{name}"],
                                                       tensors[f"anchor.{name}"])]  # fmt: skip
    assert moved
    assert any(name.startswith("adam.") for name in tensors)
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


spoilings = pytest.mark.parametrize("spoil", [flip, cut, Path.unlink])


@spoilings
@pytest.mark.parametrize("name", ["state.safetensors", "steps.jsonl", files.SUMS])
def test_a_damaged_checkpoint_is_named_and_passed_over(spoil, name, undisturbed, tmp_path):
    config = undisturbed.model_copy(update={"run_dir": str(tmp_path / "run")})
    killed_at(config, "warp_core.train.sample", 3)
    (path,) = (config.folder / "checkpoints").rglob(name)
    spoil(path)
    named = r"(state.safetensors|steps.jsonl)" if name == files.SUMS else name
    with pytest.warns(UserWarning, match=f"passed over, and computed anew: .*{named}.*: is "):
        run_warp(config)
    run_front(config, etas=ETAS)
    expect_same(config, undisturbed)


@spoilings
@pytest.mark.parametrize("name", ["iteration_1/run_2/model.safetensors",
                                  "iteration_2/run_1/steps.jsonl"])  # fmt: skip
def test_damaged_weights_are_named_and_made_again_once_deleted(spoil, name, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "run")
    config = undisturbed.model_copy(update={"run_dir": str(folder)})
    (folder / "summary.json").unlink()
    damaged = folder / "weights" / name
    spoil(damaged)
    with pytest.raises(
        files.DamagedError, match=f"{damaged.name}: is .* delete the folder {damaged.parent},"
    ):
        run_warp(config)
    shutil.rmtree(damaged.parent)
    run_warp(config)
    run_front(config, etas=ETAS)
    expect_same(config, undisturbed)


@pytest.mark.parametrize("spoil", [flip, cut])
@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "samples.jsonl", "front.jsonl"])
def test_damaged_results_are_named_and_made_again_once_deleted(spoil, name, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "run")
    config = undisturbed.model_copy(update={"run_dir": str(folder)})
    spoil(folder / name)
    read = run_front if name == "front.jsonl" else run_warp
    with pytest.raises(files.DamagedError, match=f"{name}: is not what was written"):
        read(config)
    (folder / name).unlink()
    run_warp(config)
    run_front(config, etas=ETAS)
    expect_same(config, undisturbed)


def test_a_damaged_policy_or_reward_model_is_refused(undisturbed, tmp_path):
    policy = shutil.copytree(undisturbed.folder / "weights" / "warp", tmp_path / "policy")
    flip(policy / "model.safetensors")
    config = undisturbed.model_copy(
        update={"policy": str(policy), "run_dir": str(tmp_path / "run")}
    )
    with pytest.raises(warp.ConfigError, match=r"policy: .* is not what was written"):
        run_warp(config)
    assert not (tmp_path / "run").exists()


def test_a_summary_that_somebody_edited_is_refused(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.folder, tmp_path / "run")
    summary = sealed_json(folder / "summary.json")
    summary["warp_reward"]["mean"] += 1
    files.write_json(folder / "summary.json", summary)
    config = undisturbed.model_copy(update={"run_dir": str(folder)})
    with pytest.raises(files.DamagedError, match=r"summary\.json"):
        run_warp(config)
    seal_json(folder / "summary.json", summary)  # on purpose, with its checksum, it is
    assert run_warp(config) == summary
