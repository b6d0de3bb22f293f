"""Whole tiny experiments: what they store, that they repeat, go on, and refuse."""

import copy
import math
import re
import shutil
import time
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file, save_file

from warp_core import warp
from warp_core.config import WarpConfig
from warp_core.errors import ConfigError, TrainingError
from warp_core.evaluate import estimate, policy_kl
from warp_core.files import read_json, read_jsonl
from warp_core.merge import liti, slerp
from warp_core.models import fingerprint, load_policy, load_weights, weights_of
from warp_core.prompts import load_prompts
from warp_core.reward import load_reward
from warp_core.train import prompt_batches, train_run
from warp_core.warp import run_front, run_seed, run_warp

EXPERIMENTS = {
    "gpt2": {},
    "llama": {"positive_label": "GOOD", "baseline": "loo", "anchor": "sft"},
    "qwen2": {"runs": 3, "iterations": 1, "warmup_steps": 3, "temperature": 0.8},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, make_tiny_params, policy_folders, two_label_folder):
    """Architecture -> configuration and summary of its experiment, run once."""
    done = {}

    def experiment(architecture):
        if architecture not in done:
            changes = EXPERIMENTS[architecture]
            if "positive_label" in changes:
                changes = changes | {"reward_model": str(two_label_folder)}
            folder = tmp_path_factory.mktemp(architecture) / "run"
            config = WarpConfig(**make_tiny_params(
                policy=str(policy_folders(architecture)), run_dir=str(folder), **changes
            ))  # fmt: skip
            done[architecture] = config, run_warp(config)
        return done[architecture]

    return experiment


@pytest.fixture
def gpt2_copy(finished, tmp_path) -> WarpConfig:
    """The finished GPT-2 experiment, to spoil."""
    config, _ = finished("gpt2")
    shutil.copytree(config.folder, tmp_path / "copy")
    return config.model_copy(update={"run_dir": str(tmp_path / "copy")})


def rows_of(config, **wanted):
    rows = read_jsonl(config.folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in (*wanted, "seconds")}
            for row in rows if wanted.items() <= row.items()]  # fmt: skip


def files_below(folder: Path):
    return {p.relative_to(folder).as_posix(): p.stat().st_mtime_ns
            for p in folder.rglob("*") if p.is_file()}  # fmt: skip


# What a run stores

each_architecture = pytest.mark.parametrize("architecture", EXPERIMENTS)


@each_architecture
def test_a_run_folder_has_its_files(architecture, finished):
    config, summary = finished(architecture)
    folder = config.folder
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "params.yaml", "meta.json", "metrics.jsonl", "summary.json", "samples.jsonl", "weights",
        "steps", "timing.json", "SHA256SUMS",
    }  # fmt: skip
    stored = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    assert WarpConfig(**stored) == config
    assert read_json(folder / "summary.json") == summary
    meta = read_json(folder / "meta.json")
    assert {"commit", "python", "versions", "device", "cores", "identity"} <= meta.keys()
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["identity"]["policy_sha256"] == fingerprint(load_policy(config.policy)[0])
    weights = {p.relative_to(folder / "weights").as_posix()
               for p in (folder / "weights").rglob("*.safetensors")}  # fmt: skip
    runs = [f"run_{m}" for m in range(1, config.runs + 1)]
    wanted = {f"iteration_{i}/{name}/model.safetensors"
              for i in range(1, config.iterations + 1) for name in [*runs, "slerp"]}  # fmt: skip
    wanted |= {f"iteration_{i}/liti/model.safetensors" for i in range(1, config.iterations)}
    assert weights == wanted | {"warp/model.safetensors"}


@each_architecture
def test_a_summary_has_its_numbers(architecture, finished):
    config, summary = finished(architecture)
    assert set(summary) == {
        "sft_reward", "warp_reward", "reward_difference", "kl_sft_warp", "kl_warp_sft", "text",
        "angles", "training_reward", "front",
    }  # fmt: skip
    for key in ("sft_reward", "warp_reward", "reward_difference", "kl_sft_warp", "kl_warp_sft"):
        assert set(summary[key]) == {"mean", "stderr", "n"}
        assert summary[key]["n"] == config.eval_prompts
        assert math.isfinite(summary[key]["mean"])
        assert summary[key]["stderr"] > 0
    assert summary["kl_sft_warp"]["mean"] > 0
    assert summary["kl_warp_sft"]["mean"] > 0
    assert summary["reward_difference"]["mean"] == pytest.approx(
        summary["warp_reward"]["mean"] - summary["sft_reward"]["mean"]
    )
    rows = read_jsonl(config.folder / "metrics.jsonl")
    for i, mean in enumerate(summary["training_reward"], start=1):
        rewards = [row["reward"] for row in rows if row["iteration"] == i]
        assert mean == pytest.approx(sum(rewards) / len(rewards))
    assert len(summary["training_reward"]) == config.iterations
    assert len(summary["angles"]) == config.iterations
    for groups in summary["angles"]:
        assert any(re.search(r"\.\d$", group) for group in groups)  # layers are groups
        for angles in groups.values():
            assert len(angles) == config.runs
            assert all(0 < angles[0][m] <= 180 for m in range(1, config.runs))


@each_architecture
def test_metrics_have_a_row_for_every_step(architecture, finished):
    config, _ = finished(architecture)
    rows = read_jsonl(config.folder / "metrics.jsonl")
    assert [(row["iteration"], row["run"], row["step"]) for row in rows] == [
        (i, m, t)
        for i in range(1, config.iterations + 1)
        for m in range(1, config.runs + 1)
        for t in range(1, config.steps + 1)
    ]
    assert set(rows[0]) == {
        "iteration", "run", "step", "objective", "reward", "kl_anchor", "lr", "grad_norm",
        "tokens", "same", "empty", "seconds",
    }  # fmt: skip


@each_architecture
def test_samples_are_the_evaluation_prompts_with_both_completions(architecture, finished):
    config, summary = finished(architecture)
    samples = read_jsonl(config.folder / "samples.jsonl")
    assert [s["prompt"] for s in samples] == load_prompts(config).evaluation
    for policy in ("sft", "warp"):
        texts = [s["prompt"] + s[policy] for s in samples]
        rewards = load_reward(config.reward_model, config.positive_label)(texts).tolist()
        assert [s[f"{policy}_reward"] for s in samples] == pytest.approx(rewards, abs=1e-4)
        mean = sum(rewards) / len(rewards)
        assert summary[f"{policy}_reward"]["mean"] == pytest.approx(mean, abs=1e-4)


@each_architecture
def test_weights_are_the_merge_of_the_runs_and_liti_from_theta_init(architecture, finished):
    config, _ = finished(architecture)
    weights = config.folder / "weights"
    theta_init = weights_of(load_policy(config.policy)[0])
    for i in range(1, config.iterations + 1):
        folder = weights / f"iteration_{i}"
        thetas = [load_weights(folder / f"run_{m}") for m in range(1, config.runs + 1)]
        for theta in thetas:
            assert any(not torch.equal(theta[name], theta_init[name]) for name in theta)
        theta_slerp = slerp(theta_init, thetas)
        torch.testing.assert_close(load_weights(folder / "slerp"), theta_slerp)
        theta_init = liti(theta_init, theta_slerp, config.eta)
        after = weights / "warp" if i == config.iterations else folder / "liti"
        torch.testing.assert_close(load_weights(after), theta_init)


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_run_starts_at_theta_init_with_its_own_seed_and_anchor(architecture, finished):
    """Run 2 of iteration 2, trained once more, outside the experiment."""
    config, _ = finished(architecture)
    weights = config.folder / "weights"
    policy, tokenizer = load_policy(str(weights / "iteration_1" / "liti"))
    anchor = load_policy(config.policy)[0] if config.anchor == "sft" else copy.deepcopy(policy)
    rows = []
    train_run(
        policy, anchor, tokenizer, load_reward(config.reward_model, config.positive_label),
        load_prompts(config).train, config, run_seed(config, 2, 2), rows.append,
    )  # fmt: skip
    stored = rows_of(config, iteration=2, run=2)
    assert [{k: v for k, v in row.items() if k != "seconds"} for row in rows] == stored
    assert (abs(rows[0]["kl_anchor"]) < 1e-5) == (config.anchor == "ema")
    torch.testing.assert_close(
        dict(weights_of(policy)), load_weights(weights / "iteration_2" / "run_2"), rtol=0, atol=0
    )


def test_the_warp_policy_is_the_one_that_was_evaluated(finished):
    config, summary = finished("gpt2")
    world = warp.World(config)
    model, _ = load_policy(str(config.folder / "weights" / "warp"))
    completions = warp.complete(model, world.tokenizer, world.reward, world.prompts.evaluation,
                                config, reference=world.sft)  # fmt: skip
    assert estimate(completions.rewards) == summary["warp_reward"]
    assert estimate(completions.kls) == summary["kl_warp_sft"]


# Seeds


def test_runs_that_share_a_seed_coincide_and_own_seeds_do_not(finished, gpt2_copy, tmp_path):
    changes = {"shared_run_seed": True, "lr": 1e-9, "run_dir": str(tmp_path / "shared")}
    shared = gpt2_copy.model_copy(update=changes)
    summary = run_warp(shared)
    for i in (1, 2):
        assert rows_of(shared, iteration=i, run=1) == rows_of(shared, iteration=i, run=2)
        assert rows_of(gpt2_copy, iteration=i, run=1) != rows_of(gpt2_copy, iteration=i, run=2)
    assert summary["kl_sft_warp"]["mean"] < 1e-6
    assert summary["sft_reward"] == finished("gpt2")[1]["sft_reward"]


def test_a_shared_seeds_run_is_computed_once_and_is_the_run_that_run_2_would_be(
    gpt2_copy, tmp_path, monkeypatch
):
    changes = {"shared_run_seed": True, "runs": 3, "run_dir": str(tmp_path / "shared")}
    config = gpt2_copy.model_copy(update=changes)
    trained = []
    train_one = warp._train_one
    monkeypatch.setattr(warp, "_train_one", lambda *x: (trained.append(x[2:]), train_one(*x)))
    run_warp(config)
    (*first, threads), second = trained
    assert (first, second) == ([1, 1], (2, 1, threads))
    folder = config.folder / "weights" / "iteration_2"
    copied, log = load_weights(folder / "run_3"), rows_of(config, iteration=2, run=3)
    shutil.rmtree(folder / "run_3")
    train_one(config, config.folder, 2, 3, threads)
    torch.testing.assert_close(load_weights(folder / "run_3"), copied, rtol=0, atol=0)
    assert log == [
        {k: v for k, v in row.items() if k not in ("iteration", "run", "seconds")}
        for row in read_jsonl(config.folder / "steps" / "iteration_2_run_3.jsonl")
    ]


def test_side_by_side_or_one_after_the_other_the_bits_are_the_same(gpt2_copy, tmp_path):
    stored = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)  # as OMP_NUM_THREADS does
            changes = {"run_dir": str(tmp_path / f"{threads}"), "iterations": 1}
            config = gpt2_copy.model_copy(update=changes)
            run_warp(config)
            files = sorted((config.folder / "weights").rglob("*.safetensors"))
            weights = {str(f.relative_to(config.folder)): f.read_bytes() for f in files}
            stored.append((weights, rows_of(config)))
    finally:
        torch.set_num_threads(1)
    assert len(stored[0][0]) == 4
    assert stored[0] == stored[1]


def test_every_run_has_a_seed_of_its_own_unless_it_is_shared():
    own, shared = WarpConfig(seed=3), WarpConfig(seed=3, shared_run_seed=True)
    pairs = [(i, m) for i in range(1, 5) for m in range(1, 5)]
    assert len({run_seed(own, *pair) for pair in pairs}) == len(pairs)
    assert {run_seed(shared, *pair) for pair in pairs} == {3}
    others = {run_seed(WarpConfig(seed=4), *pair) for pair in pairs}
    assert not others & {run_seed(own, *pair) for pair in pairs}


# What is done is not done again


def test_a_second_call_computes_and_writes_nothing(finished, monkeypatch):
    config, summary = finished("gpt2")
    before = files_below(config.folder.parent)

    def forbidden(*_, **__):
        raise AssertionError("finished work must not be done again")

    for name in ("_train_runs", "complete", "evaluate_pair", "save_policy"):
        monkeypatch.setattr(warp, name, forbidden)
    start = time.monotonic()
    assert run_warp(config) == summary
    assert time.monotonic() - start < 10
    assert files_below(config.folder.parent) == before


def test_the_same_parameters_elsewhere_give_the_same_numbers_bit_for_bit(finished, tmp_path):
    config, summary = finished("gpt2")
    again = run_warp(config, tmp_path / "elsewhere")
    assert again == summary
    theirs, ours = (
        {p.relative_to(f): p.read_bytes() for p in (f / "weights").rglob("*.safetensors")}
        for f in (config.folder, tmp_path / "elsewhere")
    )
    assert theirs == ours


@pytest.mark.parametrize(
    "lost",
    [
        ["weights/warp"],
        ["weights/iteration_2/run_2", "weights/iteration_2/slerp", "weights/warp", "samples.jsonl"],
        ["weights/iteration_1/run_1", "weights/iteration_1/liti", "weights/iteration_2",
         "weights/warp", "metrics.jsonl"],
    ],
)  # fmt: skip
def test_an_experiment_that_was_killed_goes_on_to_the_same_numbers(lost, finished, gpt2_copy):
    config, summary = finished("gpt2")
    folder = gpt2_copy.folder
    kept = files_below(folder)
    (folder / "summary.json").unlink()
    for name in lost:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if not (folder / "weights/iteration_2/run_2").is_dir():  # killed while it wrote a line
        log = folder / "steps/iteration_2_run_2.jsonl"
        log.write_text(log.read_text()[:-40])

    assert run_warp(gpt2_copy) == summary
    assert rows_of(gpt2_copy) == rows_of(config)
    untouched = [name for name in kept if "/run_" in name and not any(name.startswith(gone)
                 for gone in lost)]  # fmt: skip
    after = files_below(folder)
    assert untouched
    assert all(after[name] == kept[name] for name in untouched)


def test_completions_of_theta_sft_are_made_once_for_all_experiments(finished, monkeypatch):
    config, summary = finished("gpt2")
    stored = list((config.folder.parent / "sft").iterdir())
    world = warp.World(config)
    made = warp.complete(world.sft, world.tokenizer, world.reward, world.prompts.evaluation, config)
    monkeypatch.setattr(warp, "complete", None)
    again = warp.sft_completions(world, config, config.folder.parent / "sft")
    assert again.texts == made.texts
    assert again.rewards == pytest.approx(made.rewards)
    for ours, theirs in zip(again.rollouts, made.rollouts, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(vars(ours).values(), vars(theirs).values(),
                                                     strict=True))  # fmt: skip
    assert estimate(again.rewards) == summary["sft_reward"]
    assert list((config.folder.parent / "sft").iterdir()) == stored


# The front


def test_the_front_goes_from_theta_sft_to_theta_slerp(gpt2_copy, finished):
    summary = run_front(gpt2_copy, etas=[1.0, 0.0, 0.5])
    front = summary["front"]
    assert [point["eta"] for point in front] == [0.0, 0.5, 1.0]
    assert front[0]["kl"]["mean"] == 0.0
    assert front[0]["reward"] == finished("gpt2")[1]["sft_reward"]
    assert 0 < front[1]["kl"]["mean"] < front[2]["kl"]["mean"]

    world = warp.World(gpt2_copy)
    iteration = gpt2_copy.folder / "weights" / "iteration_2"
    for point, name in [(front[2], "slerp"), *zip(summary["front_runs"], ("run_1", "run_2"),
                                                  strict=True)]:  # fmt: skip
        model, _ = load_policy(str(iteration / name))
        completions = warp.complete(
            model, world.tokenizer, world.reward, world.prompts.evaluation, gpt2_copy
        )
        assert point["reward"] == pytest.approx(estimate(completions.rewards), rel=1e-4)
        kl = estimate(policy_kl(model, world.sft, completions, gpt2_copy))
        assert point["kl"] == pytest.approx(kl, rel=1e-3)
    assert [point["run"] for point in summary["front_runs"]] == [1, 2]
    assert read_json(gpt2_copy.folder / "summary.json") == summary
    of_sft = [row["sft_reward"] for row in read_jsonl(gpt2_copy.folder / "samples.jsonl")]
    for point, row in zip(front, sorted(
        (row for row in read_jsonl(gpt2_copy.folder / "front.jsonl") if "eta" in row),
        key=lambda row: row["eta"],
    ), strict=True):  # fmt: skip
        gains = [a - b for a, b in zip(row["rewards"], of_sft, strict=True)]
        assert point["gain"] == pytest.approx(estimate(gains))
        assert point["kl"] == pytest.approx(estimate(row["kls"]))


def test_points_of_the_front_that_are_there_stay(gpt2_copy, monkeypatch):
    first = run_front(gpt2_copy, etas=[0.0, 1.0])
    evaluated = []
    complete = warp.complete

    def counted(*args, **options):
        evaluated.append(args)
        return complete(*args, **options)

    monkeypatch.setattr(warp, "complete", counted)
    summary = run_front(gpt2_copy, etas=[0.0, 0.3, 1.0])
    assert len(evaluated) == 1
    assert [point["eta"] for point in summary["front"]] == [0.0, 0.3, 1.0]
    assert summary["front"][::2] == first["front"]
    assert run_warp(gpt2_copy) == summary


def test_a_shared_seeds_front_evaluates_each_policy_once(gpt2_copy, tmp_path, monkeypatch):
    changes = {"shared_run_seed": True, "run_dir": str(tmp_path / "shared")}
    shared = gpt2_copy.model_copy(update=changes)
    run_warp(shared)
    evaluated = []
    complete = warp.complete
    monkeypatch.setattr(
        warp, "complete", lambda *x, **o: (evaluated.append(x[0]), complete(*x, **o))[1]
    )
    summary = run_front(shared, etas=[0.0, 1.0])
    assert len(evaluated) == 2  # θ_slerp and run 1; θ_sft and run 2 are known
    first, second = summary["front_runs"]
    assert (first["run"], second["run"]) == (1, 2)
    assert first | {"run": 2} == second
    assert summary["front"][0]["reward"] == summary["sft_reward"]
    assert summary["front"][0]["kl"] == {"mean": 0.0, "stderr": 0.0, "n": 8}


def test_a_front_needs_a_finished_experiment(tiny_params):
    with pytest.raises(ConfigError, match="has no finished experiment"):
        run_front(WarpConfig(**tiny_params))
    assert not Path(tiny_params["run_dir"]).exists()


# Refusals


def test_another_configuration_in_the_same_folder_is_refused_with_what_differs(gpt2_copy):
    before = files_below(gpt2_copy.folder)
    other = gpt2_copy.model_copy(update={"lr": 0.5, "steps": 7, "title": "Another"})
    with pytest.raises(ConfigError) as caught:
        run_warp(other)
    message = str(caught.value)
    assert "steps: 2 there, 7 asked for" in message
    assert "lr: 0.01 there, 0.5 asked for" in message
    assert "title" not in message
    assert "delete that folder" in message
    with pytest.raises(ConfigError, match=r"lr: 0\.01 there"):
        run_front(other)
    assert files_below(gpt2_copy.folder) == before


def test_other_prompts_or_weights_under_the_same_name_are_refused(tiny_params, tmp_path):
    prompts, policy = tmp_path / "prompts.txt", tmp_path / "policy"
    shutil.copy(tiny_params["prompts"], prompts)
    shutil.copytree(tiny_params["policy"], policy)
    config = WarpConfig(**tiny_params | {
        "prompts": str(prompts), "policy": str(policy), "iterations": 1, "runs": 1, "steps": 1,
    })  # fmt: skip
    run_warp(config)
    original = prompts.read_text()
    tiny.write_prompts(prompts, seed=1)
    with pytest.raises(ConfigError, match="prompts_sha256"):
        run_warp(config)
    prompts.write_text(original)
    weights = load_file(policy / "model.safetensors")
    weights["transformer.ln_f.bias"][0] += 1e-3
    save_file(weights, policy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="policy_sha256"):
        run_warp(config)


def test_a_folder_of_something_else_is_not_overwritten(tiny_params):
    folder = Path(tiny_params["run_dir"])
    folder.mkdir()
    (folder / "summary.json").write_text("{}")
    with pytest.raises(ConfigError, match="another run's folder"):
        run_warp(WarpConfig(**tiny_params))
    assert files_below(folder).keys() == {"summary.json"}


LONG = " ".join(tiny.WORDS * 3)
REFUSED = {
    "no prompts": ({"prompts": "/nowhere/prompts.txt"}, ["prompts: '/nowhere/prompts.txt' given"]),
    "too few prompts": ({"eval_prompts": 100}, ["eval_prompts: 100 given"]),
    "no reward model": ({"reward_model": "/nowhere/reward"}, ["reward_model: '/nowhere/reward'"]),
    "no label": ({"reward_model": "two labels"}, ["positive_label: '' given", "BAD, GOOD"]),
    "wrong label": ({"reward_model": "two labels", "positive_label": "POS"}, ["'POS' given"]),
    "no policy": ({"policy": "/nowhere/policy"}, ["policy: '/nowhere/policy' given"]),
    "context": (
        {"prompts": "long", "reward_model": "/nowhere/reward"},
        ["max_new_tokens: 5 given", "has 60 tokens", "the policy reads only 64", "no such folder"],
    ),
    "reward's context": (
        {"prompts": "long", "policy": "/nowhere/policy"},
        ["max_new_tokens: 5 given", "the reward model reads only 64", "no such folder"],
    ),
    "everything": (
        {"prompts": "/nowhere/p", "reward_model": "/nowhere/r", "policy": "/nowhere/x"},
        ["prompts: '/nowhere/p'", "reward_model: '/nowhere/r'", "policy: '/nowhere/x'"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_run_creates_nothing(case, tiny_params, two_label_folder, tmp_path):
    changes, said = REFUSED[case]
    changes = dict(changes)
    if changes.get("reward_model") == "two labels":
        changes["reward_model"] = str(two_label_folder)
    if changes.get("prompts") == "long":
        prompts = tiny.write_prompts(tmp_path / "long.txt", words=70)
        changes |= {"prompts": str(prompts), "prompt_words": 60}
    before = list(tmp_path.iterdir())
    with pytest.raises(ConfigError) as caught:
        run_warp(WarpConfig(**tiny_params | changes))
    for words in said:
        assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == before


def test_a_reward_that_is_not_finite_names_iteration_run_and_step(tiny_params, tmp_path):
    """An unknown word in the prompt of the second step, and a reward model that is NaN there."""
    prompts = Path(shutil.copy(tiny_params["prompts"], tmp_path / "prompts.txt"))
    reward = shutil.copytree(tiny_params["reward_model"], tmp_path / "reward")
    config = WarpConfig(**tiny_params | {"prompts": str(prompts), "reward_model": str(reward),
                                         "runs": 1, "steps": 4})  # fmt: skip
    batches = prompt_batches(load_prompts(config).train, config.batch_size, run_seed(config, 1, 1))
    next(batches)
    victim = next(batches)[0]
    lines = prompts.read_text().splitlines()
    spoilt = [line.replace(victim, "ghastly " + victim) if line.startswith(victim + " ") else line
              for line in lines]  # fmt: skip
    assert len([a for a, b in zip(lines, spoilt, strict=True) if a != b]) == 1
    prompts.write_text("\n".join(spoilt))
    weights = load_file(reward / "model.safetensors")
    unknown = tiny.make_tokenizer().unk_token_id
    weights["distilbert.embeddings.word_embeddings.weight"][unknown] = math.nan
    save_file(weights, reward / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(TrainingError, match="tiny, iteration 1, run 1, step 2: the reward is not"):
        run_warp(config)
    assert [(row["run"], row["step"]) for row in read_jsonl(config.folder / "metrics.jsonl")] == [
        (1, 1)
    ]
    assert not (config.folder / "summary.json").exists()
    assert not list((config.folder).rglob("run_1"))
