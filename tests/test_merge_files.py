"""The merge from files to a file, against the same merge in memory."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from warp_core import merge
from warp_core import merge_files as merge_files_module
from warp_core.merge import MergeError, liti, slerp, task_angles
from warp_core.merge_files import main, merge_files
from warp_core.models import load_policy, save_policy, weights_of

WEIGHTS = "model.safetensors"


def load_weights(folder):
    """Of any folder; the library's own wants the seal that a merge does not hand on."""
    return load_file(folder / WEIGHTS)


@pytest.fixture
def folders(policy_folders, tmp_path):
    """θ_init and three runs from it."""
    theta_init = shutil.copytree(policy_folders("llama"), tmp_path / "init")
    generator = torch.Generator().manual_seed(0)
    for m in (1, 2, 3):
        folder = shutil.copytree(theta_init, tmp_path / f"run_{m}")
        theta = load_weights(folder)
        moved = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in theta.items()}
        save_file(moved, folder / WEIGHTS, metadata={"format": "pt"})
    return theta_init, [tmp_path / f"run_{m}" for m in (1, 2, 3)]


@pytest.mark.parametrize("m", [1, 2, 3])
@pytest.mark.parametrize("granularity", ["layer", "tensor", "model"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_files_give_what_memory_gives_bit_for_bit(m, granularity, eta, folders, tmp_path):
    theta_init, runs = folders
    angles = merge_files(theta_init, runs[:m], tmp_path / "out", None, granularity, eta)
    start, thetas = load_weights(theta_init), [load_weights(run) for run in runs[:m]]
    wanted = slerp(start, thetas, granularity=granularity)
    if eta != 1:
        wanted = liti(start, wanted, eta)
    merged = load_weights(tmp_path / "out")
    assert merged.keys() == wanted.keys()
    assert all(torch.equal(merged[name], wanted[name]) for name in wanted)
    in_memory = task_angles(start, thetas, granularity)
    assert angles.keys() == in_memory.keys()
    assert all(np.array_equal(angles[group], in_memory[group]) for group in angles)
    load_policy(str(tmp_path / "out"))  # config and tokenizer are there


def test_shards_and_types_are_kept(folders, tmp_path):
    theta_init, runs = folders
    start = {k: v.bfloat16() for k, v in load_weights(theta_init).items()}
    thetas = [{k: v.bfloat16() for k, v in load_weights(run).items()} for run in runs]
    start["steps"] = torch.tensor(7)
    for theta in thetas:
        theta["steps"] = torch.tensor(7)
    names = sorted(start)
    for folder, theta in zip((theta_init, *runs), (start, *thetas), strict=True):
        (folder / WEIGHTS).unlink()
        cut = len(names) // (2 if folder == theta_init else 3)  # layers lie across the files
        for k, part in enumerate((names[:cut], names[cut:]), start=1):
            save_file({n: theta[n] for n in part}, folder / f"model-{k}-of-2.safetensors")
    merge_files(theta_init, runs, tmp_path / "out")
    wanted = slerp(start, thetas)
    for file in theta_init.glob("*.safetensors"):
        merged, was = load_file(tmp_path / "out" / file.name), load_file(file)
        assert merged.keys() == was.keys()
        for name in merged:
            assert merged[name].dtype == was[name].dtype
            assert torch.equal(merged[name], wanted[name])


def spoil(case, theta_init, runs):
    theta = load_weights(runs[1])
    first = next(iter(theta))
    if case == "no weights":
        (runs[1] / WEIGHTS).unlink()
    elif case == "damaged":
        (runs[1] / WEIGHTS).write_bytes((runs[1] / WEIGHTS).read_bytes()[:-9])
    elif case == "absent":
        shutil.rmtree(runs[1])
    else:
        tensor = theta.pop(first)
        theta |= {
            "name": {"other": tensor},
            "NaN": {first: torch.full_like(tensor, torch.nan)},
            "type": {first: tensor.to(torch.float8_e4m3fn)},
        }[case]
        save_file(theta, runs[1] / WEIGHTS)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no weights", "there is no .safetensors file"),
        ("damaged", "is damaged"),
        ("absent", "there is no .safetensors file"),
        ("name", "have different tensors"),
        ("NaN", "NaN or infinite"),
        ("type", "is of type F8_E4M3; these can be merged: F64, F32"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(case, said, folders, tmp_path, capsys):
    theta_init, runs = folders
    spoil(case, theta_init, runs)
    before = sorted(tmp_path.iterdir())
    assert main([str(theta_init), *map(str, runs), "--out", str(tmp_path / "out")]) == 1
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_there_is_not_overwritten(folders, tmp_path):
    theta_init, runs = folders
    with pytest.raises(MergeError, match="is there already"):
        merge_files(theta_init, runs, runs[0])


def test_sealed_weights_are_checked_and_the_seal_is_not_handed_on(policy_folders, tmp_path, capsys):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    start, run = tmp_path / "start", tmp_path / "run"
    save_policy(model, tokenizer, start)
    save_policy(model, tokenizer, run, {k: v + 1 for k, v in weights_of(model).items()})
    command = [str(start), str(run), "--eta", "0.5", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    load_policy(str(tmp_path / "out"))
    data = bytearray((run / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (run / WEIGHTS).write_bytes(data)
    assert main([*command, str(tmp_path / "other")]) == 1
    assert f"{run / WEIGHTS}: is not what was written" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_lie_between_0_and_1(share, folders, tmp_path):
    theta_init, runs = folders
    with pytest.raises(MergeError, match=r"eta: .* a number from 0 to 1"):
        merge_files(theta_init, runs, tmp_path / "out", eta=share)
    with pytest.raises(MergeError, match=r"lam: .* a number from 0 to 1"):
        merge_files(theta_init, runs[:2], tmp_path / "out", lam=share)


@pytest.mark.parametrize(("runs_given", "lam"), [(0, None), (1, 0.5), (3, 0.5)])
def test_there_are_runs_and_lam_weighs_the_second_of_two(runs_given, lam, folders, tmp_path):
    theta_init, runs = folders
    with pytest.raises(MergeError, match=f"{runs_given} runs given"):
        merge_files(theta_init, (runs * 2)[:runs_given], tmp_path / "out", lam=lam)
    assert not (tmp_path / "out").exists()


def test_tensors_larger_than_a_piece_are_merged_piece_by_piece(folders, tmp_path, monkeypatch):
    theta_init, runs = folders
    for module in (merge, merge_files_module):
        monkeypatch.setattr(module, "PIECE", 7)
    merge_files(theta_init, runs, tmp_path / "out", eta=0.3)
    start, *thetas = (load_weights(folder) for folder in (theta_init, *runs))
    wanted = liti(start, slerp(start, thetas), 0.3)
    for name, tensor in load_weights(tmp_path / "out").items():
        assert torch.equal(tensor, wanted[name])


def test_the_command_says_what_it_did_and_needs_no_torch(folders, tmp_path):
    theta_init, runs = folders
    command = [sys.executable, "-X", "importtime", "-m", "warp_core.merge_files", str(theta_init),
               *map(str, runs[:2]), "--out", str(tmp_path / "out")]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 runs merged in" in result.stdout
    assert "angles" in result.stdout
    assert not {"torch", "transformers"} & {line.split()[-1] for line in result.stderr.splitlines()}
    assert (tmp_path / "out" / WEIGHTS).is_file()
