"""Whole tiny experiments: what they store, that they repeat, go on, and refuse."""

import copy
import json
import math
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from warp_core import tasks
from warp_core.config import WarpConfig
from warp_core.engine import memory, precision
from warp_core.engine.tape import taped
from warp_core.evaluate import complete, estimate, policy_kl
from warp_core.folders import read_completions
from warp_core.merge import lerp, liti, slerp
from warp_core.store.errors import ConfigError, DiedError, StorageError, TrainingError
from warp_core.store.files import append_jsonl, read_json, read_jsonl, write_json
from warp_core.store.results import Store
from warp_core.tasks import run_seed
from warp_core.train import Run
from warp_core.warp import Experiment, run_front, run_warp
from warp_core.world.models import fingerprint, load_policy, stop_tokens, weights_of
from warp_core.world.prompts import Prompts, load_prompts, prompt_batches
from warp_core.world.reward import load_reward
from warp_core.world.scorer import Scorer

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
            changes = changes | {"policy": str(policy_folders(architecture))}
            config = WarpConfig(**make_tiny_params(run_dir=str(folder), **changes))
            done[architecture] = config, run_warp(config)
        return done[architecture]

    return experiment


@pytest.fixture
def gpt2_copy(finished, tmp_path) -> WarpConfig:
    """The finished GPT-2 experiment with its store, to spoil."""
    config, _ = finished("gpt2")
    shutil.copytree(config.folder.parent, tmp_path / "runs")
    return config.model_copy(update={"run_dir": str(tmp_path / "runs" / "run")})


def store_of(config) -> Store:
    return Store(config.folder.parent / "store")


def load_weights(folder: Path):
    return load_file(folder / "model.safetensors")


def prompts_of(config) -> Prompts:
    return load_prompts(config.prompts, config.prompt_words, config.eval_prompts)


def counted(monkeypatch, name):
    """What the engine computes with a function of tasks, from here on: its keyword arguments."""
    calls, function = [], getattr(tasks, name)

    def counting(out, **options):
        calls.append(options)
        function(out, **options)

    monkeypatch.setattr(tasks, name, counting)
    return calls


def rows_of(config, **wanted):
    rows = read_jsonl(config.folder / "metrics.jsonl")
    rows = [row for row in rows if wanted.items() <= row.items()]
    return [{k: v for k, v in row.items() if k not in (*wanted, "seconds")} for row in rows]


def files_below(folder: Path):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def weights_below(folder: Path):
    """Bytes of the weights by the place of their folder."""
    files = folder.rglob("model.safetensors")
    return {path.parent.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# What a run stores

each_architecture = pytest.mark.parametrize("architecture", EXPERIMENTS)


@each_architecture
def test_a_run_folder_has_its_files(architecture, finished):
    config, summary = finished(architecture)
    folder = config.folder
    about = {"params.yaml", "meta.json", "origins.json", "timing.json", "SHA256SUMS"}
    results = {"metrics.jsonl", "summary.json", "samples.jsonl", "weights"}
    assert {p.name for p in folder.iterdir()} - {".lock"} == about | results
    stored = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    assert WarpConfig(**stored) == config
    assert read_json(folder / "summary.json") == summary
    meta = read_json(folder / "meta.json")
    assert {"commit", "python", "versions", "device", "cores", "identity"} <= meta.keys()
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["identity"]["policy_sha256"] == fingerprint(load_policy(config.policy)[0])
    names = [*(f"run_{m}" for m in range(1, config.runs + 1)), "slerp"]
    wanted = {f"iteration_{i}/{n}" for i in range(1, config.iterations + 1) for n in names}
    wanted |= {f"iteration_{i}/liti" for i in range(1, config.iterations)} | {"warp"}
    assert weights_below(folder / "weights").keys() == wanted


@each_architecture
def test_a_summary_has_its_numbers(architecture, finished):
    config, summary = finished(architecture)
    estimates = {"sft_reward", "warp_reward", "reward_difference", "kl_sft_warp", "kl_warp_sft"}
    assert set(summary) == estimates | {"text", "angles", "training_reward", "front"}
    for key in estimates:
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
    metrics = {"objective", "reward", "kl_anchor", "lr", "grad_norm", "tokens"}
    metrics |= {"same", "empty", "unfinished"}
    assert set(rows[0]) == {"iteration", "run", "step", "seconds"} | metrics


@each_architecture
def test_samples_are_the_evaluation_prompts_with_both_completions(architecture, finished):
    config, summary = finished(architecture)
    samples = read_jsonl(config.folder / "samples.jsonl")
    assert [s["prompt"] for s in samples] == prompts_of(config).evaluation
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
        theta_init = {name: theta_init[name] for name in thetas[0]}
        theta_slerp = slerp(theta_init, thetas)
        torch.testing.assert_close(load_weights(folder / "slerp"), theta_slerp)
        theta_init = liti(theta_init, theta_slerp, config.eta)
        after = weights / "warp" if i == config.iterations else folder / "liti"
        torch.testing.assert_close(load_weights(after), theta_init)


def trained_anew(config, iteration, run):
    """The rows of a run and its weights, trained once more outside the experiment."""
    weights = config.folder / "weights"
    start = weights / f"iteration_{iteration - 1}" / "liti" if iteration > 1 else config.policy
    policy, tokenizer = load_policy(str(start))
    anchor = load_policy(config.policy)[0] if config.anchor == "sft" else copy.deepcopy(policy)
    reward = load_reward(config.reward_model, config.positive_label)
    x, seed = prompts_of(config).train, run_seed(config, iteration, run)
    again = Run(policy, anchor, tokenizer, reward, x, config.training, seed)
    with taped(policy, config.max_new_tokens):
        rows = [again.step() for _ in range(config.steps)]
    stored = load_weights(weights / f"iteration_{iteration}" / f"run_{run}")
    ours = weights_of(policy)
    torch.testing.assert_close({name: ours[name] for name in stored}, stored, rtol=0, atol=0)
    return rows


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_run_starts_at_theta_init_with_its_own_seed_and_anchor(architecture, finished):
    config, _ = finished(architecture)
    rows = trained_anew(config, iteration=2, run=2)
    assert rows == rows_of(config, iteration=2, run=2)
    assert (abs(rows[0]["kl_anchor"]) < 1e-5) == (config.anchor == "ema")


def answers(config, policy, reference=None):
    tokenizer = load_policy(config.policy)[1]
    reward = load_reward(config.reward_model, config.positive_label)
    how = config.max_new_tokens, config.temperature, config.seed
    return complete(policy, tokenizer, reward, prompts_of(config).evaluation, *how, reference)


def test_the_warp_policy_is_the_one_that_was_evaluated(finished):
    config, summary = finished("gpt2")
    model, _ = load_policy(str(config.folder / "weights" / "warp"))
    completions = answers(config, model, load_policy(config.policy)[0])
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
    changes = {"shared_run_seed": True, "runs": 3, "run_dir": str(tmp_path / "new" / "shared")}
    config = gpt2_copy.model_copy(update=changes)
    trained = counted(monkeypatch, "rl_run")
    run_warp(config)
    assert len(trained) == 2  # one an iteration
    assert rows_of(config, iteration=2, run=3) == rows_of(config, iteration=2, run=1)
    assert rows_of(config, iteration=2, run=3) == trained_anew(config, iteration=2, run=3)


def test_runs_that_experiments_share_are_computed_once(gpt2_copy, monkeypatch):
    trained, evaluated = counted(monkeypatch, "rl_run"), counted(monkeypatch, "evaluate")
    beside = str(gpt2_copy.folder.with_name("another_eta"))
    summary = run_warp(gpt2_copy.model_copy(update={"eta": 0.2, "run_dir": beside}))
    assert len(trained) == 2  # of iteration 2, whose θ_init is another
    assert len(evaluated) == 1  # θ_sft is known
    trained.clear()
    beside = str(gpt2_copy.folder.with_name("more_prompts"))
    more = run_warp(gpt2_copy.model_copy(update={"eval_prompts": 9, "run_dir": beside}))
    assert not trained
    assert more["sft_reward"]["n"] == 9
    assert summary["sft_reward"] == run_warp(gpt2_copy)["sft_reward"]


def test_weights_that_another_program_drops_before_they_are_shown_are_made_again(
    gpt2_copy, tmp_path, monkeypatch
):
    config = gpt2_copy.model_copy(update={"run_dir": str(tmp_path / "runs" / "again")})
    trained, shown, show = counted(monkeypatch, "rl_run"), [], Experiment.show

    def late(e, store, run_dir):
        if not shown:
            store.drop(e.iterations[0][0][0])
        shown.append(show(e, store, run_dir))
        return shown[-1]

    monkeypatch.setattr(Experiment, "show", late)
    run_warp(config)
    assert (shown, len(trained)) == ([False, True], 1)  # the others were there
    assert weights_below(config.folder) == weights_below(gpt2_copy.folder)


def test_kept_results_are_theta_slerp_and_warp_with_the_same_numbers(finished, tmp_path):
    config, summary = finished("gpt2")
    lean = config.model_copy(
        update={"keep_weights": "result", "run_dir": str(tmp_path / "runs" / "lean")}
    )
    assert run_warp(lean) == summary
    assert weights_below(lean.folder).keys() == {"weights/iteration_2/slerp", "weights/warp"}
    for place, data in weights_below(lean.folder).items():
        assert data == weights_below(config.folder)[place]
    kinds = [path.name.partition("-")[0] for path in store_of(lean).folder.glob("*-*")]
    assert (kinds.count("run"), kinds.count("merged")) == (4, 4)  # their small files stay
    expect_weights_of_the_result(lean)
    assert rows_of(lean) == rows_of(config)
    swept = run_front(lean, etas=[0.5, 1.0])
    assert (len(swept["front"]), swept["front_runs"]) == (2, [])
    expect_weights_of_the_result(lean)


def expect_weights_of_the_result(config):
    """In the store: θ_sft, r, and the two that the run folder shows, which are one file there."""
    e, links = Experiment(config), {}
    for path in store_of(config).folder.rglob("model.safetensors"):
        links[path.parent.parent.name] = path.stat().st_nlink
    _, theta_slerp, warp = e.iterations[-1]
    assert links == {
        e.theta_sft.name: 1,
        e.given.rewards[0].name: 1,
        theta_slerp.name: 2,
        warp.name: 2,
    }


def test_side_by_side_or_one_after_the_other_the_bits_are_the_same(gpt2_copy, tmp_path):
    stored = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)  # as OMP_NUM_THREADS does
            changes = {"run_dir": str(tmp_path / f"{threads}" / "run"), "iterations": 1}
            config = gpt2_copy.model_copy(update=changes)
            assert Experiment(config).engine.workers == threads
            run_warp(config)
            stored.append((weights_below(config.folder), rows_of(config)))
    finally:
        torch.set_num_threads(1)
    assert len(stored[0][0]) == 4
    assert stored[0] == stored[1]


def killed_behind_step_1(out, work, **options):
    work.mkdir(parents=True, exist_ok=True)
    append_jsonl(work / "steps.jsonl", {"step": 1})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_is_killed_is_named_the_other_is_kept_and_both_end_as_ever(
    finished, gpt2_copy, tmp_path, monkeypatch
):
    config = gpt2_copy.model_copy(update={"run_dir": str(tmp_path / "new" / "run"), "workers": 2})
    rl_run = Experiment.rl_run

    def spoilt(self, theta_init, i, m):
        task = rl_run(self, theta_init, i, m)
        return replace(task, make=killed_behind_step_1) if (i, m) == (1, 2) else task

    with monkeypatch.context() as patch:
        patch.setattr(Experiment, "rl_run", spoilt)
        with pytest.raises(DiedError, match=r"iteration 1, run 2 behind step 1: its process died"):
            run_warp(config)
    (kept,) = store_of(config).folder.glob("run-*/steps.jsonl")
    before = kept.stat().st_mtime_ns
    rows = read_jsonl(config.folder / "metrics.jsonl")
    assert [(row["run"], row["step"]) for row in rows] == [(1, 1), (1, 2), (2, 1)]
    config = config.model_copy(update={"workers": 1})
    assert run_warp(config) == finished("gpt2")[1]
    assert kept.stat().st_mtime_ns == before
    assert weights_below(config.folder) == weights_below(gpt2_copy.folder)


def test_an_experiment_has_as_many_workers_as_runs_that_differ(gpt2_copy, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for changes, workers, threads in (
        ({"runs": 8}, 8, 2),
        ({"runs": 8, "workers": 1}, 1, 16),
        ({"runs": 4, "shared_run_seed": True}, 1, 16),
    ):
        engine = Experiment(gpt2_copy.model_copy(update=changes)).engine
        assert (engine.workers, engine.threads) == (workers, threads)


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

    for name in ("rl_run", "merge", "evaluate"):
        monkeypatch.setattr(tasks, name, forbidden)
    monkeypatch.setattr("warp_core.warp.seal_json", forbidden)
    start = time.monotonic()
    assert run_warp(config) == summary
    assert time.monotonic() - start < 10
    assert files_below(config.folder.parent) == before


def test_the_same_parameters_elsewhere_give_the_same_numbers_bit_for_bit(finished, tmp_path):
    config, summary = finished("gpt2")
    again = run_warp(config, tmp_path / "new" / "elsewhere")
    assert again == summary
    elsewhere = tmp_path / "new" / "elsewhere"
    assert weights_below(elsewhere) == weights_below(config.folder)
    assert len(weights_below(elsewhere)) == 8


@pytest.mark.parametrize("iteration", [1, 2])
@pytest.mark.parametrize("what", ["thetas", "slerp", "liti", "evaluations"])
def test_an_experiment_that_was_killed_goes_on_to_the_same_numbers(
    what, iteration, finished, gpt2_copy, monkeypatch
):
    """From here on, everything is missing in the store and in the run folder."""
    config, summary = finished("gpt2")
    experiment, store = Experiment(gpt2_copy), store_of(gpt2_copy)
    order = [(("thetas", i), thetas) for i, (thetas, *_) in enumerate(experiment.iterations, 1)]
    order += [(("slerp", i), [slerp]) for i, (_, slerp, _) in enumerate(experiment.iterations, 1)]
    order += [(("liti", i), [task]) for i, (*_, task) in enumerate(experiment.iterations, 1)]
    order += [(("evaluations", 2), experiment.wanted()[-2:])]
    places = ["thetas", "slerp", "liti", "evaluations"]
    gone = []
    for (kind, i), of_kind in order:
        if (i, places.index(kind)) >= (iteration, places.index(what)):
            gone += of_kind
    for task in gone:
        shutil.rmtree(store.path(task), ignore_errors=True)
    (gpt2_copy.folder / "summary.json").unlink()
    shutil.rmtree(gpt2_copy.folder / "weights")
    kept = files_below(store.folder)
    trained = counted(monkeypatch, "rl_run")
    assert run_warp(gpt2_copy) == summary
    assert rows_of(gpt2_copy) == rows_of(config)
    assert len(trained) == sum(task.kind == "run" for task in gone)
    after = files_below(store.folder)
    assert all(after[name] == kept[name] for name in kept)
    assert weights_below(gpt2_copy.folder) == weights_below(config.folder)


def test_completions_of_theta_sft_are_made_once_for_all_experiments(gpt2_copy, monkeypatch):
    experiment = Experiment(gpt2_copy)
    stored = store_of(gpt2_copy).path(experiment.evaluation(experiment.theta_sft))
    made = answers(gpt2_copy, load_policy(gpt2_copy.policy)[0])
    again = read_completions(stored)
    assert again.texts == made.texts
    assert again.rewards == pytest.approx(made.rewards)
    assert again.kls == [0.0] * gpt2_copy.eval_prompts
    for ours, theirs in zip(again.rollouts, made.rollouts, strict=True):
        for a, b in zip(vars(ours).values(), vars(theirs).values(), strict=True):
            assert torch.equal(a, b)
    evaluated = counted(monkeypatch, "evaluate")
    beside = str(gpt2_copy.folder.with_name("another_lr"))
    other = run_warp(gpt2_copy.model_copy(update={"lr": 1e-3, "run_dir": beside}))
    assert len(evaluated) == 1
    assert other["sft_reward"] == run_warp(gpt2_copy)["sft_reward"]


# The front


def test_the_front_goes_from_theta_sft_to_theta_slerp(gpt2_copy, finished):
    summary = run_front(gpt2_copy, etas=[1.0, 0.0, 0.5])
    front = summary["front"]
    assert [point["eta"] for point in front] == [0.0, 0.5, 1.0]
    assert front[0]["kl"]["mean"] == 0.0
    assert front[0]["reward"] == finished("gpt2")[1]["sft_reward"]
    assert 0 < front[1]["kl"]["mean"] < front[2]["kl"]["mean"]

    sft = load_policy(gpt2_copy.policy)[0]
    iteration = gpt2_copy.folder / "weights" / "iteration_2"
    pairs = zip(summary["front_runs"], ("run_1", "run_2"), strict=True)
    for point, name in [(front[2], "slerp"), *pairs]:
        model, _ = load_policy(str(iteration / name))
        completions = answers(gpt2_copy, model)
        assert point["reward"] == pytest.approx(estimate(completions.rewards), rel=1e-4)
        kl = estimate(policy_kl(model, sft, completions.rollouts, gpt2_copy.temperature))
        assert point["kl"] == pytest.approx(kl, rel=1e-3)
    assert [point["run"] for point in summary["front_runs"]] == [1, 2]
    assert read_json(gpt2_copy.folder / "summary.json") == summary
    of_sft = [row["sft_reward"] for row in read_jsonl(gpt2_copy.folder / "samples.jsonl")]
    rows = {row.get("eta"): row for row in read_jsonl(gpt2_copy.folder / "front.jsonl")}
    for point in front:
        row = rows[point["eta"]]
        gains = [a - b for a, b in zip(row["rewards"], of_sft, strict=True)]
        assert point["gain"] == pytest.approx(estimate(gains))
        assert point["kl"] == pytest.approx(estimate(row["kls"]))


def test_points_of_the_front_that_are_there_stay(gpt2_copy, monkeypatch):
    first = run_front(gpt2_copy, etas=[0.0, 1.0])
    evaluated = counted(monkeypatch, "evaluate")
    summary = run_front(gpt2_copy, etas=[0.3])
    assert len(evaluated) == 1
    assert [point["eta"] for point in summary["front"]] == [0.0, 0.3, 1.0]
    assert summary["front"][::2] == first["front"]
    assert run_front(gpt2_copy, etas=[0.0, 0.3, 1.0]) == run_warp(gpt2_copy) == summary
    assert len(evaluated) == 1


def test_a_shared_seeds_front_evaluates_each_policy_once(gpt2_copy, tmp_path, monkeypatch):
    changes = {"shared_run_seed": True, "run_dir": str(tmp_path / "new" / "shared")}
    shared = gpt2_copy.model_copy(update=changes)
    run_warp(shared)
    evaluated = counted(monkeypatch, "evaluate")
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
    before = files_below(gpt2_copy.folder.parent)
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
    assert files_below(gpt2_copy.folder.parent) == before


def test_other_prompts_or_weights_under_the_same_name_are_refused(tiny_params, tmp_path):
    prompts, policy = tmp_path / "prompts.txt", tmp_path / "policy"
    shutil.copy(tiny_params["prompts"], prompts)
    shutil.copytree(tiny_params["policy"], policy)
    own = {"prompts": str(prompts), "policy": str(policy)}
    config = WarpConfig(**tiny_params | own | {"iterations": 1, "runs": 1, "steps": 1})
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


def test_more_runs_than_memory_holds_are_refused_with_the_numbers(
    tiny_params, tmp_path, monkeypatch
):
    config = WarpConfig(**tiny_params | {"workers": 2})
    each, before = Experiment(config).needs.bytes, list(tmp_path.iterdir())
    for there, advice in ((1.5 * each, "workers: 1 fits"), (0.5 * each, "a smaller batch_size")):
        monkeypatch.setattr(memory, "available_bytes", lambda there=there: int(there))
        with pytest.raises(ConfigError, match="workers: 2 runs side by side want about") as caught:
            run_warp(config)
        assert advice in str(caught.value)
        assert list(tmp_path.iterdir()) == before


def test_more_weights_than_the_disk_holds_are_refused_with_the_numbers(
    tiny_params, tmp_path, monkeypatch
):
    """θ_sft, r and, behind the last run, six sets of the policy's size and a checkpoint of four."""
    config = WarpConfig(**tiny_params)
    e, before = Experiment(config), list(tmp_path.iterdir())
    needed = e.theta_sft.size + e.given.rewards[0].size + (6 + 4) * e.size
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(StorageError, match=f"store: {needed} bytes .* are needed, {needed - 1} "):
        run_warp(config)
    assert list(tmp_path.iterdir()) == before


def test_a_reward_that_is_not_finite_names_iteration_run_and_step(tiny_params, tmp_path):
    """An unknown word in the prompt of the second step, and a reward model that is NaN there."""
    prompts = Path(shutil.copy(tiny_params["prompts"], tmp_path / "prompts.txt"))
    reward = shutil.copytree(tiny_params["reward_model"], tmp_path / "reward")
    own = {"prompts": str(prompts), "reward_model": str(reward)}
    config = WarpConfig(**tiny_params | own | {"runs": 1, "steps": 4})
    batches = prompt_batches(prompts_of(config).train, config.batch_size, run_seed(config, 1, 1))
    next(batches)
    victim = next(batches)[0]
    lines = prompts.read_text().splitlines()
    spoilt = [n for n, line in enumerate(lines) if line.startswith(victim + " ")]
    assert len(spoilt) == 1
    lines[spoilt[0]] = f"ghastly {lines[spoilt[0]]}"
    prompts.write_text("\n".join(lines))
    weights = load_file(reward / "model.safetensors")
    unknown = tiny.make_tokenizer().unk_token_id
    weights["distilbert.embeddings.word_embeddings.weight"][unknown] = math.nan
    save_file(weights, reward / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(TrainingError, match="tiny, iteration 1, run 1: step 2: the reward is not"):
        run_warp(config)
    assert [(row["run"], row["step"]) for row in read_jsonl(config.folder / "metrics.jsonl")] == [
        (1, 1)
    ]
    assert not (config.folder / "summary.json").exists()
    assert not list((config.folder).rglob("run_1"))


# Evaluation along the way, another merge, a judge


def test_evaluation_along_the_way_changes_no_bit_of_the_runs(finished, tmp_path, monkeypatch):
    config, summary = finished("gpt2")
    changes = {"eval_every": 1, "run_dir": str(tmp_path / "runs" / "run"), "workers": 1}
    along, calls = config.model_copy(update=changes), counted(monkeypatch, "rl_run")
    found = run_warp(along)
    # Runs of fewer steps were passed, not computed by themselves.
    assert [call["training"]["steps"] for call in calls] == [config.steps] * 4
    assert rows_of(along) == rows_of(config)
    assert weights_below(along.folder) == weights_below(config.folder)
    assert {k: v for k, v in found.items() if k != "trajectory"} == summary
    points = [(row["iteration"], row["run"], row["step"]) for row in found["trajectory"]]
    steps = range(1, config.steps + 1)
    assert points == [(i, m, t) for i in (1, 2) for m in (1, 2) for t in steps]
    e = Experiment(along)
    last = e.measured(store_of(along), e.evaluation(e.iterations[0][0][0]))
    assert last.items() <= found["trajectory"][config.steps - 1].items()
    first = found["trajectory"][0]
    assert 0 < first["kl"]["mean"] < last["kl"]["mean"]


def test_an_experiment_that_merges_by_lerp(finished, tmp_path):
    config, _ = finished("gpt2")
    lerped = config.model_copy(update={"merge": "lerp", "run_dir": str(tmp_path / "runs" / "run")})
    run_warp(lerped)
    weights = lerped.folder / "weights"
    init = load_weights(store_of(lerped).weights(Experiment(lerped).theta_sft))
    runs = [load_weights(weights / f"iteration_1/run_{m}") for m in (1, 2)]
    merged = load_weights(weights / "iteration_1/slerp")
    torch.testing.assert_close(merged, lerp(init, runs), rtol=0, atol=1e-6)
    assert weights_below(lerped.folder) != weights_below(config.folder)


LENGTHS = "def length(texts):\n    return [len(text) for text in texts]\n"


def test_a_judge_is_evaluated_beside_the_reward_and_changes_nothing_else(finished, tmp_path):
    config, summary = finished("gpt2")
    (tmp_path / "own.py").write_text(LENGTHS)
    judge = f"python:{tmp_path / 'own.py'}:length"
    update = {"judge": judge, "run_dir": str(tmp_path / "runs" / "run"), "workers": 1}
    judged = config.model_copy(update=update)
    found = run_warp(judged)
    assert {k: v for k, v in found.items() if not k.endswith("_judge")} == summary
    samples = read_jsonl(judged.folder / "samples.jsonl")
    for whose in ("sft", "warp"):
        lengths = [len(row["prompt"] + row[whose]) for row in samples]
        assert found[f"{whose}_judge"] == estimate(lengths)
    front = run_front(judged, etas=[0.0, 1.0])["front"]
    assert front[0]["judge"] == found["sft_judge"]
    assert front[1]["judge"]["mean"] != front[0]["judge"]["mean"]


def test_a_sum_of_a_model_and_of_code_is_a_reward(finished, tmp_path):
    config, _ = finished("gpt2")
    (tmp_path / "own.py").write_text(LENGTHS)
    own = Scorer(model=f"python:{tmp_path / 'own.py'}:length", weight=-0.25)
    rewards = [Scorer(model=config.reward_model, weight=2.0), own]
    update = {"reward_model": rewards, "run_dir": str(tmp_path / "runs" / "run")}
    both = config.model_copy(update=update)
    found = run_warp(both)
    for whose in ("sft", "warp"):
        texts = [row["prompt"] + row[whose] for row in read_jsonl(both.folder / "samples.jsonl")]
        expected = 2 * load_reward(config.reward_model)(texts)
        expected -= 0.25 * torch.tensor([len(text) for text in texts])
        assert found[f"{whose}_reward"]["mean"] == pytest.approx(expected.mean().item(), abs=1e-5)
    assert weights_below(both.folder) != weights_below(config.folder)
    before = weights_below(both.folder)
    (tmp_path / "own.py").write_text(LENGTHS.replace("len(text)", "-len(text)"))
    with pytest.raises(ConfigError, match="reward_sha256: "):  # it is another reward now
        run_warp(both)
    assert weights_below(both.folder) == before


def test_a_reward_that_fails_in_training_is_named_with_its_step(make_tiny_params, tmp_path):
    (tmp_path / "own.py").write_text(
        "calls = []\n"
        "def fails_later(texts):\n"
        "    calls.append(1)\n"
        "    return [float('nan') if len(calls) == 2 else 0.0 for text in texts]\n"
    )
    own = f"python:{tmp_path / 'own.py'}:fails_later"
    changes = {"reward_model": own, "workers": 1}
    config = WarpConfig(**make_tiny_params(run_dir=str(tmp_path / "runs" / "run"), **changes))
    where = rf"^tiny, iteration 1, run 1: step 2: the reward {re.escape(own)} gives nan for '"
    with pytest.raises(TrainingError, match=where):
        run_warp(config)


def test_the_evaluations_seed_is_not_the_trainings(finished, tmp_path):
    config, summary = finished("gpt2")
    other = config.model_copy(update={"eval_seed": 7, "run_dir": str(tmp_path / "runs" / "run")})
    found = run_warp(other)
    assert weights_below(other.folder) == weights_below(config.folder)
    assert found["sft_reward"] != summary["sft_reward"]
    trained = config.model_copy(update={"seed": 7, "run_dir": str(tmp_path / "runs" / "seed")})
    found = run_warp(trained)
    assert weights_below(trained.folder) != weights_below(config.folder)
    assert found["sft_reward"] == summary["sft_reward"]  # θ_sft is evaluated once for all trainings


def test_bf16_is_refused_where_it_is_slower_but_what_is_done_is_read(
    make_tiny_params, tmp_path, monkeypatch
):
    params = make_tiny_params(run_dir=str(tmp_path / "runs" / "run"), precision="bf16", workers=1)
    monkeypatch.setattr(precision, "bf16_ratio", lambda: 400.0)
    with pytest.raises(ConfigError, match=r"^precision: 'bf16' given; .* 400\.0 times slower"):
        run_warp(WarpConfig(**params))
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(precision, "bf16_ratio", lambda: 0.5)
    summary = run_warp(WarpConfig(**params))
    monkeypatch.setattr(precision, "bf16_ratio", lambda: 400.0)
    assert run_warp(WarpConfig(**params)) == summary


# Architectures


@pytest.mark.parametrize("lora", [0, 2])
@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_goes_from_its_weights_to_the_front(
    make_tiny_params, tmp_path, architecture, lora
):
    tokenizer = tiny.bytes_tokenizer() if architecture.startswith("qwen") else tiny.make_tokenizer()
    policy = tiny.save(
        tiny.make_policy(architecture, len(tokenizer)), tokenizer, tmp_path / "policy"
    )
    changes = {"policy": str(policy), "run_dir": str(tmp_path / "runs" / "run"), "workers": 1}
    changes |= {"lora_rank": lora, "lr": 3e-2, "iterations": 1, "prompt_words": 2}
    config = WarpConfig(**make_tiny_params(**changes))
    run_warp(config)
    front = run_front(config, etas=[0.5, 1.0])["front"]
    assert front[1]["kl"]["mean"] > front[0]["kl"]["mean"] > 0
    rows = read_jsonl(config.folder / "metrics.jsonl")
    assert [abs(row["kl_anchor"]) < 1e-4 for row in rows] == [True, False] * 2
    warp_folder = config.folder / "weights" / "warp"
    model = AutoModelForCausalLM.from_pretrained(
        config.folder / "weights" / "sft" if lora else warp_folder
    )
    if lora:
        model = PeftModel.from_pretrained(model, warp_folder)
    assert model.generate(torch.tensor([[3, 4]]), max_new_tokens=2, do_sample=False).shape[1] > 2


# Conversations


def test_a_chat_experiment_goes_from_conversations_to_the_front(
    make_tiny_params, policy_folders, tmp_path
):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "policy")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ ' ' + m.content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ ' so' }}{% endif %}"
    )
    generation = read_json(folder / "generation_config.json")
    write_json(folder / "generation_config.json", generation | {"eos_token_id": [0, 5]})
    rows = [
        {"messages": [{"role": "user", "content": f"{a} {b}"}]}
        for a in tiny.WORDS[:6]
        for b in tiny.WORDS[10:16]
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"policy": str(folder), "prompts": str(tmp_path / "chats.jsonl"), "prompt_words": 0}
    changes |= {"run_dir": str(tmp_path / "runs" / "chat"), "eval_prompts": 5, "batch_size": 4}
    config = WarpConfig(**make_tiny_params(**changes, missing_eos_penalty=0.5))
    summary = run_warp(config)
    assert summary["warp_reward"]["n"] == 5
    assert len(run_front(config)["front"]) == 6
    samples = read_jsonl(config.folder / "samples.jsonl")
    assert all(len(sample["prompt"].split()) == 2 for sample in samples)
    rows = read_jsonl(config.folder / "metrics.jsonl")
    assert abs(rows[0]["kl_anchor"]) < 1e-5
    warp_policy = load_policy(str(config.folder / "weights" / "warp"))
    assert stop_tokens(*warp_policy) == [0, 5]
    assert warp_policy[1].chat_template


def test_kl_of_sft_is_over_its_own_completions_at_the_temperature(tiny_params):
    config = WarpConfig(**tiny_params | {"iterations": 1, "temperature": 0.7})
    summary, e = run_warp(config), Experiment(config)
    store = Store(config.folder.parent / "store")
    y = read_completions(store.path(e.of_sft)).rollouts
    sft, warp = (load_policy(str(p))[0] for p in (config.policy, config.folder / "weights/warp"))
    wanted = estimate(policy_kl(sft, warp, y, 0.7))
    assert summary["kl_sft_warp"] == pytest.approx(wanted, rel=1e-4)
