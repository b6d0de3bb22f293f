"""Real experiments at tiny sizes through one pool, and what a change of the method's code asks for."""

import math
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import tiny
from project import files_below, is_alive, make_real_project, start_build, wait_for
from safetensors.torch import load_file, save_file

from reports.build import pool, run
from reports.build.__main__ import main
from reports.build.plan import Section, load_project
from warp_core import tasks
from warp_core.store.files import read_jsonl, seal_json, sealed_json
from warp_core.store.results import Store, Task
from warp_core.tasks import run_seed
from warp_core.warp import Experiment
from warp_core.world.prompts import load_prompts, prompt_batches

Files = dict[str, tuple[bytes, int]]


class Built(NamedTuple):
    """A project that was built, and what the store held when its first notebook began."""

    root: Path
    computed: list[str]
    at_first_notebook: Files


@contextmanager
def counted() -> Iterator[list[str]]:
    """The names of all that this process makes."""
    computed: list[str] = []
    make = Store.make

    def noted(store: Store, task: Task, passing: Sequence[Task] = ()) -> None:
        if not store.has(task, task.weights):
            computed.append(task.name)
        make(store, task, passing)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "make", noted)
        yield computed


def compute(root: Path) -> list[str]:
    """What the pool computes; without the notebooks."""
    project = load_project(root, smoke=False)
    with counted() as computed:
        pool.compute(project, project.stage("experiments"), lambda _: None)
    return computed


def results(root: Path) -> Files:
    """All that the store holds."""
    files = files_below(root / "runs/store")
    return {name: file for name, file in files.items() if not name.startswith("locks/")}


def experiment(root: Path, name: str) -> Experiment:
    return Experiment(load_project(root, smoke=False).experiment(f"runs/{name}"))


def kinds(names: list[str]) -> Counter[str]:
    return Counter(name.rpartition("-")[0] for name in names)


@pytest.fixture(scope="module")
def base(make_tiny_params) -> dict[str, Any]:
    return make_tiny_params(shared_run_seed=True)


@pytest.fixture(scope="module")
def built(base, tmp_path_factory) -> Built:
    """Two experiments of one name and seed, which differ in η alone, and the front of the first."""
    root = make_real_project(tmp_path_factory.mktemp("real") / "p", base, one={}, two={"eta": 0.8})
    start, seen = run._start, []

    def noted(section: Section) -> run.Running:
        seen.append(results(root))
        return start(section)

    with pytest.MonkeyPatch.context() as patch, counted() as computed:
        patch.setattr(run, "_start", noted)
        assert main([], root) == 0
    assert len(seen) == 3
    return Built(root, computed, seen[0])


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """The same, to change."""
    return shutil.copytree(built.root, tmp_path / "copy")


def test_the_pool_computes_each_task_once_and_the_notebooks_find_all_of_it(built):
    root, computed, at_first_notebook = built
    assert max(Counter(computed).values()) == 1
    assert kinds(computed) == {
        "sft": 1,
        "reward": 1,
        "prompts": 2,  # for training, for the evaluation
        "run": 3,  # one for all of iteration 1, one for each experiment in 2
        "merged": 1 + 3 + 3,  # SLERP of iteration 1, what differs; the front's η = 1 is a SLERP
        "evaluation": 1 + 2 + 2,  # θ_sft (the front at η = 0), WARP, the front at 1 and its run
    }
    assert results(root) == at_first_notebook
    for name in ("one", "two", "front"):
        assert (root / f"runs/{name}/executed.ipynb").is_file()
    summaries = [sealed_json(root / f"runs/{name}/summary.json") for name in ("one", "two")]
    assert [len(summary["front"]) for summary in summaries] == [2, 0]
    assert summaries[0]["training_reward"][0] == summaries[1]["training_reward"][0]
    assert summaries[0]["warp_reward"] != summaries[1]["warp_reward"]


def test_after_a_change_of_the_code_fresh_makes_anew_what_other_code_made(built, copy, capsys):
    """θ_warp of `two` by other code; its evaluation by this one, which was of those weights."""
    two = experiment(copy, "two")
    made, read_it = two.warp, two.wanted()[-1]
    older = {"commit": "0ldc0de", "code": "0" * 16}
    origin = copy / "runs/store" / made.name / "origin.json"
    seal_json(origin, sealed_json(origin) | older)
    origins = sealed_json(copy / "runs/two/origins.json")
    assert {made.name, read_it.name} < origins.keys()
    origins[made.name] |= older
    seal_json(copy / "runs/two/origins.json", origins)

    told = "numbers of two were made by other code of the method; `make fresh` makes them anew\n"
    foot = (
        "0ldc0de, на котором получены числа разделов two, код метода изменился; make fresh вычисляет их "
        "заново."
    )
    page = copy / "runs/warp_report.html"
    with counted() as computed:
        assert main([], copy) == 0
    assert told in capsys.readouterr().out
    assert foot in page.read_text(encoding="utf-8")
    assert not computed

    before = files_below(copy / "runs")
    with counted() as computed:
        assert main(["--fresh"], copy) == 0
    assert computed == [made.name, read_it.name]
    after = files_below(copy / "runs")
    new = {name for name in after if after[name] != before.get(name) and "/locks/" not in name}
    assert {name.split("/")[-2] for name in new if name.startswith("store/")} == {
        made.name,
        read_it.name,
        "weights",
    }
    assert not {name.split("/")[0] for name in new} - {"store", "two", "warp_report.html"}
    assert {f"store/{made.name}/weights/model.safetensors", "two/executed.ipynb"} < new
    assert before.keys() == after.keys()
    assert before["two/summary.json"][0] == after["two/summary.json"][0]
    assert "other code" not in capsys.readouterr().out
    assert foot not in page.read_text(encoding="utf-8")
    assert main([], copy) == 0
    assert capsys.readouterr().out.startswith("nothing to do")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("eta: 0.3", "' holds another experiment:\n  eta: 0.8 there, 0.3 asked for\n"),
        ("reward_model: /nowhere/reward", "'/nowhere/reward'"),
    ],
)
def test_what_a_notebook_would_refuse_is_refused_before_the_work(change, said, copy, capsys):
    (copy / "params/two.yaml").write_text(change)
    (copy / "runs/one/executed.ipynb").unlink()
    shutil.rmtree(copy / "runs/store")
    assert main([], copy) == 1
    error = capsys.readouterr().err
    assert error.startswith("two: notebooks/experiment.ipynb: ")
    assert said in error
    assert not (copy / "runs/store").exists()


def test_one_that_fails_is_named_and_the_others_results_are_kept(base, tmp_path, capsys):
    """A reward model that is NaN for an unknown word, and such a word in the second batch."""
    prompts = Path(shutil.copy(base["prompts"], tmp_path / "prompts.txt"))
    reward = shutil.copytree(base["reward_model"], tmp_path / "reward")
    bad = {"name": "bad", "prompts": str(prompts), "reward_model": str(reward), "steps": 3}
    root = make_real_project(tmp_path / "project", base, bad=bad, good={"name": "good"})
    config = load_project(root, smoke=False).experiment("runs/bad")
    train = load_prompts(config.prompts, config.prompt_words, config.eval_prompts).train
    batches = prompt_batches(train, config.batch_size, run_seed(config, 1, 1))
    next(batches)
    victim, lines = next(batches)[0], prompts.read_text()
    assert lines.count(f"{victim} ") == 1
    prompts.write_text(lines.replace(f"{victim} ", f"ghastly {victim} "))
    weights = load_file(reward / "model.safetensors")
    unknown = tiny.make_tokenizer().unk_token_id
    weights["distilbert.embeddings.word_embeddings.weight"][unknown] = math.nan
    save_file(weights, reward / "model.safetensors", metadata={"format": "pt"})

    assert main([], root) == 1
    error = capsys.readouterr().err
    assert error.startswith("bad, iteration 1, run 1: step 2: the reward is not finite")
    assert error.count("bad") == 1  # not once more for each that needs it
    assert error.endswith("All else is kept; the same command goes on from there.\n")
    store = Store(root / "runs/store")
    assert all(store.has(task, task.weights) for task in experiment(root, "good").wanted())
    assert not list((root / "runs").glob("*/executing.ipynb"))

    kept = results(root)
    prompts.write_text(lines)  # mended
    computed = compute(root)
    assert not set(computed) & {task.name for task in experiment(root, "good").wanted()}
    assert all(store.has(task) for task in experiment(root, "bad").wanted())
    after = results(root)
    assert {name: after.get(name) for name in kept if "unfinished" not in name} == {
        name: file for name, file in kept.items() if "unfinished" not in name
    }


def test_of_an_error_that_nobody_expected_all_is_told(base, tmp_path, capsys, monkeypatch):
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("odd")

    monkeypatch.setattr(tasks, "merge", broken)
    root = make_real_project(tmp_path / "project", base | {"iterations": 1}, one={})
    assert main([], root) == 1
    error = capsys.readouterr().err
    assert "in broken\n" in error
    assert "KeyError: 'odd'\n" in error
    assert error.count("Traceback") == 1


def test_ctrl_c_in_the_pool_ends_all_processes_and_the_next_build_goes_on(base, tmp_path):
    """To the whole group, as from a terminal; the steps that were logged are not done again."""
    changes = {"shared_run_seed": False, "iterations": 1, "steps": 80, "checkpoint_every": 0}
    root = make_real_project(tmp_path / "project", base | changes, one={})
    builder = start_build(root)
    logs = root / "runs/store/unfinished"
    running = lambda: [len(read_jsonl(log)) > 2 for log in logs.glob("*/steps.jsonl")]  # noqa: E731
    wait_for(lambda: running() == [True, True], 200)
    children = psutil.Process(builder.pid).children(recursive=True)
    os.killpg(builder.pid, signal.SIGINT)
    _, error = builder.communicate(timeout=200)
    assert builder.returncode == 130
    assert "stopped; all that was done is kept, the same command goes on" in error
    wait_for(lambda: not any(is_alive(child.pid) for child in children), 100)

    begun = {log.parent.name: read_jsonl(log) for log in logs.glob("*/steps.jsonl")}
    assert all(2 < len(rows) < 80 for rows in begun.values())
    computed = compute(root)
    assert kinds(computed)["run"] == 2
    store = Store(root / "runs/store")
    for theta in experiment(root, "one").iterations[0][0]:
        rows = store.rows(theta)
        assert len(rows) == 80
        assert rows[: len(begun[theta.name])] == begun[theta.name]  # with their seconds


def test_keep_weights_result_leaves_the_last_slerp_and_warp(base, tmp_path):
    root = make_real_project(tmp_path / "project", base | {"keep_weights": "result"}, one={})
    compute(root)
    one = experiment(root, "one")
    there = {path.parent.name for path in (root / "runs/store").glob("*/weights")}
    assert there == {
        one.theta_sft.name,
        one.given.rewards[0].name,
        one.iterations[-1][1].name,
        one.warp.name,
    }
    store = Store(root / "runs/store")
    points = one.front([0.0, 1.0])
    assert all(store.has(task) for task in [*one.wanted(), *(task for _, task in points)])
    assert [point for point, _ in points] == [{"eta": 0.0}, {"eta": 1.0}]
    assert not compute(root)
