"""The benchmark at tiny sizes, beside stand-ins for the peers."""

import json
import os
import sys
import threading
from pathlib import Path

import pytest

from reports.bench import checkpoints, measure, merge, programs, resume, steps
from reports.bench.config import BenchConfig
from reports.text.performance import PARTS
from warp_core.store.errors import ConfigError

# Answers as a worker of ours or a process of TRL's does, and writes down what it was asked.
STAND_IN = """
import json, sys
who, log, fast = json.loads(sys.argv[-1])
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked.pop("do", "step") == "peak":
        answer = {"gflops": fast[asked["precision"]]}
    else:
        with open(log, "a") as file:
            print(json.dumps([who, asked["threads"]]), file=file)
        answer = {"seconds": 1.0, "tokens": 8, "operations": {"prefill": 3}}
    print(json.dumps(answer), flush=True)
"""

MERGEKIT = """
import json, shutil, sys
from pathlib import Path
assert sys.argv[1] == "--quiet"
recipe, out = json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3])
assert recipe["merge_method"] == "nuslerp" and len(recipe["models"]) == 2
shutil.copytree(recipe["models"][0]["model"], out)
"""


def script(path: Path, text: str) -> Path:
    """A program of that name."""
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(policy_folders, tmp_path) -> Path:
    """The benchmark's folder, with a tiny policy and prompts."""
    (tmp_path / "prompts.json").write_text(json.dumps(["good film", "the plot"] * 8))
    (tmp_path / "policy").symlink_to(policy_folders("llama"))
    return tmp_path


def test_results_that_are_not_there_and_peers_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file\. measure: true makes it"):
        measure.run_bench(BenchConfig(results=str(tmp_path / "none.json")))
    for key in ("trl_python", "mergekit_python"):
        peers = {"trl_python": "", "mergekit_python": ""} | {key: str(tmp_path / "python")}
        with pytest.raises(ConfigError, match=f"{key}: .* there is no such file"):
            measure.run_bench(BenchConfig(measure=True, folder=str(tmp_path / "bench"), **peers))
    assert not list(tmp_path.iterdir())


def test_a_peer_is_run_without_what_our_package_sets(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "2000")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # the user's own
    environment = programs.peers_environment()
    assert "GOMP_SPINCOUNT" in os.environ
    assert "GOMP_SPINCOUNT" not in environment
    assert environment["OMP_NUM_THREADS"] == "3"


def test_a_program_may_say_as_much_as_it_likes_beside_its_answers():
    text = (
        "import sys\n"
        "for line in sys.stdin:\n"
        "    sys.stderr.write(1_000_000 * 'x' + 'last words')\n"
        "    print(line, end='', flush=True)\n"
        "    if 'end' in line: sys.exit(3)\n"
    )
    with programs.Process([sys.executable, "-c", text, "the program", "{}"]) as process:
        stuck = threading.Timer(30, process.child.kill)
        stuck.start()
        for number in range(3):
            process.ask(number=number)
            assert process.answer() == {"number": number}
        process.ask(number="end")
        process.answer()
        with pytest.raises(RuntimeError, match=r"^the program ended with 3: x{1990}last words$"):
            process.answer()
        stuck.cancel()


def test_a_worker_answers_steps_with_their_parts_and_operations(tiny_reward_folder, folder):
    config = BenchConfig(reward_model=str(tiny_reward_folder), batch_size=4, max_new_tokens=5)
    with steps.worker(config, folder, folder / "prompts.json", precision="bf16") as process:
        assert process.answer() == {"ready": True}
        for precision in ("fp32", "bf16"):
            (answer,) = steps.together([process], do="peak", threads=1, precision=precision)
            assert answer["gflops"] > 0.1
        first, second = (steps.together([process], do="step", threads=1)[0] for _ in range(2))
        process.ask(do="step", threads="many")
        with pytest.raises(RuntimeError, match=r"worker ended with 1: [\s\S]*set_num_threads"):
            process.answer()
    parts = set(PARTS) - {"rest"}
    assert parts == set(first["parts"]) == set(second["parts"])
    assert sum(second["parts"].values()) <= second["seconds"]
    assert "operations" not in second
    operations = first["operations"]
    assert operations["forward"] == 0  # of products: they are on the tape
    assert operations["backward"] >= 2 * operations["anchor"] > 0
    assert operations["anchor"] <= operations["prefill"] + operations["decode"]


@pytest.mark.parametrize("bf16", [5, 20])
def test_ours_and_trls_take_turns_with_the_same_threads(monkeypatch, tmp_path, bf16):
    log = tmp_path / "log"
    peaks = {"fp32": 10, "bf16": bf16}

    def started(who):
        def start(*_, seed=0, precision="fp32", **__):
            asked = json.dumps([f"{who} {seed} {precision}", str(log), peaks])
            return programs.Process([sys.executable, "-c", STAND_IN, asked])

        return start

    monkeypatch.setattr(steps, "worker", started("ours"))
    monkeypatch.setattr(steps, "trl", started("trl"))
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    config = BenchConfig(rounds=2, warmup_rounds=1)
    measured = steps.measure_steps(config, tmp_path, tmp_path / "prompts.json")
    precisions = ["fp32", "bf16"] if bf16 > 10 else ["fp32"]
    assert list(measured["rounds"]) == precisions
    assert measured["peaks"] == peaks
    assert measured["operations"] == {"prefill": 3}
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    for number, precision in enumerate(precisions):
        rounds = measured["rounds"][precision]
        assert len(rounds) == 2
        assert [len(rounds[0][who][mode]) for who in ("trl", "ours") for mode in steps.MODES] == [
            2,
            1,
        ] * 2
        assert rounds[0]["peaks"] == dict.fromkeys(steps.MODES, peaks[precision])
        for first in range(18 * number, 18 * (number + 1), 6):  # six steps a round
            a_round = asked[first : first + 6]
            assert sorted(a_round[:2]) == [[f"ours {seed} {precision}", 3] for seed in (1, 2)]
            assert sorted(a_round[2:4]) == [[f"trl {seed} {precision}", 3] for seed in (1, 2)]
            assert a_round[4:] == [[f"ours 1 {precision}", 6], [f"trl 1 {precision}", 6]]


def test_trls_scripts_are_asked_for_the_same_run_as_ours(tmp_path):
    config = BenchConfig(trl_python="python-of-trl", batch_size=4)
    prompts = tmp_path / "prompts.json"
    process = steps.trl(config, "trl_step.py", tmp_path, prompts, seed=2, precision="bf16")
    python, path, asked = process.command
    assert python == "python-of-trl"
    assert Path(path).is_file()
    theirs = json.loads(asked)["config"]
    ours = steps.worker(config, tmp_path, prompts, seed=2, precision="bf16").command[-1]
    assert theirs.items() <= json.loads(ours)["config"].items()
    assert theirs["precision"] == "bf16"
    assert theirs["batch_size"] == 4


def test_the_merge_is_measured_beside_mergekit_and_copying(monkeypatch, folder):
    def small(path, shape, **_):
        return checkpoints.random_llama(path, (64, 2, 1, 1, 64), shard="100KB", vocab_size=64)

    monkeypatch.setattr(merge, "random_llama", small)
    script(folder / "mergekit-yaml", MERGEKIT)
    config = BenchConfig(mergekit_python=str(folder / "python"), rounds=1)
    cases = merge.measure_merge(config, folder, Path())
    assert list(cases) == ["tiny_2", "policy_2", "large_2", "large_4"]
    for name, case in cases.items():
        (row,) = case["rounds"]
        beside = {"mergekit"} if name != "large_4" else set()
        assert set(row) == {"ours", "copying"} | beside
        assert row["ours"]["seconds"] > 0
        assert row["ours"]["memory_mb"] > row["copying"]["memory_mb"] > 1
        assert case["runs"] == (4 if name == "large_4" else 2)
        if beside:  # the stand-in gives one of the two runs: near, but not the merge
            assert 1e-4 < case["difference"] < 1e-2
    size = (folder / "policy" / "model.safetensors").stat().st_size
    assert cases["policy_2"]["gigabytes"] == size / 1e9
    left = {path.name for path in folder.iterdir()} - {"mergekit-yaml", "nuslerp.yml"}
    assert left == {"policy", "prompts.json", "tiny"}


def test_a_difference_is_found_whatever_the_shards(tmp_path):
    shape = (64, 2, 1, 1, 64)
    one = checkpoints.random_llama(tmp_path / "one", shape, vocab_size=64)
    many = checkpoints.random_llama(tmp_path / "many", shape, shard="100KB", vocab_size=64)
    assert len(list(many.glob("*.safetensors"))) > 1
    assert merge.difference(one, many) == 0
    near = checkpoints.perturbed(many, tmp_path / "near", seed=0)
    assert 3e-3 < merge.difference(one, near) < 1e-2  # of 100,000 draws of 0.001
    with pytest.raises(RuntimeError, match="wrote no weights"):
        merge.difference(one, tmp_path)


def test_a_command_that_fails_is_said(tmp_path):
    with pytest.raises(RuntimeError, match=r"ended with 1: .*no such thing"):
        programs.timed(
            [sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path / "out"
        )


def test_our_resume_goes_on_with_the_anchor(tiny_reward_folder, folder):
    straight, resumed = [0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 9.0, 5.0]
    text = f"print({json.dumps(json.dumps({'straight': straight, 'resumed': resumed}))})"
    peer = script(folder / "python", text)
    config = BenchConfig(reward_model=str(tiny_reward_folder), trl_python=str(peer))
    measured = resume.measure_resume(config, folder, folder / "prompts.json")
    assert measured["trl"] == {"straight": straight, "resumed": resumed}
    ours = measured["ours"]
    assert len(ours["straight"]) == 4
    assert ours["straight"] == ours["resumed"]
    assert len(set(ours["straight"])) == 4
    assert abs(ours["straight"][0]) < 1e-4 < max(map(abs, ours["straight"]))
    assert not (folder / "state.safetensors").exists()
