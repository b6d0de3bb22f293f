"""The merge from folders to a folder, and its command line, against the same merge in memory."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from warp_core.config import WarpConfig
from warp_core.merge import MergeError, liti, main, merge_files, slerp, task_angles
from warp_core.store import tensors
from warp_core.store.tensors import INDEX
from warp_core.warp import run_warp
from warp_core.world.models import load_policy, save_policy, set_weights, weights_of

WEIGHTS = "model.safetensors"
MB = 2**20


def load_weights(folder):
    """All that the folder's safetensors hold, whatever its index says."""
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for theta in files for name, tensor in theta.items()}


def write_weights(folder, theta):
    """In place of those that are there."""
    save_file({name: w.clone() for name, w in theta.items()}, folder / WEIGHTS, {"format": "pt"})


def write_shards(folder, theta, cut):
    """Two files, with an index, in place of the one that is there."""
    (folder / WEIGHTS).unlink(missing_ok=True)
    names = sorted(theta)
    weight_map = {}
    for k, part in enumerate((names[:cut], names[cut:]), start=1):
        file = f"model-{k}-of-2.safetensors"
        save_file({name: theta[name] for name in part}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def same_bits(theta, other):
    return theta.keys() == other.keys() and all(
        theta[name].dtype == other[name].dtype and torch.equal(theta[name], other[name])
        for name in other
    )


@pytest.fixture
def folders(policy_folders, tmp_path):
    """θ_init and three runs from it."""
    theta_init = shutil.copytree(policy_folders("llama"), tmp_path / "init")
    generator = torch.Generator().manual_seed(0)
    for m in (1, 2, 3):
        folder = shutil.copytree(theta_init, tmp_path / f"run_{m}")
        theta = load_weights(folder)
        moved = {k: v + 0.01 * torch.randn(v.shape, generator=generator) for k, v in theta.items()}
        write_weights(folder, moved)
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
    assert same_bits(load_weights(tmp_path / "out"), wanted)
    in_memory = task_angles(start, thetas, granularity)
    assert angles.keys() == in_memory.keys()
    assert all(np.array_equal(angles[group], in_memory[group]) for group in angles)
    load_policy(str(tmp_path / "out"))  # config and tokenizer are there


def test_liti_of_files_is_liti(folders, tmp_path):
    theta_init, (run, *_) = folders
    merge_files(theta_init, [run], tmp_path / "out", eta=0.3)
    wanted = liti(load_weights(theta_init), load_weights(run), 0.3)
    assert same_bits(load_weights(tmp_path / "out"), wanted)


def test_tensors_larger_than_a_piece_are_merged_piece_by_piece(folders, tmp_path, monkeypatch):
    theta_init, runs = folders
    start, *thetas = (load_weights(folder) for folder in (theta_init, *runs))
    wanted = liti(start, slerp(start, thetas), 0.3)
    monkeypatch.setattr(tensors, "PIECE", 7)
    merge_files(theta_init, runs, tmp_path / "out", eta=0.3)
    merged = load_weights(tmp_path / "out")
    for name in wanted:  # the Gram matrix is summed in another order
        torch.testing.assert_close(merged[name], wanted[name], rtol=1e-6, atol=1e-7)


# Types


@pytest.mark.parametrize("eta", [1.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_runs_are_merged_into_a_smaller_theta_init_as_it_is_stored(
    dtype, eta, folders, tmp_path
):
    theta_init, runs = folders
    start = {name: w.to(dtype) for name, w in load_weights(theta_init).items()}
    write_weights(theta_init, start)
    merge_files(theta_init, runs, tmp_path / "out", eta=eta)
    merged = load_weights(tmp_path / "out")
    exact_start, *exact_ends = (
        {name: w.double() for name, w in load_weights(folder).items()}
        for folder in (theta_init, *runs)
    )
    exact = slerp(exact_start, exact_ends)
    # One rounding of θ_slerp, and if η ≠ 1 another one of what LITI makes of it.
    roundings = 1 if eta == 1 else 2
    for name, wanted in liti(exact_start, exact, eta).items():
        assert merged[name].dtype == dtype
        error = (merged[name].double() - wanted).abs()
        large = torch.maximum(wanted.abs(), exact[name].abs())
        smallest = torch.finfo(dtype).smallest_normal
        assert (error <= roundings * (0.51 * torch.finfo(dtype).eps * large + smallest)).all()
    in_memory = slerp(start, [load_weights(run) for run in runs])
    assert same_bits(merged, in_memory if eta == 1 else liti(start, in_memory, eta))


def test_a_float_against_an_integer_is_refused_by_name(folders, tmp_path):
    theta_init, runs = folders
    theta = load_weights(runs[1])
    name = "model.norm.weight"
    write_weights(runs[1], theta | {name: theta[name].long()})
    with pytest.raises(MergeError, match=rf"θ\^2 and θ_init .* different types: {name}$"):
        merge_files(theta_init, runs, tmp_path / "out")


# Shards


def test_shards_and_types_are_kept_and_need_not_be_cut_alike(folders, tmp_path):
    theta_init, runs = folders
    start, *thetas = (
        {name: w.bfloat16() for name, w in load_weights(folder).items()} | {"n": torch.tensor(7)}
        for folder in (theta_init, *runs)
    )
    for cut, folder, theta in zip(
        (5, 9, 12, 7), (theta_init, *runs), (start, *thetas), strict=True
    ):
        write_shards(folder, theta, cut)  # layers lie across the files
    merge_files(theta_init, runs, tmp_path / "out")
    wanted = slerp(start, thetas)
    for file in theta_init.glob("*.safetensors"):
        names = load_file(file).keys()
        assert same_bits(load_file(tmp_path / "out" / file.name), {n: wanted[n] for n in names})
    assert (tmp_path / "out" / INDEX).read_bytes() == (theta_init / INDEX).read_bytes()
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("stray", [WEIGHTS, "consolidated.safetensors"])
def test_a_folder_with_an_index_is_merged_by_it_alone(stray, folders, tmp_path, monkeypatch):
    theta_init, runs = folders
    start, *thetas = (load_weights(folder) for folder in (theta_init, *runs))
    for folder, theta in ((theta_init, start), (runs[0], thetas[0])):
        write_shards(folder, theta, 6)
        # Of the same names and shapes, and of one more.
        wrong = {name: torch.full_like(w, torch.nan) for name, w in theta.items()}
        save_file(wrong | {"rope.freqs": torch.zeros(3)}, folder / stray)
    asked_for = []
    monkeypatch.setattr("warp_core.store.files.make_room", lambda _, size: asked_for.append(size))
    merge_files(theta_init, runs, tmp_path / "out")
    assert same_bits(load_weights(tmp_path / "out"), slerp(start, thetas))
    assert not (tmp_path / "out" / stray).exists()
    assert asked_for == [sum(path.stat().st_size for path in (tmp_path / "out").iterdir())]


def test_several_files_without_an_index_are_refused(folders, tmp_path):
    theta_init, runs = folders
    write_shards(runs[1], load_weights(runs[1]), 6)
    (runs[1] / INDEX).unlink()
    said = rf"run_2: has 2 \.safetensors files and no {INDEX}"
    with pytest.raises(MergeError, match=said):
        merge_files(theta_init, runs, tmp_path / "out")


# Tied weights


@pytest.mark.parametrize("twice", [["init"], ["run_1"], ["init", "run_2"], ["run_1", "run_2"]])
@pytest.mark.parametrize("granularity", ["layer", "model"])
def test_tied_weights_may_be_stored_under_one_name_or_under_both(
    twice, granularity, policy_folders, tmp_path
):
    tied, other = "model.embed_tokens.weight", "lm_head.weight"
    start = load_weights(policy_folders("qwen2"))
    assert tied in start
    assert other not in start
    generator = torch.Generator().manual_seed(0)
    thetas = [
        {name: w + 0.01 * torch.randn(w.shape, generator=generator) for name, w in start.items()}
        for _ in range(2)
    ]
    for name, theta in (("init", start), ("run_1", thetas[0]), ("run_2", thetas[1])):
        folder = shutil.copytree(policy_folders("qwen2"), tmp_path / name)
        write_weights(folder, theta | {other: theta[tied]} if name in twice else theta)
    runs = [tmp_path / "run_1", tmp_path / "run_2"]
    angles = merge_files(tmp_path / "init", runs, tmp_path / "out", granularity=granularity)
    wanted = slerp(start, thetas, granularity=granularity)
    if "init" in twice:  # written as θ_init is
        wanted = wanted | {other: wanted[tied]}
    assert same_bits(load_weights(tmp_path / "out"), wanted)
    once = task_angles(start, thetas, granularity)
    assert angles.keys() == once.keys()
    assert all(np.array_equal(angles[group], once[group]) for group in angles)


# What an experiment saved, merged with what it started from


@pytest.fixture
def experiment(make_tiny_params, tmp_path):
    """Policy's folder -> the weights of an experiment of one iteration that started from it."""

    def run(policy: Path) -> Path:
        params = make_tiny_params(policy=str(policy), iterations=1, run_dir=str(tmp_path / "run"))
        run_warp(WarpConfig(**params))
        return tmp_path / "run" / "weights"

    return run


def merge_its_runs(policy, weights, out):
    runs = [str(weights / "iteration_1" / f"run_{m}") for m in (1, 2)]
    assert main([str(policy), *runs, "--out", str(out)]) == 0
    load_policy(str(out))


def test_a_mixture_of_experts_is_merged_with_what_it_started_from(
    experiment, policy_folders, tmp_path
):
    policy = policy_folders("mixtral")
    weights = experiment(policy)
    merge_its_runs(policy, weights, tmp_path / "out")
    merged = load_weights(tmp_path / "out")
    assert any("experts.2.w1.weight" in name for name in merged)
    assert merged.keys() == load_weights(policy).keys()
    assert same_bits(merged, load_weights(weights / "iteration_1" / "slerp"))
    start = load_weights(policy)
    assert not all(torch.equal(merged[name], start[name]) for name in start)


def test_runs_are_merged_with_the_sharded_bf16_policy_that_they_started_from(
    experiment, policy_folders, tmp_path
):
    model, tokenizer = load_policy(str(policy_folders("llama")))
    policy = tmp_path / "sharded"
    model.bfloat16().save_pretrained(policy, max_shard_size="5KB")
    tokenizer.save_pretrained(policy)
    assert len(list(policy.glob("*.safetensors"))) > 2
    weights = experiment(policy)
    merge_its_runs(policy, weights, tmp_path / "out")
    merged = load_weights(tmp_path / "out")
    ours = load_weights(weights / "iteration_1" / "slerp")
    assert {w.dtype for w in ours.values()} == {torch.float32}
    assert same_bits(merged, {name: w.bfloat16() for name, w in ours.items()})
    start = load_weights(policy)
    assert not all(torch.equal(merged[name], start[name]) for name in start)
    files = {path.name for path in policy.glob("*.safetensors")}
    assert {path.name for path in (tmp_path / "out").glob("*.safetensors")} == files


# What cannot be merged


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


def test_a_folder_that_is_there_is_not_overwritten(folders):
    theta_init, runs = folders
    with pytest.raises(MergeError, match="is there already"):
        merge_files(theta_init, runs, runs[0])


def test_sealed_weights_are_checked_and_the_seal_is_not_handed_on(policy_folders, tmp_path, capsys):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    start, run = tmp_path / "start", tmp_path / "run"
    save_policy(model, tokenizer, start)
    set_weights(model, {name: w + 1 for name, w in weights_of(model).items()})
    save_policy(model, tokenizer, run)
    command = [str(start), str(run), "--eta", "0.5", "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    load_policy(str(tmp_path / "out"))
    data = bytearray((run / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (run / WEIGHTS).write_bytes(data)
    assert main([*command, str(tmp_path / "other")]) == 1
    assert f"{run / WEIGHTS}: is not what was written" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), float("inf")])
def test_lam_is_a_share_and_eta_may_go_beyond_one(share, folders, tmp_path):
    theta_init, runs = folders
    if share != 1.1:
        with pytest.raises(MergeError, match=r"eta: .* a number from 0 on"):
            merge_files(theta_init, runs, tmp_path / "out", eta=share)
    with pytest.raises(MergeError, match=r"lam: .* a number from 0 to 1"):
        merge_files(theta_init, runs[:2], tmp_path / "out", lam=share)


@pytest.mark.parametrize(
    ("runs_given", "lam", "said"),
    [
        (0, None, "M must be at least 1"),
        (1, 0.5, "lam weighs the second of two"),
        (3, 0.5, "lam weighs the second of two"),
    ],
)
def test_there_are_runs_and_lam_weighs_the_second_of_two(runs_given, lam, said, folders, tmp_path):
    theta_init, runs = folders
    with pytest.raises(MergeError, match=said):
        merge_files(theta_init, runs[:runs_given], tmp_path / "out", lam=lam)
    assert not (tmp_path / "out").exists()


# What it takes

# Not getrusage, whose figure begins with that of the process that started it.
MEASURED = """
import sys
from pathlib import Path
from warp_core.merge import main
status = main(sys.argv[1:])
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
sys.exit(status)
"""


def test_the_memory_of_a_merge_is_that_of_pieces_whatever_the_size_of_the_weights(tmp_path):
    """θ_init and four runs of 50 MB each, half of it in one tensor."""
    rng = np.random.default_rng(0)
    for name in ("init", "run"):
        (tmp_path / name).mkdir()
        large = torch.from_numpy(rng.standard_normal(6 * MB, np.float32))
        layers = {f"layers.{k}.w": large[k * MB : (k + 1) * MB].clone() for k in range(6)}
        save_file({"embed.weight": large, **layers}, tmp_path / name / WEIGHTS)
    command = [str(tmp_path / "init"), *4 * [str(tmp_path / "run")], "--out", str(tmp_path / "out")]
    measured = [sys.executable, "-c", MEASURED, *command]
    said = subprocess.run(measured, capture_output=True, text=True, check=True).stdout
    assert int(said.splitlines()[-1]) * 1024 < 120 * MB
    assert (tmp_path / "out" / WEIGHTS).stat().st_size > 48 * MB


def test_the_command_says_what_it_did_and_needs_no_torch(folders, tmp_path):
    theta_init, runs = folders
    python = [sys.executable, "-X", "importtime", "-m", "warp_core.merge"]
    command = [*python, str(theta_init), *map(str, runs[:2]), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "2 runs merged in" in result.stdout
    assert "angles" in result.stdout
    imported = {line.split()[-1] for line in result.stderr.splitlines()}
    assert "numpy" in imported
    assert not {"torch", "transformers", "pydantic", "yaml"} & imported
    assert (tmp_path / "out" / WEIGHTS).is_file()
